"""The demo: drop in photographs, read what the detector says of them and see why. Layout and state
only; what is computed comes from `fakeface`."""

import io, os, time
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import streamlit as st
from PIL import Image
from starlette.formparsers import MultiPartParser

from fakeface.core import FaceError, ImageError
from fakeface.images import MAX_BYTES, SUFFIXES, open_image, zip_images
from fakeface.detector import (FIGURES, METHODS, SAYS, SHIPPED, Detector, Verdicts, band_from,
                               checkpoints, csv_rows, data_url, decided, examples, false_positives,
                               tally)
from fakeface.metrics import wilson
from fakeface.faces import draw_boxes

MAX_FILES, MAX_TOTAL = 500, 8 * MAX_BYTES  # judged in one session at a time
# a shape beside the word, so that nothing is told by colour
MARK = {'fake': '▲', 'real': '●', 'uncertain': '◆', '': '–'}
MEANS = {'fake': 'It is evidence, not proof.',
         'real': 'No trace of a generator was found. The model does **not** know all generators: '
                 'faces by others mostly leave no trace that it sees.',
         'uncertain': 'Between these two scores the model is wrong too often to give an answer.'}
LIMITS = {'fake': 'From {1} on it is called AI-generated.',
          'real': 'Below {0} no trace counts as found.',
          'uncertain': 'Below {0} no trace would count as found, from {1} on it would be called '
                       'AI-generated.'}
SOURCES = ('Files', 'Folder', 'Camera', 'Examples')

# Streamlit's server would put the part of an upload that exceeds 1 MB into a temporary file;
# photographs of strangers stay in memory
MultiPartParser.spool_max_size = 4 * MAX_BYTES

@st.cache_resource(show_spinner='Loading the model', max_entries=3)
def load(path):
    "The detector that all sessions share."
    return Detector.load(path)

make_examples = st.cache_data(examples, show_spinner='Drawing the examples')

def percent(p):
    """A probability for people; what was calibrated on a few hundred images cannot be surer than 1
    in 100."""
    return 'less than 1 %' if p < .01 else 'more than 99 %' if p > .99 else f'{100 * p:.0f} %'

def exact(p): return f'{100 * p:.3g} %'  # a setting, which the score is compared with

def settings():
    """`(name of the weights, path, detector, band, method, whole)`; widgets bound to the URL, so
    that a link keeps them."""
    st.header('Settings', anchor=False)
    known = checkpoints(Path(__file__).resolve().parent/'runs', os.environ.get('FAKEFACE_WEIGHTS'))
    name = st.selectbox('Weights', list(known), key='weights', bind='query-params',
                        on_change=lambda: st.session_state.pop('threshold', None))
    detector = load(known[name])
    start = min(max(round(100 * detector.band[1], 1), .1), 99.9)
    chosen = st.slider(
        'Call it AI-generated from', .1, 99.9, start, .1, '%.1f %%', key='threshold',
        bind='query-params', help='Scores from here on are called AI-generated. The lower, the '
                                  'more photographs are accused wrongly.')
    band = detector.band if chosen == start else band_from(detector.band, chosen / 100)
    k, n = false_positives(detector.meta, band[1])
    if n:
        low, high = wilson(k, n)
        st.caption(f'False-positive rate at this setting: {k} of {n} real '
                   f'validation images, {100 * k / n:.1f} % (95 % '
                   f'interval {100 * low:.1f} to {100 * high:.1f} %).')
    else: st.caption('These weights do not tell the false-positive rate of a setting.')
    st.caption(f'No trace counts as found below {100 * band[0]:.1f} %; uncertain between.'
               if band[0] < band[1] else 'At this setting no face is called uncertain.')
    if chosen != start and k > .1 * n:
        st.warning('So many real photographs are called AI-generated at this setting that the word '
                   'means little.')
    method = st.selectbox(
        'Heatmap', list(METHODS), format_func=METHODS.get, key='heatmap', bind='query-params',
        help='Grad-CAM is exact and fast, on a coarse grid. The others take a second a face.')
    whole = st.toggle('Judge whole images', key='whole', bind='query-params',
                      help='Do not look for faces. Right for images that were cut around a face '
                           'already.')
    return name, known[name], detector, band, method, whole

