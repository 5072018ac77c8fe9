"""Weights from strangers: what fits is used, what does not is refused in one line, and no file ever
runs code."""

import json, os, pickle, socket, struct, threading, zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision.models import resnet18

from fakeface.core import REAL, FaceError
from fakeface.detector import Detector
from fakeface.model import (
    MAX_WEIGHTS, META_KEY, build_model, check_seal, decide, fit_to, load_checkpoint, metadata,
    p_fake, pick_device, pick_dtype, save_checkpoint, seal_path, to_input, write_seal)
from fakeface.train import load_last

class Trap:
    "A pickle of this writes a file when it is opened carelessly."
    def __init__(self, path): self.path = str(path)
    def __reduce__(self): return (open, (self.path, 'w'))

@pytest.fixture
def refused():
    "Loads a checkpoint that must be refused in one line naming the file; returns the line."
    def load(path, *how):
        for f in how or (load_checkpoint,):
            with pytest.raises(FaceError) as e: f(path)
            assert str(e.value).startswith(str(path)) and '\n' not in str(e.value)
        return str(e.value)
    return load

@pytest.fixture
def rewritten(checkpoint, tmp_path):
    "A copy of the checkpoint with other tensors, metadata or raw metadata text."
    def write(tensors=lambda t: t, meta=None, text=None):
        text = text if text is not None else json.dumps(meta or metadata(size=64))
        save_file(tensors(load_file(checkpoint)), tmp_path/'m.safetensors', {META_KEY: text})
        return tmp_path/'m.safetensors'
    return write

def test_round_trip(tmp_path):
    model = build_model('random', seed=3)[0].eval()
    meta = metadata(size=96, normalize=False, temperature=1.7, threshold=.4, band=(.25, .9), x='a')
    save_checkpoint(tmp_path/'m.safetensors', model, meta)
    again, read = load_checkpoint(tmp_path/'m.safetensors')
    x = torch.randn(2, 3, 96, 96)
    assert read == meta and tuple(read['band']) == (.25, .9) and not again.training
    assert torch.allclose(model(x), again(x), atol=2e-2)
    save_checkpoint(tmp_path/'n.safetensors', again, read)  # nothing is lost a second time
    assert (tmp_path/'m.safetensors').read_bytes() == (tmp_path/'n.safetensors').read_bytes()

# --- files that are no weights ---

@pytest.mark.filterwarnings('ignore:Detected pickle protocol')
def test_a_pickle_is_never_run(tmp_path, refused):
    trap, readers = tmp_path/'sprung', (load_checkpoint, build_model, Detector.load)
    state = {'conv1.weight': torch.zeros(64, 3, 7, 7), 'x': Trap(trap)}
    for name in ('m.safetensors', 'm.pth', 'm.pt', 'last.ckpt'):
        for dump in (torch.save, lambda o, p: p.write_bytes(pickle.dumps(o)),
                     lambda o, p: torch.save(o, p, _use_new_zipfile_serialization=False)):
            dump(state, tmp_path/name)
            refused(tmp_path/name, *readers, lambda p: load_last(p, ''))
    assert not trap.exists()
    pickle.loads(pickle.dumps(Trap(trap)))
    assert trap.exists()  # the trap works

def test_what_is_no_weights_file(tmp_path, refused):
    (tmp_path/'folder.safetensors').mkdir()
    (tmp_path/'empty.safetensors').touch()
    (tmp_path/'loop.safetensors').symlink_to('loop.safetensors')
    os.mkfifo(tmp_path/'pipe.safetensors')
    for n in ('noise.safetensors', 'noise.pth'):
        (tmp_path/n).write_bytes(np.random.default_rng(0).bytes(999))
    torch.save(nn.Linear(2, 2), tmp_path/'module.pth')
    torch.save([1, 2], tmp_path/'list.pth')
    for path in [*tmp_path.iterdir(), tmp_path/'none.safetensors', tmp_path/'none.pth']:
        refused(path, load_checkpoint, build_model)

