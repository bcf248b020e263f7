"""Read the authors' published files of weights, which are pickles, without running what is in them.

    net = ddn_networks.from_published(published_files.read_state('cifar-ddn.pkl'))

A file is the pickle of a dict; its entry ``ema`` is the network. An object of a persistent class is pickled as a call
of ``torch_utils.persistence._reconstruct_persistent_obj`` with one dict: ``class_name``, ``module_src`` (source text,
not looked at here) and ``state``, the attributes. Other modules are pickled as usual. ``dnnlib.inert_pickles`` reads
all of that as records; here the tensors among them are built, each after its sizes are compared with its bytes.
"""

import io
import math
import os
import pickletools
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from dnnlib import inert_pickles
from dnnlib.inert_pickles import Record
from dnnlib.readers import one_line, printable

MAX_DEPTH = 100  # modules within modules
MAX_DIMS = 8
MAX_NAMES = 20_000  # of tensors and modules; a network of 127 layers has about 3,000
MAX_SHARING = 4  # bytes of all tensors per byte of the file: several may be views of one storage
CALLS = ('REDUCE', 'BUILD', 'NEWOBJ', 'NEWOBJ_EX', 'OBJ', 'INST')
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16,
          torch.int8, torch.uint8, torch.bool)  # fmt: skip
_LEGACY = b'\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.'  # how a storage begins that torch wrote without zip


def read_state(path: str | os.PathLike, key: str = 'ema') -> dict[str, torch.Tensor]:
    """The parameters and buffers {'model.block_1x1_0.block.conv0.weight': tensor, ...} of the network in a published
    pickle, for ``ddn_networks.from_published``. A module that has several names keeps the first.

    Raises ValueError in one line: not such a pickle, cut off, another network (EDM's are named), a damaged tensor.
    """
    content = inert_pickles.load(path)
    where = printable(path)
    if not isinstance(content, dict) or key not in content:
        raise ValueError(f'{where} is not a published file of weights: it is not the pickle of a dict with {key!r}')
    with one_line(f'{where} cannot be read'):
        storages: dict[int, Any] = {}
        state, left = {}, MAX_SHARING * os.path.getsize(path)
        for name, value in _tensors(content[key]):
            state[name] = _tensor(value, name, storages)
            left -= state[name].nbytes
            if left < 0:
                raise ValueError(f'its tensors have more than {MAX_SHARING} times the bytes of the file')
    if not any(re.search(r'(^|\.)block_\d', name) for name in state):
        raise ValueError(f'{where} holds {_described(content[key])}, not a Discrete Distribution Network')
    return state


def _attributes(record: Any) -> tuple[str, Mapping[str, Any]]:
    """Class name and attributes of an object."""
    if type(record) is not Record:
        return type(record).__name__, {}
    name, state = record.name, record.state
    if name.endswith('persistence._reconstruct_persistent_obj') and len(record.args or ()) == 1:
        meta = _dict(record.args[0])
        name, state = meta.get('class_name'), meta.get('state')
    if isinstance(state, tuple) and len(state) == 2:  # attributes and slots
        state = state[0]
    return str(name)[:80], _dict(state)


def _dict(value: Any) -> dict[Any, Any]:
    """The items of a dict, an OrderedDict or an EasyDict; nothing for everything else."""
    if type(value) is Record:
        value = value.items
    return value if isinstance(value, dict) else {}


def _tensors(network: Any) -> Iterator[tuple[str, Any]]:
    """Name and record of each parameter and buffer, depth first."""
    seen: set[int] = set()
    count = 0
    waiting = [('', network, 0)]
    while waiting:
        prefix, module, depth = waiting.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        if depth > MAX_DEPTH:
            raise ValueError(f'modules nest deeper than {MAX_DEPTH}')
        attributes = _attributes(module)[1]
        *held, modules = (_dict(attributes.get(kind)) for kind in ('_parameters', '_buffers', '_modules'))
        count += len(modules) + sum(map(len, held))
        if count > MAX_NAMES:
            raise ValueError(f'it has more than {MAX_NAMES:,} names of tensors and modules')
        for name, value in [item for items in held for item in items.items()]:
            if value is not None:
                yield f'{prefix}{_name(name)}', value
        waiting += reversed([(f'{prefix}{_name(name)}.', m, depth + 1) for name, m in modules.items()])


