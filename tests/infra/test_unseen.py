"""Scenes for reporting are of nothing that the embedded model was trained on, and are what they say."""

import ast
import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

from infra.scenes import shapes, textures

ROOT = Path(__file__).parents[2]
FILE = ROOT / "infra" / "benchmarks" / "masks" / "unseen.py"


@pytest.fixture
def unseen(monkeypatch):
    monkeypatch.syspath_prepend(str(FILE.parent))
    monkeypatch.delitem(sys.modules, "unseen", raising=False)
    return importlib.import_module("unseen")


def imports(path):
    """Names that a file takes from modules."""
    found = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
    return {f"{node.module}.{name.name}" for node in found for name in node.names}


def test_they_share_no_material_and_no_shape_with_the_training(unseen):
    assert {name for name in imports(FILE) if name.startswith("infra.scenes")} == {"infra.scenes.scene.Scene"}
    training = {make.__name__ for make, _ in textures.MATERIALS} | set(shapes.PARTITIONS)
    training |= {shape.__name__ for shape in (shapes.blob, shapes.box, shapes.body, shapes.pole)}
    assert len(unseen.MATERIALS) == 12
    assert len(unseen.OBJECTS) == 4
    assert not training & {make.__name__ for make in (*unseen.MATERIALS, *unseen.OBJECTS)}
    for file in [*ROOT.glob("diffseg/**/*.py"), *ROOT.glob("jobs/**/*.py")]:
        assert not any(name.startswith("unseen") for name in imports(file)), file


@pytest.mark.slow
def test_objects_are_small_and_scenes_repeat(unseen):
    scene, small = unseen.unseen(3)
    again, _ = unseen.unseen(3)
    assert np.array_equal(scene.image, again.image)
    assert np.array_equal(np.unique(scene.truth), np.arange(len(small)))
    areas = np.bincount(scene.truth.ravel())
    assert 2 <= (~small).sum() <= 4
    assert small.sum() >= 8
    assert areas[small].max() <= 25**2
    assert unseen.found(scene.truth, small, scene.truth).all()
    assert not unseen.found(scene.truth, small, np.zeros_like(scene.truth)).any()


def test_materials_differ_from_each_other_and_have_texture(unseen):
    drawn = [make((64, 64), np.random.default_rng(5)).astype(float) for make in unseen.MATERIALS]
    assert all(field.std() > 0.05 and field.min() >= 0 and field.max() <= 1.01 for field in drawn)
    assert len({round(float(field.mean()), 6) for field in drawn}) == len(drawn)
