"""What the pickle of a ``torch.save`` file would build, found out without building it.

A pickle is a program for a stack machine. This module runs the small part of its instructions
that ``torch.save`` uses for plain containers and tensors, with a description in place of every
tensor; whatever else a pickle can do is refused by name. So the sizes of all tensors are known, and
checked against what the file holds, before PyTorch takes any memory for them. The strict subset
means the same to every reader of pickles: what was described here is what PyTorch will build.
"""

from __future__ import annotations

import pickletools
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO, Any

# MERGED: What the pickle of a ``torch.save`` file may name and call: descriptions of tensors.
# MERGED: Nothing here makes a tensor. ``torchpickle`` runs the pickle's instructions with these.
#: Bytes of one element, by the name of the storage's class.
STORAGES = {
    "torch DoubleStorage": 8, "torch FloatStorage": 4, "torch HalfStorage": 2,
    "torch BFloat16Storage": 2, "torch LongStorage": 8, "torch IntStorage": 4,
    "torch ShortStorage": 2, "torch CharStorage": 1, "torch ByteStorage": 1,
    "torch BoolStorage": 1, "torch ComplexFloatStorage": 8, "torch ComplexDoubleStorage": 16,
    "torch.storage UntypedStorage": 1,
}  # fmt: skip
#: Bytes of one element, by dtype.
_DTYPES = {
    "torch float64": 8, "torch float32": 4, "torch float16": 2, "torch bfloat16": 2,
    "torch float8_e4m3fn": 1, "torch float8_e5m2": 1, "torch float8_e4m3fnuz": 1,
    "torch float8_e5m2fnuz": 1, "torch float8_e8m0fnu": 1,
    "torch int64": 8, "torch int32": 4, "torch int16": 2, "torch int8": 1,
    "torch uint64": 8, "torch uint32": 4, "torch uint16": 2, "torch uint8": 1,
    "torch bool": 1, "torch complex64": 8, "torch complex128": 16,
}  # fmt: skip


#: Kinds of keys. A tuple of tuples of … as a key can overflow the stack of whoever hashes it.
KEYS = (str, int, float, bool, bytes, type(None))


class RefusedError(Exception):
    """The pickle is damaged, or asks for more than it holds; the message says how."""


class CodeFoundError(Exception):
    """The pickle names an object that needs code to load; the message is its dotted name."""


@dataclass(frozen=True)
class Storage:
    """Memory that tensors look into: its name in the file, and its sizes in bytes."""

    key: str
    nbytes: int
    itemsize: int


@dataclass(frozen=True)
class View:
    """A tensor: offset and strides count elements of ``itemsize`` bytes."""

    storage: Storage
    itemsize: int
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True)
class Name:
    """A global name that the pickle mentions: ``module name``."""

    text: str


class Ordered(dict[Any, Any]):
    """In place of an OrderedDict: the one object that may be given attributes."""


def named(text: str) -> Name:
    """Return a global name, ``module name``, if it is one of those a state_dict needs.

    Raises:
        CodeFoundError: it is not.
    """
    if text in STORAGES or text in _DTYPES or text in CALLS:
        return Name(text)
    raise CodeFoundError(text.replace(" ", "."))


def whole(values: Any) -> bool:
    """Whether something is a tuple of whole numbers from 0 up."""
    return type(values) is tuple and all(type(v) is int and 0 <= v < 2**62 for v in values)


def _view(
    storage: Any, offset: Any, shape: Any, stride: Any, gradient: Any = False, hooks: Any = None,
    extra: Any = None,
) -> View:  # fmt: skip
    fits = type(storage) is Storage and type(gradient) is bool and not hooks and not extra
    if not fits or not whole((offset,)) or not whole(shape) or not whole(stride):
        raise TypeError
    if len(shape) != len(stride) or len(shape) > 64:
        raise TypeError
    return View(storage, storage.itemsize, offset, shape, stride)


def _view_of_dtype(
    storage: Any, offset: Any, shape: Any, stride: Any, gradient: Any, hooks: Any, dtype: Any,
    extra: Any = None,
) -> View:  # fmt: skip
    _view(storage, offset, shape, stride, gradient, hooks, extra)  # the same checks
    if type(dtype) is not Name:
        raise TypeError
    return View(storage, _DTYPES[dtype.text], offset, shape, stride)


def _parameter(view: Any, gradient: Any, hooks: Any) -> View:
    if type(view) is not View or type(gradient) is not bool or hooks:
        raise TypeError
    return view


def _ordered(items: Any = ()) -> Ordered:
    # Python 2 gave the items as an argument: a list of lists of two.
    pairs = [tuple(item) for item in items]
    if not all(type(key) in KEYS for key, _ in pairs):
        raise TypeError
    return Ordered(pairs)


def _sizes(items: Any = ()) -> tuple[int, ...]:
    if not whole(items):
        raise TypeError
    return tuple(items)


def _text(value: Any) -> str:
    if type(value) is not str:
        raise TypeError
    return value


def _bytes(text: Any, codec: Any) -> bytes:
    if codec != "latin1":
        raise TypeError
    return _text(text).encode("latin1")


def _set(items: Any = ()) -> tuple[Any, ...]:
    if type(items) is not list or not all(type(i) in KEYS for i in items):
        raise TypeError
    return tuple(items)


def _counts(items: Any = ()) -> dict[Any, Any]:
    if type(items) is not dict:
        raise TypeError
    return items


