"""dnnlib.archives and dnnlib.labels: folders and zips of images, and their labels."""

import errno
import io
import json
import os
import pickle
import socket
import tracemalloc
import warnings
import zipfile

import numpy as np
import pytest
from PIL import Image

from dnnlib import archives
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
    with pytest.raises(ValueError, match='b/0.PNG uses compression method 12'):
        ImageArchive(make_archive(tmp_path / 'bz.zip', FILES, True, zipfile.ZIP_BZIP2))


@pytest.mark.parametrize(
    'stored, name',
    [
        ('./cat/0.png', 'cat/0.png'),
        ('cat//0.png', 'cat/0.png'),
        ('a/../cat/0.png', 'cat/0.png'),
        ('../../cat/0.png', 'cat/0.png'),
        ('/cat/0.png', 'cat/0.png'),
        ('C:\\photos\\0.png', 'photos/0.png'),
        ('c:/0.png', '0.png'),
        ('cat\\0.png', 'cat/0.png'),
        ('.\\cat\\0.png', 'cat/0.png'),
        ('a:b.png', 'a:b.png'),
        ('..a/b..png', None),
        ('./.git/0.png', None),
        ('a\\.hidden\\0.png', None),
    ],
)
def test_names_in_a_zip_are_tidied(tmp_path, stored, name):
    path = make_archive(tmp_path / 'a.zip', {stored: FILES['a/1.PNG'], 'z.png': FILES['a/1.PNG']}, True)
    archive = ImageArchive(path)
    assert archive.names() == sorted([name, 'z.png'] if name else ['z.png'])
    assert all(archive.image(i).shape == (3, 4, 6) for i in range(len(archive)))


@pytest.mark.parametrize('other', ['cat/0.png', './cat/0.png', 'cat\\0.png', 'x/../cat/0.png'])
def test_two_files_of_one_name_are_named(tmp_path, other):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        with zipfile.ZipFile(tmp_path / 'a.zip', 'w') as archive:
            archive.writestr('cat/0.png', FILES['a/1.PNG'])
            archive.writestr(other, FILES['b/0.PNG'])
            archive.writestr('dataset.json', '{"labels": [["cat/0.png", 1]]}')
    assert 'a.zip: cat/0.png is the name of two files; repack the zip' in refusal(tmp_path / 'a.zip')


def refusal(path) -> str:
    with pytest.raises(ValueError) as error:
        read_labels(ImageArchive(path))
    assert '\n' not in str(error.value) and str(path) in str(error.value)
    return str(error.value)


def test_a_long_name_costs_no_more_than_its_letters(tmp_path):
    files = {f'{i}.png': b'' for i in range(2000)} | {f'{"a" * 60_000}.png': FILES['a/1.PNG']}
    path = make_archive(tmp_path / 'a.zip', files, True)
    archive = ImageArchive(path)
    assert len(pickle.dumps(archive)) < 400_000
    assert archive.image(2000).shape == (3, 4, 6) and len(archive.name(2000)) == 60_004


