"""dataset_tool.py: every kind of source, what it writes, and what it says when something is wrong."""

import errno
import gzip
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from mutations import mutations, outcome
from PIL import Image

import dataset_tool
from dnnlib import sources
from dnnlib.archives import ImageArchive
from dnnlib.images import to_array
from dnnlib.labels import read_labels
from dnnlib.lmdb_files import LmdbFile
from training.dataset import ImageFolderDataset

ROOT = Path(__file__).resolve().parent.parent


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 256, shape, dtype=np.uint8)


def save(path: Path, pixels: np.ndarray | Image.Image, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)
    return path


def run(source, dest, *options: str, ok: bool = True) -> str:
    """Run the tool. Returns what it printed; a failure must be one line, and leave nothing at or beside `dest`."""
    before = set(os.listdir(Path(dest).parent))
    result = CliRunner().invoke(dataset_tool.main, [f'--source={source}', f'--dest={dest}', *options])
    if ok:
        assert result.exit_code == 0, result.output
        return result.output
    assert result.exit_code != 0 and isinstance(result.exception, SystemExit), result.exception
    assert set(os.listdir(Path(dest).parent)) == before
    lines = [line for line in result.output.splitlines() if line.startswith('Error: ')]
    assert len(lines) == 1 and result.output.endswith(lines[0] + '\n')
    return lines[0]


@pytest.fixture
def photos(tmp_path) -> Path:
    for i in range(4):
        save(tmp_path / f"photos/{'ba'[i % 2]}/{i}.png", noise(4, 6, 3, seed=i))
    return tmp_path / 'photos'


def written(path) -> list[np.ndarray]:
    archive = ImageArchive(path)
    return [archive.image(i).transpose(1, 2, 0).squeeze() for i in range(len(archive))]


# ----------------------------------------------------------------------------------------------------- what is written


def test_folder_of_classes_to_zip(photos, tmp_path):
    output = run(photos, tmp_path / 'out.zip')
    assert '4 RGB images with labels of 2 classes' in output
    with zipfile.ZipFile(tmp_path / 'out.zip') as archive:
        names = [f'00000/img0000000{i}.png' for i in range(4)]
        assert archive.namelist() == [*names, 'dataset.json']
        assert all(e.compress_type == zipfile.ZIP_STORED for e in archive.infolist())
        content = json.loads(archive.read('dataset.json'))
    assert content == {'labels': [list(p) for p in zip(names, [0, 0, 1, 1], strict=True)], 'class_names': ['a', 'b']}
    for image, seed in zip(written(tmp_path / 'out.zip'), (1, 3, 0, 2), strict=True):
        assert np.array_equal(image, noise(4, 6, 3, seed=seed))
    dataset = ImageFolderDataset(tmp_path / 'out.zip', use_labels=True)
    assert dataset.label_dim == 2 and dataset.class_names == ['a', 'b'] and dataset.image_shape == (3, 4, 6)


def test_zip_to_folder_and_back_is_the_same(photos, tmp_path):
    run(photos, tmp_path / 'one.zip')
    run(tmp_path / 'one.zip', tmp_path / 'two')
    run(tmp_path / 'two', tmp_path / 'three.zip')
    assert (tmp_path / 'two/00000/img00000003.png').is_file()
    assert (tmp_path / 'one.zip').read_bytes() == (tmp_path / 'three.zip').read_bytes()


def test_label_vectors_and_no_labels(tmp_path):
    save(tmp_path / 'in/a.png', noise(2, 2))
    (tmp_path / 'in/dataset.json').write_text('{"labels": [["a.png", [0.5, 2]]]}')
    assert 'label vectors of length 2' in run(tmp_path / 'in', tmp_path / 'out.zip')
    assert read_labels(ImageArchive(tmp_path / 'out.zip')).values.tolist() == [[0.5, 2]]
    (tmp_path / 'in/dataset.json').unlink()
    assert '1 grey images without labels' in run(tmp_path / 'in', tmp_path / 'out.zip')  # replaces the older zip
    assert json.loads(ImageArchive(tmp_path / 'out.zip').read_label_file('dataset.json')) == {'labels': None}


def test_more_than_a_thousand_images_are_sharded_and_make_no_classes(tmp_path):
    source = sources.ArraySource(np.zeros([1001, 1, 1, 1], dtype=np.uint8), None)
    files = {}
    target = dataset_tool.Target(1, None, None, 'png')
    dataset_tool.write_all(source, range(1001), target, dataset_tool.Broken([], True), files.__setitem__)
    assert '00000/img00000999.png' in files and '00001/img00001000.png' in files


