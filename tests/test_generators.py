"""Which generators are caught: the rows are counted right, sets of any shape are judged or refused
in one line, and nothing is averaged."""

import os, shutil

import matplotlib.pyplot as plt
from matplotlib.cbook import get_sample_data
import numpy as np
import pandas as pd
import papermill
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from conftest import ROOT
from fakeface.core import FaceError, load_json, save_json
from fakeface.data import list_images, sample, save_manifest
from fakeface.dataset import Run
from fakeface.detector import Detector
from fakeface.generators import (
    STATISTICS, by_generator, image_statistics, generators_table, generators_text, hashes_of, predict_people,
    predict_set, predictions_of, row_note, people_rows, people_sample, people_text, person, pick_files,
    plot_generators, plot_sources, set_names, set_paths, shortcut, shortcuts_table, source_rows,
    sources_table, summarise)
from fakeface.metrics import wilson
from fakeface.model import load_checkpoint
from fakeface.standin import make_standin

BAND, THRESHOLD = (.3, .8), .6
WHOLE = dict(train=32, valid=12, test=12)

@pytest.fixture(scope='module')
def other(tmp_path_factory):
    "A further set of drawn faces, of other scenes and another size, without splits."
    folder = tmp_path_factory.mktemp('other')/'drawn'
    return make_standin(folder, n_train=16, n_valid=4, n_test=4, size=96, seed=7)/'train'

@pytest.fixture
def folder(other, tmp_path):
    "A copy of it to spoil, in a folder whose name holds a space."
    return shutil.copytree(other, tmp_path/'my faces')

@pytest.fixture(scope='module')
def model(checkpoint): return load_checkpoint(checkpoint)

def judged(fake, real, error=0, **more):
    "A judged set from scores; the last `error` images could not be opened."
    n = len(fake) + len(real)
    d = pd.DataFrame(dict(path=[f'{i}.jpg' for i in range(n)], p_fake=[*fake, *real], error='',
                          label=['fake'] * len(fake) + ['real'] * len(real), left_out=False)
                     | dict.fromkeys(STATISTICS, 1.) | more)
    d.loc[n - error:, ['p_fake', *STATISTICS]] = np.nan
    d.loc[n - error:, 'error'] = 'damaged'
    return d

def summary(*scores, n=50, **more):
    return summarise('x', judged(*scores, **more), THRESHOLD, BAND, n)

def counts(row):
    return {k: (row[k]['k'], row[k]['n']) for k in ('tpr', 'uncertain', 'fnr', 'fpr')}

@pytest.fixture
def run(drawn, checkpoint, tmp_path):
    "What the steps before leave: an untrained model and its scores of the test images."
    (d := tmp_path/'run').mkdir()
    manifest, _ = sample(drawn, WHOLE, generator='standin')
    save_manifest(manifest, d/'manifest.csv')
    save_json(d/'data.json', dict(root=str(drawn)))
    shutil.copy(checkpoint, d/'model.safetensors')
    p = manifest[manifest.split == 'test'][['path', 'label', 'generator']]
    p.assign(p_fake=np.linspace(.05, .95, 12)).to_csv(d/'predictions.csv', index=False)
    return Run(d, 'cpu')

# --- one row ---

def test_each_fake_and_each_real_is_counted_once_where_it_belongs():
    """At a threshold the verdict is fake; at the lower end of the band it is uncertain, at the
    upper end it is not."""
    fake, real = [.1, .29, .3, .6, .79, .8, .99], [.1, .6, .95]
    row = summary(fake, real)
    assert counts(row) == dict(tpr=(4, 7), uncertain=(3, 7), fnr=(2, 7), fpr=(2, 3))
    for m, (k, n) in counts(row).items():
        assert (row[m]['low'], row[m]['high']) == wilson(k, n) and row[m]['value'] == k / n
    auc = row['auc']
    assert auc['value'] == pytest.approx(roc_auc_score([1] * 7 + [0] * 3, fake + real))
    assert auc['low'] < auc['value'] < auc['high'] and row_note(row) == ''

