"The demo as people meet it: through Streamlit's own test harness, and in a real browser where there is one."

import csv, io, os, resource, shutil, socket, subprocess, sys, threading, time, urllib.request
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import streamlit as st
from PIL import Image
from streamlit.testing.v1 import AppTest

from fakeface import core, detector as detecting
from fakeface.detector import COLUMNS, Detector, row
from fakeface.model import build_model, load_checkpoint, metadata, save_checkpoint

ROOT = Path(__file__).resolve().parent.parent
HOSTILE = ['**x**[a](b).jpg', '<img src=x onerror=alert(1)>.jpg', ':red[r] $e^x$ `c` https___example.org.jpg', '# h _u_ ~~s~~.png']
BROKEN = ('broken.jpg', b'\xff\xd8\xff\xe0 and no more')

def picture(seed, side=64, format='JPEG'):
    "Encoded noise under a colour, a different one for each seed."
    rng, out = np.random.default_rng(seed), io.BytesIO()
    Image.fromarray((rng.integers(0, 256, 3) * .5 + rng.integers(0, 128, (side, side, 3))).astype(np.uint8)).save(out, format)
    return out.getvalue()

@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    "A random model whose threshold lies between the scores of `picture(0)` and `picture(1)`, so that both verdicts occur."
    path, model = tmp_path_factory.mktemp('weights')/'model.safetensors', build_model('random', seed=1)[0]
    save_checkpoint(path, model, metadata(size=64))
    scores = [v.p_fake for v in Detector.load(path, 'cpu').predict([picture(0), picture(1)])]
    assert scores[0] != scores[1]
    save_checkpoint(path, model, metadata(size=64, threshold=sum(scores) / 2, source='noise'))
    return path

@pytest.fixture
def app(weights, monkeypatch):
    monkeypatch.setenv('FAKEFACE_WEIGHTS', str(weights))
    return AppTest.from_file(str(ROOT/'app.py'), default_timeout=60).run()

def upload(app, *files):
    app.file_uploader[0].set_value([(n, b, 'image/jpeg') for n, b in files]).run()
    assert not app.exception
    return app

def texts(elements): return [e.value for e in elements]
def words(p): return f'Probability that it was generated: {100 * p:.1f} %'
def shown(app): return [(h.value, t) for h, t in zip(app.subheader, [t for t in texts(app.main.text) if not t.startswith('Reason: ')])]

def test_empty_page(app):
    assert not app.exception and texts(app.title) == ['Real or generated?'] and app.file_uploader[0].accept_multiple_files
    assert not app.subheader and not app.image and not app.dataframe and not app.download_button
    about = '\n'.join(texts(app.sidebar.markdown) + texts(app.sidebar.text))
    assert 'no proof' in about and 'StyleGAN' in about and 'other generators' in about
    assert '64 × 64' in about and 'noise' in about

def test_one_image_gets_the_detectors_verdict(app, weights):
    for seed in (0, 1):
        v, = Detector.load(weights).predict([picture(seed)])
        upload(app, ('face.jpg', picture(seed)))
        assert shown(app) == [(f'Looks {v.verdict}', 'face.jpg')]
        assert [p.proto.text for p in app.get('progress')] == [words(v.p_fake)]
        assert sum((i.captions for i in app.image), []) == ['What the model saw', 'Where it found evidence']
        assert all('face.jpg' in i.proto.imgs[0].alt for i in app.image)
        assert not app.dataframe and not app.download_button  # one image needs no table
    assert {Detector.load(weights).predict([picture(s)])[0].verdict for s in (0, 1)} == {'fake', 'real'}

