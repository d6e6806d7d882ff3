import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from robench.attacks.drive import Example, Finished, Stage, drive
from robench.attacks.interface import Answer, Examples, Query
from robench.attacks.patch_ascent import WhiteBoxPatches
from robench.attacks.patch_rounds import TextureRounds
from robench.attacks.patch_search import GreyPatches, RandomPatches
from robench.attacks.patches import (
    ACTIONS,
    Bank,
    PatchState,
    begin_with_textures,
    crop,
    cut,
    paste,
    pick,
    remember,
    rewards,
    spaces,
)
from robench.attacks.tpa import TPA
from robench.budgets import PatchArea
from robench.classifier import Classifier
from robench.data.textures import TextureDictionary, write_textures
from robench.errors import BudgetError, DataError, ProtocolError
from robench.randomness import Draws, RandomSource
from tests.fakes import examples, labelled_by, noise_folder, noise_textures, random_images, small_net

BUDGET = PatchArea(0.25, patches=4)  # squares of 2 pixels in images of 8


def _draws(count: int) -> Draws:
    return Draws.of(0, [f"{index}" for index in range(count)])


def _clean(count: int, size: int = 8, classes: int = 4) -> Examples:
    return Examples(random_images(count, size), torch.arange(count) % classes, torch.zeros(count, classes))


def _state(count: int = 5, **changes: Any) -> PatchState:
    settings = {"textures": noise_folder()["textures"], "sha256": noise_textures().sha256, "patches": 4}
    return begin_with_textures(_clean(count), BUDGET, _draws(count), **{**settings, "targeted": False, **changes})


# --- pasting


def test_pasting_is_what_a_loop_over_images_does_bit_by_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    images, side = random_images(300, 9), 3
    bank = Bank(torch.rand(4, 5, 3, 11, 11, generator=generator))
    page = torch.randint(0, 4, (300,), generator=generator)
    limits = torch.tensor([7, 7, 5, 9, 9])
    actions = (torch.rand(300, ACTIONS, generator=generator) * limits).long()
    assert actions.amax(dim=0).tolist() == (limits - 1).tolist()  # the last row and column occur
    expected = images.clone()
    for index in range(300):
        row, column, texture, cut_row, cut_column = actions[index].tolist()
        part = bank.textures[int(page[index]), texture, :, cut_row : cut_row + side, cut_column : cut_column + side]
        expected[index, :, row : row + side, column : column + side] = part
    found = paste(images.clone(), actions[:, :2], cut(bank, page, actions, side))
    assert torch.equal(found, expected)
    assert not torch.equal(images, expected)
    assert torch.equal(crop(found, actions[:, :2], side), cut(bank, page, actions, side))


def test_a_query_renders_the_same_images_in_any_chunks() -> None:
    attack = RandomPatches(**noise_folder(), rounds=2, queries=7, patches=4)
    state = attack.start(_clean(3), BUDGET, _draws(3))
    query = attack.ask(state)
    whole = query.render(slice(None))
    assert torch.equal(torch.cat([query.render(slice(begin, begin + 4)) for begin in range(0, 21, 4)]), whole)
    changed = (whole != state.examples.images[query.rows]).any(dim=1).sum(dim=(1, 2))
    assert int(changed.max()) == 4
    assert query.rows.tolist() == [0] * 7 + [1] * 7 + [2] * 7
    assert query.step.tolist() == [1, 2, 3, 4, 5, 6, 7] * 3


def test_numbers_reach_every_value_and_never_the_count() -> None:
    almost_one = torch.tensor([0.0, 1 - 2.0**-24])
    for count in (1, 190, 16_777_215):
        assert pick(almost_one, count).tolist() == [0, count - 1]
    counts = torch.bincount(pick(_draws(1).uniform("s", (19_000,)), 190)[0], minlength=190)
    assert 50 < int(counts.min()) <= int(counts.max()) < 160  # 100 each, plus or minus six standard deviations
    assert spaces(_state()) == (7, 7, 2, 7, 7)


