import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robench.budgets import BUDGETS, TOLERANCE, Ball, L2Ball, LinfBall, PatchArea, changed_share
from robench.errors import BudgetError
from robench.randomness import Draws
from tests.fakes import random_images

NORMS = sorted(BUDGETS)


def _distance(norm: str, change: torch.Tensor) -> torch.Tensor:
    order = {"linf": torch.inf, "l2": 2}[norm]
    length: torch.Tensor = torch.linalg.vector_norm(change.double().flatten(1), ord=order, dim=1)
    return length


@pytest.mark.parametrize("norm", NORMS)
@given(epsilon=st.floats(0, 2), seed=st.integers(0, 1000), reach=st.floats(0.01, 5))
@settings(max_examples=40, deadline=None)
def test_random_points_and_projections_are_inside(norm: str, epsilon: float, seed: int, reach: float) -> None:
    budget: Ball = BUDGETS[norm](epsilon)
    clean = random_images(4, seed=seed)
    draws = Draws.of(seed, ["a", "b", "c", "d"])
    far = clean + reach * torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed))
    for images in (budget.random_point(clean, draws, "s"), budget.project(far, clean)):
        assert images.min() >= 0
        assert images.max() <= 1
        assert bool((_distance(norm, images - clean) <= epsilon + TOLERANCE).all())
        assert bool((budget.excess(images, clean) <= TOLERANCE).all())


@pytest.mark.parametrize("norm", NORMS)
def test_projection_keeps_what_is_inside(norm: str) -> None:
    clean = random_images(4, low=0.4, high=0.6)
    near = clean + 1e-4 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(BUDGETS[norm](0.1).project(near, clean), near, atol=1e-7)


@pytest.mark.parametrize("norm", NORMS)
def test_excess_is_how_far_an_image_is_out(norm: str) -> None:
    clean = torch.full((1, 3, 4, 4), 0.5)
    budget = BUDGETS[norm](0.1)
    outside = clean.clone()
    outside[0, 0, 0, 0] += 0.3
    assert float(budget.excess(outside, clean)) == pytest.approx(0.2, abs=1e-6)
    outside[0, 0, 0, 0] = 1.25
    assert float(BUDGETS[norm](2.0).excess(outside, clean)) == pytest.approx(0.25, abs=1e-6)


@pytest.mark.parametrize("norm", NORMS)
def test_a_step_is_as_long_as_it_says_and_climbs(norm: str) -> None:
    clean, gradient = random_images(4), torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    change = BUDGETS[norm](0.1).step(clean, gradient, 0.03) - clean
    assert torch.allclose(_distance(norm, change), torch.tensor(0.03, dtype=torch.float64), atol=1e-6)
    # No direction of this length climbs a linear function faster (Hoelder): the dual norm says how far.
    dual = {"linf": 1, "l2": 2}[norm]
    climbed = (change * gradient).flatten(1).sum(dim=1)
    assert torch.allclose(climbed, 0.03 * torch.linalg.vector_norm(gradient.flatten(1), ord=dual, dim=1), rtol=1e-4)


@pytest.mark.parametrize("norm", NORMS)
def test_radius_zero_is_the_clean_image(norm: str) -> None:
    clean, draws = random_images(3), Draws.of(0, ["a", "b", "c"])
    budget = BUDGETS[norm](0.0)
    assert torch.equal(budget.random_point(clean, draws, "s"), clean)
    assert torch.equal(budget.project(clean + 0.3, clean), clean)


def test_a_zero_gradient_moves_nothing_and_makes_no_nan() -> None:
    clean = random_images(2)
    for budget in (LinfBall(0.1), L2Ball(0.1)):
        assert torch.equal(budget.step(clean, torch.zeros_like(clean), 0.1), clean)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("epsilon", [-0.1, float("nan"), float("inf")])
def test_a_radius_must_be_finite_and_not_negative(norm: str, epsilon: float) -> None:
    with pytest.raises(BudgetError, match=rf"`epsilon` is {epsilon}; expected a finite radius of at least 0"):
        BUDGETS[norm](epsilon)


def test_projections_are_inside_at_the_size_of_imagenet_too() -> None:
    """Where a float32 sum of 150,528 squares is off by more than the tolerance."""
    clean = random_images(2, 224)
    far = clean + torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    for epsilon in (0.5, 3.0):
        assert float(L2Ball(epsilon).excess(L2Ball(epsilon).project(far, clean), clean).max()) <= TOLERANCE


