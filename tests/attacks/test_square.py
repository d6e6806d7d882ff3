import pytest
import torch
from pyautoattack.square import SquareAttack

from robench.attacks.drive import Example, Stage, drive
from robench.attacks.interface import Answer, Examples
from robench.attacks.square import BLOCK, Square, SquareState, _bump
from robench.budgets import BUDGETS, LinfBall
from robench.classifier import Classifier
from robench.data.mini import attack_set
from robench.errors import BudgetError, ProtocolError
from robench.randomness import Draws
from robench.zoo import load_model
from tests.fakes import random_images


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 12 / 255), ("l2", 2.5)])
def test_about_as_many_fall_as_under_the_reference(norm: str, epsilon: float) -> None:
    """The two draw other numbers, so that single verdicts may part: two runs of the reference do, too."""
    arrays = attack_set()
    images, labels = torch.from_numpy(arrays[0][:64]).float() / 255, torch.from_numpy(arrays[1][:64])
    model = load_model("mini-resnet-gelu-adv").requires_grad_(False)
    settings = {"norm": {"linf": "Linf", "l2": "L2"}[norm], "eps": epsilon, "n_queries": 100, "resc_schedule": False}
    expected = []
    with torch.random.fork_rng(devices=[]):
        for seed in (0, 1):
            attacked = SquareAttack(model, n_restarts=1, seed=seed, device="cpu", **settings).perturb(images, labels)
            with torch.no_grad():
                expected.append(int((model(attacked).argmax(dim=1) == labels).sum()))
    source = [Example(row, f"{row}", int(labels[row]), image) for row, image in enumerate(images)]
    found = [
        sum(
            finished.clean_prediction == finished.label and not finished.fooled_at
            for finished in drive(
                [Stage(Square(queries=100))], Classifier(model), source, budget=BUDGETS[norm](epsilon), seed=seed
            )
        )
        for seed in (0, 1)
    ]
    clean = int((model(images).argmax(dim=1) == labels).sum())
    assert clean - max(expected) >= 8
    assert abs(sum(found) - sum(expected)) / 2 <= 5


def _start(count: int = 5, size: int = 16, norm: str = "linf", **settings: int) -> tuple[Square, SquareState]:
    attack = Square(**settings)
    examples = Examples(random_images(count, size), torch.zeros(count, dtype=torch.int64), torch.zeros(count, 3))
    return attack, attack.start(examples, BUDGETS[norm](0.1), Draws.of(0, [f"{index}" for index in range(count)]))


def _tell(attack: Square, state: SquareState, margins: list[float]) -> SquareState:
    logits = torch.zeros(len(margins), 3)
    logits[:, 0] = torch.tensor(margins)
    return attack.tell(state, Answer(logits, None, None))


def test_a_better_image_is_kept_and_a_worse_one_is_not() -> None:
    attack, state = _start(2)
    state = _tell(attack, state, [1.0, 1.0])
    asked = attack.ask(state).render(slice(None))
    kept = _tell(attack, state, [0.5, 1.5])
    assert torch.equal(kept.best[0], asked[0])
    assert torch.equal(kept.best[1], state.best[1])
    assert kept.lowest.tolist() == [0.5, 1.0]


def test_one_query_changes_one_square_of_each_image() -> None:
    attack, state = _start(5, 16)
    state = _tell(attack, state, [1.0] * 5)
    changed = (attack.ask(state).render(slice(None)) - state.best).abs().amax(dim=1) > 0
    for image in changed:
        rows, columns = image.any(dim=1).nonzero(), image.any(dim=0).nonzero()
        assert int(rows.max() - rows.min()) < 14  # sqrt(0.8) of 16 pixels
        assert int(columns.max() - columns.min()) < 14


def test_the_side_of_the_square_follows_the_published_schedule() -> None:
    queries = torch.tensor([1, 11, 12, 51, 52, 201, 202, 8001, 8002])
    sides = Square()._sides(224, 224, queries, odd=False)
    expected = [round(224 * (0.8 / divisor) ** 0.5) for divisor in (1, 1, 2, 2, 4, 4, 8, 256, 512)]
    assert sides.tolist() == expected
    odd = Square()._sides(64, 64, queries, odd=True)
    assert bool((odd % 2 == 1).all())
    assert int(odd.min()) == 3


def test_random_numbers_outlast_any_number_of_queries() -> None:
    """Drawn in blocks, they are those of the query, whoever else sits in the batch."""
    attack, state = _start(2, queries=400)
    seen = []
    for query in range(3 * BLOCK + 5):
        seen.append(state.numbers[0, query - BLOCK * int(state.block[0])])
        state = _tell(attack, state, [1.0, 1.0])
    draws = Draws.of(0, ["0"])
    for query in (0, BLOCK - 1, BLOCK, 3 * BLOCK + 4):
        block = draws.uniform("square/0", (BLOCK, 8), step=query // BLOCK)
        assert torch.equal(seen[query], block[0, query % BLOCK])


def test_a_slot_ends_after_its_queries() -> None:
    attack, state = _start(1, queries=3)
    asked = 0
    while not bool(state.done.any()):
        state = _tell(attack, state, [1.0])
        asked += 1
    assert asked == 4  # the start, and three queries
    assert bool(state.done.all())


@pytest.mark.parametrize("side", [3, 5, 8])
def test_a_bump_has_length_one_and_two_halves(side: int) -> None:
    upright, turned = _bump(side, torch.tensor([0.1, 0.9]), torch.device("cpu"))[:, 0]
    assert float((upright**2).sum()) == pytest.approx(1)
    assert torch.equal(turned, upright.T)
    assert bool((upright[: side // 2] > 0).all())
    assert bool((upright[side // 2 :] < 0).all())


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("size", [1, 2, 4, 9])
def test_tiny_images_are_no_trouble(norm: str, size: int) -> None:
    attack, state = _start(2, size, norm)
    for _ in range(20):
        images = attack.ask(state).render(slice(None))
        assert bool((BUDGETS[norm](0.1).excess(images, state.examples.images) <= 1e-6).all())
        state = _tell(attack, state, [1.0, 0.5])


def test_settings_and_budgets_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ProtocolError, match=r"^Square: `queries` is 0; expected at least 1\.$"):
        Square(queries=0)
    with pytest.raises(ProtocolError, match=r"^Square: `p_init` is 0; expected more than 0 and at most 1\.$"):
        Square(p_init=0)

    class Own(LinfBall):
        pass

    examples = Examples(random_images(1), torch.zeros(1, dtype=torch.int64), torch.zeros(1, 3))
    with pytest.raises(BudgetError, match=r"^Square: `budget` is Own; expected LinfBall or L2Ball\.$"):
        Square().start(examples, Own(0.1), Draws.of(0, ["0"]))
