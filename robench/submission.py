"""A submission: a result and what its author says about the model, in one folder.

`submissions/<model>/<protocol>@<version>/` holds `submission.toml`, `result.json` and `outcomes.csv.gz`. The folder
names the model; no number and no tier stands in `submission.toml`, for both are computed. Not here: whether a
submission holds (`validation`), and how one is made from a run (`submitting`).
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails

from robench.errors import SubmissionError, complaint, did_you_mean
from robench.protocol import Sha256
from robench.result import ModelRecord

SCHEMA: Literal["robench.submission/1"] = "robench.submission/1"
FOLDER = "submissions"
"""Where submissions lie in the repository."""
TOML, RESULT, OUTCOMES = FILES = ("submission.toml", "result.json", "outcomes.csv.gz")
"""What a submission consists of."""
MODEL_NAME = re.compile(
    r"(?!(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:\.|$))(?!.*\.\.)(?!.*\.lock$)"
    r"[a-z0-9](?:[a-z0-9._-]{0,98}[a-z0-9])?",
    re.IGNORECASE | re.ASCII,
)
"""What a model may be called: the name is a folder on every system, Windows' devices left out, and part of a branch."""
PROTOCOL_NAME = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*@[1-9][0-9]{0,3}")
"""`id@version`, which is a folder, too."""

Family = Literal["cnn", "transformer", "hybrid", "mlp", "other"]
"""Kinds of models that the leaderboard filters by."""


def _printable(text: str) -> str:
    if not text.isprintable() or text != text.strip():
        raise ValueError("expected one line of printable characters, without blanks at its ends")
    return text


