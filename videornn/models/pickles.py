"""Read pickles of tensors, arrays and plain types, with an unpickler that makes and calls nothing else.

The unpicklers of Python and torch can refuse to import what they do not know, yet a file can still crash them: by flags of
a numpy dtype that make it take numbers for pointers, by tuples nested so deep that hashing one overflows the stack, by the
number of a memo slot for which memory is set aside, or by a few bytes that are encoded, copied or repeated until memory is
full.
"""

from __future__ import annotations

import operator
import pickletools
import re
from collections import OrderedDict
from collections.abc import Callable
from mmap import mmap
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

ARRAY_KINDS = frozenset(["b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"])
_TYPED = ["Bool", "Short", "Int", "Long", "Half", "BFloat16", "Float", "Double"]
STORAGES = {
    **{f"torch.{name}Storage": getattr(torch, name.lower()) for name in _TYPED},
    "torch.ByteStorage": torch.uint8,
    "torch.CharStorage": torch.int8,
    "torch.ComplexFloatStorage": torch.complex64,
    "torch.ComplexDoubleStorage": torch.complex128,
    "torch.storage.UntypedStorage": torch.uint8,
}
# dtypes of numbers that every operation supports
DTYPES = {
    f"torch.{name}": getattr(torch, name)
    for name in dir(torch)
    if re.fullmatch(r"bool|u?int(8|16|32|64)|bfloat16|float(8_e[45]\w+|16|32|64)|complex(64|128)", name)
}
# opcodes that carry a value; that make an empty one; that make a tuple of this length; that fetch from the memo
NUMBERS = ["INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"]
TEXTS = ["STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"]
LITERALS = frozenset([*NUMBERS, *TEXTS, "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"])
NEW: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": set,
}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
GETS, PUTS = frozenset(["BINGET", "LONG_BINGET", "GET"]), frozenset(["BINPUT", "LONG_BINPUT", "PUT"])
COPIES = 4  # protocol 2 makes bytes of a text, then an array of these
KEYS = (str, int, float, bytes, type(None))  # of dictionaries; no tuples, because hashing one goes through everything in it


class Refused(Exception):
    """Raised where a pickle asks for something that tensors do not need; the message names it."""


class Array:
    """A numpy array of a pickle, whose values come after it."""

    def __init__(self) -> None:
        self.values: np.ndarray | None = None


class _Dtype:
    """The plain name of a numpy dtype, and the order of its bytes."""

    def __init__(self, name: str) -> None:
        if not isinstance(name, str) or name not in ARRAY_KINDS:
            raise Refused(f"an array of {name:.20}" if isinstance(name, str) else "an array of no plain type")
        self.name, self.order = name, "="


