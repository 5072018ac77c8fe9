"The demo as people meet it: through Streamlit's own test harness, and in a real browser where there is one."

import csv, io, os, re, resource, shutil, socket, subprocess, sys, threading, time, urllib.request, zipfile
from collections import Counter
from contextlib import contextmanager
from functools import cache, partial
from html import escape
from pathlib import Path

import numpy as np
import pytest
import streamlit as st
from PIL import Image
from scipy.special import logit
from streamlit.delta_generator import DeltaGenerator
from streamlit.testing.v1 import AppTest

from fakeface import detector as detecting, images
from fakeface.core import FAKE
from fakeface.images import open_image
from fakeface.detector import FIGURES, COLUMNS, METHODS, SAYS, SHIPPED, Detector, band_from, decided, examples, table_row
from fakeface.model import build_model, load_checkpoint, metadata, save_checkpoint
from fakeface.standin import make_pair

ROOT = Path(__file__).resolve().parent.parent
HOSTILE = ['**x**[a](b).jpg', '<img src=x onerror=alert(1)>.jpg', ':red[r] $e^x$ `c` https___example.org.jpg', '# h _u_ ~~s~~.png']
BROKEN = ('broken.jpg', b'\xff\xd8\xff\xe0 and no more')
REALS = [.05, .15, .35, .55, .95]  # scores of validation images, as a checkpoint keeps them

@cache
def face(i):
    "A drawn face as JPEG: the finder takes it for a crop."
    return make_pair('test', i, size=128)[0]

@cache
def photograph(faces=1):
    "The sample photograph of matplotlib, or its face this many times beside each other, as an image file."
    jpeg = examples()['photograph of Grace Hopper.jpg']
    return jpeg if faces == 1 else encode(np.concatenate([open_image(jpeg)[:, 50:450, 60:460]] * faces, 2))

def encode(pixels, format='PNG'): Image.fromarray(pixels.transpose(1, 2, 0)).save(out := io.BytesIO(), format); return out.getvalue()
def noise(seed, side=64): return encode((np.random.default_rng(seed).integers(0, 256, (3, 1, 1)) * .5 + np.random.default_rng(seed).integers(0, 128, (3, side, side))).astype(np.uint8))

def zipped(**files):
    with zipfile.ZipFile(out := io.BytesIO(), 'w') as z:
        for name, content in files.items(): z.writestr(name, content)
    return out.getvalue()

@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    "A random model whose threshold lies amid its scores of `face(0)` to `face(9)`, so that both verdicts occur."
    path, model = tmp_path_factory.mktemp('weights')/'noise.safetensors', build_model('random', seed=1)[0]
    scores = [v.p_fake for v in Detector(model, metadata(size=64), 'cpu').predict([face(i) for i in range(10)])]
    model.fc.bias.data[FAKE] -= float(np.median(logit(scores)))
    save_checkpoint(path, model, metadata(size=64, temperature=.05, source='noise', real_scores=REALS))
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
        return app.run()
    return start

@pytest.fixture
def app(demo): return demo()

@pytest.fixture
def saved(monkeypatch):
    "What the download buttons of a page offer, by file name."
    offered, button = {}, DeltaGenerator.download_button
    def keep(self, label, data, name, *a, **k): offered[name] = data; return button(self, label, data, name, *a, **k)
    monkeypatch.setattr(st, 'download_button', partial(keep, st.download_button.__self__))
    monkeypatch.setattr(DeltaGenerator, 'download_button', keep)
    return offered

def upload(app, *files):
    app.file_uploader[0].set_value([(n, b, 'image/jpeg') for n, b in files]).run()
    return sound(app)

def sound(app):
    assert not app.exception, app.exception
    return app

def texts(elements): return [e.value for e in elements]
def judge(app): return app.tabs[0]
def named(v): return v.path + (f', face {v.face}' if v.face else '')
def card(v): return SAYS[v.verdict].casefold(), named(v)
def cards(app):
    "`(verdict, name)` of the faces shown in full."
    headings = [h.split(' ', 1)[1].casefold() for h in texts(judge(app).subheader) if not re.match(r'(\d+ )?images.*: ', h)]
    return list(zip(headings, [t.split('\n')[0] for t in texts(judge(app).text) if not re.match(NOT_A_NAME, t)], strict=True))

def fits(text, p):
    "Whether the words over the bar say `p`, without being surer than whole percents."
    bound, number = re.fullmatch(r'Probability that it was generated: (less than |more than |)([\d.]+) %', text).groups()
    return {'': abs(float(number) - 100 * p) <= .5, 'less than ': 100 * p < float(number) <= 1, 'more than ': 100 * p > float(number) >= 99}[bound]

def bars(app): return [p.proto.text for p in app.get('progress')]
def bars_fit(app, vs): return len(bars(app)) == len(vs) and all(fits(t, v.p_fake) for t, v in zip(bars(app), vs))
def alts(app): return [i.proto.imgs[0].alt for i in judge(app).image]
def captions(app): return sum((i.captions for i in judge(app).image), [])
def pixels(png): return np.asarray(Image.open(io.BytesIO(png)).convert('RGB')).astype(int)
def alike(a, b): return np.shape(a) == np.shape(b) and np.abs(np.subtract(a, b, dtype=int)).max() <= 3
def summary(vs, n):
    count = Counter(v.verdict for v in vs); faces = sum(bool(v.verdict) for v in vs)
    return f'{n} images' + (f' with {faces} faces' if faces + count[''] != n else '') + ': ' + ', '.join(f'{count[k]} {SAYS[k]}' for k in SAYS if count[k])

