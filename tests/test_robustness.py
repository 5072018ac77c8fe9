"""What happens to a photograph on its way: each corruption does what its name says, and what is
left of the verdict is counted right."""

import io, json
from itertools import product

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score

from fakeface.core import CLASSES, FaceError, ImageError
from fakeface.images import open_image
from fakeface.corrupt import (CORRUPTIONS, STABILITY_SET, Degrade, blur, corrupt, crop, gamma, jpeg,
                              noise, parse_corruptions, scale, screenshot)
from fakeface.data import sample
from fakeface.dataset import Faces, Run, first_of_each, predict_corrupted
from fakeface.detector import Detector
from fakeface.model import (build_model, decide, fit_to, load_checkpoint, metadata,
                            save_checkpoint)
from fakeface.robustness import (LINE_STYLES, beside_table, by_kind, checkpoints, effect,
                                 in_the_middle, inconsistency, inconsistency_text, plot_robustness,
                                 plot_shift, robustness, robustness_table, save_robustness,
                                 shift_table, signed_verdicts)

# torchvision's JPEG
pytestmark = pytest.mark.filterwarnings('ignore:.*TorchCodec:DeprecationWarning')

def picture(seed=0, h=100, w=80):
    "Smooth colours with some grain: uint8 tensor (3, h, w)."
    rng = np.random.default_rng(seed)
    waves = np.sin(np.arange(h)[:, None] / 9 + np.arange(w) / 7 + rng.uniform(0, 6, (3, 1, 1)))
    x = 128 + 80 * waves + rng.normal(0, 6, (3, h, w))
    return torch.from_numpy(x.clip(0, 255).astype(np.uint8))

def harm(text): return (corrupt(x := picture(), text).float() - x).abs().mean().item()

# --- corruptions ---

def test_a_chain_is_its_links_in_order():
    x = picture()
    assert corrupt(x, 'scale:0.5+jpeg:50+blur:1').equal(blur(jpeg(scale(x, .5), 50), 1))
    assert not corrupt(x, 'jpeg:30+blur:1').equal(corrupt(x, 'blur:1+jpeg:30'))
    assert corrupt(x, '').equal(x) and corrupt(x.numpy(), 'jpeg:50').equal(jpeg(x, 50))

WRONG = ['jpg:50', 'jpeg', 'jpeg:', 'jpeg:x', 'jpeg:0', 'jpeg:101', 'jpeg:nan', 'blur:-1',
         'scale:inf', 'a\nb:1', '\u202ex', '', ' ']

@pytest.mark.parametrize('part', WRONG)
def test_a_misspelt_corruption_is_told_in_one_line(part):
    for text in {part, f'jpeg:50+{part}', f'{part}+blur:1'} - {''}:
        with pytest.raises(FaceError, match='corruption') as e: parse_corruptions(text)
        assert '\n' not in str(e.value) and '\u202e' not in str(e.value)
        assert f"'{part}'" in str(e.value) or not part.isprintable()

SIZES = {'jpeg:50': (100, 80), 'webp:50': (100, 80), 'blur:1': (100, 80), 'noise:0.1': (100, 80),
         'scale:0.5': (50, 40), 'scale:1.5': (150, 120), 'crop:0.1': (80, 64), 'gamma:2': (100, 80),
         'jpeg:75+crop:0.02+jpeg:85': (96, 76), 'screenshot:1.25': (121, 96)}

@pytest.mark.parametrize('text, size', SIZES.items())
def test_sizes_and_the_same_result_each_time(text, size):
    before = (x := picture()).clone()
    y = corrupt(x, text)
    torch.manual_seed(1)  # none of them asks torch's state
    assert y.dtype == torch.uint8 and y.shape == (3, *size)
    assert corrupt(x, text).equal(y) and x.equal(before)
    assert y.shape != x.shape or not y.equal(x)

@pytest.mark.parametrize('weaker_first', [
    'jpeg:95 jpeg:75 jpeg:50 jpeg:10', 'webp:95 webp:75 webp:50 webp:10', 'blur:0.5 blur:1 blur:3',
    'gamma:1.1 gamma:1.4 gamma:2', 'gamma:0.9 gamma:0.5', 'noise:0.01 noise:0.03 noise:0.1'])
def test_a_stronger_corruption_does_more_harm(weaker_first):
    done = [harm(c) for c in weaker_first.split()]
    assert done == sorted(done) and done[-1] > 1.5 * done[0]

