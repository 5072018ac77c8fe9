"""What did a change do to verdicts? Two tables of the same images, written by `fakeface predict`
with the code before and after, are compared by folder.

'fake', 'uncertain' and 'real' are shares of the images that were judged, before -> after, with 95 %
Wilson intervals; the largest face speaks for its image. 'changed' counts images with another
verdict, or judged in one table alone.

example: fakeface predict many/test/real/utkface many/test/fake/dfdc-swap --csv after.csv
         git worktree add ../before f7d1683
         PYTHONPATH=../before fakeface predict ... --csv before.csv
         python benchmarks/verdicts.py before.csv after.csv"""
import argparse, pathlib, sys
import pandas as pd
from fakeface.metrics import wilson

def first_faces(path):
    "The verdicts of a table, one an image."
    table = pd.read_csv(path, keep_default_na=False)
    return table.drop_duplicates('path').set_index('path').verdict

def share(verdicts, kind):
    "`k of n, percent (low to high)` of the images that were judged."
    n, k = (verdicts != '').sum(), (verdicts == kind).sum()
    low, high = wilson(k, n)
    return f'{k} of {n}, {100 * k / max(n, 1):.0f} % ({100 * low:.0f} to {100 * high:.0f})'

def compare(before, after):
    "A row for each folder."
    both = pd.concat(dict(before=before, after=after), axis=1).fillna('')
    rows = []
    for folder, d in both.groupby(lambda p: pathlib.Path(p).parent.name, sort=False):
        shares = {k: f'{share(d.before, k)} -> {share(d.after, k)}'
                  for k in ('fake', 'uncertain', 'real')}
        rows.append(dict(folder=folder, images=len(d)) | shares
                    | dict(changed=int((d.before != d.after).sum())))
    return pd.DataFrame(rows)

p = argparse.ArgumentParser(description=__doc__,
                            formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument('before', metavar='CSV')
p.add_argument('after', metavar='CSV')
if __name__ == '__main__':
    a = p.parse_args()
    try: print(compare(first_faces(a.before), first_faces(a.after)).T.to_string(header=False))
    except OSError as e: sys.exit(print(f'verdicts.py: {e}', file=sys.stderr) or 2)