def test_many_images_one_broken(app, weights, monkeypatch):
    saved, button = [], st.download_button
    monkeypatch.setattr(st, 'download_button', lambda label, data, *a, **k: (saved.append(data), button(label, data, *a, **k))[1])
    files = [('a.jpg', picture(0)), BROKEN, ('b.jpg', picture(1)), ('empty.png', b'')]
    expected = Detector.load(weights).predict(files)
    upload(app, *files)
    assert shown(app) == [(f'Looks {v.verdict}' if v.verdict else 'Unreadable', v.path) for v in expected]
    assert [t for t in texts(app.main.text) if t.startswith('Reason: ')] == [f'Reason: {v.error}' for v in expected if v.error]
    assert texts(app.main.header) == ['4 files: 1 fake, 1 real, 0 uncertain, 2 unreadable']
    table = app.dataframe[0].value
    assert list(table.File) == [n for n, _ in files] and list(table.Reason) == [v.error for v in expected]
    assert np.allclose(table.Generated.fillna(-1), [-1 if v.error else 100 * v.p_fake for v in expected], atol=1e-3)
    head, *rows = csv.reader(io.StringIO(saved[-1]))
    assert tuple(head) == COLUMNS and [r[:2] + r[3:] for r in rows] == [row(v)[:2] + row(v)[3:] for v in expected]
    assert all(abs(float(r[2]) - v.p_fake) < 1e-5 if v.verdict else r[2] == '' for r, v in zip(rows, expected))

def test_doubt_is_shown_as_doubt(weights, tmp_path, monkeypatch):
    model, meta = load_checkpoint(weights)
    low, high = sorted(v.p_fake for v in Detector.load(weights, 'cpu').predict([picture(0), picture(1)]))
    save_checkpoint(path := tmp_path/'doubt.safetensors', model, meta | dict(band=[low - 1e-3, (low + high) / 2]))
    monkeypatch.setenv('FAKEFACE_WEIGHTS', str(path))
    app = upload(AppTest.from_file(str(ROOT/'app.py'), default_timeout=60).run(), ('a.jpg', picture(0)), ('b.jpg', picture(1)), BROKEN)
    assert texts(app.main.header) == ['3 files: 1 fake, 0 real, 1 uncertain, 1 unreadable']
    assert sorted(h for h, _ in shown(app)) == sorted(app.dataframe[0].value.Verdict) == ['Looks fake', 'Uncertain', 'Unreadable']
    assert sorted(p.proto.text for p in app.get('progress')) == sorted(map(words, (low, high))) and len(app.image) == 4  # doubt is explained too
    about = '\n'.join(texts(app.sidebar.markdown) + texts(app.sidebar.text))
    assert f'{low - 1e-3:.3f} to {(low + high) / 2:.3f}' in about and 'uncertain' in about

def test_hostile_names_stay_text(app):
    upload(app, *[(n, picture(i)) for i, n in enumerate(HOSTILE)])
    assert [n for _, n in shown(app)] == HOSTILE and list(app.dataframe[0].value.File) == HOSTILE
    markdown = [e for kind in ('markdown', 'caption', 'title', 'header', 'subheader', 'error', 'warning', 'info', 'success') for e in texts(app.get(kind))]
    markdown += sum((i.captions for i in app.image), []) + [p.proto.text for p in app.get('progress')]
    assert not [m for m in markdown for n in HOSTILE if n in m]
    assert not any(getattr(m.proto, 'allow_html', False) for m in app.markdown)

def test_each_upload_is_judged_once(app, monkeypatch):
    judged, judge_batch = [], detecting.judge_batch
    monkeypatch.setattr(detecting, 'judge_batch', lambda d, batch, explain: (judged.extend(n for n, _ in batch), judge_batch(d, batch, explain))[1])
    upload(app, ('a.jpg', picture(0)), ('b.jpg', picture(1)))
    before = [i.value for i in app.image]
    app.slider[0].set_value(100).run()
    after = [i.value for i in app.image]
    assert judged == ['a.jpg', 'b.jpg']
    assert [a == b for a, b in zip(after, before)] == [True, False] * 2  # the photographs stay, the overlays change
    app.file_uploader[0].clear().run()
    assert not app.subheader and not app.session_state.verdicts      # forgotten with the upload

def test_sessions_do_not_see_each_other(app):
    upload(app, ('mine.jpg', picture(0)))
    other = AppTest.from_file(str(ROOT/'app.py'), default_timeout=60).run()
    assert not other.subheader and 'mine.jpg' not in texts(other.text)
    assert shown(app)

def test_many_images_come_in_pages(app):
    upload(app, *[(f'{i}.jpg', picture(i, 32)) for i in range(12)])
    assert len(app.subheader) == 10 and len(app.dataframe[0].value) == 12
    app.get('pagination')[0].set_value(2).run()
    assert [n for _, n in shown(app)] == ['10.jpg', '11.jpg']

