"""Broken images by the thousand: each is opened and searched for faces, or refused by the one named error, quickly and without a trace in memory.

    python tests/fuzz_images.py 10000 SEED

Files are made from valid ones of every format and mode (and ZIPs of them) by cutting, flipping bits, splicing, and writing extreme numbers into header fields; PNG's checksums are often
mended, so that what was changed is read. File i of a seed is always the same: `made(SEED, i)`. They are opened in a child process under a memory limit; a file that kills it, or takes
more than ten seconds of processor time, ends the run and is named. Exit code 1 when anything but an array or an `ImageError` came out, a file took over two seconds, or memory grew.
"""
import io, json, os, re, resource, signal, struct, subprocess, sys, time, zipfile, zlib
from collections import Counter
from functools import cache
from pathlib import Path
from random import Random

import numpy as np
import pillow_heif
from PIL import Image

from fakeface.core import ImageError
from fakeface.images import open_image, zip_images

SLOW, KILL, MEMORY, GROWTH = 2, 10, 2 << 30, 64  # seconds, seconds, bytes, MB
MODES = dict(JPEG='RGB L CMYK', PNG='RGB RGBA P LA L 1 I;16', WEBP='RGB RGBA', GIF='P L', BMP='RGB P L 1',
             TIFF='RGB RGBA CMYK L P 1 I;16 I F YCbCr LAB', HEIF='RGB RGBA L', AVIF='RGB RGBA L')
WAYS = dict(JPEG=[dict(), dict(progressive=True, optimize=True), dict(quality=95, subsampling=0, restart_marker_blocks=1)], PNG=[dict(), dict(compress_level=0)],
            WEBP=[dict(), dict(lossless=True)], TIFF=[dict(compression=c) for c in ('raw', 'tiff_lzw', 'tiff_adobe_deflate', 'packbits')] + [dict(big_tiff=True)],
            HEIF=[dict(), dict(tile_size=16), dict(quality=-1, chroma=444)], AVIF=[dict(), dict(quality=100, subsampling='4:4:4')])
EXTREME = [0, 1, 2, 8, 127, 128, 255, 256, 8000, 32767, 32768, 65535, 65536, 2**24, 2**31 - 1, 2**31, 2**32 - 1]

def encoded(im, format, **kw):
    im.save(out := io.BytesIO(), format, **kw)
    return out.getvalue()

@cache
def seeds():
    "Valid files by format, all of them small: every mode and way of compression, animations, metadata, and ZIPs of some."
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8))
    exif = Image.Exif(); exif[0x0112] = 6; exif[0x010F] = 'maker'
    out = {f: [] for f in (*MODES, 'ZIP')}
    for format, modes in MODES.items():
        for mode in modes.split():
            im = noise.convert('L').convert('I').convert(mode) if mode.startswith('I') else noise.convert('L').convert(mode) if mode in ('F', 'LA') else noise.convert('RGB').convert(mode) if mode != 'LAB' else Image.frombytes('LAB', noise.size, noise.tobytes())
            out[format] += [encoded(im, format, **kw) for kw in WAYS.get(format, [{}])]
    for format in ('GIF', 'WEBP', 'PNG', 'TIFF', 'HEIF', 'AVIF'): out[format].append(encoded(noise, format, save_all=True, append_images=[noise.rotate(90), noise.rotate(180)]))
    for format in ('JPEG', 'PNG', 'WEBP', 'TIFF', 'HEIF', 'AVIF'): out[format].append(encoded(noise, format, exif=exif, icc_profile=bytes(200)))
    deep = pillow_heif.from_bytes('RGB;16', noise.size, np.asarray(noise, np.uint16).tobytes())
    deep.save(ten := io.BytesIO())
    out['HEIF'].append(ten.getvalue())
    out['JPEG'].append(encoded(noise, 'MPO', save_all=True, append_images=[noise]))
    out['PNG'].append(encoded(noise.convert('P'), 'PNG', transparency=3))
    out['TIFF'].append(encoded(noise.convert('L'), 'TIFF', compression='jpeg'))
    for way in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(packed := io.BytesIO(), 'w', way) as z:
            for format in ('JPEG', 'PNG', 'GIF'): z.writestr(f'{format}.jpg', out[format][0])
        out['ZIP'].append(packed.getvalue())
    return out

def valid(rng): return rng.choice(seeds()[rng.choice(list(seeds()))])

def mended(data):
    "A PNG with the checksums of all its chunks put right."
    data, at = bytearray(data), 8
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at:at + 4])
        if end + 4 > len(data): break
        data[end:end + 4] = struct.pack('>I', zlib.crc32(data[at + 4:end])); at = end + 4
    return bytes(data)

