"An exported model is the same detector in another file, and says so when it cannot be had."

import json

import numpy as np
import pytest

from fakeface import export
from fakeface.cli import main
from fakeface.core import FaceError, open_image
from fakeface.detector import Detector

def said(capsys): return capsys.readouterr().err

def test_without_the_extra_one_line_says_what_to_install(drawn, checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(export, 'find_spec', lambda name: None)
    assert main(['export', '--onnx', str(tmp_path/'m.onnx'), '--weights', str(checkpoint)]) == 2 and "fakeface[onnx]" in said(capsys)
    assert main(['predict', str(drawn), '--weights', str(tmp_path/'m.onnx')]) == 2 and "fakeface[onnx]" in said(capsys)
    assert not list(tmp_path.iterdir())

@pytest.fixture(scope='module')
def exported(checkpoint, tmp_path_factory):
    for name in ('onnx', 'onnxruntime'): pytest.importorskip(name, reason="the extra is not installed: pip install 'fakeface[onnx]'")
    path = tmp_path_factory.mktemp('onnx')/'m.onnx'
    assert main(['export', '--onnx', str(path), '--weights', str(checkpoint)]) == 0
    return path

def test_a_file_that_runs_without_this_package(exported, checkpoint, drawn):
    "Raw pixels in, p_fake out, with the checkpoint's metadata."
    import onnxruntime
    session, detector = onnxruntime.InferenceSession(exported), Detector.load(checkpoint, 'cpu')
    paths = sorted((drawn/'test').rglob('*.jpg'))
    p, = session.run(['p_fake'], {'image': np.stack([open_image(q) for q in paths])})
    assert np.allclose(p, [v.p_fake for v in detector.predict(paths, whole=True)], atol=1e-5)
    assert json.loads(session.get_modelmeta().custom_metadata_map['fakeface']) == detector.meta

def test_the_command_takes_it_for_weights(exported, checkpoint, drawn, tmp_path, capsys):
    told = []
    for w in (exported, checkpoint):
        assert main(['predict', str(drawn/'test'), '--whole', '--weights', str(w), '--csv', str(tmp_path/'out.csv'), '--heatmaps', str(tmp_path/w.suffix[1:])]) == 0
        told.append([line.split(',') for line in (tmp_path/'out.csv').read_text().splitlines()[1:]])
    assert [(a[0], a[1], a[3]) for a in told[0]] == [(b[0], b[1], b[3]) for b in told[1]] and max(abs(float(a[2]) - float(b[2])) for a, b in zip(*told)) < 1e-5
    assert len(list((tmp_path/'onnx').iterdir())) == 12
    capsys.readouterr()
    for more in (['--heatmaps', str(tmp_path/'x'), '--method', 'hirescam'], ['--device', 'cuda']):
        assert main(['predict', str(drawn/'test'), '--weights', str(exported), *more]) == 2 and said(capsys).count('\n') == 1

def test_int8_is_calibrated_on_validation_images_only(exported, checkpoint, drawn, tmp_path, monkeypatch, capsys):
    opened = []
    monkeypatch.setattr(export, 'open_image', lambda p, *a: opened.append(p) or open_image(p, *a))
    export.quantize(exported, tmp_path/'int8.onnx', export.calibration_paths(drawn))
    assert len(opened) == 12 and {p.parent.parent.name for p in opened} == {'valid'}
    monkeypatch.undo()
    assert (tmp_path/'int8.onnx').stat().st_size < exported.stat().st_size / 3
    assert main(['export', '--onnx', str(tmp_path/'again.onnx'), '--int8', '--data', str(drawn), '--weights', str(checkpoint)]) == 0
    out = capsys.readouterr().out
    assert 'of 12 test images get the same verdict' in out and 'calibrated on 12 validation images' in out

@pytest.mark.parametrize('data', [b'', b'no model', None], ids=['empty', 'text', 'foreign'])
def test_a_file_that_is_none_is_told(exported, data, drawn, tmp_path, capsys):
    if data is None:
        import onnx
        model = onnx.load(exported); del model.metadata_props[:]
        data = model.SerializeToString()
    (tmp_path/'m.onnx').write_bytes(data)
    assert main(['predict', str(drawn/'test'), '--weights', str(tmp_path/'m.onnx')]) == 2
    err = said(capsys)
    assert err.count('\n') == 1 and 'm.onnx' in err

def test_int8_needs_images(tmp_path, capsys):
    assert main(['export', '--onnx', str(tmp_path/'m.onnx'), '--int8']) == 2 and '--data' in said(capsys)
    with pytest.raises(FaceError): export.calibration_paths(tmp_path)
    assert not list(tmp_path.iterdir())
