"What files say of themselves: real signatures, texts of programs, files that mislead or cost."

import csv, html, io, json, os, random, struct, subprocess, sys, threading, time, zlib
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from fakeface import claims as module
from fakeface.claims import (
    MAX_TEXT, NO_CLAIM, Claim, Claims, claims, claims_text, disagreement)
from fakeface.images import ImageError

SOURCE = 'http://cv.iptc.org/newscodes/digitalsourcetype/'
MIMES = dict(JPEG='jpeg', PNG='png', WEBP='webp', TIFF='tiff', GIF='gif', HEIF='heic', AVIF='avif')
XMP = '''<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF
 xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description
 xmlns:ext="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" {}>{}
</rdf:Description></rdf:RDF></x:xmpmeta>'''
GENERATED = XMP.format(f'ext:DigitalSourceType="{SOURCE}trainedAlgorithmicMedia"', '')
A1111 = ('portrait\nNegative prompt: blurry\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, '
         'Size: 512x512, Model hash: 1, Model: dream, Version: ')
COMFY = json.dumps({'3': {'inputs': {'seed': 1}, 'class_type': 'KSampler'}})

def image(kind='PNG', size=64, **how):
    out = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(noise).save(out, kind, **how)
    return out.getvalue()

def png(**texts):
    info = PngInfo()
    for key, text in texts.items(): info.add_text(key, text)
    return image(pnginfo=info)

def chunk(kind, body):
    return struct.pack('>I', len(body)) + kind + body + struct.pack('>I', zlib.crc32(kind + body))

def raw(kind, body, name='generic'):
    "A PNG with a profile as ImageMagick writes it."
    return png(**{f'Raw profile type {kind}': f'\n{name}\n{len(body):8}\n' + '\n'.join(
        body.hex()[i:i + 72] for i in range(0, 2 * len(body), 72)) + '\n'})

def exif(kind, make=None, model=None, software=None, comment=None, order='be', more={}):
    tags = Image.Exif()
    for number, text in {271: make, 272: model, 305: software, **more}.items():
        if text: tags[number] = text
    if comment:
        tags.get_ifd(0x8769)[0x9286] = b'UNICODE\0' + comment.encode(f'utf-16-{order}')
    return image(kind, exif=tags)

def exif_block(comment):
    tags = Image.Exif()
    tags.get_ifd(0x8769)[0x9286] = b'ASCII\0\0\0' + comment.encode()
    return tags.tobytes()

def certificate(who, key, root_key, ca=False):
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.serialization import Encoding
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
    name = lambda n: x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, n)])
    now, uses = datetime.now(timezone.utc), dict.fromkeys(
        'content_commitment key_encipherment data_encipherment key_agreement encipher_only '
        'decipher_only crl_sign'.split(), False)
    b = x509.CertificateBuilder(name('Test root'), name(who), key.public_key(), 7, now
                                - timedelta(1), now + timedelta(9))
    b = b.add_extension(x509.BasicConstraints(ca, None), True)
    b = b.add_extension(x509.KeyUsage(digital_signature=not ca, key_cert_sign=ca, **uses), True)
    mail = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION])
    if not ca: b = b.add_extension(mail, False)
    b = b.add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_public_key(root_key.public_key()), False)
    return b.sign(root_key, hashes.SHA256()).public_bytes(Encoding.PEM)

