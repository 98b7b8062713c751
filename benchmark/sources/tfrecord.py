"""TFRecord files: framed records, read without TensorFlow (tensorflow.org/tutorials/load_data/tfrecord)."""

from __future__ import annotations

import struct
from pathlib import Path

# Every record: uint64 length, uint32 checksum of it, the data, uint32 checksum of them.
_HEADER, _FOOTER = 12, 4


def record_places(file: Path) -> list[tuple[int, int]]:
    """
    Where the records of a file lie: offset and length of their data. A last one that is cut off is listed too.

    Raises:
        ValueError: a length that no record has: the file is damaged or not a TFRecord file.
        OSError: the file cannot be read.
    """
    end, places, position = file.stat().st_size, [], 0
    # Between two headers lie megabytes that nobody needs here.
    with file.open("rb", buffering=0) as stream:
        while position < end:
            stream.seek(position)
            header = stream.read(_HEADER)
            length = struct.unpack("<Q", header[:8])[0] if len(header) == _HEADER else 0
            if not 0 < length < 2**31:
                raise ValueError(f"no record at byte {position} of {end}")
            places.append((position + _HEADER, length))
            position += _HEADER + length + _FOOTER
    if not places:
        raise ValueError("the file is empty")
    return places


def read_record(file: Path, offset: int, length: int) -> bytes:
    """The data of one record. Raises EOFError if the file ends before they do, OSError if it cannot be read."""
    with file.open("rb") as stream:
        stream.seek(offset)
        data = stream.read(length)
    if len(data) < length:
        raise EOFError(f"the record at byte {offset} has {length} bytes, and only {len(data)} are there")
    return data
