"Files from strangers: each is an upright RGB array or an `ImageError` in one line, and nothing else."

import io
from random import Random

import numpy as np
import pytest
from PIL import Image

from fakeface.core import FORMATS, MAX_PIXELS, FaceError, ImageError, find_images, open_image

def noise(mode='RGB', size=(48, 32)):
    bands = len(Image.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], bands), np.uint8)
    return Image.frombytes(mode, size, pixels.tobytes())

def encoded(im, format, **kw):
    im.save(out := io.BytesIO(), format, **kw)
    return out.getvalue()

def png_header(w, h):
    "A small PNG whose header has been rewritten, checksum included, to claim another size."
    import struct, zlib
    head = b'IHDR' + struct.pack('>II', w, h) + b'\x08\x02\x00\x00\x00'
    return encoded(noise(), 'PNG').replace(encoded(noise(), 'PNG')[12:33], head + struct.pack('>I', zlib.crc32(head)))

def check(data, name='x.jpg'):
    "Whether it opens; fails unless the outcome is one of the two that are promised."
    try: a = open_image(data, name)
    except ImageError as e:
        assert str(e).startswith(f'{name}: ') and '\n' not in str(e) and len(str(e)) > len(name) + 2
        return False
    assert a.dtype == np.uint8 and a.ndim == 3 and a.shape[0] == 3 and a.size and a.flags.c_contiguous
    return True

def refused(data, why, **kw):
    with pytest.raises(ImageError, match=why) as e: open_image(data, 'x.jpg', **kw)
    assert '\n' not in str(e.value)

@pytest.mark.parametrize('format', FORMATS)
def test_every_format_opens_whatever_it_is_called(format, tmp_path):
    path = tmp_path/'photo.txt'
    path.write_bytes(encoded(noise(), format, quality=95))
    assert open_image(path).shape == (3, 32, 48)

