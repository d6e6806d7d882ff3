"""Carries out a plan: attacks the examples of the missing shards, and writes each shard when it is full.

Not here: checks at the door (`evaluation`), the loop over slots (`attacks.drive`), which shards other processes make
(`share`), and files (`runs`).
"""

import contextlib
import itertools
import sys
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robench.adversarial import AdversarialImages
from robench.attacks.asking import Asking, drive_by_asking
from robench.attacks.drive import Example, Finished, Stage, drive, expected_cost
from robench.attacks.reference import drive_by_reference
from robench.attacks.whole import AnyStage, WholeStage, drive_whole
from robench.audits import NO_START, ZERO_GRADIENT
from robench.budgets import Budget
from robench.classifier import Classifier
from robench.data import Source
from robench.data.decoding import naming_dead_workers
from robench.data.source import Unreadable, Views, check_image, pixel_digest
from robench.environment import environment
from robench.errors import DataError, RunError, complaint
from robench.halfway import Halfway, Survived
from robench.outcome import Outcome
from robench.progress import Progress, Silent, Watcher
from robench.reading import ClaimedImages
from robench.result import shares
from robench.runs import Run, Shard
from robench.share import Share
from robench.shift import scored
from robench.unattacked import Looking

SHOW_SECONDS = 2.0
"""Between two looks at what other processes have finished, to show it; looking takes at most a fiftieth of the time."""
LOOKED_AT = 4096
"""Images that are claimed together without an attack: readers begin anew each time."""


@dataclass
class Load:
    """What a process should have before it, in forward passes.

    Attributes:
      cost: of an example that was not begun.
      ahead: examples whose images are drawn but not read.
      in_flight: examples that the driver has and has not finished.
      left, left_of, fresh: what the driver said last: the passes that it expects, for how many examples, and how many
        of these it has not begun.
    """

    cost: int = 1
    ahead: int = 0
    in_flight: int = 0
    left: int = 0
    left_of: int = 0
    fresh: int = 0

    def note(self, passes: int, fresh: int) -> None:
        """What the driver says is left of what it has."""
        self.left, self.left_of, self.fresh = passes, self.in_flight, fresh

    @property
    def passes(self) -> int:
        return self.left + (self.in_flight - self.left_of + self.ahead) * self.cost


