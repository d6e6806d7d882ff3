"""The trainer follows every key of a recipe, on one process and on two, and goes on where it was killed."""

import copy
import csv
import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

import robench
from robench.data import mini
from robench.errors import RecipeError
from robench.training import Options, Recipe, load_recipe, loop, train
from robench.training.batches import MiniBatches, Share
from robench.training.construction import build_model, build_optimizer
from robench.training.distillation import distilled
from robench.training.export import export_weights
from robench.training.photographs import Photographs
from robench.training.recipe import DistillationRecipe
from robench.training.schedules import LearningRate
from robench.training.watching import catastrophic_overfitting
from tests.training.test_loop import PROVENANCE, StoppedError, Watch
from tests.training.test_photographs import make_photographs, recipe_with

ADVERSARY = {"norm": "linf", "epsilon": "4/255", "step_size": "4/255", "steps": 1}
FULL: dict[str, Any] = {
    "accumulation": 2,
    "precision": "bfloat16",
    "label_smoothing": 0.1,
    "arguments": {"img_size": 32, "num_classes": 4, "drop_path_rate": 0.2},
    "mixing": {"mixup": 0.8, "cutmix": 1.0, "probability": [0.5, 1.0]},
    "ema": {"decay": 0.9, "buffers": "averaged", "exported": True},
    "adversary": {**ADVERSARY, "start": "normal-coin", "warmup_epochs": 1},
}
"""Everything at once."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_photographs(tmp_path_factory.mktemp("photographs"))


def _train(recipe: Recipe, folder: Path, root: Path | None, watch: Watch | None = None, **options: Any) -> Path:
    options = {"data": root, "workers": 0, **options}
    return train(recipe, folder, provenance=PROVENANCE, watcher=watch or Watch(), options=Options(**options))


def _weights(folder: Path) -> bytes:
    return (folder / "small" / "model.safetensors").read_bytes()


def test_a_mini_training_is_a_plain_loop(tmp_path: Path) -> None:
    """Bit for bit what the bundled models were trained by: no mixing, no precision, no average."""
    recipe = load_recipe("mini-deit")
    data = recipe.data.model_copy(update={"examples": 48, "validation": 10})
    schedule = recipe.schedule.model_copy(update={"epochs": 2, "warmup_epochs": 1})
    recipe = recipe.model_copy(update={"data": data, "schedule": schedule, "batch_size": 16})
    found = load_file(train(recipe, tmp_path, provenance=PROVENANCE, watcher=Watch(), options=Options(cpu=True)))

    images, labels = (torch.from_numpy(each) for each in mini.training_set(48, recipe.seed))
    with torch.random.fork_rng(devices=[]):
        model = build_model(recipe).train()
        optimizer = build_optimizer(recipe, model)
        rate = LearningRate(recipe.schedule, optimizer, updates=3)
        for epoch in range(2):
            generator = torch.Generator().manual_seed(1_000_003 * recipe.seed + epoch)
            order = torch.randperm(48, generator=generator)
            for step in range(3):
                rows = order[16 * step : 16 * step + 16]
                batch = images[rows].float() / 255
                mirrored = torch.rand(16, 1, 1, 1, generator=generator) < 0.5
                batch = torch.where(mirrored, batch.flip(3), batch)
                rate.set(3 * epoch + step)
                loss = F.cross_entropy(model(batch), labels[rows], label_smoothing=recipe.label_smoothing)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]  # torch leaves Tensor.backward untyped
                optimizer.step()
    assert all(torch.equal(found[name], tensor) for name, tensor in model.state_dict().items())


@pytest.fixture(scope="module")
def whole(root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Watch]:
    folder, watch = tmp_path_factory.mktemp("whole"), Watch()
    _train(recipe_with(**FULL), folder, root, watch)
    return folder, watch


@pytest.mark.parametrize(("epoch", "expected"), [(0, (0, 1)), (1, (1, 1))])
def test_a_training_stopped_inside_an_epoch_ends_in_the_same_bytes(
    epoch: int, expected: tuple[int, int], root: Path, whole: tuple[Path, Watch], tmp_path: Path
) -> None:
    recipe = recipe_with(**FULL)
    with pytest.raises(StoppedError):
        _train(recipe, tmp_path, root, Watch(stop_in_epoch=epoch), minutes=0)
    watch = Watch()
    _train(recipe, tmp_path, root, watch, minutes=0, workers=2)
    assert watch.steps[0] == expected
    assert watch.notices == [f"Going on after step 1 of epoch {epoch + 1}."]
    assert _weights(tmp_path) == _weights(whole[0])
    assert [line["loss"] for line in watch.lines] == [line["loss"] for line in whole[1].lines][epoch:]


def test_a_mini_training_stopped_inside_an_epoch_ends_in_the_same_bytes(tmp_path: Path) -> None:
    recipe = load_recipe("mini-resnet-adv")
    data = recipe.data.model_copy(update={"examples": 48, "validation": 10})
    schedule = recipe.schedule.model_copy(update={"epochs": 1, "warmup_epochs": 0})
    recipe = recipe.model_copy(update={"data": data, "schedule": schedule, "batch_size": 16})

    def follow(folder: Path, watch: Watch) -> bytes:
        return train(
            recipe, folder, provenance=PROVENANCE, watcher=watch, options=Options(cpu=True, minutes=0)
        ).read_bytes()

    with pytest.raises(StoppedError):
        follow(tmp_path / "stopped", Watch(stop_in_epoch=0))
    watch = Watch()
    assert follow(tmp_path / "stopped", watch) == follow(tmp_path / "whole", Watch())
    assert watch.steps == [(0, 1), (0, 2)]


def test_a_training_killed_with_signal_9_inside_an_epoch_ends_in_the_same_bytes(
    root: Path, whole: tuple[Path, Watch], tmp_path: Path
) -> None:
    code = (
        "import sys, torch; from pathlib import Path; from tests.training import test_trainer as here; "
        f"torch.set_num_threads({torch.get_num_threads()}); "
        "here._train(here.recipe_with(**here.FULL), Path(sys.argv[1]), Path(sys.argv[2]), minutes=0)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(root)], cwd=Path(__file__).parents[2])
    deadline = time.monotonic() + 120
    while not (tmp_path / "small.checkpoint").exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the training ended before it could be killed"
    watch = Watch()
    _train(recipe_with(**FULL), tmp_path, root, watch)
    assert 0 < len(watch.steps) < 6
    assert _weights(tmp_path) == _weights(whole[0])


def test_the_trained_folder_is_loaded_by_robench_and_timm(whole: tuple[Path, Watch]) -> None:
    folder = whole[0] / "small"
    config = json.loads((folder / "config.json").read_text())
    assert config["architecture"] == "test_vit"
    assert config["num_classes"] == 4
    assert config["pretrained_cfg"]["mean"] == [0.5, 0.5, 0.5]
    assert "hf_hub_id" not in config["pretrained_cfg"]
    averaged = torch.load(whole[0] / "small.checkpoint", weights_only=True)["average"]
    model = build_model(recipe_with(**FULL)).eval()
    model.load_state_dict(averaged)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(robench.load_model(str(folder))(images), model(images))


def test_log_table_and_curves_lie_beside_the_weights(whole: tuple[Path, Watch]) -> None:
    folder, watch = whole
    with (folder / "small.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["loss"]) for row in rows] == [line["loss"] for line in watch.lines]
    assert (folder / "small.png").read_bytes().startswith(b"\x89PNG")
    header, *lines = (json.loads(line) for line in (folder / "small.jsonl").read_text().splitlines())
    assert (header["processes"], header["device"], header["precision"]) == (1, "cpu", "bf16")
    assert lines == watch.lines


def _bare(recipe: Recipe, root: Path) -> tuple[nn.Module, Any, list[Any]]:
    """The untrained model, its optimizer, and the parts of the first epoch."""
    with torch.random.fork_rng(devices=[]):
        model = build_model(recipe).train()
    photographs = Photographs(recipe, root, classes=4, workers=0)
    return model, build_optimizer(recipe, model), list(photographs.parts(0, 0, Share(0, 1, 8, torch.device("cpu"))))


def test_the_average_is_the_average_of_the_weights(root: Path, tmp_path: Path) -> None:
    average = {"decay": 0.75, "buffers": "averaged", "exported": False}
    recipe = recipe_with(ema=average, schedule={"epochs": 1, "warmup_epochs": 0})
    model, optimizer, parts = _bare(recipe, root)
    expected = copy.deepcopy(model.state_dict())
    rate = LearningRate(recipe.schedule, optimizer, updates=3)
    for step, part in enumerate(parts):
        rate.set(step)
        optimizer.zero_grad()
        F.cross_entropy(model(part.images), part.labels).backward()  # type: ignore[no-untyped-call]  # torch's
        optimizer.step()
        for name, tensor in model.state_dict().items():
            expected[name] = 0.75 * expected[name] + 0.25 * tensor
    _train(recipe, tmp_path, root)
    found = torch.load(tmp_path / "small.checkpoint", weights_only=True)
    for name, tensor in model.state_dict().items():
        assert torch.allclose(found["model"][name], tensor, atol=1e-6)
        assert torch.allclose(found["average"][name], expected[name], atol=1e-6)
    exported = load_file(tmp_path / "small" / "model.safetensors")
    assert all(torch.equal(exported[name.removeprefix("network.")], found["model"][name]) for name in found["model"])


def test_parts_add_up_to_the_batch(root: Path, tmp_path: Path) -> None:
    watches = [Watch(), Watch()]
    for parts, watch in zip((1, 4), watches, strict=True):
        recipe = recipe_with(accumulation=parts, adversary=ADVERSARY)
        _train(recipe, tmp_path / str(parts), root, watch)
    assert watches[0].losses == pytest.approx(watches[1].losses, rel=1e-4)


@pytest.mark.slow
def test_two_processes_learn_what_one_does(root: Path, tmp_path: Path) -> None:
    _two_processes(recipe_with(adversary=ADVERSARY), root, tmp_path)


def test_two_processes_learn_what_one_does_on_clean_images(root: Path, tmp_path: Path) -> None:
    _two_processes(recipe_with(accumulation=2), root, tmp_path)


class _OfTwo(nn.BatchNorm2d):
    """Batch-norm of two processes in one: each has its own images, and the statistics of the first are kept."""

    def forward(self, images: Tensor) -> Tensor:
        if not self.training:
            return super().forward(images)
        first = super().forward(images[0::2])
        second = F.batch_norm(images[1::2], None, None, self.weight, self.bias, training=True, eps=self.eps)
        return torch.stack([first, second], dim=1).flatten(0, 1)


def test_batch_norm_of_two_processes_is_by_process_and_keeps_the_statistics_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def built(recipe: Recipe) -> nn.Module:
        model = build_model(recipe)
        for part in model.modules():
            if type(part) is nn.BatchNorm2d:
                part.__class__ = _OfTwo
        return model

    monkeypatch.setattr(loop, "build_model", built)
    recipe = load_recipe("mini-resnet")
    data = recipe.data.model_copy(update={"examples": 48, "validation": 400})
    schedule = recipe.schedule.model_copy(update={"epochs": 2, "warmup_epochs": 1})
    _two_processes(recipe.model_copy(update={"data": data, "schedule": schedule, "batch_size": 16}), None, tmp_path)


def _two_processes(recipe: Recipe, root: Path | None, folder: Path) -> None:
    """What two processes learn over gloo, as `torchrun` starts them, beside what one learns in this process."""
    watch = Watch()
    trained = _train(recipe, folder / "one", root, watch)
    (folder / "recipe.json").write_text(recipe.model_dump_json(by_alias=True))
    code = (
        "import sys, torch; from pathlib import Path; from tests.training import test_trainer as here; "
        "torch.set_num_threads(1); recipe = here.Recipe.model_validate_json(Path(sys.argv[1]).read_text()); "
        "root = Path(sys.argv[3]) if sys.argv[3] else None; "
        "here._train(recipe, Path(sys.argv[2]), root, cpu=True)"
    )
    script = folder / "script.py"
    script.write_text(code.replace("; ", "\n"))
    repository = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([repository, os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    command += [str(folder / "recipe.json"), str(folder / "two"), str(root or "")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    log = folder / "two" / f"{recipe.name}.jsonl"
    header, *lines = (json.loads(line) for line in log.read_text().splitlines())
    assert header["processes"] == 2
    for found, expected in zip(lines, watch.lines, strict=True):
        assert found["loss"] == pytest.approx(expected["loss"], abs=2e-4)
        assert found["clean"] == expected["clean"]
    weights = trained / "model.safetensors" if trained.is_dir() else trained
    one, two = load_file(weights), load_file(folder / "two" / weights.relative_to(folder / "one"))
    assert all(torch.allclose(one[name], two[name], atol=1e-4) for name in one)


class _Counting(nn.Module):
    """Counts images that pass forward and backward."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside, self.forwards, self.backwards = inside, 0, 0

    def forward(self, images: Tensor) -> Tensor:
        self.forwards += len(images)
        logits: Tensor = self.inside(images)
        if logits.requires_grad:
            logits.register_hook(self._seen)  # type: ignore[no-untyped-call]  # torch's
        return logits

    def _seen(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)


