"""Does finding and cutting out a face change the verdict?

Face crops of a data set are judged as they are, whole; then each is laid into the middle of a
picture of twice its side, whose surroundings are its own, mirrored and blurred, and must be
found, aligned and cut out again before it is judged: at its size, 1.5 and 2 times as large.
'changed' counts images that get another verdict than the whole crop (fake, real or uncertain),
'swapped' those of them that went from fake to real or back; 'answered' are those not called
uncertain, 'confidently wrong' those answered wrongly. Faces not found are in no number but
'found'. Intervals are 95 %.

example: python benchmarks/faces.py data/140k/real_vs_fake/real-vs-fake --split test --n 100"""
import argparse, pathlib, sys
import cv2, numpy as np, pandas as pd
from fakeface.core import CLASSES, SPLITS, FaceError
from fakeface.images import open_image
from fakeface.data import list_images, shuffled
from fakeface.detector import Detector
from fakeface.evaluate import evaluate
from fakeface.metrics import number, percent, wilson

def embed(image, zoom):
    """uint8 (3, H, W) -> the image, resized, in the middle of a blurred mirror image of itself,
    twice as high and wide."""
    a = cv2.resize(image.transpose(1, 2, 0), None, fx=zoom, fy=zoom, interpolation=cv2.INTER_CUBIC)
    (h, w), (y, x) = a.shape[:2], (s // 2 for s in a.shape[:2])
    out = cv2.copyMakeBorder(a, y, y, x, x, cv2.BORDER_REFLECT_101)
    # no face is left in it
    out = cv2.resize(cv2.resize(out, (16, 16), interpolation=cv2.INTER_AREA), out.shape[1::-1],
                     interpolation=cv2.INTER_CUBIC)
    out[y:y + h, x:x + w] = a
    return np.ascontiguousarray(out.transpose(2, 0, 1))

def judge(detector, root, files, zoom):
    """`files` with p_fake and verdict; the largest face speaks for the picture, and both are
    missing where none was found and cut out."""
    rows = []
    for path in files.path:
        image = open_image(root/path, path)
        v = detector.predict(embed(image, zoom) if zoom else image, whole=not zoom)[0]
        rows.append((v.p_fake, v.verdict) if v.face or not zoom else (None, None))
    return files.join(pd.DataFrame(rows, columns=['p_fake', 'verdict'])).astype(dict(p_fake=float))

def row(name, judged, whole, detector):
    "One line of the table."
    k, tell = judged.p_fake.notna(), lambda a, n: f'{a} of {n}: ' + percent(
        dict(zip(('value', 'low', 'high'), (a / max(n, 1), *wilson(a, n)))))
    if not k.any(): return dict(judged=name, found=tell(0, len(k)))
    m = evaluate(judged[k], detector.threshold, 500, band=detector.band)['metrics']
    other = judged.verdict[k] != whole.verdict[k]
    swapped = other & (judged.verdict[k] != 'uncertain') & (whole.verdict[k] != 'uncertain')
    return dict(judged=name, found='' if judged is whole else tell(k.sum(), len(k)),
                auc=number(m['auc']) if 'auc' in m else '', accuracy=percent(m['accuracy']),
                answered=percent(m['coverage']),
                confidently_wrong=tell(m['selective_risk']['k'], k.sum()),
                changed=tell(other.sum(), k.sum()), swapped=tell(swapped.sum(), k.sum()))

def main(a):
    files, detector = list_images(a.dir, both=False), Detector.load(a.weights)
    if a.split and not len(files := files[files.split == a.split]):
        raise FaceError(f'{a.dir}: no images in split {a.split!r}')
    files = files.set_index('path').loc[[
        p for c in CLASSES for p in shuffled(files.path[files.label == c], 42)[:max(1, a.n)]
    ]].reset_index()
    scores = {
        f'in a picture, x {z:g}' if z else 'whole': judge(detector, pathlib.Path(a.dir), files, z)
        for z in (0, 1, 1.5, 2)
    }
    table = pd.DataFrame([row(n, j, scores['whole'], detector) for n, j in scores.items()
                          ]).set_index('judged').rename(columns=lambda c: c.replace('_', ' '))
    print(
        ', '.join(f'{n} {c}' for c, n in files.label.value_counts().items()), f'of {a.dir}; '
        f'threshold {detector.threshold:.3f}, uncertain from {detector.band[0]:.3f} to '
        f'{detector.band[1]:.3f}'
    )
    print(table.fillna('').T.to_string())

p = argparse.ArgumentParser(description=__doc__,
                            formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument('dir', metavar='DIR', help='aligned face crops: real/ and fake/, or splits with '
                                          'those in each')
p.add_argument('--n', type=int, default=100, metavar='N', help='images of each class; default: 100')
p.add_argument('--split', choices=SPLITS, help='only this split')
p.add_argument('--weights', metavar='FILE', help='a checkpoint (.safetensors); default: the one '
                                                 'that ships')
if __name__ == '__main__':
    try: main(p.parse_args())
    except FaceError as e: sys.exit(print(f'faces.py: {e}', file=sys.stderr) or 2)
