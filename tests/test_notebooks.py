"""The notebooks are the source: the package is what they export, and they are fit to be read,
committed and executed."""

import ast, builtins, graphlib, json, re, shutil, subprocess, sys
from pathlib import Path

import pytest

from conftest import ROOT
import fakeface.pipeline, fakeface.settings
from fakeface.pipeline import step_cells, step_keys
from fakeface.settings import STEPS, defaults, load_profile, profiles, resolve, section

NOTEBOOKS = sorted((ROOT/'nbs').rglob('*.ipynb'))
NUMBERED = [p for p in NOTEBOOKS if p.stem[0].isdigit()]
MACHINE = re.compile(r'/(home|root|tmp|work|Users|mnt|var/folders)/|[A-Z]:\\\\+Users')

def cells(path, kind='code'):
    found = json.loads(path.read_text(encoding='utf-8'))['cells']
    return [c for c in found if c['cell_type'] == kind]

def source(cell): return ''.join(cell['source'])
def tagged(path): return [c for c in cells(path) if 'parameters' in c['metadata'].get('tags', [])]

def module(path):
    m = re.search(r'^#\| default_exp (\w+)', '\n'.join(map(source, cells(path))), re.M)
    return m and m[1]

def tree(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob('*')
            if p.is_file() and '__pycache__' not in p.parts}

@pytest.fixture
def copy(tmp_path):
    "What nbdev needs of the repository, elsewhere."
    without = shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints', 'weights')
    for name in ('nbs', 'fakeface'): shutil.copytree(ROOT/name, tmp_path/name, ignore=without)
    for name in ('settings.ini', 'README.md', 'setup.py'): shutil.copy(ROOT/name, tmp_path/name)
    return tmp_path

def nbdev(command, where):
    done = subprocess.run([Path(sys.executable).parent/f'nbdev_{command}'], cwd=where,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

def test_package_is_what_the_notebooks_export(copy):
    before = tree(copy/'fakeface')
    for p in (copy/'fakeface').glob('*.py'):
        if p.name != '__init__.py': p.unlink()  # a module without a notebook does not come back
    nbdev('export', copy)
    after = tree(copy/'fakeface')
    assert after.keys() == before.keys() and len(after) > 10
    assert not [n for n in after if after[n] != before[n]]

def test_notebooks_are_clean(copy):
    before = tree(copy/'nbs')
    nbdev('clean', copy)
    assert not [n for n, data in tree(copy/'nbs').items() if data != before[n]]

@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)
def test_outputs_are_fit_to_be_kept(path):
    assert path.stat().st_size < 1e6
    outputs = [o for c in cells(path) for o in c['outputs']]
    assert not [o for o in outputs if o['output_type'] == 'error' or o.get('name') == 'stderr']
    assert not MACHINE.search(re.sub(r'"image/png": "[^"]*"', '', json.dumps(outputs)))
    assert outputs or not path.stem[0].isdigit()  # a lesson shows something

def test_machine_paths_are_recognised():
    for s in ('/home/a/b', 'C:\\Users\\a', '/' + 'tmp/x'): assert MACHINE.search(json.dumps(s))
    assert not MACHINE.search('1/2, runs/demo/home.png, nbs/')

@pytest.mark.parametrize('path', NUMBERED, ids=lambda p: p.stem)
def test_shape_of_a_notebook(path):
    assert re.match(r'# .+\n\n> .+(\n\n|$)', source(cells(path, 'markdown')[0]))
    texts = [source(c) for c in cells(path)]
    assert module(path) or path.stem in ('00_tour', '16_experiments')
    assert any('assert ' in s or 'test_' in s for s in texts)
    for s in texts:
        assert s.count('\n') < 40, s
        assert '#| export' not in s or s.splitlines()[0] == '#| export', s

def test_steps_have_parameters_and_run_sections():
    assert [p.stem for p in NUMBERED if tagged(p)] == list(STEPS)
    for s in STEPS:
        path = ROOT/'nbs'/f'{s}.ipynb'
        [parameters], code = tagged(path), '\n'.join(map(source, cells(path)))
        assert any(source(c).startswith('## Run') for c in cells(path, 'markdown'))
        # a list may run over several lines; every setting has a comment
        settings = re.sub(r'\n(?=[ \]])', ' ', source(parameters)).splitlines()
        assert all(re.fullmatch(r'\w+ = .+ # .+', line) for line in settings), settings
        assert settings[0].startswith('run_dir = ') and len(defaults(s)) == len(settings) - 1
        assert defaults(s)['smoke'][0] is False
        assert re.search(r'^if smoke:|, smoke\)$', code, re.M)

