"""What modules inside a network put out, by their names.

Not here: what is made of it (`attention`, `style`).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from robench.errors import ModelError, complaint, did_you_mean


def check_layers(model: nn.Module, names: Sequence[str], *, where: str) -> None:
    """Check that a network has these modules.

    Args:
      model: the network.
      names: as in `model.named_modules()`.
      where: name of the model, for messages.
    Raises:
      ModelError: one is missing.
    """
    known = [name for name, _ in model.named_modules() if name]
    for name in names:
        if name not in known:
            expected = "a module of it, as `named_modules()` calls it"
            raise ModelError(complaint(where, "layer", f"`{name}`", expected, did_you_mean(name, known)))


@contextmanager
def captured(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """While this lasts, each pass through the network leaves the outputs of these modules here, by name.

    Raises:
      ModelError: in that pass, if an output is no map of shape (N, C, H, W).
    """
    outputs: dict[str, Tensor] = {}
    modules = dict(model.named_modules())
    handles = [modules[name].register_forward_hook(_keep(name, outputs)) for name in names]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def _keep(name: str, outputs: dict[str, Tensor]) -> Callable[..., None]:
    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        if not isinstance(output, Tensor) or output.ndim != 4:
            shape = f"of shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
            expected = "a layer whose output has the shape (N, C, H, W)"
            raise ModelError(complaint(type(module).__name__, "layer", f"`{name}`, with output {shape}", expected))
        outputs[name] = output

    return hook