def test_deviations_are_what_they_are_called():
    grey = torch.full((3, 200, 200), 128, dtype=torch.uint8)
    difference = noise(grey, .05).float() - 128
    assert difference.std().item() == pytest.approx(.05 * 255, rel=.02)
    assert abs(difference.mean().item()) < .2 and not noise(grey, .05, 1).equal(noise(grey, .05, 2))
    dot, at = torch.zeros(3, 61, 61, dtype=torch.uint8), torch.arange(61.) - 30
    dot[:, 20:41, 20:41] = 255
    spread = lambda x: (x[0].float().sum(0) * at**2).sum() / x[0].float().sum()
    assert (spread(blur(dot, 2)) - spread(dot)).sqrt().item() == pytest.approx(2, rel=.05)

def test_a_screenshot_shows_the_middle():
    x = torch.zeros(3, 100, 100, dtype=torch.uint8)
    x[:, 25:75, 25:75] = 255
    shown = screenshot(x, 2) > 127  # twice as large, 4 pixels less at each edge
    assert shown.shape == (3, 192, 192) and shown[:, 46:146, 46:146].all()
    assert shown.sum() == 3 * 100 * 100

def test_a_crop_keeps_the_middle_untouched():
    x = picture()
    assert crop(x, .1).equal(x[:, 10:90, 8:72]) and crop(x, 0).equal(x)
    assert crop(x[:, :3, :4], .45).equal(x[:, 1:2, 1:3])

def test_gamma_is_a_power_of_the_share():
    x = torch.arange(256, dtype=torch.uint8).expand(3, 4, 256)
    for power in (.5, 1, 1.4, 2):
        assert gamma(x, power)[0, 0].tolist() == [round(255 * (v / 255)**power) for v in range(256)]

def test_a_second_compression_meets_a_moved_grid():
    """Compressing again on the same grid changes little; a crop that is no multiple of its sixteen
    pixels makes it a loss of its own."""
    once = jpeg(picture(h=128, w=128), 50)
    again = lambda cut: (jpeg(once[:, cut:, cut:], 50).float() - once[:, cut:, cut:]).abs().mean()
    assert again(3) > 5 * again(16)

@pytest.mark.parametrize('name', CORRUPTIONS)
def test_any_image_down_to_one_pixel(name):
    _, low, high = CORRUPTIONS[name]
    values = low, min(max(.5, low), high), high
    for (h, w), value in product(product((1, 2, 3, 17), repeat=2), values):
        y = corrupt(picture(h=h, w=w), f'{name}:{value}')
        assert y.dtype == torch.uint8 and y.ndim == 3 and min(y.shape[1:]) >= 1

@pytest.mark.parametrize('text, h, w', [
    ('jpeg:50', 1, 65_501), ('webp:50', 16_384, 1), ('scale:4', 3000, 3000),
    ('screenshot:4', 1500, 3000), ('scale:4+jpeg:50', 1, 17_000)])
def test_an_image_that_is_too_large_for_a_corruption_is_told(text, h, w):
    with pytest.raises(FaceError, match='^[^\n]*pixels[^\n]*$'):
        corrupt(torch.zeros(3, h, w, dtype=torch.uint8), text)

def test_compression_is_the_one_of_the_format():
    x = picture()
    Image.fromarray(x.permute(1, 2, 0).numpy()).save(f := io.BytesIO(), 'JPEG', quality=50)
    pillow = torch.from_numpy(np.array(Image.open(f))).permute(2, 0, 1)
    assert (jpeg(x, 50).float() - pillow).abs().mean() < 1 < harm('jpeg:50')

def test_nine_versions():
    assert len(set(STABILITY_SET)) == 9 and all(parse_corruptions(v) for v in STABILITY_SET)
    shapes = [corrupt(picture(), v).shape for v in STABILITY_SET]
    assert [shapes.count((3, *s)) for s in ((100, 80), (75, 60), (50, 40))] == [3, 3, 3]

# --- degradation of training crops ---

@pytest.mark.parametrize('size', [(64, 64), (33, 47), (128, 31)])
def test_degraded_crops_keep_size_and_type(size):
    x, degrade = picture(h=size[0], w=size[1]), Degrade(1, 1, 1, 1)
    for seed in range(20):
        torch.manual_seed(seed)
        y = degrade(x)
        assert y.shape == x.shape and y.dtype == torch.uint8 and not y.equal(x)
        torch.manual_seed(seed)
        assert degrade(x).equal(y)
        assert not degrade(x).equal(y)  # the next draw is another

