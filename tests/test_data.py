"From a folder to a manifest: any layout, balanced, seeded, free of leaks, the same on every machine."

import hashlib, os, shutil
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from fakeface.core import CLASSES, FaceError
from fakeface.data import SPLITS, audit, inspect_image, join_roots, leaks, list_images, load_manifest, sample, save_manifest
from fakeface.detector import SHIPPED
from fakeface.model import load_checkpoint
from fakeface.standin import make_standin

ALL = dict.fromkeys(SPLITS, 0)
GOLDEN = '47cf5de89fbcc491f2653ee53e5596a5516be695ca9027e44498bb644f6ed9b2'  # of the manifest in the test below

def sizes(manifest): return Counter(zip(manifest.split, manifest.label))
def files(root, *parts): return sorted(root.joinpath(*parts).iterdir())
def reasons(passed): return {p: r.split()[0] for p, r in zip(passed.path, passed.reason)}

def test_layout_with_splits(drawn):
    manifest, passed = sample(drawn, ALL)
    assert sizes(manifest) == {(s, c): n for s, n in dict(train=16, valid=6, test=6).items() for c in CLASSES} and passed.empty
    assert all(f'{s}/{c}/' in p for p, s, c in zip(manifest.path, manifest.split, manifest.label))

@pytest.mark.parametrize('names', [dict(train='train', valid='valid', test='test'), dict(train='Training', valid='val', test='TEST')], ids=['kaggle', 'variant'])
def test_nested_layout_and_spelling(drawn, tmp_path, names):
    for s in SPLITS: shutil.copytree(drawn/s, tmp_path/'set'/'real_vs_fake'/'real-vs-fake'/names[s])
    (tmp_path/'set'/'train.csv').write_text('id,path\n')
    assert sizes(sample(tmp_path/'set', ALL)[0]) == sizes(sample(drawn, ALL)[0])

def test_folder_without_splits(drawn, tmp_path):
    shutil.copytree(drawn/'train'/'real', tmp_path/'own'/'real')
    for s in ('valid', 'test'):  # fakes of other scenes: those of the same would be near-copies of their originals
        shutil.copytree(drawn/s/'fake', tmp_path/'own'/'fake'/s)
    manifest, passed = sample(tmp_path/'own', ALL)
    assert sizes(manifest) == {(s, c): n for s, n in dict(train=10, valid=1, test=1).items() for c in CLASSES} and passed.empty

def test_a_missing_split_comes_from_training(faces):
    shutil.rmtree(faces/'valid')
    manifest, _ = sample(faces, ALL)
    assert sizes(manifest)['valid', 'fake'] == sizes(manifest)['valid', 'real'] > 0 and sizes(manifest)['test', 'real'] == 6
    assert manifest.path[manifest.split == 'valid'].str.startswith('train/').all()

@pytest.mark.parametrize('gone, told', [('train/fake', 'fake'), ('test/real', 'real'), ('train', 'train'), ('', 'no such')])
def test_a_missing_class_or_folder_is_told(faces, gone, told):
    shutil.rmtree(faces/gone)
    with pytest.raises(FaceError, match=told): sample(faces, ALL)

def test_empty_folders_are_told(faces, tmp_path):
    (tmp_path/'empty').mkdir()
    for p in files(faces, 'train', 'real'): p.unlink()
    for root in (tmp_path/'empty', faces, files(faces, 'train', 'fake')[0]):
        with pytest.raises(FaceError) as e: sample(root, ALL)
        assert '\n' not in str(e.value) and root.name in str(e.value)

def test_too_few_to_split_is_told(faces):
    for c in CLASSES:
        for p in files(faces, 'train', c)[3:]: p.unlink()
    with pytest.raises(FaceError, match='too few'): sample(faces/'train', ALL)

def test_a_bad_file_is_passed_over_with_its_reason(faces):
    a, b, c = files(faces, 'train', 'real')[:3]
    a.write_bytes(a.read_bytes()[:600]); b.write_bytes(b''); c.write_text('<html>')
    manifest, passed = sample(faces, ALL)
    assert reasons(passed) == {p.relative_to(faces).as_posix(): r for p, r in ((a, 'damaged'), (b, 'file'), (c, 'not'))}
    assert sizes(manifest)['train', 'real'] == sizes(manifest)['train', 'fake'] == 13

def test_nothing_usable_is_told(faces):
    for p in files(faces, 'test', 'real'): p.write_bytes(b'x')
    with pytest.raises(FaceError, match='test.*not an image'): sample(faces, ALL)

