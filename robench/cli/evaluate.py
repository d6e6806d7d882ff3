"""`robench evaluate` and `robench resume`: run, show progress, print the result."""

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from robench.cli.ladder import evaluate_ladder
from robench.cli.ranks import check_ranks, device_of, rank_of
from robench.cli.screen import bar, err, out, print_json
from robench.cli.shifts import above_line, clean_of, derived_table, grid, show_beside_clean
from robench.errors import RunError, complaint
from robench.figures import check_figure, draw_radii, draw_result
from robench.intervals import wilson
from robench.progress import Progress, Silent
from robench.registry import load_protocol
from robench.result import Metric, Result

if TYPE_CHECKING:
    from robench.curves import RadiusCurve

LINE_SECONDS = 10.0
"""Seconds between progress lines when stderr is not a terminal."""


class Screen:
    """Shows a run: a bar on a terminal, plain lines elsewhere; everything on stderr."""

    def __init__(self) -> None:
        self._bar = bar()
        self._task: Any = None
        self._started = self._last = time.monotonic()
        self._already = 0
        self.run_dir: Path | None = None

    def begin(self, run_dir: Path, progress: Progress) -> None:
        self.run_dir, self._already = run_dir, progress.done
        self._started = self._last = time.monotonic()
        self._bar.start()
        self._task = self._bar.add_task("examples", total=progress.total, completed=progress.done, note="")

    def notice(self, text: str) -> None:
        err.print(text, markup=False)

    def update(self, progress: Progress) -> None:
        now = time.monotonic()
        rate = (progress.done - self._already) / max(now - self._started, 1e-9)
        note = ", ".join(part for part in (f"{rate:.1f}/s", progress.stage, _so_far(progress)) if part)
        if err.is_terminal:
            self._bar.update(self._task, completed=progress.done, note=note)
        elif now - self._last >= LINE_SECONDS:
            self._last = now
            left = f"{(progress.total - progress.done) / rate:.0f} s left, " if rate else ""
            err.print(f"{progress.done}/{progress.total} examples, {left}{note}", markup=False)

    def end(self, result: Result) -> None:
        self.stop()

    def stop(self) -> None:
        """Take the bar away."""
        self._bar.stop()


def _so_far(progress: Progress) -> str:
    """Clean and robust accuracy over the finished prefix, which is a fair sample."""
    if not progress.prefix:
        return ""
    low, high = wilson(round(progress.robust), progress.prefix)
    clean, robust = progress.clean / progress.prefix, progress.robust / progress.prefix
    interval = f"[{100 * low:.1f}, {100 * high:.1f}]"
    if progress.shifted:
        return f"first {progress.prefix}: {100 * robust:.1f} % {interval}"
    return f"first {progress.prefix}: clean {100 * clean:.1f} %, robust {100 * robust:.1f} % {interval}"


