"""Real runs on tiny data: all artefacts, numbers that agree with each other, and a killed run that
ends like one that was not."""

import json, re, shutil, subprocess, threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
import yaml

import kill_runs
from conftest import COMMAND, ROOT
from fakeface import detector, ship
from fakeface.core import digest
from fakeface.corrupt import STABILITY_SET
from fakeface.dataset import predict_corrupted
from fakeface.detector import SHIPPED, Detector
from fakeface.evaluate import evaluate
from fakeface.model import load_checkpoint
from fakeface.pipeline import prepare, run, run_step
from fakeface.settings import SMOKE_SETS, STEPS
from fakeface.standin import make_standin
from fakeface.train import operating_point

SETS = [*kill_runs.SETS, 'train.ramp=2', 'train.corruptions=jpeg:50', 'train.start_shares=[0, 0.5]',
        'robustness.corruptions=[scale:0.5, jpeg:75]']

pytestmark = [pytest.mark.slow,  # torchvision's JPEG warns
              pytest.mark.filterwarnings('ignore:.*TorchCodec:DeprecationWarning')]

class Run:
    "A `fakeface run`, from its start on; `dir` is its run folder."
    def __init__(self, out, *args):
        self.out = out
        self.process = kill_runs.start('--smoke', '--out', out, *kill_runs.options(SETS), *args)
    @property
    def dir(self): return next(iter(self.out.glob('*')), self.out/'none')
    def end(self):
        self.said, self.err = self.process.communicate()
        self.code = self.process.returncode
        return self
    def resume(self):
        self.process = kill_runs.start('--resume', self.dir)
        return self.end()
    def kill_in_training(self):
        "As a power cut does, after the first epoch. Returns whether training was still going on."
        kill_runs.wait_for(self.process, lambda: (self.dir/'last.ckpt').exists())
        self.strays = [p.name for p in (ROOT/'nbs').iterdir() if p.is_socket()]
        kill_runs.kill(self.process)
        self.process.communicate()
        kill_runs.whole(self.dir)
        return (self.dir/'last.ckpt').exists() and not (self.dir/'model.safetensors').exists()

def sources(): return {p.name: p.read_bytes() for p in (ROOT/'nbs').glob('*.ipynb')}
def times(folder): return {p: p.stat().st_mtime_ns for p in folder.rglob('*')}
def read(path): return json.loads(path.read_text())
def config(run_dir): return yaml.safe_load((run_dir/'config.yaml').read_text())
def root(run_dir): return Path(read(run_dir/'data.json')['root'])
def headings(page): return re.findall(r'<h2[^>]*>([\w ]+)', page)

def p_fake(weights, paths):
    return [v.p_fake for v in Detector.load(weights, 'cpu').predict(paths, whole=True)]

def changed(run_dir, folder, **settings):
    "A copy of a run with other settings: {step: {name: value}}."
    d, c = shutil.copytree(run_dir, folder), config(run_dir)
    for step, values in settings.items(): c['settings'][step] |= values
    (d/'config.yaml').write_text(yaml.safe_dump(c))
    return d

@pytest.fixture(scope='module')
def runs(drawn, checkpoint, tmp_path_factory):
    """Made at the same time, as by people who share a machine: `whole`, a run on the stand-in;
    `own`, on a folder without splits, killed, resumed, and resumed once more; `straight`, the same
    from its training on without being killed."""
    home, before, killed = tmp_path_factory.mktemp('home'), sources(), threading.Event()
    shutil.copytree(drawn/'train'/'real', home/'holiday'/'real')
    for s, made_by in (('valid', 'gan'), ('test', 'diffusion')):  # other scenes than real
        shutil.copytree(drawn/s/'fake', home/'holiday'/'fake'/made_by)
    (home/'holiday'/'real'/'broken.jpg').write_bytes(b'\xff\xd8\xff')
    def own():
        r = Run(home/'own', '--data', home/'holiday')
        try:
            r.midway = r.kill_in_training()
            shutil.copytree(r.dir, home/'straight', ignore=shutil.ignore_patterns('.*', '*.ckpt'))
        finally: killed.set()
        r.first = r.resume().said, r.code, r.err
        before = times(r.dir)
        r.again = r.resume().said, r.code
        r.untouched = times(r.dir) == before
        return r
    def whole():
        more = f'data.standin_dir={home/"drawn"}', f'robustness.beside=other={checkpoint}'
        return Run(home/'whole', *kill_runs.options(more)).end()
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(own), pool.submit(whole)]
        killed.wait()
        for s in ('03_train', '04_evaluate'):
            run_step(s, config(home/'straight')['settings'][s], home/'straight')
        own, whole = [j.result() for j in jobs]
    return SimpleNamespace(whole=whole, own=own, straight=home/'straight', home=home,
                           sources_untouched=sources() == before)

