from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

import robench
from robench import fastpath
from robench.classifier import Classifier
from robench.data.mini import attack_set
from robench.evaluation import Options, evaluate
from robench.fastpath import (
    CHANNELS_LAST,
    FOLDED,
    INFERENCE,
    MEASURES,
    best_batch_size,
    fold_batch_norm,
    quicken,
    slots_for,
)
from robench.runs import Run
from tests.fakes import short_pgd


def _images(count: int = 16, size: int = 64) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def _settled(module: nn.Module) -> nn.Module:
    """A module whose batch-norms have statistics worth folding, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                nn.init.uniform_(part.weight, 0.5, 1.5)
                nn.init.uniform_(part.bias, -0.5, 0.5)
                assert part.running_mean is not None
                assert part.running_var is not None
                nn.init.uniform_(part.running_mean, -0.5, 0.5)
                nn.init.uniform_(part.running_var, 0.5, 1.5)
    return module.eval()


def _norms(module: nn.Module) -> int:
    return sum(isinstance(part, nn.BatchNorm2d) for part in module.modules())


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0", "regnety_002", "convnext_atto"])
def test_every_batch_norm_after_a_convolution_is_folded(name: str) -> None:
    """EfficientNet and RegNet hold batch-norm and activation in one module; ConvNeXt has none."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = _settled(timm.create_model(name, num_classes=5))
    images, norms = _images(2), _norms(network)
    with torch.no_grad():
        expected = network(images)
        assert fold_batch_norm(network, images) == norms
        assert _norms(network) == 0
        torch.testing.assert_close(network(images), expected, rtol=1e-4, atol=1e-4)


class _Shared(nn.Module):
    """One convolution for two batch-norms."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 5, 3)
        self.norms = nn.ModuleList(nn.BatchNorm2d(5) for _ in range(2))

    def forward(self, images: Tensor) -> Tensor:
        parts: list[Tensor] = [norm(self.convolution(images)) for norm in self.norms]
        return (parts[0] - 2 * parts[1].relu()).mean(dim=(2, 3))


class _Skip(nn.Module):
    """What the convolution gives is used before the batch-norm, too: folding would change the answer."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5)

    def forward(self, images: Tensor) -> Tensor:
        features = self.convolution(images)
        answer: Tensor = (features - self.norm(features).relu()).mean(dim=(2, 3))
        return answer


def test_a_convolution_that_runs_twice_is_not_folded() -> None:
    module = _settled(_Shared())
    assert fold_batch_norm(module, _images(2)) == 0


def test_a_convolution_with_a_hook_is_not_folded() -> None:
    module = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5))
    _settled(module)
    module[0].register_forward_hook(lambda part, arguments, output: output * 2)
    assert fold_batch_norm(module, _images(2)) == 0


def test_another_answer_switches_folding_off_and_says_so() -> None:
    classifier = Classifier(_settled(_Skip()), name="skip")
    fast = quicken(classifier, _images())
    assert fast.measures == (CHANNELS_LAST,)
    assert fast.notes[0].startswith(f"The fast path ({', '.join(MEASURES)}) ")
    assert fast.notes[0].endswith(": switched off.")
    assert torch.allclose(fast.classifier.logits(_images()), classifier.logits(_images()), atol=1e-5)


def test_a_wrong_gradient_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    class Flat(nn.Module):
        """Right answers, and no slope."""

        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.network(images)
            return logits.detach() + 0 * logits

    network = robench.load_model("mini-resnet")
    classifier = Classifier(network)
    monkeypatch.setattr("copy.deepcopy", lambda module: Flat(module))
    fast = quicken(classifier, _images(), measures=(INFERENCE,))
    assert fast.classifier is classifier
    assert "moves gradients by" in fast.notes[0]
    assert quicken(classifier, _images(), measures=(INFERENCE,), gradients=False).measures == (INFERENCE,)


class _Uncopied(nn.Linear):
    def __deepcopy__(self, memo: object) -> "_Uncopied":
        raise RuntimeError("one of a kind\nsecond line")


