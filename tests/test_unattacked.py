"""Runs without an attack, end to end."""

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from robench.classifier import Classifier
from robench.comparison import compare, compare_means, effective_robustness
from robench.data import CATALOGUE
from robench.data.categories import categories
from robench.data.imagenet.listing import wnids
from robench.data.imagenet.subsets import subset
from robench.data.images import read_image
from robench.data.source import Source, Unreadable, Views
from robench.errors import DataError, ModelError, ProtocolError, RunError
from robench.evaluation import Options, evaluate, resume
from robench.lines import line_of
from robench.protocol import Protocol
from robench.registry import load_protocol
from robench.result import Metric, read_result
from robench.unattacked import Looking, Reading
from tests.shifted_trees import (
    cells_tree,
    cue_tree,
    linked,
    numbered_tree,
    pictures,
    shift_of,
    validation_names,
    wnid_tree,
)


class Colours(nn.Module):
    """A thousand logits that see the mean colours of the four quarters of an image."""

    def __init__(self, favourites: Sequence[int] = range(1000)) -> None:
        super().__init__()
        weight = torch.zeros(1000, 12)
        generator = torch.Generator().manual_seed(0)
        weight[list(favourites)] = torch.randn(len(favourites), 12, generator=generator)
        self.weight = nn.Parameter(weight)

    def forward(self, images: Tensor) -> Tensor:
        quarters = nn.functional.adaptive_avg_pool2d(images, 2).flatten(1) - 0.5
        return quarters @ self.weight.T + 10 * (self.weight.abs().sum(dim=1) > 0)


def colours() -> nn.Module:
    return Colours().eval()


class Constructed:
    """Logits that were made beforehand; an image says in its first value which."""

    def __init__(self, logits: Tensor) -> None:
        self.rows = logits

    def __call__(self, images: Tensor) -> Tensor:
        return self.rows[(images[:, 0, 0, 0] * 255).round().long() % len(self.rows)]

    def images(self) -> Tensor:
        count = len(self.rows)
        return torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(count, 3, 4, 4).contiguous()


class Cells:
    """A source of views, as a user may bring one: image i in view v has the value 4 i + v."""

    name = "cells"
    classes = None

    def __init__(self, count: int, broken: Iterable[tuple[int, int]] = ()) -> None:
        self.ids = [f"e{at:03d}" for at in range(count)]
        self.labels = [at % 3 for at in range(count)]
        self.view_names = ["clean", "blur/1", "blur/2", "fog/1"]
        self.broken = set(broken)
        self.alive = self.most = 0

    def images(self, positions: Iterable[int]) -> Iterator[Tensor | Unreadable]:
        return (self._image(at, 0).float() / 255 for at in positions)

    def views(self, positions: Iterable[int]) -> Iterator[Tensor | Unreadable]:
        for at in positions:
            for view in range(4):
                lost = (at, view) in self.broken
                yield Unreadable(f"{self.ids[at]} is cut in view {view}.") if lost else self._image(at, view)

    def _image(self, at: int, view: int) -> Tensor:
        return torch.full((3, 4, 4), 4 * at + view, dtype=torch.uint8)


def _protocol(**shift: Any) -> Protocol:
    data = {"source": "cells", "count": 9, "classes": 3, "crop": 4}
    content = {"schema": "robench.protocol/1", "id": "own", "version": 1, "status": "draft", "title": "t"}
    return Protocol.model_validate({**content, "summary": "s", "seed": 0, "data": data, "shift": shift})


IN_CELLS = _protocol(kind="corruptions", severities=2, families={"all": ["blur", "fog"]})


# --- what is read off logits


