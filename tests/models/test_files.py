import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import fsspec
import huggingface_hub
import pytest

from diffseg.models.cache import LOCK
from diffseg.models.fetch import fetch
from diffseg.models.files import needed, weight_files
from infra.embedded.checkpoints import random_checkpoint

UNET = "unet/diffusion_pytorch_model"
SETTINGS = [
    "model_index.json",
    "unet/config.json",
    "vae/config.json",
    "text_encoder/config.json",
    "tokenizer/vocab.json",
    "tokenizer/merges.txt",
    "scheduler/scheduler_config.json",
]
WHOLE = [f"{UNET}.safetensors", "vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"]
HUB = [*SETTINGS, *WHOLE, "README.md", "v1-5.ckpt", f"{UNET}.bin", f"{UNET}.fp16.safetensors"]


def copies(cache: Path) -> list[str]:
    """What lies in a cache beside its lock."""
    return [str(path) for path in cache.iterdir() if path.name != LOCK]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return random_checkpoint("tiny", tmp_path_factory.mktemp("weights") / "saved", small=True)


@pytest.fixture
def folder(saved, tmp_path):
    """A checkpoint to change."""
    return shutil.copytree(saved, tmp_path / "model")


@pytest.fixture
def remote(saved):
    """The same checkpoint on an object store in memory."""
    store = fsspec.filesystem("memory")
    store.rm("/models", recursive=True) if store.exists("/models") else None
    for path in saved.rglob("*"):
        if path.is_file():
            store.pipe_file(f"/models/mine/{path.relative_to(saved).as_posix()}", path.read_bytes())
    return store


def test_only_what_decides_labels_is_taken():
    taken = needed("x", HUB)
    assert set(taken) == {*WHOLE, *SETTINGS[1:-1]}


def test_half_precision_is_taken_where_there_is_no_full():
    halves = [name.replace(".safetensors", ".fp16.safetensors") for name in WHOLE]
    assert set(halves) < set(needed("x", [*SETTINGS, *halves]))


def test_all_shards_of_a_part_are_taken_or_none():
    shards = [f"{UNET}-0000{i}-of-00002.safetensors" for i in (1, 2)]
    others = [*SETTINGS, *WHOLE[1:], f"{UNET}.safetensors.index.json"]
    assert set(shards) < set(needed("x", [*others, *shards]))
    with pytest.raises(ValueError, match=f"no {UNET}.safetensors"):
        needed("x", [*others, shards[0]])


@pytest.mark.parametrize(
    ("listing", "line"),
    [
        ([], "no unet/diffusion_pytorch_model.safetensors"),
        ([*SETTINGS, f"{UNET}.bin"], "holds unet only as a pickle, which is a program"),
        ([*SETTINGS, *WHOLE[:2], "text_encoder/pytorch_model.bin"], "holds text_encoder only as a pickle"),
        ([*SETTINGS[2:], *WHOLE], "no unet/config.json"),
        ([*SETTINGS[:4], *WHOLE], "no tokenizer/vocab.json"),
    ],
)
def test_a_folder_that_is_no_checkpoint_is_refused_with_what_is_possible(listing, line):
    with pytest.raises(ValueError, match=line) as refusal:
        needed("'x'", listing)
    assert "possible are sd1.4" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_folder_is_used_where_it_lies(folder):
    files = fetch(str(folder))
    assert (files.name, files.folder, files.revision) == (str(folder), folder, None)
    assert fetch(f"file://{folder}").sha256 == files.sha256
    assert [path.name for path in weight_files(folder, "unet")] == ["diffusion_pytorch_model.safetensors"]


def test_the_digest_follows_what_decides_labels_and_nothing_else(folder, tmp_path):
    before = fetch(str(folder)).sha256
    assert fetch(str(shutil.copytree(folder, tmp_path / "elsewhere"))).sha256 == before
    (folder / "README.md").write_text("words")
    (folder / "scheduler" / "scheduler_config.json").write_text("{}")
    assert fetch(str(folder)).sha256 == before
    digests = {before}
    for name in ("diffseg.json", "vae/config.json", "tokenizer/merges.txt", f"{UNET}.safetensors"):
        with (folder / name).open("ab") as file:
            file.write(b" ")
        digests.add(fetch(str(folder)).sha256)
    assert len(digests) == 5


def test_a_model_on_storage_is_copied_once_for_each_state_it_was_in(remote, saved, tmp_path):
    first = fetch("memory://models/mine", tmp_path)
    assert first.sha256 == fetch(str(saved)).sha256
    remote_reads: list[object] = []
    remote.get_file, original = remote_reads.append, remote.get_file
    try:
        assert fetch("memory://models/mine", tmp_path) == first
    finally:
        remote.get_file = original
    remote.pipe_file("/models/mine/diffseg.json", b'{"timestep": 50}')
    changed = fetch("memory://models/mine", tmp_path)
    assert changed.folder != first.folder
    assert changed.sha256 != first.sha256


