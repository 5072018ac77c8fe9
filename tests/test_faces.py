"Faces in photographs: found, turned upright and cut out; crops are left alone, and what cannot be judged is refused."

import io, tracemalloc, zipfile
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
import torch
from matplotlib.cbook import get_sample_data
from PIL import Image

from fakeface import faces
from fakeface.cli import main
from fakeface.core import ImageError
from fakeface.images import MAX_BYTES, open_image, zip_images
from fakeface.detector import Detector
from fakeface.faces import (MAX_FACES, SMALLEST, aligned_square, cut_out, draw_boxes, face_crops, find_faces, is_crop,
                            moved_inside, side_length, whole_image)
from fakeface.model import fit_to
from fakeface.standin import make_pair

PHOTO = get_sample_data('grace_hopper.jpg', asfileobj=False)  # public domain; 512 x 600, a face of about 175 pixels

@pytest.fixture(scope='module')
def hopper(): return open_image(PHOTO)

@pytest.fixture(scope='module')
def crop(hopper): return cut_out(hopper, aligned_square(find_faces(hopper)[0]), 256).numpy()

def resized(image, width): return cv2.resize(image.transpose(1, 2, 0), (width, round(image.shape[1] * width / image.shape[2])), interpolation=cv2.INTER_CUBIC).transpose(2, 0, 1)
def turned(image, degrees): return np.asarray(Image.fromarray(image.transpose(1, 2, 0)).rotate(degrees, Image.Resampling.BICUBIC, expand=True)).transpose(2, 0, 1)
def places(crop): return find_faces(np.asarray(crop))[0].points / crop.shape[-1]  # of eyes, nose and mouth, as shares of the side
def tilt(points): return abs(np.degrees(np.arctan2(*(points[1] - points[0])[::-1])))  # of the line of the eyes
def refused(image, why):
    with pytest.raises(ImageError, match=why): face_crops(image, 256)

def test_a_face_in_a_photograph(hopper):
    ((box, crop),), note = face_crops(hopper, 256)
    assert note == ''
    x, y, w, h = box
    assert crop.shape == (3, 256, 256) and crop.dtype == torch.uint8 and not crop.equal(fit_to(torch.from_numpy(hopper), 256))
    assert 150 < w < 200 and 180 < h < 280 and 150 < x < 250 and 50 < y < 150  # where she looks at us from
    (eye, other, *_), = (f.points for f in find_faces(crop.numpy()))
    assert abs(eye[1] - other[1]) < 12 and eye[0] < 128 < other[0] and abs((eye[1] + other[1]) / 2 - 118) < 20  # level, and where FFHQ has them

@pytest.mark.parametrize('degrees, left', [(-30, 10), (-15, 5), (15, 5), (30, 10)])
def test_a_tilted_head_comes_out_upright(degrees, left, hopper, crop):
    ((_, again),), _ = face_crops(tilted := turned(hopper, degrees), 256)
    assert tilt(find_faces(tilted)[0].points) > 2 * left > 2 * tilt(places(again)) and np.abs(places(again) - places(crop)).max() < .1

@pytest.mark.parametrize('orientation', [3, 6, 8])
def test_a_camera_held_sideways(orientation, hopper):
    back = {3: 180, 6: 90, 8: 270}[orientation]
    exif = Image.Exif(); exif[0x112] = orientation
    Image.fromarray(np.ascontiguousarray(turned(hopper, back).transpose(1, 2, 0))).save(out := io.BytesIO(), 'PNG', exif=exif)
    assert np.array_equal(open_image(out.getvalue()), hopper)  # and so the face is found

def test_no_face_and_tiny_faces_are_refused(hopper, crop):
    refused(np.full((3, 300, 300), 128, np.uint8), 'no face found')
    refused(np.zeros((3, 1, 1), np.uint8), 'no face found')
    refused(np.random.default_rng(0).integers(0, 256, (3, 200, 200), np.uint8), 'no face found')
    small = resized(hopper, 160)
    refused(small, rf'too small to judge: \d+ pixels, {SMALLEST} are needed')
    large = next(w for w in range(160, 513, 8) if side_length(aligned_square(find_faces(resized(hopper, w))[0])) >= SMALLEST)
    assert len(face_crops(resized(hopper, large), 256)[0]) == 1 and 180 < large < 260

