"""Lines of clean against shifted accuracy, from which effective robustness is measured.

Models that differ in nothing but how good they are lie near a line, if both accuracies are drawn on a logit scale; what
lies above it is robust beyond what its clean accuracy explains. Each line here is fitted to published figures of models
trained on ImageNet-1k alone, which stand beside it. They are few: a ruler, not a law.

Not here: the models that are measured (`result`, `comparison`).

References:
  Taori et al. 2020, "Measuring Robustness to Natural Distribution Shifts in Image Classification", arXiv:2007.00644.
  Deviates: other models, and fewer.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

_TIMM = "pytorch-image-models, results/*.csv, top-1 at 224 pixels"
_ROBUSTBENCH = "RobustBench, model_info/imagenet/corruptions: AlexNet.json and Standard_R50.json, 5,000 images"

_CLEAN = {
    "resnet18.tv_in1k": 69.752,
    "resnet50.tv_in1k": 76.156,
    "resnet50.a1_in1k": 80.382,
    "deit_small_patch16_224.fb_in1k": 79.856,
    "deit_base_patch16_224.fb_in1k": 81.980,
    "swin_tiny_patch4_window7_224.ms_in1k": 81.388,
    "convnext_tiny.fb_in1k": 82.066,
    "convnext_base.fb_in1k": 83.838,
}
"""Top-1 on ImageNet's validation set, in per cent."""
_SHIFTED = {
    "imagenet-v2": (57.35, 63.19, 68.47, 68.53, 70.97, 69.45, 70.93, 73.78),
    "imagenet-a": (1.12, None, 9.973, 18.720, 27.173, 21.120, 24.107, 36.693),
    "imagenet-r": (33.023, 36.157, 40.417, 42.270, 44.913, 41.397, 47.133, 51.250),
    "imagenet-sketch": (20.238, 24.064, 29.641, 29.435, 32.390, 29.350, 33.825, 38.236),
}
"""Top-1 of the same models, ImageNet-A and -R over their 200 classes; ImageNet-A is what a ResNet-50 missed."""
_CORRUPTED = ((55.38, 21.12), (76.72, 39.48))
"""Clean accuracy, and mean accuracy over 15 x 5, of AlexNet and ResNet-50."""


def logit(share: float) -> float:
    """log(p / (1 - p))."""
    return math.log(share / (1 - share))


def _logistic(value: float) -> float:
    return 1 / (1 + math.exp(-value))


@dataclass(frozen=True)
class Line:
    """logit(shifted) = slope logit(clean) + intercept.

    Attributes:
      slope, intercept: of the line.
      source: what it was fitted to.
    """

    slope: float
    intercept: float
    source: str

    def at(self, clean: float) -> float:
        """The shifted accuracy that this clean accuracy leads to expect; both are shares between 0 and 1."""
        return _logistic(self.slope * logit(clean) + self.intercept)

    def steepness(self, clean: float) -> float:
        """Derivative of `at`."""
        expected = self.at(clean)
        return self.slope * expected * (1 - expected) / (clean * (1 - clean))


def fit(points: Sequence[tuple[float, float]], source: str) -> Line:
    """The least-squares line through points (clean, shifted) in per cent, on logit scales.

    Example:
      >>> line = fit([(50.0, 20.0), (80.0, 50.0)], "two points")
      >>> round(line.at(0.8), 6)
      0.5
    """
    x = [logit(clean / 100) for clean, _ in points]
    y = [logit(shifted / 100) for _, shifted in points]
    middle_x, middle_y = math.fsum(x) / len(x), math.fsum(y) / len(y)
    slope = math.fsum((a - middle_x) * (b - middle_y) for a, b in zip(x, y, strict=True))
    slope /= math.fsum((a - middle_x) ** 2 for a in x)
    return Line(slope, middle_y - slope * middle_x, source)


@cache
def line_of(source: str) -> Line | None:
    """The line of a data set, by its name in a protocol; None where there is none."""
    if source in ("imagenet-c", "imagenet-c-5k"):
        return fit(_CORRUPTED, f"the line through AlexNet and ResNet-50 ({_ROBUSTBENCH})")
    shifted = _SHIFTED.get(source)
    if shifted is None:
        return None
    points = [(clean, value) for clean, value in zip(_CLEAN.values(), shifted, strict=True) if value is not None]
    return fit(points, f"the line through {len(points)} models trained on ImageNet-1k alone ({_TIMM})")
