"Which generators are caught: the rows are counted right, sets of any shape are judged or refused in one line, and nothing is averaged."

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
from fakeface.metrics import wilson
from fakeface.generators import (STATISTICS, aucs, by_generator, facts, generators_table, generators_text, hashes_of, judge_people, judge_set,
                                 judged_test, note, people_rows, people_sample, people_text, person, pick, plot_generators, plot_sources,
                                 set_names, set_paths, share, shortcut, shortcuts_table, source_rows, sources_table, summarise)
from fakeface.model import load_checkpoint
from fakeface.standin import make_standin

BAND, THRESHOLD = (.3, .8), .6

@pytest.fixture(scope='module')
def other(tmp_path_factory):
    "A further set of drawn faces, of other scenes and another size, without splits."
    return make_standin(tmp_path_factory.mktemp('other')/'drawn', n_train=16, n_valid=4, n_test=4, size=96, seed=7)/'train'

@pytest.fixture
def folder(other, tmp_path):
    "A copy of it to spoil, in a folder whose name holds a space."
    return shutil.copytree(other, tmp_path/'my faces')

def judged(fake, real, error=0, **more):
    "A judged set from scores; the last `error` images could not be opened."
    p, n = [*fake, *real], len(fake) + len(real)
    d = pd.DataFrame(dict(path=[f'{i}.jpg' for i in range(n)], label=['fake'] * len(fake) + ['real'] * len(real), p_fake=p, error='', left_out=False) | dict.fromkeys(STATISTICS, 1.) | more)
    if error: d.loc[n - error:, ['error', 'p_fake', *STATISTICS]] = ['damaged', np.nan] + [np.nan] * len(STATISTICS)
    return d

def counts(row): return {k: (row[k]['k'], row[k]['n']) for k in ('caught', 'uncertain', 'missed', 'accused')}

@pytest.fixture
def run_dir(drawn, checkpoint, tmp_path):
    "What the steps before leave: an untrained model and its scores of the test images."
    d = tmp_path/'run'; d.mkdir()
    manifest, _ = sample(drawn, dict(train=32, valid=12, test=12), generator='standin')
    save_manifest(manifest, d/'manifest.csv'); save_json(d/'data.json', dict(root=str(drawn))); shutil.copy(checkpoint, d/'model.safetensors')
    test = manifest[manifest.split == 'test'].reset_index(drop=True)
    test[['path', 'label', 'generator']].assign(p_fake=np.linspace(.05, .95, 12)).to_csv(d/'predictions.csv', index=False)
    return d

# --- one row ---

def test_each_fake_and_each_real_is_counted_once_where_it_belongs():
    "At a threshold the verdict is fake; at the lower end of the band it is uncertain, at the upper end it is not."
    row = summarise('x', judged([.1, .29, .3, .6, .79, .8, .99], [.1, .6, .95]), THRESHOLD, BAND, 50)
    assert counts(row) == dict(caught=(4, 7), uncertain=(3, 7), missed=(2, 7), accused=(2, 3))
    for m in ('caught', 'uncertain', 'missed', 'accused'): assert (row[m]['low'], row[m]['high']) == wilson(row[m]['k'], row[m]['n']) and row[m]['value'] == row[m]['k'] / row[m]['n']
    assert row['auc']['value'] == pytest.approx(roc_auc_score([1] * 7 + [0] * 3, [.1, .29, .3, .6, .79, .8, .99, .1, .6, .95]))
    assert row['auc']['low'] < row['auc']['value'] < row['auc']['high'] and note(row) == ''

def test_the_area_is_scikit_learns():
    rng = np.random.default_rng(0)
    fake, scores = rng.uniform(size=200) < .3, rng.normal(size=(200, 4)).round(1)  # rounded: ties occur
    assert aucs(fake, scores) == pytest.approx([roc_auc_score(fake, s) for s in scores.T]) and aucs(fake, np.zeros((200, 1))) == [.5]

