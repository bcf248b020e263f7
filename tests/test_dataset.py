"""The dataset: images, labels, and what is wrong with those that cannot be used."""

import io
import json
import pickle
import zipfile

import numpy as np
import pytest
from PIL import Image

from dnnlib.images import BadImageError
from training.dataset import ImageFolderDataset

PIXELS = np.random.RandomState(0).randint(0, 256, (6, 3, 4, 5), dtype=np.uint8)  # [N, C, H, W]


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.squeeze(pixels.transpose(1, 2, 0))).save(buffer, 'png')
    return buffer.getvalue()


def make(path, files: dict[str, bytes], labels=None) -> str:
    with zipfile.ZipFile(path, 'w') as archive:
        for name, data in files.items():
            archive.writestr(name, data)
        if labels is not None:
            archive.writestr('dataset.json', json.dumps({'labels': labels}))
    return str(path)


NAMES = [f'00000/img{i:08d}.png' for i in range(6)]
FILES = {name: png(pixels) for name, pixels in zip(NAMES, PIXELS, strict=True)}


@pytest.fixture
def path(tmp_path):
    return make(tmp_path / 'tiny.zip', FILES, [[name, i // 2] for i, name in enumerate(NAMES)])


# -------------------------------------------------------------------------------------------------------------- dataset


def test_zip_and_folder_give_the_same(path, tmp_path):
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path / 'tiny')
    for source in (path, tmp_path / 'tiny'):
        dataset = ImageFolderDataset(source, use_labels=True)
        assert len(dataset) == 6 and dataset.name == 'tiny'
        assert dataset.image_shape == (3, 4, 5) and dataset.resolution == (4, 5) and dataset.num_channels == 3
        assert dataset.label_dim == 3 and dataset.has_labels and dataset.has_class_labels
        for i in range(6):
            image, label = dataset[i]
            assert image.dtype == np.uint8 and np.array_equal(image, PIXELS[i])
            assert label.dtype == np.int64 and label == i // 2
        assert dataset.image_name(5) == NAMES[5]
        dataset.check()


def test_links_to_folders_are_followed_but_not_in_circles(tmp_path):
    for name in ('a', 'b'):
        (tmp_path / name).mkdir()
        (tmp_path / name / 'x.png').write_bytes(png(PIXELS[0]))
    (tmp_path / 'a' / 'b').symlink_to(tmp_path / 'b')
    (tmp_path / 'b' / 'a').symlink_to(tmp_path / 'a')
    dataset = ImageFolderDataset(tmp_path)
    assert [dataset.image_name(i) for i in range(len(dataset))] == ['a/b/x.png', 'a/x.png', 'b/a/x.png', 'b/x.png']


@pytest.mark.parametrize('channels', [1, 4])
def test_grey_and_rgba(tmp_path, channels):
    pixels = np.random.RandomState(1).randint(0, 256, (channels, 3, 7), dtype=np.uint8)
    dataset = ImageFolderDataset(make(tmp_path / 'a.zip', {'a.png': png(pixels)}))
    assert dataset.image_shape == (channels, 3, 7) and np.array_equal(dataset[0][0], pixels)


def test_without_labels(path):
    dataset = ImageFolderDataset(path)
    assert not dataset.has_labels and dataset.label_dim == 0 and not dataset.has_class_labels
    assert dataset[0][1].shape == (0,) and dataset[0][1].dtype == np.float32


def test_label_vectors(tmp_path):
    vectors = [[name, [i, 0.5]] for i, name in enumerate(NAMES)]
    dataset = ImageFolderDataset(make(tmp_path / 'a.zip', FILES, vectors), use_labels=True)
    assert dataset.label_dim == 2 and not dataset.has_class_labels and dataset.has_labels
    assert dataset.get_label(3).tolist() == [3, 0.5] and dataset.get_label(3).dtype == np.float32


def test_class_folders_need_no_json(tmp_path):
    files = {f'{c}/{i}.png': png(PIXELS[i]) for i, c in enumerate(['dog', 'cat', 'dog'])}
    dataset = ImageFolderDataset(make(tmp_path / 'a.zip', files), use_labels=True)
    assert dataset.class_names == ['cat', 'dog'] and dataset.label_dim == 2
    assert [int(dataset.get_label(i)) for i in range(3)] == [0, 1, 1]


@pytest.mark.parametrize('cache', [False, True])
def test_xflip_doubles(path, cache):
    dataset = ImageFolderDataset(path, use_labels=True, xflip=True, cache=cache)
    assert len(dataset) == 12
    for _ in range(2):
        for i in range(6):
            assert np.array_equal(dataset[6 + i][0], PIXELS[i, :, :, ::-1]) and dataset[6 + i][1] == i // 2
            assert np.array_equal(dataset[i][0], PIXELS[i])
    assert dataset.image_name(6) == NAMES[0]


def test_max_size_is_a_fixed_random_subset(path):
    dataset = ImageFolderDataset(path, use_labels=True, max_size=3, xflip=True, random_seed=1)
    names = [dataset.image_name(i) for i in range(3)]
    assert len(dataset) == 6 and names == sorted(set(names)) and set(names) <= set(NAMES)
    assert dataset.label_dim == 3  # of the whole set
    for i, name in enumerate(names):
        assert np.array_equal(dataset[i][0], PIXELS[NAMES.index(name)]) and dataset[i][1] == NAMES.index(name) // 2
    again = ImageFolderDataset(path, max_size=3, random_seed=1)
    assert [again.image_name(i) for i in range(3)] == names
    assert len(ImageFolderDataset(path, max_size=99)) == 6


def test_images_are_the_callers_own(path):
    for cache in (False, True):
        dataset = ImageFolderDataset(path, cache=cache)
        dataset[0][0][:] = 0
        assert np.array_equal(dataset[0][0], PIXELS[0])


def test_pickled_dataset_reads(path):
    dataset = ImageFolderDataset(path, use_labels=True)
    _ = dataset[0]
    assert np.array_equal(pickle.loads(pickle.dumps(dataset))[4][0], PIXELS[4])


@pytest.mark.parametrize('index', [-1, 6])
def test_index_outside(path, index):
    with pytest.raises(IndexError, match=f'image {index} of 6'):
        ImageFolderDataset(path)[index]


# ------------------------------------------------------------------------------------------------------------ bad input


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match='no such file or folder: .*no.zip'):
        ImageFolderDataset(tmp_path / 'no.zip')


def test_zip_that_is_no_zip(tmp_path):
    (tmp_path / 'a.zip').write_bytes(b'PK but no')
    with pytest.raises(ValueError, match='a.zip: neither a folder nor a zip'):
        ImageFolderDataset(tmp_path / 'a.zip')


def test_zip_without_images(tmp_path):
    with pytest.raises(ValueError, match='a.zip: no images in this zip'):
        ImageFolderDataset(make(tmp_path / 'a.zip', {'a.txt': b''}))


def test_labels_that_do_not_match(tmp_path):
    broken = make(tmp_path / 'a.zip', FILES, [[NAMES[0], 1]])
    assert len(ImageFolderDataset(broken)) == 6  # not asked for, not looked at
    with pytest.raises(ValueError, match='dataset.json has no label for 5 of 6 images'):
        ImageFolderDataset(broken, use_labels=True)


def test_labels_that_are_not_there(tmp_path):
    with pytest.raises(ValueError, match='a.zip has no labels: it needs a dataset.json or one folder per class'):
        ImageFolderDataset(make(tmp_path / 'a.zip', FILES), use_labels=True)


@pytest.mark.parametrize(
    'pixels, words',
    [(PIXELS[0, :, :3], '5x3 with 3 channels'), (PIXELS[0, :1], '5x4 with 1 channel,')],
)
def test_image_of_another_shape_is_named(tmp_path, pixels, words):
    dataset = ImageFolderDataset(make(tmp_path / 'a.zip', FILES | {NAMES[3]: png(pixels)}))
    for look in (lambda: dataset[3], dataset.check):
        with pytest.raises(BadImageError, match=f'img00000003.png is {words}.*first .* is 5x4 .*dataset_tool') as error:
            look()
        assert '\n' not in str(error.value)


def test_truncated_image_is_named(tmp_path):
    dataset = ImageFolderDataset(make(tmp_path / 'a.zip', FILES | {NAMES[3]: FILES[NAMES[3]][:-40]}))
    with pytest.raises(BadImageError, match='a.zip: 00000/img00000003.png: truncated or broken'):
        _ = dataset[3]


def test_cache_that_does_not_fit(path, monkeypatch):
    class Memory:
        available = 359

    monkeypatch.setattr('psutil.virtual_memory', Memory)
    with pytest.raises(OSError, match='a.*to cache the images takes 360 B of memory, 359 B are free: give --cache=0'):
        ImageFolderDataset(path, cache=True)
    Memory.available = 360
    assert ImageFolderDataset(path, cache=True).cached


def test_max_size_of_nothing(path):
    with pytest.raises(ValueError, match='at least 1, not 0'):
        ImageFolderDataset(path, max_size=0)
