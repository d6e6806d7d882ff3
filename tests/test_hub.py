import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest

from robench.errors import DataError, ModelError
from robench.hub import Hub, Snapshot, open_snapshot, parse
from tests.hub_server import SLOW, TOKEN, FakeHub, serving

FILES = {"config.json": b'{"architecture": "none"}', "model.safetensors": bytes(range(256)) * 40}
WANTED = tuple(FILES)
NAME = "someone/something"
LONGEST = 4.0
"""Seconds that any failure may take here; the client alone takes 23 where a Hub is down."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    """A Hub with one public repository; no one is logged in."""
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    with serving() as hub:
        hub.add(NAME, FILES)
        yield hub


@pytest.fixture
def place(server: FakeHub, tmp_path: Path) -> Hub:
    return Hub(server.endpoint, tmp_path / "cache", seconds=1.0)


def _opened(place: Hub, reference: str = f"hf-hub:{NAME}") -> Snapshot:
    return open_snapshot(parse(reference), place, WANTED)


def _fetched(place: Hub, reference: str = f"hf-hub:{NAME}") -> dict[str, bytes]:
    snapshot = _opened(place, reference)
    return {file: snapshot.fetch(file).read_bytes() for file in WANTED}


def test_a_branch_becomes_a_commit_and_what_is_there_is_not_fetched_twice(server: FakeHub, place: Hub) -> None:
    commit = server.repositories[NAME].branches["main"]
    assert _opened(place).commit == commit
    assert _fetched(place) == FILES
    assert [path for path in server.asked("GET") if path.startswith("/api")] == [f"/api/models/{NAME}?blobs=true"] * 2
    server.log.clear()
    assert _fetched(place) == FILES
    assert server.asked() == [f"/api/models/{NAME}?blobs=true"]
    server.log.clear()
    assert _fetched(place, f"hf-hub:{NAME}@{commit}") == FILES
    assert server.log == []


@pytest.mark.parametrize("revision", ["v1", "refs/pr/3"])
def test_a_revision_is_asked_for(server: FakeHub, place: Hub, revision: str) -> None:
    old = {**FILES, "config.json": b"old"}
    commit = server.repositories[NAME].commit(old, revision)
    snapshot = _opened(place, f"hf-hub:{NAME}@{revision}")
    assert (snapshot.commit, snapshot.fetch("config.json").read_bytes()) == (commit, b"old")
    assert not any("main" in path for path in server.asked())


def test_a_public_repository_never_sees_the_token(server: FakeHub, place: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    _fetched(place)
    assert {request.origin for request in server.log} == {"hub", "cdn"}
    assert [request for request in server.log if request.token is not None] == []


@pytest.mark.parametrize("closed", ["private", "gated"])
def test_a_closed_repository_sees_the_token_and_the_other_origin_does_not(
    server: FakeHub, place: Hub, monkeypatch: pytest.MonkeyPatch, closed: str
) -> None:
    setattr(server.repositories[NAME], closed, True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert _fetched(place) == FILES
    assert {request.token for request in server.log if "resolve" in request.path} == {TOKEN}
    assert [request.token for request in server.log if request.origin == "cdn"] == [None]
    assert server.log[0].token is None  # whoever asks for the first time does so as a stranger


@pytest.mark.parametrize(
    ("closed", "token", "message"),
    [
        (
            "private",
            None,
            r"`repository` is missing, or private; .* Check the name; if it is private, log in with `hf ",
        ),
        ("private", "hf_other", r"`repository` is missing, or private; expected a repository on the Hub"),
        (
            "gated",
            None,
            r"is gated, and no one is logged in; .* Accept its terms at http://.*/someone/something, then log",
        ),
        ("gated", "hf_other", r"is gated, and its terms are not accepted; .* Accept its terms at http"),
    ],
)
def test_who_may_not_read_is_told_what_to_do(
    server: FakeHub, place: Hub, monkeypatch: pytest.MonkeyPatch, closed: str, token: str | None, message: str
) -> None:
    setattr(server.repositories[NAME], closed, True)
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(ModelError, match=rf"^hf-hub:{NAME}: .*{message}"):
        _fetched(place)


DOWN = r"`repository` is refused by the Hub with status {}; .* Try again later\."
FAULTS = [
    ("info", 401, r"`repository` is missing, or private"),
    ("info", 403, r"`repository` is refused by the Hub with status 403"),
    ("info", 404, r"`repository` is refused by the Hub with status 404"),
    ("info", 429, r"`repository` is refused by the Hub with status 429; .* Wait some minutes\."),
    ("info", 500, DOWN.format(500)),
    ("info", 503, DOWN.format(503)),
    ("info", "slow", r"`repository` is not to be had \(\w*Timeout: .*\); .* Try again with a connection\."),
    ("info", "short", r"`repository` is not to be had \(\w+: .*\)"),
    ("head", 401, r"`repository` is missing, or private; expected `config.json`"),
    ("head", 403, r"`repository` is refused by the Hub with status 403; expected `config.json`"),
    ("head", 404, r"`repository` is refused by the Hub with status 404; expected `config.json`"),
    ("head", 429, r"`repository` is refused by the Hub with status 429; .* Wait some minutes\."),
    ("head", 503, DOWN.format(503)),
    ("head", "slow", r"`repository` is not to be had \(\w*Timeout: .*\); expected `config.json`"),
    ("head", "without X-Repo-Commit", r"`answer` is without X-Repo-Commit; .* Check HF_ENDPOINT, and any proxy\."),
    ("head", "without ETag X-Linked-Etag", r"`answer` is without ETag; expected that of a Hub"),
    ("get", 401, r"`repository` is missing, or private; expected `config.json`"),
    ("get", 403, r"`repository` is refused by the Hub with status 403; expected `config.json`"),
    ("get", 404, r"`repository` is refused by the Hub with status 404; expected `config.json`"),
    ("get", 408, r"`repository` is refused by the Hub with status 408; expected `config.json`"),
    ("get", 429, r"`repository` is refused by the Hub with status 429; .* Wait some minutes\."),
    ("get", 503, DOWN.format(503)),
    (
        "get",
        "wrong bytes",
        r"`digest of config.json` is [0-9a-f]{40}; expected [0-9a-f]{40}, as the Hub lists it\. The",
    ),
    ("get", "short", r"`repository` is not to be had \(\w+: .*\); expected `config.json`"),
]


@pytest.mark.parametrize(("stage", "fault", "message"), FAULTS)
def test_what_goes_wrong_is_said_within_seconds(
    server: FakeHub, place: Hub, stage: str, fault: int | str, message: str
) -> None:
    server.faults[stage] = fault
    began = time.monotonic()
    with pytest.raises(ModelError, match=rf"^hf-hub:{NAME}: {message}"):
        _fetched(place)
    assert time.monotonic() - began < LONGEST
    assert list((Path(place.cache_dir or "")).rglob("snapshots/*/*")) == []  # nothing is left that another call takes
    server.faults.clear()
    assert _fetched(place) == FILES


@pytest.mark.parametrize("fault", [None, 429])
def test_the_client_is_left_as_it_was(server: FakeHub, place: Hub, fault: int | None) -> None:
    before = {kind: list(hooks) for kind, hooks in huggingface_hub.get_session().event_hooks.items()}
    if fault is None:
        _fetched(place)
    else:
        server.faults["get"] = fault
        with pytest.raises(ModelError):
            _fetched(place)
    assert huggingface_hub.get_session().event_hooks == before


def test_a_download_that_stalls_goes_on_once_and_then_says_so(
    server: FakeHub, place: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DOWNLOAD_TIMEOUT", 1)
    server.faults["get"] = "stall"
    began = time.monotonic()
    with pytest.raises(ModelError, match=r"`repository` is not to be had \(TimeoutError: nothing came in \d s\); exp"):
        _fetched(place)
    assert time.monotonic() - began < 2 * LONGEST
    server.faults.clear()
    assert _fetched(place) == FILES


def test_a_slow_download_is_waited_for_longer_than_a_question(server: FakeHub, place: Hub) -> None:
    server.faults["get"] = "slow"
    assert place.seconds < SLOW
    assert _fetched(place) == FILES


def test_large_files_with_wrong_bytes_of_the_right_length_are_refused(server: FakeHub, place: Hub) -> None:
    snapshot = _opened(place)
    server.faults["get"] = "wrong bytes"
    with pytest.raises(ModelError, match=r"`digest of model\.safetensors` is [0-9a-f]{64}; expected [0-9a-f]{64}, as"):
        snapshot.fetch("model.safetensors")
    server.faults.clear()
    assert snapshot.fetch("model.safetensors").read_bytes() == FILES["model.safetensors"]


@pytest.mark.parametrize("pinned", [False, True])
def test_a_cached_file_that_was_changed_is_refused_deleted_and_fetched_again(
    server: FakeHub, place: Hub, pinned: bool
) -> None:
    snapshot = _opened(place)
    path = snapshot.fetch("model.safetensors")
    snapshot.fetch("config.json")
    path.resolve().write_bytes(b"x" * len(FILES["model.safetensors"]))
    reference = f"hf-hub:{NAME}@{snapshot.commit}" if pinned else f"hf-hub:{NAME}"
    with pytest.raises(ModelError, match=r"`digest of model\.safetensors` is .* The copy was deleted; try again\.$"):
        _fetched(place, reference)
    assert _fetched(place, reference) == FILES


@pytest.mark.parametrize("fault", [429, 503, "slow", "down"])
def test_without_an_answer_the_cache_serves_the_last_commit_it_has(
    server: FakeHub, place: Hub, fault: int | str
) -> None:
    first = _opened(place).commit
    _fetched(place)
    server.add(NAME, {**FILES, "config.json": b"new"})
    if fault == "down":
        place = Hub("http://127.0.0.1:9", place.cache_dir, place.seconds)
    server.faults["info"] = fault
    began = time.monotonic()
    assert _opened(place).commit == first
    assert _fetched(place) == FILES
    assert time.monotonic() - began < LONGEST


def test_a_branch_that_moves_while_it_is_read_is_an_error(server: FakeHub, place: Hub) -> None:
    snapshot = _opened(place)
    snapshot.fetch("config.json")
    server.add(NAME, {**FILES, "model.safetensors": b"new"})
    with pytest.raises(
        ModelError, match=r"`revision` is moving from [0-9a-f]{8} to [0-9a-f]{8} meanwhile; .* Try again"
    ):
        snapshot.fetch("model.safetensors")


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("hf-hub:someone/else", r"^hf-hub:someone/else: `repository` is missing, or private; .* Check the name"),
        (f"hf-hub:{NAME}@v9", r"`revision` is `v9`; expected a branch, tag or commit of it\.$"),
    ],
)
def test_what_is_not_there_is_named(place: Hub, server: FakeHub, reference: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        _opened(place, reference)


def test_a_file_that_is_not_there_is_named_without_asking(server: FakeHub, place: Hub) -> None:
    snapshot = _opened(place)
    asked = len(server.log)
    with pytest.raises(ModelError, match=r"`file` is missing at [0-9a-f]{8}; expected `other\.json`\.$"):
        snapshot.fetch("other.json")
    assert len(server.log) == asked


def test_data_sets_are_repositories_of_their_own(server: FakeHub, place: Hub) -> None:
    commit = server.add("datasets/someone/images", {"README.md": b"images"})
    snapshot = open_snapshot(parse("hf-hub:someone/images", "dataset"), place)
    assert (snapshot.commit, snapshot.fetch("README.md").read_bytes()) == (commit, b"images")
    with pytest.raises(DataError, match=r"^hf-hub:someone/others: `repository` is missing, or private"):
        open_snapshot(parse("hf-hub:someone/others", "dataset"), place)


@pytest.mark.parametrize(
    "reference", ["hf-hub:", "hf-hub:name", "hf-hub:a/b@", "hf-hub:a/b@c@d", "hf-hub:a/../b", "a/b"]
)
def test_a_malformed_name_is_named(reference: str) -> None:
    with pytest.raises(ModelError, match=r"^robench: `model` is `.*`; expected `hf-hub:org/name\[@revision\]`\.$"):
        parse(reference)
    with pytest.raises(DataError, match=r"^robench: `data` is "):
        parse(reference, "dataset")


def test_a_name_may_have_a_file() -> None:
    address = parse("hf-hub:a/b/folder/file.ckpt@main")
    assert (address.repository, address.file, address.revision) == ("a/b", "folder/file.ckpt", "main")
    assert address.reference == "hf-hub:a/b/folder/file.ckpt"


def test_offline_the_cache_serves_and_nothing_is_asked(server: FakeHub, place: Hub, tmp_path: Path) -> None:
    _fetched(place)
    server.log.clear()
    code = f"""
        from robench.errors import ModelError
        from robench.hub import Hub, open_snapshot, parse
        hub = Hub({server.endpoint!r}, {str(place.cache_dir)!r})
        print(open_snapshot(parse("hf-hub:{NAME}"), hub, {WANTED!r}).fetch("config.json").read_text())
        try:
            open_snapshot(parse("hf-hub:someone/else"), hub, {WANTED!r})
        except ModelError as error:
            print(error)
    """
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    first, second = done.stdout.splitlines()
    assert first == FILES["config.json"].decode()
    assert second == (
        "hf-hub:someone/else: `repository` is not in the cache, and the Hub is not asked; expected a repository on the "
        "Hub. Unset HF_HUB_OFFLINE, or fetch it once with a connection."
    )
    assert server.log == []
