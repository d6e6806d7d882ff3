"""The one loop between attacks and a model.

The driver keeps the slots of a batch full (a slot that ends takes the next example, across shard
borders), measures budgets, judges success, has every success confirmed by the user's own model, and
goes on with half the slots when memory runs out. A cascade is a list of stages: each has a pool of
slots, survivors queue for the next one, and the deepest full pool runs first, so that an example's
outcome is final as soon as it is known and memory stays bounded.

Not here: any attack, protocols, files, and progress bars.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from robench import compiled
from robench.arrays import batch_of
from robench.attacks.interface import Answer, EndingAttack, Query
from robench.attacks.pool import Pool, Slots, Stage
from robench.attacks.record import Example, Finished, Record
from robench.budgets import TOLERANCE, Budget, changed_share
from robench.classifier import Looked
from robench.errors import BudgetError, ModelError, complaint
from robench.losses import margin

__all__ = ["Example", "Finished", "Stage", "drive"]

SHARED = 8
"""Images of one slot in a row from which they are measured beside one copy of its clean image."""
GLANCED = 32
"""Of these, so many at a time: on a CPU what is computed on the way then stays in the cache."""


@dataclass(frozen=True)
class _Claim:
    """An image said to fool, until the user's own model has confirmed or denied it."""

    record: Record
    image: Tensor
    step: int
    depth: int
    parked: Slots | None
    target: int | None = None
    """Class it must be taken for; None: any but the label."""
    patches: int | None = None
    stuck: str = ""
    """Why the attack cannot go on from this image, should it be denied."""


def drive(
    stages: Sequence[Stage],
    classifier: Looked,
    source: Iterable[Example | None],
    *,
    budget: Budget,
    seed: int = 0,
    slots: int = 32,
    confirm: Looked | None = None,
    on_event: Callable[[str, dict[str, Any]], None] = lambda kind, details: None,
    on_left: Callable[[int, int], None] = lambda passes, fresh: None,
    on_survived: Callable[[int, int, float, int], None] = lambda index, stages, margin, unconfirmed: None,
) -> Generator[Finished, None, None]:
    """Attack every example of a source; yield each as soon as its outcome is final, in no fixed order.

    Args:
      stages: the cascade; none only classifies the clean images.
      classifier: the model that attacks look at.
      source: examples, read only as slots come free; None says that there are no more for now, and may be asked
        again once an outcome is final.
      budget: what the attacks may change.
      seed: of the examples' random numbers.
      slots: examples attacked at a time.
      confirm: the user's own, unmodified model, which classifies the clean images and has the last word on
        adversarial ones; by default `classifier`.
      on_event: told of what happens on the way: `slots halved`, `zero gradient`, `stage`.
      on_left: told what the examples in flight should cost, in forward passes, and how many of them are in the first of
        several stages, where nothing is known of them yet; before every step.
      on_survived: told of an example that goes on to the next stage: its index, how many stages it has survived, the
        lowest margin met, and how many claims were denied. A source that gives these back with the example lets it go
        on there, to the same outcome.
    Raises:
      BudgetError: an attack left its budget.
      ModelError: one image alone does not fit into memory.
    """
    driver = _Driver(stages, classifier, confirm or classifier, budget, seed, slots, on_event, on_left, on_survived)
    with classifier.frozen():
        yield from driver.run(iter(source))


