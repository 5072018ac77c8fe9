"An exported model is the same detector in another file, and says so when it cannot be had."

import numpy as np
import pytest

from fakeface import detector
from fakeface.core import FaceError
from fakeface.images import open_image
from fakeface.detector import Detector, export_onnx

def test_without_the_extra_one_line_says_what_to_install(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(detector, 'find_spec', lambda name: None)
    with pytest.raises(FaceError, match='fakeface.onnx.'):
        export_onnx(Detector.load(checkpoint, 'cpu'), tmp_path/'m.onnx')
    assert not list(tmp_path.iterdir())

def test_a_file_that_runs_without_this_package(checkpoint, drawn, tmp_path):
    "Raw pixels in, p_fake out, for any number of images."
    why = "the extra is not installed: pip install 'fakeface[onnx]'"
    for name in ('onnx', 'onnxscript'): pytest.importorskip(name, reason=why)
    runtime = pytest.importorskip('onnxruntime', reason=why)
    ours, path = Detector.load(checkpoint, 'cpu'), tmp_path/'m.onnx'
    export_onnx(ours, path)
    images = sorted((drawn/'test').rglob('*.jpg'))
    pixels = np.stack([open_image(p) for p in images])
    p, = runtime.InferenceSession(path).run(['p_fake'], {'image': pixels})
    assert np.allclose(p, [v.p_fake for v in ours.predict(images, whole=True)], atol=1e-5)
