"""The page in a real browser: what a reader clicks, types and shares."""

import csv
import io
import math
import shutil
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from robench.comparison import mcnemar, paired_difference_interval, z_test
from robench.leaderboard.board import Board, Row, build
from robench.leaderboard.page import render
from tests.claims import TOY, claim, model_record, toy_outcomes, toy_rules
from tests.shifted_claims import CELLS, COUNT, Kind, shifted_claim, shifted_rules

sync_api = pytest.importorskip("playwright.sync_api", reason="needs `pip install playwright`")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's package `chromium`")

OTHER = "toy-b@2"
ROWS = f'section[data-protocol="{TOY}"] .ranking tbody tr'
SHOWN = f"{ROWS}:not([hidden])"
MODELS = [("alpha", 0.9, "cnn"), ("beta", 0.6, "transformer"), ("gamma", 0.5, "cnn"), ("Delta", 0.2, "hybrid")]


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Board:
    """Two protocols, four models, one of them with texts that want to be more than text."""
    folder = tmp_path_factory.mktemp("page")
    other = toy_rules(200, id="toy-b").protocols[OTHER]
    rules = toy_rules(200, other)
    for seed, (name, robust, family) in enumerate(MODELS):
        record = model_record(name, seed).model_copy(update={"parameters": 10 ** (seed + 5)})
        words: dict[str, Any] = {"family": family, "training_data": "Toys" if seed else "=More, <b>toys</b>"}
        outcomes = toy_outcomes(200, seed=seed, robust=robust)
        about: dict[str, Any] = {"rules": rules, "record": record, "words": words}
        claim(folder, name, **about, outcomes=outcomes, caveats=("a <i>caveat</i>",) * seed)
        if seed < 2:
            again = toy_outcomes(200, seed=seed + 9, robust=robust)
            claim(folder, name, **about, name=OTHER, outcomes=again)
    return build(folder, rules)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


class Visit:
    """A page, and what must not happen on it."""

    def __init__(self, context: Any, file: Path) -> None:
        self.page, self.file = context.new_page(), file
        self.wrong: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.wrong.append(message.text))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        context.on("request", lambda request: self.requests.append(request.url))

    def go(self, state: str = "") -> "Visit":
        self.page.goto("about:blank")
        self.page.goto(f"{self.file.as_uri()}{state}")
        return self

    def models(self) -> list[str]:
        return [str(name) for name in self.page.locator(f"{SHOWN} th > a").all_inner_texts()]

    def address(self) -> str:
        return str(self.page.evaluate("decodeURIComponent(location.hash)"))


@contextmanager
def _visited(board: Board, browser: Any, folder: Path) -> Iterator[Visit]:
    """A page that has been opened, and on which nothing must go wrong."""
    file = folder / "index.html"
    file.write_text(render(board))
    with browser.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True) as context:
        visiting = Visit(context, file)
        yield visiting.go()
        assert visiting.wrong == []
        asked = {url.partition("#")[0] for url in visiting.requests if not url.startswith(("data:", "blob:"))}
        assert asked <= {file.as_uri()}


@pytest.fixture
def visit(board: Board, browser: Any, tmp_path: Path) -> Iterator[Visit]:
    with _visited(board, browser, tmp_path) as visiting:
        yield visiting


def test_a_click_sorts_and_says_so(visit: Visit) -> None:
    assert visit.models() == ["alpha", "beta", "gamma", "Delta"]
    head = visit.page.locator(f'section[data-protocol="{TOY}"] th[data-key=model]')
    head.locator("button").click()
    assert (visit.models(), head.get_attribute("aria-sort")) == (["alpha", "beta", "Delta", "gamma"], "ascending")
    head.locator("button").click()
    assert (visit.models(), head.get_attribute("aria-sort")) == (["gamma", "Delta", "beta", "alpha"], "descending")
    assert visit.page.locator(f'section[data-protocol="{TOY}"] [aria-sort]').count() == 1
    assert visit.address() == "#sort=model&dir=descending"
    visit.page.locator(f'section[data-protocol="{TOY}"] th[data-key=parameters] button').press("Enter")
    assert visit.models() == ["Delta", "gamma", "beta", "alpha"]


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("q", "ta", ["beta", "Delta"]),
        ("q", "TA", ["beta", "Delta"]),
        ("family", "cnn", ["alpha", "gamma"]),
        ("data", "=More, <b>toys</b>", ["alpha"]),
        ("tier", "checked", ["alpha", "beta", "gamma", "Delta"]),
        ("tier", "reproduced", []),
        ("min", "1", ["beta", "gamma", "Delta"]),
        ("max", "1", ["alpha", "beta"]),
    ],
)
def test_a_filter_hides_rows_and_points(field: str, value: str, expected: list[str], visit: Visit) -> None:
    control = visit.page.locator(f"[name={field}]")
    control.select_option(value) if field in ("family", "data", "tier") else control.fill(value)
    assert visit.models() == expected
    points = visit.page.locator(f'section[data-protocol="{TOY}"] svg a:not([hidden])')
    assert points.count() == 2 * len(expected)
    visit.page.locator("button[type=reset]").click()
    assert len(visit.models()) == 4
    assert visit.address() in ("", "#")


