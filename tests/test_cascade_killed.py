"""A cascade that is killed inside any of its stages ends in the same bytes, and attacks nothing that was finished."""

import contextlib
import hashlib
import itertools
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from robench.attacks import CATALOGUE
from robench.data import ArraySource
from robench.evaluation import Options, evaluate
from robench.halfway import Halfway, Survived
from robench.runs import Run
from tests.attacks.test_autoattack import write_protocol
from tests.fakes import random_images, small_net
from tests.test_runs import plan

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
]
COUNT, SHARD, SLOTS = 96, 4, 16
SETTINGS = 'version = "standard"\nsteps = 6\ntargets = 2\nqueries = 30\n'
STAGES = ("apgd-ce", "apgd-t", "fab-t", "square")


@pytest.fixture(scope="module")
def protocol(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_protocol(tmp_path_factory.mktemp("protocol"), SETTINGS)
    path.write_text(path.read_text().replace("4/255", "1/50"))
    return path


def _data() -> ArraySource:
    images = random_images(COUNT)
    with torch.no_grad():
        labels = small_net(classes=10)(images).argmax(dim=1)
    return ArraySource(images, labels, classes=10)


def _digest(image: Tensor) -> str:
    return hashlib.sha256(image.contiguous().numpy().tobytes()).hexdigest()


def _watched(log: Path, stage: str | None, ask: int) -> None:
    """In a child: log whom each stage takes up, and die by SIGKILL at the given ask of one of them."""
    asked = 0

    def starting(start: Callable[..., Any]) -> Callable[..., Any]:
        def begin(self: Any, examples: Any, budget: Any, draws: Any) -> Any:
            with log.open("a") as file:
                file.writelines(json.dumps([self.name, _digest(image)]) + "\n" for image in examples.images)
            return start(self, examples, budget, draws)

        return begin

    def asking(inner: Callable[..., Any]) -> Callable[..., Any]:
        def query(self: Any, state: Any) -> Any:
            nonlocal asked
            asked += self.name == stage
            if self.name == stage and asked == ask:
                os.kill(os.getpid(), signal.SIGKILL)
            return inner(self, state)

        return query

    for attack in set(CATALOGUE.values()):
        attack.start, attack.ask = starting(attack.start), asking(attack.ask)


def _run(protocol: Path, folder: Path, log: Path, stage: str | None = None, ask: int = 0) -> int:
    """Evaluate in a forked child; returns the signal that ended it, 0 if none."""
    child = os.fork()
    if child == 0:
        code = 1
        with contextlib.suppress(BaseException):
            _watched(log, stage, ask)
            options = Options(shard_size=SHARD)
            evaluate(small_net(classes=10), protocol, data=_data(), run_dir=folder, batch_size=SLOTS, options=options)
            code = 0
        os._exit(code)
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL), "the evaluation failed in the child"
    return status


def _taken_up(log: Path) -> list[tuple[str, str]]:
    return [tuple(json.loads(line)) for line in log.read_text().splitlines()] if log.exists() else []


def _finished(folder: Path) -> set[str]:
    """Images of the examples that finished shards cover."""
    run, data = Run.open(folder), _data()
    done = set(range(run.plan.shards)) - set(run.missing_shards())
    positions = [position for shard in sorted(done) for position in run.plan.examples_of(shard)]
    return {_digest(image) for image in data.images(positions)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, protocol: Path) -> Path:
    """The run that nobody interrupts: every stage has more to do than there are slots."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    log = folder.with_suffix(".log")
    assert _run(protocol, folder, log) == 0
    taken = _taken_up(log)
    assert len(taken) == len(set(taken))  # nobody is taken up twice
    assert [len([1 for name, _ in taken if name == stage]) > SLOTS for stage in STAGES] == [True] * 4
    return folder


def _survived(folder: Path) -> set[tuple[str, str]]:
    """Stage and image, of every stage that an example had survived when the run was killed."""
    run, data = Run.open(folder), _data()
    known = Halfway(run, "nobody").read()
    images = {index: _digest(image) for index, image in zip(known, data.images(list(known)), strict=True)}
    return {(stage, images[index]) for index, each in known.items() for stage in STAGES[: each.stages]}


def _same(folder: Path, whole: Path) -> None:
    for name in ("outcomes.csv.gz", "result.json"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name


@pytest.mark.parametrize("stage", STAGES)
def test_a_kill_in_any_stage_changes_no_byte(tmp_path: Path, protocol: Path, whole: Path, stage: str) -> None:
    """Early in the stage, and late, when shards are finished."""
    log = tmp_path / "asks.log"
    for part, ask in enumerate((1, 40)):
        folder = tmp_path / f"killed{part}"
        log.unlink(missing_ok=True)
        assert _run(protocol, folder, log, stage, ask) == signal.SIGKILL
        assert not (folder / "result.json").exists()
        assert stage in {name for name, _ in _taken_up(log)}
        covered, survived = _finished(folder), _survived(folder)
        # Whoever was taken up by a stage has survived the one before.
        before = dict(itertools.pairwise(reversed(STAGES)))
        known = {_digest(image) for image in _data().images(range(COUNT))}  # not the empty one of the door
        assert {
            (before[name], image) for name, image in _taken_up(log) if name in before and image in known
        } <= survived
        log.unlink()
        assert _run(protocol, folder, log) == 0
        again = _taken_up(log)
        assert len(again) == len(set(again))
        assert not covered & {image for _, image in again}
        assert not survived & set(again)
        assert not (folder / "halfway").exists()
        _same(folder, whole)
    assert covered  # the last kill came after some shards
    assert survived


def test_one_run_killed_in_stage_after_stage_changes_no_byte(tmp_path: Path, protocol: Path, whole: Path) -> None:
    folder, log = tmp_path / "killed", tmp_path / "killed.log"
    covered, survived = set[str](), set[tuple[str, str]]()
    for stage in STAGES:
        log.unlink(missing_ok=True)
        assert _run(protocol, folder, log, stage, 20) == signal.SIGKILL
        assert not covered & {image for _, image in _taken_up(log)}
        assert not survived & set(_taken_up(log))
        assert covered <= _finished(folder)
        covered, survived = _finished(folder), survived | _survived(folder)
    log.unlink()
    assert _run(protocol, folder, log) == 0
    assert not covered & {image for _, image in _taken_up(log)}
    assert not survived & set(_taken_up(log))
    _same(folder, whole)


def test_a_line_that_a_kill_has_cut_is_none(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", plan())
    first, second = (Halfway(run, segment) for segment in "ab")
    first.note(7, Survived(1, 0.1 + 0.2, 0))
    second.note(7, Survived(2, -0.0, 3))
    first.note(8, Survived(3, float("inf"), 0))
    path = run.folder / "halfway" / "a.csv"
    whole = path.read_bytes()
    assert first.read() == {7: Survived(2, -0.0, 3), 8: Survived(3, float("inf"), 0)}
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        known = second.read()
        assert known.pop(7) == Survived(2, -0.0, 3)
        assert known == {}
    path.write_bytes(b"nonsense\n1,2\n,,,\n\xff\n" + whole)
    assert set(first.read()) == {7, 8}
    run.clear()
    assert first.read() == {}
