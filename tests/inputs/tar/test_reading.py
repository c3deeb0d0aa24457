"""Tars: WebDataset's rules, every byte accounted for, damage never silent."""

import gzip
import io
import tarfile

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from webdataset.tariterators import base_plus_ext

from pipeline.errors import CorruptShard
from pipeline.inputs.tar import reading
from pipeline.inputs.tar.reading import image_of, read_samples
from pipeline.inputs.tar.writing import write_samples
from tests.conftest import jpeg, samples
from tests.support.damage import DAMAGED, MEMBERS, SOUND, compressed


def read(data, name="x.tar", **options):
    return list(read_samples(io.BytesIO(data), name, **options))


def salvage(data, name="x.tar", **options):
    """Keys of the samples before the damage, and what was said of it; None where nothing was."""
    found, said = [], None
    try:
        for sample in read_samples(io.BytesIO(data), name, **options):
            found.append(sample)
    except CorruptShard as error:
        said = error
    return found, said


def tar_of(*members, format=tarfile.PAX_FORMAT):
    """A tar of (name, bytes) or ready-made TarInfos."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as archive:
        for member in members:
            info, data = (
                (member, b"") if isinstance(member, tarfile.TarInfo) else (tarfile.TarInfo(member[0]), member[1])
            )
            if info.isreg():
                info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def test_members_of_one_key_are_one_sample_in_order():
    found = read(SOUND)
    assert [(s.index, s.key, s.image) for s in found] == [(i, f"{i:04d}", "jpg") for i in range(5)]
    assert found[2].members == {"jpg": jpeg(2), "txt": b"2"}
    assert [s.end for s in found] == sorted({s.end for s in found})


@pytest.mark.parametrize("what", DAMAGED)
def test_damage_is_reported_and_what_came_before_it_salvaged(what):
    data, whole = DAMAGED[what]
    found, said = salvage(data)
    assert said is not None
    assert 0 <= said.offset <= len(data)
    assert [s.key for s in found] == [f"{i:04d}" for i in range(whole)]
    assert all(s.members["jpg"] == jpeg(s.index) for s in found)


@pytest.mark.parametrize("what", DAMAGED)
def test_damage_is_found_by_headers_alone_too(what):
    _, said = salvage(DAMAGED[what][0], first=1000, whole=False)
    assert said is not None


@pytest.mark.parametrize("what", {**compressed("gz"), **compressed("zst")})
def test_damage_of_a_compressed_shard_is_reported(what):
    data = {**compressed("gz"), **compressed("zst")}[what]
    found, said = salvage(data, "x.tar." + what.split(":")[0])
    assert said is not None
    if "flipped" not in what:  # a flipped byte is told by the checksum, which comes last
        assert all(s.members["jpg"] == jpeg(s.index) for s in found)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_no_damage_of_headers_raises_anything_else_or_changes_an_image(data):
    header = data.draw(st.sampled_from([start for start, _ in MEMBERS]))
    position, value = data.draw(st.integers(0, 511)), data.draw(st.integers(0, 255))
    bent = bytearray(SOUND)
    bent[header + position] = value
    fixed = bent[header : header + 148] + b" " * 8 + bent[header + 156 : header + 512]
    if data.draw(st.booleans()):  # with a checksum that agrees, so that the damage gets past it
        bent[header + 148 : header + 156] = b"%06o\0 " % sum(fixed)
    found, _ = salvage(bytes(bent))
    assert len(found) <= 11
    sound = {jpeg(i) for i in range(5)}
    for sample in found:
        assert (
            sample.image is None
            or not sample.members[sample.image]
            or sample.members[sample.image][:99] in {image[:99] for image in sound}
        )


@pytest.mark.parametrize(
    ("name", "pack"), [("x.tar.gz", gzip.compress), ("x.tgz", gzip.compress), ("X.TAR.ZST", zstandard.compress)]
)
def test_compressed_shards_read_as_plain_ones(name, pack):
    assert [s.members for s in read(pack(SOUND), name)] == [s.members for s in read(SOUND)]


def test_several_gzip_members_in_one_file_are_one_shard():
    half = len(SOUND) // 2
    assert len(read(gzip.compress(SOUND[:half]) + gzip.compress(SOUND[half:]), "x.tar.gz")) == 5


def test_samples_before_the_first_wanted_come_without_bytes():
    found = read(SOUND, first=3)
    assert [bool(s.members["jpg"]) for s in found] == [False, False, False, True, True]
    assert [s.key for s in found] == [f"{i:04d}" for i in range(5)]


def test_only_what_may_be_the_image_is_read_unless_all_is_wanted():
    assert read(SOUND, whole=False)[0].members == {"jpg": jpeg(0), "txt": b""}


def test_an_empty_tar_has_no_samples():
    assert read(write_samples([])) == []


def test_a_repeated_key_gives_as_many_samples():
    data = tar_of(("a.jpg", b"1"), ("a.jpg", b"2"), ("b.jpg", b"3"), ("a.jpg", b"4"))
    assert [(s.index, s.key, s.members["jpg"]) for s in read(data)] == [
        (0, "a", b"1"),
        (1, "a", b"2"),
        (2, "b", b"3"),
        (3, "a", b"4"),
    ]


def test_keys_keep_their_folders_and_end_at_the_first_dot_of_the_name():
    data = tar_of(("x.y/a.b.jpg", b"1"), ("x.y/a.JPG", b"2"), ("z/a.Png", b"3"))
    assert [(s.key, sorted(s.members)) for s in read(data)] == [("x.y/a", ["b.jpg", "jpg"]), ("z/a", ["png"])]


@pytest.mark.parametrize(
    ("members", "image_key", "image"),
    [
        (["jpg"], None, "jpg"),
        (["json", "webp"], None, "webp"),
        (["png", "jpg"], None, "jpg"),
        (["photo.jpg", "json"], None, "photo.jpg"),
        (["photo.jpg", "mask.png"], None, None),
        (["jpg", "mask.png"], None, "jpg"),
        (["json"], None, None),
        (["jpg", "mask.png"], "mask.png", "mask.png"),
        (["jpg"], "png", None),
        (["img"], "img", "img"),
    ],
)
def test_the_image_of_a_sample(members, image_key, image):
    assert image_of(members, image_key) == image


def test_an_image_key_is_taken_with_or_without_its_dot_in_any_case():
    data = tar_of(("a.JPG", b"1"), ("a.Mask.PNG", b"2"))
    assert read(data, image_key=".MASK.png")[0].image == "mask.png"


def test_a_link_is_a_sample_without_bytes_of_its_own():
    link = tarfile.TarInfo("b.jpg")
    link.type, link.linkname = tarfile.LNKTYPE, "a.jpg"
    found = read(tar_of(("a.jpg", b"1"), link, ("c.jpg", b"3")))
    assert [s.key for s in found] == ["a", "b", "c"]
    assert found[1].problem == ("no_image", "b.jpg is a link to a.jpg, without bytes of its own")


def test_a_member_beyond_the_limit_is_passed_over_with_a_reason(monkeypatch):
    monkeypatch.setattr(reading, "MAX_BYTES", 1000)
    found = read(tar_of(("a.jpg", b"1" * 2000), ("b.jpg", b"2")))
    assert found[0].problem is not None
    assert found[0].problem[0] == "too_large"
    assert found[0].members == {"jpg": b""}
    assert found[1].problem is None


def test_a_sparse_member_larger_than_the_limit_takes_no_memory():
    sparse = tarfile.TarInfo("a.jpg")
    sparse.type, sparse.size = tarfile.GNUTYPE_SPARSE, 0
    header = bytearray(sparse.tobuf(format=tarfile.GNU_FORMAT))
    header[483:495] = b"%011o\0" % (7 << 30)  # its size once expanded
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    [found] = read(bytes(header) + bytes(1024))
    assert found.problem is not None
    assert found.problem[0] == "too_large"


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_and_foreign_names_are_read(format):
    name = "ä" * 60 + "/" + "b" * 150
    assert [s.key for s in read(tar_of((f"{name}.jpg", b"1"), format=format))] == [name]


def test_an_extended_header_of_gigabytes_is_damage():
    huge = tarfile.TarInfo("x")
    huge.type, huge.size = tarfile.XHDTYPE, 8 << 30
    _, said = salvage(huge.tobuf(format=tarfile.GNU_FORMAT) + SOUND)
    assert said is not None


def test_files_without_extension_and_metadata_are_no_samples():
    data = tar_of(("README", b"1"), ("__meta__.json", b"2"), ("a.jpg", b"3"), ("._a.jpg", b"4"))
    assert [s.key for s in read(data)] == ["a"]


def test_files_that_systems_leave_are_of_no_sample_however_deep_they_lie():
    names = ["p/._0.jpg", "p/0.jpg", "p/._0.json", "p/0.json", "__MACOSX/p/._0.jpg", "p/.DS_Store", "p/Thumbs.db"]
    names += ["./p/1.jpg", "p/.ipynb_checkpoints/1-checkpoint.png", "@eaDir/1.jpg", ".hidden/2.jpg", "p/desktop.ini"]
    data = tar_of(*((name, b"1") for name in names))
    assert [(s.key, s.index, sorted(s.members)) for s in read(data)] == [
        ("p/0", 0, ["jpg", "json"]),
        ("./p/1", 1, ["jpg"]),
    ]
    assert [s.end for s in read(data)] == sorted(s.end for s in read(data, first=9))


def test_a_tar_of_nothing_but_hidden_files_is_not_taken_for_empty():
    _, said = salvage(tar_of(("home/me/.cache/0.jpg", b"1"), ("._a.jpg", b"2")))
    assert "none of its 2 members is named KEY.EXTENSION and not hidden" in str(said)


def test_a_mask_is_not_read_for_the_photo_that_a_sample_lacks():
    data = tar_of(*((name, b"1") for name in ("0.heic", "0.mask.png", "1.json", "1.depth.png", "2.jpg", "2.seg.png")))
    assert [s.image for s in read(data)] == [None, None, "jpg"]
    assert [s.image for s in read(data, image_key="mask.png")] == ["mask.png", None, None]
    assert [s.image for s in read(data, reader=1)] == ["mask.png", "depth.png", "jpg"]


def test_a_member_named_as_the_writer_names_the_key_does_not_take_its_place():
    [sample] = read_samples(io.BytesIO(write_samples([("a", {"jpg": b"x", "__key__": b"b"})])), "s.tar")
    assert (sample.key, dict(sample.members)) == ("a", {"jpg": b"x"})


def test_a_shard_in_which_no_member_has_an_extension_is_not_taken_for_empty():
    _, said = salvage(tar_of(("one", b"1"), ("two", b"2")))
    assert "none of its 2 members" in str(said)


def test_an_image_that_was_cut_is_not_replaced_by_another_of_its_sample():
    data = tar_of(("a.png", b"1" * 600), ("a.jpg", b"2" * 600))
    found, said = salvage(data[: 512 + 1024 + 512 + 100])
    assert found == []
    assert said is not None


def test_the_same_samples_give_the_same_bytes():
    assert write_samples(samples(4)) == write_samples(samples(4))


@given(st.text(alphabet="ab./\n_", max_size=12))
def test_names_part_where_webdataset_parts_them(name):
    match = reading._NAME.fullmatch(name)
    assert (match.groups() if match else (None, None)) == base_plus_ext(name)
