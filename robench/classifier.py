"""The model as attacks and drivers see it: float32 images in [0, 1] in, logits out, passes counted.

`Classifier` wraps an `nn.Module`, any callable on tensors, a callable on NumPy arrays (a black box) or
a foolbox model. `check` is the door: it looks at one batch of 16 before any real work, so that a
mistake costs seconds. The model itself is never changed: its parameters are frozen only inside
`frozen()`, and everything is put back.

Not here: turning names into models (`robench.zoo`), and what is done with the answers.
"""

import hashlib
import math
import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from robench.arrays import pad_rows, state_digest
from robench.errors import ModelError, RobenchError, complaint, first_line

DOOR_ROWS = 16
"""Images in the batch that is checked at the door."""
MINIMUM_ROWS = 16
"""Smaller batches are padded to this: below it CPU kernels change the last bits with the batch size."""
FIX_THE_DRAWS = "The standard protocols would flatter or slander it: fix its random draws."


@dataclass
class Passes:
    """How many images the model was shown, idle slots included, padding of small batches excluded."""

    forward: int = 0
    backward: int = 0


class Looked(Protocol):
    """What an attack may be driven against: a `Classifier`, or one that averages (`robench.averaging`)."""

    minimum_rows: int
    """Smaller batches are padded to this."""

    @property
    def halving(self) -> bool:
        """Whether batches that shrink should do so by halves, as every new size costs a compilation."""
        ...

    @property
    def name(self) -> str: ...
    @property
    def device(self) -> torch.device: ...
    def logits(self, images: Tensor) -> Tensor: ...
    def gradient(self, images: Tensor, objective: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]: ...
    def frozen(self) -> AbstractContextManager[None]: ...


def check_device(device: str | torch.device, where: str, error: type[RobenchError] = ModelError) -> None:
    """Check that this machine has a device.

    Raises:
      ModelError: it has not; or `error`.
    """
    try:
        torch.empty(0, device=device)
    except Exception as failure:  # each kind of device has a way of its own to say that it is not there
        advice = "`robench doctor` shows what is there."
        raise error(complaint(where, "device", f"`{device}`", "a device of this machine", advice)) from failure


