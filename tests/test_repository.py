import ast
import importlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

import robench
from robench import registry
from robench.budgets import BALLS, PatchArea
from robench.data import CATALOGUE
from robench.data.source import ids_digest
from robench.door import build_attack
from robench.protocol import PatchSpec, read_protocol

ROOT = Path(__file__).parent.parent
PROTOCOLS = sorted((ROOT / "benchmarks").glob("*.toml"))
FORBIDDEN = {"utils", "helpers", "common", "misc", "base", "core", "manager"}
PUBLIC = {
    "Options": "robench.evaluation",
    "Result": "robench.result",
    "evaluate": "robench.evaluation",
    "list_protocols": "robench.registry",
    "load_model": "robench.zoo",
    "load_protocol": "robench.registry",
}
WHEEL_LIMIT = 8_000_000


def _project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


# --- names


def test_public_names_are_pinned() -> None:
    assert sorted(robench.__all__) == sorted(PUBLIC)
    assert dir(robench) == sorted(PUBLIC)


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_leads_home(name: str) -> None:
    assert getattr(robench, name) is getattr(importlib.import_module(PUBLIC[name]), name)


def test_a_misspelt_name_is_an_error() -> None:
    misspelt = "evalaute"
    with pytest.raises(AttributeError, match=r"^module 'robench' has no attribute 'evalaute'$"):
        getattr(robench, misspelt)


def test_the_version_is_one() -> None:
    assert robench.__version__ == _project()["project"]["version"]


# --- files


def test_the_list_of_packages_is_the_tree() -> None:
    settings = _project()["tool"]["setuptools"]
    folders = [path.parent.relative_to(ROOT) for path in (ROOT / "robench").rglob("__init__.py")]
    assert sorted(settings["packages"]) == sorted([".".join(path.parts) for path in folders] + ["robench_benchmarks"])
    assert settings["package-dir"] == {"robench": "robench", "robench_benchmarks": "benchmarks"}


def test_every_folder_with_code_is_a_package() -> None:
    assert {
        path.parent for path in (ROOT / "robench").rglob("*.py") if not (path.parent / "__init__.py").exists()
    } == set()


def test_no_file_is_a_drawer() -> None:
    paths = [path for top in ("robench", "tests", "benchmarks") for path in (ROOT / top).rglob("*")]
    assert paths
    assert [path for path in paths if path.stem.strip("_") in FORBIDDEN] == []


def _prints(source: str) -> list[int]:
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id in ("print", "pprint")]


def test_only_the_command_line_prints() -> None:
    assert _prints("x = 1\nif x:\n    print(x)") == [3]
    paths = [path for path in (ROOT / "robench").rglob("*.py") if "cli" not in path.relative_to(ROOT).parts]
    assert {path: lines for path in paths if (lines := _prints(path.read_text(encoding="utf-8")))} == {}


# --- protocols


def test_there_are_protocols() -> None:
    assert {path.stem for path in PROTOCOLS} >= {"pgd-linf", "pgd-linf-paper", "mini-pgd-linf"}


@pytest.mark.parametrize("path", PROTOCOLS, ids=lambda path: path.stem)
def test_a_protocol_loads_and_its_attack_builds(path: Path) -> None:
    protocol = read_protocol(path)
    assert path.stem in (protocol.id, protocol.exact_name)
    assert robench.load_protocol(protocol.exact_name) == protocol
    stages, budget = build_attack(protocol)
    assert bool(stages) == (protocol.attack is not None)
    if isinstance(protocol.budget, PatchSpec):
        assert budget == PatchArea(float(Fraction(protocol.budget.area)), protocol.budget.patches)
    elif protocol.budget is not None:
        assert isinstance(budget, BALLS)
        numerator, _, denominator = protocol.budget.epsilon.partition("/")
        assert budget.epsilon == int(numerator) / int(denominator or 1)