@pytest.mark.parametrize('fake, real, says', [([.9, .1], [], 'no real images'),
                                              ([], [.9, .1, .2], 'no fakes')])
def test_one_class_tells_one_thing(fake, real, says):
    row = summary(fake, real)
    assert row['auc'] is None and row['shortcuts'] == {} and not len(shortcuts_table([row]))
    told = generators_table([row]).iloc[0]
    assert says in row_note(row) and told.auc == '' and (told.accused == '') == (not real)
    assert (told.caught == told.uncertain == told.called_real == '') == (not fake)
    assert (told.fakes, told.reals) == (len(fake), len(real))
    assert ('cannot be told' in generators_text([row])) == (not fake)

def test_what_could_not_be_judged_is_counted_apart():
    row = summary([np.nan, .9], [.1, .1, .1], error=2, left_out=[True, *[False] * 4])
    assert (row['unreadable'], row['left_out']) == (2, 1)
    assert (row['tpr']['n'], row['fpr']['n']) == (1, 1)
    assert '2 could not be opened' in row_note(row) and '1 left out' in row_note(row)
    none = summary([.9], [.1], error=2)
    assert counts(none) == dict.fromkeys(counts(none), (0, 0)) and none['auc'] is None

def test_a_shortcut_is_named_with_its_direction():
    rng = np.random.default_rng(0)
    fake, real = rng.uniform(.2, 1, 80), rng.uniform(0, .8, 80)
    silly = {n: rng.normal(size=160) for n in STATISTICS if n != 'kilobytes'}
    row = summary(fake, real, n=200, **silly,
                  kilobytes=np.r_[rng.normal(-1.2, 1, 80), rng.normal(0, 1, 80)])
    auc, table = row['shortcuts']['kilobytes']['value'], shortcuts_table([row])
    assert shortcut(row) == 'kilobytes' and auc < .3
    assert f'file size alone has AUC {auc:.2f}' in row_note(row)
    for value in (row['auc']['value'], .6, .99, .02):
        told = row_note(row | dict(auc=dict(value=value)))
        assert ('farther' in told) == (.5 - auc >= abs(value - .5))
    assert shortcut(summary(fake, real, n=200, **silly)) is None
    assert table.columns.tolist() == ['set', 'model', *STATISTICS.values()]
    assert table['JPEG quality'][0].startswith('0.')

@pytest.mark.parametrize('found, name', [
    (dict(width=(.61, .6, .62)), 'width'), (dict(width=(.59, .58, .6)), None),
    (dict(width=(.8, .45, .9)), None),
    (dict(width=(.61, .6, .62), detail=(.25, .2, .3), quality=(.52, .51, .53)), 'detail')])
def test_a_shortcut_is_far_from_chance_for_certain(found, name):
    ends = ('value', 'low', 'high')
    assert shortcut(dict(shortcuts={k: dict(zip(ends, v)) for k, v in found.items()})) == name

def test_the_best_caught_come_first_and_no_row_is_a_mean():
    sets = {'a': judged([.1] * 10, [.1]), 'b': judged([.9] * 10, [.1]),
            '0 fakes': judged([], [.1]), 'c': judged([.9] * 5 + [.1] * 5, [])}
    rows = [summarise(n, d, THRESHOLD, BAND, 20) for n, d in sets.items()]
    order, text = generators_table(rows).set.tolist(), generators_text(rows)
    assert order == ['b', 'c', 'a', '0 fakes']
    for said in ('10 of 10 fakes of b', '0 of 10 fakes of a', '3 sets of fakes'):
        assert said in text
    assert 'of c' not in text and generators_text(rows[:1]).count('of 10 fakes') == 1
    shares, strips = plot_generators(rows, sets, THRESHOLD, BAND).axes
    assert [t.get_text().split('\n')[0] for t in shares.get_yticklabels()] == order
    assert shares.get_ylim()[0] > shares.get_ylim()[1]  # the first on top
    dots = [line.get_xydata()[0].round(1) for line in shares.lines
            if line.get_marker() == 'o' and len(line.get_xdata())]
    assert sorted((round(y), x) for x, y in dots) == [(0, 1.), (1, .5), (2, 0.)]
    assert sum(len(line.get_xdata()) for line in strips.lines if line.get_marker() == '|') == 33
    plt.close('all')

