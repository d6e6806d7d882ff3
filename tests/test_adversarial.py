import json
import os
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from robench.adversarial import AdversarialImages, image_file, read_adversarial
from robench.attacks.drive import Finished
from robench.data import ArraySource
from robench.errors import RunError
from robench.evaluation import Options, evaluate, resume
from robench.outcome import Outcome
from robench.runs import MARKER, Run, Shard
from tests.fakes import random_images, short_pgd, small_net
from tests.test_evaluation import PROTOCOL
from tests.test_nothing_lost import _tmpfs

COUNT = 60
EPSILON = 4 / 255
AWKWARD = ["n01/dog 1.png", "../up", "%2F", "a" * 300, "a" * 299 + "b", "ü" * 100]


@pytest.fixture
def protocol(tmp_path: Path) -> Path:
    path = tmp_path / "own.toml"
    path.write_text(PROTOCOL.format(digest="0" * 64))
    return path


def _data(net: nn.Module, count: int = COUNT) -> ArraySource:
    images = random_images(count)
    with torch.no_grad():
        labels = net(images).argmax(dim=1)
    ids = AWKWARD + [f"e{index}" for index in range(count - len(AWKWARD))]
    return ArraySource(images, labels, classes=4, ids=ids)


def _evaluate(protocol: Path, folder: Path, saved: Path | None, *, fresh: bool = False) -> list[Outcome]:
    net = small_net()
    data = _data(net)
    options = Options(shard_size=8, save_adversarial=saved, fresh=fresh)
    return evaluate(net, protocol, data=data, run_dir=folder, batch_size=16, options=options).read_outcomes()


def _hold(outcomes: list[Outcome], saved: Path) -> None:
    """The images are those of the fooled examples, lie in the budget, and fool the model."""
    net = small_net()
    source = _data(net)
    fooled = {outcome.id: outcome for outcome in outcomes if outcome.fooled_at}
    assert 0 < len(fooled) < len(outcomes)
    assert sorted(path.name for path in saved.iterdir()) == sorted([MARKER, *map(image_file, fooled)])
    clean = dict(zip(source.ids, source.images(range(COUNT)), strict=True))
    for example, outcome in fooled.items():
        image = read_adversarial(saved, example)
        assert (image.dtype, image.shape) == (torch.float32, (3, 8, 8))
        assert float(image.min()) >= 0
        assert float(image.max()) <= 1
        assert float((image - clean[example]).abs().max()) <= EPSILON + 1e-6
        with torch.no_grad():
            assert int(net(image.expand(16, -1, -1, -1)).argmax(dim=1)[0]) == outcome.attacked != outcome.label


def test_saved_images_lie_in_the_budget_and_fool_the_model(tmp_path: Path, protocol: Path) -> None:
    saved = tmp_path / "images"
    outcomes = _evaluate(protocol, tmp_path / "run", saved)
    _hold(outcomes, saved)
    key = Run.open(tmp_path / "run").plan.key
    assert json.loads((saved / MARKER).read_text()) == {"schema": "robench.adversarial/1", "run": key}
    assert np.load(saved / image_file(next(o.id for o in outcomes if o.fooled_at))).dtype == np.float32


def test_saving_changes_no_result(tmp_path: Path, protocol: Path) -> None:
    _evaluate(protocol, tmp_path / "with", tmp_path / "images")
    _evaluate(protocol, tmp_path / "without", None)
    for name in ("result.json", "outcomes.csv.gz"):
        assert (tmp_path / "with" / name).read_bytes() == (tmp_path / "without" / name).read_bytes()


def test_under_last_iterate_the_image_is_of_the_last_step_that_fooled(tmp_path: Path, protocol: Path) -> None:
    protocol.write_text(protocol.read_text().replace("[score]", '[score]\nscoring = "last iterate"'))
    saved = tmp_path / "images"
    outcomes = _evaluate(protocol, tmp_path / "run", saved)
    _hold([o for o in outcomes if not o.fooled_at or 8 in o.fooled_at], saved)


@pytest.mark.parametrize("example", AWKWARD)
def test_any_id_is_a_file_name_of_its_own(tmp_path: Path, example: str) -> None:
    names = {image_file(each) for each in AWKWARD}
    assert len(names) == len(AWKWARD)
    (tmp_path / image_file(example)).write_text("it fits")
    assert [path.name for path in tmp_path.iterdir()] == [image_file(example)]


