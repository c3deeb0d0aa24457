"""Names and patterns: what is there by its very name comes first, and nothing that is left out goes unsaid."""

import http.server
import threading

import fsspec
import pytest

from pipeline.errors import ConfigError, CorruptShard
from pipeline.inputs.count import count
from pipeline.inputs.reader import read_shard
from pipeline.inputs.shards import pin
from pipeline.inputs.tar.writing import write_samples
from pipeline.storage.url import canonical, protocol_of, redact
from tests.conftest import jpeg, samples, write_shard

ODD = [
    "in [raw]",
    "a[1]",
    "what?",
    "all*",
    "{raw}",
    "a{b",
    "50%20",
    "a#1",
    "a b ",
    "a::b",
    "10:00",
    "~nobody",
    "-x",
    "ä",
]
ODD += ["a\\b", "&a=1", "a?b=1", "[!a]", "{1..3}", "'\"", "$HOME"]


def found(shards):
    return [(shard.url, len(list(read_shard(shard)))) for shard in shards]


@pytest.mark.parametrize("name", ODD)
def test_a_shard_of_any_name_is_found_by_it(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    write_shard(tmp_path / f"{name}.tar", samples(2))
    url = f"file://{tmp_path}/{name}.tar"
    assert found(pin([f"{name}.tar"])) == [(url, 2)]
    assert found(pin([str(tmp_path / f"{name}.tar")])) == [(url, 2)]
    assert found(pin([url])) == [(url, 2)]
    (tmp_path / "list.txt").write_text(f"{tmp_path}/{name}.tar\n")
    assert found(pin(["list.txt"])) == [(url, 2)]
    assert found(pin(["*.tar"])) == [(url, 2)]


@pytest.mark.parametrize("name", ODD)
def test_shards_in_a_folder_of_any_name_are_found_by_patterns_below_it(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for number in range(3):
        write_shard(tmp_path / name / f"s-{number}.tar", samples(1))
    whole = pin([f"{name}/s-{{0..2}}.tar"])
    assert [shard.url for shard in whole] == [f"file://{tmp_path}/{name}/s-{number}.tar" for number in range(3)]
    assert pin([f"{tmp_path}/{name}/*.tar"]) == whole
    assert pin([f"{tmp_path}/{name}/s-[02].tar"]) == [whole[0], whole[2]]
    assert pin([f"{tmp_path}/{name}/{{s-0,s-[12]}}.tar", f"{name}/s-?.tar"]) == whole


@pytest.mark.parametrize("name", ODD)
def test_a_folder_of_images_of_any_name_is_read(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    (tmp_path / name / f"{name}.jpg").write_bytes(jpeg(1))
    assert found(pin([name])) == [(f"file://{tmp_path}/{name}/", 1)]
    assert found(pin([f"{tmp_path}/{name}/"])) == [(f"file://{tmp_path}/{name}/", 1)]


def test_a_name_comes_before_the_pattern_that_it_is_too(tmp_path):
    for name in ("a[1].tar", "a1.tar", "b{1,2}.tar", "b1.tar", "b2.tar", "c?.tar", "cc.tar"):
        write_shard(tmp_path / name, samples(1))
    given = [f"{tmp_path}/{name}" for name in ("a[1].tar", "b{1,2}.tar", "c?.tar")]
    assert [shard.url for shard in pin(given)] == [f"file://{url}" for url in given]
    for url in given:
        (tmp_path / url).unlink()
    assert [shard.url.rpartition("/")[2] for shard in pin(given)] == ["a1.tar", "b1.tar", "b2.tar", "cc.tar"]


@pytest.fixture
def memory():
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]
    yield fs
    fs.store.clear()


@pytest.mark.parametrize("name", ["a?b", "in [raw]", "all*", "{raw}", "50%20", "a#1", "a b"])
def test_the_same_on_a_store(memory, name):
    for place in (f"/q/{name}.tar", f"/q/{name}/x.tar", "/q/c.tar"):
        memory.pipe_file(place, write_samples(samples(1)))
    memory.pipe_file(f"/photos {name}/{name}.jpg", jpeg(1))
    assert found(pin([f"memory://q/{name}.tar"])) == [(f"memory://q/{name}.tar", 1)]
    assert found(pin([f"memory://q/{name}/*.tar"])) == [(f"memory://q/{name}/x.tar", 1)]
    assert sorted(found(pin(["memory://q/*.tar"]))) == sorted([(f"memory://q/{name}.tar", 1), ("memory://q/c.tar", 1)])
    [shard] = pin([f"memory://photos {name}"])
    assert [raw.key for raw in read_shard(shard)] == [name]
    assert len({shard.id for shard in pin(["memory://q/*.tar", f"memory://q/{name}/x.tar"])}) == 3


def test_the_url_of_an_object_takes_no_query(memory):
    memory.pipe_file("/q/a.tar", write_samples(samples(1)))
    for query in ("?versionId=1", "?sv=1&sig=secret"):
        with pytest.raises(ConfigError, match=r"^memory://q/a\.tar: what follows reads like a query") as caught:
            pin([f"memory://q/a.tar{query}"])
        assert "secret" not in str(caught.value)


class Odd(http.server.BaseHTTPRequestHandler):
    """A server on which one file is, with a star in its name."""

    def do_GET(self):
        data = write_samples(samples(1)) if self.path.startswith(("/a*b.tar", "/x-1.tar", "/x-2.tar")) else b""
        self.send_response(200 if data else 404)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    do_HEAD = do_GET  # noqa: N815 - the server asks for it by this name

    def log_message(self, *_):
        pass


def test_the_same_on_the_web_where_nothing_can_be_listed():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Odd)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        place = f"http://127.0.0.1:{server.server_port}"
        assert found(pin([f"{place}/a*b.tar?token=secret"])) == [(f"{place}/a*b.tar", 1)]
        assert found(pin([f"{place}/x-{{1..2}}.tar"])) == [(f"{place}/x-1.tar", 1), (f"{place}/x-2.tar", 1)]
        with pytest.raises(ConfigError, match="cannot be listed"):
            pin([f"{place}/b*.tar"])
    finally:
        server.shutdown()
        server.server_close()


def test_hidden_files_are_no_shards_and_said(tmp_path):
    heard: list[str] = []
    for name in ("a.tar", "b.tar", "._a.tar", "__MACOSX/._a.tar", ".cache/c.tar"):
        write_shard(tmp_path / name, samples(1))
    assert [s.url.rpartition("/")[2] for s in pin([f"{tmp_path}/*.tar"], note=heard.append)] == ["a.tar", "b.tar"]
    assert heard == [f"{tmp_path}/*.tar: 1 hidden or system file: ._a.tar; not read"]
    assert len(pin([f"{tmp_path}/**/*.tar"])) == 2
    assert len(pin([f"{tmp_path}/.cache/*.tar", f"{tmp_path}/._a.tar"])) == 2, "what is asked for by its name is read"
    assert len(pin([f"{tmp_path}/.*.tar"])) == 1
    (tmp_path / "list.txt").write_text("\ufeff" + "".join(f"{path}\r\n" for path in sorted(tmp_path.rglob("*.tar"))))
    assert len(pin([str(tmp_path / "list.txt")], note=heard.append)) == 3
    assert heard[1:] == [f"{tmp_path}/list.txt: 2 hidden or system files, such as {tmp_path}/._a.tar; not read"]
    assert len(pin([f"{tmp_path}/*.tar"], reader=1)) == 3


def test_a_glob_says_what_it_does_not_read(tmp_path):
    heard: list[str] = []
    write_shard(tmp_path / "a.tar", samples(1))
    (tmp_path / "b.tar").symlink_to("nowhere")
    (tmp_path / "c.tar").mkdir()
    pin([f"{tmp_path}/*"], note=heard.append)
    assert heard == [f"{tmp_path}/*: 1 broken link: b.tar; 1 folder: c.tar; not read"]
    with pytest.raises(ConfigError, match=r"\[bc\].tar: matches no file; 1 broken link: b.tar; 1 folder: c.tar$"):
        pin([f"{tmp_path}/[bc].tar"])


def test_the_name_given_tells_the_kind_of_a_shard_wherever_a_link_leads(tmp_path):
    (tmp_path / "store").mkdir()
    for number, (name, data) in enumerate(
        [("x.tar", write_samples(samples(2))), ("y.tgz", gzipped(samples(3))), ("z.tar", write_samples(samples(1)))]
    ):
        (tmp_path / "store" / str(number)).write_bytes(data)
        (tmp_path / name).symlink_to(f"store/{number}")
    shards = pin([f"{tmp_path}/*.t*"])
    assert found(shards) == [(f"file://{tmp_path}/{name}", n) for name, n in (("x.tar", 2), ("y.tgz", 3), ("z.tar", 1))]
    assert [shard.id.partition("-")[0] for shard in shards] == ["x", "y", "z"]


def gzipped(content):
    import gzip

    return gzip.compress(write_samples(content))


def test_a_link_to_a_shard_of_the_same_kind_is_that_shard(tmp_path):
    write_shard(tmp_path / "a.tar", samples(1))
    (tmp_path / "b.tar").symlink_to("a.tar")
    (tmp_path / "folder").symlink_to(tmp_path)
    assert len(pin([str(tmp_path / name) for name in ("a.tar", "b.tar", "folder/b.tar")])) == 1
    (tmp_path / "c.tar.gz").symlink_to("a.tar")
    assert len(pin([str(tmp_path / name) for name in ("a.tar", "c.tar.gz")])) == 2


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (write_samples(samples(1)), "not a shard by its name; it holds a tar: let the name, .* end in .tar$"),
        (b"PAR1" + bytes(50), "it holds Parquet: .* end in .parquet$"),
        (gzipped(samples(1)), "it holds gzip: .* end in .tar.gz$"),
        (b"PK\x03\x04", "not a shard but a zip archive; possible are"),
        (jpeg(1), "not a shard but a JPEG; possible are .* folders of images"),
        (b"\0", "not a shard; possible are"),
        (b"", "not a shard; possible are"),
    ],
)
def test_a_file_whose_name_tells_nothing_is_refused_with_what_it_is(tmp_path, data, said):
    (tmp_path / "1").write_bytes(data)
    with pytest.raises(ConfigError, match=said) as caught:
        pin([str(tmp_path / "1")])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.tar", gzipped(samples(1)), r"its name ends in \.tar, and it holds gzip: let .* end in \.tar\.gz$"),
        (
            "a.tar.gz",
            write_samples(samples(1)),
            r"its name ends in \.tar\.gz, and it holds a tar: let .* end in \.tar$",
        ),
        ("a.tzst", b"PAR1" + bytes(600), r"its name ends in \.tzst, and it holds Parquet: let .* end in \.parquet$"),
        ("a.parquet", write_samples(samples(1)), r"its name ends in \.parquet, and it holds a tar: "),
        ("a.tar", b"<html>not found</html>" * 100, r"its name ends in \.tar, and it holds a web page$"),
        ("a.tgz", b"", "an empty file|damaged at byte 0"),
    ],
)
def test_a_shard_that_holds_another_kind_than_its_name_says_is_told_in_one_line(tmp_path, name, data, said):
    (tmp_path / name).write_bytes(data)
    [shard] = pin([str(tmp_path / name)])
    with pytest.raises(CorruptShard, match=said) as caught:
        list(read_shard(shard))
    assert "\n" not in str(caught.value)
    assert "holds" in count([shard]).damaged[0] or not data