class _Driver:
    """The loop and what it holds; see `drive`."""

    def __init__(
        self,
        stages: Sequence[Stage],
        classifier: Looked,
        confirm: Looked,
        budget: Budget,
        seed: int,
        slots: int,
        on_event: Callable[[str, dict[str, Any]], None],
        on_left: Callable[[int, int], None],
        on_survived: Callable[[int, int, float, int], None],
    ) -> None:
        if any(stage.read_off for stage in stages) and len(stages) > 1:
            raise ValueError("steps can be read off a single stage only")
        self.classifier, self.confirm, self.budget = classifier, confirm, budget
        self.slots, self.on_event, self.on_left, self.on_survived = slots, on_event, on_left, on_survived
        self.every = any(stage.to_the_end for stage in stages)
        self.pools = [Pool(stage, budget, seed, classifier.device) for stage in stages]
        self.claims: list[_Claim] = []
        self.ready: deque[Finished] = deque()
        self.exhausted = False
        self.silent: set[str] = set()
        self.depth = -1
        costs = [cost(stage) for stage in stages]
        self.costs = [sum(costs[depth:]) for depth in range(len(costs))]
        if costs:
            self.costs[0] = expected_cost(stages)

    def run(self, source: Iterator[Example | None]) -> Iterator[Finished]:
        while True:
            self._tell_what_is_left()
            depth = self._full_depth()
            if depth is None and (self.exhausted or not self._admit(source)):
                depth = self._shallowest_depth()
                if depth is None and self.claims:
                    self._settle()
                elif depth is None and self.exhausted and not self.ready:
                    return
            if depth is not None:
                self._tell_where(depth)
                self._advance(depth)
            while self.ready:
                yield self.ready.popleft()

    def _tell_where(self, depth: int) -> None:
        """Tell which stage is at work when it changes, and how many examples have come to it."""
        if depth != self.depth and len(self.pools) > 1:
            self.on_event("stage", {"attack": self.pools[depth].stage.attack.name, "examples": self.pools[depth].work})
        self.depth = depth

    def _tell_what_is_left(self) -> None:
        left = sum(pool.work * cost for pool, cost in zip(self.pools, self.costs, strict=True))
        self.on_left(left, self.pools[0].work if len(self.pools) > 1 else 0)

    def _full_depth(self) -> int | None:
        """The deepest pool that can fill its slots."""
        return next((depth for depth in reversed(range(len(self.pools))) if self.pools[depth].work >= self.slots), None)

    def _shallowest_depth(self) -> int | None:
        """Where to go on when nothing more comes: the shallowest pool that has work."""
        return next((depth for depth, pool in enumerate(self.pools) if pool.work), None)

    def _admit(self, source: Iterator[Example | None]) -> bool:
        """Read the next batch, classify it clean, and queue what the model gets right; False if there is none now."""
        batch: list[Example] = []
        self.exhausted = True
        for example in source:
            if example is not None:
                batch.append(example)
            if example is None or len(batch) == self.slots:
                self.exhausted = False
                break
        if not batch:
            return False
        device = self.classifier.device
        images = batch_of([example.image for example in batch], device)
        labels = torch.tensor([example.label for example in batch], device=device)
        logits = self._in_parts(self.confirm.logits, images)
        predictions, margins = logits.argmax(dim=1).tolist(), margin(logits, labels).tolist()
        finite = logits.isfinite().all(dim=1).tolist()
        for row, example in enumerate(batch):
            record = Record(example, logits[row], predictions[row], margins[row], predictions[row], margins[row])
            if not finite[row]:
                record.error = "the logits of the clean image are not finite"
                record.clean_margin = record.attacked_margin = 0.0
                self.ready.append(record.finished())
            elif (predictions[row] != example.label and not self.every) or not self.pools:
                self.ready.append(record.finished())
            else:
                self._queue(record)
        return True

    def _queue(self, record: Record) -> None:
        """For the first stage, or for that to which an earlier call has brought it."""
        survived = record.example.survived
        if 0 < survived < len(self.pools):
            record.attacked_margin, record.unconfirmed = record.example.margin, record.example.unconfirmed
            self.pools[survived].waiting.append((record, None))
        else:
            self.pools[0].waiting.append((record, None))

    def _advance(self, depth: int) -> None:
        """One ask and tell of one pool."""
        pool = self.pools[depth]
        # Slots that no example needs only fill small batches up: where each asks for many images, none are kept.
        fewest, halving = self.classifier.minimum_rows, self.classifier.halving
        try:
            pool.fill(pool.capacity(self.slots), fewest if pool.rows_a_slot < fewest else 1, halving=halving)
            query = pool.stage.attack.ask(pool.slots.state)
            pool.rows_a_slot = max(len(query.rows) // len(pool.records), 1)
            answer, adversarial = self._look(pool, query)
            state = pool.stage.attack.tell(pool.slots.state, answer)
            margins = self._margins(pool, query, answer)
        except (RuntimeError, MemoryError) as error:
            self._halve(error)
            return
        steepest = steepest_of(answer.gradient) if answer.gradient is not None else None
        self._look_for_silence(pool, query, steepest)
        fooled, stuck = self._judge(pool, query, answer.logits, steepest, set(adversarial))
        pool.slots = Slots(state, margins)
        if query.patches is not None:
            _count_queries(pool, query)
        self._collect(depth, fooled, stuck, adversarial, query)
        if len(self.claims) >= self.confirm.minimum_rows:
            self._settle()

    def _look(self, pool: Pool, query: Query) -> tuple[Answer, dict[int, tuple[int, Tensor]]]:
        """Show the model the images of a query, at most `slots` at a time.

        Returns the answer, and for each slot whose record was fooled the row and the image.
        """
        clean, labels = pool.slots.state.examples.images, pool.slots.state.examples.labels
        busy = torch.tensor([record is not None for record in pool.records], device=labels.device)
        in_order = torch.equal(query.rows, torch.arange(len(labels), device=labels.device))
        parts: list[tuple[Tensor, Tensor | None, Tensor | None]] = []
        adversarial: dict[int, tuple[int, Tensor]] = {}
        size = self.slots - self.slots % min(pool.rows_a_slot, self.slots)  # of one slot, all in one part if they fit
        for begin in range(0, len(query.rows), size):
            rows = slice(begin, begin + size)
            slots, images = query.rows[rows], query.render(rows)
            counted = query.counts[rows] & busy[slots]
            if bool(counted.any()):  # before the model is asked, while the images are in the cache
                excess = self.budget.glance(images, clean[rows]) if in_order else self._glance(images, clean, slots)
                self._measure(excess[counted], pool.stage.attack.name)
            parts.append(self._ask_model(query, slots, images))
            logits = parts[-1][0]
            predictions = logits.argmax(dim=1)
            wrong = predictions != labels[slots] if query.targets is None else predictions == query.targets[rows]
            fooled = counted & logits.isfinite().all(dim=1) & wrong
            if pool.stage.read_off is not None:
                fooled &= torch.isin(query.step[rows], torch.tensor(sorted(pool.stage.read_off), device=labels.device))
            chosen = fooled.nonzero()[:, 0]
            for row, slot in zip(chosen.tolist(), slots[chosen].tolist(), strict=True):
                if slot not in adversarial:  # a copy: a view would keep the whole chunk alive
                    adversarial[slot] = begin + row, images[row].clone()
        if adversarial:
            claimed = torch.stack([image for _, image in adversarial.values()])
            self._measure(self.budget.excess(claimed, clean[list(adversarial)]), pool.stage.attack.name)
        return _joined(parts), adversarial

    def _ask_model(self, query: Query, slots: Tensor, images: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        objective = query.objective
        if objective is None:
            return self.classifier.logits(images), None, None
        return self.classifier.gradient(images, lambda logits: objective(logits, slots))

    def _glance(self, images: Tensor, clean: Tensor, slots: Tensor) -> Tensor:
        """The budget's glance at images of some slots; many in a row of one slot share one copy of its clean image."""
        runs = [(slot, len(list(run))) for slot, run in groupby(slots.tolist())]
        if len(slots) < SHARED * len(runs):
            return self.budget.glance(images, clean.index_select(0, slots))
        wholes = zip(torch.split(images, [length for _, length in runs]), runs, strict=True)
        parts = [(part, clean[slot : slot + 1]) for whole, (slot, _) in wholes for part in torch.split(whole, GLANCED)]
        return torch.cat([self.budget.glance(part, origin) for part, origin in parts])

    def _measure(self, excess: Tensor, attack: str) -> None:
        """Law 1: images that count lie inside the budget; a claim is measured in full, the others at a glance."""
        worst = float(excess.max())
        if not worst <= TOLERANCE:
            raise BudgetError(
                complaint(
                    attack,
                    "image",
                    f"{worst:.3g} outside its budget",
                    f"at most {TOLERANCE:g}",
                    "This is an error of the attack, not of the model: please report it.",
                )
            )

    def _judge(
        self, pool: Pool, query: Query, logits: Tensor, steepest: Tensor | None, fooled: set[int]
    ) -> tuple[set[int], dict[int, str]]:
        """Which slots were fooled; a slot whose logits or gradient are no numbers is errored instead.

        An image that fooled counts whatever its gradient, but no step can be taken from there: these slots come
        second, each with the reason.
        """
        stuck: dict[int, str] = {}
        total = logits.sum(dim=1, dtype=torch.float64)  # in which large finite logits do not add up to infinity
        for what, values in (("logits", total), ("gradient", steepest)):
            broken = ~values.isfinite() if values is not None else torch.zeros(0)
            for row in broken.nonzero()[:, 0].tolist():
                slot = int(query.rows[row])
                record = pool.records[slot]
                if record is None:
                    continue
                verb = "are" if what == "logits" else "is"
                reason = f"the {what} {verb} not finite at step {int(query.step[row])} of {pool.stage.attack.name}"
                if what == "gradient" and slot in fooled:
                    stuck.setdefault(slot, reason)
                else:
                    record.error = record.error or reason
                    fooled.discard(slot)
        return fooled, stuck

    def _look_for_silence(self, pool: Pool, query: Query, steepest: Tensor | None) -> None:
        """Tell once of each attack that met a gradient of exactly zero."""
        name = pool.stage.attack.name
        if steepest is None or name in self.silent:
            return
        silent = query.rows[steepest == 0].tolist()
        if any(pool.records[slot] is not None for slot in silent):
            self.silent.add(name)
            self.on_event("zero gradient", {"attack": name})

    def _margins(self, pool: Pool, query: Query, answer: Answer) -> Tensor:
        """The margin to report: the lowest met, or the one at the last step read off."""
        labels = pool.slots.state.examples.labels[query.rows]
        met = torch.where(query.counts, margin(answer.logits, labels), torch.inf)
        if pool.stage.read_off is None:
            return pool.slots.margin.scatter_reduce(0, query.rows, met, "amin")
        read = torch.isin(query.step, torch.tensor(sorted(pool.stage.read_off), device=met.device)) & query.counts
        return pool.slots.margin.index_copy(0, query.rows, torch.where(read, met, pool.slots.margin[query.rows]))

    def _collect(
        self,
        depth: int,
        fooled: set[int],
        stuck: dict[int, str],
        adversarial: dict[int, tuple[int, Tensor]],
        query: Query,
    ) -> None:
        """Move on what was fooled, errored or done, and free its slot."""
        pool = self.pools[depth]
        done = pool.slots.state.done.tolist()
        for slot, record in enumerate(pool.records):
            if record is None:
                continue
            if slot in fooled:
                row, image = adversarial[slot]
                ends = pool.stage.read_off is None
                parked = pool.parked(slot) if ends else None
                record.open_claims += 1
                reason = stuck.get(slot, "")
                self.claims.append(_claim(record, query, row, image, depth=depth, parked=parked, stuck=reason))
                if ends:
                    pool.records[slot] = None
                    continue
                if not done[slot]:
                    record.error = record.error or stuck.get(slot, "")
            if record.error or done[slot]:
                record.done = True
                record.attacked_margin = 0.0 if record.error else float(pool.slots.margin[slot])
                if isinstance(pool.stage.attack, EndingAttack):
                    record.finals[pool.stage.attack.name] = pool.stage.attack.final(pool.slots.state)[slot].clone()
                pool.records[slot] = None
                self._pass_on(record, depth)

    def _settle(self) -> None:
        """Ask the user's own model about every open claim."""
        claims, self.claims = self.claims, []
        logits = self._in_parts(self.confirm.logits, torch.stack([claim.image for claim in claims]))
        labels = torch.tensor([claim.record.example.label for claim in claims], device=logits.device)
        predictions, margins = logits.argmax(dim=1).tolist(), margin(logits, labels).tolist()
        finite = logits.isfinite().all(dim=1).tolist()
        for row, claim in enumerate(claims):
            record, pool = claim.record, self.pools[claim.depth]
            record.open_claims -= 1
            wrong = (
                predictions[row] != record.example.label if claim.target is None else predictions[row] == claim.target
            )
            if finite[row] and wrong:
                record.fooled_at.append(claim.step)
                record.stage = pool.stage.attack.name
                record.adversarial = claim.image
                if claim.patches is not None:
                    record.patches = claim.patches
                    record.area = changed_share(claim.image, record.example.image.to(claim.image.device))
                if claim.parked is not None or claim.step == max(pool.stage.read_off or {claim.step}):
                    record.attacked_prediction, record.attacked_margin = predictions[row], margins[row]
                record.done |= claim.parked is not None
                self._pass_on(record, claim.depth)
                continue
            if not finite[row]:
                record.error = (
                    record.error or f"the logits are not finite at step {claim.step} of {pool.stage.attack.name}"
                )
                record.done, record.attacked_margin = record.done or claim.parked is not None, 0.0
                self._pass_on(record, claim.depth)
                continue
            record.unconfirmed += 1
            if claim.parked is None:
                self._pass_on(record, claim.depth)
            elif bool(claim.parked.state.done[0]):
                record.done, record.attacked_margin = True, float(claim.parked.margin[0])
                self._pass_on(record, claim.depth)
            elif claim.stuck:
                record.error, record.done, record.attacked_margin = claim.stuck, True, 0.0
                self._pass_on(record, claim.depth)
            else:
                pool.waiting.appendleft((record, claim.parked))

    def _pass_on(self, record: Record, depth: int) -> None:
        """Send a record whose stage is over and whose claims are settled to the next stage, or out."""
        if not record.done or record.open_claims:
            return
        if record.error or record.fooled_at or depth + 1 == len(self.pools):
            self.ready.append(record.finished())
        else:
            record.done = False
            self.pools[depth + 1].waiting.append((record, None))
            self.on_survived(record.example.index, depth + 1, record.attacked_margin, record.unconfirmed)

    def _in_parts(self, look: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        """Logits of any number of images, `slots` at a time, with fewer slots where memory runs out."""
        return in_parts(look, images, lambda: self.slots, self._halve)

    def _halve(self, error: Exception) -> None:
        """Go on with half the slots if memory ran out; any other error goes on its way."""
        self.slots = half_of(self.slots, error, self.classifier, self.confirm)
        self.on_event("slots halved", {"slots": self.slots})
        for crowded in self.pools:
            crowded.shrink(self.slots)


def _joined(parts: list[tuple[Tensor, Tensor | None, Tensor | None]]) -> Answer:
    """One answer of the model's answers to the parts of a query."""
    if len(parts) == 1:
        return Answer(*parts[0])
    logits, values, gradients = ([part[column] for part in parts] for column in range(3))
    if values[0] is None:
        return Answer(torch.cat(logits), None, None)  # type: ignore[arg-type]  # logits are never None
    return Answer(torch.cat(logits), torch.cat(values), torch.cat(gradients))  # type: ignore[arg-type]  # nor these here


def _claim(
    record: Record, query: Query, row: int, image: Tensor, *, depth: int, parked: Slots | None, stuck: str
) -> _Claim:
    """What a row of a query claims about its image."""
    target, patches = (int(each[row]) if each is not None else None for each in (query.targets, query.patches))
    return _Claim(record, image, int(query.step[row]), depth, parked, target, patches, stuck)


def _count_queries(pool: Pool, query: Query) -> None:
    """Add the images of a query to what each example was shown."""
    asked = query.rows.bincount(minlength=len(pool.records)).tolist()
    for record, count in zip(pool.records, asked, strict=True):
        if record is not None:
            record.queries = (record.queries or 0) + count


def cost(stage: Stage) -> int:
    """Forward passes that an example which survives a stage costs there; a gradient costs as much as three."""
    with_gradient, without = stage.attack.most_passes
    return 3 * with_gradient + without


def expected_cost(stages: Sequence[Stage]) -> int:
    """Forward passes of an example of which nothing is known: as if half of them fell in the first stage."""
    first, *rest = (cost(stage) for stage in stages)
    return first + sum(rest) // 2


def steepest_of(gradient: Tensor) -> Tensor:
    """The largest absolute value of each gradient, NaN if there is one, shape (N,)."""
    swept = compiled.largest(gradient)
    if swept is not None:
        return swept
    return gradient.flatten(1).abs().amax(dim=1)  # on a CPU, 16 times as fast as the norm of order infinity


def in_parts(
    look: Callable[[Tensor], Tensor], images: Tensor, slots: Callable[[], int], on_error: Callable[[Exception], None]
) -> Tensor:
    """What is seen of some images, so many at a time as `slots` says.

    Args:
      look: images -> logits.
      images: shape (N, 3, H, W).
      slots: how many at a time; asked before each part.
      on_error: called when a part fails; raises unless there are fewer slots now.
    """
    parts: list[Tensor] = []
    done = 0
    while done < len(images):
        try:
            parts.append(look(images[done : done + slots()]))
            done += len(parts[-1])
        except (RuntimeError, MemoryError) as error:
            on_error(error)
    return torch.cat(parts)


def half_of(slots: int, error: Exception, *models: Looked) -> int:
    """Half as many slots if memory ran out; any other error goes on its way.

    Raises:
      ModelError: one image alone does not fit into memory.
    """
    if not _out_of_memory(error):
        raise error
    if slots == 1:
        advice = "Use a machine or device with more memory, or a smaller model."
        message = complaint(models[0].name, "memory", "too small for one image", "room for one pass", advice)
        raise ModelError(message) from error
    slots //= 2
    for model in models:
        model.minimum_rows = min(model.minimum_rows, slots)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return slots


def _out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(
        words in str(error) for words in ("out of memory", "can't allocate memory")
    )
