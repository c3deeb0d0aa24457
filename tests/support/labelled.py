"""Runs with labels made by hand, for tests of what is made from finished labels."""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
from PIL import Image

from diffseg.config import ResolvedConfig
from diffseg.cut import Cut, segmentation
from diffseg.ridges import ridges_of
from diffseg.types import IGNORE, Segment
from pipeline.inputs.kinds import is_image, shows_labels
from pipeline.inputs.shards import pin
from pipeline.inputs.tar.writing import write_samples
from pipeline.messages import ShardTask
from pipeline.records import OK, LabelRecord, Shard
from pipeline.run.ledger import Ledger
from pipeline.run.spec import Run
from pipeline.table.label_map import encode_label_map
from pipeline.worker.labeling import with_labels
from tests.support.trees import a_tree, a_vector_each

SIZE = (18, 24)  # height and width of photos; label maps have half of it
WINDOW = 4
CUT = Cut(height=0.4)
SEGMENT = ResolvedConfig(thresholds=(1.1,), timestep=50, image_size=512, dtype="float32")


def photo(number: int) -> bytes:
    """A PNG whose shade tells `number`."""
    buffer = io.BytesIO()
    Image.new("RGB", SIZE[::-1], (number % 256, number // 256, 7)).save(buffer, "PNG")
    return buffer.getvalue()


def label_map(number: int, segments: int = 5) -> np.ndarray:
    """Ids 0..segments-1 at random, in several components each, with ignored pixels; half of SIZE."""
    random = np.random.default_rng(number)
    labels = random.integers(0, segments, (3, 4)).repeat(3, 0).repeat(3, 1).astype(np.int32)
    labels[0, :segments] = np.arange(segments)
    labels[-1, :2] = IGNORE
    return labels


def record(key: str, shard: str, index: int, labels: np.ndarray) -> LabelRecord:
    """The row of a photo with these labels; a segment's score falls with its id."""
    segments = []
    for number in range(int(labels.max()) + 1):
        rows, columns = np.nonzero(labels == number)
        box = (int(columns.min()), int(rows.min()), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1)
        segments.append(Segment(number, len(rows), box, max(0.0, 1 - number / 8)))
    png = encode_label_map(labels)
    height, width = np.maximum(SIZE, labels.shape).tolist()
    return LabelRecord(key, shard, index, OK, None, width, height, png, tuple(segments), min(1.0, index / 10), "0" * 64)


def own_photo_but_one(key: str, shard: str, index: int, number: int) -> LabelRecord:
    """The row of a photo that is as it was when it was labelled; photo 2 is not."""
    sha = "1" * 64 if number == 2 else sha256(photo(number)).hexdigest()
    return replace(record(key, shard, index, label_map(number)), image_sha256=sha)


def make_run(
    folder: Path,
    keys: Sequence[Sequence[str]] = (tuple("abcdef"), tuple("ghi")),
    *,
    failed: Mapping[tuple[int, int], str] | None = None,
    labels: Callable[[int], np.ndarray] = label_map,
    leave_out: tuple[int, ...] = (),
    beside: Mapping[str, bytes] | None = None,
    model: str = "fake",
    licence: str | None = None,
    trees: Cut | None = None,
    rows: Callable[[str, str, int, int], LabelRecord] | None = None,
) -> Ledger:
    """A run of one shard for each list of keys, in windows of four.

    failed: statuses of rows without labels, by (shard, index). leave_out: windows of the last shard.
    beside: members of every sample, in place of the numbered photo.
    trees: rows are those of `tree_record` at this cut, or of `rows`, given key, shard, index and number of a sample.
    """
    for number, names in enumerate(keys):
        target = folder / "in" / f"s-{number}.tar"
        target.parent.mkdir(parents=True, exist_ok=True)
        samples = [(key, beside or {"png": photo(100 * number + i)}) for i, key in enumerate(names)]
        target.write_bytes(write_samples(samples))
    photos = (name for name in beside or {} if is_image(name) and not shows_labels(name.rpartition(".")[0]))
    given = (beside or {}).get(next(photos, ""), b"")
    shards = pin([str(folder / "in" / "s-*.tar")])
    segment = replace(SEGMENT, tree=True, vectors=True, ridges=True, cut=CUT.height) if trees else SEGMENT
    made = Run.of(segment, "0", model=model, licence=licence, revision=None, window=WINDOW)
    ledger = Ledger.start(str(folder / "run"), made, shards)
    for number, (shard, names) in enumerate(zip(shards, keys, strict=True)):
        _commit(
            ledger,
            shard,
            number,
            names,
            failed or {},
            labels,
            leave_out if shard is shards[-1] else (),
            trees,
            rows,
            given,
        )
    return Ledger.open(str(folder / "run"))


def tree_record(key: str, shard: str, index: int, number: int, cut: Cut) -> LabelRecord:
    """The row of a photo with `a_tree`."""
    leaf_map, tree = a_tree(number, label_map(0).shape)
    found = segmentation(leaf_map, tree, cut.of(tree))
    vectors = a_vector_each(number, len(tree.leaves))
    edges = (10 ** np.random.default_rng(number).uniform(-2, 1, size) for size in ((6, 7), (5, 8)))
    row = LabelRecord(key, shard, index, OK, None, SIZE[1], SIZE[0], image_sha256="0" * 64)
    return with_labels(
        row, replace(found, leaf_map=leaf_map, tree=tree, vectors=vectors, ridges=ridges_of(leaf_map, *edges))
    )


def _commit(
    ledger: Ledger,
    shard: Shard,
    number: int,
    keys: Sequence[str],
    failed: Mapping[tuple[int, int], str],
    labels: Callable[[int], np.ndarray],
    leave_out: tuple[int, ...],
    trees: Cut | None = None,
    made: Callable[[str, str, int, int], LabelRecord] | None = None,
    given: bytes = b"",
) -> None:
    rows = [
        LabelRecord(key, shard.id, index, failed[number, index], "for a reason")
        if (number, index) in failed
        else made(key, shard.id, index, 100 * number + index)
        if made
        else tree_record(key, shard.id, index, 100 * number + index, trees)
        if trees
        else record(key, shard.id, index, labels(100 * number + index))
        for index, key in enumerate(keys)
    ]
    rows = [
        replace(row, image_sha256=sha256(given or photo(100 * number + row.index)).hexdigest())
        if row.image_sha256 == "0" * 64
        else row
        for row in rows
    ]
    windows = -(-len(rows) // WINDOW)
    for window in set(range(windows)) - set(leave_out):
        ledger.writer.commit(ShardTask(shard), window, rows[window * WINDOW : (window + 1) * WINDOW], 0, 0.0)
    ledger.writer.commit_end(shard, windows, len(rows), ())


def at_source(labels: np.ndarray) -> np.ndarray:
    """A label map of half the size as exports must show it."""
    return labels.repeat(2, 0).repeat(2, 1)