CALLS: dict[str, Callable[..., Any]] = {
    "torch._utils _rebuild_tensor": _view,
    "torch._utils _rebuild_tensor_v2": _view,
    "torch._utils _rebuild_tensor_v3": _view_of_dtype,
    "torch._utils _rebuild_parameter": _parameter,
    "torch Size": _sizes,
    "torch device": _text,
    "collections OrderedDict": _ordered,
    "collections Counter": _counts,
    "_codecs encode": _bytes,
    "__builtin__ set": _set,
}


def span(view: View) -> int:
    """Return how many bytes of its storage a tensor reaches into; 0 if it is empty."""
    if 0 in view.shape:
        return 0
    last = sum((extent - 1) * step for extent, step in zip(view.shape, view.stride, strict=True))
    return (view.offset + last + 1) * view.itemsize


MOST_TENSORS = 100_000
# A tensor takes about 40 instructions. Empty containers are the dearest: 70 bytes each.
_MOST_INSTRUCTIONS = 5_000_000


@dataclass
class Outline:
    """What a pickle would build.

    Attributes:
        value: plain containers, with a :class:`View` for every tensor.
        views: all tensors, in order.
        storages: key → memory they look into.
    """

    value: Any = None
    views: list[View] = field(default_factory=list)
    storages: dict[str, Storage] = field(default_factory=dict)


def outline(stream: IO[bytes]) -> Outline:
    """Follow one pickle, up to its end, and leave the stream there.

    Raises:
        CodeFoundError: it mentions anything but tensors and plain containers.
        RefusedError: it is damaged or needs too much.
    """
    machine = _Machine()
    try:
        with warnings.catch_warnings():
            # genops reads escapes in names and warns of bad ones. PyTorch reads none: it refuses
            # every name with a backslash, so nothing passes here and means another thing there.
            warnings.simplefilter("ignore")
            for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
                if count > _MOST_INSTRUCTIONS:
                    raise RefusedError(f"its pickle has over {_MOST_INSTRUCTIONS:,} instructions")
                machine.step(opcode.name, argument)
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise RefusedError(f"its pickle is damaged ({type(error).__name__})") from None
    return machine.outline


class _Machine:
    def __init__(self) -> None:
        self.outline = Outline()
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
            self._stack.append(named(argument))
        elif name in _ACTIONS:
            _ACTIONS[name](self)
        elif name != "PROTO":
            raise RefusedError(f"its pickle uses the instruction {name}, which torch.save does not")

    def mark(self) -> None:
        self._marks.append(self._stack)
        self._stack = []

    def _since_mark(self) -> list[Any]:
        items = self._stack
        self._stack = self._marks.pop()
        return items

    def take(self, count: int) -> None:
        """Make a tuple of the topmost values."""
        items = tuple(self._stack[len(self._stack) - count :])
        if len(items) != count:
            raise IndexError
        del self._stack[len(self._stack) - count :]
        self._stack.append(items)

    def take_marked(self) -> None:
        items = tuple(self._since_mark())
        self._stack.append(items)

    def append(self) -> None:
        self._extend([self._stack.pop()])

    def appends(self) -> None:
        self._extend(self._since_mark())

    def _extend(self, items: list[Any]) -> None:
        if type(self._stack[-1]) is not list:
            raise TypeError
        self._stack[-1].extend(items)

    def set_item(self) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._set([key, value])

    def set_items(self) -> None:
        self._set(self._since_mark())

    def _set(self, items: list[Any]) -> None:
        if type(self._stack[-1]) not in (dict, Ordered) or len(items) % 2:
            raise TypeError
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) not in KEYS:
                raise TypeError
            self._stack[-1][key] = value

    def build(self) -> None:
        """Attributes of an OrderedDict: a state_dict's ``_metadata`` and nothing else."""
        state = self._stack.pop()
        if type(self._stack[-1]) is not Ordered or type(state) is not dict:
            raise TypeError
        if set(state) - {"_metadata"}:
            raise TypeError

    def persistent(self) -> None:
        """Memory in the file: ("storage", class, key, device, elements), with None in old files."""
        kind, cls, key, location, count, *rest = self._stack.pop()
        size = STORAGES.get(cls.text) if type(cls) is Name else None
        if kind != "storage" or size is None or rest not in ([], [None]):
            raise TypeError
        if type(location) is not str or not whole((count,)):
            raise TypeError
        # Numbers, in practice. Nothing that two readers could spell in two ways.
        if type(key) is not str or not (key.isascii() and key.isalnum()):
            raise TypeError
        storage = Storage(key, count * size, size)
        if self.outline.storages.setdefault(key, storage).nbytes != storage.nbytes:
            raise RefusedError(f"it gives storage {key[:40]!r} two sizes")
        self._stack.append(storage)

    def call(self) -> None:
        """The few calls that ``torch.save`` writes."""
        arguments, function = self._stack.pop(), self._stack.pop()
        if type(function) is not Name or type(arguments) is not tuple:
            raise TypeError
        made = CALLS[function.text](*arguments)
        if type(made) is View:
            self.outline.views.append(made)
            if len(self.outline.views) > MOST_TENSORS:
                raise RefusedError(f"it holds over {MOST_TENSORS:,} tensors")
        self._stack.append(made)

    def stop(self) -> None:
        self.outline.value = self._stack.pop()


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
    "TUPLE": _Machine.take_marked,
    "TUPLE1": lambda machine: machine.take(1),
    "TUPLE2": lambda machine: machine.take(2),
    "TUPLE3": lambda machine: machine.take(3),
    "APPEND": _Machine.append,
    "APPENDS": _Machine.appends,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.persistent,
    "REDUCE": _Machine.call,
    "STOP": _Machine.stop,
}
