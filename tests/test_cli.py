"The command: mistakes end in one line and code 2 and leave nothing behind; results are rows."

import csv, json, os, pickle, shutil, socket, subprocess, sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import COMMAND
from fakeface.cli import main, parser
from fakeface.core import FaceError
from fakeface.images import open_image
from fakeface.detector import COLUMNS, PHRASES, Detector, tally
from fakeface.model import load_checkpoint, save_checkpoint
from fakeface.folders import evaluate_folder

COMMANDS = ('predict', 'evaluate', 'robustness', 'compare', 'run', 'audit', 'fetch', 'app')
PROFILES = dict(section='trian:\n  epochs: 3\n', setting='train:\n  epoch: 3\n', type='train:\n  epochs: many\n',
                number='train: 3\n', sequence='train: [1]\n', list='- a\n', text='hello', syntax='train: [1\n', binary='\x00\x01', key='3: {}\n', alien='train:\n  epochs: !!python/object/apply:os.getcwd []\n')

@pytest.fixture(scope='module')
def world(drawn, checkpoint, tmp_path_factory):
    "Everything a person may get wrong, in one folder."
    d = tmp_path_factory.mktemp('world')
    shutil.copytree(drawn, d/'faces'); shutil.copytree(drawn/'train'/'real', d/'one'/'real'); shutil.copytree(drawn/'train', d/'unsplit')
    shutil.copyfile(drawn/'test'/'real'/'00000.jpg', d/'photo.jpg')
    (d/'broken.jpg').write_bytes((d/'photo.jpg').read_bytes()[:700]); (d/'page.jpg').write_text('<html>')
    Image.open(d/'photo.jpg').save(d/'whole.tif', compression='tiff_lzw'); (d/'broken.tif').write_bytes((d/'whole.tif').read_bytes()[:-5000])
    for name in ('empty', 'notes', 'bad', 'folder.yaml', 'no-config', 'odd-run', 'text-run'): (d/name).mkdir()
    (d/'notes'/'readme.txt').write_text('x'); shutil.copyfile(d/'broken.jpg', d/'bad'/'1.jpg'); (d/'bad'/'2.jpg').touch()
    for name in ('pickle.pth', 'pickle.safetensors'): (d/name).write_bytes(pickle.dumps(os.getcwd))
    shutil.copyfile(checkpoint, d/'good.safetensors'); (d/'cut.safetensors').write_bytes(checkpoint.read_bytes()[:9999])
    model, meta = load_checkpoint(checkpoint); save_checkpoint(d/'doubt.safetensors', model, meta | dict(band=[1e-9, 1 - 1e-9]))
    for name, text in PROFILES.items(): (d/f'{name}.yaml').write_text(text)
    (d/'odd-run'/'config.yaml').write_text('settings: [1\n'); (d/'text-run'/'config.yaml').write_text('hello\n')
    return d