class Classifier:
    """A model behind the contract of robench.

    Args:
      model: an `nn.Module`, a callable on tensors, a callable on NumPy arrays, or a foolbox model. It
        takes RGB images in [0, 1], shape (N, 3, H, W), and returns logits, shape (N, K).
      name: what to call it in messages and results; by default the name of its class or function.
      device: where images are sent; by default where its first parameter lies, else the CPU.
      inference: ask for logits in torch's inference mode, which few models cannot bear.
    Raises:
      ModelError: the model is not callable.
    """

    def __init__(
        self,
        model: Any,
        *,
        name: str | None = None,
        device: torch.device | str | None = None,
        inference: bool = False,
    ) -> None:
        if not callable(model):
            raise ModelError(complaint("Classifier", "model", type(model).__name__, "a callable that returns logits"))
        self.model = model
        self.module = model if isinstance(model, nn.Module) else None
        self.name = name or getattr(model, "__name__", None) or type(model).__name__
        self.passes = Passes()
        self.minimum_rows = MINIMUM_ROWS
        self.halving = hasattr(model, "_orig_mod")  # compiled by torch
        tensors = [*self.module.parameters(), *self.module.buffers()] if self.module is not None else []
        self._dtype = next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), torch.float32)
        stated = getattr(model, "device", None)  # foolbox models name where they lie
        lies = tensors[0].device if tensors else stated if isinstance(stated, torch.device) else None
        if device is not None and lies is not None and not _same_device(torch.device(device), lies):
            raise ModelError(
                complaint(
                    self.name,
                    "device",
                    f"`{device}` while its parameters are on `{lies}`",
                    "the same device",
                    "Move the model there first; robench does not move a model it was handed.",
                )
            )
        self.device = lies or torch.device(device if device is not None else "cpu")
        self._low, self._high = self._range(getattr(model, "bounds", None))  # foolbox models name it
        self._inference = inference
        self._speaks_numpy: bool | None = False if self.module is not None else None

    @property
    def black_box(self) -> bool:
        """Whether the model answers in NumPy arrays, so that no gradient can be had."""
        return bool(self._speaks_numpy)

    def logits(self, images: Tensor) -> Tensor:
        """Logits, float32, shape (N, K), without gradient.

        Args:
          images: float32 in [0, 1], shape (N, 3, H, W).
        """
        self.passes.forward += len(images)
        with torch.inference_mode() if self._inference else torch.no_grad():
            answer: Tensor = self._call(pad_rows(images, self.minimum_rows))
        answer = answer[: len(images)].detach().to(torch.float32)
        return (
            answer.clone() if self._inference else answer
        )  # tensors made in inference mode stay forbidden to autograd

    def gradient(self, images: Tensor, objective: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, objective and its gradient with respect to each image.

        Args:
          images: float32 in [0, 1], shape (N, 3, H, W).
          objective: logits (N, K) in the model's dtype, and at least float32 -> values (N,).
        Returns:
          Logits (N, K), values (N,), gradients (N, 3, H, W), all float32 and detached.
        Raises:
          ModelError: the answer does not depend differentiably on the images.
        """
        self.passes.forward += len(images)
        self.passes.backward += len(images)
        leaf = pad_rows(images, self.minimum_rows).detach().to(self._dtype).requires_grad_()
        with torch.enable_grad():
            logits = self._call(leaf)[: len(images)]
            if not logits.requires_grad:
                raise ModelError(self._no_gradient())
            values = objective(logits if logits.dtype == torch.float64 else logits.float())
            (gradient,) = torch.autograd.grad(values.sum(), leaf, allow_unused=True)
        if gradient is None:
            raise ModelError(self._no_gradient())
        parts = logits.detach(), values.detach(), gradient[: len(images)]
        # Copies: a compiled model reuses its memory, and one in channels_last gives gradients in that order.
        first, second, third = (
            part.to(torch.float32, copy=True, memory_format=torch.contiguous_format) for part in parts
        )
        return first, second, third

    @contextmanager
    def unpadded(self) -> Iterator[None]:
        """Show the model small batches as they are: for images that never share a batch."""
        before, self.minimum_rows = self.minimum_rows, 1
        try:
            yield
        finally:
            self.minimum_rows = before

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Switch the gradients of all parameters off, and put each back as it was."""
        parameters = list(self.module.parameters()) if self.module is not None else []
        wanted = [parameter.requires_grad for parameter in parameters]
        for parameter in parameters:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter, flag in zip(parameters, wanted, strict=True):
                parameter.requires_grad_(flag)

    def check(
        self,
        images: Tensor,
        *,
        classes: int | None,
        least: int,
        gradients: bool,
        randomised: str | None = FIX_THE_DRAWS,
    ) -> list[str]:
        """Look at one batch before any real work.

        Args:
          images: up to 16 clean images, float32 in [0, 1], shape (N, 3, H, W).
          classes: how many logits the data set asks for; None: any number from `least`.
          least: how many logits its labels need.
          gradients: whether the protocol needs gradients.
          randomised: what to do about a randomised model, which is refused; None: nothing, as it is welcome.
        Returns:
          Caveats: what is legal but suspicious, one sentence each.
        Raises:
          ModelError: the model breaks the contract; the message says what to do.
        """
        if self.module is not None:
            self._check_mode(self.module)
        if self.device.type == "meta":
            found, advice = "`meta`, where parameters have no values", "Load the weights first."
            raise ModelError(complaint(self.name, "device", found, "one that computes", advice))
        batch = pad_rows(images.to(self.device), DOOR_ROWS)[:DOOR_ROWS]
        shown = batch.clone()
        first = self._first_answer(shown)
        if not torch.equal(shown, batch):
            found, expected = "changing the images that it is shown", "images that are left as they are"
            advice = "Is there an operation in place, such as `images -= mean`? Write `images = images - mean`."
            raise ModelError(complaint(self.name, "model", found, expected, advice))
        self._check_answer(first, classes, least)
        self._check_steady(batch, first, randomised)
        return self._check_gradient(batch) if gradients else []

    def check_single(self, image: Tensor) -> None:
        """Look at one image alone, once a batch of them was right; shape (1, 3, H, W).

        Raises:
          ModelError: the model wants more at a time, or says something else than in a batch.
        """
        image = image.to(self.device)
        expected = self.logits(image)
        try:
            with self.unpadded():
                found = self.logits(image)
        except Exception as error:  # the model is the user's own code
            found_instead = f"failing on a single image with {type(error).__name__}: {first_line(error)}"
        else:
            if found.shape == expected.shape:
                moved, scale = float((found - expected).abs().max()), max(1.0, float(expected.abs().max()))
                if moved <= 1e-3 * scale:
                    return
                found_instead = "giving a single image another answer than in a batch"
            else:
                found_instead = f"giving logits of shape {tuple(found.shape)} for a single image"
        expected_instead = f"the same answer as in a batch, of shape {tuple(expected.shape)}"
        advice = "This protocol's attack looks at one image at a time: is there a `squeeze`, or a fixed batch size?"
        raise ModelError(complaint(self.name, "model", found_instead, expected_instead, advice))

    def fingerprint(self, images: Tensor) -> list[tuple[int, float]]:
        """What the model says to pinned images: best class and its logit to 4 digits, one pair each."""
        logits = torch.cat([self.logits(chunk.to(self.device)) for chunk in torch.split(images, 32)])
        best = logits.max(dim=1)
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [(int(index), float(f"{value:.4g}")) for index, value in pairs]

    def state_digest(self) -> str | None:
        """SHA-256 of parameters and buffers; None for a bare callable."""
        return state_digest(self.module.state_dict()) if self.module is not None else None

    def configuration_digest(self) -> str | None:
        """SHA-256 of what a module is beside its state: its parts as it prints them, and unsaved buffers."""
        if self.module is None:
            return None
        saved = self.module.state_dict().keys()
        unsaved = {name: buffer for name, buffer in self.module.named_buffers() if name not in saved}
        parts = re.sub(r" at 0x[0-9a-f]+", "", repr(self.module))  # addresses of functions are no configuration
        return hashlib.sha256(f"{parts}|{state_digest(unsaved)}".encode()).hexdigest()

    def parameter_count(self) -> int | None:
        """Number of parameters; None for a bare callable."""
        return sum(parameter.numel() for parameter in self.module.parameters()) if self.module is not None else None

    def in_its_range(self, images: Tensor) -> Tensor:
        """Images as the model itself takes them: in its range and dtype."""
        if self._low != 0 or self._high != 1:
            images = images * (self._high - self._low) + self._low
        return images if self._speaks_numpy else images.to(self._dtype)

    def _range(self, bounds: Any) -> tuple[float, float]:
        """The lowest and the highest value of an image."""
        if bounds is None:
            return 0.0, 1.0
        try:
            low, high = (float(bound) for bound in bounds)
        except (TypeError, ValueError):
            low = high = math.nan
        if not (low < high and math.isfinite(low) and math.isfinite(high)):
            expected = "the lowest and the highest value of an image, as in foolbox"
            raise ModelError(complaint(self.name, "bounds", repr(bounds)[:80], expected, "Call it something else."))
        return low, high

    def _call(self, images: Tensor) -> Any:
        images = self.in_its_range(images)
        if self._speaks_numpy:
            answer = self.model(images.detach().cpu().numpy())
            return torch.as_tensor(np.asarray(answer)).to(self.device)
        return self.model(images)

    def _first_answer(self, batch: Tensor) -> Tensor:
        """The first answer of all, which also tells whether the callable speaks tensors or NumPy."""
        answer: Any = None
        refused: Exception | None = None
        for numpy in [False, True] if self._speaks_numpy is None else [self._speaks_numpy]:
            self._speaks_numpy = numpy
            try:
                with torch.no_grad():
                    answer = self._call(batch)
            except Exception as error:
                refused = refused or error
                continue
            if isinstance(answer, np.ndarray) and not numpy:
                continue  # it takes tensors but answers in arrays: ask it in arrays altogether
            refused = None
            break
        else:
            self._speaks_numpy = None
        if refused is not None:
            message = complaint(
                self.name,
                "model",
                f"failing on a batch of shape {tuple(batch.shape)} with {type(refused).__name__}: "
                f"{first_line(refused)}",
                "logits for any batch of float32 RGB images in [0, 1]",
                f"Make `model(torch.rand({DOOR_ROWS}, 3, {batch.shape[2]}, {batch.shape[3]}))` work first.",
            )
            raise ModelError(message) from refused
        if not isinstance(answer, Tensor):
            raise ModelError(
                complaint(
                    self.name, "logits", type(answer).__name__, "one tensor of shape (N, K)", "Return the logits only."
                )
            )
        return answer.detach()

    def _check_mode(self, module: nn.Module) -> None:
        training = next((name or type(module).__name__ for name, part in module.named_modules() if part.training), None)
        if training is not None:
            raise ModelError(
                complaint(
                    self.name,
                    "model",
                    f"in train mode (`{training}`)",
                    "eval mode, so that an answer depends on the image alone",
                    "Call `model.eval()` first.",
                )
            )

    def _check_answer(self, logits: Tensor, classes: int | None, least: int) -> None:
        fits = logits.ndim == 2 and logits.shape[0] == DOOR_ROWS
        if not fits or (logits.shape[1] != classes if classes is not None else logits.shape[1] < least):
            wanted = f"{classes}" if classes is not None else f"at least {least}"
            one_more = fits and classes is not None and logits.shape[1] == classes + 1
            hint = " Drop the background class, if the first is one: `logits[:, 1:]`." if one_more else ""
            raise ModelError(
                complaint(
                    self.name,
                    "logits",
                    f"of shape {tuple(logits.shape)}",
                    f"shape ({DOOR_ROWS}, {wanted})",
                    f"The data set has {wanted} classes: return one logit for each.{hint}",
                )
            )
        if not logits.is_floating_point():
            raise ModelError(
                complaint(
                    self.name,
                    "logits",
                    f"of type {logits.dtype}",
                    "floating-point logits",
                    "Return logits, not predicted classes.",
                )
            )
        broken = int((~logits.isfinite()).any(dim=1).sum())
        if broken:
            raise ModelError(
                complaint(
                    self.name,
                    "logits",
                    f"NaN or infinite for {broken} of {DOOR_ROWS} clean images",
                    "finite logits",
                    "Check the weights and the normalisation inside the model.",
                )
            )
        rows = logits.double()
        if bool((rows >= 0).all()) and bool(((rows.sum(dim=1) - 1).abs() < 1e-3).all()):
            raise ModelError(
                complaint(
                    self.name,
                    "logits",
                    "probabilities (non-negative, each row sums to 1)",
                    "logits",
                    "Remove the softmax, or return log-probabilities instead.",
                )
            )

    def _check_steady(self, batch: Tensor, first: Tensor, randomised: str | None) -> None:
        """The same image gets the same answer, again and in any company."""
        first = first.to(torch.float32)
        if not same_answers(first, self.logits(batch)):
            if randomised is None:
                return  # and what the company in the batch does cannot be told from its draws
            raise ModelError(
                complaint(
                    self.name,
                    "model",
                    "randomised: two passes over the same images differ",
                    "the same answer every time",
                    randomised,
                )
            )
        half = DOOR_ROWS // 2
        parts = [self.logits(torch.cat([part, part]))[:half] for part in (batch[:half], batch[half:].flip(0))]
        company = torch.cat([parts[0], parts[1].flip(0)])
        if float((company - first).abs().max()) > 1e-3 * float(first.abs().max()):
            raise ModelError(
                complaint(
                    self.name,
                    "model",
                    "giving an image another answer in another batch",
                    "an answer that depends on the image alone",
                    "Is batch normalisation in train mode inside the callable? Call `.eval()` on it.",
                )
            )

    def _check_gradient(self, batch: Tensor) -> list[str]:
        if self.black_box:
            raise ModelError(self._no_gradient())
        try:
            with self.frozen():
                _, _, gradient = self.gradient(batch, lambda logits: logits.logsumexp(dim=1) - logits.amax(dim=1))
        except ModelError:
            raise
        except Exception as error:  # the model is the user's own code, and answered without gradients
            found = f"failing with {type(error).__name__} when its gradient is asked for: {first_line(error)}"
            raise ModelError(self._no_gradient(found)) from error
        flat = gradient.flatten(1)
        if not bool(flat.isfinite().all()):
            raise ModelError(
                complaint(
                    self.name,
                    "gradient",
                    "NaN or infinite at clean images",
                    "finite gradients",
                    "Look for square roots or divisions at 0 in the forward pass.",
                )
            )
        silent = int((flat.abs().amax(dim=1) == 0).sum())
        if silent:
            return [
                f"The gradient of the cross-entropy is exactly zero at {silent} of {DOOR_ROWS} clean images: "
                "gradient attacks are blind there, and the robust accuracy may be far too high."
            ]
        return []

    def _no_gradient(
        self, found: str = "without gradients: its output does not depend differentiably on the images"
    ) -> str:
        return complaint(
            self.name,
            "model",
            found,
            "a differentiable callable on tensors for this protocol's attack",
            "Keep the computation in torch (no NumPy, no `detach`), or choose a black-box protocol.",
        )


@contextmanager
def naming_failures() -> Iterator[None]:
    """Name the model whose own code fails after the door was passed.

    Raises:
      ModelError: in place of whatever came up while a model was asked, and not in the code around it.
    """
    try:
        yield
    except RobenchError:
        raise
    except Exception as error:
        asking = (frame for frame, _ in traceback.walk_tb(error.__traceback__) if frame.f_code is _ASKING)
        frame = next(asking, None)
        if frame is None:
            raise
        found = f"failing with {type(error).__name__}: {first_line(error)}"
        advice = "What is finished is kept: mend the model, and make the same call again."
        name = frame.f_locals["self"].name
        raise ModelError(complaint(name, "model", found, "logits for any batch of images", advice)) from error


_ASKING = Classifier._call.__code__
"""Whatever fails below it fails in a model's own code."""


def _same_device(asked: torch.device, found: torch.device) -> bool:
    """`cuda` is any GPU, `cuda:1` that one."""
    return asked.type == found.type and asked.index in (None, found.index)


def same_answers(first: Tensor, second: Tensor) -> bool:
    """Whether logits agree up to floating-point noise: 1e-4 of the largest one, however small it is."""
    return float((second - first).abs().max()) <= 1e-4 * float(first.abs().max())


def rounded(value: float) -> float:
    """A margin as outcomes store it: 3 significant digits."""
    return float(f"{value:.3g}") if math.isfinite(value) else value