@pytest.mark.parametrize('kind', ('rescale_p', 'blur_p', 'noise_p', 'jpeg_p'))
def test_each_degradation_by_its_own_probability_and_share(kind):
    x, degrade = picture(h=32, w=32), Degrade(**{kind: .6})
    def changed(share, n=300):
        torch.manual_seed(0)
        degrade.share = share
        return sum(not degrade(x).equal(x) for _ in range(n)) / n
    assert changed(0) == 0
    assert changed(1) == pytest.approx(.6, abs=.1) and changed(.5) == pytest.approx(.3, abs=.1)

def test_degradations_do_not_come_together():
    "Only noise shows on a grey image, whatever else is done to all of them."
    grey, degrade = torch.full((3, 32, 32), 128, dtype=torch.uint8), Degrade(1, 1, .3, 1)
    torch.manual_seed(0)
    noisy = np.mean([degrade(grey).float().std().item() > 0 for _ in range(200)])
    assert noisy == pytest.approx(.27, abs=.08)

# --- judging copies ---

@pytest.fixture(scope='module')
def manifest(drawn): return sample(drawn, dict(train=0, valid=0, test=0))[0]

@pytest.mark.parametrize('size', [64, 48])
def test_a_file_is_corrupted_before_it_is_brought_to_size(drawn, manifest, size):
    for i, corruption in enumerate(('', 'jpeg:30', 'scale:0.5+jpeg:50', 'screenshot:1.25')):
        whole = open_image(drawn/manifest.path[i], '')
        x, y = Faces(drawn, manifest, size, corruption=corruption)[i]
        assert x.equal(fit_to(corrupt(whole, corruption), size)) and CLASSES[y] == manifest.label[i]

@pytest.mark.parametrize('workers', [0, 1])
def test_copies_get_the_score_that_the_detector_gives_their_files(drawn, manifest, tmp_path,
                                                                  workers):
    few = manifest[manifest.split == 'test'].groupby('label').head(3)
    model = build_model('random', seed=1)[0].eval()
    meta = metadata(size=64, normalize=False, temperature=.3)
    corruptions, files = ('', 'scale:0.5+jpeg:50', 'noise:0.1'), [tmp_path/f'{i}.png' for i in range(6)]
    scores = predict_corrupted(model, meta, drawn, few, corruptions, batch_size=4, workers=workers)
    assert tuple(scores.columns) == corruptions and len(scores) == 6
    for c in corruptions:
        for file, p in zip(files, few.path):
            pixels = corrupt(open_image(drawn/p, p), c).permute(1, 2, 0).numpy()
            Image.fromarray(pixels).save(file)
        # a data set may hold images that are too small for anybody else
        verdicts = Detector(model, meta, 'cpu').predict(files, whole=True, check=False)
        seen = [v.p_fake for v in verdicts]
        assert scores[c].tolist() == pytest.approx(seen, abs=1e-5)

def test_a_file_that_went_bad_is_named(faces, manifest):
    (faces/manifest.path[1]).write_bytes(b'\xff\xd8\xff')
    with pytest.raises(ImageError, match=f'^{manifest.path[1]}: '):
        predict_corrupted(build_model('random')[0], metadata(size=64), faces, manifest.head(3), [''])

# --- what is told of them ---

LABELS = ['fake'] * 4 + ['real'] * 4
TOY = pd.DataFrame({'': [.95, .9, .8, .7, .1, .05, .2, .3],
                    'jpeg:30': [.95, .6, .4, .1, .1, .05, .4, .9]})

def told(scores=TOY, band=(.35, .65)):
    "`robustness` of scores in which the nine versions change nothing."
    versions = {v: scores[''] for v in STABILITY_SET}
    return robustness(LABELS, scores.assign(**versions), [c for c in scores if c], .5, band, 50)

def test_a_row_for_each_corruption():
    table = robustness_table(told()).set_index('file')
    assert table.index.tolist() == ['as it is', 'jpeg:30']
    as_is, copy = [[float(t.split(' ')[0]) for t in row] for row in table.to_numpy()]
    auc = roc_auc_score([True] * 4 + [False] * 4, TOY['jpeg:30'])
    # accuracy, caught, cleared, AUC, calibration error, answered, wrong
    assert as_is == pytest.approx([100, 100, 100, 1, .1625, 100, 0], abs=6e-4)
    assert copy == pytest.approx([62.5, 50, 75, auc, .2875, 62.5, 40], abs=6e-4)

