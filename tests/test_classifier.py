import foolbox
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robench.classifier import Classifier
from robench.errors import ModelError
from tests.fakes import random_images, small_net


def _check(model: object, *, classes: int | None = 4, gradients: bool = True, count: int = 16) -> list[str]:
    return Classifier(model, name="m").check(random_images(count), classes=classes, least=4, gradients=gradients)


def _refused(model: object, message: str, *, gradients: bool = True, classes: int | None = 4) -> None:
    with pytest.raises(ModelError) as caught:
        _check(model, classes=classes, gradients=gradients)
    assert str(caught.value) == message


def test_a_sound_model_passes_without_caveat() -> None:
    assert _check(small_net()) == []
    assert _check(small_net(), classes=None, count=3) == []


def test_train_mode_is_refused() -> None:
    net = small_net()
    net[1].train()  # type: ignore[index]  # a Sequential
    _refused(
        net,
        "m: `model` is in train mode (`1`); expected eval mode, so that an answer depends on the image alone. "
        "Call `model.eval()` first.",
    )


def test_probabilities_are_refused_and_log_probabilities_are_not() -> None:
    _refused(
        nn.Sequential(small_net(), nn.Softmax(dim=1)).eval(),
        "m: `logits` is probabilities (non-negative, each row sums to 1); expected logits. "
        "Remove the softmax, or return log-probabilities instead.",
    )
    assert _check(nn.Sequential(small_net(), nn.LogSoftmax(dim=1)).eval()) == []


