"""Training: what was cut off goes on to the same weights, what differs starts afresh, what goes
wrong says so."""

import re, shutil
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch.optim.optimizer import register_optimizer_step_post_hook

import fakeface.settings, fakeface.train
from conftest import ROOT
from fakeface.core import FaceError, ImageError, save_json
from fakeface.data import sample, save_manifest
from fakeface.detector import Detector
from fakeface.model import build_model, metadata
from fakeface.dataset import Faces, loader, predict_logits
from fakeface.settings import resolve, step_settings
from fakeface.train import (BySource, augmentation, calibrate, degrade_share, fit, make_optimizer,
                            make_schedule, operating_point, scores, source_weights, train_run,
                            training_loader)

# torchvision's JPEG
pytestmark = pytest.mark.filterwarnings('ignore:.*TorchCodec:DeprecationWarning')

def recipe(**kw):
    "Settings of a training that differ from the notebook's."
    assert not kw.keys() - vars(s := step_settings('03_train', kw)).keys()
    return s

class Cut(Exception): "A killed process, as far as a loader can play one."

class CutLoader:
    "A loader that dies in the given batch, counted over all epochs."
    def __init__(self, batches, at):
        self.batches, self.left = batches, at
        self.dataset, self.batch_sampler = batches.dataset, batches.batch_sampler
    def __len__(self): return len(self.batches)
    def __iter__(self):
        for b in self.batches:
            if not self.left: raise Cut
            self.left -= 1
            yield b

@pytest.fixture(scope='module')
def manifest(drawn): return sample(drawn, dict(train=0, valid=0, test=0))[0]

@pytest.fixture(scope='module')
def part(drawn, manifest):
    "The images of a split."
    return lambda split, augment=None: Faces(drawn, manifest[manifest.split == split], 64, augment)

@pytest.fixture(scope='module')
def valid_loss(part):
    def measure(model):
        batches = loader(part('valid'), 8)
        logits = predict_logits(model, batches, True, torch.device('cpu'), torch.float32)
        return scores(logits, batches.dataset.targets)['valid_loss']
    return measure

@pytest.fixture
def train(part, tmp_path):
    "Three epochs of four batches; `cut` says in which batch the process dies."
    def run(last=None, cut=None, key='a', batch_size=8, workers=0, watch=None, dtype=torch.float32,
            epochs=3, **kw):
        model, _ = build_model('random')
        images = part('train', augmentation(crop=40, rotate=5, jitter=.1, jpeg_p=.3, blur_p=.3))
        batches = training_loader(images, batch_size, workers)
        hook = register_optimizer_step_post_hook(lambda *_: watch and watch(model))
        try:
            return model, fit(model, CutLoader(batches, cut) if cut else batches,
                              loader(part('valid'), 8), recipe(epochs=epochs, **kw), dtype=dtype,
                              last=last and tmp_path/last, key=key)
        finally: hook.remove()
    return run

def same(a, b):
    return all(x.equal(y) for x, y in zip(a.state_dict().values(), b.state_dict().values()))
def numbers(history): return history.drop(columns='seconds').to_dict('list')

CUTS = dict(fp32=(2, 6, {}), bf16=(3, 10, dict(dtype=torch.bfloat16)),
            workers=(2, 5, dict(workers=2)), average=(3, 10, dict(ema=.8, ramp=2)),
            all=(2, 6, dict(ema=.5, dtype=torch.bfloat16, workers=1)))

@pytest.mark.parametrize('epochs, cut, more', CUTS.values(), ids=CUTS)
def test_a_cut_run_ends_as_if_it_had_not_been_cut(train, epochs, cut, more):
    "Cut in the middle of the last epoch: weights and history agree bit for bit."
    kw = dict(epochs=epochs) | more
    straight, history = train(**kw)
    with pytest.raises(Cut): train('last', cut=cut, **kw)
    resumed, again = train('last', **kw)
    assert same(straight, resumed) and numbers(history) == numbers(again) and len(history) == epochs