class Authority:
    "Certificates made for this test; `root` is the anchor of trust."
    def __init__(self):
        from cryptography.hazmat.primitives.asymmetric import ec
        self.new_key = lambda: ec.generate_private_key(ec.SECP256R1())
        self.key = self.new_key()
        self.root = certificate('Test root', self.key, self.key, ca=True)

    def signer(self, who):
        import c2pa
        from cryptography.hazmat.primitives.serialization import (
            Encoding, NoEncryption, PrivateFormat)
        key = self.new_key()
        chain = certificate(who, key, self.key) + self.root
        secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return c2pa.Signer.from_info(c2pa.C2paSignerInfo('es256', chain, secret, None))

    def sign(self, data, kind='PNG', who='OpenAI', source='trainedAlgorithmicMedia',
             edit='', tool='GPT-4o', part=b'', thumbnail=b'', url=''):
        import c2pa
        made = {'action': edit or 'c2pa.created'}
        if tool: made['softwareAgent'] = {'name': tool}
        if source: made['digitalSourceType'] = SOURCE + source
        told = {'claim_generator_info': [{'name': 'Test'}], 'assertions': [
            {'label': 'c2pa.actions.v2', 'data': {'actions': [made]}}]}
        if thumbnail: told['thumbnail'] = {'format': 'image/jpeg', 'identifier': 'big.jpg'}
        builder, out = c2pa.Builder(told), io.BytesIO()
        if thumbnail: builder.add_resource('big.jpg', io.BytesIO(thumbnail))
        if url: builder.set_no_embed() or builder.set_remote_url(url)
        if edit: builder.set_intent(c2pa.C2paBuilderIntent.EDIT)  # `data` becomes the parent
        if part: builder.add_ingredient({'title': 'x', 'relationship': 'componentOf'}, 'image/png',
                                        io.BytesIO(part))
        builder.sign(self.signer(who), f'image/{MIMES[kind]}', io.BytesIO(data), out)
        return out.getvalue()

@pytest.fixture(scope='module')
def authority():
    pytest.importorskip('c2pa', reason='needs c2pa-python: pip install fakeface[claims]')
    return Authority()

@pytest.mark.parametrize('kind', MIMES)
def test_signature_holds_and_breaks(authority, kind, tmp_path):
    plain = image(kind)
    path = tmp_path/'photo.txt'  # the format is told by the content
    path.write_bytes(authority.sign(plain, kind))
    unknown, = claims(path)
    assert (unknown.kind, unknown.verified, unknown.by) == ('signed', None, 'OpenAI')
    assert unknown.origin == 'generated' and 'GPT-4o' in unknown.says
    assert 'no trust anchor' in unknown.says and 'by OpenAI' not in unknown.says
    known, = claims(path, anchors=authority.root.decode())
    assert known.verified is True
    assert known.says.startswith('The file carries a signed statement by OpenAI that it was made '
                                 'by an AI model')
    assert known.says.endswith('The signature is valid.')
    data = bytearray(path.read_bytes())
    middle = len(plain) * 6 // 10
    data[data.index(plain[middle:middle + 16])] ^= 1  # a byte of the pixels
    changed, = claims(bytes(data), anchors=authority.root.decode())
    assert changed.verified is False
    assert changed.says.endswith('does not hold: the image was changed after it was signed.')

def test_statement_cut_off(authority):
    data = authority.sign(image())
    at = data.index(b'caBX') - 4
    end = at + 12 + int.from_bytes(data[at:at + 4])
    assert claims(data[:at] + data[end:]) == [] and claims_text([]) == NO_CLAIM
    half, = claims(data[:at] + chunk(b'caBX', data[at + 8:at + 800]) + data[end:])
    assert half.verified is not True and not half.origin

def test_whole_or_part(authority):
    sign, photo = authority.sign, image(size=32)
    made = sign(photo)
    for data, origin in (
            (sign(photo, source='compositeWithTrainedAlgorithmicMedia'), 'part'),
            (sign(photo, source='digitalCapture'), 'captured'),
            (sign(photo, source='humanEdits'), ''),
            (sign(made, source='', edit='c2pa.resized'), 'generated'),
            (sign(photo, source='humanEdits', part=made), 'part'),
            (sign(photo, edit='c2pa.edited'), 'part')):
        assert [c.origin for c in claims(data)] == [origin]

