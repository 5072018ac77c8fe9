"The demo: drop in photographs, read what the detector says of them and see why. Layout and state only; what is computed comes from `fakeface`."

import io, os
from collections import Counter

import streamlit as st
from starlette.formparsers import MultiPartParser

from fakeface.core import MAX_BYTES, SUFFIXES, FaceError
from fakeface.detector import Detector, csv_rows

MAX_FILES, MAX_TOTAL = 100, 4 * MAX_BYTES  # judged in one session at a time
PER_PAGE = 10                              # images shown in full at once
SAYS = {'fake': 'Looks fake', 'real': 'Looks real', 'uncertain': 'Uncertain', '': 'Unreadable'}

# Streamlit's server would put the part of an upload that exceeds 1 MB into a temporary file; photographs of strangers stay in memory
MultiPartParser.spool_max_size = 2 * MAX_BYTES

@st.cache_resource(show_spinner='Loading the model')
def load(path):
    "The detector that all sessions share."
    return Detector.load(path)

def percent(p):
    "A probability for people; no model is sure enough for 0 or 100 %."
    return 'less than 0.1 %' if p < .001 else 'more than 99.9 %' if p > .999 else f'{100 * p:.1f} %'

def within_bounds(files):
    "The first of `files` that one session may have judged, in count and in bytes."
    total, kept = 0, []
    for f in files[:MAX_FILES]:
        total += f.size
        if total > MAX_TOTAL: break
        kept.append(f)
    return kept

def judge(detector, files):
    "Verdicts of `files` in their order. Each upload is judged once, and forgotten when its user removes it."
    old = st.session_state.get('verdicts', {})
    known = st.session_state.verdicts = {f.file_id: old[f.file_id] for f in files if f.file_id in old}
    if new := [f for f in files if f.file_id not in known]:
        bar = st.progress(0., 'Judging')
        stream = detector.stream(((f.name, f.getvalue()) for f in new), explain=True, batch_size=4)
        for i, (f, v) in enumerate(zip(new, stream), 1):
            known[f.file_id] = v  # at once, so that a rerun in between loses nothing
            bar.progress(i / len(new), f'{i} of {len(new)} judged')
        bar.empty()
    return [known[f.file_id] for f in files]

def as_csv(verdicts):
    "The verdicts as `fakeface predict --csv` writes them."
    out = io.StringIO()
    list(csv_rows(verdicts, out))  # a generator: it writes as it is read
    return out.getvalue()

# File names and causes come from strangers: `st.text`, `alt` and table cells show them as they are, every other element would read them as Markdown.
def card(v, opacity):
    "One verdict in full."
    with st.container(border=True):
        st.subheader(SAYS[v.verdict], anchor=False)
        st.text(v.path)
        if v.error: st.text(f'Reason: {v.error}'); return
        st.progress(v.p_fake, f'Probability that it was generated: {percent(v.p_fake)}')
        seen, why = st.columns(2, wrap=False)
        seen.image(v.image.transpose(1, 2, 0), 'What the model saw', width='stretch', alt=f'{v.path} as the model saw it')
        why.image(v.overlay(opacity), 'Where it found evidence' if v.heatmap.any() else 'No place stands out', width='stretch', alt=f'{v.path} with the heatmap over it')

def summary(verdicts):
    "Many verdicts at a glance."
    count = Counter(v.verdict for v in verdicts)
    st.header(f'{len(verdicts)} files: {count["fake"]} fake, {count["real"]} real, {count["uncertain"]} uncertain, {count[""]} unreadable', anchor=False)
    table = {'File': [v.path for v in verdicts], 'Verdict': [SAYS[v.verdict] for v in verdicts], 'Generated': [None if v.error else 100 * v.p_fake for v in verdicts]}
    if count['']: table['Reason'] = [v.error for v in verdicts]
    st.dataframe(table, hide_index=True, placeholder='', alt='The verdicts, one file a row', column_config={
        'File': st.column_config.TextColumn(width='medium'), 'Generated': st.column_config.NumberColumn(format='%.1f %%', help='Probability that the face was generated')})
    st.download_button('Download verdicts as CSV', as_csv(verdicts), 'verdicts.csv', 'text/csv', on_click='ignore')

def about(detector):
    "What a verdict means, what it does not, and whose it is."
    meta, (low, high) = detector.meta, detector.band
    st.header('What a verdict means', anchor=False)
    st.markdown(f'''The model estimates the probability that a face was generated, and calls it fake from **{percent(high)}** on and real below **{percent(low)}**. Between the two it is uncertain.

The model that ships learned from aligned face crops of 256 × 256 pixels: fakes made by StyleGAN, photographs from FFHQ. Its probabilities hold for images like these.''')
    st.header('What it does not mean', anchor=False)
    st.markdown('''
- It is **no proof**, neither of a fake nor of a photograph.
- Images of **other generators** may well be missed.
- Small faces in large pictures, and copies that were resized or strongly compressed, are judged less reliably.
- The heatmap shows where the model found evidence for its verdict. It does not mark what was altered.''')
    st.header('The model', anchor=False)
    st.text(f'ResNet18, input {detector.size} × {detector.size} pixels\nUncertain from {low:.3f} to {high:.3f}\nLearned from: {meta.get("source", "not recorded")}')

st.set_page_config('Real or generated?', '🔎')
st.title('Real or generated?', anchor=False)
st.markdown('Drop in pictures of faces. A model says how likely each was generated, and shows where it found evidence. Its answer is a probability, not proof.')
try: detector = load(os.environ.get('FAKEFACE_WEIGHTS') or None)
except FaceError as e: st.text(f'The model cannot be used. {e}'); st.stop()
with st.sidebar: about(detector)
if detector.meta.get('source') == 'standin': st.warning('This model learned from drawn faces, to try the pipeline. What it says of photographs means nothing.')

uploads = st.file_uploader('Images', SUFFIXES, accept_multiple_files=True)
st.caption(f'Up to {MAX_FILES} files, {MAX_TOTAL >> 20} MB together. They stay in the memory of this session: nothing is written to disk or passed on.')
files = within_bounds(uploads)
if len(files) < len(uploads):
    st.warning(f'Only the first {len(files)} of {len(uploads)} files are judged, for want of room. Remove some to go on.')
verdicts = judge(detector, files)
if len(verdicts) > 1: summary(verdicts)
if any(v.verdict for v in verdicts): opacity = st.slider('Strength of the heatmap', 0, 100, 60, format='%d %%') / 100
else: opacity = 0
pages = -(-len(verdicts) // PER_PAGE)
page = st.pagination(pages) if pages > 1 else 1
for v in verdicts[(page - 1) * PER_PAGE:page * PER_PAGE]: card(v, opacity)
