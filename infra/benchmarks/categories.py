"""Categories of scenes whose materials and objects no model here was trained on, and what millions of segments cost.

    python infra/benchmarks/categories.py scenes FOLDER [--count 500]
    diffseg label FOLDER/scenes.tar --output RUN --model tiny --vectors
    python infra/benchmarks/categories.py quality FOLDER RUN [--cut 0.3]
    python infra/benchmarks/categories.py vectors --model tiny [--count 240]
    python infra/benchmarks/categories.py words --model tiny [--count 20]
    python infra/benchmarks/categories.py scale FOLDER --segments 1000000 [--without-faiss]

`scenes` writes pictures in one shard, truth of all in FOLDER/truth, of ten more scenes in FOLDER/labelled (they lie in
the shard too), and names. `quality` says what `--clusters 16`, matched to the 16 categories once for the data set, and
`--truth` of ten images are worth beside k-means of the mean colours of the same segments, random categories (chance)
and the best category for each segment. `vectors` says what both are worth with vectors of fewer numbers, as float and
as int8, on the same segments at the run's cut. `scale` writes a run of as many segments with random vectors about 64
centres, sixteen an image, and says what seconds and memory `--clusters` takes. `words` says what `label --words` costs.
"""

import argparse
import io
import resource
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import perf_counter, process_time

import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from scipy.optimize import linear_sum_assignment
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parent / "masks"))

from unseen import MATERIALS, OBJECTS, SEED, Draw, _painted

from diffseg import segmenter
from diffseg.config import ResolvedConfig, SegmentConfig
from diffseg.cut import Cut, segmentation
from diffseg.evaluation.bootstrap import pooled_intervals
from diffseg.evaluation.matching import Counts
from diffseg.labels.rle import RunLengths, Segments
from diffseg.labels.score import sum_along_runs
from diffseg.tree import LEAF, MERGE, Tree
from diffseg.types import IGNORE, Vectors
from jobs.shared import cli
from pipeline.categories import learning
from pipeline.derived.joined import open_run
from pipeline.inputs.shards import pin
from pipeline.inputs.tar.writing import write_samples
from pipeline.messages import ShardTask
from pipeline.records import OK, LabelRecord
from pipeline.run.ledger import Ledger
from pipeline.run.spec import Run
from pipeline.table.label_map import decode_label_map
from pipeline.worker.labeling import with_labels

SIZE = (240, 320)
ACROSS = (32, 90)  # pixels of an object
LABELLED = 10  # scenes whose truth `--truth` gets
NAMES = [f"{make.__name__}\t{kind}" for many, kind in ((MATERIALS, "stuff"), (OBJECTS, "thing")) for make in many]
COUNT = len(NAMES)


def scene(number: int) -> tuple[np.ndarray, np.ndarray]:
    """A picture and its categories: two to four grounds of a material each, five objects of one colour on them."""
    draw: Draw = np.random.default_rng([SEED, 18, number])
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    seeds = draw.random((int(draw.integers(2, 5)), 2)) * SIZE
    ground = np.argmin([np.abs(y - a) + np.abs(x - b) for a, b in seeds], 0)
    image, truth = np.zeros((*SIZE, 3)), np.zeros(SIZE, np.uint8)
    for at, material in enumerate(draw.permutation(len(MATERIALS))[: len(seeds)]):
        image[ground == at] = _painted(SIZE, draw, material)[ground == at]
        truth[ground == at] = material
    for _ in range(5):
        kind = int(draw.integers(len(OBJECTS)))
        shape = OBJECTS[kind](draw.uniform(*ACROSS), draw)
        top, left = (int(draw.integers(0, whole - part)) for whole, part in zip(SIZE, shape.shape, strict=True))
        place = slice(top, top + shape.shape[0]), slice(left, left + shape.shape[1])
        image[place][shape] = draw.random(3)
        truth[place][shape] = len(MATERIALS) + kind
    image = ndimage.gaussian_filter(image, (0.5, 0.5, 0)) + draw.normal(0, 0.01, image.shape)
    return (image.clip(0, 1) * 255).astype(np.uint8), truth


def write_scenes(folder: Path, count: int) -> None:
    """See the head of this file."""
    samples = []
    for number in range(count + LABELLED):
        image, truth = scene(number)
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        samples.append((f"{number:04d}", {"png": buffer.getvalue()}))
        target = folder / ("truth" if number < count else "labelled")
        target.mkdir(parents=True, exist_ok=True)
        Image.fromarray(truth).save(target / f"{number:04d}.png")
    (folder / "scenes.tar").write_bytes(write_samples(samples))
    (folder / "names.txt").write_text("\n".join(NAMES) + "\n")


