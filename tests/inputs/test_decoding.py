"""Pictures that other tools lose: decoded as a viewer does, or a row with a reason, never a blank."""

import io
import struct
import tarfile
import zlib
from contextlib import suppress
from functools import cache

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.datasets.selection import Selection
from pipeline.evaluation.truth import _sample
from pipeline.exports.export import export
from pipeline.inputs.decode import UndecodableImage, decode, decode_reduced, extension_of
from pipeline.inputs.mending import mend
from pipeline.inputs.reader import decode_sample
from pipeline.records import ImageSample, RawSample, SampleFailure
from tests.conftest import SHARED
from tests.inputs.test_decode import photo_of
from tests.support import first_decoder
from tests.support.broken import CLEAR, CUT, HALF_CLEAR, NUMBERS, OPAQUE, PROGRESSIVE, UNSEEN, WHOLE, with_chunk
from tests.support.hostile import BLUE, JPEG, RED, REFUSED, SHOWN, chunk, save, split
from tests.support.labelled import make_run


def halves(data):
    """The colours in the middle of the left and the right half."""
    row = decode(data)[15].astype(int)
    return row[row.shape[0] // 4], row[-(row.shape[0] // 4) - 1]


@pytest.mark.parametrize("what", [*WHOLE, *OPAQUE])
def test_a_picture_is_shown_whatever_is_wrong_around_its_pixels(what):
    left, right = halves({**WHOLE, **OPAQUE}[what])
    assert np.abs(left - RED).max() <= 12
    assert np.abs(right - BLUE).max() <= 12


@pytest.mark.parametrize("what", CUT)
def test_a_picture_whose_pixels_are_missing_stays_a_row_with_a_reason(what):
    with pytest.raises(UndecodableImage) as refusal:
        decode(CUT[what])
    assert refusal.value.reason == "undecodable"


@pytest.mark.parametrize("data", [JPEG, PROGRESSIVE, photo_of(300, 200)], ids=["flat", "progressive", "photo"])
def test_wherever_a_jpeg_is_cut_it_is_shown_whole_or_not_at_all(data):
    whole = decode(data)
    shown = 0
    for end in range(len(data) - 1, len(data) - 60, -1):
        with suppress(UndecodableImage):
            assert np.array_equal(decode(data[:end]), whole)
            shown += 1
    assert shown >= 2  # without its end mark, or half of it


def test_a_photo_with_a_film_behind_it_needs_no_mending(monkeypatch):
    monkeypatch.setattr("pipeline.inputs.decode.mend", None)
    film = np.random.default_rng(0).bytes(1 << 18) + b"\xff\xda" + bytes(100)
    assert np.array_equal(decode(JPEG + film), decode(JPEG))


@pytest.mark.parametrize("what", NUMBERS)
def test_wide_numbers_are_scaled(what):
    data, expected = NUMBERS[what]
    for place, value in zip(halves(data), expected, strict=True):
        assert np.abs(place - value).max() <= 1


@pytest.mark.parametrize("what", UNSEEN)
def test_a_picture_of_which_nothing_is_seen_is_a_row_with_a_reason(what):
    with pytest.raises(UndecodableImage, match="nothing to see"):
        decode(UNSEEN[what])


def test_what_is_transparent_in_part_lies_on_white():
    left, right = halves(HALF_CLEAR)
    assert (left == RED).all()
    assert (right == 255).all()


def test_a_dark_picture_of_few_bits_is_one():
    told = struct.pack("<IiiHHIIiiII", 40, 4, 1, 1, 16, 0, 8, 0, 0, 0, 0)
    dark = b"BM" + struct.pack("<IHHI", 62, 0, 0, 54) + told + struct.pack("<4H", 1, 0, 1, 0)
    assert decode(dark).max() < 16


@pytest.mark.parametrize("mode", ["La", "RGBa"])
def test_premultiplied_colours_are_divided(mode):
    from pipeline.inputs.decode import rgb

    half = Image.new("RGBA", (2, 2), (200, 200, 200, 128)).convert("LA" if mode == "La" else "RGBA").convert(mode)
    assert np.abs(np.asarray(rgb(half, deep=False)).astype(int) - 227).max() <= 2


@pytest.mark.parametrize("name", [b"zTXt", b"iTXt", b"iCCP"])
def test_metadata_that_would_fill_the_memory_stay_refused(name):
    body = b"k\0\1\0\0\0" if name == b"iTXt" else b"k\0\0"
    with pytest.raises(UndecodableImage, match="inflates to more than 32 MB"):
        decode(with_chunk(name, body + zlib.compress(bytes(40 << 20))))
    many = b"".join(chunk(name, body + zlib.compress(bytes(9 << 20))) for _ in range(4))
    with pytest.raises(UndecodableImage, match="inflates to more than 32 MB"):
        decode(with_chunk(name, body + zlib.compress(bytes(2 << 20)))[:33] + many + with_chunk(name, b"")[33:])


@pytest.mark.parametrize("turned", [5, 6, 7, 8])
def test_a_tiff_held_on_its_side_has_its_upright_size(turned):
    exif = Image.Exif()
    exif[0x0112] = turned
    pixels, size = decode_reduced(save(split(), "TIFF", exif=exif), None)
    assert (size, pixels.shape) == ((30, 40), (40, 30, 3))


EVERY = {
    **{name: data for name, (data, _) in SHOWN.items()},
    **{name: data for name, (data, _) in REFUSED.items()},
    **{name: data for name, (data, _) in NUMBERS.items()},
    **WHOLE,
    **{f"cut {name}": data for name, data in CUT.items()},
    **OPAQUE,
    **UNSEEN,
    "large": photo_of(1600, 400),
    "large, several pictures": save(Image.new("RGB", (1600, 400)), "MPO", save_all=True, append_images=[split()]),
}


BIG = "png, plain text of 70 MB"
del EVERY[BIG]


def outcome(decoder, *arguments):
    """Pixels and size, or everything that is said in their place."""
    try:
        pixels, size = decoder(*arguments)
    except UndecodableImage as error:
        return error.reason, str(error), error.size
    return pixels.shape, pixels.tobytes(), size


@cache
def before(what):
    """What a run of the first version makes of an image."""
    return outcome(decode_reduced, EVERY[what], 512, 1)


@pytest.mark.parametrize("what", EVERY)
def test_runs_of_the_first_version_go_on_with_the_decoding_they_had(what):
    assert before(what) == outcome(first_decoder.decode_reduced, EVERY[what], 512)


def test_the_two_decodings_differ_where_they_should_and_nowhere_else():
    differing = {name for name, data in EVERY.items() if before(name) != outcome(decode_reduced, data, 512, 2)}
    assert {*OPAQUE, *UNSEEN} - {"bmp, alpha 255 everywhere"} <= differing
    assert differing & (SHOWN.keys() | REFUSED.keys()) == {"png with a text bomb"}  # refused in other words


def test_a_sample_is_decoded_by_the_rules_of_its_run():
    raw = RawSample("k", 0, {"png": WHOLE["png, text of 2 MB"]}, "png", 0)
    assert isinstance(decode_sample(raw, 1), SampleFailure)
    assert isinstance(decode_sample(raw, 2), ImageSample)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from([data for data in [*WHOLE.values(), *OPAQUE.values()] if len(data) < 1 << 20]),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=8),
    st.floats(0.1, 1),
)
def test_damage_beside_damage_gives_an_image_or_a_reason_and_nothing_else(data, changes, kept):
    changed = bytearray(data)
    for place, value in changes:
        changed[min(int(place * len(changed)), len(changed) - 1)] = value
    bent = bytes(changed[: max(1, int(kept * len(changed)))])
    for start in (b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8", b"RIFF\0\0\0\0WEBP"):
        with suppress(UndecodableImage):
            assert decode(start + bent).ndim == 3
        mend(start + bent)


SEVERAL = save(split(), "MPO", save_all=True, append_images=[split().rotate(180)])


def test_a_file_of_several_pictures_is_a_jpeg():
    assert Image.open(io.BytesIO(SEVERAL)).format == "MPO"
    assert extension_of(SEVERAL) == "jpg"
    assert np.array_equal(decode(SEVERAL), decode(save(split(), "JPEG")))
    large = save(Image.new("RGB", (1600, 400), RED), "MPO", save_all=True, append_images=[split()])
    pixels, size = decode_reduced(large, 512)
    assert (pixels.shape, size) == ((200, 800, 3), (1600, 400))


@pytest.mark.parametrize(("extension", "data"), [("mpo", SEVERAL), ("jif", JPEG), ("apng", save(split(), "PNG"))])
@pytest.mark.parametrize("form", ["coco-segments", "png", "webdataset"])
def test_an_export_names_a_photo_by_what_it_is(tmp_path, form, extension, data):
    ledger = make_run(tmp_path, (("a",),), beside={extension: data})
    export(ledger, str(tmp_path / "out"), form, Selection())
    names = {path.name for path in (tmp_path / "out").rglob("*")}
    if form == "webdataset":
        [tar] = (tmp_path / "out").rglob("*.tar")
        with tarfile.open(tar) as opened:
            names = set(opened.getnames())
    assert f"a.{'png' if extension == 'apng' else 'jpg'}" in names
    assert f"a.{extension}" not in names


def test_the_photo_beside_a_truth_may_be_of_several_pictures():
    sample = _sample("k", {"mpo": b"photo", "png": b"map"}, None, lambda data: data)
    assert (sample.image, sample.label_maps) == (b"photo", (b"map",))


@pytest.mark.parametrize(
    "case", ["i1_png_text_over_1MB/in.png", "i6_bmp_alpha_zero/in.bmp", "i7_tiff_float_0_to_1/in.tif"]
)
def test_pictures_that_the_field_lost_are_shown(case):
    path = SHARED / "cases" / case
    if not path.is_file():
        pytest.skip("the cases beside the project are not here")
    colours = np.unique(decode(path.read_bytes()).reshape(-1, 3), axis=0)
    assert len(colours) > 1
    assert not {*colours.flat} <= {0, 255}


def test_a_segment_that_swallows_the_pixels_is_not_made_up_for():
    with pytest.raises(UndecodableImage):
        decode(JPEG[:2] + b"\xff\xe1" + struct.pack(">H", 65_535) + b"Exif\0\0" + JPEG[2:])
    assert CLEAR.getchannel("A").getextrema() == (0, 0)
