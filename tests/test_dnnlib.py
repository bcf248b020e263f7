"""dnnlib: files whole or not at all, the log, downloads from a server on this machine, images of every kind."""

import io
import pickle
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

import dnnlib
from dnnlib.images import (
    BadImageError,
    ImageArchive,
    decode_image,
    labels_from_folders,
    read_header,
    read_labels,
    to_array,
    to_image,
    with_channels,
)


def encoded(image: Image.Image, kind: str = "png", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 256, shape, dtype=np.uint8)


# --------------------------------------------------------------------------------------------------------------- pixels


def test_float_and_uint8_are_inverse_and_clip():
    every = torch.arange(256, dtype=torch.uint8)
    images = dnnlib.to_float(every)
    assert images.min() == -1 and images.max() == 1 and images.dtype == torch.float32
    assert torch.equal(dnnlib.to_uint8(images), every)
    assert torch.equal(dnnlib.to_uint8(images.double()), every)
    assert dnnlib.to_uint8(torch.tensor([-3.0, 3.0, 0.0])).tolist() == [0, 255, 128]


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_plain_images_decode_to_their_pixels(channels):
    pixels = noise(channels, 5, 7)
    data = encoded(to_image(pixels))
    assert np.array_equal(decode_image(data), pixels)
    assert read_header(data) == (7, 5, channels, True)
    assert np.array_equal(to_array(to_image(pixels)), pixels) and decode_image(data).flags.writeable


def test_palette_16_bits_cmyk_and_grey_with_alpha():
    rgb = Image.fromarray(noise(4, 4, 3) // 64 * 64)
    palette = rgb.quantize(64)
    assert np.array_equal(decode_image(encoded(palette)), to_array(palette.convert("RGB")))
    assert decode_image(encoded(palette, transparency=0)).shape == (4, 4, 4)
    deep = np.array([[0, 257, 65535, 128 * 257 + 100]], dtype=np.uint16)
    assert decode_image(encoded(Image.fromarray(deep))).tolist() == [[[0, 1, 255, 128]]]
    flat = Image.new("CMYK", (2, 2), (255, 0, 0, 0))
    assert decode_image(encoded(flat, "tiff"))[:, 0, 0].tolist() == [0, 255, 255]
    assert decode_image(encoded(Image.new("LA", (1, 1), (7, 9))))[:, 0, 0].tolist() == [7, 7, 7, 9]
    assert decode_image(encoded(Image.new("1", (1, 1), 1))).tolist() == [[[255]]]
    for image in (palette, flat, Image.fromarray(deep)):
        data = encoded(image, "tiff")
        header = read_header(data)
        assert (header.channels, header.plain) == (decode_image(data).shape[0], False)


def test_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    pixels = noise(1, 2, 3)
    data = encoded(to_image(pixels), exif=exif)
    assert read_header(data) == (2, 3, 1, False)
    assert np.array_equal(decode_image(data), np.rot90(pixels, -1, axes=(1, 2)))


def test_channels_change():
    clear_red = Image.new("RGBA", (1, 1), (255, 0, 0, 0))
    assert to_array(with_channels(clear_red, 3)).ravel().tolist() == [255, 255, 255]
    assert to_array(with_channels(clear_red, 1)).ravel().tolist() == [255]
    grey = Image.new("L", (1, 1), 9)
    assert to_array(with_channels(grey, 4)).ravel().tolist() == [9, 9, 9, 255]
    assert with_channels(grey, 1) is grey


@pytest.mark.parametrize(
    "data, reason",
    [
        (encoded(to_image(noise(3, 40, 40)))[:2000], "truncated or broken"),
        (encoded(to_image(noise(3, 40, 40)), "jpeg")[:900], "truncated or broken"),
        (b"not an image at all", "not an image"),
        (b"", "not an image"),
        (encoded(Image.new("F", (1, 1)), "tiff"), "mode F"),
    ],
)
def test_broken_images_are_named_in_one_line(data, reason):
    with pytest.raises(BadImageError, match=f"^some/file.png: .*{reason}") as error:
        decode_image(data, "some/file.png")
    assert "\n" not in str(error.value)


# -------------------------------------------------------------------------------------------------------------- archive


def make_archive(path, files: dict[str, bytes], packed: bool, compression=zipfile.ZIP_STORED):
    if packed:
        with zipfile.ZipFile(path, "w", compression) as archive:
            for name, data in files.items():
                archive.writestr(name, data)
    else:
        for name, data in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data)
    return path


FILES = {f"{c}/{i}.PNG": encoded(to_image(noise(3, 4, 6, seed=i))) for i, c in enumerate("ba")}
CLUTTER = {"__MACOSX/b/._0.png": b"x", "b/.hidden.png": b"x", "readme.txt": b"x"}


@pytest.mark.parametrize("kind", ["folder", "stored", "deflated"])
def test_archive_reads_images_in_order_of_their_names(tmp_path, kind):
    compression = zipfile.ZIP_DEFLATED if kind == "deflated" else zipfile.ZIP_STORED
    path = make_archive(tmp_path / kind, FILES | CLUTTER, kind != "folder", compression)
    archive = ImageArchive(path)
    assert archive.names() == ["a/1.PNG", "b/0.PNG"] and len(archive) == 2
    for copy in (archive, pickle.loads(pickle.dumps(archive))):
        assert np.array_equal(copy.image(1), noise(3, 4, 6, seed=0))
        assert copy.header(0) == (6, 4, 3, True)
        assert copy.read_extra("readme.txt") == b"x" and copy.read_extra("no.txt") is None
        copy.close()
    assert np.array_equal(archive.image(0), noise(3, 4, 6, seed=1))  # opens again by itself


