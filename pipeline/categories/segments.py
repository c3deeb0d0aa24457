"""Segments of a run with their features: what categories are told apart by.

Letters: S segments, F features: the numbers of a vector at length 1, then the logarithm of the share of the image.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

from diffseg.cut import segment_vectors
from diffseg.types import Float, Int32
from pipeline.concurrency import ParallelMap
from pipeline.errors import ConfigError
from pipeline.gallery.statistics import some_windows
from pipeline.records import OK
from pipeline.run.layout import WindowObject
from pipeline.run.ledger import Ledger
from pipeline.storage.names import unit_hash
from pipeline.table.label_map import decode_label_map
from pipeline.table.leaf_map import decode_leaf_map
from pipeline.table.trees import decode_vectors

OVERDRAWN = 2  # times the segments wanted that images are drawn for: at a coarser cut they have fewer
NEEDED = ("leaf_map", "tree", "vectors")
Described = tuple[int, list[int], Float[np.ndarray, "S F"]]  # an image: its index, the ids of segments, their features


def features_of(row: Mapping[str, Any], label_map: Int32[np.ndarray, "H W"]) -> Float[np.ndarray, "S F"]:
    """The features of a label map's segments. row: of NEEDED columns. Raises ValueError or OSError for damaged ones."""
    vectors = segment_vectors(decode_leaf_map(row["leaf_map"]), decode_vectors(row["vectors"]), label_map)
    areas = np.bincount(label_map.ravel() + 1)[1:]
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = vectors / np.where(lengths > 0, lengths, 1)
    return np.hstack([unit, np.log(areas / areas.sum())[:, None]]).astype(np.float32)


def described(
    ledger: Ledger, window: WindowObject, wanted: Callable[[int], bool] | None = None, of: Any = features_of
) -> Iterator[Described]:
    """The labelled images of a window at the ledger's cut. wanted: only those of such indices. Raises ConfigError."""
    columns = ["index", "status", "segments", "label_map", *NEEDED, "words"]
    for row in ledger.rows(columns, windows=[window], uncut=True):
        if row["status"] != OK or (wanted and not wanted(row["index"])):
            continue
        made = ledger.at_cut(row)
        try:
            features = of(row, decode_label_map(made["label_map"]))
        except (IndexError, TypeError, ValueError, OSError, SyntaxError) as error:  # the last two are Pillow's
            what = f"{ledger}/{window.name}: sample {row['index']}"
            raise ConfigError(f"{what} has no {'vectors' if of is features_of else 'words'}: {error}") from error
        yield row["index"], [each["id"] for each in made["segments"]], features


def sample(ledger: Ledger, size: int, seed: int, parallel_map: ParallelMap) -> Float[np.ndarray, "S F"]:
    """At most `size` segments, drawn by hash: the same wherever and in however many processes they are read."""
    windows, _ = some_windows(ledger, seed)
    counts = (row["num_segments"] or 0 for row in ledger.rows(["num_segments"], windows=windows, stored=True))
    share = min(1.0, OVERDRAWN * size / max(1, sum(counts)))
    drawn = [each for found in parallel_map(partial(_drawn, ledger, seed, share), windows) for each in found]
    hashes = [each for found, _ in drawn for each in found]
    features = np.concatenate([each for _, each in drawn] or [np.empty((0, 1), np.float32)])
    return np.asarray(features[np.argsort(hashes, kind="stable")[:size]])


def _drawn(ledger: Ledger, seed: int, share: float, window: WindowObject) -> list[tuple[list[float], np.ndarray]]:
    return [
        ([unit_hash(f"{seed} {window.shard} {index} {id_}") for id_ in ids], features)
        for index, ids, features in described(
            ledger, window, lambda at: unit_hash(f"{seed} {window.shard} {at}") < share
        )
    ]