class Unpickler:
    """A reader of pickles, one after the other, from a file.

    Args:
        file: has read and readline; reading beyond its end must take no memory (BytesIO, mmap).
        num_bytes: size of the file; the arrays, bytes and dictionaries made from it may take a few times as much, no more.
        load_storage: given the key and the number of bytes of a storage of torch.save, returns its bytes as a flat tensor.
    """

    def __init__(
        self, file: BinaryIO | mmap, num_bytes: int, load_storage: Callable[[str, int], Tensor] | None = None
    ) -> None:
        self._file = file
        self._num_bytes, self._room = num_bytes, COPIES * num_bytes
        self._load_storage = load_storage
        self._functions = {
            "collections.OrderedDict": self._ordered_dict,
            "collections.Counter": lambda *counts: counts[0] if counts else {},
            "builtins.set": self._set,
            "__builtin__.set": self._set,
            "builtins.bytes": lambda: b"",  # protocol 2 writes empty bytes so, and others below
            "__builtin__.bytes": lambda: b"",
            "_codecs.encode": self._latin1,
            "numpy.dtype": lambda name, *flags: _Dtype(name),
            **{f"numpy.{core}.multiarray._reconstruct": lambda *arguments: Array() for core in ("core", "_core")},
            **{f"numpy.{core}.multiarray.scalar": self._scalar for core in ("core", "_core")},
            **{f"numpy.{core}.numeric._frombuffer": self._array for core in ("core", "_core")},
            "torch._utils._rebuild_tensor": _tensor,
            "torch._utils._rebuild_tensor_v2": _tensor,
            "torch._utils._rebuild_tensor_v3": _tensor_of_bytes,
            "torch._utils._rebuild_parameter": lambda data, *arguments: data,
            "torch._utils._rebuild_parameter_with_state": lambda data, *arguments: data,
            "torch._tensor._rebuild_from_type_v2": lambda rebuild, kind, arguments, state: self._call(rebuild, arguments),
            "torch.Size": lambda size: size,
            "torch.device": lambda *arguments: arguments,
        }
        kinds = ("numpy.ndarray", "torch.Tensor", "torch.nn.parameter.Parameter")
        self._globals = {**self._functions, **STORAGES, **DTYPES, **dict.fromkeys(kinds)}

    def load(self) -> Any:
        """Read the next pickle; raises Refused, or nearly anything if the file is damaged."""
        stack: list[Any] = []
        below: list[list[Any]] = []  # the stacks below each mark
        memo: dict[int, Any] = {}
        value: Any
        for opcode, value, _ in pickletools.genops(self._file):  # type: ignore[arg-type]  # mmap has what is asked for
            name = opcode.name
            if name in LITERALS:
                stack.append(value)
            elif name in NEW:
                stack.append(NEW[name]())
            elif name in GETS:
                stack.append(memo[value])
            elif name in PUTS:
                memo[value] = stack[-1]
            elif name == "MEMOIZE":
                memo[len(memo)] = stack[-1]
            elif name in TUPLES:
                stack.append(tuple([stack.pop() for _ in range(TUPLES[name])][::-1]))
            elif name == "MARK":
                below.append(stack)
                stack = []
            elif name in ("TUPLE", "LIST", "DICT", "APPENDS", "SETITEMS", "ADDITEMS"):
                items, stack = stack, below.pop()
                if name in ("TUPLE", "LIST"):
                    stack.append(tuple(items) if name == "TUPLE" else items)
                elif name == "DICT":
                    stack.append({})
                    _set_items(stack[-1], items)
                else:
                    {"APPENDS": _extend, "SETITEMS": _set_items, "ADDITEMS": _add_items}[name](stack[-1], items)
            elif name == "APPEND":
                _extend(stack[-2], [stack.pop()])
            elif name == "SETITEM":
                _set_items(stack[-3], [stack.pop(-2), stack.pop()])
            elif name in ("GLOBAL", "STACK_GLOBAL"):
                words = [stack.pop(-2), stack.pop()] if name == "STACK_GLOBAL" else value.split(" ")
                stack.append(self._global(".".join(words)))
            elif name == "REDUCE":
                stack.append(self._call(stack.pop(-2), stack.pop()))
            elif name == "BUILD":
                self._build(stack[-2], stack.pop())
            elif name == "BINPERSID" and self._load_storage is not None:
                stack.append(self._storage(*stack.pop()))
            elif name == "STOP":
                (content,) = stack
                return content
            elif name not in ("PROTO", "FRAME"):
                raise ValueError(f"the opcode {name}, of which tensors have no need")

    def _global(self, name: str) -> Any:
        if name not in self._globals:
            raise Refused(name)
        return self._globals[name]

    def _call(self, function: Any, arguments: tuple[Any, ...]) -> Any:
        if not callable(function):  # nothing can be called but the functions above
            raise ValueError(f"a {type(function).__name__} is called")
        return function(*arguments)

    def _make(self, num_bytes: int) -> None:
        """Count the bytes of something that is made; legitimate files hold all of them."""
        self._room -= num_bytes
        if self._room < 0:
            raise ValueError("more is made of the bytes than there are")

    def _ordered_dict(self, pairs: list[Any] | tuple[Any, ...] = ()) -> OrderedDict[Any, Any]:
        self._make(len(pairs))
        made: OrderedDict[Any, Any] = OrderedDict()
        for key, value in pairs:
            _set_items(made, [key, value])
        return made

    def _set(self, items: list[Any]) -> set[Any]:
        self._make(len(items))
        made: set[Any] = set()
        _add_items(made, items)
        return made

    def _latin1(self, text: str, encoding: str) -> bytes:
        if encoding not in ("latin1", "latin-1"):
            raise Refused("_codecs.encode to more than latin1")
        self._make(len(text))
        return text.encode("latin-1")

    def _scalar(self, dtype: _Dtype, data: bytes | str) -> object:
        return self._values(data, dtype, (), "C").item()

    def _array(self, data: bytes | bytearray | str, dtype: _Dtype, shape: tuple[int, ...], order: str) -> Array:
        made = Array()
        made.values = self._values(data, dtype, shape, order)
        return made

    def _values(self, data: bytes | bytearray | str, dtype: _Dtype, shape: tuple[int, ...], order: str) -> np.ndarray:
        raw = data.encode("latin-1") if isinstance(data, str) else data  # Python 2 has no other bytes
        self._make(len(raw))
        kind = np.dtype(f"{dtype.order}{dtype.name}")
        values = np.frombuffer(raw, kind) if raw else np.empty(0, kind)
        return values.reshape(_numbers(shape), order="F" if order == "F" else "C")

    def _storage(
        self, kind: str, dtype: torch.dtype, key: str, device: str, num_elements: int, view: tuple | None = None
    ) -> Tensor:
        if kind != "storage" or not isinstance(key, str) or not isinstance(dtype, torch.dtype):
            raise ValueError("a persistent id of no storage")
        num_bytes = operator.index(num_elements) * dtype.itemsize
        if num_bytes > self._num_bytes:
            raise ValueError(f"storage {key} is larger than the file")
        assert self._load_storage is not None  # else load takes no storage
        storage = self._load_storage(key, num_bytes).view(dtype)
        if len(storage) != num_elements:
            raise ValueError(f"storage {key} has {len(storage)} elements, not {num_elements}")
        if view is None:
            return storage
        _, start, length = view  # of torch before 0.4
        return storage[start : start + length]

    def _build(self, target: Any, state: Any) -> None:
        if isinstance(target, Array):
            _, shape, dtype, fortran, data = state
            target.values = self._array(data, dtype, shape, "F" if fortran else "C").values
        elif isinstance(target, _Dtype):
            order, *parts = state[1:5]
            if order not in ("<", ">", "|", "=") or parts != [None, None, None]:
                raise Refused("an array of records")
            target.order = order
        elif not isinstance(target, dict):  # the metadata of state dicts is not needed
            raise ValueError(f"a {type(target).__name__} has a state")


