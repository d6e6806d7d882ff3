import foolbox
import pytest
import torch

from robench.attacks.interface import Answer, Examples
from robench.attacks.pgd import PGD
from robench.budgets import L2Ball, LinfBall
from robench.classifier import Classifier
from robench.errors import ProtocolError
from robench.randomness import Draws
from tests.fakes import random_images, small_net


def _last_iterate(attack: PGD, budget: LinfBall | L2Ball, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    classifier, slots = Classifier(small_net()), torch.arange(len(images))
    draws = Draws.of(0, [f"e{index}" for index in range(len(images))])
    state = attack.start(Examples(images, labels, classifier.logits(images)), budget, draws)
    for _ in range(attack.steps):
        objective = attack.ask(state).objective
        assert objective is not None
        shown = attack.ask(state).render(slice(None))
        answer = classifier.gradient(shown, lambda logits, ask=objective: ask(logits, slots))  # type: ignore[misc]
        state = attack.tell(state, Answer(*answer))
    return state.iterate


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_iterates_are_foolboxs(norm: str) -> None:
    """From the clean image, step by step, the same images as an independent implementation."""
    net, images = small_net(), random_images(16)
    labels = net(images).argmax(dim=1)
    epsilon, step_size, steps = {"linf": (0.05, 0.02, 7), "l2": (0.5, 0.2, 7)}[norm]
    peer = {"linf": foolbox.attacks.LinfPGD, "l2": foolbox.attacks.L2PGD}[norm]
    theirs, _, _ = peer(abs_stepsize=step_size, steps=steps, random_start=False)(
        foolbox.PyTorchModel(net, bounds=(0, 1)), images, labels, epsilons=epsilon
    )
    budget = LinfBall(epsilon) if norm == "linf" else L2Ball(epsilon)
    ours = _last_iterate(PGD(step_size=step_size, steps=steps, start_probability=0.0), budget, images, labels)
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_the_coin_decides_how_many_start_at_the_clean_image() -> None:
    images = random_images(400, 4, low=0.3, high=0.7)
    draws = Draws.of(0, [f"e{index}" for index in range(400)])
    given = Examples(images, torch.zeros(400, dtype=torch.int64), torch.zeros(400, 4))
    for probability, low, high in ((0.0, 0, 0), (0.5, 160, 240), (1.0, 400, 400)):
        attack = PGD(step_size=0.1, steps=1, start_probability=probability)
        start = attack.start(given, LinfBall(0.05), draws).iterate
        moved = int((start != images).flatten(1).any(dim=1).sum())
        assert low <= moved <= high


def test_n_steps_look_at_n_plus_one_images() -> None:
    images = random_images(2)
    attack = PGD(step_size=0.1, steps=3)
    given = Examples(images, torch.zeros(2, dtype=torch.int64), torch.zeros(2, 4))
    state, asked = attack.start(given, LinfBall(0.1), Draws.of(0, ["a", "b"])), 0
    while not bool(state.done.all()):
        assert attack.ask(state).step.tolist() == [asked, asked]
        state = attack.tell(state, Answer(torch.zeros(2, 4), torch.zeros(2), torch.ones_like(images)))
        asked += 1
    assert asked == 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"step_size": 0.0, "steps": 1}, "PGD: `step_size` is 0.0; expected more than 0."),
        ({"step_size": 0.1, "steps": 0}, "PGD: `steps` is 0; expected at least 1."),
        (
            {"step_size": 0.1, "steps": 1, "start_probability": 1.5},
            "PGD: `start_probability` is 1.5; expected from 0 to 1.",
        ),
    ],
)
def test_nonsense_is_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        PGD(**settings)  # type: ignore[arg-type]  # floats and ints from one table
    assert str(caught.value) == message
