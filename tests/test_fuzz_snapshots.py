"""Damaged and hostile network snapshots and training states: one line says what is wrong, or nothing is lost.

Nothing here may crash, hang, take much memory, change the objects of a run, or load as something else.
"""

import copy
import json
import math
import os
import struct

import pytest
import torch
from mutations import mutations, outcome
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ddn_networks import DDN, Network, RecurrentDDN, SplitAndPrune, samplers, snapshots, tensor_files
from training import checkpoint
from training.ema import EMA

CONFIG = {'img_resolution': [6, 4], 'img_channels': 3, 'channels': [8, 8], 'num_blocks': [1, 2], 'num_nodes': [4, 3]}


def network() -> DDN:
    torch.manual_seed(0)
    return DDN(**CONFIG)


def recurrent() -> RecurrentDDN:
    torch.manual_seed(0)
    return RecurrentDDN(4, 1, 3, 2, base_width=4, multipliers=[1, 2], num_blocks=1, features=4)


class Run:
    """What a training state is of; after ``steps``."""

    def __init__(self, steps: int = 0, dtype: torch.dtype = torch.float64):
        self.net = network()
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=1e-3, fused=True)
        self.ema = EMA(dict(self.net.named_parameters()), [100, 200])
        self.balance = SplitAndPrune(self.net.node_weights, self.net.ddl_of_layer, dtype=dtype)
        self.balance.attach(self.optimizer)
        for step in range(steps):
            images = torch.rand(4, 3, 6, 4, generator=torch.Generator().manual_seed(step)) * 2 - 1
            output = self.net(samplers.nearest(images), 4, keep=True)
            sum(x.square().mean() for x in output.selected).backward()
            self.balance.observe(output.codes)
            self.optimizer.step()
            self.ema.update_(4 * step, 4)

    @property
    def parts(self) -> tuple:
        return self.net, self.ema, self.optimizer, self.balance

    def tensors(self) -> dict[str, torch.Tensor]:
        return checkpoint._tensors(self.net, self.ema, dict(self.optimizer.state), self.balance)


