"""A result as the Hugging Face Hub shows it: metadata of a model card, and an entry of `.eval_results`.

Both are written by huggingface_hub's own serialisers. Values are percentages. Nothing is ever read back: a claim is
checked from its outcomes. Not here: submissions to robench itself, and how files come from the Hub (`robench.hub`).
"""

from collections.abc import Mapping
from pathlib import Path

import yaml
from huggingface_hub import (
    CommitOperationAdd,
    EvalResult,
    EvalResultEntry,
    HfApi,
    ModelCard,
    ModelCardData,
    eval_result_entries_to_yaml,
)

from robench.errors import SubmissionError, complaint
from robench.hub import LIBRARY, LOG_IN, Address, Hub, open_snapshot, own_token, parse
from robench.result import Metric, Result

README = "README.md"
EVAL_RESULTS = ".eval_results"
TASK = "image-classification"
SETS = {"imagenet": "ILSVRC/imagenet-1k", "imagenet-val": "ILSVRC/imagenet-1k"}
"""Data sets of protocols on the Hub."""


def card_files(
    result: Result, *, source: str | None = None, dataset: str | None = None, readme: str | None = None
) -> dict[str, bytes]:
    """What a repository on the Hub says about a result, by path in the repository.

    The model card gets every metric; `.eval_results` gets the number that ranks, and is left out where the data set of
    the protocol is not on the Hub.

    Args:
      result: any result; one that is not complete says so in its notes.
      source: address of the submission or run that it can be checked by.
      dataset: `org/name` of the protocol's data set on the Hub; by default that of ImageNet for its protocols.
      readme: the model card as it is, to which metadata are added; None: a new one.
    Raises:
      SubmissionError: the card's metadata cannot be read.
    """
    dataset = dataset or SETS.get(result.data.source)
    files = {README: _card(result, source, dataset, readme).encode()}
    if dataset is not None:
        entry = EvalResultEntry(
            dataset_id=dataset,
            task_id=result.protocol.id,
            value=_percent(result.headline),
            source_url=source,
            source_name=LIBRARY if source is not None else None,
            notes=_notes(result),
        )
        content = yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False)
        files[f"{EVAL_RESULTS}/robench-{result.protocol.id}-v{result.protocol.version}.yaml"] = content.encode()
    return files


def open_pull_request(
    result: Result,
    repository: str,
    *,
    source: str | None = None,
    dataset: str | None = None,
    more: Mapping[str, Path] | None = None,
    hub: Hub | None = None,
) -> str:
    """Propose a result to a model's repository on the Hub, as one commit in one pull request; returns its address.

    Args:
      result, source, dataset: as in `card_files`.
      repository: `org/name`, or `hf-hub:org/name`.
      more: files to propose as well, by path in the repository.
      hub: where the repository is.
    Raises:
      SubmissionError: no one is logged in, or the Hub refuses.
      ModelError: the repository cannot be had.
    """
    hub = hub or Hub()
    address = parse(repository if ":" in repository else f"hf-hub:{repository}")
    token = own_token()
    if token is None:
        advice = f"First {LOG_IN}; the token needs the right to write."
        raise SubmissionError(complaint(address.reference, "token", "none", "someone who is logged in", advice))
    files = card_files(result, source=source, dataset=dataset, readme=_readme_of(address, hub))
    operations = [CommitOperationAdd(path, content) for path, content in files.items()]
    operations += [CommitOperationAdd(path, str(file)) for path, file in (more or {}).items()]
    title = f"{result.protocol.id}@{result.protocol.version}: {result.headline.name} {_percent(result.headline)} %"
    try:
        done = HfApi(endpoint=hub.endpoint, token=token, library_name=LIBRARY).create_commit(
            address.repository,
            operations,
            commit_message=title,
            commit_description=_notes(result),
            create_pr=True,
        )
    except Exception as error:  # what the client's transport raises has no public parent
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        expected = "a Hub that takes the pull request"
        raise SubmissionError(complaint(address.reference, "pull request", f"refused ({reason})", expected)) from error
    return str(done.pr_url)


def _card(result: Result, source: str | None, dataset: str | None, readme: str | None) -> str:
    """A model card with the metrics among its metadata, in place of those of the same name and protocol."""
    name = result.model.name
    try:
        card = ModelCard(readme or "---\n{}\n---\n", ignore_metadata_errors=False)
    except Exception as error:  # of YAML, or of what huggingface_hub makes of it
        found = f"unreadable ({' '.join(str(error).split())[:200]})"
        raise SubmissionError(complaint(README, "metadata", found, "YAML between two lines `---`")) from error
    data = card.data
    assert isinstance(data, ModelCardData)  # as every model card has it
    own = [_entry(result, metric, source, dataset) for metric in result.metrics]
    replaced = {(entry.unique_identifier, entry.metric_name) for entry in own}
    kept = [each for each in data.eval_results or [] if (each.unique_identifier, each.metric_name) not in replaced]
    data.model_name = data.model_name or name
    data.eval_results = kept + own
    if readme is None:
        card.text = f"\n# {name}\n\n{result}\n"
    return str(card)


def _entry(result: Result, metric: Metric, source: str | None, dataset: str | None) -> EvalResult:
    return EvalResult(
        task_type=TASK,
        dataset_type=dataset or f"robench-{result.data.source}",
        dataset_name=f"{result.protocol.id}@{result.protocol.version}",
        dataset_config=result.protocol.id,  # what keeps protocols on the same images apart in a model card
        dataset_args={"protocol_sha256": result.protocol.digest, "images": result.data.count},
        metric_type="accuracy",
        metric_name=metric.name,
        metric_value=_percent(metric),
        source_url=source,
        source_name=LIBRARY if source is not None else None,
    )


def _notes(result: Result) -> str:
    """What a number must be read with."""
    parts = [
        f"{result.protocol.id}@{result.protocol.version}",
        f"protocol sha256 {result.protocol.digest}",
        f"95 % interval {result.headline.bounds}",
        f"{result.data.count} images",
        "tier reported" if result.status == "complete" else f"{result.status}, not ranked",
    ]
    return ", ".join([*parts, *(f"caveat: {caveat}" for caveat in result.caveats)])


def _percent(metric: Metric) -> float:
    return round(100 * metric.numerator / metric.denominator, 2)


def _readme_of(address: Address, hub: Hub) -> str | None:
    """The model card as it is; None: there is none."""
    snapshot = open_snapshot(address, hub)
    if README not in (snapshot.digests or {}):
        return None
    return snapshot.fetch(README).read_text(encoding="utf-8")