def test_skip_and_max_cut_a_source_in_two(photos, tmp_path):
    run(photos, tmp_path / 'test.zip', '--max-images=1', '--shuffle')
    run(photos, tmp_path / 'train.zip', '--skip-images=1', '--shuffle')
    test, train = written(tmp_path / 'test.zip'), written(tmp_path / 'train.zip')
    both = {image.tobytes() for image in test + train}
    assert len(test) == 1 and len(train) == 3 and both == {noise(4, 6, 3, seed=i).tobytes() for i in range(4)}
    run(photos, tmp_path / 'mid.zip', '--skip-images=1', '--max-images=2')
    assert [i.tobytes() for i in written(tmp_path / 'mid.zip')] == [noise(4, 6, 3, seed=i).tobytes() for i in (3, 0)]


# --------------------------------------------------------------------------------------------------------------- pixels


def test_all_kinds_of_files_become_one(tmp_path):
    """Palette, 16 bits, grey, alpha, CMYK, JPEG, WebP in one folder: RGB, and it is said."""
    folder = tmp_path / 'in'
    rgb = noise(4, 4, 3) // 128 * 128
    save(folder / 'a.png', Image.fromarray(rgb).quantize(8))
    save(folder / 'b.png', Image.fromarray(np.full([4, 4], 65535, dtype=np.uint16)))
    save(folder / 'c.png', Image.new('RGBA', (4, 4), (9, 9, 9, 0)))
    save(folder / 'd.tif', Image.new('CMYK', (4, 4), (0, 255, 0, 0)))
    save(folder / 'e.JPG', Image.new('L', (4, 4), 50))
    save(folder / 'f.webp', rgb, lossless=True)
    output = run(folder, tmp_path / 'out.zip')
    assert 'A mix of 2 grey, 3 RGB, 1 with alpha: all become RGB' in output
    images = written(tmp_path / 'out.zip')
    assert np.array_equal(images[0], rgb) and np.array_equal(images[5], rgb)
    assert [image[0, 0].tolist() for image in images[1:5]] == [[255] * 3, [255] * 3, [255, 0, 255], [50] * 3]


@pytest.mark.parametrize('shape', [(3, 5), (3, 5, 3), (3, 5, 4)])
def test_channels_are_kept(tmp_path, shape):
    save(tmp_path / 'in/a.png', noise(*shape))
    run(tmp_path / 'in', tmp_path / 'out.zip')
    assert np.array_equal(written(tmp_path / 'out.zip')[0], noise(*shape))


def test_channels_are_chosen(photos, tmp_path):
    run(photos, tmp_path / 'out.zip', '--channels=1')
    expected = to_array(Image.fromarray(noise(4, 6, 3, seed=1)).convert('L'))[0]
    assert np.array_equal(written(tmp_path / 'out.zip')[0], expected)
    run(photos, tmp_path / 'out.zip', '--channels=4', '--resolution=6x4')
    assert written(tmp_path / 'out.zip')[0].shape == (4, 6, 4)


def test_files_carry_nothing_but_pixels(tmp_path):
    save(tmp_path / 'in/a.png', noise(2, 2), icc_profile=bytes(5000))
    run(tmp_path / 'in', tmp_path / 'out.zip')
    assert len(ImageArchive(tmp_path / 'out.zip').read(0)) < 200


BANDS = np.repeat(np.arange(12, dtype=np.uint8) * 20, 1)  # a grey value for each column


@pytest.mark.parametrize(
    'options, columns, size',
    [
        (['--resolution=12x6'], range(12), (12, 6)),  # its own size: nothing happens
        (['--transform=center-crop', '--resolution=6x6'], range(3, 9), (6, 6)),
        (['--transform=center-crop', '--resolution=8x6'], range(2, 10), (8, 6)),
        (['--transform=center-crop-wide', '--resolution=8x6'], range(2, 10), (8, 8)),
    ],
)
def test_transforms(tmp_path, options, columns, size):
    save(tmp_path / 'in/a.png', np.tile(BANDS, (6, 1)))
    run(tmp_path / 'in', tmp_path / 'out.zip', *options)
    image = written(tmp_path / 'out.zip')[0]
    assert image.shape == size[::-1]
    bar = (size[1] - 6) // 2
    assert np.array_equal(image[bar : bar + 6], np.tile(BANDS[list(columns)], (6, 1)))
    assert not image[:bar].any() and not image[bar + 6 :].any()