@pytest.mark.parametrize('fake, real, says', [([.9, .1], [], 'no real images'), ([], [.9, .1, .2], 'no fakes')])
def test_one_class_tells_one_thing(fake, real, says):
    row = summarise('x', judged(fake, real), THRESHOLD, BAND, 50)
    assert row['auc'] is None and row['shortcuts'] == {} and says in note(row) and not len(shortcuts_table([row]))
    told = generators_table([row]).iloc[0]
    assert told.auc == '' and (told.accused == '') == (not real) and (told.caught == told.uncertain == told.called_real == '') == (not fake)
    assert (told.fakes, told.reals) == (len(fake), len(real)) and ('cannot be told' in generators_text([row])) == (not fake)

def test_what_could_not_be_judged_is_counted_apart():
    row = summarise('x', judged([np.nan, .9], [.1, .1, .1], error=2, left_out=[True, False, False, False, False]), THRESHOLD, BAND, 50)
    assert (row['unreadable'], row['left_out'], row['caught']['n'], row['accused']['n']) == (2, 1, 1, 1) and '2 could not be opened' in note(row) and '1 left out' in note(row)
    none = summarise('x', judged([.9], [.1], error=2), THRESHOLD, BAND, 50)
    assert counts(none) == dict.fromkeys(counts(none), (0, 0)) and none['auc'] is None and share(0, 0)['high'] == 1

def test_a_shortcut_is_named_with_its_direction():
    rng = np.random.default_rng(0)
    fake, real = rng.uniform(.2, 1, 80), rng.uniform(0, .8, 80)
    silly = {n: rng.normal(size=160) for n in ('brightness', 'middle', 'detail', 'width', 'quality')}
    row = summarise('x', judged(fake, real, **silly, kilobytes=np.r_[rng.normal(-1.2, 1, 80), rng.normal(0, 1, 80)]), THRESHOLD, BAND, 200)
    assert shortcut(row) == 'kilobytes' and f'file size alone has AUC {row["shortcuts"]["kilobytes"]["value"]:.2f}' in note(row) and row['shortcuts']['kilobytes']['value'] < .3
    assert ('farther' in note(row)) == (.5 - row['shortcuts']['kilobytes']['value'] >= row['auc']['value'] - .5)
    assert 'farther' in note(row | dict(auc=dict(value=.6))) and 'farther' not in note(row | dict(auc=dict(value=.99))) and 'farther' not in note(row | dict(auc=dict(value=.02)))
    assert shortcut(summarise('x', judged(fake, real, **silly), THRESHOLD, BAND, 200)) is None
    far, near, unsure = (dict(shortcuts=dict(width=dict(value=v, low=lo, high=v + .01))) for v, lo in ((.61, .6), (.59, .58), (.8, .45)))
    assert shortcut(far) == 'width' and shortcut(near) is None and shortcut(unsure) is None
    assert shortcut(dict(shortcuts=far['shortcuts'] | dict(detail=dict(value=.25, low=.2, high=.3), quality=dict(value=.52, low=.51, high=.53)))) == 'detail'
    assert shortcuts_table([row]).columns.tolist() == ['set', 'model', *STATISTICS.values()] and shortcuts_table([row])['JPEG quality'][0].startswith('0.')

def test_the_best_caught_come_first_and_no_row_is_a_mean():
    sets = {'a': judged([.1] * 10, [.1]), 'b': judged([.9] * 10, [.1]), '0 fakes': judged([], [.1]), 'c': judged([.9] * 5 + [.1] * 5, [])}
    rows = [summarise(n, d, THRESHOLD, BAND, 20) for n, d in sets.items()]
    table, text = generators_table(rows), generators_text(rows)
    assert table.set.tolist() == ['b', 'c', 'a', '0 fakes'] and '10 of 10 fakes of b' in text and '0 of 10 fakes of a' in text and '3 sets of fakes' in text and 'of c' not in text
    assert generators_text(rows[:1]).count('of 10 fakes') == 1
    fig = plot_generators(rows, sets, THRESHOLD, BAND)
    shares, strips = fig.axes
    assert [t.get_text().split('\n')[0] for t in shares.get_yticklabels()] == table.set.tolist() and shares.get_ylim()[0] > shares.get_ylim()[1]  # the first on top
    dots = sorted((round(float(line.get_ydata()[0])), float(line.get_xdata()[0])) for line in shares.lines if line.get_marker() == 'o' and len(line.get_xdata()))
    assert dots == [(0, 1.), (1, .5), (2, 0.)]
    assert sum(len(line.get_xdata()) for line in strips.lines if line.get_marker() == '|') == 33
    plt.close(fig)

