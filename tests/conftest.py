"What several test files share: tiny images, a tiny model, the real command, and real faces where there are some."

import os, shutil, subprocess, sys
from pathlib import Path

import pytest

os.environ.setdefault('OMP_NUM_THREADS', '1')   # before torch is imported: tiny batches gain nothing from more threads
os.environ.setdefault('TQDM_DISABLE', '1')
os.environ.setdefault('MPLBACKEND', 'agg')

from fakeface.model import build_model, metadata, save_checkpoint
from fakeface.standin import make_standin

ROOT = Path(__file__).resolve().parent.parent
COMMAND = Path(sys.executable).parent/'fakeface'
ORDER = 'images faces data robustness model train evaluate setup weights cli notebooks run app faults pipeline'.split()  # fast ones first

def pytest_configure(config): config.addinivalue_line('markers', 'slow: takes long to prove; make slow')

def pytest_collection_modifyitems(items):
    place = lambda item: ORDER.index(name) if (name := item.path.stem.removeprefix('test_')) in ORDER else len(ORDER)
    items.sort(key=place)

@pytest.fixture(scope='session')
def drawn(tmp_path_factory):
    "A tiny stand-in data set with splits; tests that change it copy it."
    return make_standin(tmp_path_factory.mktemp('data')/'drawn', n_train=32, n_valid=12, n_test=12, size=64)

@pytest.fixture
def faces(drawn, tmp_path):
    "A copy of it to spoil."
    return Path(shutil.copytree(drawn, tmp_path/'faces'))

@pytest.fixture(scope='session')
def checkpoint(tmp_path_factory):
    "A model that has learned nothing, as a file."
    path = tmp_path_factory.mktemp('weights')/'random.safetensors'
    save_checkpoint(path, build_model('random', seed=1)[0], metadata(size=64))
    return path

@pytest.fixture(scope='session')
def cli():
    "Runs the real command: `cli('predict', path)` -> `(code, out, err)`."
    def run(*args, **kw):
        done = subprocess.run([COMMAND, *map(os.fspath, args)], capture_output=True, text=True, errors='replace', **kw)
        return done.returncode, done.stdout, done.stderr
    return run

@pytest.fixture(scope='session')
def photographs():
    "Real photographs and generated faces, for those who have them."
    root = Path(os.environ.get('FAKEFACE_DATA') or 'unset')
    if not (root/'140k-subset').is_dir(): pytest.skip('FAKEFACE_DATA does not name a folder with 140k-subset/ and cross-generator/')
    return root
