"""TFRecord files as TFDS writes them, read record by record without TensorFlow, every checksum looked at.

A record is its length (8 bytes), the masked CRC32C of these 8 bytes, its data, and the masked CRC32C of the data, all
little-endian (tensorflow.org/tutorials/load_data/tfrecord). A file has no head and no end: one that was cut between two
records is found by who knows how many there must be.
"""

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from moco_jax.config import ConfigError

EXTRA = 'pip install "moco_jax[tfrecord]"'
FETCH = "fetch or prepare this file again"
HEAD = struct.Struct("<QI")
FOOT = struct.Struct("<I")
BUFFER = 1 << 20  # bytes read at once, so that small records do not cost a call each
COMPRESSED = (b"\x1f\x8b", b"\x78\x01", b"\x78\x9c", b"\x78\xda")  # first bytes of gzip and zlib


def masked(data: bytes) -> int:
    """The checksum of TFRecord: CRC32C, turned by 15 bits and moved, so that one of data with checksums still tells.

    Raises ConfigError where the library is not installed. In plain Python it is a thousand times slower.
    """
    try:
        import google_crc32c
    except ImportError as error:
        raise ConfigError(f"reading TFRecord needs google-crc32c: {EXTRA}") from error
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def read(path: Path) -> Iterator[tuple[bytes, int]]:
    """Each record of a file and its masked checksum, in the file's order, one at a time in memory.

    Raises ConfigError, which names file and record, for one that is cut off or damaged, and for a compressed file.
    """
    number = place = 0
    try:
        with path.open("rb", buffering=BUFFER) as file:
            size = os.fstat(file.fileno()).st_size
            while place < size:
                record, checksum = _next(file, size - place, f"{path}: record {number}")
                yield record, checksum
                number += 1
                place += HEAD.size + len(record) + FOOT.size
    except OSError as error:
        raise ConfigError(f"{path}: record {number} cannot be read ({error.strerror or error})") from error


def _next(file: BinaryIO, left: int, where: str) -> tuple[bytes, int]:
    """The record at the place where a file stands, `left` bytes before its end."""
    head = file.read(HEAD.size)
    if len(head) < HEAD.size:
        raise ConfigError(f"{where} is cut off: {left} bytes are left, and a record takes 16 or more; {FETCH}")
    length, checksum = HEAD.unpack(head)
    if masked(head[:8]) != checksum:  # before it is believed: a wrong length could ask for any amount of memory
        if head[:2] in COMPRESSED:
            raise ConfigError(f"{where} is compressed, as TFDS neither writes nor reads files; unpack them first")
        raise ConfigError(f"{where} is damaged: the checksum of its length is another; {FETCH}")
    if HEAD.size + length + FOOT.size > left:
        raise ConfigError(f"{where} is cut off: {length} bytes of data, of which {left - HEAD.size} are left; {FETCH}")
    data = file.read(length)
    (checksum,) = FOOT.unpack(file.read(FOOT.size))
    if masked(data) != checksum:
        raise ConfigError(f"{where} is damaged: the checksum of its {length} bytes is another; {FETCH}")
    return data, checksum