def patched(files: dict[str, bytes], name: str, edit, deflated: bool = True) -> bytes:
    """A zip whose directory says something else about one file: ``edit(info)`` changes it before it is written."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w', zipfile.ZIP_DEFLATED if deflated else zipfile.ZIP_STORED) as archive:
        for key, data in files.items():
            archive.writestr(key, data)
        edit(archive.getinfo(name))
    return buffer.getvalue()


@pytest.mark.parametrize(
    'field, value, words',
    [
        ('file_size', 2**40, 'has 1099511627776 bytes, more than the limit'),
        ('file_size', 2**63, 'has 9223372036854775808 bytes'),
        ('compress_size', 2**40, 'should be 1099511627776 bytes at position'),
        ('compress_size', 2**63, 'but the zip ends at'),
        ('header_offset', 2**40, 'bytes at position 1099511627776'),
        ('header_offset', 2**63, 'bytes at position 9223372036854775808'),
        ('flag_bits', 1, 'is encrypted; repack'),
        ('compress_type', 99, 'uses compression method 99; repack'),
    ],
)
def test_lies_in_the_directory_of_a_zip_are_named(tmp_path, field, value, words):
    content = patched(FILES, 'b/0.PNG', lambda info: setattr(info, field, value))
    (tmp_path / 'a.zip').write_bytes(content)
    assert 'a.zip: b/0.PNG ' in (error := refusal(tmp_path / 'a.zip')) and words in error
    # of dataset.json only where labels are asked for
    content = patched(FILES | {'dataset.json': b'{"labels": null}'}, 'dataset.json', lambda i: setattr(i, field, value))
    (tmp_path / 'a.zip').write_bytes(content)
    assert 'a.zip: dataset.json ' in (error := refusal(tmp_path / 'a.zip')) and words in error
    assert len(ImageArchive(tmp_path / 'a.zip')) == 2


@pytest.mark.parametrize('size', [0, 10, 5000])
def test_a_file_that_unpacks_to_another_size_is_named(tmp_path, size):
    """A bomb, too: what is beyond its declared size is not unpacked."""
    files = {'a.png': bytes(50 << 20) if size == 10 else FILES['a/1.PNG']}
    (tmp_path / 'a.zip').write_bytes(patched(files, 'a.png', lambda info: setattr(info, 'file_size', size)))
    archive = ImageArchive(tmp_path / 'a.zip')
    tracemalloc.start()
    with pytest.raises(BadImageError, match='a.zip: a.png: damaged in the zip'):
        archive.read(0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_files_that_overlap_or_change_places_are_named(tmp_path):
    def move(info):
        info.header_offset += 40

    (tmp_path / 'a.zip').write_bytes(patched({'b.png': bytes(99), 'a.png': bytes(9)}, 'b.png', move, deflated=False))
    assert 'files overlap in this zip' in refusal(tmp_path / 'a.zip')
    with zipfile.ZipFile(tmp_path / 'a.zip', 'w') as archive:
        for name, data in FILES.items():
            archive.writestr(name, data)
        first, second = archive.filelist
        for field in ('header_offset', 'compress_size', 'file_size', 'CRC'):
            one, two = getattr(first, field), getattr(second, field)
            setattr(first, field, two)
            setattr(second, field, one)
    with pytest.raises(BadImageError, match='a/1.PNG: damaged in the zip .another file is in its place'):
        ImageArchive(tmp_path / 'a.zip').read(0)


def test_a_zip_without_its_first_bytes_is_named(tmp_path):
    (tmp_path / 'a.zip').write_bytes(make_archive(tmp_path / 'b.zip', FILES, True).read_bytes()[9:])
    assert 'a.zip: b/0.PNG should be' in refusal(tmp_path / 'a.zip')


def test_a_zip_after_other_bytes_is_read(tmp_path):
    (tmp_path / 'a.zip').write_bytes(b'#!/bin/sh\n' + make_archive(tmp_path / 'b.zip', FILES, True).read_bytes())
    assert np.array_equal(ImageArchive(tmp_path / 'a.zip').image(1), noise(3, 4, 6, seed=0))


@pytest.mark.parametrize('make', [os.mkfifo, lambda path: path.symlink_to('/dev/zero')])
def test_what_is_not_a_file_is_not_a_zip_and_not_waited_for(tmp_path, make):
    make(tmp_path / 'a.zip')
    assert 'neither a folder nor a zip that can be read (not a regular file)' in refusal(tmp_path / 'a.zip')


# --------------------------------------------------------------------------------------------------------------- folder


def test_links_that_lead_nowhere_are_named(tmp_path):
    (tmp_path / 'a.png').symlink_to(tmp_path / 'gone.png')
    (tmp_path / 'b.png').symlink_to(tmp_path / 'b.png')
    archive = ImageArchive(tmp_path)
    for i, name in enumerate(archive.names()):
        for read in (archive.image, archive.header):
            with pytest.raises(BadImageError, match=f'{name}: cannot be read'):
                read(i)


def test_pipes_devices_and_folders_are_not_images(tmp_path):
    (tmp_path / 'a.png').write_bytes(FILES['a/1.PNG'])
    os.mkfifo(tmp_path / 'b.png')
    os.mkfifo(tmp_path / 'dataset.json')
    (tmp_path / 'c.png').symlink_to('/dev/zero')
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / 'd.png'))
        (tmp_path / 'e.png').mkdir()
        (tmp_path / 'e.png' / 'f.png').write_bytes(FILES['b/0.PNG'])
        archive = ImageArchive(tmp_path)
    assert archive.names() == ['a.png', 'e.png/f.png'] and read_labels(archive) is None
    assert archive.notes == ['Passed over 4 file(s) that are not images: 4 pipes or devices']
    os.remove(tmp_path / 'a.png')
    os.mkfifo(tmp_path / 'a.png')  # since the index was made
    for read in (archive.image, archive.header):
        with pytest.raises(BadImageError, match='a.png: cannot be read .not a regular file'):
            read(0)


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    """Its class must not vanish and leave its number to the next."""
    make_archive(tmp_path, {f'{c}/{c}.png': b'' for c in 'abc'}, False)
    scandir = os.scandir

    def denied(path):
        if os.path.basename(path) == 'b':
            raise PermissionError(errno.EACCES, 'Permission denied', path)
        return scandir(path)

    monkeypatch.setattr(os, 'scandir', denied)
    error = refusal(tmp_path)
    assert error == f'{tmp_path}/b: cannot be read (Permission denied): make it readable, or move it elsewhere'
    (tmp_path / 'b').rename(tmp_path / '.b')  # what is hidden is not looked at
    assert ImageArchive(tmp_path).names() == ['a/a.png', 'c/c.png']


def test_links_in_all_directions_end(tmp_path):
    for i in range(8):
        (tmp_path / str(i)).mkdir()
        for j in range(8):
            (tmp_path / str(i) / str(j)).symlink_to(tmp_path / str(j))
    assert 'links lead to this folder in more than 100 ways' in refusal(tmp_path)


def test_a_file_that_is_empty_or_too_large_is_named(tmp_path, monkeypatch):
    (tmp_path / 'a.png').write_bytes(b'')
    (tmp_path / 'b.png').write_bytes(b'a' * 99)
    monkeypatch.setattr(archives, 'MAX_FILE', 98)
    archive = ImageArchive(tmp_path)
    for read in (archive.image, archive.header):
        with pytest.raises(BadImageError, match='a.png: not an image: the file is empty'):
            read(0)
        with pytest.raises(BadImageError, match='b.png: cannot be read .it is larger than 98 bytes'):
            read(1)


@pytest.mark.parametrize('packed', [False, True])
def test_what_is_passed_over_is_said(tmp_path, packed):
    others = {'a/x.HEIC': b'', 'a/y.heic': b'', 'b/z.jxl': b'', 'b/noending': b'', 'notes/deep/x.txt': b'', '.h/x': b''}
    archive = ImageArchive(make_archive(tmp_path / 'a', FILES | others, packed))
    assert archive.notes == [
        'Passed over 5 file(s) that are not images: 2 .heic, 1 .jxl, 1 .txt, 1 without an ending',
        'No images in 1 folder(s): notes',
    ]
    assert ImageArchive(make_archive(tmp_path / 'b', FILES, packed)).notes == []
    error = refusal(make_archive(tmp_path / 'c', {'a/x.heic': b''}, packed))
    assert 'no images in this' in error and 'passed over 1 file(s) that are not images: 1 .heic' in error


@pytest.mark.parametrize('packed', [False, True])
@pytest.mark.parametrize(
    'names, sheet',
    [
        (['grid.png', '000000.png', '000001.png'], True),
        (['out/grid.png', 'out/000000/000000.png', 'out/000000/000001.png'], True),
        (['grid.png', '000000.png', 'cat.png'], False),
        (['grid.png'], False),
        (['a/grid.png', '000000.png'], False),
    ],
)
def test_the_grid_of_samples_is_not_a_sample(tmp_path, packed, names, sheet):
    data = encoded(to_image(noise(3, 4, 6)))
    archive = ImageArchive(make_archive(tmp_path / 'a', dict.fromkeys(names, data), packed))
    assert archive.names() == sorted(names[1:] if sheet else names)
    assert archive.notes == ([f'Passed over {names[0]}: a sheet of the numbered images in its folder'] if sheet else [])


def test_names_that_are_not_utf8(tmp_path):
    name = os.fsdecode(b'caf\xe9\n.png')
    (tmp_path / name).write_bytes(b'no image')
    archive = ImageArchive(tmp_path)
    with pytest.raises(BadImageError) as error:
        archive.image(0)
    assert str(error.value) == f'{tmp_path}: caf\\udce9\\n.png: not an image, or its start is damaged'
    assert archive.names() == [name]


# --------------------------------------------------------------------------------------------------------------- labels


def labelled(tmp_path, text: str | bytes):
    return ImageArchive(make_archive(tmp_path / 'a.zip', FILES | {'dataset.json': text}, True))


def test_labels_from_json(tmp_path):
    labels = read_labels(labelled(tmp_path, '{"labels": [["b/0.PNG", 4], ["a\\\\1.PNG", 2]]}'))
    assert labels.values.tolist() == [2, 4] and labels.values.dtype == np.int64 and labels.class_names is None
    labels = read_labels(labelled(tmp_path, '{"labels": [["b/0.PNG", [1, 0.5]], ["a/1.PNG", [0, 3]]]}'))
    assert labels.values.tolist() == [[0, 3], [1, 0.5]] and labels.values.dtype == np.float32
    assert read_labels(labelled(tmp_path, '{"labels": null}')) is None


PAIRS = '{"labels": [["a/1.PNG", %s], ["b/0.PNG", %s]]}'


@pytest.mark.parametrize(
    'text, reason',
    [
        ('{', 'is not JSON'),
        ('', 'is not JSON'),
        ('[' * 100_000, 'is not JSON .nested too deeply'),
        ('[1]', 'should be'),
        ('null', 'should be'),
        ('{"labels": [["a/1.PNG", 0]]}', 'no label for 1 of 2 images; the first is b/0.PNG'),
        ('{"labels": []}', 'no label for 2 of 2 images'),
        ('{"labels": {"a/1.PNG": 0}}', 'list of'),
        ('{"labels": 5}', 'list of'),
        ('{"labels": true}', 'list of'),
        ('{"labels": "ab"}', 'list of'),
        ('{"labels": [5, "ab"]}', 'list of'),
        ('{"labels": [[5, 0], ["b/0.PNG", 0]]}', 'list of'),
        ('{"labels": [["a/1.PNG", 0, 0], ["b/0.PNG", 0]]}', 'list of'),
        ('{"labels": [["a/1.PNG", 0], ["b/0.PNG", 1], ["c.png", 2]]}', '3 images, there are 2; not there: c.png'),
        ('{"labels": [["a/1.PNG", 0], ["b/0.PNG", 1], ["./b/0.PNG", 1]]}', 'two labels for b/0.PNG'),
        (PAIRS % (0, -1), 'there is -1'),
        (PAIRS % (0, 10**6), 'class numbers start at 0 and end below 1000000, but there is 1000000'),
        (PAIRS % (0, 10**9), 'there is 1000000000'),
        (PAIRS % (0, 2**63 - 1), 'there is 9223372036854775807'),
        (PAIRS % (0, 2**63), 'there is 9223372036854775808'),
        (PAIRS % (2**63, 2**63), 'there is 9223372036854775808'),
        (PAIRS % (0, 2**64), 'there is 18446744073709551616'),
        (PAIRS % (0, 10**3000), 'more than 30 digits'),
        (PAIRS % (0, -(2**63)), 'there is -9223372036854775808'),
        (PAIRS % (0, '"cat"'), "all be.*b/0.PNG is 'cat'"),
        (PAIRS % (0, '1.0'), 'all be.*b/0.PNG is 1.0'),
        (PAIRS % ('0.0', '1.0'), 'all be.*a/1.PNG is 0.0'),
        (PAIRS % ('1e30', '1'), 'all be'),
        (PAIRS % ('true', 'false'), 'all be.*is True'),
        (PAIRS % ('null', 'null'), 'all be.*is None'),
        (PAIRS % (0, '[0]'), 'all be'),
        (PAIRS % (0, '{}'), 'all be'),
        (PAIRS % (0, 'NaN'), 'NaN is not a JSON number'),
        (PAIRS % ('[0]', '[0, 1]'), 'equally many'),
        (PAIRS % ('[]', '[]'), 'equally many'),
        (PAIRS % ('[true]', '[1]'), 'equally many'),
        (PAIRS % ('["1"]', '[1]'), 'equally many'),
        (PAIRS % ('[[1]]', '[[1]]'), 'equally many'),
        (PAIRS % ('[null]', '[1]'), 'equally many'),
        (PAIRS % ('[1e39]', '[1]'), 'infinite or too large'),
        (PAIRS % ('[1e999]', '[1]'), 'infinite or too large'),
        (PAIRS % (f'[{10**400}]', '[1]'), 'infinite or too large'),
        ('{"labels": [["a/1.PNG", 0], ["b/0.PNG", 2]], "class_names": ["x", "y"]}', 'class 2 has no name'),
        ('{"labels": [["a/1.PNG", 0], ["b/0.PNG", 2]], "class_names": {"x": 1}}', 'list of strings'),
        ('{"labels": [["a/1.PNG", 0], ["b/0.PNG", 0]], "class_names": [1]}', 'list of strings'),
    ],
)
def test_labels_that_do_not_match(tmp_path, text, reason):
    with pytest.raises(ValueError, match=f'a.zip: dataset.json.*{reason}') as error:
        read_labels(labelled(tmp_path, text))
    assert '\n' not in str(error.value)


def test_large_numbers_in_vectors_are_numbers(tmp_path):
    labels = read_labels(labelled(tmp_path, PAIRS % (f'[{10**30}, 0.5]', f'[{2**63}, -1]')))
    assert labels.values.dtype == np.float32 and labels.values.tolist() == [[np.float32(1e30), 0.5], [2.0**63, -1]]


def test_a_damaged_dataset_json_is_named(tmp_path):
    path = make_archive(tmp_path / 'a.zip', FILES | {'dataset.json': b'{"labels": null}'}, True)
    content = path.read_bytes()
    path.write_bytes(content.replace(b'{"labels": null}', b'{"labelz": null}'))
    assert 'a.zip: dataset.json: damaged in the zip (wrong length or checksum)' in refusal(path)
    (tmp_path / 'b').mkdir()
    make_archive(tmp_path / 'b', FILES, False)
    (tmp_path / 'b' / 'dataset.json').write_bytes(b'\xff\xfe\xff')
    assert 'b/dataset.json' not in (error := refusal(tmp_path / 'b')) and 'b: dataset.json is not JSON' in error


def test_a_dataset_json_that_unpacks_to_too_much_is_not_unpacked(tmp_path, monkeypatch):
    files = FILES | {'dataset.json': b'[' + b'[],' * 100_000}
    path = make_archive(tmp_path / 'a.zip', files, True, zipfile.ZIP_DEFLATED)
    assert 'is not JSON' in refusal(path)
    (tmp_path / 'a.zip').write_bytes(patched(files, 'dataset.json', lambda i: setattr(i, 'file_size', 250 << 20)))
    assert 'a.zip: dataset.json: 250.0 MiB of ' in (error := refusal(path)) and 'too large' in error


@pytest.mark.parametrize('packed', [False, True])
@pytest.mark.parametrize('prefix', ['', 'top/'])
def test_dataset_json_inside_of_a_folder(tmp_path, packed, prefix):
    text = json.dumps({'labels': [[f'{prefix}b/0.PNG', 4], [f'{prefix}a/1.PNG', 2]]})
    files = {f'top/{name}': data for name, data in FILES.items()} | {'top/dataset.json': text.encode()}
    archive = ImageArchive(make_archive(tmp_path / 'a', files, packed))
    assert read_labels(archive).values.tolist() == [2, 4] and archive.notes == []


@pytest.mark.parametrize('packed', [False, True])
def test_dataset_json_of_a_part_is_refused(tmp_path, packed):
    text = json.dumps({'labels': [['1.PNG', 2]]}).encode()
    path = make_archive(tmp_path / 'a', FILES | {'a/dataset.json': text}, packed)
    assert 'a: a/dataset.json lies in a folder without all images: move it to the top' in refusal(path)


def test_dataset_json_may_spell_names_as_a_zip_does(tmp_path):
    labels = read_labels(labelled(tmp_path, '{"labels": [["./b//0.PNG", 4], ["x\\\\..\\\\a\\\\1.PNG", 2]]}'))
    assert labels.values.tolist() == [2, 4]


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