# --- sets ---

def test_sets_are_named_once(folder, other, monkeypatch):
    assert set_paths([]) == []
    assert set_paths([str(folder), f'{other}', f'{other}/../train']) == [folder, other]
    shutil.rmtree(folder/'real')
    assert set_paths([str(folder)]) == [folder]  # one class is enough
    monkeypatch.chdir(ROOT)
    assert set_paths([os.path.relpath(other)]) == [other]

@pytest.mark.parametrize('name', ['{other}x', '{other}/real', 'a\nb', 'x\0', '~nobody',
                                  '/' + 'x' * 300])
def test_a_misspelt_set_is_told_in_one_line(name, other):
    with pytest.raises(FaceError, match='^sets: ') as e:
        set_paths([str(other), name.format(other=other)])
    assert '\n' not in str(e.value)

def test_every_set_has_a_name_of_its_own(folder, other, drawn):
    assert set_names([folder, other]) == ['my faces', 'train'] and set_names([drawn]) == ['standin']
    names = set_names([ROOT/'a'/'fakes', ROOT/'b'/'fakes', ROOT/'b'/'more'])
    assert names == ['a/fakes', 'b/fakes', 'more']

def test_the_choice_of_images_depends_on_the_seed_alone(other):
    files = list_images(other)
    chosen, mixed = pick_files(files, 3, 1), pick_files(files.sample(frac=1, random_state=0), 3, 1)
    assert chosen.equals(mixed.sort_values('path', ignore_index=True))
    assert chosen.label.value_counts().to_dict() == dict(fake=3, real=3)
    assert len(pick_files(files, 0)) == len(pick_files(files, 99)) == len(files)
    assert set(pick_files(files, 3, 2).path) != set(chosen.path) < set(pick_files(files, 5, 1).path)

def test_statistics_of_an_image(tmp_path):
    x = np.zeros((80, 120, 3), np.uint8)
    x[20:60, 30:90] = 200
    noise = np.random.default_rng(0).integers(0, 255, (80, 120, 3), dtype=np.uint8)
    Image.fromarray(x).save(tmp_path/'a.png')
    Image.fromarray(x).save(tmp_path/'a.jpg', quality=70)
    Image.fromarray(noise).save(tmp_path/'noise.png')
    Image.new('RGB', (2, 900), 'red').save(tmp_path/'thin.png')
    names = ('a.png', 'a.jpg', 'thin.png', 'noise.png', 'none.png')
    a, j, thin, noisy, none = (image_statistics(tmp_path, n) for n in names)
    assert a['brightness'] == pytest.approx(.25 * 200 / 255, rel=1e-4) and a['width'] == 120
    assert a['middle'] == pytest.approx(200 / 255) and (a['quality'], j['quality']) == (0, 70)
    assert a['kilobytes'] == (tmp_path/'a.png').stat().st_size / 1000
    assert thin['detail'] == 0 and np.isfinite([thin[s] for s in STATISTICS]).all()
    assert noisy['detail'] > 10 * a['detail'] and none == dict(error='no such file')

def test_a_set_is_judged_as_the_detector_judges(model, checkpoint, other):
    files = list_images(other)
    d = predict_set(*model, other, files, batch_size=5)
    detector = Detector.load(checkpoint, 'cpu')
    theirs = [v.p_fake for v in detector.predict([other/p for p in files.path], whole=True)]
    assert np.allclose(d.p_fake, theirs, atol=1e-5) and np.ptp(d.p_fake) > 0
    assert d.path.equals(files.path) and not d.left_out.any()

