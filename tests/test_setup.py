"""Packaging: one list of requirements, the README's commands, a package that needs no tool of its
makers, and what is installed satisfies what is asked for."""

import re, runpy, shutil, subprocess, sys
from configparser import ConfigParser
from importlib.metadata import distribution, entry_points, version

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from conftest import ROOT

CONFIG = ConfigParser(delimiters=['='], interpolation=None)
CONFIG.read(ROOT/'settings.ini', encoding='utf-8')
CFG = CONFIG['DEFAULT']
ASKED = [Requirement(r) for r in (CFG['requirements'] + ' ' + CFG['dev_requirements']).split()]

def text_of(name): return (ROOT/name).read_text(encoding='utf-8')
def spoken(requirements): return sorted(str(Requirement(r)) for r in requirements)

def done(*command, where=ROOT):
    "What a command prints; it must succeed."
    p = subprocess.run([*map(str, command)], cwd=where, capture_output=True, text=True)
    assert p.returncode == 0, p.stdout + p.stderr
    return p.stdout

LISTS = (r'(^|/)(.*requirements.*\.(txt|in)|environment\.ya?ml|Pipfile.*|pyproject\.toml'
         r'|setup\.cfg|.*\.lock)$')

def test_settings_are_the_only_list_of_requirements():
    "requirements.txt names this package alone: test_deploy.py reads it."
    git = subprocess.run(['git', 'ls-files'], cwd=ROOT, capture_output=True, text=True)
    tracked = git.stdout.split() or [p.name for p in ROOT.iterdir()]
    assert [p for p in tracked if re.search(LISTS, p)] == ['requirements.txt']
    setup = text_of('setup.py')
    assert not [r for r in CFG['requirements'].split() if Requirement(r).name in setup]

def test_the_installed_package_asks_for_what_settings_list():
    asked = {'': [], 'dev': [], 'fetch': [], 'onnx': [], 'claims': []}
    package = distribution('fakeface')
    for r in map(Requirement, package.requires):
        extra = re.search(r'extra == "(\w+)"', str(r.marker))
        r.marker = None
        asked[extra[1] if extra else ''].append(str(r))
    listed = {extra: CFG[f'{extra}_requirements'.lstrip('_')].split() for extra in asked}
    listed['dev'] += listed['claims']  # whoever develops tests them
    assert ({k: spoken(v) for k, v in asked.items()}
            == {k: spoken(v) for k, v in listed.items()})
    assert package.version == CFG['version']
    assert package.metadata['Requires-Python'] == f'>={CFG["min_python"]}'
    command, = [e for e in entry_points(group='console_scripts') if e.name == 'fakeface']
    assert f'fakeface={command.value}' == CFG['console_scripts']

def test_what_is_installed_is_what_is_asked_for():
    """As a fresh resolver left it: every range of settings.ini holds, and no two packages
    contradict each other."""
    for r in ASKED:
        assert r.specifier.contains(found := version(r.name), prereleases=True), f'{r}: {found}'
    done(sys.executable, '-m', 'pip', '--disable-pip-version-check', 'check')

LOCKED = dict(line.split('==') for line in text_of('constraints.txt').splitlines()
              if not line.startswith('#'))

def test_the_constraints_pin_all_that_is_asked_for_and_nothing_of_one_machine():
    for r in ASKED:
        assert r.specifier.contains(pinned := LOCKED[canonicalize_name(r.name)]), f'{r}: {pinned}'
    assert all(re.fullmatch(r'[\d.]+(post\d+|rc\d+)?', v) for v in LOCKED.values())
    assert not [n for n in LOCKED if n.startswith(('nvidia', 'cuda', 'triton', 'fakeface'))]

def test_the_lock_is_made_from_what_is_installed():
    made = runpy.run_path(str(ROOT/'docs'/'dependencies.py'))
    run, whole, absent = made['collect']()
    assert {'torch', 'pillow', 'tornado'} <= set(run) < set(whole) and 'fakeface' not in whole
    assert 'pytest' in set(whole) - set(run)
    assert f'pillow=={version("pillow")}' in made['constraints'](whole, 3).splitlines()
    kinds = [made['kind'](k) for k in ('LGPL-2.1', 'AGPL-3.0', 'GPL-2.0-only', 'BSD License')]
    assert kinds == ['LGPL', 'AGPL', 'GPL', None]

def test_every_pinned_package_has_its_licence_listed():
    rows = r'^\| ([\w.-]+) \| \S+ \| (.*?) \| (?:run|dev) \|$'
    listed = dict(re.findall(rows, text_of('docs/licences.md'), re.M))
    assert set(LOCKED) <= set(listed)
    assert not [n for n, licence in listed.items() if re.search(r'\bA?GPL', licence)]

def test_one_opencv():
    "Two would share one folder."
    assert sum('opencv' in r for r in CFG['requirements'].split()) == 1

def test_a_wheel_holds_package_and_weights(tmp_path):
    shutil.copytree(ROOT/'fakeface', tmp_path/'fakeface')
    for name in ('settings.ini', 'setup.py', 'README.md'): shutil.copy(ROOT/name, tmp_path)
    done(sys.executable, 'setup.py', '-q', 'build', '-b', 'out', where=tmp_path)
    files = lambda base: {p.relative_to(base).as_posix() for p in (base/'fakeface').rglob('*')
                          if p.is_file() and '__pycache__' not in p.parts}
    assert files(tmp_path/'out'/'lib') == (ours := files(ROOT))
    assert 'fakeface/weights/MODEL_CARD.md' in ours

@pytest.mark.skipif(not shutil.which('make'), reason='make is not installed')
def test_the_commands_of_the_readme_are_there():
    readme = text_of('README.md')
    first = re.search(r'```\n(.*?)```', readme, re.S)[1]
    assert [line.split()[:2] for line in first.splitlines()] == [['make', 'run'], ['make', 'test']]
    for target in {'run', 'test', *re.findall(r'\bmake ([a-z]+)', readme)}:
        done('make', '-n', target)

def test_ci_calls_the_readmes_test_command():
    assert re.search(r'^make test$', text_of('.ci/run'), re.M)

def test_every_command_of_the_readme_parses():
    from fakeface.cli import parser
    said = re.findall(r'`fakeface ([^`]+)`|^fakeface ([^#\n]+)', text_of('README.md'), re.M)
    lines = [(a or b).split('#')[0].split() for a, b in said]
    assert len(lines) >= 6
    for words in lines: parser().parse_args(words)

def test_the_package_needs_no_tool_of_its_makers():
    """Every module is imported while nbdev, notebooks' editors and test tools are out of reach."""
    names = sorted(p.stem for p in (ROOT/'fakeface').glob('*.py') if not p.stem.startswith('_'))
    assert {'core', 'data', 'model', 'train', 'cli'} <= set(names)
    tools = 'nbdev execnb ghapi jupytext jupyterlab pytest playwright kagglehub'.split()
    done(sys.executable, '-c', 'import importlib, sys\n'
         f'for name in {tools}: sys.modules[name] = None\n'
         f'for name in {names}: importlib.import_module("fakeface." + name)')
