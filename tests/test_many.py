"A folder of any size: results are written as they come, survive a kill, are shared between processes, and do no harm in a spreadsheet."

import csv, io, os, signal, subprocess, sys, time
from pathlib import Path

import pytest

from conftest import COMMAND
from fakeface.cli import main
from fakeface.images import Images
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

def args(many, weights, out):
    return ['predict', str(many), '--whole', '--weights', str(weights), '--device', 'cpu', '--csv', str(out)]

def rows(out): return list(csv.reader(out.open(newline='')))

@pytest.fixture(scope='module')
def whole(many, checkpoint, tmp_path_factory):
    "The result of a command that nothing disturbed."
    out = tmp_path_factory.mktemp('whole')/'out.csv'
    assert main(args(many, checkpoint, out)) == 0
    return out

def same(a, b):
    "Rows that differ by rounding at most: which images share a batch may change the last digit."
    apart = [abs(float(x[2]) - float(y[2])) for x, y in zip(a[1:], b[1:]) if x[2]]
    return [r[:2] + r[3:] for r in a] == [r[:2] + r[3:] for r in b] and max(apart) < 1e-4

def started(command, *tables):
    "The command, once each of its tables holds something."
    p = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 240
    while not all(t.exists() and t.stat().st_size > 99 for t in tables):
        assert p.poll() is None and time.monotonic() < deadline, p.communicate()
        time.sleep(.002)
    return p

def test_every_file_once_in_order(many, whole):
    head, *table = rows(whole)
    assert tuple(head) == COLUMNS
    assert [r[0] for r in table] == [str(p) for p in Images(many)] == sorted(map(str, many.rglob('*.jpg')))
    assert [r[0] for r in table if r[5]] == [str(many/'3'/'003.jpg')]

def test_killed_and_called_again(many, checkpoint, whole, tmp_path, monkeypatch, capsys):
    "What was judged is not judged again, and each image stands in the table once."
    out = tmp_path/'out.csv'
    p = started([COMMAND, *args(many, checkpoint, out)], out)
    p.kill()
    p.wait()
    kept = out.read_bytes()[:-9]  # as a kill within a write leaves it
    out.write_bytes(kept)
    judged, stream = [], Detector.stream
    monkeypatch.setattr(Detector, 'stream', lambda self, *a, **kw: (judged.append(v) or v for v in stream(self, *a, **kw)))
    assert main(args(many, checkpoint, out)) == 0
    assert same(rows(whole), rows(out)) and len(judged) == 300 - (kept.count(b'\n') - 2) < 300
    assert f'{300 - len(judged)} images stood in' in capsys.readouterr().err

def test_another_table_is_left_alone(many, checkpoint, tmp_path, capsys):
    out = tmp_path/'mine.csv'
    out.write_text('name,age\nAda,36\n')
    assert main(args(many, checkpoint, out)) == 2
    assert 'something else than verdicts' in capsys.readouterr().err and out.read_text() == 'name,age\nAda,36\n'

def test_two_commands_do_not_write_the_same_table(many, checkpoint, tmp_path, capsys):
    pytest.importorskip('fcntl', reason='no file locks on this system')
    out = tmp_path/'out.csv'
    p = started([COMMAND, *args(many, checkpoint, out)], out)
    os.kill(p.pid, signal.SIGSTOP)
    assert main(args(many, checkpoint, out)) == 2 and 'in use by another process' in capsys.readouterr().err
    p.kill()
    p.wait()