@pytest.mark.parametrize('size', [(9, 40), (40, 9), (1, 40)])
def test_crop_and_resize_keep_proportions(size):
    """A centred square stays square in the middle of the image, wherever the longer side is cut."""
    image = dataset_tool.center_crop(Image.new('L', size, 7), 6, 4)
    assert image.size == (6, 4) and set(np.unique(image)) == {7}


def test_resolution_alone_stretches(photos, tmp_path):
    run(photos, tmp_path / 'out.zip', '--resolution=3x8')
    expected = Image.fromarray(noise(4, 6, 3, seed=1)).resize((3, 8), Image.Resampling.LANCZOS)
    assert np.array_equal(written(tmp_path / 'out.zip')[0], np.asarray(expected))


def test_format_keep_copies_what_needs_no_change(tmp_path):
    jpeg = save(tmp_path / 'in/a.jpeg', noise(8, 8, 3), quality=50)
    save(tmp_path / 'in/b.png', noise(8, 8, 4))
    run(tmp_path / 'in', tmp_path / 'out.zip', '--format=keep')
    archive = ImageArchive(tmp_path / 'out.zip')
    assert archive.names() == ['00000/img00000000.jpeg', '00000/img00000001.png']
    assert archive.read(0) == jpeg.read_bytes() and archive.image(1).shape == (3, 8, 8)
    run(tmp_path / 'in', tmp_path / 'out.zip', '--format=keep', '--resolution=4x4')
    assert ImageArchive(tmp_path / 'out.zip').names()[0].endswith('.png')
    run(tmp_path / 'in', tmp_path / 'out.zip', '--format=keep', '--transform=center-crop-wide', '--resolution=8x4')
    assert ImageArchive(tmp_path / 'out.zip').header(0)[:2] == (8, 8)


def test_format_webp_is_lossless(photos, tmp_path):
    run(photos, tmp_path / 'out.zip', '--format=webp-lossless')
    assert ImageArchive(tmp_path / 'out.zip').name(0).endswith('.webp')
    assert np.array_equal(written(tmp_path / 'out.zip')[0], noise(4, 6, 3, seed=1))
    assert 'WebP keeps RGB only' in run(photos, tmp_path / 'b.zip', '--format=webp-lossless', '--channels=1', ok=False)


# -------------------------------------------------------------------------------------------------------------- sources


def write_idx(path: Path, array: np.ndarray) -> Path:
    data = bytes([0, 0, 8, array.ndim]) + struct.pack(f'>{array.ndim}I', *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == '.gz' else data)
    return path


@pytest.mark.parametrize('ending', ['', '.gz'])
def test_idx_files(tmp_path, ending):
    digits, labels = noise(5, 28, 28), np.arange(5, dtype=np.uint8)
    source = write_idx(tmp_path / f't10k-images-idx3-ubyte{ending}', digits)
    output = run(source, tmp_path / 'out.zip')
    assert 'No labels: there is no' in output and '5 grey images without labels' in output
    write_idx(tmp_path / f't10k-labels-idx1-ubyte{ending}', labels)
    assert '5 grey images with labels of 5 classes' in run(source, tmp_path / 'out.zip')
    dataset = ImageFolderDataset(tmp_path / 'out.zip', use_labels=True)
    for i in range(5):
        image, label = dataset[i]
        assert label == i and np.array_equal(image[0, 2:30, 2:30], digits[i])
        assert image.shape == (1, 32, 32) and image.sum() == digits[i].astype(np.int64).sum()


def test_idx_of_another_size_is_not_padded(tmp_path):
    run(write_idx(tmp_path / 'x-images.idx3-ubyte', noise(2, 9, 7)), tmp_path / 'out.zip')
    assert np.array_equal(written(tmp_path / 'out.zip')[1], noise(2, 9, 7)[1])


def test_built_in_digits(tmp_path):
    run(ROOT / 'assets/mnist/t10k-images-idx3-ubyte.gz', tmp_path / 'out.zip', '--max-images=20')
    labels = read_labels(ImageArchive(tmp_path / 'out.zip')).values
    assert labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9] and written(tmp_path / 'out.zip')[0].shape == (32, 32)


