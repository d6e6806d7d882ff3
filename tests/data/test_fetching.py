import shutil
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from robench.data.fetching import PUBLICATIONS, Publication, fetch
from robench.data.textures import read_published
from robench.errors import DataError
from robench.registry import load_protocol

FILES = tuple(f"attention-style_t-label_{label}/a/b/cluster_{each}/iter_9.pt" for label in (3, 7) for each in (0, 1))
KEPT = "What has arrived is kept: the same command goes on."


class _Handler(BaseHTTPRequestHandler):
    """Serves the files of `root`, but answers some paths as `odd` says."""

    root: ClassVar[Path]
    odd: ClassVar[dict[str, str]] = {}
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        how = next((how for end, how in self.odd.items() if self.path.endswith(end)), "")
        if how == "silent":
            time.sleep(1.0)
            return
        if how == "missing":
            self.send_error(404)
            return
        content = (self.root / self.path.removeprefix("/at/commit/")).read_bytes()
        self.send_response(200)
        if how != "unmeasured":
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if how in ("short", "unmeasured") else content)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The base address of a server with a publication of four textures."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    _Handler.root, _Handler.odd, _Handler.asked = tmp_path / "published", {}, []
    for index, file in enumerate(FILES):
        path = _Handler.root / "Textures" / file
        path.parent.mkdir(parents=True)
        torch.save(torch.full((3, 4, 4), 0.1 * index), path)
    (_Handler.root / "LICENSE").write_text("As you like.")
    running = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    thread = threading.Thread(target=running.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{running.server_port}/at/commit"
    running.shutdown()
    running.server_close()
    thread.join()


@pytest.fixture
def publication(server: str) -> Publication:
    digest = read_published(_Handler.root / "Textures").sha256
    return Publication(server, "Textures", FILES, "LICENSE", digest)


def test_it_arrives_whole_with_its_licence(tmp_path: Path, publication: Publication) -> None:
    done: list[int] = []
    assert fetch(publication, tmp_path / "here" / "textures", on_file=done.append) is True
    assert done == [0, 1, 2, 3, 4, 5]
    assert sorted(path.name for path in (tmp_path / "here").iterdir()) == ["textures"]
    assert read_published(tmp_path / "here" / "textures").sha256 == publication.sha256
    assert (tmp_path / "here" / "textures" / "LICENSE").read_text() == "As you like."
    _Handler.asked.clear()
    assert fetch(publication, tmp_path / "here" / "textures") is False
    assert _Handler.asked == []


def test_an_empty_folder_is_filled_and_another_address_will_do(tmp_path: Path, publication: Publication) -> None:
    (tmp_path / "empty").mkdir()
    elsewhere = Publication("https://nowhere.invalid", "Textures", FILES, "LICENSE", publication.sha256)
    assert fetch(elsewhere, tmp_path / "empty", base_url=publication.base_url + "/")
    assert read_published(tmp_path / "empty").classes == (3, 7)


# http.client leaves the socket of an answer that never began to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", "`answer` is 404 (Not Found); expected 200 and the file. " + KEPT),
        ("silent", "`answer` is none in 0.2 s; expected the file. " + KEPT),
        ("short", "`file` is cut off after {half} bytes; expected {whole} bytes. " + KEPT),
    ],
)
def test_what_stops_half_way_is_named_and_gone_on_with(
    tmp_path: Path, publication: Publication, how: str, message: str
) -> None:
    odd = FILES[2]
    _Handler.odd = {odd: how}
    with pytest.raises(DataError) as caught:
        fetch(publication, tmp_path / "textures", timeout=0.2 if how == "silent" else 10)
    size = (_Handler.root / "Textures" / odd).stat().st_size
    expected = message.replace("{half}", f"{size // 2:,}").replace("{whole}", f"{size:,}")
    assert str(caught.value) == f"{publication.base_url}/Textures/{odd}: {expected}"
    assert not (tmp_path / "textures").exists()
    _Handler.odd, _Handler.asked = {}, []
    assert fetch(publication, tmp_path / "textures")
    assert _Handler.asked == [f"/at/commit/Textures/{file}" for file in FILES[2:]]
    assert [path.name for path in tmp_path.iterdir() if path.name != "published"] == ["textures"]


