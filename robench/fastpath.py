"""A copy of a model that gives the same answers faster, for attacks to look at.

Folded batch-norm, channels_last, frozen parameters and inference mode change answers by rounding only,
which is verified on a batch before any attack. The user's own model is left alone: it classifies the
clean images and confirms every adversarial one.

Not here: what a model must be like (`classifier`), and who looks at which model (`attacks.drive`).
"""

import copy
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.fusion import fuse_conv_bn_eval

from robench.arrays import pad_rows
from robench.classifier import MINIMUM_ROWS, Classifier

FOLDED = "folded batch-norm"
CHANNELS_LAST = "channels_last"
INFERENCE = "inference mode"
COMPILED = "compiled"
MEASURES = (FOLDED, CHANNELS_LAST, INFERENCE)
"""What is tried by default."""
TOLERANCE = 1e-4
"""How far logits may move, in units of the largest one (at least 1); float32 rounding moves them 1e-6."""
SMALL = 64 * 64
"""Pixels of an image up to which a CPU takes 128 of them at a time; of larger ones, 64 (docs/decisions/0005)."""


@dataclass(frozen=True)
class FastPath:
    """The model that attacks look at.

    Attributes:
      classifier: a faster copy, or the classifier itself.
      measures: what makes it faster, of `MEASURES` and `COMPILED`.
      notes: what was tried and switched off, and why; whole sentences.
    """

    classifier: Classifier
    measures: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def quicken(
    classifier: Classifier, images: Tensor, *, measures: Sequence[str] = MEASURES, gradients: bool = True
) -> FastPath:
    """A faster copy of a module, if it gives the same answers.

    Args:
      classifier: the model; a callable that is no module has no faster copy.
      images: the batch it is verified on, float32 in [0, 1], shape (N, 3, H, W).
      measures: what to try. If all together fail, channels_last alone; then nothing.
      gradients: whether attacks will ask for gradients, so that these are verified, too.
    """
    notes: list[str] = []
    if classifier.module is None or not measures:
        return FastPath(classifier)
    batch = pad_rows(images.to(classifier.device), MINIMUM_ROWS)
    for attempt in dict.fromkeys([tuple(measures), tuple(each for each in measures if each == CHANNELS_LAST)]):
        if not attempt:
            break
        try:
            faster, applied = _copy(classifier, classifier.module, batch, attempt)
            difference = _difference(classifier, faster, batch, gradients)
        except Exception as error:  # a module may refuse to be copied or to run in inference mode in any way it likes
            difference = f"fails ({type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]})"
        if not difference:
            return FastPath(faster, applied, tuple(notes))
        notes.append(f"The fast path ({', '.join(attempt)}) {difference}: switched off.")
    return FastPath(classifier, (), tuple(notes))


def _copy(
    classifier: Classifier, module: nn.Module, batch: Tensor, measures: Sequence[str]
) -> tuple[Classifier, tuple[str, ...]]:
    """The faster copy, and which measures found something to do."""
    faster = copy.deepcopy(module).requires_grad_(False)
    applied = list(measures)
    if FOLDED in measures and not fold_batch_norm(faster, classifier.in_its_range(batch)):
        applied.remove(FOLDED)
    if CHANNELS_LAST in measures:
        if any(isinstance(part, nn.Conv2d) for part in faster.modules()):
            faster = faster.to(memory_format=torch.channels_last)
        else:
            applied.remove(CHANNELS_LAST)
    if COMPILED in measures:
        mode = "reduce-overhead" if classifier.device.type == "cuda" else "default"  # the first is CUDA graphs
        faster = torch.compile(faster, dynamic=False, mode=mode)  # type: ignore[assignment]  # a module again
    quick = Classifier(faster, name=classifier.name, device=classifier.device, inference=INFERENCE in measures)
    return quick, tuple(applied)


def _difference(own: Classifier, faster: Classifier, batch: Tensor, gradients: bool) -> str:
    """How the copy differs from the model, as the predicate of a sentence; empty if it does not."""
    expected, found = own.logits(batch), faster.logits(batch)
    if not torch.equal(expected.argmax(dim=1), found.argmax(dim=1)):
        return "predicts other classes"
    moved, scale = float((found - expected).abs().max()), float(expected.abs().max())
    if not moved <= TOLERANCE * scale:
        return f"moves logits by {moved:.2g}"
    if gradients:
        with own.frozen():
            slopes = [each.gradient(batch, _spread)[2].flatten(1) for each in (own, faster)]
        moved, scale = float((slopes[1] - slopes[0]).norm()), float(slopes[0].norm())
        if not moved <= 100 * TOLERANCE * scale:  # kinks of ReLU and pooling turn single entries
            return f"moves gradients by {moved:.2g} of {scale:.2g}"
    return ""


