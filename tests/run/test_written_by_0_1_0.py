"""The JSON that 0.1.0 wrote into runs, letter by letter: it is read, and what is written now is the same."""

from pathlib import Path

import pytest

from pipeline.documents import from_json, to_json
from pipeline.run.commit import End
from pipeline.run.compacted import CompactedWindow
from pipeline.run.manifest import Totals
from pipeline.run.spec import Run
from pipeline.table.window_metadata import WindowMetadata

WINDOW_METADATA = (
    b'{"fingerprint": "ccbdcf20829975b8", "shard": "s-0-0123456789ab", "url": "s3://bucket/s-0.tar", "size": 20480, '
    b'"etag": "\\"abc\\"", "window": 3, "first_index": 12, "rows": 4, "failed": {"undecodable": 1}, '
    b'"attempt": "0f", "digest": "9a", "model": "tiny", "revision": null, '
    b'"made_with": {"diffseg": "0.1.0", "torch": "2.9.1+cpu", "machine": "x86_64"}, "schema": 1}'
)
DOCUMENTS = [
    (
        WINDOW_METADATA,
        WindowMetadata(
            fingerprint="ccbdcf20829975b8",
            shard="s-0-0123456789ab",
            url="s3://bucket/s-0.tar",
            size=20480,
            etag='"abc"',
            window=3,
            first_index=12,
            rows=4,
            failed={"undecodable": 1},
            attempt="0f",
            digest="9a",
            model="tiny",
            revision=None,
            made_with={"diffseg": "0.1.0", "torch": "2.9.1+cpu", "machine": "x86_64"},
        ),
    ),
    (
        b'{"shard": "s-0-0123456789ab", "windows": 3, "rows": 10, "size": 20480, "etag": "1700000000000000000"}',
        End("s-0-0123456789ab", 3, 10, 20480, "1700000000000000000"),
    ),
    (
        b'{"shards": 2, "windows": 5, "rows": 17, "failed": {"no_image": 1}}',
        Totals(2, 5, 17, {"no_image": 1}),
    ),
    (
        b'{"shard": "s-0-0123456789ab", "window": 3, "generation": 1, "rows": 4, "size": 2048, "digest": "9a"}',
        CompactedWindow("s-0-0123456789ab", 3, 1, 4, 2048, "9a"),
    ),
]


@pytest.mark.parametrize(("written", "document"), DOCUMENTS, ids=lambda each: type(each).__name__)
def test_a_document_is_read_and_written_letter_by_letter(written, document):
    assert from_json(type(document), written) == document
    assert to_json(document) == written


@pytest.mark.parametrize(("written", "document"), DOCUMENTS, ids=lambda each: type(each).__name__)
def test_what_a_newer_version_adds_is_passed_over_and_what_is_no_number_is_told_in_one_line(written, document):
    assert from_json(type(document), b'{"flavour": [1], ' + written[1:]) == document
    with pytest.raises(ValueError, match=r"^rows: Input should be a valid integer") as caught:
        from_json(type(document), written.replace(b'"rows": ', b'"rows": "many", "was": '))
    assert "\n" not in str(caught.value)


RUN = b"""{
  "fingerprint": "ccbdcf20829975b8",
  "model": "tiny",
  "revision": null,
  "weights_sha256": "1471ad4bd7af230057d5d84566ab4c5aca7b2616cb43eef46d7b3618fb48a1b2",
  "segment": {
    "mode": "fast",
    "thresholds": [
      0.3,
      0.3,
      0.3
    ],
    "anchors_per_side": 16,
    "refine": false,
    "timestep": 50,
    "image_size": 256,
    "output_size": 1024,
    "min_area": 0.001,
    "split_components": false,
    "dtype": "float32",
    "compile": false
  },
  "window": 4,
  "image_key": null,
  "also": [
    "webdataset"
  ],
  "schema": 1,
  "reader": 1,
  "made_with": {
    "diffseg": "0.1.0"
  }
}"""


def test_a_run_json_is_read_and_written_letter_by_letter(tmp_path: Path) -> None:
    run = Run.from_json(RUN)
    assert run.to_json() == RUN
    assert (run.segment.thresholds, run.segment.output_size, run.labels_version) == ((0.3, 0.3, 0.3), 1024, 1)
