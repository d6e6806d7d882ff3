"""`robench train`: follow a recipe."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from robench.cli.screen import bar, err, out


class _Screen:
    """Shows a training: a bar on a terminal, a line per epoch everywhere."""

    def __init__(self) -> None:
        self._bar = bar()
        self._steps = 0

    def begin(self, recipe: Any, *, steps: int, finished_epochs: int) -> None:
        if finished_epochs:
            err.print(f"Going on after epoch {finished_epochs} of {recipe.schedule.epochs}.")
        self._steps = steps
        self._bar.start()
        total = steps * recipe.schedule.epochs
        self._task = self._bar.add_task(recipe.name, total=total, completed=steps * finished_epochs, note="")

    def step(self, epoch: int, step: int, loss: float) -> None:
        done = epoch * self._steps + step + 1
        self._bar.update(self._task, completed=done, note=f"epoch {epoch + 1}, loss {loss:.3f}")

    def epoch(self, line: dict[str, Any]) -> None:
        shown = ", ".join(f"{name} {value}" for name, value in line.items() if name not in ("epoch", "lr"))
        err.print(f"epoch {line['epoch'] + 1}: {shown}")

    def end(self) -> None:
        self._bar.stop()


def train(
    recipe: Annotated[
        str | None, typer.Argument(help="Name of a bundled recipe or a TOML file; none lists them.")
    ] = None,
    folder: Annotated[Path, typer.Option("--out", help="Where checkpoint, log and weights go.")] = Path("trained"),
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; by default what torch chooses.")] = None,
) -> None:
    """Train a model by a recipe; the same call again goes on where it was stopped."""
    from robench.training import bundled_recipes, load_recipe

    if recipe is None:
        table = Table("recipe", "architecture", "epochs", "trained against")
        for name in bundled_recipes():
            each = load_recipe(name)
            against = (
                f"PGD-{each.adversary.steps}, {each.adversary.norm} {each.adversary.epsilon}" if each.adversary else "-"
            )
            table.add_row(name, each.architecture, str(each.schedule.epochs), against)
        out.print(table)
        return
    import torch

    from robench.environment import environment
    from robench.training import train as follow

    if threads is not None:
        torch.set_num_threads(threads)
    screen = _Screen()
    try:
        provenance = {"environment": environment(), "threads": torch.get_num_threads()}
        weights = follow(load_recipe(recipe), folder, provenance=provenance, watcher=screen)
    except KeyboardInterrupt:
        screen.end()
        err.print("Interrupted; the same command goes on after the last whole epoch.")
        raise typer.Exit(130) from None
    finally:
        screen.end()
    out.print(f"Weights: {weights}\nLog: {weights.with_suffix('.jsonl')}", markup=False)
