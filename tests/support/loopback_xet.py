"""The upload half of Xet storage as hf_xet speaks it: xorbs of chunks, and shards that say how files are made of them.

Source: https://huggingface.co/docs/xet (xorb format, shard format, hash strings).
"""

import struct

import pyarrow

_CHUNK_HEADER, _SHARD_HEADER, _RECORD = 8, 48, 48
_WITH_METADATA, _WITH_VERIFICATION = 1 << 30, 1 << 31
_BOOKEND = b"\xff" * 32


class XetStore:
    """Chunks by their xorb; files are put together when a shard names them."""

    def __init__(self) -> None:
        self.xorbs: dict[str, list[bytes]] = {}

    def add_xorb(self, name: str, data: bytes) -> bool:
        """Keep the chunks of a serialized xorb; False if they are there."""
        is_new = name not in self.xorbs
        self.xorbs[name] = list(_chunks(data))
        return is_new

    def read_shard(self, data: bytes) -> list[bytes]:
        """The contents of the files that a shard describes. KeyError: it names a xorb that is not here."""
        files, place = [], _SHARD_HEADER
        while data[place : place + 32] != _BOOKEND:
            flags, count = struct.unpack_from("<II", data, place + 32)
            place += _RECORD
            content = b""
            for entry in range(count):
                at = place + entry * _RECORD
                size, first, end = struct.unpack_from("<III", data, at + 36)
                part = b"".join(self.xorbs[hash_string(data[at : at + 32])][first:end])
                assert len(part) == size
                content += part
            place += count * _RECORD * (2 if flags & _WITH_VERIFICATION else 1)
            place += _RECORD if flags & _WITH_METADATA else 0
            files.append(content)
        return files


def hash_string(value: bytes) -> str:
    """A hash as Xet writes it in URLs: four little-endian 64-bit numbers in hexadecimal."""
    return "".join(f"{number:016x}" for number in struct.unpack("<4Q", value))


def _chunks(data: bytes):
    place = 0
    while place + _CHUNK_HEADER <= len(data):
        version, scheme = data[place], data[place + 4]
        packed = int.from_bytes(data[place + 1 : place + 4], "little")
        size = int.from_bytes(data[place + 5 : place + 8], "little")
        assert version == 0, "a footer, or a newer format"
        place += _CHUNK_HEADER
        body = data[place : place + packed]
        place += packed
        if scheme:  # 1: LZ4 frame; 2: the same, of bytes regrouped by their place in a group of four
            body = pyarrow.decompress(body, size, codec="lz4", asbytes=True)
        if scheme == 2:
            body = _ungroup(body)
        assert len(body) == size
        yield body


def _ungroup(grouped: bytes) -> bytes:
    plain, start = bytearray(len(grouped)), 0
    for place in range(4):
        count = len(range(place, len(grouped), 4))
        plain[place::4] = grouped[start : start + count]
        start += count
    return bytes(plain)
