"Faults from outside, put into real runs: killed, in use, images changed, a disk that is full or may not be written. Each is told in one line and harms nothing."

import shutil, subprocess

import pytest

import kill_runs
from conftest import COMMAND
from fakeface.core import FaceError
from fakeface.pipeline import QUICK_SETS, prepare, run

pytestmark = pytest.mark.slow
SETS = [*QUICK_SETS, 'train.crop=48', 'train.device=cpu', 'train.precision=fp32', 'train.workers=0']

def prepared(data, folder): return prepare('demo', data, folder=folder, sets=SETS)

def ready(data, folder):
    "A run whose images are sampled and whose model waits for its training."
    run_dir = prepared(data, folder)
    run(run_dir, str, '02_model')
    return run_dir

@pytest.fixture
def disk(tmp_path):
    "`disk('size=9m')` makes, or changes, a file system of its own; the tests that need it are skipped where one may not be mounted."
    at = tmp_path/'disk'; at.mkdir()
    def mount(options):
        command = ['mount', '-o', f'remount,{options}', at] if at.is_mount() else ['mount', '-t', 'tmpfs', '-o', options, 'tmpfs', at]
        if not shutil.which('mount') or subprocess.run(command, capture_output=True).returncode: pytest.skip('a file system can be mounted only by root, and not in every container')
        return at
    yield mount
    if at.is_mount(): subprocess.run(['umount', '-l', at])

def test_a_run_in_use_is_left_alone(drawn, tmp_path):
    run_dir = prepared(drawn, tmp_path/'run')
    first = subprocess.Popen([COMMAND, 'run', '--resume', run_dir], stdout=subprocess.PIPE, text=True)
    try:
        assert any('01_data' in line for line in first.stdout)
        second = subprocess.run([COMMAND, 'run', '--resume', run_dir], capture_output=True, text=True)
    finally: first.kill(); first.communicate()
    assert second.returncode == 2 and second.stderr == f'fakeface: {run_dir}/config.yaml: in use by another process; wait until that has ended, or name another\n' and '01_data' not in second.stdout
    run(run_dir, str, '01_data')  # the system took the lock away with its holder

def test_changed_images_stop_a_run_before_they_count(faces, tmp_path):
    run_dir = ready(faces, tmp_path/'run')
    victim = sorted((faces/'test'/'real').glob('*'))[0]; before = victim.read_bytes()
    for spoil in (lambda: victim.write_bytes(before + b'x'), lambda: victim.unlink()):
        spoil()
        with pytest.raises(FaceError, match=f'1 of 44 images are not the files that the manifest names, the first is test/real/{victim.name}; put them back'): run(run_dir, str, '03_train')
        assert not (run_dir/'model.safetensors').exists() and not (run_dir/'last.ckpt').exists()
    victim.write_bytes(before)
    run(run_dir, str, '03_train')
    assert (run_dir/'model.safetensors').exists()

def test_a_full_disk_ends_in_one_line_and_the_run_goes_on_when_there_is_room(drawn, disk, capsys):
    "Room for the starting weights and not for the state after an epoch."
    run_dir = ready(drawn, disk('size=80m')/'run')
    done = subprocess.run([COMMAND, 'run', '--resume', run_dir], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.splitlines()[-1] == f'fakeface: {run_dir}: cannot be written (No space left on device); what is complete is kept: mend that, then fakeface run --resume {run_dir}'
    assert 'Traceback' not in done.stderr and kill_runs.whole(run_dir) and not [p for p in run_dir.rglob('.*')] and not (run_dir/'last.ckpt').exists()
    disk('size=900m')
    run(run_dir, str, '03_train')
    assert (run_dir/'model.safetensors').exists()

def test_a_disk_that_may_not_be_written(drawn, disk):
    run_dir = ready(drawn, disk('size=80m')/'run')
    disk('ro')
    with pytest.raises(FaceError, match=r'cannot be written \(Read-only file system\)'): run(run_dir, str, '03_train')
    with pytest.raises(FaceError, match='cannot be made'): prepared(drawn, run_dir.parent/'other')
    done = subprocess.run([COMMAND, 'predict', drawn/'test', '--csv', run_dir/'new.csv'], capture_output=True, text=True)
    assert done.returncode == 2 and 'Read-only file system' in done.stderr and len(done.stderr.splitlines()) == 1

@pytest.mark.parametrize('alone', [False, True], ids=['everything', 'command'])
def test_what_a_kill_leaves_is_whole(drawn, tmp_path, alone):
    "One kill of those that `make kill` does thirty of, comparing the results in the end; `test_pipeline.py` compares those of one, too."
    run_dir = prepared(drawn, tmp_path/'run')
    assert kill_runs.killed(['01_data', '02_model'], 3, alone, '--resume', run_dir) in ('01_data', '02_model')
    assert kill_runs.whole(run_dir) >= 2
    run(run_dir, str, '02_model')
    assert kill_runs.whole(run_dir) >= 9 and not list(run_dir.rglob('.*'))
    (run_dir/'data.json').write_text('{"root": ')
    with pytest.raises(SystemExit, match='data.json: damaged after a kill'): kill_runs.whole(run_dir)
