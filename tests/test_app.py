"""The demo as people meet it: through Streamlit's own test harness, and in a real browser where
there is one."""

import csv, io, os, re, resource, shutil, socket, subprocess, sys, threading, time, urllib.request
import zipfile
from collections import Counter
from contextlib import contextmanager
from functools import cache, partial
from html import escape
from pathlib import Path

import numpy as np
import pytest
import streamlit as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from scipy.special import logit
from streamlit.delta_generator import DeltaGenerator
from streamlit.testing.v1 import AppTest

from fakeface import detector as detecting, images
from fakeface.claims import NO_CLAIM
from fakeface.core import FAKE
from fakeface.detector import (COLUMNS, FIGURES, METHODS, PHRASES, SHIPPED, Detector, band_from,
                               decided, examples, table_row)
from fakeface.images import open_image
from fakeface.model import build_model, load_checkpoint, metadata, save_checkpoint
from fakeface.page import verdict_bars, read_card
from fakeface.standin import make_pair

ROOT = Path(__file__).resolve().parent.parent
HOSTILE = ['**x**[a](b).jpg', '<img src=x onerror=alert(1)>.jpg',
           ':red[r] $e^x$ `c` https___example.org.jpg', '# h _u_ ~~s~~.png']
BROKEN = ('broken.jpg', b'\xff\xd8\xff\xe0 and no more')
REALS = [.05, .15, .35, .55, .95]  # scores of validation images, as a checkpoint keeps them
HOPPER = 'photograph of Grace Hopper.jpg'

@cache
def face(i):
    "A drawn face as JPEG: the finder takes it for a crop."
    return make_pair('test', i, size=128)[0]

@cache
def photograph(faces=1):
    "A photograph, or its face this many times beside each other, as an image file."
    jpeg = examples()[HOPPER]
    if faces == 1: return jpeg
    return encode(np.concatenate([open_image(jpeg)[:, 50:450, 60:460]] * faces, 2))

def encode(pixels, format='PNG'):
    Image.fromarray(pixels.transpose(1, 2, 0)).save(out := io.BytesIO(), format)
    return out.getvalue()

def noise(seed, side=64):
    rng = np.random.default_rng(seed)
    return encode((rng.integers(0, 256, (3, 1, 1)) * .5 + rng.integers(0, 128, (3, side, side))
                   ).astype(np.uint8))

def zipped(**files):
    with zipfile.ZipFile(out := io.BytesIO(), 'w') as z:
        for name, content in files.items(): z.writestr(name, content)
    return out.getvalue()

@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    """A random model whose threshold lies amid its scores of `face(0)` to `face(9)`, so that both
    verdicts occur."""
    path = tmp_path_factory.mktemp('weights')/'noise.safetensors'
    model, meta = build_model('random', seed=1)[0], partial(metadata, size=64)
    drawn = [face(i) for i in range(10)]
    scores = [v.p_fake for v in Detector(model, meta(), 'cpu').predict(drawn)]
    model.fc.bias.data[FAKE] -= float(np.median(logit(scores)))
    save_checkpoint(path, model, meta(temperature=.05, source='noise', real_scores=REALS))
    return path

@pytest.fixture(scope='module')
def detector(weights): return Detector.load(weights)

@pytest.fixture
def demo(weights, monkeypatch):
    "Opens the demo as a new session: `demo(threshold='30')` with this in its URL."
    def start(path=weights, **settings):
        monkeypatch.setenv('FAKEFACE_WEIGHTS', str(path))
        app = AppTest.from_file(str(ROOT/'app.py'), default_timeout=60)
        app.query_params.update(settings)
        return sound(app.run())
    return start

@pytest.fixture
def app(demo): return demo()

@pytest.fixture
def saved(monkeypatch):
    "What the download buttons of a page offer, by file name."
    offered, button = {}, DeltaGenerator.download_button
    def keep(self, label, data, name, *a, **k):
        offered[name] = data
        return button(self, label, data, name, *a, **k)
    monkeypatch.setattr(st, 'download_button', partial(keep, st.download_button.__self__))
    monkeypatch.setattr(DeltaGenerator, 'download_button', keep)
    return offered

@pytest.fixture
def variant(weights, tmp_path):
    "The checkpoint of `weights` with other metadata."
    def save(**changed):
        model, meta = load_checkpoint(weights)
        meta = {k: v for k, v in (meta | changed).items() if v is not None}
        save_checkpoint(path := tmp_path/'variant.safetensors', model, meta)
        return path
    return save

def sound(app):
    assert not app.exception, app.exception
    return app

def upload(app, *files):
    return sound(app.file_uploader[0].set_value([(n, b, 'image/jpeg') for n, b in files]).run())

def pick(app, row):
    "Tick a row of the table."
    app.session_state['table'] = dict(selection=dict(rows=[row], columns=[], cells=[]))
    return sound(app.run())

def texts(elements): return [e.value for e in elements]
def judge(app): return app.tabs[0]
def named(v): return v.path + (f', face {v.face}' if v.face else '')
def card(v): return PHRASES[v.verdict].casefold(), named(v)
def lines(app): return texts(judge(app).text)
def said(element, kind='markdown'): return ' '.join(texts(element.get(kind)))

def cards(app):
    "`(verdict, name)` of the faces shown in full."
    heads = [h.split(' ', 1)[1].casefold() for h in texts(judge(app).subheader)
             if not re.match(r'(\d+ )?images.*: ', h)]
    others = 'Reason: |Note: |What the file says|.*passed over'
    return list(zip(heads, [t for t in lines(app) if not re.match(others, t)], strict=True))

def fits(text, p):
    "Whether the words of the axis say `p`, without being surer than whole percents."
    bound, number = re.search(r'Score: (less than |more than |)(\d+) %', text).groups()
    return {'': abs(float(number) - 100 * p) <= .5, 'less than ': 100 * p < float(number) <= 1,
            'more than ': 100 * p > float(number) >= 99}[bound]

def axes(app):
    "What the axes tell a screen reader."
    drawn = ''.join(e.proto.body for e in judge(app).get('html'))
    return re.findall('aria-label="([^"]*)', drawn)