def check_table(app, vs, n):
    "The table and the line over it tell these verdicts of `n` images."
    table = app.dataframe[0].value
    assert texts(judge(app).subheader)[0] == summary(vs, n)
    assert list(table.File) == [named(v) for v in vs] and list(table.Verdict) == [SAYS[v.verdict] for v in vs]
    assert np.allclose(table.Generated.astype(float).fillna(-1), [-1 if v.error else 100 * v.p_fake for v in vs], atol=1e-3)
    assert list(table.get('Reason', [''] * len(vs))) == [v.error for v in vs]
    assert [isinstance(f, str) and f.startswith('data:image/jpeg;base64,') for f in table.Face] == [not v.error for v in vs]

def check_csv(text, vs, any_order=False):
    head, *rows = csv.reader(io.StringIO(text))
    if any_order: rows.sort(); vs = sorted(vs, key=table_row)
    assert tuple(head) == COLUMNS and [r[:2] + r[3:] for r in rows] == [table_row(v)[:2] + table_row(v)[3:] for v in vs]
    assert all(abs(float(r[2]) - v.p_fake) < 1e-5 if v.verdict else r[2] == '' for r, v in zip(rows, vs))

# --- one image ---

def test_empty_page(app):
    sound(app)
    assert texts(app.title) == ['Real or generated?'] and [t.label for t in app.tabs] == ['Judge', 'What a verdict means', 'How good is it']
    assert app.file_uploader[0].accept_multiple_files and {'.zip', '.jpg'} <= set(app.file_uploader[0].allowed_type)
    assert not judge(app).subheader and not judge(app).image and not app.dataframe and not app.download_button and not app.warning
    about = '\n'.join(texts(app.tabs[1].markdown))
    assert 'no proof' in about and 'StyleGAN' in about and 'other generators' in about.lower()
    assert 'not proof' in app.markdown[0].value and 'written to disk' in ' '.join(texts(judge(app).caption))

def test_one_crop_gets_the_detectors_verdict(app, detector, saved):
    for i, verdict in (7, 'fake'), (6, 'real'):
        v, = detector.explain([('face.jpg', face(i))])
        upload(app, ('face.jpg', face(i)))
        assert v.verdict == verdict and cards(app) == [card(v)] and bars_fit(app, [v])
        assert captions(app) == ['What the model saw', f'Evidence that it is {dict(fake="generated").get(verdict, verdict)}'] and all('face.jpg' in a for a in alts(app))
        assert alike(pixels(saved.pop('face-0-heatmap.png')), v.overlay(.6)) and not saved
        assert not app.dataframe  # one image needs no table

def test_faces_of_a_photograph(app, detector, saved):
    for n in (1, 2):
        vs = detector.explain([('people.jpg', photograph(n))])
        upload(app, ('people.jpg', photograph(n)))
        assert len(vs) == n and cards(app) == [card(v) for v in vs] and [v.face for v in vs] == [1, 2][:n]
        assert bars_fit(app, vs)
        assert captions(app).count('What the model saw') == n and [c for c in captions(app) if 'judged' in c] == [['1 face judged'], ['2 faces judged']][n - 1]
        assert sum('box around each face' in a for a in alts(app)) == 1
        for v in vs: assert alike(pixels(saved[f'people-{v.face}-heatmap.png']), v.overlay(.6))

def test_the_heading_keeps_capitals(app):
    assert SAYS['fake'] in upload(app, ('face.jpg', face(7))).tabs[0].subheader[0].value.replace('Likely', 'likely')

def test_an_image_without_a_face_says_so(app, detector):
    upload(app, ('wall.png', noise(0)))
    assert cards(app) == [(SAYS[''], 'wall.png')] and 'Reason: no face found' in texts(judge(app).text)
    assert not judge(app).image and not bars(app) and not app.download_button
    upload(app, BROKEN)
    assert cards(app) == [(SAYS[''], BROKEN[0])] and f'Reason: {detector.predict([BROKEN])[0].error}' in texts(judge(app).text)

def test_whole_images(app, detector):
    app.toggle(key='whole').set_value(True).run()
    for name, content in (('wall.png', noise(0)), ('people.jpg', photograph())):
        v, = detector.predict([(name, content)], whole=True)
        upload(app, (name, content))
        assert cards(app) == [card(v)] and v.face == 0 and not [a for a in alts(app) if 'box' in a] and bars_fit(app, [v])
    app.toggle(key='whole').set_value(False).run()
    assert cards(app)[0][1] == 'people.jpg, face 1'  # judged again, the other way

def test_heatmaps(app, detector, saved):
    upload(app, ('face.jpg', face(0)))
    assert app.selectbox(key='heatmap').options == list(METHODS.values())
    seen, before = {}, (cards(app), bars(app))
    for method in METHODS:
        sound(app.selectbox(key='heatmap').set_value(method).run())
        v, = detector.explain([('face.jpg', face(0))], method)
        seen[method] = pixels(saved['face-0-heatmap.png'])
        assert alike(seen[method], v.overlay(.6)) and (cards(app), bars(app)) == before
    assert not any(alike(seen[a], seen[b]) for a in METHODS for b in METHODS if a < b)
    app.slider(key='opacity').set_value(0).run()
    assert alike(pixels(saved['face-0-heatmap.png']), v.image.transpose(1, 2, 0))
    app.slider(key='opacity').set_value(100).run()
    assert alike(pixels(saved['face-0-heatmap.png']), v.overlay(1))

