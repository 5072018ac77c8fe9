"Deployment without a builder: the image's files, its command and health check, the Space's front matter, the configuration."

import json, os, re, resource, shlex, shutil, socket, subprocess, sys, time, tomllib, urllib.error, urllib.request
from configparser import ConfigParser
from pathlib import Path

import pytest, yaml
from packaging.requirements import Requirement
from packaging.version import Version
from streamlit.config import get_config_options

from conftest import ROOT
from fakeface.images import MAX_BYTES

CONFIG = ConfigParser(delimiters=['='], interpolation=None)
CONFIG.read(ROOT/'settings.ini', encoding='utf-8')
CFG = CONFIG['DEFAULT']
SPACE = ROOT/'deploy'/'huggingface'/'README.md'

def text(name): return (ROOT/name).read_text(encoding='utf-8')

def instructions(source):
    "A Dockerfile as a list of `(instruction, rest of its line)`."
    lines = [l for l in source.splitlines() if l.strip() and not l.lstrip().startswith('#')]
    return [(k.upper(), rest.strip()) for k, rest in (l.split(None, 1) for l in '\n'.join(lines).replace('\\\n', ' ').splitlines())]

DOCKER = instructions(text('Dockerfile'))
RULES = [l.strip() for l in text('.dockerignore').splitlines() if l.strip() and not l.startswith('#')]

def said(kind): return [rest for k, rest in DOCKER if k == kind]

ENV = dict(w.split('=', 1) for rest in said('ENV') for w in shlex.split(rest))
COPIES = [(*words[:-1], words[-1]) for words in ([w for w in shlex.split(r) if not w.startswith('--')] for r in said('COPY'))]
CMD, = map(json.loads, said('CMD'))
HEALTH, = (json.loads(re.search(r'CMD (\[.*\])$', rest)[1]) for rest in said('HEALTHCHECK'))

def ignored(path, rules=RULES):
    "Docker's rule: the last pattern that fits the path or a folder above it decides."
    spell, out = {'**/': '(.*/)?', '**': '.*', '*': '[^/]*', '?': '[^/]'}, False
    above = ['/'.join(Path(path).parts[:n + 1]) for n in range(len(Path(path).parts))]
    for rule in rules:
        pattern = ''.join(spell.get(t) or re.escape(t) for t in re.findall(r'\*\*/|\*\*|[*?]|[^*?]+', rule.lstrip('!').strip('/')))
        if any(re.fullmatch(pattern, p) for p in above): out = not rule.startswith('!')
    return out

def files(source):
    "What `COPY source` takes: paths relative to the repository."
    found = [ROOT/source] if (ROOT/source).is_file() else [p for p in (ROOT/source).rglob('*') if p.is_file()]
    return [p for p in (f.relative_to(ROOT).as_posix() for f in found) if not ignored(p)]

@pytest.fixture(scope='module')
def image(tmp_path_factory):
    "A folder with the files that the image holds in its WORKDIR, and no others."
    root = tmp_path_factory.mktemp('image')
    for *sources, target in COPIES:
        for source in sources:
            for p in files(source):
                place = root/target/(Path(p).relative_to(source) if (ROOT/source).is_dir() else Path(p).name)
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT/p, place)
    return root

@pytest.mark.parametrize('path, rules, out', [
    ('a/b.py', ['*'], True), ('a/b.py', ['*', '!a'], False), ('a/b.py', ['*', '!a/b.py'], False), ('a/c.py', ['*', '!a/b.py'], True), ('b.py', ['a'], False),
    ('a/__pycache__/c.pyc', ['**/__pycache__'], True), ('__pycache__/c.pyc', ['**/__pycache__'], True), ('a/b.pyc', ['*.pyc'], False), ('a/b.pyc', ['**/*.pyc'], True), ('ab', ['a?', '!ab'], False)])
def test_the_reading_of_dockerignore(path, rules, out): assert ignored(path, rules) == out