def quality(folder: Path, run: str, at: list[str]) -> None:
    """See the head of this file."""
    truth = {path.stem: np.asarray(Image.open(path)) for path in sorted((folder / "truth").glob("*.png"))}
    assert cli.run(["categories", run, "--clusters", str(COUNT), "--name", "clusters", *at]) == 0
    few = ["--truth", str(folder / "labelled"), "--names", str(folder / "names.txt"), "--name", "named"]
    assert cli.run(["categories", run, *few, *at]) == 0
    named = Ledger.open(run).store.url, _cut_of(run, "named")
    pixels, said, colours = _tables(folder, run, _cut_of(run, "clusters"), "clusters", truth)
    draw = np.random.default_rng(0)
    flat = np.concatenate(colours)
    centres = learning.centroids_of(_unit(flat), COUNT, 0)
    _say("segments an image", np.mean([len(each) for each in pixels]))
    _matched("clusters of vectors", pixels, said)
    _matched("clusters of colours", pixels, [(_unit(each) @ centres.T).argmax(1) for each in colours])
    _matched("random categories", pixels, [draw.integers(0, COUNT, len(each)) for each in pixels])
    _figures("the best category for each segment", pixels, [each.argmax(1) for each in pixels])
    pixels, said, _ = _tables(folder, *named, "named", truth)
    _say("segments an image", np.mean([len(each) for each in pixels]))
    _figures("named from ten images", pixels, said)
    _figures("the best category for each segment", pixels, [each.argmax(1) for each in pixels])
    _say("share of segments that are unknown", np.mean(np.concatenate(said) < 0))


def _cut_of(run: str, table: str) -> Cut | None:
    from pipeline.derived.note import read_note

    cut = read_note(Ledger.open(run), table)[0].parameters["cut"]
    return Cut(**cut) if cut else None


def _unit(colours: np.ndarray) -> np.ndarray:
    """Colours about grey at length 1, as spherical k-means takes them, with their brightness as a fourth number."""
    found = np.hstack([colours - 0.5, np.full((len(colours), 1), 0.25)])
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def _tables(
    folder: Path, run: str, cut: Cut | None, table: str, truth: dict[str, np.ndarray]
) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """Of each image pixels of (segment, category), the category that a table says, and the mean colours."""
    ledger = open_run(run, cut, categories=table)
    with tarfile.open(folder / "scenes.tar") as tar:
        images = {Path(each.name).stem: tar.extractfile(each).read() for each in tar if each.isfile()}
    ids = {each.name: each.id - 1 for each in ledger.categories_table} | {None: -1}
    pixels, said, colours = [], [], []
    for row in ledger.rows(["key", "shard", "index", "segments", "label_map"]):
        if row["key"] not in truth:
            continue
        labels, image = decode_label_map(row["label_map"]), np.asarray(Image.open(io.BytesIO(images[row["key"]]))) / 255
        count, held = len(row["segments"]), labels != IGNORE
        pairs = labels[held] * COUNT + truth[row["key"]][held]
        pixels.append(np.bincount(pairs, minlength=count * COUNT).reshape(count, COUNT))
        said.append(np.array([ids[each["category"]] for each in row["segments"]]))
        colours.append(np.stack([ndimage.mean(image[..., c], labels, range(count)) for c in range(3)], axis=1))
    return pixels, said, colours


def _matched(name: str, pixels: list[np.ndarray], said: list[np.ndarray]) -> None:
    table = np.zeros((COUNT, COUNT))
    for counts, clusters in zip(pixels, said, strict=True):
        np.add.at(table, clusters[clusters >= 0], counts[clusters >= 0])
    clusters, categories = linear_sum_assignment(table, maximize=True)
    meaning = np.append(categories[clusters.argsort()], -1)  # the last one answers for -1
    _figures(name, pixels, [meaning[each] for each in said])


