"""Several processes on one run, some of them killed: the same bytes, nothing attacked twice once it is finished."""

import contextlib
import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from robench.data import ArraySource
from robench.data.decoding import Decoder, ImageFile
from robench.data.source import Unreadable
from robench.errors import RunError
from robench.evaluation import Options, evaluate
from robench.execution import SHOW_SECONDS
from robench.progress import Progress, Silent
from robench.result import Result, read_result
from robench.runs import Run
from robench.share import Rank, Share
from tests.attacks.test_autoattack import write_protocol
from tests.fakes import random_images, small_net
from tests.test_nothing_lost import _tmpfs

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
]
COUNT, SHARD, SLOTS = 128, 4, 16
SETTINGS = 'version = "standard"\nsteps = 6\ntargets = 2\nqueries = 30\n'


@pytest.fixture(scope="module")
def protocol(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_protocol(tmp_path_factory.mktemp("protocol"), SETTINGS)
    path.write_text(path.read_text().replace("4/255", "1/50"))
    return path


def _work(
    protocol: Path, folder: Path, rank: Rank | None = None, *, slow: float = 0.001, fresh: bool = False
) -> Result:
    net, watcher = small_net(classes=10), Lines(protocol.with_name(f"{os.getpid()}.txt"))
    images = random_images(COUNT)
    with torch.no_grad():
        labels = net(images).argmax(dim=1)
    net.register_forward_pre_hook(lambda module, arguments: time.sleep(slow))
    data = ArraySource(images, labels, classes=10)
    options = Options(shard_size=SHARD, rank=rank, watcher=watcher, fresh=fresh)
    return evaluate(net, protocol, data=data, run_dir=folder, batch_size=SLOTS, options=options)


class Lines(Silent):
    """Writes down what is said, and how far the run was each time."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def _add(self, line: str) -> None:
        with self.path.open("a") as file:
            file.write(f"{line}\n")

    def notice(self, text: str) -> None:
        self._add(text)

    def update(self, progress: Progress) -> None:
        self._add(f"done {progress.done}")


def _fork(work: Callable[[], object]) -> int:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", flush=True)
        os._exit(code)
    return child


def _fork_ranks(protocol: Path, folder: Path, size: int) -> list[int]:
    """All ranks of a run, the first one last: the others must wait for its plan."""
    return [_fork(partial(_work, protocol, folder, Rank(index, size))) for index in reversed(range(size))]


def _wait(*children: int) -> None:
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * len(children), "an evaluation failed in a child"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, protocol: Path) -> Path:
    """The run of one process alone."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    _wait(_fork(lambda: _work(protocol, folder, slow=0.0)))
    return folder


def _same(folder: Path, whole: Path) -> None:
    for name in ("outcomes.csv.gz", "result.json"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name
    assert not (folder / "claims").exists()


def _writers(folder: Path) -> Counter[int]:
    """How often each shard was written."""
    return Counter(event["shard"] for event in Run.open(folder).events() if "shard" in event)


def _finished(folder: Path) -> set[int]:
    with contextlib.suppress(Exception):
        return Run.open(folder).finished_shards()
    return set()


def _said(protocol: Path, child: int) -> list[str]:
    return protocol.with_name(f"{child}.txt").read_text().splitlines()


@pytest.mark.parametrize("workers", [2, 4])
def test_processes_started_at_once_share_the_run(tmp_path: Path, protocol: Path, whole: Path, workers: int) -> None:
    folder = tmp_path / "run"
    # Slow enough that all have come before the first knows what it has, and takes more.
    children = [_fork(lambda: _work(protocol, folder, slow=0.01)) for _ in range(workers)]
    _wait(*children)
    _same(folder, whole)
    assert _writers(folder) == Counter(range(COUNT // SHARD))  # each shard by one process, once
    segments = {event["segment"] for event in Run.open(folder).events() if "shard" in event}
    assert len(segments) == workers  # and every process wrote some
    counts = {key: value for key, value in read_result(folder).cost.items() if key in ("forward", "backward")}
    assert counts["backward"] > 0
    for child in children:
        assert _said(protocol, child)[-1] == f"done {COUNT}"  # each shows the whole run


class Files(ArraySource):
    """The same images in files, which processes of their own decode ahead of whoever attacks."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor, folder: Path) -> None:
        super().__init__(images, labels, classes=10)
        self.folder, self.decoder = folder, Decoder(None, 8, workers=1)

    def write(self) -> None:
        for position in range(COUNT):
            pixels = (self.bytes_of(position) * 255).round().byte().permute(1, 2, 0)
            Image.fromarray(pixels.numpy()).save(self.folder / f"{position}.png")

    def images(self, positions: Iterable[int]) -> Any:
        return (image for image in self.images_ahead(positions) if image is not None)

    def images_ahead(self, positions: Iterable[int | None]) -> Iterator[torch.Tensor | Unreadable | None]:
        files = (None if at is None else ImageFile(f"{at}", self.folder / f"{at}.png") for at in positions)
        return self.decoder.images_ahead(files)


def test_ranks_share_a_run_on_files_however_many_slots_they_have(tmp_path: Path, protocol: Path) -> None:
    """Readers that claimed what they decode ahead would leave nothing to a rank that comes a moment later."""
    net, images = small_net(classes=10), random_images(COUNT)
    with torch.no_grad():
        data = Files(images, net(images).argmax(dim=1), tmp_path)
    data.write()

    def work(rank: Rank) -> None:
        time.sleep(2 * rank.index)
        net.register_forward_pre_hook(lambda module, arguments: time.sleep(0.02))
        options = Options(shard_size=SHARD, rank=rank)
        evaluate(net, protocol, data=data, run_dir=tmp_path / "run", batch_size=COUNT, options=options)

    _wait(*(_fork(partial(work, Rank(index, 2))) for index in range(2)))
    made = Counter(event["segment"] for event in Run.open(tmp_path / "run").events() if "shard" in event)
    assert made.total() == COUNT // SHARD
    assert len(made) == 2
    assert min(made.values()) >= COUNT // SHARD // 5


@pytest.mark.parametrize("workers", [2, 4])
def test_ranks_share_the_run(tmp_path: Path, protocol: Path, whole: Path, workers: int) -> None:
    folder = tmp_path / "run"
    _wait(*_fork_ranks(protocol, folder, workers))
    _same(folder, whole)
    assert _writers(folder) == Counter(range(COUNT // SHARD))


def test_the_folder_is_not_listed_for_each_shard(
    tmp_path: Path, protocol: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is when work begins, for the bar every two seconds, and when it is merged."""
    listed: Counter[str] = Counter()
    scan = os.scandir

    def counted(path: Any = ".") -> Any:
        listed[str(path).rpartition("/")[2]] += 1
        return scan(path)

    monkeypatch.setattr(os, "scandir", counted)
    began = time.monotonic()
    _work(protocol, tmp_path / "run", slow=0.0)
    assert 0 < listed["shards"] < 8 + (time.monotonic() - began) / SHOW_SECONDS < COUNT // SHARD


@pytest.mark.parametrize("ahead", [False, True])
def test_who_holds_back_does_so_between_shards_and_never_in_one(
    tmp_path: Path, protocol: Path, monkeypatch: pytest.MonkeyPatch, ahead: bool
) -> None:
    """Half a shard in a batch of its own would cost as much as a whole one; what a reader has claimed is not left."""
    asked: list[int] = []

    def always(share: Share, in_flight: int, load: int, *, known: bool) -> bool:
        asked.append(read[-1])
        return True

    class Counted(ArraySource):
        def images(self, positions: Any) -> Any:
            positions = list(positions) if ahead else positions
            for position, image in zip(positions, super().images(positions), strict=False):
                read.append(position)
                yield image

    monkeypatch.setattr(Share, "holds_back", always)
    net, images, read = small_net(classes=10), random_images(COUNT), list[int]()
    with torch.no_grad():
        data = Counted(images, net(images).argmax(dim=1), classes=10)
    evaluate(net, protocol, data=data, run_dir=tmp_path, batch_size=SLOTS, options=Options(shard_size=SHARD))
    assert len(set(asked)) == (1 if ahead else COUNT // SHARD)  # at the end everybody asks
    assert {position % SHARD for position in asked} == {SHARD - 1}


def test_a_process_that_comes_later_says_that_it_shares_and_that_it_waits(
    tmp_path: Path, protocol: Path, whole: Path
) -> None:
    folder = tmp_path / "run"
    first = _fork(lambda: _work(protocol, folder, slow=0.01))
    while not _finished(folder):
        time.sleep(0.01)
    second = _fork(lambda: _work(protocol, folder, slow=0.0))
    _wait(first, second)
    _same(folder, whole)
    said = _said(protocol, second)
    assert f"Sharing {folder} with 1 other process." in said
    assert any(line.startswith("Waiting for other processes, which make the last ") for line in said)


def _kill_and_finish(
    folder: Path, protocol: Path, start: Callable[[int], int], *, workers: int, seed: int, kills: int
) -> None:
    """Kill workers at random and start others in their place; no finished shard is ever made again."""
    dice = random.Random(seed)
    crew = [start(place) for place in range(workers)]
    known: set[int] = set()
    stamps: dict[int, int] = {}
    for _ in range(kills):
        goal = len(known) + dice.randint(2, COUNT // SHARD // (2 * kills))
        while len(known) < goal:
            time.sleep(0.002)
            known = _finished(folder)
            assert not (folder / "result.json").exists(), "the kills must fall inside the run"
        place = dice.randrange(workers)
        os.kill(crew[place], signal.SIGKILL)
        os.waitpid(crew[place], 0)
        stamps |= {shard: (folder / "shards" / f"{shard:06d}.csv").stat().st_mtime_ns for shard in known - set(stamps)}
        crew[place] = start(place)
    _wait(*crew)
    for shard, stamp in stamps.items():
        assert (folder / "shards" / f"{shard:06d}.csv").stat().st_mtime_ns == stamp


@pytest.mark.parametrize(("workers", "seed"), [(2, 0), (4, 1)])
def test_killed_processes_change_no_byte(tmp_path: Path, protocol: Path, whole: Path, workers: int, seed: int) -> None:
    folder = tmp_path / "run"
    _kill_and_finish(
        folder, protocol, lambda place: _fork(lambda: _work(protocol, folder)), workers=workers, seed=seed, kills=3
    )
    _same(folder, whole)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 8))
def test_many_kills_of_ranks_change_no_byte(tmp_path: Path, protocol: Path, whole: Path, seed: int) -> None:
    folder = tmp_path / "run"

    def start(place: int) -> int:
        return _fork(lambda: _work(protocol, folder, Rank(place, 4)))

    _kill_and_finish(folder, protocol, start, workers=4, seed=seed, kills=5)
    _same(folder, whole)


def test_what_a_killed_process_had_is_taken_over_without_a_restart(tmp_path: Path, protocol: Path, whole: Path) -> None:
    folder = tmp_path / "run"
    dies = _fork(lambda: _work(protocol, folder, slow=0.02))
    while not list((folder / "claims").glob("*.0")):
        time.sleep(0.002)
    stays = _fork(lambda: _work(protocol, folder))
    while not any(f"-{stays}-" in path.name for path in (folder / "workers").glob("*.jsonl")):
        time.sleep(0.002)
    assert not (folder / "result.json").exists(), "the kill must fall inside the run"
    os.kill(dies, signal.SIGKILL)
    os.waitpid(dies, 0)
    _wait(stays)
    _same(folder, whole)


def test_the_first_rank_may_die_and_the_others_finish(
    tmp_path: Path, protocol: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("robench.evaluation.MERGE_SECONDS", 0.5)
    folder = tmp_path / "run"
    second, first = _fork_ranks(protocol, folder, 2)
    while not _finished(folder):
        time.sleep(0.002)
    os.kill(first, signal.SIGKILL)
    os.waitpid(first, 0)
    _wait(second)
    _same(folder, whole)


def test_another_number_of_ranks_finishes_the_run(tmp_path: Path, protocol: Path, whole: Path) -> None:
    folder = tmp_path / "run"
    crew = _fork_ranks(protocol, folder, 4)
    while len(_finished(folder)) < 6:
        time.sleep(0.002)
    for child in crew:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert not (folder / "result.json").exists()
    _wait(*_fork_ranks(protocol, folder, 2))
    _same(folder, whole)


def test_nobody_starts_over_what_another_works_on(tmp_path: Path, protocol: Path, whole: Path) -> None:
    folder = tmp_path / "run"
    first = _fork(lambda: _work(protocol, folder, slow=0.01))
    while not _finished(folder):
        time.sleep(0.002)
    with pytest.raises(RunError, match="`run` is in use; expected no other process on this run"):
        _work(protocol, folder, fresh=True)
    _wait(first)
    _same(folder, whole)


def test_ranks_wait_for_the_plan_and_say_so_when_none_comes(
    tmp_path: Path, protocol: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("robench.evaluation.PLAN_SECONDS", 0.3)
    with pytest.raises(RunError, match=r"`plan\.json` is not there after 0 s; expected the plan that rank 0") as caught:
        _work(protocol, tmp_path / "nowhere", Rank(1, 2))
    assert str(caught.value).endswith(
        "Did rank 0 fail? Do all hosts see this folder? Name one that they share with `--run-dir`."
    )


def test_the_end_says_how_long_a_process_waited(tmp_path: Path, protocol: Path) -> None:
    folder = tmp_path / "run"
    _wait(*(_fork(lambda: _work(protocol, folder)) for _ in range(2)))
    ends = [event for event in Run.open(folder).events() if event["event"] == "end"]
    assert len(ends) == 2
    for end in ends:
        assert 0 <= end["waited_seconds"] < end["wall_seconds"]
        assert 0 < end["cpu_seconds"] < end["wall_seconds"] + 1  # one thread
    assert json.loads((folder / "cost.json").read_text())["segments"] == 2


def test_a_folder_that_cannot_be_written_for_a_while_costs_no_byte(
    tmp_path: Path, protocol: Path, whole: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    disk = tmp_path / "disk"
    with _tmpfs(disk, "1m"):
        folder, ballast = disk / "run", disk / "ballast"
        crew = [_fork(lambda: _work(protocol, folder)) for _ in range(2)]
        while len(_finished(folder)) < 4:
            time.sleep(0.002)
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)
        assert [os.waitpid(child, 0)[1] != 0 for child in crew] == [True, True]
        said = capfd.readouterr().out
        assert said.count("`run_dir` is not writable (No space left on device); expected room to write. ") == 2
        assert 4 <= len(_finished(folder)) < COUNT // SHARD
        ballast.unlink()
        _wait(*(_fork(lambda: _work(protocol, folder)) for _ in range(2)))
        _same(folder, whole)
