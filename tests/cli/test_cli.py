import importlib.metadata
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from robench.cli import evaluate as evaluate_room
from robench.cli.main import app, main
from robench.errors import RobenchError
from robench.registry import list_protocols, shipped_folder
from robench.result import read_result
from robench.training import bundled_recipes, load_recipe
from tests.training.test_recipe import TINY

OWN = '''
import torch
from torch import nn


class Linear(nn.Module):
    """Logits that lean towards one class, so that its own examples are robust and no others."""

    def __init__(self, favourite):
        super().__init__()
        generator = torch.Generator().manual_seed(favourite)
        self.weight = nn.Parameter(torch.randn(10, 3 * 64 * 64, generator=generator) / 2000)
        self.bias = nn.Parameter(torch.zeros(10))
        self.bias.data[favourite] = 4

    def forward(self, images):
        return (images - 0.5).flatten(1) @ self.weight.T + self.bias


def three():
    return Linear(3).eval()


def four():
    return Linear(4).eval()


def training():
    return Linear(3).train()


def chatty():
    print("loading, please wait")
    return three()


def slow():
    """The same, but slow where a test wants to stop it in the middle."""
    import os, time
    model, pause = three(), float(os.environ.get("OWN_PAUSE", 0))

    class Slow(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, images):
            time.sleep(pause)
            return self.model(images)

    return Slow().eval()
'''
RUN = ["evaluate", "own_cli:three", "mini-pgd-linf", "--limit", "16", "--run-dir"]


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with the user's own module in it."""
    (tmp_path / "own_cli.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    yield tmp_path
    sys.modules.pop("own_cli", None)


def _invoke(*arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command that ends without an error of robench."""
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def _refused(*arguments: str) -> str:
    """Message of the error that a command ends with."""
    result = CliRunner().invoke(app, list(arguments))
    assert isinstance(result.exception, RobenchError), result.output
    assert result.stdout == ""
    return str(result.exception)


def _terminal(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """The same in a process of its own, as users run it."""
    command = [sys.executable, "-m", "robench", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


def _json(*arguments: str) -> Any:
    code, stdout, _ = _invoke(*arguments, "--json")
    assert code == 0
    return json.loads(stdout)


def test_list_names_every_protocol_on_one_line_of_json_or_in_a_table() -> None:
    code, stdout, stderr = _invoke("list")
    assert (code, stderr) == (0, "")
    names = [protocol.exact_name for protocol in list_protocols()]
    assert "mini-pgd-linf@1" in names
    for name in names:
        assert stdout.count(f" {name} ") == 1
    assert [f"{entry['id']}@{entry['version']}" for entry in _json("list")] == names


def test_show_says_every_setting_and_the_whole_digest() -> None:
    code, stdout, stderr = _invoke("show", "mini-pgd-linf")
    assert (code, stderr) == (0, "")
    for text in ("mini-pgd-linf@1: PGD", "4/255", "1/255", "any iterate", "[5, 10, 20, 50]", "budget.epsilon"):
        assert text in stdout
    content = _json("show", "mini-pgd-linf@1")
    assert content["budget"] == {"norm": "linf", "epsilon": "4/255"}
    cells = "".join(line.split("│")[2].strip() for line in stdout.splitlines() if line.count("│") == 3)
    assert content["digest"] in cells
    assert content["data"]["ids_sha256"] in cells


def test_show_takes_a_file_and_says_that_it_is_not_official(workplace: Path) -> None:
    text = (shipped_folder() / "mini-pgd-linf.toml").read_text()
    title = 'title = "[bold]loud[/bold] :smile:"'
    (workplace / "mine.toml").write_text(re.sub(r'(?m)^title = ".*"$', title, text))
    _, stdout, _ = _invoke("show", "mine.toml")
    assert "[bold]loud[/bold] :smile:" in stdout
    assert _json("show", "mine.toml")["official"] is False


def test_an_unknown_protocol_ends_with_2_a_message_and_no_traceback() -> None:
    finished = _terminal("show", "mini-pdg-linf")
    assert finished.returncode == 2
    assert finished.stdout == ""
    expected = (
        "error: robench: `protocol` is `mini-pdg-linf`; expected the id of a protocol or a path to a TOML file. "
        "Did you mean `mini-pgd-linf`"
    )
    assert finished.stderr.startswith(expected)
    assert len(finished.stderr.splitlines()) == 1


def test_main_turns_an_error_into_one_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["robench", "show", "[red]nope[/x] :smile:"])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    assert ended.value.code == 2
    assert out == ""
    assert "error: [red]nope[/x] :smile:: `file` is unreadable" in err


def test_main_turns_what_the_system_refuses_into_one_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "m" * 300
    monkeypatch.setattr(sys, "argv", ["robench", "compare", name, name])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    assert ended.value.code == 2
    assert out == ""
    assert err.startswith(f"error: {name}")
    assert "(File name too long); expected" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["show", "missing.toml"],
            r"^missing\.toml: `file` is unreadable \(No such file or directory\); expected a pro",
        ),
        (["show", "pgd-linf@99"], r"^robench: `protocol` is `pgd-linf@99`; expected one of pgd-linf@1"),
        (
            ["evaluate", "mini-resnt", "mini-pgd-linf"],
            r"^robench: `model` is `mini-resnt`; .* Did you mean `mini-resnet`",
        ),
        (["evaluate", "own_cli:three", "nope"], r"^robench: `protocol` is `nope`; expected the id of a protocol"),
        (["evaluate", "own_cli:three", "pgd-linf"], r"^robench: `data` is none; expected the images of `imagenet`\."),
        (
            ["evaluate", "own_cli:five", "mini-pgd-linf"],
            r"^robench: `model` is `own_cli:five` \(module 'own_cli' has no",
        ),
        (
            ["evaluate", "own_cli:training", "mini-pgd-linf"],
            r"^training: `model` is in train mode \(`Linear`\); expected",
        ),
        (
            ["evaluate", "own_cli:three", "mini-pgd-linf", "--limit", "0"],
            r"^evaluate: `limit` is 0; expected a whole num",
        ),
        (
            ["evaluate", "own_cli:three", "mini-pgd-linf", "--limit", "-3"],
            r"^evaluate: `limit` is -3; expected a whole",
        ),
        (
            ["evaluate", "own_cli:three", "mini-pgd-linf", "--batch-size", "0"],
            r"^evaluate: `batch_size` is 0; expected",
        ),
        (
            ["evaluate", "own_cli:three", "mini-pgd-linf", "--data", "no"],
            r"^no: `data` is no folder; expected a folder",
        ),
        (
            ["evaluate", "mini-resnet", "mini-pgd-linf", "--weights", "w.pt"],
            r"^w\.pt: `weights` is unreadable \(No such",
        ),
        (
            ["evaluate", "own_cli:three", "mini-pgd-linf", "--run-dir", "own_cli.py"],
            r"^own_cli\.py: `run_dir` is not wri",
        ),
        (
            ["resume", "nowhere"],
            r"^nowhere: `plan\.json` is missing; expected the folder of a run\. `robench evaluate`",
        ),
        (
            ["evaluate", "own_cli:three", "mini-pgd-linf", "--radii", "0,0.1"],
            r"^radius_curve: `radii` is '0\.1'; expected a fraction of the unit range as a string",
        ),
        (
            ["evaluate", "own_cli:three", "mini-pgd-linf", "pgd-linf", "--radii", "0"],
            r"^radius_curve: `protocol` is 2 protocols; expected one\.",
        ),
        (
            ["evaluate", "own_cli:three", "mini-pgd-linf", "--figure", "a.gif"],
            r"^a\.gif: `suffix` is `\.gif`; expected one of \.png, \.svg, \.pdf\.",
        ),
        (
            ["evaluate", "own_cli:three", "mini-pgd-linf", "mini-pgd-linf@1", "--figure", "a.png"],
            r"^a\.png: `figure` is of 2 protocols; expected one protocol\.",
        ),
        (
            ["evaluate", "own_cli:three", "mini-pgd-linf", "--save-adversarial", "own_cli.py"],
            r"^own_cli\.py: `save_adversarial` is not writable \(File exists\); expected room to write\.",
        ),
        (
            ["compare", "a", "b", "--figure", "no/a.png"],
            r"^no/a\.png: `folder` is missing; expected a folder\. Make it: `mkdir -p no`\.",
        ),
        (["compare", "a", "b"], r"^a: `result\.json` is missing; expected a finished run\. It holds no run\.$"),
        (["train", "mini-resnt"], r"^robench train: `recipe` is `mini-resnt`; .* Did you mean `mini-resnet`"),
        (
            ["train", "deit-s"],
            r"^deit-s: `data` is missing; expected ImageNet's folder\. Name the folder that contains ",
        ),
        (
            ["train", "mini-resnet", "--data", "a"],
            r"^mini-resnet: `data` is `a`; expected none, as this recipe paints its images\. Leave `--data` out\.",
        ),
        (
            ["train", "mini-resnet", "--push", "org/name"],  # before a training, not after it
            r"^trained/mini-resnet\.safetensors: `push` is a file of a mini model; expected a folder with timm's",
        ),
        (["train", "deit-s", "--push", "org"], r"^robench: `model` is `hf-hub:org`; expected `hf-hub:org/name"),
        (
            ["train", "none.toml"],
            r"^none\.toml: `file` is unreadable \(.*No such file.*\); expected a recipe in TOML\.$",
        ),
        (
            ["train", "mini-resnet", "--out", "own_cli.py"],
            r"^own_cli\.py: `folder` is not writable \(File exists\); exp",
        ),
    ],
)
def test_a_users_mistake_is_an_error_of_robench(arguments: list[str], message: str) -> None:
    assert re.search(message, _refused(*arguments))


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["evaluate"],
        ["evaluate", "own_cli:three"],
        ["evaluate", "own_cli:three", "mini-pgd-linf", "--limit", "many"],
        ["evaluate", "own_cli:three", "mini-pgd-linf", "--nonsense"],
        ["compare", "a"],
        ["compare", "a", "b", "--margin", "-1"],
        ["compare", "a", "b", "--margin", "nan"],
        ["compare", "a", "b", "--margin", "inf"],
        ["train", "mini-resnet", "--threads", "0"],
    ],
)
def test_a_wrong_argument_is_a_usage_error(arguments: list[str]) -> None:
    code, stdout, stderr = _invoke(*arguments)
    assert (code, stdout) == (2, "")
    assert "Usage: " in stderr
    assert "Traceback" not in stderr


def test_the_version_is_that_of_the_package() -> None:
    assert _invoke("--version") == (0, f"robench {importlib.metadata.version('robench')}\n", "")


def test_help_is_there_for_every_command() -> None:
    code, stdout, _ = _invoke("--help")
    assert code == 0
    for command in ("list", "show", "evaluate", "resume", "compare", "train", "doctor"):
        assert re.search(rf"│ {command} ", stdout)
        assert _invoke(command, "-h")[0] == 0


def test_help_shows_what_stands_in_brackets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rich takes `[...]` in a text for a style, and leaves it out."""
    monkeypatch.setenv("COLUMNS", "300")
    for command, words in {
        "evaluate": "`hf-hub:org/name[@revision]`",
        "convert": "`hf-hub:org/name/file[@revision]`",
        "submit": "`[loader]`",
        "refute": "`[loader]`",
    }.items():
        assert words in _invoke(command, "-h")[1]


def test_evaluate_prints_counts_intervals_and_what_to_do_next() -> None:
    code, stdout, stderr = _invoke(*RUN, "run")
    assert code == 0
    assert "three under mini-pgd-linf@1" in stdout
    for name in ("clean", "robust@5", "robust@10", "robust@20", "robust@50"):
        assert re.search(rf"│ {name} +│ +\d+\.\d % │ +\[\d+\.\d, \d+\.\d\] │ +\d+/16 │", stdout)
    assert re.search(r"(?m)^clean .* %, robust .* % \[.*\], 16 images, .*unofficial$|, partial$", stdout)
    assert stdout.endswith("run: run\nnext: robench compare run OTHER_RUN\n")
    assert stderr == "mini-pgd-linf is mini-pgd-linf@1 (active).\n"


def test_json_is_all_that_stdout_holds() -> None:
    finished = _terminal(*RUN, "run", "--json")
    assert finished.returncode == 0, finished.stderr
    content = json.loads(finished.stdout)
    assert finished.stdout.count("\n{") == 0
    assert content["run_dir"] == "run"
    assert content["schema"] == "robench.result/1"
    assert content["data"]["count"] == 16
    assert [metric["denominator"] for metric in content["metrics"]] == [16] * 5
    assert json.loads(Path("run/result.json").read_text())["metrics"] == content["metrics"]
    assert "Traceback" not in finished.stderr
    assert "Warning" not in finished.stderr


def test_what_the_users_own_code_prints_stays_out_of_the_json() -> None:
    code, stdout, stderr = _invoke("evaluate", "own_cli:chatty", "mini-pgd-linf", "--limit", "8", "--json")
    assert code == 0
    assert json.loads(stdout)["model"]["name"] == "chatty"
    assert "loading, please wait" in stderr


def test_what_a_swept_model_prints_stays_out_of_the_json() -> None:
    Path("plan.toml").write_text(
        'schema = "robench.sweep/1"\nprotocols = ["mini-pgd-linf"]\nlimit = 16\n[[models]]\nmodel = "own_cli:chatty"\n'
    )
    rows = _json("sweep", "plan.toml", "--executor", "local")
    assert [row["job"] for row in rows] == ["own_cli:chatty under mini-pgd-linf"]
    assert _json("estimate", "plan.toml")["runs"][0]["name"] == rows[0]["job"]


def test_several_protocols_give_a_list() -> None:
    arguments = ["evaluate", "own_cli:three", "mini-pgd-linf", "mini-pgd-linf@1", "--limit", "8", "--run-dir", "both"]
    results = _json(*arguments)
    assert [result["run_dir"] for result in results] == ["both/mini-pgd-linf@1"] * 2


def test_the_default_folder_is_named_after_model_and_protocol() -> None:
    content = _json("evaluate", "own_cli:three", "mini-pgd-linf", "--limit", "8", "--name", "../my model/1")
    assert re.fullmatch(r"runs/my-model-1/mini-pgd-linf-[0-9a-f]{8}", content["run_dir"])


@pytest.mark.parametrize("name", ["[/x]", "[red]three[/red]", ":smile:", "a\\"])
def test_a_name_is_shown_as_it_is(name: str) -> None:
    _, stdout, _ = _invoke(*RUN, "run", "--name", name)
    assert f"{name} under mini-pgd-linf@1" in stdout
    _, stdout, _ = _invoke("compare", "run", "run")
    assert re.search(rf"│ A │ {re.escape(name)} +│", stdout)


def test_the_same_call_again_reuses_the_run_and_fresh_starts_over() -> None:
    first = _invoke(*RUN, "run")
    written = Path("run/result.json").stat().st_mtime_ns
    second = _invoke(*RUN, "run")
    assert second[1] == first[1]
    assert "Reusing the finished run run (`--fresh` starts over)." in second[2]
    assert Path("run/result.json").stat().st_mtime_ns == written
    third = _invoke(*RUN, "run", "--fresh")
    assert "Reusing" not in third[2]
    assert Path("run/result.json").stat().st_mtime_ns != written


def test_another_call_in_the_same_folder_is_refused() -> None:
    _invoke(*RUN, "run")
    message = _refused("evaluate", "own_cli:four", "mini-pgd-linf", "--limit", "16", "--run-dir", "run")
    assert re.search(r"^run: `run key` is [0-9a-f]{64}; expected [0-9a-f]{64} for this call\. .*`--fresh`", message)


def test_plain_lines_when_stderr_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate_room, "LINE_SECONDS", 0.0)
    _, _, stderr = _invoke(*RUN, "run")
    lines = [line for line in stderr.splitlines() if " examples, " in line]
    assert len(lines) == 16
    form = r"\d+/16 examples, \d+ s left, \d+\.\d/s(, first \d+: clean [\d.]+ %, robust [\d.]+ % \[[\d.]+, [\d.]+\])?"
    assert all(re.fullmatch(form, line) for line in lines)
    assert re.fullmatch(r"16/16 examples, 0 s left, .*, first 16: .*", lines[-1])
    assert "\x1b" not in stderr
    assert "\r" not in stderr


def test_a_short_run_in_a_pipe_prints_no_progress() -> None:
    assert " s left" not in _invoke(*RUN, "run")[2]


def _interrupted(how: int) -> tuple[int, str]:
    """A run of a slow model that is stopped once a shard is there; exit code and stderr."""
    arguments = ["evaluate", "own_cli:slow", "mini-pgd-linf", "--limit", "320", "--run-dir", "run"]
    command, environment = [sys.executable, "-m", "robench", *arguments], {**os.environ, "OWN_PAUSE": "0.1"}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment) as process:
        deadline = time.monotonic() + 120
        while not list(Path().glob("run/shards/*.csv")) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(how)
        stderr = process.communicate(timeout=120)[1]
    return process.returncode, stderr