def axes_fit(app, vs): return [fits(a, v.p_fake) for a, v in zip(axes(app), vs, strict=True)]
def alts(app): return [i.proto.imgs[0].alt for i in judge(app).image]
def captions(app): return sum((i.captions for i in judge(app).image), [])
def pixels(png): return np.asarray(Image.open(io.BytesIO(png)).convert('RGB')).astype(int)
def alike(a, b):
    return np.shape(a) == np.shape(b) and np.abs(np.subtract(a, b, dtype=int)).max() <= 3

def summary(vs, n):
    count, faces = Counter(v.verdict for v in vs), sum(bool(v.verdict) for v in vs)
    whose = f' with {faces} faces' if faces + count[''] != n else ''
    return f'{n} images{whose}: ' + ', '.join(f'{count[k]} {PHRASES[k]}' for k in PHRASES if count[k])

def check_table(app, vs, n):
    "The table and the line over it tell these verdicts of `n` images."
    table, nothing = app.dataframe[0].value, [''] * len(vs)
    assert texts(judge(app).subheader)[0] == summary(vs, n)
    assert list(table.File) == [named(v) for v in vs]
    assert list(table.Verdict) == [PHRASES[v.verdict] for v in vs]
    assert np.allclose(table.Generated.astype(float).fillna(-1),
                       [-1 if v.error else 100 * v.p_fake for v in vs], atol=1e-3)
    assert list(table.get('Reason', nothing)) == [v.error for v in vs]
    assert list(table.get('Note', nothing)) == [v.note for v in vs]
    faces = [isinstance(f, str) and f.startswith('data:image/jpeg;base64,') for f in table.Face]
    assert faces == [not v.error for v in vs]

def check_csv(text, vs, any_order=False):
    assert text[0] == '\ufeff'  # or Excel takes it for another encoding
    head, *rows = csv.reader(io.StringIO(text[1:]))
    if any_order:
        rows.sort()
        vs = sorted(vs, key=table_row)
    assert tuple(head) == COLUMNS
    assert [r[:2] + r[3:] for r in rows] == [table_row(v)[:2] + table_row(v)[3:] for v in vs]
    assert all(abs(float(r[2]) - v.p_fake) < 1e-5 if v.verdict else r[2] == ''
               for r, v in zip(rows, vs))

# --- one image ---

def test_empty_page(app):
    assert texts(app.title) == ['Real or generated?']
    assert [t.label for t in app.tabs] == ['Judge', 'What a verdict means', 'How good is it']
    assert app.file_uploader[0].accept_multiple_files
    assert not app.file_uploader[0].allowed_type  # names tell nothing
    for kind in ('subheader', 'image', 'dataframe', 'download_button', 'warning'):
        assert not judge(app).get(kind)
    about = said(app.tabs[1]).lower()
    assert 'no proof' in about and 'stylegan' in about and 'other generators' in about
    assert 'not proof' in app.markdown[0].value and 'written to disk' in said(judge(app), 'caption')

@pytest.mark.parametrize('i, verdict, side', [(7, 'fake', 'generated'), (6, 'real', 'real')])
def test_one_crop_gets_the_detectors_verdict(i, verdict, side, app, detector, saved):
    v, = detector.explain([('face.jpg', face(i))])
    upload(app, ('face.jpg', face(i)))
    assert v.verdict == verdict and cards(app) == [card(v)] and all(axes_fit(app, [v]))
    assert captions(app) == ['What the model saw', f'Evidence that it is {side}']
    assert all('face.jpg' in a for a in alts(app)) and NO_CLAIM in lines(app)[1]
    assert alike(pixels(saved.pop('face-0-heatmap.png')), v.overlay(.6)) and not saved
    assert not app.dataframe  # one image needs no table
    assert PHRASES[verdict][1:] in judge(app).subheader[0].value  # capitals are kept

@pytest.mark.parametrize('n', [1, 2])
def test_faces_of_a_photograph(n, app, detector, saved):
    vs = detector.explain([('people.jpg', photograph(n))])
    upload(app, ('people.jpg', photograph(n)))
    assert cards(app) == [card(v) for v in vs] and [v.face for v in vs] == [1, 2][:n]
    assert all(axes_fit(app, vs)) and captions(app).count('What the model saw') == n
    assert [c for c in captions(app) if 'judged' in c] == [f'{n} face{"s" * (n > 1)} judged']
    assert sum('box around each face' in a for a in alts(app)) == 1
    for v in vs: assert alike(pixels(saved[f'people-{v.face}-heatmap.png']), v.overlay(.6))

def test_an_image_without_a_face_says_so(app, detector):
    for name, content in (('wall.png', noise(0, 300)), BROKEN):
        v, = detector.predict([(name, content)])
        upload(app, (name, content))
        assert v.error and cards(app) == [(PHRASES[''], name)] and f'Reason: {v.error}' in lines(app)
        assert not judge(app).image and not axes(app) and not app.download_button

def test_a_whole_image_without_a_face_is_noted(app, detector):
    app.toggle(key='whole').set_value(True).run()
    v, = detector.predict([('wall.png', noise(0, 300))], whole=True)
    upload(app, ('wall.png', noise(0, 300)))
    assert v.note and [t for t in lines(app) if 'Note' in t] == [f'Note: {v.note}']

def test_what_the_file_says_stands_beside_the_verdict(app, detector):
    text = 'a face\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Model: <b>x</b>'
    (info := PngInfo()).add_text('parameters', text)
    Image.open(io.BytesIO(face(6))).save(out := io.BytesIO(), 'PNG', pnginfo=info)
    v, = detector.predict([('made.png', out.getvalue())])
    told = lines(upload(app, ('made.png', out.getvalue())))
    assert told[0] == 'made.png' and told[1].startswith('What the file says of itself: ')
    assert NO_CLAIM not in told[1]
    assert any('disagree' in t for t in told) == (v.verdict == 'real')

