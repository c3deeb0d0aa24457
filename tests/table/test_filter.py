import io
from dataclasses import replace

import numpy as np
import pytest

from diffseg.types import Segment
from pipeline import table
from pipeline.errors import ConfigError
from pipeline.records import OK, LabelRecord
from pipeline.table.filter import COLUMNS, MAX_LENGTH, columns_of, holds, parse_filter
from pipeline.table.label_map import encode_label_map
from tests.conftest import window_metadata

SEGMENTS = tuple(Segment(number, 1, (0, 0, 1, 1), 1.0) for number in range(12))
PNG = encode_label_map(np.zeros((480, 640), np.int32))
ROW = LabelRecord("cats/7", "s", 7, OK, None, 640, 480, PNG, SEGMENTS, 0.5)
ALONE = replace(ROW, segments=SEGMENTS[:1], quality=None)


def window(rows: list[LabelRecord]) -> io.BytesIO:
    return io.BytesIO(table.encode_window(rows, window_metadata(rows)))


def takes(text: str, row: LabelRecord = ROW) -> bool:
    [*taken] = table.read_rows(window([row]), ["index"], filter=parse_filter(text))
    assert taken in ([], [{"index": 7}])
    assert (holds(parse_filter(text), {name: getattr(row, name) for name in COLUMNS}) is True) is bool(taken)
    return bool(taken)


@pytest.mark.parametrize(
    ("text", "taken"),
    [
        ("quality > 0.4", True),
        ("quality > 0.5", False),
        ("quality >= 0.5 and num_segments < 40", True),
        ("quality > 0.9 or num_segments == 12", True),
        ("not quality > 0.9", True),
        ("0.4 < quality <= 0.5", True),
        ("width != 640", False),
        ("index > -1", True),
        ("key == 'cats/7'", True),
        ("key in ['cats/6', 'cats/7']", True),
        ("width in [640.0, 0.5]", True),
        ("width < 640.5 and index < 9000000000000000000", True),
        ("1 < 2", True),
        ("num_segments < width", True),
        ("num_segments not in (12, 13)", False),
        ("  quality>0.4\n", True),
    ],
)
def test_a_condition_takes_the_rows_it_speaks_of(text, taken):
    assert takes(text) is taken


@pytest.mark.parametrize(
    "text",
    [
        "quality > 0",
        "quality <= 0",
        "not quality > 0",
        "quality > 0 and width > 0.4",
        "quality in [0]",
        "quality not in [0]",
        "not quality in [0]",
    ],
)
def test_a_missing_value_is_neither_above_nor_below_anything(text):
    assert not takes(text, ALONE)


def test_what_is_unknown_does_not_matter_where_the_rest_decides():
    assert takes("quality > 0 or width > 0.4", ALONE)


def test_only_the_columns_of_a_condition_are_needed_to_decide_it():
    assert columns_of(parse_filter("not (quality > 0.5 or key in ['a']) and width < height")) == {
        "quality",
        "key",
        "width",
        "height",
    }
    assert set(COLUMNS) < set(table.SCHEMA.names)


class Counting(io.BytesIO):
    """Counts what is read of it."""

    taken = 0

    def read(self, *size):
        data = super().read(*size)
        self.taken += len(data)
        return data


def test_where_no_row_matches_the_label_maps_are_not_read():
    rows = [replace(ROW, index=index, label_map=PNG + bytes(50_000)) for index in range(20)]

    def read(text: str) -> int:
        stream = Counting(window(rows).getvalue())
        list(table.read_rows(stream, filter=parse_filter(text)))
        return stream.taken

    assert read("quality > 0.4") > 20 * 50_000
    assert read("quality > 0.6") < 2 * 50_000  # Parquet reads the last 64 kB for its footer


def test_an_unknown_column_is_answered_with_those_there_are():
    with pytest.raises(ConfigError, match=r"no column 'qualty'; possible are key, shard, .*quality"):
        parse_filter("qualty > 0.5")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("__import__('os').system('true') == 0", "neither a column"),
        ("key.format == 'x'", "neither a column"),
        ("(lambda: 1)() == 1", "neither a column"),
        ("[c for c in 'a'] == 1", "neither a column"),
        ("key == f'{1}'", "neither a column"),
        ("quality == True", "neither a column"),
        ("quality + 1 > 2", "neither a column"),
        ("key in key", "`in` takes a list"),
        ("key in []", "`in` takes a list"),
        ("key in ['a', 1]", "mixes"),
        ("key in [width]", "numbers or strings"),
        ("quality", "no comparison"),
        ("quality is 1", "possible are <"),
        ("quality > 'high'", "quality holds numbers, 'high' strings"),
        ("key > 3", "key holds strings, 3 numbers"),
        ("quality > ", "cannot be read"),
        ("quality = 1", "cannot be read"),
        ("", "cannot be read"),
        ("quality > 1\0", "cannot be read"),
        ("not " * 2000 + "quality > 1", "cannot be read"),
        ("(" * 3000 + "quality", "cannot be read"),
        ("9" * 5000 + " < width", "cannot be read"),
        ("q" * (MAX_LENGTH + 1), "longer than"),
        (f"width < {2**63}", "larger than any value"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*is.* with .*:SyntaxWarning")  # the parser's own, for `is` with a number
def test_what_is_no_plain_condition_is_refused(text, answer):
    with pytest.raises(ConfigError, match=answer):
        parse_filter(text)
