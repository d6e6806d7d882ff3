"""robench: the robustness benchmark for image classifiers.

`evaluate(model, protocol)` gives a result that others can check. Everything is loaded on first use, so
that reading results and rendering the leaderboard need no torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robench.evaluation import Options, evaluate
    from robench.registry import list_protocols, load_protocol
    from robench.result import Result
    from robench.zoo import load_model

__all__ = ["Options", "Result", "evaluate", "list_protocols", "load_model", "load_protocol"]
__version__ = "0.1.0"

_HOMES = {
    "Options": "robench.evaluation",
    "Result": "robench.result",
    "evaluate": "robench.evaluation",
    "list_protocols": "robench.registry",
    "load_model": "robench.zoo",
    "load_protocol": "robench.registry",
}

if not TYPE_CHECKING:  # so that a type checker still sees a misspelt name as an error

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module 'robench' has no attribute {name!r}")
        import importlib

        return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