# --- sets ---

def test_sets_are_named_once(folder, other, monkeypatch):
    assert set_paths([]) == [] and set_paths([str(folder), f'{other}', f'{other}/../train']) == [folder, other]
    shutil.rmtree(folder/'real')
    assert set_paths([str(folder)]) == [folder]  # one class is enough
    monkeypatch.chdir(ROOT)
    assert set_paths([os.path.relpath(other)]) == [other]

@pytest.mark.parametrize('name', ['{other}x', '{other}/real', 'a\nb', 'x\0', '~nobody', '/' + 'x' * 300])
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
    chosen = pick(files, 3, 1)
    assert chosen.equals(pick(files.sample(frac=1, random_state=0), 3, 1).sort_values('path', ignore_index=True)) and chosen.label.value_counts().to_dict() == dict(fake=3, real=3)
    assert len(pick(files, 0)) == len(pick(files, 99)) == len(files) and set(chosen.path) < set(pick(files, 5, 1).path) and set(chosen.path) != set(pick(files, 3, 2).path)

def test_statistics_of_an_image(tmp_path):
    x = np.zeros((80, 120, 3), np.uint8); x[20:60, 30:90] = 200
    Image.fromarray(x).save(tmp_path/'a.png'); Image.fromarray(x).save(tmp_path/'a.jpg', quality=70); Image.new('RGB', (2, 900), 'red').save(tmp_path/'thin.png')
    a, j, thin = (facts(tmp_path, n) for n in ('a.png', 'a.jpg', 'thin.png'))
    assert a['brightness'] == pytest.approx(.25 * 200 / 255, rel=1e-4) and a['middle'] == pytest.approx(200 / 255) and a['width'] == 120 and (a['quality'], j['quality']) == (0, 70)
    assert a['kilobytes'] == (tmp_path/'a.png').stat().st_size / 1000 and thin['detail'] == 0 and np.isfinite([thin[s] for s in STATISTICS]).all()
    noise = np.random.default_rng(0).integers(0, 255, (80, 120, 3), dtype=np.uint8); Image.fromarray(noise).save(tmp_path/'noise.png')
    assert facts(tmp_path, 'noise.png')['detail'] > 10 * a['detail'] and facts(tmp_path, 'none.png') == dict(error='no such file')

def test_a_set_is_judged_as_the_detector_judges(checkpoint, other):
    model, meta = load_checkpoint(checkpoint)
    files = list_images(other)
    d = judge_set(model, meta, other, files, batch_size=5)
    theirs = [v.p_fake for v in Detector.load(checkpoint, 'cpu').predict([other/p for p in files.path], whole=True)]
    assert np.allclose(d.p_fake, theirs, atol=1e-5) and d.path.equals(files.path) and not d.left_out.any() and np.ptp(d.p_fake) > 0

