"A folder of any size: results are written as they come, survive a kill, are shared between processes, and do no harm in a spreadsheet."

import csv, io, os, signal, subprocess, sys, time
from pathlib import Path

import pytest

from conftest import COMMAND
from fakeface.cli import main
from fakeface.core import Images
from fakeface.detector import COLUMNS, Detector, Verdict, Verdicts, csv_rows
from fakeface.model import load_checkpoint, save_checkpoint

@pytest.fixture(scope='module')
def many(drawn, tmp_path_factory):
    "300 small images, a damaged one among them."
    root = tmp_path_factory.mktemp('many')/'in'
    sources = sorted(drawn.rglob('*.jpg'))
    for i in range(300):
        (folder := root/f'{i % 7}').mkdir(parents=True, exist_ok=True)
        os.link(sources[i % len(sources)], folder/f'{i:03d}.jpg')
    (root/'3'/'003.jpg').unlink(); (root/'3'/'003.jpg').write_bytes(b'\xff\xd8')
    return root

def args(many, weights, out): return ['predict', str(many), '--whole', '--weights', str(weights), '--device', 'cpu', '--csv', str(out)]
def parts(out): return sorted(out.parent.glob(f'{out.name}.*.part'))
def rows(out): return list(csv.reader(out.read_text().splitlines()))

@pytest.fixture(scope='module')
def whole(many, checkpoint, tmp_path_factory):
    "The result of a command that nothing disturbed."
    out = tmp_path_factory.mktemp('whole')/'out.csv'
    assert main(args(many, checkpoint, out)) == 0 and not parts(out)
    return out

def started(command, out, n=1):
    "The command, once each of its `n` parts holds something."
    p = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 240
    while sum(q.stat().st_size > 0 for q in parts(out)) < n:
        assert p.poll() is None and time.monotonic() < deadline, p.communicate()
        time.sleep(.002)
    return p

def test_every_file_once_in_order(many, whole):
    head, *table = rows(whole)
    assert tuple(head) == COLUMNS and [r[0] for r in table] == [str(p) for p in Images(many)] == sorted(map(str, many.rglob('*.jpg')))
    assert [r[0] for r in table if r[4]] == [str(many/'3'/'003.jpg')]

def test_killed_and_called_again(many, checkpoint, whole, tmp_path, capsys):
    "Nothing stands under the result's name before it is whole; what was judged is not judged again; the bytes are those of an undisturbed command."
    out = tmp_path/'out.csv'
    p = started([COMMAND, *args(many, checkpoint, out)], out)
    p.kill(); p.wait()
    part, = parts(out)
    kept = part.read_bytes()
    assert not out.exists() and 16 <= kept.count(b'\n') < 300
    part.write_bytes(kept + b'"half a ro')  # as a kill within a write leaves it
    judged = []
    stream, Detector.stream = Detector.stream, lambda self, *a, **kw: (judged.append(v) or v for v in stream(self, *a, **kw))
    try: assert main(args(many, checkpoint, out)) == 0
    finally: Detector.stream = stream
    assert out.read_bytes() == whole.read_bytes() and not parts(out) and 0 < len(judged) <= 300 - kept.count(b'\n') // 16 * 16
    assert capsys.readouterr().err.splitlines()[-1].startswith('300 images: ')

def test_other_weights_do_not_go_on_with_a_part(many, checkpoint, whole, tmp_path, capsys):
    model, meta = load_checkpoint(checkpoint)
    model.fc.bias.data[0] += 1; save_checkpoint(tmp_path/'other.safetensors', model, meta)
    out = tmp_path/'out.csv'
    p = started([COMMAND, *args(many, tmp_path/'other.safetensors', out)], out)
    p.kill(); p.wait()
    old, = parts(out)
    assert main(args(many, checkpoint, out)) == 0 and out.read_bytes() == whole.read_bytes() and parts(out) == [old]
    assert f'out.csv: starting anew, because {old.name} was left by a call with other images, weights or options' in capsys.readouterr().err

def test_two_commands_do_not_write_the_same_part(many, checkpoint, tmp_path, capsys):
    pytest.importorskip('fcntl', reason='no file locks on this system')
    out = tmp_path/'out.csv'
    p = started([COMMAND, *args(many, checkpoint, out)], out)
    os.kill(p.pid, signal.SIGSTOP)
    assert main(args(many, checkpoint, out)) == 2 and 'in use by another process' in capsys.readouterr().err
    p.kill(); p.wait()

TORCHRUN = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2', '--no-python', str(COMMAND)]

