import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from robench.arrays import state_digest
from robench.data import mini
from robench.errors import RecipeError
from robench.training import Recipe, load_recipe, train
from robench.training.recipe import AdversaryRecipe
from robench.zoo import ARCHITECTURES, load_model
from tests.training.test_recipe import TINY

PROVENANCE = {"threads": 1, "note": "test"}


class StoppedError(Exception):
    """Stands for whatever ends a process in the middle."""


class Watch:
    """Notes what it is told, and stops the training where it is asked to."""

    def __init__(self, *, stop_after_epoch: int | None = None, stop_in_epoch: int | None = None) -> None:
        self.stop_after_epoch, self.stop_in_epoch = stop_after_epoch, stop_in_epoch
        self.begun: list[tuple[str, int, int]] = []
        self.steps: list[tuple[int, int]] = []
        self.losses: list[float] = []
        self.notices: list[str] = []
        self.lines: list[dict[str, Any]] = []

    def begin(self, recipe: Recipe, *, steps: int, finished_epochs: int) -> None:
        self.begun.append((recipe.name, steps, finished_epochs))

    def notice(self, text: str) -> None:
        self.notices.append(text)

    def step(self, epoch: int, step: int, loss: float) -> None:
        self.steps.append((epoch, step))
        self.losses.append(loss)
        if epoch == self.stop_in_epoch and step == 1:
            raise StoppedError

    def epoch(self, line: dict[str, Any]) -> None:
        self.lines.append(line)
        if line["epoch"] == self.stop_after_epoch:
            raise StoppedError


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """Three epochs of 72 images, against one step of PGD that grows over the first."""
    path, text = tmp_path_factory.mktemp("recipe") / "tiny.toml", TINY
    for old, new in (
        ("batch_size = 64", "batch_size = 24"),
        ("examples = 128", "examples = 75"),
        ("validation = 64", "validation = 10"),
        ("\nepochs = 2", "\nepochs = 3"),
        ("steps = 1", "steps = 1\nwarmup_epochs = 1"),
    ):
        assert text.count(old) == 1
        text = text.replace(old, new)
    path.write_text(text)
    return load_recipe(path)


@pytest.fixture(scope="module")
def whole(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Watch]:
    """The folder of an uninterrupted training, and what its watcher was told."""
    folder, watch = tmp_path_factory.mktemp("whole"), Watch()
    train(recipe, folder, provenance=PROVENANCE, watcher=watch)
    return folder, watch


