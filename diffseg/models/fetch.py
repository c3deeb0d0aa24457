"""Where a model's files come from: the package, a folder, the hub, or any storage that fsspec reaches.

A name goes in, a local folder with its digest comes out. No torch: a driver asks here what it is about to run.
"""

import hashlib
import json
import os
import re
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from diffseg.models.cache import ORIGIN, PARTIAL, create_once, origin_of
from diffseg.models.files import POSSIBLE, ModelFiles, Read, beside, listing_of, needed, reader_of
from diffseg.models.parts import first_line
from diffseg.models.recognise import named, read_json
from diffseg.models.specs import CONFIG, MODELS, licence_of
from diffseg.models.unet.recognise import norms_latents
from diffseg.models.vit.recognise import reading, recognise_vit

HUB_ID = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>[\w./-]+))?")
Needed = Callable[[str, list[str], Read], list[str]]  # see `diffseg.models.files.needed`
HUB_TIMEOUT = 20  # seconds for the hub to name a commit, before what was fetched earlier is used


def cache_folder() -> Path:
    """The folder where this machine keeps copies of models and compiled kernels."""
    return Path(os.environ.get("DIFFSEG_CACHE", Path.home() / ".cache" / "diffseg")).absolute()


def fetch(model: str, cache: Path | None = None, wanted: Needed = needed) -> ModelFiles:
    """Copy a model to this machine, once, and identify it exactly.

    cache: where copies from storage are kept, `~/.cache/diffseg` by default; of several processes one fetches.
    wanted: which files of a listing; those of a model that segments by default.
    Raises ValueError where there is no usable checkpoint under that name, OSError where it cannot be reached now.
    """
    folder, revision = _locate(model, cache or cache_folder(), wanted)
    listing = listing_of(folder)
    names = wanted(repr(_public(model)), listing, reader_of(folder))
    digest = _digest(_public(model), folder, names, segments=wanted is needed)
    if origin := origin_of(folder, digest):
        revision = origin.revision
    return ModelFiles(_public(model), folder, revision, digest, licence_of(origin.model if origin else model))


def bytes_arriving() -> int:
    """Bytes of unfinished model downloads to this machine, by all processes: they grow while a download proceeds."""
    unfinished = list(cache_folder().glob(f"{PARTIAL}*/**/*"))
    if hub := sys.modules.get("huggingface_hub.constants"):  # without that import nothing comes from the hub
        unfinished += Path(hub.HF_HUB_CACHE).glob("models--*/blobs/*.incomplete")
    total = 0
    for path in unfinished:
        with suppress(OSError):  # it has arrived
            total += path.stat().st_size
    return total


def _digest(model: str, folder: Path, names: list[str], *, segments: bool) -> str:
    def of(name: str) -> bytes:
        with (folder / name).open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()

    with ThreadPoolExecutor() as pool:  # hashing releases the interpreter's lock: gigabytes take seconds
        digests = list(pool.map(of, names))
    whole = hashlib.sha256()
    for name, digest in zip(names, digests, strict=True):
        whole.update(name.encode() + b"\0" + digest)
    if not segments:
        return whole.hexdigest()
    if CONFIG in names:
        with named(files := ModelFiles(model, folder, None, "")):
            whole.update(json.dumps(reading(recognise_vit(files))).encode())
    elif norms_latents(read_json(folder / "vae" / "config.json")):
        whole.update(b"normed latents")  # 0.1.0 ignored that: its runs have other labels
    return whole.hexdigest()


def _locate(model: str, cache: Path, wanted: Needed) -> tuple[Path, str | None]:
    if not model:
        raise ValueError(f"no model was named; {POSSIBLE}")
    if model == "tiny":
        return Path(__file__).parents[1] / "tiny", None
    if model in MODELS:
        return _from_hub(model, MODELS[model].repo or model, None, wanted)
    if "://" in model and not model.startswith("file://"):
        return _from_storage(model, cache, wanted), None
    path = Path(model.removeprefix("file://")).expanduser()
    if path.is_dir():
        return path.resolve(), None
    if path.exists():
        raise ValueError(f"{model!r} is a file; {POSSIBLE}")
    if match := HUB_ID.fullmatch(model):
        return _from_hub(model, match["repo"], match["revision"], wanted)
    raise ValueError(f"there is no model {model!r}; {POSSIBLE}")


