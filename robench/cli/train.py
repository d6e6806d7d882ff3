"""`robench train`: follow a recipe."""

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from robench.cli.screen import bar, err, interruptible, out


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

    def notice(self, text: str) -> None:
        err.print(text, markup=False)

    def step(self, epoch: int, step: int, loss: float) -> None:
        done = epoch * self._steps + step + 1
        self._bar.update(self._task, completed=done, note=f"epoch {epoch + 1}, loss {loss:.3f}")

    def epoch(self, line: dict[str, Any]) -> None:
        shown = ", ".join(f"{name} {value}" for name, value in line.items() if name not in ("epoch", "lr"))
        err.print(f"epoch {line['epoch'] + 1}: {shown}")

    def end(self) -> None:
        self._bar.stop()


def _print_list() -> None:
    from robench.training import bundled_recipes, resolve_recipe

    table = Table()
    for heading in ("recipe", "epochs", "trained against"):
        table.add_column(heading, no_wrap=True)
    table.add_column("extends", overflow="fold")
    for name in bundled_recipes():
        resolved = resolve_recipe(name)
        adversary = resolved.recipe.adversary
        against = f"PGD-{adversary.steps}, {adversary.norm} {adversary.epsilon}" if adversary else "-"
        table.add_row(name, str(resolved.recipe.schedule.epochs), against, "".join(resolved.lineage[:1]))
    out.print(table)


def train(
    recipe: Annotated[str | None, typer.Argument(help="Name of a bundled recipe or a TOML file.")] = None,
    list_: Annotated[bool, typer.Option("--list", help="List the bundled recipes, as without a recipe.")] = False,
    show: Annotated[
        bool, typer.Option("--show", help="Print the whole recipe, with the origin of every value, and stop.")
    ] = False,
    folder: Annotated[Path, typer.Option("--out", help="Where checkpoint, log and weights go.")] = Path("trained"),
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; by default what torch chooses.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder with ImageNet's `train` and `val`.")] = None,
    teacher: Annotated[Path | None, typer.Option(help="Weights of the teacher; default under --out.")] = None,
    workers: Annotated[int | None, typer.Option(min=0, help="Processes that decode images; default up to 4.")] = None,
    cpu: Annotated[bool, typer.Option("--cpu", help="Leave a GPU alone.")] = False,
    minutes: Annotated[float, typer.Option(min=0, help="Between checkpoints inside an epoch.")] = 10.0,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write what TensorBoard reads, too.")] = False,
    push: Annotated[str | None, typer.Option(metavar="REPO", help="Put the model on the Hub: `org/name`.")] = None,
) -> None:
    """Train a model by a recipe; the same call again goes on where it was stopped.

    On several GPUs: `torchrun --nproc-per-node 4 -m robench train RECIPE`.
    """
    from robench.training import resolve_recipe

    if list_ or recipe is None:
        _print_list()
        return
    resolved = resolve_recipe(recipe)
    if show:
        out.print(resolved.as_toml(), markup=False, highlight=False, soft_wrap=True)
        return
    import torch

    from robench.environment import environment
    from robench.heap import keep_freed_memory
    from robench.training import Options
    from robench.training import train as follow
    from robench.training.export import check_push, export_path
    from robench.training.export import push as push_folder

    keep_freed_memory()
    if threads is not None:
        torch.set_num_threads(threads)
    if push is not None:
        check_push(export_path(resolved.recipe, folder), push)
    screen = _Screen()
    options = Options(data, teacher, workers, cpu, minutes, tensorboard)
    with interruptible("the same command goes on after the last checkpoint."), ExitStack() as after:
        after.callback(screen.end)
        provenance = {"environment": environment(), "threads": torch.get_num_threads()}
        weights = follow(resolved.recipe, folder, provenance=provenance, watcher=screen, options=options)
    if os.environ.get("RANK", "0") != "0":  # under torchrun the first process speaks for all
        return
    out.print(f"Weights: {weights}\nLog: {weights.with_suffix('.jsonl')}", markup=False)
    if push is not None:
        out.print(f"On the Hub: {push_folder(weights, push)}", markup=False)
