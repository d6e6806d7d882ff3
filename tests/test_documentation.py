"""The examples of README and documentation run as they stand, and what they show is what comes out."""

import dataclasses
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import BaseModel
from safetensors.torch import save_file
from torch import Tensor, nn

import robench
from robench.attacks import CASCADES, CATALOGUE, WHOLE
from robench.cli import evaluate as evaluate_room
from robench.errors import ModelError
from robench.outcome import ASKED, COLUMNS, PATCH_COLUMNS, SHIFT_COLUMNS
from robench.protocol import AttackSpec, BallSpec, DataSpec, PatchSpec, Protocol, ScoreSpec, ShiftSpec
from robench.registry import list_protocols
from robench.reproduction import plan as reproduction
from robench.result import (
    Counts,
    DataRecord,
    Derived,
    Metric,
    ModelRecord,
    OutcomesRecord,
    ProtocolRecord,
    Result,
    read_result,
)
from robench.runs import Plan, PlannedData
from robench.training.recipe import TABLES, Recipe
from tests.fakes import small_net
from tests.page import Reader, blocks, form, matches

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
GUIDES = sorted((ROOT / "docs").glob("*.md"))
"""Pages that are followed from top to bottom; of the others every Python block stands alone."""
BLOCKS = [
    pytest.param(code, id=f"{page.name}-{number}")
    for page in PAGES
    if page not in GUIDES
    for number, code in enumerate(re.findall(r"^```python\n(.*?)^```", page.read_text(), flags=re.M | re.S))
]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory whose modules can be imported, and are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(evaluate_room, "LINE_SECONDS", float("inf"))  # progress lines come and go with the machine
    known = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - known:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.mark.parametrize("code", BLOCKS)
def test_an_example_runs(code: str, workplace: Path) -> None:
    exec(compile(code, "example", "exec"), {"__name__": "example"})


def test_there_are_examples() -> None:
    assert len(BLOCKS) >= 2
    assert {page.name for page in GUIDES} >= {
        "bring-a-data-set.md",
        "bring-a-model.md",
        "read-a-result.md",
        "write-a-protocol.md",
    }


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: str(page.name))
def test_a_guide_can_be_followed(page: Path, workplace: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        reader = Reader()
        for language, content in blocks(page):
            reader.follow(language, content)


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: str(page.name))
def test_only_commands_that_need_imagenet_are_not_run(page: Path) -> None:
    lines = [line for language, content in blocks(page) if language == "sh" for line in content.splitlines()]
    assert [line for line in lines if "/data/imagenet" not in line] == []


def test_what_a_page_shows_must_have_the_form_of_what_comes_out() -> None:
    assert form("run: runs/a-01be6d8f\n│ clean │  94.7 % │") == "run: runs/a-#\n│ clean │ # % │"
    assert matches("clean 94.7 %, robust 62.1 % [57.8, 66.2]", "clean 1 %, robust 2.25 % [0.0, 100.0]\n")
    assert matches("first\n...\nlast: ...", "first\nsecond\n\nthird\nlast: 7 of 9")
    assert not matches("clean 94.7 %", "robust 94.7 %")
    assert not matches("first", "first\nsecond")
    assert not matches("first\n...\nlast", "first\nlast one")


@pytest.mark.parametrize(
    ("language", "content"),
    [
        ("python", "raise AssertionError"),
        ("text", "something else"),
        ("toml", '# own.toml\nschema = "robench.protocol/1"\n'),
        ("console", "$ echo one\ntwo\n"),
        ("console", "$ false\n"),
        ("console", "$ robench show no-such-protocol\n..."),
        ("console", "$ robench evaluate --no-such-option\n..."),
    ],
)
def test_a_wrong_page_is_found(language: str, content: str, workplace: Path) -> None:
    with pytest.raises((AssertionError, robench.errors.ProtocolError)):
        Reader().follow(language, content)


# --- tables that must be whole


def _rows(page: str) -> list[str]:
    """First cells of the tables of a page."""
    return re.findall(r"^\| (.*?) +\|", (ROOT / "docs" / page).read_text(), flags=re.M)


def _named(page: str) -> set[str]:
    """Everything in backticks in the tables of a page."""
    lines = [line for line in (ROOT / "docs" / page).read_text().splitlines() if line.startswith("|")]
    return set(re.findall(r"`([^`]+)`", "\n".join(lines)))


def _keys(*records: type[BaseModel]) -> set[str]:
    return {field.alias or name for record in records for name, field in record.model_fields.items()}


def test_every_key_of_a_result_is_explained() -> None:
    records = (
        Result,
        ProtocolRecord,
        ModelRecord,
        DataRecord,
        Metric,
        Derived,
        Counts,
        OutcomesRecord,
        Plan,
        PlannedData,
    )
    assert (_keys(*records) | {*COLUMNS, *ASKED, *PATCH_COLUMNS, *SHIFT_COLUMNS}) - _named("read-a-result.md") == set()


def test_every_key_of_the_costs_is_explained(tmp_path: Path) -> None:
    robench.evaluate("mini-resnet", "mini-pgd-linf", limit=1, run_dir=tmp_path)
    assert set(read_result(tmp_path).cost) - _named("read-a-result.md") == set()