def test_a_broken_file_is_counted_and_moves_no_other(model, folder):
    whole = predict_set(*model, folder, list_images(folder))
    first, last = folder/'fake'/'00000.jpg', sorted((folder/'real').iterdir())[-1]
    first.write_bytes(first.read_bytes()[:400])
    last.write_bytes(b'')
    d = predict_set(*model, folder, list_images(folder))
    bad = d.error != ''
    assert d.path[bad].tolist() == ['fake/00000.jpg', f'real/{last.name}']
    assert d.p_fake[bad].isna().all()
    assert np.allclose(d.p_fake[~bad], whole.p_fake[~bad], atol=1e-6)
    row = summarise('x', d, THRESHOLD, BAND, 20)
    assert (row['unreadable'], row['tpr']['n'], row['fpr']['n']) == (2, 7, 7)
    for p in folder.rglob('*.jpg'): p.write_bytes(b'x')
    why = 'none of 16 images could be opened; the first: fake/00000.jpg: not an image'
    with pytest.raises(FaceError, match=why) as e: predict_set(*model, folder, list_images(folder))
    assert '\n' not in str(e.value)

def test_images_that_were_trained_on_are_left_out(model, drawn, faces):
    files, (manifest, _) = list_images(drawn), sample(drawn, WHOLE)
    d = predict_set(*model, drawn, files, manifest.sha256[manifest.split != 'test'])
    assert d.left_out.equals(d.split != 'test') and d.p_fake.notna().equals(d.split == 'test')
    (faces/files.path[0]).write_bytes(b'x')
    for root in (drawn, faces):
        with pytest.raises(FaceError, match='trained on all that can be opened'):
            predict_set(*model, root, files, manifest.sha256)

# --- the test images ---

def test_each_generator_of_the_test_images_stands_beside_all_reals(run):
    [(name, d)] = by_generator(predictions_of(run))
    assert name == 'standin' and d.label.value_counts().to_dict() == dict(fake=6, real=6)
    assert np.allclose(d.p_fake, run.scores(d))  # read, not judged again
    m = run.manifest
    fakes = m.index[(m.split == 'test') & (m.label == 'fake')]
    m.loc[fakes[:2], 'generator'], m.loc[fakes[2:], 'generator'] = 'one', ''
    found = {n: d.label.value_counts().to_dict() for n, d in by_generator(predictions_of(run))}
    # '' takes the source's name
    assert found == {'one': dict(fake=2, real=6), 'standin': dict(fake=4, real=6)}

def test_a_test_image_that_is_gone_is_counted(run, faces):
    run.data['root'] = faces
    next((faces/'test'/'real').iterdir()).unlink()
    row = summarise('x', by_generator(predictions_of(run))[0][1], THRESHOLD, BAND, 20)
    assert (row['unreadable'], row['tpr']['n'], row['fpr']['n']) == (1, 6, 5)

def test_scores_must_be_there_and_of_these_images(run):
    pd.read_csv(run.dir/'predictions.csv').head(11).to_csv(run.dir/'predictions.csv', index=False)
    with pytest.raises(FaceError, match='run 04_evaluate again'): predictions_of(Run(run.dir, 'cpu'))
    (run.dir/'predictions.csv').unlink()
    with pytest.raises(FaceError, match='run 04_evaluate first'): predictions_of(Run(run.dir, 'cpu'))

# --- by source ---

def sourced(name, label, p, seen=True):
    return pd.DataFrame(dict(name=name, label=label, seen=seen, p_fake=p)).assign(
        **{'jpeg:75': np.asarray(p) / 2})