@pytest.mark.parametrize('made, tool, says', [
    ('digitalCapture', 'Photoshop', 'with a camera, and that it was edited with "Photoshop" ('),
    ('digitalCapture', '', 'with a camera, and that it was edited with "Test" ('),
    ('', 'GIMP', 'does not say how the image was made, but that it was edited with "GIMP" (')])
def test_edits_are_told(authority, made, tool, says):
    photo = image(size=32)
    if made: photo = authority.sign(photo, source=made, tool='Camera')
    assert 'edited' not in claims_text(claims(photo))
    told, = claims(authority.sign(photo, source='', edit='c2pa.edited', tool=tool))
    assert says in told.says and told.origin == ('captured' if made else '')

def test_other_signers_root_is_not_trusted(authority):
    told, = claims(authority.sign(image()), anchors=Authority().root.decode())
    assert told.verified is None

def test_what_strangers_write_is_harmless(authority):
    bad = '<img src=x onerror=alert(1)>"\n\x1b[31m![a](http://b)\u202e' + 'long' * 5000
    signed = claims(authority.sign(image(), who=bad[:60].replace('\n', ' '), tool=bad))
    typed = f'<a:DigitalSourceType>{html.escape(bad)}</a:DigitalSourceType>'
    files = [exif('JPEG', make=bad, model=bad), png(Software='NovelAI ' + bad),
             png(parameters=A1111.replace('dream', bad[:28]), AIGC='"Label": "1"' + bad),
             image('JPEG', xmp=XMP.format('', typed).encode())]
    for told in (signed, *map(claims, files)):
        assert told and all(len(c.says) < 500 and len(c.by) < 100 for c in told)
        page, line = told._repr_html_(), claims_text(told)
        assert '<img' not in page and page.count('<') == 2 + 2 * len(told)
        assert line.isprintable() and '\u202e' not in line
        assert '"\n' not in line and all('"' not in c.by for c in told)

@pytest.mark.parametrize('program, data', [
    ('Stable Diffusion web UI (AUTOMATIC1111 or alike)', png(parameters=A1111 + 'v1.9.3')),
    ('Stable Diffusion web UI (AUTOMATIC1111 or alike)', exif('JPEG', comment=A1111 + 'v1.9')),
    ('Stable Diffusion web UI (AUTOMATIC1111 or alike)',
     exif('WEBP', comment=A1111 + 'v1.9', order='le')),
    ('Stable Diffusion WebUI Forge', png(parameters=A1111 + 'f2.0.1v1.10.1-previous-1')),
    ('SD.Next', png(parameters=A1111 + '1, App: SD.Next')),
    ('Fooocus', png(parameters=A1111 + 'Fooocus v2.5.5')),
    ('Fooocus', png(parameters='{"prompt": "a"}', fooocus_scheme='fooocus')),
    ('ComfyUI', png(prompt=COMFY)),
    ('ComfyUI', png(workflow=json.dumps({'last_node_id': 9, 'nodes': [], 'x': 'y' * 2 * 10**6}))),
    ('ComfyUI', exif('WEBP', make='workflow:{"nodes": []}', model='prompt:' + COMFY)),
    ('InvokeAI', png(invokeai_metadata='{"app_version": "4.2.0"}')),
    ('InvokeAI', png(**{'sd-metadata': '{"model": "stable diffusion"}'})),
    ('InvokeAI', png(Dream='"a face" -s 50 -S 1 -W 512 -H 512 -C 7.5 -A k_lms')),
    ('NovelAI', png(Software='NovelAI', Title='AI generated image', Comment='{"steps": 28}')),
    ('SwarmUI', png(parameters='{\n "sui_image_params": {"model": "x"}}')),
    ('Draw Things', png(**{'XML:com.adobe.xmp': XMP.format(
        '', '<xmp:CreatorTool>Draw Things</xmp:CreatorTool>')})),
    ('Midjourney', png(Description='a face --v 6 Job ID: a7421d2f-b262-44f9-977c-ac23e9c7d3e3')),
    ('Easy Diffusion', png(use_stable_diffusion_model='sd-v1-5', seed='1')),
    ('Made with Google AI', image('JPEG', xmp=XMP.format(
        'xmlns:p="x"', '<p:Credit>Made with Google AI</p:Credit>').encode())),
    ('Adobe Firefly', png(Software='Adobe Firefly')),
    ('NovelAI', image('JPEG', xmp=XMP.format('tiff:Software="NovelAI"', '').encode())),
    ('ComfyUI', png(workflow='{"last_link_id": 3, "nodes": [{"id": 1}], "links": []}')),
    ('ComfyUI', exif('JPEG', model='workflow:{"nodes":[{"id": 1}]}')),
    ('Draw Things', png(Comment='{"c": "a face", "seed_mode": "Scale Alike", "steps": 20}')),
    ('Stable Diffusion web UI (AUTOMATIC1111 or alike)', raw('APP1', exif_block(A1111 + 'v1.9'))),
])
def test_settings_of_programs(program, data):
    claim, = claims(data)
    assert (claim.kind, claim.by) == ('settings', program)
    assert (claim.origin, claim.verified) == ('generated', None)
    assert 'anyone can write' in claim.says

