"""The agent of TPA: against policies trained one at a time, and on a model that only one patch can fool."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robench.attacks.drive import Finished, Stage, drive
from robench.attacks.interface import Answer, Examples
from robench.attacks.patch_search import RandomPatches
from robench.attacks.policy import fresh, learn, parts, sample
from robench.attacks.tpa import TPA, Agent
from robench.budgets import PatchArea
from robench.classifier import Classifier
from robench.data.textures import TextureDictionary, write_textures
from robench.randomness import Draws
from tests.fakes import examples, noise_folder, random_images

SPACES = (11, 7, 3, 5, 4)


class Alone(nn.Module):
    """One policy out of torch's own parts, in float64, written down from its description."""

    def __init__(self, weights: Tensor, opening: Tensor, spaces: tuple[int, ...] = SPACES) -> None:
        super().__init__()
        given = parts(weights[None], spaces)
        self.opening = opening
        self.cell = nn.LSTMCell(30, 30, dtype=torch.float64)
        self.heads = nn.ModuleList(nn.Linear(30, space, dtype=torch.float64) for space in spaces)
        self.embeddings = nn.ModuleList(nn.Embedding(space, 30, dtype=torch.float64) for space in spaces[:-1])
        names = ["input", "hidden", "input bias", "hidden bias"]
        names += [f"{part} {number}" for number in range(5) for part in ("head", "head bias")]
        names += [f"embedding {number}" for number in range(4)]
        with torch.no_grad():
            for name, parameter in zip(names, self.parameters(), strict=True):
                parameter.copy_(given[name][0])

    def distributions(self, actions: Tensor) -> list[Tensor]:
        """Probabilities of each number, given those before it in `actions`, each of shape (B, values)."""
        seen = self.opening.expand(len(actions), 30)
        hidden = cell = torch.zeros(len(actions), 30, dtype=torch.float64)
        found = []
        for number, head in enumerate(self.heads):
            hidden, cell = self.cell(seen, (hidden, cell))
            found.append(head(hidden).softmax(dim=1))
            if number < 4:
                seen = self.embeddings[number](actions[:, number])
        return found


def test_stacked_policies_are_policies_trained_one_at_a_time() -> None:
    """Five rounds of drawing, rewards, REINFORCE and Adam; to 1e-9 in float64, and the same patches."""
    slots, queries, rate = 4, 40, 0.03
    draws = Draws.of(3, ["a", "b", "c", "d"])
    stacked = fresh(draws, SPACES, step=torch.tensor([0, 1, 2, 0]))
    alone = [Alone(stacked.weights[slot], stacked.opening[slot]) for slot in range(slots)]
    optimizers = [torch.optim.Adam(policy.parameters(), lr=rate) for policy in alone]
    for turn in range(5):
        uniforms = draws.uniform("test", (queries, 5), step=turn)
        actions = sample(stacked, uniforms, SPACES)
        reward = -torch.stack([(actions[slot, :, slot % 5] - 2.0 + turn).double() ** 2 for slot in range(slots)])
        stacked = learn(stacked, actions, reward, learning_rate=rate, spaces=SPACES)
        for slot, (policy, optimizer) in enumerate(zip(alone, optimizers, strict=True)):
            chances = policy.distributions(actions[slot])
            for number, chance in enumerate(chances):
                reached = chance.detach().cumsum(dim=1) > uniforms[slot, :, number].double()[:, None]
                assert torch.equal(reached.int().argmax(dim=1), actions[slot, :, number])
            likely = sum(
                chance.gather(1, actions[slot, :, number, None]).log() for number, chance in enumerate(chances)
            )
            assert isinstance(likely, Tensor)
            advantage = (reward[slot] - reward[slot].mean()) / (reward[slot].std() + torch.finfo(torch.float32).eps)
            optimizer.zero_grad()
            (-(likely[:, 0] * advantage).mean()).backward()  # type: ignore[no-untyped-call]  # torch's own
            optimizer.step()
            flat = torch.cat([parameter.detach().flatten() for parameter in policy.parameters()])
            mine = [part[slot].flatten() for part in parts(stacked.weights, SPACES).values()]
            assert float((torch.cat(mine) - flat).abs().max()) < 1e-9
    assert stacked.updates.tolist() == [5] * slots
    assert float((stacked.weights - fresh(draws, SPACES, step=torch.tensor([0, 1, 2, 0])).weights).abs().max()) > 0.1