def test_a_broken_file_is_counted_and_moves_no_other(checkpoint, folder):
    model, meta = load_checkpoint(checkpoint)
    whole = judge_set(model, meta, folder, list_images(folder))
    first, last = folder/'fake'/'00000.jpg', sorted((folder/'real').iterdir())[-1]
    first.write_bytes(first.read_bytes()[:400]); last.write_bytes(b'')
    d = judge_set(model, meta, folder, list_images(folder))
    bad = d.error != ''
    assert d.path[bad].tolist() == ['fake/00000.jpg', f'real/{last.name}'] and d.p_fake[bad].isna().all() and np.allclose(d.p_fake[~bad], whole.p_fake[~bad], atol=1e-6)
    row = summarise('x', d, THRESHOLD, BAND, 20)
    assert (row['unreadable'], row['caught']['n'], row['accused']['n']) == (2, 7, 7) and '2 could not be opened' in note(row)
    for p in folder.rglob('*.jpg'): p.write_bytes(b'x')
    with pytest.raises(FaceError, match='none of 16 images could be opened; the first: fake/00000.jpg: not an image') as e: judge_set(model, meta, folder, list_images(folder))
    assert '\n' not in str(e.value)

def test_images_that_were_trained_on_are_left_out(checkpoint, drawn, faces):
    model, meta = load_checkpoint(checkpoint)
    files, (manifest, _) = list_images(drawn), sample(drawn, dict(train=32, valid=12, test=12))
    d = judge_set(model, meta, drawn, files, manifest.sha256[manifest.split != 'test'])
    assert d.left_out.equals(d.split != 'test') and d.p_fake.notna().equals(d.split == 'test')
    with pytest.raises(FaceError, match='trained on all'): judge_set(model, meta, drawn, files, manifest.sha256)
    (faces/files.path[0]).write_bytes(b'x')
    with pytest.raises(FaceError, match='trained on all that can be opened'): judge_set(model, meta, faces, files, manifest.sha256)

# --- the test images ---

def test_each_generator_of_the_test_images_stands_beside_all_reals(run_dir, drawn):
    scores = pd.read_csv(run_dir/'predictions.csv').set_index('path').p_fake
    [(name, d)] = by_generator(judged_test(Run(run_dir, 'cpu')))
    assert name == 'standin' and d.label.value_counts().to_dict() == dict(fake=6, real=6) and np.allclose(d.p_fake, scores[d.path])  # read, not judged again
    m = pd.read_csv(run_dir/'manifest.csv', keep_default_na=False)
    fakes = m.index[(m.split == 'test') & (m.label == 'fake')]
    m.loc[fakes[:2], 'generator'], m.loc[fakes[2:], 'generator'] = 'one', ''; save_manifest(m, run_dir/'manifest.csv')
    found = dict(by_generator(judged_test(Run(run_dir, 'cpu'))))
    assert {n: d.label.value_counts().to_dict() for n, d in found.items()} == {'one': dict(fake=2, real=6), 'standin': dict(fake=4, real=6)}  # '' takes the source's name

def test_a_test_image_that_is_gone_is_counted(run_dir, faces):
    save_json(run_dir/'data.json', dict(root=str(faces))); next((faces/'test'/'real').iterdir()).unlink()
    row = summarise('x', by_generator(judged_test(Run(run_dir, 'cpu')))[0][1], THRESHOLD, BAND, 20)
    assert (row['unreadable'], row['caught']['n'], row['accused']['n']) == (1, 6, 5)

def test_scores_must_be_there_and_of_these_images(run_dir):
    p = pd.read_csv(run_dir/'predictions.csv'); p.head(11).to_csv(run_dir/'predictions.csv', index=False)
    with pytest.raises(FaceError, match='run 04_evaluate again'): judged_test(Run(run_dir, 'cpu'))
    (run_dir/'predictions.csv').unlink()
    with pytest.raises(FaceError, match='missing; run 04_evaluate first'): judged_test(Run(run_dir, 'cpu'))

# --- by source ---

def sourced(name, label, p, seen=True): return pd.DataFrame({'name': name, 'label': label, 'seen': seen, 'p_fake': p, 'jpeg:75': np.asarray(p) / 2})