def descendants(pid):
    parents = {int(p.name): int((p/'stat').read_text().rpartition(')')[2].split()[1]) for p in Path('/proc').glob('[0-9]*') if (p/'stat').exists()}
    return [p for p, parent in parents.items() if parent == pid]

def test_two_processes_one_of_them_killed(many, checkpoint, whole, tmp_path):
    "torchrun ends the job when a process dies; the same command finishes it, to the table of one process up to rounding."
    out = tmp_path/'out.csv'
    if not Path('/proc/self/stat').exists(): pytest.skip('finding the processes of torchrun needs /proc')
    p = started([*TORCHRUN, *args(many, checkpoint, out)], out, n=2)
    assert len(parts(out)) == 2
    os.kill(descendants(p.pid)[0], signal.SIGKILL)
    p.communicate(timeout=120)
    assert p.returncode and not out.exists() and len(parts(out)) == 2
    done = subprocess.run([*TORCHRUN, *args(many, checkpoint, out)], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0 and done.stderr.count('300 images: ') == 1 and not parts(out), done.stderr
    alone, shared = rows(whole), rows(out)
    assert [(r[0], r[1], r[3], r[4]) for r in alone] == [(r[0], r[1], r[3], r[4]) for r in shared]
    assert all(abs(float(a[2]) - float(b[2])) < 1e-4 for a, b in zip(alone[1:], shared[1:]) if a[2])

def test_several_processes_need_a_file(many, checkpoint, monkeypatch, capsys):
    monkeypatch.setenv('RANK', '0'); monkeypatch.setenv('WORLD_SIZE', '2')
    assert main(args(many, checkpoint, 'x')[:-2]) == 2 and '--csv' in capsys.readouterr().err
    monkeypatch.setenv('RANK', '2')
    assert main(args(many, checkpoint, 'x')) == 2 and 'torchrun' in capsys.readouterr().err

def test_parquet(many, checkpoint, whole, tmp_path):
    parquet = pytest.importorskip('pyarrow.parquet', reason='pyarrow is not installed')
    os.link(many/'0'/'000.jpg', os.path.join(os.fsencode(tmp_path), b'latin-\xe9.jpg'))
    assert main(args(many, checkpoint, tmp_path/'out.parquet')) == 0 and main(args(tmp_path, checkpoint, tmp_path/'odd.parquet')) == 0
    told = [['' if v is None else f'{v:.6f}' if isinstance(v, float) else str(v) for v in r.values()] for r in parquet.read_table(tmp_path/'out.parquet').to_pylist()]
    assert told == rows(whole)[1:] and parquet.read_table(tmp_path/'odd.parquet')['path'].to_pylist()[0].endswith('latin-\\udce9.jpg')

@pytest.mark.parametrize('first', '=+-@\t\r', ids=ascii)
def test_names_are_no_formulas(first, drawn, checkpoint, tmp_path, monkeypatch):
    "A spreadsheet runs none of them; they come back when the apostrophe is taken off; scores stay numbers."
    monkeypatch.chdir(tmp_path)
    name = f'{first}HYPERLINK(x).jpg'
    os.link(sorted(drawn.rglob('*.jpg'))[0], tmp_path/name)
    assert main(['predict', '.', '--whole', '--weights', str(checkpoint), '--csv', 'out.csv']) == 0
    with open('out.csv', newline='') as f: _, (path, face, p, *_) = csv.reader(f)
    assert path == "'" + name and face == '0' and 0 <= float(p) <= 1
    list(csv_rows([Verdict(name, error=f'{first}1')], f := io.StringIO(newline='')))  # as the demo makes its table
    f.seek(0); assert list(csv.reader(f))[1] == ["'" + name, '0', '', '', f"'{first}1"]

def test_names_are_no_markup():
    bad = '<script>alert(1)</script>"\'&'
    page = Verdicts([Verdict(bad, .5, 'fake', thumbnail=b'x'), Verdict('x', error=bad)]).page(bad)
    assert '<script' not in page and page.count('&lt;script&gt;') >= 4 and f'alt="{bad[:8]}' not in page

def test_what_is_slow_to_import_stays_away(many, checkpoint):
    "One image is judged without the packages that only training, reports and the demo need."
    code = 'import sys\nfrom fakeface.cli import main\nassert main(sys.argv[1:]) == 0\nprint(*(m for m in "matplotlib pandas sklearn seaborn streamlit papermill scipy.stats pyarrow".split() if m in sys.modules), sep=",")'
    done = subprocess.run([sys.executable, '-c', code, 'predict', many/'0'/'000.jpg', '--weights', checkpoint], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == '', done