@pytest.mark.parametrize('quarters', [1, 2, 3])
def test_a_face_on_its_side_is_found_where_it_is(quarters, hopper):
    lying = np.rot90(hopper, quarters, (1, 2))
    face, = find_faces(lying)
    x, y, w, h = (round(v) for v in face.box)
    inside = np.zeros(lying.shape[1:], bool)
    inside[y:y + h, x:x + w] = True
    upright = np.rot90(inside, -quarters)  # where the box lies once the photograph is turned back
    x, y, w, h = (round(v) for v in find_faces(hopper)[0].box)
    assert upright[y:y + h, x:x + w].mean() > .8 and upright.sum() < 1.3 * w * h
    ((box, crop),), _ = face_crops(lying, 256)
    assert box == face.box and np.abs(places(crop) - places(face_crops(hopper, 256)[0][0][1])).max() < .05

def test_real_faces_on_their_side(photographs):
    "The landmarks are where they are in the photograph that stands upright."
    found, paths = 0, [p for d in sorted((photographs/'many'/'valid'/'real').iterdir()) for p in sorted(d.iterdir())[:4]]
    for p in paths:
        upright = open_image(p)
        for quarters in (1, 2, 3):
            lying = find_faces(np.rot90(upright, quarters, (1, 2)))
            back = faces.turned_back(find_faces(upright)[0].points, 4 - quarters, *(upright.shape[1:])[::1 if quarters == 2 else -1])
            found += bool(lying) and np.abs(lying[0].points - back).max() < .25 * lying[0].box[2]
    assert len(paths) > 50 and found >= .95 * 3 * len(paths)

def test_an_upright_face_costs_one_look(hopper, monkeypatch):
    shown, detect = [], faces.yunet.detect
    monkeypatch.setattr(faces.yunet, 'detect', lambda image, **kw: (shown.append(image.shape), detect(image, **kw))[1])
    find_faces(hopper)
    assert len(shown) == 1
    assert not find_faces(np.zeros((3, 80, 90), np.uint8)) and len(shown) == 5

# --- nothing is invented ---

def test_the_square_moves_into_the_image():
    rng = np.random.default_rng(0)
    for _ in range(300):
        h, w = rng.integers(20, 400, 2)
        centre, half, angle = rng.uniform(-50, 450, 2), rng.uniform(5, 300), rng.uniform(0, 2 * np.pi)
        x = half * np.array([np.cos(angle), np.sin(angle)])
        y = np.array([-x[1], x[0]])
        corners = np.stack([centre - x - y, centre - x + y, centre + x + y, centre + x - y])
        moved = moved_inside(corners, h, w)
        assert (moved > -1e-6).all() and (moved < np.array([w, h]) + 1e-6).all()
        k = side_length(moved) / side_length(corners)
        assert np.allclose(moved - moved.mean(0), k * (corners - centre)) and k <= 1 + 1e-9
        assert k > 1 - 1e-9 or np.isclose(np.ptp(moved, 0), [w, h]).any()  # as large as it can be
        reach = np.ptp(moved, 0) / 2
        nearest = np.clip(centre, reach, np.maximum(reach, np.array([w, h]) - reach))
        assert np.allclose(moved.mean(0), nearest)

@pytest.mark.parametrize('left, top', [(200, 0), (0, 150), (215, 150)])
def test_a_face_at_the_edge_keeps_to_what_there_is(left, top, hopper):
    "A photograph that goes on beyond the edge gives the same pixels as one that does not."
    tight = np.ascontiguousarray(hopper[:, top:, left:])
    face = find_faces(tight)[0]
    corners = aligned_square(face)
    assert corners.min() < 0  # it reaches beyond
    moved = moved_inside(corners, *tight.shape[1:])
    crop, ample = cut_out(tight, corners, 256).numpy(), cut_out(hopper, moved + [left, top], 256).numpy()
    assert np.abs(crop[:, 4:-4, 4:-4].astype(int) - ample[:, 4:-4, 4:-4]).max() <= 2
    assert len(find_faces(crop)) == 1

def test_a_crop_tighter_than_the_square_is_left_alone(hopper):
    x, y, w, h = (round(v) for v in find_faces(hopper)[0].box)
    tight = np.ascontiguousarray(hopper[:, y + 10:y + 180, x:x + 170])
    corners = aligned_square(find_faces(tight)[0])
    assert side_length(corners) > 170 and is_crop(corners, 170, 170)
    ((box, crop),), _ = face_crops(tight, 256)
    assert box is None and crop.equal(fit_to(torch.from_numpy(tight), 256))

