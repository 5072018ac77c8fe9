"""Shortcuts: a judge that reads the history of a file is found out, one that reads the image is
not, and no more is claimed than the intervals allow. What one function does, the lesson asserts."""

import json
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from conftest import ROOT
from fakeface.core import CLASSES, FaceError, ImageError
from fakeface.images import open_image
from fakeface.corrupt import jpeg
from fakeface.data import sample, save_manifest
from fakeface.dataset import Run, first_of_each, predict_corrupted, predict_images
from fakeface.detector import Detector
from fakeface.model import build_model, fit_to, metadata, p_fake, to_input
from fakeface.shortcuts import (
    READING, accuracy_drop, enlarge_and_back, facts_table, file_facts, predict_conditions,
    learn_facts, learn_spectrum, patches, plot_shortcuts, points, reencode, interval_scores, shifted,
    shortcut_table, shuffle_patches, spectra, spectrum, verdict)

# torchvision's JPEG
pytestmark = pytest.mark.filterwarnings('ignore:.*TorchCodec:DeprecationWarning')
META = metadata(size=64, normalize=False)

def texture(seed, h=64, w=64):
    "Smooth colours with grain, lit from the left: uint8 tensor (3, h, w)."
    rng = np.random.default_rng(seed)
    across = np.arange(h)[:, None] / rng.uniform(3, 9) + np.arange(w) / rng.uniform(3, 9)
    waves = np.sin(across + rng.uniform(0, 6, (3, 1, 1)))
    x = 128 + 40 * waves + rng.normal(0, 8, (3, h, w)) + np.linspace(25, -25, w)
    return torch.from_numpy(x.clip(0, 255).astype(np.uint8))

def write(x, path, quality):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(x.permute(1, 2, 0).numpy()).save(path, quality=quality or 75)

@pytest.fixture(scope='module')
def stored(tmp_path_factory):
    "`(folder, manifest)` of four textures a class, the fakes in a lower JPEG quality."
    folder = tmp_path_factory.mktemp('stored')
    m = pd.DataFrame([dict(path=f'{i}.jpg', label=CLASSES[i % 2], split='test', source='')
                      for i in range(8)])
    for i in range(8): write(texture(i), folder/m.path[i], 95 if i % 2 else 40)
    return folder, m

def is_fake(manifest): return (manifest.label == 'fake').to_numpy()
def part(manifest, split, n=0): return first_of_each(manifest[manifest.split == split], n)

# --- the file alone ---

