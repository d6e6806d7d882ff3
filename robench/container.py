"""Anybody's code, fetched at a commit and shut in: it is run without network, and sees nothing of this machine beside
what it needs.

What shuts it in is bubblewrap, else podman; where both are missing, nothing is run. Both show it this machine's
Python and system, read-only, so there is no image to pin. A container keeps the verifier's machine safe. It cannot keep
the code from lying about its own answers, which is why a maintainer reads it before a verdict is merged.
Not here: what is run (`challenge`).
"""

import hashlib
import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from robench.errors import SubmissionError, complaint
from robench.submission import RepositoryLoader, shown

WEIGHTS = "ROBENCH_WEIGHTS"
"""The environment variable that tells foreign code where its weights lie."""
LARGEST = 8 << 30
"""Most bytes of weights."""
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/alternatives", "/sys/devices")
"""What a program needs of a system, as far as it is there."""
_ROOT_FOLDERS = ("/dev", "/proc", "/run", "/sys", "/tmp")
_ROOT_FILES = ("/etc/hostname", "/etc/hosts", "/etc/resolv.conf", "/run/.containerenv")
"""What podman mounts by itself, into a root that it cannot write to."""
_GPU = ("nvidia*", "dri", "kfd")
_ADVICE = "Install one of them; until then the tier stays where it is."


@dataclass(frozen=True)
class Code:
    """What was fetched.

    Attributes:
      folder: the repository at its commit.
      weights: the file with the digest of the loader.
    """

    folder: Path
    weights: Path


def foreign_model(loader: RepositoryLoader, folder: Path) -> Code:
    """Fetch the code and the weights of a loader; none of it is run.

    Raises:
      SubmissionError: nothing shuts it in, or the commit or the weights cannot be had.
    """
    _program()
    code = folder / "repository"
    if not (code / ".git").exists():
        code.mkdir(parents=True, exist_ok=True)
        _git(code, "init", "--quiet")
    _git(code, "fetch", "--quiet", "--depth", "1", loader.repository, loader.commit)
    _git(code, "checkout", "--quiet", "--force", "--detach", loader.commit)
    return Code(code, _weights(loader, code, folder / "weights"))


def _git(folder: Path, *arguments: str) -> None:
    safe = ["-c", "core.hooksPath=/dev/null", "-c", "submodule.recurse=false"]
    command = ["git", "-C", str(folder), *safe, *arguments]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        said = str(getattr(error, "stderr", None) or error).strip()
        found = f"not to be had ({shown(said, 200)})"
        raise SubmissionError(complaint(arguments[0], "commit", found, "the commit that the loader names")) from error


def _weights(loader: RepositoryLoader, code: Path, target: Path) -> Path:
    if loader.weights is None:
        files = (path for path in sorted(code.rglob("*")) if path.is_file() and not path.is_symlink())
        found = next((path for path in files if _sha256(path) == loader.weights_sha256), None)
        if found is None:
            expected = f"a file with the digest {loader.weights_sha256}"
            raise SubmissionError(complaint(loader.repository, "weights", "missing", expected))
        return found
    if not target.exists():
        _download(loader.weights, target)
    if (digest := _sha256(target)) != loader.weights_sha256:
        target.unlink()
        raise SubmissionError(complaint(loader.weights, "sha256", digest, loader.weights_sha256))
    return target


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(address: str, target: Path) -> None:
    part = target.with_suffix(".part")
    try:
        with urllib.request.urlopen(address, timeout=30) as answer, part.open("wb") as file:
            size = 0
            while block := answer.read(1 << 20):
                size += len(block)
                if size > LARGEST:
                    raise SubmissionError(complaint(address, "weights", "too large", f"at most {LARGEST:,} bytes"))
                file.write(block)
        part.rename(target)
    except OSError as error:
        raise SubmissionError(complaint(address, "weights", f"not to be had ({error})", "a file")) from error
    finally:
        part.unlink(missing_ok=True)