@pytest.mark.parametrize("scale", [1.0, 1e-5])
def test_a_randomised_model_is_refused(scale: float) -> None:
    """Also one whose logits are tiny."""
    net = small_net()
    _refused(
        lambda images: scale * (net(images) + 0.01 * torch.randn(1)),
        "m: `model` is randomised: two passes over the same images differ; expected the same answer every time. "
        "The standard protocols would flatter or slander it: fix its random draws.",
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_an_objective_is_computed_in_float32_at_least(dtype: torch.dtype) -> None:
    seen: list[torch.dtype] = []

    def objective(logits: Tensor) -> Tensor:
        seen.append(logits.dtype)
        return logits[:, 0]

    Classifier(small_net().to(dtype)).gradient(random_images(2), objective)
    assert seen == [torch.float64 if dtype == torch.float64 else torch.float32]


def test_a_randomised_model_is_welcome_where_it_is_asked_many_times() -> None:
    net = small_net()
    classifier = Classifier(lambda images: net(images) + 0.01 * torch.randn(1), name="m")
    assert classifier.check(random_images(16), classes=4, least=4, gradients=True, randomised=None) == []
    with pytest.raises(ModelError, match=r"; expected the same answer every time\. Do this\.$"):
        classifier.check(random_images(16), classes=4, least=4, gradients=True, randomised="Do this.")


def test_a_model_whose_answer_depends_on_the_batch_is_refused() -> None:
    net = small_net()
    norm = nn.BatchNorm2d(3).train()

    def with_hidden_batch_norm(images: Tensor) -> Tensor:
        answer: Tensor = net(norm(images))
        return answer

    _refused(
        with_hidden_batch_norm,
        "m: `model` is giving an image another answer in another batch; expected an answer that depends "
        "on the image alone. Is batch normalisation in train mode inside the callable? Call `.eval()` on it.",
    )


def test_the_wrong_number_of_classes_is_refused() -> None:
    _refused(
        small_net(classes=6),
        "m: `logits` is of shape (16, 6); expected shape (16, 4). "
        "The data set has 4 classes: return one logit for each.",
    )
    _refused(
        small_net(classes=3),
        "m: `logits` is of shape (16, 3); expected shape (16, at least 4). "
        "The data set has at least 4 classes: return one logit for each.",
        classes=None,
    )
    _refused(
        nn.Sequential(small_net(), nn.Unflatten(1, (4, 1))).eval(),
        "m: `logits` is of shape (16, 4, 1); expected shape (16, 4). "
        "The data set has 4 classes: return one logit for each.",
    )


def test_one_logit_too_many_may_be_a_background_class() -> None:
    _refused(
        small_net(classes=5),
        "m: `logits` is of shape (16, 5); expected shape (16, 4). The data set has 4 classes: "
        "return one logit for each. Drop the background class, if the first is one: `logits[:, 1:]`.",
    )


def test_nan_is_refused() -> None:
    net = small_net()

    def sometimes_nan(images: Tensor) -> Tensor:
        answer: Tensor = net(images)
        return answer.where(images.mean(dim=(1, 2, 3))[:, None] < 0.5, torch.nan)

    broken = int((random_images(16).mean(dim=(1, 2, 3)) >= 0.5).sum())
    assert 0 < broken < 16
    _refused(
        sometimes_nan,
        f"m: `logits` is NaN or infinite for {broken} of 16 clean images; expected finite logits. "
        "Check the weights and the normalisation inside the model.",
    )


def test_integer_output_is_refused() -> None:
    net = small_net()
    _refused(
        lambda images: (net(images) * 10).long(),
        "m: `logits` is of type torch.int64; expected floating-point logits. Return logits, not predicted classes.",
    )


def test_several_outputs_are_refused() -> None:
    net = small_net()
    _refused(
        lambda images: {"logits": net(images)},
        "m: `logits` is dict; expected one tensor of shape (N, K). Return the logits only.",
    )


def test_a_model_that_fails_on_a_batch_of_16_is_refused() -> None:
    net = small_net()

    def only_single_images(images: Tensor) -> Tensor:
        if len(images) > 1:
            raise RuntimeError("one image at a time, please")
        answer: Tensor = net(images)
        return answer

    _refused(
        only_single_images,
        "m: `model` is failing on a batch of shape (16, 3, 8, 8) with RuntimeError: one image at a time, please; "
        "expected logits for any batch of float32 RGB images in [0, 1]. "
        "Make `model(torch.rand(16, 3, 8, 8))` work first.",
    )


NO_GRADIENT = (
    "m: `model` is without gradients: its output does not depend differentiably on the images; expected a "
    "differentiable callable on tensors for this protocol's attack. "
    "Keep the computation in torch (no NumPy, no `detach`), or choose a black-box protocol."
)


def test_a_callable_that_fails_only_with_gradients_is_refused_at_the_door() -> None:
    """NumPy inside a callable works as long as nobody asks for a gradient."""
    weight = np.ones((3 * 8 * 8, 4), dtype=np.float32) / 100

    def with_numpy(images: Tensor) -> Tensor:
        return torch.as_tensor(np.asarray(images.flatten(1)) @ weight) + torch.arange(4)

    _refused(
        with_numpy,
        "m: `model` is failing with RuntimeError when its gradient is asked for: Can't call numpy() on Tensor that "
        "requires grad. Use tensor.detach().numpy() instead.; expected a differentiable callable on tensors for this "
        "protocol's attack. Keep the computation in torch (no NumPy, no `detach`), or choose a black-box protocol.",
    )


def test_a_callable_without_gradients_is_refused_on_a_gradient_protocol_only() -> None:
    net = small_net()

    def detached(images: Tensor) -> Tensor:
        with torch.no_grad():
            answer: Tensor = net(images)
        return answer

    def constant(images: Tensor) -> Tensor:
        return (torch.zeros(len(images), 4) + torch.arange(4.0)).requires_grad_()

    for model in (detached, constant):
        _refused(model, NO_GRADIENT)
        assert _check(model, gradients=False) == []


def test_nan_gradients_are_refused() -> None:
    _refused(
        lambda images: ((images - images) ** 0.5).flatten(1)[:, :4] + torch.arange(4.0),
        "m: `gradient` is NaN or infinite at clean images; expected finite gradients. "
        "Look for square roots or divisions at 0 in the forward pass.",
    )


def test_a_zero_gradient_is_a_caveat() -> None:
    net = small_net()
    (caveat,) = _check(lambda images: net(images * 0) + 0 * images.flatten(1)[:, :4])
    assert caveat.startswith("The gradient of the cross-entropy is exactly zero at 16 of 16 clean images:")


def test_a_model_that_changes_its_images_is_refused_and_they_are_left_as_they_are() -> None:
    images = torch.rand(16, 3, 8, 8)
    before = images.clone()

    def in_place(shown: Tensor) -> Tensor:
        shown -= 0.5
        return shown.flatten(1)[:, :4]

    with pytest.raises(ModelError, match=r"`model` is changing the images that it is shown; expected images that are"):
        Classifier(in_place).check(images, classes=4, least=4, gradients=False)
    assert torch.equal(images, before)


def test_a_model_without_values_is_refused() -> None:
    with pytest.raises(ModelError, match=r"`device` is `meta`, where parameters have no values; expected one that"):
        Classifier(small_net().to("meta")).check(torch.rand(16, 3, 8, 8), classes=4, least=4, gradients=False)


def test_what_is_not_callable_is_refused() -> None:
    with pytest.raises(ModelError, match=r"`model` is int; expected a callable that returns logits\."):
        Classifier(3)


def test_a_numpy_callable_is_a_black_box() -> None:
    weight = np.random.default_rng(0).normal(size=(3 * 8 * 8, 4)).astype(np.float32)

    def in_numpy(images: np.ndarray) -> np.ndarray:
        if not isinstance(images, np.ndarray):
            raise TypeError("arrays only")
        return images.reshape(len(images), -1) @ weight

    classifier = Classifier(in_numpy)
    images = random_images(16)
    assert classifier.check(images, classes=4, least=4, gradients=False) == []
    assert classifier.black_box
    expected = torch.from_numpy(in_numpy(images[:3].numpy()))
    assert torch.allclose(classifier.logits(images[:3]), expected, atol=1e-4)
    with pytest.raises(ModelError, match="without gradients"):
        classifier.check(images, classes=4, least=4, gradients=True)


def test_a_foolbox_model_is_asked_in_its_own_range() -> None:
    net, images = small_net(), random_images(16)

    class Wide(nn.Module):
        def forward(self, pixels: Tensor) -> Tensor:
            answer: Tensor = net(pixels / 255)
            return answer

    wide = foolbox.PyTorchModel(Wide().eval(), bounds=(0, 255), device="cpu")
    classifier = Classifier(wide)
    assert classifier.check(images, classes=4, least=4, gradients=True) == []
    assert torch.allclose(classifier.logits(images), net(images), atol=1e-5)


def test_gradients_are_those_of_autograd_and_parameters_get_none() -> None:
    net, images = small_net(), random_images(20)
    labels = torch.arange(20) % 4
    leaf = images.clone().requires_grad_()
    torch.nn.functional.cross_entropy(net(leaf), labels, reduction="sum").backward()  # type: ignore[no-untyped-call]
    for parameter in net.parameters():
        parameter.grad = None
    classifier = Classifier(net)
    with classifier.frozen():
        assert not any(parameter.requires_grad for parameter in net.parameters())
        logits, values, gradient = classifier.gradient(
            images, lambda logits: torch.nn.functional.cross_entropy(logits, labels, reduction="none")
        )
    assert all(parameter.requires_grad and parameter.grad is None for parameter in net.parameters())
    assert leaf.grad is not None
    assert torch.allclose(gradient, leaf.grad, atol=1e-6)
    assert torch.allclose(logits, net(images), atol=1e-6)
    assert values.shape == (20,)
    assert (classifier.passes.forward, classifier.passes.backward) == (20, 20)


def test_few_images_get_the_bits_they_get_in_a_full_batch() -> None:
    """Why small batches are padded: CPU kernels round differently below 16 rows."""
    classifier, images = Classifier(small_net()), random_images(32, 64)
    whole = classifier.logits(images)
    for few in (1, 3, 15):
        assert torch.equal(classifier.logits(images[:few]), whole[:few])
    assert classifier.passes.forward == 32 + 1 + 3 + 15


def test_a_float64_model_gets_float64_images() -> None:
    net = small_net(dtype=torch.float64)
    seen: list[torch.dtype] = []
    net.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0].dtype))
    assert Classifier(net).logits(random_images(2)).dtype == torch.float32
    assert seen == [torch.float64]


