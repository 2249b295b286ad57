"""What the pickle in a ``torch.save`` file would build, found out without building it.

A pickle is a program for a stack machine. :func:`scan` runs the small part of the instructions that
``torch.save`` needs for plain containers and tensors, with a description in place of each tensor,
and refuses everything else by name. The sizes of all tensors are then known, and can be checked
against what the file holds, before PyTorch takes any memory for them.

This is our own code on purpose. Scanners such as picklescan look for names that are known to be
dangerous, so a file passes if it uses a name that nobody has listed yet. An allow-list is stronger:
a file passes only if it does nothing but what a state_dict needs. The allowed instructions also
mean the same to every reader of pickles, so what is described here is what PyTorch builds.
"""

from __future__ import annotations

import pickletools
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO, Any

#: Tensors in one file at most.
MAX_TENSORS = 100_000
# A tensor takes about 40 instructions. Empty containers cost the most memory: 70 bytes each.
_MAX_INSTRUCTIONS = 5_000_000


class RefusedError(Exception):
    """The pickle is damaged or asks for more than it holds; the message says how."""


class CodeFoundError(Exception):
    """The pickle names an object that needs code to load; the message is its dotted name."""


@dataclass(frozen=True)
class Storage:
    """The memory of one or several tensors.

    Attributes:
        key: its name in the file.
        nbytes: its size in bytes.
        itemsize: bytes of one element.
    """

    key: str
    nbytes: int
    itemsize: int


@dataclass(frozen=True)
class TensorView:
    """A tensor: a view of a storage.

    Attributes:
        storage: the memory that holds its elements.
        itemsize: bytes of one element.
        offset: place of its first element in the storage, counted in elements.
        shape: extent of every dimension.
        stride: distance between neighbors along every dimension, counted in elements.
    """

    storage: Storage
    itemsize: int
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass
class PickleContents:
    """What a pickle would build.

    Attributes:
        value: plain containers, with a :class:`TensorView` in place of every tensor.
        views: all tensors, in order.
        storages: the memory they use, by key.
    """

    value: Any = None
    views: list[TensorView] = field(default_factory=list)
    storages: dict[str, Storage] = field(default_factory=dict)


def scan(stream: IO[bytes]) -> PickleContents:
    """Follow one pickle to its end, and leave the stream there.

    Raises:
        CodeFoundError: the pickle names anything but tensors and plain containers.
        RefusedError: the pickle is damaged or asks for too much.
    """
    machine = _Machine()
    try:
        with warnings.catch_warnings():
            # genops decodes escapes in names and warns of bad ones. PyTorch decodes none: it
            # refuses every name with a backslash, so no name can mean two things.
            warnings.simplefilter("ignore")
            for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
                if count > _MAX_INSTRUCTIONS:
                    raise RefusedError(f"its pickle has over {_MAX_INSTRUCTIONS:,} instructions")
                machine.step(opcode.name, argument)
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise RefusedError(f"its pickle is damaged ({type(error).__name__})") from None
    return machine.contents


def end_of(view: TensorView) -> int:
    """Return up to which byte of its storage a tensor reaches; 0 if it is empty."""
    if 0 in view.shape:
        return 0
    last = sum((extent - 1) * step for extent, step in zip(view.shape, view.stride, strict=True))
    return (view.offset + last + 1) * view.itemsize


# What a pickle may mention: storage classes, dtypes and, in _CALLS, functions.

# Bytes of one element, by the name of the storage's class.
_STORAGES = {
    "torch DoubleStorage": 8, "torch FloatStorage": 4, "torch HalfStorage": 2,
    "torch BFloat16Storage": 2, "torch LongStorage": 8, "torch IntStorage": 4,
    "torch ShortStorage": 2, "torch CharStorage": 1, "torch ByteStorage": 1,
    "torch BoolStorage": 1, "torch ComplexFloatStorage": 8, "torch ComplexDoubleStorage": 16,
    "torch.storage UntypedStorage": 1,
}  # fmt: skip
# Bytes of one element, by dtype.
_DTYPES = {
    "torch float64": 8, "torch float32": 4, "torch float16": 2, "torch bfloat16": 2,
    "torch float8_e4m3fn": 1, "torch float8_e5m2": 1, "torch float8_e4m3fnuz": 1,
    "torch float8_e5m2fnuz": 1, "torch float8_e8m0fnu": 1,
    "torch int64": 8, "torch int32": 4, "torch int16": 2, "torch int8": 1,
    "torch uint64": 8, "torch uint32": 4, "torch uint16": 2, "torch uint8": 1,
    "torch bool": 1, "torch complex64": 8, "torch complex128": 16,
}  # fmt: skip
# Types of dictionary keys. A key of deeply nested tuples can overflow the stack when it is hashed.
_KEY_TYPES = (str, int, float, bool, bytes, type(None))


