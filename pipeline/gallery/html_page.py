"""HTML page: label maps over their photos in one file, offline, in any browser.

Input: any number of items, whose pictures are not kept in memory. Output: a stream. The page's parts lie in `assets/`.
Nothing in it is loaded from elsewhere: its content security policy names the hashes of its own script and style and
refuses the rest. This module knows no run and no storage.
"""

import base64
import hashlib
import html
import json
import zlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib.resources import files
from string import Template
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from diffseg.draw import encoded, palette, resize_labels
from diffseg.types import IGNORE, Integer, Segment, UInt8
from pipeline.gallery.statistics import Histogram
from pipeline.logs.text import shown

PICTURE_SIDE = 512  # pixels, the longer side: 2,000 samples stay near 100 MB
JPEG_QUALITY = 80

QUALITY = (
    "quality",
    "how clearly the model's own attention tells the segments apart, from 0 to 1; it is no accuracy, and an image of "
    "one segment has none",
)
_SCRIPTS = ("paint.js", "statistics.js", "sample.js", "gallery.js")
_HEAD = 'const $ = (id) => document.getElementById(id);\nconst index = JSON.parse($("index").textContent);\n'


@dataclass(frozen=True, slots=True)
class GalleryMap:
    """One label map of a photo. label_map: at any size, of the photo's aspect. caption: its name among others."""

    label_map: Integer[np.ndarray, "H W"]
    segments: tuple[Segment, ...]
    quality: float | None
    caption: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class GalleryItem:
    """A sample to show.

    maps: label maps of the photo, shown side by side in their order with their captions; a pilot gives one a
    threshold. Sorting and filtering use the first. Empty: a sample without labels.
    """

    key: str
    shard: str
    index: int
    status: str
    error: str | None = None
    size: tuple[int, int] | None = None  # of the source, width and height
    image: UInt8[np.ndarray, "H W 3"] | None = None
    maps: tuple[GalleryMap, ...] = ()
    random: bool = False  # drawn at random from the run: what the page "random" shows
    exemplar: tuple[str, ...] = ()  # categories that it is shown first of


@dataclass(frozen=True, slots=True, kw_only=True)
class GalleryPage:
    """Text and figures of the page. statuses and histograms: of the whole run, which may be larger.

    level: an item's maps are shown one at a time, chosen by a slider that begins with this one; None: all of them.
    measure: what stands in `quality`: its name and what it means.
    """

    title: str
    facts: tuple[tuple[str, str], ...] = ()
    statuses: tuple[tuple[str, int], ...] = ()
    histograms: tuple[Histogram, ...] = ()
    level: int | None = None
    measure: tuple[str, str] = QUALITY


def write_gallery(out: BinaryIO, items: Iterable[GalleryItem], page: GalleryPage) -> int:
    """Write the page; returns the number of its items."""
    shell = _part("gallery.html")
    before, _, after = shell.partition("$items\n")
    style = _part("gallery.css")
    script = "(() => {\n'use strict';\n" + _HEAD + "\n".join(map(_part, _SCRIPTS)) + "})();\n"
    policy = (
        f"default-src 'none'; img-src data: blob:; script-src '{_hash(script)}'; style-src '{_hash(style)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    title = html.escape(shown(page.title))
    out.write(Template(before).substitute(title=title, policy=policy, style=style).encode())
    index = []
    for number, item in enumerate(items):
        picture = picture_of(item.image) if item.image is not None else None
        out.write(
            f'<script id="item-{number}" type="application/json">{_json(_block(item, picture))}</script>\n'.encode()
        )
        index.append(_entry(item))
    told = {
        "palette": palette().tolist(),
        "facts": [[shown(cell) for cell in fact] for fact in page.facts],
        "histograms": [asdict(histogram) for histogram in page.histograms],
        **{name: getattr(page, name) for name in ("statuses", "level", "measure")},
        "items": index,
    }
    out.write(Template(after).substitute(index=_json(told), script=script).encode())
    return len(index)


def _part(name: str) -> str:
    return (files("pipeline.gallery") / "assets" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """The name of an inline script or style in a content security policy."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _json(value: Any) -> str:
    """JSON that cannot end the script element it stands in, whatever strings it holds."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _entry(item: GalleryItem) -> dict[str, Any]:
    """The data for sorting and filtering: small, because all of it is read when the page opens."""
    return {
        "key": shown(item.key),
        "error": item.error and shown(item.error),
        **{name: getattr(item, name) for name in ("shard", "index", "status", "size", "random", "exemplar")},
        "categories": sorted({one.category for map_ in item.maps[:1] for one in map_.segments if one.category}),
        "maps": [{"caption": map_.caption, "quality": map_.quality, "count": len(map_.segments)} for map_ in item.maps],
    }


def _block(item: GalleryItem, picture: Image.Image | None) -> dict[str, Any]:
    """The data for drawing: read only when the item comes near the screen."""
    if picture is None:
        return {"image": None, "maps": [_map(map_, None) for map_ in item.maps]}
    jpeg = base64.b64encode(encoded(picture, "JPEG", quality=JPEG_QUALITY, optimize=True)).decode()
    return {"image": jpeg, "maps": [_map(map_, picture.size[::-1]) for map_ in item.maps]}


def picture_of(image: UInt8[np.ndarray, "H W 3"]) -> Image.Image:
    """A photo as small as pages show it."""
    picture = Image.fromarray(image)
    picture.thumbnail((PICTURE_SIDE, PICTURE_SIDE), Image.Resampling.LANCZOS)
    return picture


def _map(map_: GalleryMap, size: tuple[int, int] | None) -> dict[str, Any]:
    labels = map_.label_map if size is None else resize_labels(map_.label_map, size)
    bits, data = pack_labels(labels)
    return {
        "bits": bits,
        "width": labels.shape[1],
        "height": labels.shape[0],
        "area": map_.label_map.size,
        "data": base64.b64encode(data).decode(),
        "segments": [
            {"id": segment.id, "area": segment.area, "score": round(segment.score, 4), "category": segment.category}
            for segment in map_.segments
        ],
    }


def pack_labels(labels: Integer[np.ndarray, "H W"]) -> tuple[int, bytes]:
    """Ids for the browser: (bits an id, deflated differences of each row to the one above, little endian).

    No PNG: browsers that guard against fingerprinting add noise to pixels a script reads back from a canvas.
    IGNORE becomes the largest value of its width.
    """
    bits = 8 if labels.max(initial=0) < 255 else 16
    ids = np.where(labels == IGNORE, (1 << bits) - 1, labels).astype("<u1" if bits == 8 else "<u2")
    ids[1:] -= ids[:-1].copy()
    return bits, zlib.compress(ids.tobytes(), 6)
