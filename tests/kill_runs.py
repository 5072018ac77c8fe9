"""A pipeline that is killed again and again: what it leaves is whole every time, and it ends like one that was left alone, bit for bit.

    python tests/kill_runs.py 30 SEED

A run on a tiny stand-in is killed N times (SIGKILL), its steps in turn, each at random moments, and resumed. Every other time only the command is killed, so that the kernel is left behind and
the next attempt starts beside it; else everything at once, as a power cut does. After each kill every file of the run is read. Exit code 1 when one is damaged, or an artefact differs in the end.
"""
import json, os, re, signal, subprocess, sys, tempfile, time
from collections import Counter
from pathlib import Path
from random import Random

import nbformat, pandas as pd, psutil, torch, yaml
from PIL import Image
from safetensors.torch import load_file

from fakeface.standin import make_standin

COMMAND = Path(sys.executable).parent/'fakeface'
SETS = 'train.crop=48 train.device=cpu train.precision=fp32 train.workers=0 train.jpeg_p=0.5 train.ema=0.5 evaluate.device=cpu evaluate.workers=0 robustness.device=cpu robustness.workers=0'.split()
STEP = re.compile(r'\[\d+/\d+\] (\w+)$')  # a step that begins, in what the command prints

def page(path):
    if not path.read_text().rstrip().endswith('</html>'): raise ValueError('its end is missing')

READERS = {'.json': lambda p: json.loads(p.read_text()), '.yaml': lambda p: yaml.safe_load(p.read_text()), '.csv': pd.read_csv, '.png': lambda p: Image.open(p).load(), '.safetensors': load_file,
           '.ckpt': lambda p: torch.load(p, weights_only=True), '.ipynb': lambda p: nbformat.read(p, 4), '.html': page}

def start(*args):
    quiet = os.environ | dict(TQDM_DISABLE='1')  # progress bars would fill the pipe, which is read in the end
    return subprocess.Popen([COMMAND, 'run', *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, env=quiet)

def whole(run_dir):
    "Read every file of a run; returns how many. Raises when one is damaged or of an unknown kind."
    files = [p for p in run_dir.rglob('*') if p.is_file() and not p.name.startswith('.')]
    for p in files:
        try: READERS[p.suffix](p)
        except Exception as e: raise SystemExit(f'{p}: damaged after a kill ({type(e).__name__}: {e})')
    return len(files)

def artefacts(run_dir):
    "`{name: content}` of what must not depend on kills: all data and figures. Notebooks, pages and `last.ckpt` tell times."
    out = {str(p.relative_to(run_dir)): p.read_bytes() for p in run_dir.rglob('*') if p.suffix in ('.json', '.csv', '.png', '.safetensors', '.yaml') and p.name != 'environment.json'}
    out['history.csv'] = pd.read_csv(run_dir/'history.csv').drop(columns='seconds').to_csv().encode()
    return out

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
    "Start or resume a run and kill it `delay` seconds after one of the steps began; the name of the step that it was in."
    process, at = start(*args), None
    for line in process.stdout:
        if m := STEP.search(line): at = m[1]
        if at in steps: break
    else: raise SystemExit(process.stderr.read())
    time.sleep(delay)
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)] if process.poll() is None else []
    for p in family[:1] if alone else family: p.send_signal(signal.SIGKILL)
    for line in process.communicate()[0].splitlines():
        if m := STEP.search(line): at = m[1]
    return at if process.returncode == -signal.SIGKILL else 'nothing: it had ended'

def main(n, seed=0):
    rng, kills = Random(seed), Counter()
    with tempfile.TemporaryDirectory() as d:
        data = make_standin(Path(d)/'faces', n_train=32, n_valid=12, n_test=12, size=64)
        options = ['--quick', '--data', data, *(a for s in SETS for a in ('--set', s))]
        took = left_alone(*options, '--out', Path(d)/'straight')
        straight, = (Path(d)/'straight').iterdir()
        steps = list(took)
        plan = sorted([steps[i % len(steps)] for i in range(n)], key=steps.index)
        out = Path(d)/'killed'; out.mkdir()
        for i, step in enumerate(plan):
            run_dir = next(out.iterdir(), None)
            args = ['--resume', run_dir] if run_dir else [*options, '--out', out]
            at = killed(steps[steps.index(step):], rng.uniform(0, .9 * took[step]), i % 2, *args)
            kills[at] += 1
            print(f'kill {i + 1} of {n}, in {at}: {whole(next(out.iterdir()))} files whole', flush=True)
        run_dir, = out.iterdir()
        left_alone('--resume', run_dir)
        a, b = artefacts(straight), artefacts(run_dir)
        differ = [k for k in sorted({*a, *b}) if a.get(k) != b.get(k)]
        left = [p.name for p in run_dir.rglob('.*')]
    print(f'{sum(v for k, v in kills.items() if k in steps)} kills in {len([k for k in kills if k in steps])} steps; {len(a)} artefacts compared, ' + (f'DIFFERENT: {", ".join(differ)}' if differ else 'all the same, bit for bit') + (f'; LEFT BEHIND: {", ".join(left)}' if left else ''))
    return int(bool(differ or left))

if __name__ == '__main__': sys.exit(main(*map(int, sys.argv[1:3] or ['30'])))
