"Real runs on tiny data: all artefacts, numbers that agree with each other, and a killed run that ends like one that was not."

import hashlib, json, re, shutil, signal, subprocess, threading, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd
import psutil
import pytest
import torch
import yaml

import kill_runs
from conftest import COMMAND, ROOT
from fakeface import detector, ship
from fakeface.cli import main
from fakeface.core import digest
from fakeface.corrupt import VERSIONS
from fakeface.detector import SHIPPED, Detector
from fakeface.evaluate import evaluate
from fakeface.model import load_checkpoint
from fakeface.pipeline import QUICK_SETS, STEPS, prepare, run, run_step
from fakeface.dataset import judge_copies
from fakeface.robustness import inconsistency
from fakeface.standin import make_standin
from fakeface.train import operating_point

SETS = ('train.crop=48 train.device=cpu train.precision=fp32 train.workers=0 train.jpeg_p=0.5 train.ramp=2 train.ema=0.5 train.copies=jpeg:50 '
        'evaluate.device=cpu evaluate.workers=0 robustness.device=cpu robustness.workers=0').split() + ['robustness.copies=[scale:0.5, jpeg:75]', 'train.start_shares=[0, 0.5]']

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings('ignore:.*TorchCodec:DeprecationWarning')]  # torchvision's JPEG