def test_whole_images(app, detector):
    app.toggle(key='whole').set_value(True).run()
    for name, content in (('wall.png', noise(0, 300)), ('people.jpg', photograph())):
        v, = detector.predict([(name, content)], whole=True)
        upload(app, (name, content))
        assert cards(app) == [card(v)] and v.face == 0 and all(axes_fit(app, [v]))
        assert not [a for a in alts(app) if 'box' in a]
    app.toggle(key='whole').set_value(False).run()
    assert cards(app)[0][1] == 'people.jpg, face 1'  # judged again, the other way

def test_heatmaps(app, detector, saved):
    upload(app, ('face.jpg', face(0)))
    assert app.selectbox(key='heatmap').options == list(METHODS.values())
    seen, before = {}, (cards(app), axes(app))
    for method in METHODS:
        sound(app.selectbox(key='heatmap').set_value(method).run())
        v, = detector.explain([('face.jpg', face(0))], method)
        seen[method] = pixels(saved['face-0-heatmap.png'])
        assert alike(seen[method], v.overlay(.6)) and (cards(app), axes(app)) == before
    assert not any(alike(seen[a], seen[b]) for a in METHODS for b in METHODS if a < b)
    for strength, shown in (0, v.image.transpose(1, 2, 0)), (100, v.overlay(1)):
        app.slider(key='opacity').set_value(strength).run()
        assert alike(pixels(saved['face-0-heatmap.png']), shown)

def test_camera(app, detector):
    sound(app.button_group(key='source').set_value('Camera').run())
    assert not app.file_uploader and not judge(app).subheader
    sound(app.camera_input[0].set_value(('shot.jpg', photograph(), 'image/jpeg')).run())
    assert cards(app) == [card(v) for v in detector.predict([('shot.jpg', photograph())])]

def test_examples(app, demo):
    "The first to click is a generated face that the shipped weights catch; it says of how many."
    known = Detector.load().predict(examples().items())
    assert len(known) == 6 and max(map(len, examples().values())) < 60_000
    assert known[0].verdict == 'fake' and known[0].path.startswith('generated')
    first = sound(demo(weights='shipped')).button[0].click().run()
    assert cards(sound(first)) == [card(known[0])] and len(captions(first)) == 3
    assert 'Of the 40 test faces' in said(judge(first), 'caption')
    assert first.button_group(key='example').options == list(examples())
    sound(first.button_group(key='example').set_value(list(examples())).run())
    check_table(first, known, 6)
    sound(first.button_group(key='example').set_value([]).run())
    assert not judge(first).subheader

# --- many images ---

def test_many_images_one_broken(app, detector, saved):
    files = [('a.jpg', face(0)), BROKEN, ('b', face(1)), ('two.png', photograph(2)),
             ('empty.png', b''), ('wall.png', noise(0, 300))]
    vs = detector.predict(files)
    upload(app, *files)
    assert {'fake', 'real', ''} == {v.verdict for v in vs} and len(vs) == 7 and not cards(app)
    check_table(app, vs, 6)
    check_csv(saved['verdicts.csv'], vs)
    page = saved['verdicts.html']
    assert page.lower().startswith('<!doctype html>')
    assert page.count('<tr>') == 1 + 7 and page.count('<img') == 4
    assert all(named(v) in page and v.error in page for v in vs)

def test_filter_and_selection(app, detector, saved):
    files = [(f'{i}.jpg', face(i)) for i in range(6)] + [('two.png', photograph(2)), BROKEN]
    vs = detector.predict(files)
    upload(app, *files)
    for kind in ('real', 'fake', ''):
        sound(app.button_group(key='show').set_value([kind]).run())
        kept = [v for v in vs if v.verdict == kind]
        assert list(app.dataframe[0].value.File) == [named(v) for v in kept]
        assert texts(judge(app).subheader)[0] == summary(vs, len(files))
        check_csv(saved['verdicts.csv'], kept)
        assert saved['verdicts.html'].count('<tr>') == 1 + len(kept)
    app.button_group(key='show').set_value([]).run()
    for i in (3, 6, 7, 8):  # a photograph with all of its faces, the chosen one first
        others = [card(v) for j, v in enumerate(vs) if v.path == vs[i].path and j != i]
        assert cards(pick(app, i)) == [card(vs[i]), *others]
    assert any('heatmap' in n for n in saved)

def test_a_folder(app):
    sound(app.button_group(key='source').set_value('Folder').run())
    kinds = app.file_uploader[0].allowed_type
    assert app.file_uploader[0].accept_directory
    assert {'.jpg', '.heic', '.avif', '.jfif'} <= set(kinds)
    upload(app, ('holiday/a.jpg', face(0)), ('holiday/b.jpg', face(1)))
    assert [n.split('/')[-1] for n in app.dataframe[0].value.File] == ['a.jpg', 'b.jpg']

def test_zip(app, detector):
    entries = {'a.jpg': face(0), 'sub/B.JPG': face(1), '../../up.jpg': face(2),
               'no suffix': face(4), '/root.png': noise(0, 300), 'cut.jpg': face(3)[:700],
               BROKEN[0]: BROKEN[1]}
    others = {'notes.txt': b'x', '__MACOSX/._a.jpg': b'x', '.hidden.jpg': b'x', 'inner.zip': b'x'}
    vs = detector.predict([('holiday.zip/' + n, b) for n, b in entries.items()])
    upload(app, ('holiday.zip', zipped(**entries, **others)))
    check_table(app, vs, len(entries))
    assert sum(bool(v.error) for v in vs) == 3 and not Path('/root.png').exists()
    assert not list(ROOT.parent.parent.glob('up.jpg'))
    assert [t for t in lines(app) if t.startswith('holiday.zip: 2 other files passed over')]
    assert named(vs[2]) in lines(pick(app, 2))
    upload(app, ('one.zip', zipped(**{'a.jpg': face(0)})))
    assert [n for _, n in cards(app)] == ['one.zip/a.jpg']

@pytest.mark.parametrize('content, cause', [
    (b'PK\x03\x04 and no more', 'damaged ZIP'), (b'', 'damaged ZIP'),
    (zipped(**{'a.txt': b'x'}), 'no images'),
    (zipped(**{f'{i}.jpg': b'' for i in range(1001)}), '1001 images')],
    ids=['cut', 'empty', 'texts', 'many'])
