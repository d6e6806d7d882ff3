"""A model from a function of the user's own, `module.path:function`.

Not here: names of models that robench or timm builds (`zoo`).
"""

import importlib
import sys
from pathlib import Path
from typing import Any

import torch

from robench.errors import ModelError, complaint, first_line


def call_function(reference: str) -> Any:
    """Import `module.path:function` from the Python path or the working directory, and call it."""
    module_name, _, function_name = reference.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        advice = "Run from the folder of the module, or install it."
        if module_name.endswith(".py"):
            advice = f"Name a module, not its file: `{Path(module_name).stem}:{function_name}`, from its folder."
        raise ModelError(
            complaint("robench", "model", f"`{reference}` ({error})", "`module.path:function`", advice)
        ) from error
    except (Exception, SystemExit) as error:  # the module is there, and is the user's own code
        found = f"failing when imported ({type(error).__name__}: {first_line(error)})"
        advice = 'Is it a script? Keep what it runs behind `if __name__ == "__main__":`.'
        raise ModelError(complaint(reference, "module", found, "a module that can be imported", advice)) from error
    try:
        with torch.random.fork_rng(devices=[]):
            model = function()
    except (Exception, SystemExit) as error:
        found = f"failing when called ({type(error).__name__}: {first_line(error)})"
        raise ModelError(
            complaint(reference, "function", found, "a function without arguments that returns the model")
        ) from error
    return model
