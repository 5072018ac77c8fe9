"""The weights that ship: they load, they are what the card says, and they judge as well as it
says."""

import hashlib, re, shutil

import pytest

from fakeface import detector as module
from fakeface.core import CLASSES, FaceError
from fakeface.detector import SHIPPED, Detector
from fakeface.model import check_seal, load_checkpoint, seal_path, write_seal
from fakeface.folders import evaluate_folder

CARD = (SHIPPED.parent/'MODEL_CARD.md').read_text(encoding='utf-8')

def card_rows():
    "The rows of the card's first table between the marks, as `{name: {column: text}}`."
    tables = re.search(r'<!-- numbers -->\n(.*?)\n?<!-- /numbers -->', CARD, re.S)[1]
    lines = tables.split('\n\n')[0].splitlines()
    head, _, *rows = [[c.strip() for c in line.strip('|').split('|')] for line in lines]
    return {r[0]: dict(zip(head, r)) for r in rows}

def test_they_ship_with_a_card():
    assert SHIPPED.is_file() and 20e6 < SHIPPED.stat().st_size < 25e6
    for word in ('140k', 'StyleGAN', 'non-commercial', 'never seen'):
        assert word in CARD.replace('**', '')

def test_they_load_by_default():
    detector, meta = Detector.load(device='cpu'), load_checkpoint(SHIPPED)[1]
    assert meta['classes'] == list(CLASSES) and detector.meta == meta
    assert detector.threshold == meta['threshold'] and meta['metrics']['valid_accuracy'] > .9
    assert re.fullmatch('[0-9a-f]{64}', meta['manifest_sha256'])

def test_they_are_the_file_that_was_shipped():
    check_seal(SHIPPED)
    own = hashlib.sha256(SHIPPED.read_bytes()).hexdigest()
    assert seal_path(SHIPPED).read_text() == f'{own}  model.safetensors\n'  # as sha256sum writes it

def test_other_weights_in_their_place_are_refused(checkpoint, tmp_path, monkeypatch):
    """A whole and valid checkpoint, but not the one that was shipped; named as a file it may be
    used."""
    monkeypatch.setattr(module, 'SHIPPED', tmp_path/'model.safetensors')
    for p in (SHIPPED, seal_path(SHIPPED)): shutil.copy(p, tmp_path)
    assert Detector.load(device='cpu').size == Detector.load(SHIPPED, 'cpu').size
    shutil.copy(checkpoint, tmp_path/'model.safetensors')
    for path in (None, module.SHIPPED):
        with pytest.raises(FaceError, match='SHA-256') as e: Detector.load(path, 'cpu')
        assert '\n' not in str(e.value)
    assert Detector.load(checkpoint, 'cpu').size == 64
    write_seal(module.SHIPPED)
    assert Detector.load(device='cpu').size == 64

def test_any_image_gets_an_answer(drawn):
    paths = sorted((drawn/'test'/'real').iterdir())
    for v in Detector.load(device='cpu').explain(paths, whole=True, check=False):
        assert 0 <= v.p_fake <= 1 and v.verdict in (*CLASSES, 'uncertain') and v.heatmap.max() <= 1

def test_the_card_has_numbers():
    rows = card_rows()
    assert len(rows) >= 6
    for r in rows.values():
        assert re.fullmatch(r'\d+ / \d+', r['fake / real'])
        assert re.match(r'\d+\.\d % \(', r['fakes caught'])

def test_they_judge_as_the_card_says(photographs):
    "On test images, which no choice was made on: the card's number within one image."
    result = evaluate_folder(Detector.load(device='cpu'), photographs/'140k-subset', 'test',
                             bootstrap=1, progress=False)
    said, found = card_rows()['140k-subset/test'], result['metrics']
    assert said['fake / real'] == f'{result["n_fake"]} / {result["n_real"]}' == '200 / 200'
    accuracy, auc = (float(re.match(r'[\d.]+', said[k])[0]) for k in ('accuracy', 'AUC'))
    near = 100 / result['n'] + .05
    assert accuracy == pytest.approx(100 * found['accuracy']['value'], abs=near) and accuracy >= 88
    assert auc == pytest.approx(found['auc']['value'], abs=2e-3)
