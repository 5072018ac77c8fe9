"""How fast is training, decoding and augmentation included, and where does the time go?

Both sides train the same ResNet18 on 128 pixels from the same image files, in batches of the
same size, in turns. 'reference' is the plain way: PIL images in an ImageFolder, resized,
mirrored, rotated, jittered, a DataLoader with two workers, Adam in fp32. The others are this
package's own `train_epoch` with the recipes of the profiles native and 140k (full degradation,
average of the weights), in the precision that train.precision=auto picks here and in fp32.
images/s is wall time, and only as good as the machine is idle; ms is processor time for an
image, of all processes, which a neighbour disturbs less. A share of peak compares floating-point
operations (torch counts them) a second with those of a large matrix product in the same
precision, in wall time and in processor time. On a GPU processor time is left out. The profile
is of single parts, each alone, in processor time (wall time on a GPU). With --history it trains
nothing and says after how many seconds each run reached an accuracy on its validation images.

example: python benchmarks/train.py data/140k --device cuda --n 4096 --batch 256
         python benchmarks/train.py --history runs/RUN-reference runs/RUN-native"""
import argparse, os, pathlib, platform, resource, statistics, sys, tempfile, time
import numpy as np, pandas as pd, torch
from PIL import Image
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from torchvision import transforms
from fakeface.core import CLASSES, FaceError
from fakeface.images import open_image
from fakeface.data import bits_apart, inspect_image, list_images, shuffled
from fakeface.model import autocast, build_model, fit_to, pick_device, pick_dtype, to_input
from fakeface.standin import make_standin
from fakeface.dataset import Faces
from fakeface.train import (augmentation, averaged, make_optimizer, make_schedule, train_epoch,
                            training_loader)
DEGRADE = dict(rescale_p=.5, blur_p=.1, noise_p=.1, jpeg_p=.5)

# -- the reference, as its authors would write it
class ImageFolder(Dataset):
    def __init__(self, root, files):
        self.items = [(root/p, CLASSES.index(c)) for p, c in zip(files.path, files.label)]
        self.transform = transforms.Compose([
            transforms.Resize((128, 128)),
            transforms.RandomHorizontalFlip(),
            transforms.RandomRotation(10),
            transforms.ColorJitter(.2, .2, .2),
            transforms.ToTensor()
        ])
    def __len__(self): return len(self.items)
    def __getitem__(self, i):
        return self.transform(Image.open(self.items[i][0]).convert('RGB')), self.items[i][1]

class Reference:
    def __init__(self, root, files, a, device):
        self.model = build_model('random')[0].to(device)
        self.batches = DataLoader(ImageFolder(root, files), a.batch, shuffle=True, num_workers=2)
        self.optimizer, self.device = torch.optim.Adam(self.model.parameters(), 1e-4), device
    def epoch(self):
        self.model.train()
        for images, targets in self.batches:
            images, targets = images.to(self.device), targets.to(self.device)
            self.optimizer.zero_grad()
            loss = cross_entropy(self.model(images), targets)
            loss.backward()
            self.optimizer.step()
            loss.item()

# -- ours
class Ours:
    def __init__(self, root, files, a, device, dtype, ema=0., **degrade):
        self.model = build_model('random')[0].to(device, memory_format=torch.channels_last)
        self.batches = training_loader(Faces(root, files, 256, augmentation(128, **degrade)),
                                       a.batch, a.workers)
        opt = make_optimizer(self.model, fused=device.type == 'cuda')
        scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        self.parts = dict(optimizer=opt, scheduler=make_schedule(opt, 'constant'), scaler=scaler)
        if ema: self.parts['average'] = averaged(self.model, ema)
        self.how = device, dtype
    def epoch(self): train_epoch(self.model, self.batches, self.parts, True, *self.how)

# -- measuring
def wait(device):
    if device.type != 'cpu': torch.accelerator.synchronize()

def processor():
    return sum(r.ru_utime + r.ru_stime
               for r in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))

def spent(f, device):
    "Wall and processor seconds of a call, those of worker processes included."
    wait(device)
    c, w = processor(), time.perf_counter()
    f()
    wait(device)
    return time.perf_counter() - w, processor() - c

def product(dtype, device):
    "(operations, function) of a matrix product large enough to reach the machine's peak."
    n = 2048 if device.type == 'cpu' else 8192
    x, y = torch.randn(2, n, n, device=device).to(dtype)
    return 2 * n**3, lambda: x @ y

def operations(model, device):
    "Floating-point operations of one training step, for one image of 128 pixels."
    with FlopCounterMode(display=False) as count:
        model(torch.zeros(2, 3, 128, 128, device=device)).sum().backward()
    return count.get_total_flops() / 2

