"""`robench doctor`: is this machine ready."""

import shutil
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Column, Table
from rich.text import Text

from robench.cli.screen import out, print_json
from robench.environment import environment
from robench.errors import RobenchError


def doctor(json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False) -> None:
    """Check versions, device, data, token and disk; exit code 1 if something is broken."""
    import torch

    from robench.data import CATALOGUE, CELLS, MADE_IN_CELLS, READERS
    from robench.data.textures import PUBLISHED
    from robench.hub import own_token

    report: dict[str, str] = dict(environment())
    broken = False
    if torch.cuda.is_available():
        report["device"] = ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
    else:
        report["device"] = f"CPU, {torch.get_num_threads()} threads"
    for name, opener in CATALOGUE.items():
        try:
            report[f"data {name}"] = f"bundled, {len(opener().ids)} examples, digest as pinned"
        except (RobenchError, OSError) as error:
            report[f"data {name}"], broken = f"BROKEN: {error}", True
    report |= {f"data {name}": "made from bundled images when it is asked for" for name in MADE_IN_CELLS}
    elsewhere = [("data", name, _located) for name in (*READERS, *CELLS)]
    elsewhere += [("textures", name, _textures) for name in PUBLISHED]
    for what, name, look in elsewhere:
        try:
            report[f"{what} {name}"] = look(name)
        except (RobenchError, OSError) as error:
            report[f"{what} {name}"], broken = f"BROKEN: {error}", True
    report["Hugging Face token"] = "present" if own_token() else "none (bundled models need none)"
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    report["disk"] = f"{free:.1f} GiB free in the working directory"
    if json:
        print_json({"ok": not broken, **report})
    else:
        table = Table("what", Column("found", overflow="fold"))
        for key, value in report.items():
            table.add_row(key, Text(value))
        out.print(table)
        out.print("Something is broken; see above." if broken else "Ready.")
    if broken:
        raise typer.Exit(1)


def _located(name: str) -> str:
    """Where a data set lies that is not shipped, who says so, and how much of it is there."""
    from robench.data import CELLS, SAME_PLACE, FileSource, is_on_hub, location_of, open_source
    from robench.data.locations import way_to_name

    location = location_of(name)
    if location is None:
        return f"not named: give its folder with --data, {way_to_name(SAME_PLACE.get(name, name))}"
    if is_on_hub(location.path):
        return f"{location.path}, named by {location.origin}: on the Hub, not asked"
    if name in CELLS:  # `robench data check` looks into its cells
        return f"{location.path}, named by {location.origin}" + ("" if location.path.exists() else ": MISSING")
    source = open_source(name, None, resize=None, crop=1, limit=1)
    found = f"{location.path}, named by {location.origin}"
    if source.name == name and isinstance(source, FileSource) and source.missing is None:
        return f"{found}: {len(source.ids):,} images"
    if not isinstance(source, FileSource) or source.missing is None:
        return f"{found}: {len(source.ids)} images, none of the list"
    there = len({*source.ids} - {example.id for example in source.missing})
    return f"{found}: {there:,} of the list's {there + len(source.missing):,} images"


def _textures(name: str) -> str:
    """Where a dictionary of textures lies that is not shipped, who says so, and what is in it."""
    from robench.data import location_of
    from robench.data.locations import way_to_name
    from robench.data.textures import PUBLISHED

    location = location_of(name)
    if location is None:
        return f"not named: {way_to_name(name)}"
    classes, textures = PUBLISHED[name](location.path).textures.shape[:2]
    return f"{location.path}, named by {location.origin}: {classes} classes of {textures} textures"
