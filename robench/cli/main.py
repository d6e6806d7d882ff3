"""The commands and how they fail."""

import sys
from importlib import metadata
from io import TextIOWrapper
from typing import Annotated, NoReturn

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
from robench.cli.screen import err, out
from robench.cli.submit import submit
from robench.cli.sweep import estimate, sweep
from robench.cli.textures import textures
from robench.cli.train import train
from robench.cli.validate import validate
from robench.cli.verify import reattack, verify
from robench.cli.zoo import convert, zoo
from robench.errors import RobenchError, complaint

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


def _version(asked: bool) -> None:
    if asked:
        out.print(f"robench {metadata.version('robench')}")
        raise typer.Exit


@app.callback()
def _robench(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version, and stop.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line."""
    if isinstance(sys.stdout, TextIOWrapper):  # a name that the terminal cannot show must not cost a result
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        if sys.argv[1:2] == ["evaluate"]:
            guard()
        app()
    except RobenchError as error:
        _fail(str(error))
    except OSError as error:  # what no room foresees: a name that is too long, a folder that may not be read
        reason = error.strerror or str(error) or type(error).__name__
        where = "robench" if error.filename is None else str(error.filename)
        found, advice = f"refused by the system ({reason})", "Check that it is there, and who may use it."
        _fail(complaint(where, "path", found, "a path that can be read and written", advice))


def _fail(message: str) -> NoReturn:
    """Say what is wrong, and leave."""
    err.print(f"error: {message}", style="red", markup=False)
    sys.exit(2)