def test_patches_are_drawn_as_often_as_their_policy_says() -> None:
    spaces = (2, 3, 2, 2, 2)
    policies = fresh(Draws.of(0, ["a"]), spaces, step=torch.tensor([0]))
    every = torch.cartesian_prod(*(torch.arange(space) for space in spaces))
    each = Alone(policies.weights[0], policies.opening[0], spaces).distributions(every)
    chances = torch.stack([chance.gather(1, every[:, [at]])[:, 0] for at, chance in enumerate(each)]).prod(dim=0)
    drawn = sample(policies, Draws.of(1, ["a"]).uniform("s", (20_000, 5)), spaces)[0]
    weights = torch.tensor([24, 8, 4, 2, 1])
    counts = torch.bincount((drawn * weights).sum(dim=1), minlength=48).double()
    expected = 20_000 * torch.zeros(48, dtype=torch.float64).index_copy(
        0, (every * weights).sum(dim=1), chances.detach()
    )
    assert float(((counts - expected) ** 2 / expected).sum()) < 95  # chi-square, 47 degrees of freedom: p = 4e-5


def test_a_fresh_policy_has_the_weights_that_torch_would_draw() -> None:
    policies = fresh(Draws.of(0, [f"{index}" for index in range(20)]), SPACES, step=torch.zeros(20, dtype=torch.int64))
    for name, part in parts(policies.weights, SPACES).items():
        if name.startswith("embedding"):
            assert float(part.std()) == pytest.approx(1, abs=0.06)
        else:
            assert 0.9 / 30**0.5 < float(part.max()) <= 1 / 30**0.5
            assert float(part.min()) == pytest.approx(-(1 / 30**0.5), abs=0.02)


def test_rewards_that_are_all_alike_teach_nothing() -> None:
    policies = fresh(Draws.of(0, ["a"]), SPACES, step=torch.tensor([0]))
    actions = sample(policies, Draws.of(0, ["a"]).uniform("s", (9, 5)), SPACES)
    after = learn(policies, actions, torch.full((1, 9), -4.0, dtype=torch.float64), learning_rate=0.03, spaces=SPACES)
    assert torch.equal(after.weights, policies.weights)


# --- rounds


def _tell(attack: TPA, state: Any, logit: float) -> Any:
    """Answer every query with the same logits."""
    logits = torch.tensor([logit, 0.0, 0.0, 0.0]).expand(state.actions.shape[:2].numel(), 4)
    return attack.tell(state, Answer(logits, None, None))


def _start(attack: TPA) -> Any:
    clean = Examples(random_images(1), torch.tensor([0]), torch.zeros(1, 4))
    return attack.start(clean, PatchArea(0.25, 4), Draws.of(0, ["a"]))


def test_a_search_ends_when_the_mean_reward_no_longer_bends() -> None:
    attack = TPA(**noise_folder(), rounds=9, queries=4, patches=2)
    state = _start(attack)
    for logit in (30.0, 20.0, 15.0):  # bends
        state = _tell(attack, state, logit)
    assert (state.fixed.item(), state.round.item()) == (0, 3)
    for logit in (14.0, 13.0):  # a straight line: it bends by nothing
        assert state.fixed.item() == 0
        state = _tell(attack, state, logit)
    assert (state.fixed.item(), state.round.item(), state.asked.item()) == (1, 0, 20)
    for _ in range(2):  # three rounds are the least
        assert not bool(state.done)
        state = _tell(attack, state, 5.0)
    assert bool(_tell(attack, state, 5.0).done)
    patient = replace(attack, plateau=0)
    state = _start(patient)
    for _ in range(8):
        state = _tell(patient, state, 5.0)
    assert (state.fixed.item(), state.round.item()) == (0, 8)
    assert _tell(patient, state, 5.0).fixed.item() == 1


def test_every_patch_has_a_fresh_policy_of_its_own() -> None:
    attack = TPA(**noise_folder(), rounds=2, queries=4, patches=3)
    state = _start(attack)
    first: Agent = state.agent
    for logit in (3.0, 1.0):
        state = _tell(attack, state, logit)
    assert state.agent.policies.updates.tolist() == [0]
    assert not torch.equal(state.agent.policies.weights, first.policies.weights)
    assert torch.equal(
        state.agent.policies.weights, fresh(Draws.of(0, ["a"]), (7, 7, 2, 7, 7), step=torch.tensor([1])).weights
    )