@pytest.mark.parametrize('length', [2**63, 2**64 - 1, 10**9, 0])
def test_a_header_of_a_length_that_lies(length, tmp_path, refused):
    (tmp_path/'m.safetensors').write_bytes(struct.pack('<Q', length) + b'{}')
    refused(tmp_path/'m.safetensors')

def tensor(shape, end): return dict(dtype='F32', shape=shape, data_offsets=[0, end])

@pytest.mark.parametrize('head', [
    '{"a":' * 10_000 + '1' + '}' * 10_000, {'conv1.weight': tensor([64, 3, 7, 7], 10**15)},
    {'conv1.weight': tensor([2**40, 2**40], 4)}, {'conv1.weight': tensor([-1], 4)},
    {f't{i}': tensor([0], 0) for i in range(50_000)}],
    ids=['deep', 'offset', 'overflow', 'negative', 'many'])
def test_headers_that_lie(head, tmp_path, refused):
    text = (head if isinstance(head, str) else json.dumps(head)).encode()
    (tmp_path/'m.safetensors').write_bytes(struct.pack('<Q', len(text)) + text + bytes(4))
    refused(tmp_path/'m.safetensors', load_checkpoint, build_model)

def test_metadata_longer_than_any_of_ours(rewritten, refused):
    assert 'longer than' in refused(rewritten(text='[' + '1,' * 5_000_000 + '1]'))

def test_a_file_too_large_for_these_weights(tmp_path, refused):
    for name in ('m.pth', 'm.safetensors'):
        with open(tmp_path/name, 'wb') as f: f.truncate(MAX_WEIGHTS + 1)
        assert 'larger than' in refused(tmp_path/name, build_model)
    assert 'larger than' in refused(tmp_path/'m.safetensors')