@pytest.mark.parametrize('damage', [lambda d: d[:-9], lambda d: b'\0\0\10\1' + d[4:], lambda d: d[:7], lambda d: b''])
def test_idx_files_that_are_broken(tmp_path, damage):
    source = write_idx(tmp_path / 'a-images-idx3-ubyte', noise(2, 28, 28))
    source.write_bytes(damage(source.read_bytes()))
    assert 'a-images-idx3-ubyte: not a whole idx file' in run(source, tmp_path / 'out.zip', ok=False)


def test_idx_gz_that_is_truncated(tmp_path):
    source = write_idx(tmp_path / 'a-images-idx3-ubyte.gz', noise(2, 28, 28))
    source.write_bytes(source.read_bytes()[:-100])
    assert 'not a whole idx file' in run(source, tmp_path / 'out.zip', ok=False)


def test_idx_with_labels_of_another_length(tmp_path):
    source = write_idx(tmp_path / 'a-images-idx3-ubyte', noise(2, 28, 28))
    write_idx(tmp_path / 'a-labels-idx1-ubyte', noise(3))
    assert '3 labels for 2 images' in run(source, tmp_path / 'out.zip', ok=False)


class Evil:
    def __reduce__(self):
        return os.system, ('touch HACKED',)


def write_cifar(path: Path, **extra) -> Path:
    """cifar-10-python.tar.gz as it is published: pickles of protocol 2, keys and file names as bytes."""
    parts = {f'data_batch_{i}': {b'data': noise(2, 3072, seed=i), b'labels': [i, i + 1]} for i in range(1, 6)}
    parts['test_batch'] = {b'data': noise(3, 3072, seed=9), b'labels': [0, 0, 9]}
    parts['batches.meta'] = {b'label_names': [b'plane'] + [b'thing%d' % i for i in range(9)]}
    with tarfile.open(path, 'w:gz') as archive:
        for name, content in (parts | extra).items():
            data = pickle.dumps(content, protocol=2)
            entry = tarfile.TarInfo(f'cifar-10-batches-py/{name}')
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


def test_cifar10(tmp_path):
    source = write_cifar(tmp_path / 'cifar-10-python.tar.gz')
    assert '10 RGB images with labels of 10 classes' in run(source, tmp_path / 'out.zip')
    dataset = ImageFolderDataset(tmp_path / 'out.zip', use_labels=True)
    assert [int(dataset[i][1]) for i in range(10)] == [1, 2, 2, 3, 3, 4, 4, 5, 5, 6]
    assert np.array_equal(dataset[3][0], noise(2, 3072, seed=2)[1].reshape(3, 32, 32))
    assert dataset.class_names[0] == 'plane' and dataset.label_dim == 10
    run(source, tmp_path / 'test.zip', '--split=test')
    assert read_labels(ImageArchive(tmp_path / 'test.zip')).values.tolist() == [0, 0, 9]


def test_pickles_of_python_2_load():
    """As Python 2 wrote them: the old module path, byte strings as strings."""
    old = (
        b'\x80\x02}q\x01U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85U\x01b\x87Rq'
        b'\x05(K\x01K\x01K\x02\x86cnumpy\ndtype\nq\x06U\x02u1K\x00K\x01\x87Rq\x07(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff'
        b'\xffK\x00tb\x89U\x02\x07\xfftbs.'
    )
    content = sources._ArrayUnpickler(io.BytesIO(old), encoding='bytes').load()
    assert content[b'data'].tolist() == [[7, 255]]


def test_a_pickle_that_runs_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = write_cifar(tmp_path / 'cifar-10-python.tar.gz', data_batch_3={b'data': Evil()})
    error = run(source, tmp_path / 'out.zip', ok=False)
    assert 'the file asks to load posix.system: not a file of plain arrays, refused' in error
    assert not (tmp_path / 'HACKED').exists()


def test_tar_that_is_something_else(tmp_path):
    source = tmp_path / 'cifar-10-python.tar.gz'
    source.write_bytes(b'x' * 600)
    assert 'not a whole cifar-10-python.tar.gz' in run(source, tmp_path / 'out.zip', ok=False)
    with tarfile.open(source, 'w:gz'):
        pass
    assert 'not a whole cifar-10-python.tar.gz' in run(source, tmp_path / 'out.zip', ok=False)
    write_cifar(source)
    source.write_bytes(source.read_bytes()[:-20000])
    assert 'not a whole cifar-10-python.tar.gz' in run(source, tmp_path / 'out.zip', ok=False)


