"""Several processes: nothing lost or repeated, as good as one, a killed one told in one line, and
its run resumed. Real processes, on the CPU."""

import os, re, signal, subprocess, sys, time
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
import yaml
from PIL import Image
from torch.utils.data import RandomSampler

import fakeface.train
from fakeface.core import FaceError, save_json
from fakeface.data import sample, save_manifest
from fakeface.model import build_model, load_checkpoint, metadata, save_checkpoint
from fakeface.pipeline import run_step
from fakeface.settings import step_settings
from fakeface.train import Shared, launch_training, train_run

pytestmark = [pytest.mark.slow,  # torchvision's JPEG warns
              pytest.mark.filterwarnings('ignore:.*TorchCodec:DeprecationWarning')]
RECIPE = dict(epochs=2, batch_size=8, lr=1e-4, crop=40, rotate=5, jpeg_p=.5, noise_p=.5, ema=.8,
              ramp=1, precision='fp32', device='cpu', workers=0, processes=2)

def settings(**kw): return step_settings('03_train', RECIPE | kw)

@pytest.fixture(scope='module')
def make(drawn, tmp_path_factory):
    """A run up to its training: 25 training images, so that a last batch of one is joined to the
    one before; 11 to validate with."""
    def make(name, root=drawn, n=25, **kw):
        d = tmp_path_factory.mktemp(name)
        manifest = sample(root, dict(train=0, valid=0, test=0))[0]
        parts = [manifest[manifest.split == s] for s in ('train', 'valid')]
        save_manifest(pd.concat([parts[0].tail(n), parts[1].head(11)] if n else parts),
                      d/'manifest.csv')
        save_json(d/'data.json', dict(root=str(root), source='drawn', manifest_sha256=''))
        save_checkpoint(d/'init.safetensors', build_model('random')[0], metadata(size=64))
        config = dict(settings={'03_train': vars(settings(**kw))})
        (d/'config.yaml').write_text(yaml.safe_dump(config))
        return d
    return make

def left(d): return torch.load(d/'last.ckpt', weights_only=True)

def go(d, **kw):
    "Train in processes; returns what `last.ckpt` holds."
    launch_training(d, settings(**kw))
    return left(d)

@pytest.fixture(scope='module')
def two(make): return go(make('two'))

def begun(job, d):
    "Wait for the first epoch; the processes that train."
    while not (d/'last.ckpt').exists() and job.poll() is None: time.sleep(.005)
    below = psutil.Process(job.pid).children(recursive=True)
    return [p for p in below if 'fakeface.train' in p.cmdline()]

def same(a, b):
    "Bit for bit."
    numbers = lambda s: [{k: v for k, v in h.items() if k != 'seconds'} for h in s['history']]
    weights = all(v.equal(b[p][k]) for p in ('model', 'average', 'best') for k, v in a[p].items())
    return numbers(a) == numbers(b) and weights

@pytest.mark.parametrize(
    'total, size, n', [(32, 8, 2), (25, 8, 2), (25, 8, 3), (9, 8, 4), (7, 3, 1), (26, 8, 2)])
def test_shares_lose_and_repeat_nothing(total, size, n, monkeypatch):
    def shares(rank, n):
        monkeypatch.setattr(fakeface.train, 'own_rank', lambda: (rank, n))
        torch.manual_seed(total)
        batches = Shared(RandomSampler(range(total)), size)
        drawn = list(batches)
        assert len(drawn) == len(batches)
        return drawn
    whole, parts = shares(0, 0), [shares(r, n) for r in range(n)]
    assert [len(b) for b in whole[:-1]] == [size] * (len(whole) - 1)
    assert sorted(chain(*chain(*parts))) == sorted(chain(*whole)) == list(range(total))
    for step in zip(*parts, strict=True):
        sizes = [len(b) for b in step]
        assert min(sizes) > 0 and max(sizes) - min(sizes) <= 1

