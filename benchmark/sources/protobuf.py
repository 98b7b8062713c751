"""The wire format of protocol buffers (protobuf.dev/programming-guides/encoding), read without generated code."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Message = dict[int, list[int | memoryview]]
"""Values of every field, by its number, in their order: integers of varints, and the bytes of everything else."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def read_varint(data: memoryview, start: int) -> tuple[int, int]:
    """The integer at `start`, and where it ends. Raises ValueError if the data end before it does."""
    value = shift = 0
    for position in range(start, min(start + 10, len(data))):
        byte = data[position]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position + 1
        shift += 7
    raise ValueError(f"no integer at byte {start} of a message of {len(data)}")


def read_message(data: memoryview | bytes) -> Message:
    """
    The fields of a message; those that are messages themselves stay bytes, and nothing is copied.

    Raises:
        ValueError: the data are cut off, or no message.
    """
    data, message, position = memoryview(data), Message(), 0
    while position < len(data):
        tag, position = read_varint(data, position)
        kind, number = tag & 7, tag >> 3
        if kind == _VARINT:
            value, position = read_varint(data, position)
            message.setdefault(number, []).append(value)
            continue
        if kind == _BYTES:
            size, position = read_varint(data, position)
        elif kind in (_FIXED64, _FIXED32):
            size = 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"wire type {kind} at byte {position}")
        if number == 0 or position + size > len(data):
            raise ValueError(f"a field of {size} bytes at byte {position} of a message of {len(data)}")
        message.setdefault(number, []).append(data[position : position + size])
        position += size
    return message


def submessages(message: Message, number: int) -> list[Message]:
    """The messages in a repeated field. Raises ValueError if they are none."""
    return [read_message(_bytes(value)) for value in message.get(number, [])]


def submessage(message: Message, number: int) -> Message:
    """The message in a field. Raises ValueError if it is not there."""
    return read_message(_bytes(_last(message, number)))


def integer(message: Message, number: int, default: int = 0) -> int:
    """The integer in a field, or what stands for a field that is not there."""
    value = message.get(number, [default])[-1]
    if not isinstance(value, int):
        raise ValueError(f"field {number} is not an integer")
    return value


def integers(message: Message, number: int) -> list[int]:
    """The integers of a repeated field, packed or not."""
    found: list[int] = []
    for value in message.get(number, []):
        if isinstance(value, int):
            found.append(value)
            continue
        position = 0
        while position < len(value):
            one, position = read_varint(value, position)
            found.append(one)
    return found


def floats(message: Message, number: int, dtype: str) -> NDArray[np.floating]:
    """The numbers of a repeated field, packed or not, of `dtype` "<f4" or "<f8"."""
    values: Sequence[memoryview] = [_bytes(value) for value in message.get(number, [])]
    return np.frombuffer(values[0] if len(values) == 1 else b"".join(values), dtype)


def raw(message: Message, number: int) -> bytes:
    """The bytes in a field. Raises ValueError if it is not there."""
    return bytes(_bytes(_last(message, number)))


def _last(message: Message, number: int) -> int | memoryview:
    if number not in message:
        raise ValueError(f"field {number} is missing")
    return message[number][-1]


def _bytes(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("an integer where bytes were expected")
    return value
