"""What does a very large tree of files cost: listing, sampling, hashing, judging?

Makes a data set of N small files (noise, JPEG, each different) in a temporary folder, measures,
and deletes it. Each line runs in a process of its own, whose peak memory is shown beside that of
the same work on a tenth of the files: what grows with the number of files shows there. Judging
runs with an untrained network on 32 x 32 pixels, because files, rows and memory are what is
measured, not the network. 'files/s' is by elapsed time, 'a processor second' by processor time,
which other programs on the machine disturb less.

example: python benchmarks/tree.py --n 140000"""
import argparse, io, json, os, pathlib, resource, subprocess, sys, tempfile, time
import numpy as np
from PIL import Image

def make(root, n, tenth):
    "`n` files in six class folders, a tenth of them linked into a second tree."
    rng = np.random.default_rng(0)
    for i in range(n):
        split = ('train', 'train', 'train', 'valid', 'test')[i % 10 // 2]
        where = f'{split}/{("fake", "real")[i % 2]}'
        for top in [root] + [tenth] * (i % 100 < 10):
            if i < 100: os.makedirs(top/where, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(f := io.BytesIO(), 'JPEG')
        (root/where/f'{i:06d}.jpg').write_bytes(f.getvalue())
        if i % 100 < 10: os.link(root/where/f'{i:06d}.jpg', tenth/where/f'{i:06d}.jpg')

def listing(root):
    from fakeface.data import list_images
    return len(list_images(root))

def sampling(root):
    from fakeface.data import sample
    return len(sample(root, dict(train=600, valid=200, test=200))[0])

def hashing(root):
    from fakeface.data import sample
    return len(sample(root, dict(train=0, valid=0, test=0))[0])

def judging(root):
    import tempfile
    from fakeface.images import Images
    from fakeface.detector import Detector, predict_into
    from fakeface.model import build_model, metadata
    detector = Detector(build_model('random')[0], metadata(size=32), 'cpu')
    with tempfile.TemporaryDirectory() as d:
        return sum(1 for _ in predict_into(detector, f'{d}/out.csv', Images(root), whole=True))

PHASES = dict(listing=listing, sampling=sampling, hashing=hashing, judging=judging)
SAYS = dict(listing='listing all', sampling='sampling 1,000 of them', hashing='decoding, hashing '
            'and comparing all '
            '(`audit`, in '
            'parallel)', judging='judging into a CSV')

def measured(phase, root):
    "What a process of its own says of one phase."
    done = subprocess.run([sys.executable, __file__, '--phase', phase, '--root', root],
                          stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])

def main(a):
    if a.phase:
        import fakeface.data  # importing is no part of it
        if a.phase == 'judging': import fakeface.detector  # noqa: F401
        t, c = time.perf_counter(), time.process_time()
        n = PHASES[a.phase](pathlib.Path(a.root))
        return print(
            json.dumps(
                dict(n=n, s=time.perf_counter() - t, cpu=time.process_time() - c,
                     mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)))
    with tempfile.TemporaryDirectory(dir=a.dir) as d:
        root, tenth = pathlib.Path(d)/'tree', pathlib.Path(d)/'tenth'
        t = time.perf_counter()
        make(root, a.n, tenth)
        print(f'{a.n} files made in '
              f'{time.perf_counter() - t:.0f} s', file=sys.stderr)
        rows = ['| what | files | seconds | files/s | a processor second | peak memory | with a '
                'tenth of the files |', '| --- | --- | --- | --- | --- | --- | --- |']
        for p in a.only or PHASES:
            few, all_ = (measured(p, r) for r in (tenth, root))
            rows.append(f'| {SAYS[p]} | {all_["n"]:,} | {all_["s"]:.1f} | '
                        f'{all_["n"] / all_["s"]:,.0f} | {all_["n"] / all_["cpu"]:,.0f} | '
                        f'{all_["mb"]:.0f} MB | {few["mb"]:.0f} MB |')
            print(rows[-1], file=sys.stderr)
    from predict import machine
    print('\n'.join(rows) + f'\n\n{machine()}. A tree of {a.n:,} files.')

p = argparse.ArgumentParser(description=__doc__,
                            formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument('--n', type=int, default=140_000, metavar='N', help='files of the tree; default: '
                                                                   '140000')
p.add_argument('--only', nargs='*', choices=PHASES, help='only these lines')
p.add_argument('--dir', help='where the tree is made; default: the folder for temporary files')
for hidden in ('--phase', '--root'): p.add_argument(hidden, help=argparse.SUPPRESS)
if __name__ == '__main__': main(p.parse_args())
