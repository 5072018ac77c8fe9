"The notebooks are the source: the package is what they export, and they are fit to be read, committed and executed."

import ast, json, re, shutil, subprocess, sys
from pathlib import Path

import pytest

from conftest import ROOT
from fakeface.pipeline import STEPS, defaults, load_profile, profiles, resolve, section

NOTEBOOKS = sorted((ROOT/'nbs').glob('*.ipynb'))
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
    assert module(path) and any('assert ' in s for s in kinds)
    assert max(s.count('\n') + 1 for s in kinds) <= 40
    for s in kinds: assert not ('#| export' in s and s.splitlines()[0] != '#| export'), s[:60]

def test_steps_have_parameters_and_run_sections():
    for s in STEPS:
        path = ROOT/'nbs'/f'{s}.ipynb'
        tagged = [c for c in cells(path) if 'parameters' in c['metadata'].get('tags', [])]
        assert len(tagged) == 1 and any(source(c).startswith('## Run') for c in cells(path, 'markdown'))
        lines = source(tagged[0]).splitlines()
        assert all(re.fullmatch(r'\w+ = .+  +# .+|\w+ = .+ # .+', line) for line in lines), lines  # every setting has a comment
        assert 'run_dir' in defaults(s) and defaults(s)['quick'][0] is False and re.search(r'^if quick: |, quick\)$', '\n'.join(map(source, cells(path))), re.M)
        assert len(defaults(s)) == len(lines)
    assert [p.stem for p in NUMBERED if any('parameters' in c['metadata'].get('tags', []) for c in cells(p))] == list(STEPS)

def assigned(node):
    "Names that a statement binds in the module, not within functions, classes and comprehensions."
    if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)): return {getattr(node, 'name', '')}
    own = {node.id} if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) else set()
    return own.union(*map(assigned, ast.iter_child_nodes(node)))

@pytest.mark.parametrize('step', STEPS)
def test_no_lesson_overwrites_a_setting(step):
    "The pipeline runs the lesson with the settings of the run already in place: one of their names bound there would replace what the user asked for."
    path, bound = next(p for p in NUMBERED if p.stem == step), set()
    for c in cells(path):
        text = source(c)
        if 'parameters' not in c['metadata'].get('tags', []) and '#| eval: false' not in text: bound |= assigned(ast.parse(re.sub(r'^[%!].*$', '', text, flags=re.M)))
    assert not bound & set(defaults(step))

def test_the_guard_sees_every_way_to_bind():
    text = 'a = 1\nfor b, *c in []: pass\nwith x as d: pass\nif (e := 1): f[0] = 1\ndef g(h): i = 1\n[j for j in []]\nk += 1'
    assert assigned(ast.parse(text)) - {''} == {*'abcdegk'}

def test_profiles_resolve():
    assert {'demo', 'reference', '140k', '140k-full'} <= set(profiles())
    for name in profiles():
        content = load_profile(name); content.pop('needs_data', None)
        settings = resolve(content)
        assert set(settings) == set(STEPS)
        for s in STEPS: assert {n: settings[s][n] for n in content.get(section(s)) or {}} == (content.get(section(s)) or {})
    train = resolve({k: v for k, v in load_profile('reference').items() if k != 'needs_data'})['03_train']
    assert train | dict(optimizer='adam', lr=1e-4, batch_size=32, epochs=10, schedule='constant', fpr=0, band=0, ema=0, copies='') == train  # the recipe we measure against

def test_modules_import_only_from_below():
    numbers = {module(p): p.stem for p in NUMBERED}
    assert set(numbers) == {p.stem for p in (ROOT/'fakeface').glob('*.py')} - {'__init__', '_modidx'}
    for name, place in numbers.items():
        for node in ast.walk(ast.parse((ROOT/'fakeface'/f'{name}.py').read_text(encoding='utf-8'))):
            if isinstance(node, ast.ImportFrom) and node.module and (node.level or node.module.startswith('fakeface.')):
                used = node.module.split('.')[-1]
                assert numbers[used] < place, f'{name} imports from {used}'

def test_the_index_names_every_notebook():
    index = '\n'.join(source(c) for c in cells(ROOT/'nbs'/'index.ipynb', 'markdown'))
    assert set(re.findall(r'\((\w+)\.ipynb\)', index)) == {p.stem for p in NUMBERED}