WITH, RUN = ['--weights', '{d}/good.safetensors', '--device', 'cpu'], ['run', '--data', '{d}/faces']
FACES = ['--data', '{d}/faces', '--split', 'test']
REAL = [  # made with the real command
    ['predict', '{d}/none.jpg'], ['predict', '{d}/broken.tif', *WITH], ['audit', '{d}/one'],
    ['run', '--profile', 'demmo'], ['run', '--resume', '{d}/empty'], ['fetch'],
]
MORE = [  # made in this process, to save time
    ['predict', '{d}/photo.jpg', '{d}/none.jpg', *WITH], ['predict', '{d}/empty'], *(['predict', f'{{d}}/{n}', *WITH] for n in ('broken.jpg', 'page.jpg')),
    ['predict', '{d}/notes'], ['predict', '{d}/a\nb.jpg'], ['predict', '{d}/' + 'x' * 300],
    *(['predict', '{d}/photo.jpg', '--weights', f'{{d}}/{n}'] for n in
      ('none.safetensors', 'pickle.pth', 'pickle.safetensors', 'cut.safetensors', 'empty', 'photo.jpg')),
    *(['predict', '{d}/photo.jpg', *WITH, '--device', n] for n in ('gpu', 'meta')),
    *(['predict', '{d}/photo.jpg', *WITH, '--csv', f'{{d}}/{n}'] for n in ('empty', 'photo.jpg/x.csv', 'x.csv.gz', 'x.zip')),
    ['predict', '{d}/photo.jpg', *WITH, '--heatmaps', '{d}/photo.jpg'],
    *(['evaluate', '--data', f'{{d}}/{n}', *WITH] for n in ('none', 'empty', 'notes', 'photo.jpg')), ['compare', '{d}/empty', '{d}/none'],
    ['evaluate', '--data', '{d}/unsplit', *WITH, '--split', 'test'], ['evaluate', '--data', '{d}/one', *WITH, '--out', '{d}/photo.jpg'],
    ['evaluate', '--data', '{d}/one', *WITH, '--corrupt', 'jpg:50'],
    *(['evaluate', '--full', '--data', '{d}/faces', *WITH, *more] for more in ([], ['--out', '{d}/empty'], ['--out', 'new', '--corrupt', 'jpeg:50'], ['--out', 'new', '--split', 'test'], ['--out', 'new', '--set', 'robustness.image=3'])),
    ['evaluate', '--data', '{d}/one', *WITH, '--set', 'robustness.images=3'], ['evaluate', '--full', '--data', '{d}/one', *WITH, '--out', 'new'], ['evaluate', '--full', '--data', '{d}/faces', '--weights', '{d}/none.safetensors', '--out', 'new'],
    *(['robustness', *FACES, '--out', 'out', *more] for more in (['{d}/none.safetensors'], ['a={d}/good.safetensors', 'a={d}/doubt.safetensors'], ['--corruptions', 'jpeg:75 gamma:0'], ['--device', 'gpu'], ['--images', '-1'])),
    ['robustness', *FACES, '--out', '{d}/photo.jpg'], ['robustness', '--data', '{d}/one', '--out', 'out'], ['robustness', '--data', '{d}/none', '--out', 'out'], ['robustness', '--data', '{d}/unsplit', '--split', 'test', '--out', 'out'],
    *(['audit', f'{{d}}/{n}'] for n in ('none', 'empty', 'photo.jpg')), ['audit', '{d}/' + 'x' * 300],
    ['audit', '{d}/faces', '{d}/none'], ['audit', '{d}/faces', '{d}/faces'],
    *(['audit', '{d}/faces', '--classes', *c] for c in (['0', '1'], ['a', 'A'], ['', 'b'])),
    ['evaluate', '--data', '{d}/faces', *WITH, '--classes', 'a', 'b'],
    ['robustness', *FACES, '--out', 'out', '--classes', 'a', 'b'],
    [*RUN, '--classes', 'a', 'b'], ['run', '--classes', 'real', 'fake'],
    *([*RUN, '--set', f'data.classes={v}'] for v in ('[real]', '[a, a]', 'real')),
    ['run', '--resume', '{d}/empty', '--classes', 'a', 'b'],
    *(['run', '--profile', p] for p in ('140k', '{d}/none.yaml', '{d}/folder.yaml', *(f'{{d}}/{n}.yaml' for n in PROFILES))),
    *(['run', '--data', f'{{d}}/{n}'] for n in ('none', 'empty', 'one', 'photo.jpg')), [*RUN, '--out', '{d}/photo.jpg'],
    *([*RUN, '--set', s] for s in ('train.epoch=3', 'trian.epochs=3', 'train.epochs=many', 'train.epochs=1.5', 'train.epochs=', 'train.epochs',
                                   'epochs=3', 'train.epochs=[1', 'model.weights=none.pth', 'data.run_dir=x')),
    *([*RUN, '--set', s] for s in ('train.epochs=0', 'train.batch_size=0', 'train.optimizer=sgd', 'train.schedule=step', 'train.precision=fp8',
                                   'train.device=gpu', 'train.lr=-1', 'train.crop=-1',
                                   'train.corruptions=jpg:50', 'train.corruptions=[jpeg:75, scale:9]', 'train.corruptions=jpeg', 'train.corruptions=jpeg:75+', 'train.corruptions=50', 'train.ema=1',
                                   'train.fpr=0.6', 'train.band_error=-0.1', 'train.start_shares=[0, 2]', 'train.start_shares=half', 'train.ramp=-1', 'train.jpeg_p=1.5', 'robustness.corruptions=blurr:1', 'robustness.corruptions=[jpeg:75, crop:0.5]', 'robustness.beside=none.safetensors', 'robustness.beside=x={d}/pickle.safetensors', 'robustness.beside=this model={d}/good.safetensors', 'robustness.device=gpu',
                                   'robustness.bootstrap=0', 'generators.sets=nowhere', 'generators.device=gpu', 'robustness.images=-1', 'model.size=8', 'data.n_train=-2', 'evaluate.bootstrap=0', 'evaluate.batch_size=0', 'gradcam.each=0', 'gradcam.worst=0', 'train.smoke=1')),
    *(['run', '--resume', f'{{d}}/{n}'] for n in ('none', 'photo.jpg', 'odd-run', 'text-run')), ['run', '--resume', '{d}/empty', '--data', '{d}/faces'], ['run', '--resume', '{d}/empty', '--smoke'],
]

