"""What the pickle of a ``torch.save`` file may name and call: descriptions of tensors.

Nothing here makes a tensor. ``torchpickle`` runs the pickle's instructions with these.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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