def _figures(name: str, pixels: list[np.ndarray], said: list[np.ndarray]) -> None:
    found = []
    for counts, categories in zip(pixels, said, strict=True):
        table = np.zeros((COUNT + 1, COUNT), np.int64)
        np.add.at(table, categories, counts)
        right = np.diagonal(table[:-1])
        found.append(Counts(right, table[:-1].sum(1) - right, table.sum(0) - right))
    accuracy, miou = pooled_intervals(found)
    cells = (f"{each.value:.3f} ({each.low:.3f} to {each.high:.3f})" for each in (miou, accuracy))
    sys.stdout.write(f"| {name} | {' | '.join(cells)} |\n")


def _say(name: str, value: float) -> None:
    sys.stdout.write(f"{name}: {value:.3g}\n")


def vectors(model: str, count: int) -> None:
    """See the head of this file."""
    means: list[np.ndarray] = []

    def recorded(features: Tensor, grid: tuple[int, int], rle: RunLengths, leaves: Segments) -> list[Vectors]:
        given = features.float().unflatten(1, grid)[:, None]
        of_run = sum_along_runs(given, torch.zeros_like(rle.label), rle, [(0, 0, *size) for size in rle.sizes])
        total = torch.zeros(len(leaves.area), of_run.shape[1], dtype=of_run.dtype).index_add_(0, leaves.of_run, of_run)
        means.append((total / leaves.area[:, None]).numpy())
        return [Vectors(np.empty((0, 64), np.int8), np.empty(0, np.float16))]

    segmenter.vectors_of = recorded
    labeller = segmenter.DiffSeg.from_pretrained(model, SegmentConfig(vectors=True))
    weights, pixels = [], []
    for number in range(count + LABELLED):
        image, truth = scene(number)
        [found] = labeller.segment([image])
        segments = len(found.segments)
        leaves = len(means[-1])
        of_leaf = np.bincount(found.label_map.ravel() * leaves + found.leaf_map.ravel(), minlength=segments * leaves)
        weights.append(of_leaf.reshape(segments, leaves))
        of_category = np.bincount(found.label_map.ravel() * COUNT + truth.ravel(), minlength=segments * COUNT)
        pixels.append(of_category.reshape(segments, COUNT))
    channels = means[0].shape[1]
    for size in sorted({each for each in (16, 32, 64, 128) if each < channels} | {channels}):
        basis = np.linalg.qr(np.random.default_rng(0).standard_normal((channels, size)))[0]
        for kind in ("float", "int8"):
            own = [
                _of_segments(weight, _stored(leaf @ basis, kind)) for weight, leaf in zip(weights, means, strict=True)
            ]
            shown, name = own[:count], f"{size} numbers, {kind}"
            centres = learning.centroids_of(np.concatenate(shown), COUNT, 0)
            _matched(f"clusters, {name}", pixels[:count], [(each @ centres.T).argmax(1) for each in shown])
            rows, biases = learning.linear(np.concatenate(own[count:]), np.concatenate(pixels[count:]), 1.0)
            _figures(f"named, {name}", pixels[:count], [(each @ rows.T + biases).argmax(1) for each in shown])
    draw = np.random.default_rng(0)
    _matched("random categories", pixels[:count], [draw.integers(0, COUNT, len(each)) for each in pixels[:count]])


def _stored(values: np.ndarray, kind: str) -> np.ndarray:
    """Values as rows keep them: int8 times a float16 for each leaf."""
    if kind == "float":
        return values
    scale = (np.abs(values).max(1, keepdims=True) / 127).astype(np.float16).astype(float)
    return (values / scale).round().clip(-127, 127) * scale


