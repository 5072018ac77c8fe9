"Packaging: one list of requirements, the README's commands, a package that needs no tool of its makers, and what is installed satisfies what is asked for."

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

def spoken(requirements): return sorted(str(Requirement(r)) for r in requirements)

def test_settings_are_the_only_list_of_requirements():
    tracked = subprocess.run(['git', 'ls-files'], cwd=ROOT, capture_output=True, text=True).stdout.split() or [p.name for p in ROOT.iterdir()]
    assert not [p for p in tracked if p != 'requirements.txt' and re.search(r'(^|/)(.*requirements.*\.(txt|in)|environment\.ya?ml|Pipfile.*|pyproject\.toml|setup\.cfg|.*\.lock)$', p)]  # test_deploy.py reads requirements.txt, which names this package alone
    setup = (ROOT/'setup.py').read_text(encoding='utf-8')
    assert not [r for r in CFG['requirements'].split() if Requirement(r).name in setup]

def test_the_installed_package_asks_for_what_settings_list():
    asked = {'': [], 'dev': [], 'fetch': [], 'onnx': [], 'claims': []}
    for r in map(Requirement, distribution('fakeface').requires):
        extra = re.search(r'extra == "(\w+)"', str(r.marker)); r.marker = None
        asked[extra[1] if extra else ''].append(str(r))
    listed = {extra: CFG[f'{extra}_requirements'.lstrip('_')].split() for extra in asked}
    listed['dev'] += listed['claims']  # whoever develops tests them
    assert {k: spoken(v) for k, v in asked.items()} == {k: spoken(v) for k, v in listed.items()}
    assert distribution('fakeface').version == CFG['version'] and distribution('fakeface').metadata['Requires-Python'] == f'>={CFG["min_python"]}'
    command, = [e for e in entry_points(group='console_scripts') if e.name == 'fakeface']
    assert f'fakeface={command.value}' == CFG['console_scripts']

def test_what_is_installed_is_what_is_asked_for():
    "As a fresh resolver left it: every range of settings.ini holds, and no two packages contradict each other."
    for r in map(Requirement, (CFG['requirements'] + ' ' + CFG['dev_requirements']).split()): assert r.specifier.contains(version(r.name), prereleases=True), f'{r}: {version(r.name)} is installed'
    done = subprocess.run([sys.executable, '-m', 'pip', '--disable-pip-version-check', 'check'], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout

LOCKED = dict(line.split('==') for line in (ROOT/'constraints.txt').read_text(encoding='utf-8').splitlines() if not line.startswith('#'))

def test_the_constraints_pin_all_that_is_asked_for_and_nothing_of_one_machine():
    for r in map(Requirement, (CFG['requirements'] + ' ' + CFG['dev_requirements']).split()):
        pinned = LOCKED[canonicalize_name(r.name)]
        assert r.specifier.contains(pinned), f'{r}: {pinned} is pinned'
    assert all(re.fullmatch(r'[\d.]+(post\d+|rc\d+)?', v) for v in LOCKED.values()) and not [n for n in LOCKED if n.startswith(('nvidia', 'cuda', 'triton', 'fakeface'))]

def test_the_lock_is_made_from_what_is_installed():
    made = runpy.run_path(str(ROOT/'docs'/'dependencies.py'))
    run, whole, absent = made['collect']()
    assert {'torch', 'pillow', 'tornado'} <= set(run) < set(whole) and 'pytest' in set(whole) - set(run) and 'fakeface' not in whole
    assert [line for line in made['constraints'](whole, 3).splitlines() if line.startswith('pillow=')] == [f'pillow=={version("pillow")}']
    assert made['kind']('LGPL-2.1') == 'LGPL' and made['kind']('AGPL-3.0') == 'AGPL' and made['kind']('GPL-2.0-only') == 'GPL' and made['kind']('BSD License') is None

def test_every_pinned_package_has_its_licence_listed():
    listed = dict(re.findall(r'^\| ([\w.-]+) \| \S+ \| (.*?) \| (?:run|dev) \|$', (ROOT/'docs'/'licences.md').read_text(encoding='utf-8'), re.M))
    assert set(LOCKED) <= set(listed) and not [n for n, licence in listed.items() if re.search(r'\bA?GPL', licence)]

def test_one_opencv(): assert sum('opencv' in r for r in CFG['requirements'].split()) == 1  # two would share one folder

def test_a_wheel_holds_package_and_weights(tmp_path):
    for name in ('fakeface', 'settings.ini', 'setup.py', 'README.md'):
        (shutil.copytree if (ROOT/name).is_dir() else shutil.copy)(ROOT/name, tmp_path/name)
    done = subprocess.run([sys.executable, 'setup.py', '-q', 'build', '-b', 'out'], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    built = {p.relative_to(tmp_path/'out'/'lib').as_posix() for p in (tmp_path/'out'/'lib').rglob('*') if p.is_file()}
    ours = {p.relative_to(ROOT).as_posix() for p in (ROOT/'fakeface').rglob('*') if p.is_file() and '__pycache__' not in p.parts}
    assert built == ours and 'fakeface/weights/MODEL_CARD.md' in built

@pytest.mark.skipif(not shutil.which('make'), reason='make is not installed')
def test_the_commands_of_the_readme_are_there():
    readme = (ROOT/'README.md').read_text(encoding='utf-8')
    first = re.search(r'```\n(.*?)```', readme, re.S)[1]
    assert [line.split()[:2] for line in first.splitlines()] == [['make', 'run'], ['make', 'test']]
    for target in set(re.findall(r'\bmake ([a-z]+)', readme)) - {'run', 'test'} | {'run', 'test'}:
        done = subprocess.run(['make', '-n', target], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, f'make {target}: {done.stderr}'

def test_ci_calls_the_readmes_test_command(): assert re.search(r'^make test$', (ROOT/'.ci'/'run').read_text(encoding='utf-8'), re.M)

def test_every_command_of_the_readme_parses():
    from fakeface.cli import parser
    said = re.findall(r'`fakeface ([^`]+)`|^fakeface ([^#\n]+)', (ROOT/'README.md').read_text(encoding='utf-8'), re.M)
    lines = [(a or b).split('#')[0].split() for a, b in said]
    assert len(lines) >= 6
    for words in lines: parser().parse_args(words)

def test_the_package_needs_no_tool_of_its_makers():
    "Every module is imported while nbdev, notebooks' editors and test tools are out of reach."
    names = sorted(p.stem for p in (ROOT/'fakeface').glob('*.py') if not p.stem.startswith('_'))
    assert {'core', 'data', 'model', 'train', 'cli'} <= set(names)
    code = f"""
import importlib, sys
for name in {['nbdev', 'execnb', 'ghapi', 'jupytext', 'jupyterlab', 'pytest', 'playwright', 'kagglehub']}: sys.modules[name] = None
for name in {names}: importlib.import_module('fakeface.' + name)
"""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