@pytest.mark.parametrize(
    ("changes", "forwards", "backwards"),
    [
        ({}, 1, 1),
        ({"accumulation": 2}, 1, 1),
        ({"adversary": ADVERSARY}, 2, 2),
        ({"adversary": {**ADVERSARY, "steps": 3}, "mixing": {"mixup": 0.8}}, 4, 4),
        ({"adversary": {**ADVERSARY, "clean_epochs": 1}}, 1, 1),
    ],
)
def test_a_step_costs_the_passes_that_the_guide_says(
    changes: dict[str, Any], forwards: int, backwards: int, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting: list[_Counting] = []

    def build(recipe: Recipe) -> Any:
        model = build_model(recipe)
        classes = model.network.num_classes
        counting.append(_Counting(model.network))
        model.network = counting[0]
        counting[0].num_classes = classes
        return model

    monkeypatch.setattr(loop, "build_model", build)
    monkeypatch.setattr(loop, "build_optimizer", lambda recipe, model: torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(StoppedError):
        _train(recipe_with(**changes), tmp_path, root, Watch(stop_in_epoch=0))
    assert (counting[0].forwards, counting[0].backwards) == (16 * forwards, 16 * backwards)  # two steps of 8


def test_a_student_learns_from_its_teacher(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = recipe_with(name="wise")
    student = recipe_with(distillation={"teacher": "wise", "alpha": 0.5, "temperature": 2.0})
    monkeypatch.setattr("robench.training.distillation.load_recipe", {"wise": teacher}.__getitem__)
    message = (
        rf"^small: `teacher` is missing \({tmp_path}/wise\); expected the weights of `wise`\. "
        rf"Train it first: `robench train wise --out {tmp_path}`; or name its weights: `--teacher PATH`\.$"
    )
    with pytest.raises(RecipeError, match=message):
        _train(student, tmp_path, root)
    folder = _train(teacher, tmp_path, root)
    for options in ({}, {"teacher": folder}, {"teacher": folder / "model.safetensors"}):
        watch = Watch(stop_in_epoch=0)
        with pytest.raises(StoppedError):
            _train(student, tmp_path, root, watch, **options)
        model, _, parts = _bare(student, root)
        answers = robench.load_model(str(folder))(parts[0].images)
        with torch.no_grad():
            logits = model(parts[0].images)
            p, q = (F.softmax(answers / 2, dim=1), F.softmax(logits / 2, dim=1))
            divergence = (p * (p / q).log()).sum(dim=1).mean()
            expected = 0.5 * F.cross_entropy(logits, parts[0].labels) + 0.5 * 4 * divergence
        assert watch.losses[0] == pytest.approx(float(expected), rel=1e-4)


def test_a_teacher_who_agrees_adds_nothing() -> None:
    torch.manual_seed(0)
    images, teacher = torch.rand(4, 5), nn.Linear(5, 3)
    recipe = DistillationRecipe(teacher="wise", alpha=0.25, temperature=3.0)
    loss = distilled(torch.tensor(2.0), teacher(images), teacher, images, recipe)
    assert float(loss.detach()) == pytest.approx(0.75 * 2.0, abs=1e-6)


def test_a_loss_that_becomes_nan_keeps_the_last_good_checkpoint(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_with()
    watch, calls = Watch(), []
    original = loop.Training._loss

    def loss(self: Any, images: Tensor, labels: Tensor) -> Tensor:
        calls.append(1)
        return original(self, images, labels) * (torch.nan if len(calls) == 5 else 1.0)

    monkeypatch.setattr(loop.Training, "_loss", loss)
    message = r"^small, epoch 2, step 2 of 3: `loss` is nan; expected a finite loss\. Lower `optimizer\.lr` or lengthen"
    with pytest.raises(RecipeError, match=message):
        _train(recipe, tmp_path, root, watch, minutes=0)
    kept = torch.load(tmp_path / "small.checkpoint", weights_only=True)
    assert (kept["finished_epochs"], kept["finished_steps"]) == (1, 1)
    assert all(bool(tensor.isfinite().all()) for tensor in kept["model"].values())


def test_weights_that_are_not_finite_are_not_kept(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss of a step is finite, and what the optimizer makes of it is not."""
    original = loop.Training.learn

    def learn(self: Any, epoch: int, step: int, parts: Iterator[Any]) -> float:
        found = original(self, epoch, step, parts)
        if step == 1:
            next(self.model.parameters()).data.fill_(torch.inf)
        return found

    monkeypatch.setattr(loop.Training, "learn", learn)
    with pytest.raises(RecipeError, match=r"^small, epoch 1, step \d of 3: `weights` is not finite; expected a finite"):
        _train(recipe_with(), tmp_path, root, minutes=0)
    assert torch.load(tmp_path / "small.checkpoint", weights_only=True)["finished_steps"] == 1


def test_a_full_disk_is_a_clear_error_and_keeps_the_checkpoint(root: Path, tmp_path: Path) -> None:
    recipe = recipe_with()
    with pytest.raises(StoppedError):
        _train(recipe, tmp_path, root, Watch(stop_after_epoch=0))
    before = (tmp_path / "small.checkpoint").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))
    try:
        message = (
            r"small\.checkpoint: `file` is not writable \(File too large\); expected room to write\. Make room; the"
        )
        with pytest.raises(RecipeError, match=message):
            _train(recipe, tmp_path, root)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "small.checkpoint").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small.checkpoint", "small.csv", "small.jsonl"]


def test_a_full_disk_at_the_export_is_a_clear_error_and_leaves_nothing(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """safetensors has errors of its own, which are none of the system's."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def export(recipe: Recipe, model: nn.Module, path: Path) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        try:
            export_weights(recipe, model, path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    recipe = recipe_with(schedule={"epochs": 1, "warmup_epochs": 0})
    with monkeypatch.context() as patched:
        patched.setattr(loop, "export_weights", export)
        with pytest.raises(
            RecipeError, match=r"small: `file` is not writable \(.*File too large.*\); expected room to"
        ):
            _train(recipe, tmp_path, root)
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix not in (".png", ".csv")) == [
        "small.checkpoint",
        "small.jsonl",
    ]
    assert _train(recipe, tmp_path, root).is_dir()


def test_a_student_goes_on_with_the_teacher_it_began_with(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = recipe_with(name="wise", schedule={"epochs": 1, "warmup_epochs": 0})
    student = recipe_with(distillation={"teacher": "wise", "alpha": 0.5, "temperature": 2.0})
    monkeypatch.setattr("robench.training.distillation.load_recipe", {"wise": teacher}.__getitem__)
    first, second = (
        _train(teacher.model_copy(update={"seed": seed}), tmp_path / str(seed), root) / "model.safetensors"
        for seed in (0, 1)
    )
    with pytest.raises(StoppedError):
        _train(student, tmp_path, root, Watch(stop_after_epoch=0), teacher=first)
    header = json.loads((tmp_path / "small.jsonl").read_text().splitlines()[0])
    assert header["teacher_sha256"] == hashlib.sha256(first.read_bytes()).hexdigest()
    with pytest.raises(RecipeError, match=r"small\.checkpoint: `teacher` is \w{64}; expected \w{64} \(this teacher\)"):
        _train(student, tmp_path, root, teacher=second)
    _train(student, tmp_path, root, teacher=first)


def test_a_training_that_goes_on_in_another_way_says_so(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StoppedError):
        _train(recipe_with(), tmp_path, root, Watch(stop_after_epoch=0))
    restore = loop.Training._restore

    def restored(self: loop.Training, content: dict[str, Any], running: dict[str, Any]) -> None:
        restore(self, content, {**running, "precision": "fp16"})

    watch = Watch()
    with monkeypatch.context() as patched:
        patched.setattr(loop.Training, "_restore", restored)
        _train(recipe_with(), tmp_path, root, watch)
    assert watch.notices == ["Goes on in another way than before (precision no -> fp16); the log says so."]
    header = json.loads((tmp_path / "small.jsonl").read_text().splitlines()[0])
    assert header["precision"] == "no"
    assert header["continued"] == [{"epoch": 1, "processes": 1, "device": header["device"], "precision": "fp16"}]


def test_a_resume_from_another_recipe_is_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        _train(recipe_with(), tmp_path, root, Watch(stop_after_epoch=0))
    with pytest.raises(RecipeError, match=r"small\.checkpoint: `recipe` is \w{64}; expected \w{64} \(this recipe\)"):
        _train(recipe_with(label_smoothing=0.2), tmp_path, root)


def test_float16_without_a_gpu_is_told_and_recorded(root: Path, tmp_path: Path) -> None:
    watch = Watch(stop_after_epoch=0)
    with pytest.raises(StoppedError):
        _train(recipe_with(precision="float16"), tmp_path, root, watch, cpu=True)
    assert watch.notices == ["Passes are in float32: `precision` is float16, which takes a GPU."]
    assert json.loads((tmp_path / "small.jsonl").read_text().splitlines()[0])["precision"] == "no"


def _line(pgd: float, single: float) -> dict[str, float]:
    return {"pgd@10": pgd, "single-step": single}


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([_line(0.3, 0.4)], False),
        ([_line(0.3, 0.4), _line(0.28, 0.42)], False),
        ([_line(0.3, 0.4), _line(0.02, 0.8)], True),
        ([_line(0.3, 0.4), _line(0.02, 0.1)], False),  # a model that collapsed altogether
        ([_line(0.3, 0.4), _line(0.0, 0.9), _line(0.31, 0.4)], False),  # recovered
        ([_line(0.0, 0.6)], True),  # from the beginning
        ([_line(0.0, 0.6), _line(0.002, 0.8), _line(0.001, 0.95)], True),
        ([_line(0.04, 0.9), _line(0.03, 0.95)], True),
        ([_line(0.0, 0.1)], False),  # has learnt nothing yet
        ([_line(0.04, 0.28)], False),
    ],
)
def test_catastrophic_overfitting_is_pgd_falling_while_one_step_does_not(
    lines: list[dict[str, float]], expected: bool
) -> None:
    assert catastrophic_overfitting(lines) is expected


def test_epochs_without_an_adversary_say_nothing_of_catastrophic_overfitting() -> None:
    clean = [_line(0.02, 0.01), _line(0.0, 0.3)]
    assert catastrophic_overfitting(clean)
    assert not catastrophic_overfitting(clean, clean_epochs=2)
    assert not catastrophic_overfitting([*clean, _line(0.3, 0.4)], clean_epochs=2)
    assert catastrophic_overfitting([*clean, _line(0.3, 0.4), _line(0.02, 0.8)], clean_epochs=2)


def test_a_clean_epoch_is_not_logged_as_catastrophic_overfitting(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accuracies = iter([0.01, 0.9, 0.3, 0.4])
    monkeypatch.setattr(loop, "attacked_accuracy", lambda *arguments, **options: next(accuracies))
    watch = Watch()
    _train(recipe_with(adversary={**ADVERSARY, "clean_epochs": 1}), tmp_path, root, watch)
    assert [line.get("catastrophic_overfitting") for line in watch.lines] == [None, None]


def test_catastrophic_overfitting_is_logged_and_told(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accuracies = iter([0.3, 0.4, 0.01, 0.9])
    monkeypatch.setattr(loop, "attacked_accuracy", lambda *arguments, **options: next(accuracies))
    watch = Watch()
    _train(recipe_with(adversary=ADVERSARY), tmp_path, root, watch)
    assert [line.get("catastrophic_overfitting") for line in watch.lines] == [None, True]
    assert watch.notices == [
        "Catastrophic overfitting in epoch 2: PGD breaks what one step does not. "
        "More steps in `adversary.steps`, or a smaller `adversary.step_size`, prevent it."
    ]


def test_mini_batches_of_two_processes_are_those_of_one() -> None:
    recipe = load_recipe("mini-resnet-adv")
    data = recipe.data.model_copy(update={"examples": 32, "validation": 10})
    recipe = recipe.model_copy(update={"data": data, "batch_size": 16})
    shares = [Share(0, 1, 16, torch.device("cpu")), *(Share(rank, 2, 8, torch.device("cpu")) for rank in range(2))]
    runs = [MiniBatches(recipe).parts(0, 0, share) for share in shares]
    for whole, *halves in zip(*runs, strict=True):
        starts = whole.starts.uniform("a", (2,))
        for rank, half in enumerate(halves):
            assert torch.equal(half.images, whole.images[rank::2])
            assert torch.equal(half.starts.uniform("a", (2,)), starts[rank::2])