def test_a_zip_that_is_none(content, cause, app, detector):
    upload(app, ('x.zip', content))
    assert cards(app) == [(PHRASES[''], 'x.zip')] and cause in lines(app)[1]
    upload(app, ('x.zip', content), ('a.jpg', face(0)))
    known = PHRASES[detector.predict(face(0))[0].verdict]
    assert list(app.dataframe[0].value.Verdict) == [PHRASES[''], known]
    assert cause in app.dataframe[0].value.Reason[0]

def test_a_locked_zip_entry_is_an_error(app):
    data = bytearray(zipped(**{'a.jpg': face(0)}))
    for mark, at in ((b'PK\x03\x04', 6), (b'PK\x01\x02', 8)):
        data[data.index(mark) + at] |= 1  # says it is encrypted
    upload(app, ('x.zip', bytes(data)))
    assert cards(app) == [(PHRASES[''], 'x.zip/a.jpg')] and 'unpack it first' in lines(app)[1]

def test_hostile_names_stay_text(app):
    kinds = ('markdown caption title header subheader error warning info success').split()
    def check():
        read = [e for kind in kinds for e in texts(app.get(kind))] + captions(app)
        read += [b.label for b in app.download_button] + [e.proto.body for e in app.get('html')]
        assert not [m for m in read for n in HOSTILE if n in m]
        assert not any(getattr(m.proto, 'allow_html', False) for m in app.markdown)
    upload(app, *[(n, face(i)) for i, n in enumerate(HOSTILE)])
    assert list(app.dataframe[0].value.File) == HOSTILE
    check()
    for n in HOSTILE:
        upload(app, (n, face(0)))
        assert [c[1] for c in cards(app)] == [n]
        check()
    upload(app, ('x.zip', zipped(**{n: face(0) for n in HOSTILE})))
    assert list(app.dataframe[0].value.File) == [f'x.zip/{n}' for n in HOSTILE]
    check()

def test_each_upload_is_judged_once(app, monkeypatch):
    judged, predict_batch = [], detecting.predict_batch
    def counted(d, batch, explain, *band):
        judged.extend(bool(explain) for _ in batch)
        return predict_batch(d, batch, explain, *band)
    monkeypatch.setattr(detecting, 'predict_batch', counted)
    upload(app, *[(f'{i}.jpg', face(i)) for i in range(9)])
    assert judged == [False] * 9
    for change in (lambda: app.slider(key='threshold').set_value(30),
                   lambda: app.button_group(key='show').set_value(['fake']),
                   lambda: app.selectbox(key='heatmap').set_value('layercam')):
        change().run()
        assert judged == [False] * 9  # and no heatmap of what nobody looks at
    pick(app, 0).slider(key='opacity').set_value(100).run()
    assert judged == [False] * 9 + [True]
    app.file_uploader[0].clear().run()
    assert not judge(app).subheader and not app.session_state.verdicts  # forgotten with the upload

def test_sessions_do_not_see_each_other(app, demo):
    upload(app, ('mine.jpg', face(0)))
    other = demo()
    assert not cards(other) and 'mine.jpg' not in texts(other.text)
    assert not other.session_state.verdicts
    upload(other, ('theirs.jpg', face(1)))
    assert [[n for _, n in cards(a)] for a in (app.run(), other)] == [['mine.jpg'], ['theirs.jpg']]

def test_sessions_share_one_model(variant, demo, monkeypatch):
    loaded = []
    monkeypatch.setattr(detecting, 'load_checkpoint',
                        lambda path: (loaded.append(path), load_checkpoint(path))[1])
    new = variant()
    for i in range(3): assert cards(upload(demo(new), ('a.jpg', face(i))))
    assert len(loaded) == 1

def test_bounds_in_count_and_bytes(app, monkeypatch):
    def check(kept, n, *files):
        upload(app, *files)
        assert len(app.dataframe[0].value) == kept
        assert f'first {kept} of {n}' in app.warning[0].value
    check(500, 501, *[(f'{i}.jpg', b'x') for i in range(501)])
    packed = {f'{i}.jpg': b'\xff\xd8\xff' for i in range(502)}
    check(500, 503, ('a.jpg', b'x'), ('x.zip', zipped(**packed)))
    monkeypatch.setattr(images, 'MAX_BYTES', 1000)  # of one file; eight times that together
    check(8, 10, *[(f'{i}.jpg', b'x' * 900) for i in range(10)])

# --- settings ---

def check_rate(app, threshold):
    k, told = sum(s >= threshold for s in REALS), said(app.sidebar, 'caption')
    assert f'{k} of 5 real validation images, {100 * k / 5:.1f} %' in told and 'interval' in told

def test_threshold(app, detector):
    files = [(f'{i}.jpg', face(i)) for i in range(10)]
    vs = detector.predict(files)
    upload(app, *files)
    check_rate(app, .5)
    for t in (5, 40, 60, 99.9):
        sound(app.slider(key='threshold').set_value(t).run())
        check_table(app, decided(vs, (min(t / 100, .5), t / 100)), 10)
        check_rate(app, t / 100)

def test_the_heatmap_is_for_the_verdict_that_is_shown(app, detector, saved):
    v, = detector.explain([('face.jpg', face(1))], band=(.2, .2))
    app.slider(key='threshold').set_value(20).run()
    assert cards(upload(app, ('face.jpg', face(1)))) == [card(v)] and v.verdict == 'fake'
    assert alike(pixels(saved['face-0-heatmap.png']), v.overlay(.6))

def test_weights_that_do_not_know_their_false_positives_say_so(variant, demo):
    told = said(demo(variant(real_scores=None)).sidebar, 'caption')
    assert 'do not tell the false-positive rate' in told and ' of 5 ' not in told

