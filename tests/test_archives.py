"""dnnlib.archives and dnnlib.labels: folders and zips of images, and their labels."""

import io
import pickle
import zipfile

import numpy as np
import pytest
from PIL import Image

from dnnlib.archives import ImageArchive
from dnnlib.images import BadImageError, to_image
from dnnlib.labels import labels_from_folders, read_labels


def encoded(image: Image.Image, kind: str = 'png', **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 256, shape, dtype=np.uint8)


# -------------------------------------------------------------------------------------------------------------- archive


def make_archive(path, files: dict[str, bytes], packed: bool, compression=zipfile.ZIP_STORED):
    if packed:
        with zipfile.ZipFile(path, 'w', compression) as archive:
            for name, data in files.items():
                archive.writestr(name, data)
    else:
        for name, data in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data)
    return path


FILES = {f'{c}/{i}.PNG': encoded(to_image(noise(3, 4, 6, seed=i))) for i, c in enumerate('ba')}
CLUTTER = {'__MACOSX/b/._0.png': b'x', 'b/.hidden.png': b'x', 'readme.txt': b'x'}


@pytest.mark.parametrize('kind', ['folder', 'stored', 'deflated'])
def test_archive_reads_images_in_order_of_their_names(tmp_path, kind):
    compression = zipfile.ZIP_DEFLATED if kind == 'deflated' else zipfile.ZIP_STORED
    path = make_archive(tmp_path / kind, FILES | CLUTTER, kind != 'folder', compression)
    archive = ImageArchive(path)
    assert archive.names() == ['a/1.PNG', 'b/0.PNG'] and len(archive) == 2
    for copy in (archive, pickle.loads(pickle.dumps(archive))):
        assert np.array_equal(copy.image(1), noise(3, 4, 6, seed=0))
        assert copy.header(0) == (6, 4, 3, True)
        assert copy.read_extra('readme.txt') == b'x' and copy.read_extra('no.txt') is None
        copy.close()
    assert np.array_equal(archive.image(0), noise(3, 4, 6, seed=1))  # opens again by itself


def test_archive_reads_entries_with_long_extra_fields(tmp_path):
    with zipfile.ZipFile(tmp_path / 'a.zip', 'w') as archive:
        entry = zipfile.ZipInfo('a.png')
        entry.extra = b'\xfe\xca' + (500).to_bytes(2, 'little') + bytes(500)
        archive.writestr(entry, FILES['a/1.PNG'])
    assert ImageArchive(tmp_path / 'a.zip').read(0) == FILES['a/1.PNG']


def test_damage_in_a_zip_is_named(tmp_path):
    path = make_archive(tmp_path / 'a.zip', FILES, True)
    content = bytearray(path.read_bytes())
    content[content.index(FILES['a/1.PNG']) + 60] ^= 1
    path.write_bytes(content)
    archive = ImageArchive(path)
    archive.image(1)
    with pytest.raises(BadImageError, match='a.zip: a/1.PNG: damaged in the zip'):
        archive.image(0)


def test_archives_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match='no such file or folder: .*nothing.zip'):
        ImageArchive(tmp_path / 'nothing.zip')
    (tmp_path / 'text.zip').write_text('no zip')
    with pytest.raises(ValueError, match='text.zip: neither a folder nor a zip'):
        ImageArchive(tmp_path / 'text.zip')
    with pytest.raises(ValueError, match='empty.zip: no images in this zip'):
        ImageArchive(make_archive(tmp_path / 'empty.zip', CLUTTER, True))
    (tmp_path / 'dir').mkdir()
    with pytest.raises(ValueError, match='dir: no images in this folder'):
        ImageArchive(tmp_path / 'dir')
    with pytest.raises(ValueError, match='a/1.PNG uses compression method 12'):
        ImageArchive(make_archive(tmp_path / 'bz.zip', FILES, True, zipfile.ZIP_BZIP2))


def test_a_dangling_link_is_named(tmp_path):
    (tmp_path / 'a.png').symlink_to(tmp_path / 'gone.png')
    for read in (ImageArchive(tmp_path).image, ImageArchive(tmp_path).header):
        with pytest.raises(BadImageError, match='a.png: cannot be read'):
            read(0)


# --------------------------------------------------------------------------------------------------------------- labels


def labelled(tmp_path, text: str | bytes):
    return ImageArchive(make_archive(tmp_path / 'a.zip', FILES | {'dataset.json': text}, True))


def test_labels_from_json(tmp_path):
    labels = read_labels(labelled(tmp_path, '{"labels": [["b/0.PNG", 4], ["a\\\\1.PNG", 2]]}'))
    assert labels.values.tolist() == [2, 4] and labels.values.dtype == np.int64 and labels.class_names is None
    labels = read_labels(labelled(tmp_path, '{"labels": [["b/0.PNG", [1, 0.5]], ["a/1.PNG", [0, 3]]]}'))
    assert labels.values.tolist() == [[0, 3], [1, 0.5]] and labels.values.dtype == np.float32
    assert read_labels(labelled(tmp_path, '{"labels": null}')) is None


@pytest.mark.parametrize(
    'text, reason',
    [
        ('{', 'is not JSON'),
        ('[1]', 'should be'),
        ('{"labels": [["a/1.PNG", 0]]}', 'no label for 1 of 2 images; the first is b/0.PNG'),
        ('{"labels": []}', 'no label for 2 of 2 images'),
        ('{"labels": {"a/1.PNG": 0}}', 'list of'),
        ('{"labels": [["a/1.PNG", 0], ["b/0.PNG", 1], ["c.png", 2]]}', '3 images, there are 2; not there: c.png'),
        ('{"labels": [["a/1.PNG", 0], ["b/0.PNG", -1]]}', 'start at 0'),
        ('{"labels": [["a/1.PNG", 0], ["b/0.PNG", "cat"]]}', 'should all be'),
        ('{"labels": [["a/1.PNG", [0]], ["b/0.PNG", [0, 1]]]}', 'should all be'),
        ('{"labels": [["a/1.PNG", 0], ["b/0.PNG", 2]], "class_names": ["x", "y"]}', 'class 2 has no name'),
    ],
)
def test_labels_that_do_not_match(tmp_path, text, reason):
    with pytest.raises(ValueError, match=f'a.zip: dataset.json.*{reason}') as error:
        read_labels(labelled(tmp_path, text))
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    'names, values, class_names',
    [
        (['cat/1.png', 'cat/x/2.png', 'dog/1.png'], [0, 0, 1], ['cat', 'dog']),
        (['all/0/1.png', 'all/1/1.png'], [0, 1], ['0', '1']),
    ],
)
def test_labels_from_folders(names, values, class_names):
    labels = labels_from_folders(names)
    assert labels.values.tolist() == values and labels.class_names == class_names


@pytest.mark.parametrize(
    'names',
    [
        ['a.png'],
        ['x/a.png'],
        ['a.png', 'b.png'],
        ['x/a.png', 'x/b.png'],
        ['a.png', 'x/b.png'],
        ['00000/1.png', '00001/2.png'],
    ],
)
def test_folders_that_are_no_classes(names):
    assert labels_from_folders(names) is None
