"""Fetches what others publish and robench may not ship, and checks that it is what protocols pin.

Not here: where it is looked for afterwards (`locations.py`), and how it is read (`textures.py`).
"""

import http.client
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from robench.data.textures import check_digest, published_texture, read_published
from robench.data.writing import written_whole
from robench.errors import DataError, complaint

TIMEOUT = 30.0
"""Seconds that a server may say nothing."""
LARGEST = 4_000_000
"""Bytes of a file, at most; a texture has 600,000."""
GO_ON = "What has arrived is kept: the same command goes on."


@dataclass(frozen=True)
class Publication:
    """Textures as someone publishes them.

    Attributes:
      base_url: what the files' paths are relative to.
      folder: of the textures, below that.
      files: paths below that folder.
      license: file beside the folder; it goes with the textures.
      sha256: digest of the dictionary.
    """

    base_url: str
    folder: str
    files: tuple[str, ...]
    license: str
    sha256: str


_SETTINGS = "conv_5_cam-thred_0.8_n-clusters_30/cls-w_0_scale_1"
PUBLICATIONS = {
    "tpa-textures": Publication(
        base_url="https://raw.githubusercontent.com/Chenglin-Yang/PatchAttack/56941df",
        folder="TextureDict_demo",
        files=tuple(
            f"attention-style_t-label_{label}/{_SETTINGS}/cluster_{cluster}/iter_9999.pt"
            for label in (45, 723)
            for cluster in range(30)
        ),
        license="LICENSE",
        sha256="c644f4c6ac288e73c8a3cb3e2f82c208af212db8455d55b41ff1e35c512a05b0",
    )
}
"""What can be fetched, by its name in a protocol."""


def fetch(
    publication: Publication,
    folder: Path,
    *,
    base_url: str | None = None,
    timeout: float = TIMEOUT,
    on_file: Callable[[int], None] = lambda done: None,
) -> bool:
    """Fetch published textures into a folder, which is there with all of them or not at all.

    Files arrive in `<folder>.part`; a call that was stopped goes on with those that are missing. Textures that are
    not those of the protocol are thrown away.

    Args:
      publication: what to fetch.
      folder: where it goes; new or empty.
      base_url: another place with the same files.
      timeout: seconds that the server may say nothing.
      on_file: is told how many files are there.
    Returns:
      Whether anything was fetched; False: it was there already.
    Raises:
      DataError: a file cannot be had or is no texture, the textures are others, or the folder is not empty.
    """
    base = (base_url or publication.base_url).rstrip("/")
    if not base.startswith(("https://", "http://")):
        raise DataError(complaint("fetch", "base_url", f"`{base}`", "an address that begins with https:// or http://"))
    if not 0 < timeout <= 86_400:
        raise DataError(complaint("fetch", "timeout", timeout, "more than 0 seconds, and at most a day"))
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        check_digest(str(folder), read_published(folder), publication.sha256, "the protocol says")
        return False
    parts = folder.with_name(f"{folder.name}.part")
    files = {publication.license: f"{base}/{publication.license}"}
    files |= {file: f"{base}/{publication.folder}/{file}" for file in publication.files}
    for done, (file, url) in enumerate(files.items()):
        on_file(done)
        if not (parts / file).exists():
            content = _download(url, timeout)
            if file != publication.license:
                published_texture(content, url)
            _keep(parts / file, content)
    on_file(len(files))
    try:
        check_digest(base, read_published(parts), publication.sha256, "the protocol says")
    except DataError:
        for file in files:  # else the next call would find them again
            (parts / file).unlink(missing_ok=True)
        raise
    _move(parts, folder)
    return True


def _download(url: str, timeout: float) -> bytes:
    """The content of a file, whole."""
    request = urllib.request.Request(url, headers={"User-Agent": "robench"})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            content: bytes = response.read(LARGEST + 1)
            promised = response.headers.get("Content-Length")
    except urllib.error.HTTPError as error:
        found = f"{error.code} ({error.reason})"
        error.close()
        raise DataError(complaint(url, "answer", found, "200 and the file", GO_ON)) from error
    except TimeoutError as error:
        raise DataError(complaint(url, "answer", f"none in {timeout:g} s", "the file", GO_ON)) from error
    except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, TimeoutError):
            raise DataError(complaint(url, "answer", f"none in {timeout:g} s", "the file", GO_ON)) from error
        found = f"none ({reason or type(error).__name__})"
        raise DataError(complaint(url, "answer", found, "the file", f"Is there a network? {GO_ON}")) from error
    if len(content) > LARGEST:
        raise DataError(complaint(url, "file", f"more than {LARGEST:,} bytes", "a texture"))
    if promised is not None and int(promised) != len(content):
        found = f"cut off after {len(content):,} bytes"
        raise DataError(complaint(url, "file", found, f"{int(promised):,} bytes", GO_ON))
    return content


def _keep(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        found = f"not writable ({error.strerror or type(error).__name__})"
        raise DataError(complaint(str(path), "file", found, "room to write", GO_ON)) from error


def _move(parts: Path, folder: Path) -> None:
    """Give a finished folder its name."""
    try:
        if folder.exists():
            folder.rmdir()  # empty, as was seen
        parts.rename(folder)
    except OSError as error:
        found = f"not writable ({error.strerror or type(error).__name__})"
        raise DataError(complaint(str(folder), "folder", found, "a folder that can be made", GO_ON)) from error