def test_doubt_is_shown_as_doubt(variant, demo):
    app, files = demo(path := variant(band=[.2, .8])), [(f'{i}.jpg', face(i)) for i in range(10)]
    vs = Detector.load(path).predict(files)
    assert {v.verdict for v in vs} == {'fake', 'real', 'uncertain'}
    assert '20.0 %' in said(app.sidebar, 'caption') and 'uncertain' in said(app.sidebar, 'caption')
    check_table(upload(app, *files), vs, 10)
    app.slider(key='threshold').set_value(99.9).run()
    check_table(app, decided(vs, (.2, .999)), 10)
    app.slider(key='threshold').set_value(80.).run()
    doubtful = next(v for v in vs if v.verdict == 'uncertain')
    upload(app, next(f for f in files if f[0] == doubtful.path))
    assert cards(app) == [card(doubtful)] and 'Evidence that it is' in captions(app)[1]
    told = 'Below 20 % no trace counts as found, from 80 % on a face is called AI-generated.'
    assert told in said(judge(app)) and told in axes(app)[0]

def test_the_url_sets_the_settings(demo, detector, saved):
    app = demo(threshold='30', heatmap='LayerCAM', whole='true', source='Examples')
    first = next(iter(examples()))
    v, = detector.explain([(first, examples()[first])], 'layercam', whole=True)
    assert app.slider(key='threshold').value == 30 and app.toggle(key='whole').value is True
    assert app.selectbox(key='heatmap').value == 'layercam'
    assert cards(app) == [card(decided([v], band_from(detector.band, .3))[0])]
    assert alike(pixels(saved[f'{Path(first).stem}-0-heatmap.png']), v.overlay(.6))
    check_rate(app, .3)

def test_a_nonsense_url_changes_nothing(demo, app):
    other = demo(threshold='3000', heatmap='<b>', whole='maybe', source='x', show='9',
                 weights='../../etc/passwd')
    values = [[w.value for w in (*a.slider, *a.selectbox, *a.toggle, *a.button_group)]
              for a in (other, app)]
    assert values[0] == values[1]

def test_other_weights(app, detector):
    upload(app, ('face.jpg', face(0)))
    app.slider(key='threshold').set_value(30.).run()
    sound(app.selectbox(key='weights').set_value('shipped').run())
    shipped = Detector.load()
    assert cards(app) == [card(v) for v in shipped.predict([('face.jpg', face(0))])]
    # a threshold belongs to its weights
    assert app.slider(key='threshold').value == pytest.approx(100 * shipped.band[1], abs=.051)
    app.selectbox(key='weights').set_value('noise.safetensors').run()
    assert cards(app) == [card(detector.predict([('face.jpg', face(0))])[0])]
    assert app.slider(key='threshold').value == 50

def test_how_good_is_it(app, demo):
    told = said(app.tabs[2], 'text')
    assert 'Nothing is recorded' in told and '64 × 64' in told and 'noise' in told
    tab, (text, counts) = demo(weights='shipped').tabs[2], read_card()
    assert len(tab.image) == len(list((SHIPPED.parent/'figures').glob('*.png'))) > 0
    assert all(i.proto.imgs[0].alt and i.captions[0] for i in tab.image)
    picture, = tab.get('html')
    assert picture.proto.body == verdict_bars(counts) and 'Stable Diffusion 3' in picture.proto.body
    assert texts(tab.markdown)[1] == text.strip() and '<!--' not in said(tab)

def test_what_lies_beside_the_weights_of_strangers(demo, checkpoint, tmp_path):
    """Their card could fetch an image from anywhere or say anything; their figures may be no
    images, or links to other files."""
    shutil.copy(checkpoint, tmp_path/'m.safetensors')
    (folder := tmp_path/'figures').mkdir()
    (tmp_path/'MODEL_CARD.md').write_text('![x](https://example.org/track.png) '
                                          '<script>alert(1)</script> [win](javascript:alert(1))')
    svg, link, loop, *_ = (folder/f'{name}.png' for name in FIGURES)
    svg.write_bytes(b'<svg onload="alert(1)">')
    link.symlink_to(checkpoint)
    loop.symlink_to(loop)
    tab = demo(tmp_path/'m.safetensors').tabs[2]
    assert not tab.image and not tab.markdown and 'example.org' not in said(tab, 'text')

@pytest.mark.parametrize('bias, expected', [(50, 'more than'), (-50, 'less than')])
def test_never_quite_certain(bias, expected, demo, tmp_path):
    model = build_model('random', seed=1)[0]
    model.fc.bias.data[FAKE] = bias
    save_checkpoint(path := tmp_path/'sure.safetensors', model, metadata(size=64, source='standin'))
    app = upload(demo(path), ('a.jpg', face(0)))
    assert f'Score: {expected} ' in axes(app)[0]
    assert 'drawn faces' in app.warning[0].value  # weights of the stand-in say so

@pytest.mark.parametrize('name, content, cause', [
    ('missing.safetensors', None, 'no such weights file'),
    ('damaged.safetensors', b'nonsense', 'not a safetensors file')])
def test_unusable_weights_are_one_line(name, content, cause, demo, tmp_path):
    if content: (tmp_path/name).write_bytes(content)
    app = demo(tmp_path/name)
    line, = texts(app.text)
    assert cause in line and name in line and '\n' not in line and not app.file_uploader
    sound(app.selectbox(key='weights').set_value('shipped').run())  # others may still be chosen
    assert app.file_uploader and not app.main.text[0].value.startswith('The model')

# --- in a browser ---

CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))),
                '/usr/bin/chromium')
browser_needed = pytest.mark.skipif(not Path(CHROMIUM).exists(), reason='no Chromium here')
linux_needed = pytest.mark.skipif(not Path('/proc/self/status').exists(),
                                  reason='memory is read from /proc')
FLAGS = ('--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking '
         '--disable-component-update --disable-sync').split()
COUNTED = ('import fakeface.detector as d; read = d.load_checkpoint; '
           'd.load_checkpoint = lambda p: (print("model read", flush=True), read(p))[1]; ')

