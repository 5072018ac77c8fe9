"""Which way up is a face? YuNet looks at photographs of upright faces, as they are and turned.

For each turn: how many score as `find_faces` takes for sure, in how many a face is found, and in
how many the turn with the highest score is the right one. Intervals are 95 % Wilson. Photographs
in which no face is found upright are left out, and counted.

example: python benchmarks/turns.py many/valid/real"""
import sys
import numpy as np
from tqdm import tqdm
from fakeface.faces import SURE_SCORE, faces_turned
from fakeface.images import find_images, open_image
from fakeface.metrics import wilson

def scores(bgr):
    "The highest score after each number of quarter turns: (4,), 0 where nothing is found."
    return [max((f.score for f in faces_turned(bgr, k)), default=0) for k in range(4)]

def share(what, hits):
    low, high = wilson(sum(hits), len(hits))
    print(f'{what}: {sum(hits)} of {len(hits)} ({100 * low:.1f} to {100 * high:.1f} %)')

if __name__ == '__main__':
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    images = [open_image(p).transpose(1, 2, 0)[..., ::-1] for p in find_images(sys.argv[1:])]
    table = np.array([scores(np.ascontiguousarray(i)) for i in tqdm(images)])
    table = table[table[:, 0] > 0]
    print(f'{len(images) - len(table)} of {len(images)} left out')
    for k, name in enumerate(('upright', 'on a side', 'upside down', 'on the other side')):
        share(f'{name}, a face is found', table[:, k] > 0)
        share(f'{name}, sure', table[:, k] >= SURE_SCORE)
    share('the turn with the highest score is the right one', table.argmax(1) == 0)
