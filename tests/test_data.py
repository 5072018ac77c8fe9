"From a folder to a manifest: any layout, balanced, free of leaks, the same on every machine."

import hashlib, os, shutil
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from fakeface.core import CLASSES, SPLITS, FaceError
from fakeface.data import (audit, inspect_image, join_roots, leaks, list_images, load_manifest,
                           sample, save_manifest, taken_text)
from fakeface.detector import SHIPPED
from fakeface.model import load_checkpoint
from fakeface.standin import make_standin

ALL = dict.fromkeys(SPLITS, 0)
GOLDEN = '47cf5de89fbcc491f2653ee53e5596a5516be695ca9027e44498bb644f6ed9b2'  # see its test

def sizes(manifest): return Counter(zip(manifest.split, manifest.label))
def files(root, *parts): return sorted(root.joinpath(*parts).iterdir())
def reasons(passed): return {p: r.split()[0] for p, r in zip(passed.path, passed.reason)}

# --- layouts: folders with an image in each -> what is taken, or a part of the error ---

SAME = {'train': 'FR', 'valid': 'FR', 'test': 'FR'}
SPLIT = '{0}/fake {0}/real {1}/fake {1}/real {2}/fake {2}/real'
LAYOUTS = {  # folders: classes taken in each split ('': none), F: a fake image, R: a real one
    SPLIT.format('train', 'valid', 'test'): SAME,
    SPLIT.format('Training', 'val', 'TEST'): SAME,
    SPLIT.format('train', 'dev', 'testing'): SAME,
    SPLIT.format('a/real_vs_fake/real-vs-fake/train', 'a/real_vs_fake/real-vs-fake/valid',
                 'a/real_vs_fake/real-vs-fake/test'): SAME,
    SPLIT.format('A/REAL_VS_FAKE/TRAIN', 'A/REAL_VS_FAKE/VALID', 'A/REAL_VS_FAKE/TEST'): SAME,
    SPLIT.format('val', 'valid', 'Validation'): {'valid': 'FFFRRR'},
    'Train/Fake Train/Real Test/Fake Test/Real': {'train': 'FR', 'test': 'FR'},
    'fake/train fake/test real/train real/test': {'train': 'FR', 'test': 'FR'},
    'real_train/1/real real_test/1/real fake_train/1/fake fake_test/2/fake':
        {'train': 'FR', 'test': 'FR'},
    'training_real training_fake': {'train': 'FR'},
    'REAL FAKE': {'': 'FR'}, 'Real real fake': {'': 'FRR'}, '0_real 1_fake': {'': 'FR'},
    'real_images fake_images': {'': 'FR'}, 'RealFaces FakeFaces': {'': 'FR'},
    'nature ai': {'': 'FR'}, 'human AIGenerated': {'': 'FR'}, 'original manipulated': {'': 'FR'},
    'authentic ai_generated': {'': 'FR'}, 'real deepfake': {'': 'FR'}, 'real synthetic': {'': 'FR'},
    'Real_1 Real_2 deepfake': {'': 'FRR'}, 'real fake fake_masks masks/fake': {'': 'FR'},
    'original_sequences/youtube/c23 manipulated_sequences/Face2Face/c23/frames '
    'manipulated_sequences/Face2Face/c23/masks': {'': 'FR'},
    'imagenet_ai_sdv4/train/ai imagenet_ai_sdv4/train/nature': {'train': 'FR'},
    'progan_train/car/0_real progan_train/car/1_fake progan_val/car/0_real progan_val/car/1_fake':
        {'train': 'FR', 'valid': 'FR'},
    'real fake/real-esrgan fake/ai-portraits': {'': 'FFR'},
    'real fake __MACOSX/real .cache/fake': {'': 'FR'},
    'real': {'': 'R'}, 'train/fake': {'train': 'F'},
    'real faceswap': '--classes real faceswap', 'adm fake': '--classes adm fake',
    'train/real train/sd3 train/sdxl': 'what class is beside it in sd3/, sdxl/ is not known',
    'real fake train/real': 'class folders at two places, fake/ and train/real/',
    'train/real train/fake extra/real extra/fake': 'train/fake/ and extra/fake/',
    'real fake cropped/real': 'fake/ and cropped/real/',
    'train/0 train/1': 'folders seen: train/, train/0/, train/1/; --classes REAL FAKE',
    'images': 'folders seen: images/',
    'real/train real/test real/misc fake/train fake/test':
        'fake/test/, fake/train/, real/test/, real/train/ are splits in a class folder, but '
        'real/misc/ are in none',
    'real/train real/test fake': 'real/test/, real/train/ are splits in a class folder, but fake/',
    'real/coco/train fake/sd3/train': 'fake/sd3/train/, real/coco/train/ are splits in a class',
    'real fake/flux-dev fake/sd3': {'': 'FFR'},
    'real/train real/masks fake/train fake/test real/test': {'train': 'FR', 'test': 'FR'},
    **{f'{a} {b}': f'--classes {b} {a}' for a, b in (
        ('with_ai', 'without_ai'), ('ai', 'AI-free'), ('ai', 'never_ai'), ('edited', 'un-edited'))},
    'real_vs_fake not_real': 'folders seen: not_real/, real_vs_fake/',
    ' '.join(f'person {i:02}'.replace(' ', '') for i in range(30)): 'person07/ and 22 more',
    'line\nbreak': r'line\nbreak/',
}

