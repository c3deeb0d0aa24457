"""Small gallery items whose segments are known: four quarters of a grey photo."""

import io

import numpy as np

from diffseg.types import Segment
from pipeline.gallery.html_page import GalleryItem, GalleryMap, GalleryPage, write_gallery

HOSTILE = '<img src=x onerror="document.title=1"></script><script>document.title=2</script>'


def quadrants(height: int = 60, width: int = 80) -> GalleryMap:
    """Four segments, ids 0..3 from left to right and top to bottom."""
    rows, columns = np.arange(height) * 2 // height, np.arange(width) * 2 // width
    label_map = (rows[:, None] * 2 + columns[None, :]).astype(np.int32)
    area = height * width // 4
    return GalleryMap(label_map, tuple(Segment(i, area, (0, 0, 1, 1), 0.5 + i / 10) for i in range(4)), 0.5)


def item(key: str = "a", quality: float | None = 0.5, segments: int = 4, **more) -> GalleryItem:
    base = quadrants()
    one = GalleryMap(np.minimum(base.label_map, segments - 1), base.segments[:segments], quality)
    given = {"shard": "file:///s.tar", "index": 0, "status": "ok", "image": photo(), "size": (80, 60), "maps": (one,)}
    return GalleryItem(key=key, **{**given, **more})


def photo(height: int = 60, width: int = 80) -> np.ndarray:
    return np.full((height, width, 3), 120, np.uint8)


def write(*items: GalleryItem, **page) -> str:
    out = io.BytesIO()
    write_gallery(out, items, GalleryPage(**{"title": "A run", **page}))
    return out.getvalue().decode()