def compare(sides, device, n, rounds):
    "A line for each side; the rounds take turns, so that a disturbance meets all of them."
    flops, times = operations(build_model('random')[0].to(device), device), {s: [] for s in sides}
    peak = {t: product(t, device) for t in {t for t, _ in sides.values()}}
    best = {t: [] for t in peak}
    for r in range(rounds + 1):  # the first warms up
        for t, (_, f) in peak.items():
            f()
            best[t].append(spent(f, device))
        for s, (_, side) in sides.items(): times[s].append(spent(side.epoch, device))
    mid, cores = statistics.median, torch.get_num_threads()
    for t, (k, _) in peak.items():
        best[t] = k / min(w for w, _ in best[t][1:]), k * cores / mid(c for _, c in best[t][1:])
        print(f'peak of a matrix product, {str(t)[6:]}: {best[t][0] / 1e9:,.0f} GFLOP/s' +
              (f' ({best[t][1] / 1e9:,.0f} in processor time of {cores} threads)' if device.type ==
               'cpu' else ''))
    print(f'{flops / 1e9:.2f} GFLOP an image and step\n')
    rows, first = [], times[next(iter(sides))][1:]
    for s, (t, _) in sides.items():
        own = times[s][1:]
        rates, ratio = [n / w for w, _ in own], [a[0] / b[0] for a, b in zip(first, own)]
        row = {
            '': s, 'images/s': f'{mid(rates):.1f} ({min(rates):.1f} to {max(rates):.1f})',
            'x reference': f'{mid(ratio):.2f} ({min(ratio):.2f} to {max(ratio):.2f})',
            'share of peak': f'{mid(rates) * flops / best[t][0]:.0%}'
        }
        if device.type == 'cpu':
            cpu = mid(c for _, c in own) / n
            row |= {
                'ms an image': f'{1e3 * cpu:.1f}',
                'x reference in ms': f'{mid(a[1] / b[1] for a, b in zip(first, own)):.2f}',
                'share of peak in ms': f'{flops / cpu * cores / best[t][1]:.0%}'
            }
        rows.append(row)
    print(pd.DataFrame(rows).to_string(index=False))

def profile(root, files, device, dtype, batch):
    "Milliseconds an image of every part of our training, each measured alone."
    ours = Ours(root, files, argparse.Namespace(batch=batch, workers=0), device, dtype, ema=.998)
    paths = [root/p for p in files.path[:batch]]
    raw = [torch.from_numpy(open_image(p)) for p in paths]
    x, y = torch.stack([fit_to(r, 256)[:, :128, :128]
                        for r in raw]).to(device), torch.arange(len(raw), device=device) % 2
    plain, full = augmentation(128), augmentation(128, **DEGRADE)
    def loss():
        with autocast(device, dtype): return cross_entropy(ours.model(to_input(x)).float(), y)
    def step():
        ours.parts['optimizer'].zero_grad(set_to_none=True)
        loss().backward()

    parts = dict(decode=lambda: [open_image(p) for p in paths],
                 crop_and_mirror=lambda: [plain(r) for r in raw],
                 the_same_and_degrade=lambda: [full(r) for r in raw],
                 bytes_to_numbers=lambda: to_input(x), forward=loss, forward_and_backward=step,
                 optimizer=ours.parts['optimizer'].step,
                 average=lambda: ours.parts['average'].update_parameters(ours.model))
    ours.model.train()
    step()
    for name, f in parts.items():
        f()
        t = statistics.median(spent(f, device)[device.type == 'cpu'] for _ in range(3))
        print(f'{name.replace("_", " "):24}{1e3 * t / len(raw):8.2f} ms an image')

def data(root, files):
    "What an image costs before training, in processor time; the inputs of docs/scale.md."
    n, cpu = len(files), torch.device('cpu')
    found = []
    listing = spent(lambda: found.append(list_images(root)), cpu)[1] / len(found[0])
    facts = []
    looked = spent(lambda: facts.extend(inspect_image(root, p) for p in files.path), cpu)[1] / n
    hashes = np.random.default_rng(0).integers(0, 2**63, (20_000, 4), np.uint64)
    compared = (spent(lambda: [bits_apart(h[None], hashes)
                               for h in hashes[:20]], cpu)[1] / 20 / len(hashes))
    rows = (len(
        pd.DataFrame(facts).drop(columns='hash').assign(
            label='fake', split='train', generator='stylegan', source='140k').to_csv(index=False)) /
            n)
    print(f'listing {1e6 * listing:.0f} us a file, reading with digest and hash {1e3 * looked:.2f} '
          f'ms, comparing two hashes {1e9 * compared:.0f} ns, '
          f'{sum(f["bytes"] for f in facts) / n / 1e3:.1f} kB a file, {rows:.0f} bytes in the '
          'manifest')

