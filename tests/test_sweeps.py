"""One sweep over memory says what torch's several say: value by value, NaN included."""

from typing import Any, NoReturn

import numba
import pytest
import torch
from torch import Tensor

from robench import sweeps
from robench.arrays import choose
from robench.attacks.drive import steepest_of
from robench.attacks.interface import Answer, Examples
from robench.attacks.square import Square
from robench.budgets import LinfBall, PatchArea
from robench.randomness import Draws

SHAPE = (7, 3, 9, 11)
BALL = LinfBall(0.05)


def _images() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Clean images, two around them that leave the ball and [0, 1] here and there, and a gradient."""
    generator = torch.Generator().manual_seed(0)
    clean = torch.rand(SHAPE, generator=generator)
    clean[0] = 0.0
    clean[1] = 1.0
    images, origin = (clean + 0.04 * torch.randn(SHAPE, generator=generator) for _ in range(2))
    gradient = torch.randn(SHAPE, generator=generator)
    gradient[2] = 0.0
    gradient[3, 0, 0, :3] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    return images, origin, gradient, clean


def _same(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.nan_to_num(99.0), other.nan_to_num(99.0))


def _by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeps, "usable", lambda *images: False)


@pytest.mark.parametrize("broken", [None, torch.nan, torch.inf, -torch.inf, 1.5, -0.5])
def test_the_ball_does_what_it_does_by_torch(broken: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    images, origin, gradient, clean = _images()
    if broken is not None:
        images[4, 1, 2, 3] = broken
    images[5], images[6] = -images[5].abs() - 0.1, images[6].abs() + 1.1
    sizes = torch.linspace(0, 0.1, len(images))[:, None, None, None]
    weights = torch.where(torch.arange(len(images)) % 3 == 0, 1.0, 0.75)[:, None, None, None]

    def all_of_it() -> list[Tensor]:
        return [
            BALL.advance(images, gradient, 0.01, clean),
            BALL.advance(images, gradient, sizes, clean),
            BALL.advance_with_momentum(images, origin, gradient, sizes, weights, clean),
            BALL.excess(images, clean),
            steepest_of(gradient),
        ]

    assert sweeps.usable(images, origin, gradient, clean)
    swept = all_of_it()
    _by_torch(monkeypatch)
    assert all(_same(one, other) for one, other in zip(swept, all_of_it(), strict=True))
    assert bool(swept[4][3].isnan())
    assert bool((swept[0][:4] != images[:4]).any())


@pytest.mark.parametrize("origins", [1, 7])
def test_changed_pixels_are_counted_as_by_torch(origins: int, monkeypatch: pytest.MonkeyPatch) -> None:
    budget = PatchArea(0.1, 2)
    _, _, _, clean = _images()
    clean = clean[:1].expand_as(clean).contiguous() if origins == 1 else clean
    images = clean.clone()
    images[1, 2, 3, 4] += 1e-7
    images[2, :, 1:4, 1:4] = 0.5
    images[3, 0], images[4, 1, 0, 0], images[5, 1, 0, 0], images[6, 2, 8, 10] = 0.75, torch.nan, -0.25, 1.25
    swept = budget.glance(images, clean[:origins])
    _by_torch(monkeypatch)
    assert _same(budget.glance(images, clean[:origins]), swept)
    assert len(set(swept.tolist())) >= 4


@pytest.mark.parametrize("chosen", [[], [2], [0, 3, 6], list(range(7))])
def test_rows_are_chosen_as_by_torch(chosen: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    images, origin, _, _ = _images()
    rows = torch.zeros(len(images), dtype=torch.bool)
    rows[chosen] = True
    swept = choose(rows, images, origin)
    assert torch.equal(swept, torch.where(rows[:, None, None, None], images, origin))
    _by_torch(monkeypatch)
    assert torch.equal(choose(rows, images, origin), swept)


@pytest.mark.parametrize("p_init", [1e-3, 0.1, 1.0])
def test_square_asks_for_the_same_images_as_by_torch(p_init: float, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, _, clean = _images()
    labels = torch.arange(len(clean)) % 3
    examples = Examples(clean, labels, torch.zeros(len(clean), 3))
    draws = Draws.of(0, [f"{row}" for row in range(len(clean))])
    attack = Square(queries=40, p_init=p_init)

    def asked() -> list[Tensor]:
        state, seen = attack.start(examples, BALL, draws), []
        for query in range(20):  # the side of the square changes at the tenth
            seen.append(attack.ask(state).render(slice(None)))
            logits = torch.randn(len(clean), 3, generator=torch.Generator().manual_seed(query))
            logits[0] = torch.tensor([9.0 + query, 0, 0])  # never better
            state = attack.tell(state, Answer(logits, None, None))
        return seen

    swept = asked()
    _by_torch(monkeypatch)
    assert all(torch.equal(one, other) for one, other in zip(swept, asked(), strict=True))
    assert not torch.equal(swept[-1], swept[-2])


@pytest.mark.parametrize("step", [0, 2**31 - 1, torch.arange(5) * 1000])
@pytest.mark.parametrize("count", [1, 4, 7, 4096])
def test_draws_are_the_bits_they_are_by_torch(count: int, step: int | Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    draws = Draws.of(3, [f"{row}" for row in range(5)])
    swept = draws.bits("stream", count, step=step)
    monkeypatch.setattr(sweeps, "philox", lambda *arguments: None)
    assert torch.equal(draws.bits("stream", count, step=step), swept)
    assert int(swept.min()) >= 0
    assert int(swept.max()) < 2**32


def test_what_is_not_swept_is_done_by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    images, _, gradient, clean = _images()
    assert not sweeps.usable(images.double(), clean.double())
    assert not sweeps.usable(images.to(memory_format=torch.channels_last), clean)
    assert not sweeps.usable(images, clean[:1])
    swept = BALL.advance(images, gradient, 0.01, clean)
    many = sweeps.MOST_THREADS + 1
    monkeypatch.setattr(torch, "get_num_threads", lambda: many)
    assert not sweeps.usable(images, clean)
    assert _same(BALL.advance(images, gradient, 0.01, clean), swept)
    assert torch.allclose(BALL.advance(images.double(), gradient.double(), 0.01, clean.double()).float(), swept)


def test_a_size_for_each_image_is_one_for_each() -> None:
    images, _, gradient, clean = _images()
    with pytest.raises(ValueError, match="broadcast"):
        sweeps.advance(images, gradient, torch.zeros(3, 1, 1, 1), clean, 0.1)


@pytest.mark.parametrize("failure", [OSError("no space left"), RuntimeError("no locator available")])
def test_torch_does_it_where_nothing_compiled_can_be_kept(failure: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> NoReturn:
        raise failure

    images, _, gradient, clean = _images()
    swept = BALL.advance(images, gradient, 0.01, clean)
    monkeypatch.setattr(numba, "njit", refuse)
    sweeps._compiled.cache_clear()
    try:
        assert not sweeps.usable(images, clean)
        assert _same(BALL.advance(images, gradient, 0.01, clean), swept)
    finally:
        sweeps._compiled.cache_clear()