@contextmanager
def serve(weights=None, no_files=False, before=''):
    """`(url, lines, pid)` of a running `streamlit run app.py`; `lines` is what it prints. With
    `no_files` the system refuses it every write to a file. `before` is Python run first."""
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    env = {k: v for k, v in os.environ.items() if k != 'FAKEFACE_WEIGHTS'}
    env |= dict(PYTHONDONTWRITEBYTECODE='1')
    if weights: env |= dict(FAKEFACE_WEIGHTS=str(weights))
    command = [sys.executable, '-c', before + 'from streamlit.web.cli import main; main()', 'run',
               str(ROOT/'app.py'), '--server.headless', 'true', '--server.port', str(port),
               '--browser.gatherUsageStats', 'false']
    limit = (lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))) if no_files else None
    server = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              text=True, preexec_fn=limit)
    lines, url = [], f'http://localhost:{port}'
    reader = threading.Thread(target=lambda: lines.extend(server.stdout), daemon=True)
    reader.start()
    try:
        for _ in range(600):
            try:
                healthy(url)
                break
            except OSError: time.sleep(.1)
            if server.poll() is not None: break
        else: server.kill()
        assert server.poll() is None, 'the app did not start:\n' + ''.join(lines)
        yield url, lines, server.pid
    finally:
        server.terminate()
        try: server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        reader.join(5)
        server.stdout.close()

def healthy(url):
    "Asks the server whether it is well; returns after how many seconds it said so."
    asked = time.monotonic()
    with urllib.request.urlopen(f'{url}/_stcore/health', timeout=30) as answer:
        assert answer.status == 200
    return time.monotonic() - asked

def superseded(message):
    """Whether the page misses only what a download button offered before a rerun replaced it;
    images are within the page, and every download is checked by its content."""
    return ('Download Button source error' in message.text
            or 'status of 404' in message.text and '/media/' in message.location['url'])

@contextmanager
def chromium():
    """`new(url, **options)` opens a page of headless Chromium for a visitor of its own; fails when
    a page logs an error."""
    sync_api = pytest.importorskip('playwright.sync_api')
    with sync_api.sync_playwright() as p:
        browser, complaints = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS), []
        def logged(m):
            if m.type == 'error' and not superseded(m): complaints.append(m.text)
        def new(url, **options):
            page = browser.new_context(**options).new_page()
            page.on('console', logged)
            page.on('pageerror', lambda e: complaints.append(str(e)))
            page.on('dialog', lambda d: (complaints.append(d.message), d.dismiss()))
            page.set_default_timeout(60000)
            page.goto(url, wait_until='commit')
            return page
        try:
            yield new
            assert not complaints
        finally: browser.close()

@pytest.fixture(scope='module')
def served(weights):
    "The demo, started once for the tests that only visit it."
    with serve(weights, no_files=True) as (url, lines, _): yield url, lines

def drop(page, *files):
    page.locator('input[type=file]').set_input_files(
        [dict(name=n, mimeType='image/jpeg', buffer=b) for n, b in files])

def heading(page, text): return page.get_by_role('heading', name=text)
def heatmap(page, name):
    return page.get_by_role('img', name=f'{name} with the heatmap over it', exact=True)
def slider(page): return page.get_by_role('slider', name='Call it AI-generated from')
def score(page): return page.get_by_role('img', name='Score: ').get_attribute('aria-label')

def offered(page, button):
    "Whether the button can be pressed: nothing runs that would replace it, and it is unfolded."
    page.locator('[data-test-script-state=notRunning]').wait_for()
    if button.is_visible(): return True
    page.get_by_text('How sure is that?').click()
    page.wait_for_timeout(300)
    return button.is_visible()

def download(page, name):
    button = page.get_by_role('button', name=name, exact=True)
    eventually(page, lambda: offered(page, button))
    with page.expect_download() as d: button.click()
    return d.value.suggested_filename, Path(d.value.path()).read_bytes()

def grid(page): return page.get_by_role('region', name='The verdicts')
def tick(page, i):  # the table is painted: a place is all there is to click on
    grid(page).click(position=dict(x=16, y=36 + 35 * i + 17))
def column(page, name):
    """The cells of a column that are in sight, as the table tells them to screen readers once it
    was clicked on; none while it is being painted."""
    heads = page.locator('[role=columnheader]').all_inner_texts()  # a sorted one has an arrow, too
    at = [i for i, h in enumerate(heads, 1) if name in h]
    return page.locator(f'[role=gridcell][aria-colindex="{at[0]}"]').all_inner_texts() if at else []

def eventually(page, true):
    for _ in range(200):
        if true(): return
        page.wait_for_timeout(100)
    assert true()

def quiet(lines, *names):
    "The server met no defect and tells its log no name of a file."
    printed = ''.join(lines)
    assert 'Traceback' not in printed and not [n for n in names if n in printed], printed

@browser_needed
def test_in_a_browser(served, detector):
    url, lines = served
    big = ('large.png', noise(3, 900))
    assert len(big[1]) > 2**20  # beyond this, Streamlit's server by itself would write a file
    more = [(f'{i:02}.jpg', face(i)) for i in range(15)] + [(HOSTILE[i], face(i)) for i in (0, 1)]
    more += [('two.png', photograph(2)), BROKEN, big]
    vs = detector.predict([('face.jpg', face(0)), *more])
    csv_of = lambda page: download(page, 'Download as CSV')[1].decode()
    with chromium() as new:
        drop(page := new(url), ('face.jpg', face(0)))
        heading(page, PHRASES[vs[0].verdict]).wait_for()
        for image in (page.get_by_role('img', name='face.jpg as the model saw it'),
                      heatmap(page, 'face.jpg')):
            image.wait_for()
            page.wait_for_function('i => i.complete && i.naturalWidth == 64',
                                   arg=image.element_handle())
        name, png = download(page, 'Download the heatmap')
        assert name == 'face-0-heatmap.png'
        assert alike(pixels(png), detector.explain(face(0))[0].overlay(.6))

        drop(page, *more)  # uploads add up, and may arrive in any order
        heading(page, summary(vs, 21)).wait_for()
        check_csv(csv_of(page), vs, any_order=True)
        name, text = download(page, 'Download as HTML')
        assert name == 'verdicts.html' and text.count(b'<tr>') == 1 + len(vs)
        assert escape(HOSTILE[1]).encode() in text and HOSTILE[1].encode() not in text

        tick(page, 0)
        heatmap(page, 'face.jpg').wait_for()
        grid(page).click(position=dict(x=320, y=18))  # on the heading 'Generated'
        numbers = lambda: [float(p or 'nan') for p in column(page, 'Generated')]
        known = lambda: [n for n in numbers() if n == n]
        eventually(page, lambda: len(known()) > 5 and all(np.diff(known()) >= 0))
        tick(page, next(i for i, n in enumerate(numbers()) if n == n))
        heatmap(page, min((v for v in vs if v.verdict), key=lambda v: v.p_fake).path).wait_for()
        page.get_by_role('button', name=f'{PHRASES["real"]} (').click()
        eventually(page, lambda: set(column(page, 'Verdict')) == {PHRASES['real']})
        check_csv(csv_of(page), [v for v in vs if v.verdict == 'real'], any_order=True)
        page.get_by_role('button', name=f'{PHRASES["real"]} (').click()

        slider(page).focus()  # by keyboard alone
        slider(page).press('Home')
        heading(page, summary(decided(vs, (.001, .001)), 21)).wait_for()
        page.get_by_text('5 of 5 real validation images').wait_for()
        entries = {'in/a.jpg': face(1), 'in/b.jpg': BROKEN[1]}
        drop(page, ('holiday.zip', zipped(**entries, **{'c.txt': b''})))
        vs += detector.predict([(f'holiday.zip/{n}', b) for n, b in entries.items()])
        heading(page, summary(decided(vs, (.001, .001)), 23)).wait_for()
        check_csv(csv_of(page), decided(vs, (.001, .001)), any_order=True)
    quiet(lines, 'face.jpg', 'large.png', 'broken.jpg', 'holiday.zip', HOSTILE[0])

