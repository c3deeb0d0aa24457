"""The scripts behind infra/benchmarks/masks.md: figures are those of `diffseg evaluate`, and a stopped one goes on."""

import importlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from infra.scenes.scene import draw_scene
from pipeline.evaluation.evaluate import evaluate
from pipeline.evaluation.protocols import PROTOCOLS
from pipeline.evaluation.score import Scorer
from pipeline.evaluation.truth import open_truth
from pipeline.inputs.tar.writing import write_samples
from pipeline.table.label_map import encode_label_map

SCRIPTS = Path(__file__).parents[2] / "infra" / "benchmarks" / "masks"


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("masks"), importlib.import_module("styles")


@pytest.fixture
def photos(tmp_path):
    """Three pictures with two annotators each; the second sees one region less."""
    content = []
    for number in range(3):
        scene = draw_scene(np.random.default_rng(number), (80, 120))
        buffer = io.BytesIO()
        Image.fromarray(scene.image).save(buffer, "JPEG", quality=95)
        coarser = np.where(scene.truth == scene.truth.max(), 0, scene.truth)
        maps = {f"seg{i}.png": encode_label_map(each) for i, each in enumerate((scene.truth, coarser))}
        content.append((str(number), {"jpg": buffer.getvalue(), **maps}))
    (tmp_path / "s.tar").write_bytes(write_samples(content))
    return str(tmp_path / "s.tar")


def test_figures_are_those_of_an_evaluation(scripts, photos, tmp_path):
    masks, _ = scripts
    methods = ("felzenszwalb", "humans")
    for name in methods:
        masks.measure(tmp_path / "out", photos, "photos", name, 1)
    rules = PROTOCOLS["regions"]
    expected = evaluate(open_truth(photos, rules), {}, Scorer(rules, methods))
    for name in methods:
        lines = masks.lines_of(tmp_path / "out" / "photos" / f"{name}.jsonl")
        for line, row in zip(lines.values(), expected.results[name].rows, strict=True):
            assert {key: line[key] for key in ("key", "covering", "ari", "boundary_f", "segments")} == {
                key: row[key] for key in ("key", "covering", "ari", "boundary_f", "segments")
            }
    table = masks.table(tmp_path / "out", "photos", ["felzenszwalb"], ["humans"])
    lead = evaluate(open_truth(photos, rules), {}, Scorer(rules, methods)).lead("covering")["humans"]
    assert f"{lead.value:.3f} ({lead.low:.3f} to {lead.high:.3f})" in table


def test_a_stopped_measurement_goes_on_and_a_kept_pass_gives_the_same_labels(scripts, photos, tmp_path):
    masks, _ = scripts
    for folder in ("whole", "stopped"):
        masks.measure(tmp_path / folder, photos, "photos", "tiny:greedy", 1)
    path = tmp_path / "stopped" / "photos" / "tiny:greedy.jsonl"
    text = path.read_text()
    path.write_text(text[: text.rfind("{") + 20])  # killed inside the last line
    assert len(list((tmp_path / "stopped" / "passes").rglob("*.pt"))) == 3
    masks.measure(tmp_path / "stopped", photos, "photos", "tiny:greedy", 1)

    def figures(where):
        lines = [json.loads(line) for line in where.read_text().splitlines()]
        return [{key: value for key, value in line.items() if key != "ms"} for line in lines]

    assert figures(path) == figures(tmp_path / "whole" / "photos" / "tiny:greedy.jsonl")


def test_a_style_changes_the_picture_and_not_the_truth(scripts, photos):
    _, styles = scripts
    plain = list(styles.samples("photos", photos))
    for style in styles.STYLES:
        first, again = (list(styles.samples(style, photos)) for _ in range(2))
        for one, other, photo in zip(first, again, plain, strict=True):
            assert one.image.dtype == np.uint8
            assert one.image.shape == photo.image.shape
            assert not np.array_equal(one.image, photo.image)
            assert np.array_equal(one.image, other.image)
            assert all(np.array_equal(a, b) for a, b in zip(one.truths, photo.truths, strict=True))