def test_top1_among_200_is_that_of_their_logits_alone(tmp_path: Path) -> None:
    """The authors keep the 200 columns in rising order, and compare with the rank of the class among them."""
    order, classes = np.random.default_rng(0), list(subset("imagenet-a"))
    logits = order.normal(size=(200, 1000)).astype(np.float32)
    labels = [classes[at] for at in order.integers(0, 200, 200)]
    logits[np.arange(200), labels] += order.choice([0.0, 2.0, 5.0], 200)
    outside = np.setdiff1d(np.arange(1000), classes)
    logits[:, outside] += 1  # so that the best of all is mostly no class of the set
    model = Constructed(torch.from_numpy(logits))
    result = evaluate(model, "imagenet-a", data=(model.images(), labels), run_dir=tmp_path)
    ranks = [classes.index(label) for label in labels]
    among = int((logits[:, classes].argmax(axis=1) == ranks).sum())
    whole = int((logits.argmax(axis=1) == labels).sum())
    assert {metric.name: metric.numerator for metric in result.metrics} == {"top1": whole, "top1@among": among}
    assert among > whole + 20
    for outcome in result.read_outcomes():
        row = int(outcome.id.removeprefix("example-"))
        assert (outcome.clean, outcome.among) == (logits[row].argmax(), classes[logits[row, classes].argmax()])


def test_categories_are_decided_by_mean_probability() -> None:
    """Summed, 111 kinds of dogs would win against one kind of knife."""
    logits = torch.randn(64, 1000, generator=torch.Generator().manual_seed(0)) * 3
    groups = list(categories("sixteen").values())
    probabilities = logits.double().softmax(dim=1).numpy()
    means = np.stack([probabilities[:, list(group)].mean(axis=1) for group in groups], axis=1)
    sums = np.stack([probabilities[:, list(group)].sum(axis=1) for group in groups], axis=1)
    reading = Reading.of(shift_of("cue-conflict"), "cue-conflict.toml")
    assert np.allclose(reading.scores(logits).exp().numpy(), means)
    assert (means.argmax(axis=1) != sums.argmax(axis=1)).any()


