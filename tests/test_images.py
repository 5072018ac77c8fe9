"Files from strangers: each is an upright RGB array or an `ImageError` in one line, and nothing else."

import io, os, resource, struct, threading, time, zipfile, zlib
from contextlib import contextmanager
from random import Random

import numpy as np
import pytest
from PIL import Image

import fuzz_images
from fakeface.bounds import MAX_SIDE
from fakeface.core import FaceError, ImageError
from fakeface.images import FORMATS, MAX_BYTES, MAX_ENTRIES, MAX_PIXELS, find_images, open_image, zip_images

def noise(mode='RGB', size=(48, 32)):
    bands = len(Image.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], bands), np.uint8)
    return Image.frombytes(mode, size, pixels.tobytes())

def encoded(im, format, **kw):
    im.save(out := io.BytesIO(), format, **kw)
    return out.getvalue()

def png_header(w, h):
    "A small PNG whose header has been rewritten, checksum included, to claim another size."
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

@pytest.mark.parametrize('data, why', [
    (b'', 'empty'), (b'\0', 'not an image'), (b'\xff\xd8\xff', 'not an image|damaged'), (b'<html><body>404</body></html>', 'not an image'),
    (b'\0\0\0\x18ftypheic' + bytes(40), 'HEIC, AVIF or a video, which are not read; save it as JPEG'), (b'PK\3\4' + bytes(40), 'a ZIP archive; unpack it, or drop it into the demo'),
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
    for n in ('b/2.JPG', 'b/1.webp', 'a.tif', 'notes.txt', '.hidden.png', '.cache/c.jpg', 'b/3.heic'): (tmp_path/n).parent.mkdir(exist_ok=True); (tmp_path/n).write_bytes(b'x')
    (tmp_path/'folder.jpg').mkdir()
    found = find_images([tmp_path/'notes.txt', tmp_path, tmp_path/'a.tif'])
    assert [p.relative_to(tmp_path).as_posix() for p in found] == ['notes.txt', 'a.tif', 'b/1.webp', 'b/2.JPG', 'b/3.heic']  # a photograph to its owner, so it is met with a reason

@pytest.mark.parametrize('path', ['none', 'folder.jpg', 'x' * 300, 'a\nb', 'nul\0'], ids=lambda p: ascii(p)[:12])
def test_what_is_not_found_is_one_line(path, tmp_path):
    (tmp_path/'folder.jpg').mkdir()
    with pytest.raises(FaceError) as e: find_images(tmp_path/path)
    assert '\n' not in str(e.value)

# --- what is small and costs much ---

def chunk(kind, data): return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
def after_header(png, extra): return png[:33] + extra + png[33:]  # a PNG with more chunks

@contextmanager
def cheap(seconds=4):
    "Fails when what it surrounds took over so many seconds of processor time, which a bomb takes many times over, or 300 MB."
    start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert time.process_time() - start < seconds
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KB; its peak so far

def inflating(n):
    "A zlib stream of n zeros, without its end; made of one megabyte, repeated."
    press = zlib.compressobj(9)
    first, again = (press.compress(bytes(2**20)) + press.flush(zlib.Z_FULL_FLUSH) for _ in range(2))
    return first + again * (n // 2**20 - 1)

PNG, JPEG, GIF = (encoded(noise('L', (8, 8)), f) for f in ('PNG', 'JPEG', 'GIF'))
FRAME = b',\0\0\0\0\x08\0\x08\0'  # where the frame of the GIF begins
PIECES = {'PNG of empty chunks': lambda: after_header(PNG, chunk(b'abCd', b'') * 2_000_000), 'PNG of empty texts': lambda: after_header(PNG, chunk(b'tEXt', b'a\0') * 1_500_000),
          'PNG of empty data': lambda: after_header(PNG, chunk(b'IDAT', b'') * 2_000_000), 'PNG with chunks at its end': lambda: PNG[:-12] + chunk(b'abCd', b'') * 2_000_000 + PNG[-12:],
          'GIF of comments': lambda: GIF.replace(FRAME, b'!\xfe\1a\0' * 6_000_000 + FRAME), 'GIF of nothing': lambda: GIF.replace(FRAME, b'\1' * 30_000_000 + FRAME),
          'BMP of single pixels': lambda: b'BM' + struct.pack('<IHHIIiiHHIIiiII', 0, 0, 0, 1078, 40, 8000, 8000, 1, 8, 1, 0, 0, 0, 256, 0) + bytes(1024) + b'\1\1' * 20_000_000,
          'JPEG of empty segments': lambda: JPEG[:2] + b'\xff\xe5\0\2' * 10_000_000 + JPEG[2:], 'JPEG of junk': lambda: JPEG[:2] + b'\xff\xe5\0\2' + b'a' * 30_000_000 + JPEG[2:],
          'JPEG of EXIF': lambda: JPEG[:2] + (b'\xff\xe1\xff\0Exif\0\0' + bytes(65272)) * 900 + JPEG[2:]}

@pytest.mark.parametrize('name', PIECES)
def test_millions_of_pieces_are_refused_quickly(name):
    data = PIECES[name]()
    assert len(data) <= MAX_BYTES
    with cheap(): refused(data, 'too many pieces')

def test_as_many_pieces_as_programs_write_are_read():
    large = encoded(noise('RGB', (1500, 1500)), 'PNG', compress_level=0)
    body = zlib.compress(bytes(1500 * 4501))
    pieces = b''.join(chunk(b'IDAT', body[i:i + 1]) for i in range(len(body)))  # a byte each, which nobody writes
    assert len(pieces) > 10_000 and open_image(large[:33] + pieces + chunk(b'IEND', b'')).shape == (3, 1500, 1500)
    assert check(JPEG[:2] + (b'\xff\xe1\xff\0Exif\0\0' + bytes(65272)) * 20 + JPEG[2:])

def progressive(side, more):
    "A progressive JPEG whose last scan is repeated."
    data = encoded(Image.new('L', (side, side)), 'JPEG', progressive=True)
    last = data[data.rindex(b'\xff\xda'):-2]
    return data[:-2] + last * more + data[-2:]

@pytest.mark.parametrize('side, more', [(7999, 500), (1000, 20_000)])
def test_a_jpeg_that_goes_over_its_pixels_too_often(side, more):
    data = progressive(side, more)
    with cheap(): refused(data, 'scans')

def test_progressive_jpegs_are_read():
    data = progressive(4000, 0)
    assert data.count(b'\xff\xda') > 4 and open_image(data).shape == (3, 4000, 4000) and check(progressive(500, 1000))

@pytest.mark.parametrize('w, h', [(1, MAX_SIDE + 1), (MAX_SIDE + 1, 1), (1, 60_000_000)])
def test_the_longest_side(w, h):
    with cheap(): refused(png_header(w, h), 'side longer than')
    assert open_image(encoded(Image.new('L', (1, MAX_SIDE)), 'PNG')).shape == (3, MAX_SIDE, 1)

def tiff(tags, data=b'', big=False):
    "A little-endian TIFF of grey pixels with these tags `{number: (type, count, value)}`; data begins at byte 512."
    tags = {256: (4, 1, 8), 257: (4, 1, 8), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 1)} | tags
    head, entry, number = (b'II+\0\x08\0\0\0' + struct.pack('<Q', 16), '<HHQQ', '<Q') if big else (b'II*\0' + struct.pack('<I', 8), '<HHII', '<H')
    return (head + struct.pack(number, len(tags)) + b''.join(struct.pack(entry, k, *v) for k, v in sorted(tags.items())) + bytes(8)).ljust(512, b'\0') + data

@pytest.mark.parametrize('big', [False, True])
def test_a_tiff_of_tiny_tiles(big):
    assert check(tiff({322: (4, 1, 8), 323: (4, 1, 8), 324: (4, 1, 512), 325: (4, 1, 64)}, bytes(64), big))
    n = 4_000_000
    data = tiff({256: (4, 1, 8000), 257: (4, 1, 8000), 322: (4, 1, 1), 323: (4, 1, 1), 324: (4, n, 512), 325: (4, n, 512)}, bytes(4 * n), big)
    with cheap(): refused(data, 'too many pieces')

def test_a_tiff_whose_tile_is_said_to_be_larger_than_its_image():
    bomb = inflating(2**30)
    data = tiff({259: (3, 1, 8), 322: (4, 1, 46320), 323: (4, 1, 46320), 324: (4, 1, 512), 325: (4, 1, len(bomb))}, bomb)
    with cheap(): refused(data, 'tiles')

def test_a_tiff_of_a_million_tags():
    data = b'II+\0\x08\0\0\0' + struct.pack('<QQ', 16, 10**6) + struct.pack('<HHQQ', 300, 99, 1, 1) * 10**6
    with cheap(): refused(data, 'too many pieces')

def test_metadata_is_not_rewritten_when_an_image_is_turned():
    "An EXIF block of 60 MB beside the rotation."
    n = 60 * 2**20
    exif = b'II*\0\x08\0\0\0' + struct.pack('<H', 2) + struct.pack('<HHII', 0x112, 3, 1, 6) + struct.pack('<HHII', 0x9000, 3, n // 2, 38) + bytes(4 + n)
    data = after_header(encoded(Image.new('L', (8, 4)), 'PNG'), chunk(b'eXIf', exif))
    with cheap(2): assert open_image(data).shape == (3, 8, 4)

@pytest.mark.parametrize('change', [lambda t: t + bytes(4), lambda t: t.replace(struct.pack('<HHII', 0x112, 3, 1, 6), struct.pack('<HHII', 0x112, 3, 1, 9)),
                                    lambda t: t.replace(struct.pack('<HHII', 0x112, 3, 1, 6), struct.pack('<HHI4s', 0x112, 2, 4, b'six')),
                                    lambda t: t.replace(struct.pack('<HHII', 0x112, 3, 1, 6), struct.pack('<HHII', 0x8769, 4, 1, 8)), lambda t: t[:12], lambda t: os.urandom(500)],
                         ids=['as it should be', 'orientation 9', 'orientation in words', 'a loop', 'truncated', 'noise'])
def test_hostile_exif_never_keeps_a_photograph_from_being_judged(change):
    exif = b'Exif\0\0' + change(b'II*\0\x08\0\0\0' + struct.pack('<H', 1) + struct.pack('<HHII', 0x112, 3, 1, 6) + bytes(4))
    assert check(JPEG[:2] + b'\xff\xe1' + struct.pack('>H', len(exif) + 2) + exif + JPEG[2:])

def test_colour_profiles_of_noise(): assert check(encoded(noise(), 'JPEG', icc_profile=os.urandom(90_000))) and check(encoded(noise(), 'PNG', icc_profile=os.urandom(90_000)))

@pytest.mark.parametrize('kind', [b'zTXt', b'iCCP', b'iTXt'])
def test_a_text_that_inflates_to_a_gigabyte(kind):
    data = after_header(PNG, chunk(kind, b'a\0' + (b'\1\0\0\0' if kind == b'iTXt' else b'\0') + inflating(2**30)))
    with cheap(): check(data)

@pytest.mark.parametrize('format', ['GIF', 'WEBP', 'PNG'])
def test_an_animation_of_a_thousand_frames_costs_one(format):
    frames = [Image.new('RGB', (8, 8), (i % 256, i // 256, 0)) for i in range(1000)]
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:])
    with cheap(): assert check(data)

def test_thirty_two_bits_of_grey():
    deep = np.array([[-5, 0, 65535, 2**31 - 1]], np.int32)
    assert open_image(encoded(Image.fromarray(deep), 'TIFF'))[0].tolist() == [[0, 0, 255, 255]]

# --- what is no file ---

def test_pipes_devices_and_loops_do_not_hang(tmp_path):
    os.mkfifo(tmp_path/'pipe.jpg'); (tmp_path/'loop.jpg').symlink_to('loop.jpg'); (tmp_path/'round').symlink_to(tmp_path); (tmp_path/'real.png').write_bytes(PNG)
    for path in (tmp_path/'pipe.jpg', '/dev/zero', tmp_path): refused(path, 'not a file')
    refused(tmp_path/'loop.jpg', 'no such file')
    assert find_images(tmp_path) == [tmp_path/'real.png']
    with pytest.raises(FaceError): find_images(tmp_path/'loop.jpg')

def test_a_file_that_changes_while_it_is_read(tmp_path):
    path, stop = tmp_path/'a.png', threading.Event()
    whole = encoded(noise('RGB', (300, 300)), 'PNG'); path.write_bytes(whole)
    def spoil():
        rng = Random(0)
        while not stop.is_set(): path.write_bytes(whole[:rng.randrange(len(whole))] if rng.random() < .7 else whole)
    writer = threading.Thread(target=spoil); writer.start()
    try:
        for _ in range(60): check(path, str(path))
    finally: stop.set(); writer.join()

# --- archives ---

def packed(entries, way=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(out := io.BytesIO(), 'w', way) as z:
        for name, data in entries: z.writestr(name, data)
    return out.getvalue()

def test_names_in_an_archive_are_labels_only(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ['../up.png', '/abs.png', 'C:\\x.png', '顔/Ünïcode.png', 'Москва.png', 'a\nb.png', 'x' * 5000 + '.png', 'same.png']
    found, _ = zip_images(packed([(n, PNG) for n in names]), 'z.zip')
    assert [label for label, _ in found] == [f'z.zip/{n}' for n in names] and all(open_image(read()).shape == (3, 8, 8) for _, read in found)
    assert not list(tmp_path.iterdir())

def test_archives_in_archives_folders_and_hidden_files_are_passed_over():
    inner = packed([('a.png', PNG)])
    assert [l for l, _ in zip_images(packed([('in.zip', inner), ('in/', b''), ('folder.png/', b''), ('__MACOSX/._a.png', b'x'), ('b.png', PNG)]), 'z')] == ['z/b.png']
    for _ in range(30): inner = packed([('in.zip', inner)])
    with pytest.raises(ImageError, match='no images'): zip_images(inner, 'z')

def entry_fails(archive, why):
    ((_, read),), _ = zip_images(archive, 'z')
    with pytest.raises(ImageError, match=why) as e: read()
    assert '\n' not in str(e.value)

@pytest.mark.parametrize('way', [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_methods_without_a_bound_are_refused(way):
    "Python unpacks all of a bzip2 or LZMA entry before it cuts; ten times as much would be gigabytes."
    bomb = packed([('a.png', bytes(50 * 2**20))], way)
    with cheap(): entry_fails(bomb, 'not read')

def test_an_entry_larger_than_a_file_may_be():
    bomb = packed([('a.png', bytes(MAX_BYTES + 1))])
    with cheap():
        entry_fails(bomb, 'larger than')
        entry_fails(bomb.replace(struct.pack('<I', MAX_BYTES + 1), struct.pack('<I', 1000)), 'taken out')  # it says 1 KB

def test_encrypted_and_damaged_entries():
    data = packed([('a.png', PNG)], zipfile.ZIP_STORED)
    at = data.index(b'PK\1\2')
    entry_fails(data[:at + 8] + b'\1' + data[at + 9:], 'taken out')
    entry_fails(data.replace(PNG, PNG[:-9] + b'x' * 9), 'taken out')

def test_entries_that_share_their_bytes_are_refused():
    "Fifield's bomb: many entries of the directory, one body."
    data = packed([('a.png', noise().tobytes() * 9)])
    at, end = data.index(b'PK\1\2'), data.index(b'PK\5\6')
    bomb = data[:at] + data[at:end] * 100 + b'PK\5\6' + struct.pack('<HHHHIIH', 0, 0, 100, 100, (end - at) * 100, at, 0)
    with pytest.raises(ImageError, match='overlap'): zip_images(bomb, 'z')

def test_millions_of_entries_are_counted_not_listed():
    entry = b'PK\1\2' + bytes(24) + struct.pack('<H', 1) + bytes(16) + b'a'
    n = 1_000_000
    data = entry * n + b'PK\5\6' + struct.pack('<HHHHIIH', 0, 0, 1, 1, len(entry) * n, 0, 0)  # it says one
    with cheap(), pytest.raises(ImageError, match=f'more than {MAX_ENTRIES}'): zip_images(data, 'z')

@pytest.mark.parametrize('spoil', [lambda d: d[:-30], lambda d: d.replace(b'PK\5\6', b'PK\6\6'), lambda d: d.replace('é'.encode(), b'\xff\xff'),
                                   lambda d: d[:-22] + b'PK\6\7' + b'\xff' * 16 + d[-22:], lambda d: b'PK'], ids=['cut', 'no end', 'name', 'zip64', 'two bytes'])
def test_archives_that_lie(spoil):
    with pytest.raises(ImageError) as e: zip_images(spoil(packed([('é.png', PNG)])), 'z')
    assert '\n' not in str(e.value)

# --- and what nobody thought of ---

def test_mutated_files(tmp_path):
    "Files broken at random; `python tests/fuzz_images.py 10000 SEED` does more of it."
    result = fuzz_images.run(300, 'pytest')
    assert fuzz_images.holds(result, 300), result
    assert result['came_of_them']['no face found'] > 30 and len(result['came_of_them']) > 4  # otherwise the mutations are too rough, or too mild, to try anything

@pytest.mark.parametrize('body, why', [('sum(iter(int, 1))', 'killed_by'), ('import os; os.abort()', 'killed_by'), ('raise KeyError(1)', 'broken')])
def test_the_fuzz_notices(body, why, tmp_path, monkeypatch):
    "A hang, a crash and a wrong error, put where the opener is called."
    text = open(fuzz_images.__file__, encoding='utf-8').read().replace('    from fakeface.faces import face_crops\n', f'    from fakeface.faces import face_crops\n    if data == made("x", 3): {body}\n')
    (tmp_path/'fuzz_copy.py').write_text(text.replace('SLOW, KILL, MEMORY, GROWTH = 2, 10,', 'SLOW, KILL, MEMORY, GROWTH = 2, 1,'), encoding='utf-8')
    monkeypatch.setattr(fuzz_images, '__file__', str(tmp_path/'fuzz_copy.py'))
    result = fuzz_images.run(6, 'x')
    assert not fuzz_images.holds(result, 6) and 'file 3' in str(result[why])