def test_two_processes(many, checkpoint, whole, tmp_path):
    "Each writes a table of its own; together they hold every image once."
    torchrun = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2', '--no-python', str(COMMAND)]
    done = subprocess.run([*torchrun, *args(many, checkpoint, tmp_path/'out.csv')], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    one, two = (rows(tmp_path/f'out-{k}of2.csv') for k in (1, 2))
    assert one[0] == two[0] and same(rows(whole), one[:1] + sorted(one[1:] + two[1:]))

def test_several_processes_need_a_file(many, checkpoint, monkeypatch, capsys):
    monkeypatch.setenv('RANK', '0')
    monkeypatch.setenv('WORLD_SIZE', '2')
    assert main(args(many, checkpoint, 'x')[:-2]) == 2 and '--csv' in capsys.readouterr().err

def test_parquet(many, checkpoint, whole, tmp_path):
    parquet = pytest.importorskip('pyarrow.parquet', reason='pyarrow is not installed')
    (tmp_path/'odd').mkdir()
    os.link(many/'0'/'000.jpg', os.path.join(os.fsencode(tmp_path/'odd'), b'latin-\xe9.jpg'))
    assert main(args(many, checkpoint, tmp_path/'out.parquet')) == 0
    assert main(args(tmp_path/'odd', checkpoint, tmp_path/'odd.parquet')) == 0
    found = parquet.read_table(tmp_path/'out.parquet').to_pylist()
    text = lambda v: '' if v is None else f'{v:.6f}' if isinstance(v, float) else str(v)
    assert same(rows(whole), [list(COLUMNS), *([text(v) for v in r.values()] for r in found)])
    assert parquet.read_table(tmp_path/'odd.parquet')['path'].to_pylist()[0].endswith('latin-\\udce9.jpg')
    assert not list(tmp_path.glob('*.csv'))

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
    f.seek(0); assert list(csv.reader(f))[1] == ["'" + name, '0', '', '', '', f"'{first}1"]

def test_names_are_no_markup():
    bad = '<script>alert(1)</script>"\'&'
    page = Verdicts([Verdict(bad, .5, 'fake', thumbnail=b'x'), Verdict('x', error=bad)]).page(bad)
    assert '<script' not in page and page.count('&lt;script&gt;') >= 4 and f'alt="{bad[:8]}' not in page

def test_what_is_slow_to_import_stays_away(many, checkpoint):
    "One image is judged without the packages that only training, reports and the demo need."
    code = 'import sys\nfrom fakeface.cli import main\nassert main(sys.argv[1:]) == 0\nprint(*(m for m in "matplotlib pandas sklearn seaborn streamlit papermill scipy.stats pyarrow".split() if m in sys.modules), sep=",")'
    done = subprocess.run([sys.executable, '-c', code, 'predict', many/'0'/'000.jpg', '--weights', checkpoint], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == '', done

@pytest.mark.parametrize('text', ['my only notes', 'x' * 200_000, 'x' * 200_000 + '\n', 'path,faces'],
                         ids=['notes', 'long', 'long line', 'like a header'])
def test_what_is_no_table_is_left_as_it_is(drawn, checkpoint, tmp_path, capsys, text):
    (out := tmp_path/'notes.csv').write_text(text)
    assert main(args(sorted(drawn.rglob('*.jpg'))[0], checkpoint, out)) == 2
    assert 'something else than verdicts' in capsys.readouterr().err and out.read_text() == text

@pytest.mark.parametrize('text', ['', 'path,fa', '\ufeffpath,face,p_fake', ','.join(COLUMNS) + '\r'])
def test_a_header_that_was_cut_off_is_written_anew(drawn, checkpoint, tmp_path, text):
    (out := tmp_path/'t.csv').write_bytes(text.encode())
    photo = sorted(drawn.rglob('*.jpg'))[0]
    assert main(args(photo, checkpoint, out)) == 0
    assert [r[0] for r in rows(out)] == ['path', str(photo)]

@pytest.mark.parametrize('mark', [b'', b'\xef\xbb\xbf'], ids=['', 'Excel'])
def test_a_table_with_odd_names_is_continued(drawn, checkpoint, tmp_path, capsys, mark):
    "A name may hold line ends and control characters; Excel puts its mark before the header."
    (odd := tmp_path/'in').mkdir()
    for name in ('a.jpg', 'b\rc.jpg', 'd\ne.jpg', 'f\x1b[2J.jpg', 'g.jpg'):
        os.link(sorted(drawn.rglob('*.jpg'))[0], odd/name)
    out = tmp_path/'t.csv'
    assert main(args(odd, checkpoint, out)) == 0
    before, data = rows(out), out.read_bytes()
    assert [Path(r[0]).name for r in before[1:]] == ['a.jpg', 'b\rc.jpg', 'd\ne.jpg',
                                                     r'f\x1b[2J.jpg', 'g.jpg']
    out.write_bytes(mark + data)
    capsys.readouterr()
    assert main(args(odd, checkpoint, out)) == 0
    assert '4 images stood in' in capsys.readouterr().err
    with open(out, encoding='utf-8-sig', newline='') as f: assert same(list(csv.reader(f)), before)

def test_names_in_parquet_are_text(drawn, checkpoint, tmp_path, monkeypatch, capsys):
    parquet = pytest.importorskip('pyarrow.parquet', reason='pyarrow is not installed')
    monkeypatch.chdir(tmp_path)
    for name in ('001', '1e5', 'NA'): os.link(sorted(drawn.rglob('*.jpg'))[0], name)
    command = ['predict', '001', '1e5', 'NA', '--whole', '--weights', str(checkpoint),
               '--csv', 'out.parquet']
    assert main(command) == 0
    found, data = parquet.read_table('out.parquet').to_pylist(), Path('out.parquet').read_bytes()
    assert [r['path'] for r in found] == ['001', '1e5', 'NA']
    assert all(r['face'] == 0 and 0 <= r['p_fake'] <= 1 and r['error'] == '' for r in found)
    capsys.readouterr()
    assert main(command) == 2 and Path('out.parquet').read_bytes() == data
    assert 'out.parquet: is there already' in capsys.readouterr().err

def test_names_do_no_harm_in_a_page():
    odd = Verdict('\x1b[2J\u202egpj\udce9.jpg', .5, 'fake', note='\u2066', thumbnail=b'x')
    page = Verdicts([odd]).page('\x07')
    assert page.encode() and r'\x1b[2J\u202egpj\udce9.jpg' in page
    assert not set('\x1b\u202e\u2066\x07') & set(page)

@pytest.mark.parametrize('other', ['a.jpg', 'link.jpg'])
def test_one_file_by_two_paths_is_judged_once(drawn, tmp_path, monkeypatch, other):
    monkeypatch.chdir(tmp_path)
    os.link(sorted(drawn.rglob('*.jpg'))[0], 'a.jpg')
    os.symlink('a.jpg', 'link.jpg')
    assert list(Images([tmp_path/'a.jpg', other])) == [tmp_path/'a.jpg']
