import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robench.averaging import AveragingClassifier, randomness_of, seed_of, seeded
from robench.classifier import Classifier
from robench.losses import cross_entropy
from tests.fakes import random_images, small_net

CPU = torch.device("cpu")


class Noisy(nn.Module):
    """A network that blurs its input and its logits by chance."""

    def __init__(self, net: nn.Module, sigma: float) -> None:
        super().__init__()
        self.net, self.sigma = net, sigma

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.net(images + self.sigma * torch.randn_like(images))
        return logits + self.sigma * torch.randn_like(logits)


def test_one_draw_is_the_classifier_itself() -> None:
    images, labels = random_images(20), torch.arange(20) % 4
    plain, averaging = Classifier(small_net()), AveragingClassifier(Classifier(small_net()), 1)

    def objective(logits: Tensor) -> Tensor:
        return cross_entropy(logits, labels)

    assert torch.equal(averaging.logits(images), plain.logits(images))
    for ours, theirs in zip(averaging.gradient(images, objective), plain.gradient(images, objective), strict=True):
        assert torch.equal(ours, theirs)
    assert (averaging.name, averaging.device, averaging.minimum_rows) == (plain.name, plain.device, plain.minimum_rows)


def test_means_are_those_of_a_plain_loop() -> None:
    """The gradient of the mean objective, of which a mean of gradients is one way to write it."""
    net, images, labels = Noisy(small_net(), 0.3).eval(), random_images(20), torch.arange(20) % 4
    averaging = AveragingClassifier(Classifier(net), 7)
    with seeded(5, CPU):
        logits, values, gradient = averaging.gradient(images, lambda logits: cross_entropy(logits, labels))
    leaf = images.clone().requires_grad_()
    with seeded(5, CPU):
        answers = [net(leaf) for _ in range(7)]
    losses = torch.stack([torch.nn.functional.cross_entropy(each, labels, reduction="none") for each in answers])
    (expected,) = torch.autograd.grad(losses.mean(dim=0).sum(), leaf)
    assert torch.allclose(gradient, expected, atol=1e-6)
    assert torch.allclose(values, losses.mean(dim=0).detach(), atol=1e-6)
    assert torch.allclose(logits, torch.stack(answers).mean(dim=0).detach(), atol=1e-6)
    with seeded(5, CPU):
        assert torch.allclose(averaging.logits(images), logits, atol=1e-6)
    assert not torch.allclose(answers[0], logits, atol=1e-2)


def test_every_draw_is_a_pass() -> None:
    classifier = Classifier(small_net())
    averaging = AveragingClassifier(classifier, 5)
    averaging.logits(random_images(3))
    averaging.gradient(random_images(20), lambda logits: logits.sum(dim=1))
    assert (classifier.passes.forward, classifier.passes.backward) == (5 * 23, 5 * 20)
    assert averaging.passes is classifier.passes


def test_fewer_rows_are_fewer_rows_of_the_classifier() -> None:
    classifier = Classifier(small_net())
    averaging = AveragingClassifier(classifier, 2)
    averaging.minimum_rows = 4
    assert classifier.minimum_rows == averaging.minimum_rows == 4
    with averaging.frozen():
        assert not any(parameter.requires_grad for parameter in classifier.model.parameters())


def test_no_draw_has_no_mean() -> None:
    with pytest.raises(ValueError, match="0 draws have no mean"):
        AveragingClassifier(Classifier(small_net()), 0)


def _numbers() -> list[float]:
    return [float(torch.rand(())), float(np.random.rand()), random.random()]


def test_a_seed_gives_the_same_numbers_and_leaves_the_callers_alone() -> None:
    with seeded(11, CPU):
        before = _numbers()  # from a known state, so that this test is seeded, too
        states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # type: ignore[index]
        drawn = []
        for seed in (3, 3, 4, 2**63 - 1):
            with seeded(seed, CPU):
                drawn.append(_numbers())
        with pytest.raises(ZeroDivisionError), seeded(3, CPU):
            _ = _numbers()[0] / 0
        assert torch.equal(states[0], torch.get_rng_state())
        assert np.array_equal(states[1], np.random.get_state()[1])  # type: ignore[index]
        assert states[2] == random.getstate()
    assert drawn[0] == drawn[1]
    assert all(len({row[column] for row in [before, *drawn[1:]]}) == 4 for column in range(3))


def test_examples_have_seeds_of_their_own() -> None:
    seeds = {seed_of(seed, ids) for seed in (0, 1) for ids in (["a"], ["b"], ["a", "b"], ["ab"], ["b", "a"])}
    assert len(seeds) == 10
    assert all(0 <= seed < 2**63 for seed in seeds)


def _with_generator() -> Callable[[Tensor], Tensor]:
    generator, net = torch.Generator().manual_seed(0), small_net()

    def model(images: Tensor) -> Tensor:
        answer: Tensor = net(images)
        return answer + torch.randn(answer.shape, generator=generator)

    return model


def _with_numpy() -> Callable[[Tensor], Tensor]:
    net = small_net()
    return lambda images: net(images) + float(np.random.normal())


@pytest.mark.parametrize(
    ("model", "found"),
    [
        (small_net(), "none"),
        (Noisy(small_net(), 0.1).eval(), "seeded"),
        (_with_numpy(), "seeded"),
        (_with_generator(), "unseeded"),
    ],
)
def test_where_a_model_draws_from_is_found_out(model: Callable[[Tensor], Tensor], found: str) -> None:
    with seeded(0, CPU):
        assert randomness_of(Classifier(model), random_images(16)) == found
