import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robench.budgets import BUDGETS
from robench.protocol import fraction
from robench.training.adversary import BatchDraws, adversarial_images, strength_at
from robench.training.recipe import AdversaryRecipe
from robench.training.watching import probe
from tests.fakes import random_images, two_class_linear

RECIPES = {
    "linf": AdversaryRecipe(norm="linf", epsilon="8/255", step_size="3/255", steps=4),
    "l2": AdversaryRecipe(norm="l2", epsilon="1/2", step_size="1/5", steps=4),
}


@pytest.mark.parametrize(
    ("clean_epochs", "warmup_epochs", "expected"),
    [
        (0, 0, [1, 1, 1, 1, 1, 1]),
        (0, 2, [0, 0.25, 0.5, 0.75, 1, 1]),
        (1, 0, [0, 0, 1, 1, 1, 1]),
        (1, 1, [0, 0, 0, 0.5, 1, 1]),
        (2, 2, [0, 0, 0, 0, 0, 0.25]),
    ],
)
def test_the_attack_begins_late_and_grows(clean_epochs: int, warmup_epochs: int, expected: list[float]) -> None:
    recipe = RECIPES["linf"].model_copy(update={"clean_epochs": clean_epochs, "warmup_epochs": warmup_epochs})
    assert [strength_at(recipe, update, steps_per_epoch=2) for update in range(6)] == expected


def _net() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Flatten(),
            nn.Linear(8 * 64, 4),
        )


def _batch(count: int = 24) -> tuple[Tensor, Tensor]:
    return random_images(count), torch.arange(count) % 4


def _starts(count: int, seed: int = 0) -> BatchDraws:
    return BatchDraws(torch.Generator().manual_seed(seed), count)


def _attack(model: nn.Module, recipe: AdversaryRecipe, *, seed: int = 0, strength: float = 1.0) -> Tensor:
    images, labels = _batch()
    return adversarial_images(model, images, labels, recipe, starts=_starts(len(images), seed), strength=strength)


def _loss(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    with torch.no_grad():
        return F.cross_entropy(model(images), labels, reduction="none")


def _distance(norm: str, changed: Tensor, images: Tensor) -> Tensor:
    flat = (changed - images).flatten(1).double()
    return flat.abs().amax(dim=1) if norm == "linf" else (flat**2).sum(dim=1).sqrt()


@pytest.mark.parametrize("strength", [1.0, 0.3])
@pytest.mark.parametrize("norm", RECIPES)
def test_images_stay_in_the_budget_and_reach_its_edge(norm: str, strength: float) -> None:
    recipe = RECIPES[norm]
    images, _ = _batch()
    found = _attack(_net(), recipe, strength=strength)
    radius = float(fraction(recipe.epsilon)) * strength
    distance = _distance(norm, found, images)
    assert found.shape == images.shape
    assert found.dtype == torch.float32
    assert not found.requires_grad
    assert distance.max() <= radius + 1e-6
    assert distance.min() > 0.5 * radius
    assert found.min() >= 0
    assert found.max() <= 1


@pytest.mark.parametrize("norm", RECIPES)
def test_the_loss_rises_far_more_than_under_noise(norm: str) -> None:
    recipe, model, (images, labels) = RECIPES[norm], _net().eval(), _batch()
    budget = BUDGETS[norm](float(fraction(recipe.epsilon)))
    draws = BatchDraws(torch.Generator().manual_seed(1), len(images))
    noisy = budget.project(budget.random_point(images, draws, "noise"), images)
    clean, noise = _loss(model, images, labels), _loss(model, noisy, labels)
    attacked = _loss(model, _attack(model, recipe), labels)
    assert bool((attacked > clean).all())
    assert bool((attacked > noise).all())
    assert (attacked - clean).mean() > 5 * (noise - clean).abs().mean()


@pytest.mark.parametrize("norm", RECIPES)
def test_a_linear_models_worst_case_is_reached(norm: str) -> None:
    # Away from 0 and 1 the worst a budget can do to w . x is epsilon times the dual norm of w.
    recipe = RECIPES[norm].model_copy(update={"epsilon": "4/255", "step_size": "4/255", "steps": 20})
    model, images, labels = two_class_linear(8), random_images(10, low=0.2, high=0.8), torch.arange(10) % 2
    found = adversarial_images(model, images, labels, recipe, starts=_starts(len(images)))
    weight = (model.weight[0] - model.weight[1]).detach().double()
    slope = float(weight.abs().sum() if norm == "linf" else (weight**2).sum().sqrt())
    with torch.no_grad():
        change = model(found) - model(images)
    fall = (change[:, 1] - change[:, 0]) * (1 - 2 * labels)
    assert fall.numpy() == pytest.approx(slope * 4 / 255, rel=1e-3)


def test_strength_zero_leaves_the_images() -> None:
    assert torch.equal(_attack(_net(), RECIPES["linf"], strength=0), _batch()[0])


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(training: bool) -> None:
    model = _net().train(training)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random_state = torch.get_rng_state()
    _attack(model, RECIPES["linf"])
    assert all(part.training is training for part in model.modules())
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), random_state)