@browser_needed
@pytest.mark.slow
@pytest.mark.parametrize('colours', ['light', 'dark'])
def test_a_phone_sees_the_answer_at_once(colours):
    "An example, by keyboard; the verdict and its score are in sight, and nothing is cut off."
    with serve() as (url, lines, _), chromium() as new:
        page = new(url, viewport=dict(width=390, height=844), color_scheme=colours)
        first = page.get_by_role('button', name='Generated face 1', exact=True)
        first.focus()
        first.press('Enter')
        heading(page, PHRASES['fake']).wait_for()
        heatmap(page, 'generated face 1.jpg').wait_for()
        seen = page.get_by_role('img', name='Score: ').bounding_box()
        assert 0 < seen['y'] < 844 and seen['x'] >= 0 and seen['x'] + seen['width'] <= 390
        page.get_by_role('tab', name='How good is it').click()
        page.get_by_role('rowheader', name='Stable Diffusion 3').wait_for()
        assert page.evaluate('document.documentElement.scrollWidth') <= 390
    quiet(lines)

@browser_needed
@pytest.mark.slow
def test_a_link_keeps_the_settings(served, detector):
    """What one visitor sets stands in the address, and another who opens it finds it set; the other
    one likes it dark."""
    url, lines = served
    name = next(iter(examples()))
    with chromium() as new:
        page = new(url)
        page.get_by_text('Examples', exact=True).click()
        page.get_by_text('Judge whole images').click()
        page.get_by_role('combobox', name='Heatmap').fill('Layer')
        page.keyboard.press('Enter')
        slider(page).focus()
        for key in ('End', 'ArrowLeft'): slider(page).press(key)
        told = ('threshold=99.8', 'heatmap=LayerCAM', 'whole=true', 'source=Examples')
        eventually(page, lambda: all(s in page.url for s in told))
        other = new(page.url, color_scheme='dark')
        heatmap(other, name).wait_for()
        v, = detector.explain([(name, examples()[name])], 'layercam', whole=True)
        assert slider(other).input_value() == '99.8'
        assert other.get_by_role('switch', name='Judge whole images').is_checked()
        heading(other, PHRASES[decided([v], band_from(detector.band, .998))[0].verdict]).wait_for()
        assert alike(pixels(download(other, 'Download the heatmap')[1]), v.overlay(.6))
        ground = other.locator('.stApp').evaluate('e => getComputedStyle(e).backgroundColor')
        assert max(map(int, re.findall(r'\d+', ground)[:3])) < 60
        for tab in ('What a verdict means', 'How good is it'):
            other.get_by_role('tab', name=tab).click()
    quiet(lines)

def memory(pid, name):
    "VmRSS (memory now) or VmHWM (at most, so far) of a process in MB."
    status = Path(f'/proc/{pid}/status').read_text()
    return int(re.search(rf'{name}:\s+(\d+) kB', status)[1]) / 1024

@browser_needed
@linux_needed
@pytest.mark.slow
def test_ten_visitors_at_once(weights, detector, capsys):
    "Each gets verdict and heatmap of an own image by own settings, and all share one model."
    asked = [(f'{i}.jpg', face(i), list(METHODS)[i % 3], 10 * i + 5) for i in range(10)]
    alone = [detector.explain([(n, b)], m, band=band_from(detector.band, t / 100))[0]
             for n, b, m, t in asked]
    with serve(weights, no_files=True, before=COUNTED) as (url, lines, pid), chromium() as new:
        pages = [new(f'{url}/?heatmap={METHODS[m]}&threshold={t}') for _, _, m, t in asked]
        for p in pages: p.locator('input[type=file]').wait_for(state='attached')
        for p, (n, b, _, _) in zip(pages, asked): drop(p, (n, b))
        for p, v in zip(pages, alone):
            heatmap(p, v.path).wait_for()
            assert heading(p, PHRASES[v.verdict]).count() == 1 and fits(score(p), v.p_fake)
            assert alike(pixels(download(p, 'Download the heatmap')[1]), v.overlay(.6))
            assert p.get_by_role('img', name='with the heatmap over it').count() == 1
        assert not any(alike(a.overlay(.6), b.overlay(.6))
                       for a in alone for b in alone if a is not b)
        with capsys.disabled(): print(f' [ten visitors: {memory(pid, "VmHWM"):.0f} MB] ', end='')
    assert lines.count('model read\n') == 1
    quiet(lines)

