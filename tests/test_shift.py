"""Scores without an attack, against published figures and naive loops."""

import itertools
import math
import random
import re
import statistics
from collections.abc import Sequence

import pytest

from robench import alexnet
from robench.errors import RunError
from robench.outcome import Outcome, from_csv, to_csv
from robench.protocol import Protocol, ShiftSpec
from robench.registry import load_protocol
from robench.result import Derived, Metric, derive, holds, score, shares
from robench.shift import mask_text
from tests.shifted_trees import shift_of

# RobustBench, model_info/imagenet/corruptions/unaggregated_results.csv at 5e3b8bd: top-1 of torchvision's ResNet-50 on
# 5,000 images, severities 1 to 5; their Standard_R50.json of that time states 38.12 % over all cells.
RESIZED_R50 = """
shot_noise .5728 .4276 .2724 .1074 .0542
motion_blur .6236 .5112 .3510 .2000 .1314
snow .5174 .2986 .3252 .2114 .1562
pixelate .6326 .6026 .4826 .3280 .2308
gaussian_noise .5892 .4718 .2966 .1492 .0470
defocus_blur .5628 .4892 .3426 .2404 .1514
brightness .7170 .6998 .6690 .6200 .5558
fog .5882 .5320 .4410 .3742 .2274
zoom_blur .5260 .4324 .3556 .2870 .2282
frost .5802 .3928 .2844 .2618 .2030
glass_blur .5216 .3890 .1688 .1200 .0892
impulse_noise .4728 .3714 .2966 .1398 .0470
contrast .6188 .5512 .4282 .1750 .0442
jpeg_compression .6402 .6014 .5774 .4738 .3334
elastic_transform .6600 .4446 .5298 .3936 .1476
"""
# The same, unaggregated_results_2d.csv at 24ce20d, without resizing; its own column `average` says 0.392304.
R50 = """
shot_noise .5744 .4294 .2528 .0792 .0290
impulse_noise .4844 .3580 .2546 .0830 .0182
defocus_blur .5956 .5152 .3820 .2748 .1830
contrast .6494 .5852 .4690 .2122 .0546
brightness .7392 .7244 .6956 .6498 .5866
jpeg_compression .6664 .6244 .5982 .4728 .3144
pixelate .6402 .6426 .4598 .2898 .2068
glass_blur .5400 .4012 .1688 .1310 .1024
motion_blur .6382 .5370 .3758 .2154 .1482
zoom_blur .5290 .4324 .3580 .2878 .2206
gaussian_noise .5978 .4686 .2748 .1128 .0218
fog .6138 .5612 .4704 .4088 .2410
frost .6150 .4346 .3090 .2896 .2294
snow .5498 .3154 .3518 .2382 .1654
elastic_transform .6704 .4556 .5526 .4196 .1746
"""
# google-research/augmix, imagenet.py: AlexNet's errors, averaged over severities.
ALEXNET = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}


def _table(text: str) -> dict[str, list[float]]:
    rows = (line.split() for line in text.strip().splitlines())
    return {name: [float(value) for value in values] for name, *values in rows}


def _outcomes(accuracies: dict[str, list[float]], count: int, *, clean: float | None = None) -> list[Outcome]:
    """Outcomes whose cells have exactly these accuracies, whatever images they fall on."""
    order = random.Random(0)
    chosen = {}
    for name, severity in shift_of("imagenet-c").cells:
        rights = round(accuracies[name][severity - 1] * count)
        assert abs(rights / count - accuracies[name][severity - 1]) < 1e-9
        chosen[name, severity] = set(order.sample(range(count), rights))
    known = set(order.sample(range(count), round(clean * count))) if clean is not None else set()
    cells = shift_of("imagenet-c").cells
    outcomes = []
    for image in range(count):
        predicted = -1 if clean is None else 5 if image in known else 6
        mask = mask_text([image in chosen[cell] for cell in cells])
        outcomes.append(Outcome(f"e{image}", 5, predicted, predicted, 0.0, 0.0, cells=mask))
    return outcomes


def _named(found: Sequence[Metric] | Sequence[Derived]) -> dict[str, float]:
    return {each.name: each.value for each in found}


# --- ImageNet-C