def name(args): return ' '.join(ascii(a)[1:-1].replace('{d}/', '')[:24] for a in args)
def listing(folder): return {(p, p.stat().st_mtime_ns) for p in folder.rglob('*')}

def check(code, out, err):
    assert code == 2 and err.count('\n') == 1 and err.startswith('fakeface: ') and len(err) > 20, err
    assert not out

@pytest.fixture(scope='module')
def outcomes(cli, world, tmp_path_factory):
    "The mistakes of `REAL`, each made in a folder of its own, two at a time."
    offline = os.environ | {f'{p}_proxy': 'http://127.0.0.1:9' for p in ('http', 'https')} | dict(HOME=str(tmp_path_factory.mktemp('home')))
    def make(args):
        here = tmp_path_factory.mktemp('here')
        return name(args), (*cli(*(a.replace('{d}', str(world)) for a in args), cwd=here, env=offline), listing(here))
    before = listing(world)
    with ThreadPoolExecutor(2) as pool: made = dict(pool.map(make, REAL))
    return made | dict(spoilt=listing(world) ^ before)

@pytest.mark.parametrize('mistake', [name(a) for a in REAL])
def test_a_mistake_is_one_line_and_code_2(outcomes, mistake):
    *said, left = outcomes[mistake]
    check(*said)
    assert not left and not outcomes['spoilt']