def test_what_was_looked_at_before_leaves_nothing(hopper, monkeypatch):
    "Images of up to 32 pixels once got faces out of memory that nobody had written; what is read there is chance, so the sizes shown are looked at, too."
    shown, detect = [], faces.yunet.detect
    monkeypatch.setattr(faces.yunet, 'detect', lambda image, **kw: (shown.append(image.shape), detect(image, **kw))[1])
    before = [(f.box, f.score) for f in find_faces(hopper)]
    rng = np.random.default_rng(0)
    for i in range(100):
        for n in (1, 2, 4, 8, 16, 32):
            find_faces(hopper if i % 2 else hopper[:, :rng.integers(100, 600), :rng.integers(100, 512)])
            assert not find_faces(np.zeros((3, n, n), np.uint8))
    assert [(f.box, f.score) for f in find_faces(hopper)] == before and min(min(h, w) for h, w, _ in shown) >= 64

@pytest.mark.parametrize('size', [128, 256, 300])
def test_a_crop_is_left_alone_bit_for_bit(size, crop):
    for image in (crop, open_image(make_pair('test', 0, size=128)[0])):
        ((box, same),), _ = face_crops(image, size)
        assert box is None and same.equal(fit_to(torch.from_numpy(image), size)) and (size != image.shape[1] or np.array_equal(same, image))

def test_two_faces_the_larger_first(hopper):
    large = hopper[:, 20:420, 60:460]
    small = np.pad(resized(large, 320), ((0, 0), (40, 40), (40, 40)), 'reflect')
    for left, right in ((small, large), (large, small)):
        both = np.ascontiguousarray(np.concatenate([left, right], 2))
        ((a, one), (b, two)), _ = face_crops(both, 128)
        assert a[2] * a[3] > 1.3 * b[2] * b[3] and (a[0] > 400) == (left is small) == (b[0] < 400)
        assert np.abs(places(one) - places(two)).max() < .05  # each is cut by its own measure

def test_small_faces_beside_a_large_one_are_left_out_and_told(hopper):
    large = hopper[:, 50:450, 60:460]
    tiny = np.pad(resized(large, 100), ((0, 0), (0, 300), (0, 0)))
    for n, said in ((1, '1 face is too small to judge'), (3, '3 faces are too small to judge')):
        both = np.concatenate([large, *[tiny] * n], 2)
        crops, note = face_crops(both, 256)
        assert len(find_faces(both)) == n + 1 and len(crops) == 1 and note == said

def test_a_large_photograph(hopper):
    wide = np.pad(resized(hopper, 2400), ((0, 0), (0, 0), (0, 1600)), 'reflect')  # 4000 across
    (box, crop), *_ = sorted(face_crops(wide, 256)[0], key=lambda f: f[0][0])
    assert wide.shape[2] == 4000 and np.allclose(np.divide(box, 2400 / 512), find_faces(hopper)[0].box, atol=8)
    assert np.abs(places(crop) - places(face_crops(hopper, 256)[0][0][1])).max() < .05

def test_a_crowd_is_bounded_and_the_rest_is_told(crop):
    crowd = resized(np.tile(resized(crop, 128), (1, 8, 8)), 1600)  # 64 of them
    crops, note = face_crops(crowd, 64)
    assert len(find_faces(crowd)) == 64 and len(crops) == MAX_FACES == 50
    assert note == '14 more faces were not looked at'

def test_one_bound_for_faces_crops_and_whole_images(hopper, crop):
    "What is judged has 128 pixels of the image on each side, or as many as the model wants."
    for n in (64, 127):
        refused(resized(crop, n), f'too small to judge: {n} x {n} pixels, 128 x 128 are needed')
        with pytest.raises(ImageError, match=f'{n} x 300 pixels'): whole_image(hopper[:, :300, :n], 256)
    assert face_crops(resized(crop, 128), 256)[0][0][0] is None
    assert whole_image(hopper[:, :128, :128], 256).shape == (3, 256, 256)
    assert len(face_crops(resized(crop, 64), 64)[0]) == 1
    with pytest.raises(ImageError, match='1 x 1 pixels'): whole_image(np.zeros((3, 1, 1), np.uint8), 256)

def test_boxes_are_drawn_around_faces(hopper):
    (x, y, w, h), = boxes = [f.box for f in find_faces(hopper)]
    drawn, plain = draw_boxes(hopper, boxes), hopper.transpose(1, 2, 0)
    changed = (drawn != plain).any(2)
    assert changed[round(y), round(x):round(x + w)].all() and changed[round(y):round(y + h), round(x)].all() and not changed[round(y) + 40:round(y + h) - 9, round(x) + 40:round(x + w) - 9].any()
    assert max(draw_boxes(hopper, boxes, 300).shape) == 300 and np.array_equal(draw_boxes(hopper, []), plain) and hopper.flags.writeable