Line = Annotated[str, StringConstraints(min_length=1, max_length=200), AfterValidator(_printable)]
"""A line of text. Control characters, and those that turn the direction of writing, are refused."""
Link = Annotated[str, StringConstraints(pattern=r"^https://[A-Za-z0-9][\w.-]*(/[\w.~/%?=&+-]*)?$", max_length=300)]
Commit = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}$")]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class BundledLoader(_Table):
    """A model that ships with robench."""

    bundled: Annotated[str, StringConstraints(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$", max_length=100)]
    """Its name."""
    weights_sha256: Sha256


class TimmLoader(_Table):
    """One of timm's models with its published weights."""

    timm: Annotated[str, StringConstraints(pattern=r"^\w+(\.\w+)?$", max_length=100)]
    """Name with its tag, such as `resnet50.a1_in1k`."""
    revision: Commit
    """Commit of `timm/<name>` on the Hugging Face Hub."""
    weights_sha256: Sha256 | None = None


class HubLoader(_Table):
    """A repository of the Hugging Face Hub with timm's `config.json` and safetensors."""

    hub: Annotated[str, StringConstraints(pattern=r"^[\w-][\w.-]*/[\w-][\w.-]*$", max_length=200)]
    """`organisation/name`."""
    revision: Commit
    weights_sha256: Sha256 | None = None


class RepositoryLoader(_Table):
    """Anybody's code: a function that returns any callable on images."""

    repository: Link
    """Where git clones it from."""
    commit: Commit
    entry_point: Annotated[
        str, StringConstraints(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$", max_length=200)
    ]
    """`package.module:function`, as `robench evaluate` takes it."""
    weights: Link | None = None
    """Where the weights are downloaded from; none: they lie in the repository."""
    weights_sha256: Sha256


Loader = BundledLoader | TimmLoader | HubLoader | RepositoryLoader
LOADERS: dict[str, type[Loader]] = {
    "bundled": BundledLoader,
    "timm": TimmLoader,
    "hub": HubLoader,
    "repository": RepositoryLoader,
}
"""Kinds of loaders by the key that tells them apart."""


def _kind_of_loader(content: Any) -> str | None:
    if isinstance(content, dict):
        return next((kind for kind in LOADERS if kind in content), None)
    return next((kind for kind, loader in LOADERS.items() if isinstance(content, loader)), None)


class Submission(_Table):
    """What an author says about a model; `submission.toml`."""

    schema_name: Literal["robench.submission/1"] = Field(default=SCHEMA, alias="schema")
    author: Line
    """Who claims this: names, or an account."""
    paper: Link | None = None
    """Where the model is described."""
    training_data: Line
    """What the weights have seen, all of it, such as `ImageNet-1k`."""
    licence: Line
    """Of the weights, an SPDX identifier where there is one."""
    family: Family
    notes: Line | None = None
    """One line that readers of the row should know."""
    loader: (
        Annotated[
            Annotated[BundledLoader, Tag("bundled")]
            | Annotated[TimmLoader, Tag("timm")]
            | Annotated[HubLoader, Tag("hub")]
            | Annotated[RepositoryLoader, Tag("repository")],
            Discriminator(
                _kind_of_loader,
                custom_error_type="loader",
                custom_error_message="expected one of the keys bundled, timm, hub, repository",
            ),
        ]
        | None
    ) = None
    """How anybody gets the same model; without one nobody can check the claim, and it stays at the lowest tier."""

    @model_validator(mode="before")
    @classmethod
    def _stated(cls, content: Any) -> Any:
        if isinstance(content, dict) and "schema" not in content:
            raise ValueError(f"expected the key `schema`, {SCHEMA!r}")
        return content

    def to_toml(self) -> str:
        """The content of `submission.toml`."""
        content = self.model_dump(mode="json", by_alias=True, exclude_none=True)
        loader = content.pop("loader", {})
        lines = [f"{key} = {_quoted(value)}" for key, value in content.items()]
        if loader:
            lines += ["", "[loader]", *(f"{key} = {_quoted(value)}" for key, value in loader.items())]
        return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """A TOML string; JSON's escapes are TOML's for what is printable."""
    return json.dumps(text, ensure_ascii=False)


def loader_of(model: ModelRecord) -> dict[str, str]:
    """What a result itself says about how its model is loaded: keys of `[loader]`, maybe not all of them.

    A network that robench or timm knows, with weights from a local file, is known by their digest alone.
    """
    reference, weights = model.reference or "", {"weights_sha256": model.weights_sha256} if model.weights_sha256 else {}
    scheme, _, name = reference.partition(":")
    name, _, revision = name.partition("@")
    commit = revision or model.revision
    if scheme in ("hf-hub", "timm"):  # without a commit, the weights were a local file
        known = {"hub" if scheme == "hf-hub" else "timm": name, "revision": commit} if commit else {}
    elif name:
        known = {"entry_point": reference}
    elif model.loader.startswith("robench.zoo:"):
        known = {"bundled": reference}
    else:
        known = {}
    return known | weights


def problems(error: ValidationError, *, known: tuple[type[BaseModel], ...]) -> list[tuple[str, str, str, str]]:
    """What pydantic complains about, as (JSON pointer, found, expected, advice); `known` gives names for advice.

    A value is shown in at most 80 characters, whatever it is.
    """
    return list(dict.fromkeys(_problem(detail, known) for detail in error.errors(include_url=False)))


@contextmanager
def refusing_malformed(where: str, what: str, *, schema: str, known: tuple[type[BaseModel], ...]) -> Iterator[None]:
    """Turn the first of pydantic's errors into ours.

    Args:
      where: the file or command that the record is of.
      what: what it is to be.
      schema: name of its schema.
      known: the records that it is made of.
    Raises:
      SubmissionError: a key is missing, unknown or malformed.
    """
    try:
        yield
    except ValidationError as error:
        pointer, found, expected, _ = problems(error, known=known)[0]
        problem = f"{shown(pointer) if pointer else 'content'} is {found}, expected {expected}"[:300]
        raise SubmissionError(complaint(where, what, f"malformed ({problem})", f"a {schema}")) from error


def _problem(detail: ErrorDetails, known: tuple[type[BaseModel], ...]) -> tuple[str, str, str, str]:
    path = [str(part)[:80] for part in detail["loc"]]
    if path[:1] == ["loader"]:
        del path[1:2]  # the tag of the union
    if path[:1] == ["images"]:
        del path[2:3]  # that of a refutation's
    pointer = "".join(f"/{part.replace('~', '~0').replace('/', '~1')}" for part in path)
    if detail["type"] == "extra_forbidden":
        keys = {field.alias or name for record in known for name, field in record.model_fields.items()}
        return pointer, "an unknown key", "a key of the schema", did_you_mean(path[-1], keys)
    if detail["type"] == "missing":
        return pointer, "missing", "a value", "Add the key."
    reason = re.sub(r"^(Value error, )?(expected |Input should (be )?|String should )?", "", detail["msg"])
    reason = re.sub(r"^match pattern", "text that matches", reason)
    return pointer, shown(detail["input"]), reason, ""


def shown(value: object, most: int = 80) -> str:
    """A value from a stranger's file, short and in printable ASCII.

    Example:
      >>> shown("a\\x1b[31m")
      "'a\\\\x1b[31m'"
    """
    if isinstance(value, dict | list | tuple):
        return f"a {'table' if isinstance(value, dict) else 'list'} of {len(value)}"
    try:
        text = ascii(value[:most] if isinstance(value, str) else value)
    except ValueError:  # Python writes no integers of more than 4300 digits
        text = "a huge number"
    return text if len(text) <= most else f"{text[:most]}..."


FAMILIES: tuple[str, ...] = get_args(Family)
"""Values of `family`."""