@pytest.mark.parametrize('args', MORE, ids=name)
def test_more_mistakes(args, world, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    before = listing(world)
    code = main([a.replace('{d}', str(world)) for a in args])
    check(code, *capsys.readouterr())
    assert not listing(tmp_path) and listing(world) == before

@pytest.mark.parametrize('args', [['frobnicate'], [], ['predict'], ['try'], ['run', '--resume'], ['run', '--frob'], ['app', '--port', 'abc'],
                                  ['evaluate', '--data', 'x', '--split', 'all'], ['evaluate', 'x'], ['compare', 'x']], ids=name)
def test_wrong_usage_is_code_2(args, capsys):
    with pytest.raises(SystemExit) as e: parser().parse_args(args)
    assert e.value.code == 2 and 'usage: fakeface' in capsys.readouterr().err

def test_help_teaches_and_is_quick_because_torch_stays_away(cli, capsys):
    code, out, err = cli('--help')
    assert code == 0 and not err and 'fakeface predict photo.jpg' in out and all(c in out for c in COMMANDS)
    for c in COMMANDS:
        with pytest.raises(SystemExit) as e: parser().parse_args([c, '--help'])
        assert e.value.code == 0 and f'usage: fakeface {c}' in capsys.readouterr().out
    code = "import sys\nfrom fakeface.cli import main\ntry: main(sys.argv[1:])\nexcept SystemExit: pass\nprint('torch' in sys.modules)"
    for args in (['predict', '--help'], ['predict', 'none.jpg']):
        assert subprocess.run([sys.executable, '-c', code, *args], capture_output=True, text=True).stdout.splitlines()[-1] == 'False'

def test_version(cli):
    from importlib.metadata import version
    assert cli('--version') == (0, f'fakeface {version("fakeface")}\n', '')

def test_one_image(cli, world):
    code, out, err = cli('predict', world/'photo.jpg', '--weights', world/'good.safetensors', '--device', 'cpu')
    v, = Detector.load(world/'good.safetensors', 'cpu').predict(world/'photo.jpg')
    assert code == 0 and out == f'{v.verdict}       {v.p_fake:.3f}  {world/"photo.jpg"}\n' and len(v.verdict) == 4 and err.count('\n') == 1

@pytest.mark.parametrize('args, why', [(['predict', ''], 'an empty path; name a file or a folder'), (['predict', 'photo.jpg', '--csv', 'out.xlsx'], 'out.xlsx: write .csv, which spreadsheets open, or .parquet'),
    (['predict', 'photo.jpg', '--method', 'layercam'], '--method is of the heatmaps; name a folder for them with --heatmaps'), (['predict', 'photo.jpg', '--heatmaps', 'broken.jpg'], 'broken.jpg: is a file; name a folder'), (['app', '--port', '99999'], '--port 99999: a port is a number from 1 to 65535')])
def test_slips_are_told_before_anything_happens(cli, world, args, why):
    code, out, err = cli(*args, cwd=world)
    assert (code, out, err) == (2, '', f'fakeface: {why}\n') and not (world/'out.xlsx').exists()

def test_a_port_that_is_taken(cli):
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0)); s.listen(); port = s.getsockname()[1]
        code, out, err = cli('app', '--port', str(port), '--host', '127.0.0.1')
    assert code == 2 and err == f'fakeface: 127.0.0.1, port {port}: address already in use; try --port {port + 1}\n'

@pytest.mark.parametrize('host, why', [('a.invalid', '; name another --host'), ('x' * 70, '')])
def test_a_host_that_is_none(host, why, capsys):
    assert main(['app', '--host', host]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f'fakeface: {host}, port 8501: ') and why in err and '--port' not in err

def test_the_app_listens_where_it_is_told(monkeypatch):
    if not socket.has_ipv6: pytest.skip('no IPv6 here')
    monkeypatch.setattr(subprocess, 'call', lambda command: command)
    with socket.socket(socket.AF_INET6) as s:
        try: s.bind(('::1', 0))
        except OSError as e: pytest.skip(f'no IPv6 here: {e}')
        port = s.getsockname()[1]
    assert main(['app', '--host', '::1', '--port', str(port)])[-1] == '::1'

@pytest.mark.parametrize('stream', ['>&-', '2>&-'])
def test_an_output_that_is_closed(world, tmp_path, stream):
    "No traceback; and what libraries write does not land in the table that is opened instead."
    command = f'"{COMMAND}" predict "{world}/photo.jpg" --weights "{world}/good.safetensors"'
    done = subprocess.run(f'{command} --csv t.csv {stream}', shell=True, cwd=tmp_path, text=True,
                          capture_output=True)
    assert done.returncode == 0 and 'Traceback' not in done.stderr + done.stdout
    assert len(list(csv.reader((tmp_path/'t.csv').open(newline='')))) == 2

@pytest.mark.parametrize('given', [dict(RANK='x'), dict(WORLD_SIZE='0'), dict(RANK='1'),
                                   dict(RANK='-1', WORLD_SIZE='2')], ids=str)
def test_a_share_that_is_none(given, world, monkeypatch, capsys):
    for k, v in given.items(): monkeypatch.setenv(k, v)
    assert main(['predict', str(world/'photo.jpg'), '--csv', 'x.csv']) == 2
    assert 'no process of torchrun; unset both' in capsys.readouterr().err

@pytest.mark.parametrize('wrong', [None, 3, np.zeros((200, 200, 3), np.uint8), torch.zeros(3, 9, 9),
                                   np.zeros((200, 200), np.uint8), np.zeros((3, 200, 200)),
                                   np.zeros((2, 3, 9, 9), np.uint8), torch.tensor(1)],
                         ids=lambda v: f'{type(v).__name__} {getattr(v, "shape", "")}')