def evaluate(
    context: typer.Context,
    model: Annotated[
        str, typer.Argument(help="`mini-resnet`, `timm:NAME`, `hf-hub:org/name`, a folder, or `module.path:function`.")
    ],
    protocols: Annotated[
        list[str] | None, typer.Argument(metavar="PROTOCOL...", help="Ids, `id@version`, or TOML files.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of images, or `hf-hub:org/name\\[@revision]`.")] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first so many examples: a partial result.")] = None,
    run_dir: Annotated[Path | None, typer.Option(help="Folder of the run; default `runs/MODEL/PROTOCOL-KEY`.")] = None,
    device: Annotated[str | None, typer.Option(help="Such as `cuda`; default the CPU.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Examples attacked at a time.")] = None,
    weights: Annotated[Path | None, typer.Option(help="A safetensors file for a named model.")] = None,
    textures: Annotated[
        Path | None, typer.Option(help="Folder with the textures that the protocol pastes; others make it unofficial.")
    ] = None,
    clean: Annotated[
        Path | None, typer.Option(help="Folder of the clean images, under protocols with corruptions.")
    ] = None,
    reference_weights: Annotated[
        Path | None, typer.Option(help="A safetensors file for the protocol's reference model.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="What to call the model.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that decode images; default up to 4.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over.")] = False,
    estimate: Annotated[bool, typer.Option("--estimate", help="Say what it would cost at most, and stop.")] = False,
    engine: Annotated[str, typer.Option(help="`native`, or `reference`: AutoAttack by pyautoattack.")] = "native",
    no_fast_path: Annotated[bool, typer.Option("--no-fast-path", help="Attack the model, not a faster copy.")] = False,
    compiled: Annotated[bool, typer.Option("--compile", help="Compile that copy: for long runs on a GPU.")] = False,
    save_adversarial: Annotated[Path | None, typer.Option(help="Folder for the images that fooled, as .npy.")] = None,
    radii: Annotated[
        str | None, typer.Option(help="Robust accuracy at these radii, such as `0,1/255,4/255`; never ranked.")
    ] = None,
    figure: Annotated[Path | None, typer.Option(help="Draw the result: a .png, .svg or .pdf file.")] = None,
    ladder: Annotated[
        str | None, typer.Option(help="Every rung of a ladder, such as `convnext-mini`; no MODEL is named then.")
    ] = None,
    rungs: Annotated[
        Path | None, typer.Option(help="Where `robench reproduce` trained them; default `reproduced/LADDER`.")
    ] = None,
    executor: Annotated[str, typer.Option(help="`local`, or `ray`: attack in processes that Ray places.")] = "local",
    processes: Annotated[int, typer.Option(min=1, help="Processes that Ray starts.")] = 1,
    address: Annotated[str | None, typer.Option(help="Of a Ray cluster; default one on this machine.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the results as JSON on stdout.")] = False,
) -> None:
    """Evaluate a model under one or more protocols; the same call again resumes or reuses the run."""
    if ladder or rungs:
        evaluate_ladder(context, [model, *(protocols or ())])
        return
    protocols = _some(protocols)
    from robench.cluster import crew_of

    rank = rank_of(os.environ)
    follows = rank is not None and rank.index > 0
    check_ranks(rank, fresh=fresh, estimate=estimate)
    _check_together(estimate=estimate, radii=radii)
    _check_figure(figure, () if radii is not None else protocols)
    figure = None if follows else figure  # rank 0 draws
    attacked = radii is None and any(load_protocol(each).attack is not None for each in protocols)
    chosen: Any = protocols if len(protocols) > 1 else protocols[0]
    arguments: Any = {"data": data, "limit": limit, "run_dir": run_dir, "batch_size": batch_size}
    arguments["device"] = device_of(rank, device)
    with _shown() as screen, crew_of(executor, processes, address, device=device) as crew:
        # Not before, as this takes as long as starting Ray.
        from robench.cli.estimate import show_estimates
        from robench.curves import radius_curve
        from robench.estimate import estimate as expect
        from robench.evaluation import Options
        from robench.evaluation import evaluate as run
        from robench.showcase import Showcase

        showcase = Showcase() if figure is not None and attacked else None
        arguments["options"] = Options(
            name=name,
            weights=weights,
            textures=textures,
            fresh=fresh,
            workers=workers,
            engine=engine,  # type: ignore[arg-type]  # checked at the door, with a message
            fast_path=not no_fast_path,
            compile=compiled,
            watcher=Silent() if follows else screen,
            save_adversarial=save_adversarial,
            showcase=showcase,
            clean=clean,
            reference_weights=reference_weights,
            rank=rank,
            crew=crew,
        )
        if crew is not None:
            crew.take_on(model, **arguments)
        if estimate:
            del arguments["run_dir"]
            estimates = [expect(model, each, **arguments) for each in protocols]
        elif radii is not None:
            curve = radius_curve(model, chosen, [each.strip() for each in radii.split(",")], **arguments)
        else:
            results = run(model, chosen, **arguments)
    if follows:
        return
    if estimate:
        show_estimates(estimates, json)
    elif radii is not None:
        if figure is not None:
            draw_radii(figure, curve)
        _report_curve(curve, json)
    else:
        if figure is not None:
            draw_result(figure, results, showcase.exhibits if showcase is not None else ())
        _report(results if isinstance(results, list) else [results], json)


def _some(protocols: list[str] | None) -> list[str]:
    """The protocols; only a ladder takes the place of the model beside them."""
    if not protocols:
        raise typer.BadParameter("at least one is needed", param_hint="PROTOCOL...")
    return protocols


def _check_figure(figure: Path | None, protocols: Sequence[str]) -> None:
    if figure is not None:
        check_figure(figure, protocols=[load_protocol(each) for each in protocols])


def _check_together(*, estimate: bool, radii: str | None) -> None:
    if estimate and radii is not None:
        advice = "Each radius costs at most what the protocol does."
        raise RunError(complaint("evaluate", "--estimate", "beside `--radii`", "one of the two", advice))


def resume(
    run_dir: Annotated[Path, typer.Argument(help="Folder of the run.")],
    device: Annotated[str | None, typer.Option(help="Such as `cuda`; default the CPU.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Examples attacked at a time.")] = None,
    save_adversarial: Annotated[
        Path | None, typer.Option(help="Where the adversarial images lie now; default where they were kept.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that decode images; default up to 4.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")] = False,
) -> None:
    """Finish an interrupted run."""
    from robench.evaluation import resume as run

    with _shown() as screen:
        result = run(
            run_dir,
            device=device,
            batch_size=batch_size,
            workers=workers,
            watcher=screen,
            save_adversarial=save_adversarial,
        )
    _report([result], json)


@contextmanager
def _shown() -> Iterator[Screen]:
    """A screen that is taken away at the end, and Ctrl-C that says how to go on.

    What the user's own code prints goes to stderr, so that stdout holds results only.
    """
    screen = Screen()
    try:
        with redirect_stdout(sys.stderr):
            yield screen
    except KeyboardInterrupt:
        screen.stop()
        if screen.run_dir is not None:
            advice = f"Go on with:\n  robench resume {quote(str(screen.run_dir))}"
            err.print(f"Interrupted; what is finished is kept. {advice}", markup=False)
        raise typer.Exit(130) from None
    finally:
        screen.stop()


def _report(results: list[Result], json: bool) -> None:
    if json:
        clean = clean_of(results)
        content = []
        for result in results:
            where = {"run_dir": str(result.run_dir), "cost": result.cost}
            found = above_line(result, clean)
            beside = {"effective_robustness": found.model_dump(mode="json")} if found is not None else {}
            content.append({**where, **result.model_dump(mode="json", by_alias=True), **beside})
        print_json(content if len(content) > 1 else content[0])
        return
    for result in results:
        show_result(result)
        for caveat in result.caveats:
            out.print(f"caveat: {caveat}", markup=False)
        out.print(str(result), markup=False)
        out.print(f"run: {result.run_dir}", markup=False)
        if result.asks is None:
            out.print(f"next: robench compare {quote(str(result.run_dir))} OTHER_RUN", markup=False)
    show_beside_clean(results)


def _report_curve(curve: "RadiusCurve", json: bool) -> None:
    folders = [str(result.run_dir) for result in curve.results]
    metrics = [Metric.of(point.radius, point.numerator, point.denominator) for point in curve.points]
    if json:
        points = [{"radius": metric.name, **metric.model_dump(mode="json", exclude={"name"})} for metric in metrics]
        content = {"model": curve.model, "protocol": curve.protocol, "norm": curve.norm, "ranked": False}
        print_json({**content, "points": points, "caveats": curve.caveats, "run_dirs": folders})
        return
    out.print(_table(f"{curve.model}, radii of {curve.protocol}", "radius", metrics))
    for caveat in curve.caveats:
        out.print(f"caveat: {caveat}", markup=False)
    out.print(str(curve), markup=False)
    out.print("\n".join(f"run: {folder}" for folder in folders), markup=False)


def show_result(result: Result) -> None:
    """Print the metrics of a result with counts and intervals, its cells as a grid, and what was computed from them."""
    title = f"{result.model.name} under {result.protocol.id}@{result.protocol.version}"
    shown = [metric for metric in result.metrics if metric.group not in ("cell", "corruption")]
    cells = len(shown) < len(result.metrics)
    counted = "examples" if result.asks is None and not cells else "right answers"
    if cells:
        out.print(grid(result, title))
        title = "over images and cells"
    out.print(_table(title, "metric", shown, counted))
    if result.derived:
        out.print(derived_table(result.derived))


def _table(title: str, first: str, metrics: Sequence[Metric], counted: str = "examples") -> Table:
    rows = Table(title=Text(title, style="table.title"), title_justify="left")
    rows.add_column(first)
    for column in ("value", "95 % interval", counted):
        rows.add_column(column, justify="right")
    for metric in metrics:
        rows.add_row(metric.name, metric.text, Text(metric.bounds), f"{metric.numerator}/{metric.denominator}")
    return rows
