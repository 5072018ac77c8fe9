"""Does a larger view of a large face tell more? Judges faces of at least 512 pixels whole at 256,
whole at 512, and as four tiles of 256 at 512 beside the whole at 256; says what each way tells
apart, and what a face costs on one core.

    python benchmarks/resolution.py --data ORIGINALS [--weights FILE]

ORIGINALS holds real/ and fake/ (perhaps with a folder a source) with photographs at their full
size."""

import argparse, time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_auc_score
from tqdm import tqdm

from fakeface.core import FAKE, REAL, ImageError
from fakeface.images import open_image
from fakeface.data import list_images
from fakeface.detector import SHIPPED
from fakeface.metrics import bootstrap_all
from fakeface.faces import aligned_square, cut_out, find_faces, side_length
from fakeface.model import load_checkpoint, pick_dtype, autocast, to_input

LARGE = 512  # side of the square from which on a face can be judged at 512 without being enlarged
CPU = torch.device('cpu')

def tiles(
    image  # uint8 (3, 512, 512)
):
    "Its four quarters: uint8 (4, 3, 256, 256)."
    return torch.stack([image[:, y:y + 256, x:x + 256] for y in (0, 256) for x in (0, 256)])

def crops(
    path # of a photograph
):
    """The largest face at 256 and at 512, uint8 (3, size, size) each, or None when it is smaller
    than `LARGE` or there is none."""
    try: image = open_image(path)
    except ImageError: return None
    found = [aligned_square(f) for f in find_faces(image)[:1]]
    if not found or side_length(found[0]) < LARGE: return None
    return cut_out(image, found[0], 256), cut_out(image, found[0], 512)

WAYS = {'256': lambda small, large: [small[None]], '512': lambda small, large: [large[None]],
        '256 and tiles': lambda small, large: [small[None], tiles(large)]}

@torch.inference_mode()
# float (K,): one for each view, the logit of fake less that of real
def margins(model, views, normalize, dtype):
    with autocast(CPU, dtype): logits = [model(to_input(v, normalize)).float() for v in views]
    return torch.cat([l[:, FAKE] - l[:, REAL] for l in logits])

def judge(
    model, normalize,
    pairs,                # from `crops`
    way,                  # of `WAYS`
    dtype=torch.float32
):
    "`(margins (N,), seconds a face)`: the mean over the views of a face."
    out, start = [], time.perf_counter()
    for small, large in tqdm(pairs, f'{way}, {str(dtype)[6:]}', leave=False):
        out.append(margins(model, WAYS[way](small, large), normalize, dtype).mean().item())
    return np.array(out), (time.perf_counter() - start) / len(pairs)

def main():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--data', required=True, metavar='DIR', help='real/ and fake/ with photographs '
                                                                'at their full size')
    p.add_argument('--weights', default=SHIPPED, metavar='FILE', help='a checkpoint; default: the '
                                                                      'one that ships')
    a = p.parse_args()
    torch.set_num_threads(1)
    model, meta = load_checkpoint(a.weights)
    model, normalize = model.to(
        memory_format=torch.channels_last), meta['preprocessing']['normalize']
    files = list_images(a.data)
    found = [crops(Path(a.data)/f) for f in tqdm(files.path, 'cutting faces')]
    kept = np.array([c is not None for c in found])
    pairs, fake = [c for c in found if c], (files.label[kept] == 'fake').to_numpy()
    print(f'{fake.sum()} fakes and {(~fake).sum()} photographs with a face of {LARGE} pixels or '
          f'more; {(~kept).sum()} others passed over')
    rows, scores = [], {}
    for way in WAYS:
        scores[way], cost = judge(model, normalize, pairs, way)
        _, fast = judge(model, normalize, pairs[:20], way, pick_dtype(CPU))
        auc = bootstrap_all(lambda y, s: dict(auc=roc_auc_score(y, s)), fake, scores[way], 500,
                            42)['auc']
        at = np.sort(scores[way][~fake])[::-1][int(.05 * (~fake).sum())]
        rows.append({
            'judged at': way, 'AUC': f'{auc["value"]:.3f} ({auc["low"]:.3f} to '
            f'{auc["high"]:.3f})',
            'caught at 5 % false alarms': f'{100 * (scores[way][fake] > at).mean():.0f} %',
            'ms a face': f'{1000 * cost:.0f}', 'ms, default precision': f'{1000 * fast:.0f}'
        })
    print(pd.DataFrame(rows).to_string(index=False))
    both = pd.DataFrame(scores).assign(
        source=files.source[kept].str.rsplit('/', n=1).str[-1].to_numpy(), fake=fake)
    print(both.groupby(['fake', 'source']).agg(['median']).round(2).to_string())

if __name__ == '__main__': main()
