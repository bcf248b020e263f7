"""The authors' pickles: files of their structure become the networks they hold, and no file runs anything."""

import builtins
import io
import os
import pickle
import struct
import sys
import types
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import invoke

import dnnlib.util
import generate
import import_published
import torch_utils.persistence
from ddn_networks import Network, from_published
from dnnlib import inert_pickles
from torch_utils.published_files import read_state

GOLDEN = Path(__file__).parent / 'data' / 'ddn_uncond_16px.npz'
SOURCE = 'import os\nopen({mark!r}, "w").write("executed")\nclass DDN: pass\n'


@pytest.fixture(scope='module')
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN) as arrays:
        return dict(arrays)


@pytest.fixture(scope='module')
def published(golden) -> dict[str, torch.Tensor]:
    return {k.removeprefix('param/'): torch.from_numpy(v) for k, v in golden.items() if k.startswith('param/')}


class EasyDict(dict):
    pass


class Loss:
    pass


def rebuild(meta):
    raise AssertionError('a persistent object was rebuilt')


class Persistent(torch.nn.Module):
    """A module that is pickled as EDM's persistence writes its own."""

    class_name, module_src = 'DDN', ''

    def __reduce__(self):
        meta = {'type': 'class', 'version': 6, 'module_src': self.module_src, 'class_name': self.class_name}
        return rebuild, (EasyDict(meta, state=self.__dict__),)


rebuild.__module__, rebuild.__qualname__ = 'torch_utils.persistence', '_reconstruct_persistent_obj'
rebuild.__name__ = rebuild.__qualname__
EasyDict.__module__ = 'dnnlib.util'


@pytest.fixture(autouse=True)
def homes(monkeypatch):
    """The names that the file has for what is pickled here."""
    monkeypatch.setattr(torch_utils.persistence, '_reconstruct_persistent_obj', rebuild, raising=False)
    monkeypatch.setattr(dnnlib.util, 'EasyDict', EasyDict, raising=False)
    for name in ('boxx', 'sddn'):
        module = types.ModuleType(name)
        module.Loss = type('Loss', (), {'__module__': name})
        monkeypatch.setitem(sys.modules, name, module)


def module_of(state: dict[str, torch.Tensor], mark: Path, class_name='DDN') -> Persistent:
    """Modules in modules by the names of ``state``: those of blocks persistent, those in them as usual."""
    root = Persistent()
    root.class_name, root.module_src = class_name, SOURCE.format(mark=str(mark))
    root._init_args, root._init_kwargs = (16, 3), EasyDict(img_resolution=16, betas={1, 2})
    for name, tensor in state.items():
        *path, last = name.split('.')
        module = root
        for depth, part in enumerate(path):
            if part not in module._modules:
                module.add_module(part, Persistent() if depth == 0 else torch.nn.Module())
            module = module._modules[part]
        module.register_parameter(last, torch.nn.Parameter(tensor))
    return root


def content(state, mark, **other) -> dict:
    precond = Persistent()
    precond.class_name, precond.module_src = 'DDNPrecond', SOURCE.format(mark=str(mark))
    precond.model = module_of(state, mark, **other)
    precond.register_buffer('scale', torch.tensor(0.5, dtype=torch.float64))
    precond.unused, precond.numbers = None, frozenset({1, 2})
    return {
        'ema': precond,
        'loss_fn': sys.modules['sddn'].Loss(),
        'augment_pipe': None,
        'dataset_kwargs': EasyDict(class_name='training.dataset.ImageFolderDataset', path='c.zip', seed=np.int64(3)),
        'more': OrderedDict(box=sys.modules['boxx'].Loss(), mean=np.float32(0.5), set={1, 2}),
    }


def write(path: Path, value, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(value, protocol))
    return path


@pytest.mark.parametrize('protocol', [2, 3, 4, 5])
def test_a_file_of_the_published_structure_gives_the_golden_images(protocol, published, golden, tmp_path):
    mark = tmp_path / 'mark'
    path = write(tmp_path / 'ddn.pkl', content(published, mark), protocol)
    state = read_state(path)
    assert set(state) == {*(f'model.{name}' for name in published), 'scale'}
    for name, tensor in published.items():
        assert torch.equal(state[f'model.{name}'], tensor) and not state[f'model.{name}'].requires_grad
    net = from_published(state)
    given = torch.from_numpy(golden['given_codes'])
    torch.testing.assert_close(net.decode(given), torch.from_numpy(golden['given_images']), atol=1e-4, rtol=0)
    assert not mark.exists()