def test_facts_between_two_bounds_are_found(tmp_path):
    "Fakes are of quality 60 or 99, reals of 85: no straight line parts them."
    for i in range(160):
        path = tmp_path/('train', 'test')[i // 80]/CLASSES[i % 2]/f'{i}.jpg'
        write(texture(i), path, 85 if i % 2 else (60, 99)[i // 2 % 2])
    m = pd.DataFrame([dict(path=p.relative_to(tmp_path).as_posix(), label=p.parent.name,
                           split=p.parent.parent.name, source='test')
                      for p in sorted(tmp_path.rglob('*.jpg'))])
    train, test = (part(m, s) for s in ('train', 'test'))
    trees = learn_facts(facts_table(tmp_path, train), is_fake(train))
    assert (trees.predict(facts_table(tmp_path, test).to_numpy()) == is_fake(test)).all()

def test_facts_are_those_of_the_header(tmp_path):
    im = Image.fromarray(texture(0, 40, 100).permute(1, 2, 0).numpy())
    exif = Image.Exif()
    exif[0x010f] = 'a camera'
    im.save(tmp_path/'a.jpg', quality=75, subsampling=0, progressive=True, exif=exif,
            icc_profile=b'x' * 77)
    im.save(tmp_path/'b.jpg', quality=75, subsampling=2)
    im.save(tmp_path/'c.png')
    im.convert('L').save(tmp_path/'d.jpg', quality=75)
    table = facts_table(tmp_path, pd.DataFrame(dict(path=['a.jpg', 'b.jpg', 'c.png', 'd.jpg'])))
    tables = Image.open(tmp_path/'a.jpg').quantization
    size = (tmp_path/'a.jpg').stat().st_size
    expected = dict(
        width=[100] * 4, height=[40] * 4, jpeg=[1, 1, 0, 1], subsampling=[0, 2, -1, -1],
        progressive=[1, 0, 0, 0], icc=[77, 0, 0, 0], quality=[75, 75, 0, 75], tables=[2, 2, 0, 1],
        luma_sum=[sum(tables[0])] * 2 + [0, sum(tables[0])],
        chroma_sum=[sum(tables[1])] * 2 + [0, 0])
    assert {k: table[k].tolist() for k in expected} == expected
    assert table.bytes[0] == size and table.bytes_per_pixel[0] == size / 4000
    assert table.exif[0] > table.exif[1] == 0 and set(table.dtypes) == {np.dtype(float)}

def test_facts_of_what_is_no_image(tmp_path):
    write(texture(0), tmp_path/'whole.jpg', 90)
    assert file_facts(tmp_path, 'whole.jpg')['quality'] == 90
    (tmp_path/'page.jpg').write_text('<html>')
    with pytest.raises(ImageError, match='^page.jpg: not an image'):
        facts_table(tmp_path, pd.DataFrame(dict(path=['whole.jpg', 'page.jpg'])))

def test_parts_are_balanced():
    m = pd.DataFrame(dict(path=list('abcefg'), label=['fake'] * 3 + ['real'] * 3, source=''))
    chosen = lambda n: ''.join(first_of_each(m, n).path)
    assert [chosen(n) for n in (0, 1, 4, 100)] == ['abcefg', 'ae', 'abef', 'abcefg']
    m.loc[[2, 4], 'source'] = 'other'
    assert chosen(4) == 'acef'  # one of each source, not the first two of one

# --- the spectrum ---

@pytest.mark.parametrize('size, per_pixel', [(64, .25), (64, .4), (65, .25), (128, .05)])
def test_a_wave_is_where_its_frequency_is(size, per_pixel):
    wave = 128 + 100 * torch.sin(2 * torch.pi * per_pixel * torch.arange(float(size)))
    for x in (wave.expand(3, size, size), wave[:, None].expand(3, size, size)):  # any direction
        s = spectrum(x[None].to(torch.uint8))[0]
        assert s.shape == (3, size // 2) and s[1:].max() < s[0].max() - 5
        assert abs(s[0].argmax() - per_pixel / .5**.5 * (size // 2)) <= 1

def test_a_diagonal_checkerboard_is_the_finest():
    x = (torch.arange(64)[:, None] + torch.arange(64)) % 2 * 200
    s = spectrum(x.expand(1, 3, 64, 64).to(torch.uint8))[0, 0]
    assert s.argmax() == 31 and torch.isfinite(s).all()

def test_the_spectrum_knows_no_place_direction_or_brightness():
    x = texture(1)[None] // 2
    s = spectrum(x)
    for alike in (x + 60, x.flip(-1), x.mT): assert torch.allclose(spectrum(alike), s, atol=1e-3)
    red = x.clone()
    red[:, 0] = texture(2)[0] // 2
    for k in (0, 1): assert not torch.allclose(spectrum(red)[:, k], s[:, k], atol=.1)
    assert torch.allclose(spectrum(torch.cat([red, x]))[1], s[0], atol=1e-4)  # each by itself

def test_spectra_are_of_what_the_model_sees(stored):
    root, m = stored
    x = torch.stack([fit_to(torch.from_numpy(open_image(root/p)), 32) for p in m.path[:5]])
    seen = spectra(root, m.head(5), 32, batch_size=2)
    assert np.allclose(seen, spectrum(x).flatten(1), atol=1e-3)

def test_c_is_the_one_that_the_validation_images_prefer():
    """Two ways to be right in training: a hundred weak columns, which little C weighs alike, and a
    strong one, on which much C leans. Validation tells which of them holds."""
    rng, y, yv = np.random.default_rng(0), np.arange(200) % 2 == 0, np.arange(400) % 2 == 0
    def columns(y, strong, weak):
        x = rng.normal(size=(len(y), 101))
        x[:, 0] += strong * y
        x[:, 1:] += weak * y[:, None]
        return x
    x = columns(y, 8, .2)
    (a, strong), (b, weak) = (learn_spectrum(x, y, columns(yv, *holds), yv, (1e-5, 1.))
                              for holds in ((8, 0), (0, .2)))
    assert (strong, weak) == (1., 1e-5)
    lean = lambda svm: (w := abs(svm[-1].coef_[0]))[0] / w.sum()
    assert lean(a) > 1.5 * lean(b)  # and the SVM is the one of that C

# --- alterations ---

@pytest.mark.parametrize('h, w', [(64, 64), (33, 47), (8, 9), (2, 1)])
def test_a_shift_keeps_size_and_pixels(h, w):
    x = texture(0, h, w)
    y = shifted(x, 3, 5)
    assert y.shape == x.shape and y.dtype == torch.uint8 and shifted(x, 0, 0).equal(x)
    if h > 3 and w > 5: assert y[:, :h - 3, :w - 5].equal(x[:, 3:, 5:])
    if h > 6 and w > 5:  # a mirror at the edge
        assert y[:, h - 3].equal(shifted(x, 0, 5)[:, h - 2])
        assert y[:, h - 1].equal(shifted(x, 0, 5)[:, h - 4])
    assert reencode(x).equal(jpeg(y, 90))

def test_the_old_grid_is_left():
    old = torch.stack([jpeg(texture(i), 30) for i in range(20)])
    def grid(f):
        d = [(y[..., 1:].float() - y[..., :-1]).abs().mean((0, 1)) for y in map(f, old)]
        return np.mean([(s[7::8].mean() / s.mean()).item() for s in d])
    assert grid(lambda x: x) > 1.3 and grid(partial(jpeg, quality=90)) > 1.25
    assert grid(reencode) < 1.15

@pytest.mark.parametrize('h, w', [(64, 64), (33, 47)])
def test_enlarged_compressed_and_back(h, w):
    x = texture(0, h, w)
    harm = lambda y: (y.float() - x).abs().mean().item()
    ways = [enlarge_and_back(x, inner) for inner in (0, 90, 50, 10)]
    assert {(y.shape, y.dtype) for y in ways} == {(x.shape, torch.uint8)}
    hurt = [harm(y) for y in ways]
    assert hurt == sorted(hurt) and hurt[-1] > 1.4 * hurt[0] and hurt[0] < 1.1 * harm(jpeg(x, 95))
    assert harm(enlarge_and_back(x, 0, 30)) > 1.2 * hurt[0]
    assert abs(ways[1].float().mean() - x.float().mean()) < .5

@pytest.mark.parametrize('h, w, side, n', [(64, 64, 32, 4), (64, 64, 16, 16), (70, 40, 16, 8),
                                           (64, 64, 64, 1), (20, 30, 64, 1)])
def test_patches_are_all_there_in_another_order(h, w, side, n):
    x = texture(0, h, w)
    p, y = patches(x, side), shuffle_patches(x, side)
    s, content = p.shape[-1], lambda p: sorted(q.numpy().tobytes() for q in p)
    assert p.shape == (n, 3, s, s) and p[0].equal(x[:, :s, :s])
    assert n == 1 or p[1].equal(x[:, :s, s:2 * s])
    assert y.shape == (3, h // s * s, w // s * s) and content(patches(y, side)) == content(p)
    assert y.equal(x[:, :y.shape[1], :y.shape[2]]) == (n == 1) and shuffle_patches(x, side).equal(y)

def test_each_image_has_its_own_order():
    number = torch.arange(64).reshape(8, 8).repeat_interleave(8, 0).repeat_interleave(8, 1)
    marked = [torch.stack([number, *torch.full((2, 64, 64), i)]).to(torch.uint8) for i in range(8)]
    assert len({shuffle_patches(x, 8)[0].numpy().tobytes() for x in marked}) == 8

# --- judging ---

@pytest.mark.parametrize('workers', [0, 1])
def test_altered_images_are_judged_as_their_files_would_be(stored, tmp_path, workers):
    root, m = stored
    few, model = part(m, 'test', 6), build_model('random', seed=1)[0].eval()
    meta = metadata(size=48, normalize=False, temperature=.3)
    judge = partial(predict_images, model, meta, root, few, batch_size=4, workers=workers)
    close, unaltered = partial(pytest.approx, abs=1e-5), judge()
    assert unaltered.tolist() == close(predict_corrupted(model, meta, root, few, [''])[''].tolist())
    images = [torch.from_numpy(open_image(root/p)) for p in few.path]
    for alter in (reencode, partial(enlarge_and_back, inner=10)):
        files = [tmp_path/f'{i}.png' for i in range(6)]  # altered before it is resized
        for x, file in zip(images, files): write(alter(x), file, 0)
        seen = [v.p_fake for v in Detector(model, meta, 'cpu').predict(files, whole=True)]
        assert judge(alter).tolist() == close(seen) and abs(judge(alter) - unaltered).max() > 1e-4
    for f, side in ((shuffle_patches, 16), (patches, 24)):
        views = [f(fit_to(x, 48), side).reshape(-1, 3, *[s := 48 if side == 16 else 24, s])
                 for x in images]
        with torch.inference_mode():
            alone = p_fake(torch.stack([model(to_input(v, False)).mean(0) for v in views]), .3)
        assert judge(view=partial(f, side=side)).tolist() == close(alone.tolist())

def test_a_file_that_went_bad_is_named(faces):
    m, _ = sample(faces, dict(train=0, valid=0, test=0))
    (faces/m.path[1]).write_bytes(b'\xff\xd8\xff')
    with pytest.raises(ImageError, match=f'^{m.path[1]}: '):
        predict_images(build_model('random')[0], META, faces, m.head(3), reencode)

def test_each_condition_alters_whom_it_says():
    fake, calls, unaltered = np.array([True, True, False, False]), [], np.full(4, .9)
    marks = {reencode: .1, enlarge_and_back: .2, shuffle_patches: .4, patches: .5}
    def judge(which, corruption, view):
        f = view or corruption
        more = getattr(f, 'keywords', {})
        calls.append((which.sum(), corruption != '', view is not None))
        mark = .3 if 'inner' in more else marks[getattr(f, 'func', f)] + more.get('side', 0) / 1000
        return np.full(which.sum(), mark)
    found = {n: (k, s.round(3).tolist()) for n, k, s in predict_conditions(fake, unaltered, judge)}
    assert found == {
        'both: shifted, JPEG 90': ('equal', [.1] * 4),
        'reals: 2 x larger, JPEG 90, back': ('equal', [.9, .9, .2, .2]),
        'reals: the same without JPEG 90': ('control', [.9, .9, .3, .3]),
        'both: 2 x larger, JPEG 90, back': ('control', [.2] * 4),
        'patches of 32 px shuffled': ('patches', [.432] * 4),
        'patches of 64 px shuffled': ('patches', [.464] * 4),
        'patches of 64 px, each alone': ('patches', [.564] * 4)}
    assert sum(n for n, *_ in calls) == 5 * 4 + 2  # no image twice in one state
    assert unaltered.tolist() == [.9] * 4          # the caller's scores are left alone
    assert all(a != v for _, a, v in calls)        # histories as files, patches as the model sees

# --- what it costs ---

def test_a_drop_counts_images():
    n = np.arange(200)
    fake, before, after = n < 100, n >= 10, n % 20 > 0
    d, worse = accuracy_drop(fake, before, after), accuracy_drop(fake, before, before & (n < 160))
    assert (d['value'], d['lost'], d['gained'], d['n'], d['p']) == (0, 9, 9, 200, 1)
    assert d['low'] < 0 < d['high']
    assert (worse['value'], worse['lost']) == (20, 40) and worse['p'] < 1e-10
    assert 14 < worse['low'] < 20 < worse['high'] < 27
    better = accuracy_drop(fake, before & (n < 160), before)
    assert (better['value'], better['gained']) == (-20, 40) and better['high'] < -14

@pytest.mark.parametrize('n', [20, 100, 400])
def test_no_change_in_few_images_proves_little(n):
    "Rule of three: 3 / n is what no case among n allows for at most."
    d = accuracy_drop(np.arange(n) < n // 2, np.ones(n, bool), np.ones(n, bool), 2000)
    assert d['value'] == 0 and 150 / n < d['high'] < 400 / n
    assert d['high'] == pytest.approx(-d['low'], rel=.6)

def test_the_interval_holds_the_truth_as_often_as_it_says():
    "One image in a hundred is lost, none gained: most samples of 60 show no change at all."
    rng, fake, held = np.random.default_rng(0), np.arange(60) < 30, 0
    for seed in range(150):
        d = accuracy_drop(fake, np.ones(60, bool), rng.uniform(size=60) >= .01, 100, seed)
        held += d['low'] <= 1 <= d['high']
    assert held / 150 > .93

def test_points_in_words():
    assert points(dict(value=.5, low=-.74, high=1.26)) == '0.5 (-0.7 to 1.3)'
    assert points(dict(value=-.01, low=-.04, high=.02)) == '0.0 (0.0 to 0.0)'

def test_scored_by_hand():
    fake, score = np.arange(8) < 4, np.array([.9, .8, .4, .6, .1, .2, .6, .3])
    r = interval_scores(fake, score, .6, 50)
    counts = [(r[k]['k'], r[k]['n']) for k in ('accuracy', 'tpr', 'tnr')]
    assert r['n'] == 8 and counts == [(6, 8), (3, 4), (3, 4)]
    assert r['auc']['value'] == (15.5 - 1) / 16
    assert all(r[k]['low'] <= r[k]['value'] <= r[k]['high'] for k in r if k != 'n')

# --- the verdict ---

SHARE = dict(value=.965, low=.942, high=.979, k=386, n=400)
SCORED = dict(n=400, accuracy=SHARE, tpr=SHARE, tnr=SHARE, auc=SHARE)

def outcome(*ends, accuracy=SHARE, goal=.5, **more):
    "A result whose equal histories cost what is given: (value, low, high) each."
    drops = [*(('equal', i, e) for i, e in enumerate(ends)), ('control', 0, (40, 35, 45)),
             ('patches', 1, (40, 35, 45))]
    ends = ('value', 'low', 'high')
    rows = [SCORED | dict(name=f'{kind} {i}', kind=kind, drop=dict(zip(ends, v)))
            for kind, i, v in drops]
    return dict(n=400, n_fake=200, n_real=200, goal=goal, model=SCORED | dict(accuracy=accuracy),
                conditions=rows) | more

@pytest.mark.parametrize('drops, words', [
    ([(0, -.2, .3), (.1, -.1, .4)],
     ['is met', 'a loss is not shown', 'at most 0.4 of the 46.5 points', '(1 %)']),
    ([(0, -.2, .3), (.1, -.1, .6)], ['neither met nor missed for certain with 400 images',
                                     'a loss is not shown', 'at most 0.6 of']),
    ([(.3, .1, .45), (0, -.1, .1)], ['is met', 'a loss is shown (equal 0)', 'at most 0.5 of']),
    ([(.8, .1, 1.5), (.9, .2, 1.6)],
     ['neither met', 'a loss is shown (equal 0, equal 1)', 'at most 1.6 of', '(3 %)']),
    ([(0, -.2, .2), (3, 2, 4)],
     ['is missed', 'a loss is shown (equal 1)', 'at most 4.0 of', '(9 %)']),
    ([(-2, -3, -1), (-2, -3, -1)], ['is met', 'a loss is not shown', 'at most 0.0 of', '(0 %)']),
    ([(48, 45, 50), (0, -.1, .1)], ['is missed', '(100 %)'])])
def test_the_verdict_claims_what_the_intervals_allow(drops, words):
    text = verdict(outcome(*drops))
    assert all(w in text for w in words) and '\n' not in text, text
    assert all(points(dict(zip(('value', 'low', 'high'), d))) in text for d in drops)

def test_a_model_that_guesses_has_nothing_to_explain():
    chance = verdict(outcome((0, -.1, .1), accuracy=SHARE | dict(value=.52, low=.47, high=.57)))
    assert 'not shown to do better than guessing' in chance and '52.0 %' in chance
    # 97 % is what saying 'fake' each time gets
    always = verdict(outcome((0, -1, 1), n_fake=388, n_real=12))
    assert 'guessing' in always.split(' points above')[0]
    assert 'less than 2 points is met' in verdict(outcome((0, -1, 1), goal=2.))

def test_table_and_figure_show_every_row():
    result = outcome((1, 0, 2), (0, -1, 1), facts=SCORED, spectrum=SCORED)
    table = shortcut_table(result)
    lost = ['1.0 (0.0 to 2.0)', '0.0 (-1.0 to 1.0)', *['40.0 (35.0 to 45.0)'] * 2]
    assert table.points_lost.tolist() == ['', '', '', *lost] and (table.images == 400).all()
    assert len(shortcut_table(outcome((1, 0, 2)))) == 4 and 'threshold unchanged' in READING
    fig = plot_shortcuts(result)
    names = [[t.get_text() for t in ax.get_yticklabels()] for ax in fig.axes]
    assert names == [['equal 0', 'equal 1', 'control 0'], ['patches 1']]
    for ax in fig.axes:  # a line where nothing is lost
        assert any(np.allclose(line.get_xdata(), 0) and len(set(line.get_ydata())) == 2
                   for line in ax.lines)
    plt.close(fig)

# --- the step ---

def test_scores_come_from_the_evaluation(tmp_path):
    scores = lambda *paths: Run(tmp_path, 'cpu').scores(pd.DataFrame(dict(path=paths)))
    with pytest.raises(FaceError, match='run 04_evaluate first'): scores('a', 'b')
    p = pd.DataFrame(dict(path=['c', 'b', 'a'], p_fake=[.3, .2, .1]))
    p.to_csv(tmp_path/'predictions.csv', index=False)
    assert scores('a', 'b').tolist() == [.1, .2]
    with pytest.raises(FaceError, match='1 of 2 test images are not in it'): scores('a', 'z')

def run_step(run_dir, **settings):
    "The imports, settings and Run of the notebook, in this process."
    book = json.loads((ROOT/'nbs'/'07_shortcuts.ipynb').read_text(encoding='utf-8'))
    names = {}
    for c in book['cells']:
        text, tags = ''.join(c['source']), c['metadata'].get('tags', [])
        if c['cell_type'] == 'code' and (text.startswith(('#| export', '#| eval: false'))
                                         or 'parameters' in tags):
            exec(text, names)
        if 'parameters' in tags: names |= dict(run_dir=str(run_dir), **settings)
    plt.close('all')

@pytest.mark.parametrize('images', [0, 6])
def test_the_step_leaves_its_files(drawn, checkpoint, tmp_path, images):
    m, _ = sample(drawn, dict(train=0, valid=0, test=0), source='toy')
    save_manifest(m, tmp_path/'manifest.csv')
    (tmp_path/'data.json').write_text(json.dumps(dict(root=str(drawn), source='toy')))
    (tmp_path/'model.safetensors').write_bytes(checkpoint.read_bytes())
    test = m[m.split == 'test']
    p = test[['path']].assign(p_fake=np.where(test.label == 'fake', .9, .1))
    p.to_csv(tmp_path/'predictions.csv', index=False)
    run_step(tmp_path, images=images, bootstrap=20, workers=0, device='cpu')
    text, n = (tmp_path/'shortcuts.json').read_text(), images or 12
    r = json.loads(text)
    facts, svm = r['facts'], r['spectrum']
    assert [r[k] for k in ('n', 'n_fake', 'n_real', 'source', 'goal')] == [n, n // 2, n // 2, 'toy',
                                                                           .5]
    assert (tmp_path/'figures'/'shortcuts.png').stat().st_size > 5000 and 'NaN' not in text
    assert r['model']['accuracy']['k'] == n and (facts['n'], facts['n_train']) == (n, 32)
    assert (svm['n_train'], svm['n_valid'], svm['model_against_it']['n']) == (32, 12, n)
    assert svm['C'] in (1e-4, 1e-3, 1e-2, 1e-1, 1) and 'width' in facts['same']
    assert len(r['conditions']) == 7 and len(shortcut_table(r)) == 10
    for c in r['conditions']:
        assert c['n'] == c['drop']['n'] == n
        assert c['drop']['value'] == pytest.approx(100 * (1 - c['accuracy']['value']))
    assert r['verdict'] == verdict(r)
