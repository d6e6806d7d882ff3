"""Attacks with patches side by side, at equal queries; prints a table in Markdown, a line for each model.

    python docs/measure/patches.py --limit 100
    python docs/measure/patches.py mini-resnet mini-deit-adv --limit 16 --area 1/50 --patches 1 --rounds 5

Runs are kept in a folder, and resumed or reused by the next call with the same settings. Without settings the
protocols are taken as they stand; with settings they are unofficial, and so are the numbers.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import robench
from robench.protocol import PatchSpec, Protocol, parse_protocol
from robench.result import Result, percent
from robench.zoo import MODELS

COLUMNS = {
    "agent": "mini-tpa",
    "random search": "mini-tpa-random",
    "random, then local": "mini-tpa-local",
    "grey": "mini-tpa-gray",
    "white box": "mini-tpa-whitebox",
}
"""Protocol by heading."""


def main() -> None:
    """Run every protocol on every model, and print what survives."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=list(MODELS))
    parser.add_argument("--only", nargs="+", choices=list(COLUMNS), default=list(COLUMNS))
    parser.add_argument("--limit", type=int, default=None)
    parser.add_argument("--folder", type=Path, default=Path("runs"))
    parser.add_argument("--area", help="share of the pixels, such as 1/50")
    parser.add_argument("--patches", type=int)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--queries", type=int)
    arguments = parser.parse_args()
    protocols = [_changed(robench.load_protocol(COLUMNS[column]), arguments) for column in arguments.only]
    spec = protocols[0].budget
    assert isinstance(spec, PatchSpec), "protocols of patches"
    sys.stdout.write(f"Up to {spec.patches} patches, {spec.area} of the area:\n\n")
    sys.stdout.write(f"| model | clean | {' | '.join(arguments.only)} |\n|{'---|' * (len(arguments.only) + 2)}\n")
    for model in arguments.models:
        folders = arguments.folder / model
        results = [
            robench.evaluate(model, each, limit=arguments.limit, run_dir=folders / f"{each.id}-{each.digest[:8]}")
            for each in protocols
        ]
        cells = [f"`{model}`", percent(results[0].clean), *map(_cell, results)]
        sys.stdout.write(f"| {' | '.join(cells)} |\n")
        sys.stdout.flush()


def _changed(protocol: Protocol, arguments: argparse.Namespace) -> Protocol:
    """The protocol with the settings that were given."""
    given = {key: value for key, value in vars(arguments).items() if value is not None}
    content: dict[str, Any] = protocol.model_dump(mode="json", by_alias=True, exclude_none=True)
    content["budget"] |= {key: given[key] for key in ("area", "patches") if key in given}
    settings = {key: given[key] for key in ("rounds", "queries", "patches") if key in given}
    if content["attack"]["kind"] == "tpa-whitebox":
        settings = {key: value for key, value in settings.items() if key == "patches"}
    if "local_rounds" in content["attack"] and "rounds" in settings:  # the same share of the rounds
        share = content["attack"]["local_rounds"] / content["attack"]["rounds"]
        settings["local_rounds"] = min(round(share * settings["rounds"]), settings["rounds"] - 1)
    content["attack"] |= settings
    return parse_protocol(content, where=protocol.id)


def _cell(result: Result) -> str:
    """What survives, the median number of queries of what fell, and seconds."""
    fell = sorted(outcome.fooled_at[0] for outcome in result.read_outcomes() if outcome.fooled_at)
    median = f", {fell[len(fell) // 2]:,} queries" if fell else ""
    low, high = result.headline.interval
    return (
        f"{percent(result.headline)} [{100 * low:.0f}, {100 * high:.0f}]{median}, {result.cost['wall_seconds']:.0f} s"
    )


main()
