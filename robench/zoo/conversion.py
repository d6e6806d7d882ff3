"""Pickled checkpoints made into what robench loads: a safetensors file, or a folder as timm and the Hub lay it out.

The pickle is read in a process of its own (`unpickle`). Not here: how models are loaded (`timm_models`), and which
checkpoints are known (`baselines.toml`).
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from robench.errors import ModelError, complaint, first_few
from robench.hub import SCHEME, Hub, open_snapshot, parse
from robench.zoo import unpickle
from robench.zoo.baselines import Baseline, pickled
from robench.zoo.state import SUFFIX, load_strictly, sha256_of
from robench.zoo.timm_models import build_with, checked_architecture

PATIENCE = 900
"""Seconds after which the process that reads a pickle is ended."""
_WRAPPERS = ("module.", "_orig_mod.")
"""What DataParallel and torch.compile put before every name."""
_NORMALISER = ("normalizer.new_mean", "normalizer.new_std")
"""What the robustness library calls mean and standard deviation; its network is under `model.`, and again under
`attacker.`."""
_ENVIRONMENT = ("SYSTEMROOT", "PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "HOME", "LANG")
"""What the process that reads a pickle knows of the environment: enough to find torch, and no token."""
_OF_OTHER_WEIGHTS = ("tag", "license", "origin_url", "paper_ids", "test_input_size", "test_crop_pct", "label_offset")
"""What timm's configuration of an architecture says of the weights that timm publishes for it."""


@dataclass(frozen=True)
class Network:
    """Which network of timm's the weights are for.

    Attributes:
      architecture: timm's name.
      arguments: of the architecture, as in `model_args` of timm's `config.json`.
      mean, std: what its images are normalised with, three numbers each; None: what the checkpoint says, else what timm
        says of the architecture.
    """

    architecture: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None


@dataclass(frozen=True)
class Conversion:
    """What was done.

    Attributes:
      target: the file or folder that was written.
      sha256: of the pickle.
      entry: where in the checkpoint the weights were; None: they were all of it.
      enforced: what the process that read it could not do.
      normalisation: where mean and standard deviation come from; None: only a file of weights was written.
    """

    target: Path
    sha256: str
    entry: str | None
    enforced: Sequence[str]
    normalisation: str | None


def convert(
    source: str,
    target: str | Path,
    *,
    network: Network | None = None,
    sha256: str | None = None,
    hub: Hub | None = None,
) -> Conversion:
    """Convert a pickled checkpoint.

    Args:
      source: a file, or `hf-hub:org/name/file[@revision]`.
      target: a new file that ends with `.safetensors`, for the weights alone; or a new folder, with timm's
        `config.json`.
      network: what a folder's weights are for; not needed for known checkpoints.
      sha256: what the source must have; that of known checkpoints is checked in any case.
      hub: where the source comes from.
    Raises:
      ModelError: the source cannot be had, is another file, holds more than tensors, or is of another network; or the
        target is there.
    """
    target = Path(target)
    _check_free(target)
    known = pickled(source)
    network = network or (Network(known.architecture) if known and known.architecture else None)
    whole = target.suffix != SUFFIX
    if whole:
        _check_network(source, network)
    path = _fetch(source, hub or Hub())
    found = sha256_of(path)
    for wanted in (sha256, known.sha256 if known is not None else None):
        if wanted is not None and found != wanted.lower():
            raise ModelError(complaint(source, "sha256", found, f"{wanted}, as pinned", "This is another file."))
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as folder:
        report = _read_apart(source, path, Path(folder) / "all")
        state, constants = _plain(load_file(Path(folder) / "all"), source)
        written = Path(folder) / "new"
        origin = None
        if whole and network is not None:
            origin = _write_folder(written, source, network, state, constants, known)
        else:
            save_file(state, written)
        _check_free(target)
        written.replace(target)
    return Conversion(target, found, report["entry"], report["enforced"], origin)


def _check_free(target: Path) -> None:
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        advice = "Nothing is overwritten: give another name."
        raise ModelError(complaint(str(target), "target", "there already", "a new file or folder", advice))


def _check_network(source: str, network: Network | None) -> None:
    if network is None:
        advice = f"Give timm's name with `--architecture`, or a target that ends with `{SUFFIX}`."
        raise ModelError(complaint(source, "architecture", "none", "what the weights are for", advice))
    checked_architecture(network.architecture, source)


