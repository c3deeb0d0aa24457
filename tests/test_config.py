"""Configuration: what is wrong is said in one line, and everything that changes labels changes the fingerprint."""

import dataclasses
import re

import pytest

from diffseg.config import SegmentConfig, fingerprint
from pipeline.config import RunConfig, read_config
from pipeline.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Model:
    thresholds: tuple[float, ...] = (0.4, 0.4, 0.4)
    timestep: int = 50
    image_size: int = 256
    dtype: str = "float32"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mode": "best"}, "'best'"),
        ({"thresholds": ()}, "at least one iteration, got ()"),
        ({"thresholds": (1.0, -0.5)}, "(1.0, -0.5)"),
        ({"thresholds": (float("nan"),)}, "nan"),
        ({"anchors_per_side": 0}, "got 0"),
        ({"timestep": 1000}, "0..999, got 1000"),
        ({"image_size": 500}, "multiple of 64 pixels, got 500"),
        ({"output_size": 0}, "got 0"),
        ({"output_size": "huge"}, "'huge'"),
        ({"min_area": 1.0}, "got 1.0"),
        ({"dtype": "int8"}, "'int8'"),
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


def test_everything_that_changes_labels_changes_the_fingerprint():
    config = SegmentConfig().resolve(Model())
    other = {
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
    }
    assert other.keys() == {field.name for field in dataclasses.fields(SegmentConfig)}
    prints = {fingerprint(dataclasses.replace(config, **{name: value}), "w") for name, value in other.items()}
    prints |= {fingerprint(config, "w"), fingerprint(config, "another model")}
    assert len(prints) == len(other) + 2


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
