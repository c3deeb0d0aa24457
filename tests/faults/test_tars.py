"""Hostile tars: what comes before the harm is kept, what is beyond a bound is a row with a reason or damage by name.

Each is read whole and by its headers alone, in little time and memory, and labelled once.
"""

import gzip
import io
import tarfile
import time
import tracemalloc

import pytest

from pipeline import watch
from pipeline.bench.fake_model import FakeSegmenter
from pipeline.errors import CorruptShard
from pipeline.inputs.tar import reading
from pipeline.inputs.tar.reading import read_samples
from pipeline.records import OK
from tests.conftest import jpeg
from tests.faults.test_fault_table import a_ledger, faults, label, statuses

END = bytes(1024)


def block(data):
    return data + bytes(-len(data) % 512)


def header(name, size=0, kind=tarfile.REGTYPE, **values):
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    for key, value in values.items():
        setattr(info, key, value)
    return info.tobuf(format=tarfile.GNU_FORMAT)


def changed(raw, at, value):
    """A header with other bytes in it, and a checksum that agrees."""
    data = bytearray(raw)
    data[at : at + len(value)] = value
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data)
    return bytes(data)


def member(name, data):
    return header(name, len(data)) + block(data)


def extended(records, kind=tarfile.XHDTYPE):
    return header("pax", len(records), kind) + block(records)


def record(key, value):
    body = f" {key}={value}\n".encode()
    length = len(body) + 1
    while len(str(length)) + len(body) != length:
        length = len(str(length)) + len(body)
    return str(length).encode() + body


def sparse_old(size):
    return changed(header("b.jpg", 0, tarfile.GNUTYPE_SPARSE), 483, b"%011o\0" % size)


PHOTO = jpeg(0)
BEFORE, AFTER = member("a.jpg", PHOTO), member("c.jpg", PHOTO)
PLAIN = member("b.jpg", PHOTO)
DIGITS = b"1" * 900_000
DAMAGE = "damage"
# what it is: the bytes after a sound sample a and before a sound sample c, and the statuses of what is read of all
TARS = {
    "100,000 extended headers": (extended(record("comment", "x")) * 100_000 + PLAIN, ["", DAMAGE]),
    "100,000 global headers": (extended(record("comment", "x"), tarfile.XGLTYPE) * 100_000 + PLAIN, ["", DAMAGE]),
    "100,000 long names": ((header("l", 9, tarfile.GNUTYPE_LONGNAME) + block(b"names.jpg")) * 100_000, ["", DAMAGE]),
    "100,000 long links": ((header("l", 4, tarfile.GNUTYPE_LONGLINK) + block(b"link")) * 100_000, ["", DAMAGE]),
    "a record that says it is 10^18 long": (extended(b"999999999999999999 path=b\n") + PLAIN, ["", DAMAGE]),
    "a record of 10^6 digits": (extended(DIGITS) + PLAIN, ["", DAMAGE]),
    "attributes for all without end": (
        b"".join(
            extended(record(f"k{n}", "x" * 9_000), tarfile.XGLTYPE) + member(f"b{n}.jpg", PHOTO) for n in range(99)
        ),
        [""] * 8 + [DAMAGE],
    ),
    "a name of a million letters": (extended(record("path", "b" * 1_000_000 + ".jpg")) + PLAIN, ["", DAMAGE]),
    "a name of 100,000 letters": (extended(record("path", "b" * 100_000 + ".jpg")) + PLAIN, ["", DAMAGE]),
    "NUL in a name": (extended(record("path", "b\0b.jpg")) + PLAIN, ["", "", ""]),
    "a negative size": (changed(header("b.jpg"), 124, b"\xff" * 12) + block(PHOTO), ["", DAMAGE]),
    "a negative size in a record": (extended(record("size", "-1024")) + PLAIN, ["", DAMAGE]),
    "8 exabytes": (changed(header("b.jpg"), 124, b"\x80" + (1 << 63).to_bytes(11, "big")), ["", DAMAGE]),
    "10^26 bytes": (changed(header("b.jpg"), 124, b"\x80" + b"\xff" * 11), ["", DAMAGE]),
    "10 terabytes of holes": (sparse_old(10 << 40), ["", "too_large", ""]),
    "10 terabytes of holes, version 0.0": (
        extended(record("GNU.sparse.size", str(10 << 40)) + record("GNU.sparse.numblocks", "0")) + PLAIN,
        ["", "too_large", ""],
    ),
    "10 terabytes of holes, version 0.1": (
        extended(record("GNU.sparse.size", str(10 << 40)) + record("GNU.sparse.map", "0,9")) + PLAIN,
        ["", "too_large", ""],
    ),
    "a map of holes that point backwards": (
        extended(record("GNU.sparse.size", "99") + record("GNU.sparse.map", "50,9,0,-99")) + PLAIN,
        ["", DAMAGE],
    ),
    "a map of 10^9 holes, version 1.0": (
        extended(record("GNU.sparse.major", "1") + record("GNU.sparse.minor", "0") + record("GNU.sparse.realsize", "9"))
        + header("b.jpg", 4 << 20)
        + block(b"1000000000\n" + b"0\n" * (2 << 20)),
        ["", DAMAGE],
    ),
    "maps of holes without end": (
        changed(header("b.jpg", 0, tarfile.GNUTYPE_SPARSE), 482, b"\1") + (bytes(504) + b"\1" + bytes(7)) * 5_000,
        ["", DAMAGE],
    ),
    "a sample of 20,000 members": (
        PLAIN + b"".join(header(f"b.{n}.txt") for n in range(20_000)),
        ["", "too_large", ""],
    ),
    "no byte for an image": (header("b.jpg"), ["", "undecodable", ""]),
    "a hard link to itself": (header("b.jpg", 0, tarfile.LNKTYPE, linkname="b.jpg"), ["", "no_image", ""]),
    "links in a circle": (
        header("b.jpg", 0, tarfile.SYMTYPE, linkname="d.jpg") + header("d.jpg", 0, tarfile.SYMTYPE, linkname="b.jpg"),
        ["", "no_image", "no_image", ""],
    ),
    "devices and pipes": (
        b"".join(header("b.jpg", 0, kind) for kind in (tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)),
        ["", ""],
    ),
    "a kind that no tar has": (changed(PLAIN[:512], 156, b"Z") + PLAIN[512:], ["", ""]),
}


