"""dnnlib.readers: JSON and NumPy files of others are read whole, or are an error of one line with their name."""

import io
import json
import os
import resource
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from dnnlib.readers import open_regular, printable, read_bytes, read_json, read_npy, read_npz
from tests.mutations import PRINT_PEAK, mutations, outcome


def one_line(read, *args, **kwargs) -> str:
    with pytest.raises(ValueError) as error:
        read(*args, **kwargs)
    assert '\n' not in str(error.value)
    return str(error.value)


def test_printable_leaves_names_and_escapes_what_no_terminal_shows():
    assert printable('Zoë/猫 1.png') == 'Zoë/猫 1.png'
    assert printable(os.fsdecode(b'caf\xe9\n.png')) == 'caf\\udce9\\n.png'
    assert printable('a\x1b[31m').encode('ascii') == b'a\\x1b[31m'


# ----------------------------------------------------------------------------------------------------------------- JSON


def test_json_from_a_file_and_from_bytes(tmp_path):
    (tmp_path / 'a.json').write_bytes(b'\xef\xbb\xbf{"a": [1, 2.5, null, "\xc3\xa9"]}')  # as Windows saves it
    assert read_json(tmp_path / 'a.json') == {'a': [1, 2.5, None, 'é']}
    assert read_json(b'[]', 'x.zip: dataset.json') == []


@pytest.mark.parametrize(
    'data, words',
    [
        (b'', 'Expecting value'),
        (b'{"a": ', 'Expecting value'),
        (b'\xff\xfe\xff', "codec can't decode"),
        (b'[' * 100_000, 'nested too deeply'),
        (b'{"a":' * 100_000, 'nested too deeply'),
        (b'[NaN]', 'NaN is not a JSON number'),
        (b'[-Infinity]', '-Infinity is not a JSON number'),
        (b'9' * 5000, 'limit'),
    ],
)
def test_json_that_is_none(tmp_path, data, words):
    (tmp_path / 'a.json').write_bytes(data)
    error = one_line(read_json, tmp_path / 'a.json')
    assert error.startswith(f'{tmp_path}/a.json is not JSON (') and words in error


def test_memory_that_runs_out_is_one_line(monkeypatch):
    def loads(*args, **kwargs):
        raise MemoryError

    monkeypatch.setattr(json, 'loads', loads)
    assert one_line(read_json, b'1', 'x') == 'x is not JSON (not enough memory)'


def test_json_that_is_too_large(tmp_path, monkeypatch):
    monkeypatch.setattr('dnnlib.readers.MAX_JSON', 10)
    (tmp_path / 'a.json').write_bytes(b'"%s"' % (b'a' * 9))
    assert 'larger than 10 bytes' in one_line(read_json, tmp_path / 'a.json')
    assert 'larger than 10 bytes' in one_line(read_json, (tmp_path / 'a.json').read_bytes())


@pytest.mark.parametrize('make', [lambda p: None, lambda p: p.mkdir(), os.mkfifo, lambda p: p.symlink_to('/dev/zero')])
def test_what_is_not_a_file_is_named_and_not_waited_for(tmp_path, make):
    make(tmp_path / 'a')
    for read in (read_json, read_npy, read_npz, lambda p: read_bytes(p, 9)):
        assert f'{tmp_path}/a ' in one_line(read, tmp_path / 'a')
    with pytest.raises(OSError):
        open_regular(tmp_path / 'a')


# --------------------------------------------------------------------------------------------------------------- arrays

ARRAYS = {
    'mu': np.arange(5.0),
    'sigma': np.asfortranarray(np.arange(6, dtype='>f4').reshape(2, 3)),
    'meta': np.array('{"a": 1}'),
    'names': np.array(['a', 'bc']),
    'raw': np.array([b'x']),
    'none': np.zeros([0, 3], dtype=np.int64),
}


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def npz(save=np.savez, **arrays) -> bytes:
    buffer = io.BytesIO()
    save(buffer, **arrays)
    return buffer.getvalue()


