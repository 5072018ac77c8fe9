"""How fast are labels and heatmaps, against the plain way of making them?

The other side is the usual way, written below: torchvision's ImageFolder with Pillow, a
DataLoader with 2 workers, the network in float32 as PyTorch lays it out, batches of 32; for
Grad-CAM one image at a time with hooks and a backward pass. Both sides judge the same files with
the same weights, whole, in one process after the other, in turn; our search for faces is off and
its cost is a line of its own. A heatmap is laid over its image on both sides. 'faster' is the
ratio of elapsed times, the median over the rounds; 'less work' that of processor seconds, which
other programs on the machine disturb less.

example: python benchmarks/predict.py data/140k/real_vs_fake/real-vs-fake/test --rounds 3
Without a folder: the test images of FAKEFACE_DATA/140k-subset, or a generated stand-in."""
import argparse, os, pathlib, platform, resource, statistics, subprocess, sys, time
from functools import partial
import numpy as np, torch
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader, Subset
from torchvision.datasets import ImageFolder
from torchvision.models import resnet18
from torchvision.transforms import v2
from fakeface.core import FaceError, repo_path
from fakeface.detector import SHIPPED, Detector
from fakeface.gradcam import overlay
from fakeface.model import MEAN, STD, decide, load_checkpoint, p_fake
from fakeface.ship import fill_marks
from fakeface.standin import make_standin

# --- the plain way ---

def plain_model(weights):
    "torchvision's ResNet18 with the weights of a checkpoint, and its metadata."
    own, meta = load_checkpoint(weights or SHIPPED)
    model = resnet18(num_classes=2).eval()
    model.load_state_dict(own.state_dict())
    return model, meta

def to_tensor(meta):
    steps = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    return v2.Compose(steps + [v2.Normalize(MEAN, STD)] * meta['preprocessing']['normalize'])

@torch.no_grad()
def plain_labels(model, meta, files):
    logits = [model(x) for x, _ in DataLoader(files, batch_size=32, num_workers=2)]
    return p_fake(torch.cat(logits), meta['temperature'])

def plain_heatmaps(model, meta, files, paths):
    """Grad-CAM as its paper has it and as it is usually written, for the class that the model says:
    hooks keep maps and gradients, a backward pass makes the latter."""
    kept, out = {}, []
    hooks = (model.layer4.register_forward_hook(lambda m, i, o: kept.update(maps=o.detach())),
             model.layer4.register_full_backward_hook(lambda m, i, o: kept.update(grad=o[0])))
    for (x, _), path in zip(files, paths):
        model.zero_grad()
        logits = model(x[None])
        p = p_fake(logits.detach(), meta['temperature'])[0]
        logits[0, 0 if p >= meta['threshold'] else 1].backward()
        heat = (kept['grad'].mean((2, 3), keepdim=True) * kept['maps']).sum(1, keepdim=True).relu()
        heat = interpolate(heat, x.shape[-2:], mode='bilinear')[0, 0].numpy()
        heat = (heat - heat.min()) / max(heat.max() - heat.min(), 1e-7)
        out.append(p)
        overlay(np.asarray(files.dataset.loader(path)).transpose(2, 0, 1), heat)
    for h in hooks: h.remove()
    return out

# --- ours ---

def our_labels(detector, paths, whole=True):
    return [v.p_fake for v in detector.stream(paths, whole=whole)]

def our_heatmaps(detector, paths):
    out = []
    for v in detector.stream(paths, 'gradcam', whole=True):
        v.overlay()
        out.append(v.p_fake)
    return out

# --- the measurement ---

def spent(f):
    "`(elapsed seconds, processor seconds of this process and its children, result)`."
    used = lambda: sum(
        r.ru_utime + r.ru_stime
        for r in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))
    t, c = time.perf_counter(), used()
    out = f()
    return time.perf_counter() - t, used() - c, out

def duel(theirs, ours, rounds):
    "Both in turn: `(row, their result, our result)`."
    runs = [(spent(theirs), spent(ours)) for _ in range(rounds)]
    ratio = lambda i: statistics.median(a[i] / b[i] for a, b in runs)
    return (*(statistics.median(r[k][0] for r in runs)
              for k in (0, 1)), ratio(0), ratio(1)), runs[-1][0][2], runs[-1][1][2]

def machine():
    "What this was measured on, in words."
    cpu = pathlib.Path('/proc/cpuinfo')
    name = (next((l.split(':')[1].strip() for l in cpu.read_text().splitlines()
                  if l.startswith('model name')), '') if cpu.exists() else platform.processor())
    busy = os.getloadavg()[0] if hasattr(os, 'getloadavg') else 0
    return (
        f'{name or platform.machine()}, {os.cpu_count()} logical cores, torch {torch.__version__} '
        f'with {torch.get_num_threads()} threads'
        + (f', load {busy:.1f} at the end' if busy else ''))

