"""Images: decoded as a viewer shows them, or refused with a reason; never a crash."""

import io
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from diffseg.types import IGNORE
from pipeline.inputs import decode as images
from pipeline.inputs.decode import UndecodableImage, decode, decode_reduced
from pipeline.inputs.reader import decode_sample
from pipeline.records import READER, ImageSample, RawSample, SampleFailure
from pipeline.table.label_map import decode_label_map, encode_label_map
from tests.support.hostile import JPEG, PNG, REFUSED, SHOWN


def test_the_corpus_is_large_enough():
    assert len(SHOWN) + len(REFUSED) >= 60


@pytest.mark.parametrize("what", SHOWN)
def test_an_odd_image_is_decoded_as_a_viewer_shows_it(what):
    data, halves = SHOWN[what]
    pixels = decode(data)
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 3
    assert pixels.shape[2] == 3
    if halves is not None:
        row = pixels[pixels.shape[0] // 2].astype(int)
        for colour, place in zip(halves, (row[row.shape[0] // 4], row[-(row.shape[0] // 4) - 1]), strict=True):
            assert colour is None or np.abs(place - np.array(colour)).max() <= 12


@pytest.mark.parametrize("what", REFUSED)
def test_a_hostile_image_is_refused_with_a_reason(what):
    data, reason = REFUSED[what]
    with pytest.raises(UndecodableImage) as caught:
        decode(data)
    assert caught.value.reason == reason
    assert str(caught.value)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_held_sideways_has_its_upright_size(orientation):
    assert decode(SHOWN[f"exif orientation {orientation}"][0]).shape == (30, 40, 3)


def test_an_encoded_image_beyond_the_limit_is_not_opened(monkeypatch):
    monkeypatch.setattr(images, "MAX_BYTES", 100)
    with pytest.raises(UndecodableImage, match="bytes"):
        decode(JPEG)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from([data for data, _ in SHOWN.values()]),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=8),
    st.floats(0.1, 1),
)
def test_damaged_bytes_give_an_image_or_a_reason_and_nothing_else(data, changes, kept):
    bent = bytearray(data)
    for place, value in changes:
        bent[min(int(place * len(bent)), len(bent) - 1)] = value
    with suppress(UndecodableImage):
        assert decode(bytes(bent[: max(1, int(kept * len(bent)))])).ndim == 3


def test_a_mistake_of_ours_is_not_taken_for_a_bad_image(monkeypatch):
    monkeypatch.setattr(images, "rgb", lambda image, deep: image.no_such_method())
    with pytest.raises(AttributeError):
        decode(PNG)


@pytest.mark.skipif(sys.platform != "linux", reason="memory limits")
def test_bombs_are_refused_within_little_memory():
    code = (
        "import resource\nfrom tests.support.hostile import REFUSED\n"
        "from pipeline.inputs.decode import UndecodableImage, decode\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for data, _ in REFUSED.values():\n    try:\n        decode(data)\n    except UndecodableImage:\n        pass\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert int(done.stdout) < 500 << 10  # kB


def raw(members, image, problem=None):
    return RawSample("k", 0, members, image, 0, problem)


def test_a_sample_becomes_pixels_or_a_reason():
    assert isinstance(decode_sample(raw({"jpg": JPEG}, "jpg"), READER), ImageSample)
    failure = decode_sample(raw({"jpg": JPEG[:50]}, "jpg"), READER)
    assert isinstance(failure, SampleFailure)
    assert failure.reason == "undecodable"
    assert failure.sha256 is not None
    nothing = decode_sample(raw({"json": b"", "txt": b""}, None), READER)
    assert isinstance(nothing, SampleFailure)
    assert (nothing.reason, "json, txt" in nothing.error) == ("no_image", True)
    known = decode_sample(raw({"jpg": b""}, "jpg", ("too_large", "why")), READER)
    assert isinstance(known, SampleFailure)
    assert (known.reason, known.error) == ("too_large", "why")


@pytest.mark.parametrize(("top", "kind"), [(0, np.uint8), (254, np.uint8), (255, np.uint16), (65_534, np.uint16)])
def test_label_maps_come_back_as_they_were(top, kind):
    labels = np.array([[0, top], [IGNORE, min(1, top)]], np.int32)
    data = encode_label_map(labels)
    assert np.array_equal(decode_label_map(data), labels)
    assert data[24] == (8 if kind == np.uint8 else 16)  # the bit depth in the PNG's header


def test_more_segments_than_16_bits_hold_are_refused():
    with pytest.raises(ValueError, match="65535"):
        encode_label_map(np.array([[65_535]], np.int32))


def photo_of(width, height, orientation=None):
    """A JPEG of smooth stripes, as a camera of that many pixels would give it."""
    column = np.linspace(0, 6, width)[None, :, None] + np.linspace(0, 4, height)[:, None, None]
    pixels = (127 + 120 * np.sin(column + np.array([0.0, 1.0, 2.0]))).astype(np.uint8)
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90, exif=exif)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("width", "height", "least", "decoded"),
    [
        (4000, 3000, 1024, (2000, 1500)),
        (4096, 512, 1024, (1024, 128)),
        (4000, 3000, 500, (500, 375)),
        (1024, 768, 1024, (1024, 768)),
        (1500, 1000, 1024, (1500, 1000)),
        (4000, 3000, None, (4000, 3000)),
    ],
)
def test_a_large_jpeg_is_decoded_at_a_scale_that_leaves_what_is_wanted(width, height, least, decoded):
    pixels, size = decode_reduced(photo_of(width, height), least)
    assert size == (width, height)
    assert (pixels.shape[1], pixels.shape[0]) == decoded


def test_a_reduced_photo_looks_the_same():
    whole = decode(photo_of(2048, 1024))
    pixels, _ = decode_reduced(photo_of(2048, 1024), 512)
    expected = whole.reshape(256, 4, 512, 4, 3).mean((1, 3))
    assert pixels.shape == expected.shape
    assert np.abs(pixels - expected).max() < 6


def test_a_reduced_photo_held_on_its_side_stands_upright_with_its_own_size():
    pixels, size = decode_reduced(photo_of(4000, 3000, orientation=6), 1024)
    assert size == (3000, 4000)
    assert pixels.shape == (2000, 1500, 3)