@pytest.mark.parametrize('batch_size, workers', [(8, 0), (8, 1)])
def test_the_batch_that_ends_a_training_is_named(train, part, batch_size, workers):
    with pytest.raises(FaceError, match='lower train.lr') as e:
        train(lr=1e30, schedule='constant', batch_size=batch_size, workers=workers)
    said = r'loss is (?:nan|inf) in batch \d of epoch \d/3, whose first image is (.*?); .*'
    assert re.fullmatch(said, str(e.value))[1] in part('train').paths

def test_the_last_batch_can_end_a_training_too(train):
    with pytest.raises(FaceError, match='no longer finite; lower train.lr'):
        train(lr=1e30, schedule='constant', batch_size=32)

def test_the_number_of_loading_processes_changes_nothing(train):
    (a, one), (b, other) = train(workers=0, ramp=2), train(workers=2, ramp=2)
    assert same(a, b) and numbers(one) == numbers(other)

def test_cut_in_the_first_epoch_starts_again(train, tmp_path):
    with pytest.raises(Cut): train('last', cut=2)
    assert not list(tmp_path.glob('*last*'))
    assert train('last', epochs=1)[1].epoch.tolist() == [1]

def test_a_finished_run_is_not_trained_again(train):
    model, history = train('last', epochs=1)
    again, read = train('last', epochs=1, cut=1)  # not one more batch
    assert same(model, again) and numbers(history) == numbers(read)

def test_other_settings_start_afresh(train):
    other, _ = train('last', epochs=1, key='a')
    model, history = train('last', epochs=1, key='b', seed=43)
    assert same(model, train(epochs=1, seed=43)[0]) and not same(model, other) and len(history) == 1

# a rate that soon makes things worse: training stops after an epoch that was worse
SOON = dict(epochs=12, lr=.03, schedule='constant', patience=1, batch_size=32)

def test_early_stopping_keeps_the_best_epoch(train, valid_loss):
    model, history = train('last', **SOON)
    assert len(history) == history.valid_loss.argmin() + 1 + 1 < 12
    assert valid_loss(model) == pytest.approx(history.valid_loss.min(), rel=1e-3)
    assert history.valid_loss.min() < history.valid_loss.iloc[-1]
    assert numbers(train('last', **SOON)[1]) == numbers(history)  # stopped is stopped, resumed too

def test_the_last_epoch_can_be_kept_instead(train, valid_loss):
    model, history = train(keep='last', **SOON)
    assert history.valid_loss.argmin() < len(history) - 1
    assert valid_loss(model) == pytest.approx(history.valid_loss.iloc[-1], rel=1e-3)

def test_the_average_is_the_average(train, valid_loss):
    """Recomputed from the weights after every step; it is what is validated and kept, and it does
    not disturb the training."""
    steps = []
    note = lambda m: steps.append({k: v.double() for k, v in m.state_dict().items()})
    plain, _ = train(epochs=1, watch=note)
    model, history = train(epochs=1, ema=.7)
    expected = steps[0]
    for s in steps[1:]: expected = {k: .7 * v + .3 * s[k] for k, v in expected.items()}
    assert len(steps) == 4 and not same(model, plain)
    for k, v in model.state_dict().items():
        if not k.endswith('num_batches_tracked'):
            assert torch.allclose(v.double(), expected[k], rtol=1e-4, atol=1e-6), k
    assert valid_loss(model) == pytest.approx(history.valid_loss[0], rel=1e-4)

class Changed(CutLoader):
    "A loader that notes which share of the images of each epoch are not as in their files."
    def __init__(self, batches, faces):
        super().__init__(batches, -1)
        self.files, self.shares = {x.numpy().tobytes() for x, _ in faces}, []
    def __iter__(self):
        seen = []
        for x, y in super().__iter__():
            seen += [i.numpy().tobytes() not in self.files for i in x]
            yield x, y
        self.shares.append(np.mean(seen))