@pytest.mark.parametrize('save', [np.savez, np.savez_compressed])
def test_arrays_are_what_was_saved(tmp_path, save):
    save(tmp_path / 'a.npz', **ARRAYS)
    found = read_npz(tmp_path / 'a.npz')
    assert list(found) == list(ARRAYS)
    for key, array in ARRAYS.items():
        assert found[key].dtype == array.dtype and np.array_equal(found[key], array)
        np.save(tmp_path / 'a.npy', array)
        single = read_npy(tmp_path / 'a.npy')
        assert single.dtype == array.dtype and np.array_equal(single, array) and single.flags.writeable
    assert list(read_npz(tmp_path / 'a.npz', keys={'mu', 'no'})) == ['mu']


def test_an_array_that_is_not_asked_for_may_be_anything(tmp_path):
    np.savez(tmp_path / 'a.npz', mu=np.ones(2), odd=np.array([{}], dtype=object))
    assert read_npz(tmp_path / 'a.npz', keys=['mu'])['mu'].tolist() == [1, 1]
    assert "array 'odd' (it holds object" in one_line(read_npz, tmp_path / 'a.npz')


def claiming(header: str) -> bytes:
    text = header.encode() + b'\n'
    return b'\x93NUMPY\x01\x00' + len(text).to_bytes(2, 'little') + text


@pytest.mark.parametrize(
    'data, words',
    [
        (b'garbage', 'magic string'),
        (b'', 'magic string'),
        (npy(ARRAYS['mu'])[:-1], 'claims 40 bytes'),
        (npy(ARRAYS['mu']) + b'x', 'claims 40 bytes'),
        (claiming("{'descr': '<f8', 'fortran_order': False, 'shape': (1099511627776,)}"), 'claims 8796093022208 bytes'),
        (claiming("{'descr': '<f8', 'fortran_order': False, 'shape': (2**70,)}"), ''),
        (claiming("{'descr': '<f8', 'fortran_order': False, 'shape': (4294967296, 4294967296)}"), 'claims'),
        (claiming("{'descr': '<f8', 'fortran_order': False, 'shape': (-1, -1)}") + bytes(8), 'claims'),
        (claiming("{'descr': '<f8', 'fortran_order': False, 'shape': (-1,)}"), 'claims'),
        (claiming("{'descr': '<U2147483647', 'fortran_order': False, 'shape': ()}"), ''),
        (claiming("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}") + bytes(8), 'object'),
        (claiming("{'descr': [('a', '<f8')], 'fortran_order': False, 'shape': (1,)}") + bytes(8), 'not numbers'),
        (claiming('(' * 9000), ''),
        (b'\x93NUMPY\x03\x00' + bytes(50), 'version 3.0'),
        (b'\x93NUMPY\x02\x00\xff\xff\xff\xff', ''),
    ],
)
def test_npy_that_is_none(tmp_path, data, words):
    (tmp_path / 'a.npy').write_bytes(data)
    error = one_line(read_npy, tmp_path / 'a.npy')
    assert error.startswith(f'{tmp_path}/a.npy is not a .npy file that can be read (') and words in error
    with zipfile.ZipFile(tmp_path / 'a.npz', 'w') as archive:
        archive.writestr('x.npy', data)
    error = one_line(read_npz, tmp_path / 'a.npz')
    assert error.startswith(f"{tmp_path}/a.npz is not an .npz file that can be read (array 'x' (") and words in error


def test_npz_that_is_none(tmp_path):
    path = tmp_path / 'a.npz'
    path.write_bytes(b'no zip')
    assert 'not a zip' in one_line(read_npz, path)
    path.write_bytes(npz(a=np.arange(99))[:-30])
    assert 'not a zip' in one_line(read_npz, path)
    data = bytearray(npz(a=np.arange(99)))
    data[200] ^= 1
    path.write_bytes(data)
    assert 'Bad CRC-32' in one_line(read_npz, path)
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_LZMA) as archive:
        archive.writestr('a.npy', npy(np.arange(3)))
    assert "'a' uses compression method 14" in one_line(read_npz, path)
    with pytest.warns(UserWarning, match='Duplicate'), zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('a.npy', npy(np.arange(3)))
        archive.writestr('a.npy', npy(np.arange(4)))
    assert "two arrays named 'a'" in one_line(read_npz, path)
    encrypted = bytearray(npz(a=np.arange(3)))
    encrypted[6] |= 1
    encrypted[encrypted.index(b'PK\1\2') + 8] |= 1
    path.write_bytes(encrypted)
    assert 'encrypted' in one_line(read_npz, path)