# --- patches


@pytest.mark.parametrize(
    ("area", "patches", "height", "width", "side"),
    [
        (1 / 10, 4, 224, 224, 35),  # Bai et al.: four squares of 2.5 %
        (1 / 10, 4, 64, 64, 10),
        (1 / 10, 1, 10, 10, 3),
        (0.3, 1, 3, 10, 3),  # 0.3 * 30 is less than 9 in floats
        (1.0, 1, 8, 8, 8),
        (0.0, 4, 8, 8, 0),
    ],
)
def test_squares_are_as_large_as_their_share_of_the_area(
    area: float, patches: int, height: int, width: int, side: int
) -> None:
    budget = PatchArea(area, patches)
    assert budget.side(height, width) == side
    assert patches * side**2 <= area * height * width + 1e-9
    assert (side + 1) ** 2 * patches > area * height * width or side == min(height, width)


def test_changed_pixels_are_counted_whatever_they_look_like() -> None:
    clean = random_images(3, 10, low=0.1, high=0.9)
    budget = PatchArea(0.05, 2)
    images = clean.clone()
    images[0, 0, :, 0] += 1e-6  # ten pixels, in one channel, hardly
    images[1, :, 2:4, 2:4] = 0.0
    images[1, 1, 9, 9] = 1.0
    assert budget.glance(images, clean)[:2].tolist() == [5, 0]
    assert budget.glance(images, clean)[2] < 0
    assert [changed_share(*pair) for pair in zip(images, clean, strict=True)] == [0.1, 0.05, 0]
    images[1, 0, 2, 2] = 1.25
    assert budget.glance(images, clean)[:2].tolist() == [5, 0.25]
    images[1, 0, 2, 2] = torch.nan
    assert not bool(budget.glance(images, clean)[1] <= TOLERANCE)
    assert not bool(budget.excess(images, clean)[1] <= TOLERANCE)


def test_what_changed_must_fit_into_the_squares() -> None:
    """Four squares of 10 pixels and four of 1 pixel fit, five of 9 pixels do not, though their area does."""
    clean, budget = random_images(5, 64, low=0.1, high=0.9), PatchArea(0.1, 4)
    images = clean.clone()
    for row, side in ((0, 10), (1, 9), (2, 1), (3, 10)):
        for corner in (0, 14, 28, 42):
            images[row, :, corner : corner + side, corner : corner + side] = 1.0
    images[1, :, 55:64, 0:9] = 1.0
    images[3, :, 63, 0] = 1.0
    assert bool((budget.glance(images, clean) <= 0).all())
    assert budget.excess(images, clean)[[1, 3]].tolist() == [1, 1]
    assert bool((budget.excess(images, clean)[[0, 2, 4]] <= 0).all())
    images[3, :, 40:60, 0:10] = 1.0
    assert budget.excess(images, clean)[3] == budget.glance(images, clean)[3] == 601 - 409


@pytest.mark.parametrize("norm", NORMS)
def test_a_glance_at_a_ball_is_all_there_is_to_see(norm: str) -> None:
    clean = random_images(4)
    images = clean + 0.2 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(BUDGETS[norm](0.1).glance(images, clean), BUDGETS[norm](0.1).excess(images, clean))


@pytest.mark.parametrize(
    ("area", "patches", "message"),
    [
        (-0.1, 1, "PatchArea: `area` is -0.1; expected a share from 0 to 1."),
        (1.1, 1, "PatchArea: `area` is 1.1; expected a share from 0 to 1."),
        (float("nan"), 1, "PatchArea: `area` is nan; expected a share from 0 to 1."),
        (0.1, 0, "PatchArea: `patches` is 0; expected at least 1."),
    ],
)
def test_an_area_must_be_a_share(area: float, patches: int, message: str) -> None:
    with pytest.raises(BudgetError) as caught:
        PatchArea(area, patches)
    assert str(caught.value) == message


@pytest.mark.parametrize(("area", "height", "width", "side"), [(0.01, 8, 8, 0), (1.0, 4, 16, 8)])
def test_squares_that_do_not_fit_are_refused(area: float, height: int, width: int, side: int) -> None:
    with pytest.raises(BudgetError) as caught:
        PatchArea(area).side(height, width)
    found = f"1 squares of {side} x {side} pixels in images of {height} x {width}"
    advice = "Choose another area, or fewer patches."
    assert str(caught.value) == f"PatchArea: `area` is {found}; expected squares that fit. {advice}"
