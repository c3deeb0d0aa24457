"""Configuration: what is wrong is said in one line, and everything that changes labels changes the fingerprint."""

import dataclasses
import json
import re
from typing import Any

import pytest

from diffseg import config as module
from diffseg.config import (
    AS_BEFORE,
    FIRST_FIELDS,
    LABELS_VERSION,
    QUALITY_TIMESTEP,
    Dtype,
    ModelDefaults,
    ResolvedConfig,
    SegmentConfig,
    fingerprint,
    labels_version_of,
)
from diffseg.models.fetch import fetch
from diffseg.models.recognise import recognise
from pipeline.config import RunConfig, read_config
from pipeline.documents import validated
from pipeline.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Model(ModelDefaults):
    thresholds: tuple[float, ...] = (0.4, 0.4, 0.4)
    cut: float | None = 0.5
    timestep: int | None = 50
    image_size: int = 256
    unit: int = 64
    dtype: Dtype = "float32"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mode": "best"}, "'best'"),
        ({"thresholds": ()}, "at least one iteration, got ()"),
        ({"thresholds": (1.0, -0.5)}, "(1.0, -0.5)"),
        ({"thresholds": (float("nan"),)}, "nan"),
        ({"anchors_per_side": 0}, "got 0"),
        ({"timestep": 1000}, "0..999, got 1000"),
        ({"image_size": -64}, "positive number of pixels, got -64"),
        ({"output_size": 0}, "got 0"),
        ({"output_size": "huge"}, "'huge'"),
        ({"min_area": 1.0}, "got 1.0"),
        ({"dtype": "int8"}, "'int8'"),
        ({"leaves": 1}, "2..256, got 1"),
        ({"words": ()}, "there is an empty word"),
        ({"words": ("cat", "dog,")}, "there is an empty word"),
        ({"words": ("cat", "dog, cat")}, "'cat' is there twice"),
        ({"words": tuple(map(str, range(10_001)))}, "more than 10,000 words"),
        ({"leaves": 257}, "2..256, got 257"),
        ({"crop_layers": 2}, "0 or 1, got 2"),
        ({"crop_layers": 1, "leaves": 194}, "2..193 with crops, got 194"),
        ({"cut": -0.1}, "at least 0, got -0.1"),
        ({"cut": float("inf")}, "got inf"),
    ],
)
def test_nonsense_is_refused_with_the_nonsense_in_the_message(values, message):
    config = object.__new__(SegmentConfig)  # past the run-time type check, which production does without
    for field in dataclasses.fields(SegmentConfig):
        object.__setattr__(config, field.name, values.get(field.name, field.default))
    with pytest.raises(ValueError, match=re.escape(message)):
        config.__post_init__()


def test_resolving_fills_in_what_the_model_decides_and_nothing_else():
    resolved = SegmentConfig(timestep=0).resolve(Model())
    assert (resolved.thresholds, resolved.timestep, resolved.image_size) == ((0.4, 0.4, 0.4), 0, 256)
    assert SegmentConfig(mode="paper").resolve(Model(dtype="bfloat16")).dtype == "float32"


def test_a_resolved_configuration_stays_as_it_is_whatever_the_model():
    resolved = SegmentConfig(mode="paper").resolve(Model())
    assert resolved.resolve(Model(thresholds=(9.0,), timestep=9, image_size=512)) is resolved
    assert [each.name for each in dataclasses.fields(resolved) if getattr(resolved, each.name) is None] == [
        "cut",
        "clusters",
        "words",
    ]
    with pytest.raises(TypeError, match="timestep"):
        ResolvedConfig(thresholds=(1.0,), image_size=512, dtype="float32")  # type: ignore[call-arg]  # as is tested


@pytest.mark.parametrize(("unit", "size"), [(64, 500), (64, 32), (14, 512)])
def test_an_image_size_that_the_model_cannot_take_is_refused_when_the_model_is_known(unit, size):
    with pytest.raises(ValueError, match=f"image_size must be a multiple of {unit} pixels, got {size}"):
        SegmentConfig(image_size=size).resolve(Model(image_size=unit * 8, unit=unit))


def test_what_a_model_lacks_cannot_be_given():
    with pytest.raises(ValueError, match="no UNet, whose attention to words could be kept"):
        SegmentConfig(words=("cat",)).resolve(Model(timestep=None))
    assert SegmentConfig().resolve(Model(timestep=None)).timestep is None
    with pytest.raises(ValueError, match="this model has no timestep, got 50"):
        SegmentConfig(timestep=50).resolve(Model(timestep=None))