def test_a_round_that_fooled_teaches_its_own_slot_nothing() -> None:
    attack = TPA(**noise_folder(), rounds=9, queries=6, patches=2, plateau=0)
    clean = Examples(random_images(3), torch.tensor([0, 1, 2]), torch.zeros(3, 4))
    state = attack.start(clean, PatchArea(0.25, 4), Draws.of(0, ["a", "b", "c"]))
    logits = 3 * torch.nn.functional.one_hot(clean.labels.repeat_interleave(6), 4).float()
    logits += torch.rand(18, 4, generator=torch.Generator().manual_seed(0))
    logits[8] = torch.tensor([9.0, 0, 0, 0])  # the third query of the second slot
    after = attack.tell(state, Answer(logits, None, None)).agent
    assert after.policies.updates.tolist() == [1, 0, 1]
    assert torch.equal(after.policies.weights[1], state.agent.policies.weights[1])
    assert not torch.equal(after.policies.weights[0], state.agent.policies.weights[0])
    logits[8] = torch.tensor([0.0, 3, 0, 0])
    calm = attack.tell(state, Answer(logits, None, None)).agent
    assert torch.equal(calm.policies.weights[[0, 2]], after.policies.weights[[0, 2]])
    assert calm.policies.updates.tolist() == [1, 1, 1]


# --- a model that falls to one texture at one place


class OnePlace:
    """Right with probability 0.999, unless one place of each image is covered by one texture.

    The place is a square as large as a patch; from four fifths of it the model falls, and what lies below makes
    it less sure. Which place and which texture it is stands in the blue of the clean image, which no patch changes
    for the most part. Textures are uniform: texture k has the red value (k + 1) / 10.
    """

    def __init__(self, places: Tensor, side: int) -> None:
        self.places, self.side = places, side

    def __call__(self, images: Tensor) -> Tensor:
        index = (images[:, 2].flatten(1).median(dim=1).values * 1000).round().long() - 1
        row, column, texture = self.places[index].unbind(dim=1)
        span = torch.arange(self.side)
        red = images[
            torch.arange(len(images))[:, None, None],
            0,
            (row[:, None] + span)[:, :, None],
            (column[:, None] + span)[:, None],
        ]
        covered = ((red - (texture[:, None, None] + 1) / 10).abs() < 1e-3).double().mean(dim=(1, 2))
        odds = torch.log(torch.tensor(999.0)) * (1 - covered / 0.8)
        return torch.stack([odds, torch.zeros(len(images))], dim=1).float()


def _hunt(kind: Any, count: int, folder: Any, **settings: Any) -> list[Finished]:
    """Attack so many random placements with the queries of `mini-tpa`, four squares of 10 % of the area."""
    shades = torch.tensor([(texture + 1) / 10 for texture in range(8)])[None, :, None, None, None]
    textures = shades.expand(2, 8, 3, 16, 16).contiguous()
    dictionary = TextureDictionary((0, 1), textures)
    write_textures(dictionary, folder)
    drawn = Draws.of(0, [f"place {index}" for index in range(count)]).uniform("places", (3,))
    places = (drawn * torch.tensor([55, 55, 8])).long()
    images = torch.zeros(count, 3, 64, 64)
    images[:, 2] = (torch.arange(count)[:, None, None] + 1) / 1000
    attack = kind(str(folder), dictionary.sha256, rounds=25, queries=100, **settings)
    model = Classifier(OnePlace(places, 10))
    source = examples(images, [0] * count)
    return list(drive([Stage(attack)], model, source, budget=PatchArea(0.1, 4), slots=count))


def _report(name: str, finished: list[Finished]) -> int:
    fell = [each.fooled_at[0] for each in finished if each.fooled_at]
    print(f"{name}: {len(fell)} of {len(finished)}, after {sum(fell) / max(len(fell), 1):.0f} queries on average")
    return len(fell)


def test_the_agent_finds_the_one_patch_that_fools(tmp_path: Any) -> None:
    assert _report("tpa", _hunt(TPA, 12, tmp_path)) >= 11


@pytest.mark.slow
def test_the_agent_finds_it_for_95_of_100_places(tmp_path: Any) -> None:
    """Random search stands beside it, with as many queries; see docs/decisions/0010."""
    for patches in (4, 1):
        found = _report(f"tpa, {patches} patches", _hunt(TPA, 100, tmp_path, patches=patches))
        by_chance = _report(f"random search, {patches} patches", _hunt(RandomPatches, 100, tmp_path, patches=patches))
        assert found >= (95 if patches == 4 else by_chance + 15)