def test_a_folder_named_as_a_list_or_a_shard_is_a_folder(tmp_path):
    for name in ("photos.txt", "photos.tar"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.jpg").write_bytes(jpeg(1))
    assert [len(list(read_shard(shard))) for shard in pin([f"{tmp_path}/photos.txt", f"{tmp_path}/photos.tar"])] == [
        1,
        1,
    ]


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("s3://b/a?b.tar", "s3://b/a?b.tar"),
        ("s3://b/a.php?id=3.jpg", "s3://b/a.php?id=3.jpg"),
        ("s3://b/a.tar?X-Amz-Credential=x.tar&X-Amz-Signature=y", "s3://b/a.tar"),
        ("s3://b/a?b?versionId=1", "s3://b/a?b"),
        ("https://h/a?b.tar", "https://h/a"),
    ],
)
def test_a_question_mark_is_a_letter_in_the_name_of_an_object_and_a_query_is_not_shown(url, shown):
    assert redact(url) == shown
    assert canonical(url) == shown


def test_colons_chain_urls_only_where_a_url_follows():
    assert protocol_of("s3://b/a::b.tar") == "s3"
    for chained in ("s3://b/a::s3://b/c", "simplecache::s3://b/a", "simplecache::a.tar"):
        with pytest.raises(ConfigError, match="chained"):
            protocol_of(chained)
