"""How far "any iterate" and "last iterate" differ on the mini suite; prints one JSON line per model.

python docs/measure/scoring.py mini-resnet-adv mini-deit-adv
"""

import json
import sys
import tempfile
from pathlib import Path

import robench
from robench.registry import shipped_folder


def main() -> None:
    """Evaluate each model under mini-pgd-linf, and under its twin that scores the last iterate."""
    text = (shipped_folder() / "mini-pgd-linf.toml").read_text()
    for model in sys.argv[1:]:
        with tempfile.TemporaryDirectory() as folder:
            twin = Path(folder) / "last.toml"
            last = text.replace('scoring = "any iterate"', 'scoring = "last iterate"')
            twin.write_text(last.replace('id = "mini-pgd-linf"', 'id = "last"').replace('"active"', '"draft"'))
            pair = robench.evaluate(model, ["mini-pgd-linf", twin], run_dir=folder)
            counts = {
                scoring: {metric.name: metric.numerator for metric in result.metrics[1:]}
                for scoring, result in zip(("any", "last"), pair, strict=True)
            }
            verdicts = [
                [outcome.robust_at(50, scoring) for outcome in result.read_outcomes()]
                for scoring, result in zip(("any iterate", "last iterate"), pair, strict=True)
            ]
            differ = sum(first != second for first, second in zip(*verdicts, strict=True))
            line = {"model": model, "examples": pair[0].data.count, **counts, "verdicts_differ_at_50": differ}
            sys.stdout.write(json.dumps(line) + "\n")
            sys.stdout.flush()


main()
