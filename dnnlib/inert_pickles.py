"""Read a pickle as a description of objects: nothing in it is imported, called or constructed.

A pickle is a program for a small stack machine. This one executes its operations on plain values only. What the program
would import becomes a ``Record`` with a name, what it would call a ``Record`` with arguments, and what it would set on
an object is kept in that object's ``Record``.
"""

import contextlib
import mmap
import os
import pickletools
from typing import Any

from .readers import one_line, open_regular

MAX_OPERATIONS = 5_000_000  # a network of 127 layers has about 40,000; bounds the memory, some 100 bytes each
MAX_NAME = 1000  # characters of a module, and of what is in it
_SIMPLE_KEYS = (str, bytes, float, bool, type(None))
_CONSTANTS = {
    'NONE': lambda: None, 'NEWTRUE': lambda: True, 'NEWFALSE': lambda: False, 'EMPTY_TUPLE': tuple,
    'EMPTY_LIST': list, 'EMPTY_DICT': dict, 'EMPTY_SET': list,
}  # fmt: skip
_IGNORED = ('PROTO', 'FRAME', 'READONLY_BUFFER')


class Record:
    """What a pickle says of an object that is not plain data.

    Attributes:
        name: 'module.class' or 'module.function' that makes it, '' where that is an object of the pickle.
        args: the arguments of that call; None for the class or function itself.
        items: keys and values set on it, as on a dict.
        values: elements added to it, as to a list or set.
        state: what its ``__setstate__`` would get, often the dict of its attributes; None without one.
    """

    __slots__ = ('name', 'args', 'items', 'values', 'state')

    def __init__(self, name: str, args: tuple | None = None):
        self.name, self.args = name, args
        self.items: dict[Any, Any] = {}
        self.values: list[Any] = []
        self.state: Any = None

    def __repr__(self) -> str:
        return f'<{self.name}>'


def load(path: str | os.PathLike) -> Any:
    """The value that a pickle file describes: None, numbers, strings, bytes, lists, tuples and dicts of them, sets as
    lists, and a ``Record`` for everything else. Values may be shared, and contain themselves.

    Raises ValueError for a file that is not a pickle, cut off, or of more than ``MAX_OPERATIONS``.
    """
    what = f'{path} is not a pickle that can be read'
    with one_line(what), contextlib.ExitStack() as stack:
        file = stack.enter_context(open_regular(path))
        if file.peek(1)[:1] != b'\x80':
            raise ValueError('it does not begin like one of protocol 2 or later')
        data = stack.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        return _Machine().run(data)