def test_what_is_no_image_is_told(wrong, checkpoint):
    for given in ([wrong], wrong):
        with pytest.raises(FaceError, match='is no image.*give a path, bytes'):
            Detector.load(checkpoint, 'cpu').predict(given)

def test_a_tensor_is_judged_as_its_file(world, checkpoint):
    detector, photo = Detector.load(checkpoint, 'cpu'), world/'photo.jpg'
    pixels = torch.from_numpy(open_image(photo))
    assert detector.predict(pixels)[0].p_fake == detector.predict(photo)[0].p_fake

def test_faces_are_counted_where_they_are_not_one_an_image():
    names = {k: k or 'not judged' for k in PHRASES}
    assert tally(1, Counter(fake=1), names) == '1 image: 1 fake' and tally(3, Counter({'fake': 2, 'real': 3, '': 1}), names) == '3 images with 5 faces: 2 fake, 3 real, 1 not judged'

def test_doubt_is_said_and_counted(world, tmp_path, capsys):
    with_doubt = ['--weights', str(world/'doubt.safetensors'), '--device', 'cpu']
    code, (out, err) = main(['predict', str(world/'photo.jpg'), str(world/'whole.tif'), *with_doubt, '--heatmaps', str(tmp_path/'heat')]), capsys.readouterr()
    lines = [line.split() for line in out.splitlines()]
    assert code == 0 and [w[0] for w in lines] == ['uncertain'] * 2 and all(0 < float(w[1]) < 1 for w in lines) and len(list((tmp_path/'heat').iterdir())) == 2
    assert err == '2 images: 2 uncertain\nuncertain: p_fake from 0.000 to 1.000, where the model errs too often to say; real below, fake above\n'
    assert main(['predict', str(world/'photo.jpg'), str(world/'broken.jpg'), *with_doubt, '--csv', str(tmp_path/'out.csv')]) == 0
    assert '2 images: 1 uncertain, 1 not judged' in capsys.readouterr().err.splitlines()
    with open(tmp_path/'out.csv', newline='') as f: assert [r['verdict'] for r in csv.DictReader(f)] == ['uncertain', '']
    assert main(['evaluate', '--data', str(world/'one'), *with_doubt, '--out', str(tmp_path/'n')]) == 0
    m = json.loads((tmp_path/'n'/'metrics.json').read_text())['metrics']
    assert (m['coverage']['k'], m['coverage']['n'], m['selective_risk']['n'], m['accuracy']['n']) == (0, 16, 0, 16) and 'coverage' in capsys.readouterr().out

def test_verdicts_stand_in_columns(world, capsys):
    "A score begins in the same place whatever the verdict."
    at = set()
    for weights in ('good', 'doubt'):
        main(['predict', str(world/'photo.jpg'), '--weights', str(world/f'{weights}.safetensors'), '--device', 'cpu'])
        at.add(capsys.readouterr().out.index('0.'))
    assert len(at) == 1

def test_a_folder_with_all_that_folders_hold(cli, world, tmp_path, capsys):
    "One corrupt image is a row, odd names come through unchanged, and each good image gets its heatmap."
    photo = (world/'photo.jpg').read_bytes()
    names = [b'a.jpg', b'b,"c".jpg', b'new\nline.jpg', b'latin-\xe9.jpg', ('\u9762' * 80).encode() + b'.jpg', '\u202egpj.jpg'.encode()]
    (tmp_path/'in').mkdir()
    for n in names: open(os.path.join(os.fsencode(tmp_path/'in'), n), 'wb').write(photo)
    (tmp_path/'in'/'corrupt.jpg').write_bytes(photo[:700])
    code, out, err = cli('predict', tmp_path/'in', '--weights', world/'good.safetensors', '--csv', tmp_path/'new'/'out.csv', '--heatmaps', tmp_path/'heat')
    assert code == 0 and not out and 'Traceback' not in err, err
    with open(tmp_path/'new'/'out.csv', newline='', encoding='utf-8') as f: head, *rows = csv.reader(f)
    assert tuple(head) == COLUMNS == ('path', 'face', 'p_fake', 'verdict', 'note', 'error')
    shown = lambda n: n.decode('utf-8', 'surrogateescape').encode('utf-8', 'backslashreplace').decode()
    assert {r[0] for r in rows} == {f'{tmp_path}/in/{shown(n)}' for n in [*names, b'corrupt.jpg']}
    bad, = [r for r in rows if r[5]]
    assert bad[0].endswith('corrupt.jpg') and bad[1:5] == ['0', '', '', ''] and 'damaged' in bad[5]
    good = [r for r in rows if r is not bad]
    assert all(r[1] == '0' and 0 <= float(r[2]) <= 1 and r[3] in ('fake', 'real') for r in good) and len({r[2] for r in good}) == 1
    assert err.count('\n') == 2 and 'corrupt.jpg' in err.splitlines()[0] and '7 images' in err.splitlines()[1]
    overlays = [Image.open(p) for p in (tmp_path/'heat').iterdir()]
    assert len(overlays) == 6 and all(im.format == 'PNG' and im.size == (64, 64) for im in overlays)
    code, (out, err) = main(['predict', str(tmp_path/'in'), '--weights', str(world/'good.safetensors')]), capsys.readouterr()
    assert code == 0 and out.count('\n') == 6 and err.count('\n') == 2