def test_ctrl_c_says_how_to_go_on_and_resume_does() -> None:
    code, stderr = _interrupted(signal.SIGINT)
    assert code == 130
    assert "Interrupted; what is finished is kept. Go on with:\n  robench resume run\n" in stderr
    assert "Traceback" not in stderr
    assert not Path("run/result.json").exists()
    code, stdout, stderr = _invoke("resume", "run", "--json", "--batch-size", "128")
    assert code == 0
    assert re.search(r"Resuming run: \d+ of 320 are done\.", stderr)
    resumed = json.loads(stdout)
    whole = _json("evaluate", "own_cli:slow", "mini-pgd-linf", "--limit", "320", "--run-dir", "whole")
    assert resumed["metrics"] == whole["metrics"]
    assert resumed["outcomes"] == whole["outcomes"]


def test_compare_is_a_gate() -> None:
    for name in ("three", "four"):
        assert _invoke("evaluate", f"own_cli:{name}", "mini-pgd-linf", "--limit", "32", "--run-dir", name)[0] == 0
    content = _json("compare", "three", "four")
    assert content["both"] == 0
    assert content["only_a"] > 0
    assert content["only_b"] > 0
    assert content["both"] + content["only_a"] + content["only_b"] + content["neither"] == 32
    assert content["difference"] == pytest.approx((content["only_b"] - content["only_a"]) / 32)
    assert content["interval"][0] < content["difference"] < content["interval"][1]
    assert content["non_inferior"] is None
    code, stdout, _ = _invoke("compare", "three", "four", "--margin", "1")
    assert code == 1
    assert "B is not shown to be at most 1 points worse than A (2.5 % level)." in stdout
    assert _invoke("compare", "three", "four", "--margin", "1", "--json")[0] == 1
    code, stdout, _ = _invoke("compare", "three", "four", "--margin", "99")
    assert code == 0
    assert "B is shown to be at most 99 points worse than A (2.5 % level)." in stdout


