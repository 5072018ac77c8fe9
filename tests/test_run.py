"""The pipeline once, as quick as it goes, in the real command: every step runs, and the report
holds what they found. test_pipeline.py looks closer."""

import json

from fakeface.settings import STEPS

SETS = '''train.crop=48 train.epochs=1 train.device=cpu train.workers=0 evaluate.workers=0
    robustness.workers=0'''.split()

def test_a_smoke_run(cli, tmp_path):
    sets = [a for s in [*SETS, f'data.standin_dir={tmp_path/"drawn"}'] for a in ('--set', s)]
    code, out, err = cli('run', '--smoke', '--out', tmp_path/'runs', *sets)
    assert code == 0, err
    run_dir, = (tmp_path/'runs').iterdir()
    assert all((run_dir/f'{s}.ipynb').is_file() for s in STEPS) and 'report.html' in out
    result = json.loads((run_dir/'metrics.json').read_text())
    page = (run_dir/'report.html').read_text()
    assert f'{result["metrics"]["auc"]["value"]:.4f}' in page and result['n'] == 12