def lay(root, folders, name='1.jpg'):
    for f in folders.split(' '):
        (root/f).mkdir(parents=True, exist_ok=True)
        (root/f/name).touch()
    return root

@pytest.mark.parametrize('folders', LAYOUTS, ids=lambda f: ascii(f)[1:61])
def test_layouts(tmp_path, folders):
    right = LAYOUTS[folders]
    if isinstance(right, str):
        with pytest.raises(FaceError) as e: list_images(lay(tmp_path/'set', folders), both=False)
        assert right in str(e.value) and str(tmp_path/'set') in str(e.value)
        assert '\n' not in str(e.value) and len(str(e.value)) < 600
    else:
        found = list_images(lay(tmp_path/'set', folders), both=False)
        taken = {s: ''.join(sorted(p.label.str[0].str.upper())) for s, p in found.groupby('split')}
        assert taken == right and found.path.is_unique

SOURCES = {  # folders: sources of fakes and their generators
    'fake real': {'set': ''}, 'fake/sd3 real': {'set/sd3': 'sd3'},
    'sdxl/real sdxl/fake gan/real gan/fake': {'sdxl': 'sdxl', 'gan': 'gan'},
    'x/sdxl/real x/sdxl/fake x/gan/a/real x/gan/a/fake': {'x/sdxl': 'sdxl', 'x/gan/a': 'gan'},
    'test/gan/car/0_real test/gan/car/1_fake test/sdxl/1_fake test/sdxl/0_real':
        {'set/gan': 'gan', 'set/sdxl': 'sdxl'},
    'Fake_GAN Fake_SD Real': {'set/Fake_GAN': 'Fake_GAN', 'set/Fake_SD': 'Fake_SD'},
    'progan/car/0_real progan/car/1_fake progan/cat/0_real progan/cat/1_fake '
    'stylegan/cat/0_real stylegan/cat/1_fake':
        {'progan/car': 'progan', 'progan/cat': 'progan', 'stylegan/cat': 'stylegan'},
    'fake deepfake real': {'set/fake': '', 'set/deepfake': ''},
    'Midjourney/imagenet_mj/train/ai Midjourney/imagenet_mj/train/nature '
    'sd14/imagenet_ai_sd/train/ai sd14/imagenet_ai_sd/val/nature':
        {'Midjourney/imagenet_mj': 'Midjourney', 'sd14/imagenet_ai_sd': 'sd14'},
}