def test_a_run_says_what_it_found_and_where(runs):
    assert runs.whole.code == 0 and 'Traceback' not in runs.whole.err, runs.whole.err
    for text in ('Of 12 test images', 'stand-in', 'report.html', '--resume', 'how good the model'):
        assert text in runs.whole.said

def test_ship(runs, drawn, tmp_path, monkeypatch):
    "Weights, seal, figures and numbers of a finished run; what stands outside of the marks stays."
    run_dir, shipped = runs.whole.dir, tmp_path/'weights'/'model.safetensors'
    card, readme, docs = shipped.with_name('MODEL_CARD.md'), tmp_path/'README.md', tmp_path/'docs'
    docs.mkdir()
    (shipped.parent/'figures').mkdir(parents=True)
    mark = 'before\n<!-- {0} -->\nFORMER\n<!-- /{0} -->\nafter'.format
    named = ['short', 'numbers', 'doubt', 'sources', 'people', 'robustness', 'left-out']
    card.write_text('\n'.join(map(mark, named)))
    readme.write_text(mark('numbers'))
    for module in (ship, detector): monkeypatch.setattr(module, 'SHIPPED', shipped)
    monkeypatch.setattr(ship, 'repo_path', lambda name: tmp_path/name)
    assert ship.main([str(run_dir), '--also', str(drawn/'test')]) == 0
    assert shipped.read_bytes() == (run_dir/'model.safetensors').read_bytes()
    assert Detector.load().threshold > 0  # its seal holds
    figures = {p.stem for p in (shipped.parent/'figures').iterdir()}
    assert {p.stem for p in docs.iterdir()} == {'sources', 'robustness', 'logit_shift'} < figures
    said = card.read_text()
    assert said.count('FORMER') == 1 and said.count('before') == 7  # no families were left out
    assert 'FORMER' not in readme.read_text() and '| drawn/test |' in readme.read_text()
    assert all(f'| {n} |' in said for n in ('drawn/test | 6 / 6', 'jpeg:75', 'generator'))

def test_all_artefacts_are_there_and_nothing_half_written(runs):
    d = runs.whole.dir
    assert re.fullmatch(r'\d{8}T\d{6}Z-demo', d.name)
    named = '''config.yaml environment.json manifest.csv history.csv last.ckpt model.safetensors
        predictions.csv metrics.json corruptions.csv robustness.json clusters.json gradcam.json
        explanations.json report.html'''.split()
    named += [f'figures/{n}.png' for n in '''samples history confusion curves scores reliability
        heatmaps clusters robustness logit_shift sources mean_maps'''.split()]
    for n in named + [f'{s}.ipynb' for s in STEPS]: assert (d/n).stat().st_size > 20, n
    assert kill_runs.whole(d) > len(named)
    for r in (runs.whole, runs.own): assert not list(r.dir.rglob('.*'))

def test_config_and_environment(runs):
    c, env = config(runs.whole.dir), read(runs.whole.dir/'environment.json')
    assert c['profile'] == 'demo' and set(c['settings']) == set(STEPS)
    assert all(v['smoke'] for v in c['settings'].values())
    train = dict(crop=48, precision='fp32', corruptions=['jpeg:50'], seed=env['seed'])
    assert c['settings']['03_train'] | train == c['settings']['03_train']
    assert env['versions']['torch'] and env['python'] and 'commit' in env