def test_a_torch_file_that_unpacks_to_more(tmp_path, refused):
    """torch inflates what it stored without compression; a ResNet18 beside 300 MB of zeros fits
    into 45 MB."""
    torch.save(WHOLE | {'x': torch.zeros(MAX_WEIGHTS // 4)}, tmp_path/'large.pth')
    with (zipfile.ZipFile(tmp_path/'large.pth') as z,
          zipfile.ZipFile(tmp_path/'bomb.pth', 'w', zipfile.ZIP_DEFLATED) as out):
        for e in z.infolist(): out.writestr(e.filename, z.read(e))
    assert (tmp_path/'bomb.pth').stat().st_size < MAX_WEIGHTS / 4
    refused(tmp_path/'bomb.pth', build_model)

# --- weights to start from ---

WHOLE = resnet18(weights=None).state_dict()

@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('change, why', [
    (lambda v: v.to_sparse(), 'more than tensors'), (lambda v: v.to('meta'), 'more than tensors'),
    (lambda v: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]), 'more than tensors'),
    (lambda v: torch.quantize_per_tensor(v, .1, 0, torch.qint8), 'more than tensors'),
    (lambda v: v / 0, 'finite'), (lambda v: v * torch.nan, 'finite')],
    ids=['sparse', 'meta', 'nested', 'quantized', 'inf', 'nan'])
def test_start_weights_without_numbers_are_refused(change, why, tmp_path, refused):
    torch.save(WHOLE | {'conv1.weight': change(WHOLE['conv1.weight'])}, tmp_path/'w.pth')
    assert why in refused(tmp_path/'w.pth', build_model)

@pytest.mark.parametrize('state', [
    {}, {1: torch.zeros(1)}, {k: v.to(torch.int8) for k, v in WHOLE.items()},
    {'x': torch.zeros(1).expand(10**12)}, {k: v for k, v in WHOLE.items() if 'layer1' in k}],
    ids=['empty', 'numbers for names', 'int8', 'a billion', 'of another network'])
def test_start_weights_that_are_no_resnet(state, tmp_path, refused):
    torch.save(state, tmp_path/'w.pth')
    assert 'not a ResNet18' in refused(tmp_path/'w.pth', build_model)

@pytest.mark.parametrize('suffix', ['pth', 'safetensors'])
def test_partial_weights(suffix, tmp_path):
    part = {k: v for k, v in WHOLE.items() if not k.startswith('layer4.1')}
    part |= {'layer3.0.conv1.weight': torch.zeros(1)}
    (torch.save if suffix == 'pth' else save_file)(part, tmp_path/f'w.{suffix}')
    model, missing = build_model(tmp_path/f'w.{suffix}')
    own, taken = model.state_dict(), {k for k in part if not k.startswith('fc.')} - set(missing)
    assert all(own[k].equal(part[k]) for k in taken)
    fresh = {'layer3.0.conv1.weight', 'layer4.1.conv2.weight', 'fc.weight', 'fc.bias'}
    assert fresh <= set(missing)
    assert not any(k.startswith(('layer1', 'layer2', 'conv1')) for k in missing)

def same(a, b):
    return all(x.equal(y) for x, y in zip(a.state_dict().values(), b.state_dict().values()))

def test_random_start_follows_from_the_seed():
    a, b, other = (build_model('random', s)[0] for s in (1, 1, 2))
    assert same(a, b) and not same(a, other)

# --- our own format, spoilt ---

def test_a_seal_tells_a_changed_file(checkpoint, tmp_path, refused):
    path, data = tmp_path/'m.safetensors', checkpoint.read_bytes()
    path.write_bytes(data)
    assert 'SHA-256' in refused(path, check_seal)  # there is none
    write_seal(path)
    check_seal(path)
    for changed in (data[:-1], data + b'\0', data[:-1] + bytes([data[-1] ^ 1])):
        path.write_bytes(changed)
        assert 'SHA-256 differs' in refused(path, check_seal)
    path.write_bytes(data)
    check_seal(path)
    for text in (b'', b'0' * 64, b'\xff'):
        seal_path(path).write_bytes(text)
        refused(path, check_seal)

def test_truncated_anywhere(checkpoint, tmp_path, refused):
    data = checkpoint.read_bytes()
    for n in (1, 8, 100, 5000, len(data) // 2, len(data) - 1):
        (tmp_path/'m.safetensors').write_bytes(data[:n])
        refused(tmp_path/'m.safetensors')

@pytest.mark.parametrize('change, why', [
    (lambda t: {k: v for k, v in t.items() if k != 'fc.bias'}, 'ResNet18'),
    (lambda t: t | {'extra': torch.zeros(1)}, 'ResNet18'),
    (lambda t: t | {'fc.weight': torch.zeros(3, 512), 'fc.bias': torch.zeros(3)}, 'ResNet18'),
    (lambda t: {'a': torch.zeros(1)}, 'ResNet18'),
    (lambda t: t | {'fc.bias': torch.tensor([torch.nan, 0])}, 'finite'),
    (lambda t: t | {'conv1.weight': t['conv1.weight'] / 0}, 'finite'),
    (lambda t: t | {'fc.weight': t['fc.weight'].to(torch.float8_e4m3fn)}, '')],
    ids=['lacks one', 'one more', 'three classes', 'other', 'nan', 'inf', 'float8'])
def test_tensors_that_are_not_those_of_the_network(change, why, rewritten, refused):
    assert why in refused(rewritten(change))

NAN, INF = float('nan'), float('inf')
LIES = dict(
    format=[99], architecture=['vit'], classes=[['real', 'fake'], None], stride=[0, 3, '2', True],
    temperature=[0, -1, '1', None, NAN, INF, True, 10**400, 1e-308],
    threshold=[0, 1, 7, -1, NAN, '0.5', None],
    preprocessing=[None, dict(size=64), dict(size=64, normalize=1),
                   *(dict(size=s, normalize=True) for s in (0, -64, 10**9, 64.5, '64', True))],
    band=[None, .5, [], [.5], [.4, .5, .6], 'ab', {'low': .4}, [.6, .4], [.6, .7], [.2, .4],
          [0, .5], [.5, 1], [-1, 2], ['.4', .6], [None, .6], [NAN, .6], [.4, NAN], [.4, INF],
          [True, True]])

@pytest.mark.parametrize('lie', [{k: v} for k, vs in LIES.items() for v in vs],
                         ids=lambda d: str(d)[:50])
def test_metadata_that_lies(lie, rewritten, refused):
    (field, _), = lie.items()
    said = refused(rewritten(meta=metadata(size=64) | lie))
    assert dict(format='another version').get(field, field) in said

def test_metadata_without_a_band(rewritten, refused):
    """As a checkpoint of the first format has it: refused for its format, and a band that was
    merely left out for the band."""
    meta = {k: v for k, v in metadata(size=64).items() if k != 'band'}
    assert 'band' in refused(rewritten(meta=meta))
    assert 'version' in refused(rewritten(meta=meta | dict(format=1)))

@pytest.mark.parametrize('text', ['', '{', 'not json', 'null', '[]', '3', '"x"', '{}',
                                  '[' * 100_000, '{"format": ' + '9' * 5000 + '}'],
                         ids=lambda t: repr(t[:8]))
def test_metadata_that_is_none(text, rewritten, refused): refused(rewritten(text=text))

def test_a_foreign_safetensors_file(tmp_path, refused):
    save_file(resnet18(num_classes=2).state_dict(), tmp_path/'m.safetensors')
    assert 'metadata' in refused(tmp_path/'m.safetensors')

# --- without a network ---

@pytest.fixture
def offline(tmp_path, monkeypatch):
    """No cached weights, and every request goes to a port; returns a function that builds with this
    port, to a random start and a warning."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path/'torch'))
    monkeypatch.setattr('urllib.request._opener', None)  # proxies are read anew
    for name in ('no_proxy', 'NO_PROXY'): monkeypatch.delenv(name, raising=False)
    def through(port):
        for name in ('http_proxy', 'https_proxy', 'HTTP_PROXY', 'HTTPS_PROXY', 'all_proxy'):
            monkeypatch.setenv(name, f'http://127.0.0.1:{port}')
        with pytest.warns(UserWarning) as told: model, missing = build_model('imagenet', seed=5)
        words = ' '.join(str(told[0].message).split())
        assert 'random' in words and 'connect to the network' in words
        assert 'model.weights=FILE' in words and 'conv1.weight' in missing
        assert same(model, build_model('random', seed=5)[0])
    return through

def test_no_network(offline):
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        closed = s.getsockname()[1]
    offline(closed)

@pytest.mark.parametrize('answer', [b'', b'who are you?\r\n', b'HTTP/1.1 407 Pay first\r\n\r\n',
                                    b'HTTP/1.1 200 OK\r\n\r\nnot TLS'],
                         ids=['nothing', 'nonsense', 'refusal', 'no TLS'])
def test_a_network_that_is_no_network(offline, answer):
    with socket.create_server(('127.0.0.1', 0)) as server:
        def serve():
            try:
                while True:
                    c, _ = server.accept()
                    with c:
                        c.recv(4096)
                        c.sendall(answer)
            except OSError: pass  # closed: the test is over
        threading.Thread(target=serve, daemon=True).start()
        offline(server.getsockname()[1])

def test_a_cached_download_that_is_damaged(offline, tmp_path):
    (cache := tmp_path/'torch'/'hub'/'checkpoints').mkdir(parents=True)
    (cache/'resnet18-f37072fd.pth').write_bytes(b'<html>sign in</html>')
    offline(9)
    assert not any(cache.iterdir())  # or no later run would ever download it again

# --- from an image to a verdict ---

def test_image_to_input():
    rng = np.random.default_rng(0)
    image = torch.from_numpy(rng.integers(0, 256, (3, 64, 64), np.uint8))
    assert fit_to(image, 64).equal(image)  # not resampled: the trace is in the finest detail
    for h, w in ((1, 1), (64, 65), (200, 64), (30, 90), (1, 300)):
        assert fit_to(torch.zeros(3, h, w, dtype=torch.uint8), 64).shape == (3, 64, 64)
    wide = torch.zeros(3, 64, 192, dtype=torch.uint8)
    wide[:, :, 64:128] = image
    assert fit_to(wide, 64).equal(image)  # the centre
    assert to_input(image[None]).mean().abs() < 1 and to_input(image[None], False).min() >= 0

def test_a_thin_image_does_not_take_the_memory():
    """1 x 20,000 pixels are a file of 100 bytes; enlarged before it is cropped it would be hundreds
    of megabytes."""
    thin = torch.zeros(3, 1, 20_000, dtype=torch.uint8)
    with torch.profiler.profile(profile_memory=True) as p:
        assert fit_to(thin, 64).shape == (3, 64, 64)
    assert max(e.cpu_memory_usage for e in p.events()) < 2**26

@pytest.mark.filterwarnings('error')
def test_probability():
    logits = np.array([[3., 1.], [-800., 800.], [800., -800.], [0., 0.]])
    expected = [torch.tensor([3., 1.]).softmax(0)[0].item(), 0, 1, .5]
    assert p_fake(logits) == pytest.approx(expected) and p_fake(logits, 4)[0] < expected[0]

def test_devices_and_precisions():
    cpu = torch.device('cpu')
    assert pick_device('cpu').type == 'cpu' and pick_dtype(cpu, 'bf16') == torch.bfloat16
    for f, bad in ((pick_device, 'gpu'), (pick_device, 'cuda:99')):
        with pytest.raises(FaceError): f(bad)
    with pytest.raises(FaceError): pick_dtype(cpu, 'fp8')

def test_detector_judges_a_batch_as_it_judges_one(checkpoint, drawn):
    detector, paths = Detector.load(checkpoint, 'cpu'), sorted((drawn/'test'/'real').iterdir())
    *some, gone, again = detector.predict([*paths, ('gone', b''), paths[0]], batch_size=4)
    assert [v.path for v in some] == [*map(str, paths)] and again.path == str(paths[0])
    assert gone.path == 'gone' and gone.p_fake is None and 'empty' in gone.error
    for v, p in zip(some, paths):
        assert detector.predict(p)[0].p_fake == pytest.approx(v.p_fake, abs=1e-5)
    explained, = detector.explain(paths[0])
    assert explained.p_fake == pytest.approx(some[0].p_fake, abs=1e-5)
    assert explained.overlay().shape == (64, 64, 3)

def test_doubt_begins_and_ends_with_the_band(drawn):
    """Real below the band, uncertain from its lower end, fake from its upper end on, to the last
    bit."""
    just_below = lambda v: np.nextafter(v, 0)
    said = [decide(p, .3, .7) for p in (.1, just_below(.3), .3, .5, just_below(.7), .7, .9)]
    assert said == ['real'] * 2 + ['uncertain'] * 3 + ['fake'] * 2
    assert [decide(p, .5, .5) for p in (just_below(.5), .5)] == ['real', 'fake']  # no band
    model, paths = build_model('random', seed=1)[0], sorted(drawn.rglob('*.jpg'))[:12]
    def verdicts(f, **kw):
        return getattr(Detector(model, metadata(size=64, **kw), 'cpu'), f)(paths, whole=True)
    p = sorted(v.p_fake for v in verdicts('predict'))
    low, high = p[3], p[8]
    found = verdicts('explain', threshold=(low + high) / 2, band=(low, high))
    expected = list(zip(p, ['real'] * 3 + ['uncertain'] * 5 + ['fake'] * 4))
    assert low < high and sorted((v.p_fake, v.verdict) for v in found) == expected
    assert all(v.heatmap is not None and not v.error for v in found)
    assert {v.verdict for v in verdicts('predict', threshold=.5)} <= {'fake', 'real'}

def test_the_heatmap_speaks_for_the_verdict():
    "Here every place speaks for real and none for fake, whatever the bias makes of it."
    model, _ = build_model('random')
    torch.nn.init.zeros_(model.fc.weight)
    torch.nn.init.ones_(model.fc.weight[REAL])
    image = np.random.default_rng(0).integers(0, 256, (3, 64, 64), np.uint8)
    for bias, verdict, warmest in ((1e4, 'fake', 0), (-1e4, 'real', 1)):
        model.fc.bias.data = torch.tensor([bias, 0.])
        v, = Detector(model, metadata(size=64), 'cpu').explain(image, whole=True)
        assert (v.verdict, v.heatmap.max()) == (verdict, pytest.approx(warmest))