def test_a_name_may_have_255_bytes_and_no_more() -> None:
    assert image_file("a" * 251) == "a" * 251 + ".npy"
    assert image_file("a" * 252).startswith("a" * 150 + "%sha256-")
    assert len(image_file("a" * 252)) <= 255


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_every_finished_shard_of_a_killed_run_has_its_images(tmp_path: Path, protocol: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # in the child, so that it spins for no one
    run_dir, saved = tmp_path / "run", tmp_path / "images"
    child = os.fork()
    if child == 0:
        write = Run.write_shard

        def killed(self: Run, shard: Shard) -> None:
            if len(self.missing_shards()) == self.plan.shards - 3:
                os.kill(os.getpid(), signal.SIGKILL)  # the images of this shard are there, the shard is not
            write(self, shard)

        Run.write_shard = killed  # type: ignore[method-assign]  # in the child alone
        _evaluate(protocol, run_dir, saved)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    torch.set_num_threads(threads)
    run = Run.open(run_dir)
    finished = sorted(set(range(run.plan.shards)) - set(run.missing_shards()))
    assert len(finished) == 3 < run.plan.shards
    fooled = [o.id for shard in finished for o in run.read_shard(shard).outcomes if o.fooled_at]
    assert fooled
    assert all((saved / image_file(example)).exists() for example in fooled)
    _hold(_evaluate(protocol, run_dir, saved), saved)


def test_resume_goes_on_saving_where_the_run_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = Options(shard_size=8, save_adversarial="images")
    evaluate("mini-resnet-gelu-adv", short_pgd(tmp_path, 10), limit=24, run_dir="run", options=options)
    images = sorted(path.name for path in Path("images").glob("*.npy"))
    Path("run/result.json").unlink()
    Path("run/shards/000001.csv").unlink()
    for path in Path("images").glob("*.npy"):
        if path.name in {image_file(o.id) for o in Run.open(Path("run")).read_shard(2).outcomes}:
            continue
        path.rename(path.with_suffix(".away"))
    with pytest.raises(RunError, match=r"`save_adversarial` is without \d+ of the \d+ images of finished examples"):
        resume("run")
    for path in Path("images").glob("*.away"):
        path.rename(path.with_suffix(".npy"))
    monkeypatch.chdir("/")
    resume(tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "images").glob("*.npy")) == images


@pytest.mark.parametrize("state", ["unfinished", "finished"])
def test_shards_attacked_without_saving_are_refused_before_any_work(tmp_path: Path, protocol: Path, state: str) -> None:
    folder, saved = tmp_path / "run", tmp_path / "images"
    fooled = sum(bool(o.fooled_at) for o in _evaluate(protocol, folder, None))
    if state == "unfinished":
        (folder / "result.json").unlink()
        gone = Run.open(folder).read_shard(0)
        (folder / "shards" / "000000.csv").unlink()
        fooled -= sum(bool(o.fooled_at) for o in gone.outcomes)
    starts = [event for event in Run.open(folder).events() if event["event"] == "start"]
    with pytest.raises(RunError) as caught:
        _evaluate(protocol, folder, saved)
    assert str(caught.value) == (
        f"{saved}: `save_adversarial` is without {fooled} of the {fooled} images of finished examples; "
        "expected one for every fooled example. They were attacked without saving, or moved: put them back, "
        "or start over with `--fresh`."
    )
    assert [event for event in Run.open(folder).events() if event["event"] == "start"] == starts
    _hold(_evaluate(protocol, folder, saved, fresh=True), saved)


def test_a_finished_run_is_reused_when_all_images_are_there(tmp_path: Path, protocol: Path) -> None:
    folder, saved = tmp_path / "run", tmp_path / "images"
    outcomes = _evaluate(protocol, folder, saved)
    stamp = (folder / "result.json").stat().st_mtime_ns
    assert _evaluate(protocol, folder, saved) == outcomes
    assert (folder / "result.json").stat().st_mtime_ns == stamp
    next(saved.glob("*.npy")).unlink()
    with pytest.raises(RunError, match=r"`save_adversarial` is without 1 of the \d+ images of finished examples"):
        _evaluate(protocol, folder, saved)


