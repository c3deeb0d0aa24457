"""`python -m infra.embedded.train`: train the embedded model from nothing, on a processor or a GPU.

The output folder holds `model/` (what `--model` takes), `state.pt` (for going on), `curve.csv` and two pictures:
`curve.png` and `sheet.png`, unseen scenes with their truth and the model's segments.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from jobs.shared import console
from pipeline import process

PLOT = (900, 360)  # pixels
INK, GRID = {"noise": (230, 159, 0), "grouping": (0, 114, 178)}, (225, 225, 225)
SHEET = 101  # seed space of the pictured scenes, apart from training's and the benchmark's
TILE = 192  # pixels


def train(
    steps: Annotated[int, typer.Option("--steps", help="Batches to learn from.")],
    output: Annotated[Path, typer.Option("--output", help="Folder for model, state, curve and pictures.")],
    size: Annotated[int, typer.Option("--size", help="Side of the scenes in pixels, a multiple of 64.")] = 256,
    seed: Annotated[int, typer.Option("--seed", help="Everything random follows from it.")] = 0,
    batch: Annotated[int, typer.Option("--batch", help="Scenes a step.")] = 6,
    learning_rate: Annotated[float, typer.Option("--learning-rate")] = 1e-3,
    start_from: Annotated[Path | None, typer.Option("--from", help="A trained model's folder to begin with.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the output folder's state.")] = False,
    every: Annotated[int, typer.Option("--every", help="Steps between two checkpoints.")] = 200,
    device: Annotated[str, typer.Option("--device", help="cpu or cuda.")] = "cpu",
    bfloat16: Annotated[bool, typer.Option("--bfloat16", help="Faster where the hardware has it.")] = False,
) -> None:
    """Train the embedded model on generated scenes."""
    import torch

    from infra.embedded.trainer import Recipe, Trainer

    if device == "cpu":
        torch.set_num_threads(1)  # two threads on busy cores are slower than one, and no two sums alike
    recipe = Recipe(steps=steps, size=size, seed=seed, batch=batch, learning_rate=learning_rate, bfloat16=bfloat16)
    trainer = Trainer(recipe, device)
    if start_from is not None:
        trainer.start_from(read_weights(start_from))
    if resume:
        trainer.resume(read_state(output))
    output.mkdir(parents=True, exist_ok=True)
    history = History(output / "curve.csv", trainer.step)
    for report in trainer.run():
        history.add(report.step, report.noise, report.grouping)
        if report.step % 25 == 0:
            console.note(f"step {report.step} of {steps} | noise {report.noise:.3f} | grouping {report.grouping:.3f}")
        if report.step % every == 0 or report.step == steps:
            keep(trainer, history, output)
    console.say(f"model: {output / 'model'}")


class History:
    """The losses so far, kept as CSV so that a resumed run has the whole curve."""

    def __init__(self, path: Path, steps: int) -> None:
        self.path = path
        lines = path.read_text().splitlines()[1:] if steps and path.exists() else []
        self.rows = [(int(step), float(noise), float(grouping)) for step, noise, grouping in map(_cells, lines)][:steps]

    def add(self, step: int, noise: float, grouping: float) -> None:
        """Note one step."""
        self.rows.append((step, noise, grouping))

    def write(self) -> None:
        """Put the whole curve on disk."""
        lines = [f"{step},{noise:.5f},{grouping:.5f}" for step, noise, grouping in self.rows]
        self.path.write_text("\n".join(["step,noise,grouping", *lines]) + "\n")


def _cells(line: str) -> list[str]:
    return line.split(",")


def read_weights(folder: Path) -> Any:
    """The UNet of a model that was saved before, in float32."""
    from diffseg.models.unet.loading import read_part

    return {name: weight.float() for name, weight in read_part(folder, "unet").state_dict().items()}


def read_state(folder: Path) -> Any:
    """Raises typer.BadParameter where there is nothing to go on from."""
    import torch

    path = folder / "state.pt"
    if not path.exists():
        raise typer.BadParameter(f"--resume: there is no {path} to go on from")
    return torch.load(path, weights_only=True)


def keep(trainer: Any, history: History, output: Path) -> None:
    """Write model, state and pictures; the state last and in one step, so that it is never half there."""
    import torch

    history.write()
    model = trainer.save(output / "model")
    draw_curve(history.rows).save(output / "curve.png")
    draw_sheet(model).save(output / "sheet.png")
    torch.save(trainer.state(), output / "state.new")
    (output / "state.new").replace(output / "state.pt")


def draw_curve(rows: list[tuple[int, float, float]]) -> Any:
    """Both losses over the steps, each smoothed over a fiftieth of them."""
    import numpy as np
    from PIL import Image, ImageDraw

    image = Image.new("RGB", PLOT, "white")
    draw = ImageDraw.Draw(image)
    values = np.array(rows)
    top = float(np.ceil(values[:, 1:].max()))
    for level in range(int(top) + 1):
        y = PLOT[1] * (1 - level / top)
        draw.line([0, y, PLOT[0], y], fill=GRID)
        draw.text((4, y - 12), str(level), fill="black")
    window = max(1, len(values) // 50)
    for column, (name, ink) in enumerate(INK.items(), start=1):
        smooth = np.convolve(values[:, column], np.ones(window) / window, mode="valid")
        x = np.linspace(0, PLOT[0], len(smooth))
        if len(smooth) > 1:
            draw.line(list(zip(x.tolist(), (PLOT[1] * (1 - smooth / top)).tolist(), strict=True)), fill=ink, width=2)
        draw.text((PLOT[0] - 90, 10 + 14 * column), name, fill=ink)
    return image


def draw_sheet(model: Path, count: int = 12) -> Any:
    """Unseen scenes in columns: the picture, its truth, the model's segments."""
    import numpy as np
    from PIL import Image

    from diffseg import DiffSeg
    from diffseg.draw import overlay
    from infra.scenes.scene import draw_scene

    segmenter = DiffSeg.from_pretrained(str(model), device="cpu")
    columns = []
    for number in range(count):
        scene = draw_scene(np.random.default_rng([SHEET, number]), (256, 256))
        [found] = segmenter.segment([scene.image])
        views = (scene.image, overlay(scene.image, scene.truth), overlay(scene.image, found.label_map))
        columns.append(np.concatenate([np.asarray(Image.fromarray(view).resize((TILE, TILE))) for view in views]))
    half = (count + 1) // 2
    return Image.fromarray(np.concatenate([np.concatenate(columns[:half], 1), np.concatenate(columns[half:], 1)]))


if __name__ == "__main__":
    process.run(lambda: typer.run(train))