def _name(name: Any) -> str:
    if type(name) is not str or not name.isidentifier() and not name.isdigit() or len(name) > 100:
        raise ValueError('the name of a module or tensor is not an identifier')
    return name


def _described(network: Any) -> str:
    """The classes of a network that is not a DDN, for the error."""
    name, attributes = _attributes(network)
    model = _dict(attributes.get('_modules')).get('model')
    return printable(name if model is None else f'{name} with the model {_attributes(model)[0]}')


def _tensor(record: Any, name: str, storages: dict[int, Any]) -> torch.Tensor:
    """The tensor that a record describes: a parameter's data, or a part of a storage."""
    function, args = _call(record)
    if function in ('torch._utils._rebuild_parameter', 'torch._utils._rebuild_parameter_with_state') and args:
        function, args = _call(args[0])
    if function != 'torch._utils._rebuild_tensor_v2' or len(args) < 4:
        raise ValueError(f'{name} is not a plain tensor but {printable(function or type(record).__name__)[:80]}')
    part, offset, size, stride = args[:4]
    numbers = [offset, *_ints(size, name), *_ints(stride, name)]
    if len(size) != len(stride) or not all(type(n) is int and 0 <= n < 2**48 for n in numbers):
        raise ValueError(f'{name} has sizes or strides that are not those of a tensor')
    if id(part) not in storages:
        storages[id(part)] = _storage(part, name)
    flat = storages[id(part)]
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if math.prod(size) > len(flat) or math.prod(size) > 0 and last >= len(flat):
        raise ValueError(f'{name} claims more numbers than the {len(flat)} stored for it')
    return flat.as_strided(size, stride, offset).clone()


def _call(record: Any) -> tuple[str, tuple]:
    is_call = type(record) is Record and record.args is not None
    return (record.name, record.args) if is_call else ('', ())


def _ints(value: Any, name: str) -> tuple:
    if type(value) is not tuple or len(value) > MAX_DIMS:
        raise ValueError(f'{name} has sizes or strides that are not those of a tensor')
    return value


def _storage(record: Any, name: str) -> torch.Tensor:
    """The numbers of a storage, one after the other. Its bytes are a file of torch of their own."""
    function, args = _call(record)
    if function != 'torch.storage._load_from_bytes' or len(args) != 1:
        raise ValueError(f'the storage of {name} is not a plain one')
    data = args[0]
    encoding, words = _call(data)
    if encoding == '_codecs.encode' and words and type(words[0]) is str:  # bytes, in protocol 2
        data = words[0].encode('latin1')
    if type(data) is not bytes or not data.startswith(_LEGACY):
        raise ValueError(f'the storage of {name} is not what torch writes')
    with one_line(f'the storage of {name} is damaged, or more than numbers'):
        file = io.BytesIO(data)
        for _ in range(5):  # pickles of a magic number, a version, the system, the storage, its key
            if any(operation.name in CALLS for operation, _, _ in pickletools.genops(file)):
                raise ValueError('it calls functions')  # torch allows some, such as one that fills the memory
        loaded = torch.load(io.BytesIO(data), map_location='cpu', weights_only=True)
        if type(loaded) is not torch.storage.TypedStorage or loaded.dtype not in DTYPES:
            raise ValueError('it does not hold plain numbers')
        flat = torch.empty(0, dtype=loaded.dtype).set_(loaded)
        if flat.nbytes > len(data) - file.tell():
            raise ValueError('it claims more bytes than it has')
        return flat
