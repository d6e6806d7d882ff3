from pathlib import Path
from typing import Any

import pytest

from robench import registry
from robench.errors import ProtocolError
from robench.protocol import Protocol
from robench.registry import list_protocols, load_protocol, read_folder, read_lock, resolve, shipped
from tests.test_protocol import MISSING, changed, protocol, to_toml


def _write(folder: Path, name: str, **changes: Any) -> Protocol:
    content = changed(**{"supersedes": MISSING, **changes})
    (folder / f"{name}.toml").write_text(to_toml(content), encoding="utf-8")
    return protocol(**changes)


def _lock(folder: Path, *protocols: Protocol) -> None:
    lines = [f"{each.exact_name} {each.digest}" for each in protocols]
    (folder / registry.LOCK).write_text("# comment\n\n" + "".join(f"{line}\n" for line in lines), encoding="utf-8")


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Shipped protocols of the test's own: an old and an active version, a draft of the next, and others."""
    old = _write(tmp_path, "toy-pgd@1", version=1, status="superseded")
    active = _write(tmp_path, "toy-pgd@2", version=2, status="active")
    _write(tmp_path, "toy-pgd", version=3)
    _write(tmp_path, "a-draft", id="a-draft", version=1)
    gone = _write(tmp_path, "z-gone", id="z-gone", version=1, status="withdrawn")
    _lock(tmp_path, old, active, gone)
    monkeypatch.setattr(registry, "shipped", lambda: read_folder(tmp_path))
    return tmp_path


def test_an_id_is_the_newest_active_version(shelf: Path) -> None:
    assert load_protocol("toy-pgd").exact_name == "toy-pgd@2"
    assert load_protocol("a-draft").exact_name == "a-draft@1"  # no active one: the newest
    assert [load_protocol(f"toy-pgd@{version}").version for version in (1, 2, 3)] == [1, 2, 3]


def test_the_list_has_the_newest_of_each_active_ones_first(shelf: Path) -> None:
    assert [each.exact_name for each in list_protocols()] == ["toy-pgd@2", "a-draft@1", "z-gone@1"]


def test_released_and_unwithdrawn_versions_are_official(shelf: Path) -> None:
    names = ("toy-pgd@1", "toy-pgd@2", "toy-pgd@3", "a-draft", "z-gone")
    assert [resolve(name).official for name in names] == [True, True, False, False, False]


def test_a_users_own_file_is_never_official(shelf: Path) -> None:
    path = shelf / "toy-pgd@2.toml"
    for name in (path, str(path)):
        assert resolve(name).protocol == load_protocol("toy-pgd@2")
        assert not resolve(name).official


def test_unknown_names_get_advice(shelf: Path) -> None:
    with pytest.raises(ProtocolError) as caught:
        load_protocol("toy-pdg")
    expected = "the id of a protocol or a path to a TOML file. Did you mean `toy-pgd`?"
    assert str(caught.value) == f"robench: `protocol` is `toy-pdg`; expected {expected}"
    for name in ("toy-pgd@9", "toy-pgd@"):
        with pytest.raises(ProtocolError) as caught:
            load_protocol(name)
        expected = "one of toy-pgd@1, toy-pgd@2, toy-pgd@3. `toy-pgd` alone is the newest."
        assert str(caught.value) == f"robench: `protocol` is `{name}`; expected {expected}"


def test_a_released_version_never_changes(shelf: Path) -> None:
    locked = load_protocol("toy-pgd@2").digest
    edited = _write(shelf, "toy-pgd@2", version=2, status="active", attack__steps=11)
    with pytest.raises(ProtocolError) as caught:
        read_folder(shelf)
    assert str(caught.value) == (
        f"toy-pgd.toml: `digest` is {edited.digest}; expected {locked} (locked). "
        "A released version never changes: publish the change as a new version."
    )


def test_a_released_version_may_change_its_words(shelf: Path) -> None:
    _write(shelf, "toy-pgd@2", version=2, status="superseded", title="Clearer", summary="Clearer.", ranked=False)
    assert read_folder(shelf)["toy-pgd@2"].title == "Clearer"


@pytest.mark.parametrize("status", ["active", "superseded", "withdrawn"])
def test_what_is_no_draft_must_be_locked(tmp_path: Path, status: str) -> None:
    wanted = _write(tmp_path, "toy-pgd", status=status)
    with pytest.raises(ProtocolError) as caught:
        read_folder(tmp_path)
    advice = f"Add the line `toy-pgd@2 {wanted.digest}` to protocols.lock."
    assert str(caught.value) == f"toy-pgd.toml: `status` is '{status}'; expected a locked digest. {advice}"
    _lock(tmp_path, wanted)
    assert list(read_folder(tmp_path)) == ["toy-pgd@2"]


def test_a_draft_may_change_and_needs_no_lock(tmp_path: Path) -> None:
    _write(tmp_path, "toy-pgd")
    assert read_folder(tmp_path)["toy-pgd@2"] == protocol(supersedes=MISSING)
    _write(tmp_path, "toy-pgd", seed=8)
    assert read_folder(tmp_path)["toy-pgd@2"].seed == 8


def test_a_locked_protocol_is_not_lost(shelf: Path) -> None:
    (shelf / "toy-pgd@1.toml").unlink()
    with pytest.raises(ProtocolError) as caught:
        read_folder(shelf)
    expected = "protocols.lock: `line` is 'toy-pgd@1'; expected a protocol file for every locked version."
    assert str(caught.value) == expected


def test_a_file_is_named_after_its_protocol(tmp_path: Path) -> None:
    _write(tmp_path, "toy-bgd")
    with pytest.raises(
        ProtocolError, match=r"^toy-bgd\.toml: `id` is 'toy-pgd'; expected the file's stem, 'toy-bgd'\.$"
    ):
        read_folder(tmp_path)


def test_a_version_has_one_file(tmp_path: Path) -> None:
    _write(tmp_path, "toy-pgd")
    _write(tmp_path, "toy-pgd@2")
    with pytest.raises(ProtocolError, match=r"`version` is 2; expected a version that no other file has\.$"):
        read_folder(tmp_path)


@pytest.mark.parametrize("line", ["toy-pgd@2", "toy-pgd@2 abc", f"toy-pgd@2 {'A' * 64}", f"toy-pgd@2 {'a' * 64} x"])
def test_a_malformed_lock_is_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "protocols.lock"
    path.write_text(f"{line}\n", encoding="utf-8")
    with pytest.raises(ProtocolError) as caught:
        read_lock(path)
    assert str(caught.value) == f"protocols.lock: `line` is '{line}'; expected `id@version sha256`."


def test_shipped_protocols_resolve_by_id_and_by_exact_name() -> None:
    assert shipped()
    for name, each in shipped().items():
        assert load_protocol(name) == each
        assert load_protocol(each.id).id == each.id