@pytest.mark.parametrize('folders', SOURCES, ids=lambda f: f[:60])
def test_folders_name_sources_and_generators(tmp_path, folders):
    found = list_images(lay(tmp_path/'set', folders), both=False)
    fakes = found[found.label == 'fake']
    assert dict(zip(fakes.source, fakes.generator)) == SOURCES[folders]
    assert set(found.generator[found.label == 'real']) <= {''}

def test_classes_of_other_names_are_named(tmp_path):
    root = lay(tmp_path/'set', 'train/0 train/1 test/0 test/1 test/fake')
    for names, fake in ((['0', '1'], '1'), (['1', '0'], '0'), ([0, 1], '1')):
        found = list_images(root, classes=names)
        assert set(found.path[found.label == 'fake'].str.split('/').str[1]) == {fake}
    assert found.attrs['passed'] == {'outside the class folders (in test/fake/)': 1}
    for wrong in (['0'], ['0', '0'], ['0', '1', '2'], ['0', ''], ['test/0', 'test/1'], ['A', 'a']):
        with pytest.raises(FaceError, match='classes: name two different folders'):
            list_images(root, classes=wrong)
    with pytest.raises(FaceError, match='no class folders 0/ and 2/.*folders seen: test/, train/'):
        list_images(root, classes=['0', '2'])

def test_one_name_in_two_spellings_is_one(tmp_path):
    root = lay(tmp_path/'set', 're\u0301el faux')  # e and an accent, as macOS writes it
    assert sizes(list_images(root, classes=['r\xe9el', 'faux'])) == {('', 'real'): 1, ('', 'fake'): 1}

@pytest.mark.parametrize('link, to', [('train/fake', 'real'), ('test', 'train')])
def test_two_names_of_one_folder_are_told(tmp_path, link, to):
    (lay(tmp_path/'set', 'train/real')/link).symlink_to(to)
    with pytest.raises(FaceError, match='the same folder as '): list_images(tmp_path/'set', both=False)

def test_what_is_passed_over_is_counted(tmp_path):
    root = lay(lay(tmp_path/'set', 'fake real thumbs/small .'), 'real thumbs', 'labels.csv')
    (root/'real'/'empty.jpg').symlink_to('nowhere.jpg')
    found = list_images(root)
    outside = 'outside the class folders (in ./, thumbs/small/)'
    assert found.attrs['passed'] == {'other': 2, 'broken link': 1, outside: 2}
    assert taken_text(found, found.attrs['passed']) == (
        f'took 2 images: 1 fake, 1 real; passed over 5: 2 other files, 2 {outside}, 1 broken link')

def test_names_that_are_not_utf_8_are_passed_over(tmp_path):
    root = lay(tmp_path/'caf\udce9', 'fake real real/\udce9')
    lay(root, 'fake', '\udce9.jpg')
    found = list_images(root)
    assert found.attrs['passed'] == {'named with control characters or not in UTF-8': 2} and len(found) == 2
    assert found.set.tolist() == ['caf\\udce9'] * 2

def test_a_table_of_labels_is_told(tmp_path):
    (lay(tmp_path/'set', 'images')/'train.csv').write_text('file,label')
    with pytest.raises(FaceError, match=r'labels in a table \(train.csv\) are not read'):
        list_images(tmp_path/'set')

def test_linked_folders_are_read_once_and_never_in_a_circle(tmp_path):
    root = lay(tmp_path/'set', 'fake real pool/phone')
    lay(tmp_path, 'elsewhere/studio')
    for link, to in (('real/phone', root/'pool'/'phone'), ('real/more', tmp_path/'elsewhere'),
                     ('real/round', root), ('fake/up', tmp_path), ('round', root), ('REAL', 'real'),
                     ('real/again', tmp_path/'elsewhere')):
        (root/link).symlink_to(to, target_is_directory=True)
    found = list_images(root)
    assert {Path(p).parent.name for p in found.path[found.label == 'real']} & {'phone', 'studio'}
    assert sizes(found) == {('', 'fake'): 1, ('', 'real'): 3} and not found.attrs['passed']