@dataclass(frozen=True)
class _GlobalName:
    """A global name that the pickle mentions: ``module name``."""

    text: str


class _Ordered(dict[Any, Any]):
    """In place of an OrderedDict: the only object that may be given attributes."""


def _allowed(text: str) -> _GlobalName:
    """Return a global name, ``module name``, if it is one of those that a state_dict needs.

    Raises:
        CodeFoundError: it is not.
    """
    if text in _STORAGES or text in _DTYPES or text in _CALLS:
        return _GlobalName(text)
    raise CodeFoundError(text.replace(" ", "."))


def _are_counts(values: Any) -> bool:
    """Return whether a value is a tuple of whole numbers from 0 up."""
    return type(values) is tuple and all(type(v) is int and 0 <= v < 2**62 for v in values)


# Each of the following describes what the function of that name in _CALLS would return. A TypeError
# means arguments that torch.save does not write.


def _rebuild_tensor(
    storage: Any, offset: Any, shape: Any, stride: Any, requires_grad: Any = False,
    hooks: Any = None, metadata: Any = None,
) -> TensorView:  # fmt: skip
    plain = type(storage) is Storage and type(requires_grad) is bool and not hooks and not metadata
    if not plain or not _are_counts((offset,)) or not _are_counts(shape) or not _are_counts(stride):
        raise TypeError
    if len(shape) != len(stride) or len(shape) > 64:
        raise TypeError
    return TensorView(storage, storage.itemsize, offset, shape, stride)


def _rebuild_tensor_v3(
    storage: Any, offset: Any, shape: Any, stride: Any, requires_grad: Any, hooks: Any, dtype: Any,
    metadata: Any = None,
) -> TensorView:  # fmt: skip
    _rebuild_tensor(storage, offset, shape, stride, requires_grad, hooks, metadata)  # same checks
    if type(dtype) is not _GlobalName:
        raise TypeError
    return TensorView(storage, _DTYPES[dtype.text], offset, shape, stride)


def _rebuild_parameter(view: Any, requires_grad: Any, hooks: Any) -> TensorView:
    if type(view) is not TensorView or type(requires_grad) is not bool or hooks:
        raise TypeError
    return view


def _ordered_dict(items: Any = ()) -> _Ordered:
    # Python 2 passed the items as an argument: a list of lists of two.
    pairs = [tuple(item) for item in items]
    if not all(type(key) in _KEY_TYPES for key, _ in pairs):
        raise TypeError
    return _Ordered(pairs)


def _size(items: Any = ()) -> tuple[int, ...]:
    if not _are_counts(items):
        raise TypeError
    return tuple(items)


def _device(name: Any) -> str:
    if type(name) is not str:
        raise TypeError
    return name


def _encode(text: Any, codec: Any) -> bytes:
    if type(text) is not str or codec != "latin1":
        raise TypeError
    return text.encode("latin1")


def _set(items: Any = ()) -> tuple[Any, ...]:
    if type(items) is not list or not all(type(i) in _KEY_TYPES for i in items):
        raise TypeError
    return tuple(items)


def _counter(items: Any = ()) -> dict[Any, Any]:
    if type(items) is not dict:
        raise TypeError
    return items


_CALLS: dict[str, Callable[..., Any]] = {
    "torch._utils _rebuild_tensor": _rebuild_tensor,
    "torch._utils _rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils _rebuild_tensor_v3": _rebuild_tensor_v3,
    "torch._utils _rebuild_parameter": _rebuild_parameter,
    "torch Size": _size,
    "torch device": _device,
    "collections OrderedDict": _ordered_dict,
    "collections Counter": _counter,
    "_codecs encode": _encode,
    "__builtin__ set": _set,
}


