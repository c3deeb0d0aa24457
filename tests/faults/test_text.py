"""Hostile text: what a name, a URL or an error holds is shown as letters, in one line, and tells no secret."""

import json
import time

import pytest

from jobs.shared import cli, console
from pipeline.logs.text import redacted, shown, shown_lines
from pipeline.storage.url import redact

CONTROLS = {
    "a terminal's escape": "\x1b[2J",
    "C1": "\x9b2J",
    "a bell": "\a",
    "a line's end": "\n",
    "a return": "\r",
    "a line separator": "\u2028",
    "right to left": "\u202e",
    "an isolate": "\u2066",
    "a mark of order": "\u200f",
    "no width": "\u200b",
    "a byte order mark": "\ufeff",
    "a tag": "\U000e0041",
    "half a letter": "\udce9",
    "rubout": "\x7f",
}
SECRETS = {
    "a slash in the password": "s3://key:hush/ret@host/p",
    "spaces in the password": "s3://key:pa ss hush@host/p",
    "a quote in the password": "s3://key:pa'hush@host/p",
    "the key of an account": "DefaultEndpointsProtocol=https;AccountName=me;AccountKey=hush+x==;",
    "an @ in the password": "s3://u:p@hush@bucket/a.tar",
    "a colon and a slash in it": "s3://key:/hush@h/a",
    "a question mark in it": "s3://u:hu?hush@h/x",
    "one slash": "s3:/u:hush@h/x",
    "three slashes": "s3:///u:hush@h/x",
    "no scheme": "u:hush@h/x",
    "no scheme, a slash": "key:sec/hush@host/x",
    "no scheme, two slashes": "//u:hush@h/x",
    "upper case": "S3://U:hush@h",
    "Ray": "ray://u:hush@h:10001",
    "a token for a user": "https://hush@github.com/x",
    "a password like a port": "https://u:12345/hush@h/x",
    "no user": "s3://:hush@h/x",
    "a file's": "file://u:hush@h/x",
    "chained": "simplecache::s3://u:hush@h/a",
    "chained twice": "zip://a.zip::s3://u:hush@h/a",
    "Azure": "abfs://cont:hush@acc/x",
    "percent-encoded": "s3%3A%2F%2Fu%3Ahush%40h%2Fx",
    "percent-encoded @": "s3://u:p%40hush@h/x",
    "percent-encoded colon": "s3://u%3Ahush@h/x",
    "signed by S3": "https://h/a?X-Amz-Signature=hush&x=1",
    "signed by S3, without a scheme": "GET /b?X-Amz-Credential=a&X-Amz-Signature=hush",
    "signed by Google": "url: /b?X-Goog-Signature=hush",
    "signed by Azure": "SAS sv=2020&sig=hush%3D&se=1",
    "a token": "token=hush refused",
    "an upper-case token": "GET /x?TOKEN=hush",
    "a header": "Authorization: Bearer hush",
    "options": "{'secret': 'hush', 'key': 'x'}",
    "a path that has no scheme": "/home/me/u:hush@h/x",
    "a path of an encoded URL": "/home/me/s3%3A%2F%2Fu%3Ahush%40h%2Fx",
    "botocore's": "aws_secret_access_key=hush",
}


@pytest.mark.parametrize("what", CONTROLS)
def test_control_characters_are_shown_as_letters(what):
    text = shown(f"a{CONTROLS[what]}b")
    assert text.isprintable()
    assert text == f"a{CONTROLS[what].encode('unicode_escape').decode()}b"


@pytest.mark.parametrize("what", SECRETS)
@pytest.mark.parametrize("frame", ["{}", "OSError: '{}' refused", "[{}]: no", "a {}, b"])
def test_secrets_are_left_out(what, frame):
    assert "hush" not in shown(frame.format(SECRETS[what]))


@pytest.mark.parametrize(
    "text",
    [
        "s3://b/a@b.tar: no such shard",
        "s3://b/a/b@c.tar",
        "s3://b/a?b.tar",
        "abfs://container@account.dfs.core.windows.net/x",
        "http://localhost:8080/a@b.tar",
        "http://[::1]:80/a@b.tar",
        "file:///a/b/c@d.tar",
        "owner/name@main",
        "labels/s-0a1b.000001.parquet: no Parquet file",
        "a family: \U0001f468\u200d\U0001f469, caf\u00e9",
        "tokenizer=slow, key=7",
    ],
)
def test_other_text_is_left_alone(text):
    assert shown(text) == text


@pytest.mark.parametrize("part", ["%3a", "a.b+", "s3://", "a:b@", "secret_", "x-amz-", "@", ":/"])
def test_long_text_takes_time_in_proportion(part):
    begun = time.process_time()
    shown(part * (60_000 // len(part)) + "=@?")
    assert time.process_time() - begun < 1.5


def test_lines_of_a_traceback_stay_lines():
    assert shown_lines("a\n\tb\x1b") == "a\n\\tb\\x1b"


def test_everything_a_command_prints_is_escaped(capsys):
    hostile = "a\x1b[31m\u202e\nb :cat: [red] s3://u:hush@h/x"
    console.say(hostile)
    console.note(hostile)
    console.table(hostile, ["", ""], [[hostile, hostile]])
    console.left_out([hostile])
    console.say_json({"key": hostile, "more": [hostile]})
    seen = capsys.readouterr()
    for text in seen:
        assert "\x1b" not in text
        assert "\u202e" not in text
        assert "hush" not in text
        assert ":cat:" in text
        assert "[red]" in text


@pytest.mark.parametrize(
    "what", [what for what in SECRETS if "//" not in SECRETS[what] or "slash" in what or "ch" in what]
)
def test_no_command_tells_a_secret_of_its_arguments(tmp_path, capsys, what):
    url = SECRETS[what]
    assert cli.run(["label", url, "--output", str(tmp_path / "run"), "--model", "tiny", "--workers", "0"]) == 2
    config = tmp_path / "run.toml"
    config.write_text(f"[run]\nray_addres = {json.dumps(url)}\n")
    assert cli.run(["label", "x.tar", "--output", "run", "--model", "tiny", "--config", str(config)]) == 2
    seen = "".join(capsys.readouterr())
    assert "hush" not in seen
    assert "Traceback" not in seen


def test_a_password_with_a_slash_is_not_recorded():
    assert redact("s3://key:hush/ret@bucket/a.tar") == "s3://bucket/a.tar"
    assert redact("s3://bucket/a:b@c.tar") == "s3://bucket/a:b@c.tar"
    assert redacted("plain text") == "plain text"
