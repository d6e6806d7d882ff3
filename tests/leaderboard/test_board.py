"""The leaderboard from files: what it says, in Markdown and on the page, and that no text gets out of its cell."""

import base64
import hashlib
import html
import json
import re
import tomllib
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from scipy import stats

from robench.errors import SubmissionError
from robench.leaderboard import FILES, files_of
from robench.leaderboard import page as page_of_board
from robench.leaderboard.board import Board, Row, build, read_published
from robench.leaderboard.markdown import escaped, render
from robench.leaderboard.neighbours import comment
from robench.leaderboard.page import render as render_page
from robench.leaderboard.scatter import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, over_sizes, shares
from robench.outcome import Outcome
from robench.validation import Place, Rules
from tests.claims import TOY, claim, model_record, put_refutation, put_verdict, toy_outcomes, toy_rules
from tests.shifted_claims import CELLS, COUNT, Kind, shifted_claim, shifted_outcomes, shifted_rules
from tests.test_protocol import MISSING

ROOT = Path(__file__).parent.parent.parent
RULES = toy_rules(200)
MODELS = [("alpha", 0.9), ("beta", 0.88), ("gamma", 0.5), ("delta", 0.2)]


def _models(repository: Path, rules: Rules = RULES) -> None:
    for seed, (name, robust) in enumerate(MODELS):
        outcomes = toy_outcomes(200, seed=seed, robust=robust)
        family = "cnn" if seed % 2 else "transformer"
        claim(repository, name, rules=rules, seed=seed, outcomes=outcomes, words={"family": family})


@pytest.fixture
def board(tmp_path: Path) -> Board:
    _models(tmp_path)
    return build(tmp_path, RULES)


