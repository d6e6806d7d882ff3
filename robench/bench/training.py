"""Images a second of the trainer, beside a bare loop with the same network, batch and optimizer.

Both learn the same images from memory, clean and against one step of PGD: what is measured is the trainer itself, not
the disk. Not here: how fast images are decoded.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import repeat
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robench.bench.measurement import Measurement, Settings, Stopwatch
from robench.bench.photographs import photographs
from robench.data.mini import attack_set
from robench.errors import ModelError, complaint
from robench.training import Options, Recipe, load_recipe
from robench.training.adversary import BatchDraws, ExampleDraws
from robench.training.batches import Part
from robench.training.construction import build_model
from robench.training.loop import Training, random_state_kept
from robench.training.recipe import AdversaryRecipe

BATCHES = {"mini-resnet": (64, 50), "photographs:resnet50": (16, 4)}
"""Images of a batch and steps of a run at most, by model."""
ONE_STEP = AdversaryRecipe(norm="linf", epsilon="4/255", step_size="4/255", steps=1)


def measure_training(settings: Settings) -> Measurement:
    """Time steps of the optimizer, the two sides in turn: one step of either, then the next."""
    if settings.model not in BATCHES:
        found, expected = f"`{settings.model}`", " or ".join(f"`{name}`" for name in BATCHES)
        raise ModelError(complaint("robench bench training", "model", found, expected))
    images, labels = _batch(settings.model)
    steps = min(max(1, settings.images // len(images)), BATCHES[settings.model][1])
    watch, rates = Stopwatch(), dict[str, float]()
    for kind, adversary in (("clean", None), ("adversarial", ONE_STEP)):
        recipe = _recipe(settings.model, adversary, len(images))
        with random_state_kept(), tempfile.TemporaryDirectory() as folder:
            sides = {"ours": _trainer(recipe, Path(folder), images, labels), "bare": _bare(recipe, images, labels)}
            for learn in sides.values():
                learn()  # allocations, and the choice of kernels
            for _ in range(settings.repeats):
                seconds = dict.fromkeys(sides, 0.0)
                for _ in range(steps):
                    for side, learn in sides.items():
                        began = time.perf_counter()
                        learn()
                        seconds[side] += time.perf_counter() - began
                for side in sides:
                    watch.time(f"{side}, {kind}", seconds[side])
        for side in sides:
            rates[f"{side}_{kind}_images_per_second"] = steps * len(images) / watch.median(f"{side}, {kind}")
        runs = zip(watch.seconds[f"bare, {kind}"], watch.seconds[f"ours, {kind}"], strict=True)
        rates[f"{kind}_share_of_bare"] = statistics.median(bare / ours for bare, ours in runs)
    pairs = [(f"ours, {kind}", f"bare, {kind}") for kind in ("clean", "adversarial")]
    ours, bare = (sum(watch.median(pair[side]) for pair in pairs) for side in (0, 1))
    return Measurement(
        name="training",
        model=settings.model,
        examples=steps * len(images),
        ours_seconds=ours,
        theirs_seconds=bare,
        details={"batch_size": len(images), **rates},
        doubts=watch.doubts(in_turns=pairs),
    )


def _batch(model: str) -> tuple[Tensor, Tensor]:
    size, _ = BATCHES[model]
    if model.startswith("photographs"):
        images, labels = photographs()
        return images[:size], labels[:size]
    pixels, classes = attack_set()
    return torch.from_numpy(pixels[:size]).float() / 255, torch.from_numpy(classes[:size])


def _recipe(model: str, adversary: AdversaryRecipe | None, batch_size: int) -> Recipe:
    recipe = load_recipe(model.removeprefix("photographs:"))
    return recipe.model_copy(update={"batch_size": batch_size, "adversary": adversary, "precision": "float32"})


def _trainer(recipe: Recipe, folder: Path, images: Tensor, labels: Tensor) -> Callable[[], None]:
    """What takes a step as `robench train` takes them."""
    training = Training(recipe, folder, {}, Options())
    training.model.train()
    device, count = training.share.device, len(images)
    images, labels = images.to(device), labels.to(device)

    def part() -> Part:
        if recipe.data.source == "mini":
            return Part(images, labels, BatchDraws(torch.Generator().manual_seed(0), count, device=device))
        return Part(images, labels, ExampleDraws(recipe.seed, 0, 0, range(count), device=device))

    def learn() -> None:
        training.learn(0, 0, (part() for _ in repeat(None)))

    return learn


def _bare(recipe: Recipe, images: Tensor, labels: Tensor) -> Callable[[], None]:
    """The same step in torch alone."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model: nn.Module = build_model(recipe).to(device).train()
    images, labels = images.to(device), labels.to(device)
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=recipe.optimizer.lr / 100,
        momentum=recipe.optimizer.momentum,
        weight_decay=recipe.optimizer.weight_decay,
        nesterov=True,
    )

    def attacked() -> Tensor:
        radius = 4 / 255
        model.eval()
        start = (images + radius * (2 * torch.rand_like(images) - 1)).clamp(0, 1).requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(start), labels), start)
        moved = start.detach() + radius * gradient.sign()
        model.train()
        return torch.minimum(torch.maximum(moved, images - radius), images + radius).clamp(0, 1)

    def learn() -> None:
        batch = images if recipe.adversary is None else attacked()
        loss = F.cross_entropy(model(batch), labels, label_smoothing=recipe.label_smoothing)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves Tensor.backward untyped
        optimizer.step()
        loss.item()

    return learn
