import re
from pathlib import Path

from robench.validation.codes import CODES, LEVELS, page

ROOT = Path(__file__).parent.parent.parent


def test_the_page_is_the_table() -> None:
    assert (ROOT / "docs" / "validation-codes.md").read_text(encoding="utf-8") == page()


def test_every_code_has_a_level_and_says_what_to_do() -> None:
    for name, code in CODES.items():
        assert re.fullmatch(r"RB[1-9]\d\d", name)
        assert code.level == LEVELS[name[2]]
        assert code.fix.endswith(".")
        assert (code.severity == "warning") == (name[2] == "6" or name in ("RB703", "RB806"))


def test_every_code_is_given_somewhere_and_no_other() -> None:
    sources = [path.read_text() for path in (ROOT / "robench" / "validation").glob("*.py") if path.name != "codes.py"]
    assert {name for source in sources for name in re.findall(r'"(RB\d+)"', source)} == set(CODES)


def test_every_code_is_met_in_a_test() -> None:
    tests = [path.read_text() for path in (ROOT / "tests" / "validation").glob("*.py")]
    assert set(CODES) - {name for text in tests for name in re.findall(r"RB\d+", text)} == set()