@pytest.fixture
def elsewhere(copy, monkeypatch):
    "The repository's copy in the place of the repository."
    for m in (fakeface.pipeline, fakeface.settings): monkeypatch.setattr(m, 'repo_path', lambda name: copy/name)
    return copy

@pytest.mark.parametrize('file, old, new, first', [
    ('fakeface/corrupt.py', 'class Degrade', '# another\nclass Degrade', '03_train'),
    ('nbs/03_train.ipynb', 'losses[-1] < losses[0] / 10', 'losses[-1] < losses[0] / 9', None),
    ('nbs/04_evaluate.ipynb', 'metrics_table(result)"', 'metrics_table(result).head()"',
     '04_evaluate'),
    ('fakeface/cli.py', 'def main', '# another\ndef main', None)],
    ids=['package', 'lesson', 'run', 'command'])
def test_a_step_is_made_of_its_run_and_the_package(elsewhere, file, old, new, first):
    """What a step runs makes it another, and those after it: degradation is learned in the third.
    A lesson's assertion and the command line make no step another."""
    path, settings = elsewhere/file, resolve({})
    before, text = step_keys(settings), path.read_text(encoding='utf-8')
    assert old in text
    path.write_text(text.replace(old, new), encoding='utf-8')
    after = step_keys(settings)
    assert next((s for s in STEPS if before[s] != after[s]), None) == first

@pytest.mark.parametrize('step', STEPS)
def test_a_run_executes_little_of_a_notebook(step):
    "Title, imports, settings and Run, in which no name comes from the lesson."
    code = [c.source for c in step_cells(step) if c.cell_type == 'code']
    assert len(code) < len(cells(ROOT/'nbs'/f'{step}.ipynb'))
    assert not any('assert ' in c for c in code)
    known = dict(vars(builtins))
    for c in code[:2]: exec(c, known)
    nodes = [*ast.walk(ast.parse('\n'.join(code)))]
    names = [n for n in nodes if isinstance(n, ast.Name)]
    bound = {n.id for n in names if isinstance(n.ctx, ast.Store)}
    bound |= {n.arg for n in nodes if isinstance(n, ast.arg)}
    bound |= {n.name for n in nodes if isinstance(n, ast.FunctionDef)}
    for line in re.findall(r'^(?:from|import) .*', '\n'.join(code[3:]), re.M): exec(line, known)
    assert not {n.id for n in names} - bound - known.keys()

def test_profiles_resolve():
    assert {'demo', 'reference', '140k', '140k-full'} <= set(profiles())
    contents = {name: load_profile(name) for name in profiles()}
    for content in contents.values():
        content.pop('needs_data', None)
        settings = resolve(content)
        assert set(settings) == set(STEPS)
        for s in STEPS: assert settings[s] | (content.get(section(s)) or {}) == settings[s]
    train = resolve(contents['reference'])['03_train']
    recipe = dict(optimizer='adam', lr=1e-4, batch_size=32, epochs=10, schedule='constant', fpr=0,
                  band_error=0, ema=0, corruptions=[])
    assert train | recipe == train  # the recipe we measure against

def test_modules_import_only_from_below():
    "No circle, and in each folder the notebooks stand in the order of their imports."
    places, used = {module(p): p for p in NUMBERED if module(p)}, {}
    package = {p.stem for p in (ROOT/'fakeface').glob('*.py')}
    assert set(places) == package - {'__init__', '_modidx'}
    for name, place in places.items():
        text = (ROOT/'fakeface'/f'{name}.py').read_text(encoding='utf-8')
        used[name] = set(re.findall(r'^ *from (?:fakeface)?\.(\w+) import', text, re.M))
        for other in used[name]:
            below = places[other].parent != place.parent or places[other].stem < place.stem
            assert below, f'{name} imports from {other}'
    assert len(set().union(*used.values())) > 10
    tuple(graphlib.TopologicalSorter(used).static_order())

def test_the_index_names_every_notebook():
    index = '\n'.join(source(c) for c in cells(ROOT/'nbs'/'index.ipynb', 'markdown'))
    named = re.findall(r'\(([\w/]+\.ipynb)\)', index)
    assert set(named) == {p.relative_to(ROOT/'nbs').as_posix() for p in NUMBERED}
