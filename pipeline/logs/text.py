"""Text of any origin as it may be shown: nothing in it moves a cursor or ends a line, and no URL in it tells a secret.

Names, URLs and errors come from archives, servers and libraries. Whatever shows them calls `shown`, and nobody before.
An error as text is its traceback, or one line with the place it was raised at.
"""

import re
import sys
import traceback

from pipeline.searchpath import ROOT

# What a terminal obeys, what ends a line, and what reorders or hides letters; joiners within words stay
_CONTROL = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)
_AT, _COLON, _SLASH = "(?:@|%(?:25){0,3}40)", "(?::|%(?:25){0,3}3a)", "(?:/|%(?:25){0,3}2f)"
_SCHEME = rf"[a-z][a-z0-9+.-]{{0,20}}{_COLON}{_SLASH}{{1,9}}"
_URL = re.compile(rf"((?<![\w%.+-]){_SCHEME}|(?<![\w/:%.+-])//)((?:(?!(?<=:){_SCHEME})[^\s'\"<>`])*)", re.IGNORECASE)
_PASSWORD = re.compile(rf"^[^/@]{{0,200}}?{_COLON}.*{_AT}", re.IGNORECASE)  # it may hold a slash or an @
_USER = re.compile(rf"^(?:(?!{_SLASH}|{_AT}).){{0,200}}{_AT}", re.IGNORECASE)
_SPACED = re.compile(  # a password with spaces or quotes in it, which end a URL elsewhere
    rf"({_SCHEME})[^\s/@:'\"]{{1,200}}:(?!\s|\d{{1,5}}(?:[\s/'\"]|$))(?:(?!://)[^@\n]){{0,64}}[\s'\"<>`](?:(?!://)[^@\n]){{0,64}}@(?=[\w[])",
    re.IGNORECASE,
)
_HOST = re.compile(r"(?:localhost|\[[\da-f:]+\]|[\w-]+(?:\.[\w-]+)+):\d{1,5}(?:/|$)", re.IGNORECASE)
_BARE = re.compile(
    rf"(?<![\w.:@%+-])(?!{_HOST.pattern})[\w.+%-]{{1,200}}?{_COLON}(?![\d:]+@|/|%(?:25){{0,3}}2f)[^\s'\"<>`]{{1,300}}{_AT}(?=[\w.-])",
    re.IGNORECASE,
)
_QUERY = re.compile(r"\?[^\s'\"]*=[^\s'\"]*")
_RARE = re.compile("[@?]|%(?:25)*[43]")
_CONTAINERS = ("abfs", "abfss", "az")  # before the @ of their URLs stands the container
_NAMES = (
    r"x-(?:amz|goog|ms)-[\w-]{1,30}|sig|signature|(?:[a-z]{1,12}[_-]){0,2}(?:token|secret|password|passwd|pwd|api_?key|secret_key)"
    r"|(?:secret_?|aws_?)?access_?key(?:_?id)?|aws_secret_access_key|aws_session_token|credentials?|authorization|account_?key|shared_?access_?signature"
)
_VALUE = re.compile(
    rf"(?<![\w-])({_NAMES})(['\"]?\s?(?:=|%(?:25){{0,3}}3d|:(?=\s?['\"])|:\s?(?=(?:bearer|basic|aws4)))\s?['\"]?"
    r"(?:(?:bearer|basic|aws4[\w-]{0,20})\s)?)[^\s&'\"<>`,;)}\]]+",
    re.IGNORECASE,
)


def shown(text: str) -> str:
    """Text in one line, for a terminal, a log or a page: control characters are escaped as Python writes them."""
    line = _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), redacted(text[: 2 * LINE]))
    return line if len(line) <= LINE and len(text) <= 2 * LINE else f"{line[:LINE]}... ({len(text):,} letters)"


def shown_lines(text: str) -> str:
    """Text of several lines, each as `shown` has it."""
    return "\n".join(shown(line) for line in text.split("\n"))


def redacted(text: str) -> str:
    """Text without user names and queries of URLs, whatever form these have, and without the values of secrets.

    Rather too much than too little: of what reads like a password, whatever comes before the last @ is left out.
    """
    if _RARE.search(text):
        text = _BARE.sub("***@", _URL.sub(_public, _SPACED.sub(r"\1", text)))
    return _VALUE.sub(r"\1\2***", text)


def _public(match: re.Match[str]) -> str:
    scheme, rest = match.groups()
    name = re.split("[:%]", scheme)[0].lower()
    if name in ("file", "local") and not re.search(r"[^/]//$", scheme):
        return match[0]
    bare = rest if _HOST.match(rest) else _USER.sub("", _PASSWORD.sub("", rest, count=1), count=1)
    if bare != rest and name in _CONTAINERS:
        bare = f"{re.split(_COLON, rest, maxsplit=1)[0].partition('@')[0]}@{bare}"
    return scheme + _QUERY.sub("", bare)


PACKAGES = ("diffseg", "pipeline", "jobs")
TRACEBACK = 4_000  # bytes that are kept: the end, where the error is
LINE = 10_000  # characters of a line that are shown
TOLD = 250  # characters of an error in one line


def traceback_of(error: BaseException) -> str:
    """The end of an error's traceback, after those of its causes as far as there is room."""
    text = shown_lines("".join(traceback.format_exception(error))[-2 * TRACEBACK :])
    return text.encode("utf-8", "backslashreplace")[-TRACEBACK:].decode(errors="ignore").strip()


def raised_at(error: BaseException) -> str:
    """Where an error was raised first, as file:line: our innermost line, then a library's below it where that raised.

    Empty for an error that was raised in another process.
    """
    while (cause := error.__cause__) is not None and cause.__traceback__:
        error = cause
    frames = [(_short(frame.f_code.co_filename), line) for frame, line in traceback.walk_tb(error.__traceback__)]
    ours = [frame for frame in frames if frame[0].split("/")[0] in PACKAGES]
    return " > ".join(f"{path}:{line}" for path, line in dict.fromkeys([*ours[-1:], *frames[-1:]]))


def told(error: BaseException) -> str:
    """An error in one line: its class, what it says, where it was raised."""
    text = shown(" ".join(f"{type(error).__name__}: {error}".split()))[:TOLD]
    return f"{text} ({place})" if (place := raised_at(error)) else text


def _short(path: str) -> str:
    """A file by its place below our packages, or those of Python."""
    installed = path.rpartition("site-packages/")[2]
    return installed if installed != path else path.removeprefix(f"{ROOT}/").removeprefix(f"{sys.base_prefix}/lib/")
