"""Bring the pictures that notebooks keep to 256 colours, a third of the bytes: `make notebooks` runs this in .venv.

Pictures within the report's HTML go: it takes them from the notebooks before it, which keep them."""
import base64, io, sys
from pathlib import Path

import nbformat
from PIL import Image

LARGE = 50_000  # bytes in base64; smaller pictures stay as they are

def smaller(picture):
    image = Image.open(io.BytesIO(base64.b64decode(picture))).convert('RGB')
    image.quantize(256, method=Image.Quantize.MEDIANCUT).save(out := io.BytesIO(), 'PNG', optimize=True)
    return min(picture, base64.b64encode(out.getvalue()).decode() + '\n', key=len)

def embeds(output):
    html = output.get('data', {}).get('text/html', '')
    return len(html) > LARGE and 'src="data:image' in html

for path in map(Path, sys.argv[1:]):
    notebook = nbformat.read(path, 4)
    for cell in (c for c in notebook.cells if c.cell_type == 'code' and 'report' in path.stem):
        cell.outputs = [o for o in cell.outputs if not embeds(o)]
    for output in (o for c in notebook.cells for o in c.get('outputs', [])):
        data = output.get('data', {})
        if len(data.get('image/png', '')) > LARGE: data['image/png'] = smaller(data['image/png'])
    nbformat.write(notebook, path)