def test_one_protocol_can_be_chosen(visit: Visit) -> None:
    visit.page.locator("[name=protocol]").select_option(OTHER)
    assert visit.page.locator("section.protocol:visible h2").all_inner_texts() == [OTHER]
    assert visit.page.locator("#shown").inner_text() == "2 rows"


def _bits(row: Row) -> int:
    assert row.held is not None
    return row.held


def test_two_rows_are_compared_as_robench_compare_does(visit: Visit, board: Board) -> None:
    boxes = visit.page.locator(f"{ROWS} input[type=checkbox]")
    boxes.nth(0).check()
    assert visit.page.locator("#compare").inner_text() == "alpha is chosen. Choose a second row of its table."
    boxes.nth(2).check()
    rows = {row.model: row for row in board.active[1].rows}
    a, b = _bits(rows["alpha"]), _bits(rows["gamma"])
    both, only_a, only_b = (a & b).bit_count(), (a & ~b).bit_count(), (b & ~a).bit_count()
    low, high = paired_difference_interval(both, only_a, only_b, 200 - both - only_a - only_b)
    p_value = mcnemar(only_a, only_b)
    assert p_value < 0.05
    written = f"{p_value:.4f}" if p_value >= 1e-4 else f"{p_value:.1e}".replace("e-0", "e-")
    assert visit.page.locator("#compare").inner_text() == (
        f"gamma minus alpha under {TOY}: {(only_b - only_a) / 2:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}], "
        f"McNemar p = {written}: significantly different. Of 200 images, only alpha holds {only_a}, "
        f"only gamma {only_b}, both {both}, neither {200 - both - only_a - only_b}."
    )
    assert visit.address() == f"#a={TOY}:alpha&b={TOY}:gamma"
    boxes.nth(0).uncheck()
    assert visit.page.locator("#compare").inner_text().startswith("gamma is chosen.")
    other = visit.page.locator(f'section[data-protocol="{OTHER}"] input[type=checkbox]')
    other.nth(0).check()
    assert visit.page.locator("#compare").inner_text().startswith("These two cannot be paired")


@pytest.mark.parametrize("kind", ["cells", "reference", "textures"])
def test_rows_without_an_attack_are_sorted_compared_and_downloaded(kind: Kind, browser: Any, tmp_path: Path) -> None:
    for seed, (name, right) in enumerate([("alpha", 0.6), ("beta", 0.66), ("gamma", 0.55)]):
        shifted_claim(tmp_path, kind, name, seed=seed, right=right)
    board = build(tmp_path, shifted_rules(kind))
    (table,) = board.active
    rows = {row.model: row for row in table.rows}
    with _visited(board, browser, tmp_path) as visit:
        titles = {"cells": "top1@cells [95 %]", "reference": "over reference", "textures": "top1 [95 %]"}
        assert visit.page.locator(".ranking [aria-sort]").inner_text() == titles[kind]
        assert visit.page.locator(".ranking tbody th > a").all_inner_texts() == [row.model for row in table.rows]
        for place in (0, 2):
            visit.page.locator(".ranking input[type=checkbox]").nth(place).check()
        a, b = table.rows[0], table.rows[2]
        points = 100 * (b.result.ranking.value - a.result.ranking.value)
        text = visit.page.locator("#compare").inner_text()
        assert text.startswith(f"{b.model} minus {a.model} under toy-shift@1: {points:+.1f} points [")
        if kind != "textures":
            assert a.counts is not None
            assert b.counts is not None
            p_value, asks = z_test(a.counts, b.counts), CELLS if kind == "cells" else 1
            written = f"{p_value:.4f}" if p_value >= 1e-4 else f"{p_value:.1e}".replace("e-0", "e-")
            assert f"z test p = {written}: " in text
            differences = [(y - x) / asks for x, y in zip(a.counts, b.counts, strict=True)]
            half = 1.96 * statistics.stdev(differences) / math.sqrt(COUNT)
            assert f"[{points - 100 * half:+.1f}, {points + 100 * half:+.1f}]" in text
        with visit.page.expect_download() as download:
            visit.page.locator("button.csv").click()
        lines = list(csv.DictReader(io.StringIO(Path(download.value.path()).read_text())))
        for line in lines:
            for name, number in rows[line["model"]].others.items():
                unit = 100 if name == "over reference" else 1
                assert float(line[name]) == pytest.approx(unit * number.value, abs=1e-6)


def test_an_address_opens_the_page_as_it_was_shared(visit: Visit) -> None:
    state = f"#protocol={TOY}&family=cnn&sort=parameters&dir=ascending&a={TOY}:alpha&b={TOY}:gamma"
    visit.go(state)
    assert visit.models() == ["alpha", "gamma"]
    assert visit.page.locator("[name=family]").input_value() == "cnn"
    assert visit.page.locator("#compare").inner_text().startswith(f"gamma minus alpha under {TOY}")
    assert visit.page.locator(f"{ROWS} input:checked").count() == 2
    visit.page.evaluate("location.hash = '#q=beta'")
    visit.page.wait_for_function("document.querySelector('[name=q]').value === 'beta'")
    assert visit.models() == ["beta"]