def test_the_state_digest_knows_the_weights() -> None:
    assert Classifier(small_net(0)).state_digest() == Classifier(small_net(0)).state_digest()
    assert Classifier(small_net(0)).state_digest() != Classifier(small_net(1)).state_digest()
    assert Classifier(lambda images: images).state_digest() is None


def test_a_device_other_than_the_models_is_refused() -> None:
    with pytest.raises(ModelError, match="`device` is `meta` while its parameters are on `cpu`; expected the same"):
        Classifier(small_net(), device="meta")


# --- foolbox models


class Wrong(nn.Module):
    """A network whose part named `bounds` is no range."""

    def __init__(self, bounds: object) -> None:
        super().__init__()
        self.network, self.bounds = small_net(), bounds

    def forward(self, images: Tensor) -> Tensor:
        answer: Tensor = self.network(images)
        return answer


def _foolbox_models() -> dict[str, tuple[object, nn.Module]]:
    """foolbox's models, and a module that should say the same to images in [0, 1]."""
    net, mean, std = small_net(), [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
    normalised = Normalised(net, mean, std).eval()
    flipped = nn.Sequential(Flip(), net).eval()
    preprocessing = {"mean": mean, "std": std, "axis": -3}
    wide = {"mean": [255 * value for value in mean], "std": [255 * value for value in std], "axis": -3}
    unit = foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu", preprocessing=preprocessing)
    return {
        "preprocessing": (unit, normalised),
        "bytes": (foolbox.PyTorchModel(net, bounds=(0, 255), device="cpu", preprocessing=wide), normalised),
        "flipped": (foolbox.PyTorchModel(net, (0, 1), device="cpu", preprocessing={"flip_axis": -3}), flipped),
        "transformed": (unit.transform_bounds((-1, 1)), normalised),
        "wrapped": (unit.transform_bounds((0, 255), wrapper=True), normalised),
    }


class Normalised(nn.Module):
    """A network behind a mean and a standard deviation."""

    def __init__(self, network: nn.Module, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.network = network
        self.mean, self.std = (torch.tensor(values)[:, None, None] for values in (mean, std))

    def forward(self, images: Tensor) -> Tensor:
        answer: Tensor = self.network((images - self.mean) / self.std)
        return answer


class Flip(nn.Module):
    """RGB to BGR."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flip(1)


@pytest.mark.parametrize("name", sorted(_foolbox_models()))
def test_a_foolbox_model_gives_the_logits_and_gradients_of_the_module_inside(name: str) -> None:
    model, module = _foolbox_models()[name]
    images, classifiers = random_images(20), (Classifier(model), Classifier(module))
    for each in classifiers:
        assert each.check(images[:16], classes=4, least=4, gradients=True) == []
        assert each.check_single(images[:1]) is None  # type: ignore[func-returns-value]  # it raises otherwise
    logits = [each.logits(images) for each in classifiers]
    assert torch.allclose(logits[0], logits[1], atol=1e-5)
    slopes = [each.gradient(images, lambda found: found.logsumexp(dim=1))[2] for each in classifiers]
    assert float((slopes[0] - slopes[1]).norm()) < 1e-4 * float(slopes[1].norm())
    assert float(slopes[1].norm()) > 0


def test_foolboxs_numpy_model_is_a_model_without_gradients() -> None:
    weight = np.random.default_rng(0).normal(size=(192, 4)).astype(np.float32)

    def in_numpy(pixels: np.ndarray) -> np.ndarray:
        assert isinstance(pixels, np.ndarray)
        return (pixels / 255 - 0.5).reshape(len(pixels), -1) @ weight

    images = random_images(16)
    classifier = Classifier(foolbox.models.NumPyModel(in_numpy, bounds=(0, 255)))
    assert classifier.check(images, classes=4, least=4, gradients=False) == []
    expected = torch.from_numpy((images.numpy() - 0.5).reshape(16, -1) @ weight)
    assert torch.allclose(classifier.logits(images), expected, atol=1e-4)
    with pytest.raises(ModelError, match="without gradients"):
        classifier.check(images, classes=4, least=4, gradients=True)


def test_a_foolbox_model_is_asked_where_it_lies() -> None:
    model = foolbox.PyTorchModel(nn.Linear(1, 1).eval(), bounds=(0, 1), device="meta")
    assert Classifier(model).device == torch.device("meta")
    with pytest.raises(
        ModelError, match=r"^m: `device` is `cpu` while its parameters are on `meta`; expected the same"
    ):
        Classifier(model, name="m", device="cpu")


@pytest.mark.parametrize("bounds", [(0, 0), (1, 0), (0, float("inf")), "all", 7, (0, 1, 2), ("a", "b")])
def test_bounds_that_are_no_range_are_refused(bounds: object) -> None:
    with pytest.raises(ModelError, match=r"^Wrong: `bounds` is .*; expected the lowest and the highest value of an"):
        Classifier(Wrong(bounds).eval())


def test_a_single_image_must_get_the_answer_it_gets_in_a_batch() -> None:
    net, image = small_net(), random_images(1)

    def squeezed(images: Tensor) -> Tensor:
        answer: Tensor = net(images)
        return answer.squeeze()

    def fixed(images: Tensor) -> Tensor:
        if len(images) < 16:
            raise RuntimeError("a batch of 16 is expected")
        answer: Tensor = net(images)
        return answer

    def moved(images: Tensor) -> Tensor:
        answer: Tensor = net(images)
        return answer + (len(images) == 1)

    Classifier(net).check_single(image)
    found = {
        squeezed: r"giving logits of shape \(1,\) for a single image; expected the same answer as in a batch, of shape",
        fixed: r"failing on a single image with RuntimeError: a batch of 16 is expected; expected the same answer",
        moved: r"giving a single image another answer than in a batch; expected the same answer",
    }
    for model, message in found.items():
        with pytest.raises(ModelError, match=message):
            Classifier(model).check_single(image)
