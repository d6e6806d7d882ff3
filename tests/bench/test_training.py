import math

import pytest

from robench.bench import CATALOGUE, Settings
from robench.errors import ModelError


def test_the_trainer_is_measured_beside_a_bare_loop() -> None:
    found = CATALOGUE["training"].run(Settings("mini-resnet", images=64, repeats=1))
    assert (found.examples, found.details["batch_size"]) == (64, 64)
    for kind in ("clean", "adversarial"):
        share = found.details[f"{kind}_share_of_bare"]
        rates = [found.details[f"{side}_{kind}_images_per_second"] for side in ("ours", "bare")]
        assert share == pytest.approx(rates[0] / rates[1])  # of one run
        assert all(rate > 0 and math.isfinite(rate) for rate in rates)
    ours = [64 / found.details[f"ours_{kind}_images_per_second"] for kind in ("clean", "adversarial")]
    assert found.ours_seconds == pytest.approx(sum(ours))


def test_another_model_is_refused() -> None:
    message = r"^robench bench training: `model` is `linear`; expected `mini-resnet` or `photographs:resnet50`\.$"
    with pytest.raises(ModelError, match=message):
        CATALOGUE["training"].run(Settings("linear"))