def _fetch(source: str, hub: Hub) -> Path:
    """The pickle as a file of this machine."""
    if source.startswith(SCHEME):
        address = parse(source)
        if address.file is None:
            raise ModelError(complaint("robench", "source", f"`{source}`", "`hf-hub:org/name/file[@revision]`"))
        return open_snapshot(address, hub, (address.file,)).fetch(address.file)
    path = Path(source)
    if not path.is_file():
        found = "a folder" if path.is_dir() else "missing"
        raise ModelError(complaint(source, "source", found, "a file of pickled weights"))
    return path


def _read_apart(source: str, path: Path, target: Path) -> dict[str, Any]:
    """Let another process read the pickle and write its tensors; its report."""
    command = [sys.executable, "-P", unpickle.__file__, str(path.resolve()), str(target)]
    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ} | {"OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)
    except subprocess.TimeoutExpired as error:
        found = f"not read after {PATIENCE} s"
        raise ModelError(complaint(source, "source", found, "a checkpoint of tensors")) from error
    try:
        report: dict[str, Any] = json.loads(done.stdout)
    except ValueError as error:
        last = (done.stderr.strip().splitlines() or [""])[-1][:200]
        found = f"ending the process that reads it with status {done.returncode} ({last})"
        raise ModelError(complaint(source, "source", found, "a checkpoint of tensors")) from error
    if "error" in report:
        advice = "Save its state dict alone, where you trust it: `torch.save(model.state_dict(), ...)`."
        raise ModelError(complaint(source, "source", report["error"], "a checkpoint of tensors", advice))
    return report


def _plain(state: dict[str, Tensor], source: str) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor] | None]:
    """The network's tensors under its own names; and mean and standard deviation, where they are among them."""
    for wrapper in _WRAPPERS * 2:  # in either order
        if all(name.startswith(wrapper) for name in state):
            state = {name.removeprefix(wrapper): tensor for name, tensor in state.items()}
    if not set(_NORMALISER) <= set(state):
        return state, None
    network = {name.removeprefix("model."): tensor for name, tensor in state.items() if name.startswith("model.")}
    others = [name for name in state if not name.startswith(("model.", "attacker.")) and name not in _NORMALISER]
    if not network or others:
        found = f"beside its normaliser {first_few(others) or 'empty'}"
        expected = "`model.` and `attacker.`, as the robustness library saves them"
        raise ModelError(complaint(source, "weights", found, expected))
    mean, std = (state[name] for name in _NORMALISER)
    return network, (mean, std)


def _write_folder(
    folder: Path,
    source: str,
    network: Network,
    state: Mapping[str, Tensor],
    constants: tuple[Tensor, Tensor] | None,
    known: Baseline | None,
) -> str:
    """Write the folder; says where mean and standard deviation come from."""
    arguments = {**_classes(network, state, source), **network.arguments}
    module = build_with(network.architecture, arguments, source)
    load_strictly(module, state, source, network.architecture)
    settings: Any = module.pretrained_cfg
    for key in _OF_OTHER_WEIGHTS:
        settings.pop(key, None)
    if known is not None:
        settings["license"] = known.licence
    inside = [values.flatten().tolist() for values in constants] if constants is not None else [[], []]
    origins = []
    for key, given, found in zip(("mean", "std"), (network.mean, network.std), inside, strict=True):
        origins.append("the call" if given else "the checkpoint" if found else "timm's configuration")
        if given or found:
            settings[key] = _three(given or found, source, key)
    timm.models.save_for_hf(module, folder, model_args=arguments, safe_serialization=True)
    return " and ".join(dict.fromkeys(origins))


def _classes(network: Network, state: Mapping[str, Tensor], source: str) -> dict[str, int]:
    """The number of classes that the last layer has, where timm says which one that is."""
    with torch.device("meta"):
        settings: Any = build_with(network.architecture, network.arguments, source).pretrained_cfg
    weight = state.get(f"{settings.get('classifier')}.weight")
    return {"num_classes": len(weight)} if weight is not None else {}


def _three(values: Sequence[float], source: str, key: str) -> tuple[float, ...]:
    if len(values) != 3:
        raise ModelError(complaint(source, key, f"{len(values)} numbers", "one for each of three channels"))
    return tuple(values)