def test_ordinary_texts_say_nothing():
    for texts in (dict(Software='Adobe Photoshop 25.0', Comment='Created with GIMP'),
                  dict(prompt='the prompt', workflow='mine', parameters='a=1', Dream=''),
                  dict(Description='Steps: 20 up the hill', Title='A Flux of People'),
                  dict(Artist='Gemini Ganesan', Source='Leonardo da Vinci'),
                  dict(Model='sdxl base 1.0', Prompt='a face', Seed='1', Make='nobody')):
        assert claims(png(**texts)) == []

@pytest.mark.parametrize('data, kinds', [
    (exif('JPEG', 'Canon', more={315: 'Imagen y Sonido S.L.'}), ['camera']),
    (exif('JPEG', 'Canon', more={0x9C9B: 'Imagen de la boda'.encode('utf-16-le')}), ['camera']),
    (image('JPEG', xmp=XMP.format('p:Credit="Imagen: Juan Perez / EFE"', '').encode()), []),
    (png(Title='A firefly at night'), []), (png(Title='Firefly'), []), (png(Artist='Imagen'), []),
    (png(Title='Sam Altman at the OpenAI DevDay 2023', Source='OpenAI'), []),
    (png(Author='Ideogram Design Studio'), []), (png(Credit='Made with AI and love'), []),
    (png(Software='Editor de Imagen'), []),
    (png(Title='Midjourney'), ['settings']), (png(Credit='Made with Google AI.'), ['settings']),
    (png(Software='Ideogram 2.0'), ['settings']), (png(AISystemUsed='Imagen'), ['settings']),
])
def test_words_of_people_name_no_maker(data, kinds):
    assert [c.kind for c in claims(data)] == kinds

def test_camera_is_no_proof():
    for kind in ('JPEG', 'PNG', 'WEBP', 'TIFF', 'HEIF', 'AVIF'):
        camera, = claims(exif(kind, 'Canon', 'Canon EOS R5', 'Firmware 1.0'))
        assert (camera.kind, camera.by) == ('camera', 'Canon EOS R5')
        assert camera.verified is None and 'no proof' in camera.says