META = {'cur_nimg': 12, 'scaler': {}, 'loss_scale': None}
SCALER = torch.amp.GradScaler('cpu').state_dict()


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A snapshot of each class and a training state."""
    folder = tmp_path_factory.mktemp('whole')
    for name, net in (('net', network()), ('recurrent', recurrent())):
        emas = {label: {n: t * s for n, t in net.state_dict().items()} for label, s in (('0.5', 0.5), ('0.05', 0.25))}
        snapshots.save_network(folder / f'{name}.safetensors', net, emas, {'cur_nimg': 12, 'preset': 'tiny'})
    checkpoint.save_state(str(folder / 'state.safetensors'), *Run(3).parts, {**META, 'scaler': SCALER})
    return folder


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[n].dtype == b[n].dtype and torch.equal(a[n], b[n]) for n in a)


# Damage.


@pytest.mark.parametrize('name', ['net', 'recurrent'])
def test_a_damaged_snapshot_is_an_error_or_the_same_network(folder, tmp_path, name):
    whole = (folder / f'{name}.safetensors').read_bytes()
    expected = Network.from_pretrained(folder / f'{name}.safetensors')
    path = tmp_path / 'damaged.safetensors'
    errors = 0
    for data in mutations(whole, 160):
        path.write_bytes(data)
        found = outcome(lambda: Network.from_pretrained(path))
        if isinstance(found, Exception):
            errors += 1
        else:
            assert same(found.state_dict(), expected.state_dict())
            assert found.snapshot_meta == expected.snapshot_meta and found.init_kwargs == expected.init_kwargs
    assert errors > 100


def test_a_damaged_state_is_an_error_that_changes_nothing_or_the_same_state(folder, tmp_path):
    whole = (folder / 'state.safetensors').read_bytes()
    reference = Run()
    meta = checkpoint.load_state(str(folder / 'state.safetensors'), *reference.parts)
    path, run = tmp_path / 'damaged.safetensors', Run()
    before = {name: tensor.clone() for name, tensor in run.tensors().items()}
    errors = 0
    for data in mutations(whole, 160):
        path.write_bytes(data)
        found = outcome(lambda run=run: checkpoint.load_state(str(path), *run.parts))
        if isinstance(found, Exception):
            errors += 1
            assert same(run.tensors(), before)
        else:
            assert found == meta and same(run.tensors(), reference.tensors())
            run = Run()
    assert errors > 100


@pytest.mark.parametrize('name', ['net', 'state'])
def test_damage_to_files_without_a_digest_never_crashes(folder, tmp_path, name):
    """Files of earlier revisions: a flipped bit of a weight is not seen there, everything else is."""
    path = tmp_path / 'damaged.safetensors'
    tensors, meta = tensor_files.load_tensors(folder / f'{name}.safetensors')
    save_file(tensors, path, metadata={'ddn': json.dumps(meta)})
    whole, run = path.read_bytes(), Run()
    for data in mutations(whole, 160, seed=1):
        path.write_bytes(data)
        if name == 'net':
            outcome(lambda: Network.from_pretrained(path).sample(1))
        else:
            outcome(lambda: checkpoint.load_state(str(path), *run.parts))


def test_every_flipped_bit_of_the_data_is_found(folder, tmp_path):
    readers = {'net': Network.from_pretrained, 'state': lambda path: checkpoint.load_state(path, *Run().parts)}
    for name, load in readers.items():
        data = bytearray((folder / f'{name}.safetensors').read_bytes())
        begin = 8 + struct.unpack('<Q', data[:8])[0]
        path = str(tmp_path / 'flipped.safetensors')
        for at in range(begin, len(data), (len(data) - begin) // 20):
            data[at] ^= 1  # the lowest bit: the number stays finite
            (tmp_path / 'flipped.safetensors').write_bytes(data)
            with pytest.raises(ValueError, match='it is damaged, its contents do not have the SHA-256 digest'):
                load(path)
            data[at] ^= 1


def test_every_changed_letter_of_the_json_is_found(folder, tmp_path):
    data = (folder / 'net.safetensors').read_bytes()
    changes = {b'cur_nimg\\": 12': b'cur_nimg\\": 13', b'tiny': b'tine', b'dropout\\": 0.0': b'dropout\\": 0.5'}
    for old, new in changes.items():
        assert data.count(old) == 1
        (tmp_path / 'changed.safetensors').write_bytes(data.replace(old, new))
        with pytest.raises(ValueError, match='it is damaged'):
            Network.from_pretrained(tmp_path / 'changed.safetensors')


# Hostile headers.


def header_only(text: bytes, length: int | None = None) -> bytes:
    return struct.pack('<Q', len(text) if length is None else length) + text


DEEP = '[' * 100_000
HEADERS = {
    'empty': b'', 'short': b'\0' * 7, 'no header': header_only(b''), 'length 2^62': header_only(b'{}', 2**62),
    'length 2^64-1': header_only(b'{}', 2**64 - 1), 'length 10^8': header_only(b'{}' + b' ' * 98, 10**8),
    'deep': header_only(DEEP.encode()), 'list': header_only(b'[]'), 'null': header_only(b'null'),
    'not UTF-8': header_only(b'{"\xff": 1}'), 'NaN': header_only(b'{"a": NaN}'), 'empty object': header_only(b'{}'),
    'metadata list': header_only(b'{"__metadata__": []}'),
    'metadata numbers': header_only(b'{"__metadata__": {"ddn": 1}}'),
    'huge shape': header_only(b'{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}'),
    'negative shape': header_only(b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}') + b'\0' * 4,
    'offsets backwards': header_only(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}') + b'\0' * 4,
    'offsets overlap': header_only(b'{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},'
                                   b'"b":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}') + b'\0' * 4,
    'unknown type': header_only(b'{"a":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}') + b'\0' * 4,
    'rare type': header_only(b'{"__metadata__":{"ddn":"{}"},"a":{"dtype":"F8_E4M3","shape":[4],"data_offsets":[0,4]}}')
    + b'\0' * 4,
}  # fmt: skip
META_TEXTS = {
    'deep': DEEP, 'deep value': '{"class_name": ' + DEEP, 'list': '[]', 'NaN': '{"class_name": NaN}',
    'infinite': '{"kwargs": -Infinity}', 'twice': '{"emas": [], "emas": []}', 'empty': '',
    'digits': '{"cur_nimg": ' + '9' * 5000 + '}',
    'cut': '{"class_name": "ddn_', 'surrogate': '{"class_name": "\\ud800", "kwargs": {}}',
}  # fmt: skip


@pytest.mark.parametrize('name', HEADERS)
def test_a_hostile_file_header_is_one_line(tmp_path, name):
    path = tmp_path / 'net.safetensors'
    path.write_bytes(HEADERS[name])
    assert isinstance(outcome(lambda: Network.from_pretrained(path)), ValueError)
    assert isinstance(outcome(lambda: checkpoint.load_state(str(path), *Run().parts)), ValueError)


@pytest.mark.parametrize('name', META_TEXTS)
def test_a_hostile_json_text_is_one_line(folder, tmp_path, name):
    path = tmp_path / 'net.safetensors'
    save_file(load_file(folder / 'net.safetensors'), path, metadata={'ddn': META_TEXTS[name]})
    assert isinstance(outcome(lambda: Network.from_pretrained(path)), ValueError)
    assert isinstance(outcome(lambda: checkpoint.load_state(str(path), *Run().parts)), ValueError)


@pytest.mark.parametrize('more, words', [('"cur_nimg": 99', 'a key is there twice'), ('"note": NaN', 'NaN is not JSON'),
                                         ('"note": [{"a": 1, "a": 2}]', 'a key is there twice')])  # fmt: skip
def test_json_that_readers_take_in_different_ways(folder, tmp_path, more, words):
    path = tmp_path / 'net.safetensors'
    tensors, meta = tensor_files.load_tensors(folder / 'net.safetensors')
    save_file(tensors, path, metadata={'ddn': json.dumps(meta)[:-1] + f', {more}}}'})
    with pytest.raises(ValueError, match=words):
        Network.from_pretrained(path)


def test_a_rare_type_is_named(tmp_path):
    (tmp_path / 'net.safetensors').write_bytes(HEADERS['rare type'])
    with pytest.raises(ValueError, match='F8_E4M3 are unknown'):
        Network.from_pretrained(tmp_path / 'net.safetensors')


def test_an_unknown_entry_of_the_header_is_one_line(folder, tmp_path):
    """So a digest is not lost with a letter of its key."""
    data = (folder / 'net.safetensors').read_bytes()
    (tmp_path / 'net.safetensors').write_bytes(data.replace(b'"sha256"', b'"sha257"'))
    assert 'sha257' in str(outcome(lambda: Network.from_pretrained(tmp_path / 'net.safetensors')))


class Largest(TorchDispatchMode):
    """The most numbers that an operation makes on a device that holds them."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for x in tree_leaves(made):
            if isinstance(x, torch.Tensor) and x.device.type != 'meta':
                Largest.numel = max(self.numel, x.numel())
        return made