def test_every_source_has_a_row_of_its_own():
    d = pd.concat([sourced('gan', 'fake', [.9, .7, .1, .5]), sourced('new', 'fake', [.1, .2], False), sourced('film', 'real', [.1, .9, .7, np.nan])])
    gan, new, film = source_rows(d, THRESHOLD, BAND, ['jpeg:75'])
    assert [(r['name'], r['n'], r['seen']) for r in (gan, new, film)] == [('gan', 4, True), ('new', 2, False), ('film', 3, True)]
    told = lambda r: [r[k]['k'] for k in ('called_fake', 'uncertain', 'wrong')] + [r['copies']['jpeg:75']['k']]
    assert told(gan) == [2, 2, 1, 0] and told(new) == [0, 0, 2, 0] and told(film) == [2, 1, 1, 0]
    assert (gan['called_fake']['low'], gan['called_fake']['high']) == wilson(2, 4) and film['mean'] == pytest.approx(1.7 / 3)
    assert sources_table([gan, new, film], 'fake')['in training'].tolist() == ['yes', 'no'] and len(sources_table([gan], 'real')) == 0
    fig = plot_sources([gan, new, film])
    left, right = fig.axes
    assert [round(b.get_width(), 3) for b in left.patches] == [.5, 0] and [b.get_width() for b in right.patches] == [pytest.approx(2 / 3)]
    plt.close(fig)

def test_a_copy_that_a_set_lacks_is_left_out_of_its_row():
    d = pd.concat([sourced('gan', 'fake', [.9]), sourced('other', 'fake', [.9]).assign(**{'jpeg:75': np.nan})])
    assert [list(r['copies']) for r in source_rows(d, THRESHOLD, BAND, ['jpeg:75'])] == [['jpeg:75'], []]

# --- whom it accuses ---

def test_people_are_read_from_names_of_files(tmp_path):
    assert person('1_0_4_20161219.jpg.chip.jpg') == dict(age='0 to 9', gender='male', race='others') and person('60_1_0_2016.jpg')['age'] == '60 to 120'
    assert [person(n) for n in ('130_0_0_2.jpg', '30_0_7_2.jpg', '30_0_20170109.jpg', 'a.jpg')] == [None] * 4
    Image.new('RGB', (64, 64)).save(tmp_path/'holiday.jpg')
    with pytest.raises(FaceError, match='age_gender_race_date'): people_sample(tmp_path, 3)
    for i in range(40):
        Image.new('RGB', (64, 64)).save(tmp_path/f'{i}_{i % 2}_{i % 5}_2017{i}.jpg')
    d = people_sample(tmp_path, 2)
    assert d.path.is_unique and d.groupby(['gender', 'race']).size().min() >= 2 and d.age.value_counts().min() >= 2
    assert d.equals(people_sample(tmp_path, 2)) and not d.equals(people_sample(tmp_path, 2, seed=1))

def test_a_group_that_is_accused_too_often_is_named():
    d = pd.DataFrame(dict(age='20 to 39', gender=['male'] * 150 + ['female'] * 50, race='White', p_fake=[.1] * 190 + [.9] * 10))
    rows = people_rows(pd.concat([d, d.head(1).assign(p_fake=np.nan)]), THRESHOLD)
    assert rows[0]['n'] == 200 and {r['group']: r['k'] for r in rows} == {'all': 10, 'male': 0, 'female': 10, '20 to 39': 10, 'White': 10}
    assert 'female' in people_text(rows) and 'No group' in people_text(people_rows(d.assign(p_fake=.1), THRESHOLD))

def test_people_of_the_training_are_not_asked(checkpoint, tmp_path, drawn):
    model, meta = load_checkpoint(checkpoint)
    face = Image.open(get_sample_data('grace_hopper.jpg', asfileobj=False)).convert('RGB')
    face.save(tmp_path/'60_1_0_2016.jpg', quality=92); Image.new('RGB', (200, 200)).save(tmp_path/'1_0_0_2016.jpg')
    d = people_sample(tmp_path, 5)
    p = judge_people(model, meta, d, np.empty((0, 4), np.uint64)).set_index('age').p_fake
    assert 0 < p['60 to 120'] < 1 and np.isnan(p['0 to 9'])  # nothing to judge where there is no face
    (tmp_path/'train').mkdir(); face.resize((256, 300)).save(tmp_path/'train'/'copy.png')
    assert judge_people(model, meta, d, hashes_of(tmp_path, ['train/copy.png'])).p_fake.isna().all()

