"""Images that people should look at: of low scores, and different from each other.

Letters: I images, D numbers of a vector.
"""

from collections import defaultdict

import numpy as np

from diffseg.types import Float
from pipeline.categories.segments import described
from pipeline.derived.corrections import CORRECTED
from pipeline.errors import ConfigError
from pipeline.gallery.exemplars import Identity, Top
from pipeline.gallery.statistics import some_windows
from pipeline.records import OK
from pipeline.run.layout import WindowObject
from pipeline.run.ledger import Ledger
from pipeline.storage.names import unit_hash

CANDIDATES = 16  # times the images wanted: those of the lowest scores, whose vectors are compared
TIE = 1e-9  # of doubts that are equal, the seed decides


def select(ledger: Ledger, count: int, seed: int) -> tuple[list[Identity], bool]:
    """At most `count` images that nobody corrected, first those to look at first; and whether vectors had a part.

    An image's doubt is one less its quality, 1 where it is one segment. Each next one has the highest product of doubt
    and distance to all that were chosen: one less the cosine of mean vectors, as in greedy k-center (Gonzalez, 1985).
    Rows are streamed, of at most a thousand windows drawn by seed. Raises ConfigError where no image is labelled.
    """
    windows, _ = some_windows(ledger, seed)
    top = Top[tuple[float, Identity]](CANDIDATES * count)
    for row in ledger.rows(["shard", "index", "status", "segments", "quality"], windows=windows):
        if row["status"] == OK and CORRECTED not in row:
            doubt, identity = 1 - (row["quality"] or 0.0), (row["shard"], row["index"])
            top.add(doubt + TIE * unit_hash(f"{seed} {identity}"), (doubt, identity))
    if not (candidates := top.values()):
        raise ConfigError(f"{ledger}: no labelled image that nobody has corrected yet")
    doubts, by_vectors = np.array([doubt for doubt, _ in candidates]), bool(ledger.run.segment.vectors)
    vectors = _vectors(ledger, windows, [each for _, each in candidates]) if by_vectors else np.zeros((len(doubts), 1))
    gains, chosen = doubts.copy(), list[Identity]()
    for _ in range(min(count, len(doubts))):
        best = int(gains.argmax())
        chosen.append(candidates[best][1])
        gains = np.minimum(gains, doubts * (1 - vectors @ vectors[best]))
        gains[best] = -np.inf
    return chosen, by_vectors


def _vectors(ledger: Ledger, windows: list[WindowObject], images: list[Identity]) -> Float[np.ndarray, "I D"]:
    """The mean vector of each image, over its pixels, at length 1."""
    indices, found = defaultdict[tuple[str, int], list[int]](list), dict[Identity, np.ndarray]()
    for shard, index in images:
        indices[shard, index // ledger.run.window].append(index)
    for window in windows:
        if own := indices.get((window.shard, window.window)):
            for index, _, features in described(ledger, window, only=own):
                mean = np.exp(features[:, -1]) @ features[:, :-1]
                found[window.shard, index] = mean / max(np.linalg.norm(mean), TIE)
    return np.stack([found[each] for each in images])