BAD = {'cut.jpg': face(0)[:400], 'page.jpg': b'<html><script>alert(1)</script></html>',
       'drawing.png': b'<svg xmlns="http://www.w3.org/2000/svg"/>', 'zeros.webp': bytes(5000)}

@browser_needed
@linux_needed
@pytest.mark.slow
def test_twenty_visitors_for_a_while(weights, detector, capsys):
    """They come again and again with another image, a bad file in every fourth visit, for
    FAKEFACE_LOAD seconds: each sees the answer to its own file and to no other, the server says
    that it is well, and in the end holds no more memory than after their first visits."""
    seconds = float(os.environ.get('FAKEFACE_LOAD', 10))
    good = {i: detector.predict([('x', face(i))])[0] for i in range(40)}
    bad = [(n, b, detector.predict([(n, b)])[0].error.split(': ')[-1]) for n, b in BAD.items()]
    rounds, slowest, rng = 0, 0, np.random.default_rng(0)
    with serve(weights, no_files=True, before=COUNTED) as (url, lines, pid), chromium() as new:
        pages, start = [new(url) for _ in range(20)], time.monotonic()
        while not rounds or time.monotonic() - start < seconds:
            visits = []
            for k, p in enumerate(pages):
                if rounds: p.goto(url, wait_until='commit')
                p.locator('input[type=file]').wait_for(state='attached')
                i = int(rng.integers(40))
                name, content, cause = bad[i % 4] if i % 4 == k % 4 else ('.jpg', face(i), '')
                visits.append((p, f'{rounds}-{k}-{name}', i, cause))
                drop(p, (visits[-1][1], content))
            for p, name, i, cause in visits:
                heading(p, PHRASES['' if cause else good[i].verdict]).wait_for()
                seen = p.locator('.stApp').inner_text()
                assert cause in seen if cause else fits(score(p), good[i].p_fake)
                assert set(re.findall(r'\d+-\d+-[a-z]*\.\w+', seen)) == {name}
            slowest, rounds = max(slowest, healthy(url)), rounds + 1
            if rounds == 1: base = memory(pid, 'VmRSS')
        rest = memory(pid, 'VmRSS')
    with capsys.disabled():
        print(f' [twenty visitors, {20 * rounds} visits in {time.monotonic() - start:.0f} s: '
              f'{base:.0f} MB after the first, {rest:.0f} MB after the last, slowest health check '
              f'{slowest:.2f} s] ', end='')
    assert lines.count('model read\n') == 1 and rest < base + 100 and slowest < 5
    quiet(lines)

@browser_needed
@linux_needed
@pytest.mark.slow
def test_three_hundred_images(capsys):
    "By the shipped weights: in bounded memory, and the server goes on answering."
    files, slowest, polls, start = {}, 0, 0, time.monotonic()
    for i in range(300):
        drawn = Image.open(io.BytesIO(face(i % 20)))
        drawn.save(out := io.BytesIO(), 'JPEG', quality=95 - i // 20)
        files[f'{i}.jpg'] = out.getvalue()
    with serve(no_files=True) as (url, lines, pid), chromium() as new:
        drop(page := new(url), ('many.zip', zipped(**files)))
        page.get_by_text(re.compile(r'\d+ of 300 judged')).wait_for()
        before = memory(pid, 'VmRSS')
        while not heading(page, '300 images: ').count():
            polls, slowest = polls + 1, max(slowest, healthy(url))
            page.wait_for_timeout(200)
            assert time.monotonic() - start < 300
        _, *rows = csv.reader(io.StringIO(download(page, 'Download as CSV')[1].decode()))
        peak, took = memory(pid, 'VmHWM'), time.monotonic() - start
    with capsys.disabled():
        print(f' [300 images: {peak:.0f} MB at most, {before:.0f} MB soon after the start, '
              f'{took:.0f} s, slowest of {polls} answers {slowest:.2f} s] ', end='')
    assert [r[0] for r in rows] == [f'many.zip/{i}.jpg' for i in range(300)]
    assert sum(bool(r[3]) for r in rows) > 270
    assert peak < 1500 and polls >= 5 and slowest < 5
    quiet(lines, 'many.zip')

@browser_needed
@pytest.mark.skipif('FAKEFACE_SCREENSHOT' not in os.environ, reason=(
    'makes the pictures of the README; set FAKEFACE_SCREENSHOT to a folder, and '
    'FAKEFACE_SCREENSHOT_IMAGES to files if not to the examples'))
@pytest.mark.parametrize('view', ['app', 'table'])
def test_screenshot(view):
    "One image in full, as app.png, and all in a table, as table.png."
    target = Path(os.environ['FAKEFACE_SCREENSHOT'])/f'{view}.png'
    given = os.environ.get('FAKEFACE_SCREENSHOT_IMAGES', '').split(os.pathsep)
    files = [(Path(p).name, Path(p).read_bytes()) for p in given if p] or [*examples().items()]
    size = dict(width=1280, height=1000)
    with serve(os.environ.get('FAKEFACE_WEIGHTS')) as (url, *_), chromium() as new:
        page = new(url, viewport=size)  # of the shipped weights if none are named
        drop(page, *(files if view == 'table' else files[:1]))
        (grid(page) if view == 'table' else heatmap(page, files[0][0])).wait_for()
        page.locator('[data-test-script-state=notRunning]').wait_for()
        block = 'document.querySelector("[data-testid=stMainBlockContainer]").scrollHeight'
        page.set_viewport_size(size | dict(height=min(page.evaluate(block), 1050)))
        page.wait_for_timeout(2000)  # until the layout rests
        picture = Image.open(io.BytesIO(page.screenshot())).convert('RGB')
    target.parent.mkdir(parents=True, exist_ok=True)
    picture.save(target, 'PNG', optimize=True)
    if target.stat().st_size >= 300_000:  # Pillow dithers only to a palette it is given
        colours = picture.quantize(255)
        colours.putpalette([*colours.getpalette()[:765], 255, 255, 255])  # the page stays white
        picture.quantize(palette=colours, dither=Image.Dither.FLOYDSTEINBERG).save(
            target, 'PNG', optimize=True)
    assert target.stat().st_size < 300_000