def test_every_source_of_the_image_is_there():
    for *sources, _ in COPIES:
        for s in sources: assert files(s), f'COPY {s}: missing, or kept out by .dockerignore'

def test_the_image_holds_what_the_demo_needs_and_nothing_else(image):
    held = {p.relative_to(image).as_posix() for p in image.rglob('*') if p.is_file()}
    ours = {p.relative_to(ROOT).as_posix() for p in (ROOT/'fakeface').rglob('*') if p.is_file() and '__pycache__' not in p.parts}
    assert held == ours | {'app.py', 'settings.ini', 'setup.py', 'LICENSE', '.streamlit/config.toml'} and 'fakeface/weights/model.safetensors' in held
    for p in ('.git/config', '.venv/bin/python', 'tests/conftest.py', 'nbs/lib/01_core.ipynb', 'runs/x/report.html', 'data/x.png',
              '.streamlit/secrets.toml', '.env', 'fakeface/__pycache__/core.pyc'): assert ignored(p), p

def test_the_user_is_not_root():
    kinds = [k for k, _ in DOCKER]
    assert said('USER')[-1].split(':')[0] not in ('root', '0') and max(i for i, k in enumerate(kinds) if k == 'USER') < kinds.index('CMD')
    assert f'--uid {said("USER")[-1]} ' in ' '.join(said('RUN')) and ENV['HOME'] == '/tmp'

def test_python_is_new_enough():
    version = re.fullmatch(r'python:(\d+\.\d+)-slim\S*', said('FROM')[-1])[1]
    assert Version(version) >= Version(CFG['min_python'])

def test_requirements_stand_in_settings_alone():
    assert text('requirements.txt').split() == ['.'] and not (ROOT/'packages.txt').exists()
    everything = (text('Dockerfile') + text('requirements.txt')).lower().replace('cpu builds', '')
    names = {Requirement(r).name for key in ('requirements', 'dev_requirements', 'fetch_requirements') for r in CFG[key].split()} - {'streamlit'}
    assert not [n for n in names if re.search(rf'(?<![\w-]){re.escape(n)}(?![\w-])', everything)]
    assert not re.search(r'https?://(?!127)', everything)  # no package host is named