HUGE = [
    {'num_blocks': [2**20] * 2}, {'num_blocks': [5000, 4000]}, {'num_blocks': [2**20] * 2, 'repeat_blocks': True},
    {'channels': [2**31] * 2}, {'channels': [2**19] * 2}, {'num_nodes': [2**31] * 2}, {'num_nodes': [2**20] * 2},
    {'img_resolution': [2**31, 2**31]}, {'img_resolution': 2**12}, {'img_resolution': 10**30}, {'img_channels': 2**20},
    {'channels': [8] * 5000, 'num_blocks': [1] * 5000, 'num_nodes': [3] * 5000}, {'condition_channels': 2**31},
    {'augment_dim': 2**63}, {'conditions': ['onehot:999999999']}, {'conditions': ['class:' + '9' * 6000]},
    {'conditions': ['vector:8'] * 3000}, {'num_blocks': [9, 9000], 'repeat_blocks': True, 'prior_width': 1},
    {'grids': [1] * 2**17}, {'grids': [2**20, 2**20]},
]  # fmt: skip
WRONG = [
    *({key: value} for key in ('img_channels', 'condition_channels', 'augment_dim')
      for value in (True, 1.5, '3', None, [3], -1, {}, math.inf, 1e400)),
    *({key: value} for key in ('channels', 'num_blocks', 'num_nodes')
      for value in (8, '88', [8.0, 8], [True, 8], [[8], [8]], ['8', 8], [-8, 8], [8], [], None, {'0': 8}, [0, 8])),
    *({'img_resolution': value}
      for value in ([6], [6, 4, 2], [], 0, -6, [6, -4], 'wide', [6.0, 4], True, None, [[6, 4]])),
    *({key: value} for key in ('learning_residual', 'leak_choice', 'repeat_blocks', 'condition_optional')
      for value in (1, 0, 'true', None, [])),
    *({'dropout': value} for value in (-0.1, 1.5, '0.1', True, None, [0.1], 1e400)),
    *({'conditions': value}
      for value in ('color', [5], [None], [['color']], ['nothing'], ['color', 'color'], {'color': 1}, ['class:0'],
                    ['class'], [''], [True])),
    *({'condition_placement': value} for value in ('left', '', 5, None, True, ['published'])),
    *({'grids': value}
      for value in (2, 'x', [2], [[1, 1, 1], 1], [[2**31, 1], 1], [[[1]], 1], [0, 1], [True, 1], [-1, 1])),
    *({'prior_width': value} for value in (-1, True, 2.0, '4', [4], None, 2**31, 8)),
    *({'prior_gradient': value} for value in (-1, '1', True, None, 1e400)),
    {'surprise': 1}, {'self': 1}, {'': 1},
]  # fmt: skip