@pytest.mark.parametrize('encoding', ['cp1252', 'ascii', 'latin-1'])
def test_names_that_the_terminal_cannot_show_are_spelt_out(cli, world, tmp_path, encoding):
    for n in ('smile 😀.jpg', 'then.jpg'): shutil.copyfile(world/'photo.jpg', tmp_path/n)
    shutil.copyfile(world/'broken.jpg', tmp_path/'sad 😢.jpg')
    code, out, err = cli('predict', tmp_path, '--weights', world/'good.safetensors', env=os.environ | dict(PYTHONIOENCODING=encoding))
    assert code == 0 and [line.split()[-1] for line in out.splitlines()] == [r'\U0001f600.jpg', str(tmp_path/'then.jpg')]
    assert r'sad \U0001f622.jpg: damaged' in err and '3 images: ' in err

def test_a_table_with_odd_names_opens_in_pandas(world, tmp_path):
    pandas, odd = pytest.importorskip('pandas'), tmp_path/'in'
    odd.mkdir()
    for n in (b'latin-\xe9.jpg', b'=1+1.jpg', b'a\rb.jpg'): shutil.copyfile(world/'photo.jpg', os.path.join(os.fsencode(odd), n))
    assert main(['predict', str(odd), '--weights', str(world/'good.safetensors'), '--csv', str(tmp_path/'t.csv')]) == 0
    table = pandas.read_csv(tmp_path/'t.csv')
    assert tuple(table.columns) == COLUMNS and len(table) == 3 and table.p_fake.between(0, 1).all()
    assert any(p.endswith('latin-\\udce9.jpg') for p in table.path)

def test_parquet_in_capitals_is_parquet(world, tmp_path):
    parquet = pytest.importorskip('pyarrow.parquet', reason='pyarrow is not installed')
    assert main(['predict', str(world/'photo.jpg'), '--weights', str(world/'good.safetensors'), '--csv', str(tmp_path/'out.PARQUET')]) == 0
    assert parquet.read_table(tmp_path/'out.PARQUET').column_names == list(COLUMNS) and [p.name for p in tmp_path.iterdir()] == ['out.PARQUET']

def test_notes_stand_in_table_and_terminal(world, tmp_path, capsys):
    Image.new('RGB', (200, 200)).save(tmp_path/'wall.png')
    command = ['predict', str(tmp_path/'wall.png'), '--whole', '--weights', str(world/'good.safetensors'), '--device', 'cpu']
    assert main(command) == main([*command, '--csv', str(tmp_path/'t.csv')]) == 0
    assert capsys.readouterr().out.endswith('wall.png  (no face was found; the whole image was judged)\n')
    with open(tmp_path/'t.csv', newline='') as f: row, = csv.DictReader(f)
    assert row['note'] == 'no face was found; the whole image was judged' and not row['error']