def test_threads_do_not_disturb_each_other(hopper, checkpoint):
    "The finder remembers the last image's size, and heatmaps need gradients."
    detector, images = Detector.load(checkpoint, 'cpu'), [('x', resized(hopper, 300 + 40 * i)) for i in range(6)]
    def judge(i): return detector.explain(images[i % 6:i % 6 + 1], ('gradcam', 'layercam', 'hirescam')[i % 3])[0]
    alone = [judge(i) for i in range(6)]
    with ThreadPoolExecutor(10) as pool: together = list(pool.map(judge, range(18)))
    for i, v in enumerate(together):
        assert v.box == alone[i % 6].box and v.p_fake == pytest.approx(alone[i % 6].p_fake, abs=1e-5) and np.allclose(v.heatmap, alone[i % 6].heatmap, atol=1e-3)

def test_real_crops_are_found_and_left_alone(photographs):
    paths = [p for c in ('real', 'fake') for p in sorted((photographs/'140k-subset'/'valid'/c).iterdir())[:20]]
    crops = [face_crops(open_image(p), 256)[0] for p in paths]  # raises where there is no face
    assert len(paths) == 40 and all(len(c) == 1 and c[0][0] is None and c[0][1].equal(fit_to(torch.from_numpy(open_image(p)), 256)) for c, p in zip(crops, paths))

# --- through the command and from archives ---

def test_predict_names_the_face(checkpoint, tmp_path, capsys, hopper):
    Image.fromarray(np.ascontiguousarray(np.concatenate([hopper[:, 50:450, 60:460]] * 2, 2).transpose(1, 2, 0))).save(tmp_path/'two.png')
    (tmp_path/'crop.jpg').write_bytes(make_pair('test', 0, size=128)[0]); Image.new('RGB', (200, 200)).save(tmp_path/'wall.png')
    detector, files = Detector.load(checkpoint, 'cpu'), [str(PHOTO), *(str(tmp_path/n) for n in ('two.png', 'crop.jpg', 'wall.png'))]
    for options, whole in (([], False), (['--whole'], True)):
        assert main(['predict', *files, '--weights', str(checkpoint), '--device', 'cpu', *options]) == 0
        out, err = capsys.readouterr()
        vs = [v for v in detector.predict(files, whole=whole) if v.verdict]
        assert out.splitlines() == [f'{v.verdict:9}  {v.p_fake:.3f}  {v.path}' + (f', face {v.face}' if v.face else '')
                                    + (f'  ({v.note})' if v.note else '') for v in vs]
        assert [v.note for v in vs] == ([''] * 3 + ['no face was found; the whole image was judged'] if whole else [''] * 4)
        assert [v.face for v in vs] == ([0] * 4 if whole else [1, 1, 2, 0]) and ('no face found' in err) != whole
    assert main(['predict', files[-1], '--weights', str(checkpoint), '--device', 'cpu']) == 2 and 'no face found' in capsys.readouterr().err

def test_one_heatmap_for_each_face(checkpoint, tmp_path, capsys, hopper):
    assert main(['predict', str(PHOTO), '--weights', str(checkpoint), '--device', 'cpu', '--heatmaps', str(tmp_path/'heat'), '--csv', str(tmp_path/'out.csv'), '--method', 'layercam']) == 0
    picture, = (tmp_path/'heat').iterdir()
    assert np.array_equal(np.asarray(Image.open(picture)), Detector.load(checkpoint, 'cpu').explain(PHOTO, 'layercam')[0].overlay())
    assert (tmp_path/'out.csv').read_text().splitlines()[1].startswith(f'{PHOTO},1,0.')

def test_a_zip_bomb_costs_no_more_than_a_large_file(checkpoint):
    with zipfile.ZipFile(out := io.BytesIO(), 'w', zipfile.ZIP_DEFLATED, compresslevel=1) as z:
        with z.open('bomb.jpg', 'w') as f:
            for _ in range(400): f.write(bytes(2**20))
        z.writestr('face.jpg', make_pair('test', 0, size=128)[0])
    assert len(out.getvalue()) < 3e6
    detector = Detector.load(checkpoint, 'cpu')
    tracemalloc.start()
    bomb, good = detector.predict(zip_images(out.getvalue(), 'x.zip')[0])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert bomb.path == 'x.zip/bomb.jpg' and 'larger than 64 MB' in bomb.error and good.verdict and not good.error
    assert peak < 3.5 * MAX_BYTES  # the entry has 400 MB