class _Machine:
    """The stack machine, with the allowed instructions only.

    Attributes:
        contents: what has been built so far.
    """

    def __init__(self) -> None:
        self.contents = PickleContents()
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        """Carry out one instruction."""
        if name in _LITERALS:
            self._stack.append(argument)
        elif name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name]())
        elif name in ("BINPUT", "LONG_BINPUT"):
            self._memo[argument] = self._stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            self._stack.append(self._memo[argument])
        elif name == "GLOBAL":
            self._stack.append(_allowed(argument))
        elif name in _ACTIONS:
            _ACTIONS[name](self)
        elif name != "PROTO":
            raise RefusedError(f"its pickle uses the instruction {name}, which torch.save does not")

    def mark(self) -> None:
        self._marks.append(self._stack)
        self._stack = []

    def _pop_to_mark(self) -> list[Any]:
        items = self._stack
        self._stack = self._marks.pop()
        return items

    def make_tuple(self, count: int) -> None:
        """Make a tuple of the topmost values."""
        items = tuple(self._stack[len(self._stack) - count :])
        if len(items) != count:
            raise IndexError
        del self._stack[len(self._stack) - count :]
        self._stack.append(items)

    def make_tuple_to_mark(self) -> None:
        items = tuple(self._pop_to_mark())
        self._stack.append(items)

    def append(self) -> None:
        self._extend([self._stack.pop()])

    def appends(self) -> None:
        self._extend(self._pop_to_mark())

    def _extend(self, items: list[Any]) -> None:
        if type(self._stack[-1]) is not list:
            raise TypeError
        self._stack[-1].extend(items)

    def set_item(self) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._update([key, value])

    def set_items(self) -> None:
        self._update(self._pop_to_mark())

    def _update(self, items: list[Any]) -> None:
        if type(self._stack[-1]) not in (dict, _Ordered) or len(items) % 2:
            raise TypeError
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) not in _KEY_TYPES:
                raise TypeError
            self._stack[-1][key] = value

    def build(self) -> None:
        """Set attributes of an OrderedDict: a state_dict's ``_metadata`` and no other."""
        attributes = self._stack.pop()
        if type(self._stack[-1]) is not _Ordered or type(attributes) is not dict:
            raise TypeError
        if set(attributes) - {"_metadata"}:
            raise TypeError

    def load_storage(self) -> None:
        """Refer to memory in the file by ("storage", class, key, device, number of elements).

        Files from before PyTorch 1.6 have a sixth item, None.
        """
        kind, cls, key, location, count, *rest = self._stack.pop()
        itemsize = _STORAGES.get(cls.text) if type(cls) is _GlobalName else None
        if kind != "storage" or itemsize is None or rest not in ([], [None]):
            raise TypeError
        if type(location) is not str or not _are_counts((count,)):
            raise TypeError
        # Numbers, in practice. Nothing that two readers could spell in two ways.
        if type(key) is not str or not (key.isascii() and key.isalnum()):
            raise TypeError
        storage = Storage(key, count * itemsize, itemsize)
        if self.contents.storages.setdefault(key, storage).nbytes != storage.nbytes:
            raise RefusedError(f"it gives storage {key[:40]!r} two sizes")
        self._stack.append(storage)

    def call(self) -> None:
        """Describe the result of one of the few calls that ``torch.save`` writes."""
        arguments, function = self._stack.pop(), self._stack.pop()
        if type(function) is not _GlobalName or type(arguments) is not tuple:
            raise TypeError
        result = _CALLS[function.text](*arguments)
        if type(result) is TensorView:
            self.contents.views.append(result)
            if len(self.contents.views) > MAX_TENSORS:
                raise RefusedError(f"it holds over {MAX_TENSORS:,} tensors")
        self._stack.append(result)

    def stop(self) -> None:
        self.contents.value = self._stack.pop()


_LITERALS = {"BININT", "BININT1", "BININT2", "BINFLOAT", "BINUNICODE", "LONG1", "SHORT_BINSTRING"}
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
}
_ACTIONS: dict[str, Callable[[_Machine], None]] = {
    "MARK": _Machine.mark,
    "TUPLE": _Machine.make_tuple_to_mark,
    "TUPLE1": lambda machine: machine.make_tuple(1),
    "TUPLE2": lambda machine: machine.make_tuple(2),
    "TUPLE3": lambda machine: machine.make_tuple(3),
    "APPEND": _Machine.append,
    "APPENDS": _Machine.appends,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.load_storage,
    "REDUCE": _Machine.call,
    "STOP": _Machine.stop,
}
