"""The commands and how they fail."""

import sys

import typer

from robench.cli.bench import bench
from robench.cli.catalogue import list_, show
from robench.cli.comment import comment
from robench.cli.compare import compare
from robench.cli.data import data
from robench.cli.doctor import doctor
from robench.cli.evaluate import evaluate, resume
from robench.cli.export import export
from robench.cli.leaderboard import leaderboard
from robench.cli.ranks import guard
from robench.cli.refute import refute
from robench.cli.reproduce import reproduce
from robench.cli.screen import err
from robench.cli.submit import submit
from robench.cli.sweep import estimate, sweep
from robench.cli.textures import textures
from robench.cli.train import train
from robench.cli.validate import validate
from robench.cli.verify import reattack, verify
from robench.cli.zoo import convert, zoo
from robench.errors import RobenchError
from robench.heap import keep_freed_memory

app = typer.Typer(
    name="robench",
    help="The robustness benchmark for image classifiers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("list")(list_)
for command in (
    show,
    evaluate,
    resume,
    sweep,
    estimate,
    compare,
    submit,
    validate,
    verify,
    refute,
    leaderboard,
    comment,
    train,
    reproduce,
    zoo,
    convert,
    doctor,
    bench,
):
    app.command()(command)
app.command(hidden=True)(reattack)
app.add_typer(data, name="data")
app.add_typer(export, name="export")
app.add_typer(textures, name="textures")


@app.callback()
def _robench() -> None:
    pass


def main() -> None:
    """Run the command line."""
    try:
        if sys.argv[1:2] == ["evaluate"]:
            guard()
        keep_freed_memory()
        app()
    except RobenchError as error:
        err.print(f"error: {error}", style="red", markup=False)
        sys.exit(2)