def _of_segments(weights: np.ndarray, leaves: np.ndarray) -> np.ndarray:
    found = weights @ leaves
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def write_run(folder: Path, segments: int) -> None:
    """A run of random vectors about 64 centres, sixteen leaves of which each is a segment an image."""
    images, window, side = segments // 16, 1024, 32
    leaf_map = np.arange(16).reshape(4, 4).repeat(side // 4, 0).repeat(side // 4, 1).astype(np.int32)
    merges = np.zeros(15, MERGE)
    merges["left"], merges["right"], merges["height"] = [0, *range(16, 30)], range(1, 16), 1.0
    tree = Tree(np.zeros(16, LEAF), merges)
    cut = Cut(height=0.5)
    made = segmentation(leaf_map, tree, cut.of(tree))
    (folder / "in").mkdir(parents=True)
    (folder / "in" / "s.tar").write_bytes(write_samples([("a", {"png": b""})]))
    [shard] = pin([str(folder / "in" / "s.tar")])
    config = ResolvedConfig(thresholds=(1.1,), timestep=50, image_size=512, dtype="float32")
    config = replace(config, tree=True, vectors=True, cut=cut.height)
    run = Run.of(config, "0", model="random", licence=None, revision=None, window=window)
    ledger = Ledger.start(str(folder / "run"), run, [shard])
    draw = np.random.default_rng(0)
    centres = draw.normal(0, 40, (64, 64))
    for number in range(-(-images // window)):
        rows = []
        for index in range(number * window, min((number + 1) * window, images)):
            values = (centres[draw.integers(0, 64, 16)] + draw.normal(0, 12, (16, 64))).clip(-127, 127)
            vectors = Vectors(values.astype(np.int8), np.ones(16, np.float16))
            row = LabelRecord(str(index), shard.id, index, OK, None, side, side, image_sha256="0" * 64)
            rows.append(with_labels(row, replace(made, leaf_map=leaf_map, tree=tree, vectors=vectors)))
        ledger.writer.commit(ShardTask(shard), number, rows, 0, 0.0)


def scale(folder: Path, segments: int, clusters: int, without_faiss: bool) -> None:
    """Fit and assign in a process of their own, whose memory is told."""
    if not folder.exists():
        began = perf_counter()
        write_run(folder, segments)
        _say("seconds to write the run", perf_counter() - began)
    script = [sys.executable, __file__, "fit", str(folder), "--segments", str(segments), "--clusters", str(clusters)]
    subprocess.run([*script, *["--without-faiss"] * without_faiss], check=True)


def fit(folder: Path, clusters: int, without_faiss: bool) -> None:
    """Time `--clusters`, step by step."""
    from pipeline.categories import categorise

    if without_faiss:
        find = learning.find_spec
        learning.find_spec = lambda name: None if name == "faiss" else find(name)
    _timed(categorise, "sample")
    _timed(learning, "centroids_of")
    _timed(categorise, "write")
    before = _peak()
    name = f"c{clusters}{'s' if without_faiss else 'f'}{Path('/proc/self').resolve().name}"
    assert cli.run(["categories", str(folder / "run"), "--clusters", str(clusters), "--name", name]) == 0
    _say("MB of memory before", before)
    _say("MB of memory at most", _peak())


def words(model: str, count: int) -> None:
    """Seconds of a core to load a model and to label a scene, without words and with them."""
    torch.set_num_threads(1)
    photos = [scene(number)[0] for number in range(count)]
    segmenter.DiffSeg.from_pretrained(model, device="cpu").segment(photos[:1])  # imports what is imported once
    for number in (0, 20, 500):
        began, lines = process_time(), tuple(f"word {each}" for each in range(number)) or None
        found = segmenter.DiffSeg.from_pretrained(model, SegmentConfig(words=lines), device="cpu")
        _say(f"seconds to load with {number} words", process_time() - began)
        found.segment(photos[:1])
        began = process_time()
        for photo in photos:
            found.segment([photo])
        _say(f"seconds an image with {number} words", (process_time() - began) / count)


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _timed(module: object, name: str) -> None:
    function: Callable = getattr(module, name)

    def timed(*arguments: object, **named: object) -> object:
        began = process_time()
        result = function(*arguments, **named)
        _say(f"seconds of a core in {name}", process_time() - began)
        if name == "centroids_of":
            near = [part @ result.T for part in np.array_split(arguments[0], 64)]
            _say("mean distance to the nearest centre", 1 - np.concatenate([each.max(1) for each in near]).mean())
        return result

    setattr(module, name, timed)


def main() -> None:
    """Do one step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("scenes", "quality", "vectors", "scale", "words", "fit"))
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("run", nargs="?")
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--cut", help="of both tables; else clusters are of the run's own, and names of a chosen one")
    parser.add_argument("--segments", type=int, default=1_000_000)
    parser.add_argument("--clusters", type=int, default=64)
    parser.add_argument("--without-faiss", action="store_true")
    given = parser.parse_args()
    if given.step == "scenes":
        write_scenes(given.folder, given.count)
    elif given.step == "quality":
        quality(given.folder, given.run, ["--cut", given.cut] if given.cut else [])
    elif given.step == "vectors":
        vectors(given.model, given.count)
    elif given.step == "words":
        words(given.model, given.count)
    elif given.step == "scale":
        scale(given.folder, given.segments, given.clusters, given.without_faiss)
    else:
        fit(given.folder, given.clusters, given.without_faiss)


if __name__ == "__main__":
    main()