def test_arrays_beyond_the_limit(tmp_path):
    np.savez(tmp_path / 'a.npz', a=np.zeros(10), b=np.zeros(10))
    np.save(tmp_path / 'a.npy', np.zeros(10))
    assert len(read_npz(tmp_path / 'a.npz', max_bytes=160)) == 2
    assert 'more than' in one_line(read_npz, tmp_path / 'a.npz', max_bytes=159)
    assert 'more than 79 bytes' in one_line(read_npy, tmp_path / 'a.npy', max_bytes=79)


@pytest.mark.skipif(not os.path.exists('/proc/self/status'), reason='measures memory by /proc')
def test_claims_take_no_memory(tmp_path):
    """A zip entry that claims 3 GiB and inflates to 1 MiB, and a .npy that claims 8 TiB, under a limit of memory."""
    header = claiming("{'descr': '|u1', 'fortran_order': False, 'shape': (3221225472,)}")
    with zipfile.ZipFile(tmp_path / 'a.npz', 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('x.npy', header + bytes(1 << 20))
        archive.filelist[0].file_size = len(header) + 3221225472
    (tmp_path / 'a.npy').write_bytes(claiming("{'descr': '<f8', 'fortran_order': False, 'shape': (1099511627776,)}"))
    code = (
        'import sys; from dnnlib.readers import *\n'
        'for read, path in ((read_npz, sys.argv[1]), (read_npy, sys.argv[2])):\n'
        '    try: read(path)\n'
        '    except ValueError as error: print(error)\n'
        + PRINT_PEAK
    )
    limit = (1 << 30, resource.getrlimit(resource.RLIMIT_AS)[1])
    done = subprocess.run(
        [sys.executable, '-c', code, tmp_path / 'a.npz', tmp_path / 'a.npy'],
        capture_output=True, text=True, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, limit),
        cwd=os.path.dirname(os.path.dirname(__file__)), env=os.environ | {'OPENBLAS_NUM_THREADS': '1'},
    )  # fmt: skip
    first, second, kib = done.stdout.splitlines()
    assert 'it ends after 1048576 of 3221225472 bytes' in first or 'CRC' in first
    assert 'claims 8796093022208 bytes' in second and int(kib) < 200_000


# ----------------------------------------------------------------------------------------------------------------- fuzz


def test_damaged_json():
    data = json.dumps({'labels': [[f'a/{i}.png', i] for i in range(20)], 'class_names': ['é\n', 'b'] * 10}).encode()
    read = sum(not isinstance(outcome(lambda d=d: read_json(d, 'x')), Exception) for d in mutations(data, 400))
    assert 0 < read < 400


@pytest.mark.parametrize('data', [npy(ARRAYS['sigma']), npz(**ARRAYS), npz(np.savez_compressed, **ARRAYS)])
def test_damaged_arrays(tmp_path, data):
    reader = read_npz if data[:2] == b'PK' else read_npy
    for damaged in mutations(data, 300):
        (tmp_path / 'a').write_bytes(damaged)
        found = outcome(lambda: reader(tmp_path / 'a'))
        if not isinstance(found, Exception):
            arrays = found.values() if isinstance(found, dict) else [found]
            assert all(a.dtype.kind in 'biufcSU' and a.nbytes <= len(damaged) * 1100 for a in arrays)


def test_a_key_that_is_there_twice_is_refused(tmp_path):
    """Readers of JSON differ in which of the two they take."""
    for text in (b'{"labels": [["a.png", 0]], "labels": [["a.png", 1]]}', b'[{"a": {"b": 1, "c": 2, "b": 1}}]'):
        with pytest.raises(ValueError, match=r'x.json is not JSON \(an object has one key twice\)'):
            read_json(text, 'x.json')