def shut_in(code: Code, job: str, *, work: Path, seen: Sequence[Path], device: str | None) -> None:
    """Carry out a job (`challenge.Job`) in a container whose working directory is the foreign code.

    Args:
      code: what was fetched.
      job: as JSON.
      work: the folder that the job may write to.
      seen: what else it may read: images and refutations.
      device: what the model runs on.
    Raises:
      SubmissionError: the job fails; the last line it wrote is named.
    """
    path = work / "job.json"
    path.write_text(job)
    shell = confined([code.folder, code.weights, *seen], code, work=work, device=device)
    command = [*shell, sys.executable, "-P", "-m", "robench", "reattack", str(path.resolve())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        found = f"failed in the container ({shown(said, 300)})"
        raise SubmissionError(complaint(str(code.folder), "code", found, "a model that can be attacked"))


@dataclass(frozen=True)
class _Room:
    """What a program sees that is shut in.

    Attributes:
      system: files and folders of the system and of Python, which it may read.
      work: the folder that it may write to; it may lie in one of those.
      seen: what else it may read; some of it may lie in the folder.
      folder: its working directory.
      devices: nodes of GPUs.
      variables: its whole environment.
    """

    system: Sequence[str]
    work: Path
    seen: Sequence[str]
    folder: Path
    devices: Sequence[str]
    variables: Mapping[str, str]


def confined(seen: Sequence[Path], code: Code, *, work: Path, device: str | None) -> list[str]:
    """The command that shuts another one in.

    Args:
      seen: files and folders that it may read, beside the system and Python.
      code: what was fetched.
      work: the folder that it may write to.
      device: a GPU's name lets it use GPUs.
    """
    patterns = _GPU if device is not None and device.startswith("cuda") else ()
    packages = os.pathsep.join(path for path in sys.path if path)
    threads = os.environ.get("OMP_NUM_THREADS")
    variables = {"PATH": "/usr/bin:/bin", "HOME": "/tmp", "PYTHONPATH": packages, WEIGHTS: str(code.weights.resolve())}
    room = _Room(
        system=[path for path in dict.fromkeys([*_SYSTEM, *_of_python()]) if Path(path).exists()],
        work=work.resolve(),
        seen=[str(path.resolve()) for path in seen],
        folder=code.folder.resolve(),
        devices=[str(node) for pattern in patterns for node in sorted(Path("/dev").glob(pattern))],
        variables=variables | ({"OMP_NUM_THREADS": threads} if threads else {}),
    )
    program = _program()
    return _bubblewrap(program, room) if Path(program).name == "bwrap" else _podman(program, room)


def _of_python() -> Iterator[str]:
    """Where Python and what it imports lie."""
    yield from (
        sys.prefix,
        sys.base_prefix,
        str(Path(sys.executable).parent),
        str(Path(sys.executable).resolve().parent),
    )
    yield from (path for path in sys.path if path)


def _program() -> str:
    """What shuts foreign code in.

    Raises:
      SubmissionError: there is nothing.
    """
    found = shutil.which("bwrap") or shutil.which("podman")
    if found is None:
        expected = "`bwrap` or `podman`, which shut foreign code in"
        raise SubmissionError(complaint("verify", "loader", "anybody's code", expected, _ADVICE))
    return found


def _bubblewrap(program: str, room: _Room) -> list[str]:
    command = [program, "--unshare-all", "--die-with-parent", "--new-session", "--clearenv"]
    command += ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]  # a new one
    for path in room.system:
        command += ["--ro-bind", path, path]
    for node in room.devices:
        command += ["--dev-bind", node, node]
    command += ["--bind", str(room.work), str(room.work)]
    for path in room.seen:
        command += ["--ro-bind", path, path]
    for name, value in room.variables.items():
        command += ["--setenv", name, value]
    return [*command, "--chdir", str(room.folder), "--"]


def _podman(program: str, room: _Room) -> list[str]:
    """The same with podman, which mounts the outer before the inner by itself, into an empty folder."""
    root = room.work.with_name(f"{room.work.name}.root")  # where the program cannot write
    read = [path for path in [*room.system, *room.seen] if not path.startswith("/sys/")]  # podman has its own
    for path in [*read, str(room.work), *_ROOT_FOLDERS]:
        _make_place(root, path, file=Path(path).is_file())
    for path in _ROOT_FILES:
        _make_place(root, path, file=True)
    command = [program, "run", "--rm", "--network=none", "--read-only", "--cap-drop=all"]
    command += ["--security-opt=no-new-privileges", "--security-opt=label=disable"]  # files keep their labels
    command += ["--env-host=false", "--http-proxy=false", "--no-hosts", "--log-driver=none", "--tmpfs=/tmp"]
    command += [f"--mount=type=bind,source={room.work},target={room.work}"]
    command += [f"--mount=type=bind,source={path},target={path},readonly" for path in read]
    command += [f"--device={node}" for node in room.devices]
    command += [f"--env={name}={value}" for name, value in room.variables.items()]
    return [*command, f"--workdir={room.folder}", "--rootfs", str(root)]


def _make_place(root: Path, path: str, *, file: bool) -> None:
    """An empty file or folder, for something to be mounted there."""
    place = root / path.lstrip("/")
    (place.parent if file else place).mkdir(parents=True, exist_ok=True)
    if file:
        place.touch()