# --- what there is to judge ---

def expand(name, key, size, read):
    """An upload as a list of `(key, name, size, function that returns its bytes)`; a ZIP becomes
    its images, or its error."""
    if not name.lower().endswith('.zip'): return [(key, name, size, read)]
    opened = st.session_state.setdefault('archives', {})
    try:
        if key not in opened: opened[key] = zip_images(read(), name)[0]
    except ImageError as e: return [(key, name, size, partial(fail, e))]
    return [(f'{key}/{i}', label, size / len(opened[key]), entry)
            for i, (label, entry) in enumerate(opened[key])]

def fail(error): raise error

def chosen_items():
    "What the visitor wants judged, as from `expand`, within the bounds of a session."
    source = st.segmented_control('Where the images come from', SOURCES, default='Files',
                                  required=True, key='source', bind='query-params')
    if source == 'Examples':
        some = make_examples()
        wanted = st.pills('Example', list(some), selection_mode='multi', default=list(some)[:1])
        return [(n, n, len(some[n]), partial(some.get, n)) for n in wanted]
    if source == 'Camera': uploads = [u for u in [st.camera_input('Take a photograph')] if u]
    elif source == 'Folder':
        uploads = st.file_uploader('A folder of images', [*SUFFIXES],
                                   accept_multiple_files='directory')
    else:
        uploads = st.file_uploader('Images or ZIP archives', [*SUFFIXES, '.zip'],
                                   accept_multiple_files=True)
    st.caption(f'Up to {MAX_FILES} images, {MAX_BYTES >> 20} MB each, {MAX_TOTAL >> 20} MB '
               'together. They stay in the memory of this session: nothing is written to disk or '
               'passed on.')
    st.session_state.archives = {
        k: v
        for k, v in st.session_state.get('archives', {}).items()
        if k in {u.file_id
                 for u in uploads}
    }
    items, total, kept = [
        i for u in uploads for i in expand(u.name, u.file_id, u.size, u.getvalue)
    ], 0, []
    for item in items[:MAX_FILES]:
        total += item[2]
        if total > MAX_TOTAL: break
        kept.append(item)
    if len(kept) < len(items):
        st.warning(f'Only the first {len(kept)} of {len(items)} images are judged, for want of '
                   'room. Remove some to go on.')
    return kept

def judge(detector, how, items):
    """`{key: verdicts of its faces}`. Each upload is judged once, and forgotten when its user
    removes it."""
    old = st.session_state.get('verdicts', {})
    known = st.session_state.verdicts = {(how, i[0]): old[how, i[0]]
                                         for i in items if (how, i[0]) in old}
    if new := [i for i in items if (how, i[0]) not in known]:
        bar, start, done = st.progress(0., f'Judging {len(new)} images'), time.monotonic(), 0
        while batch := new[done:done + 8]:
            told = detector.predict([(str(j), read) for j, (_, _, _, read) in enumerate(batch)],
                                    whole=how[1])
            for j, (key, name, _, _) in enumerate(batch):
                # at once, so that a rerun in between loses nothing
                known[how, key] = [replace(v, path=name) for v in told if v.path == str(j)]
            done += len(batch)
            left = (time.monotonic() - start) / done * (len(new) - done)
            bar.progress(done / len(new), f'{done} of {len(new)} judged, about {left:.0f} s left')
        bar.empty()
    return {i[0]: known[how, i[0]] for i in items}

def parting(detector, band):
    # a heatmap speaks for the verdict that is shown, or for the likelier one
    return min(max(detector.threshold, band[0]), band[1])

def explained(detector, how, band, item, method):
    "Verdicts of one image with heatmaps; the last few are kept."
    kept, key = st.session_state.setdefault('heatmaps', {}), (how, band, item[0], method)
    if key not in kept:
        kept[key] = Detector(detector.model,
                             detector.meta | dict(threshold=parting(detector, band), band=band),
                             detector.device).explain([(item[1], item[3])], method, whole=how[1])
        for k in list(kept)[:-4]: del kept[k]
    return kept[key]

# --- what is shown ---
# File names and causes come from strangers: `st.text`, `alt` and table cells show them as they are,
# every other element would read them as Markdown.