@pytest.mark.parametrize(
    ("asked", "tree", "cut", "vectors"),
    [
        ({}, True, 0.5, False),
        ({"tree": True, "vectors": True}, True, 0.5, True),
        ({"cut": 0.7}, True, 0.7, False),
        ({"leaves": 128}, True, 0.5, False),
        ({"vectors": True}, True, 0.5, True),
        ({"tree": False}, False, None, False),
        ({"thresholds": (0.3,)}, False, None, False),
        ({"refine": True}, False, None, False),
        ({"anchors_per_side": 8}, False, None, False),
        ({"mode": "paper"}, False, None, False),
    ],
)
def test_there_is_a_tree_unless_greedy_merging_is_asked_for(asked, tree, cut, vectors):
    resolved = SegmentConfig(**asked).resolve(Model())
    assert (resolved.tree, resolved.cut, resolved.vectors) == (tree, cut, vectors)


@pytest.mark.parametrize("of_greedy", [{"mode": "paper"}, {"thresholds": (0.3,)}, {"refine": True}, {"tree": False}])
@pytest.mark.parametrize(
    "of_tree", [{"tree": True}, {"cut": 0.7}, {"leaves": 128}, {"vectors": True}, {"ridges": True}, {"crop_layers": 1}]
)
def test_settings_of_trees_and_of_greedy_merging_exclude_each_other(of_greedy, of_tree):
    if of_greedy.keys() == of_tree.keys():
        return
    [name] = of_tree
    with pytest.raises(ValueError, match=f"^{name}: of a tree, but .*--cut"):
        SegmentConfig(**of_greedy, **of_tree).resolve(Model())


def test_everything_that_changes_labels_changes_the_fingerprint():
    config = SegmentConfig().resolve(Model())
    other: dict[str, Any] = {
        "mode": "paper",
        "thresholds": (0.5,),
        "anchors_per_side": 8,
        "refine": True,
        "timestep": 300,
        "image_size": 512,
        "output_size": "source",
        "min_area": 0.5,
        "split_components": True,
        "dtype": "float16",
        "compile": True,
        "edges": False,
        "tree": False,
        "leaves": 128,
        "cut": 0.7,
        "vectors": True,
        "ridges": True,
        "crop_layers": 1,
        "clusters": 8,
        "words": ("cat",),
    }
    needs: dict[str, Any] = {"clusters": {"mode": "quality"}, "mode": {"edges": False}}
    assert other.keys() == {field.name for field in dataclasses.fields(SegmentConfig)}
    assert other.keys() >= FIRST_FIELDS
    prints = {
        fingerprint(dataclasses.replace(config, **{name: value}, **needs.get(name, {})), "w")
        for name, value in other.items()
    }
    prints |= {fingerprint(config, "w"), fingerprint(config, "another model")}
    assert len(prints) == len(other) + 2


TINY = "1471ad4bd7af230057d5d84566ab4c5aca7b2616cb43eef46d7b3618fb48a1b2"  # of the embedded model's weights
LARGE = Model(thresholds=(1.1, 1.1, 1.1), timestep=300, image_size=512, dtype="bfloat16")


@pytest.mark.parametrize(
    ("asked", "model", "weights", "print_"),
    [
        ({}, LARGE, "0" * 64, "a9cec2e5501c9c99"),
        ({"mode": "paper"}, LARGE, "0" * 64, "a2e0a10234e4d9d3"),
        ({"thresholds": (0.7, 0.7, 0.7)}, LARGE, "0" * 64, "1a52e11afc9b28a8"),
        ({"thresholds": (0.9, 1.0, 1.1, 1.2)}, LARGE, "0" * 64, "fdba1595a17132c0"),
        ({"refine": True}, LARGE, "0" * 64, "5e531e4bc34fab5f"),
        ({"split_components": True}, LARGE, "0" * 64, "a4a3b5e4cb9cfb5b"),
        (
            {"output_size": "source", "min_area": 0.0, "anchors_per_side": 8, "dtype": "float16", "compile": True},
            LARGE,
            "0" * 64,
            "7088e3b39768e6df",
        ),
        ({}, Model(thresholds=(0.3, 0.3, 0.3)), TINY, "ccbdcf20829975b8"),
        ({"mode": "paper"}, Model(thresholds=(0.3, 0.3, 0.3)), TINY, "25a02aff98b3880e"),
    ],
)
def test_fingerprints_of_0_1_0_stay(asked, model, weights, print_):
    """Whatever is added to a configuration later is off here: runs begun by 0.1.0 go on."""
    config = SegmentConfig(**asked).resolve(model)
    before = {each.name: each.metadata[AS_BEFORE] for each in fields_since_0_1_0(SegmentConfig)}
    assert fingerprint(dataclasses.replace(config, **before), weights) == print_


def test_the_embedded_model_is_that_of_0_1_0():
    files = fetch("tiny")
    assert files.sha256 == TINY
    as_before = SegmentConfig(tree=False, edges=False).resolve(recognise(files))
    assert fingerprint(as_before, files.sha256) == "ccbdcf20829975b8"


def fields_since_0_1_0(kind):
    return [each for each in dataclasses.fields(kind) if each.name not in FIRST_FIELDS]