def test_compare_takes_many_runs_each_against_the_first() -> None:
    for name in ("three", "four"):
        assert _invoke("evaluate", f"own_cli:{name}", "mini-pgd-linf", "--limit", "32", "--run-dir", name)[0] == 0
    pairs = _json("compare", "three", "four", "three")
    assert [(pair["a"], pair["b"]) for pair in pairs] == [("three", "four"), ("three", "three")]
    assert pairs[0] == _json("compare", "three", "four")
    code, stdout, _ = _invoke("compare", "three", "three", "four", "--margin", "1", "--figure", "a.png")
    assert code == 1
    assert re.search(r"│ C │ four +│", stdout)
    assert "B minus A: +0.0 points" in stdout
    assert "C is not shown to be at most 1 points worse than A (2.5 % level)." in stdout
    assert Path("a.png").read_bytes().startswith(b"\x89PNG")
    assert _invoke("compare", "three", "four", "three", "--margin", "99")[0] == 0


def test_what_is_printed_to_be_typed_is_quoted() -> None:
    assert "run: a run\nnext: robench compare 'a run' OTHER_RUN\n" in _invoke(*RUN, "a run")[1]
    Path("my run").mkdir()
    shutil.copy("a run/plan.json", "my run")
    assert _refused("compare", "a run", "my run").endswith("Finish the run first: `robench resume 'my run'`.")