def test_the_script_writes_a_snapshot_for_the_others(published, golden, tmp_path):
    path = write(tmp_path / 'ddn.pkl', content(published, tmp_path / 'mark'))
    out = invoke(import_published.main, path, f'--dest={tmp_path}/net.safetensors', '--condition=color')
    net = Network.from_pretrained(tmp_path / 'net.safetensors')
    assert f'16x16, L = {net.num_layers}, K up to ' in out and 'M parameters' in out
    assert net.init_kwargs['conditions'] == ['color'] and net.snapshot_meta['published']['file'] == 'ddn.pkl'
    invoke(import_published.main, path, f'--dest={tmp_path}/net.safetensors')
    net = Network.from_pretrained(tmp_path / 'net.safetensors')
    assert torch.equal(net.encode(torch.from_numpy(golden['images'])), torch.from_numpy(golden['codes']))
    invoke(generate.main, f'--network={tmp_path}/net.safetensors', '--seeds=0', f'--outdir={tmp_path}/out')
    for wrong, said in (('--condition=colour', 'colour'), ('--dest=ftp://x/y', 'URL'), (f'--dest={path}', 'replace')):
        out = invoke(import_published.main, path, f'--dest={tmp_path}/x', wrong, expect=1)
        assert out.startswith('Error: ') and out.count('\n') == 1 and said in out
    assert not (tmp_path / 'x').exists()


def test_networks_of_edm_are_named_and_refused(tmp_path):
    mark = tmp_path / 'mark'
    edm = content({'map_layer0.weight': torch.zeros(2, 2)}, mark, class_name='SongUNet')
    edm['ema'].class_name = 'EDMPrecond'
    out = invoke(import_published.main, write(tmp_path / 'edm.pkl', edm), f'--dest={tmp_path}/x', expect=1)
    assert 'edm.pkl holds EDMPrecond with the model SongUNet, not a Discrete Distribution Network' in out
    assert not mark.exists()


def test_modules_with_two_names_and_cycles_are_read_once(published, tmp_path):
    whole = content(published, tmp_path / 'mark')
    whole['ema']._modules['again'] = whole['ema'].model
    whole['ema'].model._modules['parent'] = whole['ema']
    assert set(read_state(write(tmp_path / 'ddn.pkl', whole))) == {*(f'model.{name}' for name in published), 'scale'}


# Every way in which a pickle names or calls something: none may leave a mark, and values are records.


class Calls:
    """Pickled as a call of ``function``."""

    def __init__(self, function, *args, state=None):
        self.reduced = (function, args) if state is None else (function, args, state)

    def __reduce__(self):
        return self.reduced


class WithState:
    def __setstate__(self, state):
        raise AssertionError('__setstate__ was called')

    def __getstate__(self):
        return {'a': 1}


def opcodes(*parts: bytes) -> bytes:
    return b'\x80\x04' + b''.join(parts) + b'.'


def text(value: str) -> bytes:
    return b'X' + struct.pack('<I', len(value)) + value.encode()


def hostile(command: str) -> dict[str, bytes]:
    """Pickles that run a shell command, or call or change something of ours, when they are loaded."""
    system, line = b'cos\nsystem\n', text(command)
    return {
        'os.system': pickle.dumps(Calls(os.system, command)),
        'builtins.eval': pickle.dumps(Calls(builtins.eval, f'__import__("os").system({command!r})')),
        '__setstate__': pickle.dumps(WithState()),
        'a state of slots': pickle.dumps(Calls(Loss, state=({}, {'__class__': 7}))),
        'reduce by INST': opcodes(b'(', line, b'ios\nsystem\n'),
        'reduce by OBJ': opcodes(b'(', system, line, b'o'),
        'reduce by NEWOBJ': opcodes(system, line, b'\x85\x81'),
        'reduce by NEWOBJ_EX': opcodes(system, line, b'\x85}\x92'),
        'STACK_GLOBAL': opcodes(text('os'), text('system'), b'\x93', line, b'\x85R'),
        'nested calls': opcodes(b'cbuiltins\n__import__\n', text('os'), b'\x85R', line, b'\x85R'),
        'a result that is called': opcodes(b'cbuiltins\ngetattr\n', system, text('__call__'), b'\x86R', line, b'\x85R'),
        'BUILD on a class': opcodes(b'cdnnlib.inert_pickles\nRecord\n}', text('__init__'), system, b'sb'),
        'persistent id': opcodes(b'(', system, line, b'\x85RtQ'),
        'a text persistent id': opcodes(b'P', command.encode(), b'\n'),
        'torch.hub': pickle.dumps(Calls(torch.hub.load, 'x', 'y')),
    }  # fmt: skip