def test_the_ids_of_bundled_protocols_are_those_of_their_data() -> None:
    shipped = [protocol for protocol in map(read_protocol, PROTOCOLS) if protocol.data.source in CATALOGUE]
    assert {protocol.id for protocol in shipped} >= {"mini-pgd-linf", "mini-autoattack-linf", "mini-tpa"}
    ids = {source: CATALOGUE[source]().ids for source in {protocol.data.source for protocol in shipped}}
    for protocol in shipped:
        own = ids[protocol.data.source]
        assert (len(own), ids_digest(own)) == (protocol.data.count, protocol.data.ids_sha256), protocol.exact_name


def test_the_lock_holds() -> None:
    protocols = registry.read_folder(ROOT / "benchmarks")
    lock = registry.read_lock(ROOT / "benchmarks" / registry.LOCK)
    assert (ROOT / "benchmarks" / registry.LOCK).exists()
    released = {name for name, protocol in protocols.items() if protocol.status != "draft"}
    assert released <= set(lock) <= set(protocols)
    assert all(protocols[name].digest == digest for name, digest in lock.items())


def test_the_shipped_folder_is_the_repositorys() -> None:
    assert registry.shipped_folder().resolve() == (ROOT / "benchmarks").resolve()
    assert registry.shipped() == registry.read_folder(ROOT / "benchmarks")


# --- the wheel


def _checkout() -> list[Path]:
    """What a commit of everything would hold, relative to the root."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")
    return [Path(name) for name in sorted(set(listed)) if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy, so that no build folder litters the checkout."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("needs git and a checkout")
    folder = tmp_path_factory.mktemp("wheel")
    for name in _checkout():
        target = folder / "source" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, target)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder / "dist"), "."]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder / "source")
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = (folder / "dist").glob("*.whl")
    return found


def _names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_the_wheel_holds_what_runs_without_a_checkout(wheel: Path) -> None:
    expected = {f"robench_benchmarks/{path.name}" for path in PROTOCOLS}
    expected |= {"robench_benchmarks/protocols.lock", "robench_benchmarks/__init__.py"}
    expected |= {"robench/py.typed", "robench/data/mini/attack_set.webp"}
    expected |= {f"robench/data/imagenet/{name}.txt.gz" for name in ("val_5000", "wnids")}
    recipes = sorted((ROOT / "robench").glob("*/recipes/*.toml"))
    plans = sorted((ROOT / "robench" / "reproduction" / "plans").glob("*.toml"))
    assert len(plans) >= 3
    weights = [path for path in (ROOT / "robench" / "zoo" / "weights").iterdir() if path.name != ".gitkeep"]
    code = sorted((ROOT / "robench").rglob("*.py"))
    textures = list((ROOT / "robench" / "data" / "mini" / "textures").iterdir())
    assert len(textures) == 3
    assert {path.parts[-3] for path in recipes} == {"training", "synthesis"}
    expected |= {str(path.relative_to(ROOT)) for path in [*recipes, *plans, *weights, *textures, *code]}
    assert expected - _names(wheel) == set()


def test_the_wheel_holds_nothing_else(wheel: Path) -> None:
    version = robench.__version__
    strange = {
        name
        for name in _names(wheel)
        if not re.match(rf"robench/|robench_benchmarks/|robench-{version}\.dist-info/", name)
    }
    assert strange == set()
    assert not any("__pycache__" in name or name.endswith((".pt", ".pth", ".ckpt")) for name in _names(wheel))


def test_the_wheel_is_small(wheel: Path) -> None:
    assert wheel.stat().st_size <= WHEEL_LIMIT


def test_the_wheel_finds_its_protocols_by_itself(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = (
        "import robench, robench.registry as registry\n"
        "print(robench.__file__, registry.shipped_folder(), *(each.exact_name for each in robench.list_protocols()))"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path, env=environment
    )
    code_file, folder, *names = done.stdout.split()
    assert Path(code_file) == tmp_path / "site" / "robench" / "__init__.py"
    assert Path(folder) == tmp_path / "site" / "robench_benchmarks"
    assert names == [protocol.exact_name for protocol in registry.list_protocols()]
