"""Robust accuracy over the radius: one run for each radius, folded example by example.

Each radius is a protocol derived from the one that is named; it is never official, and never ranked. Not
here: attacks (`attacks`), runs (`runs`), and how a curve is drawn (`figures`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from robench.errors import ProtocolError, RunError, complaint
from robench.evaluation import Options, evaluate
from robench.intervals import wilson
from robench.outcome import Outcome
from robench.protocol import FRACTION_FORM, PatchSpec, Protocol, fraction, parse_protocol
from robench.registry import resolve
from robench.result import Result, holds

BALLS = ("linf", "l2")
"""Norms whose budget is a ball, so that a radius means something."""


@dataclass(frozen=True)
class RadiusPoint:
    """Robust accuracy at one radius.

    Attributes:
      radius: in units of the image, as it was asked for.
      numerator, denominator: robust examples, of all.
    """

    radius: str
    numerator: int
    denominator: int

    @property
    def value(self) -> float:
        return self.numerator / self.denominator

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval."""
        return wilson(self.numerator, self.denominator)


@dataclass(frozen=True)
class RadiusCurve:
    """Robust accuracy over the radius; never ranked.

    Attributes:
      protocol: exact name of the protocol that the radii were put into.
      norm: of the radii.
      points: by rising radius; robust accuracy never rises.
      results: of the runs, by rising radius, without one for radius 0 if there are others.
    """

    protocol: str
    norm: str
    points: tuple[RadiusPoint, ...]
    results: tuple[Result, ...]

    @property
    def model(self) -> str:
        """Name of the model."""
        return self.results[0].model.name

    @property
    def caveats(self) -> tuple[str, ...]:
        """What is suspicious about any of the runs."""
        return tuple(dict.fromkeys(caveat for result in self.results for caveat in result.caveats))

    def __str__(self) -> str:
        parts = [f"{point.radius}: {100 * point.value:.1f} %" for point in self.points]
        return f"robust at {', '.join(parts)}; {self.points[0].denominator} images, unranked"


def radius_curve(
    model: Any,
    protocol: str | Path | Protocol,
    radii: Sequence[str],
    *,
    data: Any = None,
    limit: int | None = None,
    run_dir: str | Path | None = None,
    device: str | torch.device | None = None,
    batch_size: int | None = None,
    options: Options | None = None,
) -> RadiusCurve:
    """Measure robust accuracy at several radii.

    An example is robust at a radius when it is right clean and nothing that was found at that or any
    smaller radius fooled it: an image inside the small ball lies inside the large one. So the curve never
    rises. At radius 0 it is the clean accuracy. Each radius is a run of its own, which is resumed and
    reused like any other; a `step_size` of the attack grows with the radius, so that the attack keeps its
    shape. The wrong choice for comparing models: use a protocol.

    Args:
      model: as in `evaluate`.
      protocol: one with an attack in a norm ball.
      radii: fractions of the unit range as strings (`"4/255"`), in any order.
      data, limit, device, batch_size, options: as in `evaluate`; under `options.save_adversarial` every
        radius gets a sub-folder.
      run_dir: folder with one run for each radius; by default `runs/<model>/<protocol>-radius-<...>`.
    Returns:
      The curve; its results know their run folders.
    Raises:
      ProtocolError: a radius is no fraction or is there twice, or the protocol has no radius.
    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     curve = radius_curve("mini-resnet", "mini-pgd-linf", ["0", "1/255"], limit=8, run_dir=folder)
      >>> [(point.radius, point.denominator) for point in curve.points]
      [('0', 8), ('1/255', 8)]
    """
    whole = _one(protocol)
    norm, order = _norm(whole), _sorted(radii)
    attacked = [radius for radius in order if fraction(radius) > 0]
    derived = [at_radius(whole, radius) for radius in attacked] or [_clean(whole)]
    results = evaluate(
        model,
        derived,
        data=data,
        limit=limit,
        run_dir=run_dir,
        device=device,
        batch_size=batch_size,
        options=options,
    )
    outcomes = [result.read_outcomes() for result in results]
    points = _fold(order, derived, outcomes)
    return RadiusCurve(whole.exact_name, norm, tuple(points), tuple(results))


def at_radius(protocol: Protocol, radius: str) -> Protocol:
    """The protocol with another radius: unranked, under an id of its own.

    A `step_size` is multiplied by the ratio of the radii.
    """
    content = protocol.model_dump(mode="json", by_alias=True, exclude_none=True)
    ratio = fraction(radius) / fraction(content["budget"]["epsilon"])
    content["budget"]["epsilon"] = radius
    if "step_size" in content["attack"]:
        content["attack"]["step_size"] = _text(fraction(content["attack"]["step_size"]) * ratio)
    return _derived(content, f"radius-{radius.replace('/', '-')}", f"{protocol.title}, at radius {radius}")