def described_as(path, folder, kwargs, name: str = 'net') -> None:
    tensors, meta = tensor_files.load_tensors(folder / f'{name}.safetensors')
    save_file(tensors, path, metadata={'ddn': json.dumps({**meta, 'kwargs': {**meta['kwargs'], **kwargs}})})


def check_is_refused(path, monkeypatch, file: str) -> None:
    """The reader refuses a file before it makes many modules, or a tensor larger than the file."""
    modules, construct = [], torch.nn.Module.__init__

    def counting(self, *args, **kwargs):
        modules.append(type(self))
        construct(self, *args, **kwargs)

    monkeypatch.setattr(torch.nn.Module, '__init__', counting)
    Largest.numel = 0
    with Largest():
        found = outcome(lambda: Network.from_pretrained(path))
    assert isinstance(found, ValueError) and file in str(found), found
    assert len(modules) < 500 and Largest.numel < path.stat().st_size


@pytest.mark.parametrize('kwargs', HUGE, ids=lambda x: str(x)[:60])
def test_a_small_file_that_describes_a_huge_network_costs_nothing(folder, tmp_path, monkeypatch, kwargs):
    described_as(tmp_path / 'net.safetensors', folder, kwargs)
    check_is_refused(tmp_path / 'net.safetensors', monkeypatch, 'net.safetensors')


@pytest.mark.parametrize('kwargs', WRONG, ids=lambda x: str(x)[:60])
def test_arguments_of_another_type_or_out_of_range(folder, tmp_path, monkeypatch, kwargs):
    described_as(tmp_path / 'net.safetensors', folder, kwargs)
    check_is_refused(tmp_path / 'net.safetensors', monkeypatch, 'net.safetensors')


@pytest.mark.parametrize(
    'kwargs',
    [
        {'num_layers': 2**31}, {'num_layers': 0}, {'num_layers': -1}, {'num_layers': 2.0}, {'num_blocks': 2**31},
        {'prior_kind': 'counts', 'num_layers': 10_000}, {'prior_kind': 'transformer', 'prior_width': 2**20},
        {'prior_kind': 'transformer', 'prior_width': 4, 'num_layers': 10_000}, {'prior_kind': 'transformer'},
        {'prior_kind': 'no'}, {'prior_kind': 1}, {'condition_to': 'heads'}, {'condition_to': 2},
        {'num_blocks': 5000}, {'multipliers': [1] * 5000}, {'multipliers': []}, {'multipliers': [2**62]},
        {'multipliers': [1, 0]}, {'multipliers': 2}, {'base_width': 2**62}, {'base_width': 0}, {'base_width': '4'},
        {'features': 2**31}, {'features': 3}, {'num_nodes': 1}, {'num_nodes': [3]}, {'img_resolution': 2**31},
        {'carry_features': 1}, {'embed_step': None}, {'augment_dim': 1}, {'condition_placement': 'published'},
    ],
    ids=str,
)  # fmt: skip
def test_arguments_of_a_recurrent_network(folder, tmp_path, monkeypatch, kwargs):
    described_as(tmp_path / 'net.safetensors', folder, kwargs, 'recurrent')
    check_is_refused(tmp_path / 'net.safetensors', monkeypatch, 'net.safetensors')


