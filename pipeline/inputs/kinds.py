"""Kinds of files by their names: shards, images, files that are no samples, images that show labels.

A name is that of a file, or an extension as in WebDataset: all after the first dot, so that it may contain dots.
Reader 1 (see `records.READER`) knows IMAGE_EXTENSIONS alone.
"""

import re
import tomllib
from importlib.resources import files

from pipeline.records import READER

HEAD = 512  # bytes by which a file's kind is recognised
LIST_SUFFIXES = (".txt", ".list")
PARQUET_SUFFIX = ".parquet"
SHARD_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.zst", ".tzst")

_KNOWN = tomllib.loads((files("pipeline.inputs") / "data" / "kinds.toml").read_text("utf-8"))
IMAGE_EXTENSIONS = tuple(_KNOWN["images"])
OPENED = (*IMAGE_EXTENSIONS, *_KNOWN["more_images"])
RAW = frozenset(_KNOWN["raw"])
UNOPENED = RAW.union(_KNOWN["photos"], _KNOWN["others"])
_PHOTOS = RAW.union(_KNOWN["lossy"], _KNOWN["photos"]) - {"raw"}  # `raw` is not only used for photos
_SIZES = re.compile(r"[_:!-](?:large|orig|original|medium|small)$")  # `jpg_large`: how some sites' downloads are named
_SYSTEM = frozenset(_KNOWN["system"])
_SHOWS_LABELS, _SMALLER = (re.compile("|".join(_KNOWN[each])) for each in ("shows_labels", "smaller"))
_RESULTS = (".labels.png", ".overlay.png", ".label_map.png")  # of `segment`, of `--also webdataset` and of exports


def suffix(name: str) -> str:
    """The suffix of a shard's name that tells its kind; empty where it has none."""
    ends = (end for end in (*SHARD_SUFFIXES, PARQUET_SUFFIX) if name.lower().endswith(end))
    return max(ends, key=len, default="")


def looks_like(head: bytes) -> tuple[str, tuple[str, ...]] | None:
    """The kind of a file by its first HEAD bytes, and the suffixes of that kind; None for unknown kinds."""
    found = (each for each in _KNOWN["contents"] if head[each["at"] :].startswith(each["bytes"].encode("latin-1")))
    return next(((each["is"], tuple(each["ends"])) for each in found), None)


def last(extension: str) -> str:
    """The last extension in lower case, without the size that some sites add to it."""
    return _SIZES.sub("", extension.rpartition(".")[2].lower())


def is_opened(extension: str, reader: int = READER) -> bool:
    """Whether images of an extension are decoded."""
    return last(extension) in OPENED if reader > 1 else extension.rpartition(".")[2] in IMAGE_EXTENSIONS


def is_image(extension: str, reader: int = READER) -> bool:
    """Whether a file of an extension is an image, decodable or not."""
    return is_opened(extension, reader) or (reader > 1 and last(extension) in UNOPENED)


def is_photo(extension: str) -> bool:
    """Whether an image is a photo rather than ids or distances, by its format."""
    return last(extension) in _PHOTOS


def is_system(path: str) -> bool:
    """Whether a file belongs to a system or a program: hidden, or in a hidden folder."""
    return any(
        part.lower() in _SYSTEM or (part.startswith(".") and part not in (".", "..")) for part in path.split("/")
    )


def is_system_file(path: str) -> bool:
    """Whether a file belongs to a system; its folders count only if their names are known system names."""
    *folders, name = path.split("/")
    return is_system(name) or any(folder.lower() in _SYSTEM for folder in folders)


def is_result(name: str) -> bool:
    """Whether a file is named like a label map or an overlay of this project."""
    return name.lower().endswith(_RESULTS)


def shows_labels(text: str) -> bool:
    """Whether a word of a text names a mask, a depth map or another map of a photo."""
    return _has_word(text, _SHOWS_LABELS)


def is_smaller(text: str) -> bool:
    """Whether a word of a text names a smaller version of a photo."""
    return _has_word(text, _SMALLER)


def _has_word(text: str, pattern: re.Pattern[str]) -> bool:
    return any(map(pattern.fullmatch, re.findall(r"[a-z]+", text.lower())))