def _clean(protocol: Protocol) -> Protocol:
    """The protocol without its attack."""
    content = protocol.model_dump(mode="json", by_alias=True, exclude_none=True)
    content = {key: value for key, value in content.items() if key not in ("attack", "budget", "score")}
    return _derived(content, "radius-0", f"{protocol.title}, at radius 0")


def _derived(content: dict[str, Any], suffix: str, title: str) -> Protocol:
    content |= {"id": f"{content['id']}-{suffix}", "title": title, "status": "draft", "ranked": False}
    content.pop("supersedes", None)
    return parse_protocol(content, where=content["id"])


def _text(value: Fraction) -> str:
    return f"{value.numerator}/{value.denominator}"


def _one(protocol: Any) -> Protocol:
    if isinstance(protocol, list | tuple):
        found = f"{len(protocol)} protocols"
        raise ProtocolError(complaint("radius_curve", "protocol", found, "one", "Ask for one curve at a time."))
    return resolve(protocol).protocol


def _norm(protocol: Protocol) -> str:
    where, advice = protocol.exact_name, "Choose a protocol with a radius."
    if protocol.attack is None or protocol.budget is None:
        raise ProtocolError(complaint(where, "attack", "none", "an attack in a norm ball", advice))
    if protocol.score.asks is not None:
        found, expected = (
            protocol.score.asks,
            "none: what fell at a radius stays fallen, and shares of answers do not fall",
        )
        raise ProtocolError(complaint(where, "score.asks", found, expected, "Choose a protocol without it."))
    if isinstance(protocol.budget, PatchSpec):
        raise ProtocolError(complaint(where, "budget.kind", "`patches`", "a norm ball", advice))
    if protocol.budget.norm not in BALLS:
        expected = f"the norm of a ball ({', '.join(BALLS)})"
        raise ProtocolError(complaint(where, "budget.norm", f"`{protocol.budget.norm}`", expected, advice))
    if fraction(protocol.budget.epsilon) == 0:
        expected = "more than 0, so that steps can be scaled"
        raise ProtocolError(complaint(where, "budget.epsilon", f"`{protocol.budget.epsilon}`", expected, advice))
    return protocol.budget.norm


def _sorted(radii: Sequence[Any]) -> list[str]:
    """The radii by size."""
    where = "radius_curve"
    if isinstance(radii, str):
        advice = f"Such as `{radii.split(',')!r}`."
        raise ProtocolError(complaint(where, "radii", repr(radii), "a list of fractions as strings", advice))
    if not len(radii):
        raise ProtocolError(complaint(where, "radii", "empty", "at least one radius"))
    for radius in radii:
        advice = "Floats would make two protocols differ in the last bit." if isinstance(radius, float) else ""
        if not isinstance(radius, str):
            raise ProtocolError(complaint(where, "radii", repr(radius), FRACTION_FORM, advice))
        try:
            fraction(radius)
        except ValueError as error:
            raise ProtocolError(complaint(where, "radii", repr(radius), FRACTION_FORM)) from error
    order = sorted(radii, key=fraction)
    for smaller, larger in pairwise(order):
        if fraction(smaller) == fraction(larger):
            found = f"`{smaller}` and `{larger}`" if smaller != larger else f"`{smaller}` twice"
            raise ProtocolError(complaint(where, "radii", found, "radii that differ"))
    return order


def _fold(radii: Sequence[str], protocols: Sequence[Protocol], outcomes: Sequence[list[Outcome]]) -> list[RadiusPoint]:
    """Robust accuracy at each radius; what fell at a smaller radius stays fallen."""
    tables = [{outcome.id: outcome for outcome in table} for table in outcomes]
    if any(table.keys() != tables[0].keys() for table in tables):
        raise RunError(complaint("radius_curve", "ids", "different from run to run", "the same examples in every run"))
    standing = {example for example, outcome in tables[0].items() if outcome.clean_correct}
    points, runs = [], iter(zip(protocols, tables, strict=True))
    for radius in radii:
        if fraction(radius) > 0:
            protocol, table = next(runs)
            standing = {example for example in standing if holds(protocol, table[example])}
        points.append(RadiusPoint(radius, len(standing), len(tables[0])))
    return points