def test_two_processes_learn_what_one_learns(make, tmp_path):
    """Noise, fakes with a faint checkerboard in it: both validate far above chance, and within
    chance of each other."""
    rng, board = np.random.default_rng(0), np.indices((64, 64, 1)).sum(0) % 2
    for split, n in dict(train=160, valid=80, test=2).items():
        for i in range(n):
            x = rng.normal(128, 30, (64, 64, 3)) + 12 * board * (i % 2)
            path = tmp_path/'drawn'/split/('real', 'fake')[i % 2]/f'{i}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(x.clip(0, 255).astype(np.uint8)).save(path)
    root = tmp_path/'drawn'
    kw = dict(epochs=4, batch_size=16, lr=1e-3) | dict.fromkeys(
        ('crop', 'rotate', 'jpeg_p', 'noise_p', 'ramp', 'ema'), 0)
    one, both = make('one', root, 0), make('both', root, 0)
    train_run(one, settings(**kw, processes=0), torch.device('cpu'))
    go(both, **kw)
    a, b = (max(h['valid_auc'] for h in left(d)['history']) for d in (one, both))
    assert min(a, b) > .75 and abs(a - b) < .15, (a, b)

def test_a_killed_process_ends_the_job_in_one_line_and_the_run_goes_on(make, two):
    "In the second epoch; the same command ends where a run without a kill ends, bit for bit."
    d = make('killed')
    code = f'''import sys
from types import SimpleNamespace
from fakeface.core import FaceError
from fakeface.train import launch_training
try: launch_training({str(d)!r}, SimpleNamespace(**{vars(settings())!r}))
except FaceError as e: sys.exit(print(e, file=sys.stderr) or 2)'''
    job = subprocess.Popen([sys.executable, '-W', 'ignore', '-c', code], stdout=subprocess.PIPE,
                           stderr=subprocess.PIPE, text=True)
    ranks = begun(job, d)
    rank1, = [p for p in ranks if p.environ()['RANK'] == '1']
    rank1.send_signal(signal.SIGKILL)
    out, err = job.communicate(timeout=300)
    assert job.returncode == 2 and re.fullmatch('.*process 1 was killed.*\n', err), err
    assert not any(p.is_running() for p in ranks) and len(left(d)['history']) == 1
    assert same(go(d), two)

def test_torchrun_by_hand_and_its_death(make, two):
    """With the settings of the run; when torchrun itself is killed, no process goes on writing;
    then again, to the same end."""
    d = make('hand')
    command = [Path(sys.executable).parent/'torchrun', '--standalone', '--nproc-per-node', '2',
               '-m', 'fakeface.train', str(d)]
    job = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    ranks = begun(job, d)
    job.kill()
    job.wait()
    assert len(ranks) == 2 and not psutil.wait_procs(ranks, timeout=60)[1]
    assert len(left(d)['history']) == 1
    assert subprocess.run(command, capture_output=True).returncode == 0 and same(left(d), two)

def test_what_the_user_can_mend_is_told_in_one_line(make):
    with pytest.raises(FaceError, match='^loss is .* train.lr') as e:
        go(make('wild'), lr=1e30, schedule='constant', epochs=1)
    assert '\n' not in str(e.value)

def test_the_step_of_the_pipeline(make):
    "The notebook launches the processes, then calibrates what they left."
    d = make('step')
    run_step('03_train', vars(settings(epochs=1, corruptions=[])), d)
    meta, history = load_checkpoint(d/'model.safetensors')[1], pd.read_csv(d/'history.csv')
    assert history.train_loss.tolist() == [h['train_loss'] for h in left(d)['history']]
    assert meta['metrics']['n_valid'] == 11
    # trained there, not in the notebook
    assert 'resuming after epoch 1' in (d/'03_train.ipynb').read_text()

def test_torchrun_on_what_cannot_be_trained(make):
    for d, told in (('no/run', 'not a run'), (make('unset', processes=0), 'processes is 0')):
        command = [sys.executable, '-W', 'ignore', '-m', 'fakeface.train', d]
        env = os.environ | dict(RANK='0')
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        assert done.returncode == 2 and re.fullmatch(f'.*{told}.*\n', done.stderr)
