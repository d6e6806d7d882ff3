import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

import robench
from robench.cli.main import app
from robench.cli.screen import duration
from robench.data.mini import attack_set
from robench.data.mini.cells import MiniCells
from robench.errors import ProtocolError
from robench.estimate import estimate
from robench.registry import shipped
from tests.attacks.test_autoattack import SMALL, write_protocol
from tests.fakes import Linear


def test_it_counts_the_passes_of_examples_that_survive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that nothing fools costs what was said: the look at the door aside."""
    monkeypatch.chdir(tmp_path)
    flat = Linear(torch.randn(10, 3 * 64 * 64) * 1e-6, torch.arange(10.0).flip(0)).eval()
    images = attack_set()[0][:32]
    data = images, torch.zeros(32, dtype=torch.int64)
    protocol = write_protocol(tmp_path, SMALL)
    found = estimate(flat, protocol, data=data, batch_size=16)
    assert [stage.stage for stage in found.stages] == ["clean", "apgd-ce", "apgd-t", "fab-t", "square"]
    assert [stage.gradients for stage in found.stages] == [0, 32 * 6, 32 * 12, 32 * 10, 0]
    assert [stage.labels for stage in found.stages] == [32, 0, 0, 32 * 10, 32 * 21]
    assert (found.examples, found.clean, found.slots) == (32, 1.0, 16)
    assert found.seconds == pytest.approx(sum(stage.seconds for stage in found.stages))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.toml"]
    whole = robench.evaluate(flat, protocol, data=data, batch_size=16, run_dir=tmp_path / "run").cost
    looks, sweep = 3 * 16, 25 * 32  # at the door, and twice to verify the copy; five steps at five radii
    assert whole["backward"] == sum(stage.gradients for stage in found.stages) + looks + sweep


def test_the_command_prints_a_table_or_an_object_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["evaluate", "mini-resnet-adv", "mini-autoattack-linf", "--estimate", "--limit", "16"]
    shown = CliRunner().invoke(app, command)
    assert shown.exit_code == 0
    for word in ("apgd-t", "square", "together", "images/s"):
        assert word in shown.stdout
    found = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    assert found["protocol"] == "mini-autoattack-linf@1"
    assert len(found["stages"]) == 5
    assert list(tmp_path.iterdir()) == []


def test_every_attack_counts_its_passes() -> None:
    from robench.door import build_attack

    for protocol in shipped().values():
        for stage in build_attack(protocol)[0]:
            assert sum(stage.attack.most_passes) > 0


def test_mistakes_are_those_of_evaluate() -> None:
    with pytest.raises(ProtocolError, match="no-such"):
        estimate("mini-resnet", "no-such")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (45, "45 s"), (600, "10 min"), (9000, "2.5 h"), (200000, "2.3 days")],
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_what_is_made_on_the_fly_takes_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A millisecond a view; 16 of 32 examples are looked at."""
    views = MiniCells.views

    def slowly(self: MiniCells, positions: Iterable[int]) -> Iterator[Tensor]:
        for view in views(self, positions):
            time.sleep(0.001)
            yield view

    monkeypatch.setattr(MiniCells, "views", slowly)
    found = estimate("mini-resnet", "mini-c", limit=32)
    assert [stage.labels for stage in found.stages] == [32 * 76]
    assert found.seconds > 32 * 76 * 0.001