@pytest.mark.parametrize('gone, told', [('train/fake', 'no fake/ images in train/'),
                                        ('test/real', 'no real/ images in test/'),
                                        ('train', 'a train/ folder is needed'), ('', 'no such')])
def test_a_missing_class_or_folder_is_told(faces, gone, told):
    shutil.rmtree(faces/gone)
    with pytest.raises(FaceError, match=told): sample(faces, ALL)

def test_empty_folders_are_told(faces, tmp_path):
    (tmp_path/'empty').mkdir()
    for p in files(faces, 'train', 'real'): p.unlink()
    for root in (tmp_path/'empty', faces, files(faces, 'train', 'fake')[0]):
        with pytest.raises(FaceError) as e: sample(root, ALL)
        assert '\n' not in str(e.value) and root.name in str(e.value)

# --- splits ---

def test_layout_with_splits(drawn):
    manifest, passed = sample(drawn, ALL)
    right = {(s, c): n for s, n in dict(train=16, valid=6, test=6).items() for c in CLASSES}
    assert sizes(manifest) == right and passed.empty
    inside = [f'{s}/{c}/' for s, c in zip(manifest.split, manifest.label)]
    assert all(map(str.startswith, manifest.path, inside))
    text = taken_text(manifest, passed.attrs['passed'])
    assert text.startswith('took 56 images: 16 fake, 16 real in train; 6 fake, 6 real in valid; ')

def test_folder_without_splits(drawn, tmp_path):
    shutil.copytree(drawn/'train'/'real', tmp_path/'own'/'real')
    for s in ('valid', 'test'):  # fakes of other scenes: those of the same are near-copies
        shutil.copytree(drawn/s/'fake', tmp_path/'own'/'fake'/f'scenes-{s}')
    manifest, passed = sample(tmp_path/'own', ALL)
    right = {(s, c): n for s, n in dict(train=10, valid=1, test=1).items() for c in CLASSES}
    assert sizes(manifest) == right and passed.empty
    assert passed.attrs['passed'] == {'not needed for balance or the numbers asked for': 4}

def test_a_missing_split_comes_from_training(faces):
    shutil.rmtree(faces/'valid')
    manifest, _ = sample(faces, ALL)
    n = sizes(manifest)
    assert n['valid', 'fake'] == n['valid', 'real'] > 0 and n['test', 'real'] == 6
    assert manifest.path[manifest.split == 'valid'].str.startswith('train/').all()

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

def test_a_folder_of_generators_is_one_of_several_data_sets(tmp_path):
    multi = lay(tmp_path/'multi', 'sdxl/fake sdxl/real gan/fake gan/real')
    root = join_roots([multi, lay(tmp_path/'own', 'fake real')], tmp_path/'links')
    found = list_images(root)
    fakes = found[found.label == 'fake']
    assert dict(zip(fakes.source, fakes.generator)) == {'multi/sdxl': 'sdxl', 'multi/gan': 'gan',
                                                        'own': ''}
    with pytest.raises(FaceError, match='other: no class folders'):
        join_roots([multi, lay(tmp_path/'other', 'pictures')], tmp_path/'more')

def test_two_data_sets_of_one_name_are_told(sourced, tmp_path):
    twin = shutil.copytree(sourced, tmp_path/'elsewhere'/'sourced')
    with pytest.raises(FaceError, match='two data sets are called sourced; rename one'): join_roots([sourced, twin], tmp_path/'links')
    assert not (tmp_path/'links').exists()

def test_names_that_no_table_holds_are_passed_over(faces):
    photo = (faces/'test'/'real'/'00000.jpg').read_bytes()
    for name in (b'esc\x1b.jpg', b'cr\r.jpg', b'latin-\xe9.jpg', b'fine \xc3\xa9.jpg'):
        with open(os.path.join(os.fsencode(faces/'test'/'real'), name), 'wb') as f: f.write(photo)
    found = list_images(faces)
    assert found.attrs['passed']['named with control characters or not in UTF-8'] == 3
    assert found.path.str.endswith('fine é.jpg').sum() == 1