def test_every_source_has_a_row_of_its_own():
    d = pd.concat([sourced('gan', 'fake', [.9, .7, .1, .5]),
                   sourced('new', 'fake', [.1, .2], False),
                   sourced('film', 'real', [.1, .9, .7, np.nan])])
    rows = gan, new, film = source_rows(d, THRESHOLD, BAND, ['jpeg:75'])
    assert [(r['name'], r['n'], r['seen']) for r in rows] == [
        ('gan', 4, True), ('new', 2, False), ('film', 3, True)]
    told = [[r[k]['k'] for k in ('called_fake', 'uncertain', 'wrong')]
            + [r['corruptions']['jpeg:75']['k']] for r in rows]
    assert told == [[2, 2, 1, 0], [0, 0, 2, 0], [2, 1, 1, 0]]
    assert (gan['called_fake']['low'], gan['called_fake']['high']) == wilson(2, 4)
    assert film['mean'] == pytest.approx(1.7 / 3) and len(sources_table([gan], 'real')) == 0
    assert sources_table(rows, 'fake')['in training'].tolist() == ['yes', 'no']
    widths = [[round(b.get_width(), 3) for b in ax.patches] for ax in plot_sources(rows).axes]
    assert widths == [[.5, 0], [.667]]
    plt.close('all')

def test_a_copy_that_a_set_lacks_is_left_out_of_its_row():
    d = pd.concat([sourced('gan', 'fake', [.9]),
                   sourced('other', 'fake', [.9]).assign(**{'jpeg:75': np.nan})])
    rows = source_rows(d, THRESHOLD, BAND, ['jpeg:75'])
    assert [list(r['corruptions']) for r in rows] == [['jpeg:75'], []]

# --- whom it accuses ---

def test_people_are_read_from_names_of_files(tmp_path):
    child = dict(age='0 to 9', gender='male', race='others')
    assert person('1_0_4_20161219.jpg.chip.jpg') == child
    assert person('60_1_0_2016.jpg')['age'] == '60 to 120'
    assert not any(map(person, ('130_0_0_2.jpg', '30_0_7_2.jpg', '30_0_20170109.jpg', 'a.jpg')))
    Image.new('RGB', (64, 64)).save(tmp_path/'holiday.jpg')
    with pytest.raises(FaceError, match='age_gender_race_date'): people_sample(tmp_path, 3)
    for i in range(40):
        shutil.copy(tmp_path/'holiday.jpg', tmp_path/f'{i}_{i % 2}_{i % 5}_2017{i}.jpg')
    d = people_sample(tmp_path, 2)
    assert d.path.is_unique and d.groupby(['gender', 'race']).size().min() >= 2
    assert d.age.value_counts().min() >= 2 and d.equals(people_sample(tmp_path, 2))
    assert not d.equals(people_sample(tmp_path, 2, seed=1))

def test_a_group_that_is_accused_too_often_is_named():
    d = pd.DataFrame(dict(age='20 to 39', gender=['male'] * 150 + ['female'] * 50, race='White',
                          p_fake=[.1] * 190 + [.9] * 10))
    rows = people_rows(pd.concat([d, d.head(1).assign(p_fake=np.nan)]), THRESHOLD)
    assert rows[0]['n'] == 200 and {r['group']: r['k'] for r in rows} == {
        'all': 10, 'male': 0, 'female': 10, '20 to 39': 10, 'White': 10}
    assert 'female' in people_text(rows)
    assert 'No group' in people_text(people_rows(d.assign(p_fake=.1), THRESHOLD))

def test_people_of_the_training_are_not_asked(model, tmp_path):
    face = Image.open(get_sample_data('grace_hopper.jpg', asfileobj=False)).convert('RGB')
    face.save(tmp_path/'60_1_0_2016.jpg', quality=92)
    Image.new('RGB', (200, 200)).save(tmp_path/'1_0_0_2016.jpg')
    d = people_sample(tmp_path, 5)
    p = predict_people(*model, d, np.empty((0, 4), np.uint64)).set_index('age').p_fake
    assert 0 < p['60 to 120'] < 1 and np.isnan(p['0 to 9'])  # where there is no face
    face.resize((256, 300)).save(tmp_path/'copy.png')
    assert predict_people(*model, d, hashes_of(tmp_path, ['copy.png'])).p_fake.isna().all()

