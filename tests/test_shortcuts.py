"Shortcuts: a judge that reads the history of a file is found out, one that reads the image is not, and no more is claimed than the intervals allow."

import json
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

from conftest import ROOT
from fakeface.core import CLASSES, FaceError, ImageError
from fakeface.images import open_image
from fakeface.corrupt import jpeg
from fakeface.data import sample, save_manifest
from fakeface.detector import Detector
from fakeface.model import build_model, fit_to, metadata, p_fake, to_input
from fakeface.dataset import Run, first_of_each, judge_copies, judge_images
from fakeface.shortcuts import (READING, condition_rows, drop, enlarge_and_back, facts_table, file_facts, judge_conditions, learn_facts, learn_spectrum,
                                patches, plot_shortcuts, points, reencode, scored, shift, shortcut_table, shuffle_patches, spectra, spectrum, verdict)

pytestmark = pytest.mark.filterwarnings('ignore:.*TorchCodec:DeprecationWarning')  # torchvision's JPEG

def texture(seed, h=64, w=64):
    "Smooth colours with grain, lit from the left: uint8 tensor (3, h, w)."
    rng = np.random.default_rng(seed)
    waves = np.sin(np.arange(h)[:, None] / rng.uniform(3, 9) + np.arange(w) / rng.uniform(3, 9) + rng.uniform(0, 6, (3, 1, 1)))
    return torch.from_numpy((128 + 40 * waves + rng.normal(0, 8, (3, h, w)) + np.linspace(25, -25, w)).clip(0, 255).astype(np.uint8))

def write(x, path, quality):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(x.permute(1, 2, 0).numpy()).save(path, **dict(quality=quality) if quality else {})