def test_camera(app, detector):
    sound(app.button_group(key='source').set_value('Camera').run())
    assert not app.file_uploader and not judge(app).subheader
    sound(app.camera_input[0].set_value(('shot.jpg', photograph(), 'image/jpeg')).run())
    assert cards(app) == [card(v) for v in detector.predict([('shot.jpg', photograph())])]

def test_examples(app, detector):
    sound(app.button_group(key='source').set_value('Examples').run())
    pick, known = judge(app).button_group[1], detector.predict(examples().items())
    assert pick.options == list(examples()) and cards(app) == [card(known[0])]
    sound(pick.set_value(list(examples())).run())
    check_table(app, known, len(examples()))
    sound(judge(app).button_group[1].set_value([]).run())
    assert not judge(app).subheader

# --- many images ---

def test_many_images_one_broken(app, detector, saved):
    files = [('a.jpg', face(0)), BROKEN, ('b.jpg', face(1)), ('two.png', photograph(2)), ('empty.png', b''), ('wall.png', noise(0))]
    vs = detector.predict(files)
    upload(app, *files)
    assert {'fake', 'real', ''} == {v.verdict for v in vs} and len(vs) == 7
    check_table(app, vs, 6)
    check_csv(saved['verdicts.csv'], vs)
    page = saved['verdicts.html']
    assert page.lower().startswith('<!doctype html>') and page.count('<tr>') == 1 + 7 and page.count('<img') == 4 and all(named(v) in page and v.error in page for v in vs)
    assert not cards(app)

def test_filter_and_selection(app, detector, saved):
    files = [(f'{i}.jpg', face(i)) for i in range(6)] + [('two.png', photograph(2)), BROKEN]
    vs = detector.predict(files)
    upload(app, *files)
    for kind in ('real', 'fake', ''):
        sound(app.button_group(key='show').set_value([kind]).run())
        kept = [v for v in vs if v.verdict == kind]
        assert list(app.dataframe[0].value.File) == [named(v) for v in kept] and texts(judge(app).subheader)[0] == summary(vs, len(files))
        check_csv(saved['verdicts.csv'], kept)
        assert saved['verdicts.html'].count('<tr>') == 1 + len(kept)
    app.button_group(key='show').set_value([]).run()
    for i in (3, 6, 7, 8):
        app.session_state['table'] = dict(selection=dict(rows=[i], columns=[], cells=[]))
        sound(app.run())
        assert cards(app) == [card(vs[i])] + [card(v) for j, v in enumerate(vs) if v.path == vs[i].path and j != i]  # a photograph with all of its faces, the chosen one first
    assert any('heatmap' in n for n in saved)

def test_a_folder(app, detector):
    sound(app.button_group(key='source').set_value('Folder').run())
    assert app.file_uploader[0].accept_directory
    upload(app, ('holiday/a.jpg', face(0)), ('holiday/b.jpg', face(1)))
    assert [n.split('/')[-1] for n in app.dataframe[0].value.File] == ['a.jpg', 'b.jpg']

def test_zip(app, detector):
    entries = {'a.jpg': face(0), 'sub/B.JPG': face(1), '../../up.jpg': face(2), '/root.png': noise(0), 'cut.jpg': face(3)[:700], BROKEN[0]: BROKEN[1]}
    others = {'notes.txt': b'x', '__MACOSX/._a.jpg': b'x', '.hidden.jpg': b'x', 'inner.zip': b'x'}
    vs = detector.predict([('holiday.zip/' + n, b) for n, b in entries.items()])
    upload(app, ('holiday.zip', zipped(**entries, **others)))
    check_table(app, vs, len(entries))
    assert sum(bool(v.error) for v in vs) == 3 and not Path('/root.png').exists() and not list(ROOT.parent.parent.glob('up.jpg'))
    app.session_state['table'] = dict(selection=dict(rows=[2], columns=[], cells=[]))
    assert cards(sound(app.run())) == [card(vs[2])]
    upload(app, ('one.zip', zipped(**{'a.jpg': face(0)})))
    assert [n for _, n in cards(app)] == ['one.zip/a.jpg']

@pytest.mark.parametrize('content, cause', [(b'PK\x03\x04 and no more', 'damaged ZIP'), (b'', 'damaged ZIP'), (zipped(**{'a.txt': b'x'}), 'no images'),
                                            (zipped(**{f'{i}.jpg': b'' for i in range(1001)}), '1001 images')], ids=['cut', 'empty', 'texts', 'many'])
def test_a_zip_that_is_none(content, cause, app, detector):
    upload(app, ('x.zip', content))
    assert cards(app) == [(SAYS[''], 'x.zip')] and cause in texts(judge(app).text)[1]
    upload(app, ('x.zip', content), ('a.jpg', face(0)))
    assert list(app.dataframe[0].value.Verdict) == [SAYS[''], SAYS[detector.predict(face(0))[0].verdict]] and cause in app.dataframe[0].value.Reason[0]

def test_a_locked_zip_entry_is_an_error(app):
    data = bytearray(zipped(**{'a.jpg': face(0)}))
    for mark, at in ((b'PK\x03\x04', 6), (b'PK\x01\x02', 8)): data[data.index(mark) + at] |= 1  # says it is encrypted
    upload(app, ('x.zip', bytes(data)))
    assert cards(app) == [(SAYS[''], 'x.zip/a.jpg')] and 'cannot be taken out' in texts(judge(app).text)[1]