@pytest.mark.parametrize(
    'change',
    [
        {'emas': None}, {'emas': 'none'}, {'emas': {}}, {'emas': [1]}, {'emas': [None]}, {'emas': [['0.5']]},
        {'emas': ['0.5', '0.5', '0.05']}, {'emas': ['0.5', '0.05', 'more']}, {'emas': []}, {'emas': ['0.5']},
        {'kwargs': None}, {'kwargs': []}, {'kwargs': 'x'}, {'kwargs': {}}, {'class_name': None}, {'class_name': 3},
        {'class_name': []}, {'class_name': {}}, {'class_name': 'os.system'},
        {'class_name': 'ddn_networks.snapshots.np'}, {'class_name': 'ddn_networks.recurrent.RecurrentDDN'},
        {'class_name': snapshots.DDN + '.__init__'},
        {'sampling': None}, {'sampling': []}, {'sampling': {'strange': 1}}, {'sampling': {'temperatures': None}},
        {'sampling': {'temperatures': [1.0]}}, {'sampling': {'temperatures': [1, 1, 1, 1]}},
        {'sampling': {'temperatures': [1, 1, -0.5]}}, {'sampling': {'temperatures': [1, 1, math.nan]}},
        {'sampling': {'temperatures': [1, 1, 1e30]}}, {'sampling': {'temperatures': [1, 1, True]}},
        {'sampling': {'temperatures': [1, 1, '1']}}, {'sampling': {'temperatures': '111'}},
        {'sampling': {'residuals': []}}, {'sampling': {'residuals': {'rgb/1': [1.0]}}},
        {'sampling': {'residuals': {'rgb/1': None}}}, {'sampling': {'residuals': {'rgb': [1, 1, 1]}}},
        {'sampling': {'residuals': {'rgb/0': [1, 1, 1]}}}, {'sampling': {'residuals': {'luma/2\n': [1, 1, 1]}}},
        {'sampling': {'residuals': {'rgb/1': [1, 1, math.inf]}}},
        {'sampling': {'residuals': {f'rgb/{p}': [1, 1, 1] for p in range(1, 66)}}},
    ],
    ids=str,
)  # fmt: skip
def test_a_description_of_something_else(folder, tmp_path, monkeypatch, change):
    tensors, meta = tensor_files.load_tensors(folder / 'net.safetensors')
    save_file(tensors, tmp_path / 'net.safetensors', metadata={'ddn': json.dumps({**meta, **change})})
    check_is_refused(tmp_path / 'net.safetensors', monkeypatch, 'net.safetensors')


@pytest.mark.parametrize('missing', ['class_name', 'kwargs', 'emas'])
def test_a_missing_key(folder, tmp_path, monkeypatch, missing):
    tensors, meta = tensor_files.load_tensors(folder / 'net.safetensors')
    del meta[missing]
    save_file(tensors, tmp_path / 'net.safetensors', metadata={'ddn': json.dumps(meta)})
    check_is_refused(tmp_path / 'net.safetensors', monkeypatch, 'net.safetensors')


def test_layers_that_share_weights_are_counted(tmp_path):
    """Ten times as many layers cost a file nothing, but everybody who samples."""
    net = DDN(**{**CONFIG, 'num_blocks': [1, 4]}, repeat_blocks=True)
    snapshots.save_network(tmp_path / 'net.safetensors', net)
    for layers, right in ((40, True), (9_999, True), (10_000, False)):
        described_as(tmp_path / 'many.safetensors', tmp_path, {'num_blocks': [1, layers]})
        found = outcome(lambda: Network.from_pretrained(tmp_path / 'many.safetensors'))
        assert isinstance(found, DDN) == right and (right or '10001 layers are more than 10000' in str(found))


# Tensors that are not those of the network or the run.


def replaced(tensors, name, tensor) -> dict[str, torch.Tensor]:
    """``tensors`` with another one under a name; None removes it."""
    made = {**tensors, name: tensor}
    return {n: t for n, t in made.items() if t is not None}