NAMES = tuple(hostile('x'))


@pytest.mark.parametrize('name', NAMES)
def test_a_hostile_pickle_leaves_no_mark(name, tmp_path):
    mark = tmp_path / 'mark'
    data = hostile(f'echo executed > {mark}')[name]
    (tmp_path / 'x.pkl').write_bytes(data)
    before = inert_pickles.Record.__init__
    value = inert_pickles.load(tmp_path / 'x.pkl')
    assert type(value) is inert_pickles.Record
    (tmp_path / 'x.pkl').write_bytes(b'\x80\x04}' + text('ema') + data[2:-1] + b's.')
    with pytest.raises(ValueError, match='x.pkl'):
        read_state(tmp_path / 'x.pkl')
    assert not mark.exists() and inert_pickles.Record.__init__ is before


def test_the_commands_above_would_leave_one(tmp_path):
    for name in ('os.system', 'builtins.eval', 'STACK_GLOBAL', 'reduce by OBJ'):
        mark = tmp_path / name.replace(' ', '-')
        pickle.loads(hostile(f'echo executed > {mark}')[name])
        assert mark.exists()


BROKEN = {
    'empty': (b'', 'protocol 2'),
    'a web page': (b'<!doctype html>', 'protocol 2'),
    'a zip': (b'PK\x03\x04', 'protocol 2'),
    'cut off': (pickle.dumps({'ema': [1, 2, 3]})[:-3], ''),
    'no STOP': (b'\x80\x04N', 'STOP'),
    'an unknown operation': (b'\x80\x04\xff.', ''),
    'STOP on nothing': (b'\x80\x04.', ''),
    'a memo entry that is not there': (opcodes(b'h\x07'), 'BINGET at byte 2'),
    'a memo of nothing': (opcodes(b'q\x00'), 'BINPUT'),
    'a huge memo index': (opcodes(b'Nr\xff\xff\xff\xff0j\xfe\xff\xff\xff'), 'LONG_BINGET'),
    'a string of 2^40 bytes': (opcodes(b'\x8e', struct.pack('<Q', 1 << 40)), ''),
    'text of 2^40 bytes': (opcodes(b'\x8d', struct.pack('<Q', 1 << 40)), ''),
    'a byte array of 2^60 bytes': (opcodes(b'\x96', struct.pack('<Q', 1 << 60)), ''),
    'an integer of 2^31 bytes': (opcodes(b'\x8b', struct.pack('<i', 2**31 - 1)), ''),
    'an integer of many digits': (opcodes(b'I', b'9' * 10_000, b'\n'), ''),
    'no mark': (opcodes(b't'), 'TUPLE'),
    'too few for a tuple': (opcodes(b'N\x87'), 'TUPLE3'),
    'SETITEM on a list': (opcodes(b']NNs'), 'SETITEM'),
    'an odd number of items': (opcodes(b'}(Nu'), 'SETITEMS'),
    'an unhashable key': (opcodes(b'}]N', b's', b'0'), ''),
    'APPEND to a number': (opcodes(b'K\x01Na'), 'APPEND'),
    'REDUCE without a tuple': (opcodes(b'cos\nsystem\n', text('x'), b'R'), 'REDUCE'),
    'BUILD on a dict': (opcodes(b'}}b'), 'BUILD'),
    'an extension': (opcodes(b'\x82\x01'), 'EXT1'),
    'a buffer outside': (opcodes(b'\x97'), 'NEXT_BUFFER'),
    'POP on nothing': (opcodes(b'0'), 'POP'),
}


@pytest.mark.parametrize('name', BROKEN)
def test_a_broken_pickle_is_one_line(name, tmp_path):
    data, said = BROKEN[name]
    (tmp_path / 'x.pkl').write_bytes(data)
    out = invoke(import_published.main, tmp_path / 'x.pkl', f'--dest={tmp_path}/net', expect=1)
    assert out.startswith('Error: ') and out.count('\n') == 1 and 'x.pkl' in out and said in out
    assert len(out) < 500 and not (tmp_path / 'net').exists()


def test_many_operations_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(inert_pickles, 'MAX_OPERATIONS', 1000)
    (tmp_path / 'x.pkl').write_bytes(opcodes(b']' * 1001))
    with pytest.raises(ValueError, match='more than 1,000 operations'):
        inert_pickles.load(tmp_path / 'x.pkl')


