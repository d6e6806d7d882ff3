import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import grad as imported_grad

import robench
from robench import audits
from robench.attacks.autoattack import AutoAttack
from robench.attacks.drive import Stage, drive
from robench.budgets import BUDGETS, LinfBall
from robench.classifier import Classifier
from robench.data.mini import attack_set
from robench.errors import ModelError
from robench.evaluation import Options
from robench.zoo import MODELS
from tests.attacks.test_autoattack import write_protocol
from tests.fakes import labelled_by, random_images, small_net


class _Changed(nn.Module):
    """A network with something in front."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.network, self.change = small_net(), change

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(self.change(images))
        return logits


def _purified(images: Tensor) -> Tensor:
    with torch.enable_grad():
        leaf = images.detach().clone().requires_grad_()
        (slope,) = torch.autograd.grad((leaf**2).sum(), leaf)
    return images - 0.01 * slope


def _purified_backward(images: Tensor) -> Tensor:
    with torch.enable_grad():
        leaf = images.detach().clone().requires_grad_()
        (leaf**2).sum().backward()  # type: ignore[no-untyped-call]  # torch leaves Tensor.backward untyped
    assert leaf.grad is not None
    return images - 0.01 * leaf.grad


def _purified_by_name(images: Tensor) -> Tensor:
    with torch.enable_grad():
        leaf = images.detach().clone().requires_grad_()
        (slope,) = imported_grad((leaf**2).sum(), leaf)
    return images - 0.01 * slope


@pytest.mark.parametrize("change", [_purified, _purified_backward, _purified_by_name])
def test_autograd_in_the_forward_pass_is_seen_and_nothing_stays_patched(change: Callable[[Tensor], Tensor]) -> None:
    def now() -> tuple[Any, ...]:
        return torch.autograd.grad, torch.autograd.backward, torch.autograd._make_grads, torch.Tensor.backward

    before = now()
    images = random_images(16)
    assert audits.calls_autograd(Classifier(_Changed(change).eval()), images) == [audits.AUTOGRAD]
    assert audits.calls_autograd(Classifier(small_net()), images) == []  # nothing is left of the model before
    assert now() == before


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_sweep_finds_nothing_at_honest_models(name: str, norm: str) -> None:
    pixels, labels = attack_set()
    images, targets = torch.from_numpy(pixels[:32]).float() / 255, torch.from_numpy(labels[:32])
    budget = BUDGETS[norm]({"linf": 4 / 255, "l2": 1.0}[norm])
    assert audits.radius_sweep(Classifier(robench.load_model(name)), images, targets, budget) == []


def _quantised(images: Tensor) -> Tensor:
    return (images * 4).round() / 4 + 0 * images


def _backwards(images: Tensor) -> Tensor:
    return 2 * images.detach() - images


@pytest.mark.parametrize("change", [_quantised, _backwards])
def test_the_sweep_finds_gradients_that_lead_nowhere_or_back(change: Callable[[Tensor], Tensor]) -> None:
    model = _Changed(change).eval()
    images = random_images(32)
    labels = model(images).argmax(dim=1)
    assert audits.radius_sweep(Classifier(model), images, labels, LinfBall(0.02)) == [audits.FLAT_SWEEP]
    assert audits.radius_sweep(Classifier(model), images, labels, LinfBall(0.0)) == []


@pytest.mark.parametrize(
    ("losses", "rise"),
    [
        ([0.1, 0.2, 0.4, 0.8, 1.6], True),
        ([0.1, 0.2, 0.199, 0.8, 1.6], True),  # a little
        ([0.1, 0.9, 0.7, 0.8, 1.6], False),
        ([0.1, 0.1, 0.1, 0.1, 0.1], False),
        ([0.0, 0.0, 0.0, 0.0, 0.0], False),
    ],
)
def test_a_loss_rises_or_does_not(losses: list[float], rise: bool) -> None:
    assert audits.rises(losses) == rise


def test_a_gradient_of_zero_on_the_way_is_told_once_for_each_attack() -> None:
    class Plateau(nn.Module):
        """Slopes at the clean images, none a little further on."""

        def __init__(self) -> None:
            super().__init__()
            self.network, self.seen = small_net(), 0

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.network(images)
            self.seen += 1
            return logits if self.seen < 4 else logits.detach() + 0 * logits

    told: list[tuple[str, dict[str, object]]] = []
    stages = [Stage(each) for each in AutoAttack(steps=5, targets=1, queries=3).stages()]
    source = labelled_by(small_net(), random_images(16))
    stream = drive(
        stages,
        Classifier(Plateau().eval()),
        source,
        budget=LinfBall(1e-4),
        slots=16,
        on_event=lambda *e: told.append(e),
    )
    list(stream)
    assert [details["attack"] for kind, details in told if kind == "zero gradient"] == ["apgd-ce", "apgd-t", "fab-t"]


def test_caveats_of_the_door_and_of_the_way_are_in_the_result_and_do_not_leak(tmp_path: Path) -> None:
    images, labels = attack_set()

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = robench.load_model("mini-resnet")

        def forward(self, batch: Tensor) -> Tensor:
            logits: Tensor = self.network(_quantised(batch))
            return logits

    data = images[:24], labels[:24]
    masked = robench.evaluate(Masked().eval(), "mini-pgd-linf", data=data, run_dir=tmp_path / "masked")
    assert audits.FLAT_SWEEP in masked.caveats
    assert audits.ZERO_GRADIENT.format(attack="pgd") in masked.caveats
    network = robench.load_model("mini-resnet")
    assert robench.evaluate(network, "mini-pgd-linf", data=data, run_dir=tmp_path / "next").caveats == ()


def test_audits_are_for_runs_that_begin_and_no_larger_than_the_run(tmp_path: Path) -> None:
    images, labels = attack_set()
    network, asked = robench.load_model("mini-resnet"), 0

    def count(*_: object) -> None:
        nonlocal asked
        asked += 1

    network.register_forward_hook(count)
    data = images[:100], labels[:100]
    robench.evaluate(network, "mini-pgd-linf", data=data, limit=1, run_dir=tmp_path)
    first, asked = asked, 0
    robench.evaluate(network, "mini-pgd-linf", data=data, limit=1, run_dir=tmp_path)  # reused
    assert asked <= first - 5 * audits.SWEEP_STEPS


@pytest.mark.parametrize("engine", ["native", "reference"])
def test_nothing_of_an_odd_model_stays_for_the_next(tmp_path: Path, engine: Any) -> None:
    """Neither caveats nor what was put in the place of autograd, also when the odd one fails in the middle."""

    class Odd(nn.Module):
        """Calls autograd in its forward pass, has no slope, and fails at last if it is told to."""

        def __init__(self, asked: int | None = None) -> None:
            super().__init__()
            self.network, self.asked = robench.load_model("mini-resnet"), asked

        def forward(self, batch: Tensor) -> Tensor:
            if self.asked is not None:
                self.asked -= 1
                if self.asked < 0:
                    raise ValueError("enough")
            logits: Tensor = self.network(_purified(batch))
            return logits.detach() + 0 * batch.flatten(1).sum(dim=1, keepdim=True)

    def state() -> list[Any]:
        return [
            torch.autograd.grad,
            torch.autograd.backward,
            torch.autograd._make_grads,
            torch.Tensor.backward,
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.get_float32_matmul_precision(),
            torch.backends.cudnn.allow_tf32,
            torch.get_default_dtype(),
            torch.get_num_threads(),
            torch.get_rng_state().tolist(),
            warnings.filters[:],
        ]

    protocol = write_protocol(tmp_path)
    pixels, labels = attack_set()
    data, options = (pixels[:20], labels[:20]), Options(engine=engine)
    found, before = {}, state()
    network = robench.load_model("mini-resnet-adv")
    for name, model in {"first": network, "odd": Odd().eval(), "last": network}.items():
        found[name] = robench.evaluate(model, protocol, data=data, run_dir=tmp_path / name, options=options)
        assert state() == before, name
    assert {audits.AUTOGRAD, audits.FLAT_SWEEP} <= set(found["odd"].caveats)
    assert any("gradient of the cross-entropy is exactly zero" in caveat for caveat in found["odd"].caveats)
    for attack in ("apgd-ce", "apgd-t", "fab-t"):
        assert audits.ZERO_GRADIENT.format(attack=attack) in found["odd"].caveats
    assert found["first"].caveats == found["last"].caveats == ()
    for name in ("outcomes.csv.gz", "result.json"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "last" / name).read_bytes()
    for asked in (12, 22, 60):  # while it is looked at, while it is audited, and while it is attacked
        with pytest.raises((ValueError, ModelError), match="enough"):
            robench.evaluate(Odd(asked).eval(), protocol, data=data, run_dir=tmp_path / str(asked), options=options)
        assert state() == before, asked


@pytest.mark.parametrize(("classes", "said"), [(4, True), (10, False)])
def test_too_few_classes_for_all_targets_are_told(classes: int, said: bool, tmp_path: Path) -> None:
    path = write_protocol(tmp_path, 'version = "lite"\nsteps = 2\ntargets = 9', '"apgd-ce", "apgd-t"')
    net, images = small_net(classes=classes), random_images(4)
    with torch.no_grad():
        data = images, net(images).argmax(dim=1).numpy()
    result = robench.evaluate(net, path, data=data, run_dir=tmp_path / "run", options=Options(name="small"))
    few = audits.FEW_TARGETS.format(targets=9, classes=4)
    assert (few in result.caveats) is said
    assert result.counts.errored == 0