def test_every_field_that_came_later_says_which_value_means_as_before():
    assert all(AS_BEFORE in each.metadata for each in fields_since_0_1_0(SegmentConfig))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Later(ResolvedConfig):
    """A configuration of the future, whose new field is on by itself."""

    flavour: bool = dataclasses.field(default=True, metadata={AS_BEFORE: False})
    levels: tuple[float, ...] = dataclasses.field(default=(), metadata={AS_BEFORE: ()})


def test_a_field_as_before_leaves_no_trace():
    now = SegmentConfig().resolve(Model())
    later = Later(**now.to_dict(), flavour=False)
    assert later.to_dict() == now.to_dict()
    assert fingerprint(later, "w") == fingerprint(now, "w")
    assert fingerprint(Later(**now.to_dict()), "w") != fingerprint(now, "w")


def test_a_configuration_of_0_1_0_is_read_as_before_whatever_the_default_is_now():
    now = SegmentConfig().resolve(Model())
    recorded = json.loads(json.dumps(now.to_dict()))
    assert validated(Later, {**Later.as_before(), **recorded}) == Later(**now.to_dict(), flavour=False)


def test_a_field_without_a_value_as_before_cannot_be_fingerprinted():
    careless = dataclasses.make_dataclass(
        "Careless", [("flavour", bool, True)], bases=(ResolvedConfig,), frozen=True, kw_only=True
    )
    with pytest.raises(KeyError, match=AS_BEFORE):
        fingerprint(careless(**SegmentConfig().resolve(Model()).to_dict()), "w")


def test_the_version_of_labels_is_of_a_mode(monkeypatch):
    fast, paper = (SegmentConfig(mode=mode).resolve(Model()) for mode in ("fast", "paper"))
    before = fingerprint(fast, "w"), fingerprint(paper, "w")
    monkeypatch.setattr(module, "LABELS_VERSION", {**LABELS_VERSION, "fast": 7})
    assert fingerprint(fast, "w") != before[0]
    assert fingerprint(paper, "w") == before[1]
    assert [labels_version_of(one, fast.to_dict(), "w") for one in (*before, fingerprint(fast, "w"))] == [1, None, 7]


def test_a_file_gives_both_tables_and_flags_override_it(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text("[segment]\nthresholds = [0.3]\ntimestep = 20\n[run]\nworkers = 7\nalso = ['webdataset']\n")
    segment, run = read_config(path, {"timestep": 9, "mode": None}, {"workers": None, "window": 16})
    assert segment == SegmentConfig(thresholds=(0.3,), timestep=9)
    assert run == RunConfig(workers=7, also=("webdataset",), window=16)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[segment]\ntimestp = 3", "[segment] has no 'timestp'; it has mode, thresholds"),
        ("[run]\nworker = 3", "[run] has no 'worker'; it has workers"),
        ("[sgment]\n", "the file has no 'sgment'; it has segment, run"),
        ("[segment]\ntimestep = 'soon'", "[segment] timestep: Input should be a valid integer"),
        ("[segment]\ntimestep = 2000", "timestep must lie in 0..999, got 2000"),
        ("[run]\nalso = ['coco']", "webdataset"),
        ("[run]\nmax_failed = 3", "max_failed is a share in [0, 1], got 3"),
        ("segment = 3", "[segment] must be a table"),
        ("[segment", "no TOML"),
    ],
)
def test_a_mistake_in_the_file_is_one_line_that_says_what_is_possible(tmp_path, text, message):
    path = tmp_path / "run.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as raised:
        read_config(path, {}, {})
    assert message in str(raised.value)
    assert str(raised.value).startswith(str(path))
    assert "\n" not in str(raised.value)


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.toml: No such file"):
        read_config(tmp_path / "none.toml", {}, {})


def test_quality_mode_takes_the_published_time_where_a_model_knows_one():
    assert SegmentConfig(mode="quality").resolve(Model()).timestep == QUALITY_TIMESTEP
    assert SegmentConfig(mode="quality", timestep=7).resolve(Model()).timestep == 7
    assert SegmentConfig(mode="quality").resolve(Model(timestep=None)).timestep is None


@pytest.mark.parametrize(
    ("asked", "line"),
    [
        ({"clusters": 8}, "clusters are 2..256 segments of mode 'quality'"),
        ({"mode": "quality", "clusters": 1}, "clusters are 2..256 segments of mode 'quality', got 1"),
        ({"mode": "quality", "clusters": 257}, "clusters are 2..256"),
        ({"mode": "quality", "refine": True}, "refine belongs to merging"),
        ({"mode": "quality", "thresholds": (0.3,)}, "thresholds belong to merging: mode 'quality' takes clusters"),
        ({"mode": "quality", "tree": True}, "tree: of a tree, but mode 'quality' means none"),
    ],
)
def test_settings_of_another_mode_are_refused(asked, line):
    with pytest.raises(ValueError, match=line):
        SegmentConfig(**asked).resolve(Model())