def _log(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "tiny.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("seconds", None)
    return lines


def test_weights_are_a_safetensors_of_the_model(recipe: Recipe, whole: tuple[Path, Watch]) -> None:
    folder, _ = whole
    tensors = load_file(folder / "tiny.safetensors")
    ARCHITECTURES["mini-resnet"]().load_state_dict(tensors)
    model = load_model("mini-resnet", weights=folder / "tiny.safetensors")
    assert state_digest(model.state_dict()) == state_digest(tensors)
    assert not list(folder.glob("*.tmp"))


def test_training_changes_every_parameter_and_the_statistics(recipe: Recipe, whole: tuple[Path, Watch]) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        before = ARCHITECTURES[recipe.architecture]().state_dict()
    after = load_file(whole[0] / "tiny.safetensors")
    assert all(not torch.equal(before[name], after[name]) for name in after)
    batches = {name: int(tensor) for name, tensor in after.items() if name.endswith("num_batches_tracked")}
    assert set(batches.values()) == {9}  # the adversary looks in eval mode: 3 epochs of 3 batches, no more


def test_the_log_tells_what_happened(recipe: Recipe, whole: tuple[Path, Watch]) -> None:
    folder, watch = whole
    header, *lines = (json.loads(line) for line in (folder / "tiny.jsonl").read_text().splitlines())
    assert header["recipe_sha256"] == recipe.digest
    assert Recipe.model_validate(header["recipe"]) == recipe
    assert {name: header[name] for name in PROVENANCE} == PROVENANCE
    assert lines == watch.lines
    assert [line["epoch"] for line in lines] == [0, 1, 2]
    for line in lines:
        assert set(line) == {"epoch", "loss", "lr", "clean", "pgd@10", "single-step", "seconds"}
        assert 0 <= line["pgd@10"] <= 1
        assert 0 <= line["clean"] <= 1
        assert line["loss"] > 0


def test_the_watcher_is_told_of_every_step(whole: tuple[Path, Watch]) -> None:
    _, watch = whole
    assert watch.begun == [("tiny", 3, 0)]  # 75 images in batches of 24; the rest waits for another epoch
    assert watch.steps == [(epoch, step) for epoch in range(3) for step in range(3)]
    for epoch, line in enumerate(watch.lines):
        assert line["loss"] == pytest.approx(sum(watch.losses[3 * epoch : 3 * epoch + 3]) / 3, abs=1e-4)


def test_the_learning_rate_warms_up_and_falls(whole: tuple[Path, Watch]) -> None:
    rates = [line["lr"] for line in whole[1].lines]
    assert rates[0] == pytest.approx(0.001 + 2 / 3 * 0.099)  # linear from a hundredth, two of three steps done
    assert 0 < rates[2] < rates[1] < 0.1


@pytest.mark.parametrize(
    ("where", "expected"), [({"stop_after_epoch": 0}, 1), ({"stop_in_epoch": 1}, 1), ({"stop_in_epoch": 2}, 2)]
)
def test_a_stopped_training_ends_in_the_same_bytes(
    where: dict[str, int], expected: int, recipe: Recipe, whole: tuple[Path, Watch], tmp_path: Path
) -> None:
    with pytest.raises(StoppedError):
        train(recipe, tmp_path, provenance=PROVENANCE, watcher=Watch(**where))
    assert not (tmp_path / "tiny.safetensors").exists()
    watch = Watch()
    weights = train(recipe, tmp_path, provenance={"threads": 7}, watcher=watch)
    assert weights == tmp_path / "tiny.safetensors"
    assert watch.begun == [("tiny", 3, expected)]
    assert watch.steps[0] == (expected, 0)
    assert weights.read_bytes() == (whole[0] / "tiny.safetensors").read_bytes()
    assert _log(tmp_path) == _log(whole[0])


def test_a_training_killed_with_signal_9_ends_in_the_same_bytes(
    recipe: Recipe, whole: tuple[Path, Watch], tmp_path: Path
) -> None:
    (tmp_path / "tiny.json").write_text(recipe.model_dump_json(by_alias=True))
    code = (
        "import sys, torch; from pathlib import Path; from robench.training import Recipe, train; "
        "from tests.training.test_loop import PROVENANCE, Watch; "
        f"torch.set_num_threads({torch.get_num_threads()}); folder = Path(sys.argv[1]); "
        "recipe = Recipe.model_validate_json((folder / 'tiny.json').read_text()); "
        "train(recipe, folder, provenance=PROVENANCE, watcher=Watch())"
    )
    root = Path(__file__).parents[2]
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=root)
    deadline = time.monotonic() + 120
    while not (tmp_path / "tiny.checkpoint").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the training ended before it could be killed"
    weights = train(recipe, tmp_path, provenance=PROVENANCE, watcher=Watch())
    assert weights.read_bytes() == (whole[0] / "tiny.safetensors").read_bytes()
    assert _log(tmp_path) == _log(whole[0])