def test_all_who_race_for_a_model_end_with_one_whole_copy(saved, tmp_path):
    gate = threading.Barrier(4)

    def race(_):
        gate.wait()
        return fetch(f"local://{saved}", tmp_path)

    with ThreadPoolExecutor(4) as pool:
        found = set(pool.map(race, range(4)))
    assert len(found) == 1
    assert copies(tmp_path) == [str(found.pop().folder)]


def test_a_copy_that_breaks_off_leaves_nothing_behind(remote, tmp_path, monkeypatch):
    def short(source, target):
        with open(target, "wb") as file:  # noqa: PTH123 - as a store's client would
            file.write(remote.cat_file(source)[:-1])

    monkeypatch.setattr(remote, "get_file", short)
    with pytest.raises(OSError, match=r"arrived short: \d+ of \d+ bytes"):
        fetch("memory://models/mine", tmp_path)
    assert copies(tmp_path) == []


@pytest.mark.parametrize(
    ("model", "line"),
    [
        ("", "no model was named"),
        ("sd9", "there is no model 'sd9'"),
        ("./nowhere", "there is no model './nowhere'"),
        (__file__, "is a file"),
        ("pipe:ls", "there is no model 'pipe:ls'"),
        ("foo://x", "'foo://x' has a protocol that is not known"),
        ("memory://none", "'memory://none' is no Stable Diffusion checkpoint"),
    ],
)
def test_a_name_that_leads_nowhere_is_answered_with_what_is_possible(model, line):
    with pytest.raises(ValueError, match=line) as refusal:
        fetch(model)
    assert "possible are sd1.4" in str(refusal.value)


def test_secrets_in_a_url_are_neither_kept_nor_told():
    with pytest.raises(ValueError, match="protocol") as refusal:
        fetch("foo://me:secret@host/model?token=secret")
    assert "'foo://host/model'" in str(refusal.value)
    assert "secret" not in str(refusal.value)


class FakeHub:
    """A hub with one repository at one commit, or none that answers."""

    def __init__(self, folder, failure=None):
        self.folder, self.failure, self.calls = folder, failure, []

    def model_info(self, repo, revision=None, timeout=None):
        if self.failure:
            raise self.failure
        names = [path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file()]
        return SimpleNamespace(sha="c0ffee", siblings=[SimpleNamespace(rfilename=name) for name in names])

    def snapshot_download(self, repo, **arguments):
        self.calls.append((repo, arguments))
        if arguments.get("local_files_only") and self.folder is None:
            raise FileNotFoundError("not in the cache")
        return str(self.folder)


def offer(monkeypatch, hub):
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    return hub


def test_a_hub_id_is_resolved_to_a_commit_before_a_byte_is_taken(monkeypatch, saved):
    hub = offer(monkeypatch, FakeHub(saved))
    files = fetch("sd1.5")
    (repo, arguments), *_ = hub.calls
    assert repo == "stable-diffusion-v1-5/stable-diffusion-v1-5"
    assert arguments["revision"] == files.revision == "c0ffee"
    assert "model_index.json" not in arguments["allow_patterns"]
    assert f"{UNET}.safetensors" in arguments["allow_patterns"]


def test_a_revision_may_be_named(monkeypatch, saved):
    hub = offer(monkeypatch, FakeHub(saved, ConnectionError("no network")))
    fetch("owner/model@v2")
    assert hub.calls == [("owner/model", {"revision": "v2", "local_files_only": True})]


def test_without_a_network_what_was_fetched_before_is_used(monkeypatch, saved):
    offer(monkeypatch, FakeHub(saved, ConnectionError("no network")))
    assert fetch("owner/model").revision == saved.name


def test_without_a_network_and_a_copy_one_line_says_what_to_do(monkeypatch):
    offer(monkeypatch, FakeHub(None, ConnectionError("no network")))
    with pytest.raises(OSError, match=r"'sd1\.5'.*cannot be reached \(no network\).*give a folder or an fsspec URL"):
        fetch("sd1.5")


def test_a_repository_that_is_no_checkpoint_is_refused_before_the_download(monkeypatch, tmp_path):
    (tmp_path / "README.md").write_text("a language model")
    hub = offer(monkeypatch, FakeHub(tmp_path))
    with pytest.raises(ValueError, match=r"'owner/model'.*is no Stable Diffusion checkpoint"):
        fetch("owner/model")
    assert hub.calls == []