def test_what_was_passed_over_is_the_last_line(world, tmp_path, capsys):
    shutil.copyfile(world/'photo.jpg', tmp_path/'a.jpg')
    (tmp_path/'notes.txt').write_text('x')
    assert main(['predict', str(tmp_path), '--weights', str(world/'good.safetensors')]) == 0
    assert capsys.readouterr().err.splitlines()[-1].startswith('1 other file passed over')

def test_libraries_do_not_speak(cli, world, tmp_path):
    "libtiff writes its own line to standard error for each of these."
    Image.new('RGB', (300, 300), 'red').save(tmp_path/'good.tif', compression='tiff_adobe_deflate')
    data = bytearray((tmp_path/'good.tif').read_bytes())
    at = data.index(b'\x78\x9c') if b'\x78\x9c' in data else 8
    data[at + 10:at + 60] = bytes(50)
    (tmp_path/'bad.tif').write_bytes(data)
    os.remove(tmp_path/'good.tif')
    said = subprocess.run([sys.executable, '-c', f'from PIL import Image; Image.open({str(tmp_path/"bad.tif")!r}).load()'], capture_output=True, text=True).stderr
    assert 'ZIPDecode' in said  # so there is something to keep away
    code, out, err = cli('predict', tmp_path, '--weights', world/'good.safetensors')
    assert code == 2 and not out and all(line.startswith('fakeface: ') for line in err.splitlines())

def test_nothing_readable_in_a_folder(world, capsys):
    code, (out, err) = main(['predict', str(world/'bad'), '--weights', str(world/'good.safetensors')]), capsys.readouterr()
    assert code == 2 and not out and err.count('\n') == 3 and all(line.startswith('fakeface: ') for line in err.splitlines())

def test_a_reader_that_leaves_early(world):
    "`fakeface predict folder | head -1` is no error to anybody, though the output is buffered until the very end."
    p = subprocess.Popen([COMMAND, 'predict', world/'one', '--weights', world/'good.safetensors'], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                         env=os.environ | dict(PYTHONUNBUFFERED=''))
    p.stdout.close()
    err = p.stderr.read(); p.wait()
    assert 'Traceback' not in err and 'Exception' not in err and 'Error' not in err

def test_results_go_into_a_pipe(world, tmp_path, capsys):
    "`--csv` may name a pipe or a device such as standard output, which must not be replaced by a file."
    os.mkfifo(pipe := tmp_path/'pipe'); end = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)
    assert main(['predict', str(world/'photo.jpg'), '--weights', str(world/'good.safetensors'), '--csv', str(pipe)]) == 0
    assert pipe.is_fifo() and os.read(end, 9999).decode().splitlines()[0] == ','.join(COLUMNS)
    os.close(end)

def test_evaluate(cli, world, tmp_path):
    code, out, err = cli('evaluate', '--data', world/'one', '--weights', world/'good.safetensors', '--out', tmp_path/'n')
    result = json.loads((tmp_path/'n'/'metrics.json').read_text())
    assert code == 0 and 'Traceback' not in err and result['n'] == result['n_real'] == 16 and result['source'] == 'one'
    assert f'{result["metrics"]["specificity"]["value"]:.4f}' in out and '16 real' in out and 'auc' not in out  # one class is enough
    page = (tmp_path/'n'/'report.html').read_text()
    assert "16 images of 'one'" in page and 'never seen' not in page and '<img' in page

@pytest.mark.slow
def test_evaluate_corrupted_and_compare(world, tmp_path, capsys):
    with_weights, data = ['--weights', str(world/'good.safetensors'), '--device', 'cpu'], ['--data', str(world/'faces'), '--split', 'test']
    for name, how in (('a', ''), ('b', 'scale:0.5+jpeg:30')): assert main(['evaluate', *data, *with_weights, '--corrupt', how, '--out', str(tmp_path/name)]) == 0
    scores = [[float(r['p_fake']) for r in csv.DictReader(open(tmp_path/n/'predictions.csv', newline=''))] for n in 'ab']
    assert len(scores[0]) == len(scores[1]) == 12 and max(abs(x - y) for x, y in zip(*scores)) > 1e-6
    assert 'after scale:0.5+jpeg:30' in (tmp_path/'b'/'report.html').read_text()
    capsys.readouterr()
    assert main(['compare', str(tmp_path/'a'), str(tmp_path/'b')]) == 0 and '12 images judged by both' in capsys.readouterr().out