@pytest.mark.parametrize("content", [b"<html>Sign in</html>", b""])
def test_what_is_no_texture_is_named_and_not_kept(tmp_path: Path, publication: Publication, content: bytes) -> None:
    path = _Handler.root / "Textures" / FILES[1]
    right = path.read_bytes()
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        fetch(publication, tmp_path / "textures")
    assert str(caught.value).startswith(f"{publication.base_url}/Textures/{FILES[1]}: `file` is unreadable (")
    assert not (tmp_path / "textures.part" / FILES[1]).exists()
    path.write_bytes(right)
    assert fetch(publication, tmp_path / "textures")


def test_a_file_cut_off_by_a_server_that_promised_no_length_is_no_texture(
    tmp_path: Path, publication: Publication
) -> None:
    _Handler.odd = {FILES[0]: "unmeasured"}
    with pytest.raises(DataError, match=r"/cluster_0/iter_9\.pt: `file` is unreadable \("):
        fetch(publication, tmp_path / "textures")


def test_other_textures_are_refused_and_thrown_away(tmp_path: Path, publication: Publication) -> None:
    path = _Handler.root / "Textures" / FILES[3]
    right = path.read_bytes()
    torch.save(torch.full((3, 4, 4), 0.9), path)
    other = read_published(_Handler.root / "Textures").sha256
    with pytest.raises(DataError) as caught:
        fetch(publication, tmp_path / "textures")
    assert str(caught.value) == (
        f"{publication.base_url}: `sha256` is {other}; expected {publication.sha256}, as the protocol says. "
        "The textures were changed, or are others."
    )
    assert not (tmp_path / "textures").exists()
    path.write_bytes(right)
    assert fetch(publication, tmp_path / "textures")


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path, publication: Publication) -> None:
    shutil.copytree(_Handler.root / "Textures", tmp_path / "other")
    torch.save(torch.full((3, 4, 4), 0.9), tmp_path / "other" / FILES[3])
    with pytest.raises(DataError, match=rf"^{tmp_path}/other: `sha256` is .+; expected {publication.sha256}"):
        fetch(publication, tmp_path / "other")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("Mine.")
    with pytest.raises(DataError, match=rf"^{tmp_path}/mine: `textures` is none; expected"):
        fetch(publication, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "Mine."
    assert _Handler.asked == []


def test_without_a_network_it_says_so(tmp_path: Path, publication: Publication) -> None:
    nobody = "http://127.0.0.1:9"  # the discard port, where nothing listens
    with pytest.raises(DataError) as caught:
        fetch(publication, tmp_path / "textures", base_url=nobody)
    assert str(caught.value).startswith(f"{nobody}/LICENSE: `answer` is none (")
    assert str(caught.value).endswith(f"; expected the file. Is there a network? {KEPT}")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"base_url": "file:///etc"},
            "fetch: `base_url` is `file:///etc`; expected an address that begins with https://",
        ),
        ({"timeout": 0}, "fetch: `timeout` is 0; expected more than 0 seconds, and at most a day."),
        ({"timeout": float("nan")}, "fetch: `timeout` is nan; expected more than 0 seconds, and at most a day."),
        ({"timeout": 1e300}, "fetch: `timeout` is 1e+300; expected more than 0 seconds, and at most a day."),
    ],
)
def test_nonsense_is_refused(tmp_path: Path, publication: Publication, changes: Any, message: str) -> None:
    with pytest.raises(DataError) as caught:
        fetch(publication, tmp_path / "textures", **changes)
    assert str(caught.value).startswith(message)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, publication: Publication) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"/file/textures.part/LICENSE: `file` is not writable \(.+\); expected room"):
        fetch(publication, tmp_path / "file" / "textures")


def test_what_can_be_fetched_is_what_the_protocol_pins() -> None:
    attack = load_protocol("tpa").attack
    assert attack is not None
    publication = PUBLICATIONS[str(attack.settings["textures"])]
    assert publication.sha256 == attack.settings["textures_sha256"]
    assert len(set(publication.files)) == 60
    assert publication.base_url.startswith("https://")