def test_radii_give_a_table_a_picture_and_json() -> None:
    arguments = ["evaluate", "own_cli:three", "mini-pgd-linf", "--limit", "16", "--radii", "4/255, 0,1/255"]
    code, stdout, _ = _invoke(*arguments, "--figure", "a.svg")
    assert code == 0
    assert "three, radii of mini-pgd-linf@1" in stdout
    for radius in ("0", "1/255", "4/255"):
        assert re.search(rf"│ {radius} +│ +\d+\.\d % │ +\[\d+\.\d, \d+\.\d\] │ +\d+/16 │", stdout)
    folders = re.findall(r"(?m)^run: (.*)$", stdout)
    assert [re.sub("[0-9a-f]{8}$", "", each) for each in folders] == [
        f"runs/three/mini-pgd-linf-radius-{radius}-255-" for radius in (1, 4)
    ]
    assert "<svg" in Path("a.svg").read_text()
    content = _json(*arguments)
    assert [point["radius"] for point in content["points"]] == ["0", "1/255", "4/255"]
    assert (content["ranked"], content["norm"], content["run_dirs"]) == (False, "linf", folders)


def test_evaluate_draws_and_saves() -> None:
    code, stdout, stderr = _invoke(*RUN, "run", "--figure", "a.png", "--save-adversarial", "images")
    assert code == 0
    assert "Attacking a few examples again, to show them." in stderr
    drawn = Path("a.png").read_bytes()
    assert drawn.startswith(b"\x89PNG")
    assert len(list(Path("images").glob("*.npy"))) == sum(
        bool(outcome.fooled_at) for outcome in read_result(Path("run")).read_outcomes()
    )
    assert _invoke(*RUN, "run", "--figure", "b.png", "--save-adversarial", "images")[1] == stdout
    assert Path("b.png").read_bytes() == drawn
    (Path("run") / "result.json").unlink()
    assert _invoke("resume", "run", "--save-adversarial", "images")[1] == stdout


