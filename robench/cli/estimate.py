"""`robench evaluate --estimate`: what it would cost at most."""

import dataclasses

from rich.table import Table
from rich.text import Text

from robench.cli.screen import duration, out, print_json
from robench.estimate import Estimate


def show_estimates(estimates: list[Estimate], json: bool) -> None:
    """Print one table, or one object, for each protocol."""
    if json:
        content = [{**dataclasses.asdict(each), "seconds": each.seconds} for each in estimates]
        print_json(content if len(content) > 1 else content[0])
        return
    for each in estimates:
        title = f"{each.model} under {each.protocol}, {each.examples} images, at most"
        table = Table(title=Text(title, style="table.title"), title_justify="left")
        for column in ("stage", "gradient passes", "other passes", "time"):
            table.add_column(column, justify="left" if column == "stage" else "right")
        for stage in each.stages:
            table.add_row(stage.stage, f"{stage.gradients:,}", f"{stage.labels:,}", duration(stage.seconds))
        table.add_row("together", "", "", duration(each.seconds))
        out.print(table)
        rates = [f"{each.label_rate:.0f} images/s"]
        if each.gradient_rate is not None:
            rates.append(f"{each.gradient_rate:.0f} with gradient")
        if each.single_rate is not None:
            rates.append(f"{each.single_rate:.0f} one at a time, as this attack looks")
        note = f"{', '.join(rates)}, {each.slots} at a time; clean {100 * each.clean:.0f} % of the first images."
        attacked = len(each.stages) > 1
        out.print(note + " Images that fall end early, so it mostly takes less." * attacked, markup=False)