def test_bounds_in_count_and_bytes(app, monkeypatch):
    upload(app, *[(f'{i}.jpg', b'x') for i in range(101)])
    assert len(app.dataframe[0].value) == 100 and 'first 100 of 101' in app.warning[0].value
    monkeypatch.setattr(core, 'MAX_BYTES', 1000)  # of one file; four times that together
    upload(app, *[(f'{i}.jpg', b'x' * 900) for i in range(6)])
    assert len(app.dataframe[0].value) == 4 and 'first 4 of 6' in app.warning[0].value

def test_never_quite_certain(weights, tmp_path, monkeypatch):
    for bias, expected in ((50, 'more than 99.9 %'), (-50, 'less than 0.1 %')):
        model = build_model('random', seed=1)[0]
        model.fc.bias.data[core.FAKE] = bias
        save_checkpoint(tmp_path/f'{bias}.safetensors', model, metadata(size=64, source='standin'))
        monkeypatch.setenv('FAKEFACE_WEIGHTS', str(tmp_path/f'{bias}.safetensors'))
        app = upload(AppTest.from_file(str(ROOT/'app.py'), default_timeout=60).run(), ('a.jpg', picture(0)))
        assert app.get('progress')[0].proto.text.endswith(expected)
        assert 'drawn faces' in app.warning[0].value  # weights of the stand-in say so

@pytest.mark.parametrize('name, content, cause', [('missing.safetensors', None, 'no such weights file'), ('damaged.safetensors', b'nonsense', 'not a safetensors file')])
def test_unusable_weights_are_one_line(name, content, cause, tmp_path, monkeypatch):
    if content: (tmp_path/name).write_bytes(content)
    monkeypatch.setenv('FAKEFACE_WEIGHTS', str(tmp_path/name))
    app = AppTest.from_file(str(ROOT/'app.py'), default_timeout=60).run()
    line, = texts(app.text)
    assert cause in line and name in line and '\n' not in line
    assert not app.exception and not app.file_uploader

# --- in a browser ---

CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome') or '/usr/bin/chromium'
browser_needed = pytest.mark.skipif(not Path(CHROMIUM).exists(), reason='no Chromium on this machine')
FLAGS = '--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync'.split()

@contextmanager
def serve(weights=None, no_files=False):
    "`(url, lines)` of a running `streamlit run app.py`; `lines` is what it prints. With `no_files` the system refuses it every write to a file."
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); port = s.getsockname()[1]
    env = {k: v for k, v in os.environ.items() if k != 'FAKEFACE_WEIGHTS'} | dict(PYTHONDONTWRITEBYTECODE='1') | (dict(FAKEFACE_WEIGHTS=str(weights)) if weights else {})
    command = [sys.executable, '-m', 'streamlit', 'run', str(ROOT/'app.py'), '--server.headless', 'true', '--server.port', str(port), '--browser.gatherUsageStats', 'false']
    limit = (lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))) if no_files else None
    server, lines = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=limit), []
    reader = threading.Thread(target=lambda: lines.extend(server.stdout), daemon=True)
    reader.start()
    try:
        for _ in range(300):
            try: urllib.request.urlopen(f'http://localhost:{port}/_stcore/health', timeout=2); break
            except OSError: time.sleep(.1)
            if server.poll() is not None: break
        else: server.kill()
        assert server.poll() is None, 'the app did not start:\n' + ''.join(lines)
        yield f'http://localhost:{port}', lines
    finally:
        server.terminate()
        try: server.wait(10)
        except subprocess.TimeoutExpired: server.kill(); server.wait()
        reader.join(5); server.stdout.close()

@contextmanager
def browser_page(url, **options):
    "A page of headless Chromium at `url`; fails when the page logs an error."
    sync_api = pytest.importorskip('playwright.sync_api')
    with sync_api.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            page, complaints = browser.new_page(**options), []
            page.on('console', lambda m: complaints.append(m.text) if m.type == 'error' else None)
            page.on('pageerror', lambda e: complaints.append(str(e)))
            page.on('dialog', lambda d: (complaints.append(d.message), d.dismiss()))
            page.set_default_timeout(30000)
            page.goto(url)
            page.locator('input[type=file]').wait_for(state='attached')
            yield page
            assert not complaints
        finally: browser.close()

def drop(page, *files): page.locator('input[type=file]').set_input_files([dict(name=n, mimeType='image/jpeg', buffer=b) for n, b in files])

