"""One sweep over memory says what torch's several say, bit by bit, and stands back where it would not."""

import os
import pickle
from collections.abc import Callable
from typing import Any, NoReturn

import numba
import pytest
import torch
from torch import Tensor

from robench import compiled
from robench.arrays import choose
from robench.attacks.drive import steepest_of
from robench.attacks.interface import Answer, Examples
from robench.attacks.square import Square
from robench.budgets import LinfBall, PatchArea, advance, advance_with_momentum
from robench.randomness import Draws

SHAPE = (7, 3, 9, 11)
BALL = LinfBall(0.05)

if os.environ.get("NUMBA_DISABLE_JIT", "0") != "0":
    pytest.skip("numba is switched off", allow_module_level=True)


@pytest.fixture(autouse=True)
def _few_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: compiled.MOST_THREADS)


def _images(shape: tuple[int, ...] = SHAPE) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images and others that leave the ball and [0, 1] here and there, a gradient, and the clean images."""
    generator = torch.Generator().manual_seed(0)
    clean = torch.rand(shape, generator=generator)
    clean[:1] = 0.0
    clean[1:2] = 1.0
    images, origin = (clean + 0.04 * torch.randn(shape, generator=generator) for _ in range(2))
    gradient = torch.randn(shape, generator=generator)
    gradient[2:3] = 0.0
    return images, origin, gradient, clean


def _same(one: Tensor, other: Tensor) -> bool:
    """The same bits, but for those of NaN."""
    bits = (torch.where(each.isnan(), 0.0, each).view(torch.int32) for each in (one, other))
    return torch.equal(*bits) and torch.equal(one.isnan(), other.isnan())


def _by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "_compiled", lambda body: None)


def _both(what: Callable[[], list[Tensor]], monkeypatch: pytest.MonkeyPatch) -> tuple[list[Tensor], list[Tensor]]:
    """What comes of it compiled, and by torch; compiled loops are used at least once."""
    used = []

    def watched(body: Any, real: Any = compiled._compiled) -> Any:
        used.append(real(body))
        return used[-1]

    monkeypatch.setattr(compiled, "_compiled", watched)
    swept = what()
    assert used
    assert None not in used
    _by_torch(monkeypatch)
    return swept, what()


@pytest.mark.parametrize("broken", [None, torch.nan, torch.inf, -torch.inf, 1.5, -0.5, -0.0])
def test_the_ball_does_what_it_does_by_torch(broken: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    images, origin, gradient, clean = _images()
    gradient[3, 0, 0, :3] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    if broken is not None:
        images[4, 1, 2, 3] = broken
    images[5], images[6] = -images[5].abs() - 0.1, images[6].abs() + 1.1
    sizes = torch.linspace(0, 0.1, len(images))[:, None, None, None]
    weights = torch.where(torch.arange(len(images)) % 3 == 0, 1.0, 0.75)[:, None, None, None]

    def all_of_it() -> list[Tensor]:
        return [
            advance(BALL, images, gradient, 0.01, clean),
            advance(BALL, images, gradient, sizes, clean),
            advance_with_momentum(BALL, images, origin, gradient, sizes, weights, clean),
            BALL.excess(images, clean),
            steepest_of(gradient),
        ]

    swept, by_torch = _both(all_of_it, monkeypatch)
    assert all(_same(one, other) for one, other in zip(swept, by_torch, strict=True))
    assert bool(swept[4][3].isnan())
    assert bool((swept[0][:4] != images[:4]).any())


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (1, 1, 1, 1), (2, 1, 5, 3), (3, 4, 2, 2)])
def test_images_of_any_shape(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    images, origin, gradient, clean = _images(shape)
    sizes = torch.full((len(images), 1, 1, 1), 0.01)

    def all_of_it() -> list[Tensor]:
        moved = advance_with_momentum(BALL, images, origin, gradient, sizes, 75 * sizes, clean)
        return [advance(BALL, images, gradient, 0.01, clean), moved, BALL.excess(images, clean)]

    swept, by_torch = _both(all_of_it, monkeypatch)
    assert all(_same(one, other) for one, other in zip(swept, by_torch, strict=True))


@pytest.mark.parametrize("origins", [1, 7])
def test_changed_pixels_are_counted_as_by_torch(origins: int, monkeypatch: pytest.MonkeyPatch) -> None:
    budget = PatchArea(0.1, 2)
    clean = _images()[3]
    clean = clean[:1].expand_as(clean).contiguous() if origins == 1 else clean
    images = clean.clone()
    images[1, 2, 3, 4] += 1e-7
    images[2, :, 1:4, 1:4] = 0.5
    images[3, 0], images[4, 1, 0, 0], images[5, 1, 0, 0], images[6, 2, 8, 10] = 0.75, torch.nan, -0.25, 1.25
    (swept,), (by_torch,) = _both(lambda: [budget.glance(images, clean[:origins])], monkeypatch)
    assert _same(swept, by_torch)
    assert len(set(swept.tolist())) >= 4


@pytest.mark.parametrize("chosen", [[2], [0, 3, 6]])
def test_rows_are_chosen_as_by_torch(chosen: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    images, origin, _, _ = _images()
    rows = torch.zeros(len(images), dtype=torch.bool)
    rows[chosen] = True
    (swept,), (by_torch,) = _both(lambda: [choose(rows, images, origin)], monkeypatch)
    assert _same(swept, by_torch)
    assert _same(swept, torch.where(rows[:, None, None, None], images, origin))


def test_any_rows_can_be_chosen_of_anything() -> None:
    columns = torch.tensor([[True, False], [False, True], [True, True]])
    values = torch.arange(3.0)
    assert choose(columns[:, 0], values, -values).tolist() == [0, -1, 2]
    assert choose(columns[:, 1], values[:, None], -values[:, None])[:, 0].tolist() == [0, 1, 2]


@pytest.mark.parametrize("p_init", [1e-3, 0.1, 1.0])
def test_square_asks_for_the_same_images_as_by_torch(p_init: float, monkeypatch: pytest.MonkeyPatch) -> None:
    clean = _images()[3]
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

    swept, by_torch = _both(asked, monkeypatch)
    assert all(_same(one, other) for one, other in zip(swept, by_torch, strict=True))
    assert not torch.equal(swept[-1], swept[-2])


@pytest.mark.parametrize("step", [0, 2**31 - 1, torch.arange(5) * 1000])
@pytest.mark.parametrize("count", [1, 4, 7, 4096])
def test_draws_are_the_bits_they_are_by_torch(count: int, step: int | Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    draws = Draws.of(3, [f"{row}" for row in range(5)])
    (swept,), (by_torch,) = _both(lambda: [draws.bits("stream", count, step=step)], monkeypatch)
    assert torch.equal(swept, by_torch)
    assert int(swept.min()) >= 0
    assert int(swept.max()) < 2**32


# --- what is left to torch


def test_what_is_not_swept_is_done_by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    images, _, gradient, clean = _images()
    swept = advance(BALL, images, gradient, 0.01, clean)
    assert compiled.extremes(images, clean) is not None
    for refused in (images.double(), images.to(memory_format=torch.channels_last), images[:1]):
        assert compiled.extremes(refused, clean) is None
    assert compiled.changed(images, clean[:, :, :1, :1].contiguous()) is None
    assert compiled.changed(images, clean[:2]) is None
    assert torch.allclose(advance(BALL, images.double(), gradient.double(), 0.01, clean.double()).float(), swept)
    many = compiled.MOST_THREADS + 1
    monkeypatch.setattr(torch, "get_num_threads", lambda: many)
    assert compiled.extremes(images, clean) is None
    assert _same(advance(BALL, images, gradient, 0.01, clean), swept)


def test_gradients_are_not_lost() -> None:
    images, _, _, clean = _images()
    images.requires_grad_()
    assert BALL.excess(images, clean).requires_grad
    assert choose(torch.arange(len(images)) < 2, images, clean).requires_grad
    with torch.no_grad():
        assert compiled.extremes(images, clean) is not None


def test_a_ball_that_projects_in_its_own_way_does() -> None:
    class Own(LinfBall):
        def project(self, images: Tensor, clean: Tensor) -> Tensor:
            return super().project(images, clean).mean(dim=1, keepdim=True).repeat(1, 3, 1, 1)

    images, origin, gradient, clean = _images()
    ball, sizes = Own(0.05), torch.full((len(images), 1, 1, 1), 0.01)
    assert torch.equal(
        advance(ball, images, gradient, 0.01, clean), ball.project(ball.step(images, gradient, 0.01), clean)
    )
    pulled = advance_with_momentum(ball, images, origin, gradient, sizes, 75 * sizes, clean)
    assert torch.equal(pulled[:, 0], pulled[:, 1])


@pytest.mark.parametrize("kind", [torch.float64, torch.float16, torch.bfloat16])
def test_the_default_kind_of_number_changes_nothing(kind: torch.dtype) -> None:
    images, _, gradient, clean = _images()
    draws = Draws.of(0, ["a", "b"])
    before = [BALL.excess(images, clean), steepest_of(gradient), PatchArea(0.1).glance(images, clean)]
    words = draws.bits("s", 10)
    torch.set_default_dtype(kind)
    try:
        after = [BALL.excess(images, clean), steepest_of(gradient), PatchArea(0.1).glance(images, clean)]
        assert torch.equal(draws.bits("s", 10), words)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(_same(one, other) for one, other in zip(before, after, strict=True))


def test_the_default_device_changes_nothing() -> None:
    images, _, gradient, clean = _images()
    with torch.device("meta"):
        found = BALL.excess(images, clean), steepest_of(gradient), Draws.of(0, ["a"], "cpu").bits("s", 5)
    assert {each.device.type for each in found} == {"cpu"}


def test_a_size_for_each_image_is_one_for_each() -> None:
    images, _, gradient, clean = _images()
    with pytest.raises(ValueError, match="broadcast"):
        compiled.advance(images, gradient, torch.zeros(3, 1, 1, 1), clean, 0.1)


def _failing(failure: Exception) -> Callable[..., NoReturn]:
    def fail(*arguments: Any, **options: Any) -> NoReturn:
        raise failure

    return fail


def _forgetful(*arguments: Any, **options: Any) -> Callable[[Any], Callable[..., None]]:
    """What numba kept of another version: a loop that does nothing."""
    return lambda body: lambda *arrays: None


@pytest.mark.parametrize(
    "njit",
    [
        _failing(OSError("no space left")),
        _failing(RuntimeError("no locator available")),
        _failing(pickle.UnpicklingError("pickle data was truncated")),
        _failing(ImportError("Numba needs NumPy 2.3 or less")),
        _forgetful,
    ],
)
def test_torch_does_it_where_nothing_compiled_can_be_had(njit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    images, _, gradient, clean = _images()
    swept = advance(BALL, images, gradient, 0.01, clean)
    monkeypatch.setattr(numba, "njit", njit)
    compiled._compiled.cache_clear()
    try:
        assert compiled.extremes(images, clean) is None
        assert _same(advance(BALL, images, gradient, 0.01, clean), swept)
    finally:
        compiled._compiled.cache_clear()


def test_every_loop_is_held_to_itself() -> None:
    assert all(compiled._compiled(body) is not None for body in compiled._LOOPS)
