"""Faults from outside, put into real runs: killed, in use, images changed, a disk that is full or
may not be written. Each is told in one line and harms nothing."""

import shutil, subprocess

import pytest

import kill_runs
from conftest import COMMAND
from fakeface.core import FaceError
from fakeface.pipeline import prepare, run
from fakeface.settings import SMOKE_SETS

pytestmark = pytest.mark.slow
SETS = [*SMOKE_SETS, 'train.crop=48', 'train.device=cpu', 'train.precision=fp32', 'train.workers=0']

def prepared(data, folder): return prepare('demo', data, folder=folder, sets=SETS)

def ready(data, folder):
    "A run whose images are sampled and whose model waits for its training."
    run_dir = prepared(data, folder)
    run(run_dir, str, '02_model')
    return run_dir

def said(*args):
    "Exit code and last line of an error."
    done = subprocess.run([COMMAND, *args], capture_output=True, text=True)
    assert 'Traceback' not in done.stderr
    return done.returncode, done.stderr.splitlines()[-1]

@pytest.fixture
def disk(tmp_path):
    "`disk('size=9m')` makes, or changes, a file system of its own, where one may be mounted."
    at = tmp_path/'disk'
    at.mkdir()
    def mount(options):
        command = (['mount', '-o', f'remount,{options}', at] if at.is_mount() else
                   ['mount', '-t', 'tmpfs', '-o', options, 'tmpfs', at])
        if not shutil.which('mount') or subprocess.run(command, capture_output=True).returncode:
            pytest.skip('a file system can be mounted only by root, and not in every container')
        return at
    yield mount
    if at.is_mount(): subprocess.run(['umount', '-l', at])

def test_a_run_in_use_is_left_alone(drawn, tmp_path):
    run_dir = prepared(drawn, tmp_path/'run')
    first = kill_runs.start('--resume', run_dir)
    try:
        assert any('01_data' in line for line in first.stdout)
        assert said('run', '--resume', run_dir) == (
            2, f'fakeface: {run_dir}/config.yaml: in use by another process; wait until that has '
            'ended, or name another')
    finally:
        first.kill()
        first.communicate()
    run(run_dir, str, '01_data')  # the system took the lock away with its holder

def test_changed_images_stop_a_run_before_they_count(faces, tmp_path):
    run_dir, victim = ready(faces, tmp_path/'run'), min((faces/'test'/'real').glob('*'))
    before = victim.read_bytes()
    for spoil in (lambda: victim.write_bytes(before + b'x'), victim.unlink):
        spoil()
        with pytest.raises(FaceError, match=f'1 of 44 .* first is test/real/{victim.name}; put'):
            run(run_dir, str, '03_train')
        assert not (run_dir/'last.ckpt').exists()
    victim.write_bytes(before)
    run(run_dir, str, '03_train')
    assert (run_dir/'model.safetensors').exists()

def test_a_full_disk_ends_in_one_line_and_the_run_goes_on_when_there_is_room(drawn, disk):
    "Room for the starting weights and not for the state after an epoch."
    run_dir = ready(drawn, disk('size=80m')/'run')
    assert said('run', '--resume', run_dir) == (
        2, f'fakeface: {run_dir}: cannot be written (No space left on device); what is complete is '
        f'kept: mend that, then fakeface run --resume {run_dir}')
    assert kill_runs.whole(run_dir) and not list(run_dir.rglob('.*'))
    disk('size=900m')
    run(run_dir, str, '03_train')
    assert (run_dir/'model.safetensors').exists()

def test_a_disk_that_may_not_be_written(drawn, disk):
    run_dir = ready(drawn, disk('size=80m')/'run')
    disk('ro')
    with pytest.raises(FaceError, match=r'cannot be written \(Read-only file system\)'):
        run(run_dir, str, '03_train')
    with pytest.raises(FaceError, match='cannot be made'): prepared(drawn, run_dir.parent/'other')
    code, line = said('predict', drawn/'test', '--csv', run_dir/'new.csv')
    assert code == 2 and 'Read-only file system' in line

@pytest.mark.parametrize('alone', [False, True], ids=['everything', 'command'])
def test_what_a_kill_leaves_is_whole(drawn, tmp_path, alone):
    "One kill of those that `make kill` does thirty of; `test_pipeline.py` compares the results."
    run_dir = prepared(drawn, tmp_path/'run')
    steps = '01_data', '02_model'
    assert kill_runs.killed(steps, 3, alone, '--resume', run_dir) in steps
    assert kill_runs.whole(run_dir) >= 2
    run(run_dir, str, '02_model')
    assert kill_runs.whole(run_dir) >= 9 and not list(run_dir.rglob('.*'))
    (run_dir/'data.json').write_text('{"root": ')
    with pytest.raises(SystemExit, match='data.json: damaged after a kill'):
        kill_runs.whole(run_dir)
