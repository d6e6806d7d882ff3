"""Files of the Hugging Face Hub: at a commit, held to the Hub's own digests, with a token only where one is needed.

Everything goes through huggingface_hub; what it leaves open is settled here. A branch becomes a commit before anything
is downloaded. The first question waits seconds and is asked once. A file with other bytes than the Hub lists is
deleted and refused. Public repositories never see the user's token. Without a connection the cache serves.

Not here: what the files mean (`zoo` for models, `data/hub.py` for images), and what is sent to the Hub (`card.py`).
"""

import contextlib
import hashlib
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import (
    HfApi,
    constants,
    get_hf_file_metadata,
    get_session,
    get_token,
    hf_hub_download,
    hf_hub_url,
    hf_raise_for_status,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from robench.errors import DataError, ModelError, RobenchError, complaint

SCHEME = "hf-hub:"
"""How names of repositories begin."""
LIBRARY = "robench"
"""What requests call the library that asks."""
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"
_ADDRESS = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(?:/(?P<file>[^@]+))?(?:@(?P<revision>[^@]+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_PUT_OFF = (408, 429)
"""Answers after which the client asks again: too slow, too often."""

Kind = Literal["model", "dataset"]


@dataclass(frozen=True)
class Hub:
    """Which Hub is asked, where its files are kept, and how long it is waited for.

    Attributes:
      endpoint: address of the Hub; None: what the environment variable `HF_ENDPOINT` says, else huggingface.co.
      cache_dir: folder of the files; None: what `HF_HUB_CACHE` or `HF_HOME` say.
      seconds: how long a question waits for its answer.
    """

    endpoint: str | None = None
    cache_dir: str | Path | None = None
    seconds: float = 5.0


@dataclass(frozen=True)
class Address:
    """A repository on the Hub, and perhaps a file in it, as a name says it.

    Attributes:
      repository: `org/name`.
      file: path inside the repository; None: the repository itself.
      revision: branch, tag or commit; None: the main branch.
      kind: what the repository holds.
    """

    repository: str
    file: str | None = None
    revision: str | None = None
    kind: Kind = "model"

    @property
    def reference(self) -> str:
        """The name without its revision."""
        return SCHEME + self.repository + (f"/{self.file}" if self.file else "")

    @property
    def error(self) -> type[RobenchError]:
        """What is raised when something is wrong with it."""
        return ModelError if self.kind == "model" else DataError


def parse(reference: str, kind: Kind = "model") -> Address:
    """Take a name `hf-hub:org/name[/file][@revision]` apart.

    Raises:
      ModelError, DataError: it has another form.
    Example:
      >>> address = parse("hf-hub:timm/resnet50.a1_in1k@main")
      >>> address.repository, address.file, address.revision
      ('timm/resnet50.a1_in1k', None, 'main')
    """
    found = _ADDRESS.fullmatch(reference.removeprefix(SCHEME))
    if not reference.startswith(SCHEME) or found is None or ".." in reference:
        argument, error = ("model", ModelError) if kind == "model" else ("data", DataError)
        raise error(complaint("robench", argument, f"`{reference}`", "`hf-hub:org/name[@revision]`"))
    return Address(found["repository"], found["file"], found["revision"], kind)


@dataclass(frozen=True)
class Snapshot:
    """A repository at a commit.

    Attributes:
      address: what was asked for.
      hub: where it is.
      commit: 40 hexadecimal digits.
      digests: of each file, as the Hub lists them: SHA-256 of large ones, git's of others. None: the Hub was not asked,
        or did not answer, and the cache has what is wanted.
      token: what is sent along; False: nothing.
    """

    address: Address
    hub: Hub
    commit: str
    digests: Mapping[str, str] | None = field(default=None, repr=False)
    token: str | Literal[False] = field(default=False, repr=False)

    def fetch(self, file: str) -> Path:
        """The path of a file that has the bytes the Hub lists; downloaded unless the cache has it.

        Raises:
          ModelError, DataError: it is not there, cannot be had, or has other bytes.
        """
        if self.digests is not None and file not in self.digests:
            raise self._error("file", f"missing at {self.commit[:8]}", f"`{file}`")
        path = _cached(self.address, file, self.commit, self.hub) or self._download(file)
        # The cache calls a file by the digest that the Hub gave when it was downloaded.
        expected = (self.digests or {}).get(file) or path.resolve().name
        found = _digest(path, expected)
        if found != expected:
            path.resolve().unlink()
            path.unlink(missing_ok=True)
            advice = "The copy was deleted; try again."
            raise self._error(f"digest of {file}", found, f"{expected}, as the Hub lists it", advice)
        return path

    def check_readable(self) -> None:
        """Ask whether whoever is logged in may read a gated repository, before a library with other words does.

        Raises:
          ModelError, DataError: they may not.
        """
        if self.token and self.digests:
            self._ask_for(next(iter(self.digests)))

    def _ask_for(self, file: str) -> None:
        """Ask once, and briefly, whether a file is to be had."""
        try:
            head = get_hf_file_metadata(
                hf_hub_url(self.address.repository, file, **{**self._place, "revision": self.commit}),
                timeout=self.hub.seconds,
                **self._asking,
            )
        except Exception as error:  # what the client's transport raises has no public parent
            raise self.address.error(_explain(error, self.address, self.hub, f"`{file}`")) from error
        for name, value in (("X-Repo-Commit", head.commit_hash), ("ETag", head.etag)):
            if value is None:
                raise self._error("answer", f"without {name}", "that of a Hub", "Check HF_ENDPOINT, and any proxy.")

    def _download(self, file: str) -> Path:
        """Let the library fetch a file; as it is patient, only after a short question."""
        self._ask_for(file)
        kept: dict[str, Any] = {"cache_dir": self.hub.cache_dir, "etag_timeout": self.hub.seconds}
        try:
            with _little_patience():
                path = Path(hf_hub_download(self.address.repository, file, **self._place, **self._asking, **kept))
        except Exception as error:  # what the client's transport raises has no public parent
            raise self.address.error(_explain(error, self.address, self.hub, f"`{file}`")) from error
        found = _commit_of(path, file)
        if found != self.commit:
            moving = f"moving from {self.commit[:8]} to {found[:8]} meanwhile"
            raise self._error("revision", moving, "one commit", "Try again, or name a commit.")
        return path

    @property
    def _place(self) -> dict[str, Any]:
        """Where a file is asked for: under the name that was given, so that the cache knows the branch."""
        revision = self.address.revision or "main"
        return {"repo_type": self.address.kind, "revision": revision, "endpoint": self.hub.endpoint}

    @property
    def _asking(self) -> dict[str, Any]:
        return {"token": self.token, "library_name": LIBRARY}

    def _error(self, argument: str, found: str, expected: str, advice: str = "") -> RobenchError:
        return self.address.error(complaint(self.address.reference, argument, found, expected, advice))


def open_snapshot(address: Address, hub: Hub, wanted: Sequence[str] = ()) -> Snapshot:
    """Settle which commit is meant, and which files it has.

    Nothing is asked when a whole commit is named and the cache has all that is wanted. Where the Hub gives no answer,
    the last commit that the cache has of a branch will do.

    Args:
      address: the repository and its revision.
      hub: where it is.
      wanted: the files that will be fetched.
    Raises:
      ModelError, DataError: there is no such repository or revision, it is not to be read without an account, or the
        Hub cannot be asked and the cache lacks a file.
    """
    kept = _commit_in_cache(address, hub, wanted)
    if kept is not None and address.revision == kept:
        return Snapshot(address, hub, kept)
    try:
        info, token = _ask(address, hub)
    except Exception as error:  # what the client's transport raises has no public parent
        if kept is None or _is_unknown(error) or isinstance(error, RevisionNotFoundError):
            raise address.error(_explain(error, address, hub)) from error
        return Snapshot(address, hub, kept)
    if info.gated and not token:
        raise address.error(_gated(address, hub, "gated, and no one is logged in"))
    if not info.sha or not _COMMIT.fullmatch(info.sha):
        advice = "Check HF_ENDPOINT, and any proxy."
        raise address.error(complaint(address.reference, "commit", f"`{info.sha}`", "the answer of a Hub", advice))
    digests = {each.rfilename: (each.lfs.sha256 if each.lfs else each.blob_id) or "" for each in info.siblings or ()}
    return Snapshot(address, hub, info.sha, digests, token)


def is_commit(revision: str | None) -> bool:
    """Whether a revision is a whole commit, which never moves."""
    return revision is not None and _COMMIT.fullmatch(revision) is not None


def page_of(address: Address, hub: Hub) -> str:
    """Where people look at a repository."""
    folder = "" if address.kind == "model" else "datasets/"
    return f"{hub.endpoint or constants.ENDPOINT}/{folder}{address.repository}"


def own_token() -> str | None:
    """The token of who is logged in, unless it is to be sent only when given."""
    return None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()


def _ask(address: Address, hub: Hub) -> tuple[Any, str | Literal[False]]:
    """What the Hub says of a repository, and the token that its files need; asked without one first."""
    api = HfApi(endpoint=hub.endpoint, library_name=LIBRARY)

    def answer(token: str | Literal[False]) -> Any:
        return api.repo_info(
            address.repository,
            repo_type=address.kind,
            revision=address.revision,
            timeout=hub.seconds,
            files_metadata=True,
            token=token,
        )

    try:
        info = answer(False)
    except HfHubHTTPError as error:
        token = own_token()
        if token is None or not _is_unknown(error):
            raise
        return answer(token), token
    return info, (own_token() or False) if info.gated else False


@contextlib.contextmanager
def _little_patience() -> Iterator[None]:
    """Downloads of this thread fail where the client would try on for a minute: put off, or without a byte for long."""
    thread, asked = threading.get_ident(), dict[tuple[str, str], float]()

    def complain(response: Any) -> None:
        if threading.get_ident() == thread and response.status_code in _PUT_OFF:
            hf_raise_for_status(response)

    def look_at_the_clock(request: Any) -> None:
        if threading.get_ident() == thread and request.method == "GET":
            now, rest = time.monotonic(), (str(request.url), request.headers.get("Range", ""))
            waited = now - asked.setdefault(rest, now)  # 0 where something has come since: the rest is another
            if waited >= constants.HF_HUB_DOWNLOAD_TIMEOUT:
                raise TimeoutError(f"nothing came in {waited:.0f} s")

    hooks = get_session().event_hooks
    added = {"request": look_at_the_clock, "response": complain}
    for kind, hook in added.items():
        hooks[kind].append(hook)
    try:
        yield
    finally:
        for kind, hook in added.items():
            hooks[kind].remove(hook)


def _cached(address: Address, file: str, revision: str | None, hub: Hub) -> Path | None:
    """The file in the cache, if it is there at this revision."""
    found = try_to_load_from_cache(
        address.repository, file, cache_dir=hub.cache_dir, revision=revision, repo_type=address.kind
    )
    return Path(found) if isinstance(found, str) else None


def _commit_in_cache(address: Address, hub: Hub, wanted: Sequence[str]) -> str | None:
    """The commit of a revision of which the cache has all files that are wanted."""
    paths = [_cached(address, file, address.revision, hub) for file in wanted]
    if not paths or paths[0] is None or None in paths:
        return None
    return _commit_of(paths[0], wanted[0])


def _commit_of(path: Path, file: str) -> str:
    """The commit of a file in the cache, where it lies in `snapshots/<commit>/<file>`."""
    return path.parents[len(Path(file).parts) - 1].name


def _digest(path: Path, like: str) -> str:
    """SHA-256 of a file, or its digest in git, whichever has as many digits."""
    with path.open("rb") as file:
        if len(like) == 64:
            return hashlib.file_digest(file, "sha256").hexdigest()
        content = file.read()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _is_unknown(error: Exception) -> bool:
    """Whether there is no such repository, or it is private, or gated: a stranger is told no more."""
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    return isinstance(error, RepositoryNotFoundError) or status == 401


def _gated(address: Address, hub: Hub, found: str) -> str:
    advice = f"Accept its terms at {page_of(address, hub)}, then {LOG_IN}."
    return complaint(address.reference, "repository", found, "an account that accepted its terms", advice)


def _explain(error: Exception, address: Address, hub: Hub, wanted: str = "a repository on the Hub") -> str:
    """What an error of the client means, as a message."""
    where = address.reference
    if isinstance(error, GatedRepoError):  # before its parent, RepositoryNotFoundError
        return _gated(
            address, hub, "gated, and its terms are not accepted" if own_token() else "gated, and no one is logged in"
        )
    if _is_unknown(error):
        advice = f"Check the name; if it is private, {LOG_IN}."
        return complaint(where, "repository", "missing, or private", wanted, advice)
    if isinstance(error, RevisionNotFoundError):
        return complaint(where, "revision", f"`{address.revision}`", "a branch, tag or commit of it")
    if isinstance(error, RemoteEntryNotFoundError):
        return complaint(where, "file", "missing", wanted)
    if isinstance(error, OfflineModeIsEnabled):
        advice = "Unset HF_HUB_OFFLINE, or fetch it once with a connection."
        return complaint(where, "repository", "not in the cache, and the Hub is not asked", wanted, advice)
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        advice = "Wait some minutes." if status == 429 else "Try again later." if status >= 500 else ""
        return complaint(where, "repository", f"refused by the Hub with status {status}", wanted, advice)
    reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
    return complaint(where, "repository", f"not to be had ({reason})", wanted, "Try again with a connection.")