@pytest.mark.parametrize(
    'name, change, words',
    [
        ('net/ddls.0.weight', None, 'net/ddls.0.weight is missing'),
        ('ema/0.05/blocks.0.conv0.bias', None, 'ema/0.05/blocks.0.conv0.bias is missing'),
        ('net/ddls.0.weight', lambda t: t[:3], r'net/ddls.0.weight is \[3, 3, 4\] F32 in place of \[4, 3, 4\] F32'),
        ('net/ddls.0.weight', lambda t: t.transpose(0, 1), r'in place of \[4, 3, 4\]'),
        ('ema/0.5/ddls.0.weight', lambda t: t.long(), 'I64 in place of .* F32'),
        ('ema/0.5/ddls.0.weight', lambda t: t.bool(), 'BOOL in place of'),
        ('net/more', lambda t: torch.zeros(2), 'net/more has no place in it'),
        ('ema/other/ddls.0.weight', lambda t: torch.zeros(2), 'ema/other/ddls.0.weight has no place in it'),
        ('ema/0.5/ddls.0.weight', lambda t: t * math.nan, 'ddls.0.weight holds NaN or infinite values'),
        ('ema/0.5/ddls.0.weight', lambda t: t / 0, 'ddls.0.weight holds NaN or infinite values'),
        ('ema/0.5/ddls.0.weight', lambda t: t.double() + 1e300, 'ddls.0.weight holds NaN or infinite values'),
    ],
)
def test_tensors_that_a_network_does_not_have(folder, tmp_path, name, change, words):
    tensors, meta = tensor_files.load_tensors(folder / 'net.safetensors')
    made = replaced(tensors, name, None if change is None else change(tensors.get(name)).contiguous())
    path = tmp_path / 'net.safetensors'
    save_file(made, path, metadata={'ddn': json.dumps(meta)})
    with pytest.raises(ValueError, match=words):
        Network.from_pretrained(path)


PARAM = 'blocks.0.conv0.weight'  # [8, 8, 3, 3]


@pytest.mark.parametrize(
    'name, change, words',
    [
        (f'opt/exp_avg/{PARAM}', lambda t: t[:4], r'is \[4, 8, 3, 3\] F32 in place of \[8, 8, 3, 3\] F32'),
        (f'opt/exp_avg/{PARAM}', lambda t: t.flatten(), r'is \[576\] F32'),
        (f'opt/exp_avg_sq/{PARAM}', lambda t: torch.zeros(()), r'is \[\] F32 in place of'),
        (f'opt/exp_avg_sq/{PARAM}', lambda t: torch.zeros(0), r'is \[0\] F32 in place of'),
        (f'opt/step/{PARAM}', lambda t: torch.zeros(1), r'is \[1\] F32 in place of \[\] F32'),
        (f'opt/step/{PARAM}', lambda t: t.long(), r'is \[\] I64 in place of \[\] F32'),
        (f'opt/exp_avg/{PARAM}', lambda t: t.half(), 'F16 in place of'),
        (f'opt/exp_avg/{PARAM}', lambda t: t.byte(), 'U8 in place of'),
        (f'opt/exp_avg/{PARAM}', None, f'opt/exp_avg/{PARAM} is missing'),
        (f'opt/step/{PARAM}', None, f'opt/step/{PARAM} is missing'),
        ('opt/exp_avg/strange', lambda t: torch.zeros(2), 'opt/exp_avg/strange is not in this run'),
        (f'opt/max_exp_avg_sq/{PARAM}', lambda t: torch.zeros(2), 'max_exp_avg_sq/.* is not in this run'),
        ('opt/exp_avg', lambda t: torch.zeros(2), 'opt/exp_avg is not in this run'),
        ('strange', lambda t: torch.zeros(2), 'strange is not in this run'),
        (f'net/{PARAM}', lambda t: t[:4], 'in place of'), (f'net/{PARAM}', None, 'is missing'),
        (f'ema/0.0001/{PARAM}', lambda t: t[:4], 'in place of'), (f'ema/0.0001/{PARAM}', None, 'is missing'),
        (f'ema/0.0001/{PARAM}', lambda t: t * math.nan, 'holds NaN'), (f'net/{PARAM}', lambda t: t / 0, 'holds NaN'),
        (f'opt/exp_avg/{PARAM}', lambda t: t * math.inf, 'holds NaN'),
        ('balance/counts', lambda t: t[:2], 'in place of'), ('balance/counts', lambda t: t.long(), 'I64 in place of'),
        ('balance/counts', lambda t: t * math.nan, 'holds NaN'), ('balance/num_splits', None, 'is missing'),
        ('balance/num_splits', lambda t: t.float(), 'F32 in place of .* I64'),
        ('balance/num_splits', lambda t: t - 1000, 'num_splits is negative'),
        ('balance/counts', lambda t: t - 1000, 'counts is negative'),
        ('balance/seen', lambda t: t - 1, 'seen is negative'),
        (f'opt/exp_avg_sq/{PARAM}', lambda t: t - 1, f'opt/exp_avg_sq/{PARAM} is negative'),
        (f'opt/step/{PARAM}', lambda t: t - 5, r'opt/step is \[-2.0, 3.0\], not one number'),
        (f'opt/step/{PARAM}', lambda t: t + 1, r'opt/step is \[3.0, 4.0\], not one number'),
    ],
)  # fmt: skip
def test_tensors_that_a_run_does_not_have(folder, tmp_path, name, change, words):
    tensors, meta = tensor_files.load_tensors(folder / 'state.safetensors')
    made = replaced(tensors, name, None if change is None else change(tensors.get(name)).contiguous())
    path, run = str(tmp_path / 'state.safetensors'), Run()
    save_file(made, path, metadata={'ddn': json.dumps(meta)})
    before = {n: t.clone() for n, t in run.tensors().items()}
    with pytest.raises(ValueError, match=words):
        checkpoint.load_state(path, *run.parts)
    assert same(run.tensors(), before)