def test_small_files_do_not_grow(tmp_path):
    """Long names that are joined, keyword arguments of many calls, and keys of one hash: none is made a second time."""
    path = tmp_path / 'x.pkl'
    path.write_bytes(opcodes(text('x' * 1001), b'q\x00(', b'h\x00h\x00\x93' * 9, b't'))
    with pytest.raises(ValueError, match='a name of more than 1,000 characters'):
        inert_pickles.load(path)
    path.write_bytes(opcodes(b'(}q\x00K\x01Ns0', b'ca\nb\n)h\x00\x92' * 2, b't'))
    first, second = inert_pickles.load(path)
    assert first.items == {1: None} and first.items is second.items
    numbers = [n * sys.hash_info.modulus for n in range(8, 12)]
    assert len({hash(n) for n in numbers}) == 1
    keys = inert_pickles.load(write(path, dict.fromkeys([7, -(2**63), *numbers])))
    assert list(keys)[:2] == [7, -(2**63)] and [key.args for key in list(keys)[2:]] == [(n,) for n in numbers]


def test_deep_nesting_and_shared_parts_cost_nothing(tmp_path):
    """A tuple 100,000 deep as a key, and 2^60 leaves behind 60 lists."""
    (tmp_path / 'deep.pkl').write_bytes(opcodes(b'})', b'\x85' * 100_000, b'Ns'))
    assert len(inert_pickles.load(tmp_path / 'deep.pkl')) == 1
    twice = [b'q%c0](h%ch%ce' % (i, i, i) for i in range(60)]
    shared = b'N' + b''.join(twice)
    (tmp_path / 'shared.pkl').write_bytes(b'\x80\x04}' + text('ema') + shared + b's.')
    with pytest.raises(ValueError, match='holds list, not a Discrete'):
        read_state(tmp_path / 'shared.pkl')


# Tensors and their storages.