def _from_hub(name: str, repo: str, revision: str | None, wanted: Needed) -> tuple[Path, str]:
    """Resolve a hub id to a commit and download its files; without a network use what was downloaded before."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    asked = f"{name!r} ({repo} on huggingface.co)"
    try:
        known = HfApi().model_info(repo, revision=revision, timeout=HUB_TIMEOUT)
        listing = [file.rfilename for file in known.siblings or ()]

        def read(name: str) -> bytes:
            return (Path(snapshot_download(repo, revision=known.sha, allow_patterns=[name])) / name).read_bytes()

        names = [*wanted(asked, listing, read), *beside(listing)]
        return Path(snapshot_download(repo, revision=known.sha, allow_patterns=names)), str(known.sha)
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        reason = "is not there, is private, or wants its licence accepted and HF_TOKEN set"
        raise ValueError(f"{asked} {reason}; {POSSIBLE}") from error
    except ValueError:
        raise
    except Exception as error:  # noqa: BLE001 - each release of the hub's client raises another HTTP library's kinds
        try:
            folder = Path(snapshot_download(repo, revision=revision, local_files_only=True))
        except OSError:
            hint = "give a folder or an fsspec URL that holds the model, or fetch it once where there is a network"
            raise OSError(
                f"{asked} cannot be reached ({first_line(error)}) and was not fetched before; {hint}"
            ) from error
        return folder, folder.name


def _from_storage(url: str, cache: Path, wanted: Needed) -> Path:
    """Copy a folder on any storage to this machine, once for each version of its files."""
    import fsspec

    asked = repr(_public(url))
    if url.partition("://")[0] not in fsspec.available_protocols():
        raise ValueError(f"{asked} has a protocol that is not known here; {POSSIBLE}")
    try:
        storage, root = fsspec.url_to_fs(url)
        found = storage.find(root, detail=True)
    except ImportError as error:
        raise ValueError(f"{asked} wants a package that is not installed: {error}") from error
    except Exception as error:
        raise OSError(f"{asked} cannot be listed: {_describe(error)}") from error
    sources = {str(PurePosixPath(path).relative_to(root)): path for path in found if path != root}

    def read(name: str) -> bytes:
        try:
            return bytes(storage.cat_file(sources[name]))
        except Exception as error:  # each storage has errors of its own
            raise OSError(f"{asked}: {name} cannot be read: {_describe(error)}") from error

    names = [*wanted(asked, list(sources), read), *beside(sources), *({ORIGIN} & sources.keys())]
    state = json.dumps([url, [(name, _state(found[sources[name]])) for name in names]])
    target = cache / f"{PurePosixPath(root).name}-{hashlib.blake2b(state.encode(), digest_size=8).hexdigest()}"
    create_once(target, partial(_copy, storage, {name: sources[name] for name in names}))
    return target


def _copy(storage: Any, sources: dict[str, str], target: Path) -> None:
    for name, source in sources.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            storage.get_file(source, str(target / name))
            arrived, stored = (target / name).stat().st_size, storage.size(source)
        except Exception as error:  # each storage has errors of its own
            raise OSError(f"{source} cannot be copied: {_describe(error)}") from error
        if arrived != stored:
            raise OSError(f"{source} arrived short: {arrived} of {stored} bytes")


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"


def _state(info: dict[str, Any]) -> list[str]:
    """The version of a stored file, by the names that S3, Google, Azure, web servers and disks have for it."""
    return [
        str(info[key]) for key in ("size", "ETag", "etag", "md5Hash", "mtime", "LastModified", "created") if key in info
    ]


def _public(url: str) -> str:
    """The URL without user and query, which may be secrets."""
    return re.sub(r"//[^/@]*@", "//", url.partition("?")[0])