def history(runs, accuracy):
    "When did each run get there? Seconds are those its training wrote down, validation included."
    first = None
    for r in runs:
        h = pd.read_csv(pathlib.Path(r)/'history.csv')
        there = h.index[h.valid_accuracy >= accuracy]
        if not len(there):
            print(f'{r}: not in {len(h)} epochs and {h.seconds.sum():,.0f} s (best '
                  f'{h.valid_accuracy.max():.1%})')
            continue
        s = h.seconds[:there[0] + 1].sum()
        first = first or s
        print(f'{r}: {accuracy:.0%} in epoch {there[0] + 1} after {s:,.0f} s, {first / s:.2f} x as '
              'fast as the first that got there')

def machine(device):
    if device.type == 'cuda': return torch.cuda.get_device_name(device)
    names = ([
        l.split(':')[1].strip() for l in pathlib.Path('/proc/cpuinfo').read_text().splitlines()
        if l.startswith('model name')
    ] if os.path.exists('/proc/cpuinfo') else [])
    has = [
        k for k, v in getattr(torch.cpu, 'get_capabilities', dict)().items()
        if v is True and k in ('avx512_bf16', 'amx_bf16', 'amx_fp16')
    ]
    name = names[0] if names else platform.processor() or platform.machine()
    return (f'{name}, {os.cpu_count()} threads, {torch.get_num_threads()} used, '
            f'{", ".join(has) or "no bf16"}')

def main(a):
    if a.history: return history(a.history, a.accuracy)
    device = pick_device(a.device)
    dtype = pick_dtype(device)
    with tempfile.TemporaryDirectory() as d:
        root = pathlib.Path(a.dir or (pathlib.Path(os.environ['FAKEFACE_DATA']) /
                                      '140k-subset' if os.environ.get('FAKEFACE_DATA') else
                                      make_standin(d, n_train=a.n, n_valid=2, n_test=2, size=256)))
        files = list_images(root)
        files = files[files.split.isin(['train', ''])]
        files = pd.concat([
            files[files.label == c].set_index('path').loc[shuffled(
                files.path[files.label == c], 42)[:a.n // 2]] for c in CLASSES
        ]).reset_index()
        load = f', load {os.getloadavg()[0]:.1f}' if hasattr(os, 'getloadavg') else ''
        print(f'{len(files)} images of {"the stand-in" if str(root).startswith(d) else root.name}, '
              f'batches of {a.batch}, {a.rounds} rounds\n{machine(device)}{load}, torch '
              f'{torch.__version__}')
        sides = {'reference, fp32': (torch.float32, Reference(root, files, a, device))}
        for t in dict.fromkeys([dtype, torch.float32]):
            name = str(t)[6:].replace('float32', 'fp32').replace('bfloat16', 'bf16')
            sides[f'native, {name}'] = (t, Ours(root, files, a, device, t))
            if t == dtype:
                sides[f'140k, {name}'] = (t, Ours(root, files, a, device, t, ema=.998, **DEGRADE))
        compare(sides, device, len(files), a.rounds)
        print('\ndata:')
        data(root, files)
        for t in dict.fromkeys([dtype, torch.float32]):
            print(f'\nparts, {str(t)[6:]}:')
            profile(root, files, device, t, a.batch)

p = argparse.ArgumentParser(description=__doc__,
                            formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument(
    'dir', nargs='?', metavar='DIR', help='images of 256 pixels; default: 140k-subset in '
    '$FAKEFACE_DATA, else the stand-in, drawn for '
    'this')
p.add_argument('--n', type=int, default=256, metavar='N', help='training images a round; default: '
                                                               '256')
p.add_argument('--rounds', type=int, default=3, metavar='N', help='rounds that count; default: 3')
p.add_argument('--batch', type=int, default=32, metavar='N', help='images a step; default: 32')
p.add_argument('--workers', type=int, default=2, metavar='N', help='processes that decode for our '
                                                                   'side; default: 2')
p.add_argument('--device', default='auto', help='auto, cpu, cuda ...')
p.add_argument('--history', nargs='+', metavar='RUN', help='runs to compare by the time to an '
                                                           'accuracy, the reference first')
p.add_argument('--accuracy', type=float, default=.95,
               help='on the validation images; default: 0.95')
if __name__ == '__main__':
    try: main(p.parse_args())
    except FaceError as e: sys.exit(print(f'train.py: {e}', file=sys.stderr) or 2)