def test_compare_needs_the_same_examples() -> None:
    _invoke(*RUN, "run")
    _invoke("evaluate", "own_cli:three", "mini-pgd-linf", "--limit", "8", "--run-dir", "less")
    message = (
        r"^compare run less: `ids` is 16 and 8 examples that differ; expected the same examples\. Use the same data"
    )
    assert re.search(message, _refused("compare", "run", "less"))


def test_an_edited_result_is_found() -> None:
    _invoke(*RUN, "run")
    path = Path("run/outcomes.csv.gz")
    path.write_bytes(path.read_bytes()[:-20])
    assert re.search(r"outcomes\.csv\.gz: `file` is unreadable \(", _refused("compare", "run", "run"))


def test_doctor_finds_this_machine_ready() -> None:
    code, stdout, _ = _invoke("doctor")
    assert code == 0
    assert "bundled, 512 examples, digest as pinned" in stdout
    assert stdout.rstrip().endswith("Ready.")
    report = _json("doctor")
    assert report["ok"] is True
    assert {"python", "torch", "device", "data mini", "data imagenet", "disk"} <= set(report)


def test_doctor_says_what_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    from robench.data import mini

    monkeypatch.setattr(mini, "ATTACK_SET_SHA256", "0" * 64)
    code, stdout, _ = _invoke("doctor")
    assert code == 1
    assert "BROKEN: attack_set.webp: `sha256` is" in stdout
    assert stdout.rstrip().endswith("Something is broken; see above.")
    code, stdout, _ = _invoke("doctor", "--json")
    assert code == 1
    assert json.loads(stdout)["ok"] is False