def _tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *arguments: Any) -> Tensor:
    """Return a view of a storage; as_strided raises RuntimeError beyond its end, but lets one number stand for all."""
    tensor = storage.as_strided(_numbers(size), _numbers(stride), operator.index(offset))
    if tensor.numel() > storage.numel():
        raise ValueError("a tensor is larger than its storage")
    return tensor


def _tensor_of_bytes(
    storage: Tensor,
    offset: int,
    size: tuple[int, ...],
    stride: tuple[int, ...],
    requires_grad: bool,
    hooks: Any,
    dtype: torch.dtype,
    *arguments: Any,
) -> Tensor:
    return _tensor(storage.view(dtype), offset, size, stride)


def _numbers(values: tuple[int, ...]) -> tuple[int, ...]:
    """Check that values are whole numbers; libraries would print anything else, however long, in their messages."""
    return tuple(map(operator.index, values))


def _extend(target: Any, items: list[Any]) -> None:
    if type(target) is not list:
        raise ValueError(f"items for a {type(target).__name__}")
    target += items


def _add_items(target: Any, items: list[Any]) -> None:
    if type(target) is not set:
        raise ValueError(f"items for a {type(target).__name__}")
    target.update(map(_key, items))


def _set_items(target: Any, items: list[Any]) -> None:
    if not isinstance(target, dict):
        raise ValueError(f"keys and values for a {type(target).__name__}")
    for key, value in zip(items[::2], items[1::2], strict=True):
        target[_key(key)] = value


def _key(value: Any) -> Any:
    if not isinstance(value, KEYS):
        raise Refused(f"a key that is a {type(value).__name__}")
    return value