STRANGE = ["#protocol=nothing", "#sort=nothing&dir=x", "#a=b&b=:", "#%", "#q=<img src=x onerror=alert(1)>"]


@pytest.mark.parametrize("state", STRANGE)
def test_a_strange_address_does_no_harm(state: str, visit: Visit) -> None:
    visit.go(state)
    assert visit.page.locator("section.protocol:visible").count() == 2
    assert visit.page.locator("img").count() == 0


def test_a_table_is_downloaded_as_it_is_shown(visit: Visit, board: Board) -> None:
    visit.page.locator("[name=family]").select_option("cnn")
    with visit.page.expect_download() as waiting:
        visit.page.locator(f'section[data-protocol="{TOY}"] button.csv').click()
    assert waiting.value.suggested_filename in (f"{TOY}.csv", TOY.replace("@", "_") + ".csv")
    rows = list(csv.DictReader(io.StringIO(Path(waiting.value.path()).read_text())))
    assert [row["model"] for row in rows] == ["alpha", "gamma"]
    expected = {row.model: row for row in board.active[1].rows}
    for row in rows:
        known = expected[row["model"]]
        assert float(row["headline"]) == pytest.approx(known.headline.numerator / known.headline.denominator)
        assert int(row["parameters"]) == known.result.model.parameters
    assert rows[0]["data"] == "'=More, <b>toys</b>"  # no formula for a spreadsheet


FOCUSED = """() => {
    const focused = document.activeElement;
    return focused.name || focused.closest("[data-key]")?.dataset.key || focused.type;
}"""


def test_everything_can_be_done_by_keyboard(visit: Visit) -> None:
    visit.page.keyboard.press("Tab")
    assert visit.page.evaluate("document.activeElement.className") == "skip"
    seen = set()
    for _ in range(60):
        visit.page.keyboard.press("Tab")
        seen.add(visit.page.evaluate(FOCUSED))
    assert {"protocol", "q", "family", "data", "tier", "min", "max", "headline", "model", "checkbox"} <= seen


def test_without_javascript_the_tables_are_there(board: Board, browser: Any, tmp_path: Path) -> None:
    file = tmp_path / "index.html"
    file.write_text(render(board))
    with browser.new_context(java_script_enabled=False) as context:
        page = context.new_page()
        page.goto(file.as_uri())
        assert page.locator(f"{ROWS} th > a").all_inner_texts() == ["alpha", "beta", "gamma", "Delta"]
        assert page.locator("#controls").is_hidden()
        assert page.locator("input:visible").count() == 0
        assert page.locator("svg:visible").count() == 4


def test_a_thousand_rows_stay_usable(board: Board, browser: Any, tmp_path: Path) -> None:
    """The fastest of nine sorts, layout included: other processes of the machine only add."""
    table = board.active[1]
    many = [replace(row, model=f"{row.model}-{index}") for index, row in enumerate(list(table.rows) * 250)]
    file = tmp_path / "index.html"
    file.write_text(render(replace(board, active=[replace(table, rows=many)])))
    with browser.new_context(viewport={"width": 1280, "height": 900}) as context:
        page = context.new_page()
        page.goto(file.as_uri())
        assert page.locator(SHOWN).count() == 100
        assert page.locator("#shown").inner_text() == "1000 rows"
        spent = page.evaluate(
            """() => Array.from({ length: 9 }, () => {
                const button = document.querySelector("th[data-key=clean] button");
                const began = performance.now();
                button.click();
                document.body.offsetHeight;
                return performance.now() - began;
            })"""
        )
        print(f"sorting 1,000 rows: {min(spent):.0f} ms; page of {file.stat().st_size / 1e6:.1f} MB")
        assert min(spent) < 100
        page.locator("[name=q]").fill("gamma-9")
        assert page.locator(SHOWN).count() == len([row for row in many if "gamma-9" in row.model])
        page.locator("[name=q]").fill("")
        page.locator("button.more:visible").click()
        assert page.locator(SHOWN).count() == 1000


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("name", "width"), [("wide", 1280), ("phone", 390)])
def test_nothing_is_wider_than_the_screen_and_text_is_readable(
    scheme: str, name: str, width: int, board: Board, browser: Any, tmp_path: Path
) -> None:
    file = tmp_path / "index.html"
    file.write_text(render(board))
    with browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme) as context:
        page = context.new_page()
        page.goto(file.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        colours = page.evaluate(
            """() => [...document.querySelectorAll("p, td, small, p a, th a, button, svg text")].map((node) => {
                const style = getComputedStyle(node);
                return node.namespaceURI.endsWith("svg") ? style.fill : style.color;
            })"""
        )
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert min(_contrast(colour, paper) for colour in set(colours)) >= 4.5
        page.screenshot(path=tmp_path / f"{name}-{scheme}.png", full_page=True)
        assert (tmp_path / f"{name}-{scheme}.png").stat().st_size > 10_000


def _contrast(first: str, second: str) -> float:
    """Contrast of two colours as WCAG 2 defines it."""

    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)
