"""A run of patches that is killed in any round, of any patch, ends in the same bytes."""

import os
import signal
from pathlib import Path

import pytest

from robench.attacks.patch_search import RandomPatches
from tests.attacks.test_autoattack import write_protocol
from tests.fakes import noise_folder
from tests.test_cascade_killed import _finished, _run, _same, _taken_up

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
]
ROUNDS = "rounds = 3\nqueries = 8\npatches = 2\n"
SETTINGS = {
    "tpa": f'kind = "tpa"\nplateau = "0"\n{ROUNDS}',
    "tpa-random": f'kind = "tpa-random"\n{ROUNDS}',
    "tpa-local": f'kind = "tpa-random"\nlocal_rounds = 2\n{ROUNDS}',
    "tpa-gray": f'kind = "tpa-gray"\nlevel = "0"\n{ROUNDS}',
    "tpa-whitebox": 'kind = "tpa-whitebox"\npatches = 2\npositions = 2\nrounds = 4\n',
}
TEXTURED = {"tpa", "tpa-random", "tpa-local"}


def _protocol(folder: Path, name: str) -> Path:
    """A protocol of patches in place of the cascade's, under which some images fall and some do not."""
    path, attack = write_protocol(folder), SETTINGS[name]
    if name in TEXTURED:
        attack += "".join(f'{key} = "{value}"\n' for key, value in noise_folder().items())
    head, _, _ = path.read_text().partition("[attack]")
    path.write_text(f'{head}[attack]\n{attack}\n[budget]\nkind = "patches"\narea = "1/32"\npatches = 2\n')
    return path


@pytest.mark.parametrize("name", SETTINGS)
def test_a_kill_in_any_round_changes_no_byte(tmp_path: Path, name: str) -> None:
    """In the first round, and later, when shards are finished and slots have been refilled."""
    protocol, log = _protocol(tmp_path, name), tmp_path / "asks.log"
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    assert _run(protocol, whole, log) == 0
    covered: set[str] = set()
    for ask in (1, 22):
        log.unlink(missing_ok=True)
        assert _run(protocol, folder, log, name, ask) == signal.SIGKILL
        assert not covered & {image for _, image in _taken_up(log)}
        covered = _finished(folder)
    assert covered
    log.unlink()
    assert _run(protocol, folder, log) == 0
    assert not covered & {image for _, image in _taken_up(log)}
    _same(folder, whole)


def test_the_names_are_those_of_the_attacks() -> None:
    """So that a kill counts the asks of the attack that runs."""
    assert RandomPatches("mini", "", rounds=3, local_rounds=2).name in SETTINGS
