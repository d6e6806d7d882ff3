from pathlib import Path

import pytest
import torch
from torch import nn

from robench.data import ArraySource
from robench.evaluation import Options, evaluate
from robench.showcase import Showcase
from tests.fakes import random_images, small_net
from tests.test_evaluation import PROTOCOL

COUNT = 40
CASCADE = 'kind = "autoattack"\nversion = "standard"\nsteps = 5\ntargets = 2\nqueries = 20'


@pytest.fixture
def protocol(tmp_path: Path) -> Path:
    path = tmp_path / "own.toml"
    path.write_text(PROTOCOL.format(digest="0" * 64))
    return path


def _data(net: nn.Module) -> ArraySource:
    images = random_images(COUNT)
    with torch.no_grad():
        labels = net(images).argmax(dim=1)
    labels[:3] = (labels[:3] + 1) % 4  # some are wrong clean
    return ArraySource(images, labels, classes=4)


@pytest.mark.parametrize("scoring", ["any iterate", "last iterate"])
def test_exhibits_are_what_the_run_found(tmp_path: Path, protocol: Path, scoring: str) -> None:
    protocol.write_text(protocol.read_text().replace("[score]", f'[score]\nscoring = "{scoring}"'))
    net, showcase = small_net(), Showcase(broken=3, surviving=2)
    source = _data(net)
    options = Options(showcase=showcase, save_adversarial=tmp_path / "images")
    outcomes = evaluate(net, protocol, data=source, run_dir=tmp_path / "run", options=options).read_outcomes()
    right = [outcome for outcome in outcomes if outcome.clean_correct]
    broken = [outcome.id for outcome in right if not outcome.robust_at(8, scoring)][:3]
    surviving = [outcome.id for outcome in right if outcome.robust_at(8, scoring)][:2]
    assert [each.id for each in showcase.exhibits] == broken + surviving
    assert [each.broken for each in showcase.exhibits] == [True] * 3 + [False] * 2
    table = {outcome.id: outcome for outcome in outcomes}
    for each in showcase.exhibits:
        outcome = table[each.id]
        names = [f"class {label}" for label in (outcome.label, outcome.clean, outcome.attacked)]
        assert [each.truth, each.clean, each.attacked] == names
        with torch.no_grad():
            said = int(net(each.adversarial.expand(16, -1, -1, -1)).argmax(dim=1)[0])
        assert said == outcome.attacked
        assert (said != outcome.label) is each.broken
        change = float((each.adversarial - each.image).abs().max())
        assert 0 < change <= 4 / 255 + 1e-6


def test_of_a_survivor_the_last_iterate_is_shown(tmp_path: Path, protocol: Path) -> None:
    """One step of plain sign ascent from it is where the attack ends that takes one step more."""
    net, showcase = small_net(), Showcase(broken=0, surviving=40)
    source = _data(net)
    evaluate(net, protocol, data=source, run_dir=tmp_path / "run", options=Options(showcase=showcase))
    longer, other = Showcase(broken=0, surviving=40), tmp_path / "other.toml"
    other.write_text(protocol.read_text().replace("steps = 8", "steps = 9"))
    evaluate(net, other, data=source, run_dir=tmp_path / "other", options=Options(showcase=longer))
    ends = {each.id: each.adversarial for each in longer.exhibits}
    shared = [each for each in showcase.exhibits if each.id in ends]
    assert shared
    for each in shared:
        image = each.image[None]
        leaf = each.adversarial[None].clone().requires_grad_()
        label = torch.tensor([int(each.truth.split()[1])])
        (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(net(leaf), label), leaf)
        step = (leaf.detach() + gradient.sign() / 255).clamp(image - 4 / 255, image + 4 / 255).clamp(0, 1)
        close = ((step[0] - ends[each.id]).abs() < 1e-6).float().mean()  # a sign of nearly zero may differ
        assert close > 0.98


def test_of_a_cascade_the_last_stage_is_shown(tmp_path: Path, protocol: Path) -> None:
    """FAB looks at images outside the budget, too; only those inside are shown."""
    text = protocol.read_text().replace('kind = "pgd"\nstep_size = "1/255"\nsteps = 8', CASCADE)
    protocol.write_text(text.replace("steps = [2, 8]", ""))
    net, showcase = small_net(), Showcase()
    outcomes = evaluate(
        net, protocol, data=_data(net), limit=20, run_dir=tmp_path / "run", options=Options(showcase=showcase)
    ).read_outcomes()
    right = [outcome for outcome in outcomes if outcome.clean_correct]
    broken = [outcome.id for outcome in right if outcome.fooled_at][:4]
    surviving = [outcome.id for outcome in right if not outcome.fooled_at][:4]
    assert [each.id for each in showcase.exhibits] == broken + surviving
    assert surviving
    for each in showcase.exhibits:
        change = float((each.adversarial - each.image).abs().max())
        assert 0 < change <= 4 / 255 + 1e-6


def test_a_reused_run_shows_the_same_and_its_cost_is_kept(tmp_path: Path, protocol: Path) -> None:
    net, shown, costs = small_net(), [], set()
    for _ in range(2):
        showcase = Showcase()
        evaluate(net, protocol, data=_data(net), run_dir=tmp_path / "run", options=Options(showcase=showcase))
        shown.append(showcase.exhibits)
        costs.add((tmp_path / "run" / "cost.json").read_bytes())
    assert len(costs) == 1
    assert shown[0] == shown[1]
    assert all(torch.equal(a.adversarial, b.adversarial) for a, b in zip(*shown, strict=True))


def test_where_nothing_was_attacked_nothing_is_shown(tmp_path: Path, protocol: Path) -> None:
    net, showcase = small_net(), Showcase()
    images = random_images(20)
    with torch.no_grad():
        labels = (net(images).argmax(dim=1) + 1) % 4
    evaluate(net, protocol, data=(images, labels), run_dir=tmp_path / "run", options=Options(showcase=showcase))
    assert showcase.exhibits == []


def test_classes_of_the_mini_suite_have_names(tmp_path: Path) -> None:
    showcase = Showcase(broken=1, surviving=0)
    evaluate("mini-resnet", "mini-pgd-linf", limit=4, run_dir=tmp_path, options=Options(showcase=showcase))
    assert showcase.exhibits[0].truth in {"square", "disk", "star", "hourglass", "crescent", "cross"}