def test_what_a_corruption_moves():
    "Verdicts that are others, and those from one sure answer to the other."
    row = told()['rows'][1]  # .9 to .6, .8 to .4, .2 to .4; .7 to .1, .3 to .9
    assert (row['changed']['k'], row['changed']['n'], row['flipped']['k']) == (5, 8, 2)
    text = shift_table(told()).iloc[0]
    assert text['file'] == 'jpeg:30' and text['another verdict'].startswith('62.5 %')
    assert text['real to fake or back'].startswith('25.0 %')

def test_how_far_the_log_odds_move():
    odds, labels = np.random.default_rng(0).normal(0, 3, 400), ['fake'] * 200 + ['real'] * 200
    sigmoid, by = lambda x: 1 / (1 + np.exp(-x)), np.r_[np.full(200, -1.5), np.linspace(0, 2, 200)]
    moved = effect(labels, sigmoid(odds), sigmoid(odds + by), .5, (.5, .5), 9)
    assert moved['logit_shift']['fake'] == pytest.approx([-1.5] * 3, abs=1e-6)
    assert moved['logit_shift']['real'] == pytest.approx([1, .1, 1.9], abs=.01)
    assert moved['changed'] == moved['flipped']  # without a band there is no third answer
    ones = np.r_[np.ones(200), np.zeros(200)]
    sure = effect(labels, ones, 1 - ones, .5, (.3, .7), 9)
    assert sure['flipped']['k'] == 400 and np.isfinite(sum(sure['logit_shift'].values(), [])).all()

@pytest.mark.parametrize('corruptions, order', [
    ('jpeg:50 jpeg:90 jpeg:75', ['', 'jpeg:90', 'jpeg:75', 'jpeg:50']),
    ('blur:2 blur:0.5', ['', 'blur:0.5', 'blur:2']), ('webp:9 webp:10', ['', 'webp:10', 'webp:9']),
    ('scale:1.5 scale:0.5', ['scale:0.5', '', 'scale:1.5']), ('crop:0.2', ['', 'crop:0.2']),
    ('jpeg:90+crop:0.1 jpeg:9+crop:0.1', ['', 'jpeg:90+crop:0.1', 'jpeg:9+crop:0.1'])])
def test_copies_of_a_kind_stand_by_strength(corruptions, order):
    (kind, found), = by_kind(corruptions.split()).items()
    assert found == order and kind in ('jpeg', 'blur', 'webp', 'scale', 'crop', 'jpeg+crop')

@pytest.mark.parametrize('plot, rows', [(plot_robustness, 3), (plot_shift, 4)])
def test_curves(plot, rows):
    "A column for each kind, a line for each model; no two models look alike in print."
    scores = TOY.assign(**{'jpeg:75': TOY[''], 'gamma:2': TOY['jpeg:30']})
    figure = plot(dict(n=8, models={'a': told(scores), 'b': told(scores, (.5, .5))}))
    assert len(figure.axes) == rows * 2
    assert [t.get_text() for t in figure.axes[-2].get_xticklabels()] == ['as is', '75', '30']
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ['a', 'b']
    lines = [c.lines[0] for c in figure.axes[0].containers]
    assert len({(line.get_marker(), line.get_linestyle()) for line in lines}) == 2
    if plot is plot_robustness:
        assert [list(line.get_ydata()) for line in lines] == [[1, 1, .625]] * 2
    plt.close(figure)

def test_no_two_models_look_alike():
    for part in zip(*LINE_STYLES): assert len(set(part)) == len(LINE_STYLES)

def test_models_side_by_side():
    scores = TOY.assign(**{'jpeg:75': TOY[''], 'gamma:2': TOY['jpeg:30']})
    models = {'a': told(scores), 'b': told(scores.assign(**{'gamma:2': TOY['']}))}
    at = beside_table(dict(n=8, models=models)).set_index('file (8 images)')
    assert at.index[:4].tolist() == ['as it is', *scores.columns[1:]] and len(at) == 6
    assert at.loc['gamma:2', 'a'].startswith('62.5 %')
    assert at.loc['gamma:2', 'b'].startswith('100.0 %')
    assert in_the_middle(['', *scores.columns[1:]]) == ['', 'jpeg:30', 'gamma:2']