def encoded(pixels, format='PNG'):
    "uint8 (H, W, 3) as the bytes of an image file."
    Image.fromarray(pixels).save(out := io.BytesIO(), format, quality=95)
    return out.getvalue()

def inline(pixels):
    """uint8 (H, W, 3) within the page itself: Streamlit forgets a file once a rerun no longer shows
    it, while a slow browser may still be fetching it."""
    return data_url(encoded(pixels, 'JPEG'))

def card(v, opacity, detector, band):
    "One face in full."
    with st.container(border=True):
        st.subheader(f'{MARK[v.verdict]} {SAYS[v.verdict][0].upper()}{SAYS[v.verdict][1:]}',
                     anchor=False)
        st.text(v.path + (f', face {v.face}' if v.face else ''))
        if v.error:
            st.text(f'Reason: {v.error}')
            return
        st.progress(v.p_fake, f'Probability that it was generated: {percent(v.p_fake)}')
        k, n = false_positives(detector.meta, v.p_fake)
        as_high = (f'Of {n} real validation images {k} score{"s" * (k == 1)} as high. '
                   if n and v.verdict == 'fake' else '')
        st.markdown(f'{LIMITS[v.verdict].format(*map(exact, band))} {as_high}{MEANS[v.verdict]}')
        if v.image is None: return
        seen, why = st.columns(2, wrap=False)
        seen.image(inline(v.image.transpose(1, 2, 0)), 'What the model saw', width='stretch',
                   alt=f'{v.path} as the model saw it')
        why.image(
            inline(v.overlay(opacity)), 'Evidence that it is '
            f'{"generated" if v.p_fake >= parting(detector, band) else "real"}' if v.heatmap.any()
            else 'No place stands out', width='stretch', alt=f'{v.path} with the heatmap over it')
        st.download_button('Download the heatmap', encoded(v.overlay(opacity)),
                           f'{Path(v.path).stem[:80]}-{v.face}-heatmap.png', 'image/png',
                           on_click='ignore', key=f'png-{v.face}')

def image_page(detector, how, band, item, method, face):
    """One image: each face, that of the chosen row first, and the photograph with boxes that tell
    which is which."""
    verdicts = explained(detector, how, band, item, method)
    boxes = [v.box for v in verdicts if v.box]
    def photograph():
        st.image(inline(draw_boxes(open_image(item[3]()), boxes, 640)), f'{len(boxes)} '
                 f'face{"s" * (len(boxes) > 1)} judged',
                 alt=f'{item[1]} with a numbered box around each face')
    if len(boxes) > 1: photograph()
    opacity = st.session_state.get('opacity', 60) / 100
    for v in sorted(verdicts, key=lambda v: v.face != face): card(v, opacity, detector, band)
    if any(v.verdict for v in verdicts):
        st.slider('Strength of the heatmap', 0, 100, 60, format='%d %%', key='opacity')
    if len(boxes) == 1: photograph()

def summary(items, verdicts):
    """Many verdicts at a glance; returns the key of the image and the number of the face in the row
    that was chosen, if any."""
    rows = [(i[0], v) for i in items for v in verdicts[i[0]]]
    count = Counter(v.verdict for _, v in rows)
    st.subheader(tally(len(items), count, SAYS), anchor=False)
    shown = st.pills('Show', [k for k in SAYS if count[k]], selection_mode='multi',
                     format_func=lambda k: f'{MARK[k]} {SAYS[k]} ({count[k]})', key='show')
    rows = [(k, v) for k, v in rows if not shown or v.verdict in shown]
    table = {
        'Face': [data_url(v.thumbnail) if v.thumbnail else None for _, v in rows],
        'Verdict': [SAYS[v.verdict] for _, v in rows],
        'Generated': [None if v.error else 100 * v.p_fake for _, v in rows],
        'File': [v.path + (f', face {v.face}' if v.face else '') for _, v in rows]
    }
    if count['']: table['Reason'] = [v.error for _, v in rows]
    st.caption('Click a column to sort. Tick a row to see its heatmap below.')
    picked = st.dataframe(
        table, hide_index=True, placeholder='', alt='The verdicts, one face a row',
        on_select='rerun', selection_mode='single-row', key='table', column_config={
            'Face': st.column_config.ImageColumn(width='small'),
            'File': st.column_config.TextColumn(width='medium'),
            'Generated': st.column_config.NumberColumn(
                format='%.2f %%', help='Probability that the face was generated')
        })
    csv, page = st.columns(2)
    csv.download_button('Download as CSV', as_csv(v for _, v in rows), 'verdicts.csv', 'text/csv',
                        on_click='ignore', width='stretch')
    page.download_button('Download as HTML',
                         Verdicts(v for _, v in rows).page(), 'verdicts.html', 'text/html',
                         on_click='ignore', width='stretch')
    chosen = picked.selection.rows
    if not chosen or chosen[0] >= len(rows): return None, 0
    key, v = rows[chosen[0]]
    return key, v.face

