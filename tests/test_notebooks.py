"The notebooks are the source: the package is what they export, and they are fit to be read, committed and executed."

import ast, builtins, graphlib, json, re, shutil, subprocess, sys
from pathlib import Path

import pytest

from conftest import ROOT
import fakeface.pipeline, fakeface.settings
from fakeface.pipeline import STEPS, defaults, load_profile, profiles, resolve, section, step_cells, step_keys

NOTEBOOKS = sorted((ROOT/'nbs').rglob('*.ipynb'))
NUMBERED = [p for p in NOTEBOOKS if p.stem[0].isdigit()]
MACHINE = re.compile(r'/(home|root|tmp|work|Users|mnt|var/folders)/|[A-Z]:\\\\+Users')

def cells(path, kind='code'): return [c for c in json.loads(path.read_text(encoding='utf-8'))['cells'] if c['cell_type'] == kind]
def source(cell): return ''.join(cell['source'])
def module(path): return (m := re.search(r'^#\| default_exp (\w+)', '\n'.join(map(source, cells(path))), re.M)) and m[1]
def tree(folder): return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob('*') if p.is_file() and '__pycache__' not in p.parts}

@pytest.fixture
def copy(tmp_path):
    "What nbdev needs of the repository, elsewhere."
    for name in ('nbs', 'fakeface'): shutil.copytree(ROOT/name, tmp_path/name, ignore=shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints', 'weights'))
    for name in ('settings.ini', 'README.md', 'setup.py'): shutil.copy(ROOT/name, tmp_path/name)
    return tmp_path

def nbdev(command, where):
    done = subprocess.run([Path(sys.executable).parent/f'nbdev_{command}'], cwd=where, capture_output=True, text=True)
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
    assert all(MACHINE.search(json.dumps(s)) for s in ('/home/a/b', 'C:\\Users\\a', '/' + 'tmp/x')) and not MACHINE.search('1/2, runs/demo/home.png, nbs/')

@pytest.mark.parametrize('path', NUMBERED, ids=lambda p: p.stem)
def test_shape_of_a_notebook(path):
    first, kinds = cells(path, 'markdown')[0], [source(c) for c in cells(path)]
    assert re.fullmatch(r'# .+\n\n?> .+', source(first).split('\n\n', 2)[0] + '\n\n' + source(first).split('\n\n', 2)[1])
    assert (module(path) or path.stem in ('00_tour', '10_experiments')) and any('assert ' in s or 'test_' in s for s in kinds)
    assert max(s.count('\n') + 1 for s in kinds) <= 40
    for s in kinds: assert not ('#| export' in s and s.splitlines()[0] != '#| export'), s[:60]

def test_steps_have_parameters_and_run_sections():
    for s in STEPS:
        path = ROOT/'nbs'/f'{s}.ipynb'
        tagged = [c for c in cells(path) if 'parameters' in c['metadata'].get('tags', [])]
        assert len(tagged) == 1 and any(source(c).startswith('## Run') for c in cells(path, 'markdown'))
        settings = re.sub(r'\n(?=[ \]])', ' ', source(tagged[0])).splitlines()  # a list may run over several lines
        assert all(re.fullmatch(r'\w+ = .+ # .+', line) for line in settings), settings  # every setting has a comment
        assert settings[0].startswith('run_dir = ') and defaults(s)['quick'][0] is False and re.search(r'^if quick:|, quick\)$', '\n'.join(map(source, cells(path))), re.M)
        assert len(defaults(s)) == len(settings) - 1
    assert [p.stem for p in NUMBERED if any('parameters' in c['metadata'].get('tags', []) for c in cells(p))] == list(STEPS)

@pytest.fixture
def elsewhere(copy, monkeypatch):
    "The repository's copy in the place of the repository."
    for m in (fakeface.pipeline, fakeface.settings): monkeypatch.setattr(m, 'repo_path', lambda name: copy/name)
    return copy

def changed(copy, edit):
    "The steps whose key another is after an edit."
    settings = resolve({})
    before = step_keys(settings)
    edit(copy)
    after = step_keys(settings)
    return [s for s in STEPS if before[s] != after[s]]

def replaced(path, old, new):
    text = path.read_text(encoding='utf-8')
    assert old in text
    path.write_text(text.replace(old, new), encoding='utf-8')

def test_a_step_is_made_of_its_run_and_the_package(elsewhere):
    "Degradation is learned in the third step; a lesson's assertion makes no step another; what a step runs makes it another, and those after it."
    degrade = lambda d: replaced(d/'fakeface'/'corrupt.py', 'class Degrade', '# another\nclass Degrade')
    assert changed(elsewhere, degrade)[0] == '03_train'
    lesson = lambda d: replaced(d/'nbs'/'03_train.ipynb', 'assert losses[-1] < losses[0] / 10', 'assert losses[-1] < losses[0] / 9')
    assert changed(elsewhere, lesson) == []
    run = lambda d: replaced(d/'nbs'/'04_evaluate.ipynb', 'metrics_table(result)"', 'metrics_table(result).head()"')
    assert changed(elsewhere, run)[0] == '04_evaluate'
    assert changed(elsewhere, lambda d: replaced(d/'fakeface'/'cli.py', 'def main', '# another\ndef main')) == []

@pytest.mark.parametrize('step', STEPS)
def test_a_run_executes_little_of_a_notebook(step):
    "Title, imports, settings and Run, in which no name comes from the lesson."
    run = step_cells(step)
    code = [c.source for c in run if c.cell_type == 'code']
    assert len(code) < len(cells(ROOT/'nbs'/f'{step}.ipynb')) and not any('assert ' in c for c in code)
    known = dict(vars(builtins))
    for c in code[:2]:
        exec(c, known)
    tree = ast.parse('\n'.join(code))
    bound = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    bound |= {a.arg for a in ast.walk(tree) if isinstance(a, ast.arg)} | {f.name for f in ast.walk(tree) if isinstance(f, ast.FunctionDef)}
    for c in code[3:]:
        for line in re.findall(r'^(?:from|import) .*', c, re.M):
            exec(line, known)
    used = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
    assert not used - bound - known.keys()

def test_profiles_resolve():
    assert {'demo', 'reference', '140k', '140k-full'} <= set(profiles())
    for name in profiles():
        content = load_profile(name); content.pop('needs_data', None)
        settings = resolve(content)
        assert set(settings) == set(STEPS)
        for s in STEPS: assert {n: settings[s][n] for n in content.get(section(s)) or {}} == (content.get(section(s)) or {})
    train = resolve({k: v for k, v in load_profile('reference').items() if k != 'needs_data'})['03_train']
    assert train | dict(optimizer='adam', lr=1e-4, batch_size=32, epochs=10, schedule='constant', fpr=0, band=0, ema=0, copies=[]) == train  # the recipe we measure against

def test_modules_import_only_from_below():
    "No circle, and in each folder the notebooks stand in the order of their imports."
    places = {module(p): p for p in NUMBERED if module(p)}
    assert set(places) == {p.stem for p in (ROOT/'fakeface').glob('*.py')} - {'__init__', '_modidx'}
    used = {}
    for name in places:
        tree = ast.parse((ROOT/'fakeface'/f'{name}.py').read_text(encoding='utf-8'))
        used[name] = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.level and n.module}
        used[name] |= {n.module.split('.')[1] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and (n.module or '').startswith('fakeface.')}
        for other in used[name]:
            if places[other].parent == places[name].parent:
                assert places[other].stem < places[name].stem, f'{name} imports from {other}'
    tuple(graphlib.TopologicalSorter(used).static_order())

def test_the_index_names_every_notebook():
    index = '\n'.join(source(c) for c in cells(ROOT/'nbs'/'index.ipynb', 'markdown'))
    named = re.findall(r'\(([\w/]+\.ipynb)\)', index)
    assert set(named) == {p.relative_to(ROOT/'nbs').as_posix() for p in NUMBERED}
