"""The hierarchy of an image's segments, from which every granularity is cut without a model.

No torch here: readers of finished labels cut trees too. Letters: L leaves, S segments of a cut. Node i < L is a leaf,
node L + m is what merge m made; the last one is the whole image.
"""

from dataclasses import dataclass

import numpy as np

from diffseg.annotations import Int

# What is known of a node beside its place, each as a share of WHOLE; see `hierarchy.features` and `hierarchy.borders`
WHOLE = 255
FEATURES = ("margin", "low_margin", "border_margin", "stability", "contrast", "compactness")
_FEATURES = [(name, "u1") for name in FEATURES]
LEAF = np.dtype(_FEATURES)  # 6 bytes a leaf
MERGE = np.dtype([("left", "<u2"), ("right", "<u2"), ("height", "<f4"), *_FEATURES])  # 14 bytes a merge


@dataclass(frozen=True, slots=True, eq=False)
class Tree:
    """Leaves, merged pair by pair until one node is left.

    leaves: LEAF [L]. merges: MERGE [L - 1], in order of height, which is symmetric KL in nats between the two nodes'
    maps, averaged over their cells.

    Raises ValueError where merges are no tree of the leaves or heights fall.
    """

    leaves: np.ndarray
    merges: np.ndarray

    def __post_init__(self) -> None:
        count, heights = len(self.leaves), self.merges["height"]
        joined = np.concatenate([self.merges["left"], self.merges["right"]]).astype(np.int64)
        made = np.tile(np.arange(count, count + len(self.merges)), 2)
        if len(self.merges) != max(0, count - 1) or (joined >= made).any() or len(set(joined.tolist())) < len(joined):
            raise ValueError(f"{len(self.merges)} merges are no tree of {count} leaves")
        if not np.isfinite(heights).all() or (np.diff(heights) < 0).any():
            raise ValueError("heights of merges must be numbers that never fall")

    def at_height(self, height: float) -> Int[np.ndarray, " L"]:
        """The segment of each leaf where merges up to a height are made; ids 0..S-1 in order of their first leaf."""
        return self._after(int(np.searchsorted(self.merges["height"], np.float32(height), side="right")))

    def into(self, count: int) -> Int[np.ndarray, " L"]:
        """The segment of each leaf in a cut of `count` segments, or of all leaves where there are fewer.

        Raises ValueError for a count below 1.
        """
        if count < 1:
            raise ValueError(f"an image has at least one segment, got {count}")
        return self._after(max(0, len(self.leaves) - count))

    def nodes_of(self, of_leaf: Int[np.ndarray, " L"]) -> Int[np.ndarray, " S"]:
        """The node of each segment of any cut, given the segment of each leaf."""
        segments = of_leaf.tolist()  # of nodes; None where a node is more than one
        for left, right in zip(self.merges["left"].tolist(), self.merges["right"].tolist(), strict=True):
            segments.append(segments[left] if segments[left] == segments[right] else None)
        largest = {segment: node for node, segment in enumerate(segments)}
        return np.array([largest[segment] for segment in range(int(of_leaf.max()) + 1)])

    def features(self) -> np.ndarray:
        """LEAF [n]: what is known of all nodes."""
        merged = np.empty(len(self.merges), LEAF)
        for name in FEATURES:
            merged[name] = self.merges[name]
        return np.concatenate([self.leaves, merged])

    def _after(self, made: int) -> Int[np.ndarray, " L"]:
        _, first, root = np.unique(self._roots(made), return_index=True, return_inverse=True)
        return first.argsort().argsort()[root].astype(np.int32)

    def _roots(self, made: int) -> Int[np.ndarray, " L"]:
        """The node that holds each leaf after `made` merges."""
        count = len(self.leaves)
        above = np.arange(count + made)
        for m in range(made - 1, -1, -1):
            for side in ("left", "right"):
                above[self.merges[side][m]] = above[count + m]
        return above[:count]