@pytest.mark.parametrize('kind', 'JPEG PNG WEBP TIFF HEIF AVIF extended IPTC'.split())
def test_labels_without_signature(kind):
    packet = GENERATED.encode()
    how = {'PNG': dict(pnginfo=PngInfo()), 'TIFF': dict(tiffinfo={700: packet})}.get(
        kind, dict(xmp=packet))
    if kind == 'PNG': how['pnginfo'].add_itxt('XML:com.adobe.xmp', GENERATED, zip=True)
    if kind in ('extended', 'IPTC'):
        far = b'http://ns.adobe.com/xmp/extension/\0' + b'A' * 32 + struct.pack(
            '>II', len(packet), 0) + packet
        record = b''.join(b'\x1c\x02' + bytes([n]) + struct.pack('>H', len(t)) + t
                          for n, t in ((110, b'Made with Google AI'), (80, b'nobody')))
        photoshop = b'Photoshop 3.0\x008BIM\x04\x04\0\0' + struct.pack('>I', len(record)) + record
        code, body = (0xE1, far) if kind == 'extended' else (0xED, photoshop + b'\0' * (
            len(record) % 2))
        plain = image('JPEG')
        data = plain[:2] + bytes([255, code]) + struct.pack('>H', len(body) + 2) + body + plain[2:]
    else: data = image(kind, **how)
    claim, = claims(data)
    assert (claim.origin, claim.verified) == ('generated', None) and 'not signed' in claim.says

def gif(packet):
    plain, tail = image('GIF'), bytes([1, *range(255, -1, -1), 0])
    return plain[:-1] + b'!\xff\x0bXMP DataXMP' + packet + tail + b';'

SOURCED = '<ext:DigitalSourceType>{}</ext:DigitalSourceType>'
AI = SOURCE + 'trainedAlgorithmicMedia'
@pytest.mark.parametrize('data', [
    raw('xmp', GENERATED.encode(), 'xmp'), gif(GENERATED.encode()),
    raw('APP1', b'http://ns.adobe.com/xap/1.0/\0' + GENERATED.encode()),
    raw('iptc', b'8BIM\x04\x04\0\0\0\0\0\x18\x1c\x02\x6e\0\x13Made with Google AI', 'iptc'),
    *(image('JPEG', xmp=GENERATED.encode(f'utf-16-{order}')) for order in ('le', 'be')),
    *(image('JPEG', xmp=XMP.format(*packet).encode()) for packet in (
        ('', SOURCED.format(f'<![CDATA[{AI}]]>')),
        ('', SOURCED.format(f'<rdf:Description><rdf:value>{AI}</rdf:value></rdf:Description>')),
        ('', SOURCED.format(f'\n <rdf:Description rdf:about="{AI}"/>\n')),
        (f'ext:DigitalSourceType  =  "{AI}"', ''),
        ('', '<ext:AISystemVersionUsed>3.0</ext:AISystemVersionUsed>'),
        ('ext:AIPromptInformation="a face"', ''))),
])
def test_claims_in_odd_places(data):
    assert [(c.origin, c.verified) for c in claims(data)] == [('generated', None)]

def test_chinese_label():
    for label, origin in (('1', 'generated'), ('2', ''), ('3', '')):
        told = html.escape(json.dumps({'Label': label, 'ContentProducer': 'x'}))
        xmp = XMP.format('xmlns:T="x"', f'<T:AIGC>{told}</T:AIGC>').encode()
        assert [(c.kind, c.origin) for c in claims(image('JPEG', xmp=xmp))] == [('label', origin)]