@pytest.mark.parametrize('format', FORMATS)
def test_truncated(format):
    data = encoded(noise(), format)
    assert check(data) and not any(check(data[:n]) for n in (1, 8, len(data) // 3))
    for n in range(0, len(data), max(1, len(data) // 50)): check(data[:n])

@pytest.mark.parametrize('format', FORMATS)
def test_fuzz(format):
    rng = Random(format)
    modes = dict(JPEG=('RGB', 'L', 'CMYK'), PNG=('RGBA', 'P', 'LA', '1'), GIF=('P', 'L'), BMP=('RGB', 'P'), TIFF=('RGB', 'CMYK', 'L'))
    options = [dict(compression=c) for c in ('raw', 'tiff_lzw', 'tiff_deflate', 'packbits')] if format == 'TIFF' else [{}]
    seeds = [encoded(noise('RGB').convert(m), format, **kw) for m in modes.get(format, ('RGB', 'RGBA')) for kw in options]
    opened = 0
    for i in range(120):
        data = bytearray(seeds[i % len(seeds)])
        for _ in range(rng.randint(1, 12)): data[min(int(rng.expovariate(8 / len(data))), len(data) - 1)] = rng.randrange(256)  # mostly in the header
        if rng.random() < .2: at = rng.randrange(len(data)); del data[at:at + rng.randint(1, 20)]
        if rng.random() < .2: at = rng.randrange(len(data)); data[at:at] = rng.randbytes(rng.randint(1, 20))
        opened += check(bytes(data))
    assert 0 < opened < 120  # otherwise the mutations are too mild, or too rough, to try anything

@pytest.mark.parametrize('data, why', [
    (b'', 'empty'), (b'\0', 'not an image'), (b'\xff\xd8\xff', 'not an image|damaged'), (b'<html><body>404</body></html>', 'not an image'),
    (b'<svg xmlns="http://www.w3.org/2000/svg"/>', 'not an image'), (b'%PDF-1.7', 'not an image'), (b'RIFF\x24\0\0\0WEBPVP8 ', 'not an image|damaged'),
    (b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n', 'not an image'), (b'P6 2 2 255 ' + bytes(12), 'not an image')],
    ids=lambda v: repr(v)[2:14] if isinstance(v, bytes) else '')
def test_what_is_no_image_is_named(data, why): refused(data, why)

def test_missing_folder_and_unreadable_paths(tmp_path):
    for path in (tmp_path/'none.jpg', tmp_path, tmp_path/'a'/'b.jpg', str(tmp_path/'nul\0.jpg'), tmp_path/('x' * 300 + '.jpg')):
        with pytest.raises(ImageError) as e: open_image(path)
        assert '\n' not in str(e.value)

@pytest.mark.parametrize('name', ['a\nb.jpg', 'a\rb.jpg', 'a\x1b[31mb.jpg', 'a\u2028b.jpg'], ids=ascii)
def test_a_hostile_name_stays_on_one_line(name):
    with pytest.raises(ImageError) as e: open_image(b'', name)
    assert str(e.value).isprintable()

def test_bounds_of_bytes_and_pixels(tmp_path):
    data = encoded(noise(), 'PNG')
    (tmp_path/'big.png').write_bytes(data)
    for src in (data, tmp_path/'big.png', io.BytesIO(data)): refused(src, 'larger than', max_bytes=len(data) - 1)
    assert open_image(data, max_bytes=len(data), max_pixels=48 * 32).shape == (3, 32, 48)
    refused(data, 'pixels', max_pixels=48 * 32 - 1)

@pytest.mark.parametrize('side', [30_000, 9_000, 2**31 - 1])
def test_a_header_that_claims_too_much_is_refused(side):
    assert side**2 > MAX_PIXELS
    assert open_image(png_header(48, 32)).shape == (3, 32, 48)  # the header itself is well-formed
    refused(png_header(side, side), 'pixels|damaged')
    gif = bytearray(encoded(noise('L'), 'GIF')); gif[6:10] = min(side, 65535).to_bytes(2, 'little') * 2
    refused(bytes(gif), 'pixels')

@pytest.mark.parametrize('format, mode', [('JPEG', 'CMYK'), ('JPEG', 'L'), ('PNG', '1'), ('PNG', 'P'), ('PNG', 'LA'), ('PNG', 'I;16'), ('TIFF', 'CMYK'),
                                          ('TIFF', 'I;16'), ('TIFF', 'YCbCr'), ('GIF', 'P'), ('WEBP', 'RGBA')])
def test_every_mode_becomes_the_colour_it_shows(format, mode):
    grey = Image.new('L', (16, 16), 255)
    im = Image.new('I;16', (16, 16), 65535) if mode == 'I;16' else grey.convert('RGB').convert(mode)
    a = open_image(encoded(im, format))
    assert a.shape == (3, 16, 16) and a.min() >= 250

def test_cmyk_is_not_inverted():
    red = Image.new('RGB', (16, 16), (255, 0, 0)).convert('CMYK')
    assert open_image(encoded(red, 'JPEG'))[:, 8, 8].tolist() == pytest.approx([255, 0, 0], abs=8)

def test_sixteen_bits_keep_their_range():
    ramp = Image.fromarray(np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(4, 0))
    assert open_image(encoded(ramp, 'PNG'))[0, 0].tolist() == pytest.approx(list(range(256)), abs=1)

def test_transparency_lies_on_white():
    palette = Image.new('P', (4, 4), 1); palette.putpalette([0, 0, 0, 200, 0, 0])
    assert open_image(encoded(palette, 'PNG', transparency=1)).min() == 255
    assert open_image(encoded(palette, 'PNG', transparency=b'\xff\x00')).min() == 255
    assert open_image(encoded(palette, 'PNG', transparency=0))[:, 0, 0].tolist() == [200, 0, 0]
    assert open_image(encoded(Image.new('RGBA', (4, 4), (0, 0, 0, 128)), 'PNG'))[0, 0, 0] == pytest.approx(127, abs=1)

def test_an_animation_is_its_first_frame():
    frames = [Image.new('RGB', (8, 8), c) for c in ('red', 'lime', 'blue')]
    for format in ('GIF', 'WEBP', 'PNG'):
        data = encoded(frames[0], format, save_all=True, append_images=frames[1:], **({'lossless': True} if format == 'WEBP' else {}))
        assert open_image(data)[:, 4, 4].tolist() == [255, 0, 0]

@pytest.mark.parametrize('orientation, corner', list(zip(range(1, 9), [(0, 0), (0, -1), (-1, -1), (-1, 0)] * 2)))
def test_exif_orientation(orientation, corner):
    "The white corner of the stored picture ends where EXIF says its first pixel belongs."
    im = Image.new('RGB', (40, 24)); im.paste('white', (0, 0, 12, 12))
    exif = Image.Exif(); exif[0x0112] = orientation
    a = open_image(encoded(im, 'JPEG', exif=exif, quality=95))
    assert a.shape == ((3, 24, 40) if orientation < 5 else (3, 40, 24))
    assert a[0][corner] > 240 and a[0].mean() < 60

def test_smallest_and_thinnest():
    for size in ((1, 1), (1, 500), (500, 1)): assert open_image(encoded(Image.new('RGB', size, 'teal'), 'PNG')).shape == (3, size[1], size[0])

def test_every_kind_of_source_gives_the_same(tmp_path):
    data = encoded(noise(), 'PNG'); path = tmp_path/'a.png'; path.write_bytes(data)
    first, *rest = [open_image(s) for s in (path, str(path), data, bytearray(data), memoryview(data), io.BytesIO(data), open(path, 'rb'), Image.open(path))]
    assert all((a == first).all() for a in rest)

def test_an_error_names_the_file_as_the_user_knows_it(tmp_path):
    (tmp_path/'a.jpg').write_bytes(b'no')
    with pytest.raises(ImageError, match=f'^{tmp_path}/a.jpg: '): open_image(tmp_path/'a.jpg')
    with open(tmp_path/'a.jpg', 'rb') as f, pytest.raises(ImageError, match='a.jpg: '): open_image(f)
    with pytest.raises(ImageError, match='^holiday: '): open_image(b'no', 'holiday')

def test_finding_images(tmp_path):
    for n in ('b/2.JPG', 'b/1.webp', 'a.tif', 'notes.txt', '.hidden.png'): (tmp_path/n).parent.mkdir(exist_ok=True); (tmp_path/n).write_bytes(b'x')
    (tmp_path/'folder.jpg').mkdir()
    found = find_images([tmp_path/'notes.txt', tmp_path, tmp_path/'a.tif'])
    assert [p.relative_to(tmp_path).as_posix() for p in found] == ['notes.txt', 'a.tif', 'b/1.webp', 'b/2.JPG']

@pytest.mark.parametrize('path', ['none', 'folder.jpg', 'x' * 300, 'a\nb', 'nul\0'], ids=lambda p: ascii(p)[:12])
def test_what_is_not_found_is_one_line(path, tmp_path):
    (tmp_path/'folder.jpg').mkdir()
    with pytest.raises(FaceError) as e: find_images(tmp_path/path)
    assert '\n' not in str(e.value)
