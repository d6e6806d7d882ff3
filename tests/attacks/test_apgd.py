import pytest
import torch
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from torch import Tensor, nn

from robench.attacks.apgd import APGD
from robench.bench.replay import replay
from robench.budgets import BUDGETS
from robench.data.mini import attack_set
from robench.errors import ProtocolError
from robench.zoo import load_model


@pytest.fixture(scope="module")
def scene() -> tuple[nn.Module, Tensor, Tensor]:
    images, labels = attack_set()
    model = load_model("mini-resnet-gelu-adv").requires_grad_(False)
    return model, torch.from_numpy(images[:32]).float() / 255, torch.from_numpy(labels[:32])


def test_checkpoints_are_those_of_the_paper() -> None:
    """22 % of the steps, then windows that shrink by 3 % down to 6 %."""
    assert APGD(steps=100).checkpoints == {22: 22, 41: 19, 57: 16, 70: 13, 80: 10, 87: 7, 93: 6, 99: 6}
    assert APGD(steps=1).checkpoints == {1: 1}


@pytest.mark.parametrize(
    ("norm", "epsilon", "targets"), [("linf", 3 / 255, 0), ("linf", 5 / 255, 2), ("l2", 0.6, 0), ("l2", 0.6, 2)]
)
def test_with_the_references_noise_verdicts_are_the_references(
    scene: tuple[nn.Module, Tensor, Tensor], norm: str, epsilon: float, targets: int
) -> None:
    model, images, labels = scene
    settings = {"n_iter": 20, "norm": {"linf": "Linf", "l2": "L2"}[norm], "eps": epsilon, "seed": 3, "device": "cpu"}
    with torch.random.fork_rng(devices=[]):
        if targets:
            reference = APGDAttack_targeted(model, n_target_classes=targets, **settings)
        else:
            reference = APGDAttack(model, loss="ce", **settings)
        attacked = reference.perturb(images, labels)
    with torch.no_grad():
        expected = model(attacked).argmax(dim=1) == labels
    found = replay(APGD(steps=20, targets=targets), model, images, labels, BUDGETS[norm](epsilon), seed=3).robust
    assert 0 < int(expected.sum()) < len(images)
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, r"^APGD: `steps` is 0; expected at least 1\.$"),
        ({"loss": "cw"}, r"^APGD: `loss` is `cw`; expected `ce` or `dlr`\.$"),
        ({"targets": -1}, r"^APGD: `targets` is -1; expected at least 0\.$"),
        ({"rho": 1.5}, r"^APGD: `rho` is 1\.5; expected from 0 to 1\.$"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ProtocolError, match=message):
        APGD(**settings)  # type: ignore[arg-type]  # on purpose