# --- the step ---

def execute(run_dir, **settings):
    papermill.execute_notebook(str(ROOT/'nbs'/'08_generators.ipynb'), None, dict(run_dir=str(run_dir), workers=0, bootstrap=20, device='cpu') | settings, cwd=str(run_dir), kernel_name='python3', progress_bar=False)
    return load_json(run_dir/'generators.json'), pd.read_csv(run_dir/'generators.csv')

def test_the_step_leaves_numbers_scores_and_a_picture(run_dir, folder, other, tmp_path):
    "A set in a folder with a space, with a broken file; another of one class; more images than are asked for."
    only = tmp_path/'only'; shutil.copytree(other/'fake', only/'fake'); (folder/'real'/'00000.jpg').write_bytes(b'\xff\xd8\xff')
    result, scores = execute(run_dir, sets=[str(folder), str(only)], images=5)
    rows = {r['name']: r for r in result['rows']}
    assert {n: (r['caught']['n'], r['accused']['n'], r['auc'] is None) for n, r in rows.items() if n != 'my faces'} == {'standin (test)': (6, 6, False), 'only': (5, 0, True)}
    mine = rows['my faces']
    assert mine['caught']['n'] == 5 and mine['accused']['n'] + mine['unreadable'] == 5
    assert scores.columns.tolist() == ['set', 'path', 'label', 'name', 'seen', 'p_fake', 'jpeg:75', 'scale:0.5']
    assert scores.set.value_counts().to_dict() == {'test': 12, 'my faces': 10, 'only': 5}
    assert not scores[scores.set == 'test'][['jpeg:75', 'scale:0.5']].isna().any(axis=None) and (scores.seen == (scores.set == 'test')).all()
    for (name, label), part in scores.dropna(subset='p_fake').groupby(['set', 'label']):  # the table can be computed from the scores again
        cell = rows['standin (test)' if name == 'test' else name]['caught' if label == 'fake' else 'accused']
        assert (cell['k'], cell['n']) == ((part.p_fake >= result['threshold']).sum(), len(part))
    assert {t['set'] for t in result['table']} == set(rows) and [t['note'] for t in result['table'] if t['set'] == 'only'] == [note(rows['only'])] and len(result['shortcuts']) == 2
    assert Image.open(run_dir/'figures'/'generators.png').width > 500 and result['text'] == generators_text(result['rows'])
    assert Image.open(run_dir/'figures'/'sources.png').width > 500 and result['people'] == []
    assert {(r['label'], r['name'], r['seen']) for r in result['by_source']} == {('fake', 'standin', True), ('fake', 'my faces', False), ('fake', 'only', False), ('real', 'standin', True), ('real', 'my faces', False)}

def test_real_faces(photographs, tmp_path):
    "The shipped weights, few images: the test images of the kind they know are caught more often than what they have never seen."
    model, meta = load_checkpoint(ROOT/'fakeface'/'weights'/'model.safetensors')
    rows = {}
    for name in ('140k-subset/test', 'cross-generator/sdxl', 'cross-generator/sfhq'):
        d = judge_set(model, meta, photographs/name, pick(list_images(photographs/name, both=False), 24))
        rows[name] = summarise(name, d, meta['threshold'], meta['band'], 100)
    known, sdxl, sfhq = rows.values()
    assert known['caught']['value'] > .7 and known['auc']['value'] > .95 and sdxl['caught']['value'] < known['caught']['value']
    assert sfhq['auc'] is None and 'no real' in note(sfhq) and shortcut(sdxl) and sdxl['accused']['value'] < .2
    assert all(r['caught']['n'] == 24 and not r['unreadable'] for r in rows.values())