def _paired(page: str) -> list[dict[str, Any]]:
    """What a page compares the rows of its tables by."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page)
    assert found is not None
    tables: list[dict[str, Any]] = json.loads(found[1])["tables"]
    return tables


def _held(row: Row) -> list[bool]:
    return [bool(row.held is not None and row.held >> index & 1) for index in range(200)]


def test_rows_are_ordered_by_their_headline_and_carry_rank_intervals(board: Board) -> None:
    (table,) = board.active
    assert [row.model for row in table.rows] == ["alpha", "beta", "gamma", "delta"]
    for row in table.rows:
        better = worse = 0
        for other in table.rows:
            pairs = list(zip(_held(row), _held(other), strict=True))
            only = [pairs.count((True, False)), pairs.count((False, True))]
            if sum(only) and stats.binomtest(only[0], sum(only)).pvalue < 0.05:
                better, worse = better + (only[1] > only[0]), worse + (only[0] > only[1])
        assert row.ranks == (1 + better, 4 - worse)
    assert [row.rank for row in table.rows] == ["1 to 2", "1 to 2", "3", "4"]


def test_what_a_row_holds_is_what_its_outcomes_say(board: Board) -> None:
    outcomes = toy_outcomes(200, seed=0, robust=0.9)
    (row,) = [row for row in board.active[0].rows if row.model == "alpha"]
    assert _held(row) == [each.clean == each.label and not each.fooled_at for each in outcomes]
    assert row.headline.numerator == sum(_held(row))


def test_the_board_is_a_pure_function_of_the_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        _models(tmp_path / name)
    first, second = (files_of(tmp_path / name, RULES) for name in ("a", "b"))
    assert first == second
    assert tuple(first) == FILES


def test_markdown_says_all_columns(board: Board) -> None:
    text = render(board)
    line = next(line for line in text.splitlines() if line.startswith("| 1 to 2 | [alpha]"))
    row = board.active[0].rows[0]
    assert row.clean is not None
    low, high = (100 * bound for bound in row.headline.interval)
    robust = f"{row.headline.numerator / 2:.1f} % [{low:.1f}, {high:.1f}]"
    difference = f"{(row.headline.numerator - row.clean.numerator) / 2:+.1f}"
    cells = ["1 to 2", f"[alpha](submissions/alpha/{TOY})", f"{row.clean.numerator / 2:.1f} %", robust, difference]
    assert line == f"| {' | '.join([*cells, '1 k', 'Toys', 'native 1', 'checked', ''])} |"
    assert "| alpha | " in text  # the summary
    assert "5 % level for each comparison" in text


def test_superseded_protocols_stand_apart_and_drafts_nowhere(tmp_path: Path) -> None:
    old = toy_rules(200, id="old", status="superseded").protocols["old@2"]
    draft = toy_rules(200, id="draft", status="draft").protocols["draft@2"]
    unranked = toy_rules(200, id="quiet", ranked=False).protocols["quiet@2"]
    rules = toy_rules(200, old, draft, unranked)
    _models(tmp_path, rules)
    for seed, name in enumerate(["alpha", "beta"]):
        record = model_record(name, seed)
        claim(tmp_path, name, rules=rules, name="old@2", record=record, outcomes=toy_outcomes(200, seed=seed + 9))
    board = build(tmp_path, rules)
    assert [table.protocol.exact_name for table in board.active] == [TOY]
    assert [table.protocol.exact_name for table in board.superseded] == ["old@2"]
    text, page = render(board), render_page(board)
    assert text.index("# Superseded protocols") > text.index("## toy-pgd@2")
    assert text.index("## old@2") > text.index("# Superseded protocols")
    assert "draft@2" not in text + page
    assert "quiet@2" not in text + page
    assert "old@2" not in text[text.index("## All protocols") : text.index("## toy-pgd@2")]


def test_an_empty_repository_has_an_empty_board(tmp_path: Path) -> None:
    board = build(tmp_path, RULES)
    assert board.summary == []
    assert render(board).count("No submission yet.") == 2
    assert "No submission yet." in render_page(board)


def test_an_invalid_or_double_claim_makes_no_board(tmp_path: Path) -> None:
    _models(tmp_path)
    claim(tmp_path, "omega", rules=RULES, seed=0, outcomes=toy_outcomes(200, seed=0, robust=0.9))
    with pytest.raises(SubmissionError, match="RB802 error: submissions/omega"):
        build(tmp_path, RULES)


# --- tiers


def _verdict(repository: Path, model: str, **about: Any) -> Path:
    return put_verdict(Place(repository / "submissions", model, TOY), RULES, **about)


def test_tiers_follow_from_verdicts_and_refuted_claims_lose_their_rank(tmp_path: Path) -> None:
    _models(tmp_path)
    _verdict(tmp_path, "beta")
    _verdict(tmp_path, "alpha", fell=60)
    board = build(tmp_path, RULES)
    rows = board.active[0].rows
    assert [(row.model, row.tier, row.rank) for row in rows] == [
        ("beta", "reproduced", "1"),
        ("gamma", "checked", "2"),
        ("delta", "checked", "3"),
        ("alpha", "refuted", "none"),
    ]
    assert "| none | [alpha]" in render(board)
    assert "alpha" in render_page(board)


def test_a_confirmed_refutation_stands_beside_the_figure_and_moves_no_rank(tmp_path: Path) -> None:
    _models(tmp_path)
    before = build(tmp_path, RULES).active[0].rows
    (beta,) = [row for row in before if row.model == "beta"]
    place, outcomes = Place(tmp_path / "submissions", "beta", TOY), toy_outcomes(200, seed=1, robust=0.88)
    broken = [each.id for each in outcomes if each.clean == each.label and not each.fooled_at][:7]
    sha256 = hashlib.sha256(put_refutation(place, broken).read_bytes()).hexdigest()
    assert "best known" not in render(build(tmp_path, RULES))  # nobody has confirmed it
    _verdict(tmp_path, "beta", confirmed=[{"sha256": sha256, "ids": broken[:5]}])
    board = build(tmp_path, RULES)
    known = f"{(beta.headline.numerator - 5) / 2:.1f} %"
    assert render(board).count("best known") == 1
    for text in (render(board), render_page(board)):
        assert f"], best known {known}" in text
        assert "Best known: what is left of the figure after refutations" in text
        assert text.count("best known") == text.count(f"best known {known}")
    assert [(row.model, row.rank) for row in board.active[0].rows] == [(row.model, row.rank) for row in before]


def test_a_tampered_verdict_makes_no_board(tmp_path: Path) -> None:
    _models(tmp_path)
    path = _verdict(tmp_path, "beta")
    path.write_text(path.read_text().replace('"fell": 0', '"fell": 1'))
    with pytest.raises(SubmissionError, match=r"RB901 error: verifications/beta/toy-pgd@2/verdict\.json"):
        build(tmp_path, RULES)


# --- protocols of other kinds


def test_a_protocol_without_an_attack_has_one_number(tmp_path: Path) -> None:
    rules = toy_rules(200, attack=MISSING, budget=MISSING, score=MISSING)
    outcomes = [
        replace(each, attacked=each.clean, attacked_margin=each.clean_margin, fooled_at=(), stage="")
        for each in toy_outcomes(200)
    ]
    claim(tmp_path, "alpha", rules=rules, outcomes=outcomes)
    board = build(tmp_path, rules)
    text = render(board)
    assert "| rank | model | clean | [95 %] | parameters |" in text
    assert "<svg" not in render_page(board)


def test_answers_are_ranked_by_their_mean(tmp_path: Path) -> None:
    rules = toy_rules(200, attack__draws=20, score={"asks": 20})

    def asked(seed: int, rights: int) -> list[Outcome]:
        drawn = toy_outcomes(200, seed=seed)
        return [replace(each, fooled_at=(), clean_right=20, attacked_right=rights + seed) for each in drawn]

    for seed, (name, rights) in enumerate([("alpha", 3), ("beta", 11), ("gamma", 1)]):
        claim(tmp_path, name, rules=rules, seed=seed, outcomes=asked(seed, rights))
    rows = build(tmp_path, rules).active[0].rows
    assert all(row.held is None and row.counts is not None for row in rows)
    assert [(row.model, row.headline.numerator, row.ranks) for row in rows] == [
        ("beta", 2400, (1, 1)),
        ("alpha", 600, (2, 3)),
        ("gamma", 600, (2, 3)),
    ]
    (paired,) = _paired(render_page(build(tmp_path, rules)))
    assert paired["asks"] == 20
    counts = [base64.b64decode(each) for each in paired["counts"]]
    assert counts == [bytes([9] * 200), bytes([0] * 200), bytes([0] * 200)]


# --- as published


def test_published_figures_are_marked_and_never_ranked(board: Board) -> None:
    text, page = render(board), render_page(board)
    assert text.index("# As published") > text.index("| 1 to 2 | [alpha]")
    assert text.count("## As published: ") == len(board.published) >= 4
    assert "Nobody here has measured them" in text
    assert "Nobody here has measured them" in html.unescape(page)


def test_published_figures_say_where_they_stand_and_are_numbers() -> None:
    for table in read_published():
        assert table.paper
        assert re.search(r"at [0-9a-f]{7}$|paper's .*\bTable \d$", table.source)
        assert all(len(row) == len(table.columns) for row in table.rows)
        assert all(re.fullmatch(r"\d{1,2}\.\d{1,3}|0|-", cell) for row in table.rows for cell in row[1:])
    content = tomllib.loads((ROOT / "robench" / "leaderboard" / "published.toml").read_text())
    assert len(content["table"]) == len(read_published())


# --- plots


def test_points_lie_where_their_values_say() -> None:
    plot = shares("clean", "robust", [(0.0, 0.0), (1.0, 1.0), (0.5, 0.25)])
    spots = [(float(x), float(y)) for _, x, y in plot.points]
    corners = [(LEFT, HEIGHT - BOTTOM), (WIDTH - RIGHT, TOP)]
    middle, quarter = (LEFT + WIDTH - RIGHT) / 2, HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) / 4
    for spot, expected in zip(spots, [*corners, (middle, quarter)], strict=True):
        assert spot == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize(
    ("sizes", "ticks"),
    [
        ([1_000, 10_000, 100_000], ["1 k", "10 k", "100 k"]),
        ([25_600_000], ["10 M", "100 M"]),
        ([1000], ["1 k", "10 k"]),
        ([None], ["1", "10"]),
        ([None, 5], ["1", "10"]),
    ],
)
def test_sizes_lie_on_decades(sizes: list[int | None], ticks: list[str]) -> None:
    plot = over_sizes("parameters", "robust", [(size, 0.5) for size in sizes])
    assert [text for _, text in plot.x_ticks] == ticks
    assert [row for row, _, _ in plot.points] == [row for row, size in enumerate(sizes) if size is not None]
    assert all(LEFT <= float(x) <= WIDTH - RIGHT for _, x, _ in plot.points)


# --- texts that want to be more than text


class _Page(HTMLParser):
    """Counts elements and attributes, and keeps texts."""

    def __init__(self) -> None:
        super().__init__()
        self.shape: list[tuple[str, tuple[str, ...]]] = []
        self.links: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.shape.append((tag, tuple(name for name, _ in attrs)))
        self.links += [value or "" for name, value in attrs if name in ("href", "src", "action", "style")]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def _parsed(page: str) -> _Page:
    parser = _Page()
    parser.feed(page)
    return parser


HOSTILE = [
    "<script>alert(1)</script>",
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "\"' onmouseover='alert(1)",
    "{{ 7 * 7 }}{% raw %}",
    "[a](javascript:alert(1))",
    "![a](https://example.org/pixel.png)",
    "| a | b |",
    "# heading",
    "**bold** _italic_ `code` ~~gone~~",
    "@everyone https://example.org www.example.org <https://example.org>",
    "&lt;b&gt; &#60;",
    "a\\|b\\",
    "=HYPERLINK(1)",
    "$x$ and $$y$$, @a/b#1 GH-1 :tada: &amp &copy; a_b_c __init__ \u203f_a_\u203f",
]
NOTHING = "\u200b"
"""A character without width."""
PRINTABLE = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=60)
TEXTS = st.one_of(
    st.sampled_from(HOSTILE), PRINTABLE, st.text(st.sampled_from("<>&\"'`*_[]()|\\!#:/.@w"), min_size=1, max_size=30)
)


def _row(row: Row, text: str) -> Row:
    words = dict.fromkeys(("author", "training_data", "licence", "notes"), text)
    submission = row.submission.model_copy(update=words)
    result = row.result.model_copy(update={"caveats": (text,)})
    return replace(row, submission=submission, result=result)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Board:
    folder = tmp_path_factory.mktemp("plain")
    claim(folder, "alpha", rules=RULES)
    return build(folder, RULES)


def _with(board: Board, text: str) -> Board:
    (table,) = board.active
    return replace(board, active=[replace(table, rows=[_row(row, text) for row in table.rows])])


@given(text=TEXTS)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_no_text_becomes_markup(text: str, plain: Board) -> None:
    innocent, hostile = _with(plain, "innocent"), _with(plain, text)
    expected, found = _parsed(render_page(innocent)), _parsed(render_page(hostile))
    assert found.shape == expected.shape
    assert found.links == expected.links
    assert any(text in each for each in found.texts)
    markdown = MarkdownIt("gfm-like", {"linkify": False}).enable(["table", "strikethrough"])
    expected, found = _parsed(markdown.render(render(innocent))), _parsed(markdown.render(render(hostile)))
    assert found.shape == expected.shape
    assert found.links == expected.links
    read = " ".join(found.texts).replace(NOTHING, "")
    assert " ".join(text.split()) in " ".join(read.split())


@given(text=TEXTS)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_no_text_of_a_report_becomes_markup_in_a_comment(text: str) -> None:
    def report(word: str) -> bytes:
        finding = dict.fromkeys(("file", "pointer", "found", "expected", "fix"), word) | {"code": "RB405"}
        beside = dict.fromkeys(("model", "protocol", "rank", "headline"), word)
        other = {"model": word, "headline": word, "p_value": 0.5}
        rows = [{**beside, "neighbours": [other]}]
        content = {"schema": "robench.report/1", "claims": 1, "findings": [finding], "rows": rows}
        return json.dumps(content).encode()

    markdown = MarkdownIt("gfm-like", {"linkify": False}).enable(["table", "strikethrough"])
    expected, found = (_parsed(markdown.render(comment(report(word)))) for word in ("innocent", text))
    assert found.shape == expected.shape
    assert found.links == expected.links


@pytest.mark.parametrize("model", ["a b", "a`b", "a\n```\n# b", "-rf", "", "a" * 100 + "b"])
def test_a_comment_names_no_command_for_a_claim_of_another_shape(model: str) -> None:
    row = {"model": model[:100], "protocol": "toy@1", "rank": "1", "headline": "x", "neighbours": []}
    content = {"schema": "robench.report/1", "claims": 1, "findings": [], "rows": [row]}
    assert ("robench verify" in comment(json.dumps(content).encode())) is (model[:100] == "a" * 100)


LINKED = [
    "https://a.org",
    "www.a.org",
    "WWW.a.org",
    "@someone",
    "é@someone",
    "a@b.org",
    "#12",
    "a#12",
    "GH-12",
    ":tada:",
]


@pytest.mark.parametrize("text", LINKED)
def test_nothing_is_left_for_github_to_link(text: str) -> None:
    """Nor after entities were resolved, which GitHub does before it looks for names and numbers."""
    assert not re.search(r"https?:|(?i:www\.)|@\w|[#-]\d|:\w+:", html.unescape(escaped(text)))


@pytest.mark.parametrize(
    "text",
    [
        "the suite's training set, 60,000 generated images (10 classes)",
        "Bai, Mei, Yuille & Xie 2021, arXiv:2111.05464",
        'ResNet-50 "best", +3.1 %, > 5, = 6; see {x}',
        "my_package.models:build, mini-pgd-linf@1, 5 # 6!",
    ],
)
def test_text_without_a_second_meaning_stays_readable(text: str) -> None:
    assert escaped(text) == text


def test_the_page_allows_only_what_is_in_it(board: Board) -> None:
    page = render_page(board)
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    directives = html.unescape(policy[1])
    assert "default-src 'none'" in directives
    assert "unsafe" not in directives
    assert len(re.findall(r"'sha256-[A-Za-z0-9+/=]{44}'", directives)) == 2
    links = _parsed(page).links
    assert all(link.startswith(("../submissions/", "#", "data:,")) for link in links)


# --- without an attack

SCORES = {
    "among": "top1@among [95 %] | top1",
    "reference": "top1 [95 %] | reference | over reference",
    "textures": "top1 [95 %] | shape bias",
    "cells": "clean | top1@cells [95 %] | to clean | mean error",
    "cells without clean": "top1@cells [95 %] | mean error",
}


def _shifted(repository: Path, kind: Kind) -> Board:
    for seed, (name, right) in enumerate([("alpha", 0.6), ("beta", 0.85), ("gamma", 0.55)]):
        shifted_claim(repository, kind, name, seed=seed, right=right)
    return build(repository, shifted_rules(kind))


@pytest.mark.parametrize("kind", SCORES)
def test_shifted_tables_have_the_numbers_of_their_protocol(kind: Kind, tmp_path: Path) -> None:
    board = _shifted(tmp_path, kind)
    (table,) = board.active
    best = table.rows[0]
    assert (best.model, best.ranks) == ("beta", (1, 1))
    text, page = render(board), render_page(board)
    assert f"| rank | model | {SCORES[kind]} | parameters |" in text
    for title in SCORES[kind].split(" | "):
        assert f">{title}</th>" in page
    assert page.count("<svg") == (2 if kind == "cells" else 1)
    for row in table.rows:
        for name, number in row.others.items():
            assert number.interval is not None
            sign, unit = ("+", " points") if name == "over reference" else ("", " %")
            low, high = (f"{100 * bound:{sign}.1f}" for bound in number.interval)
            assert f" | {100 * number.value:{sign}.1f}{unit} [{low}, {high}] |" in text
        for number in row.result.derived:
            assert f"- {number.name}: {number.note}" in text
            assert f'title="{number.note}"' in page


def test_where_there_is_a_reference_model_the_difference_ranks(tmp_path: Path) -> None:
    """Two copies of a set: on the harder one the reference model is worse, too, and a better model has fewer right."""
    for name, right, shift in (("low", 0.6, 40), ("high", 0.8, 0)):
        outcomes = [
            replace(each, reference=(each.label + (place < 60 + shift)) % 3)
            for place, each in enumerate(shifted_outcomes("reference", seed=len(name), right=right))
        ]
        shifted_claim(tmp_path, "reference", name, seed=len(name), outcomes=outcomes)
    (table,) = build(tmp_path, shifted_rules("reference")).active
    assert [row.model for row in table.rows] == ["low", "high"]
    assert table.rows[0].headline.value < table.rows[1].headline.value
    assert table.ranking == "over reference"
    for row in table.rows:
        assert row.counts is not None
        assert sum(row.counts) / len(row.counts) == pytest.approx(row.result.ranking.value, abs=1e-6)
    page = render_page(_shifted(tmp_path, "reference"))
    assert re.search(r'data-key="over reference" class="number" title=".*" aria-sort="descending"', page)


def test_images_whose_shape_and_texture_agree_are_in_no_comparison(tmp_path: Path) -> None:
    board = _shifted(tmp_path, "textures")
    (table,) = board.active
    for seed, name in ((0, "alpha"), (1, "beta")):
        (row,) = [row for row in table.rows if row.model == name]
        outcomes = shifted_outcomes("textures", seed=seed, right=0.6 if seed == 0 else 0.85)
        held = [each.clean == each.label != each.texture for each in outcomes]
        assert row.held == sum(1 << place for place, each in enumerate(held) if each)
        assert (row.headline.numerator, row.headline.denominator) == (sum(held), COUNT - COUNT // 10)
    (paired,) = _paired(render_page(board))
    assert paired["total"] == COUNT - COUNT // 10


def test_too_many_counts_are_left_out_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    board = _shifted(tmp_path, "cells")
    (paired,) = _paired(render_page(board))
    rights = [sum(base64.b64decode(each)) for each in paired["counts"]]
    numerators = [row.headline.numerator for row in board.active[0].rows]
    assert [each - rights[0] for each in rights] == [each - numerators[0] for each in numerators]
    assert paired["asks"] == CELLS
    monkeypatch.setattr(page_of_board, "MOST_BYTES", 3 * COUNT - 1)
    assert _paired(render_page(board)) == [{}]


def test_what_confounds_a_set_stands_above_its_table(tmp_path: Path) -> None:
    rules = shifted_rules("plain")
    (name,) = rules.protocols
    odd = rules.protocols[name].model_copy(update={"confounds": "Filtered with <one> model."})
    text = render(build(tmp_path, Rules({name: odd}, {name: odd.digest}, rules.labels)))
    assert "Filtered with &lt;one> model." in text