def test_images_of_another_run_are_refused(tmp_path: Path, protocol: Path) -> None:
    saved, net = tmp_path / "images", small_net(1)
    _evaluate(protocol, tmp_path / "run", saved)
    key = Run.open(tmp_path / "run").plan.key
    options = Options(save_adversarial=saved)
    message = (
        rf"`save_adversarial` is holding images of run {key}; expected images of run [0-9a-f]{{64}}\. "
        r"Choose a new folder\."
    )
    for fresh in (False, True):
        with pytest.raises(RunError, match=message):
            evaluate(
                net,
                protocol,
                data=_data(net),
                run_dir=tmp_path / "other",
                options=Options(save_adversarial=saved, fresh=fresh),
            )
        assert not (tmp_path / "other").exists()
    for path in saved.glob("*.npy"):
        path.unlink()
    evaluate(net, protocol, data=_data(net), run_dir=tmp_path / "other", options=options)


def test_files_that_robench_did_not_write_are_left_alone(tmp_path: Path, protocol: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "data.npy").write_text("years of work")
    message = r"is a folder of \.npy files that robench did not write; expected a new or empty folder\. Choose a new"
    with pytest.raises(RunError, match=message):
        _evaluate(protocol, tmp_path / "run", tmp_path / "thesis")
    assert not (tmp_path / "run").exists()


def test_a_broken_marker_is_an_error(tmp_path: Path, protocol: Path) -> None:
    (tmp_path / MARKER).write_text("[]")
    with pytest.raises(RunError, match=rf"{MARKER}: `file` is unreadable; expected the marker of a run's images\."):
        _evaluate(protocol, tmp_path / "run", tmp_path)


def test_a_folder_that_cannot_be_written_costs_no_work(tmp_path: Path, protocol: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError) as caught:
        _evaluate(protocol, tmp_path / "run", tmp_path / "file")
    assert str(caught.value) == (
        f"{tmp_path / 'file'}: `save_adversarial` is not writable (File exists); expected room to write. "
        "Nothing was computed yet: make room, or choose another `save_adversarial`."
    )
    assert not (tmp_path / "run").exists()


def test_a_full_disk_stops_the_run_and_keeps_it_resumable(tmp_path: Path, protocol: Path) -> None:
    disk, folder = tmp_path / "disk", tmp_path / "run"
    with _tmpfs(disk, "40k"):
        saved = disk / "images"
        with pytest.raises(RunError) as caught:
            _evaluate(protocol, folder, saved)
        assert str(caught.value) == (
            f"{saved}: `save_adversarial` is not writable (No space left on device); expected room to write. "
            f"What is finished is kept: make room, then `robench resume {folder}`."
        )
        assert not list(saved.glob(".*"))
        subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
        _hold(_evaluate(protocol, folder, saved), saved)


def test_several_protocols_get_a_folder_each(tmp_path: Path, protocol: Path) -> None:
    second = tmp_path / "other.toml"
    second.write_text(protocol.read_text().replace('id = "own"', 'id = "other"').replace("4/255", "2/255"))
    net = small_net()
    options = Options(save_adversarial=tmp_path / "images")
    results = evaluate(net, [protocol, second], data=_data(net), run_dir=tmp_path / "runs", options=options)
    _hold(results[0].read_outcomes(), tmp_path / "images" / "own@1")
    assert (tmp_path / "images" / "other@1" / MARKER).exists()


def test_an_image_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(
        RunError, match=r"e9\.npy: `image` is unreadable \(.*\); expected the image of a fooled example\."
    ):
        read_adversarial(tmp_path, "e9")


def test_a_survivor_leaves_no_image_of_an_earlier_attempt(tmp_path: Path) -> None:
    images = AdversarialImages(tmp_path, tmp_path / "run", "0" * 64)
    fooled = Finished(0, "e0", 1, 1, 1.0, 2, -1.0, (3,), "pgd", image=torch.rand(3, 8, 8))
    images.keep(fooled)
    assert (tmp_path / "e0.npy").exists()
    images.keep(Finished(0, "e0", 1, 1, 1.0, 1, 0.5))
    assert list(tmp_path.iterdir()) == []
