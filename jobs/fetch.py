"""`diffseg fetch`: a hub model copied to storage once, with its revision and hash."""

from typing import Annotated

import typer

from jobs.shared import console, options


def fetch(
    model: Annotated[str, typer.Argument(metavar="HUB_ID", help="owner/name, sd1.5, sdxl, ..., or a folder.")],
    url: Annotated[str, typer.Argument(metavar="URL", help="Folder on any storage; give it to --model afterwards.")],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit. Default: the newest.")] = None,
    json: options.Json = False,
) -> None:
    """Copy a hub model to storage once, for clusters that then need no hub."""
    from diffseg.models import fetch as weights
    from diffseg.models.load import check
    from diffseg.models.specs import MODELS
    from pipeline.storage.model_mirror import copy_model
    from pipeline.worker.device_errors import loading_errors

    if revision and model in MODELS:
        model = MODELS[model].repo or model
    with loading_errors():
        files = weights.fetch(f"{model}@{revision}" if revision else model)
        check(files)
        origin, written = copy_model(files, url)
    if json:
        console.say_json({"url": url, "written": written, **{k: getattr(origin, k) for k in origin.__slots__}})
        return
    done = f"{console.size(written)} written" if written else "was there already"
    commit = f" at {origin.revision}" if origin.revision else ""
    console.say(f"{origin.model}{commit}, sha256 {origin.sha256}: {done} in {url}")