def test_the_errors_of_alexnet_are_those_that_others_publish() -> None:
    for name, average in ALEXNET.items():
        assert statistics.fmean(alexnet.errors(name)) == pytest.approx(average, abs=5e-7)
    assert set(shift_of("imagenet-c").corruptions) == set(ALEXNET)
    assert set(shift_of("imagenet-c-extra").corruptions) == alexnet.known() - set(ALEXNET)


@pytest.mark.parametrize("text", [RESIZED_R50, R50])
def test_every_cell_has_the_accuracy_that_was_put_in(text: str) -> None:
    table, protocol = _table(text), load_protocol("imagenet-c-5k")
    metrics = _named(score(protocol, _outcomes(table, 5000)))
    for name, values in table.items():
        assert [metrics[f"{name}/{severity}"] for severity in range(1, 6)] == pytest.approx(values, abs=1e-6)
        assert metrics[name] == pytest.approx(statistics.fmean(values), abs=1e-6)
    for family, names in (shift_of(protocol).families or {}).items():
        assert metrics[family] == pytest.approx(statistics.fmean(itertools.chain(*(table[n] for n in names))), abs=1e-6)


def test_resnet50_has_its_published_mean_accuracy_and_mce() -> None:
    protocol = load_protocol("imagenet-c-5k")
    for text, stated, digits in ((RESIZED_R50, 0.3812, 4), (R50, 0.392304, 6)):
        outcomes = _outcomes(_table(text), 5000)
        metrics, numbers = score(protocol, outcomes), _named(derive(protocol, outcomes))
        assert metrics[-1].name == "top1@cells"
        assert round(metrics[-1].value, digits) == stated
        assert round(1 - numbers["mean error"], digits) == stated
    # hendrycks/robustness, README: 76.7 on all 50,000 images; these are 5,000, whose mean errors vary by 0.5 points.
    assert 100 * numbers["mCE"] == pytest.approx(76.7, abs=0.5)
    by_hand = statistics.fmean((1 - statistics.fmean(row)) / ALEXNET[name] for name, row in _table(R50).items())
    assert numbers["mCE"] == pytest.approx(by_hand, abs=1e-6)


def test_alexnet_divides_by_itself() -> None:
    table = {name: [1 - error for error in alexnet.errors(name)] for name in ALEXNET}
    protocol = load_protocol("imagenet-c")
    outcomes = _outcomes(table, 50_000, clean=1 - alexnet.CLEAN_ERROR)
    numbers = _named(derive(protocol, outcomes))
    assert numbers["mCE"] == pytest.approx(1, abs=1e-6)
    assert numbers["relative mCE"] == pytest.approx(1, abs=1e-6)
    assert numbers["mean error"] == pytest.approx(statistics.fmean(ALEXNET.values()), abs=1e-6)
    assert score(protocol, outcomes)[0].name == "clean"
    assert score(protocol, outcomes)[0].value == pytest.approx(0.56522, abs=1e-6)


def test_relative_mce_needs_clean_images_and_may_be_negative() -> None:
    protocol, perfect = load_protocol("imagenet-c-5k"), {name: [1.0] * 5 for name in ALEXNET}
    assert "relative mCE" not in _named(derive(protocol, _outcomes(perfect, 20)))
    found = _named(derive(protocol, _outcomes(perfect, 20, clean=0.5)))
    added = [5 * (average - 0.43478) for average in ALEXNET.values()]
    assert found["relative mCE"] == pytest.approx(statistics.fmean(-5 * 0.5 / more for more in added), abs=1e-6)
    assert found["relative mCE"] < 0


def test_intervals_are_those_of_images_not_of_cells() -> None:
    """75 cells that are right or wrong together are worth one: the interval is that of so many images."""
    protocol, cells = load_protocol("imagenet-c-5k"), shift_of("imagenet-c-5k").cells
    masks = [mask_text([image % 4 > 0] * len(cells)) for image in range(400)]
    outcomes = [Outcome(f"e{at}", 0, -1, -1, 0.0, 0.0, cells=mask) for at, mask in enumerate(masks)]
    whole = score(protocol, outcomes)[-1]
    low, high = Metric.of("images", 300, 400).interval
    assert whole.interval[0] == pytest.approx(low, abs=2e-4)
    assert whole.interval[1] == pytest.approx(high, abs=2e-4)
    error = derive(protocol, outcomes)[0]
    assert error.interval is not None
    half = 1.966 * math.sqrt(0.25 * 0.75 / 399)  # Student's with 399 degrees of freedom
    assert error.interval == pytest.approx((0.25 - half, 0.25 + half), abs=2e-5)


