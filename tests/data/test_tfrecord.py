"""TFRecord files: bytes that TensorFlow wrote, bytes of another writer, and each way in which a file can be damaged."""

import base64
import gzip
import sys

import pytest
from tensorboardX.record_writer import RecordWriter

from moco_jax.config import ConfigError
from moco_jax.data import tfrecord

# "foo" and "bar" by TensorFlow's own TFRecordWriter, as published with Apache Beam's tests.
BEAM = base64.b64decode("AwAAAAAAAACwmUkOZm9vYYq+/gMAAAAAAAAAsJlJDmJhckYA5cg=")
RECORDS = [b"", b"a", bytes(range(256)) * 9]


@pytest.fixture
def file(tmp_path):
    """file(bytes) -> its path."""

    def write(data):
        (tmp_path / "x.tfrecord").write_bytes(data)
        return tmp_path / "x.tfrecord"

    return write


def test_what_tensorflow_wrote(file):
    """Records in their order; no record in an empty file."""
    assert [data for data, _ in tfrecord.read(file(BEAM))] == [b"foo", b"bar"]
    assert [checksum for _, checksum in tfrecord.read(file(BEAM))] == [0xFEBE8A61, 0xC8E50046]
    assert list(tfrecord.read(file(b""))) == []


def test_what_another_writer_wrote(tmp_path, monkeypatch):
    """Empty, short and longer records; several to a buffer, or longer than one."""
    writer = RecordWriter(str(tmp_path / "x"))
    for data in RECORDS:
        writer.write(data)
    writer.close()
    for size in (tfrecord.BUFFER, 16):
        monkeypatch.setattr(tfrecord, "BUFFER", size)
        found = list(tfrecord.read(tmp_path / "x"))
        assert [data for data, _ in found] == RECORDS
        assert [checksum for _, checksum in found] == [tfrecord.masked(data) for data in RECORDS]


def test_every_bit_counts(file):
    """Whichever bit of a record is turned, the record is named as damaged or cut off, and those before it are given."""
    for bit in range(8 * 19, 8 * 38):
        damaged = bytearray(BEAM)
        damaged[bit // 8] ^= 1 << bit % 8
        found = []
        with pytest.raises(ConfigError, match=r"x\.tfrecord: record 1 is (damaged|cut off)"):
            found.extend(data for data, _ in tfrecord.read(file(bytes(damaged))))
        assert found == [b"foo"]


@pytest.mark.parametrize("length", [*range(1, 19), *range(20, 38)])
def test_a_file_that_was_cut_off(file, length):
    """At every byte but those between two records."""
    with pytest.raises(ConfigError, match=rf"record {length // 19} is cut off.*fetch or prepare this file again$"):
        list(tfrecord.read(file(BEAM[:length])))


def test_a_wrong_length_takes_no_memory(file):
    """A length with a checksum that fits it, of more than there is, is not read."""
    head = (1 << 40).to_bytes(8, "little")
    data = head + tfrecord.masked(head).to_bytes(4, "little") + b"abc"
    with pytest.raises(ConfigError, match="record 0 is cut off: 1099511627776 bytes of data, of which 3 are left"):
        list(tfrecord.read(file(data)))


def test_compressed_and_unreadable_files(file, tmp_path):
    """Told from damaged ones; a folder, and no file at all, are one line as well."""
    with pytest.raises(ConfigError, match="record 0 is compressed, as TFDS neither writes nor reads"):
        list(tfrecord.read(file(gzip.compress(BEAM))))
    with pytest.raises(ConfigError, match="record 0 cannot be read .Is a directory"):
        list(tfrecord.read(tmp_path))
    with pytest.raises(ConfigError, match="cannot be read .No such file"):
        list(tfrecord.read(tmp_path / "gone"))


def test_without_the_library_the_extra_is_named(file, monkeypatch):
    """One line with what to install."""
    monkeypatch.setitem(sys.modules, "google_crc32c", None)
    with pytest.raises(ConfigError, match=r"needs google-crc32c: pip install \"moco_jax\[tfrecord\]\"$"):
        list(tfrecord.read(file(BEAM)))