def draw(folder, spoil=lambda x: x, fake=0, real=0):
    "`(folder, manifest)` of 40 textures a class and split; the fakes are spoilt, and each class is written as PNG (0) or in its own JPEG quality."
    for i in range(240):
        label, split = CLASSES[i % 2], ('train', 'valid', 'test')[i // 80]
        quality, x = (fake, spoil(texture(i))) if label == 'fake' else (real, texture(i))
        write(x, folder/split/label/f'{i}.{"jpg" if quality else "png"}', quality)
    return folder, sample(folder, dict(train=0, valid=0, test=0), near=0)[0]

@pytest.fixture(scope='module')
def other_quality(tmp_path_factory): return draw(tmp_path_factory.mktemp('quality'), fake=40, real=95)

@pytest.fixture(scope='module')
def other_light(tmp_path_factory): return draw(tmp_path_factory.mktemp('light'), lambda x: x.flip(-1), 95, 95)

class Judge(nn.Module):
    def __init__(self, evidence): super().__init__(); self.evidence = evidence
    def forward(self, x): e = self.evidence(x); return torch.stack([e, -e], 1)

def blocks(x): d = (x[..., 1:] - x[..., :-1]).abs().mean((1, 2)); return 20 * (d[:, 7::8].mean(1) / d.mean(1) - 1.25)  # reads the grid of JPEG
def light(x): half = x.shape[-1] // 2; return 40 * (x[..., half:] - x[..., :half]).mean((1, 2, 3))
META = metadata(size=64, normalize=False)

def is_fake(manifest): return (manifest.label == 'fake').to_numpy()

def take_part(manifest, split, n=0): return first_of_each(manifest[manifest.split == split], n)

# --- the file alone ---

def from_facts(root, manifest):
    train, test = (take_part(manifest, s) for s in ('train', 'test'))
    p = learn_facts(facts_table(root, train), is_fake(train)).predict_proba(facts_table(root, test).to_numpy())[:, 1]
    return scored(is_fake(test), p, .5, 200)

def test_facts_find_how_files_were_written_and_nothing_in_the_image(other_quality, other_light):
    found, nothing = from_facts(*other_quality), from_facts(*other_light)
    assert found['auc']['value'] == found['accuracy']['value'] == 1 and found['n'] == 80
    assert nothing['auc']['low'] < .5 < nothing['auc']['high'] and nothing['accuracy']['low'] < .5 < nothing['accuracy']['high']

def test_facts_between_two_bounds_are_found(tmp_path):
    "Fakes are of quality 60 or 99, reals of 85: no straight line parts them."
    for i in range(160): write(texture(i), tmp_path/('train', 'test')[i // 80]/CLASSES[i % 2]/f'{i}.jpg', 85 if i % 2 else (60, 99)[i // 2 % 2])
    m = pd.DataFrame([dict(path=p.relative_to(tmp_path).as_posix(), label=p.parent.name, split=p.parent.parent.name, source='test') for p in sorted(tmp_path.rglob('*.jpg'))])
    assert from_facts(tmp_path, m)['auc']['value'] == 1

def test_facts_are_those_of_the_header(tmp_path):
    im = Image.fromarray(texture(0, 40, 100).permute(1, 2, 0).numpy())
    exif = Image.Exif(); exif[0x010f] = 'a camera'
    im.save(tmp_path/'a.jpg', quality=75, subsampling=0, progressive=True, exif=exif, icc_profile=b'x' * 77)
    im.save(tmp_path/'b.jpg', quality=75, subsampling=2); im.save(tmp_path/'c.png'); im.convert('L').save(tmp_path/'d.jpg', quality=75)
    a, b, c, d = (file_facts(tmp_path, n) for n in ('a.jpg', 'b.jpg', 'c.png', 'd.jpg'))
    assert a['bytes'] == (tmp_path/'a.jpg').stat().st_size and a['bytes_per_pixel'] == a['bytes'] / 4000 and (a['width'], a['height']) == (100, 40)
    q = Image.open(tmp_path/'a.jpg').quantization
    assert (a['luma_sum'], a['chroma_sum'], a['tables'], a['quality']) == (sum(q[0]), sum(q[1]), 2, 75)
    assert [f['subsampling'] for f in (a, b, c, d)] == [0, 2, -1, -1] and [f['jpeg'] for f in (a, b, c, d)] == [True, True, False, True]
    assert (a['progressive'], b['progressive']) == (True, False) and a['exif'] > b['exif'] == 0 and (a['icc'], b['icc']) == (77, 0)
    assert (c['quality'], c['luma_sum'], c['tables']) == (0, 0, 0) and (d['chroma_sum'], d['tables']) == (0, 1)
    table = facts_table(tmp_path, pd.DataFrame(dict(path=['c.png', 'a.jpg'])))
    assert table.to_dict('records') == [c, a] and set(table.dtypes) == {np.dtype(float)}

def test_facts_need_no_pixels(tmp_path):
    write(texture(0), tmp_path/'whole.jpg', 90)
    data = (tmp_path/'whole.jpg').read_bytes(); (tmp_path/'cut.jpg').write_bytes(data[:-500])
    with pytest.raises(ImageError): open_image(tmp_path/'cut.jpg')
    assert file_facts(tmp_path, 'cut.jpg')['quality'] == 90
    (tmp_path/'page.jpg').write_text('<html>')
    with pytest.raises(ImageError, match='^page.jpg: not an image'): facts_table(tmp_path, pd.DataFrame(dict(path=['whole.jpg', 'page.jpg'])))

def test_parts_are_balanced():
    m = pd.DataFrame(dict(path=list('abcdefgh'), label=['fake'] * 4 + ['real'] * 4, split=['test', 'test', 'test', 'train'] * 2, source=''))
    assert take_part(m, 'test').path.tolist() == list('abcefg') and take_part(m, 'test', 4).path.tolist() == list('abef') and take_part(m, 'test', 1).path.tolist() == list('ae')
    assert take_part(m, 'test', 100).index.tolist() == list(range(6))
    m.loc[[2, 5], 'source'] = 'other'
    assert take_part(m, 'test', 4).path.tolist() == list('acef')  # one of each source, not the first two of one

# --- the spectrum ---

@pytest.mark.parametrize('size, per_pixel', [(64, .25), (64, .4), (65, .25), (128, .05)])
def test_a_wave_is_where_its_frequency_is(size, per_pixel):
    wave = 128 + 100 * torch.sin(2 * torch.pi * per_pixel * torch.arange(float(size)))
    for x in (wave.expand(3, size, size), wave[:, None].expand(3, size, size)):  # in whatever direction
        s = spectrum(x[None].to(torch.uint8))[0]
        assert s.shape == (3, size // 2) and abs(s[0].argmax() - per_pixel / .5**.5 * (size // 2)) <= 1 and s[1:].max() < s[0].max() - 5

def test_a_diagonal_checkerboard_is_the_finest():
    x = (torch.arange(64)[:, None] + torch.arange(64)) % 2 * 200
    s = spectrum(x.expand(1, 3, 64, 64).to(torch.uint8))[0, 0]
    assert s.argmax() == 31 and torch.isfinite(s).all()

def test_the_spectrum_knows_no_place_direction_or_brightness():
    x = texture(1)[None] // 2
    s = spectrum(x)
    assert torch.allclose(spectrum(x + 60), s, atol=1e-3) and torch.allclose(spectrum(x.flip(-1)), s, atol=1e-3) and torch.allclose(spectrum(x.mT), s, atol=1e-3)
    red = x.clone(); red[:, 0] = texture(2)[0] // 2
    assert not torch.allclose(spectrum(red)[:, 1], s[:, 1], atol=.1) and not torch.allclose(spectrum(red)[:, 0], s[:, 0], atol=.1)
    assert torch.allclose(spectrum(torch.cat([red, x]))[1], s[0], atol=1e-4)  # each image by itself

def test_spectra_are_of_what_the_model_sees(other_quality):
    root, m = other_quality; few = m.head(5)
    x = torch.stack([fit_to(torch.from_numpy(open_image(root/p)), 32) for p in few.path])
    assert np.allclose(spectra(root, few, 32, batch_size=2), spectrum(x).flatten(1), atol=1e-3)

def test_the_linear_judge_finds_a_trace_and_no_content(tmp_path, other_light):
    def score(root, m):
        (x, y), (xv, yv), (xt, yt) = ((spectra(root, p, 64), is_fake(p)) for p in (take_part(m, s) for s in ('train', 'valid', 'test')))
        return scored(yt, learn_spectrum(x, y, xv, yv)[0].decision_function(xt), 0, 200)
    trace = draw(tmp_path, lambda x: x[:, ::2, ::2].repeat_interleave(2, 1).repeat_interleave(2, 2))  # up-sampled
    assert score(*trace)['accuracy']['value'] > .97 and (r := score(*other_light)['auc'])['low'] < .5 < r['high']

def test_c_is_the_one_that_the_validation_images_prefer():
    "Two ways to be right in training: a hundred weak columns, which little C weighs alike, and a strong one, on which much C leans. Validation tells which of them holds."
    rng, y, yv = np.random.default_rng(0), np.arange(200) % 2 == 0, np.arange(400) % 2 == 0
    def columns(y, strong, weak): x = rng.normal(size=(len(y), 101)); x[:, 0] += strong * y; x[:, 1:] += weak * y[:, None]; return x
    x = columns(y, 8, .2)
    chosen = {name: learn_spectrum(x, y, columns(yv, *holds), yv, (1e-5, 1.)) for name, holds in dict(strong=(8, 0), weak=(0, .2)).items()}
    assert {n: c for n, (_, c) in chosen.items()} == dict(strong=1., weak=1e-5)
    weight = {n: abs(svm[-1].coef_[0]) for n, (svm, _) in chosen.items()}
    assert weight['strong'][0] / weight['strong'].sum() > 1.5 * weight['weak'][0] / weight['weak'].sum()  # and the SVM is the one of that C

# --- alterations ---

@pytest.mark.parametrize('h, w', [(64, 64), (33, 47), (8, 9), (2, 1)])
def test_a_shift_keeps_size_and_pixels(h, w):
    x = texture(0, h, w); y = shift(x, 3, 5)
    assert y.shape == x.shape and y.dtype == torch.uint8 and shift(x, 0, 0).equal(x)
    if h > 3 and w > 5:
        assert y[:, :h - 3, :w - 5].equal(x[:, 3:, 5:])
        if h > 6: assert y[:, h - 3].equal(shift(x, 0, 5)[:, h - 2]) and y[:, h - 1].equal(shift(x, 0, 5)[:, h - 4])  # a mirror at the edge
    assert reencode(x).shape == x.shape and reencode(x).equal(jpeg(y, 90))

def grid(x): d = (x[..., 1:].float() - x[..., :-1]).abs().mean((0, 1)); return (d[7::8].mean() / d.mean()).item()

def test_the_old_grid_is_left():
    old = [jpeg(texture(i), 30) for i in range(20)]
    assert np.mean([grid(x) for x in old]) > 1.3 and np.mean([grid(reencode(x)) for x in old]) < 1.15 and np.mean([grid(jpeg(x, 90)) for x in old]) > 1.25

@pytest.mark.parametrize('h, w', [(64, 64), (33, 47)])
def test_enlarged_compressed_and_back(h, w):
    x = texture(0, h, w); harm = lambda y: (y.float() - x).abs().mean().item()
    ways = [enlarge_and_back(x, inner) for inner in (0, 90, 50, 10)]
    assert all(y.shape == x.shape and y.dtype == torch.uint8 for y in ways)
    assert [harm(y) for y in ways] == sorted(harm(y) for y in ways) and harm(ways[-1]) > 1.4 * harm(ways[0])
    assert harm(ways[0]) < 1.1 * harm(jpeg(x, 95)) and harm(enlarge_and_back(x, 0, 30)) > 1.2 * harm(ways[0])
    grey = lambda x: x.float().mean()
    assert abs(grey(ways[1]) - grey(x)) < .5

@pytest.mark.parametrize('h, w, side, n', [(64, 64, 32, 4), (64, 64, 16, 16), (70, 40, 16, 8), (64, 64, 64, 1), (20, 30, 64, 1)])
def test_patches_are_all_there_in_another_order(h, w, side, n):
    x = texture(0, h, w); p = patches(x, side); s = p.shape[-1]
    assert p.shape == (n, 3, s, s) and p[0].equal(x[:, :s, :s]) and (n == 1 or p[1].equal(x[:, :s, s:2 * s]))
    y = shuffle_patches(x, side); content = lambda p: sorted(q.numpy().tobytes() for q in p)
    assert y.shape == (3, h // s * s, w // s * s) and content(patches(y, side)) == content(p) and shuffle_patches(x, side).equal(y)
    assert y.equal(x[:, :y.shape[1], :y.shape[2]]) == (n == 1)

def test_each_image_has_its_own_order():
    places = torch.arange(64).repeat_interleave(8).reshape(8, 64).repeat_interleave(8, 0).to(torch.uint8)  # patch (r, c) is r * 8 + c everywhere
    marked = [torch.cat([places[None], torch.full((2, 64, 64), i, dtype=torch.uint8)]) for i in range(8)]
    assert len({shuffle_patches(x, 8)[0].numpy().tobytes() for x in marked}) == 8

# --- judging ---

@pytest.mark.parametrize('workers', [0, 1])
def test_altered_images_get_the_score_that_the_detector_gives_their_files(other_quality, tmp_path, workers):
    root, m = other_quality; few = take_part(m, 'test', 6)
    model, meta = build_model('random', seed=1)[0].eval(), metadata(size=48, normalize=False, temperature=.3)
    judge = lambda alter, view: judge_images(model, meta, root, few, alter, view=view, batch_size=4, workers=workers)
    unaltered = judge('', None)
    assert unaltered.tolist() == pytest.approx(judge_copies(model, meta, root, few, [''])[''].tolist(), abs=1e-6)
    for alter in (reencode, partial(enlarge_and_back, inner=10)):
        for i, p in enumerate(few.path): write(alter(torch.from_numpy(open_image(root/p))), tmp_path/f'{i}.png', 0)  # as a file, before it is resized
        seen = [v.p_fake for v in Detector(model, meta, 'cpu').predict([tmp_path/f'{i}.png' for i in range(6)], whole=True)]
        assert judge(alter, None).tolist() == pytest.approx(seen, abs=1e-5) and abs(judge(alter, None) - unaltered).max() > 1e-4
    whole = [fit_to(torch.from_numpy(open_image(root/p)), 48) for p in few.path]
    with torch.inference_mode():
        mixed = p_fake(model(to_input(torch.stack([shuffle_patches(x, 16) for x in whole]), False)), .3)
        alone = p_fake(torch.stack([model(to_input(patches(x, 24), False)).mean(0) for x in whole]), .3)
    assert judge('', partial(shuffle_patches, side=16)).tolist() == pytest.approx(mixed.tolist(), abs=1e-5)
    assert judge('', partial(patches, side=24)).tolist() == pytest.approx(alone.tolist(), abs=1e-5)

def test_a_file_that_went_bad_is_named(faces):
    m, _ = sample(faces, dict(train=0, valid=0, test=0)); (faces/m.path[1]).write_bytes(b'\xff\xd8\xff')
    with pytest.raises(ImageError, match=f'^{m.path[1]}: '): judge_images(build_model('random')[0], META, faces, m.head(3), reencode)

def examine(evidence, root, manifest):
    test = take_part(manifest, 'test'); fake = is_fake(test)
    judge = lambda which, alter, view: judge_images(Judge(evidence), META, root, test[which], alter, view=view)
    unaltered = judge(np.ones_like(fake), '', None)
    rows = condition_rows(fake, unaltered, judge_conditions(fake, unaltered, judge), .5, 200)
    return dict(n=80, n_fake=40, n_real=40, goal=.5, model=scored(fake, unaltered, .5, 200), conditions=rows)

def test_equal_histories_leave_nothing_of_a_shortcut_and_all_of_the_content(other_quality, other_light):
    cheat, honest = examine(blocks, *other_quality), examine(light, *other_light)
    for r in (cheat, honest): assert r['model']['accuracy']['value'] > .97
    equal = cheat['conditions'][0]
    assert equal['kind'] == 'equal' and equal['accuracy']['value'] < .6 and equal['drop']['low'] > 25 and equal['drop']['p'] < 1e-6 and 'is missed, a loss is shown' in verdict(cheat)
    assert all(r['drop']['low'] < 0 and r['drop']['value'] < 3 for r in honest['conditions'] if r['kind'] != 'patches') and 'a loss is not shown' in verdict(honest)
    shuffled = {r['name']: r for r in honest['conditions']}['patches of 32 px shuffled']  # where light comes from is nowhere but in the whole
    assert shuffled['accuracy']['value'] < .8 and shuffled['drop']['low'] > 10

def test_each_condition_alters_whom_it_says():
    fake, calls = np.array([True, True, False, False]), []
    marks = {reencode: .1, enlarge_and_back: .2, shuffle_patches: .4, patches: .5}
    def judge(which, alter, view):
        f = view or alter; calls.append((tuple(which), alter != '', view is not None))
        return np.full(which.sum(), .3 if getattr(f, 'keywords', {}).get('inner') == 0 else marks[getattr(f, 'func', f)] + getattr(f, 'keywords', {}).get('side', 0) / 1000)
    unaltered = np.full(4, .9)
    found = {n: (k, s.round(3).tolist()) for n, k, s in judge_conditions(fake, unaltered, judge)}
    assert found == {'both: shifted, JPEG 90': ('equal', [.1] * 4), 'reals: 2 x larger, JPEG 90, back': ('equal', [.9, .9, .2, .2]),
                     'reals: the same without JPEG 90': ('control', [.9, .9, .3, .3]), 'both: 2 x larger, JPEG 90, back': ('control', [.2] * 4),
                     'patches of 32 px shuffled': ('patches', [.432] * 4), 'patches of 64 px shuffled': ('patches', [.464] * 4), 'patches of 64 px, each alone': ('patches', [.564] * 4)}
    assert sum(sum(w) for w, *_ in calls) == 5 * 4 + 2 and unaltered.tolist() == [.9] * 4  # no image twice in one state, and the caller's scores are left alone
    assert all(a != v for _, a, v in calls)  # histories as files, patches as the model sees them

# --- what it costs ---

def test_a_drop_counts_images():
    fake, before, after = np.arange(200) < 100, np.arange(200) >= 10, np.arange(200) % 20 > 0
    d = drop(fake, before, after)
    assert (d['lost'], d['gained'], d['n']) == (9, 9, 200) and d['value'] == 0 and d['low'] < 0 < d['high'] and d['p'] == 1
    worse = drop(fake, before, before & (np.arange(200) < 160))
    assert worse['value'] == 20 and worse['lost'] == 40 and 14 < worse['low'] < 20 < worse['high'] < 27 and worse['p'] < 1e-10
    better = drop(fake, before & (np.arange(200) < 160), before)
    assert better['value'] == -20 and better['high'] < -14 and better['gained'] == 40

@pytest.mark.parametrize('n', [20, 100, 400])
def test_no_change_in_few_images_proves_little(n):
    "Rule of three: 3 / n is what no case among n allows for at most."
    d = drop(np.arange(n) < n // 2, np.ones(n, bool), np.ones(n, bool), 2000)
    assert d['value'] == 0 and d['high'] == pytest.approx(-d['low'], rel=.6) and 150 / n < d['high'] < 400 / n

def test_the_interval_holds_the_truth_as_often_as_it_says():
    rng, n, fake, held = np.random.default_rng(0), 60, np.arange(60) < 30, 0
    for seed in range(150):
        u = rng.uniform(size=n)  # one image in a hundred is lost and none gained: more than half of the samples show no change at all
        d = drop(fake, np.ones(n, bool), u >= .01, 100, seed); held += d['low'] <= 1 <= d['high']
    assert held / 150 > .93

def test_points_in_words():
    assert points(dict(value=.5, low=-.74, high=1.26)) == '0.5 (-0.7 to 1.3)' and points(dict(value=-.01, low=-.04, high=.02)) == '0.0 (0.0 to 0.0)'

def test_scored_by_hand():
    r = scored(np.array([True] * 4 + [False] * 4), np.array([.9, .8, .4, .6, .1, .2, .6, .3]), .6, 50)
    assert r['n'] == 8 and [r[k]['k'] for k in ('accuracy', 'caught', 'cleared')] == [6, 3, 3] and [r[k]['n'] for k in ('accuracy', 'caught', 'cleared')] == [8, 4, 4]
    assert r['auc']['value'] == (15.5 - 1) / 16 and all(r[k]['low'] <= r[k]['value'] <= r[k]['high'] for k in ('accuracy', 'caught', 'cleared', 'auc'))

# --- the verdict ---

SHARE = dict(value=.965, low=.942, high=.979, k=386, n=400)
def outcome(*ends, accuracy=SHARE, goal=.5, **more):
    "A result whose equal histories cost what is given: (value, low, high) each."
    row = lambda i, kind, v: dict(name=f'{kind} {i}', kind=kind, n=400, accuracy=accuracy, caught=SHARE, cleared=SHARE, auc=SHARE, drop=dict(zip(('value', 'low', 'high'), v)))
    rows = [row(i, 'equal', e) for i, e in enumerate(ends)] + [row(i, k, (40, 35, 45)) for i, k in enumerate(('control', 'patches'))]
    return dict(n=400, n_fake=200, n_real=200, goal=goal, model=dict(n=400, accuracy=accuracy, caught=SHARE, cleared=SHARE, auc=SHARE), conditions=rows) | more

@pytest.mark.parametrize('drops, words', [
    ([(0, -.2, .3), (.1, -.1, .4)], ['is met', 'a loss is not shown', 'at most 0.4 of the 46.5 points', '(1 %)']),
    ([(0, -.2, .3), (.1, -.1, .6)], ['neither met nor missed for certain with 400 images', 'a loss is not shown', 'at most 0.6 of']),
    ([(.3, .1, .45), (0, -.1, .1)], ['is met', 'a loss is shown (equal 0)', 'at most 0.5 of']),
    ([(.8, .1, 1.5), (.9, .2, 1.6)], ['neither met', 'a loss is shown (equal 0, equal 1)', 'at most 1.6 of', '(3 %)']),
    ([(0, -.2, .2), (3, 2, 4)], ['is missed', 'a loss is shown (equal 1)', 'at most 4.0 of', '(9 %)']),
    ([(-2, -3, -1), (-2, -3, -1)], ['is met', 'a loss is not shown', 'at most 0.0 of', '(0 %)']),
    ([(48, 45, 50), (0, -.1, .1)], ['is missed', '(100 %)'])])
def test_the_verdict_claims_what_the_intervals_allow(drops, words):
    text = verdict(outcome(*drops))
    assert all(w in text for w in words), text
    assert '\n' not in text and all(points(dict(zip(('value', 'low', 'high'), d))) in text for d in drops)

def test_a_model_that_guesses_has_nothing_to_explain():
    chance = dict(value=.52, low=.47, high=.57, k=208, n=400)
    assert 'not shown to do better than guessing' in verdict(outcome((0, -.1, .1), accuracy=chance)) and '52.0 %' in verdict(outcome((0, -.1, .1), accuracy=chance))
    assert 'guessing' in verdict(outcome((0, -1, 1), n_fake=388, n_real=12)).split(' points above')[0]  # 97 % is what saying 'fake' each time gets
    assert 'less than 2 points is met' in verdict(outcome((0, -1, 1), goal=2.))

def test_table_and_figure_show_every_row():
    simple = dict(n=400, accuracy=SHARE, caught=SHARE, cleared=SHARE, auc=SHARE)
    result = outcome((1, 0, 2), (0, -1, 1), facts=simple, spectrum=simple)
    table = shortcut_table(result)
    assert len(table) == 7 and table.points_lost.tolist() == ['', '', '', '1.0 (0.0 to 2.0)', '0.0 (-1.0 to 1.0)', *['40.0 (35.0 to 45.0)'] * 2] and (table.images == 400).all()
    assert len(shortcut_table(outcome((1, 0, 2)))) == 4 and 'threshold unchanged' in READING
    fig = plot_shortcuts(result)
    assert [[t.get_text() for t in ax.get_yticklabels()] for ax in fig.axes] == [['equal 0', 'equal 1', 'control 0'], ['patches 1']]
    assert all(any(np.allclose(line.get_xdata(), 0) and len(set(line.get_ydata())) == 2 for line in ax.lines) for ax in fig.axes)  # a line where nothing is lost
    plt.close(fig)

# --- the step ---

def test_scores_come_from_the_evaluation(tmp_path):
    wanted = pd.DataFrame(dict(path=['a', 'b']))
    with pytest.raises(FaceError, match='run 04_evaluate first'): Run(tmp_path, 'cpu').scores(wanted)
    pd.DataFrame(dict(path=['c', 'b', 'a'], p_fake=[.3, .2, .1])).to_csv(tmp_path/'predictions.csv', index=False)
    assert Run(tmp_path, 'cpu').scores(wanted).tolist() == [.1, .2]
    with pytest.raises(FaceError, match='1 of 2 test images are not in it'): Run(tmp_path, 'cpu').scores(pd.DataFrame(dict(path=['a', 'z'])))

def run_step(run_dir, **settings):
    "The Run cells of the notebook, in this process."
    cells = [(''.join(c['source']), c['metadata'].get('tags', [])) for c in json.loads((ROOT/'nbs'/'07_shortcuts.ipynb').read_text(encoding='utf-8'))['cells'] if c['cell_type'] == 'code']
    imports = lambda text: 'from fakeface.' in text and not text.startswith('#| eval')
    names, wanted = {}, [(t, tags) for t, tags in cells if imports(t) or t.startswith(('#| export', '#| eval: false')) or 'parameters' in tags]
    for text, tags in wanted:
        exec(text, names)
        if 'parameters' in tags: names |= dict(run_dir=str(run_dir), **settings)
    plt.close('all')

@pytest.mark.parametrize('images', [0, 6])
def test_the_step_leaves_its_files(drawn, checkpoint, tmp_path, images):
    m, _ = sample(drawn, dict(train=0, valid=0, test=0), source='toy'); save_manifest(m, tmp_path/'manifest.csv')
    (tmp_path/'data.json').write_text(json.dumps(dict(root=str(drawn), source='toy'))); (tmp_path/'model.safetensors').write_bytes(checkpoint.read_bytes())
    test = m[m.split == 'test']
    pd.DataFrame(dict(path=test.path, p_fake=np.where(test.label == 'fake', .9, .1))).to_csv(tmp_path/'predictions.csv', index=False)
    run_step(tmp_path, images=images, bootstrap=20, workers=0, device='cpu')
    r, n = json.loads((tmp_path/'shortcuts.json').read_text()), images or 12
    assert (r['n'], r['n_fake'], r['n_real'], r['source'], r['goal']) == (n, n // 2, n // 2, 'toy', .5) and (tmp_path/'figures'/'shortcuts.png').stat().st_size > 5000
    assert r['model']['accuracy']['k'] == n and (r['facts']['n'], r['facts']['n_train'], r['spectrum']['n_train'], r['spectrum']['n_valid']) == (n, 32, 32, 12)
    assert r['spectrum']['model_against_it']['n'] == n and r['spectrum']['C'] in (1e-4, 1e-3, 1e-2, 1e-1, 1) and 'width' in r['facts']['same']
    assert len(r['conditions']) == 7 and all(c['n'] == c['drop']['n'] == n and c['drop']['value'] == pytest.approx(100 * (1 - c['accuracy']['value'])) for c in r['conditions'])
    assert r['verdict'] == verdict(r) and len(shortcut_table(r)) == 10
    assert 'NaN' not in (tmp_path/'shortcuts.json').read_text()