def test_train_without_a_recipe_lists_them() -> None:
    code, stdout, stderr = _invoke("train")
    assert (code, stderr) == (0, "")
    for name in bundled_recipes():
        assert stdout.count(f"│ {name} ") >= 1
    assert "PGD-2, linf 4/255" in stdout
    assert not Path("trained").exists()


def test_train_lists_recipes_with_what_they_extend() -> None:
    code, stdout, stderr = _invoke("train", "--list")
    assert (code, stderr, stdout) == (0, "", _invoke("train")[1])
    (row,) = re.findall(r"│ deit-s-adv-coin .*", stdout)
    cells = [cell.strip() for cell in row.strip("│").split("│")]
    assert cells == ["deit-s-adv-coin", "100", "PGD-1, linf 4/255", "deit-s-adv"]


def test_train_shows_a_whole_recipe_and_trains_nothing() -> None:
    Path("mine.toml").write_text('name = "mine"\nextends = "mini-resnet"\noptimizer.lr = 0.025  # slower\n')
    code, stdout, stderr = _invoke("train", "mine.toml", "--show")
    assert (code, stderr) == (0, "")
    assert stdout.splitlines()[1] == "# extends mini-resnet"
    assert "lr = 0.025  # mine" in stdout.splitlines()
    assert "weight_decay = 0.0005  # mini-resnet" in stdout.splitlines()
    assert not Path("trained").exists()
    Path("shown.toml").write_text(stdout)
    assert load_recipe("shown.toml") == load_recipe("mine.toml")


