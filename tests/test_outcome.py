import csv
import gzip
import hashlib
import io
import math
import random
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robench.errors import RunError
from robench.outcome import ASKED, COLUMNS, PATCH_COLUMNS, Outcome, compress, digest, from_csv, read_outcomes, to_csv

HEADER = "id,label,clean,attacked,clean_margin,attacked_margin,fooled_at,stage,unconfirmed,error"
PLAIN = Outcome("a", 1, 1, 2, 0.5, -0.25, (5,), "pgd", 1)

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(["a,b", 'a"b', "a\rb", "a\nb"])
# Numbers of at most three digits, built from integers, so that nothing is lost in writing.
MARGINS = st.builds(lambda digits, power: float(f"{digits}e{power}"), st.integers(-999, 999), st.integers(-30, 30))
OUTCOMES = st.builds(
    Outcome,
    id=TEXT,
    label=st.integers(0, 999),
    clean=st.integers(-1, 999),
    attacked=st.integers(-1, 999),
    clean_margin=MARGINS | st.sampled_from([math.inf, -math.inf]),
    attacked_margin=MARGINS,
    fooled_at=st.lists(st.integers(0, 1000), max_size=4).map(tuple),
    stage=TEXT,
    unconfirmed=st.integers(0, 9),
    error=TEXT,
    queries=st.none() | st.integers(0, 100_000),
    patches=st.none() | st.integers(0, 9),
    area=st.none() | st.integers(0, 999).map(lambda thousandths: thousandths / 1000),
)

ASKED_OUTCOMES = st.builds(
    lambda outcome, before, after: replace(outcome, clean_right=before, attacked_right=after),
    OUTCOMES,
    st.integers(0, 20),
    st.integers(0, 20),
)
TABLES = st.lists(OUTCOMES, max_size=5) | st.lists(ASKED_OUTCOMES, max_size=5)


@given(TABLES)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_what_is_written_is_read_back(outcomes: list[Outcome]) -> None:
    assert from_csv(to_csv(outcomes), where="x") == outcomes


@given(TABLES, st.floats(allow_nan=False))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_rounding_a_margin_twice_changes_nothing(outcomes: list[Outcome], value: float) -> None:
    written = to_csv([replace(outcome, clean_margin=value, attacked_margin=-value) for outcome in outcomes])
    assert to_csv(from_csv(written, where="x")) == written


@given(TABLES)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_any_reader_of_csv_finds_the_fields(outcomes: list[Outcome]) -> None:
    rows = list(csv.reader(io.StringIO(to_csv(outcomes).decode(), newline=""), strict=True))
    patched = any((each.queries, each.patches, each.area) != (None, None, None) for each in outcomes)
    asked = any(each.clean_right is not None for each in outcomes)
    assert rows[0] == [*COLUMNS, *(ASKED if asked else ()), *(PATCH_COLUMNS if patched else ())]
    assert [(row[0], row[7], row[9]) for row in rows[1:]] == [(each.id, each.stage, each.error) for each in outcomes]


def test_the_bytes_are_pinned() -> None:
    """If this changes, every digest in every result changes."""
    quoted = Outcome('x, "y"', 0, 3, 3, 1234567.0, -0.000123456, error="two\r\nlines")
    assert to_csv([PLAIN, replace(PLAIN, fooled_at=(5, 10)), quoted]).decode() == (
        f"{HEADER}\n"
        "a,1,1,2,0.5,-0.25,5,pgd,1,\n"
        "a,1,1,2,0.5,-0.25,5 10,pgd,1,\n"
        '"x, ""y""",0,3,3,1.23e+06,-0.000123,,,0,"two\r\nlines"\n'
    )
    assert digest([PLAIN]) == hashlib.sha256(f"{HEADER}\na,1,1,2,0.5,-0.25,5,pgd,1,\n".encode()).hexdigest()


def test_counts_of_right_answers_come_last_and_only_where_there_are_some() -> None:
    asked = replace(PLAIN, fooled_at=(), clean_right=20, attacked_right=7)
    header = f"{HEADER},clean_right,attacked_right"
    assert to_csv([asked]).decode() == f"{header}\na,1,1,2,0.5,-0.25,,pgd,1,,20,7\n"
    assert from_csv(to_csv([asked, replace(asked, attacked_right=0)]), where="x") == [
        asked,
        replace(asked, attacked_right=0),
    ]
    assert tuple(header.split(",")) == (COLUMNS + ASKED)
    for mixed in ([asked, PLAIN], [PLAIN, asked], [replace(asked, attacked_right=None)]):
        with pytest.raises(
            RunError, match=r"^o\.csv: `line \d` is \d\d columns instead of \d\d; expected an outcome\.$"
        ):
            from_csv(to_csv(mixed), where="o.csv")


def test_an_example_has_an_image_if_it_was_fooled_or_asked_about() -> None:
    asked = replace(PLAIN, fooled_at=(), clean_right=20, attacked_right=20)
    assert [each.has_image for each in (PLAIN, replace(PLAIN, fooled_at=()), asked, replace(asked, error="NaN"))] == [
        True,
        False,
        True,
        False,
    ]