def mutated(rng, data):
    "One change of one kind."
    data = bytearray(data)
    place = lambda: min(int(rng.expovariate(6 / len(data))), len(data) - 1) if rng.random() < .7 else rng.randrange(len(data))  # mostly in the header
    at, n = place(), 1 << rng.randrange(8)
    match rng.randrange(8):
        case 0: del data[at + 1:]
        case 1:
            for _ in range(rng.randint(1, 16)): data[place()] ^= 1 << rng.randrange(8)
        case 2: data[at:at + n] = rng.randbytes(n)
        case 3: data[at:at] = rng.randbytes(n)
        case 4: del data[at:at + n]
        case 5: data[at:at] = data[at:at + n] * rng.randint(1, 300)
        case 6:
            size = rng.choice((1, 2, 4))
            data[at:at + size] = (rng.choice(EXTREME) % 256**size).to_bytes(size, rng.choice(('big', 'little')))
        case 7:
            other = valid(rng); start = rng.randrange(len(other))
            data[at:at + rng.choice((0, n))] = other[start:start + 4 * n]
    return bytes(data) or b'\0'

def made(seed, i):
    "File `i` of a seed, the same on every machine that has the same Pillow."
    rng = Random(f'{seed}/{i}')
    data = valid(rng)
    for _ in range(rng.choice((1, 1, 2, 3, 5))): data = mutated(rng, data)
    return mended(data) if data[:4] == b'\x89PNG' and rng.random() < .7 else data

def judged(data):
    "What comes of one file, in two or three words. Anything but an array or an `ImageError` is raised."
    from fakeface.faces import face_crops
    try:
        if data[:2] == b'PK': data = [read() for _, read in zip_images(data, 'fuzz')[0]][0]
        image = open_image(data, 'fuzz')
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[0] == 3 and image.size and image.flags.c_contiguous
        for _, crop in face_crops(image, 64, 'fuzz')[0]: assert crop.shape == (3, 64, 64)
        return 'face found'
    except ImageError as e:
        assert str(e).startswith('fuzz') and '\n' not in str(e)
        return re.split(r' \(|: ', re.sub(r'[\d.]+ x \d+ pixels, ', '', e.cause))[0]

def resident(): return int(Path('/proc/self/statm').read_text().split()[1]) * resource.getpagesize() / 1e6 if os.path.exists('/proc/self/statm') else 0

def child(n, seed):
    "One line for each file: number, seconds of processor time, MB in memory, what came of it."
    judged(seeds()['JPEG'][0])  # imports, which are not to be measured
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    for i in range(n):
        print(f'{i} ', end='', flush=True)  # known even if this file kills the process
        data = made(seed, i)
        signal.setitimer(signal.ITIMER_PROF, KILL)  # its signal kills, in the middle of C as well
        start = time.process_time()
        try: what = judged(data)
        except Exception as e: what = f'BROKEN {type(e).__name__}: {e}'.replace('\n', ' ')
        print(f'{time.process_time() - start:.3f} {resident():.0f} {what}', flush=True)

def run(n, seed):
    "Open `n` files of a seed; what came of them as a JSON-ready dict."
    done = subprocess.run([sys.executable, __file__, str(n), str(seed), 'child'], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors='replace')
    rows = [line.split(' ', 3) for line in done.stdout.splitlines()]
    whole = [(int(i), float(s), float(m), w) for i, s, m, w in (r for r in rows if len(r) == 4)]
    early = [m for _, _, m, _ in whole[len(whole) // 10:len(whole) // 5 + 1]]
    late = [m for _, _, m, _ in whole[-len(early):]]
    slowest = max(whole, key=lambda r: r[1], default=(0, 0, 0, ''))
    return dict(files=len(whole), seed=seed, killed_by=None if done.returncode == 0 else f'file {rows[-1][0] if rows else "?"}: exit {done.returncode} {done.stderr[-300:]}',
                broken=[f'file {i}: {w}' for i, _, _, w in whole if w.startswith('BROKEN')], slowest_seconds=slowest[1], slowest_file=slowest[0],
                growth_mb=round(np.median(late) - np.median(early)) if whole else 0, peak_mb=round(max((m for *_, m, _ in whole), default=0)),
                came_of_them=dict(Counter(w for *_, w in whole).most_common()))

def holds(result, n):
    "Whether the run kept what is promised."
    return result['files'] == n and not result['killed_by'] and not result['broken'] and result['slowest_seconds'] < SLOW and result['growth_mb'] < GROWTH

if __name__ == '__main__':
    n, seed = int((sys.argv + ['10000'])[1]), (sys.argv + ['', '0'])[2] or '0'
    if sys.argv[3:] == ['child']: sys.exit(child(n, seed))
    print(json.dumps(result := run(n, seed), indent=1))
    sys.exit(not holds(result, n))
