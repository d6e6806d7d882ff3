"""`robench list` and `robench show`: what there is to evaluate."""

from typing import Annotated

import typer
from rich.table import Column, Table
from rich.text import Text

from robench.cli.screen import out, print_json
from robench.registry import list_protocols, resolve


def list_(json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False) -> None:
    """List the protocols."""
    protocols = list_protocols()
    if json:
        print_json([protocol.model_dump(mode="json", by_alias=True) for protocol in protocols])
        return
    headings = [Column(heading, overflow="fold") for heading in ("status", "data", "what it measures")]
    table = Table(Column("protocol", no_wrap=True), *headings)
    for protocol in protocols:
        data = f"{protocol.data.source}, {protocol.data.count:,}"
        table.add_row(protocol.exact_name, protocol.status, data, Text(protocol.title))
    out.print(table)


def show(
    protocol: Annotated[str, typer.Argument(help="Id, `id@version`, or a TOML file.")],
    json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """Show a protocol: every setting, and the digest that pins them."""
    registered = resolve(protocol)
    content = registered.protocol.model_dump(mode="json", by_alias=True, exclude_none=True)
    if json:
        print_json({**content, "digest": registered.protocol.digest, "official": registered.official})
        return
    out.print(f"{registered.protocol.exact_name}: {registered.protocol.title}", markup=False)
    out.print(registered.protocol.summary, markup=False)
    table = Table("key", Column("value", overflow="fold"))  # a digest that is cut pins nothing
    for key, value in content.items():
        if key in ("schema", "id", "version", "title", "summary") or (key == "score" and "attack" not in content):
            continue  # shown above, or about iterates where there are none
        rows = value.items() if isinstance(value, dict) else [("", value)]
        for part, each in rows:
            table.add_row(f"{key}.{part}".rstrip("."), Text(str(each)))
    table.add_row("digest", registered.protocol.digest)
    table.add_row("official", "yes" if registered.official else "no")
    out.print(table)
