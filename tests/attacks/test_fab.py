import pytest
import torch
from pyautoattack.fab_pt import FABAttack_PT
from scipy.optimize import minimize

from robench import arrays
from robench.attacks.drive import Example, Stage, drive
from robench.attacks.fab import FAB, to_hyperplane
from robench.attacks.interface import Answer, Examples
from robench.budgets import BUDGETS, L2Ball, LinfBall
from robench.classifier import Classifier
from robench.data.mini import attack_set
from robench.errors import ProtocolError
from robench.randomness import Draws
from robench.zoo import load_model


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 3 / 255), ("linf", 5 / 255), ("l2", 0.6)])
def test_verdicts_are_the_references(norm: str, epsilon: float) -> None:
    """Neither draws random numbers; the reference goes on where this one stops."""
    pixels, classes = attack_set()
    images, labels = torch.from_numpy(pixels[:24]).float() / 255, torch.from_numpy(classes[:24])
    model = load_model("mini-resnet-gelu-adv").requires_grad_(False)
    settings = {"norm": {"linf": "Linf", "l2": "L2"}[norm], "eps": epsilon, "n_iter": 12, "n_target_classes": 2}
    reference = FABAttack_PT(model, n_restarts=1, targeted=True, seed=0, device="cpu", **settings)
    with torch.random.fork_rng(devices=[]):
        attacked = reference.perturb(images, labels)
    with torch.no_grad():
        expected = model(attacked).argmax(dim=1) == labels
    source = [Example(row, f"{row}", int(labels[row]), image) for row, image in enumerate(images)]
    stream = drive([Stage(FAB(steps=12, targets=2))], Classifier(model), source, budget=BUDGETS[norm](epsilon))
    found = torch.zeros(len(images), dtype=torch.bool)
    for finished in stream:
        found[finished.index] = finished.clean_prediction == finished.label and not finished.fooled_at
    assert 0 < int(expected.sum()) < len(images)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_going_part_by_part_moves_no_bit(norm: str, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator, before = torch.Generator().manual_seed(0), torch.get_num_threads()
    images, slope = (torch.rand(75, 3, 32, 32, generator=generator) for _ in range(2))
    examples = Examples(images, torch.zeros(75, dtype=torch.int64), torch.randn(75, 10, generator=generator))
    answer = Answer(examples.logits, torch.randn(75, generator=generator), slope - 0.5)
    points = []
    torch.set_num_threads(threads)
    try:
        for together in (16, 75):
            monkeypatch.setattr(arrays, "TOGETHER", together)
            state = FAB().start(examples, BUDGETS[norm](0.5), Draws.of(0, [f"{row}" for row in range(75)]))
            points.append(FAB().tell(state, answer).point)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*points)
    assert not torch.equal(points[0], images)


def _scene(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(1, 3, 2, 2, generator=generator)
    normals = torch.randn(1, 3, 2, 2, generator=generator)
    corner = torch.where(normals > 0, 1.0, 0.0)  # the farthest point of the box
    share = torch.rand(1, generator=generator)
    level = ((points + share * (corner - points)) * normals).sum(dim=(1, 2, 3))
    return points, normals, level


@pytest.mark.parametrize("seed", range(5))
def test_the_change_reaches_the_plane_on_the_shortest_way(seed: int) -> None:
    points, normals, level = _scene(seed)
    for budget, order in ((LinfBall(1.0), float("inf")), (L2Ball(1.0), 2.0)):
        change = to_hyperplane(points, normals, level, budget)
        moved = points + change
        assert float(moved.min()) >= -1e-6
        assert float(moved.max()) <= 1 + 1e-6
        assert float(((moved * normals).sum() - level).abs()) < 1e-5
        bounds = [(-float(value), 1 - float(value)) for value in points.flatten()]
        flat, gap = normals.flatten().double(), float(level - (points * normals).sum())
        plane = {"type": "eq", "fun": lambda z, flat=flat, gap=gap: float(flat @ torch.tensor(z) - gap)}
        if order == 2.0:
            best = minimize(
                lambda z: float((z**2).sum()), change.flatten().double(), bounds=bounds, constraints=[plane]
            )
            assert float(change.norm()) <= best.fun**0.5 + 1e-4
        else:  # a shorter L-inf change would leave less room than the plane needs
            shorter = (float(change.abs().max()) - 1e-4) * torch.ones(12)
            room = torch.where(normals.flatten() * gap > 0, 1 - points.flatten(), points.flatten())
            assert float((normals.flatten().abs() * torch.minimum(shorter, room)).sum()) < abs(gap)


def test_a_plane_out_of_reach_is_approached_as_far_as_the_box_goes() -> None:
    points, normals = torch.full((1, 3, 2, 2), 0.25), torch.ones(1, 3, 2, 2)
    for budget in (LinfBall(1.0), L2Ball(1.0)):
        assert torch.allclose(to_hyperplane(points, normals, torch.tensor([100.0]), budget), torch.tensor(0.75))
        assert torch.allclose(to_hyperplane(points, normals, torch.tensor([-100.0]), budget), torch.tensor(-0.25))


def test_a_flat_or_broken_slope_moves_nothing_to_nowhere() -> None:
    points = torch.full((1, 3, 2, 2), 0.25)
    for budget in (LinfBall(1.0), L2Ball(1.0)):
        assert torch.equal(to_hyperplane(points, torch.zeros_like(points), torch.tensor([1.0]), budget), 0 * points)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, r"^FAB: `steps` is 0; expected at least 1\.$"),
        ({"targets": 0}, r"^FAB: `targets` is 0; expected at least 1\.$"),
        ({"alpha_max": 2.0}, r"^FAB: `alpha_max` is 2\.0; expected from 0 to 1\.$"),
        ({"eta": 0.5}, r"^FAB: `eta` is 0\.5; expected from 1 to 2\.$"),
        ({"beta": -1.0}, r"^FAB: `beta` is -1\.0; expected from 0 to 1\.$"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ProtocolError, match=message):
        FAB(**settings)  # type: ignore[arg-type]  # on purpose