def test_balance_and_size(drawn):
    for counts in (dict(train=10, valid=4, test=6), dict(train=2, valid=2, test=2)):
        manifest, _ = sample(drawn, counts)
        assert sizes(manifest) == {(s, c): n // 2 for s, n in counts.items() for c in CLASSES}

def test_more_than_there_is_gives_what_balance_allows(faces):
    for p in files(faces, 'train', 'fake')[:5]: p.unlink()
    manifest, _ = sample(faces, dict(train=10_000, valid=0, test=100))
    assert sizes(manifest)['train', 'fake'] == sizes(manifest)['train', 'real'] == 11 and sizes(manifest)['test', 'real'] == 6

@pytest.mark.parametrize('n', [1, 3, -2])
def test_never_more_than_asked(drawn, n):
    "An odd, a single or a negative number is at most that many images, or an error; never all of them."
    try: manifest, _ = sample(drawn, ALL | dict(train=n))
    except FaceError: return
    assert 0 < (manifest.split == 'train').sum() <= n

def test_same_bytes_whatever_the_file_system_says(drawn, tmp_path):
    copy = tmp_path/drawn.name
    for i, p in enumerate(sorted(drawn.rglob('*.jpg'), reverse=True)):  # written in another order, with other times
        (q := copy/p.relative_to(drawn)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(p, q); os.utime(q, (1e9 - i, 1e9 - i))
    shutil.copyfile(drawn/'standin.json', copy/'standin.json')
    for name, root in (('a', drawn), ('b', copy), ('c', f'{copy}/train/..')): save_manifest(sample(root, dict(train=10, valid=4, test=4))[0], tmp_path/name)
    assert (tmp_path/'a').read_bytes() == (tmp_path/'b').read_bytes() == (tmp_path/'c').read_bytes()

def test_the_manifest_is_the_same_on_every_machine(tmp_path):
    "Its digest stands here, because other processors, systems and versions must arrive at the same one. Pixels come from SHA-256, files are BMP: nothing else can differ."
    for s in SPLITS:
        for c in CLASSES:
            (tmp_path/'golden'/s/c).mkdir(parents=True)
            for i in range(8 if s == 'train' else 4):
                blocks = b''.join(hashlib.sha256(f'{s} {c} {i} {k}'.encode()).digest() for k in range(24))  # 16 x 16 pixels of three bytes
                Image.frombytes('RGB', (16, 16), blocks).resize((64, 64), Image.Resampling.NEAREST).save(tmp_path/'golden'/s/c/f'{i}.bmp')
    shutil.copyfile(tmp_path/'golden'/'train'/'real'/'0.bmp', tmp_path/'golden'/'valid'/'real'/'again.bmp')
    save_manifest(sample(tmp_path/'golden', dict(train=12, valid=0, test=6))[0], tmp_path/'manifest.csv')
    assert hashlib.sha256((tmp_path/'manifest.csv').read_bytes()).hexdigest() == GOLDEN

def test_the_photographs_of_the_shipped_weights_are_sampled_again(photographs, tmp_path):
    "To the byte, as on the machine where they were trained."
    root = join_roots([photographs/'140k-subset', photographs/'many'], tmp_path/'data')
    manifest, _ = sample(root, ALL, generator='stylegan', leave_out=['dfdc-swap'])
    save_manifest(manifest, tmp_path/'manifest.csv')
    assert hashlib.sha256((tmp_path/'manifest.csv').read_bytes()).hexdigest() == load_checkpoint(SHIPPED)[1]['manifest_sha256']

def test_another_seed_draws_others(drawn):
    counts = dict(train=16, valid=6, test=6)
    a, b, c = (set(sample(drawn, counts, seed)[0].path) for seed in (1, 2, 1))
    assert a == c != b

def test_an_added_image_moves_no_other(faces):
    counts = dict(train=16, valid=6, test=6)
    before = set(sample(faces, counts)[0].path)
    Image.new('RGB', (64, 64), 'teal').save(faces/'train'/'real'/'new.jpg')
    assert len(before - set(sample(faces, counts)[0].path)) <= 1

def resaved(src, dst, scale=1, **kw):
    im = Image.open(src); im.resize((int(im.width * scale), int(im.height * scale))).save(dst, **kw)

@pytest.fixture(scope='module')
def sharp(tmp_path_factory): return make_standin(tmp_path_factory.mktemp('sharp')/'set', n_train=12, n_valid=2, n_test=8, size=256)

def test_copies_across_splits_are_passed_over(sharp, tmp_path):
    root = Path(shutil.copytree(sharp, tmp_path/'set'))
    tests, trains = files(root, 'test', 'real'), files(root, 'train', 'real')
    shutil.copyfile(tests[0], trains[0])
    resaved(tests[1], trains[1], quality=60)
    resaved(tests[2], trains[2], scale=.5, quality=90)
    resaved(tests[3], spare := trains[3].with_name('spare.png'), scale=2)
    manifest, passed = sample(root, ALL)
    names = dict(zip((trains[0], trains[1], trains[2], spare), ('same', *['near-duplicate'] * 3)))
    assert reasons(passed) == {p.relative_to(root).as_posix(): r for p, r in names.items()}  # nothing else: unrelated images are kept
    assert (manifest.split == 'test').sum() == 8 and leaks(root, manifest).empty

def test_one_image_under_both_classes_is_taken_once(faces):
    shutil.copyfile(files(faces, 'train', 'real')[0], files(faces, 'train', 'fake')[0])
    manifest, passed = sample(faces, ALL)
    assert manifest.sha256.is_unique and reasons(passed).popitem()[1] == 'same'

def test_leaks_finds_what_a_manifest_of_others_hides(sharp, tmp_path):
    root = Path(shutil.copytree(sharp, tmp_path/'set'))
    manifest, _ = sample(root, ALL)
    train, test = (manifest.path[manifest.split == s].iloc[-1] for s in ('train', 'test'))
    resaved(root/test, root/train, scale=.5, quality=90)
    found = leaks(root, manifest)
    assert len(found) >= 1 and all({train} < {a, b} for a, b in zip(found.a, found.b)) and test in {*found.a, *found.b}

def test_the_manifest_says_what_the_files_are(drawn, tmp_path):
    manifest, _ = sample(drawn, ALL, generator='drawn')
    first = manifest.iloc[0]
    im = Image.open(drawn/first.path)
    assert (first.width, first.height, first.format) == (*im.size, im.format) and first.bytes == (drawn/first.path).stat().st_size
    assert set(manifest.generator[manifest.label == 'fake']) == {'drawn'} and set(manifest.generator[manifest.label == 'real']) == {''}
    save_manifest(manifest, tmp_path/'m.csv')
    assert load_manifest(tmp_path/'m.csv').equals(manifest)
    assert audit(manifest).images.sum() == len(manifest)

def test_a_manifest_that_is_none_is_told(tmp_path):
    (tmp_path/'m.csv').write_text('a,b\n1,2\n')
    for name in ('m.csv', 'none.csv'):
        with pytest.raises(FaceError, match=name): load_manifest(tmp_path/name)

def test_photographs(photographs):
    "Of the real set every test image is kept, and what training shares with it is not."
    root = photographs/'140k-subset'
    manifest, _ = sample(root, ALL)
    n = sizes(manifest)
    assert n['test', 'real'] == n['test', 'fake'] == 200 and n['train', 'real'] == n['train', 'fake'] > 1500 and n['valid', 'real'] == n['valid', 'fake']
    assert manifest.sha256.is_unique and leaks(root, manifest).empty
    assert len(list_images(root)) == sum(1 for p in root.rglob('*.jpg'))

def test_copies_of_photographs(photographs, tmp_path):
    "At half size and recompressed, as the internet does it, each is recognised; and no other photograph is taken for a copy."
    for c in CLASSES:
        originals = files(photographs/'140k-subset', 'test', c)[:40]
        for s, part in dict(test=originals[:16], valid=originals[16:20], train=originals[20:]).items():
            (tmp_path/s/c).mkdir(parents=True)
            for p in part: shutil.copyfile(p, tmp_path/s/c/p.name)
        for p in originals[:16]: resaved(p, tmp_path/'train'/c/f'copy-{p.name}', scale=.5, quality=60)
    manifest, passed = sample(tmp_path, ALL)
    assert len(passed) == 32 and passed.path.str.contains('/copy-').all() and sizes(manifest)['train', 'real'] == 20

def test_no_more_files_are_read_than_wanted(faces, monkeypatch):
    import fakeface.data as data
    read = []
    monkeypatch.setattr(data, 'inspect_image', lambda root, p: read.append(p) or inspect_image(root, p))
    for i in range(300): shutil.copyfile(files(faces, 'train', 'real')[0], faces/'train'/'real'/f'copy-{i}.jpg')
    sample(faces, dict(train=2, valid=2, test=2))
    assert len(read) < 100

# --- several data sets, several sources ---

@pytest.fixture
def sourced(drawn, tmp_path):
    "A data set whose folders name generators and kinds of photographs: twelve of one and four of another in each class of the training."
    root = Path(shutil.copytree(drawn, tmp_path/'sourced', ignore=shutil.ignore_patterns('standin.json')))
    for s in SPLITS:
        for c, names in (('fake', ('gan', 'diffusion')), ('real', ('phone', 'studio'))):
            for i, p in enumerate(files(root, s, c)):
                to = root/s/c/names[i % 4 == 0]; to.mkdir(exist_ok=True); p.rename(to/p.name)
    return root

def test_folders_below_a_class_name_generator_and_kind(sourced):
    manifest, _ = sample(sourced, ALL, generator='unknown')
    assert set(manifest.source) == {f'sourced/{n}' for n in ('gan', 'diffusion', 'phone', 'studio')}
    assert dict(zip(manifest.source, manifest.generator)) == {'sourced/gan': 'gan', 'sourced/diffusion': 'diffusion', 'sourced/phone': '', 'sourced/studio': ''}
    assert audit(manifest, ('label', 'source')).images.sum() == len(manifest)

def test_sampling_is_balanced_by_source(sourced):
    manifest, _ = sample(sourced, dict(train=16, valid=0, test=0))
    assert Counter(manifest.source[manifest.split == 'train']) == dict.fromkeys(('sourced/gan', 'sourced/diffusion', 'sourced/phone', 'sourced/studio'), 4)
    bounded, _ = sample(sourced, ALL, per_source=2)
    assert max(Counter(zip(bounded.split, bounded.source)).values()) == 2

def test_a_generator_that_is_left_out_is_in_the_test_alone(sourced):
    manifest, _ = sample(sourced, ALL, leave_out=['diffusion', 'studio'])
    assert set(manifest.split[manifest.source.isin(['sourced/diffusion', 'sourced/studio'])]) == {'test'} and {'sourced/gan', 'sourced/phone'} == set(manifest.source[manifest.split == 'train'])
    with pytest.raises(FaceError, match="no folder 'difusion'; there are diffusion, gan, phone, studio"): sample(sourced, ALL, leave_out=['difusion'])

def test_two_data_sets_are_one(sourced, drawn, tmp_path):
    own = tmp_path/'own'
    for c in CLASSES: shutil.copytree(make_standin(tmp_path/'more', n_train=32, n_valid=2, n_test=2, size=64, seed=5)/'train'/c, own/c)
    root = join_roots([sourced, own], tmp_path/'links')
    manifest, passed = sample(root, ALL, generator='drawn')
    assert set(passed.path.str.split('/').str[0]) <= {'own'}  # drawn fakes are of the scenes of drawn photographs
    assert set(manifest.source) == {'own'} | {f'sourced/{n}' for n in ('gan', 'diffusion', 'phone', 'studio')}
    assert set(manifest.split[manifest.source == 'own']) == set(SPLITS)  # it had no splits, and is split by itself
    assert set(manifest.generator[(manifest.source == 'own') & (manifest.label == 'fake')]) == {'drawn'}
    assert all((root/p).is_file() for p in manifest.path) and manifest.equals(sample(join_roots([own, sourced], tmp_path/'again'), ALL, generator='drawn')[0])
    assert {p.name for p in root.iterdir()} == {'sourced', 'own'} and join_roots([own, sourced], root) == root  # made anew when it is there

def test_a_copy_in_another_data_set_is_a_leak(sourced, tmp_path):
    other = make_standin(tmp_path/'other', n_train=32, n_valid=12, n_test=12, size=64, seed=5)
    (other/'standin.json').unlink()
    shutil.copy(files(sourced, 'test', 'real', 'phone')[0], other/'train'/'real'/'copy.jpg')
    Image.open(files(sourced, 'valid', 'fake', 'gan')[0]).resize((50, 50)).save(other/'train'/'fake'/'small.png')
    manifest, passed = sample(join_roots([sourced, other], tmp_path/'links'), ALL)
    assert reasons(passed) == {'other/train/real/copy.jpg': 'same', 'other/train/fake/small.png': 'near-duplicate'}

def test_two_data_sets_of_one_name_are_told(sourced, tmp_path):
    twin = shutil.copytree(sourced, tmp_path/'elsewhere'/'sourced')
    with pytest.raises(FaceError, match='two data sets are called sourced; rename one'): join_roots([sourced, twin], tmp_path/'links')
    assert not (tmp_path/'links').exists()

def test_a_folder_of_data_sets_is_read_as_all_of_them(sourced, drawn, tmp_path):
    (tmp_path/'all'/'deep').mkdir(parents=True)
    shutil.copytree(sourced, tmp_path/'all'/'a'); shutil.copytree(drawn/'train', tmp_path/'all'/'deep'/'b')
    found = list_images(tmp_path/'all')
    assert set(found.set) == {'a', 'deep/b'} and len(found) == 56 + 32