class _Machine:
    def __init__(self):
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stacks below each mark
        self.memo: dict[int, Any] = {}

    def run(self, data: Any) -> Any:
        for count, (operation, argument, position) in enumerate(pickletools.genops(data)):
            if count >= MAX_OPERATIONS:
                raise ValueError(f'it has more than {MAX_OPERATIONS:,} operations')
            if operation.name == 'STOP':
                return self.stack.pop()
            try:
                self.step(operation.name, argument)
            except (IndexError, KeyError, TypeError):
                raise ValueError(f'{operation.name} at byte {position} has no operand of the right kind') from None

    def step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in _CONSTANTS:
            stack.append(_CONSTANTS[name]())
        elif name in ('MEMOIZE', 'PUT', 'BINPUT', 'LONG_BINPUT'):
            self.memo[len(self.memo) if name == 'MEMOIZE' else argument] = stack[-1]
        elif name in ('GET', 'BINGET', 'LONG_BINGET'):
            stack.append(self.memo[argument])
        elif name == 'MARK':
            self.below.append(stack)
            self.stack = []
        elif name in ('TUPLE', 'LIST', 'DICT', 'FROZENSET', 'POP_MARK', 'APPENDS', 'SETITEMS', 'ADDITEMS', 'OBJ'):
            self.since_mark(name, self.unmark())
        elif name in ('TUPLE1', 'TUPLE2', 'TUPLE3'):
            stack.append(tuple(self.take(int(name[-1]))))
        elif name == 'POP':
            if not stack:
                self.unmark()  # POP right behind a mark
            else:
                stack.pop()
        elif name == 'DUP':
            stack.append(stack[-1])
        elif name == 'APPEND':
            _extend(stack[-2], self.take(1))
        elif name == 'SETITEM':
            _set_items(stack[-3], self.take(2))
        elif name == 'BUILD':
            owner, (state,) = stack[-2], self.take(1)
            _require(owner, Record).state = state
        elif name == 'INST':
            args = tuple(self.unmark())
            self.stack.append(Record(argument.replace(' ', '.'), args))
        elif name in ('GLOBAL', 'STACK_GLOBAL'):
            stack.append(_reference(*argument.split(' ', 1) if name == 'GLOBAL' else self.take(2)))
        elif name in ('REDUCE', 'NEWOBJ'):
            function, args = self.take(2)
            stack.append(_called(function, _require(args, tuple)))
        elif name == 'NEWOBJ_EX':
            function, args, kwargs = self.take(3)
            stack.append(_called(function, _require(args, tuple)))
            stack[-1].items = _require(kwargs, dict)  # shared, not copied: many calls may have the same ones
        elif name in ('PERSID', 'BINPERSID'):
            stack.append(Record('persistent_load', (argument if name == 'PERSID' else stack.pop(),)))
        elif name in ('EXT1', 'EXT2', 'EXT4', 'NEXT_BUFFER'):
            raise ValueError(f'{name} refers to something outside the file')
        elif name not in _IGNORED:
            stack.append(argument)  # a number, a string or bytes

    def take(self, count: int) -> list[Any]:
        """The topmost values, removed."""
        if len(self.stack) < count:
            raise IndexError
        taken = self.stack[-count:]
        del self.stack[-count:]
        return taken

    def unmark(self) -> list[Any]:
        """The values since the last mark, removed."""
        values, self.stack = self.stack, self.below.pop()
        return values

    def since_mark(self, name: str, values: list[Any]) -> None:
        if name in ('TUPLE', 'FROZENSET'):
            self.stack.append(tuple(values))
        elif name == 'LIST':
            self.stack.append(values)
        elif name == 'DICT':
            self.stack.append({})
            _set_items(self.stack[-1], values)
        elif name == 'OBJ':
            self.stack.append(_called(values[0], tuple(values[1:])))
        elif name == 'SETITEMS':
            _set_items(self.stack[-1], values)
        elif name != 'POP_MARK':
            _extend(self.stack[-1], values)


def _require(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise TypeError
    return value


def _reference(module: Any, attribute: Any) -> Record:
    if max(len(_require(module, str)), len(_require(attribute, str))) > MAX_NAME:
        raise ValueError(f'it has a name of more than {MAX_NAME:,} characters')
    return Record(f'{module}.{attribute}')


def _called(function: Any, args: tuple) -> Record:
    """What a call would return; a result of a call has no name, so nothing takes its calls for those of a function."""
    is_reference = type(function) is Record and function.args is None and function.state is None
    return Record(function.name if is_reference else '', args)


def _extend(owner: Any, values: list[Any]) -> None:
    (owner.values if type(owner) is Record else _require(owner, list)).extend(values)


def _set_items(owner: Any, pairs: list[Any]) -> None:
    """A key counts by identity where its hash would depend on other objects (a tuple may nest deeper than the C stack)
    or could be chosen (integers of more than 64 bits, thousands of which share a hash)."""
    items = owner.items if type(owner) is Record else _require(owner, dict)
    if len(pairs) % 2:
        raise IndexError
    for key, value in zip(pairs[::2], pairs[1::2], strict=True):
        simple = type(key) in (*_SIMPLE_KEYS, Record) or type(key) is int and -(2**63) <= key < 2**63
        items[key if simple else Record('key', (key,))] = value
