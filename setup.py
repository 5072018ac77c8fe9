"""Packaging: everything it says is read from settings.ini, the only list of requirements."""
from configparser import ConfigParser
from pathlib import Path

from setuptools import setup

here = Path(__file__).parent
config = ConfigParser(delimiters=['='], interpolation=None)
config.read(here / 'settings.ini', encoding='utf-8')
cfg = config['DEFAULT']

setup(
    name=cfg['lib_name'],
    version=cfg['version'],
    description=cfg['description'],
    author=cfg['author'],
    author_email=cfg['author_email'],
    license='MIT',
    keywords=cfg['keywords'],
    long_description=(here / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    packages=['fakeface'],
    package_data={'fakeface': ['weights/*', 'weights/figures/*', 'examples/*']},
    python_requires='>=' + cfg['min_python'],
    install_requires=cfg['requirements'].split(),
    extras_require={
        # whoever develops tests what signed statements say, too
        'dev': (cfg['dev_requirements'] + ' ' + cfg['claims_requirements']).split(),
        'claims': cfg['claims_requirements'].split(), 'fetch': cfg['fetch_requirements'].split(),
        'onnx': cfg['onnx_requirements'].split()
    },
    entry_points={'console_scripts': [cfg['console_scripts']]},
)