def test_a_log_that_was_cut_is_restored(recipe: Recipe, whole: tuple[Path, Watch], tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        train(recipe, tmp_path, provenance=PROVENANCE, watcher=Watch(stop_after_epoch=1))
    log = (tmp_path / "tiny.jsonl").read_text()
    (tmp_path / "tiny.jsonl").write_text(log[: len(log) // 2])
    train(recipe, tmp_path, provenance=PROVENANCE, watcher=Watch())
    assert _log(tmp_path) == _log(whole[0])


def test_a_finished_training_is_not_done_again(recipe: Recipe, whole: tuple[Path, Watch]) -> None:
    folder, _ = whole
    before = (folder / "tiny.safetensors").stat().st_mtime_ns
    watch = Watch()
    assert train(recipe, folder, provenance=PROVENANCE, watcher=watch) == folder / "tiny.safetensors"
    assert watch.begun == []
    assert (folder / "tiny.safetensors").stat().st_mtime_ns == before


def test_lost_weights_are_written_again_from_the_checkpoint(
    recipe: Recipe, whole: tuple[Path, Watch], tmp_path: Path
) -> None:
    (tmp_path / "tiny.checkpoint").write_bytes((whole[0] / "tiny.checkpoint").read_bytes())
    watch = Watch()
    weights = train(recipe, tmp_path, provenance=PROVENANCE, watcher=watch)
    assert watch.steps == []
    assert weights.read_bytes() == (whole[0] / "tiny.safetensors").read_bytes()


def test_another_seed_gives_other_weights(recipe: Recipe, whole: tuple[Path, Watch], tmp_path: Path) -> None:
    other = recipe.model_copy(update={"seed": 1})
    weights = train(other, tmp_path, provenance=PROVENANCE, watcher=Watch())
    assert state_digest(load_file(weights)) != state_digest(load_file(whole[0] / "tiny.safetensors"))


def test_the_callers_random_state_is_left(recipe: Recipe, tmp_path: Path) -> None:
    before = torch.get_rng_state()
    with pytest.raises(StoppedError):
        train(recipe, tmp_path, provenance=PROVENANCE, watcher=Watch(stop_in_epoch=0))
    assert torch.equal(torch.get_rng_state(), before)


def test_another_recipes_checkpoint_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        train(recipe, tmp_path, provenance=PROVENANCE, watcher=Watch(stop_after_epoch=0))
    checkpoint = (tmp_path / "tiny.checkpoint").read_bytes()
    other = recipe.model_copy(update={"batch_size": 32})
    message = (
        rf"tiny\.checkpoint: `recipe` is {recipe.digest}; expected {other.digest} \(this recipe\)\. "
        r"Choose another `--out`, or delete the checkpoint to start over\.$"
    )
    with pytest.raises(RecipeError, match=message):
        train(other, tmp_path, provenance=PROVENANCE, watcher=Watch())
    assert (tmp_path / "tiny.checkpoint").read_bytes() == checkpoint


@pytest.mark.parametrize("damage", ["empty", "text", "half", "another pickle"])
def test_a_broken_checkpoint_is_refused(damage: str, recipe: Recipe, whole: tuple[Path, Watch], tmp_path: Path) -> None:
    path, content = tmp_path / "tiny.checkpoint", (whole[0] / "tiny.checkpoint").read_bytes()
    path.write_bytes({"empty": b"", "text": b"hello", "half": content[: len(content) // 2]}.get(damage, b""))
    if damage == "another pickle":
        torch.save({"model": torch.zeros(1)}, path)
    message = (
        r"tiny\.checkpoint: `file` is unreadable \(\w+\); expected a checkpoint\. "
        r"Choose another `--out`, or delete the checkpoint to start over\.$"
    )
    with pytest.raises(RecipeError, match=message):
        train(recipe, tmp_path, provenance=PROVENANCE, watcher=Watch())


def test_an_unknown_architecture_is_answered_with_near_ones(recipe: Recipe, tmp_path: Path) -> None:
    other = recipe.model_copy(update={"architecture": "mini-resnt"})
    message = r"^tiny: `architecture` is `mini-resnt`; expected a known one\. Did you mean `mini-resnet`.*\?$"
    with pytest.raises(RecipeError, match=message):
        train(other, tmp_path, provenance=PROVENANCE, watcher=Watch())


@pytest.mark.parametrize(
    ("start", "advice"),
    [
        ("mini-deit", r"Did you mean `mini-resnet`"),
        ("mini-resnt", r"Did you mean `mini-resnet`"),
        ("os:getcwd", r"Known: mini-resnet, mini-resnet-adv"),
    ],
)
def test_a_start_that_does_not_fit_is_refused(start: str, advice: str, recipe: Recipe, tmp_path: Path) -> None:
    other = recipe.model_copy(update={"start_from": start})
    message = rf"^tiny: `start_from` is `{start}`; expected a bundled model of architecture `mini-resnet`\. {advice}"
    with pytest.raises(RecipeError, match=message):
        train(other, tmp_path, provenance=PROVENANCE, watcher=Watch())


def test_training_starts_from_the_weights_that_are_named(
    recipe: Recipe, whole: tuple[Path, Watch], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = load_model("mini-resnet", weights=whole[0] / "tiny.safetensors")
    monkeypatch.setattr("robench.training.construction.load_model", {"mini-resnet": started}.__getitem__)
    frozen = recipe.optimizer.model_copy(update={"lr": 1e-30, "weight_decay": 0.0})
    other = recipe.model_copy(update={"start_from": "mini-resnet", "optimizer": frozen})
    weights = load_file(train(other, tmp_path, provenance=PROVENANCE, watcher=Watch()))
    for name, parameter in started.named_parameters():
        assert torch.equal(weights[name], parameter)


def test_a_batch_larger_than_the_data_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    message = r"^tiny: `batch_size` is 999; expected at most `data\.examples`, 75\.$"
    with pytest.raises(RecipeError, match=message):
        train(recipe.model_copy(update={"batch_size": 999}), tmp_path, provenance=PROVENANCE, watcher=Watch())


def test_a_loss_that_is_not_finite_ends_the_training(recipe: Recipe, tmp_path: Path) -> None:
    wild = recipe.optimizer.model_copy(update={"lr": 1e30})
    other = recipe.model_copy(update={"optimizer": wild, "adversary": None})
    message = (
        r"^tiny, epoch 1, step 2 of 3: `loss` is (nan|inf); expected a finite loss\. "
        r"Lower `optimizer\.lr` or lengthen the warm-up; the last checkpoint is kept\.$"
    )
    with pytest.raises(RecipeError, match=message):
        train(other, tmp_path, provenance=PROVENANCE, watcher=Watch())
    assert not (tmp_path / "tiny.safetensors").exists()


def test_a_folder_that_cannot_be_made_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        RecipeError, match=r"file: `folder` is not writable \(File exists\); expected a folder that can"
    ):
        train(recipe, tmp_path / "file", provenance=PROVENANCE, watcher=Watch())


def test_a_clean_recipe_is_not_attacked(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("robench.training.loop.adversarial_images", None)
    watch = Watch(stop_after_epoch=0)
    with pytest.raises(StoppedError):
        train(recipe.model_copy(update={"adversary": None}), tmp_path, provenance=PROVENANCE, watcher=watch)
    assert set(watch.lines[0]) == {"epoch", "loss", "lr", "clean", "seconds"}


def test_the_adversarys_strength_grows_over_its_warm_up(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strengths: list[float] = []

    def watched(
        model: Any, images: torch.Tensor, labels: Any, adversary: AdversaryRecipe, **options: Any
    ) -> torch.Tensor:
        if "strength" in options:
            strengths.append(options["strength"])
            assert adversary == recipe.adversary
        return images

    monkeypatch.setattr("robench.training.loop.adversarial_images", watched)
    train(recipe, tmp_path, provenance=PROVENANCE, watcher=Watch())
    assert strengths == pytest.approx([0, 1 / 3, 2 / 3, 1, 1, 1, 1, 1, 1])


@pytest.mark.parametrize("flip", [True, False])
def test_images_are_mirrored_when_the_recipe_says_so(
    flip: bool, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []

    def watched(model: Any, images: torch.Tensor, *others: Any, **options: Any) -> torch.Tensor:
        if "strength" in options:
            seen.append(images)
        return images

    monkeypatch.setattr("robench.training.loop.adversarial_images", watched)
    data = recipe.data.model_copy(update={"flip": flip})
    with pytest.raises(StoppedError):
        train(
            recipe.model_copy(update={"data": data}), tmp_path, provenance=PROVENANCE, watcher=Watch(stop_after_epoch=0)
        )
    originals = torch.from_numpy(mini.training_set(75, seed=0)[0]).float() / 255
    known = {image.numpy().tobytes() for image in originals}
    mirrored = {image.flip(2).numpy().tobytes() for image in originals}
    shown = [image.numpy().tobytes() for image in torch.cat(seen)]
    assert len(set(shown)) == len(shown) == 72
    plain = sum(image in known for image in shown)
    assert plain + sum(image in mirrored for image in shown) == 72
    assert (18 < plain < 54) if flip else plain == 72


def test_the_loop_sets_the_learning_rate_of_the_recipes_schedule(recipe: Recipe, tmp_path: Path) -> None:
    schedule = recipe.schedule.model_copy(
        update={"kind": "steps", "milestones": (2,), "warmup_lr": 0.05, "each": "epoch", "min_lr": 0.0}
    )
    watch = Watch()
    other = recipe.model_copy(update={"schedule": schedule, "adversary": None})
    train(other, tmp_path, provenance=PROVENANCE, watcher=watch)
    assert [line["lr"] for line in watch.lines] == pytest.approx([0.05, 0.1, 0.01])
