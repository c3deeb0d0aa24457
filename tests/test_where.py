import pytest

from pipeline.errors import ConfigError
from pipeline.where import COLUMNS, MAX_LENGTH, parse_where

ROW = dict.fromkeys(COLUMNS) | {"key": "cats/7", "index": 7, "width": 640, "num_segments": 12, "quality": 0.5}


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
        ("num_segments not in (12, 13)", False),
        ("  quality>0.4\n", True),
    ],
)
def test_a_condition_takes_the_rows_it_speaks_of(text, taken):
    assert parse_where(text)(ROW) is taken


@pytest.mark.parametrize("text", ["height > 0", "height <= 0", "not height > 0", "height > 0 and quality > 0.4"])
def test_a_missing_value_is_neither_above_nor_below_anything(text):
    assert parse_where(text)(ROW) is False


def test_what_is_unknown_does_not_matter_where_the_rest_decides():
    assert parse_where("height > 0 or quality > 0.4")(ROW) is True


def test_an_unknown_column_is_answered_with_those_there_are():
    with pytest.raises(ConfigError, match=r"no column 'qualty'; possible are key, shard, .*quality"):
        parse_where("qualty > 0.5")


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
    ],
)
@pytest.mark.filterwarnings("ignore:.*is.* with .*:SyntaxWarning")  # the parser's own, for `is` with a number
def test_what_is_no_plain_condition_is_refused(text, answer):
    with pytest.raises(ConfigError, match=answer):
        parse_where(text)
