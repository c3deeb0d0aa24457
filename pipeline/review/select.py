"""Images that people should look at: of low scores, and different from each other."""

from collections import defaultdict

import numpy as np

from pipeline.categories.segments import described
from pipeline.derived.corrections import CORRECTED
from pipeline.errors import ConfigError
from pipeline.gallery.exemplars import Identity, Top
from pipeline.gallery.statistics import some_windows
from pipeline.records import OK
from pipeline.run.ledger import Ledger
from pipeline.storage.names import unit_hash

CANDIDATES = 16  # times the images wanted: those of the lowest scores, whose vectors are compared
TIE = 1e-9  # of doubts that are equal, the seed decides


def select(ledger: Ledger, count: int, seed: int) -> list[Identity]:
    """At most `count` images that nobody corrected, first those to look at first.

    An image's doubt is one less its quality, 1 where it is one segment. Each next one has the highest product of doubt
    and distance to all before: one less the cosine of mean vectors, as in greedy k-center (Gonzalez, 1985); of a run
    without vectors doubt alone decides. At most a thousand windows, drawn by seed, are read.
    Raises ConfigError where no such image is there.
    """
    windows, size, top = (
        some_windows(ledger, seed)[0],
        ledger.run.window,
        Top[tuple[float, Identity]](CANDIDATES * count),
    )
    doubt, vectors = dict[Identity, float](), dict[Identity, np.ndarray]()
    for row in ledger.rows(["shard", "index", "status", "segments", "quality"], windows=windows):
        if row["status"] == OK and CORRECTED not in row:
            identity = row["shard"], row["index"]
            rank = 1 - (row["quality"] or 0) + TIE * unit_hash(f"{seed} {identity}")
            top.add(rank, (rank, identity))
    indices = defaultdict[tuple[str, int], set[int]](set)
    for rank, (shard, index) in top.values():
        doubt[shard, index], vectors[shard, index] = rank, np.zeros(1)
        indices[shard, index // size].add(index)
    if not doubt:
        raise ConfigError(f"{ledger}: no labelled image that nobody has corrected yet")
    for window in windows if ledger.run.segment.vectors else ():
        own = indices.get((window.shard, window.window), set())
        for index, _, features in described(ledger, window, own.__contains__) if own else ():
            mean = np.exp(features[:, -1]) @ features[:, :-1]
            vectors[window.shard, index] = mean / max(np.linalg.norm(mean), TIE)
    ranks, stacked, chosen = np.array([*doubt.values()]), np.stack([*vectors.values()]), list[int]()
    gains = ranks.copy()
    while len(chosen) < min(count, len(ranks)):
        chosen.append(int(gains.argmax()))
        gains = np.minimum(gains, ranks * (1 - stacked @ stacked[chosen[-1]]))
        gains[chosen] = -np.inf
    return [list(doubt)[at] for at in chosen]