def test_the_stand_in_is_drawn_where_the_setting_says_and_stays(runs):
    "Another run with a stand-in of another size must not replace what this one was made from."
    d, manifest = runs.whole.dir, pd.read_csv(runs.whole.dir/'manifest.csv')
    assert root(d).is_relative_to(runs.home/'drawn')
    more = ['data.standin_size=32', f'data.standin_dir={runs.home/"drawn"}']
    other = prepare('demo', out=runs.home/'other', sets=[*SMOKE_SETS, *SETS, *more])
    run(other, (said := []).append, until='01_data')
    assert len(said) == 1 and list(read(other/'steps.json')) == ['01_data']
    a, b = (read(r/'data.json')['manifest_sha256'] for r in (d, other))
    digests = [digest((root(d)/p).read_bytes()) for p in manifest.path]
    assert a != b and digests == manifest.sha256.tolist()

def test_numbers_agree_with_each_other(runs):
    d = runs.whole.dir
    manifest, predictions = pd.read_csv(d/'manifest.csv'), pd.read_csv(d/'predictions.csv')
    meta, metrics = load_checkpoint(d/'model.safetensors')[1], read(d/'metrics.json')
    n = manifest.value_counts(['split', 'label']).to_dict()
    assert n == {(s, c): k for s, k in zip(('train', 'valid', 'test'), (12, 4, 6))
                 for c in ('fake', 'real')}
    assert list(predictions.path) == list(manifest.path[manifest.split == 'test'])
    assert pd.read_csv(d/'history.csv').epoch.tolist() == [1, 2, 3]
    assert meta['manifest_sha256'] == digest((d/'manifest.csv').read_bytes())
    assert meta['source'] == metrics['source'] == 'standin'
    again = evaluate(predictions, meta['threshold'], 30)
    auc, same = (m['metrics']['auc']['value'] for m in (again, metrics))
    assert again['confusion'] == metrics['confusion'] and auc == pytest.approx(same)
    scores = p_fake(d/'model.safetensors', [root(d)/p for p in predictions.path])
    assert scores == pytest.approx(predictions.p_fake.tolist(), abs=1e-4)

def test_the_operating_point_comes_from_the_validation_images_and_their_copies(runs):
    d = runs.whole.dir
    (model, meta), manifest = load_checkpoint(d/'model.safetensors'), pd.read_csv(d/'manifest.csv')
    valid = manifest[manifest.split == 'valid']
    scores = predict_corrupted(model, meta, root(d), valid, ['', 'jpeg:50'])
    fake, p = (valid.label == 'fake').to_numpy(), scores.to_numpy().T.ravel()
    threshold, doubt = operating_point(scores[''].to_numpy(), fake, p, np.tile(fake, 2), .05, .02)
    assert (meta['threshold'], *meta['band']) == pytest.approx((threshold, *doubt), abs=2e-3)
    m, t = read(d/'metrics.json'), pd.read_csv(d/'predictions.csv')
    again = evaluate(t, meta['threshold'], 5, band=meta['band'])
    assert m['threshold'] == meta['threshold']
    assert m['metrics']['coverage'] == again['metrics']['coverage']

def test_the_weights_are_the_mean_that_catches_most_fakes_of_valid(runs):
    d = runs.whole.dir
    (model, meta), (start, _) = (load_checkpoint(d/f'{n}.safetensors') for n in ('model', 'init'))
    means = meta['metrics']['means']
    assert [r['share'] for r in means] == [0, .5]
    share = max(means, key=lambda r: r['caught'])['share']  # of equals the first
    trained = torch.load(d/'last.ckpt', weights_only=True)['best']['conv1.weight']
    mean = torch.lerp(trained, start.conv1.weight, share)
    assert torch.allclose(model.conv1.weight, mean, rtol=1e-3, atol=1e-5)  # kept in 16 bits

def test_heatmaps_are_exact_and_clusters_hold_every_image(runs):
    exact, clusters = (read(runs.whole.dir/f'{n}.json') for n in ('gradcam', 'clusters'))
    assert exact['completeness'] <= 1e-4 and exact['correlation'] >= .999 and 2 <= exact['n'] <= 8
    rows, wrong = pd.DataFrame(clusters['table']), pd.read_csv(runs.whole.dir/'errors.csv')
    assert (rows.n.sum(), rows.k.sum()) == (12, len(wrong))
    assert (rows.n * rows.fakes).sum() == pytest.approx(6)
    assert clusters['text'] == ['Too few images for a claim: no group has 20 of them.']