def test_the_interval_of_mce_covers_what_it_should() -> None:
    """Of 300 samples of images, some 95 % have the true mCE in their interval."""
    protocol, cells = load_protocol("imagenet-c-5k"), shift_of("imagenet-c-5k").cells
    order, covered = random.Random(1), 0
    sums = {name: sum(alexnet.errors(name)) for name in ALEXNET}
    truth = statistics.fmean(5 * 0.5 / total for total in sums.values())
    for _ in range(300):
        outcomes = []
        for at in range(40):
            chance = order.choice((0.2, 0.8))  # images differ, so that cells of one go together
            mask = mask_text([order.random() < chance for _ in cells])
            outcomes.append(Outcome(f"e{at}", 0, -1, -1, 0.0, 0.0, cells=mask))
        interval = derive(protocol, outcomes)[1].interval
        assert interval is not None
        covered += interval[0] <= truth <= interval[1]
    assert 270 <= covered <= 297


def test_an_errored_example_is_wrong_in_every_cell() -> None:
    protocol = load_protocol("imagenet-c-5k")
    rights = mask_text([True] * 75)
    outcomes = [
        Outcome("a", 0, -1, -1, 0.0, 0.0, cells=rights),
        Outcome("b", 0, -1, -1, 0.0, 0.0, cells=rights, error="cut"),
    ]
    assert score(protocol, outcomes)[-1].numerator == 75
    assert shares(protocol, outcomes[0]) == (0.0, 1.0)
    assert shares(protocol, outcomes[1]) == (0.0, 0.0)
    with pytest.raises(RunError, match=r"^outcome: `examples` is of imagenet-c-5k@1, which sees each in 75 cells; "):
        holds(protocol, outcomes[0])


@pytest.mark.parametrize("mask", [None, "", "0", "f" * 19, "0" * 18, "0" * 20])
def test_a_mask_of_another_width_is_refused(mask: str | None) -> None:
    with pytest.raises(RunError, match=r"^a: `cells` is .*; expected a mask of 75 bits, 19 digits\.$"):
        score(load_protocol("imagenet-c-5k"), [Outcome("a", 0, -1, -1, 0.0, 0.0, cells=mask)])


def test_bits_are_cells_by_name_and_severity() -> None:
    cells = shift_of("imagenet-c").cells
    assert list(cells) == sorted(cells)
    assert (cells[0], cells[7], len(cells)) == (("brightness", 1), ("contrast", 3), 75)
    only = mask_text([cell == ("contrast", 3) for cell in cells])
    assert int(only, 16) == 1 << 7
    assert len(only) == 19


# --- other sets


def _natural(among: str | None = None) -> Protocol:
    return load_protocol(f"imagenet-{among}" if among else "imagenet-sketch")


def test_the_headline_of_a_subset_is_among_its_classes() -> None:
    outcomes = [
        Outcome("a", 6, 6, 6, 1.0, 1.0, among=6),
        Outcome("b", 6, 7, 7, -1.0, -1.0, among=6),
        Outcome("c", 6, 7, 7, -1.0, -1.0, among=11),
        Outcome("d", 6, -1, -1, 0.0, 0.0, among=-1, error="cut"),
    ]
    metrics = score(_natural("a"), outcomes)
    found = [(metric.name, metric.numerator, metric.denominator) for metric in metrics]
    assert found == [("top1", 1, 4), ("top1@among", 2, 4)]
    assert [holds(_natural("a"), outcome) for outcome in outcomes] == [True, True, False, False]
    assert [(each.name, each.numerator) for each in score(_natural(), outcomes)] == [("top1", 1)]