# --- rewards


def test_rewards_are_log_probabilities() -> None:
    state = replace(_state(3), actions=torch.zeros(3, 4, ACTIONS, dtype=torch.int64))
    logits = 3 * torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
    labels = state.examples.labels.repeat_interleave(4).tolist()
    odds = [[math.exp(value) for value in row] for row in logits.tolist()]
    expected = [math.log(1 - row[label] / sum(row)) for row, label in zip(odds, labels, strict=True)]
    found = rewards(state, Answer(logits, None, None), targeted=False)
    assert found.flatten().tolist() == pytest.approx(expected, rel=1e-9)
    aims = replace(state, target=torch.tensor([3, 0, 1]))
    expected = [math.log(odds[row][(3, 0, 1)[row // 4]] / sum(odds[row])) for row in range(12)]
    found = rewards(aims, Answer(logits, None, None), targeted=True)
    assert found.flatten().tolist() == pytest.approx(expected, rel=1e-9)


def test_a_model_as_sure_as_can_be_still_tells_patches_apart() -> None:
    """1 - p is 0 in any float there; the reward is not."""
    state = replace(_state(1), actions=torch.zeros(1, 3, ACTIONS, dtype=torch.int64))
    logits = torch.tensor([[900.0, 0, 0, 0], [800.0, 0, 0, 0], [1000.0, 0, 0, 0]])
    found = rewards(state, Answer(logits, None, None), targeted=False)[0]
    assert found.tolist() == pytest.approx([math.log(3) - 900, math.log(3) - 800, math.log(3) - 1000])
    assert remember(state, found[None]).best_reward.tolist() == pytest.approx([math.log(3) - 800])


# --- which class's textures


def test_an_example_faces_another_class_than_its_own_and_each_of_them_alike() -> None:
    state = _state(6000)
    counts = torch.zeros(4, 4, dtype=torch.int64)
    for label, page in zip(state.examples.labels.tolist(), state.page.tolist(), strict=True):
        counts[label, page] += 1
    assert counts.diagonal().tolist() == [0, 0, 0, 0]
    others = counts[~torch.eye(4, dtype=torch.bool)]  # 500 each
    assert 380 < int(others.min()) <= int(others.max()) < 620


def test_attacks_on_one_example_face_the_same_class() -> None:
    pages = [
        kind(**noise_folder(), rounds=1, queries=2).start(_clean(50), BUDGET, _draws(50)).page
        for kind in (TPA, RandomPatches)
    ]
    assert torch.equal(*pages)


# --- greedy


def _whiteness(images: Tensor) -> Tensor:
    """Class 1 wins when more than 26 of the 192 values are 1; every further one helps."""
    ones = (images == 1).flatten(1).sum(dim=1)
    return torch.stack([26.5 - ones, ones - 26.5], dim=1).float() / 10


def test_the_best_patch_is_fixed_and_the_next_is_searched_on_it() -> None:
    attack = RandomPatches(**noise_folder(), rounds=2, queries=30, patches=3)
    state = attack.start(_clean(4, classes=2), BUDGET, _draws(4))
    seen: list[Tensor] = []
    for _ in range(2):
        query = attack.ask(state)
        seen.append(query.render(slice(None)).reshape(4, 30, 3, 8, 8))
        state = attack.tell(state, Answer(_whiteness(seen[-1].flatten(0, 1)), None, None))
    images = torch.cat(seen, dim=1)
    rewarded = (images == 1).flatten(2).sum(dim=2)
    for slot in range(4):
        ones = rewarded[slot].tolist()
        label = int(state.examples.labels[slot])
        wanted = min(ones) if label == 1 else max(ones)
        assert torch.equal(state.canvas[slot], images[slot, ones.index(wanted)])  # the first of equals
    assert state.fixed.tolist() == [1, 1, 1, 1]
    assert attack.ask(state).patches.tolist() == [2] * 120  # type: ignore[union-attr]  # it pastes some
    assert attack.ask(state).step[:2].tolist() == [61, 62]


# --- what the driver measures


def _run(attack: Any, source: list[Example], model: Callable[[Tensor], Tensor], **settings: Any) -> list[Finished]:
    stream = drive([Stage(attack)], Classifier(model), source, budget=BUDGET, **settings)
    return sorted(stream, key=lambda finished: finished.index)


def test_outcomes_say_how_many_patches_and_queries_and_how_much_of_the_image() -> None:
    attack = RandomPatches(**noise_folder(), rounds=3, queries=20, patches=4)
    source = examples(random_images(12, low=0.1, high=0.9), [0] * 12)
    source[3] = replace(source[3], label=1)
    classifier = Classifier(_whiteness)
    budget = PatchArea(0.25, 4)
    finished = sorted(drive([Stage(attack)], classifier, source, budget=budget, slots=16), key=lambda each: each.index)
    shown = sum(each.queries or 0 for each in finished)
    assert classifier.passes.forward == 12 + shown + 11  # clean, asked, confirmed
    for each in finished:
        if each.index == 3:
            assert (each.queries, each.patches, each.area) == (None, None, None)  # wrong clean: it costs nothing
            continue
        assert each.image is not None
        changed = [
            [
                bool((each.image[:, row, column] != source[each.index].image[:, row, column]).any())
                for column in range(8)
            ]
            for row in range(8)
        ]
        assert each.area == float(f"{sum(map(sum, changed)) / 64:.3g}") <= 0.25
        assert each.patches in (3, 4)  # two patches have at most 24 values
        assert each.queries is not None
        assert 60 * (each.patches - 1) < each.fooled_at[0] <= each.queries <= 60 * each.patches
        assert each.queries % 20 == 0


def test_a_survivor_costs_all_its_queries() -> None:
    attack = RandomPatches(**noise_folder(), rounds=3, queries=5, patches=2)
    never = _run(
        attack, examples(random_images(3), [0] * 3), lambda images: torch.tensor([[1.0, 0]]).expand(len(images), 2)
    )
    assert [(each.fooled_at, each.queries, each.patches, each.area) for each in never] == [((), 30, None, None)] * 3
    assert attack.most_passes == (0, 30)
    assert attack.steps == 30


def test_slots_that_no_example_needs_ask_nothing() -> None:
    attack = GreyPatches(rounds=1, queries=20, patches=4)
    classifier = Classifier(lambda images: torch.tensor([[1.0, 0]]).expand(len(images), 2))
    list(drive([Stage(attack)], classifier, examples(random_images(19), [0] * 19), budget=BUDGET, slots=16))
    assert classifier.passes.forward == 19 + 19 * 80


def test_out_of_memory_in_the_middle_of_a_round_changes_nothing() -> None:
    attack = TPA(**noise_folder(), rounds=3, queries=20, patches=2, plateau=0)
    net = small_net(dtype=torch.float64)
    source = labelled_by(net, random_images(30))
    asked = 0

    def forgetful(images: Tensor) -> Tensor:
        nonlocal asked
        asked += len(images)
        if asked > 700 and len(images) > 16:
            raise RuntimeError("CUDA out of memory.")
        answer: Tensor = net(images.double())
        return answer

    events: list[str] = []
    finished = _run(attack, source, forgetful, slots=32, on_event=lambda kind, details: events.append(kind))
    assert events == ["slots halved"]
    assert finished == _run(attack, source, net, slots=32)
    assert 0 < sum(bool(each.fooled_at) for each in finished) < 30


@dataclass(frozen=True)
class Watched(TextureRounds):
    """Random search that notes how many slots ask at a time."""

    name = "watched"
    asked: list[int] = field(default_factory=list)

    @property
    def inner(self) -> RandomPatches:
        return RandomPatches(self.textures, self.textures_sha256, rounds=self.rounds, queries=self.queries, patches=1)

    def start(self, examples: Examples, budget: PatchArea, draws: RandomSource) -> PatchState:
        return self.inner.start(examples, budget, draws)

    def ask(self, state: PatchState) -> Query:
        self.asked.append(len(state.done))
        return self.inner.ask(state)

    def tell(self, state: PatchState, answer: Answer) -> PatchState:
        return self.inner.tell(state, answer)


@pytest.mark.parametrize(("rows", "slots"), [(20, 16), (64, 16), (800, 20), (8, 8)])
def test_few_slots_are_filled_where_each_asks_for_many_images(rows: int, slots: int) -> None:
    attack = Watched(**noise_folder(), rounds=2, queries=40)
    right = lambda images: torch.tensor([[1.0, 0]]).expand(len(images), 2)  # noqa: E731  # a model that never falls
    finished = _run(attack, examples(random_images(50), [0] * 50), right, slots=rows)
    assert [each.queries for each in finished] == [80] * 50
    assert max(attack.asked) == slots
    assert sum(attack.asked) == 2 * 50


@dataclass(frozen=True)
class Greedy:
    """Pastes larger patches than the driver's budget allows."""

    inner: RandomPatches
    name = "greedy"
    gradients = False
    works_in = (PatchArea,)
    most_passes = (0, 1)

    def start(self, examples: Examples, budget: PatchArea, draws: RandomSource) -> PatchState:
        return self.inner.start(examples, PatchArea(4 * budget.area, budget.patches), draws)

    def ask(self, state: PatchState) -> Query:
        return self.inner.ask(state)

    def tell(self, state: PatchState, answer: Answer) -> PatchState:
        return self.inner.tell(state, answer)


@pytest.mark.parametrize("queries", [1, 9, 70])
def test_patches_that_cover_too_much_are_an_error_whatever_the_attack_says(queries: int) -> None:
    """However many images share a clean one, or a part of those that the model sees at a time."""
    attack = Greedy(RandomPatches(**noise_folder(), rounds=1, queries=queries, patches=4))
    right = lambda images: torch.tensor([[1.0, 0]]).expand(len(images), 2)  # noqa: E731  # a model that never falls
    with pytest.raises(BudgetError, match=r"^greedy: `image` is \d+ outside its budget; expected at most 1e-06\."):
        _run(attack, examples(random_images(20), [0] * 20), right)


@dataclass(frozen=True)
class Scattering(Greedy):
    """Changes single pixels all over the image, no more of them than the area has."""

    name = "scattering"

    def ask(self, state: PatchState) -> Query:
        query = self.inner.ask(state)

        def render(part: slice) -> Tensor:
            images = state.examples.images[query.rows[part]].clone()
            images[:, :, [0, 0, 4, 7, 7], [0, 7, 4, 0, 7]] = 1.0
            return images

        return replace(query, render=render)


def test_changes_that_are_no_four_squares_are_an_error_whatever_their_area() -> None:
    """Five pixels of sixteen, too far apart for four squares of two pixels; measured where an image fools."""
    attack = Scattering(RandomPatches(**noise_folder(), rounds=1, queries=9, patches=4))
    source = examples(random_images(20, high=0.9), [0] * 20)
    falls = lambda images: torch.stack([0.5 - images[:, 0, 4, 4], images[:, 0, 4, 4] - 0.95], dim=1)  # noqa: E731  # to one of them
    with pytest.raises(BudgetError, match=r"^scattering: `image` is 1 outside its budget; expected at most 1e-06\."):
        _run(attack, source, falls)


def test_a_targeted_attack_counts_its_target_alone() -> None:
    attack = RandomPatches(**noise_folder(), rounds=2, queries=20, patches=4, targeted=True)
    net = small_net()
    source = labelled_by(net, random_images(40))
    pages = attack.start(
        Examples(
            torch.stack([each.image for each in source]),
            torch.tensor([each.label for each in source]),
            torch.zeros(40, 4),
        ),
        BUDGET,
        Draws.of(0, [each.id for each in source]),
    ).target.tolist()
    finished = _run(attack, source, net)
    fell = [each for each in finished if each.fooled_at]
    assert 0 < len(fell) < len(source)
    assert all(each.attacked_prediction == pages[each.index] != each.label for each in fell)
    untargeted = _run(replace(attack, targeted=False), source, net)
    assert {each.index for each in fell} < {each.index for each in untargeted if each.fooled_at}


def test_a_target_that_the_users_model_denies_does_not_count() -> None:
    """It takes the image for a third class: wrong, but not the target."""
    attack = RandomPatches(**noise_folder(), rounds=1, queries=5, patches=1, targeted=True)
    source = examples(random_images(5), [0] * 5)
    clean = torch.stack([each.image for each in source])

    def says(wrong: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def model(images: Tensor) -> Tensor:
            touched = ~(images[:, None] == clean).flatten(2).all(dim=2).any(dim=1)
            return torch.where(touched[:, None], wrong(images), torch.eye(4)[0])

        return model

    every = says(lambda images: torch.tensor([0.0, 2, 2, 2]) + torch.eye(4)[1 + torch.arange(len(images)) % 3])
    other = Classifier(says(lambda images: torch.tensor([0.0, -1, -1, -1]).expand(len(images), 4)))
    finished = _run(attack, source, every, confirm=other)
    assert all(not each.fooled_at and each.unconfirmed for each in finished)


# --- local search


def test_local_search_stays_near_the_best_patch_and_comes_nearer() -> None:
    attack = RandomPatches(**noise_folder(), rounds=5, queries=200, patches=2, local_rounds=4)
    assert (attack.name, replace(attack, local_rounds=0).name) == ("tpa-local", "tpa-random")
    size = torch.tensor([13, 13, 2, 5, 5])
    state = attack.start(_clean(2, 16), PatchArea(0.25, 4), _draws(2))
    assert spaces(state) == tuple(size.tolist())
    spread = []
    for turn in range(4):
        images = attack.ask(state).render(slice(None))
        state = attack.tell(state, Answer(_whiteness(images), None, None))
        away = (state.actions - state.best[:, None]).abs()
        reach = ((4 - turn) / 4 * size // 4).clamp(min=1)
        reach[2] = 1  # any of two textures
        assert bool((away <= reach).all())
        assert bool((away == reach).any(dim=1).any(dim=0).all())
        share = (away == 0).double().mean(dim=(0, 1))
        assert bool((share > 0.45).all())
        spread.append(int(away[:, :, 0].max()))
    assert spread == sorted(spread, reverse=True)
    assert spread[0] > spread[-1] == 1
    state = attack.tell(state, Answer(_whiteness(attack.ask(state).render(slice(None))), None, None))
    assert state.fixed.tolist() == [1, 1]  # the next patch is searched anywhere first
    assert int((state.actions - state.best[:, None]).abs()[:, :, 0].max()) > 6


def test_local_search_finds_what_random_search_does_not_with_as_many_queries() -> None:
    """Rewards grow towards one patch of 186,050."""
    found = {}
    for local in (0, 20):
        attack = RandomPatches(**noise_folder(), rounds=25, queries=40, patches=2, local_rounds=local)
        state = attack.start(_clean(16, 64), PatchArea(0.02, 4), _draws(16))
        goal = torch.tensor([40, 11, 1, 3, 2])
        for _ in range(24):
            logit = (state.actions - goal).abs().sum(dim=2).flatten().float()
            wanted = torch.nn.functional.one_hot(state.examples.labels.repeat_interleave(40), 4)
            state = attack.tell(state, Answer(logit[:, None] * wanted, None, None))
        found[local] = int((state.best == goal).all(dim=1).sum())
    assert found[0] <= 1
    assert found[20] >= 14


# --- grey


def test_grey_patches_are_grey_and_nothing_else_changes() -> None:
    attack = GreyPatches(rounds=1, queries=50, patches=4)
    state = attack.start(_clean(2), BUDGET, _draws(2))
    images, clean = attack.ask(state).render(slice(None)), state.examples.images.repeat_interleave(50, dim=0)
    changed = (images != clean).any(dim=1)
    assert changed.sum(dim=(1, 2)).tolist() == [4] * 100
    assert bool((images.permute(0, 2, 3, 1)[changed] == 0.5).all())


# --- what does not fit


@pytest.mark.parametrize(
    ("budget", "patches", "message"),
    [
        (PatchArea(0.25, 4), 5, "PatchArea: `patches` is 5; expected at most 4, those of the budget."),
        (
            PatchArea(0.01, 4),
            4,
            "PatchArea: `area` is 4 squares of 0 x 0 pixels in images of 8 x 8; expected squares that fit. "
            "Choose another area, or fewer patches.",
        ),
    ],
)
def test_patches_that_do_not_fit_the_budget_or_the_image_are_refused(
    budget: PatchArea, patches: int, message: str
) -> None:
    for attack in (
        TPA(**noise_folder(), patches=patches),
        RandomPatches(**noise_folder(), patches=patches),
        GreyPatches(patches=patches),
        WhiteBoxPatches(patches=patches),
    ):
        with pytest.raises(BudgetError) as caught:
            attack.start(_clean(2), budget, _draws(2))
        assert str(caught.value) == message


def test_textures_that_do_not_fit_are_refused(tmp_path: Any) -> None:
    with pytest.raises(DataError, match=r"^textures: `size` is 8; expected at least 11, the side of a patch\.$"):
        TPA(**noise_folder(), patches=1).start(_clean(2, 22), PatchArea(0.25, 1), _draws(2))
    lonely = TextureDictionary((7,), noise_textures(classes=1).textures)
    write_textures(lonely, tmp_path / "lonely")
    named: dict[str, Any] = {"textures": str(tmp_path / "lonely"), "textures_sha256": lonely.sha256}
    with pytest.raises(DataError) as caught:
        TPA(**named).start(_clean(2), BUDGET, _draws(2))
    expected = "`classes` is [7]; expected at least two classes, so that every example can face another than its own."
    assert str(caught.value) == f"{named['textures']}: {expected}"
    with pytest.raises(DataError) as caught:
        TPA(**noise_folder(), targeted=True).start(_clean(2, classes=3), BUDGET, _draws(2))
    expected = "`classes` is [0, 1, 2, 3]; expected classes below 3, which the model has logits for."
    assert str(caught.value) == f"{noise_folder()['textures']}: {expected}"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TPA("mini", "", rounds=0), "TPA: `rounds` is 0; expected at least 1."),
        (lambda: TPA("mini", "", queries=0), "TPA: `queries` is 0; expected at least 1."),
        (lambda: TPA("mini", "", learning_rate=0), "TPA: `learning_rate` is 0; expected more than 0."),
        (lambda: TPA("mini", "", plateau=-1), "TPA: `plateau` is -1; expected at least 0."),
        (lambda: RandomPatches("mini", "", patches=0), "RandomPatches: `patches` is 0; expected at least 1."),
        (
            lambda: RandomPatches("mini", "", rounds=5, local_rounds=5),
            "RandomPatches: `local_rounds` is 5; expected from 0 to 4, so that a round of random search comes first.",
        ),
        (lambda: WhiteBoxPatches(patches=0), "WhiteBoxPatches: `patches` is 0; expected at least 1."),
        (lambda: WhiteBoxPatches(positions=0), "WhiteBoxPatches: `positions` is 0; expected at least 1."),
        (lambda: WhiteBoxPatches(rounds=0), "WhiteBoxPatches: `rounds` is 0; expected at least 1."),
        (lambda: WhiteBoxPatches(step_size=0), "WhiteBoxPatches: `step_size` is 0; expected more than 0."),
        (lambda: GreyPatches(rounds=0), "GreyPatches: `rounds` is 0; expected at least 1."),
        (lambda: GreyPatches(level=2), "GreyPatches: `level` is 2; expected from 0 to 1."),
    ],
)
def test_settings_that_make_no_sense_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        make()
    assert str(caught.value) == message