def as_csv(verdicts):
    "The verdicts as `fakeface predict --csv` writes them."
    out = io.StringIO()
    list(csv_rows(verdicts, out))  # a generator: it writes as it is read
    return out.getvalue()

def judging(name, detector, band, method, whole):
    "The page on which images are judged."
    how, items = (name, whole), chosen_items()
    verdicts = {k: decided(v, band) for k, v in judge(detector, how, items).items()}
    picked, face = (summary(items, verdicts) if len(items) > 1 else
                    (items[0][0] if items else None, 1))
    for item in items:
        if item[0] == picked: image_page(detector, how, band, item, method, face)

def evaluation(path, detector):
    "How good these weights are: their card, and the figures of the run that made them."
    figures = path.parent/'figures'
    # another's could fetch images from anywhere
    head, _, card = ((path.parent/'MODEL_CARD.md').read_text(
        encoding='utf-8').partition('<!-- /short -->') if path == SHIPPED else ('', '', ''))
    if head: st.markdown(head)
    st.text(f'ResNet18, input {detector.size} × {detector.size} pixels; learned from: '
            f'{detector.meta.get("source", "not recorded")}')
    for name, caption in FIGURES.items():
        try: st.image(open_image(figures/f'{name}.png').transpose(1, 2, 0), caption, alt=caption)
        except ImageError: pass  # missing, or no image
    if card: st.markdown(card)
    elif not figures.is_dir():
        st.text('Nothing is recorded beside these weights. A run of the pipeline leaves figures '
                'there.')

ABOUT = '''
### What it means
The model estimates the probability that a face was generated. It learned from faces by several GANs
(ProGAN, StarGAN, StyleGAN 1 to 3), by Stable Diffusion and by one chat model, and from many kinds
of photographs.
The probability was calibrated on images like these, as they are and after compression and
shrinking. It holds for images like these.

**No trace found** means just that. It does not say that the face is a photograph.

### What it does not mean
- It is **no proof**, neither of a fake nor of a photograph.
- Faces by **other generators** are mostly missed.
- It judges whole faces that were generated, not faces that were retouched or swapped.
- The heatmap shows where the model found evidence for its verdict. It does not mark what was
  altered.

### What happens to a photograph
Faces are found, turned upright and cut out like the faces the model learned from; each gets a
verdict of its own. An image that is such a crop already is judged as it is. A face of fewer than
about 128 pixels, hair included, is not judged.
'''

st.set_page_config('Real or generated?', '🔎')
st.title('Real or generated?', anchor=False)
st.markdown(
    'Drop in pictures of faces. A model says how likely each was generated, and shows where '
    'it found evidence. Its answer is a probability, not proof. '
    'The shipped weights know several GANs, Stable Diffusion and one chat model; in faces '
    'by **other generators** they mostly find no trace.')
try:
    with st.sidebar: name, path, detector, band, method, whole = settings()
except FaceError as e:
    st.text(f'The model cannot be used. {e}')
    st.stop()
if detector.meta.get('source') == 'standin':
    st.warning('This model learned from drawn faces, to try the pipeline. What it says of '
               'photographs means nothing.')
tabs = st.tabs(['Judge', 'What a verdict means', 'How good is it'])
with tabs[0]: judging(name, detector, band, method, whole)
with tabs[1]: st.markdown(ABOUT)
with tabs[2]: evaluation(path, detector)