def test_robustness_is_measured_with_the_same_model_and_one_beside_it(runs, checkpoint):
    d = runs.whole.dir
    predictions = pd.read_csv(d/'predictions.csv')
    table = pd.read_csv(d/'corruptions.csv', keep_default_na=False)
    r, metrics = read(d/'robustness.json'), read(d/'metrics.json')['metrics']
    own, other = (t.reset_index(drop=True) for _, t in table.groupby('model', sort=False))
    assert list(r['models']) == ['this model', 'other'] == table.model.unique().tolist()
    assert r['models']['other']['sha256'] == digest(checkpoint.read_bytes())
    assert not np.allclose(own['jpeg:75'], other['jpeg:75'])
    as_is, *rest = own.columns.drop(['path', 'label', 'model'])
    assert set(rest) == {'scale:0.5', *STABILITY_SET} and [*own.path] == [*predictions.path]
    assert own[as_is].tolist() == pytest.approx(predictions.p_fake.tolist(), abs=1e-4)
    assert not np.allclose(own[as_is], own['jpeg:75'], atol=1e-6)
    rows = r['models']['this model']['rows']
    assert [row['corruption'] for row in rows] == ['', 'scale:0.5', 'jpeg:75'] and r['n'] == 12
    assert all(rows[0][k] == metrics[k] for k in ('accuracy', 'coverage'))

@pytest.mark.parametrize('step', STEPS)
def test_executed_notebooks(runs, step):
    nb = nbformat.read(runs.whole.dir/f'{step}.ipynb', 4)
    code = [c for c in nb.cells if c.cell_type == 'code']
    assert not [o for c in code for o in c.outputs if o.output_type == 'error']
    injected, = [c.source for c in code if 'injected-parameters' in c.metadata.get('tags', [])]
    assert f'run_dir = "{runs.whole.dir}"' in injected
    assert all(c.execution_count for c in code if c.source)

def test_the_repository_stays_as_it_was(runs):
    "Notebooks are read only, and kernels talk in private: in one place, two runs would mix."
    assert runs.sources_untouched and not runs.own.strays

def test_report(runs):
    page = (runs.whole.dir/'report.html').read_text()
    right = read(runs.whole.dir/'metrics.json')['metrics']['accuracy']['value']
    for text in ('<strong>Smoke run.</strong>', '10_report', 'generated stand-in', 'adamw',
                 f'{100 * right:.1f} %', 'Accuracy of all models', 'other, threshold',
                 'is shown to be truer', 'equals the logit to within'):
        assert text in page
    assert {'Numbers', 'Robustness', 'Training'} <= set(headings(page))
    assert page.count('data:image/png;base64,') >= 8
    fetched = r'<(script|link|iframe)\b|\b(src|href)="(?!data:|#)|url\(|@import'
    assert not re.search(fetched, page)

def test_a_folder_of_ones_own(runs):
    d, (said, code, err) = runs.own.dir, runs.own.first
    assert code == 0, err
    manifest, page = pd.read_csv(d/'manifest.csv'), (d/'report.html').read_text()
    assert set(manifest.split) == {'train', 'valid', 'test'}  # folders below a class are sources
    assert set(manifest.source) == {'holiday', 'holiday/gan', 'holiday/diffusion'}
    assert pd.read_csv(d/'passed.csv').path.tolist() == ['real/broken.jpg'] and 'broken.jpg' in page
    assert 'holiday' in page and 'stand-in' not in page.split('<h2')[0] + said

def test_a_killed_run_ends_as_if_it_had_not_been_killed(runs):
    assert runs.own.midway, 'it was not killed during training'
    said, code, err = runs.own.first
    skipped = re.findall(r'(\w+): complete, skipped', said)
    assert code == 0 and skipped == ['01_data', '02_model'], err
    resumed, straight = ((d/'03_train.ipynb').read_text().count('resuming after epoch')
                         for d in (runs.own.dir, runs.straight))
    assert resumed == straight + 1
    for name in ('model.safetensors', 'predictions.csv', 'metrics.json'):
        assert (runs.own.dir/name).read_bytes() == (runs.straight/name).read_bytes(), name
    a, b = (pd.read_csv(d/'history.csv').drop(columns='seconds')
            for d in (runs.own.dir, runs.straight))
    assert a.equals(b) and len(a) == 3