def test_a_state_without_moments_and_one_with_other_averages_load(folder, tmp_path):
    """Before the first step; of a run that kept more averages; with counts of a device without float64."""
    tensors, meta = tensor_files.load_tensors(folder / 'state.safetensors')
    path, run = str(tmp_path / 'state.safetensors'), Run()
    tensor_files.save_tensors(path, {n: t for n, t in tensors.items() if not n.startswith('opt/')}, meta)
    checkpoint.load_state(path, *run.parts)
    assert not run.optimizer.state and torch.equal(run.net.ddls[0].weight, tensors['net/ddls.0.weight'])
    counts = {n: t.float() for n, t in tensors.items() if n.startswith('balance/') and t.dtype == torch.float64}
    tensor_files.save_tensors(path, {**tensors, **counts, 'ema/9/x': torch.ones(1), 'balance/old': torch.ones(1)}, meta)
    run = Run()
    checkpoint.load_state(path, *run.parts)
    assert run.balance.counts.dtype == torch.float64
    assert torch.equal(run.balance.counts.float(), counts['balance/counts'])
    assert same({n: t.float() for n, t in run.tensors().items()}, {n: t.float() for n, t in tensors.items()})


@pytest.mark.parametrize(
    'key, values',
    [
        ('cur_nimg', (None, -1, 1.0, '12', True, [12], 2**63, 10**400, 'gone')),
        ('loss_scale', (-1, '5', True, [1], 1e300, {})),
        ('kind', (None, 'network', 5, [], 'gone')),
        ('scaler', (5, 'x', [1], {'scale': 1.0}, {**SCALER, 'more': 1}, {**SCALER, 'scale': 'x'},
                    {**SCALER, 'scale': -1.0}, {**SCALER, 'scale': 1e300}, {**SCALER, 'growth_interval': 2.5},
                    {**SCALER, 'growth_interval': 0}, {**SCALER, '_growth_tracker': True},
                    {**SCALER, '_growth_tracker': None}, {**SCALER, 'backoff_factor': 2.0},
                    {**SCALER, 'growth_factor': [2.0]})),
    ],
)  # fmt: skip
def test_json_of_a_state_that_no_run_writes(folder, tmp_path, key, values):
    tensors, meta = tensor_files.load_tensors(folder / 'state.safetensors')
    path = str(tmp_path / 'state.safetensors')
    for value in values:
        wrong = {**copy.deepcopy(meta), key: value}
        if value == 'gone':
            del wrong[key]
        save_file(tensors, path, metadata={'ddn': json.dumps(wrong)})
        error = outcome(lambda: checkpoint.load_state(path, *Run().parts))
        assert isinstance(error, ValueError) and 'state' in str(error), (key, value, error)


