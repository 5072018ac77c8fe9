"Heatmaps: exact where they claim to be, honest about what a finer one costs, and measured with methods that can tell a true map from a false one."

import numpy as np
import pandas as pd
import pytest
import torch

from fakeface.core import FAKE
from fakeface.images import find_images, open_image
from fakeface.detector import Detector
from fakeface.explanations import told_by_maps
from fakeface.gradcam import closed_form, enlarged, evidence, explained
from fakeface.model import metadata, to_input, trunk

@pytest.fixture(scope='module')
def images(drawn): return np.stack([open_image(p) for p in find_images(drawn/'test')[::3]])

@pytest.fixture(scope='module')
def shipped(): return Detector.load(None, 'cpu')

def test_the_closed_form_is_grad_cam_and_complete_for_the_shipped_weights(shipped, images):
    x = to_input(torch.from_numpy(images), shipped.normalize)
    exact = closed_form(shipped.model, x)
    assert exact['n'] == len(images) and exact['completeness'] <= 1e-4 and exact['correlation'] >= .999
    own = shipped.model.layer4(shipped.model.layer3(shipped.model.layer2(shipped.model.layer1(shipped.model.maxpool(shipped.model.relu(shipped.model.bn1(shipped.model.conv1(x))))))))
    own = own.detach().requires_grad_()
    shipped.model.fc(own.mean((2, 3)))[:, FAKE].sum().backward()  # Grad-CAM by its definition
    cam = torch.einsum('nchw,nc->nhw', own, own.grad.mean((2, 3))) * own.shape[-1] * own.shape[-2]
    with torch.inference_mode(): maps = evidence(shipped.model, x)[1]
    assert torch.allclose(maps[:, FAKE], cam.detach(), atol=1e-3)

def test_the_trunk_gives_what_the_last_layer_is_given(shipped, images):
    x = to_input(torch.from_numpy(images), shipped.normalize)
    with torch.inference_mode(): assert torch.allclose(shipped.model.fc(trunk(shipped.model)(x)), shipped.model(x), atol=1e-5)
    assert trunk(shipped.model)[0] is shipped.model.conv1  # shared, not copied

def test_a_larger_image_gives_a_finer_map_of_another_verdict(shipped, images):
    x = to_input(torch.from_numpy(images), shipped.normalize)
    with torch.inference_mode(): (logits, maps), (again, finer) = evidence(shipped.model, x), enlarged(shipped.model, x)
    assert finer.shape[-1] == 2 * maps.shape[-1] and torch.allclose(finer.mean((2, 3)) + shipped.model.fc.bias, again, atol=1e-4) and not torch.allclose(again, logits, atol=.01)

def test_the_map_speaks_for_the_verdict_given(shipped, images):
    seen, fake = explained(shipped.model, metadata(size=64, threshold=.5), images[0], .5)  # at the threshold: fake
    same, real = explained(shipped.model, metadata(size=64, threshold=.5), images[0], .499)
    assert (seen == images[0].transpose(1, 2, 0)).all() and (same == seen).all() and (fake != real).any()

def test_equal_maps_support_no_claim_and_a_true_one_does():
    rng = np.random.default_rng(0)
    rows = [dict(image=i, method=m, **{t: rng.normal() for t in ('deletion', 'insertion', 'road')}) for i in range(40) for m in ('map', 'edges', 'random')]
    table = pd.DataFrame(rows)
    assert told_by_maps(table, 200) == ['map is shown to be truer than a random map by none of the three; than edges by none of the three.']
    better = table.assign(deletion=table.deletion - 5 * (table.method == 'map'), road=table.road - 5 * (table.method == 'map'))
    assert told_by_maps(better, 200) == ['map is shown to be truer than a random map by deletion; than edges by deletion.']  # less deletion is better, less ROAD is not