def test_another_list_of_classes_is_refused_at_the_door(tmp_path: Path) -> None:
    protocol = load_protocol("imagenet-a")
    shift = shift_of(protocol).model_copy(update={"among": "imagenet-r"})
    with pytest.raises(ProtocolError, match=r"^imagenet-a\.toml: `shift\.among_sha256` is [0-9a-f]{64}; expected"):
        evaluate(colours(), protocol.model_copy(update={"shift": shift}), data=tmp_path, run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


# --- the loop


def _looked(source: Source, slots: int, count: int = 9) -> tuple[dict[int, Any], dict[int, int]]:
    model = Classifier(lambda images: torch.stack([images[:, 0, 0, 0] * (at + 1) % 0.1 for at in range(3)], dim=1))
    pixels: dict[int, int] = {}
    looking = Looking(IN_CELLS, model, source, slots=slots)

    def add(position: int, digest: int) -> None:
        pixels[position] = pixels.get(position, 0) + digest

    return dict(looking.outcomes(range(count), on_pixels=add)), pixels


def test_outcomes_do_not_depend_on_the_batch() -> None:
    assert isinstance(Cells(9), Views)
    expected, pixels = _looked(Cells(9), 1)
    assert list(expected) == list(range(9))
    for slots in (2, 7, 36, 100):
        assert _looked(Cells(9), slots) == (expected, pixels)
    for at, outcome in expected.items():
        values = torch.tensor([4.0 * at + view for view in range(4)]) / 255
        said = torch.stack([values * (label + 1) % 0.1 for label in range(3)], dim=1).argmax(dim=1).tolist()
        assert outcome.clean == said[0]
        assert int(outcome.cells, 16) == sum((said[view] == at % 3) << (view - 1) for view in (1, 2, 3))


def test_an_example_with_one_broken_view_is_errored_alone() -> None:
    whole, pixels = _looked(Cells(9), 5)
    found, fewer = _looked(Cells(9, broken=[(4, 2), (4, 3), (8, 0)]), 5)
    for at in range(9):
        if at in (4, 8):
            assert (found[at].error, found[at].cells, found[at].clean) == (
                f"e00{at} is cut in view {2 if at == 4 else 0}.",
                "0",
                -1,
            )
            assert fewer[at] != pixels[at]
        else:
            assert (found[at], fewer[at]) == (whole[at], pixels[at])


def test_memory_holds_one_batch_whatever_the_number_of_images() -> None:
    alive: list[int] = []

    class Watched(Cells):
        def views(self, positions: Iterable[int]) -> Iterator[Tensor | Unreadable]:
            for number, image in enumerate(super().views(positions)):
                alive.append(number)
                yield image

    seen: list[int] = []

    def model(images: Tensor) -> Tensor:
        seen.append(len(alive))
        return images[:, :, 0, 0]

    looking = Looking(IN_CELLS, Classifier(model), Watched(60), slots=8)
    for done, (position, _) in enumerate(looking.outcomes(range(60), on_pixels=lambda at, digest: None), 1):
        assert position == done - 1
        assert len(alive) <= 4 * done + 8  # what is read beyond finished examples is one batch
    assert len(seen) == 30


def test_where_memory_runs_out_the_batch_is_halved() -> None:
    events: list[tuple[str, dict[str, Any]]] = []

    def model(images: Tensor) -> Tensor:
        if len(images) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return images[:, :, 0, 0]

    looking = Looking(IN_CELLS, Classifier(model), Cells(9), slots=16)
    tell: Callable[[str, dict[str, Any]], None] = lambda kind, details: events.append((kind, details))  # noqa: E731
    found = dict(looking.outcomes(range(9), on_pixels=lambda at, digest: None, on_event=tell))
    assert len(found) == 9
    assert events == [("slots halved", {"slots": 8}), ("slots halved", {"slots": 4})]

    def never(images: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    looking = Looking(IN_CELLS, Classifier(never), Cells(9), slots=1)
    with pytest.raises(ModelError, match=r"^never: `memory` is too small for one image; expected room for one pass\."):
        list(looking.outcomes(range(9), on_pixels=lambda at, digest: None))


def test_logits_that_are_no_numbers_err_their_example() -> None:
    def model(images: Tensor) -> Tensor:
        logits = images[:, :, 0, 0].clone()
        logits[(images[:, 0, 0, 0] * 255).round() == 4 * 2 + 3] = torch.nan
        return logits

    found = dict(
        Looking(IN_CELLS, Classifier(model), Cells(9), slots=5).outcomes(range(9), on_pixels=lambda at, digest: None)
    )
    assert [at for at in range(9) if found[at].error] == [2]
    assert found[2].error == "the logits of fog/1 are not finite"


# --- whole runs


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def corrupted(tmp_path_factory: pytest.TempPathFactory, originals: list[Path]) -> Path:
    names = [f"{wnids()[label]}/x{label}.JPEG" for label in range(6)]
    folder = tmp_path_factory.mktemp("c")
    linked(folder / "clean", names, originals)
    return cells_tree(folder / "cells", originals, names)


def _cut(path: Path) -> None:
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[: len(content) // 2])


def test_a_cut_jpeg_is_named_errored_and_keeps_the_result_from_being_complete(
    tmp_path: Path, originals: list[Path]
) -> None:
    names = validation_names(4)
    root = cells_tree(tmp_path / "c", originals, names)
    _cut(root / "fog" / "3" / names[1])
    result = evaluate(colours(), "imagenet-c", data=root, limit=4, run_dir=tmp_path / "run", options=Options(workers=0))
    assert (result.counts.evaluated, result.counts.errored, result.data.official) == (3, 1, True)
    assert result.status != "complete"
    (lost,) = [outcome for outcome in result.read_outcomes() if outcome.error]
    assert lost.error.startswith(f"fog/3/{names[1]}: `image` is unreadable (")
    assert lost.id == Path(names[1]).stem
    assert int(lost.cells or "f", 16) == 0


def test_a_run_in_cells_resumes_to_the_same_bytes_and_counts_the_same_as_a_loop(
    tmp_path: Path, corrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_colours.py").write_text("from tests.test_unattacked import colours as build\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    clean = corrupted.parent / "clean"
    options = Options(shard_size=2, workers=2, clean=clean)
    first = evaluate("own_colours:build", "imagenet-c", data=corrupted, run_dir=tmp_path / "a", options=options)
    for name in ("result.json", "shards/000001.csv"):
        (tmp_path / "a" / name).unlink()
    assert resume(tmp_path / "a", workers=0, batch_size=7).to_bytes() == first.to_bytes()
    assert read_result(tmp_path / "a").derived == first.derived
    model, right = colours(), {}
    for corruption, severity in shift_of("imagenet-c").cells:
        images = sorted((corrupted / corruption / str(severity)).rglob("*.JPEG"))
        logits = model(torch.stack([read_image(path, resize=None, crop=224) for path in images]))
        labels = torch.tensor([wnids().index(path.parent.name) for path in images])
        right[f"{corruption}/{severity}"] = int((logits.argmax(dim=1) == labels).sum())
    assert {each.name: each.numerator for each in first.metrics if each.group == "cell"} == right
    assert first.clean.denominator == 6
    assert first.headline.numerator == sum(right.values())


KILLED = """
import sys, time
from tests.test_unattacked import Colours
from robench.evaluation import Options, evaluate

class Slow(Colours):
    calls, patience = 0, float(sys.argv[1])
    def forward(self, images):
        Slow.calls += 1
        if Slow.calls > Slow.patience:  # the door and the fingerprint ask before the run does
            print("working", flush=True)
            time.sleep(60)
        return super().forward(images)

for folder in sys.argv[4:]:
    options = Options(shard_size=1, workers=2, clean=sys.argv[3])
    evaluate(Slow().eval(), "imagenet-c", data=sys.argv[2], run_dir=folder, batch_size=32, options=options)
"""


@pytest.mark.slow
def test_a_killed_run_is_finished_to_the_same_bytes(tmp_path: Path, corrupted: Path) -> None:
    killed, whole, data = tmp_path / "killed", tmp_path / "whole", [str(corrupted), str(corrupted.parent / "clean")]
    start = [sys.executable, "-W", "ignore", "-c", KILLED]
    process = subprocess.Popen(
        [*start, "14", *data, str(killed)], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "working\n"
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=30)
    done = {path: path.stat().st_mtime_ns for path in (killed / "shards").glob("*.csv")}
    assert 0 < len(done) < 6
    subprocess.run([*start, "inf", *data, str(killed), str(whole)], check=True, timeout=120)
    assert {path: path.stat().st_mtime_ns for path in done} == done
    for name in ("result.json", "outcomes.csv.gz"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()


def test_every_set_is_evaluated(tmp_path: Path, originals: list[Path]) -> None:
    """Labels of a single colour each, so that a naive loop over files says what is right."""
    labels = {"imagenet-a": subset("imagenet-a"), "imagenet-r": subset("imagenet-r")}
    roots = {name: wnid_tree(tmp_path / name, originals, chosen) for name, chosen in labels.items()}
    roots["imagenet-v2"] = numbered_tree(tmp_path / "v2", originals, range(60))
    roots["imagenet-sketch"] = wnid_tree(tmp_path / "sketch", originals, range(60))
    for name, root in roots.items():
        limit = 30 if name in labels else 20
        options = Options(workers=0)
        result = evaluate(colours(), name, data=root, limit=limit, run_dir=tmp_path / f"run-{name}", options=options)
        assert result.data.source == name
        assert result.shifted
        assert result.headline.name == ("top1@among" if name in labels else "top1")
        assert str(result).startswith(f"{result.headline.name} ")
        with pytest.raises(RunError, match=r"^result: `clean` is not measured; expected clean images\. Evaluate `imag"):
            _ = result.clean


def test_cue_conflict_counts_what_a_loop_counts(tmp_path: Path) -> None:
    root = cue_tree(tmp_path / "cues", pictures(tmp_path / "png", count=11, suffix=".png"), each=4)
    result = evaluate(colours(), "cue-conflict", data=root, run_dir=tmp_path / "run", options=Options(workers=0))
    names, groups = list(categories("sixteen")), list(categories("sixteen").values())
    model, shape_right, texture_right, conflicts = colours(), 0, 0, 0
    for path in root.rglob("*.png"):
        probabilities = model(read_image(path, resize=None, crop=224)[None]).softmax(dim=1)[0].detach()
        decision = names[int(np.argmax([float(probabilities[list(group)].mean()) for group in groups]))]
        shape, texture = (part.rstrip("0123456789") for part in path.stem.split("-"))
        if shape != texture:
            conflicts += 1
            shape_right += decision == shape
            texture_right += decision == texture
    found = {metric.name: (metric.numerator, metric.denominator) for metric in result.metrics}
    assert found["top1"] == (shape_right, conflicts)
    assert found["shape bias"] == (shape_right, shape_right + texture_right)
    assert result.data.count == 64


def test_textures_must_be_known(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^robench: `data` is arrays; expected a source that says which texture an"):
        evaluate(colours(), "cue-conflict", data=(torch.rand(4, 3, 8, 8), [0, 1, 2, 3]), run_dir=tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            Options(engine="reference"),
            "`engine` is `reference`; expected nothing of it under mini-a@1, which has no attack",
        ),
        (Options(save_adversarial="images"), "`save_adversarial` is asked for; expected nothing of it under mini-a@1"),
    ],
)
def test_what_only_attacks_have_is_refused(options: Options, message: str, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=message):
        evaluate("mini-resnet", "mini-a", limit=4, run_dir=tmp_path / "run", options=options)
    assert not (tmp_path / "run").exists()


def test_clean_images_of_a_set_that_has_its_own_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="`clean` is given under mini-c@1, which sees clean images of its own"):
        evaluate("mini-resnet", "mini-c", limit=4, run_dir=tmp_path / "run", options=Options(clean=tmp_path))


def test_shapes_of_the_mini_suite_wear_other_textures(tmp_path: Path) -> None:
    result = evaluate("mini-resnet", "mini-stylized", run_dir=tmp_path / "run", limit=128)
    outcomes = result.read_outcomes()
    assert all(outcome.texture != outcome.label for outcome in outcomes)
    assert result.data.official
    assert [metric.name for metric in result.metrics] == ["shape bias", "top1"]


# --- a reference model


def _with_reference(reference: str) -> Protocol:
    protocol = load_protocol("mini-stylized")
    changes = {"status": "draft", "shift": {"kind": "natural", "reference": reference}}
    return Protocol.model_validate({**protocol.model_dump(by_alias=True, exclude_none=True), **changes})


def test_a_reference_model_sees_the_same_images(tmp_path: Path) -> None:
    protocol = _with_reference("mini-deit")
    result = evaluate("mini-resnet", protocol, limit=64, run_dir=tmp_path / "run")
    alone = evaluate("mini-deit", load_protocol("mini-stylized"), limit=64, run_dir=tmp_path / "alone")
    theirs = [outcome.clean for outcome in alone.read_outcomes()]
    assert [outcome.reference for outcome in result.read_outcomes()] == theirs
    assert result.data.pixels_sha256 == alone.data.pixels_sha256
    assert result.reference is not None
    assert (result.reference.name, result.reference.weights_sha256) == ("mini-deit", alone.model.weights_sha256)
    assert result.ranking.name == "over reference"
    assert result.ranking.value == pytest.approx(result.metrics[1].value - result.metrics[0].value, abs=1e-6)
    assert alone.ranking is alone.headline
    assert "reference" not in json.loads(alone.to_bytes())
    itself = evaluate("mini-deit", protocol, limit=64, run_dir=tmp_path / "itself")
    assert (itself.ranking.value, itself.ranking.interval) == (0.0, (0.0, 0.0))


def test_models_on_two_copies_are_compared_by_what_they_gain_over_the_reference(tmp_path: Path) -> None:
    """The second copy is darker; the reference model's answers there say how much that costs."""
    protocol, source = _with_reference("mini-deit"), CATALOGUE["mini-stylized"]()
    read = [each for each in source.images(range(64)) if isinstance(each, Tensor)]
    images, labels = torch.stack(read), np.asarray(source.labels[:64])
    for name, model, light in (("a", "mini-resnet", 1.0), ("b", "mini-resnet-adv", 0.6)):
        evaluate(model, protocol, data=(light * images, labels), run_dir=tmp_path / name)
    found = compare_means(tmp_path / "a", tmp_path / "b")
    assert found.a.data.pixels_sha256 != found.b.data.pixels_sha256
    assert found.difference == pytest.approx(found.b.ranking.value - found.a.ranking.value, abs=1e-6)
    assert found.difference != found.b.headline.value - found.a.headline.value
    with pytest.raises(RunError, match="which counts more"):
        compare(tmp_path / "a", tmp_path / "b")


def test_other_weights_of_the_reference_are_refused(tmp_path: Path) -> None:
    protocol = _with_reference("mini-deit")
    assert protocol.shift is not None
    pinned = protocol.shift.model_copy(update={"reference_sha256": "0" * 64})
    with pytest.raises(ModelError, match=r"^mini-deit: `weights` is [0-9a-f]{64}; expected 0{64}\. Give the published"):
        evaluate("mini-resnet", protocol.model_copy(update={"shift": pinned}), limit=4, run_dir=tmp_path)


def test_what_a_protocol_has_no_use_for_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"^evaluate: `clean` is given under mini-stylized@1, which has no cells; expected"
    ):
        evaluate("mini-resnet", "mini-stylized", limit=4, run_dir=tmp_path, options=Options(clean=tmp_path))
    options = Options(reference_weights=tmp_path)
    with pytest.raises(
        RunError, match=r"^evaluate: `reference_weights` is given under mini-stylized@1, which has no ref"
    ):
        evaluate("mini-resnet", "mini-stylized", limit=4, run_dir=tmp_path, options=options)


# --- comparing


def test_runs_in_cells_are_compared_by_their_shares(tmp_path: Path, corrupted: Path) -> None:
    options = Options(workers=0)
    for name, favourites in (("a", range(3)), ("b", range(6))):
        model = Colours(favourites).eval()
        evaluate(model, "imagenet-c", data=corrupted, run_dir=tmp_path / name, options=options)
    found = compare_means(tmp_path / "a", tmp_path / "b")
    counts = []
    for name in ("a", "b"):
        outcomes = read_result(tmp_path / name).read_outcomes()
        counts.append([bin(int(outcome.cells or "", 16)).count("1") for outcome in outcomes])
    differences = [(b - a) / 75 for a, b in zip(*counts, strict=True)]
    assert found.difference == pytest.approx(np.mean(differences), abs=1e-6)
    half = 2.5706 * np.std(differences, ddof=1) / np.sqrt(6)  # Student's with 5 degrees of freedom
    assert found.interval == pytest.approx((found.difference - half, found.difference + half), abs=2e-3)
    with pytest.raises(RunError, match="which counts more"):
        compare(tmp_path / "a", tmp_path / "b")


def test_effective_robustness_is_the_distance_from_a_line(tmp_path: Path) -> None:
    run = evaluate("mini-resnet", "mini-stylized", limit=8, run_dir=tmp_path / "run")
    data = run.data.model_copy(update={"source": "imagenet-a", "count": 7500})
    headline = Metric.of("top1@among", 1500, 7500)
    shifted = run.model_copy(update={"data": data, "metrics": (headline,)})
    accuracy = Metric.of("clean", 40_000, 50_000)
    clean = run.model_copy(update={"data": data.model_copy(update={"count": 50_000}), "metrics": (accuracy,)})
    found, line = effective_robustness(shifted, clean), line_of("imagenet-a")
    assert found is not None
    assert line is not None
    expected = 1 / (1 + math.exp(-(line.slope * math.log(4) + line.intercept)))
    assert found.value == pytest.approx(0.2 - expected, abs=1e-6)
    assert found.note.startswith("the line through 7 models trained on ImageNet-1k alone")
    draws = np.random.default_rng(0)
    shifts, cleans = draws.binomial(7500, 0.2, 4000) / 7500, draws.binomial(50_000, 0.8, 4000) / 50_000
    spread = np.std([one - line.at(float(other)) for one, other in zip(shifts, cleans, strict=True)])
    assert found.interval is not None
    assert (found.interval[1] - found.interval[0]) / (2 * 1.96) == pytest.approx(spread, rel=0.05)
    other = clean.model_copy(update={"model": clean.model.model_copy(update={"state_digest": "0" * 64})})
    with pytest.raises(RunError, match=r"^effective_robustness: `models` is mini-resnet and mini-resnet; expected one"):
        effective_robustness(shifted, other)
    none_right = clean.model_copy(update={"metrics": (Metric.of("clean", 0, 9),)})
    assert effective_robustness(shifted, none_right) is None
    assert effective_robustness(shifted.model_copy(update={"data": run.data}), clean) is None


def test_lines_are_least_squares_and_go_through_what_they_are_made_of() -> None:
    from robench import lines

    for source, count in (("imagenet-v2", 8), ("imagenet-a", 7), ("imagenet-r", 8), ("imagenet-sketch", 8)):
        pairs = [
            (clean, value)
            for clean, value in zip(lines._CLEAN.values(), lines._SHIFTED[source], strict=True)
            if value is not None
        ]
        assert len(pairs) == count
        x, y = (np.log(np.array(values) / (100 - np.array(values))) for values in zip(*pairs, strict=True))
        slope, intercept = np.polyfit(x, y, 1)
        line = line_of(source)
        assert line is not None
        assert (line.slope, line.intercept) == pytest.approx((slope, intercept), abs=1e-9)
    line = line_of("imagenet-c")
    assert line is not None
    assert (line.at(0.5538), line.at(0.7672)) == pytest.approx((0.2112, 0.3948), abs=1e-9)
    step = 1e-6
    assert line.steepness(0.7) == pytest.approx((line.at(0.7 + step) - line.at(0.7 - step)) / (2 * step), rel=1e-6)
    assert line_of("stylized-imagenet") is None


@pytest.mark.slow
def test_a_timm_model_goes_through_every_protocol(tmp_path: Path, originals: list[Path]) -> None:
    """A tree of 1,000 classes with two small files each, and what ImageNet's shifted sets look like made of it."""
    roots = {
        "imagenet-val": wnid_tree(tmp_path / "val", originals, range(1000), each=2),
        "imagenet-sketch": wnid_tree(tmp_path / "sketch", originals, range(1000), each=2),
        "stylized-imagenet": wnid_tree(tmp_path / "sin", originals, range(1000)),
        "imagenet-a": wnid_tree(tmp_path / "a", originals, subset("imagenet-a"), each=2),
        "imagenet-r": wnid_tree(tmp_path / "r", originals, subset("imagenet-r"), each=2),
        "imagenet-v2": numbered_tree(tmp_path / "v2", originals, range(1000), each=2),
        "cue-conflict": cue_tree(tmp_path / "cues", pictures(tmp_path / "png", suffix=".png"), each=3),
    }
    names = [f"{wnid}/0.jpg" for wnid in wnids()[:20]]  # 75 times as many files
    roots["imagenet-c"] = cells_tree(tmp_path / "c", originals, names)
    roots["imagenet-c-5k"] = roots["imagenet-c"]
    roots["imagenet-c-extra"] = cells_tree(tmp_path / "extra", originals, names, shift_of("imagenet-c-extra"))
    weights = _weights("test_resnet", tmp_path / "own.safetensors")
    protocols = {name: load_protocol(name) for name in roots}
    small = shift_of("stylized-imagenet").model_copy(update={"reference": "timm:test_resnet"})  # not a ResNet-50
    protocols["stylized-imagenet"] = protocols["stylized-imagenet"].model_copy(update={"shift": small})
    for name, root in roots.items():
        in_cells = name.startswith("imagenet-c")
        options = Options(
            weights=weights,
            reference_weights=weights if name == "stylized-imagenet" else None,
            clean=roots["imagenet-val"] if in_cells else None,
            workers=2,
        )
        limit = 2 if in_cells else 33
        run_dir = tmp_path / "runs" / name
        protocol = protocols[name]
        result = evaluate("timm:test_resnet", protocol, data=root, limit=limit, run_dir=run_dir, options=options)
        print(name, result)
        assert (result.status, result.counts.errored) == ("unofficial", 0)
        assert len(result.read_outcomes()) == limit
        for path in (run_dir / "result.json", *list((run_dir / "shards").glob("*.csv"))[-1:]):
            path.unlink()
        assert resume(run_dir).to_bytes() == result.to_bytes()


def _weights(name: str, path: Path) -> Path:
    """Random weights of a timm model."""
    if not path.exists():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            state = timm.create_model(name, num_classes=1000).state_dict()
        save_file({key: tensor.contiguous() for key, tensor in state.items()}, path)
    return path