def test_hostile_names_stay_text(app):
    def check():
        markdown = [e for kind in ('markdown', 'caption', 'title', 'header', 'subheader', 'error', 'warning', 'info', 'success') for e in texts(app.get(kind))]
        markdown += captions(app) + bars(app) + [b.label for b in app.download_button]
        assert not [m for m in markdown for n in HOSTILE if n in m] and not any(getattr(m.proto, 'allow_html', False) for m in app.markdown)
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
    judged, judge_batch = [], detecting.judge_batch
    monkeypatch.setattr(detecting, 'judge_batch', lambda d, batch, explain, *band: (judged.extend(bool(explain) for _ in batch), judge_batch(d, batch, explain, *band))[1])
    upload(app, *[(f'{i}.jpg', face(i)) for i in range(9)])
    assert judged == [False] * 9
    for change in (lambda: app.slider(key='threshold').set_value(30), lambda: app.button_group(key='show').set_value(['fake']), lambda: app.selectbox(key='heatmap').set_value('layercam')):
        change().run()
        assert judged == [False] * 9  # and no heatmap of what nobody looks at
    app.session_state['table'] = dict(selection=dict(rows=[0], columns=[], cells=[]))
    app.run(); app.slider(key='opacity').set_value(100).run()
    assert judged == [False] * 9 + [True]
    app.file_uploader[0].clear().run()
    assert not judge(app).subheader and not app.session_state.verdicts  # forgotten with the upload

def test_sessions_do_not_see_each_other(app, demo):
    upload(app, ('mine.jpg', face(0)))
    other = demo()
    assert not cards(other) and 'mine.jpg' not in texts(other.text) and not other.session_state.verdicts
    upload(other, ('theirs.jpg', face(1)))
    assert [[n for _, n in cards(a)] for a in (app.run(), other)] == [['mine.jpg'], ['theirs.jpg']]

def test_sessions_share_one_model(weights, demo, tmp_path, monkeypatch):
    loaded = []
    monkeypatch.setattr(detecting, 'load_checkpoint', lambda path: (loaded.append(path), load_checkpoint(path))[1])
    shutil.copyfile(weights, tmp_path/'new.safetensors')
    for i in range(3): assert cards(upload(demo(tmp_path/'new.safetensors'), ('a.jpg', face(i))))
    assert len(loaded) == 1

def test_bounds_in_count_and_bytes(app, monkeypatch):
    upload(app, *[(f'{i}.jpg', b'x') for i in range(501)])
    assert len(app.dataframe[0].value) == 500 and 'first 500 of 501' in app.warning[0].value
    upload(app, ('a.jpg', b'x'), ('x.zip', zipped(**{f'{i}.jpg': b'x' for i in range(502)})))
    assert len(app.dataframe[0].value) == 500 and 'first 500 of 503' in app.warning[0].value
    monkeypatch.setattr(images, 'MAX_BYTES', 1000)  # of one file; eight times that together
    upload(app, *[(f'{i}.jpg', b'x' * 900) for i in range(10)])
    assert len(app.dataframe[0].value) == 8 and 'first 8 of 10' in app.warning[0].value

# --- settings ---

def check_rate(app, threshold):
    k, said = sum(s >= threshold for s in REALS), ' '.join(texts(app.sidebar.caption))
    assert f'{k} of {len(REALS)} real validation images, {100 * k / len(REALS):.1f} %' in said and 'interval' in said

def test_threshold(app, detector):
    files = [(f'{i}.jpg', face(i)) for i in range(10)]
    vs = detector.predict(files)
    upload(app, *files)
    check_rate(app, .5)
    for t in (5, 40, 60, 99.9):
        sound(app.slider(key='threshold').set_value(t).run())
        check_table(app, decided(vs, (t / 100, t / 100) if t < 50 else (.5, t / 100)), 10)
        check_rate(app, t / 100)

def test_the_heatmap_is_for_the_verdict_that_is_shown(app, detector, saved):
    v, = Detector(detector.model, detector.meta | dict(threshold=.2, band=[.2, .2])).explain([('face.jpg', face(1))])
    app.slider(key='threshold').set_value(20).run()
    assert cards(upload(app, ('face.jpg', face(1)))) == [card(v)] and v.verdict == 'fake'
    assert alike(pixels(saved['face-0-heatmap.png']), v.overlay(.6))

def test_weights_that_do_not_know_their_false_positives_say_so(weights, demo, tmp_path):
    model, meta = load_checkpoint(weights)
    save_checkpoint(path := tmp_path/'silent.safetensors', model, {k: v for k, v in meta.items() if k != 'real_scores'})
    said = ' '.join(texts(demo(path).sidebar.caption))
    assert 'do not tell the false-positive rate' in said and ' of 5 ' not in said