def test_robustness_of_two_checkpoints(world, tmp_path, capsys):
    "Curves of both are left in a folder."
    shutil.copytree(world/'faces', tmp_path/'faces'); (tmp_path/'faces'/'test'/'real'/'00000.jpg').write_bytes(b'no image')
    assert main(['robustness', '--data', str(tmp_path/'faces'), '--split', 'test', '--corruptions', 'jpeg:90 jpeg:30 crop:0.1 jpeg:75+crop:0.02+jpeg:85', '--device', 'cpu', '--out', str(tmp_path/'out'),
                 f'plain={world/"good.safetensors"}', f'doubting={world/"doubt.safetensors"}']) == 0
    said, err = capsys.readouterr()
    assert 'passed over: test/real/00000.jpg: not an image' in err
    assert 'took 11 images: 6 fake, 5 real in test; passed over ' in said and ', 1 unreadable' in said
    assert '11 images, 1 unreadable' in said and 'plain' in said and 'jpeg:75+crop:0.02+jpeg:85' in said
    page = (tmp_path/'out'/'report.html').read_text()
    assert page.count('data:image/png;base64,') == 3 and 'doubting' in page and 'another verdict' in page

def test_an_image_that_a_corruption_cannot_be_done_to_is_left_out(world, tmp_path, capsys):
    shutil.copytree(world/'faces'/'test'/'real', tmp_path/'set'/'real'); Image.new('RGB', (16_400, 2)).save(tmp_path/'set'/'real'/'long.png')
    assert main(['evaluate', '--data', str(tmp_path/'set'), '--weights', str(world/'good.safetensors'), '--device', 'cpu', '--corrupt', 'webp:75']) == 0
    assert '6 real images, 1 unreadable' in capsys.readouterr().out

def test_another_projects_detector(world, tmp_path):
    "One function is all it takes."
    judge = lambda paths: [os.path.getsize(p) % 7 / 7 for p in paths]
    evaluate_folder(judge, world/'faces', 'test', bootstrap=9, out=tmp_path/'out')
    for r in csv.DictReader(open(tmp_path/'out'/'predictions.csv', newline='')):
        assert float(r['p_fake']) == (world/'faces'/r['path']).stat().st_size % 7 / 7
    with pytest.raises(FaceError, match='one number from 0 to 1'):
        evaluate_folder(lambda paths: [2.] * len(paths), world/'faces', 'test')

def test_audit(cli, world, tmp_path):
    root = shutil.copytree(world/'faces', tmp_path/'faces')
    shutil.copyfile(world/'broken.jpg', root/'test'/'fake'/'00000.jpg')
    shutil.copyfile(world/'photo.jpg', root/'test'/'loose.jpg')
    code, out, err = cli('audit', root)
    assert code == 0 and 'passed over: test/fake/00000.jpg: damaged' in out and 'JPEG' in out
    last = out.splitlines()[-1]
    assert last.startswith('took 54 images: 16 fake, 16 real in train; 6 fake, 6 real in valid; '
                           '5 fake, 5 real in test; passed over ')
    assert '1 damaged' in last and '1 outside the class folders (in test/)' in last

def test_classes_of_other_names(world, tmp_path, capsys):
    """`--classes` names the folder of the real images, then that of the fake ones."""
    for name, c in (('0', 'real'), ('1', 'fake')):
        shutil.copytree(world/'faces'/'test'/c, tmp_path/'set'/name)
    for given in (['audit', str(tmp_path/'set')], ['evaluate', '--data', str(tmp_path/'set')]):
        assert main(given) == 2 and 'folders seen: 0/, 1/' in capsys.readouterr().err
    given += ['--weights', str(world/'good.safetensors'), '--device', 'cpu']
    assert main([*given, '--classes', '0', '1']) == 0
    out = capsys.readouterr().out
    assert 'took 12 images: 6 fake, 6 real; passed over nothing' in out.splitlines()