def _spread(logits: Tensor) -> Tensor:
    return logits.logsumexp(dim=1) - logits.amax(dim=1)


def fold_batch_norm(module: nn.Module, images: Tensor) -> int:
    """Fold every batch-norm that follows a convolution into it, in place; returns how many.

    Which one follows which is seen in a pass over `images`: the batch-norm takes the very tensor that the
    convolution gave. A module that uses that tensor elsewhere, too, then gives other answers: verify it.

    Args:
      module: in eval mode.
      images: in the module's own range and dtype, shape (N, 3, H, W).
    """
    pairs = _pairs(module, images)
    names = {part: name for name, part in module.named_modules()}
    for convolution, norm in pairs:
        fused = fuse_conv_bn_eval(convolution, norm)
        rest = nn.Sequential(norm.drop, norm.act) if isinstance(norm, BatchNormAct2d) else nn.Identity()
        module.set_submodule(names[convolution], fused.requires_grad_(False))
        module.set_submodule(names[norm], rest.eval())
    return len(pairs)


def _pairs(module: nn.Module, images: Tensor) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Convolutions and the batch-norms that take their output, each called once in a pass."""
    calls: dict[nn.Module, int] = {}
    outputs: list[tuple[nn.Conv2d, Tensor]] = []
    pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []

    def note_output(part: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        calls[part] = calls.get(part, 0) + 1
        assert isinstance(part, nn.Conv2d)
        outputs.append((part, output))

    def note_input(part: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        calls[part] = calls.get(part, 0) + 1
        assert isinstance(part, nn.BatchNorm2d)
        given = next((convolution for convolution, output in outputs if output is arguments[0]), None)
        if given is not None:
            pairs.append((given, part))

    handles = []
    for part in module.modules():
        if _plain(part) and type(part) is nn.Conv2d:
            handles.append(part.register_forward_hook(note_output))
        elif _plain(part) and type(part) in (nn.BatchNorm2d, BatchNormAct2d) and part.track_running_stats:
            handles.append(part.register_forward_pre_hook(note_input))
    try:
        with torch.no_grad():
            module(images)
    finally:
        for handle in handles:
            handle.remove()
    return [pair for pair in pairs if calls[pair[0]] == calls[pair[1]] == 1]


def _plain(part: nn.Module) -> bool:
    """Whether nothing happens in a part but what its class says."""
    hooks = (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks, part._backward_pre_hooks)
    return not any(hooks) and not parametrize.is_parametrized(part)


def pass_rate(classifier: Classifier, images: Tensor, *, gradients: bool = True, repeats: int = 5) -> float:
    """Images per second after a pass to warm up; the median of the repeats.

    Args:
      gradients: forward and backward; else forward alone.
      images: float32 in [0, 1], shape (N, 3, H, W), on the classifier's device.
    """
    seconds = []
    with classifier.frozen():
        for _ in range(repeats + 1):
            _wait(classifier.device)
            began = time.perf_counter()
            if gradients:
                classifier.gradient(images, _spread)
            else:
                classifier.logits(images)
            _wait(classifier.device)
            seconds.append(time.perf_counter() - began)
    return len(images) / statistics.median(seconds[1:])


def repeated(images: Tensor, count: int) -> Tensor:
    """So many images, the given ones over and over."""
    return images[torch.arange(count) % len(images)]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def cpu_slots(images: Tensor) -> int:
    """How many examples of the size of these images, shape (N, 3, H, W), are attacked at a time on a CPU."""
    return 128 if images.shape[2] * images.shape[3] <= SMALL else 64


def slots_for(classifier: Classifier, images: Tensor, *, gradients: bool) -> int:
    """How many examples of the size of these images are attacked at a time on the classifier's device.

    Args:
      classifier: what the attack looks at.
      images: float32 in [0, 1], shape (N, 3, H, W).
      gradients: whether the attack asks for any; a model without can only be timed forwards.
    """
    if classifier.device.type == "cpu":
        return cpu_slots(images)
    rows = images.to(classifier.device)
    return best_batch_size(lambda size: pass_rate(classifier, repeated(rows, size), gradients=gradients))


def best_batch_size(measure: Callable[[int], float], *, start: int = 32, most: int = 1024, gain: float = 1.05) -> int:
    """The largest batch that fits and pays: doubled for as long as images per second grow.

    Args:
      measure: batch size -> images per second; raises `torch.OutOfMemoryError` if it does not fit.
      start: tried first; taken even if it does not fit, as the driver halves it.
      most: largest tried.
      gain: factor by which the rate must grow for a doubling to pay.
    """
    best, rate = start, 0.0
    size = start
    while size <= most:
        try:
            found = measure(size)
        except torch.OutOfMemoryError:
            break
        if rate and found < gain * rate:
            break
        best, rate, size = size, found, 2 * size
    return best
