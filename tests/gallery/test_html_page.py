import base64
import hashlib
import io
import json
import re
import zlib
from collections.abc import Iterator
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from diffseg.types import IGNORE
from pipeline.gallery.html_page import GalleryItem, GalleryPage, pack_labels, write_gallery
from tests.support.gallery_items import HOSTILE, item, photo, quadrants, write


class Parts(HTMLParser):
    """Every start tag, and the text of every script and style."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, dict[str, str | None], str]] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.tags:
            self.texts.append((*self.tags[-1], data))

    def json(self, name):
        return json.loads(next(text for _, attrs, text in self.texts if attrs.get("id") == name))


def test_the_policy_allows_the_page_its_own_script_and_nothing_else():
    parts = Parts(write(item()))

    policy = next(attrs["content"] for tag, attrs in parts.tags if attrs.get("http-equiv"))
    script = next(text for tag, attrs, text in parts.texts if tag == "script" and "type" not in attrs)
    style = next(text for tag, _, text in parts.texts if tag == "style")
    assert policy is not None
    for text in (script, style):
        assert f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" in policy
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy


def test_nothing_is_loaded_from_anywhere():
    parts = Parts(write(item()))

    assert not [attrs for _, attrs in parts.tags if {"src", "href", "style", "onclick"} & attrs.keys()]
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest|innerHTML", "".join(text for *_, text in parts.texts))


def test_hostile_text_ends_no_element_and_comes_back_whole():
    parts = Parts(write(item(HOSTILE), title=HOSTILE, facts=((HOSTILE, HOSTILE),)))

    index = parts.json("index")
    assert index["items"][0]["key"] == HOSTILE
    assert index["facts"] == [[HOSTILE, HOSTILE]]
    assert "img" not in [tag for tag, _ in parts.tags]
    assert len([tag for tag, attrs in parts.tags if tag == "script" and "type" not in attrs]) == 1


@pytest.mark.parametrize(("top", "bits"), [(3, 8), (254, 8), (255, 16), (40_000, 16)])
def test_packed_labels_unpack_to_the_same_ids(top, bits):
    labels = np.random.default_rng(0).integers(-1, top + 1, (7, 5))
    labels[0, 0] = top

    packed_bits, data = pack_labels(labels)

    assert packed_bits == bits
    rows = np.frombuffer(zlib.decompress(data), "<u1" if bits == 8 else "<u2").reshape(7, 5)
    ids = np.cumsum(rows, axis=0, dtype=rows.dtype)
    assert np.array_equal(np.where(ids == (1 << bits) - 1, IGNORE, ids.astype(int)), labels)


def test_pictures_are_scaled_down_and_their_labels_with_them():
    parts = Parts(write(item(image=photo(600, 1200), maps=(quadrants(300, 600),))))

    block = parts.json("item-0")
    picture = Image.open(io.BytesIO(base64.b64decode(block["image"])))
    assert picture.size == (512, 256)
    assert (block["maps"][0]["width"], block["maps"][0]["height"]) == picture.size
    assert block["maps"][0]["area"] == 300 * 600  # shares are of the map the areas were counted on


def test_items_are_written_as_they_come():
    out = io.BytesIO()
    sizes = []

    def items() -> Iterator[GalleryItem]:
        for key in "abc":
            sizes.append(out.tell())
            yield item(key)

    write_gallery(out, items(), GalleryPage(title="t"))

    assert sizes[0] < sizes[1] < sizes[2]


def test_a_failure_needs_neither_photo_nor_labels():
    parts = Parts(write(item(status="undecodable", error="cut short", image=None, size=None, maps=())))

    assert parts.json("item-0") == {"image": None, "maps": []}
    assert parts.json("index")["items"][0]["error"] == "cut short"