def test_train_follows_a_recipe_and_says_where_the_weights_are() -> None:
    text = TINY.replace("batch_size = 64", "batch_size = 16").replace("examples = 128", "examples = 32")
    Path("tiny.toml").write_text(text.replace("validation = 64", "validation = 8").partition("[adversary]")[0])
    code, stdout, stderr = _invoke("train", "tiny.toml", "--out", "[x]")
    assert code == 0
    assert stdout == "Weights: [x]/tiny.safetensors\nLog: [x]/tiny.jsonl\n"
    assert re.fullmatch(r"epoch 1: loss [\d.]+, clean [\d.]+, seconds [\d.]+\nepoch 2: loss .*\n", stderr)
    Path("[x]/tiny.safetensors").unlink()
    assert "Going on after epoch 2 of 2." in _invoke("train", "tiny.toml", "--out", "[x]")[2]
    header = json.loads(Path("[x]/tiny.jsonl").read_text().splitlines()[0])
    assert header["environment"]["robench"]
    assert header["threads"] >= 1
    arguments = ["evaluate", "mini-resnet", "mini-pgd-linf", "--weights", "[x]/tiny.safetensors", "--limit", "8"]
    assert _json(*arguments)["model"]["name"] == "tiny"


def test_ctrl_c_in_a_training_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("robench.training.train", stop)
    code, stdout, stderr = _invoke("train", "mini-resnet")
    assert (code, stdout) == (130, "")
    assert stderr == "Interrupted; the same command goes on after the last checkpoint.\n"


@pytest.mark.parametrize(
    ("arguments", "stopped", "kept"),
    [
        (["data", "corrupt", "a", "b"], "robench.data.corruptions.tree.write_tree", "is written"),
        (["data", "fetch", "tpa-textures", "--to", "a"], "robench.data.fetching.fetch", "has arrived"),
    ],
)
def test_ctrl_c_in_a_command_that_goes_on_says_so(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], stopped: str, kept: str
) -> None:
    def stop(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(stopped, stop)
    code, stdout, stderr = _invoke(*arguments)
    assert (code, stdout) == (130, "")
    assert stderr == f"Interrupted; what {kept} is kept: the same command goes on.\n"


def test_a_closed_pipe_is_no_traceback() -> None:
    command = f"{sys.executable} -m robench list | true"
    finished = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=120, env=dict(os.environ))
    assert "Traceback" not in finished.stderr


def test_records_commands_start_without_torch() -> None:
    code = (
        "import sys; sys.argv = ['robench', 'list']\n"
        "from robench.cli import main\n"
        "try: main()\n"
        "except SystemExit as ended: assert not ended.code\n"
        "assert 'torch' not in sys.modules, 'torch was imported'"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, finished.stderr


def test_benches_are_listed_and_an_unknown_one_is_named() -> None:
    code, stdout, _ = _invoke("bench")
    assert code == 0
    assert "LinfPGD" in stdout
    assert _json("bench")["pgd"]["against"] == "foolbox"
    unknown = "robench bench: `name` is `pdg`; expected the name of a bench. Did you mean `pgd`?"
    assert _refused("bench", "pdg") == unknown
    assert _refused("bench", "pgd", "--against", "x") == "robench bench: `against` is `x`; expected `foolbox`."
    assert re.match(
        r"robench bench: `epsilon` is `0\.1`; expected a fraction", _refused("bench", "pgd", "--epsilon", "0.1")
    )


def test_a_bench_prints_one_object_and_says_when_it_is_not_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("robench.bench.pgd.STEPS", 2)
    monkeypatch.setattr(os, "getloadavg", lambda: (9.0, 9.0, 9.0))
    monkeypatch.setattr("robench.bench.measurement.wait_for_rest", lambda seconds=0.0: False)
    settings = ("--model", "mini-resnet-adv", "--images", "16", "--epsilon", "4/255", "--repeats", "1")
    code, stdout, stderr = _invoke("bench", "pgd", *settings, "--json")
    found = json.loads(stdout)
    assert code == 0
    assert "not valid: The machine was busy: the load average was 9.00 at the start." in stderr
    assert found["valid"] is False
    ours, theirs = (f"{found[key]:.3g} s" for key in ("ours_seconds", "theirs_seconds"))
    line = f"pgd, mini-resnet-adv, 16 images: {ours}, foolbox {theirs}, {found['ratio']:.2f} times as fast"
    assert f"{line}; NOT VALID, see why above\n" in stderr
    wanted = "name examples ours_seconds theirs_seconds ratio ours_robust theirs_robust verdicts_differ overhead"
    assert set(wanted.split()) <= set(found)
    assert (found["name"], found["model"], found["examples"]) == ("pgd", "mini-resnet-adv", 16)
    assert "ratio on fast path" in _invoke("bench", "pgd", *settings)[1]
