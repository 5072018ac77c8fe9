"Files from strangers: each is an upright RGB array or an `ImageError` in one line, nothing else."

import io, os, resource, struct, threading, time, zipfile, zlib
from contextlib import contextmanager
from pathlib import Path
from random import Random

import numpy as np
import pytest
from matplotlib.cbook import get_sample_data
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import fuzz_images
from fakeface.bounds import MAX_SIDE
from fakeface.core import FaceError, ImageError
from fakeface.images import (FORMATS, MAX_BYTES, MAX_ENTRIES, MAX_PIXELS, Images, find_images,
                             open_image, passed_text, read_image, zip_images)

def noise(mode='RGB', size=(48, 32)):
    bands = len(Image.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], bands), np.uint8)
    return Image.frombytes(mode, size, pixels.tobytes())

def encoded(im, format, **kw):
    im.save(out := io.BytesIO(), format, **kw)
    return out.getvalue()

def png_header(w, h):
    "A small PNG whose header has been rewritten, checksum included, to claim another size."
    head, whole = b'IHDR' + struct.pack('>II', w, h) + b'\x08\x02\0\0\0', encoded(noise(), 'PNG')
    return whole.replace(whole[12:33], head + struct.pack('>I', zlib.crc32(head)))

def check(data, name='x.jpg'):
    "Whether it opens; fails unless the outcome is one of the two that are promised."
    try: a = open_image(data, name)
    except ImageError as e:
        assert str(e).startswith(f'{name}: ') and '\n' not in str(e) and len(str(e)) > len(name) + 2
        return False
    assert a.dtype == np.uint8 and a.ndim == 3 and a.shape[0] == 3 and a.size
    assert a.flags.c_contiguous
    return True

def refused(data, why, **kw):
    with pytest.raises(ImageError, match=why) as e: open_image(data, 'x.jpg', **kw)
    assert '\n' not in str(e.value)

def chunk(kind, data):
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))

def after_header(png, extra): return png[:33] + extra + png[33:]  # a PNG with more chunks

def tiff(tags, data=b'', big=False):
    """A little-endian TIFF of 8 x 8 grey pixels with these tags `{number: (type, count, value)}`;
    a value of bytes is put at byte 400, data at byte 512."""
    tags = {256: (4, 1, 8), 257: (4, 1, 8), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 1)} | tags
    start, entry, number = ((b'II+\0\x08\0\0\0' + struct.pack('<Q', 16), '<HHQQ', '<Q') if big else
                            (b'II*\0' + struct.pack('<I', 8), '<HHII', '<H'))
    away = b''.join(v for _, _, v in tags.values() if isinstance(v, bytes))
    rows = (struct.pack(entry, k, kind, n, 400 if isinstance(v, bytes) else v)
            for k, (kind, n, v) in sorted(tags.items()))
    head = (start + struct.pack(number, len(tags)) + b''.join(rows) + bytes(8)).ljust(400, b'\0')
    return (head + away).ljust(512, b'\0') + data

def deep_tiff(kind, bits, sample):
    "An uncompressed TIFF of grey pixels of a NumPy type."
    data = np.full((8, 8), sample, kind).tobytes()
    form = {'u': 1, 'i': 2, 'f': 3}[np.dtype(kind).kind]
    return tiff({258: (3, 1, bits), 273: (4, 1, 512), 278: (4, 1, 8), 279: (4, 1, len(data)),
                 339: (3, 1, form)}, data)

def bmp(bits, way, masks, row, rows=4):
    "A BMP of 4 x 4 pixels; `way` 3 names the bits of each colour in `masks`."
    start = 54 + 4 * len(masks)
    return (b'BM' + struct.pack('<IHHI', start + len(row) * rows, 0, 0, start)
            + struct.pack('<IiiHHIIiiII', 40, 4, 4, 1, bits, way, len(row) * rows, 0, 0, 0, 0)
            + b''.join(struct.pack('<I', m) for m in masks) + row * rows)

