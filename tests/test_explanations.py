"""Heatmaps: exact where they claim to be, honest about what a finer one costs, and measured with
methods that can tell a true map from a false one."""

import numpy as np
import pandas as pd
import pytest
import torch

from fakeface.core import FAKE
from fakeface.images import find_images, open_image
from fakeface.detector import Detector
from fakeface.explanations import paired_gain, road_score, faithfulness_text
from fakeface.gradcam import closed_form, enlarged, evidence, explained, features
from fakeface.model import metadata, to_input, trunk

@pytest.fixture(scope='module')
def images(drawn): return np.stack([open_image(p) for p in find_images(drawn/'test')[::3]])

@pytest.fixture(scope='module')
def model(): return Detector.load(None, 'cpu').model

@pytest.fixture(scope='module')
def x(images): return to_input(torch.from_numpy(images))

def test_the_closed_form_is_grad_cam_and_complete_for_the_shipped_weights(model, x):
    exact = closed_form(model, x)
    assert exact['n'] == len(x) and exact['completeness'] <= 1e-4 and exact['correlation'] >= .999
    own = features(model, x).detach().requires_grad_()
    model.fc(own.mean((2, 3)))[:, FAKE].sum().backward()  # Grad-CAM by its definition
    places = own.shape[-1] * own.shape[-2]
    cam = torch.einsum('nchw,nc->nhw', own, own.grad.mean((2, 3))) * places
    with torch.inference_mode(): maps = evidence(model, x)[1]
    assert torch.allclose(maps[:, FAKE], cam.detach(), atol=1e-3)

def test_the_trunk_gives_what_the_last_layer_is_given(model, x):
    with torch.inference_mode():
        assert torch.allclose(model.fc(trunk(model)(x)), model(x), atol=1e-5)
    assert trunk(model)[0] is model.conv1  # shared, not copied

def test_a_larger_image_gives_a_finer_map_of_another_verdict(model, x):
    with torch.inference_mode():
        (logits, maps), (again, finer) = evidence(model, x), enlarged(model, x)
    assert finer.shape[-1] == 2 * maps.shape[-1] and not torch.allclose(again, logits, atol=.01)
    assert torch.allclose(finer.mean((2, 3)) + model.fc.bias, again, atol=1e-4)

def test_the_map_speaks_for_the_verdict_given(model, images):
    meta = metadata(size=64, threshold=.5)
    seen, fake = explained(model, meta, images[0], .5)  # at the threshold: fake
    same, real = explained(model, meta, images[0], .499)
    assert (seen == images[0].transpose(1, 2, 0)).all() and (same == seen).all()
    assert (fake != real).any()

def test_road_is_finite_repeatable_and_leaves_the_model_alone(model, images):
    "A flat map has no percentile to part it at; the noise has a seed."
    flat, target = np.zeros((2, 64, 64)), np.array([0, 1])
    a, b, other = (road_score(model, images[:2], flat, target, seed=s) for s in (0, 0, 1))
    assert np.isfinite(a).all() and (a == b).all() and (a != other).any() and abs(a).max() <= .5

def test_equal_maps_support_no_claim_and_a_true_one_does():
    rng, tests = np.random.default_rng(0), ('deletion', 'insertion', 'road')
    table = pd.DataFrame([dict(image=i, method=m, **{t: rng.normal() for t in tests})
                          for i in range(40) for m in ('map', 'edges', 'random')])
    said = 'map is shown to be truer than a random map by {0}; than edges by {0}.'
    assert faithfulness_text(table, 200) == [said.format('none of the three')]
    own = 5 * (table.method == 'map')  # less deletion is better, less ROAD is not
    better = table.assign(deletion=table.deletion - own, road=table.road - own)
    assert faithfulness_text(better, 200) == [said.format('deletion')]
    mean, low, high = paired_gain(better, 'road', 'map', 'random', 200)
    assert low < mean < high < 0