def bombs():
    "Files made to cost, each with what it must still say."
    entities = ''.join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 10))
    laughs = f'<!DOCTYPE x [<!ENTITY a0 "ha">{entities}]>{GENERATED}<b>&a9;</b>'
    plain, zeros = image(), zlib.compress(b'a' * 60_000_000)
    ztxt = plain[:33] + chunk(b'zTXt', b'parameters\0\0' + zeros) * 40 + plain[33:]
    pieces = ('Steps: 1, ', 'Model: ', '<a:Credit ', 'Label', '"model" : ', 'Made with AI', '\\')
    yield 'entities', image('JPEG', xmp=laughs.encode()), ['label']
    yield 'inflated', ztxt, []
    yield 'patterns', png(**{f'k{i}': p * (MAX_TEXT // len(p)) for i, p in enumerate(pieces)}), []
    yield 'pieces', plain[:33] + chunk(b'tEXt', b'a\0b') * 90_000 + plain[33:], []
    junk = struct.pack('>I', 50_000_000) + b'jumb' + random.Random(0).randbytes(49_999_992)
    yield 'junk', plain[:33] + chunk(b'caBX', junk) + plain[33:], ['signed']
    nested = b''.join(struct.pack('>I', 8 * i) + b'jumb' for i in range(10**6, 0, -1))
    yield 'nested', plain[:33] + chunk(b'caBX', nested) + plain[33:], ['signed']

def test_bombs_stay_small(authority, tmp_path):
    files = [*bombs(), ('50 MB', authority.sign(image(), thumbnail=os.urandom(50_000_000)),
                        ['signed'])]
    for name, data, _ in files: (tmp_path/name).write_bytes(data)
    code = '''
import sys, time
from resource import RUSAGE_CHILDREN, RUSAGE_SELF, getrusage
from fakeface.claims import claims
for path in sys.argv[1:]:
    before = getrusage(RUSAGE_SELF).ru_maxrss
    told = claims(path)
    child = getrusage(RUSAGE_CHILDREN)
    peak = max(getrusage(RUSAGE_SELF).ru_maxrss - before, child.ru_maxrss) // 1024
    print(time.process_time() + child.ru_utime + child.ru_stime, peak, *[c.kind for c in told])
'''
    done = subprocess.run([sys.executable, '-c', code, *(tmp_path/n for n, *_ in files)],
                          capture_output=True, text=True)
    assert not done.returncode, done.stderr
    before = 0
    for (name, _, kinds), line in zip(files, done.stdout.splitlines(), strict=True):
        seconds, megabytes, *told = line.split()  # of processor time, since the start
        assert told == kinds and float(seconds) - before < 15 and int(megabytes) < 1100, name
        before = float(seconds)

def test_bounds_of_the_check(authority, monkeypatch):
    data = authority.sign(image())
    for bound, value, why in (('SECONDS', .001, 'seconds'), ('MEMORY', 2**25, 'GB'),
                              ('MAX_STORE', 10, 'longer than')):
        with monkeypatch.context() as m:
            m.setattr(module, bound, value)
            told, = claims(data)
        assert told.verified is None and not told.origin
        assert 'cannot be read' in told.says and why in told.says

def test_odd_shapes_are_told(authority, monkeypatch):
    data, deep = authority.sign(image()), []
    for _ in range(5000): deep = [deep]
    for parts in (deep, [{'action': [], 'digitalSourceType': 'a', 'softwareAgent': {'name': [1]}}],
                  [{'softwareAgent': 7, 'digitalSourceType': 'b'}]):
        store = {'active_manifest': 'a', 'manifests': {'a': {'assertions': parts}}}
        monkeypatch.setattr(module, 'read_store', lambda *_: store)
        told, = claims(data)
        assert told.kind == 'signed' and not told.verified and not told.origin

def test_no_network(authority):
    asked = []
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)
        def log_message(self, *_): pass
    server = HTTPServer(('127.0.0.1', 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f'http://127.0.0.1:{server.server_port}/far.c2pa'
        data = authority.sign(image('JPEG'), 'JPEG', url=url)
        told, = claims(data)
        assert 'Nothing is fetched' in told.says and not asked
        import c2pa
        with pytest.raises(c2pa.C2paError): c2pa.Reader('image/jpeg', io.BytesIO(data))
        assert asked  # the library would have, so this test can fail
    finally: server.shutdown()

def test_without_the_library(authority, monkeypatch):
    data = authority.sign(image())
    monkeypatch.setattr(module, 'find_spec', lambda name: None)
    told, = claims(data)
    assert "pip install 'fakeface[claims]'" in told.says and '\n' not in told.says
    assert told.verified is None and claims(image()) == []

def test_library_is_loaded_only_when_wanted():
    code = 'import sys, fakeface.claims; print("c2pa" in sys.modules, "torch" in sys.modules)'
    assert subprocess.check_output([sys.executable, '-c', code], text=True) == 'False False\n'

def test_broken_files(authority):
    rng = random.Random(1)
    seeds = [authority.sign(image(k), k) for k in ('JPEG', 'WEBP', 'AVIF')] + [
        png(parameters=A1111, prompt=COMFY), exif('JPEG', 'a', 'b', 'c', A1111),
        image('JPEG', xmp=GENERATED.encode())]
    start, opened = time.process_time(), 0
    for _ in range(120):
        data = bytearray(rng.choice(seeds))
        for _ in range(rng.randint(1, 9)): data[rng.randrange(len(data))] = rng.randrange(256)
        data = bytes(data[:rng.randrange(len(data))] if rng.random() < .2 else data)
        try: told = claims(data)
        except ImageError: continue
        opened += 1
        assert isinstance(told, Claims) and claims_text(told).isprintable()
    assert opened > 40 and time.process_time() - start < 60

def test_no_image_is_an_error(tmp_path):
    for bad in (b'%PDF-1.4', tmp_path/'nothing.png', tmp_path):
        with pytest.raises(ImageError): claims(bad)

def test_disagreement():
    said = lambda origin: [Claim('label', 'x', origin=origin)]
    assert 'says that it was made by an AI model' in disagreement(said('generated'), 'real')
    assert 'taken with a camera' in disagreement(said('captured'), 'fake')
    for origin, word in (('generated', 'fake'), ('captured', 'real'), ('', 'fake'),
                         ('generated', 'uncertain'), ('generated', '')):
        assert disagreement(said(origin), word) == ''

@pytest.mark.slow
def test_beside_the_verdict(authority, cli, tmp_path):
    from matplotlib.cbook import get_sample_data
    photo = open(get_sample_data('grace_hopper.jpg', asfileobj=False), 'rb').read()
    for name, data in (('a plain.jpg', photo), ('b signed.jpg', authority.sign(photo, 'JPEG')),
                       ('c noise.png', png(parameters=A1111)), ('d.jpg', b'no image')):
        (tmp_path/name).write_bytes(data)
    (tmp_path/'root.pem').write_bytes(authority.root)
    anchors = '--anchors', tmp_path/'root.pem'
    code, out, _ = cli('predict', tmp_path, '--claims', *anchors)
    plain, none, signed, valid, noise = out.splitlines()
    assert code == 0 and plain[:4] == signed[:4] == 'real' and none.strip() == NO_CLAIM
    assert 'The signature is valid. The file and the model disagree' in valid
    assert 'c noise.png: The file holds settings of Stable Diffusion' in noise
    table = tmp_path/'t.csv'
    assert cli('predict', tmp_path, '--claims', *anchors, '--csv', table)[0] == 0
    rows = list(csv.DictReader(open(table, newline='')))
    assert list(rows[0])[-1] == 'claims' and rows[-1]['claims'] == ''
    assert [r['claims'] for r in rows[:2]] == [none.strip(), valid.strip()]
    assert rows[0]['p_fake'] == rows[1]['p_fake']  # a claim changes no verdict
    broken = authority.root[:60] + authority.root[90:]
    (tmp_path/'broken.pem').write_bytes(broken)
    (tmp_path/'beside.pem').write_bytes(authority.root + broken)
    (tmp_path/'cut.pem').write_bytes(authority.root + authority.root[:-30])
    (tmp_path/'no key.pem').write_bytes(authority.root[:60] + authority.root[-27:])
    for wrong in ((*anchors,), *(('--claims', '--anchors', tmp_path/n) for n in (
            'd.jpg', 'none.pem', 'broken.pem', 'beside.pem', 'cut.pem', 'no key.pem'))):
        code, out, err = cli('predict', tmp_path/'a plain.jpg', *wrong)
        assert code == 2 and not out and err.count('\n') == 1