def test_resuming_a_finished_run_does_nothing(runs):
    said, code = runs.own.again
    assert code == 0 and said.count('complete, skipped') == len(STEPS) and runs.own.untouched

def test_a_changed_setting_is_run_again_from_its_step_on(runs):
    "Only what depends on it: here the report."
    d = changed(runs.whole.dir, runs.home/'edited', **{'10_report': dict(title='Another title')})
    run(d, (said := []).append)
    assert sum('skipped' in s for s in said) == len(STEPS) - 1
    assert '<h1>Another title</h1>' in (d/'report.html').read_text()

def test_another_band_needs_no_new_training(runs):
    "Nor does another false-positive rate: the trained weights are calibrated again."
    other = dict(band_error=.3, fpr=.2)
    d = changed(runs.whole.dir, runs.home/'banded', **{'03_train': other})
    run(d, print, until='03_train')
    (old, was), (new, now) = (load_checkpoint(r/'model.safetensors') for r in (runs.whole.dir, d))
    assert (d/'last.ckpt').read_bytes() == (runs.whole.dir/'last.ckpt').read_bytes()
    assert all(torch.equal(old.state_dict()[k], v) for k, v in new.state_dict().items())
    assert now['band'] != was['band'] and now['training'] == was['training'] | other

def test_finished_weights_get_the_whole_report(runs):
    "`evaluate --full`: every section but the training's, by the weights that were named."
    out, data = runs.home/'out', runs.home/'holiday'
    weights = runs.whole.dir/'model.safetensors'
    command = [COMMAND, 'evaluate', '--full', '--data', data, '--weights', weights, '--out', out]
    examine = lambda: subprocess.run(command, capture_output=True, text=True)
    assert (done := examine()).returncode == 0, done.stderr
    manifest, t = (pd.read_csv(out/f'{n}.csv') for n in ('manifest', 'predictions'))
    shown = headings((out/'report.html').read_text())
    assert 'Training' not in shown and {'Numbers', 'Errors', 'Robustness', 'Content or history',
                                        'Which generators', 'Where it looks', 'Data'} <= {*shown}
    assert (out/'model.safetensors').read_bytes() == weights.read_bytes()
    assert not (out/'03_train.ipynb').exists()
    assert len(t) == 2 * int(.4 * sum(manifest.label == 'fake'))
    scores = p_fake(weights, [data/p for p in t.path])
    assert scores == pytest.approx(t.p_fake.tolist(), abs=1e-4)
    again = examine()
    assert again.returncode == 2 and 'is there already' in again.stderr

def test_several_data_sets_train_one_model_from_the_shipped_weights(drawn, tmp_path):
    "The faces profile, as small as it gets: folders are generators, and one is left out."
    named = Path(shutil.copytree(drawn, tmp_path/'named'))
    for s in ('train', 'valid', 'test'):
        for i, p in enumerate(sorted((named/s/'fake').iterdir())):
            (to := named/s/'fake'/('gan', 'diffusion')[i % 2]).mkdir(exist_ok=True)
            p.rename(to/p.name)
    own = make_standin(tmp_path/'own', n_train=16, n_valid=8, n_test=8, size=64, seed=5)
    for d in (named, own): (d/'standin.json').unlink()
    sets = [*SMOKE_SETS, *SETS, 'train.corruptions=[]', 'train.epochs=1', 'data.leave_out=[diffusion]']
    d = prepare('faces', [named, own], tmp_path/'runs', sets)
    run(d, print, until='03_train')
    meta = load_checkpoint(d/'model.safetensors')[1]
    manifest = pd.read_csv(d/'manifest.csv', keep_default_na=False)
    learned, tested = (manifest[manifest.split == s] for s in ('train', 'test'))
    assert meta['generators'] == ['gan', 'stylegan'] and 'diffusion' in set(tested.generator)
    assert meta['sources'] == ['named', 'named/gan', 'own'] == sorted(set(learned.source))
    assert meta['source'] == 'named and own' and meta['training']['source_power'] == .5
    assert meta['weights'] == 'model.safetensors' and meta['missing'] == []
    assert meta['weights_sha256'] == digest(SHIPPED.read_bytes())