@pytest.mark.parametrize('step', [1.5, -3.0])
def test_a_number_of_steps_that_no_run_has(folder, tmp_path, step):
    tensors, meta = tensor_files.load_tensors(folder / 'state.safetensors')
    steps = {name: torch.full_like(t, step) for name, t in tensors.items() if name.startswith('opt/step/')}
    path = str(tmp_path / 'state.safetensors')
    tensor_files.save_tensors(path, tensors | steps, meta)
    with pytest.raises(ValueError, match='does not hold the state of a run: opt/step is'):
        checkpoint.load_state(path, *Run().parts)


def test_a_state_of_another_name_is_refused(folder, tmp_path):
    tensors, meta = tensor_files.load_tensors(folder / 'state.safetensors')
    for number in (8, 12):
        path = checkpoint.state_path(str(tmp_path), number)
        tensor_files.save_tensors(path, tensors, meta)
        error = outcome(lambda path=path: checkpoint.load_state(path, *Run().parts))
        assert isinstance(error, ValueError) == (number == 8), error


def test_more_labels_than_tensors_take_no_time(folder, tmp_path):
    tensors, meta = tensor_files.load_tensors(folder / 'net.safetensors')
    path = tmp_path / 'net.safetensors'
    save_file(tensors, path, metadata={'ddn': json.dumps(meta | {'emas': [str(i) for i in range(100_000)]})})
    with pytest.raises(ValueError, match='emas is .*, not its list of labels'):
        snapshots.load_network(path)


def test_a_state_that_is_not_a_file(tmp_path):
    os.mkfifo(tmp_path / 'training-state-000000016.safetensors')  # reading it would wait for ever
    (tmp_path / 'training-state-000000008.safetensors').mkdir()
    for path in checkpoint.find_states(str(tmp_path)):
        with pytest.raises(OSError, match='is not a file; there is also --resume='):
            checkpoint.load_state(path, *Run().parts)


# Numbers that are not finite are not written.


def test_a_snapshot_of_nan_is_not_written(tmp_path):
    net, path = network(), tmp_path / 'net.safetensors'
    with torch.no_grad():
        net.blocks[1].conv0.bias[3] = math.nan
    with pytest.raises(ValueError, match='net.safetensors is not written: net/blocks.1.conv0.bias holds NaN'):
        snapshots.save_network(path, net)
    with pytest.raises(ValueError, match='is not written: ema/0.5/ddls.0.weight holds NaN or infinite'):
        snapshots.save_network(path, network(), {'0.5': {'ddls.0.weight': torch.full((4, 3, 4), math.inf)}})
    assert not list(tmp_path.iterdir())


def test_a_state_of_nan_is_not_written_and_removes_none(tmp_path):
    run = Run(1)
    for nimg in (4, 8):
        checkpoint.save_state(checkpoint.state_path(str(tmp_path), nimg), *run.parts, META)
    next(iter(run.ema.copies.values()))['ddls.0.weight'][0, 0, 0] = math.nan
    with pytest.raises(ValueError, match='000000012.safetensors is not written: ema/0.0001/ddls.0.weight holds NaN'):
        checkpoint.save_state(checkpoint.state_path(str(tmp_path), 12), *run.parts, META)
    assert len(list(tmp_path.iterdir())) == 2


def test_nan_of_a_file_is_not_read(tmp_path):
    save_file({'a': torch.ones(3), 'b': torch.tensor([1.0, math.nan])}, tmp_path / 'a', metadata={'ddn': '{}'})
    with pytest.raises(ValueError, match='a: b holds NaN or infinite values'):
        tensor_files.load_tensors(tmp_path / 'a')


def test_huge_numbers_are_finite(tmp_path):
    values = {torch.float32: 3e38, torch.float16: 6e4, torch.float64: 1e300, torch.bfloat16: 3e38}
    tensors = {str(dtype): torch.full((100,), value, dtype=dtype) for dtype, value in values.items()}
    tensor_files.save_tensors(tmp_path / 'a', tensors, {})
    assert same(tensor_files.load_tensors(tmp_path / 'a')[0], tensors)
