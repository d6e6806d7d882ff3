import pytest
from typer.testing import CliRunner

from robench.bench import CATALOGUE, Bench, Measurement, Settings
from robench.cli.main import app

STAGES = [
    {"stage": "apgd-ce", "ours_survivors": 80.0, "ours_gradient_passes": 12625.0, "ratio": 1.328902},
    {"stage": "square", "ours_survivors": 79.0, "ours_gradient_passes": 0.0, "ratio": None},
]


def test_stages_stand_beside_one_another_on_the_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(settings: Settings) -> Measurement:
        details = {"epsilon": "4/255", "stages": STAGES, "fast_path": ["folded batch-norm", "inference mode"]}
        return Measurement("autoattack", settings.model, 128, 1.0, 2.0, overhead=1.0734, details=details)

    bench = CATALOGUE["autoattack"]
    monkeypatch.setitem(CATALOGUE, "autoattack", Bench(bench.claim, bench.against, bench.models, 128, measured))
    monkeypatch.setattr("robench.bench.measurement.wait_for_rest", lambda seconds=0: True)
    result = CliRunner().invoke(app, ["bench", "autoattack"])
    assert result.exit_code == 0, result.output
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in result.stdout.splitlines()]
    assert ["overhead", "1.073"] in rows
    assert ["fast path", "folded batch-norm, inference mode"] in rows
    for row in (["ours survivors", "80", "79"], ["ours gradient passes", "12,625", "0"], ["ratio", "1.329", ""]):
        assert row in rows