@browser_needed
def test_in_a_browser(weights):
    big = ('large.png', picture(3, 900, 'PNG'))
    assert len(big[1]) > 2**20  # beyond this, Streamlit's server by itself would write a temporary file
    with serve(weights, no_files=True) as (url, lines), browser_page(url) as page:
        expected = Detector.load(weights).predict([('face.jpg', picture(0)), (HOSTILE[0], picture(1)), BROKEN, big])
        drop(page, ('face.jpg', picture(0)))
        page.get_by_role('heading', name=f'Looks {expected[0].verdict}').wait_for()
        page.get_by_text(words(expected[0].p_fake)).wait_for()
        for alt in ('face.jpg as the model saw it', 'face.jpg with the heatmap over it'):
            image = page.get_by_role('img', name=alt)
            image.wait_for()
            page.wait_for_function('i => i.complete && i.naturalWidth == 64', arg=image.element_handle())

        drop(page, (HOSTILE[0], picture(1)), BROKEN, big)  # uploads add up
        page.get_by_role('heading', name=f'4 files: {sum(v.verdict == "fake" for v in expected)} fake').wait_for()
        page.get_by_text(f'Reason: {expected[2].error}', exact=True).wait_for()
        assert page.get_by_text(HOSTILE[0], exact=True).count() and not page.locator('a[href$="b"], strong:text-is("x")').count()
        page.get_by_role('img', name='large.png with the heatmap over it').wait_for()
        assert page.get_by_role('heading', level=3, name='Unreadable').count() == 1 and page.get_by_role('heading', level=3, name='Looks').count() == 3
        with page.expect_download() as download: page.get_by_role('button', name='Download verdicts as CSV').click()
        assert download.value.suggested_filename == 'verdicts.csv'
        with open(download.value.path(), encoding='utf-8', newline='') as f: head, *rows = csv.reader(f)
        expected.sort(key=lambda v: v.path); rows.sort()  # uploads may arrive in any order
        assert tuple(head) == COLUMNS and [r[:2] + r[3:] for r in rows] == [row(v)[:2] + row(v)[3:] for v in expected]
        assert all(abs(float(r[2]) - v.p_fake) < 1e-5 for r, v in zip(rows, expected) if v.verdict)

        overlay = page.get_by_role('img', name='face.jpg with the heatmap over it')
        before, slider = overlay.get_attribute('src'), page.get_by_role('slider')
        slider.focus(); slider.press('End')  # by keyboard alone
        page.wait_for_function('([i, src]) => i.isConnected && i.getAttribute("src") != src', arg=[overlay.element_handle(), before])
    printed = ''.join(lines)
    assert 'Traceback' not in printed and not [n for n in ('face.jpg', 'large.png', 'broken.jpg', HOSTILE[0]) if n in printed]

@browser_needed
@pytest.mark.skipif('FAKEFACE_SCREENSHOT' not in os.environ, reason='makes the picture of the README; set FAKEFACE_SCREENSHOT and FAKEFACE_SCREENSHOT_IMAGES')
def test_screenshot():
    target, images = Path(os.environ['FAKEFACE_SCREENSHOT']), os.environ['FAKEFACE_SCREENSHOT_IMAGES'].split(os.pathsep)
    with serve(os.environ.get('FAKEFACE_WEIGHTS')) as (url, _), browser_page(url, viewport=dict(width=1280, height=1000)) as page:  # the shipped weights if unset
        page.locator('input[type=file]').set_input_files(images)
        page.get_by_alt_text('as the model saw it').nth(min(len(images), 10) - 1).wait_for()
        height = page.evaluate('document.querySelector("[data-testid=stMainBlockContainer]").scrollHeight')
        page.set_viewport_size(dict(width=1280, height=min(height, 1300)))
        page.wait_for_timeout(1000)  # until the layout rests
        picture = Image.open(io.BytesIO(page.screenshot())).convert('RGB')
    picture.save(target, 'PNG', optimize=True)
    if target.stat().st_size >= 300_000:  # Pillow dithers only to a palette it is given
        picture.quantize(palette=picture.quantize(256), dither=Image.Dither.FLOYDSTEINBERG).save(target, 'PNG', optimize=True)
    assert target.stat().st_size < 300_000