def test_every_key_of_a_protocol_is_explained() -> None:
    keys = _keys(Protocol) - {"data", "attack", "budget", "score", "shift"}
    tables: list[tuple[str, type[BaseModel]]] = [
        ("data", DataSpec),
        ("attack", AttackSpec),
        ("budget", BallSpec),
        ("budget", PatchSpec),
        ("score", ScoreSpec),
        ("shift", ShiftSpec),
    ]
    for table, record in tables:
        keys |= {f"{table}.{key}" for key in _keys(record)}
    attacks = [*CATALOGUE.values(), *CASCADES.values(), *(kind for kinds in WHOLE.values() for kind in kinds.values())]
    keys |= {"attack.attack", *(name for kinds in WHOLE.values() for name in kinds)}
    for attack in attacks:
        keys |= {f"attack.{field.name}" for field in dataclasses.fields(attack)}
    assert keys - _named("write-a-protocol.md") == set()


def test_every_key_of_a_recipe_is_explained() -> None:
    places = {place: table for place, table in TABLES.items() if place}
    keys = {f"{place}.{key}" for place, table in places.items() for key in table.model_fields} | _keys(Recipe)
    assert keys - set(places) - _named("recipes.md") == set()


def test_every_key_of_a_plan_of_reproductions_is_explained() -> None:
    keys = _keys(reproduction.Plan) - {"quick", "arms", "questions"}
    places: dict[str, type[BaseModel]] = {
        "quick": reproduction.Quick,
        "arms": reproduction.Arm,
        "questions": reproduction.Question,
        "questions.claims": reproduction.Claim,
    }
    for place, record in places.items():
        keys |= {f"{place}.{key}" for key in _keys(record)}
    assert keys - {"questions.claims"} - _named("reproduction.md") == set()


# --- the table of what is refused


class _Net(nn.Module):
    """A network whose answer something is done to."""

    def __init__(self, change: Callable[[Tensor, Tensor], Any], classes: int = 10) -> None:
        super().__init__()
        self.network, self.change = small_net(classes=classes), change

    def forward(self, images: Tensor) -> Any:
        return self.change(self.network(images), images)


def _refuse_size(logits: Tensor, images: Tensor) -> Tensor:
    raise RuntimeError("images of 224 pixels are expected")


def _alone(logits: Tensor, images: Tensor) -> Tensor:
    return logits.squeeze() if len(images) == 1 else logits


BREAKERS: dict[str, Callable[[], Any]] = {
    "train mode": lambda: _Net(lambda logits, images: logits).train(),
    "size": lambda: _Net(_refuse_size),
    "tuple": lambda: _Net(lambda logits, images: (logits, images)),
    "classes": lambda: _Net(lambda logits, images: logits, classes=7),
    "predictions": lambda: _Net(lambda logits, images: logits.argmax(dim=1, keepdim=True).expand(-1, 10)),
    "NaN": lambda: _Net(lambda logits, images: logits / 0),
    "probabilities": lambda: _Net(lambda logits, images: logits.softmax(dim=1)),
    "randomised": lambda: _Net(lambda logits, images: logits + torch.rand_like(logits)),
    "company": lambda: _Net(lambda logits, images: logits - logits.mean(dim=0)),
    "detached": lambda: _Net(lambda logits, images: logits.detach()),
    "gradient": lambda: _Net(lambda logits, images: logits + (images[:, 0, 0, :1] * 0).sqrt()),
}


def _messages(workplace: Path) -> Iterator[str]:
    """What is said to everything that the table names."""
    (workplace / "my_models.py").write_text("def broken():\n    raise ValueError('no weights')\n")
    torch.save({}, "checkpoint.pth")
    save_file({"weight": torch.zeros(1)}, "mine.safetensors")
    broken = [build() if name == "train mode" else build().eval() for name, build in BREAKERS.items()]
    calls: list[tuple[Any, dict[str, Any]]] = [(model, {}) for model in broken]
    calls += [(small_net(classes=10), {"device": "meta"}), ({}, {}), ("mini-resnett", {}), ("my_models:broken", {})]
    calls += [("mini-resnet", {"weights": file}) for file in ("checkpoint.pth", "mine.safetensors")]
    wrong = small_net(classes=10)
    wrong.bounds = "all"  # type: ignore[assignment]  # that is the mistake
    calls += [(wrong, {}), (_Net(_alone).eval(), {"protocol": "mini-hopskipjump-l2"})]
    for model, more in calls:
        options = robench.Options(name="net" if not isinstance(model, str) else None, weights=more.pop("weights", None))
        with pytest.raises(ModelError) as caught:
            robench.evaluate(model, more.pop("protocol", "mini-pgd-linf"), limit=16, options=options, **more)
        yield str(caught.value)


def test_the_table_of_what_is_refused_holds_the_messages(workplace: Path) -> None:
    shown = [row.strip("` ") for row in _rows("bring-a-model.md") if row.startswith("``")]
    found = list(_messages(workplace))
    for message in found:
        assert [row for row in shown if matches(f"{row}...", message)] != [], message
    for row in shown:
        assert [message for message in found if matches(f"{row}...", message)] != [], row


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.name))
def test_links_to_files_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)[^):]*\)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.name))
def test_links_to_headings_lead_somewhere(page: Path) -> None:
    for file, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text()):
        target = page.parent / file if file else page
        headings = re.findall(r"^#+ (.+)$", target.read_text(), flags=re.M)
        assert anchor in [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


def test_the_table_of_protocols_is_the_registry() -> None:
    text = (ROOT / "README.md").read_text()
    rows = dict(re.findall(r"^\| `([a-z0-9-]+)` \| (active|draft|superseded|withdrawn)", text, flags=re.M))
    assert rows == {protocol.id: protocol.status for protocol in list_protocols()}
