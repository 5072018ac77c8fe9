"Several processes: nothing lost or repeated, the curve of one, a killed process told in one line and its run resumed. Real processes under torch's launcher, on the CPU."

import json, os, signal, subprocess, sys, time
from itertools import chain
from pathlib import Path

import pandas as pd
import psutil
import pytest
import torch
import yaml
from torch.utils.data import BatchSampler, RandomSampler

import fakeface.train
from conftest import ROOT
from fakeface.core import FaceError, save_json
from fakeface.data import sample, save_manifest
from fakeface.model import build_model, load_checkpoint, metadata, save_checkpoint
from fakeface.parallel import Share, launch
from fakeface.pipeline import defaults, run_step
from fakeface.train import Faces, Resident, train_run

pytestmark = pytest.mark.filterwarnings('ignore:.*TorchCodec:DeprecationWarning')  # torchvision's JPEG
SETTINGS = {n: v for n, (v, _) in defaults('03_train').items() if n != 'run_dir'} | dict(
    epochs=2, batch_size=8, lr=1e-4, crop=40, rotate=5, jpeg_p=.5, noise_p=.5, ema=.8, ramp=1, precision='fp32', device='cpu', workers=0, processes=2)
PLAIN = dict(epochs=1, crop=0, flip=False, rotate=0, jpeg_p=0., noise_p=0., ramp=0)

@pytest.fixture(scope='module')
def make(drawn, tmp_path_factory):
    "A run up to its training: 25 training images, so that the last of four batches has one, and one of two processes nothing to do in it; 11 to validate with."
    def make(name, **kw):
        d = tmp_path_factory.mktemp(name)
        manifest = sample(drawn, dict(train=0, valid=0, test=0))[0]
        manifest = pd.concat([manifest[manifest.split == 'train'].iloc[3:28], manifest[manifest.split == 'valid'].iloc[:11]])
        save_manifest(manifest, d/'manifest.csv'); save_json(d/'data.json', dict(root=str(drawn), source='drawn', manifest_sha256=''))
        save_checkpoint(d/'init.safetensors', build_model('random')[0], metadata(size=64))
        (d/'config.yaml').write_text(yaml.safe_dump(dict(settings={'03_train': SETTINGS | kw})))
        return d
    return make

def left(d): return torch.load(d/'last.ckpt', weights_only=True)
def go(d, processes, **kw):
    "Train in processes; returns what `last.ckpt` holds."
    launch('fakeface.train', [str(d), json.dumps(SETTINGS | dict(processes=processes) | kw)], processes)
    return left(d)

@pytest.fixture(scope='module')
def two(make): return go(make('two'), 2)

def close(a, b):
    "Two trainings whose sums were added up in another order. Adam turns what is almost zero into whole steps, so the difference grows with every step."
    for x, y, rel in zip(a['history'], b['history'], (5e-4, 1e-2), strict=True):
        assert x['train_loss'] == pytest.approx(y['train_loss'], rel=rel) and x['valid_loss'] == pytest.approx(y['valid_loss'], rel=rel) and x['lr'] == y['lr'], (x, y)

def same(a, b):
    "Bit for bit."
    numbers = lambda s: [{k: v for k, v in h.items() if k != 'seconds'} for h in s['history']]
    return numbers(a) == numbers(b) and all(v.equal(b[part][k]) for part in ('model', 'average', 'best') for k, v in a[part].items())

@pytest.mark.parametrize('total, size, n', [(32, 8, 2), (25, 8, 2), (25, 8, 3), (9, 8, 4), (3, 8, 5), (1, 1, 2), (7, 3, 1)])
def test_shares_lose_and_repeat_nothing(total, size, n):
    def shares(rank):
        torch.manual_seed(total)
        return list(Share(BatchSampler(RandomSampler(range(total)), size, drop_last=False), rank, n))
    parts = [shares(r) for r in range(n)]
    torch.manual_seed(total); whole = list(BatchSampler(RandomSampler(range(total)), size, drop_last=False))
    assert [sorted(chain(*step)) for step in zip(*parts, strict=True)] == [sorted(b) for b in whole]
    assert sorted(chain(*chain(*parts))) == list(range(total))
    assert max(abs(len(a) - len(b)) for a, b in zip(parts[0], parts[-1])) <= 1

def test_two_processes_follow_the_curve_of_one(make, two):
    "With crops, rotation, JPEG and noise: each image's augmentation is the same, whoever draws it."
    one = go(make('one'), 1)
    close(one, two)
    train_run(d := make('plain'), SETTINGS | dict(processes=0), torch.device('cpu'))
    close(left(d), two)
    assert one['history'][0]['train_loss'] != one['history'][1]['train_loss'] and one['key'] == two['key']