class _Descends(nn.Module):
    """Calls autograd in its forward pass, as purifying defences do."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((5, 3), 0.5))

    def forward(self, images: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = images.detach().clone().requires_grad_()
            (slope,) = torch.autograd.grad((leaf**2).sum(), leaf)
        return (images - 0.1 * slope).mean(dim=(2, 3)) @ self.weight.T


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (nn.Sequential(nn.Flatten(), _Uncopied(3 * 64 * 64, 5)), "fails (RuntimeError: one of a kind)"),
        (_Descends(), "fails (RuntimeError: "),
    ],
)
def test_a_module_that_bears_no_copy_or_no_inference_mode_stays_as_it_is(module: nn.Module, reason: str) -> None:
    classifier = Classifier(module.eval())
    fast = quicken(classifier, _images())
    assert fast.classifier is classifier or fast.measures == ()
    assert fast.notes[0].startswith(f"The fast path ({', '.join(MEASURES)}) {reason}")


def test_a_bare_callable_has_no_faster_copy() -> None:
    classifier = Classifier(lambda images: images.mean(dim=(2, 3)))
    assert quicken(classifier, _images()) == fastpath.FastPath(classifier)


def test_the_users_model_is_left_alone() -> None:
    network = _settled(timm.create_model("resnet18", num_classes=5))
    before = {name: (tensor.clone(), tensor.stride()) for name, tensor in network.state_dict().items()}
    fast = quicken(Classifier(network), _images())
    assert fast.measures == (FOLDED, CHANNELS_LAST, INFERENCE)
    assert _norms(network) == 20
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert fast.classifier.module is not None
    assert not any(parameter.requires_grad for parameter in fast.classifier.module.parameters())
    after = network.state_dict()
    assert all(torch.equal(after[name], tensor) for name, (tensor, _) in before.items())
    assert all(after[name].stride() == stride for name, (_, stride) in before.items())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in network.modules())


def test_answers_can_be_used_with_autograd() -> None:
    """What inference mode makes could not be saved for a backward pass."""
    fast = quicken(Classifier(robench.load_model("mini-resnet")), _images())
    logits = fast.classifier.logits(_images())
    weight = torch.ones(10, requires_grad=True)
    torch.autograd.grad((logits * weight).sum(), weight)


def test_gradients_lie_in_memory_as_images_do() -> None:
    fast = quicken(Classifier(robench.load_model("mini-resnet")), _images())
    _, _, gradient = fast.classifier.gradient(_images(), lambda logits: logits.sum(dim=1))
    assert gradient.is_contiguous()


@pytest.mark.parametrize("name", ["mini-resnet-gelu-adv", "mini-deit-adv"])
def test_verdicts_are_the_same_with_and_without(name: str, tmp_path: Path) -> None:
    images, labels = attack_set()
    results = [
        evaluate(
            robench.load_model(name),
            short_pgd(tmp_path, steps=10),
            data=(images[:48], labels[:48]),
            run_dir=tmp_path / str(fast),
            options=Options(fast_path=fast),
        )
        for fast in (True, False)
    ]
    with_it, without = ([(each.clean, each.fooled_at) for each in result.read_outcomes()] for result in results)
    assert sum(one != other for one, other in zip(with_it, without, strict=True)) <= 1
    assert Run.open(tmp_path / "True").plan.fast_path == (FOLDED, CHANNELS_LAST, INFERENCE)
    assert Run.open(tmp_path / "False").plan.fast_path == ()


def test_a_run_goes_on_as_it_was_planned(tmp_path: Path) -> None:
    protocol, run_dir = short_pgd(tmp_path), tmp_path / "run"
    evaluate("mini-resnet", protocol, limit=20, run_dir=run_dir, options=Options(fast_path=False))
    for file in ("result.json", "shards/000000.csv"):
        (run_dir / file).unlink()
    evaluate("mini-resnet", protocol, limit=20, run_dir=run_dir)
    recorded = [line for line in (run_dir / "events.jsonl").read_text().splitlines() if '"fast path"' in line]
    assert len(recorded) == 2
    assert all('"measures": []' in line for line in recorded)


@pytest.mark.parametrize(
    ("rates", "best"),
    [
        ({32: 100, 64: 180, 128: 185}, 64),  # 128 does not pay
        ({32: 100, 64: 180, 128: None}, 64),  # 128 does not fit
        ({32: 100, 64: 200, 128: 400, 256: 800}, 256),  # the largest that may be tried
        ({32: None}, 32),  # the driver halves it
    ],
)
def test_the_best_batch_is_the_largest_that_fits_and_pays(rates: dict[int, float | None], best: int) -> None:
    def measure(size: int) -> float:
        rate = rates[size]
        if rate is None:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return rate

    assert best_batch_size(measure, most=256) == best


@pytest.mark.slow
def test_a_compiled_copy_gives_the_same_answers() -> None:
    classifier = Classifier(robench.load_model("mini-resnet"))
    fast = quicken(classifier, _images(), measures=(*MEASURES, fastpath.COMPILED))
    assert fast.measures == (*MEASURES, fastpath.COMPILED)
    assert not fast.notes


@pytest.mark.parametrize("gradients", [True, False])
def test_a_model_is_timed_as_it_will_be_asked(gradients: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has no gradients can only be timed forwards; on a CPU nothing is timed."""
    asked: list[bool] = []

    def measure(classifier: Classifier, images: Tensor, *, gradients: bool = True, repeats: int = 3) -> float:
        asked.append(gradients)
        return 1.0

    monkeypatch.setattr(fastpath, "pass_rate", measure)
    classifier = Classifier(robench.load_model("mini-resnet"))
    assert slots_for(classifier, _images(4), gradients=gradients) == 128
    assert asked == []
    monkeypatch.setattr(classifier, "device", torch.device("meta"))
    slots_for(classifier, _images(4), gradients=gradients)
    assert set(asked) == {gradients}