class Execution:
    """Attacks the examples of the missing shards of a run, and writes each shard when it is full.

    Args:
      run: what is missing, and where it is written.
      share: which shards this process makes.
      classifier: the user's own model.
      faster: the copy that attacks look at, or the same.
      source: the examples.
      slots: examples attacked at a time.
      watcher: is told of progress.
      reference: the protocol's reference model, if it has one.
    """

    def __init__(
        self,
        run: Run,
        share: Share,
        *,
        classifier: Classifier,
        faster: Classifier,
        source: Source,
        slots: int,
        watcher: Watcher,
        reference: Classifier | None = None,
    ) -> None:
        self.reference = reference
        self.run, self.protocol, self.source = run, run.plan.parsed_protocol(), source
        self.share, self.load, self.next_look = share, Load(), 0.0
        self.shape: torch.Size | None = None
        self.classifier, self.faster = classifier, faster
        self.slots, self.watcher = slots, watcher
        self.outcomes: dict[int, Outcome] = {}
        self.pixels: dict[int, int] = dict.fromkeys(range(run.plan.shards), 0)
        self.prefix, self.scored, self.clean, self.robust = 0, 0, 0.0, 0.0
        self.stage, self.waiting = "", False
        self.began, self.began_cpu = time.monotonic(), time.process_time()
        self.segment = f"{time.time_ns():x}"
        self.adversarial: AdversarialImages | None = None
        self.halfway, self.survived = Halfway(run, self.segment), dict[int, Survived]()

    def attack(
        self, stages: Sequence[AnyStage], budget: Budget, *, adversarial: AdversarialImages | None = None
    ) -> None:
        """Attack what is missing; keep the adversarial images, if told where.

        Raises:
          RunError: a shard is damaged, images of finished shards are missing, or a folder cannot be written.
        """
        self.adversarial = adversarial
        run, missing = self.run, self.share.missing
        # A foreign or edited shard is found now, not after the work.
        self._read_shards(set(range(run.plan.shards)) - set(missing))
        if adversarial is not None:
            adversarial.check(self.outcomes.values())
        self.watcher.begin(run.folder, self._progress())
        if self.outcomes:
            self.watcher.notice(f"Resuming {run.folder}: {len(self.outcomes)} of {run.plan.data.count} are done.")
        details = {"segment": self.segment, "slots": self.slots, "missing_shards": len(missing)}
        details["save_adversarial"] = str(adversarial.folder.resolve()) if adversarial is not None else None
        run.record("start", {**details, "environment": environment()})
        try:
            for shards in self.share.rounds(self._wait):
                if self.protocol.shift is None:
                    self._attack(stages, budget, shards)
                else:
                    self._look(shards)
        except KeyboardInterrupt:
            with contextlib.suppress(RunError):
                self._record_cost()
                run.record("interrupted", {"segment": self.segment})
            raise
        self.next_look = 0.0
        self._look_at_others()
        run.record("end", {"segment": self.segment, **self._times()})

    def _attack(self, stages: Sequence[AnyStage], budget: Budget, shards: Iterator[int]) -> None:
        """Attack the examples of shards that are drawn as they are needed."""
        # Only the driver of our own attacks can be told that there is nothing more for now.
        patient = self.run.plan.engine == "native" and self.protocol.score.asks is None
        ours = [stage for stage in stages if isinstance(stage, Stage)]
        self.load.cost = expected_cost(ours) if ours else 1
        self.survived = self.halfway.read() if len(ours) > 1 else {}
        examples = self._examples(shards, patient=patient)
        stream = self._stream(stages, budget, examples)
        # Closing puts the model back, and ends processes that decode, even while an error is kept.
        with contextlib.closing(examples), contextlib.closing(stream), naming_dead_workers():
            for finished in stream:
                self.load.in_flight -= 1
                self._finish(finished)

    def _wait(self, shards: int) -> None:
        """Others have so many shards, and there is nothing else to do."""
        if not self.waiting:
            self.waiting = True
            self.watcher.notice(f"Waiting for other processes, which make the last {shards} shards.")
        self._look_at_others()

    def _look_at_others(self) -> None:
        """Read what other processes have finished, now and then, if anyone wants to know."""
        began = time.monotonic()
        if began < self.next_look or type(self.watcher) is Silent:
            return
        known = {position // self.run.plan.shard_size for position in self.outcomes}
        new = self.run.finished_shards() - known
        self._read_shards(new)
        ended = time.monotonic()
        self.next_look = ended + max(SHOW_SECONDS, 50 * (ended - began))
        if new:
            self.watcher.update(self._progress())

    def _read_shards(self, shards: Iterable[int]) -> None:
        for index in sorted(shards):
            shard = self.run.read_shard(index)
            self.outcomes.update(zip(self.run.plan.examples_of(index), shard.outcomes, strict=True))

    def _look(self, shards: Iterator[int]) -> None:
        """Show the model the examples of these shards, without an attack; some shards at a time."""
        views = len(self.source.view_names) if isinstance(self.source, Views) else 1
        together = max(LOOKED_AT // (views * self.run.plan.shard_size), 1)
        looking = Looking(self.protocol, self.classifier, self.source, slots=self.slots, reference=self.reference)
        while drawn := list(itertools.islice(shards, min(together, self.share.part()))):
            positions = [position for shard in drawn for position in self.run.plan.examples_of(shard)]
            stream = looking.outcomes(positions, on_pixels=self._add_pixels, on_event=self._event)
            with contextlib.closing(stream), self.classifier.frozen(), naming_dead_workers():
                for position, outcome in stream:
                    self._settle(position, outcome)

    def _add_pixels(self, position: int, digest: int) -> None:
        self.pixels[position // self.run.plan.shard_size] += digest

    def _stream(
        self, stages: Sequence[AnyStage], budget: Budget, examples: Iterator[Any]
    ) -> Generator[Finished, None, None]:
        """Outcomes as they become final, from our own attacks or the reference's."""
        whole = [stage.attack for stage in stages if isinstance(stage, WholeStage)]
        ours = [stage for stage in stages if isinstance(stage, Stage)]
        if self.run.plan.engine == "reference":
            attacks = [stage.attack for stage in ours]
            return drive_by_reference(
                attacks,
                self.classifier,
                examples,
                budget=budget,
                seed=self.protocol.seed,
                batch_size=self.slots,
                on_event=self._event,
            )
        attack, asks = self.protocol.attack, self.protocol.score.asks
        if attack is not None and attack.draws is not None and asks is not None:
            return drive_by_asking(
                ours,
                self.classifier,
                examples,
                asking=Asking(asks, attack.draws, together=self.run.plan.shard_size),
                budget=budget,
                seed=self.protocol.seed,
                slots=self.slots,
                on_event=self._event,
            )
        settings: dict[str, Any] = {"budget": budget, "seed": self.protocol.seed, "slots": self.slots}
        settings |= {"confirm": self.classifier, "on_event": self._event}
        if whole:
            return drive_whole(whole[0], self.faster, examples, **settings)
        return drive(ours, self.faster, examples, on_left=self._note_left, on_survived=self._note_survived, **settings)

    def _examples(self, shards: Iterator[int], *, patient: bool) -> Generator[Example | None, None, None]:
        """Examples of these shards, read as the driver asks for them.

        A patient driver is told None where the next shard is left to other processes for now; for others only what is
        read ahead is bounded.
        """

        def wait(ahead: int) -> bool:
            return (patient or ahead > 0) and self._holds_back(ahead)

        claimed = ClaimedImages(self.source, (self.run.plan.examples_of(shard) for shard in shards), wait)
        with contextlib.closing(claimed.images()) as images:
            for read in images:
                self.load.ahead = claimed.ahead
                example = self._checked(*read) if read is not None else None
                if example is not None:
                    self.load.in_flight += 1
                if example is not None or read is None:
                    yield example

    def _holds_back(self, ahead: int) -> bool:
        """Whether to leave the next shard to others, with so many examples that are claimed and not read."""
        self.load.ahead = ahead
        claimed = self.load.in_flight + ahead
        known = not self.load.fresh and not ahead
        return claimed > 0 and self.share.holds_back(claimed, self.load.passes, known=known)

    def _note_left(self, passes: int, fresh: int) -> None:
        self.load.note(passes, fresh)
        self.share.publish(self.load.passes)

    def _note_survived(self, position: int, stages: int, margin: float, unconfirmed: int) -> None:
        self.halfway.note(position, Survived(stages, margin, unconfirmed))

    def _checked(self, position: int, image: Tensor | Unreadable) -> Example | None:
        """An example whose image is fit for attack; one that cannot be read is finished instead."""
        example, label = self.source.ids[position], self.source.labels[position]
        if isinstance(image, Unreadable):
            self.watcher.notice(image.reason)
            unread = _unread(position, example, label, image)
            asked = self.protocol.score.asks is not None
            self._finish(replace(unread, clean_right=0, attacked_right=0) if asked else unread)
            return None
        check_image(image, example)
        self.shape = self.shape or image.shape
        if image.shape != self.shape:
            raise DataError(
                complaint(example, "image", f"of shape {tuple(image.shape)}", f"{tuple(self.shape)}, as before")
            )
        self._add_pixels(position, pixel_digest(example, image))
        known = self.survived.get(position)
        if known is None:
            return Example(position, example, label, image)
        return Example(position, example, label, image, known.stages, known.margin, known.unconfirmed)

    def _finish(self, finished: Finished) -> None:
        if self.adversarial is not None:
            self.adversarial.keep(finished)  # before the shard: what is finished has its image
        self._settle(finished.index, _outcome(finished))

    def _settle(self, position: int, outcome: Outcome) -> None:
        """Note an outcome, and write its shard when that is full."""
        self.outcomes[position] = outcome
        shard = position // self.run.plan.shard_size
        positions = self.run.plan.examples_of(shard)
        if all(position in self.outcomes for position in positions):
            outcomes = [self.outcomes[position] for position in positions]
            self._record_cost(shard=shard)  # before the shard: who finds the last one there sums up what it cost
            self.run.write_shard(Shard(shard, outcomes, self.pixels[shard] % 2**256))
        self._look_at_others()
        self.watcher.update(self._progress())

    def _times(self) -> dict[str, float]:
        wall, cpu = time.monotonic() - self.began, time.process_time() - self.began_cpu
        seconds = {"wall_seconds": wall, "waited_seconds": self.share.waited, "cpu_seconds": cpu}
        return {name: round(value, 3) for name, value in seconds.items()}

    def _record_cost(self, **more: int) -> None:
        models = {id(model): model for model in (self.classifier, self.faster)}.values()
        device = self.classifier.device
        details = {
            "segment": self.segment,
            **self._times(),
            "forward": sum(model.passes.forward for model in models),
            "backward": sum(model.passes.backward for model in models),
            "peak_memory_bytes": _peak_memory(device),
            "device": _device_name(device),
            "slots": self.slots,
            **more,
        }
        self.run.record("progress", details)

    def _event(self, kind: str, details: dict[str, Any]) -> None:
        if kind == "unreadable":
            self.watcher.notice(details["reason"])
            return
        if kind == "stage":
            self.stage = f"{details['attack']} at {details['examples']}"
            self.watcher.update(self._progress())
            return
        if kind == "zero gradient":
            self.run.record("caveat", {"segment": self.segment, "text": ZERO_GRADIENT.format(**details)})
            return
        if kind == "no start":
            self.run.record("caveat", {"segment": self.segment, "text": NO_START.format(**details)})
            return
        self.slots = details.get("slots", self.slots)
        self.run.record(kind, {"segment": self.segment, **details})
        self.watcher.notice(f"{kind}: {', '.join(f'{name} {value}' for name, value in details.items())}")

    def _progress(self) -> Progress:
        while (outcome := self.outcomes.get(self.prefix)) is not None:
            self.prefix += 1
            if self.protocol.shift is not None and not scored(self.protocol, outcome):
                continue
            clean, robust = shares(self.protocol, outcome)
            self.clean, self.robust, self.scored = self.clean + clean, self.robust + robust, self.scored + 1
        total = self.run.plan.data.count
        shift = self.protocol.shift is not None
        return Progress(total, len(self.outcomes), self.scored, self.clean, self.robust, self.stage, shifted=shift)


def _outcome(finished: Finished) -> Outcome:
    return Outcome(
        id=finished.id,
        label=finished.label,
        clean=finished.clean_prediction,
        attacked=finished.attacked_prediction,
        clean_margin=finished.clean_margin,
        attacked_margin=finished.attacked_margin,
        fooled_at=finished.fooled_at,
        stage=finished.stage,
        unconfirmed=finished.unconfirmed,
        error=finished.error,
        clean_right=finished.clean_right,
        attacked_right=finished.attacked_right,
        queries=finished.queries,
        patches=finished.patches,
        area=finished.area,
    )


def _unread(position: int, example: str, label: int, image: Unreadable) -> Finished:
    """An example whose image cannot be read: it has no prediction, and no outcome."""
    return Finished(position, example, label, -1, 0.0, -1, 0.0, error=image.reason)


def _peak_memory(device: torch.device) -> int:
    """Most memory this process ever held: on the GPU if it works there, else resident."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if sys.platform == "win32":
        return 0  # Windows does not say
    # On Linux `getrusage` starts from the peak of the process that began this one.
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads"