@pytest.mark.parametrize(
    'ramp, expected', [(0, (1, 1, 1)), (1, (0, 1, 1)), (2, (0, .5, 1)), (4, (0, .25, .5))])
def test_degradation_sets_in_by_and_by(part, ramp, expected):
    degraded = part('train', augmentation(flip=False, jpeg_p=1.))
    batches = Changed(training_loader(degraded, 16), part('train'))
    fit(build_model('random')[0], batches, loader(part('valid'), 32), recipe(epochs=3, ramp=ramp))
    assert batches.shares == [pytest.approx(e, abs=0 if e in (0, 1) else .22) for e in expected]

def test_a_new_setting_is_one_line(drawn, manifest, checkpoint, tmp_path, monkeypatch):
    "In the parameters cell; from there it is checked, reaches the training and makes it another."
    book = Path(shutil.copytree(ROOT/'nbs', tmp_path/'nbs'))/'03_train.ipynb'
    line = '"novelty = 0.5  # [0, 1] of which nobody has heard\\n",\n    "ramp = 0 '
    text = book.read_text(encoding='utf-8')
    book.write_text(text.replace('"ramp = 0 ', line, 1), encoding='utf-8')
    monkeypatch.setattr(fakeface.settings, 'repo_path', lambda name: tmp_path/name)
    assert resolve({}, ['train.novelty=0.7'])['03_train']['novelty'] == .7
    with pytest.raises(FaceError, match='train.novelty=2.0: must be at least 0 and at most 1'):
        resolve({'train': {'novelty': 2}})
    save_manifest(manifest, tmp_path/'manifest.csv')
    save_json(tmp_path/'data.json', dict(root=str(drawn)))
    shutil.copy(checkpoint, tmp_path/'init.safetensors')
    monkeypatch.setattr(fakeface.train, 'fit', lambda *args: (args[3].novelty, args[-1]))
    cpu = torch.device('cpu')
    (a, key), (b, other) = (train_run(tmp_path, recipe(novelty=v), cpu)[1] for v in (.5, .7))
    assert (a, b) == (.5, .7) and key != other

@pytest.mark.parametrize(
    'augment', [augmentation(crop=48), augmentation(flip=False)], ids=['crops', 'nothing'])
def test_a_ramp_with_nothing_to_degrade(augment):
    "`train.ramp=3` is allowed whatever else is set."
    degrade_share(augment, .5)

def test_it_learns_which_class_is_which(tmp_path):
    "From folders to p_fake: when every fake is dark, a dark image scores high."
    for c, level in (('fake', 60), ('real', 190)):
        (tmp_path/c).mkdir()
        for i in range(16):
            rng = np.random.default_rng(i)
            x = rng.integers(level - 40, level + 40, (40, 40, 3), np.uint8)
            Image.fromarray(x).save(tmp_path/c/f'{i}.png')
    paths = sorted(tmp_path.rglob('*.png'))
    manifest = pd.DataFrame([dict(path=f'{p.parent.name}/{p.name}', label=p.parent.name)
                             for p in paths])
    model, _ = build_model('random')
    images = Faces(tmp_path, manifest, 40)
    fit(model, training_loader(images, 8), loader(images, 8), recipe(epochs=5, schedule='constant'))
    verdicts = Detector(model, metadata(size=40), 'cpu').predict(paths, whole=True)
    assert [v.verdict for v in verdicts] == manifest.label.tolist()
    assert min(v.p_fake for v in verdicts[:16]) > .5 > max(v.p_fake for v in verdicts[16:])

@pytest.mark.parametrize('epochs', [0, -1])
def test_no_epochs_is_told(train, epochs):
    with pytest.raises(FaceError): train(epochs=epochs)

@pytest.mark.parametrize('what', [b'', b'not a file of torch', {'a': 1}, [1, 2]],
                         ids=['empty', 'noise', 'other dict', 'list'])