def storage_bytes(value=None) -> bytes:
    file = io.BytesIO()
    torch.save(torch.zeros(4).untyped_storage() if value is None else value, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def typed(numbers: torch.Tensor) -> bytes:
    (data,) = numbers.__reduce_ex__(2)[1][0].__reduce__()[1]
    return data


def call(name: str, *args):
    """A call of a function by name, as pickled."""
    module, function = name.rsplit('.', 1)
    return Calls(getattr(sys.modules[module], function), *args)


def tensor(storage=None, offset=0, size=(2,), stride=(1,)):
    storage = call('torch.storage._load_from_bytes', typed(torch.arange(4.0))) if storage is None else storage
    return call('torch._utils._rebuild_tensor_v2', storage, offset, size, stride, False, OrderedDict())


def loading(data) -> Calls:
    return call('torch.storage._load_from_bytes', data)


# A storage of 96 GiB of zeros, by a function that torch calls even with ``weights_only=True``.
FILLS_MEMORY = storage_bytes()[:15] + b'\x80\x02M\xe9\x03.\x80\x02}.\x80\x02' + b'%b\x8a\x05%b\x85R.' % (
    b'cbuiltins\nbytearray\n', (96 << 30).to_bytes(5, 'little')
)


def damaged(mark: Path) -> dict:
    nested = Calls(os.system, f'echo executed > {mark}')
    numbers = typed(torch.arange(4.0))
    huge = numbers.replace(b'K\x04', b'\x8a\x06' + (1 << 40).to_bytes(6, 'little'))
    assert huge != numbers
    return {
        'hostile bytes of a storage': (tensor(loading(storage_bytes(nested))), 'damaged'),
        'a bare hostile pickle': (tensor(loading(pickle.dumps(nested, 2))), 'not what torch writes'),
        'a zip file of torch': (tensor(loading(b'PK\x03\x04')), 'not what torch writes'),
        'a storage that fills the memory': (tensor(loading(FILLS_MEMORY)), 'it calls functions'),
        'a list in place of a storage': (tensor(loading(storage_bytes([1, 2]))), 'plain numbers'),
        'a tensor in place of a storage': (tensor(loading(storage_bytes(torch.zeros(2)))), 'calls functions'),
        'complex numbers': (tensor(loading(typed(torch.zeros(2, dtype=torch.complex64)))), 'plain numbers'),
        'a storage that is cut off': (tensor(loading(numbers[:-3])), 'damaged'),
        'a storage that claims 4 TiB': (tensor(loading(huge)), 'damaged'),
        'a storage of another function': (tensor(nested), 'not a plain one'),
        'two arguments': (tensor(call('torch.storage._load_from_bytes', numbers, 1)), 'not a plain one'),
        'a call with no storage': (tensor(7), 'not a plain one'),
        'more numbers than stored': (tensor(size=(5,)), 'claims more numbers than the 4 stored'),
        'an offset beyond the end': (tensor(offset=3), 'claims more numbers'),
        'strides beyond the end': (tensor(stride=(9,)), 'claims more numbers'),
        'zeros repeated 2^40 times': (tensor(size=(1 << 40,), stride=(0,)), 'claims more numbers'),
        'a negative stride': (tensor(stride=(-1,)), 'sizes or strides'),
        'a negative offset': (tensor(offset=-1), 'sizes or strides'),
        'a size of text': (tensor(size=('2',)), 'sizes or strides'),
        'a size that is no tuple': (tensor(size=2), 'sizes or strides'),
        'more strides than sizes': (tensor(stride=(1, 1)), 'sizes or strides'),
        'too many dimensions': (tensor(size=(1,) * 60, stride=(0,) * 60), 'sizes or strides'),
        'a size of a huge number': (tensor(size=(1 << 4000,)), 'sizes or strides'),
        'another function': (nested, 'not a plain tensor but posix.system'),
        'a call of a call': (call('torch._utils._rebuild_parameter', nested, True, {}), 'not a plain tensor'),
        'a parameter of nothing': (call('torch._utils._rebuild_parameter'), 'not a plain tensor'),
        'a number': (7, 'not a plain tensor but int'),
        'a list': ([1], 'not a plain tensor but list'),
    }  # fmt: skip


@pytest.mark.parametrize('name', damaged(Path('mark')))
def test_a_damaged_or_hostile_tensor_is_refused(name, tmp_path):
    value, said = damaged(tmp_path / 'mark')[name]
    root = Persistent()
    root._parameters['weight'] = value
    path = write(tmp_path / 'x.pkl', {'ema': root}, 2)
    with pytest.raises(ValueError, match='x.pkl') as error:
        read_state(path)
    assert said in str(error.value) and '\n' not in str(error.value) and len(str(error.value)) < 500
    assert not (tmp_path / 'mark').exists()


@pytest.mark.parametrize('name', ['a b', '', 7, 'x' * 1000, '\x1b[2J'])
def test_names_of_tensors_are_identifiers(name, tmp_path):
    root = Persistent()
    root._parameters[name] = torch.zeros(1)
    with pytest.raises(ValueError, match='not an identifier'):
        read_state(write(tmp_path / 'x.pkl', {'ema': root}))


def test_views_of_one_storage_and_other_types(tmp_path):
    base = torch.arange(24.0).view(4, 6)
    root = Persistent()
    root.block_1x1_0 = torch.nn.Module()
    held = {
        'whole': base, 'part': base[1:, 2:4], 'turned': base.t(), 'one': base[2, 3], 'none': base[:0],
        'half_': base.half(), 'numbers': torch.arange(3), 'brain': base.bfloat16(), 'bools': base > 3,
    }  # fmt: skip
    for name, value in held.items():
        root.block_1x1_0.register_buffer(name, value)
    state = read_state(write(tmp_path / 'x.pkl', {'ema': root}))
    for name, value in held.items():
        read = state[f'block_1x1_0.{name}']
        assert torch.equal(read, value) and read.dtype == value.dtype
        assert read.untyped_storage().nbytes() == value.numel() * value.element_size()


def test_parts_that_are_used_again_and_again_are_refused(tmp_path):
    """A tensor under many names, many views of one storage, many modules with the same parameters or modules."""
    path, storage = tmp_path / 'x.pkl', loading(typed(torch.zeros(50_000)))
    for values in ([torch.zeros(50_000)] * 9, [tensor(storage, i, (49_000,)) for i in range(9)]):
        root = Persistent()
        root._buffers.update({f'b{i}': value for i, value in enumerate(values)})
        with pytest.raises(ValueError, match='more than 4 times the bytes of the file'):
            read_state(write(path, {'ema': root}))
    for held in ('_buffers', '_modules'):
        root, shared = Persistent(), torch.nn.Module()
        shared.__dict__[held] = {f'b{i}': None for i in range(200)}
        for i in range(101):
            root.add_module(f'm{i}', torch.nn.Module())
            root._modules[f'm{i}'].__dict__[held] = shared.__dict__[held]
        with pytest.raises(ValueError, match='more than 20,000 names of tensors and modules'):
            read_state(write(path, {'ema': root}))


def test_the_number_of_a_block_costs_nothing():
    with pytest.raises(ValueError, match='block_1x1_0.ddo.multi_out_conv1x1.weight is missing'):
        from_published({f'block_1x1_{10**12}.ddo.multi_out_conv1x1.weight': torch.zeros(6, 4, 1, 1)})