def lmdb(folder: Path, name: str) -> Path:
    """A database in ``folder`` that LMDB 0.9 wrote: 'images' or 'numbers' of tests/data."""
    folder.mkdir()
    data = gzip.decompress((Path(__file__).parent / 'data' / f'{name}.mdb.gz').read_bytes())
    (folder / 'data.mdb').write_bytes(data)
    return folder


def test_lmdb(tmp_path):
    source = lmdb(tmp_path / 'church_lmdb', 'images')
    output = run(source, tmp_path / 'out.zip', '--transform=center-crop', '--resolution=8x8')
    assert '2 RGB images without labels' in output and 'key key1: not an image' in output
    assert np.array_equal(written(tmp_path / 'out.zip')[1], noise(8, 12, 3, seed=2)[:, 2:10])


def test_an_lmdb_of_many_pages(tmp_path):
    database = LmdbFile(lmdb(tmp_path / 'a', 'numbers') / 'data.mdb')
    expected = {b'%d' % i: (b'%d,' % i * 1999)[: i * 37 % 2501] for i in range(300) if i % 5}
    assert {key: database.value(i) for i, key in enumerate(database.keys)} == expected
    assert database.keys == sorted(expected)


def test_a_damaged_lmdb_is_one_line(tmp_path):
    """Where liblmdb would abort, or read beyond the end."""
    path = lmdb(tmp_path / 'church_lmdb', 'images') / 'data.mdb'
    data, seen = path.read_bytes(), set()

    def read() -> list[bytes]:
        database = LmdbFile(path)
        return [database.value(i) for i in range(len(database))]

    for damaged in mutations(data, 160):
        path.write_bytes(damaged)
        found = outcome(read)
        seen.add(type(found))
    assert seen == {list, ValueError}
    path.write_bytes(data[: len(data) // 2])
    assert 'not an lmdb that can be read (data.mdb is truncated)' in run(path.parent, tmp_path / 'out.zip', ok=False)


@pytest.mark.parametrize('ending', ['', '.gz'])
@pytest.mark.parametrize(
    'shape, words',
    [
        ((2**32 - 1, 2**32 - 1, 2**32 - 1), 'do not hold an array'),
        ((2**20, 2**10, 2**10), 'do not hold an array'),
        ((0, 28, 28), 'do not hold an array'),
        ((1, 28, 0), 'do not hold an array'),
        ((3, 28, 28), 'array of'),
    ],
)
def test_idx_files_that_claim_more_or_less_than_they_hold(tmp_path, ending, shape, words):
    data = bytes([0, 0, 8, 3]) + struct.pack('>3I', *shape) + bytes(2 * 28 * 28)
    source = tmp_path / f'a-images-idx3-ubyte{ending}'
    source.write_bytes(gzip.compress(data) if ending else data)
    assert words in run(source, tmp_path / 'out.zip', ok=False)


def test_an_idx_file_that_unpacks_to_more_than_it_claims_is_not_unpacked(tmp_path):
    content = bytes([0, 0, 8, 3]) + struct.pack('>3I', 1, 2, 2) + bytes(50 << 20)
    (tmp_path / 'a-images-idx3-ubyte.gz').write_bytes(gzip.compress(content))
    tracemalloc.start()
    with pytest.raises(ValueError, match='5 bytes are not an array of .1, 2, 2.'):
        sources.read_idx(str(tmp_path / 'a-images-idx3-ubyte.gz'))
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


@pytest.mark.parametrize(
    'part, words',
    [
        ([1, 2], 'test_batch holds no dict'),
        ({b'data': noise(3, 3072)}, "'labels'"),
        ({b'data': noise(3, 3072), b'labels': [0, 1]}, '2 labels for 3 images'),
        ({b'data': noise(3, 3072), b'labels': 5}, 'not iterable'),
        ({b'data': noise(3, 3072), b'labels': [0, 1, 10]}, 'not all from 0 to 9'),
        ({b'data': noise(3, 3072), b'labels': [0, 1, -1]}, 'not all from 0 to 9'),
        ({b'data': noise(3, 3072), b'labels': [0, 1, 2**63]}, 'not all from 0 to 9'),
        ({b'data': noise(3, 3072), b'labels': [0, 1, 1.5]}, 'not all from 0 to 9'),
        ({b'data': noise(3, 3072), b'labels': [0, 1, True]}, 'not all from 0 to 9'),
        ({b'data': noise(3, 3072).astype(float), b'labels': [0, 1, 2]}, r'not bytes of'),
        ({b'data': noise(3, 3071), b'labels': [0, 1, 2]}, 'not bytes of'),
        ({b'data': [[0] * 3072] * 3, b'labels': [0, 1, 2]}, 'not bytes of'),
    ],
)
def test_cifar_files_of_other_content(tmp_path, part, words):
    source = write_cifar(tmp_path / 'cifar-10-python.tar.gz', test_batch=part)
    error = run(source, tmp_path / 'out.zip', '--split=test', ok=False)
    assert 'cifar-10-python.tar.gz: not a whole cifar-10-python.tar.gz (' in error and words in error


def test_a_cifar_file_that_unpacks_to_too_much_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, 'MAX_CIFAR', 1000)
    source = write_cifar(tmp_path / 'cifar-10-python.tar.gz')
    assert 'it unpacks to more than 1000 bytes' in run(source, tmp_path / 'out.zip', ok=False)


def test_a_pickle_that_claims_much_takes_no_memory(tmp_path):
    for opcode in (b'\x8e' + struct.pack('<Q', 2**60), b'B' + struct.pack('<I', 2**32 - 1)):
        with tarfile.open(tmp_path / 'cifar-10-python.tar.gz', 'w:gz') as archive:
            entry = tarfile.TarInfo('cifar-10-batches-py/test_batch')
            entry.size = len(opcode) + 2
            archive.addfile(entry, io.BytesIO(b'\x80\4' + opcode))
        error = run(tmp_path / 'cifar-10-python.tar.gz', tmp_path / 'out.zip', '--split=test', ok=False)
        assert 'not a whole cifar-10' in error


@pytest.mark.parametrize('name', ['a.zip', 'a-images-idx3-ubyte', 'cifar-10-python.tar.gz'])
def test_pipes_are_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    assert 'not a regular file' in run(tmp_path / name, tmp_path / 'out.zip', ok=False)


# ------------------------------------------------------------------------------------------------------------ bad input


def test_broken_files_are_left_out_and_named(photos, tmp_path):
    whole = (photos / 'a/1.png').read_bytes()
    (photos / 'a/1.png').write_bytes(whole[:-50])  # found when it is decoded
    (photos / 'b/0.png').write_bytes(b'no image')  # found at first sight
    output = run(photos, tmp_path / 'out.zip')
    assert '2 RGB images with labels of 2 classes' in output and 'Left out 2 broken file(s):' in output
    assert 'b/0.png: not an image' in output and 'a/1.png: truncated' in output
    assert [i.tobytes() for i in written(tmp_path / 'out.zip')] == [noise(4, 6, 3, seed=i).tobytes() for i in (3, 2)]
    assert read_labels(ImageArchive(tmp_path / 'out.zip')).values.tolist() == [0, 1]


@pytest.mark.parametrize('content', [b'no image', None])
def test_on_error_fail_stops_with_the_name(photos, tmp_path, content):
    whole = (photos / 'a/3.png').read_bytes()
    (photos / 'a/3.png').write_bytes(content or whole[:-50])
    assert 'a/3.png: ' in run(photos, tmp_path / 'out.zip', '--on-error=fail', ok=False)


def test_all_files_broken(tmp_path):
    (tmp_path / 'in').mkdir()
    (tmp_path / 'in/a.png').write_bytes(b'no image')
    for options in ([], ['--channels=3', '--resolution=2x2']):
        error = run(tmp_path / 'in', tmp_path / 'out.zip', *options, ok=False)
        assert 'none of the 1 images can be read; the first: ' in error and 'a.png: not an image' in error


def test_sizes_that_differ(photos, tmp_path):
    save(photos / 'b/9.png', noise(5, 5, 3))
    error = run(photos, tmp_path / 'out.zip', ok=False)
    assert 'b/9.png is 5x5, but a/1.png is 6x4: give --resolution=WxH' in error
    run(photos, tmp_path / 'out.zip', '--resolution=4x4')


def test_sources_that_are_none(tmp_path):
    assert 'no such file or folder' in run(tmp_path / 'nothing', tmp_path / 'out.zip', ok=False)
    (tmp_path / 'a.zip').write_bytes(b'no zip')
    assert 'a.zip: neither a folder nor a zip' in run(tmp_path / 'a.zip', tmp_path / 'out.zip', ok=False)
    (tmp_path / 'empty').mkdir()
    assert 'empty: no images in this folder' in run(tmp_path / 'empty', tmp_path / 'out.zip', ok=False)


def test_labels_that_do_not_match(photos, tmp_path):
    (photos / 'dataset.json').write_text('{"labels": [["a/1.png", 0]]}')
    assert 'no label for 3 of 4 images' in run(photos, tmp_path / 'out.zip', ok=False)


def test_what_is_passed_over_is_said(photos, tmp_path):
    (photos / 'a' / '7.heic').write_bytes(b'')
    (photos / 'a' / '8').write_bytes(b'')
    output = run(photos, tmp_path / 'out.zip')
    assert 'Passed over 2 file(s) that are not images: 1 .heic, 1 without an ending' in output
    assert 'with labels of 2 classes (0 a, 1 b)' in output


def test_grids_of_samples_are_left_out(tmp_path):
    for name in ('000000', '000001'):
        save(tmp_path / f'in/{name}.png', noise(4, 4, 3))
    save(tmp_path / 'in/grid.png', noise(10, 20, 3))
    output = run(tmp_path / 'in', tmp_path / 'out.zip')
    assert 'Passed over grid.png: a sheet' in output and len(written(tmp_path / 'out.zip')) == 2


def test_a_tiff_without_a_range_is_left_out_and_not_black(tmp_path):
    save(tmp_path / 'in/a.tif', Image.fromarray(np.arange(256, dtype=np.int32).reshape(16, 16)))
    save(tmp_path / 'in/b.png', noise(16, 16))
    output = run(tmp_path / 'in', tmp_path / 'out.zip')
    assert '1 grey images' in output and 'a.tif: signed 32-bit grey has no known range' in output


def test_an_orientation_after_the_pixels_cannot_mix_sizes(tmp_path):
    exif = b'II*\0\x08\0\0\0\x01\0\x12\1\3\0\1\0\0\0\6\0\0\0' + bytes(4)
    chunk = struct.pack('>I', len(exif)) + b'eXIf' + exif + struct.pack('>I', zlib.crc32(b'eXIf' + exif))
    for i in range(2):
        data = save(tmp_path / f'in/{i}.png', noise(4, 6, 3)).read_bytes()
        (tmp_path / f'in/{i}.png').write_bytes(data[:-12] + (chunk if i else b'') + data[-12:])
    assert '1.png is 4x6, but 0.png is 6x4' in run(tmp_path / 'in', tmp_path / 'out.zip', ok=False)


@pytest.mark.parametrize('encoding', ['utf-8:strict', 'ascii:strict'])
def test_names_that_no_terminal_shows_are_printed(tmp_path, encoding):
    (tmp_path / 'in').mkdir()
    for name, content in ((b'\xff.png', b'x'), ('é\n.png'.encode(), b'x'), (b'\xff.\xfe', b'')):
        (tmp_path / 'in' / os.fsdecode(name)).write_bytes(content)
    for c in (b'\xc3\xa9', b'\xff'):
        save(tmp_path / 'in' / os.fsdecode(c) / 'a.png', noise(4, 4))
    dest = tmp_path / os.fsdecode(b'\xff.zip')
    done = subprocess.run(
        [sys.executable, ROOT / 'dataset_tool.py', f'--source={tmp_path / "in"}', f'--dest={dest}'],
        capture_output=True, env=os.environ | {'PYTHONIOENCODING': encoding},
    )  # fmt: skip
    assert done.returncode == 0 and done.stderr.splitlines()[1:] == [] and len(written(dest)) == 2
    assert b'Left out 2 broken file(s)' in done.stdout and rb'\udcff.png' in done.stdout and rb'\n.png' in done.stdout


@pytest.mark.parametrize('option', ['-OO', '-O'])
def test_help_without_docstrings(option):
    done = subprocess.run([sys.executable, option, ROOT / 'dataset_tool.py', '--help'], capture_output=True, text=True)
    assert done.returncode == 0 and '--source=photos --dest=train.zip' in done.stdout


def test_it_runs_without_torch(photos, tmp_path):
    code = 'import sys; sys.modules["torch"] = None; import dataset_tool; dataset_tool.main()'
    command = [sys.executable, '-c', code, f'--source={photos}', f'--dest={tmp_path / "out.zip"}']
    assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 0


@pytest.mark.parametrize(
    'options, words',
    [
        (['--resolution=64'], "'64' is not WIDTHxHEIGHT"),
        (['--resolution=0x4'], 'is not WIDTHxHEIGHT'),
        (['--resolution=200000x200000'], '--resolution=200000x200000 is too large: give at most 16384 pixels a side'),
        (['--resolution=1x16385'], 'is too large'),
        (['--resolution=8193x8192'], 'is too large'),
        (['--resolution=8193x1', '--transform=center-crop-wide'], 'is too large'),
        ([f'--resolution={"9" * 5000}x9'], 'is not WIDTHxHEIGHT'),
        (['--resolution=\u0664x4'], 'is not WIDTHxHEIGHT'),
        ([f'--skip-images={10**30}'], 'leaves nothing'),
        (['--transform=center-crop'], '--transform=center-crop needs --resolution'),
        (['--transform=center-crop-wide', '--resolution=4x8'], '4x8 is not wide'),
        (['--skip-images=4'], '--skip-images=4 leaves nothing: the source has 4 images'),
        (['--max-images=0'], 'max-images'),
    ],
)
def test_options_that_make_no_sense(photos, tmp_path, options, words):
    assert words in run(photos, tmp_path / 'out.zip', *options, ok=False)


def test_destinations_that_are_taken(photos, tmp_path):
    assert 'is a folder that is not empty' in run(photos, photos / 'a', ok=False)
    (tmp_path / 'file').write_bytes(b'')
    assert 'is a file: choose a name' in run(photos, tmp_path / 'file', ok=False)
    assert 'a .zip or a folder is written' in run(photos, tmp_path / 'out.tar', ok=False)
    run(photos, tmp_path / 'out.zip')
    assert '--dest is the source itself' in run(tmp_path / 'out.zip', tmp_path / 'out.zip', ok=False)
    (tmp_path / 'new').mkdir()
    run(photos, tmp_path / 'new')  # an empty folder is no hindrance
    for place in ('/dev/full', '/proc/out.zip'):
        assert f'--dest={place} cannot be written' in run(photos, place, ok=False)
    assert len(written(tmp_path / 'new')) == 4


@pytest.mark.parametrize('dest', ['out.zip', 'out'])
@pytest.mark.parametrize(
    'error, words',
    [
        (OSError(errno.ENOSPC, 'No space left on device'), 'disk full: could not write'),
        (OSError(errno.EIO, 'Input/output error'), 'Input/output error'),
        (KeyboardInterrupt(), None),
    ],
)
def test_nothing_is_left_half_made(photos, tmp_path, monkeypatch, dest, error, words):
    calls = []

    def write(*args):
        calls.append(args)
        if len(calls) == 3:
            raise error

    monkeypatch.setattr(dataset_tool, '_write_entry' if dest == 'out.zip' else '_write_file', write)
    before = set(os.listdir(tmp_path))
    if words is None:
        result = CliRunner().invoke(dataset_tool.main, [f'--source={photos}', f'--dest={tmp_path / dest}'])
        assert result.exit_code == 1 and 'Aborted' in result.output
    else:
        assert words in run(photos, tmp_path / dest, ok=False)
    assert len(calls) == 3 and set(os.listdir(tmp_path)) == before


def test_an_older_zip_outlives_a_failure(photos, tmp_path):
    run(photos, tmp_path / 'out.zip')
    old = (tmp_path / 'out.zip').read_bytes()
    run(photos, tmp_path / 'out.zip', '--skip-images=9', ok=False)
    assert (tmp_path / 'out.zip').read_bytes() == old


def test_command_line_from_any_directory(photos, tmp_path):
    command = [sys.executable, str(ROOT / 'dataset_tool.py'), f'--source={photos}', '--dest=out.zip']
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0 and result.stderr == '', result.stderr
    assert len(written(tmp_path / 'out.zip')) == 4
    result = subprocess.run([*command[:2], '--source=no', '--dest=a.zip'], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 1 and result.stderr == 'Error: no such file or folder: no\n'


def test_a_reader_that_has_gone_ends_it_quietly(tmp_path):
    source = write_idx(tmp_path / 'x-images.idx3-ubyte', noise(2, 9, 7))  # it says that there are no labels
    read, write = os.pipe()
    os.close(read)
    with open(write, 'wb') as gone:
        command = [sys.executable, ROOT / 'dataset_tool.py', f'--source={source}', f"--dest={tmp_path / 'out.zip'}"]
        done = subprocess.run(command, stdout=gone, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1 and done.stderr == ''