def test_doubt_is_shown_as_doubt(weights, demo, tmp_path):
    model, meta = load_checkpoint(weights)
    save_checkpoint(path := tmp_path/'doubt.safetensors', model, meta | dict(band=[.2, .8]))
    app, files = demo(path), [(f'{i}.jpg', face(i)) for i in range(10)]
    vs = Detector.load(path).predict(files)
    assert {v.verdict for v in vs} == {'fake', 'real', 'uncertain'} and '20.0 %' in ' '.join(texts(app.sidebar.caption))
    check_table(upload(app, *files), vs, 10)
    app.slider(key='threshold').set_value(99.9).run()
    check_table(app, decided(vs, (.2, .999)), 10)
    app.slider(key='threshold').set_value(80.).run()
    doubtful = next(v for v in vs if v.verdict == 'uncertain')
    upload(app, next(f for f in files if f[0] == doubtful.path))
    assert cards(app) == [card(doubtful)] and captions(app)[0] == 'What the model saw' and 'Evidence that it is' in captions(app)[1]  # doubt is explained too
    assert 'Below 20 % no trace would count as found, from 80 % on it would be called AI-generated. Between these two' in ' '.join(texts(judge(app).markdown))
    assert 'uncertain' in ' '.join(texts(app.sidebar.caption))

def test_the_url_sets_the_settings(demo, detector, saved):
    app, shot = sound(demo(threshold='30', heatmap='LayerCAM', whole='true', source='Examples')), 'photograph of Grace Hopper.jpg'
    v, = detector.explain([(shot, photograph())], 'layercam', whole=True)
    assert app.slider(key='threshold').value == 30 and app.selectbox(key='heatmap').value == 'layercam' and app.toggle(key='whole').value is True
    assert cards(app) == [card(decided([v], band_from(detector.band, .3))[0])] and alike(pixels(saved[f'{Path(shot).stem}-0-heatmap.png']), v.overlay(.6))
    check_rate(app, .3)

def test_a_nonsense_url_changes_nothing(demo, app):
    other = sound(demo(threshold='3000', heatmap='<b>', whole='maybe', source='x', weights='../../etc/passwd', show='9'))
    assert [w.value for w in (*other.slider, *other.selectbox, *other.toggle, *other.button_group)] == [w.value for w in (*app.slider, *app.selectbox, *app.toggle, *app.button_group)]

def test_other_weights(app, detector):
    upload(app, ('face.jpg', face(0)))
    app.slider(key='threshold').set_value(30.).run()
    sound(app.selectbox(key='weights').set_value('shipped').run())
    v, = (shipped := Detector.load()).predict([('face.jpg', face(0))])
    assert cards(app) == [card(v)] and app.slider(key='threshold').value == pytest.approx(100 * shipped.band[1], abs=.051)  # a threshold belongs to its weights
    app.selectbox(key='weights').set_value('noise.safetensors').run()
    assert cards(app) == [card(detector.predict([('face.jpg', face(0))])[0])] and app.slider(key='threshold').value == 50

def test_how_good_is_it(app, demo):
    assert 'Nothing is recorded' in ' '.join(texts(app.tabs[2].text)) and '64 × 64' in app.tabs[2].text[0].value and 'noise' in app.tabs[2].text[0].value
    tab = sound(demo(weights='shipped')).tabs[2]
    assert len(tab.image) == len(list((SHIPPED.parent/'figures').glob('*.png'))) > 0 and all(i.proto.imgs[0].alt and i.captions[0] for i in tab.image)
    head, _, rest = (SHIPPED.parent/'MODEL_CARD.md').read_text(encoding='utf-8').partition('<!-- /short -->')
    assert texts(tab.markdown) == [head.strip(), rest.strip()] and 'may say "uncertain"' in head

def test_what_lies_beside_the_weights_of_strangers(demo, checkpoint, tmp_path):
    "Their card could fetch an image from anywhere or say anything; their figures may be no images, or links to other files."
    shutil.copy(checkpoint, tmp_path/'m.safetensors'); (tmp_path/'figures').mkdir()
    (tmp_path/'MODEL_CARD.md').write_text('![x](https://example.org/track.png) <script>alert(1)</script> [win](javascript:alert(1))')
    names = iter(FIGURES)
    (tmp_path/'figures'/f'{next(names)}.png').write_bytes(b'<svg onload="alert(1)">')
    (tmp_path/'figures'/f'{next(names)}.png').symlink_to(checkpoint)
    (loop := tmp_path/'figures'/f'{next(names)}.png').symlink_to(loop)
    tab = sound(demo(tmp_path/'m.safetensors')).tabs[2]
    assert not tab.image and not tab.markdown and 'example.org' not in ' '.join(texts(tab.text))

def test_never_quite_certain(demo, tmp_path):
    for bias, expected in ((50, 'more than'), (-50, 'less than')):
        model = build_model('random', seed=1)[0]
        model.fc.bias.data[FAKE] = bias
        save_checkpoint(tmp_path/f'{bias}.safetensors', model, metadata(size=64, source='standin'))
        app = upload(demo(tmp_path/f'{bias}.safetensors'), ('a.jpg', face(0)))
        assert f'generated: {expected} ' in bars(app)[0]
        assert 'drawn faces' in app.warning[0].value  # weights of the stand-in say so

@pytest.mark.parametrize('name, content, cause', [('missing.safetensors', None, 'no such weights file'), ('damaged.safetensors', b'nonsense', 'not a safetensors file')])
def test_unusable_weights_are_one_line(name, content, cause, demo, tmp_path):
    if content: (tmp_path/name).write_bytes(content)
    app = sound(demo(tmp_path/name))
    line, = texts(app.text)
    assert cause in line and name in line and '\n' not in line and not app.file_uploader
    app.selectbox(key='weights').set_value('shipped').run()
    assert app.file_uploader and not sound(app).main.text[0].value.startswith('The model')  # others may still be chosen

# --- in a browser ---

CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome') or '/usr/bin/chromium'
browser_needed = pytest.mark.skipif(not Path(CHROMIUM).exists(), reason='no Chromium on this machine')
FLAGS = '--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync'.split()
COUNTED = 'import fakeface.detector as d; read = d.load_checkpoint; d.load_checkpoint = lambda p: (print("model read", flush=True), read(p))[1]; '

@contextmanager
def serve(weights=None, no_files=False, before=''):
    "`(url, lines, pid)` of a running `streamlit run app.py`; `lines` is what it prints. With `no_files` the system refuses it every write to a file. `before` is Python run first."
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); port = s.getsockname()[1]
    env = {k: v for k, v in os.environ.items() if k != 'FAKEFACE_WEIGHTS'} | dict(PYTHONDONTWRITEBYTECODE='1') | (dict(FAKEFACE_WEIGHTS=str(weights)) if weights else {})
    command = [sys.executable, '-c', before + 'from streamlit.web.cli import main; main()', 'run', str(ROOT/'app.py'),
               '--server.headless', 'true', '--server.port', str(port), '--browser.gatherUsageStats', 'false']
    limit = (lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))) if no_files else None
    server, lines = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=limit), []
    reader = threading.Thread(target=lambda: lines.extend(server.stdout), daemon=True)
    reader.start()
    try:
        for _ in range(600):
            try: urllib.request.urlopen(f'http://localhost:{port}/_stcore/health', timeout=2); break
            except OSError: time.sleep(.1)
            if server.poll() is not None: break
        else: server.kill()
        assert server.poll() is None, 'the app did not start:\n' + ''.join(lines)
        yield f'http://localhost:{port}', lines, server.pid
    finally:
        server.terminate()
        try: server.wait(10)
        except subprocess.TimeoutExpired: server.kill(); server.wait()
        reader.join(5); server.stdout.close()

def superseded(message):
    "Whether the page misses only what a download button offered before a rerun replaced it; images are within the page, and every download is checked by its content."
    return 'Download Button source error' in message.text or 'status of 404' in message.text and '/media/' in message.location['url']

@contextmanager
def chromium():
    "`new(url, **options)` opens a page of headless Chromium for a visitor of its own; fails when a page logs an error."
    sync_api = pytest.importorskip('playwright.sync_api')
    with sync_api.sync_playwright() as p:
        browser, complaints = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS), []
        def new(url, **options):
            page = browser.new_context(**options).new_page()
            page.on('console', lambda m: complaints.append(m.text) if m.type == 'error' and not superseded(m) else None)
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

def drop(page, *files): page.locator('input[type=file]').set_input_files([dict(name=n, mimeType='image/jpeg', buffer=b) for n, b in files])
def heading(page, text): return page.get_by_role('heading', name=text)
def heatmap(page, name): return page.get_by_role('img', name=f'{name} with the heatmap over it', exact=True)
def slider(page): return page.get_by_role('slider', name='Call it AI-generated from')

def download(page, name):
    page.locator('[data-test-script-state=notRunning]').wait_for()  # a rerun replaces what a button offers
    with page.expect_download() as d: page.get_by_role('button', name=name, exact=True).click()
    return d.value.suggested_filename, Path(d.value.path()).read_bytes()

def grid(page): return page.get_by_role('region', name='The verdicts')
def tick(page, i): grid(page).click(position=dict(x=16, y=36 + 35 * i + 17))  # the table is painted: a place is all there is to click on
def column(page, name):
    "The cells of a column that are in sight, as the table tells them to screen readers once it was clicked on; none while it is being painted."
    at = [i for i, h in enumerate(page.locator('[role=columnheader]').all_inner_texts(), 1) if name in h]  # a sorted one has an arrow, too
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
    assert len(big[1]) > 2**20  # beyond this, Streamlit's server by itself would write a temporary file
    more = [(f'{i:02}.jpg', face(i)) for i in range(15)] + [(HOSTILE[i], face(i)) for i in (0, 1)] + [('two.png', photograph(2)), BROKEN, big]
    vs = detector.predict([('face.jpg', face(0)), *more])
    with chromium() as new:
        drop(page := new(url), ('face.jpg', face(0)))
        heading(page, SAYS[vs[0].verdict]).wait_for()
        for image in (page.get_by_role('img', name='face.jpg as the model saw it'), heatmap(page, 'face.jpg')):
            image.wait_for()
            page.wait_for_function('i => i.complete && i.naturalWidth == 64', arg=image.element_handle())
        name, png = download(page, 'Download the heatmap')
        assert name == 'face-0-heatmap.png' and alike(pixels(png), detector.explain(face(0))[0].overlay(.6))

        drop(page, *more)  # uploads add up, and may arrive in any order
        heading(page, summary(vs, 21)).wait_for()
        name, text = download(page, 'Download as CSV')
        assert name == 'verdicts.csv'
        check_csv(text.decode(), vs, any_order=True)
        name, text = download(page, 'Download as HTML')
        assert name == 'verdicts.html' and text.count(b'<tr>') == 1 + len(vs) and escape(HOSTILE[1]).encode() in text and HOSTILE[1].encode() not in text

        tick(page, 0)
        heatmap(page, 'face.jpg').wait_for()
        grid(page).click(position=dict(x=320, y=18))  # on the heading 'Generated'
        numbers = lambda: [float(p or 'nan') for p in column(page, 'Generated')]
        eventually(page, lambda: len(ns := [n for n in numbers() if n == n]) > 5 and all(np.diff(ns) >= 0))
        tick(page, next(i for i, n in enumerate(numbers()) if n == n))
        heatmap(page, min((v for v in vs if v.verdict), key=lambda v: v.p_fake).path).wait_for()
        page.get_by_role('button', name=f'{SAYS["real"]} (').click()
        eventually(page, lambda: set(column(page, 'Verdict')) == {SAYS['real']})
        check_csv(download(page, 'Download as CSV')[1].decode(), [v for v in vs if v.verdict == 'real'], any_order=True)
        page.get_by_role('button', name=f'{SAYS["real"]} (').click()

        slider(page).focus(); slider(page).press('Home')  # by keyboard alone
        heading(page, summary(decided(vs, (.001, .001)), 21)).wait_for()
        page.get_by_text(f'{len(REALS)} of {len(REALS)} real validation images').wait_for()
        drop(page, ('holiday.zip', zipped(**{'in/a.jpg': face(1), 'in/b.jpg': BROKEN[1], 'c.txt': b''})))
        vs += detector.predict([('holiday.zip/in/a.jpg', face(1)), ('holiday.zip/in/b.jpg', BROKEN[1])])
        heading(page, summary(decided(vs, (.001, .001)), 23)).wait_for()
        check_csv(download(page, 'Download as CSV')[1].decode(), decided(vs, (.001, .001)), any_order=True)
    quiet(lines, 'face.jpg', 'large.png', 'broken.jpg', 'holiday.zip', HOSTILE[0])