# --- sound files, however odd ---

FILE = get_sample_data('grace_hopper.jpg', asfileobj=False)
PHOTO = Path(FILE).read_bytes()
HOPPER = Image.open(FILE).convert('RGB')
PORTRAIT = HOPPER.resize((128, 152))
JPEG = encoded(PORTRAIT, 'JPEG')

def texts(size):
    "A text of `size` bytes, which PNG compresses."
    info = PngInfo()
    info.add_text('prompt', 'a portrait ' * (size // 11), zip=True)
    info.add_itxt('more', 'ein Bild ' * (size // 9), zip=True)
    return info

def turned(format, how):
    "The portrait as a phone stores it: lying down, with a note on how to turn it."
    im, exif = PORTRAIT.transpose(Image.Transpose.ROTATE_90), Image.Exif()
    exif[0x0112] = 6
    im.info['exif'] = exif.tobytes()
    return encoded(im, format, **({'exif': im.info['exif']} if how == 'exif' else {}))

def animated(format, **kw):
    return encoded(PORTRAIT, format, save_all=True, append_images=[PORTRAIT.rotate(90)] * 2, **kw)

def in_mode(mode): return PORTRAIT.quantize() if mode == 'P' else PORTRAIT.convert(mode)

SOUND = {f'{format} {mode}': lambda f=format, m=mode: encoded(in_mode(m), f)
         for format, modes in dict(
             JPEG='RGB CMYK YCbCr', PNG='RGB RGBA P', WEBP='RGB RGBA', BMP='RGB RGBA P', GIF='RGB P',
             TIFF='RGB RGBA CMYK P YCbCr', HEIF='RGB RGBA', AVIF='RGB RGBA').items()
         for mode in modes.split()}
SOUND |= {f'TIFF {way}': lambda w=way: encoded(PORTRAIT, 'TIFF', compression=w)
          for way in ('tiff_lzw', 'tiff_adobe_deflate', 'packbits', 'jpeg')}
SOUND |= {f'animated {format}': lambda f=format: animated(f)
          for format in ('GIF', 'WEBP', 'PNG', 'AVIF', 'HEIF', 'MPO', 'TIFF')}
SOUND |= {f'turned {format}': lambda f=format, h=how: turned(f, h) for format, how in dict(
    JPEG='exif', PNG='exif', WEBP='exif', TIFF='exif', AVIF='exif', HEIF='irot').items()}
SOUND |= {
    'BigTIFF': lambda: encoded(PORTRAIT, 'TIFF', big_tiff=True),
    'TIFF of a photograph': lambda: encoded(PORTRAIT, 'TIFF', tiffinfo={271: 'Canon', 272: 'EOS'}),
    'progressive': lambda: encoded(PORTRAIT, 'JPEG', progressive=True),
    'restart markers': lambda: encoded(PORTRAIT, 'JPEG', restart_marker_blocks=1),
    'lossless WebP': lambda: encoded(PORTRAIT, 'WEBP', lossless=True),
    'HEIF in tiles': lambda: encoded(PORTRAIT, 'HEIF', tile_size=64),
    'motion photo': lambda: JPEG + b'\0\0\0\x18ftypmp42' + b'\xff\xda' * 1000,
    'no end marker': lambda: JPEG[:-2], 'half an end marker': lambda: JPEG[:-1],
    'zeros for an end': lambda: JPEG[:-2] + bytes(4096),
    'progressive without end': lambda: encoded(PORTRAIT, 'JPEG', progressive=True)[:-2],
    'PNG of long texts': lambda: encoded(PORTRAIT, 'PNG', pnginfo=texts(2**21)),
    'PNG of a long profile': lambda: encoded(PORTRAIT, 'PNG', icc_profile=bytes(2**21)),
    'PNG with a broken text': lambda: after_header(encoded(PORTRAIT, 'PNG'),
                                                   chunk(b'zTXt', b'a\0\0junk')[:-1] + b'x'),
    'PNG without end': lambda: encoded(PORTRAIT, 'PNG')[:-12]}

@pytest.mark.parametrize('name', SOUND)
def test_sound_files_show_what_they_hold(name):
    pixels, note = read_image(SOUND[name]())
    assert pixels.shape == (3, 152, 128) and note == ''
    far = np.abs(pixels.astype(int) - np.asarray(PORTRAIT).transpose(2, 0, 1)).mean()
    assert far < 6

WHITE = {
    'PNG 1': lambda: encoded(Image.new('1', (4, 4), 1), 'PNG'),
    'PNG LA': lambda: encoded(Image.new('LA', (4, 4), (0, 0)), 'PNG'),
    'PNG I;16': lambda: encoded(Image.new('I;16', (4, 4), 65535), 'PNG'),
    'PNG transparent': lambda: encoded(Image.new('L', (4, 4)).quantize(), 'PNG', transparency=0),
    'TIFF I;16': lambda: encoded(Image.new('I;16', (4, 4), 65535), 'TIFF'),
    'TIFF of 32 bits, 16 used': lambda: deep_tiff('<i4', 32, 65535),
    'TIFF of 32 bits, 8 used': lambda: deep_tiff('<u4', 32, 255),
    'TIFF group 4': lambda: encoded(Image.new('1', (4, 4), 1), 'TIFF', compression='group4'),
    'BMP of 16 bits': lambda: bmp(16, 0, [], b'\xff\x7f' * 4),
    'BMP 565': lambda: bmp(16, 3, [0xF800, 0x7E0, 0x1F], b'\xff\xff' * 4),
    'BMP of 32 bits': lambda: bmp(32, 3, [0xFF0000, 0xFF00, 0xFF], b'\xff\xff\xff\0' * 4)}

@pytest.mark.parametrize('name', WHITE)
def test_white_is_white(name): assert open_image(WHITE[name]()).min() == 255

def test_colours_and_ranges_are_kept():
    red = Image.new('RGB', (16, 16), (255, 0, 0)).convert('CMYK')
    assert open_image(encoded(red, 'JPEG'))[:, 8, 8].tolist() == pytest.approx([255, 0, 0], abs=8)
    ramp = Image.fromarray(np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(4, 0))
    assert open_image(encoded(ramp, 'PNG'))[0, 0].tolist() == pytest.approx(list(range(256)), abs=1)
    half = encoded(Image.new('RGBA', (4, 4), (0, 0, 0, 128)), 'PNG')
    assert open_image(half)[0, 0, 0] == pytest.approx(127, abs=1)

@pytest.mark.parametrize('format', ['JPEG', 'HEIF', 'AVIF'])
@pytest.mark.parametrize('n, corner',
                         list(zip(range(1, 9), [(0, 0), (0, -1), (-1, -1), (-1, 0)] * 2)))
def test_orientation_is_applied_once(format, n, corner):
    "The white corner of the stored picture ends where its first pixel belongs."
    im, exif = Image.new('RGB', (80, 48)), Image.Exif()
    im.paste('white', (0, 0, 24, 24))
    exif[0x0112] = n
    im.info['exif'] = exif.tobytes()
    kw = {} if format == 'HEIF' else {'exif': im.info['exif']}
    a = open_image(encoded(im, format, quality=95, **kw))
    assert a.shape == ((3, 48, 80) if n < 5 else (3, 80, 48))
    assert a[0][corner] > 240 and a[0].mean() < 60

def test_smallest_and_thinnest():
    for w, h in ((1, 1), (1, 500), (500, 1)):
        assert open_image(encoded(Image.new('RGB', (w, h)), 'PNG')).shape == (3, h, w)

def test_a_large_jpeg_is_read_at_half_its_sides():
    most = HOPPER.width * HOPPER.height // 2
    for data in (PHOTO, PHOTO[:-2], encoded(HOPPER, 'JPEG', progressive=True)):
        pixels, note = read_image(data, max_pixels=most)
        half = np.asarray(HOPPER.reduce(2)).transpose(2, 0, 1)
        assert pixels.shape == half.shape and np.abs(pixels.astype(int) - half).mean() < 6
        assert note == '512 x 600 pixels, read at 256 x 300'
    refused(PHOTO, '512 x 600 pixels, more than', max_pixels=most // 4)
    refused(encoded(HOPPER, 'PNG'), 'save it as JPEG', max_pixels=most)

def test_every_kind_of_source_gives_the_same(tmp_path):
    data, path = encoded(noise(), 'PNG'), tmp_path/'a.png'
    path.write_bytes(data)
    with open(path, 'rb') as f:
        sources = (path, str(path), data, bytearray(data), memoryview(data), io.BytesIO(data), f,
                   Image.open(path))
        first, *rest = [open_image(s) for s in sources]
    assert all((a == first).all() for a in rest)

# --- what is refused, and how ---

FTYP = b'\0\0\0\x18ftyp'
RAW = {'CR2': b'II*\0\x10\0\0\0CR\2\0', 'CR3': FTYP + b'crx ', 'RAF': b'FUJIFILMCCD-RAW 0201',
       'ORF': b'IIRO\x08\0\0\0', 'RW2': b'IIU\0\x18\0\0\0', 'X3F': b'FOVb\0\0\3\0', 'MRW': b'\0MRM\0',
       'DNG': tiff({50706: (1, 4, 1025), 273: (4, 1, 512), 279: (4, 1, 64)}, bytes(64)),
       'NEF': tiff({254: (4, 1, 1), 271: (2, 18, b'NIKON CORPORATION\0'), 273: (4, 1, 512),
                    279: (4, 1, 64), 330: (4, 2, bytes(8))}, bytes(64)),
       'ARW': tiff({259: (3, 1, 6), 271: (2, 5, b'SONY\0'), 513: (4, 1, 512), 514: (4, 1, 9)}, JPEG),
       'PEF': tiff({262: (3, 1, 32803), 271: (2, 7, b'PENTAX\0')}, bytes(64))}
PROGRESSIVE = encoded(HOPPER, 'JPEG', progressive=True)
BAD = {f'raw {k}': (v + bytes(64), 'x.jpg: camera raw, which is not read') for k, v in RAW.items()}
BAD |= {f'cut {k}': (v, 'damaged image') for k, v in {
    'JPEG': PHOTO[:30_000], 'JPEG by 200 bytes': PHOTO[:-200], 'JPEG, zeros': PHOTO[:-9000] + bytes(9000),
    'progressive': PROGRESSIVE[:-20], 'between scans': PROGRESSIVE[:PROGRESSIVE.rindex(b'\xff\xda')],
    'PNG': encoded(HOPPER, 'PNG')[:-9000], 'HEIF': encoded(HOPPER, 'HEIF')[:-9000],
    'AVIF': encoded(HOPPER, 'AVIF')[:-9000], 'WebP': encoded(HOPPER, 'WEBP')[:-9000]}.items()}
BAD |= {k: (v, 'unsupported') for k, v in {
    'JPEG of 12 bits': PHOTO.replace(b'\xff\xc0\0\x11\x08', b'\xff\xc1\0\x11\x0c'),
    'lossless JPEG': PHOTO.replace(b'\xff\xc0\0\x11', b'\xff\xc3\0\x11'),
    'JPEG-LS': PHOTO.replace(b'\xff\xc0\0\x11', b'\xff\xf7\0\x11'),
    'JPEG 2000': encoded(PORTRAIT, 'JPEG2000'), 'JPEG XL': b'\xff\x0a' + bytes(60),
    'PNG for iOS': b'\x89PNG\r\n\x1a\n\0\0\0\x04CgBI' + bytes(60),
    'Photoshop': b'8BPS\0\1' + bytes(60),
    **{f: encoded(PORTRAIT, f) for f in ('PPM', 'ICO', 'TGA', 'PCX', 'DDS')}, 'TIFF of floats': deep_tiff('<f4', 32, .5),
    'TIFF of doubles': deep_tiff('<f8', 64, .5), 'TIFF of halves': deep_tiff('<f2', 16, .5),
    'TIFF of 32 bits': deep_tiff('<u4', 32, 2**31), 'TIFF of 33 ways': tiff({259: (3, 1, 34712)}),
    'BMP of ten bits': bmp(32, 3, [0x3FF00000, 0xFFC00, 0x3FF], b'\xff' * 16)}.items()}
BAD |= {
    'nothing': (b'', 'file is empty'), 'a zero': (b'\0', 'not an image'),
    'HTML': (b'<html><body>404</body></html>', 'not an image'), 'SVG': (b'<svg/>', 'not an image'),
    'text': (b'BMW drives', 'not an image'),
    'PDF': (b'%PDF-1.7', 'not an image'), 'EPS': (b'%!PS-Adobe-3.0 EPSF-3.0\n', 'not an image'),
    'MP4': (FTYP + b'mp42' + bytes(40), 'a video, which is not read'),
    'QuickTime': (FTYP + b'qt  ' + bytes(40), 'a video'), 'ZIP': (b'PK\3\4' + bytes(40), 'a ZIP archive'),
    'a JPEG of three bytes': (b'\xff\xd8\xff', 'damaged'),
    'a BigTIFF that points nowhere': (b'II+\0\x08\0\0\0' + b'\xff' * 60, 'damaged'),
    'an empty HEIC': (FTYP + b'heic' + bytes(40), 'damaged|unsupported')}

@pytest.mark.parametrize('name', BAD)
def test_bad_files_are_told_as_what_they_are(name): refused(*BAD[name])

@pytest.mark.parametrize('format', FORMATS)
def test_truncated(format):
    data = encoded(noise(), format)
    assert check(data) and not any(check(data[:n]) for n in (1, 8, len(data) // 3))
    for n in range(0, len(data), max(1, len(data) // 50)): check(data[:n])

def test_a_cut_jpeg_is_never_judged_by_its_upper_half():
    for data in (JPEG, encoded(PORTRAIT, 'JPEG', progressive=True)):
        assert not any(check(data[:n]) for n in range(0, len(data) - 4, 13))

def test_missing_folder_and_unreadable_paths(tmp_path):
    paths = 'none.jpg', '', 'a/b.jpg', 'nul\0.jpg', 'x' * 300 + '.jpg'
    for path in paths: refused(os.path.join(tmp_path, path), 'x.jpg: ')

@pytest.mark.parametrize('name', ['a\nb.jpg', 'a\rb.jpg', 'a\x1b[31mb.jpg', 'a\u2028b.jpg'], ids=ascii)
def test_a_hostile_name_stays_on_one_line(name):
    with pytest.raises(ImageError) as e: open_image(b'', name)
    assert str(e.value).isprintable()

def test_an_error_names_the_file_as_the_user_knows_it(tmp_path):
    (tmp_path/'a.jpg').write_bytes(b'no')
    with pytest.raises(ImageError, match=f'^{tmp_path}/a.jpg: '): open_image(tmp_path/'a.jpg')
    with open(tmp_path/'a.jpg', 'rb') as f, pytest.raises(ImageError, match='a.jpg: '): open_image(f)
    with pytest.raises(ImageError, match='^holiday: '): open_image(b'no', 'holiday')

def test_bounds_of_bytes_and_pixels(tmp_path):
    data, path = encoded(noise(), 'PNG'), tmp_path/'big.png'
    path.write_bytes(data)
    for src in (data, path, io.BytesIO(data)): refused(src, 'larger than', max_bytes=len(data) - 1)
    assert open_image(data, max_bytes=len(data), max_pixels=48 * 32).shape == (3, 32, 48)
    for format in set(FORMATS) - {'JPEG'}:
        refused(encoded(noise(), format), 'pixels', max_pixels=48 * 32 - 1)

@pytest.mark.parametrize('side', [30_000, 9_000, 2**31 - 1])
def test_a_header_that_claims_too_much_is_refused(side):
    assert side**2 > MAX_PIXELS
    assert open_image(png_header(48, 32)).shape == (3, 32, 48)  # the header itself is well-formed
    refused(png_header(side, side), 'pixels|damaged')
    gif = bytearray(encoded(noise('L'), 'GIF'))
    gif[6:10] = min(side, 65535).to_bytes(2, 'little') * 2
    refused(bytes(gif), 'pixels')

@pytest.mark.parametrize('format', ['HEIF', 'AVIF'])
def test_a_container_that_lies_about_its_image(format):
    "`ispe` says how large the image is, beside what the coded image says itself."
    large = encoded(Image.new('RGB', (4000, 4000)), format, quality=20)
    at = large.index(b'ispe') + 8
    for side in (60_000, 64):
        with cheap(): check(large[:at] + struct.pack('>II', side, side) + large[at + 8:])

# --- finding them ---

TREE = {'a.tif': b'x', 'b/1.webp': b'x', 'b/2.JPG': b'x', 'b/3.heic': b'x', 'c/4.jfif': JPEG,
        'c/5': JPEG, 'c/6.txt': encoded(noise(), 'AVIF'),
        'notes.txt': b'x', 'c/7.cr3': RAW['CR3'], 'c/8.nef': RAW['NEF'], 'c/9.mov': FTYP + b'qt  ',
        'Thumbs.db': b'x', '.hidden.png': JPEG, '.cache/c.jpg': JPEG, '__MACOSX/._a.jpg': JPEG}
TAKEN = ['a.tif', 'b/1.webp', 'b/2.JPG', 'b/3.heic', 'c/4.jfif', 'c/5', 'c/6.txt']
PASSED = {'camera raw': 2, 'video': 1, 'other': 1}

def planted(folder):
    for name, data in TREE.items():
        (folder/name).parent.mkdir(exist_ok=True, parents=True)
        (folder/name).write_bytes(data)
    return folder

def names(images, folder): return [p.relative_to(folder).as_posix() for p in images]

def test_images_are_known_by_content_and_others_counted(tmp_path):
    images = Images(planted(tmp_path))
    assert len(images) == 7 and names(images, tmp_path) == TAKEN and images.passed == PASSED
    assert passed_text(images.passed) == '4 other files passed over: 2 camera raw, 1 video, 1 other'
    found = find_images([tmp_path/'notes.txt', tmp_path, tmp_path/'a.tif'])
    assert names(found, tmp_path) == ['notes.txt'] + TAKEN  # what is named is taken, each once
    (tmp_path/'few').mkdir()
    (tmp_path/'few'/'a.dng').write_bytes(RAW['DNG'])
    with pytest.raises(FaceError, match='no images in this folder; 1 other file .* 1 camera raw'):
        find_images(tmp_path/'few')

def test_a_zip_is_searched_as_a_folder_is():
    found, passed = zip_images(packed(TREE.items()), 'z')
    assert [label[2:] for label, _ in found] == [n for n in TREE if n in TAKEN] and passed == PASSED

def test_links_to_folders_are_followed_once(tmp_path):
    away, root = planted(tmp_path/'away'), tmp_path/'root'
    for d in ('own', 'linked'): (root/d).mkdir(parents=True)
    (root/'own'/'1.jpg').write_bytes(JPEG)
    links = dict(linked=away/'b', again=away/'b', own=root/'linked', up=tmp_path, round=root)
    for name, target in links.items(): (root/'linked'/name).symlink_to(target)
    (away/'b'/'back').symlink_to(root)
    (root/'gone.jpg').symlink_to('nowhere.jpg')
    os.mkfifo(root/'pipe.jpg')
    images = Images(root)
    assert names(images, root) == ['linked/again/1.webp', 'linked/again/2.JPG', 'linked/again/3.heic',
                                   'own/1.jpg']
    assert images.passed == {'broken link': 1, 'not a file': 1}

def test_eight_bits_stored_in_sixteen_stay_as_they_are():
    pixels = np.arange(256, dtype=np.uint16).reshape(16, 16)
    for top, right in ((1, pixels), (257, pixels)):
        data = encoded(Image.fromarray(pixels * top), 'PNG')
        assert (open_image(data)[0] == right).all()

@pytest.mark.parametrize('path', ['none', 'folder.jpg', 'x' * 300, 'a\nb', 'nul\0'],
                         ids=lambda p: ascii(p)[:12])
def test_what_is_not_found_is_one_line(path, tmp_path):
    (tmp_path/'folder.jpg').mkdir()
    with pytest.raises(FaceError) as e: find_images(tmp_path/path)
    assert '\n' not in str(e.value)

# --- what is small and costs much ---

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

PNG, TINY, GIF = (encoded(noise('L', (8, 8)), f) for f in ('PNG', 'JPEG', 'GIF'))
FRAME = b',\0\0\0\0\x08\0\x08\0'  # where the frame of the GIF begins
PIECES = {'PNG of empty chunks': lambda: after_header(PNG, chunk(b'abCd', b'') * 2_000_000), 'PNG of empty texts': lambda: after_header(PNG, chunk(b'tEXt', b'a\0') * 1_500_000),
          'PNG of empty data': lambda: after_header(PNG, chunk(b'IDAT', b'') * 2_000_000), 'PNG with chunks at its end': lambda: PNG[:-12] + chunk(b'abCd', b'') * 2_000_000 + PNG[-12:],
          'GIF of comments': lambda: GIF.replace(FRAME, b'!\xfe\1a\0' * 6_000_000 + FRAME), 'GIF of nothing': lambda: GIF.replace(FRAME, b'\1' * 30_000_000 + FRAME),
          'BMP of single pixels': lambda: b'BM' + struct.pack('<IHHIIiiHHIIiiII', 0, 0, 0, 1078, 40, 8000, 8000, 1, 8, 1, 0, 0, 0, 256, 0) + bytes(1024) + b'\1\1' * 20_000_000,
          'JPEG of empty segments': lambda: TINY[:2] + b'\xff\xe5\0\2' * 10_000_000 + TINY[2:], 'JPEG of junk': lambda: TINY[:2] + b'\xff\xe5\0\2' + b'a' * 30_000_000 + TINY[2:],
          'JPEG of fill bytes': lambda: TINY[:-2] + b'\xff' * 30_000_000 + TINY[-2:],
          'JPEG of EXIF': lambda: TINY[:2] + (b'\xff\xe1\xff\0Exif\0\0' + bytes(65272)) * 900 + TINY[2:]}

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
    assert check(TINY[:2] + (b'\xff\xe1\xff\0Exif\0\0' + bytes(65272)) * 20 + TINY[2:])

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
    assert check(TINY[:2] + b'\xff\xe1' + struct.pack('>H', len(exif) + 2) + exif + TINY[2:])

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

def test_archives_in_archives_stay_shut():
    inner = packed([('a.png', PNG)])
    found, passed = zip_images(packed([('in.zip', inner), ('folder.png/', b''), ('b.png', PNG)]), 'z')
    assert [label for label, _ in found] == ['z/b.png'] and passed == {'ZIP archive': 1}
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
    entry_fails(data[:at + 8] + b'\1' + data[at + 9:], 'encrypted; unpack it first')
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
