from pathlib import Path

import pytest
import torch

import robench
from robench.attacks.apgd import APGD
from robench.attacks.autoattack import AutoAttack
from robench.attacks.drive import Stage, drive
from robench.attacks.fab import FAB
from robench.attacks.square import Square
from robench.budgets import LinfBall
from robench.classifier import Classifier
from robench.door import build_attack
from robench.errors import ProtocolError
from robench.registry import shipped, shipped_folder
from tests.fakes import Linear, examples, labelled_by, random_images

SMALL = 'version = "standard"\nsteps = 5\ntargets = 2\nqueries = 20\n'


def write_protocol(folder: Path, attack: str = SMALL, stages: str = '"apgd-ce", "apgd-t", "fab-t", "square"') -> Path:
    text = (shipped_folder() / "mini-pgd-linf.toml").read_text()
    text = text.replace('"mini-pgd-linf"', '"mine"').replace('"active"', '"draft"')
    head = text[: text.index("[attack]")]
    path = folder / "mine.toml"
    path.write_text(
        f'{head}[attack]\nkind = "autoattack"\n{attack}\n[budget]\nnorm = "linf"\nepsilon = "4/255"\n\n'
        f"[score]\nstages = [{stages}]\n"
    )
    return path


def test_the_stages_are_the_published_ones() -> None:
    ce, targeted = APGD(steps=100), APGD(steps=100, targets=9)
    assert AutoAttack().stages() == (ce, targeted, FAB(steps=100, targets=9), Square(queries=5000))
    assert AutoAttack(version="lite").stages() == (ce, targeted)
    assert AutoAttack(version="rand").stages() == (ce, APGD(steps=100, loss="dlr"))


def test_an_unknown_version_is_refused() -> None:
    message = r"^AutoAttack: `version` is `plus`; expected `standard`, `lite`, `rand`\.$"
    with pytest.raises(ProtocolError, match=message):
        AutoAttack(version="plus")


@pytest.mark.parametrize(
    "name", [name for name in shipped() if "autoattack" in name and shipped()[name].score.asks is None]
)
def test_shipped_protocols_name_their_stages(name: str) -> None:
    protocol = shipped()[name]
    stages, _ = build_attack(protocol)
    assert protocol.score.stages == tuple(stage.attack.name for stage in stages)


@pytest.mark.parametrize(
    ("attack", "stages", "message"),
    [
        (SMALL, '"apgd-ce", "square"', r"`score\.stages` is \['apgd-ce', 'square'\]; expected \['apgd-ce', 'apgd-t', "),
        (SMALL.replace("standard", "lit"), '"apgd-ce"', r"^mine\.toml: AutoAttack: `version` is `lit`; expected"),
        (SMALL.replace("queries = 20", "queries = 0"), '"apgd-ce"', r"^mine\.toml: Square: `queries` is 0"),
        (SMALL, '"apgd-ce", "apgd-ce"', r"expected stages without repetition"),
    ],
)
def test_a_protocol_that_makes_no_sense_is_refused(tmp_path: Path, attack: str, stages: str, message: str) -> None:
    with pytest.raises(ProtocolError, match=message):
        robench.evaluate("mini-resnet", write_protocol(tmp_path, attack, stages), run_dir=tmp_path / "run")


def test_every_stage_is_a_metric_and_no_stage_is_weaker_than_the_one_before(tmp_path: Path) -> None:
    result = robench.evaluate("mini-resnet-adv", write_protocol(tmp_path), limit=40, run_dir=tmp_path / "run")
    names = ["clean", "robust@apgd-ce", "robust@apgd-t", "robust@fab-t", "robust@square"]
    assert [metric.name for metric in result.metrics] == names
    counts = [metric.numerator for metric in result.metrics]
    assert counts == sorted(counts, reverse=True)
    assert 0 < counts[-1] < counts[0]
    for outcome in result.read_outcomes():
        assert bool(outcome.fooled_at) == bool(outcome.stage)


def test_passes_of_a_robust_example_are_those_of_the_formula() -> None:
    """APGD-CE n + 1; APGD-T and FAB-T per target; FAB-T a forward pass more for each; Square q + 1."""
    torch.manual_seed(0)
    flat = Linear(torch.randn(6, 3 * 4 * 4) * 1e-4, torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0, 0.0])).eval()
    source = labelled_by(flat, random_images(16, 4))
    attacks = AutoAttack(steps=10, targets=3, queries=30).stages()
    classifier = Classifier(flat)
    finished = list(drive([Stage(each) for each in attacks], classifier, source, budget=LinfBall(0.01), slots=16))
    assert not any(outcome.fooled_at for outcome in finished)
    gradients = 11 + 3 * 11 + 3 * 10
    assert classifier.passes.backward == 16 * gradients
    assert classifier.passes.forward == 16 * (1 + gradients + 3 * 10 + 31)


def test_two_classes_leave_one_target() -> None:
    flat = Linear(torch.randn(2, 3 * 4 * 4) * 1e-4, torch.tensor([1.0, 0.0])).eval()
    source = labelled_by(flat, random_images(16, 4))
    stages = [Stage(each) for each in AutoAttack(steps=5, queries=5).stages()]
    classifier = Classifier(flat)
    assert not any(o.fooled_at for o in drive(stages, classifier, source, budget=LinfBall(0.01), slots=16))
    assert classifier.passes.backward == 16 * (6 + 6 + 5)


@pytest.mark.parametrize("scale", [0.0, 1e6])
def test_ties_and_saturated_logits_are_survived(scale: float) -> None:
    class Steep(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            mean = images.mean(dim=(2, 3))
            return scale * torch.cat([mean, mean[:, :2]], dim=1) + torch.tensor([1.0, 0, 0, 0, 0])

    source = examples(random_images(16, 4), [0] * 16)
    stages = [Stage(each) for each in AutoAttack(steps=5, targets=2, queries=5).stages()]
    finished = list(drive(stages, Classifier(Steep().eval()), source, budget=LinfBall(0.05), slots=16))
    assert len(finished) == 16
    assert not any(outcome.error for outcome in finished)


def test_one_example_and_a_batch_without_a_right_one(tmp_path: Path) -> None:
    protocol = write_protocol(tmp_path)
    alone = robench.evaluate("mini-resnet", protocol, limit=1, run_dir=tmp_path / "one")
    assert alone.counts.evaluated == 1
    images = random_images(20, 64)
    labels = robench.load_model("mini-resnet")(images).argmin(dim=1)
    wrong = robench.evaluate(
        robench.load_model("mini-resnet"), protocol, data=(images, labels), run_dir=tmp_path / "wrong"
    )
    assert [metric.numerator for metric in wrong.metrics] == [0] * 5
    assert wrong.cost["backward"] == 48 + 25 * 20  # looks at the door and at the faster copy, and the sweep