def read(data, name="x.tar", **how):
    """Reasons of the samples, "" for sound ones, and DAMAGE at the end where it was met."""
    found = []
    try:
        for sample in read_samples(io.BytesIO(data), name, **how):
            found.append(sample.problem[0] if sample.problem else "")
            if sample.problem is None and sample.image and sample.members[sample.image] == b"" and "first" not in how:
                found[-1] = "undecodable"
    except CorruptShard as error:
        found.append(DAMAGE if 0 <= error.offset <= len(data) and len(str(error)) < 1_000 else str(error))
    return found


@pytest.mark.parametrize("what", TARS)
def test_a_hostile_tar_costs_no_sound_sample_before_it_and_little_time(what):
    between, expected = TARS[what]
    data = BEFORE + between + AFTER + END
    begun = time.process_time()
    assert read(data) == expected
    assert len(read(data, first=1 << 62)) == len(expected)
    assert time.process_time() - begun < 3


@pytest.mark.parametrize("what", ["100,000 extended headers", "10 terabytes of holes", "maps of holes without end"])
def test_it_takes_little_memory(what):
    data = BEFORE + TARS[what][0] + AFTER + END
    tracemalloc.start()
    read(data)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 8 << 20


@pytest.mark.parametrize("what", [what for what in TARS if any(word in what for word in ("100,000 e", "10 t", "NUL"))])
def test_a_hostile_tar_is_labelled_as_far_as_it_is_sound(tmp_path, what):
    between, expected = TARS[what]
    ledger = a_ledger(tmp_path, BEFORE + between + AFTER + END)
    tally = label(ledger, FakeSegmenter())
    found = statuses(ledger, len(expected) - expected.count(DAMAGE))
    assert found == [each or OK for each in expected if each != DAMAGE]
    assert [broken.kind for broken in tally.broken.values()] == ["CorruptShard"] * expected.count(DAMAGE)
    assert bool(faults(ledger)) == (DAMAGE in expected)


def test_members_of_one_sample_are_bounded_in_bytes_where_all_are_read(monkeypatch):
    monkeypatch.setattr(reading, "MAX_SAMPLE", 3 * len(PHOTO))
    data = BEFORE + PLAIN + b"".join(member(f"b.{n}", PHOTO) for n in range(9)) + AFTER + END
    assert read(data) == ["", "too_large", ""]
    assert read(data, whole=False) == ["", "", ""]


@pytest.mark.slow
def test_a_million_members_of_one_sample():
    data = BEFORE + PLAIN + b"".join(header(f"b.{n}") for n in range(1_000_000)) + AFTER + END
    assert read(data) == ["", "too_large", ""]


def test_reading_tells_that_it_moves_where_no_sample_comes():
    beats = []
    token = watch.beat.set(lambda: beats.append(1))
    data = header("b.jpg", 0, tarfile.CHRTYPE) * 5_000 + AFTER + END
    assert read(gzip.compress(data), "x.tar.gz") == [""]
    watch.beat.reset(token)
    assert len(beats) > 5_000