@pytest.mark.parametrize('teacher', [False, True], ids=['labels', 'labels and a teacher'])
def test_a_step_of_two_processes_is_the_step_of_one(make, tmp_path, teacher):
    "25 images as 13 and 12: loss, learned statistics and validation agree with the plain training in one process."
    save_checkpoint(tmp_path/'teacher.safetensors', build_model('random', 7)[0], metadata(size=64))
    kw = PLAIN | dict(batch_size=25, schedule='constant', teachers=f'{tmp_path}/teacher.safetensors' if teacher else '')
    train_run(d := make('plain'), SETTINGS | kw | dict(processes=0), torch.device('cpu'))
    many, plain = go(make('many'), 2, **kw), left(d)
    h, g = many['history'][0], plain['history'][0]
    assert h['train_loss'] == pytest.approx(g['train_loss'], rel=1e-5) and h['valid_loss'] == pytest.approx(g['valid_loss'], rel=1e-3) and h['train_accuracy'] == pytest.approx(g['train_accuracy'])
    for k, v in plain['model'].items():
        if 'running' in k: assert torch.allclose(v, many['model'][k], rtol=1e-4, atol=1e-5), k
    assert plain['key'] == many['key']  # one may go on from the other
    if teacher:  # another one under the same name: what it taught is not gone on with
        save_checkpoint(tmp_path/'teacher.safetensors', build_model('random', 8)[0], metadata(size=64))
        train_run(d, SETTINGS | kw | dict(processes=0), torch.device('cpu'))
        assert left(d)['key'] != plain['key']

ONE_EPOCH = """
import json, sys, torch
from fakeface.data import load_manifest
from fakeface.model import build_model
from fakeface.parallel import *
from fakeface.train import *

class Double(torch.nn.Module):
    def __init__(self, net): super().__init__(); self.net = net
    def forward(self, x): return self.net(x.double())

def gradients(run, out):
    rank, n = world()
    model = Double(build_model('random')[0].double())
    net = torch.nn.parallel.DistributedDataParallel(share_statistics(model, torch.device('cpu'))) if n > 1 else model
    opt = torch.optim.SGD(model.parameters(), 1e-3)
    faces = Faces(json.load(open(run + '/data.json'))['root'], load_manifest(run + '/manifest.csv').head(7), 64)
    told = train_epoch(net, loader(faces, 5), True, opt, make_schedule(opt, 'constant'), torch.amp.GradScaler('cpu', enabled=False), torch.device('cpu'), torch.float32, .1)
    if not rank: torch.save(dict(told=torch.tensor(told), **{k: p.grad for k, p in model.named_parameters()}), out)

def work(*given): join(torch.device('cpu')); gradients(*given)
if __name__ == '__main__': rank_main(work, *sys.argv[1:], quiet=True)
"""

def test_gradients_of_three_processes_are_those_of_one(make, monkeypatch, tmp_path):
    """A batch of 5 and one of 2, in shares of 2, 2, 1 and 1, 1, 0 images, in double precision: in single precision the order of a sum decides on which side of zero a ReLU
    falls, and that is a thousandth of a gradient."""
    (tmp_path/'one_epoch.py').write_text(ONE_EPOCH)
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join([str(tmp_path), str(ROOT)])); monkeypatch.syspath_prepend(tmp_path)
    d = str(make('double'))
    import one_epoch
    one_epoch.gradients(d, tmp_path/'one')
    launch('one_epoch', [d, str(tmp_path/'three')], 3)
    one, three = torch.load(tmp_path/'one'), torch.load(tmp_path/'three')
    assert len(one) == 63
    for k, v in one.items(): assert torch.allclose(v, three[k], rtol=1e-4, atol=1e-6 * v.abs().max().item()), k