def test_a_damaged_last_is_told(train, tmp_path, what):
    path = tmp_path/'last'
    path.write_bytes(what) if isinstance(what, bytes) else torch.save(what, path)
    with pytest.raises(FaceError, match='delete it') as e: train('last')
    assert '\n' not in str(e.value)

@pytest.mark.parametrize('workers', [0, 1])
def test_a_file_that_went_bad_since_sampling_is_named_in_one_line(faces, manifest, workers):
    bad = faces/manifest.path[3]
    bad.write_bytes(bad.read_bytes()[:500])
    with pytest.raises(ImageError, match=f'^{manifest.path[3]}: damaged') as e:
        list(loader(Faces(faces, manifest.head(8), 64), 8, workers))
    assert '\n' not in str(e.value)

def test_order_and_augmentation_follow_from_the_seed(part):
    augment = augmentation(crop=48, rotate=10, jitter=.2, jpeg_p=.5, blur_p=.5, rescale_p=.5)
    batches = training_loader(part('train', augment), 8)
    def draw(seed):
        torch.manual_seed(seed)
        return [x for x, _ in islice(batches, 2)]
    assert all(a.equal(b) for a, b in zip(draw(1), draw(1))) and not draw(1)[0].equal(draw(2)[0])

def test_an_unknown_recipe_is_told():
    line, told = torch.nn.Linear(1, 1), pytest.raises(FaceError, match='is not one of')
    with told: make_optimizer(line, 'sgd')
    with told: make_schedule(make_optimizer(line), 'step')

def test_calibration_makes_a_boaster_honest():
    g = torch.Generator().manual_seed(0)
    honest = torch.randn(3000, 2, generator=g) * 2
    labels = torch.multinomial(honest.softmax(1), 1, generator=g)[:, 0]
    assert calibrate(honest * 4 + torch.tensor([2., 0.]), labels) == pytest.approx((4, -2), rel=.25)
    # nothing wrong, nothing to temper
    assert np.isfinite(calibrate(torch.tensor([[9., -9.], [-9., 9.]]), [0, 1])).all()

def some_scores(kind, rng):
    "p_fake and truth of validation images, and of these with their copies."
    fake = np.r_[rng.uniform(size=rng.integers(5, 200)) < .5, True, False]
    by = dict(overlapping=1.5, apart=9, wrong=-9, blind=0, ties=1, alike=0)[kind]
    judge = lambda: 1 / (1 + np.exp(-np.where(fake, by, -by) - rng.normal(0, 1, len(fake))))
    p, copies = judge(), [judge() for _ in range(rng.integers(0, 4))]
    if kind == 'ties':
        p, copies = p.round(1).clip(.01, .99), [c.round(1).clip(.01, .99) for c in copies]
    if kind == 'alike': p, copies = np.full(len(p), .4), [np.full(len(p), .4) for _ in copies]
    return p, fake, np.concatenate([p, *copies]), np.tile(fake, len(copies) + 1)

@pytest.mark.parametrize('kind', ['overlapping', 'apart', 'wrong', 'blind', 'ties', 'alike'])
def test_the_operating_point_keeps_its_promises(kind):
    """Whatever the scores: no more reals accused, and no more answers wrong, than was asked; and
    the threshold is not higher than that needs."""
    for seed in range(60):
        rng = np.random.default_rng(seed)
        p, fake, p_all, fake_all = some_scores(kind, rng)
        fpr, band_error = rng.choice([.005, .05, .2, .5]), rng.choice([.005, .02, .1, .5])
        threshold, (low, high) = operating_point(p, fake, p_all, fake_all, fpr, band_error)
        assert 0 < low <= threshold <= high < 1, seed
        real, reals, fakes = p[~fake], p_all[~fake_all], p_all[fake_all]
        assert (real >= threshold).mean() <= fpr < (real >= real[real < threshold].max()).mean()
        assert (reals >= high).mean() <= band_error and (fakes < low).mean() <= band_error, seed
        if high > threshold: assert (reals >= reals[reals < high].max()).mean() > band_error, seed
        if low < threshold: assert (fakes <= fakes[fakes >= low].min()).mean() > band_error, seed