def test_columns_of_patches_are_there_only_where_something_stands_in_them() -> None:
    patched = replace(PLAIN, fooled_at=(812,), stage="tpa", queries=1000, patches=1, area=0.0244141)
    text = f"{HEADER},queries,patches,area\na,1,1,2,0.5,-0.25,5,pgd,1,,,,\na,1,1,2,0.5,-0.25,812,tpa,1,,1000,1,0.0244\n"
    assert to_csv([PLAIN, patched]).decode() == text
    assert from_csv(text.encode(), where="x") == [PLAIN, replace(patched, area=0.0244)]
    empty = f"{HEADER},queries,patches,area\na,1,1,2,0.5,-0.25,5,pgd,1,,,,\n"
    for wrong in (empty, text.replace("0.0244", "0.02440"), text.replace(",1000,", ",1e3,")):
        with pytest.raises(RunError, match=r"as robench writes them|expected an outcome"):
            from_csv(wrong.encode(), where="x")
    with pytest.raises(RunError, match="`line 2` is 10 columns instead of 13; expected an outcome"):
        from_csv(f"{HEADER},queries,patches,area\na,1,1,2,0.5,-0.25,5,pgd,1,\n".encode(), where="x")


def test_the_header_says_which_columns_a_table_has() -> None:
    """Counts come before patches; a table whose header is another's, or in another order, is refused."""
    patched = replace(PLAIN, fooled_at=(812,), stage="tpa", queries=1000, patches=1, area=0.0244)
    asked = replace(PLAIN, fooled_at=(), clean_right=20, attacked_right=7)
    both = replace(patched, clean_right=20, attacked_right=7)
    text = (
        f"{HEADER},clean_right,attacked_right,queries,patches,area\na,1,1,2,0.5,-0.25,812,tpa,1,,20,7,1000,1,0.0244\n"
    )
    assert to_csv([both]).decode() == text
    assert from_csv(text.encode(), where="x") == [both]
    assert from_csv(to_csv([both, asked]), where="x") == [both, asked]
    refused = {
        text.replace(
            "clean_right,attacked_right,queries,patches,area", "queries,patches,area,clean_right,attacked_right"
        ): 1,
        text.replace(",clean_right,attacked_right", ""): 2,
        text.replace(",queries,patches,area", ""): 2,
        text.replace(",20,7,", ",20,,"): 2,
        text.replace(",area", ""): 1,
    }
    for wrong, line in refused.items():
        with pytest.raises(RunError, match=rf"^o\.csv: `line {line}` is "):
            from_csv(wrong.encode(), where="o.csv")


# --- what an outcome says


@pytest.mark.parametrize(
    ("fooled_at", "step", "any_iterate", "last_iterate"),
    [
        ((), 100, True, True),
        ((5,), 4, True, True),
        ((5,), 5, False, False),
        ((5,), 6, False, True),
        ((0,), 0, False, False),
        ((5, 50), 10, False, True),
        ((5, 50), 50, False, False),
    ],
)
def test_robust_at_a_step(fooled_at: tuple[int, ...], step: int, any_iterate: bool, last_iterate: bool) -> None:
    outcome = replace(PLAIN, fooled_at=fooled_at)
    assert outcome.robust_at(step, "any iterate") is any_iterate
    assert outcome.robust_at(step, "last iterate") is last_iterate


@pytest.mark.parametrize("scoring", ["any iterate", "last iterate"])
def test_what_is_wrong_clean_or_errored_is_not_robust(scoring: str) -> None:
    for outcome in (replace(PLAIN, clean=2, fooled_at=()), replace(PLAIN, error="no image", fooled_at=())):
        assert not outcome.clean_correct
        assert not outcome.robust_at(10, scoring)
    assert PLAIN.clean_correct


@given(OUTCOMES, st.integers(0, 1000), st.integers(0, 1000))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_under_any_iterate_robustness_never_rises(outcome: Outcome, first: int, second: int) -> None:
    early, late = sorted((first, second))
    assert outcome.robust_at(early, "any iterate") >= outcome.robust_at(late, "any iterate")


# --- what is refused

ROW = "a,1,1,2,0.5,-0.25,5,pgd,1,"
WRONG_ROWS = [
    ("", "0 columns instead of 10"),
    ("a,1,1", "3 columns instead of 10"),
    (f"{ROW},", "11 columns instead of 10"),
    ("a,x,1,2,0.5,-0.25,5,pgd,1,", "invalid literal for int() with base 10: 'x'"),
    ("a,1,1,2,half,-0.25,5,pgd,1,", "could not convert string to float: 'half'"),
    ("a,1,1,2,nan,-0.25,5,pgd,1,", "a margin that is no number"),
]
# These say the same as ROW, so that a digest of what was understood would not see them.
OTHERWISE_WRITTEN = [
    "a,+1,1,2,0.5,-0.25,5,pgd,1,",
    "a,01,1,2,0.5,-0.25,5,pgd,1,",
    "a,1, 1,2,0.5,-0.25,5,pgd,1,",
    "a,1,1,2,0.50,-0.25,5,pgd,1,",
    "a,1,1,2,0.5001,-0.25,5,pgd,1,",
    "a,1,1,2,5e-1,-0.25,5,pgd,1,",
    "a,1,1,2,0.5,-0.25,5 ,pgd,1,",
    "a,1,1,2,0.5,-0.25,5,pgd,0_1,",
]


