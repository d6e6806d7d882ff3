"""What `robench evaluate` says to AutoAttack's protocols and options when they make no sense: one clear paragraph."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from robench.cli.main import app
from robench.errors import RobenchError
from robench.registry import shipped_folder

STAGES = 'stages = ["apgd-ce", "apgd-t", "fab-t", "square"]'
SMALL = [("steps = 50", "steps = 3"), ("queries = 500", "queries = 4"), ("targets = 3", "targets = 2")]


@pytest.fixture(autouse=True)
def _workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _protocol(*changes: tuple[str, str]) -> str:
    """A file like `mini-autoattack-linf`, small, with these changes."""
    text = (shipped_folder() / "mini-autoattack-linf.toml").read_text()
    for old, new in [('"mini-autoattack-linf"', '"mine"'), *SMALL, *changes]:
        assert old in text
        text = text.replace(old, new)
    Path("mine.toml").write_text(text)
    return "mine.toml"


def _one_attack(attack: str, score: str = "") -> str:
    text = _path_text()
    head = text[: text.index("[attack]")].replace('"mini-autoattack-linf"', '"mine"')
    budget = '[budget]\nnorm = "linf"\nepsilon = "4/255"\n'
    Path("mine.toml").write_text(f"{head}[attack]\n{attack}\n{budget}{score}")
    return "mine.toml"


def _path_text() -> str:
    return (shipped_folder() / "mini-autoattack-linf.toml").read_text()


def _refused(protocol: str, *options: str) -> str:
    """The message, of one paragraph; nothing is printed on stdout and nothing is written."""
    command = ["evaluate", "mini-resnet-adv", protocol, "--limit", "4", *options]
    result = CliRunner().invoke(app, command)
    assert isinstance(result.exception, RobenchError), (result.output, result.exception)
    message = str(result.exception)
    assert result.stdout == ""
    assert "\n" not in message
    assert "Traceback" not in result.stderr
    assert not Path("runs").exists()
    return message


def _done(protocol: str, *options: str) -> str:
    command = ["evaluate", "mini-resnet-adv", protocol, "--limit", "4", *options]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize(
    ("score", "message"),
    [
        ('stages = ["apgd-ce"]', r"`score\.stages` is \['apgd-ce'\]; expected \['apgd-ce', 'apgd-t', 'fab-t', 'square"),
        (
            'stages = ["square", "fab-t", "apgd-t", "apgd-ce"]',
            r"`score\.stages` is \['square', .*; expected \['apgd-ce",
        ),
        (
            'stages = ["apgd-ce", "apgd-t", "fab-t", "sqare"]',
            r"`score\.stages` is .*'sqare'\]; expected .*'square'\], as",
        ),
        ('stages = ["square", "square"]', r"`score` is .*; expected stages without repetition, and no steps beside"),
        ("stages = []", r"`score` is .*; expected stages without repetition, and no steps beside them\."),
        ('stages = "apgd-ce"', r"`score\.stages` is 'apgd-ce'; expected a list\."),
        ("stages = [1]", r"`score\.stages\.0` is 1; expected a valid string\."),
        ("steps = [3]", r"`score\.steps` is \[3\]; expected none with more than one attack\."),
        (f"{STAGES}\nsteps = [3]", r"`score` is .*; expected stages without repetition, and no steps beside them\."),
        ('scoring = "last iterate"', r'expected `score\.steps` with the scoring "last iterate"\.'),
    ],
)
def test_scores_that_do_not_fit_the_stages(score: str, message: str) -> None:
    assert re.search(f"^mine\\.toml: .*{message}", _refused(_protocol((STAGES, score))))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("steps = 3", "steps = 0", r"APGD: `steps` is 0; expected at least 1\."),
        ("steps = 3", "steps = -5", r"APGD: `steps` is -5; expected at least 1\."),
        ("steps = 3", "steps = true", r"`attack\.steps` is True; expected a value of type int\."),
        ("steps = 3", 'steps = "3"', r"`attack\.steps` is '3'; expected a value of type int\."),
        ("steps = 3", "steps = 20_000_000", r"`attack\.steps` is 20000000; expected at most 10,000,000\."),
        ("targets = 2", "targets = 0", r"FAB: `targets` is 0; expected at least 1\."),
        ("targets = 2", "targets = -1", r"APGD: `targets` is -1; expected at least 0\."),
        ("queries = 4", "queries = 0", r"Square: `queries` is 0; expected at least 1\."),
        ("queries = 4", "queries = 100000000000000000000", r"`attack\.queries` is 1\d+; expected at most 10,000,000\."),
        ("queries = 4", "query = 4", r"`attack\.query` is unknown; expected a field\. Did you mean `queries`"),
        ("queries = 4", "p_init = 2", r"`attack\.p_init` is unknown; expected a field\."),
        ('"standard"', '"rand"', r"`score\.stages` is .*; expected \['apgd-ce', 'apgd-dlr'\], as they run\."),
        ('"standard"', '""', r"AutoAttack: `version` is ``; expected `standard`, `lite`, `rand`\."),
        ('norm = "linf"', 'norm = "l1"', r"`budget\.norm` is `l1`; expected a known norm\. Known: l2, linf\."),
        ('epsilon = "4/255"', 'epsilon = "-1"', r"`budget\.epsilon` is '-1'; expected a fraction of the unit range"),
    ],
)
def test_settings_of_the_cascade(old: str, new: str, message: str) -> None:
    assert re.search(f"^mine\\.toml: {message}", _refused(_protocol((old, new))))


@pytest.mark.parametrize(
    ("attack", "score", "message"),
    [
        ('kind = "square"\np_init = 2', "", r"Square: `p_init` is 2\.0; expected more than 0 and at most 1\."),
        ('kind = "square"\np_init = "0"', "", r"Square: `p_init` is 0\.0; expected more than 0 and at most 1\."),
        ('kind = "square"\nsteps = 3', "", r"`attack\.steps` is unknown; expected a field\. Known: p_init, queries\."),
        ('kind = "fab"\ntargets = 0', "", r"FAB: `targets` is 0; expected at least 1\."),
        ('kind = "fab"\nsteps = 0', "", r"FAB: `steps` is 0; expected at least 1\."),
        ('kind = "apgd"\nrho = "2"', "", r"APGD: `rho` is 2\.0; expected from 0 to 1\."),
        ('kind = "apgd"\nloss = 1', "", r"`attack\.loss` is 1; expected a value of type str\."),
        (
            'kind = "apgd"\nsteps = 3',
            '[score]\nstages = ["apgd"]',
            r"`score\.stages` is \['apgd'\]; expected \['apgd-ce",
        ),
        ('kind = "square"\nqueries = 3', "[score]\nsteps = [4]", r"`score\.steps` is 4; expected at most 3, the steps"),
    ],
)
def test_settings_of_single_stages(attack: str, score: str, message: str) -> None:
    assert re.search(f"^mine\\.toml: {message}", _refused(_one_attack(attack, score)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--radii", ""], r"^radius_curve: `radii` is ''; expected a fraction of the unit range as a string"),
        (["--radii", "1/255,"], r"^radius_curve: `radii` is ''; expected a fraction of the unit range as a string"),
        (["--radii", "1/0"], r"^radius_curve: `radii` is '1/0'; expected a fraction of the unit range as a string"),
        (["--radii", "-1/255"], r"^radius_curve: `radii` is '-1/255'; expected a fraction of the unit range"),
        (["--radii", "1/255,2/510"], r"^radius_curve: `radii` is `1/255` and `2/510`; expected radii that differ\."),
        (["--radii", "1/255", "--estimate"], r"^evaluate: `--estimate` is beside `--radii`; expected one of the two\."),
        (["--engine", "Reference"], r"^evaluate: `engine` is `Reference`; expected `native` or `reference`\."),
        (["--engine", "", "--estimate"], r"^evaluate: `engine` is ``; expected `native` or `reference`\."),
        (["--compile", "--no-fast-path"], r"^evaluate: `compile` is asked for without it; expected the fast path"),
        (["--batch-size", "0", "--estimate"], r"^evaluate: `batch_size` is 0; expected a whole number of at least 1\."),
    ],
)
def test_options_beside_a_cascade(options: list[str], message: str) -> None:
    assert re.search(message, _refused(_protocol(), *options))


def test_a_reference_that_has_no_such_attack() -> None:
    message = _refused("mini-pgd-linf", "--engine", "reference")
    assert message == "reference: `attack` is pgd; expected a stage of AutoAttack."


def test_odd_but_legal_calls_are_carried_out() -> None:
    """One at a time, more at a time than any machine holds, and the reference with images to keep."""
    lines = [
        _done(_protocol(), "--batch-size", "1", "--run-dir", "one"),
        _done(_protocol(), "--batch-size", "1000000000000", "--run-dir", "many"),
    ]
    assert Path("one/outcomes.csv.gz").read_bytes() == Path("many/outcomes.csv.gz").read_bytes()
    reference = ["--engine", "reference", "--batch-size", "1", "--save-adversarial", "saved", "--run-dir", "reference"]
    lines.append(_done(_protocol(), *reference))
    assert all(re.search(r"robust@square +│ +\d+\.\d % ", line) for line in lines)