def test_parts_in_another_mode_keep_it() -> None:
    model = _net().train()
    model[1].eval()  # frozen batch normalisation
    _attack(model, RECIPES["linf"])
    assert [part.training for part in model] == [True, False, True, True, True, True]
    assert model.training


def test_a_failing_model_is_left_in_its_mode_too() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(7, 2)).train()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        _attack(model, RECIPES["linf"])
    assert all(part.training for part in model.modules())


def test_the_model_is_attacked_in_eval_mode() -> None:
    modes: list[bool] = []
    model = _net().train()
    model[3].register_forward_hook(lambda part, inputs, output: modes.append(part.training))
    _attack(model, RECIPES["linf"])
    assert modes == [False] * RECIPES["linf"].steps


def test_the_callers_images_are_left_as_they_were() -> None:
    images, labels = _batch()
    before = images.clone()
    adversarial_images(_net(), images, labels, RECIPES["linf"], starts=_starts(len(images)))
    assert torch.equal(images, before)
    assert not images.requires_grad


def test_the_same_generator_gives_the_same_images_and_another_one_others() -> None:
    model = _net()
    assert torch.equal(_attack(model, RECIPES["linf"], seed=1), _attack(model, RECIPES["linf"], seed=1))
    assert not torch.equal(_attack(model, RECIPES["linf"], seed=1), _attack(model, RECIPES["linf"], seed=2))


def test_draws_of_a_batch_have_their_shape_and_go_on() -> None:
    draws = BatchDraws(torch.Generator().manual_seed(0), 1000)
    first, second = draws.uniform("a", (3, 2)), draws.uniform("a", (3, 2))
    assert first.shape == draws.normal("a", (3, 2)).shape == (1000, 3, 2)
    assert not torch.equal(first, second)
    assert first.min() >= 0
    assert first.max() < 1
    assert float(draws.normal("a", (9,)).std()) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("norm", RECIPES)
def test_the_probe_keeps_the_budget_and_walks_two_and_a_half_radii(norm: str) -> None:
    watched = probe(RECIPES[norm], 10)
    assert (watched.norm, watched.epsilon, watched.steps) == (norm, RECIPES[norm].epsilon, 10)
    assert fraction(watched.step_size) * 10 == fraction(watched.epsilon) * 5 / 2
    assert norm in BUDGETS


def _moved(recipe: AdversaryRecipe, count: int, seed: int) -> Tensor:
    """Which examples started away from their clean image; the one step is too short to matter."""
    images, labels = random_images(count, low=0.3, high=0.7), torch.arange(count) % 2
    still = recipe.model_copy(update={"step_size": "1/100000000", "steps": 1})
    found = adversarial_images(two_class_linear(8), images, labels, still, starts=_starts(count, seed))
    return (found - images).abs().amax(dim=(1, 2, 3)) > 1e-5


def test_an_example_starts_at_its_clean_image_as_often_as_the_recipe_says() -> None:
    recipe = RECIPES["linf"]
    assert bool(_moved(recipe, 100, seed=0).all())
    moved = _moved(recipe.model_copy(update={"start_from_clean": 0.25}), 2000, seed=0)
    assert float(moved.float().mean()) == pytest.approx(0.75, abs=0.04)
    assert not _moved(recipe.model_copy(update={"start_from_clean": 1.0}), 100, seed=0).any()


@pytest.mark.parametrize(("threshold", "share"), [(0.0, 0.5), (0.2, 0.4207)])
def test_the_published_coin_decides_for_the_whole_batch(threshold: float, share: float) -> None:
    recipe = RECIPES["linf"].model_copy(update={"start": "normal-coin", "start_from_clean": threshold})
    batches = [_moved(recipe, 4, seed=seed) for seed in range(600)]
    assert all(bool(batch.all()) or not bool(batch.any()) for batch in batches)
    found = sum(bool(batch.all()) for batch in batches) / len(batches)
    assert found == pytest.approx(share, abs=0.06)  # three standard deviations


def test_the_probe_always_starts_at_random_points() -> None:
    watched = probe(RECIPES["linf"].model_copy(update={"start": "normal-coin", "start_from_clean": 0.9}), 10)
    assert (watched.start, watched.start_from_clean) == ("uniform", 0.0)