def test_a_killed_process_ends_the_job_in_one_line_and_the_run_goes_on(make, two):
    "Killed in the second epoch; the same command ends where a run without a kill ends, bit for bit."
    d = make('killed')
    code = f"import json, sys\nfrom fakeface.core import FaceError\nfrom fakeface.parallel import launch\ntry: launch('fakeface.train', [{str(d)!r}, {json.dumps(json.dumps(SETTINGS))}], 2)\nexcept FaceError as e: sys.exit(print(e, file=sys.stderr) or 2)"
    job = subprocess.Popen([sys.executable, '-W', 'ignore', '-c', code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (d/'last.ckpt').exists() and job.poll() is None: time.sleep(.005)
    ranks = [p for p in psutil.Process(job.pid).children(recursive=True) if 'fakeface.train' in p.cmdline()]
    rank1, = [p for p in ranks if p.environ()['RANK'] == '1']
    rank1.send_signal(signal.SIGKILL)
    out, err = job.communicate(timeout=300)
    assert job.returncode == 2 and len(err.strip().splitlines()) == 1 and 'process 1 was killed (SIGKILL)' in err, err
    assert not any(p.is_running() for p in ranks) and len(left(d)['history']) == 1
    assert same(go(d, 2), two)

def test_torchrun_by_hand_and_its_death(make, two):
    "With the settings of the run; when torchrun itself is killed, no process goes on writing; then again, to the same end as through the launcher."
    d = make('hand'); command = [Path(sys.executable).parent/'torchrun', '--standalone', '--nproc-per-node', '2', '-m', 'fakeface.train', str(d)]
    job = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (d/'last.ckpt').exists() and job.poll() is None: time.sleep(.005)
    ranks = [p for p in psutil.Process(job.pid).children(recursive=True) if 'fakeface.train' in p.cmdline()]
    job.kill(); job.wait()
    assert len(ranks) == 2 and not psutil.wait_procs(ranks, timeout=60)[1] and len(left(d)['history']) == 1
    assert subprocess.run(command, capture_output=True).returncode == 0 and same(left(d), two)

def test_what_the_user_can_mend_is_told_in_one_line(make):
    with pytest.raises(FaceError, match='^loss is .* train.lr') as e: go(make('wild'), 2, lr=1e30, schedule='constant', epochs=1)
    assert '\n' not in str(e.value)

def test_the_step_of_the_pipeline(make):
    "The notebook launches the processes, then calibrates what they left."
    d = make('step')
    run_step('03_train', SETTINGS | PLAIN | dict(copies=''), d)
    meta = load_checkpoint(d/'model.safetensors')[1]
    history = pd.read_csv(d/'history.csv')
    assert history.train_loss.tolist() == [h['train_loss'] for h in left(d)['history']] and meta['metrics']['n_valid'] == 11
    assert 'resuming after epoch 1' in (d/'03_train.ipynb').read_text()  # trained there, not in the notebook

@pytest.mark.parametrize('args, env, told', [(['no/run'], dict(RANK='0'), 'not a run'), (['RUN'], {}, 'train.processes is 0')], ids=['no run', 'no processes'])
def test_torchrun_on_what_cannot_be_trained(make, args, env, told):
    d = make('unset', processes=0)
    done = subprocess.run([sys.executable, '-W', 'ignore', '-m', 'fakeface.train', *[str(d) if a == 'RUN' else a for a in args]], env=os.environ | env, capture_output=True, text=True)
    assert done.returncode == 2 and told in done.stderr and len(done.stderr.strip().splitlines()) == 1

@pytest.mark.parametrize('n', [1, 2, 3, 9])
def test_resident_images_are_shared_without_loss_and_cropped_as_by_one(drawn, monkeypatch, n):
    files = sample(drawn, dict(train=0, valid=0, test=0))[0].head(21)
    faces = Faces(drawn, files, 64)
    batches = Resident(faces, 8, crop=24)
    def epoch(rank, n):
        monkeypatch.setattr(fakeface.train, 'world', lambda: (rank, n))
        torch.manual_seed(5); return list(batches)
    whole, parts = epoch(0, 0), [epoch(r, n) for r in range(n)]
    assert len(whole) == len(batches) == 3 and all(len(p) == 3 for p in parts)
    for (x, y), *shares in zip(whole, *parts):
        assert all(sx.equal(x[r::n]) and sy.equal(y[r::n]) for r, (sx, sy) in enumerate(shares))
    assert sorted(torch.cat([y for _, y in whole]).tolist()) == sorted(faces.targets)

def test_a_resident_crop_is_a_crop_of_its_image_and_half_are_mirrored(drawn):
    files = sample(drawn, dict(train=0, valid=0, test=0))[0].head(20)
    whole = [x for x, _ in Faces(drawn, files, 32)]
    windows = torch.stack([w.unfold(1, 20, 1).unfold(2, 20, 1) for w in whole])  # (20, 3, 13, 13, 20, 20)
    found, flips, places = [], 0, set()
    torch.manual_seed(2)
    for x, _ in Resident(Faces(drawn, files, 32), 6, crop=20):
        for crop in x:
            for flip in (False, True):
                hits = (windows == (crop.flip(-1) if flip else crop)[None, :, None, None]).all(-1).all(-1).all(1).nonzero()
                if len(hits): found.append(int(hits[0, 0])); flips += flip; places.add(tuple(hits[0, 1:].tolist())); break
    assert sorted(found) == list(range(20)) and 3 <= flips <= 17 and len(places) > 15

def test_resident_images_are_refused_where_they_cannot_be_degraded(make):
    with pytest.raises(FaceError, match='train.rotate'): train_run(make('resident'), SETTINGS | dict(resident=True, processes=0), torch.device('cpu'))