def test_both_installations_begin(tmp_path, image):
    "pip accepts what each hands to it: the RUN line in a folder with its COPY alone, and requirements.txt in the repository's files."
    pip = [sys.executable, '-m', 'pip', '--disable-pip-version-check']
    offline = ['--dry-run', '--no-deps', '--no-build-isolation']
    for name in ('settings.ini', 'setup.py'): shutil.copy(ROOT/name, tmp_path)
    run, = (r for r in said('RUN') if 'pip install' in r)
    script = f'pip() {{ for a; do echo "$a"; done; }}; useradd() {{ :; }}; {run}'
    told = lambda index: subprocess.run(['sh', '-ec', script], cwd=tmp_path, capture_output=True, text=True, check=True, env=dict(os.environ, TORCH_INDEX=index)).stdout.splitlines()
    words = told('')
    shutil.rmtree(tmp_path/'fakeface')
    assert told('a b') == words[:-2] + ['--extra-index-url', 'a b'] + words[-2:] and words[0] == 'install' and words[-2:] == ['-e', '.'] and said('ARG') == ['TORCH_INDEX=""']
    whole = Path(shutil.copytree(image, tmp_path/'whole'))
    for name in ('README.md', 'requirements.txt'): shutil.copy(ROOT/name, whole)
    for folder, args in ((tmp_path, words), (whole, ['install', '-r', 'requirements.txt'])):
        done = subprocess.run(pip + args + offline, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0 and f'Would install fakeface-{CFG["version"]}' in done.stdout, done.stderr

def test_the_space():
    _, front, body = SPACE.read_text(encoding='utf-8').split('---\n', 2)
    space, colours = yaml.safe_load(front), 'red yellow green blue indigo purple pink gray'.split()
    assert space['sdk'] == 'docker' and str(space['app_port']) == ENV['STREAMLIT_SERVER_PORT'] == said('EXPOSE')[0]
    assert space['colorFrom'] in colours and space['colorTo'] in colours and space['title'] and len(space['short_description']) <= 60
    assert space['license'] == 'other' and space['license_name'] and not space['emoji'].isascii()
    packed = set(re.search(r'git archive HEAD (.*) \|', body)[1].split())
    assert packed == {'Dockerfile', '.dockerignore'} | {s.split('/')[0] for *sources, _ in COPIES for s in sources}

def test_the_configuration():
    config = tomllib.loads(text('.streamlit/config.toml'))
    options, ours = get_config_options(), {f'{section}.{k}': v for section, keys in config.items() for k, v in keys.items()}
    assert not set(ours) - set(options), 'unknown to Streamlit'
    for k, v in ours.items(): assert not options[k].deprecated and (options[k].type is type(v) or options[k].type is str), k
    assert ours['server.enableXsrfProtection'] is True and ours['server.enableStaticServing'] is False
    assert 'theme' not in config  # light or dark is the visitor's choice
    assert not [w for w in CMD + list(ENV) if re.search('xsrf|cors', w, re.I)]
    spool = re.search(r'spool_max_size = ([\d* ]*)MAX_BYTES', text('app.py'))[1]
    assert ours['server.maxUploadSize'] * 2**20 == eval(spool + str(MAX_BYTES))  # so no upload is spooled to a file

@pytest.mark.slow
def test_the_image_serves(image, tmp_path):
    "The command of the Dockerfile, with the image's files and environment, where nothing can be written; health is asked for as the container does."
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); port = s.getsockname()[1]
    env = {k: v for k, v in os.environ.items() if not k.startswith(('STREAMLIT_', 'FAKEFACE_', 'PYTHON'))} | ENV
    env |= dict(HOME=str(tmp_path), TMPDIR=str(tmp_path), PYTHONPATH=str(tmp_path), PYTHONDONTWRITEBYTECODE='1', STREAMLIT_SERVER_PORT=str(port), STREAMLIT_SERVER_SCRIPT_HEALTH_CHECK_ENABLED='true')
    hide = ['import sys', f'sys.path[:] = [p for p in sys.path if p != {str(ROOT)!r}]', "sys.meta_path[:] = [f for f in sys.meta_path if 'editable___fakeface' not in str(f)]"]
    (tmp_path/'sitecustomize.py').write_text('\n'.join(hide))  # this checkout is out of reach
    before = {p: p.stat().st_mtime_ns for p in image.rglob('*')}
    python = lambda *a: subprocess.run([sys.executable, *a], cwd=image, env=env, capture_output=True, text=True)
    assert HEALTH[0] == 'python' and '/_stcore/health' in HEALTH[-1]
    healthy = lambda: python(*HEALTH[1:]).returncode == 0
    assert python('-c', 'import fakeface.core as c; print(c.__file__)').stdout.strip() == str(image/'fakeface'/'core.py') and not healthy()
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    server = subprocess.Popen([Path(sys.executable).parent/CMD[0], *CMD[1:]], cwd=image, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=limit)
    ran = None
    try:
        for _ in range(60):
            if healthy() or server.poll() is not None: break
            time.sleep(.5)
        if server.poll() is None:
            try: ran = urllib.request.urlopen(f'http://127.0.0.1:{port}/_stcore/script-health-check', timeout=120)
            except urllib.error.HTTPError as e: ran = e  # 503: the page fails
            assert healthy()
    finally:
        server.terminate()
        try: printed = server.communicate(timeout=20)[0]
        finally: server.kill()
    assert ran and ran.status == 200, printed
    assert 'SameSite=Lax' in ran.headers['Set-Cookie']
    assert f'0.0.0.0:{port}' in printed and 'external IP' not in printed and 'Traceback' not in printed
    assert {p: p.stat().st_mtime_ns for p in image.rglob('*')} == before
