"""Patches whose pixels climb: where they begin, what they become, and how many looks they take."""

import itertools
from typing import Any

import torch
from torch import Tensor, nn

from robench.attacks.drive import Finished, Stage, drive
from robench.attacks.interface import Answer, Examples
from robench.attacks.patch_ascent import WhiteBoxPatches, _best_corners, _sums
from robench.attacks.patch_search import RandomPatches
from robench.budgets import PatchArea
from robench.classifier import Classifier
from robench.randomness import Draws
from tests.fakes import Linear, examples, labelled_by, noise_folder, random_images, small_net

SIDE, SIZE = 3, 9
BUDGET = PatchArea(2 * SIDE**2 / SIZE**2, patches=2)


def _linear(seed: int = 0) -> Linear:
    weight = torch.randn(2, 3 * SIZE**2, generator=torch.Generator().manual_seed(seed))
    return Linear(weight, -0.5 * weight.sum(dim=1)).eval()


def _start(attack: WhiteBoxPatches, images: Tensor, labels: Tensor, budget: PatchArea = BUDGET) -> Any:
    clean = Examples(images, labels, torch.zeros(len(images), 2))
    return attack.start(clean, budget, Draws.of(0, [f"{index}" for index in range(len(images))]))


def _turn(attack: WhiteBoxPatches, state: Any, model: nn.Module) -> tuple[Any, Tensor, Tensor]:
    """One ask and tell; also the images, and the objective at each."""
    query = attack.ask(state)
    assert query.objective is not None
    leaf = query.render(slice(None)).requires_grad_()
    logits = model(leaf)
    value = query.objective(logits, query.rows)
    (gradient,) = torch.autograd.grad(value.sum(), leaf)
    state = attack.tell(state, Answer(logits.detach(), value.detach(), gradient))
    return state, leaf.detach(), value.detach()