@pytest.mark.parametrize('kind', ['overlapping', 'apart', 'wrong', 'ties'])
def test_no_bound_and_no_band(kind):
    for seed in range(20):
        some = some_scores(kind, np.random.default_rng(seed))
        assert operating_point(*some, 0, 0) == (.5, (.5, .5))
        threshold, doubt = operating_point(*some, .05, 0)
        assert doubt == (threshold, threshold) == (operating_point(*some, .05, .02)[0],) * 2
        assert operating_point(*some, 0, .02)[0] == .5

def test_between_classes_that_lie_apart_nothing_is_wrong_and_nothing_in_doubt_is_judged():
    p, fake = np.array([.9, .8, .95, .1, .2, .05]), np.array([True] * 3 + [False] * 3)
    threshold, (low, high) = operating_point(p, fake, p, fake, .01, .01)
    assert .2 < threshold <= .8 and .2 < low <= threshold <= high <= .8

# --- many sources ---

@pytest.fixture
def sources(drawn, manifest):
    "Training images; of the fakes all but one come from one source."
    m = manifest[manifest.split == 'train'].reset_index(drop=True)
    m.loc[m.label == 'fake', 'source'] = ['large'] * 15 + ['small']
    return lambda **how: Faces(drawn, m, 64, augmentation(crop=32, **how))

def test_small_sources_are_not_drowned(sources):
    """Classes half and half, sources by the square root of their size; whatever is drawn twice is
    augmented twice."""
    faces = sources()
    faces.seed = 1
    weights = source_weights(faces.targets, faces.sources, .5)
    share = weights[[s == 'small' for s in faces.sources]].sum()
    assert share == pytest.approx(.5 / (1 + 15 ** .5))
    torch.manual_seed(0)
    drawn_often = [list(BySource(faces, .5)) for _ in range(60)]
    # no draw twice in an epoch, though images are
    assert all(len(set(order)) == 32 for order in drawn_often)
    drawn = np.mean([faces.sources[i] == 'small' for order in drawn_often for i, _ in order])
    assert drawn == pytest.approx(share, abs=.03)
    (first, a), (second, b), (again, _) = faces[3, 0], faces[3, 1], faces[3, 1]
    assert a == b and second.equal(again) and not first.equal(second) and len(list(faces)) == 32

def test_a_training_by_source_goes_on_to_the_same_weights(sources, part, tmp_path):
    def run(last, epochs, workers=0):
        model, _ = build_model('random')
        batches = training_loader(sources(forward_p=.5), 8, workers, power=.5)
        some = recipe(epochs=epochs, schedule='constant')
        fit(model, batches, loader(part('valid'), 8), some, last=last, key='a')
        return model.state_dict()
    straight = run(tmp_path/'a.ckpt', 3)
    run(tmp_path/'b.ckpt', 1)
    for resumed in (run(tmp_path/'b.ckpt', 3), run(None, 3, workers=2)):
        assert all(a.equal(b) for a, b in zip(straight.values(), resumed.values()))

def test_no_kind_of_photograph_pays_for_the_pool():
    rng = np.random.default_rng(0)
    kinds = np.repeat(['', 'studio', 'phone', 'rare'], [100, 320, 50, 30])
    p, fake = rng.uniform(size=500), kinds == ''
    p = (np.where(fake, 1, p) + 2 * (kinds == 'phone') + 4 * (kinds == 'rare')) / 6
    accused = lambda t, kind: (p[~fake & (kinds == kind)] >= t).mean()
    pool, own = (operating_point(p, fake, p, fake, .2, 0, kinds, limit)[0] for limit in (0., .05))
    assert accused(pool, 'phone') > .9 and accused(own, 'rare') == 1  # too few to be asked
    assert accused(own, 'phone') <= .05 < accused(own - .01, 'phone')