def start(*command):
    "`(elapsed, processor)` seconds that a fresh process takes."
    return spent(partial(subprocess.run, command, check=True, capture_output=True))[:2]

def images(folder, n):
    "`(paths, ImageFolder, name)`: every so manieth image of a folder with class folders."
    known = pathlib.Path(os.environ.get('FAKEFACE_DATA') or 'unset')/'140k-subset'/'test'
    if not folder and known.is_dir(): folder = known
    if not folder:
        folder = (make_standin(
            repo_path('data')/'standin-256', n_train=4, n_valid=4, n_test=n + n % 2, size=256) /
                  'test')
    try: files = ImageFolder(folder)
    except OSError as e: raise FaceError(f'{folder}: {e}') from None
    pick = [int(i) for i in np.linspace(0, len(files) - 1, min(n, len(files))).round()]
    return [files.samples[i][0] for i in pick], Subset(files,
                                                       pick), pathlib.Path(folder).parent.name

def main(a):
    paths, files, name = images(a.dir, a.n)
    model, meta = plain_model(a.weights)
    files.dataset.transform = to_tensor(meta)
    if len({files[i][0].shape for i in range(0, len(files), max(1, len(files) // 9))}) > 1:
        raise FaceError('images must be squares of one size, so that both sides see the same')
    detector, k = Detector.load(a.weights, 'cpu'), max(1, len(paths) // 4)
    few = Subset(files.dataset, files.indices[::len(paths) // k][:k])
    chosen = paths[::len(paths) // k][:k]
    # warm
    plain_labels(model, meta, Subset(files.dataset, files.indices[:8]))
    our_labels(detector, paths[:8])
    lines, verdict = [], lambda p: decide(p, *detector.band)
    for what, theirs, ours in ((f'labels for {len(paths)} images from disk',
                                partial(plain_labels, model, meta,
                                        files), partial(our_labels, detector, paths)),
                               (f'labels and heatmaps for {k} images',
                                partial(plain_heatmaps, model, meta, few,
                                        chosen), partial(our_heatmaps, detector, chosen))):
        (t, o, ratio, work), p, q = duel(theirs, ours, a.rounds)
        lines.append(f'| {what} | {t:.1f} s | {o:.1f} s | {ratio:.1f} x | {work:.1f} x |')
        print(f'{what}: {sum(verdict(x) == verdict(y) for x, y in zip(p, q))} of {len(p)} verdicts '
              f'the same, p_fake differs by {np.abs(np.subtract(p, q)).max():.1e} at most')
    (w, s, ratio, work), *_ = duel(partial(our_labels, detector, chosen, False),
                                   partial(our_labels, detector, chosen), a.rounds)
    lines.append(f'| the same labels for {k} images, faces searched against whole, both ours | '
                 f'{w:.1f} s | {s:.1f} s | {ratio:.1f} x | {work:.1f} x |')
    command = pathlib.Path(sys.executable).parent/'fakeface'
    took = [
        np.median([start(*c) for _ in range(a.rounds)], 0)
        for c in ((command, 'predict', paths[0]), (sys.executable, '-c', 'import torch'),
                  (command, '--help'))
    ]
    one, bare, helps = (f'{t:.1f} s ({c:.1f} s of processor time)' for t, c in took)
    table = '\n'.join(['| what | plain | ours | faster | less work |', '| --- | --- | --- | --- | '
                                                                       '--- |', *lines])
    note = (f'`fakeface predict one.jpg` takes {one}, `import torch` alone {bare}, its `--help` '
            f'{helps}. {machine()}. Images: {name}, median of {a.rounds} rounds.')
    print(f'{table}\n\n{note}')
    if a.write: fill_marks(repo_path('docs')/'speed.md', 'speed', f'{table}\n\n{note}')

p = argparse.ArgumentParser(description=__doc__,
                            formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument('dir', metavar='DIR', nargs='?', help='a folder with fake/ and real/, square images '
                                                     'of one size')
p.add_argument('--n', type=int, default=400, metavar='N', help='images labelled, a quarter of them '
                                                               'explained; default: 400')
p.add_argument('--rounds', type=int, default=3, metavar='N', help='default: 3')
p.add_argument('--weights', metavar='FILE', help='a checkpoint (.safetensors); default: the one '
                                                 'that ships')
p.add_argument('--write', action='store_true', help='also write the table into docs/speed.md')
if __name__ == '__main__':
    try: main(p.parse_args())
    except FaceError as e: sys.exit(print(f'predict.py: {e}', file=sys.stderr) or 2)
