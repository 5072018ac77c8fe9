"""A pipeline that is killed again and again: what it leaves is whole every time, and it ends like
one that was left alone, bit for bit.

    python tests/kill_runs.py 30 SEED

A run on a tiny stand-in is killed N times (SIGKILL), its steps in turn, each at random moments, and
resumed. Every other time only the command is killed, so that the kernel is left behind; else
everything at once, as by a power cut. After each kill every file of the run is read. Exit code 1
when one is damaged, or an artefact differs in the end."""
import json, os, re, signal, subprocess, sys, tempfile, time
from collections import Counter
from pathlib import Path
from random import Random

import nbformat, pandas as pd, psutil, torch, yaml
from PIL import Image
from safetensors.torch import load_file

from fakeface.standin import make_standin

COMMAND = Path(sys.executable).parent/'fakeface'
SETS = '''train.crop=48 train.device=cpu train.precision=fp32 train.workers=0 train.jpeg_p=0.5
    train.ema=0.5 evaluate.device=cpu evaluate.workers=0 robustness.device=cpu
    robustness.workers=0'''.split()
STEP = re.compile(r'\[\d+/\d+\] (\w+)$')  # a step that begins, in what the command prints
READERS = {'.json': lambda p: json.loads(p.read_text()), '.csv': pd.read_csv,
           '.yaml': lambda p: yaml.safe_load(p.read_text()), '.png': lambda p: Image.open(p).load(),
           '.ckpt': lambda p: torch.load(p, weights_only=True), '.safetensors': load_file,
           '.ipynb': lambda p: nbformat.read(p, 4),
           '.html': lambda p: p.read_text().rstrip().index('</html>')}

def options(sets): return [a for s in sets for a in ('--set', s)]

def start(*args):
    quiet = os.environ | dict(TQDM_DISABLE='1')  # progress bars would fill the pipe
    return subprocess.Popen([COMMAND, 'run', *map(str, args)], stdout=subprocess.PIPE, text=True,
                            stderr=subprocess.PIPE, start_new_session=True, env=quiet)

def wait_for(process, there):
    while not there() and process.poll() is None: time.sleep(.005)

def kill(process, alone=False):
    if process.poll() is not None: return
    command = psutil.Process(process.pid)
    for p in [command, *([] if alone else command.children(recursive=True))]:
        p.send_signal(signal.SIGKILL)

def whole(run_dir):
    "Read every file of a run; how many there are. Exits when one is damaged or of an unknown kind."
    files = [p for p in run_dir.rglob('*') if p.is_file() and not p.name.startswith('.')]
    for p in files:
        try: READERS[p.suffix](p)
        except Exception as e: raise SystemExit(f'{p}: damaged after a kill ({e!r})')
    return len(files)

def artefacts(run_dir):
    "`{name: content}` of what must not depend on kills; notebooks and `last.ckpt` tell times."
    kinds = ('.json', '.csv', '.png', '.safetensors', '.yaml')
    out = {str(p.relative_to(run_dir)): p.read_bytes() for p in run_dir.rglob('*')
           if p.suffix in kinds and p.name != 'environment.json'}
    history = pd.read_csv(run_dir/'history.csv').drop(columns='seconds')
    return out | {'history.csv': history.to_csv().encode()}

def left_alone(*args):
    "A run to its end: its seconds by step."
    process, times = start(*args), {}
    for line in process.stdout:
        if m := STEP.search(line): times[m[1]] = time.time()
    error = process.stderr.read()
    if process.wait(): raise SystemExit(error)
    ends = [*list(times.values())[1:], time.time()]
    return {s: e - t for (s, t), e in zip(times.items(), ends)}

def killed(steps, delay, alone, *args):
    "Kill a run `delay` seconds after one of the steps began; the name of the step it was in."
    process, at = start(*args), None
    for line in process.stdout:
        if m := STEP.search(line): at = m[1]
        if at in steps: break
    else: raise SystemExit(process.stderr.read())
    time.sleep(delay)
    kill(process, alone)
    for line in process.communicate()[0].splitlines():
        if m := STEP.search(line): at = m[1]
    return at if process.returncode == -signal.SIGKILL else 'nothing: it had ended'

def main(n, seed=0):
    rng, kills = Random(seed), Counter()
    with tempfile.TemporaryDirectory() as d:
        data = make_standin(Path(d)/'faces', n_train=32, n_valid=12, n_test=12, size=64)
        first = ['--smoke', '--data', data, *options(SETS)]
        took = left_alone(*first, '--out', Path(d)/'straight')
        straight, = (Path(d)/'straight').iterdir()
        steps, out = list(took), Path(d)/'killed'
        out.mkdir()
        plan = sorted((steps[i % len(steps)] for i in range(n)), key=steps.index)
        for i, step in enumerate(plan):
            run_dir = next(out.iterdir(), None)
            args = ['--resume', run_dir] if run_dir else [*first, '--out', out]
            later = steps[steps.index(step):]
            kills[at := killed(later, rng.uniform(0, .9 * took[step]), i % 2, *args)] += 1
            files = whole(next(out.iterdir()))
            print(f'kill {i + 1} of {n}, in {at}: {files} files whole', flush=True)
        run_dir, = out.iterdir()
        left_alone('--resume', run_dir)
        a, b = artefacts(straight), artefacts(run_dir)
        differ = [k for k in sorted({*a, *b}) if a.get(k) != b.get(k)]
        left = [p.name for p in run_dir.rglob('.*')]
    print(f'{sum(kills[s] for s in steps)} kills in {sum(s in kills for s in steps)} steps; '
          f'{len(a)} artefacts compared; different: {differ}; left behind: {left}')
    return int(bool(differ or left))

if __name__ == '__main__': sys.exit(main(*map(int, sys.argv[1:3] or ['30'])))