def test_a_reference_model_ranks_by_the_paired_difference() -> None:
    protocol = load_protocol("stylized-imagenet")
    pairs = [(1, 1)] * 3 + [(1, 0)] * 5 + [(0, 1)] * 2 + [(0, 0)] * 10
    outcomes = [Outcome(f"e{at}", 1, own, own, 0.0, 0.0, reference=other) for at, (own, other) in enumerate(pairs)]
    assert [(each.name, each.numerator) for each in score(protocol, outcomes)] == [("reference", 5), ("top1", 8)]
    (difference,) = derive(protocol, outcomes)
    assert (difference.name, difference.value) == ("over reference", 0.15)
    spread = statistics.stdev([own - other for own, other in pairs])
    half = 2.0930 * spread / math.sqrt(20)  # Student's with 19 degrees of freedom
    assert difference.interval == pytest.approx((0.15 - half, 0.15 + half), abs=2e-4)
    assert difference.note == "top-1 minus that of timm:resnet50.tv_in1k on the same images, paired"


def test_shape_bias_is_of_the_conflicts_that_are_decided_for_either_cue() -> None:
    protocol = load_protocol("cue-conflict")
    seen = [(0, 1, 0), (0, 1, 0), (0, 1, 1), (0, 1, 2), (3, 3, 3)]  # shape, texture, decision
    outcomes = [Outcome(f"e{at}", s, d, d, 0.0, 0.0, texture=t) for at, (s, t, d) in enumerate(seen)]
    metrics = score(protocol, outcomes)
    assert [(each.name, each.numerator, each.denominator) for each in metrics] == [("shape bias", 2, 3), ("top1", 2, 4)]
    undecided = [Outcome("e", 0, 2, 2, 0.0, 0.0, texture=1)]
    assert [each.name for each in score(protocol, undecided)] == ["top1"]
    with pytest.raises(RunError, match=r"^cue-conflict@1: `texture` is that of the shape everywhere; expected some"):
        score(protocol, outcomes[-1:])


def test_lines_of_outcomes_come_back() -> None:
    more = {"among": 3, "cells": "00ff", "texture": 4, "reference": 5}
    for count in range(len(more) + 1):
        for names in itertools.combinations(more, count):
            chosen = {name: more[name] for name in names}
            outcomes = [Outcome("a", 1, 2, 2, 0.5, 0.5, **chosen)]  # type: ignore[arg-type]  # of each its own type
            content = to_csv(outcomes)
            assert from_csv(content, where="x") == outcomes
            assert content.splitlines()[0].decode().endswith(",".join(["error", *names]))


# --- what a protocol may say


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"kind": "natural", "severities": 5}, "expected no `severities` with the kind 'natural'"),
        ({"kind": "corruptions", "severities": 5}, "expected `families` with the kind 'corruptions'"),
        ({"kind": "corruptions", "families": {"a": ["fog"]}}, "expected `severities` with the kind 'corruptions'"),
        ({"kind": "corruptions", "severities": 1, "families": {}}, "expected corruptions without repetition"),
        (
            {"kind": "corruptions", "severities": 1, "families": {"a": ["fog"], "b": ["fog"]}},
            "expected corruptions without repetition",
        ),
        (
            {"kind": "corruptions", "severities": 1, "families": {"a": ["rain"]}, "errors_of": "alexnet"},
            "expected no `errors_of` with 'rain', of which AlexNet's errors are not known",
        ),
        ({"kind": "natural", "among": "imagenet-a"}, "expected `among` and `among_sha256` together, or neither"),
        ({"kind": "natural", "reference_sha256": "0" * 64}, "expected `reference` beside `reference_sha256`"),
    ],
)
def test_a_shift_that_makes_no_sense_is_refused(content: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        ShiftSpec.model_validate(content)


def test_an_attack_and_a_shift_do_not_go_together() -> None:
    attacked = load_protocol("pgd-linf@1").model_dump(by_alias=True, exclude_none=True)
    with pytest.raises(ValueError, match="expected `attack` or `shift`, not both"):
        Protocol.model_validate({**attacked, "shift": {"kind": "natural"}})


def test_what_confounds_a_set_is_not_part_of_its_digest() -> None:
    protocol = load_protocol("imagenet-a")
    assert protocol.confounds is not None
    assert "ResNet-50" in protocol.confounds
    assert protocol.model_copy(update={"confounds": None}).digest == protocol.digest