def test_sums_over_squares_are_those_of_a_loop() -> None:
    values = torch.rand(2, 7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for side in (1, 3, 5):
        found = _sums(values, side)
        assert found.shape == (2, 8 - side, 6 - side)
        for index, row, column in itertools.product(range(2), range(8 - side), range(6 - side)):
            expected = values[index, row : row + side, column : column + side].sum()
            assert abs(float(found[index, row, column] - expected)) < 1e-12


def test_positions_are_the_best_ones_half_a_side_apart() -> None:
    gains = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = _best_corners(gains, 5, side=4)
    for index in range(3):
        free = {place: float(gains[index][place]) for place in itertools.product(range(8), repeat=2)}
        for row, column in found[index].tolist():
            assert free[row, column] == max(free.values())
            free = {at: gain for at, gain in free.items() if max(abs(at[0] - row), abs(at[1] - column)) >= 2}
    crowded = _best_corners(gains[:, :2, :2], 6, side=4)[0].tolist()
    assert crowded[0] == crowded[1]  # nowhere else to go
    assert sorted(map(tuple, _best_corners(gains[:, :2, :2], 4, side=1)[0].tolist())) == [
        (0, 0),
        (0, 1),
        (1, 0),
        (1, 1),
    ]


def test_on_a_linear_model_the_first_try_is_the_best_square_of_all() -> None:
    """Found by trying every position with the better of 0 and 1 for every value."""
    model, images = _linear(), random_images(6, SIZE)
    labels = model(images).argmax(dim=1)
    attack = WhiteBoxPatches(patches=2, positions=2, rounds=1)
    state = _start(attack, images, labels)
    state, first, _ = _turn(attack, state, model)
    assert torch.equal(first, images)
    _, second, _ = _turn(attack, state, model)
    difference = (model.weight[0] - model.weight[1]).reshape(3, SIZE, SIZE).detach()
    for index in range(6):
        against = difference * (1 - 2 * (int(labels[index]) == 0))
        best = torch.where(against > 0, 1.0, 0.0)
        tried = []
        for row, column in itertools.product(range(SIZE - SIDE + 1), repeat=2):
            image = images[index].clone()
            square = (slice(None), slice(row, row + SIDE), slice(column, column + SIDE))
            image[square] = best[square]
            tried.append((float((against * image).double().sum()), image))
        assert torch.equal(second[index], max(tried, key=lambda each: each[0])[1])


def test_pixels_climb_from_the_best_position_and_the_best_patch_is_fixed() -> None:
    """On a model with one colour it wants: corners of the colours are not enough, steps are."""

    class Wants(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            middle = images[:, :, 3:6, 3:6]
            far = ((middle - 0.375) ** 2).sum(dim=(1, 2, 3))
            return torch.stack([far, torch.zeros_like(far)], dim=1)

    images = random_images(4, SIZE, low=0.9, high=1.0)
    attack = WhiteBoxPatches(patches=2, positions=4, rounds=12, step_size=1 / 8)
    state = _start(attack, images, torch.zeros(4, dtype=torch.int64))
    values: list[Tensor] = []
    looks: list[Tensor] = []
    for _ in range(1 + 4 + 12):
        assert state.fixed.tolist() == [0] * 4
        state, image, value = _turn(attack, state, Wants())
        looks.append(image)
        values.append(value)
    for slot in range(4):
        tries = torch.stack([value[slot] for value in values])
        place = 1 + int(tries[1:5].argmax())
        assert torch.equal(looks[5][slot], looks[place][slot])  # the climb begins at the best position
        steps = [(looks[at + 1][slot] - looks[at][slot]).abs().amax() for at in range(5, 16)]
        assert all(float(step) <= 1 / 8 + 1e-6 for step in steps)
        top = 1 + int(tries[1:].argmax())
        assert top > place
        assert torch.equal(state.canvas[slot], looks[top][slot])
    assert state.fixed.tolist() == [1] * 4
    assert attack.ask(state).patches.tolist() == [1] * 4  # type: ignore[union-attr]  # it pastes some
    assert attack.ask(state).step.tolist() == [18] * 4
    assert torch.equal(attack.ask(state).render(slice(None)), state.canvas)
    while not bool(state.done.all()):
        state, _, _ = _turn(attack, state, Wants())
    assert int(state.asked[0]) == attack.steps == attack.most_passes[0] == 34


def test_the_canvas_without_a_patch_is_no_patch() -> None:
    """However much worse every patch is than none: one is fixed, as in the other attacks with patches."""

    class Hates(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            change = (images - 0.5).abs().sum(dim=(1, 2, 3))
            return torch.stack([change, torch.zeros_like(change)], dim=1)

    images = torch.full((2, 3, SIZE, SIZE), 0.5)
    attack = WhiteBoxPatches(patches=2, positions=2, rounds=2)
    state = _start(attack, images, torch.zeros(2, dtype=torch.int64))
    for _ in range(5):
        state, _, _ = _turn(attack, state, Hates())
    assert (state.canvas != images).any(dim=1).sum(dim=(1, 2)).tolist() == [9, 9]


def test_it_is_stronger_than_random_textures_on_a_network() -> None:
    net = small_net()
    source = labelled_by(net, random_images(80, 16))
    budget = PatchArea(0.08, 2)

    def survivors(attack: Any) -> int:
        stream = drive([Stage(attack)], Classifier(net), source, budget=budget)
        return sum(not each.fooled_at for each in stream)

    random = survivors(RandomPatches(**noise_folder(), rounds=4, queries=50, patches=2))
    climbed = survivors(WhiteBoxPatches(patches=2, positions=5, rounds=20))
    assert climbed < random < 80


def test_outcomes_count_looks_and_patches() -> None:
    attack = WhiteBoxPatches(patches=2, positions=3, rounds=4)
    model = _linear()
    source = labelled_by(model, random_images(30, SIZE))
    classifier = Classifier(model)
    budget = PatchArea(2 / SIZE**2, patches=2)
    finished: list[Finished] = list(drive([Stage(attack)], classifier, source, budget=budget, slots=16))
    fell = [each for each in finished if each.fooled_at]
    assert 0 < len(fell) < 30
    for each in fell:
        assert each.patches == 1 + (each.fooled_at[0] > 8)
        assert each.queries is not None
        assert each.fooled_at[0] == each.queries
        assert each.area is not None
        assert 0 < each.area <= 0.0247  # two pixels of 81
    assert all(each.queries == attack.steps == 16 for each in finished if not each.fooled_at)


def test_a_model_without_slope_is_left_in_peace() -> None:
    """All gradients zero: positions and colours are arbitrary, and nothing breaks."""

    class Flat(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.tensor([[1.0, 0.0]]).expand(len(images), 2) + 0 * images.sum(dim=(1, 2, 3))[:, None]

    events: list[str] = []
    stream = drive(
        [Stage(WhiteBoxPatches(patches=2, positions=3, rounds=4))],
        Classifier(Flat()),
        examples(random_images(5, SIZE), [0] * 5),
        budget=BUDGET,
        on_event=lambda kind, details: events.append(kind),
    )
    assert [each.fooled_at for each in stream] == [()] * 5
    assert events == ["zero gradient"]