@browser_needed
@pytest.mark.slow
def test_a_link_keeps_the_settings(served, detector):
    "What one visitor sets stands in the address, and another who opens it finds it set; the other one likes it dark."
    url, lines = served
    name = 'photograph of Grace Hopper.jpg'
    with chromium() as new:
        page = new(url)
        page.get_by_text('Examples', exact=True).click()
        page.get_by_text('Judge whole images').click()
        page.get_by_role('combobox', name='Heatmap').fill('Layer'); page.keyboard.press('Enter')
        slider(page).focus(); slider(page).press('End'); slider(page).press('ArrowLeft')
        eventually(page, lambda: all(s in page.url for s in ('threshold=99.8', 'heatmap=LayerCAM', 'whole=true', 'source=Examples')))
        other = new(page.url, color_scheme='dark')
        heatmap(other, name).wait_for()
        v, = detector.explain([(name, photograph())], 'layercam', whole=True)
        assert slider(other).input_value() == '99.8' and other.get_by_role('switch', name='Judge whole images').is_checked()
        heading(other, SAYS[decided([v], band_from(detector.band, .998))[0].verdict]).wait_for()
        assert alike(pixels(download(other, 'Download the heatmap')[1]), v.overlay(.6))
        assert max(int(c) for c in re.findall(r'\d+', other.locator('.stApp').evaluate('e => getComputedStyle(e).backgroundColor'))[:3]) < 60
        for tab in ('What a verdict means', 'How good is it'): other.get_by_role('tab', name=tab).click()
    quiet(lines)

def memory(pid, name):
    "VmRSS (memory now) or VmHWM (at most, so far) of a process in MB."
    return int(re.search(rf'{name}:\s+(\d+) kB', Path(f'/proc/{pid}/status').read_text())[1]) / 1024

linux_needed = pytest.mark.skipif(not Path('/proc/self/status').exists(), reason='memory is read from /proc')

@browser_needed
@linux_needed
@pytest.mark.slow
def test_ten_visitors_at_once(weights, detector, capsys):
    "Each gets the verdict and heatmap of an own image by own settings, and all share one model."
    methods, limits = [list(METHODS)[i % 3] for i in range(10)], [10 * i + 5 for i in range(10)]
    asked = [Detector(detector.model, detector.meta | dict(threshold=min(detector.threshold, t / 100), band=band_from(detector.band, t / 100))) for t in limits]
    alone = [d.explain([(f'{i}.jpg', face(i))], m)[0] for i, (d, m) in enumerate(zip(asked, methods))]
    with serve(weights, no_files=True, before=COUNTED) as (url, lines, pid), chromium() as new:
        pages = [new(f'{url}/?heatmap={METHODS[m]}&threshold={t}') for m, t in zip(methods, limits)]
        for p in pages: p.locator('input[type=file]').wait_for(state='attached')
        for i, p in enumerate(pages): drop(p, (f'{i}.jpg', face(i)))
        for i, (p, v) in enumerate(zip(pages, alone)):
            heatmap(p, f'{i}.jpg').wait_for()
            assert heading(p, SAYS[v.verdict]).count() == 1
            assert fits(p.get_by_text('Probability that it was generated').inner_text(), v.p_fake)
            assert alike(pixels(download(p, 'Download the heatmap')[1]), v.overlay(.6)) and p.get_by_role('img', name='with the heatmap over it').count() == 1
        assert not any(alike(a.overlay(.6), b.overlay(.6)) for a in alone for b in alone if a is not b)
        with capsys.disabled(): print(f' [ten visitors: {memory(pid, "VmHWM"):.0f} MB] ', end='')
    assert lines.count('model read\n') == 1
    quiet(lines)

BAD = {'cut.jpg': face(0)[:400], 'page.jpg': b'<html><script>alert(1)</script></html>', 'drawing.png': b'<svg xmlns="http://www.w3.org/2000/svg"/>', 'zeros.webp': bytes(5000)}