class Run:
    "A `fakeface run`, from its start on; `dir` is its run folder."
    def __init__(self, out, *args):
        self.out = out; self.go('--quick', '--out', out, *[a for s in SETS for a in ('--set', s)], *args)
    def go(self, *args):
        self.process = subprocess.Popen([COMMAND, 'run', *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    @property
    def dir(self): return next(iter(self.out.glob('*')), self.out/'none')
    def end(self):
        self.said, self.err = self.process.communicate(); self.code = self.process.returncode
        return self
    def resume(self): self.go('--resume', self.dir); return self.end()
    def kill_after_the_first_epoch(self):
        "As a power cut does: the command and all its processes at once. Returns whether training was still going on."
        while not (self.dir/'last.ckpt').exists() and self.process.poll() is None: time.sleep(.005)
        self.strays = [p.name for p in (ROOT/'nbs').iterdir() if p.is_socket()]
        for p in [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]: p.send_signal(signal.SIGKILL)
        self.process.communicate()
        kill_runs.whole(self.dir)
        return (self.dir/'last.ckpt').exists() and not (self.dir/'model.safetensors').exists()

def sources(): return {p.name: p.read_bytes() for p in (ROOT/'nbs').glob('*.ipynb')}

def steps(run_dir, *names):
    "Executes single steps of a run in this process."
    settings = yaml.safe_load((run_dir/'config.yaml').read_text())['settings']
    for s in names: run_step(s, settings[s], run_dir)

@pytest.fixture(scope='module')
def runs(drawn, checkpoint, tmp_path_factory):
    """Made at the same time, as they would be by people who share a machine: `whole`, a run on the stand-in; `own`, on a folder of somebody's own without splits,
    killed, resumed, and resumed once more; `straight`, the same from its training on without being killed."""
    home, before, killed = tmp_path_factory.mktemp('home'), sources(), threading.Event()
    shutil.copytree(drawn/'train'/'real', home/'holiday'/'real')
    for s in ('valid', 'test'): shutil.copytree(drawn/s/'fake', home/'holiday'/'fake'/s)  # of other scenes: those of the same would be near-copies
    (home/'holiday'/'real'/'broken.jpg').write_bytes(b'\xff\xd8\xff')
    def own():
        r = Run(home/'own', '--data', home/'holiday')
        try:
            r.midway = r.kill_after_the_first_epoch()
            shutil.copytree(r.dir, home/'straight', ignore=shutil.ignore_patterns('.*', '*.ckpt'))
        finally: killed.set()
        r.first = r.resume().said, r.code, r.err
        times = {p: p.stat().st_mtime_ns for p in r.dir.rglob('*')}
        r.again = r.resume().said, r.code
        r.untouched = times == {p: p.stat().st_mtime_ns for p in r.dir.rglob('*')}
        return r
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(own), pool.submit(lambda: Run(home/'whole', '--set', f'data.standin_dir={home/"drawn"}', '--set', f'robustness.beside=other={checkpoint}').end())]
        killed.wait()
        steps(home/'straight', '03_train', '04_evaluate')
        own, whole = [j.result() for j in jobs]
    return SimpleNamespace(whole=whole, own=own, straight=home/'straight', home=home, sources_untouched=sources() == before)

def test_a_run_says_what_it_found_and_where(runs):
    assert runs.whole.code == 0 and 'Traceback' not in runs.whole.err, runs.whole.err
    assert 'Of 12 test images' in runs.whole.said and 'stand-in' in runs.whole.said and 'report.html' in runs.whole.said and '--resume' in runs.whole.said
    assert 'No number here says how good the model is' in runs.whole.said

def test_ship(runs, drawn, tmp_path, monkeypatch):
    "Weights, seal, figures and numbers of a finished run; what stands outside of the marks stays."
    run_dir, shipped, docs = runs.whole.dir, tmp_path/'weights'/'model.safetensors', tmp_path/'docs'
    card, readme = shipped.with_name('MODEL_CARD.md'), tmp_path/'README.md'
    docs.mkdir()
    (shipped.parent/'figures').mkdir(parents=True)
    marks = lambda names: '\n'.join(f'before\n<!-- {n} -->\nFORMER\n<!-- /{n} -->\nafter' for n in names)
    card.write_text(marks(['short', 'numbers', 'doubt', 'sources', 'people', 'robustness', 'left-out']))
    readme.write_text(marks(['numbers']))
    for module in (ship, detector): monkeypatch.setattr(module, 'SHIPPED', shipped)
    monkeypatch.setattr(ship, 'repo_path', lambda name: tmp_path/name)
    assert ship.main([str(run_dir), '--also', str(drawn/'test')]) == 0
    assert shipped.read_bytes() == (run_dir/'model.safetensors').read_bytes() and Detector.load().threshold > 0  # its seal holds
    assert {p.stem for p in docs.iterdir()} == {'sources', 'robustness', 'drift'} < {p.stem for p in (shipped.parent/'figures').iterdir()}
    said = card.read_text()
    assert said.count('FORMER') == 1 and 'FORMER' not in readme.read_text()  # nothing is known of families left out
    assert said.count('before') == said.count('after\n') + 1 == 7 and '| drawn/test | 6 / 6 |' in said and ' of 6 | ' in readme.read_text().split('| drawn/test |')[1]
    assert '| jpeg:75 |' in said and '| generator |' in said

def test_all_artefacts_are_there_and_nothing_half_written(runs):
    d = runs.whole.dir
    assert re.fullmatch(r'\d{8}T\d{6}Z-demo', d.name)
    named = ['config.yaml', 'environment.json', 'manifest.csv', 'history.csv', 'last.ckpt', 'model.safetensors', 'predictions.csv', 'metrics.json',
             'copies.csv', 'robustness.json', 'clusters.json', 'gradcam.json', 'explanations.json', 'report.html']
    figures = [f'figures/{n}.png' for n in ('samples', 'history', 'confusion', 'curves', 'scores', 'reliability', 'heatmaps', 'clusters', 'robustness', 'drift', 'sources', 'mean_maps')]
    for n in named + figures + [f'{s}.ipynb' for s in STEPS] + [f'{s}.html' for s in STEPS[:-1]]: assert (d/n).stat().st_size > 20, n
    for r in (runs.whole, runs.own): assert not [p for p in r.dir.rglob('*') if p.name.startswith('.')]

def test_config_and_environment(runs):
    config, env = yaml.safe_load((runs.whole.dir/'config.yaml').read_text()), json.loads((runs.whole.dir/'environment.json').read_text())
    assert config['profile'] == 'demo' and set(config['settings']) == set(STEPS)
    train = config['settings']['03_train']
    assert all(v['quick'] for v in config['settings'].values()) and train['crop'] == 48 and train['precision'] == 'fp32' and train['seed'] == env['seed'] and 'lr' in train and train['copies'] == ['jpeg:50']
    assert env['versions']['torch'] and env['python'] and 'commit' in env

def test_the_stand_in_is_drawn_where_the_setting_says_and_stays(runs):
    "Another run with a stand-in of another size must not replace what this one was made from."
    d = runs.whole.dir
    root, manifest = Path(json.loads((d/'data.json').read_text())['root']), pd.read_csv(d/'manifest.csv')
    assert root.is_relative_to(runs.home/'drawn')
    other = prepare('demo', out=runs.home/'other', sets=[*QUICK_SETS, *SETS, 'data.standin_size=32', f'data.standin_dir={runs.home/"drawn"}'])
    run(other, (said := []).append, until='01_data')
    assert len(said) == 1 and list(json.loads((other/'steps.json').read_text())) == ['01_data'] and not (other/'init.safetensors').exists()
    assert json.loads((other/'data.json').read_text())['manifest_sha256'] != json.loads((d/'data.json').read_text())['manifest_sha256']
    assert [hashlib.sha256((root/p).read_bytes()).hexdigest() for p in manifest.path] == manifest.sha256.tolist()

def test_numbers_agree_with_each_other(runs):
    d = runs.whole.dir
    manifest, predictions = pd.read_csv(d/'manifest.csv'), pd.read_csv(d/'predictions.csv')
    history, metrics = pd.read_csv(d/'history.csv'), json.loads((d/'metrics.json').read_text())
    meta = load_checkpoint(d/'model.safetensors')[1]
    assert manifest.value_counts(['split', 'label']).to_dict() == {(s, c): n for s, n in dict(train=12, valid=4, test=6).items() for c in ('fake', 'real')}
    assert list(predictions.path) == list(manifest.path[manifest.split == 'test']) and history.epoch.tolist() == [1, 2, 3]
    assert meta['manifest_sha256'] == hashlib.sha256((d/'manifest.csv').read_bytes()).hexdigest() and meta['source'] == metrics['source'] == 'standin'
    again = evaluate(predictions, meta['threshold'], 30)
    assert again['confusion'] == metrics['confusion'] and again['metrics']['auc']['value'] == pytest.approx(metrics['metrics']['auc']['value'])
    judged = Detector.load(d/'model.safetensors', 'cpu').predict([Path(json.loads((d/'data.json').read_text())['root'])/p for p in predictions.path], whole=True)
    assert [v.p_fake for v in judged] == pytest.approx(predictions.p_fake.tolist(), abs=1e-4)  # the detector judges as the evaluation did

def test_the_operating_point_comes_from_the_validation_images_and_their_copies(runs):
    d = runs.whole.dir
    (model, meta), manifest = load_checkpoint(d/'model.safetensors'), pd.read_csv(d/'manifest.csv')
    valid = manifest[manifest.split == 'valid']
    scores, fake = judge_copies(model, meta, json.loads((d/'data.json').read_text())['root'], valid, ['', 'jpeg:50']), (valid.label == 'fake').to_numpy()
    threshold, doubt = operating_point(scores[''].to_numpy(), fake, scores.to_numpy().T.ravel(), np.tile(fake, 2), .05, .02)
    assert (meta['threshold'], *meta['band']) == pytest.approx((threshold, *doubt), abs=2e-3)
    m = json.loads((d/'metrics.json').read_text())
    assert m['threshold'] == meta['threshold'] and m['metrics']['answered'] == evaluate(pd.read_csv(d/'predictions.csv'), meta['threshold'], 5, band=meta['band'])['metrics']['answered']

def test_the_weights_are_the_mean_that_catches_most_fakes_of_valid(runs):
    d = runs.whole.dir
    (model, meta), (start, _) = (load_checkpoint(d/f'{n}.safetensors') for n in ('model', 'init'))
    means, trained = meta['metrics']['means'], torch.load(d/'last.ckpt', weights_only=True)['best']
    share = max(means, key=lambda r: r['caught'])['share']  # of equals the first
    assert [r['share'] for r in means] == [0, .5]
    assert torch.allclose(model.conv1.weight, torch.lerp(trained['conv1.weight'], start.conv1.weight, share), rtol=1e-3, atol=1e-5)  # kept in 16 bits

def test_heatmaps_are_exact_and_clusters_hold_every_image(runs):
    exact, clusters = (json.loads((runs.whole.dir/f'{n}.json').read_text()) for n in ('gradcam', 'clusters'))
    assert exact['completeness'] <= 1e-4 and exact['correlation'] >= .999 and 2 <= exact['n'] <= 8
    rows, wrong = clusters['table'], pd.read_csv(runs.whole.dir/'errors.csv')
    assert sum(r['n'] for r in rows) == 12 and sum(r['k'] for r in rows) == len(wrong) and sum(r['n'] * r['fakes'] for r in rows) == pytest.approx(6)
    assert clusters['text'] == ['Too few images for a claim: no group has 20 of them.']

def test_robustness_is_measured_with_the_same_model_and_one_beside_it(runs, checkpoint):
    d = runs.whole.dir
    predictions, copies = pd.read_csv(d/'predictions.csv'), pd.read_csv(d/'copies.csv', keep_default_na=False)
    meta, r, metrics = load_checkpoint(d/'model.safetensors')[1], json.loads((d/'robustness.json').read_text()), json.loads((d/'metrics.json').read_text())['metrics']
    assert copies.model.tolist() == ['this model'] * 12 + ['other'] * 12
    own, other = (copies[copies.model == n].reset_index(drop=True) for n in ('this model', 'other'))
    assert list(r['models']) == ['this model', 'other'] and r['models']['other']['sha256'] == hashlib.sha256(checkpoint.read_bytes()).hexdigest() and not np.allclose(own['jpeg:75'], other['jpeg:75'])
    copies, told = own, r['models']['this model']
    as_is, *rest = copies.columns.drop(['path', 'label', 'model'])
    assert set(rest) == {'scale:0.5', *VERSIONS} and copies.path.tolist() == predictions.path.tolist() and copies.label.tolist() == predictions.label.tolist()
    assert copies[as_is].tolist() == pytest.approx(predictions.p_fake.tolist(), abs=1e-4) and not np.allclose(copies[as_is], copies['jpeg:75'], atol=1e-6)
    assert [row['copy'] for row in told['rows']] == ['', 'scale:0.5', 'jpeg:75'] and r['n'] == 12
    assert told['rows'][0]['accuracy'] == metrics['accuracy'] and told['rows'][0]['answered'] == metrics['answered'] and told['rows'][0]['auc']['value'] == pytest.approx(metrics['auc']['value'])
    assert told['flips'] == inconsistency(copies[list(VERSIONS)], meta['band']) | dict(threshold=inconsistency(copies[list(VERSIONS)], [meta['threshold']] * 2))
    page = (d/'report.html').read_text()
    assert 'Accuracy of all models' in page and 'other, threshold' in page and 'real to fake or back' in page

@pytest.mark.parametrize('step', STEPS)
def test_executed_notebooks(runs, step):
    nb = nbformat.read(runs.whole.dir/f'{step}.ipynb', 4)
    assert not [o for c in nb.cells if c.cell_type == 'code' for o in c.outputs if o.output_type == 'error']
    injected, = [c.source for c in nb.cells if 'injected-parameters' in c.metadata.get('tags', [])]
    assert f'run_dir = "{runs.whole.dir}"' in injected
    assert all(c.execution_count for c in nb.cells if c.cell_type == 'code' and c.source)

def test_the_repository_stays_as_it_was(runs):
    "Notebooks are read, not written, and kernels talk elsewhere: in one place for all, two runs would talk to each other's."
    assert runs.sources_untouched and not runs.own.strays

def test_report(runs):
    page = (runs.whole.dir/'report.html').read_text()
    correct = json.loads((runs.whole.dir/'metrics.json').read_text())['metrics']['accuracy']
    assert '<strong>Quick.</strong>' in page and '10_report' in page and 'number stands to the upper right of the middle of its cluster' in page and 'is shown to be truer' in page and 'equals the logit to within' in page
    assert 'generated stand-in' in page and f'{100 * correct["value"]:.1f} %' in page and 'adamw' in page
    assert page.count('data:image/png;base64,') >= 8 and all(f'>{h}</h2>' in page for h in ('Numbers', 'Robustness', 'Training')) and 'Of 12 images in 9 versions' in page
    assert not re.search(r'<(script|link|iframe)\b|\b(src|href)="(?!data:|#)|url\(|@import', page)  # nothing is fetched

def test_a_folder_of_ones_own(runs):
    d, (said, code, err) = runs.own.dir, runs.own.first
    assert code == 0, err
    manifest, passed, page = pd.read_csv(d/'manifest.csv'), pd.read_csv(d/'passed.csv'), (d/'report.html').read_text()
    assert set(manifest.split) == {'train', 'valid', 'test'} and set(manifest.source) == {'holiday', 'holiday/valid', 'holiday/test'}  # folders below a class are sources
    assert passed.path.tolist() == ['real/broken.jpg'] and 'broken.jpg' in page
    assert 'holiday' in page and 'stand-in' not in page.split('<h2')[0] and 'stand-in' not in said

def test_a_killed_run_ends_as_if_it_had_not_been_killed(runs):
    assert runs.own.midway, 'it was not killed during training'
    said, code, err = runs.own.first
    assert code == 0 and '01_data: complete, skipped' in said and '02_model: complete, skipped' in said and '03_train: complete' not in said
    resumed, straight = (len(re.findall(r'resuming after epoch \d', (d/'03_train.ipynb').read_text())) for d in (runs.own.dir, runs.straight))
    assert resumed == straight + 1  # the lesson resumes once too
    for name in ('model.safetensors', 'predictions.csv', 'metrics.json'): assert (runs.own.dir/name).read_bytes() == (runs.straight/name).read_bytes(), name
    a, b = (pd.read_csv(d/'history.csv').drop(columns='seconds') for d in (runs.own.dir, runs.straight))
    assert a.equals(b) and len(a) == 3

def test_resuming_a_finished_run_does_nothing(runs):
    said, code = runs.own.again
    assert code == 0 and said.count('complete, skipped') == len(STEPS) and runs.own.untouched

def test_a_changed_setting_is_run_again_from_its_step_on(runs):
    "Only what depends on it: here the report."
    d = shutil.copytree(runs.whole.dir, runs.home/'edited')
    config = yaml.safe_load((d/'config.yaml').read_text()); config['settings']['10_report']['title'] = 'Another title'
    (d/'config.yaml').write_text(yaml.safe_dump(config))
    run(d, (said := []).append)
    assert sum('skipped' in s for s in said) == len(STEPS) - 1 and '<h1>Another title</h1>' in (d/'report.html').read_text()

def test_another_band_needs_no_new_training(runs):
    "Nor does another false-positive rate: the trained weights are calibrated again."
    d = shutil.copytree(runs.whole.dir, runs.home/'banded')
    config = yaml.safe_load((d/'config.yaml').read_text()); config['settings']['03_train'] |= dict(band=.3, fpr=.2)
    (d/'config.yaml').write_text(yaml.safe_dump(config))
    run(d, print, until='03_train')
    (old, was), (new, now) = (load_checkpoint(r/'model.safetensors') for r in (runs.whole.dir, d))
    assert (d/'last.ckpt').read_bytes() == (runs.whole.dir/'last.ckpt').read_bytes() and all(torch.equal(old.state_dict()[k], v) for k, v in new.state_dict().items())
    assert now['band'] != was['band'] and now['fpr'] == .2 and now['training'] == was['training'] | dict(band=.3, fpr=.2)

def test_finished_weights_get_the_whole_report(runs):
    "`evaluate --full`: every section but the training's, by the weights that were named."
    out, weights = runs.home/'examined', runs.whole.dir/'model.safetensors'
    examine = lambda: subprocess.run([COMMAND, 'evaluate', '--full', '--data', runs.home/'holiday', '--weights', weights, '--out', out], capture_output=True, text=True)
    done = examine()
    assert done.returncode == 0, done.stderr
    page, predictions, manifest = (out/'report.html').read_text(), pd.read_csv(out/'predictions.csv'), pd.read_csv(out/'manifest.csv')
    assert [h for h in ('Numbers', 'Errors', 'Robustness', 'Content or history', 'Which generators', 'Where it looks', 'Data') if f'>{h}</h2>' not in page] == [] and '>Training</h2>' not in page
    assert (out/'model.safetensors').read_bytes() == weights.read_bytes() and not (out/'03_train.ipynb').exists() and len(predictions) == 2 * int(.4 * sum(manifest.label == 'fake'))
    judged = Detector.load(weights, 'cpu').predict([runs.home/'holiday'/p for p in predictions.path], whole=True)
    assert [v.p_fake for v in judged] == pytest.approx(predictions.p_fake.tolist(), abs=1e-4)
    again = examine()
    assert again.returncode == 2 and 'is there already' in again.stderr

def test_several_data_sets_train_one_model_from_the_shipped_weights(drawn, tmp_path):
    "The faces profile, as small as it gets: folders are generators, one is left out, and the checkpoint says what it learned from."
    named = Path(shutil.copytree(drawn, tmp_path/'named', ignore=shutil.ignore_patterns('standin.json')))
    for s in ('train', 'valid', 'test'):
        for i, p in enumerate(sorted((named/s/'fake').iterdir())):
            to = named/s/'fake'/('gan', 'diffusion')[i % 2]; to.mkdir(exist_ok=True); p.rename(to/p.name)
    own = make_standin(tmp_path/'own', n_train=16, n_valid=8, n_test=8, size=64, seed=5); (own/'standin.json').unlink()
    sets = [*QUICK_SETS, *SETS, 'train.copies=[]', 'train.batch_size=8', 'train.epochs=1', 'data.leave_out=[diffusion]']
    d = prepare('faces', [named, own], tmp_path/'runs', sets)
    run(d, (said := []).append, until='03_train')
    assert len(said) == 3
    meta, manifest = load_checkpoint(d/'model.safetensors')[1], pd.read_csv(d/'manifest.csv', keep_default_na=False)
    learned = manifest[manifest.split == 'train']
    assert meta['generators'] == ['gan', 'stylegan'] and meta['sources'] == ['named', 'named/gan', 'own'] == sorted(set(learned.source)) and meta['source'] == 'named and own'
    assert meta['weights'] == 'model.safetensors' and meta['weights_sha256'] == digest(SHIPPED.read_bytes()) and meta['missing'] == []
    assert 'diffusion' in set(manifest.generator[manifest.split == 'test']) and meta['training']['source_power'] == .5