@pytest.mark.parametrize(("row", "found"), WRONG_ROWS)
def test_a_wrong_line_is_named(row: str, found: str) -> None:
    with pytest.raises(RunError) as caught:
        from_csv(f"{HEADER}\n{ROW}\n{row}\n".encode(), where="o.csv")
    assert str(caught.value) == f"o.csv: `line 3` is {found}; expected an outcome."


@pytest.mark.parametrize("row", OTHERWISE_WRITTEN)
def test_one_outcome_has_one_spelling(row: str) -> None:
    with pytest.raises(RunError) as caught:
        from_csv(f"{HEADER}\n{row}\n".encode(), where="o.csv")
    assert str(caught.value) == f"o.csv: `line 2` is {row!r}, which reads as {ROW!r}; expected an outcome."


@pytest.mark.parametrize(
    "content", [f"{HEADER}\r\n{ROW}\r\n", f"{HEADER}\n{ROW}", f'{HEADER}\n"a"{ROW[1:]}\n', f'"id"{HEADER[2:]}\n{ROW}\n']
)
def test_one_table_has_one_spelling(content: str) -> None:
    with pytest.raises(
        RunError, match=r"^o\.csv: `content` is written with other line ends or quotes; expected outcomes"
    ):
        from_csv(content.encode(), where="o.csv")


def test_a_wrong_header_is_named() -> None:
    for content in ("", "id,label\n", f"{ROW}\n"):
        with pytest.raises(RunError, match=rf"^o\.csv: `line 1` is .*; expected the columns {HEADER}\.$"):
            from_csv(content.encode(), where="o.csv")


def test_what_is_no_csv_is_refused() -> None:
    for content in (b"\xff", f'{HEADER}\n"a'.encode(), f"{HEADER}\na\rb\n".encode()):
        with pytest.raises(RunError, match=r"^o\.csv: `content` is no CSV \(.+\); expected outcomes as robench writes"):
            from_csv(content, where="o.csv")


# --- compression


def test_the_gzip_header_holds_no_time_and_no_name() -> None:
    packed = compress(b"abc" * 100)
    assert gzip.decompress(packed) == b"abc" * 100
    magic_and_deflate, flags, time = packed[:3], packed[3], packed[4:8]
    assert magic_and_deflate == b"\x1f\x8b\x08"
    assert flags == 0  # no name, no comment
    assert time == bytes(4)
    assert packed == compress(b"abc" * 100)


def test_outcomes_are_read_from_their_file(tmp_path: Path) -> None:
    path = tmp_path / "outcomes.csv.gz"
    path.write_bytes(compress(to_csv([PLAIN])))
    assert read_outcomes(path) == [PLAIN]


def test_every_damaged_byte_is_an_error_of_robench_or_harmless(tmp_path: Path) -> None:
    path, outcomes = tmp_path / "outcomes.csv.gz", [replace(PLAIN, id=f"e{index}") for index in range(40)]
    whole = compress(to_csv(outcomes))
    refused = 0
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x55]) + whole[position + 1 :])
        try:
            assert read_outcomes(path) == outcomes
        except RunError as error:
            refused += 1
            assert re.match(rf"{re.escape(str(path))}: `file` is unreadable \(.+\); expected", str(error))  # noqa: PT017 -- some bytes are harmless
    assert refused > len(whole) - 10  # time, flags and operating system in the header carry nothing


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.99])
def test_a_truncated_file_is_refused(tmp_path: Path, kept: float) -> None:
    path, whole = tmp_path / "outcomes.csv.gz", compress(to_csv([PLAIN] * 40))
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(RunError, match=r"`(file|line 1)` is .*; expected"):
        read_outcomes(path)


def test_a_missing_or_plain_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "outcomes.csv.gz"
    with pytest.raises(RunError, match=r"`file` is unreadable \(.*No such file.*\); expected outcomes as robench"):
        read_outcomes(path)
    path.write_bytes(to_csv([PLAIN]))
    with pytest.raises(RunError, match=r"`file` is unreadable \(Not a gzipped file .*\); expected outcomes as robench"):
        read_outcomes(path)


def test_fifty_thousand_lines_stay_under_a_megabyte() -> None:
    chance = random.Random(0)
    outcomes = [
        Outcome(
            id=f"ILSVRC2012_val_{index + 1:08d}",
            label=(label := chance.randrange(1000)),
            clean=label if chance.random() < 0.8 else chance.randrange(1000),
            attacked=label if chance.random() < 0.4 else chance.randrange(1000),
            clean_margin=chance.gauss(3, 3),
            attacked_margin=chance.gauss(-1, 3),
            fooled_at=(chance.randrange(100),) if chance.random() < 0.6 else (),
            stage="pgd",
        )
        for index in range(50_000)
    ]
    assert len(compress(to_csv(outcomes))) < 1_000_000