@browser_needed
@linux_needed
@pytest.mark.slow
def test_twenty_visitors_for_a_while(weights, detector, capsys):
    """They come again and again with another image, a bad file in every fourth visit, for FAKEFACE_LOAD seconds: each sees the answer to its own file and to no other, the server says that it is well,
    and in the end holds no more memory than after their first visits."""
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
                which = int(rng.integers(40)); name, content, cause = bad[which % 4] if which % 4 == k % 4 else ('.jpg', face(which), '')
                visits.append((p, f'{rounds}-{k}-{name}', which, cause)); drop(p, (visits[-1][1], content))
            for p, name, which, cause in visits:
                heading(p, SAYS['' if cause else good[which].verdict]).wait_for()
                seen = p.locator('.stApp').inner_text()
                assert cause in seen if cause else fits(p.get_by_text('Probability that it was generated').inner_text(), good[which].p_fake)
                assert set(re.findall(r'\d+-\d+-[a-z]*\.\w+', seen)) == {name}
            asked = time.monotonic()
            with urllib.request.urlopen(f'{url}/_stcore/health', timeout=30) as answer: assert answer.status == 200
            slowest, rounds = max(slowest, time.monotonic() - asked), rounds + 1
            if rounds == 1: base = memory(pid, 'VmRSS')
        rest = memory(pid, 'VmRSS')
    with capsys.disabled(): print(f' [twenty visitors, {20 * rounds} visits in {time.monotonic() - start:.0f} s: {base:.0f} MB after the first, {rest:.0f} MB after the last, slowest health check {slowest:.2f} s] ', end='')
    assert lines.count('model read\n') == 1 and rest < base + 100 and slowest < 5
    quiet(lines)

@browser_needed
@linux_needed
@pytest.mark.slow
def test_three_hundred_images(capsys):
    "By the shipped weights: in bounded memory, and the server goes on answering."
    files, slowest, polls, start = {}, 0, 0, time.monotonic()
    for i in range(300): Image.open(io.BytesIO(face(i % 20))).save(out := io.BytesIO(), 'JPEG', quality=95 - i // 20); files[f'{i}.jpg'] = out.getvalue()
    with serve(no_files=True) as (url, lines, pid), chromium() as new:
        drop(page := new(url), ('many.zip', zipped(**files)))
        page.get_by_text(re.compile(r'\d+ of 300 judged')).wait_for()
        before = memory(pid, 'VmRSS')
        while not (done := heading(page, '300 images: ')).count():
            asked = time.monotonic()
            with urllib.request.urlopen(f'{url}/_stcore/health', timeout=30) as answer: assert answer.status == 200
            polls, slowest = polls + 1, max(slowest, time.monotonic() - asked)
            page.wait_for_timeout(200)
            assert asked - start < 300
        _, *rows = csv.reader(io.StringIO(download(page, 'Download as CSV')[1].decode()))
        peak, took = memory(pid, 'VmHWM'), time.monotonic() - start
    with capsys.disabled(): print(f' [300 images: {peak:.0f} MB at most, {before:.0f} MB soon after the start, {took:.0f} s, slowest of {polls} answers {slowest:.2f} s] ', end='')
    assert [r[0] for r in rows] == [f'many.zip/{i}.jpg' for i in range(300)] and sum(bool(r[3]) for r in rows) > 270
    assert peak < 1500 and polls >= 5 and slowest < 5
    quiet(lines, 'many.zip')

@browser_needed
@pytest.mark.skipif('FAKEFACE_SCREENSHOT' not in os.environ, reason='makes the pictures of the README; set FAKEFACE_SCREENSHOT to a folder, and FAKEFACE_SCREENSHOT_IMAGES to files if not to the examples')
@pytest.mark.parametrize('view', ['app', 'table'])
def test_screenshot(view):
    "One image in full, as app.png, and all in a table, as table.png."
    target = Path(os.environ['FAKEFACE_SCREENSHOT'])/f'{view}.png'
    given = [Path(p) for p in os.environ.get('FAKEFACE_SCREENSHOT_IMAGES', '').split(os.pathsep) if p]
    images = [(p.name, p.read_bytes()) for p in given] or list(examples().items())
    with serve(os.environ.get('FAKEFACE_WEIGHTS')) as (url, *_), chromium() as new:  # the shipped weights if unset
        page = new(url, viewport=dict(width=1280, height=1000))
        drop(page, *(images if view == 'table' else images[:1]))
        (heading(page, f'{len(images)} images') if view == 'table' else page.get_by_role('button', name='Download the heatmap').first).wait_for()
        height = page.evaluate('document.querySelector("[data-testid=stMainBlockContainer]").scrollHeight')
        page.set_viewport_size(dict(width=1280, height=min(height, 1300)))
        page.wait_for_timeout(2000)  # until the layout rests
        picture = Image.open(io.BytesIO(page.screenshot())).convert('RGB')
    target.parent.mkdir(parents=True, exist_ok=True)
    picture.save(target, 'PNG', optimize=True)
    if target.stat().st_size >= 300_000:  # Pillow dithers only to a palette it is given
        colours = picture.quantize(255)
        colours.putpalette([*colours.getpalette()[:765], 255, 255, 255])  # the page stays white
        picture.quantize(palette=colours, dither=Image.Dither.FLOYDSTEINBERG).save(target, 'PNG', optimize=True)
    assert target.stat().st_size < 300_000