# --- the step ---

def test_the_step_leaves_numbers_scores_and_a_picture(run, folder, other, tmp_path):
    """A set in a folder with a space, with a broken file; another of one class; more images than
    are asked for."""
    only = tmp_path/'only'
    shutil.copytree(other/'fake', only/'fake')
    (folder/'real'/'00000.jpg').write_bytes(b'\xff\xd8\xff')
    settings = dict(run_dir=str(run.dir), workers=0, bootstrap=20, device='cpu', images=5,
                    sets=[str(folder), str(only)])
    papermill.execute_notebook(str(ROOT/'nbs'/'08_generators.ipynb'), None, settings,
                               cwd=str(run.dir), kernel_name='python3', progress_bar=False)
    result, scores = load_json(run.dir/'generators.json'), pd.read_csv(run.dir/'generators.csv')
    rows = {r['name']: r for r in result['rows']}
    mine = rows['my faces']
    assert mine['tpr']['n'] == 5 and mine['fpr']['n'] + mine['unreadable'] == 5
    assert counts(rows['only'])['tpr'][1] == 5 and rows['only']['auc'] is None
    assert {rows['standin (test)'][k]['n'] for k in ('tpr', 'fpr')} == {6}
    assert scores.columns.tolist() == ['set', 'path', 'label', 'name', 'seen', 'p_fake', 'jpeg:75',
                                       'scale:0.5']
    own = scores.set == 'test'
    assert scores.set.value_counts().to_dict() == {'test': 12, 'my faces': 10, 'only': 5}
    assert not scores[own][['jpeg:75', 'scale:0.5']].isna().any(axis=None)
    assert (scores.seen == own).all()
    # the table can be computed from the scores again
    for (name, label), d in scores.dropna(subset='p_fake').groupby(['set', 'label']):
        cell = counts(rows['standin (test)' if name == 'test' else name])
        caught = (d.p_fake >= result['threshold']).sum(), len(d)
        assert cell['tpr' if label == 'fake' else 'fpr'] == caught
    notes = {t['set']: t['note'] for t in result['table']}
    assert set(notes) == set(rows) and notes['only'] == row_note(rows['only'])
    assert len(result['shortcuts']) == 2 and result['people'] == []
    assert result['text'] == generators_text(result['rows'])
    for name in ('generators', 'sources'):
        assert Image.open(run.dir/'figures'/f'{name}.png').width > 500
    assert {(r['label'], r['name'], r['seen']) for r in result['by_source']} == {
        ('fake', 'standin', True), ('fake', 'my faces', False), ('fake', 'only', False),
        ('real', 'standin', True), ('real', 'my faces', False)}

def test_real_faces(photographs):
    """The shipped weights, few images: the test images of the kind they know are caught more often
    than what they have never seen."""
    model, meta = load_checkpoint(ROOT/'fakeface'/'weights'/'model.safetensors')
    rows = []
    for name in ('140k-subset/test', 'cross-generator/sdxl', 'cross-generator/sfhq'):
        files = pick_files(list_images(photographs/name, both=False), 24)
        d = predict_set(model, meta, photographs/name, files)
        rows.append(summarise(name, d, meta['threshold'], meta['band'], 100))
    known, sdxl, sfhq = rows
    assert known['tpr']['value'] > .7 and known['auc']['value'] > .95
    assert sdxl['tpr']['value'] < known['tpr']['value'] and sdxl['fpr']['value'] < .2
    assert shortcut(sdxl) and sfhq['auc'] is None and 'no real' in row_note(sfhq)
    assert all(r['tpr']['n'] == 24 and not r['unreadable'] for r in rows)