def test_checkpoints_by_name(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ('20250101T000000Z-quick', 'a=b'):
        (tmp_path/folder).mkdir()
        (tmp_path/folder/'model.safetensors').write_bytes(checkpoint.read_bytes())
    (tmp_path/'other.safetensors').write_bytes(checkpoint.read_bytes())
    found = checkpoints(['20250101T000000Z-quick', 'x=a=b', 'other.safetensors',
                         'y=other.safetensors'])
    assert {n: str(p.relative_to(tmp_path)) for n, p in found.items()} == {
        '20250101T000000Z-quick': '20250101T000000Z-quick/model.safetensors',
        'x': 'a=b/model.safetensors', 'other': 'other.safetensors', 'y': 'other.safetensors'}
    assert checkpoints([f'{n}={p}' for n, p in found.items()]) == found and checkpoints([]) == {}

GOOD = 'good.safetensors'

@pytest.mark.parametrize('given', [
    ['none.safetensors'], ['x=none.safetensors'], ['x=.'], ['x=cut.safetensors'],
    [f'x={GOOD}', f'x={GOOD}'], [GOOD, f'good={GOOD}'], [f'this model={GOOD}'], [f'a|b={GOOD}'],
    [f'$x$={GOOD}'], [f'a\nb={GOOD}'], ['x=' + 'y' * 300]])
def test_a_wrong_checkpoint_is_told_in_one_line(given, checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path/GOOD).write_bytes(checkpoint.read_bytes())
    (tmp_path/'cut.safetensors').write_bytes(checkpoint.read_bytes()[:5000])
    with pytest.raises(FaceError, match='^[^\n]{20,}$'): checkpoints(given)

def test_several_checkpoints_on_the_same_copies(drawn, manifest, checkpoint, tmp_path):
    "Each judges at its own size and by its own threshold, and what is left says by which file."
    save_checkpoint(tmp_path/'b.safetensors', build_model('random', seed=2)[0],
                    metadata(size=48, threshold=.45, band=(.4, .6)))
    models = checkpoints([f'a={checkpoint}', str(tmp_path/'b.safetensors')])
    few, run = first_of_each(manifest[manifest.split == 'test'], 6), Run(tmp_path/'out', 'cpu')
    run.data = dict(root=drawn)
    result = save_robustness(run, few, models, ['crop:0.1', 'crop:0.1', 'gamma:2'], bootstrap=9)
    assert few.label.tolist() == ['fake'] * 3 + ['real'] * 3 and result['n'] == 6
    assert result == json.loads((run.dir/'robustness.json').read_text())
    table = pd.read_csv(run.dir/'corruptions.csv')
    assert set(table.columns) == {'path', 'label', 'model', 'as it is', 'crop:0.1', 'gamma:2',
                                  *STABILITY_SET}
    for name, path in models.items():
        (model, meta), found = load_checkpoint(path), result['models'][name]
        assert [r['corruption'] for r in found['rows']] == ['', 'crop:0.1', 'gamma:2']
        assert found['band'] == meta['band']
        again = predict_corrupted(model, meta, drawn, few, ['gamma:2'])['gamma:2']
        assert table[table.model == name]['gamma:2'].tolist() == pytest.approx(again, abs=1e-6)
    assert result['models']['a']['sha256'] != result['models']['b']['sha256']
    for name in ('robustness', 'logit_shift', 'reliability'):
        assert (run.dir/'figures'/f'{name}.png').stat().st_size > 9999

def test_a_flip_is_both_answers_for_one_image():
    s = pd.DataFrame([[.9, .9, .9], [.9, .1, .9], [.9, .5, .9], [.1, .5, .1], [.3, .3, .7],
                      [.29, .5, .7], [.5, .5, .5]])
    result, hard = inconsistency(s, (.3, .7)), inconsistency(s, (.5, .5))
    assert (result['k'], result['n'], result['versions'], hard['k']) == (2, 7, 3, 4)
    assert result['uncertain'] == pytest.approx(8 / 21)
    text = inconsistency_text(result | dict(threshold=hard))
    for part in ('Of 7 images', '28.6 %', '38.1 %', '4 images would flip'): assert part in text

@pytest.mark.parametrize('seed', range(5))
def test_flips_are_what_the_verdicts_say(seed):
    rng = np.random.default_rng(seed)
    s, band = pd.DataFrame(rng.uniform(size=(50, 4)).round(1)), sorted(rng.uniform(size=2).round(1))
    said = [[decide(p, *band) for p in row] for row in s.to_numpy()]
    words = np.array(['uncertain', 'fake', 'real'])  # -1 is the last
    assert words[signed_verdicts(s.to_numpy(), band)].tolist() == said
    assert inconsistency(s, band)['k'] == sum({'fake', 'real'} <= set(row) for row in said)
