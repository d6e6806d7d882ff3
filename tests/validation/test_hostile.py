"""Whatever a stranger puts into a submission: findings, never a traceback, nothing read outside, bounded memory."""

import gzip
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from robench.errors import SubmissionError
from robench.outcome import compress, to_csv
from robench.submission import OUTCOMES, RESULT, TOML
from robench.validation import validate
from robench.validation.reading import LARGEST
from tests.claims import TOY, claim, toy_outcomes, toy_rules

RULES = toy_rules()
MARKUP = [
    "<script>alert(1)</script>",
    "[a](javascript:b)",
    "![x](https://x.org/y.png)",
    "a|b\n|c",
    "\x1b[31m",
    "\u202e",
    "{{7*7}}",
]
TEXTS = st.one_of(st.sampled_from(MARKUP), st.text(max_size=30))
NUMBERS = st.one_of(
    st.integers(),
    st.sampled_from([0, 1, 63, 400, 5000]).map(lambda digits: -(10**digits)),
    st.floats(allow_nan=True, allow_infinity=True),
)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXTS, inner, max_size=4)),
    max_leaves=8,
)
QUICK, LONG = 300, 10_000

opened: list[str] = []


def _listen(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _Listening.on and isinstance(arguments[0], str | bytes | os.PathLike):
        opened.append(os.fsdecode(arguments[0]))


class _Listening:
    on = False


sys.addaudithook(_listen)


@pytest.fixture(scope="module", autouse=True)
def _long_integers() -> Any:
    """Tests write numbers that Python does not write by itself."""
    before = sys.get_int_max_str_digits()
    yield
    sys.set_int_max_str_digits(before)


def examine_folder(root: Path) -> list[str]:
    """Codes of what is found; the oracle of every test here."""
    opened.clear()
    _Listening.on = True
    try:
        report = validate([root], rules=RULES)
    except SubmissionError as error:
        return [str(error)]
    finally:
        _Listening.on = False
    real = os.path.realpath(root)
    outside = [path for path in opened if not os.path.realpath(path).startswith(real)]
    assert outside == []
    for finding in report.findings:
        assert str(finding).isascii()
        assert str(finding).isprintable()
        assert len(str(finding)) < 1500
        assert finding.annotation().startswith(("::error file=", "::warning file="))
        assert "\n" not in finding.annotation()
        json.dumps(finding.content(), allow_nan=False)
    return [finding.code for finding in report.findings]


def _leaves(content: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [path, *(leaf for key, value in items for leaf in _leaves(value, (*path, key)))]


with tempfile.TemporaryDirectory() as _honest:
    HONEST = {name: (claim(Path(_honest), rules=RULES).folder / name).read_bytes() for name in (TOML, RESULT, OUTCOMES)}
RESULT_CONTENT = json.loads(HONEST[RESULT])
PLACES = [path for path in _leaves(RESULT_CONTENT) if "fingerprint" not in path][1:]


def _put(path: tuple[Any, ...], value: Any) -> bytes:
    content = json.loads(HONEST[RESULT])
    table = content
    for key in path[:-1]:
        table = table[key]
    table[path[-1]] = value
    sys.set_int_max_str_digits(0)
    try:
        return (json.dumps(content, sort_keys=True, indent=2) + "\n").encode("utf-8", "surrogatepass")
    finally:
        sys.set_int_max_str_digits(4300)


def _toml_value(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


CSV = to_csv(toy_outcomes())
LINES = CSV.split(b"\n")
FILES: st.SearchStrategy[dict[str, bytes]] = st.one_of(
    st.builds(lambda path, value: {RESULT: _put(path, value)}, st.sampled_from(PLACES), JSON),
    st.builds(lambda content: {RESULT: content}, st.binary(max_size=300)),
    st.builds(
        lambda depth, pair: {RESULT: pair[0] * depth + pair[1] * depth},
        st.integers(1, 60_000),
        st.sampled_from([(b"[", b"]"), (b'{"a":', b"}")]),
    ),
    st.builds(
        lambda key, value: {
            TOML: HONEST[TOML].replace(
                b"schema", f"{key} = {_toml_value(value)}\nschema".encode("utf-8", "surrogatepass"), 1
            )
        },
        st.sampled_from(["paper", "notes", "tier", "loader", "'<b>'"]),
        st.one_of(TEXTS, st.lists(TEXTS, max_size=2), st.integers(), st.booleans()),
    ),
    st.builds(
        lambda key, value: {
            TOML: HONEST[TOML].replace(
                b'"A. Person"' if key else b'"Toys"', _toml_value(value).encode("utf-8", "surrogatepass")
            )
        },
        st.booleans(),
        TEXTS,
    ),
    st.builds(lambda content: {TOML: content}, st.binary(max_size=200)),
    st.builds(lambda depth: {TOML: HONEST[TOML] + b"x = " + b"[" * depth + b"]" * depth}, st.integers(1, 7000)),
    st.builds(lambda content: {OUTCOMES: content}, st.binary(max_size=200)),
    st.builds(lambda content: {OUTCOMES: compress(content)}, st.binary(max_size=300)),
    st.builds(
        lambda line, column, cell: {OUTCOMES: compress(_cell(line, column, cell))},
        st.integers(0, 40),
        st.integers(0, 9),
        st.one_of(TEXTS, st.sampled_from(["", "nan", "inf", "1e999", "-0", "1_0", "\u0661", "9" * 5000, '"'])),
    ),
)


def _cell(line: int, column: int, cell: str) -> bytes:
    cells = LINES[line].split(b",")
    cells[column] = cell.encode("utf-8", "surrogatepass")
    return b"\n".join([*LINES[:line], b",".join(cells), *LINES[line + 1 :]])


def _fuzz(files: dict[str, bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "submissions" / "alpha" / TOY
        place.mkdir(parents=True)
        for name, content in {**HONEST, **files}.items():
            (place / name).write_bytes(content)
        found = examine_folder(place.parent.parent)
        if (place / OUTCOMES).read_bytes() != HONEST[OUTCOMES]:
            assert found != []


@given(FILES)
@settings(max_examples=QUICK, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
def test_hostile_content_is_found_and_nothing_else_happens(files: dict[str, bytes]) -> None:
    _fuzz(files)


@pytest.mark.slow
@given(FILES)
@settings(max_examples=LONG, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
def test_hostile_content_many_times(files: dict[str, bytes]) -> None:
    _fuzz(files)


# --- what lies in the folder


def _link(folder: Path) -> None:
    (folder / RESULT).unlink()
    (folder / RESULT).symlink_to("/etc/passwd")


def _link_folder(folder: Path) -> None:
    target = folder.parent.parent.parent / "elsewhere"
    folder.rename(target)
    folder.symlink_to(target)


def _link_model(folder: Path) -> None:
    target = folder.parent.parent.parent / "elsewhere"
    folder.parent.rename(target)
    folder.parent.symlink_to(target)


def _pipe(folder: Path) -> None:
    (folder / OUTCOMES).unlink()
    os.mkfifo(folder / OUTCOMES)


def _file_to_folder(folder: Path) -> None:
    (folder / TOML).unlink()
    (folder / TOML).mkdir()


def _empty(folder: Path) -> None:
    for name in (TOML, RESULT, OUTCOMES):
        (folder / name).unlink()


def _non_utf8(folder: Path) -> None:
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff\xfe.md")).write_text("x")


STRUCTURES: dict[str, tuple[Callable[[Path], object], set[str]]] = {
    "a link for a file": (_link, {"RB104"}),
    "a link for a claim": (_link_folder, {"RB104"}),
    "a link for a model": (_link_model, {"RB104"}),
    "a pipe": (_pipe, {"RB104"}),
    "a folder for a file": (_file_to_folder, {"RB104"}),
    "a name that is not UTF-8": (_non_utf8, {"RB103"}),
    "a hidden file": (lambda folder: (folder / ".env").write_text("x"), {"RB103"}),
    "a folder too many": (lambda folder: (folder / "logs").mkdir(), {"RB103"}),
    "weights": (lambda folder: (folder / "model.safetensors").write_bytes(b"x"), {"RB103"}),
    "a missing file": (lambda folder: (folder / OUTCOMES).unlink(), {"RB102"}),
    "no files": (_empty, {"RB102"}),
    "a file too large": (lambda folder: (folder / TOML).write_bytes(b"#" * (LARGEST[TOML] + 1)), {"RB105"}),
    "a file beside the models": (lambda folder: (folder.parent.parent / "run.sh").write_text("x"), {"RB101"}),
    "a file beside the protocols": (lambda folder: (folder.parent / "run.sh").write_text("x"), {"RB101"}),
    "a name that is an option": (lambda folder: folder.parent.rename(folder.parent.parent / "-rf"), {"RB101"}),
    "a name that leads up": (lambda folder: folder.parent.rename(folder.parent.parent / "..a"), {"RB101"}),
    "a name with an escape": (
        lambda folder: folder.parent.rename(folder.parent.parent / "a\x1b[31m\n::error::x"),
        {"RB101"},
    ),
    "a name with markup": (lambda folder: folder.parent.rename(folder.parent.parent / "<b>"), {"RB101"}),
    "a protocol without a version": (lambda folder: folder.rename(folder.parent / "toy-pgd"), {"RB101"}),
    "names that differ in case": (lambda folder: (folder.parent.parent / "Alpha").mkdir(), {"RB106"}),
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_what_does_not_belong_is_found(name: str, tmp_path: Path) -> None:
    change, expected = STRUCTURES[name]
    place = claim(tmp_path, rules=RULES)
    change(place.folder)
    assert set(examine_folder(tmp_path / "submissions")) == expected


def test_what_cannot_be_read_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = claim(tmp_path, rules=RULES)
    real = os.open

    def refuse(path: Any, *arguments: Any, **options: Any) -> int:
        if str(path).endswith(OUTCOMES):
            raise PermissionError(13, "Permission denied")
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, "open", refuse)
    assert examine_folder(place.folder) == ["RB109"]


@pytest.mark.parametrize("where", ["missing", "elsewhere"])
def test_a_path_that_is_no_submission_cannot_be_checked(where: str, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(SubmissionError) as caught:
        validate([tmp_path / where], rules=RULES)
    assert str(caught.value).startswith(f"{tmp_path / where}: `path` is {where}; expected a")


# --- content that is large when it is unpacked, or strange


def _bomb() -> bytes:
    return gzip.compress(b"0" * 50_000_000, 1, mtime=0)


CONTENTS: dict[str, tuple[str, Callable[[], bytes], set[str]]] = {
    "a bomb": (OUTCOMES, _bomb, {"RB205"}),
    "a million empty lines": (OUTCOMES, lambda: compress(LINES[0] + b"\n" * 12_000), {"RB402"}),
    "a line without end": (OUTCOMES, lambda: compress(LINES[0] + b"\n" + b"," * 12_000), {"RB206"}),
    "no gzip": (OUTCOMES, lambda: CSV, {"RB205"}),
    "half a gzip": (OUTCOMES, lambda: HONEST[OUTCOMES][:-9], {"RB205"}),
    "two gzips": (OUTCOMES, lambda: HONEST[OUTCOMES] * 2, {"RB205"}),
    "something after the gzip": (OUTCOMES, lambda: HONEST[OUTCOMES] + b"x", {"RB205"}),
    "a raw stream": (OUTCOMES, lambda: zlib.compress(CSV), {"RB205"}),
    "Windows line ends": (OUTCOMES, lambda: compress(CSV.replace(b"\n", b"\r\n")), {"RB206"}),
    "only a header": (OUTCOMES, lambda: compress(LINES[0] + b"\n"), {"RB402"}),
    "other columns": (OUTCOMES, lambda: compress(CSV.replace(b"label", b"lebal", 1)), {"RB206"}),
    "not UTF-8": (OUTCOMES, lambda: compress(CSV.replace(b"toy-00000", b"\xff")), {"RB206"}),
    "JSON in UTF-16": (RESULT, lambda: HONEST[RESULT].decode().encode("utf-16"), {"RB201"}),
    "keys twice": (RESULT, lambda: HONEST[RESULT].replace(b"{", b'{\n  "engine": "native",', 1), {"RB204"}),
    "other blanks": (RESULT, lambda: HONEST[RESULT].replace(b"  ", b" "), {"RB204"}),
    "an empty file": (RESULT, lambda: b"", {"RB201"}),
    "tables without end": (TOML, lambda: b"x = " + b"[" * 8000, {"RB201"}),
    "TOML in Latin-1": (TOML, lambda: HONEST[TOML].replace(b"Person", b"P\xe9rson"), {"RB201"}),
    "a date for a name": (TOML, lambda: HONEST[TOML].replace(b'"A. Person"', b"2026-01-01"), {"RB202"}),
    "a tier that was typed": (TOML, lambda: b'tier = "reproduced"\n' + HONEST[TOML], {"RB202"}),
    "a script for a paper": (TOML, lambda: b'paper = "javascript:alert(1)"\n' + HONEST[TOML], {"RB202"}),
    "a loader of no kind": (TOML, lambda: HONEST[TOML].replace(b"bundled", b"pickle"), {"RB202"}),
    "a loader of two kinds": (TOML, lambda: HONEST[TOML] + b'timm = "resnet50"\n', {"RB202"}),
    "writing that turns around": (TOML, lambda: HONEST[TOML].replace(b"Toys", "a\u202eb".encode()), {"RB202"}),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_strange_content_is_found(name: str, tmp_path: Path) -> None:
    file, content, expected = CONTENTS[name]
    place = claim(tmp_path, rules=RULES)
    (place.folder / file).write_bytes(content())
    assert set(examine_folder(place.folder)) == expected


@pytest.mark.parametrize("kept", [[], ["robust@5"], ["clean"]], ids=["none", "no clean one", "only the clean one"])
def test_metrics_that_are_left_out_are_found(kept: list[str], tmp_path: Path) -> None:
    """Beside an honest claim, with which the malformed one is compared."""
    claim(tmp_path, "honest", rules=RULES, seed=1)
    place = claim(tmp_path, rules=RULES)
    content = json.loads(HONEST[RESULT])
    metrics = [metric for metric in content["metrics"] if metric["name"] in kept]
    assert len(metrics) == len(kept)
    (place.folder / RESULT).write_bytes(_put(("metrics",), metrics))
    codes = examine_folder(tmp_path)
    assert "RB405" in codes
    assert set(codes) - {"RB405"} <= {"RB602", "RB603"}  # what is remarkable depends on the last of those kept


def test_an_unknown_key_gets_advice(tmp_path: Path) -> None:
    place = claim(tmp_path, rules=RULES)
    (place.folder / TOML).write_bytes(HONEST[TOML].replace(b"licence", b"license"))
    messages = [str(finding) for finding in validate([place.folder], rules=RULES).findings]
    assert messages == [
        f"RB202 error: submissions/alpha/{TOY}/{TOML}: `/licence` is missing; expected a value. Add the key.",
        f"RB202 error: submissions/alpha/{TOY}/{TOML}: `/license` is an unknown key; expected a key of the schema. "
        "Did you mean `licence`?",
    ]


WORST = """
import sys
from pathlib import Path
from robench.validation import validate
from tests.claims import toy_rules
rules = toy_rules(50_000)
for folder in sys.argv[1:]:
    print(*sorted({finding.code for finding in validate([Path(folder)], rules=rules).findings}))
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM:")).split()[1])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_memory_is_bounded_whatever_is_unpacked(tmp_path: Path) -> None:
    """Under a protocol of 50,000 images, the largest there is, in a process of its own."""
    place, most = claim(tmp_path / "honest", rules=toy_rules(50_000), outcomes=toy_outcomes(50_000)), 50_000 * 320
    kinds: dict[str, tuple[str, Callable[[], bytes], str]] = {
        "bomb": (OUTCOMES, _bomb, "RB205"),
        "commas": (OUTCOMES, lambda: compress(LINES[0] + b"\n" + b"," * (most - 200)), "RB206"),
        "quotes": (OUTCOMES, lambda: compress(LINES[0] + b"\n" + b'"\n"' * 49_999), "RB206"),
        "empty": (OUTCOMES, lambda: compress(LINES[0] + b"\n" * 50_000), "RB206"),
        "nested": (RESULT, lambda: b"[" * LARGEST[RESULT], "RB201"),
        "flat": (RESULT, lambda: b"[" + b"0," * (LARGEST[RESULT] // 2 - 2) + b"0]", "RB203"),
    }
    folders = [place.folder]
    for kind, (file, content, _) in kinds.items():
        folders.append(tmp_path / kind / "submissions" / "alpha" / TOY)
        shutil.copytree(place.folder, folders[-1])
        (folders[-1] / file).write_bytes(content())
    command = [sys.executable, "-c", WORST, *map(str, folders)]
    root = Path(__file__).parent.parent.parent
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)
    assert done.returncode == 0, done.stderr
    *codes, peak = done.stdout.splitlines()
    assert codes == ["", *(code for _, _, code in kinds.values())]
    assert int(peak) < 200 * 1024