def test_archive_reads_entries_with_long_extra_fields(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        entry = zipfile.ZipInfo("a.png")
        entry.extra = b"\xfe\xca" + (500).to_bytes(2, "little") + bytes(500)
        archive.writestr(entry, FILES["a/1.PNG"])
    assert ImageArchive(tmp_path / "a.zip").read(0) == FILES["a/1.PNG"]


def test_damage_in_a_zip_is_named(tmp_path):
    path = make_archive(tmp_path / "a.zip", FILES, True)
    content = bytearray(path.read_bytes())
    content[content.index(FILES["a/1.PNG"]) + 60] ^= 1
    path.write_bytes(content)
    archive = ImageArchive(path)
    archive.image(1)
    with pytest.raises(BadImageError, match="a.zip: a/1.PNG: damaged in the zip"):
        archive.image(0)


def test_archives_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file or folder: .*nothing.zip"):
        ImageArchive(tmp_path / "nothing.zip")
    (tmp_path / "text.zip").write_text("no zip")
    with pytest.raises(ValueError, match="text.zip: neither a folder nor a zip"):
        ImageArchive(tmp_path / "text.zip")
    with pytest.raises(ValueError, match="empty.zip: no images in this zip"):
        ImageArchive(make_archive(tmp_path / "empty.zip", CLUTTER, True))
    (tmp_path / "dir").mkdir()
    with pytest.raises(ValueError, match="dir: no images in this folder"):
        ImageArchive(tmp_path / "dir")
    with pytest.raises(ValueError, match="a/1.PNG uses compression method 12"):
        ImageArchive(make_archive(tmp_path / "bz.zip", FILES, True, zipfile.ZIP_BZIP2))


def test_a_dangling_link_is_named(tmp_path):
    (tmp_path / "a.png").symlink_to(tmp_path / "gone.png")
    for read in (ImageArchive(tmp_path).image, ImageArchive(tmp_path).header):
        with pytest.raises(BadImageError, match="a.png: cannot be read"):
            read(0)


# --------------------------------------------------------------------------------------------------------------- labels


def labelled(tmp_path, text: str | bytes):
    return ImageArchive(make_archive(tmp_path / "a.zip", FILES | {"dataset.json": text}, True))


def test_labels_from_json(tmp_path):
    labels = read_labels(labelled(tmp_path, '{"labels": [["b/0.PNG", 4], ["a\\\\1.PNG", 2]]}'))
    assert labels.values.tolist() == [2, 4] and labels.values.dtype == np.int64 and labels.class_names is None
    labels = read_labels(labelled(tmp_path, '{"labels": [["b/0.PNG", [1, 0.5]], ["a/1.PNG", [0, 3]]]}'))
    assert labels.values.tolist() == [[0, 3], [1, 0.5]] and labels.values.dtype == np.float32
    assert read_labels(labelled(tmp_path, '{"labels": null}')) is None


@pytest.mark.parametrize(
    "text, reason",
    [
        ("{", "is not JSON"),
        ("[1]", "should be"),
        ('{"labels": [["a/1.PNG", 0]]}', "no label for 1 of 2 images; the first is b/0.PNG"),
        ('{"labels": []}', "no label for 2 of 2 images"),
        ('{"labels": {"a/1.PNG": 0}}', "list of"),
        ('{"labels": [["a/1.PNG", 0], ["b/0.PNG", 1], ["c.png", 2]]}', "3 images, there are 2; not there: c.png"),
        ('{"labels": [["a/1.PNG", 0], ["b/0.PNG", -1]]}', "start at 0"),
        ('{"labels": [["a/1.PNG", 0], ["b/0.PNG", "cat"]]}', "should all be"),
        ('{"labels": [["a/1.PNG", [0]], ["b/0.PNG", [0, 1]]]}', "should all be"),
        ('{"labels": [["a/1.PNG", 0], ["b/0.PNG", 2]], "class_names": ["x", "y"]}', "class 2 has no name"),
    ],
)
def test_labels_that_do_not_match(tmp_path, text, reason):
    with pytest.raises(ValueError, match=f"a.zip: dataset.json.*{reason}") as error:
        read_labels(labelled(tmp_path, text))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "names, values, class_names",
    [
        (["cat/1.png", "cat/x/2.png", "dog/1.png"], [0, 0, 1], ["cat", "dog"]),
        (["all/0/1.png", "all/1/1.png"], [0, 1], ["0", "1"]),
    ],
)
def test_labels_from_folders(names, values, class_names):
    labels = labels_from_folders(names)
    assert labels.values.tolist() == values and labels.class_names == class_names


@pytest.mark.parametrize(
    "names",
    [
        ["a.png"],
        ["x/a.png"],
        ["a.png", "b.png"],
        ["x/a.png", "x/b.png"],
        ["a.png", "x/b.png"],
        ["00000/1.png", "00001/2.png"],
    ],
)
def test_folders_that_are_no_classes(names):
    assert labels_from_folders(names) is None
