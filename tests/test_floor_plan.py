"""Imports only go down or stay on their floor, and the two wings do not mix: the table of the building."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "robench"

# A room is a module or a package of robench; everything inside a package is one room.
FLOORS = {
    "errors": 0,
    "environment": 0,
    "heap": 0,
    "randomness": 0,
    "arrays": 0,
    "squares": 0,
    "compiled": 0,
    "alexnet": 0,
    "intervals": 0,
    "protocol": 1,
    "lines": 1,
    "shift": 1,
    "outcome": 1,
    "budgets": 1,
    "losses": 1,
    "classifier": 1,
    "averaging": 1,
    "hub": 1,
    "runs": 2,
    "claims": 2,
    "share": 2,
    "halfway": 3,
    "result": 2,
    "comparison": 2,
    "registry": 2,
    "progress": 2,
    "attacks": 2,
    "fastpath": 2,
    "audits": 2,
    "caveats": 2,
    "data": 2,
    "zoo": 2,
    "submission": 3,
    "validation": 3,
    "submitting": 3,
    "verification": 3,
    "refutation": 3,
    "refuting": 3,
    "challenge": 3,
    "container": 3,
    "adversarial": 3,
    "card": 3,
    "curves": 3,
    "door": 3,
    "preparation": 3,
    "estimate": 3,
    "evaluation": 3,
    "unattacked": 3,
    "execution": 3,
    "reading": 3,
    "showcase": 3,
    "tiles": 3,
    "cluster": 4,
    "sweep": 4,
    "forecast": 4,
    "figures": 4,
    "leaderboard": 4,
    "synthesis": 4,
    "cells_figure": 4,
    "training": 4,
    "reproduction": 4,
    "bench": 4,
    "cli": 5,
    "__main__": 5,
}
RECORDS = {
    "errors",
    "alexnet",
    "intervals",
    "protocol",
    "outcome",
    "lines",
    "shift",
    "runs",
    "claims",
    "share",
    "halfway",
    "result",
    "comparison",
    "registry",
    "progress",
    "caveats",
    "submission",
    "validation",
    "submitting",
    "verification",
    "refutation",
    "container",
    "leaderboard",
}
COMPUTE = {
    "randomness",
    "arrays",
    "squares",
    "compiled",
    "budgets",
    "losses",
    "classifier",
    "averaging",
    "hub",
    "fastpath",
    "audits",
    "attacks",
    "data",
    "zoo",
    "reading",
}
BOTH_WINGS = {"errors", "environment", "heap"}
KNOWS_BOTH = {
    "adversarial",
    "card",
    "curves",
    "cluster",
    "sweep",
    "forecast",
    "figures",
    "tiles",
    "cells_figure",
    "showcase",
    "door",
    "preparation",
    "estimate",
    "evaluation",
    "challenge",
    "refuting",
    "execution",
    "unattacked",
    "reproduction",
    "cli",
    "__main__",
}
MAKERS = {"synthesis", "training", "bench"}
"""They make and measure; of the records wing they know errors alone."""
RECIPE_WORDS = {"fraction", "FRACTION_FORM"}
"""What `training` and `bench` may take from `protocol`: how numbers are written."""
RECORDS_LIBRARIES = {"pydantic", "pydantic_core"}
PAGE_LIBRARIES = {"jinja2", "markupsafe"}
"""For the page of the leaderboard alone."""


def _room(module: str) -> str:
    """The room of `robench.room.more`; "" for the front door `robench` itself."""
    return module.partition(".")[2].partition(".")[0]


def _imports(source: str) -> Iterator[tuple[str, str]]:
    """(module, name) of every import, wherever it stands; those for type checkers alone are no imports."""
    waiting: list[ast.AST] = [ast.parse(source)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            waiting += node.orelse
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (("." * node.level + (node.module or ""), alias.name) for alias in node.names)
        waiting += ast.iter_child_nodes(node)


def _wrong_library(room: str, top: str) -> str | None:
    if not top:
        return "a relative import"
    allowed = RECORDS_LIBRARIES | (PAGE_LIBRARIES if room == "leaderboard" else set())
    if room in RECORDS | BOTH_WINGS and top not in sys.stdlib_module_names | allowed:
        return f"{top} in the records wing"
    return None


def _wrong_room(room: str, other: str, name: str) -> str | None:
    if other == room:
        return None
    if other not in FLOORS:
        return f"robench.{other or name} is no room"
    if FLOORS[other] > FLOORS[room]:
        return f"{other} is upstairs"
    if room in RECORDS | BOTH_WINGS and other not in RECORDS | BOTH_WINGS:
        return f"{other} in the records wing"
    if room in COMPUTE and other not in COMPUTE | BOTH_WINGS:
        return f"{other} in the compute wing"
    if room in MAKERS and other in RECORDS - BOTH_WINGS and not (other == "protocol" and name in RECIPE_WORDS):
        return f"{other}.{name} in {room}"
    return None


def violations(room: str, source: str) -> list[str]:
    """What a module of this room imports and must not."""
    found = []
    for module, name in _imports(source):
        top = module.split(".")[0]
        if top != "robench":
            found.append(_wrong_library(room, top))
        else:
            found.append(_wrong_room(room, _room(module) or (name if name in FLOORS else ""), name))
    return [wrong for wrong in found if wrong is not None]


def _modules() -> dict[str, Path]:
    paths = sorted(PACKAGE.rglob("*.py"))
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


MODULES = _modules()


def test_every_room_is_in_the_table_and_every_line_is_a_room() -> None:
    assert {_room(module) for module in MODULES} - {""} == set(FLOORS)


def test_every_room_has_its_wing() -> None:
    assert RECORDS.isdisjoint(COMPUTE)
    assert set(FLOORS) == RECORDS | COMPUTE | BOTH_WINGS | KNOWS_BOTH | MAKERS


@pytest.mark.parametrize("module", [module for module in MODULES if module != "robench"])
def test_imports_only_go_down(module: str) -> None:
    assert violations(_room(module), MODULES[module].read_text(encoding="utf-8")) == []


def test_the_front_door_imports_nothing_of_robench() -> None:
    imported = {module.split(".")[0] for module, _ in _imports(MODULES["robench"].read_text(encoding="utf-8"))}
    assert imported <= {"typing", "importlib"}


@pytest.mark.parametrize(
    ("room", "source", "expected"),
    [
        ("runs", "import torch", "torch in the records wing"),
        ("result", "def late():\n    import numpy.linalg", "numpy in the records wing"),
        ("validation", "import jinja2", "jinja2 in the records wing"),
        ("leaderboard", "import typer", "typer in the records wing"),
        ("validation", "from robench.leaderboard import board", "leaderboard is upstairs"),
        ("comparison", "from scipy import stats", "scipy in the records wing"),
        ("environment", "import torch", "torch in the records wing"),
        ("runs", "from robench.budgets import LinfBall", "budgets in the records wing"),
        ("runs", "from robench import budgets", "budgets in the records wing"),
        ("registry", "import robench.zoo.mini", "zoo in the records wing"),
        ("protocol", "from robench.result import Result", "result is upstairs"),
        ("errors", "from robench.outcome import Outcome", "outcome is upstairs"),
        ("attacks", "from robench.protocol import fraction", "protocol in the compute wing"),
        ("data", "from robench.runs import Run", "runs in the compute wing"),
        ("zoo", "if True:\n    from robench.registry import resolve", "registry in the compute wing"),
        ("data", "from robench.intervals import wilson", "intervals in the compute wing"),
        ("attacks", "from robench.evaluation import evaluate", "evaluation is upstairs"),
        ("evaluation", "from robench.cli import main", "cli is upstairs"),
        ("evaluation", "from robench.training import train", "training is upstairs"),
        ("training", "from robench.protocol import Protocol", "protocol.Protocol in training"),
        ("training", "import robench.runs", "runs. in training"),
        ("cli", "from robench.attic import box", "robench.attic is no room"),
        ("cli", "from robench import evaluate", "robench.evaluate is no room"),
        ("cli", "from . import main", "a relative import"),
    ],
)
def test_a_violation_is_seen(room: str, source: str, expected: str) -> None:
    assert violations(room, source) == [expected]


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("runs", "import json\nfrom pydantic import BaseModel\nfrom robench.protocol import Protocol"),
        ("comparison", "from robench.runs import Run"),
        ("leaderboard", "import jinja2\nfrom robench.validation import examine"),
        ("attacks", "import torch\nfrom robench.attacks.pgd import PGD\nfrom robench.errors import ProtocolError"),
        ("training", "from robench.protocol import FRACTION_FORM, fraction\nfrom robench.zoo import load_model"),
        ("evaluation", "from robench.runs import Run\nfrom robench.attacks.drive import drive"),
        ("runs", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch"),
    ],
)
def test_what_is_allowed_is_no_violation(room: str, source: str) -> None:
    assert violations(room, source) == []


def test_the_records_wing_runs_without_torch() -> None:
    names = ["robench", *(f"robench.{room}" for room in sorted(RECORDS | BOTH_WINGS))]
    code = (
        f"import sys, {', '.join(names)}\n"
        "robench.list_protocols(), robench.load_protocol, robench.Result\n"
        "heavy = {'torch', 'torchvision', 'numpy', 'scipy', 'timm', 'PIL', 'safetensors', 'typer', 'rich'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.stdout, done.stderr) == ("[]\n", "")
