"""`robench textures build`: make a dictionary of textures."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from robench.cli.screen import bar, err, interruptible, out
from robench.errors import RecipeError, complaint

if TYPE_CHECKING:
    from robench.synthesis import TextureRecipe

textures = typer.Typer(no_args_is_help=True, help="Make dictionaries of textures for attacks with patches.")


@textures.callback()
def _textures() -> None:
    pass


class _Screen:
    """Shows a build: a bar on a terminal, a line for each class everywhere."""

    def __init__(self) -> None:
        self._bar = bar()

    def begin(self, recipe: "TextureRecipe", classes: Sequence[int], finished: int) -> None:
        if finished:
            err.print(f"Going on: {finished} of {len(classes)} classes are finished.")
        self._steps, self._done = recipe.synthesis.steps, finished
        self._bar.start()
        self._task = self._bar.add_task("textures", total=len(classes) * self._steps, note="")
        self._bar.update(self._task, completed=self._done * self._steps)

    def reading(self, label: int) -> None:
        self._bar.update(self._task, note=f"class {label}, its images")

    def step(self, label: int, step: int, distance: float) -> None:
        completed = self._done * self._steps + step + 1
        self._bar.update(self._task, completed=completed, note=f"class {label}, distance {distance:.3g}")

    def made(self, line: dict[str, Any]) -> None:
        self._done += 1
        start, mean = line["distance_at_start"], sum(line["distance"]) / len(line["distance"])
        counts = f"{line['right']} of {line['images']} images right"
        err.print(f"class {line['class']}: {counts}, distance {start:.3g} to {mean:.3g}, {line['seconds']:.0f} s")

    def end(self) -> None:
        self._bar.stop()


@textures.command()
def build(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where dictionary, log and contact sheet go.")],
    recipe: Annotated[str, typer.Option(help="`imagenet`, `mini`, or a TOML file.")] = "imagenet",
    data: Annotated[Path | None, typer.Option(help="Folder of images, one sub-folder for each class.")] = None,
    model: Annotated[str | None, typer.Option(help="Another model than the recipe's, with the same layers.")] = None,
    weights: Annotated[Path | None, typer.Option(help="A safetensors file for the model.")] = None,
    classes: Annotated[str | None, typer.Option(help="Class numbers, such as `45,723`; default all.")] = None,
    device: Annotated[str | None, typer.Option(help="Such as `cuda`; default the CPU.")] = None,
    workers: Annotated[int | None, typer.Option(min=0, help="Processes that decode images; default up to 4.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; by default what torch chooses.")] = None,
) -> None:
    """Build a dictionary of textures; the same call again goes on where it was stopped."""
    import torch

    from robench.classifier import check_device
    from robench.environment import environment
    from robench.synthesis import build as make
    from robench.synthesis import load_recipe, open_images
    from robench.zoo import load_model

    wanted = _numbers(classes) if classes is not None else None
    chosen = load_recipe(recipe)
    if model is not None:
        chosen = chosen.model_copy(update={"model": model})
    if threads is not None:
        torch.set_num_threads(threads)
    check_device(device or "cpu", "robench textures build")
    screen = _Screen()
    with interruptible("the same command goes on after the last finished class."), ExitStack() as after:
        after.callback(screen.end)
        source = open_images(chosen, data, workers=workers)
        provenance = {"source": source.name, "environment": environment(), "threads": torch.get_num_threads()}
        network = load_model(chosen.model, weights=weights).eval().to(device or "cpu")
        made = make(chosen, source, network, folder, classes=wanted, provenance=provenance, watcher=screen)
    count, each = made.textures.shape[:2]
    out.print(f"{count} classes of {each} textures, {made.size} pixels: {folder}", markup=False)
    out.print(f'textures_sha256 = "{made.sha256}"', markup=False)
    out.print(f"Look at {folder / 'contact-sheet.png'}.", markup=False)


def _numbers(text: str) -> list[int]:
    """Class numbers of a list with commas."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise RecipeError(
            complaint("robench textures build", "classes", f"`{text}`", "class numbers, such as `45,723`")
        )
    return [int(part) for part in parts]
