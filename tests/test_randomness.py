import hashlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from robench.randomness import Draws, philox

# Random123, tests/kat_vectors, the rows of "philox4x32 10": counter, key, words.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def _tensors(words: str) -> list[torch.Tensor]:
    return [torch.tensor(int(word, 16)) for word in words.split()]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_gives_the_published_words(counter: str, key: str, expected: str) -> None:
    words = philox(_tensors(counter), _tensors(key))
    assert " ".join(f"{int(word):08x}" for word in words) == expected


def test_draws_are_pinned() -> None:
    """If this changes, every released protocol needs a new version."""
    draws = Draws.of(0, ["mini-attack-000000", "ILSVRC2012_val_00000293"])
    content = draws.bits("pgd/0", 10, step=3).numpy().tobytes() + draws.uniform("pgd/0", (3, 4)).numpy().tobytes()
    assert hashlib.sha256(content).hexdigest() == "6e3a0cc60ec717d1ddc39f9263a9f8b6675321853195e22fa3065fa36161678f"


def test_words_follow_from_key_stream_and_step_alone() -> None:
    """The layout of counter and key, rebuilt by hand."""
    key = hashlib.sha256(b"robench.draws/1|7|a").digest()
    stream = hashlib.sha256(b"robench.stream/1|square/0").digest()
    words = [int.from_bytes(part, "big") for part in (key[:4], key[4:8], stream[:4], stream[4:8])]
    counter = [torch.tensor(value) for value in (1, 5, words[2], words[3])]
    expected = [int(word) for word in philox(counter, [torch.tensor(words[0]), torch.tensor(words[1])])]
    assert Draws.of(7, ["a"]).bits("square/0", 8, step=5)[0, 4:].tolist() == expected


@given(
    ids=st.lists(st.text(min_size=1, max_size=8), min_size=2, max_size=5, unique=True),
    seed=st.integers(0, 2**31),
    count=st.integers(1, 9),
    step=st.integers(0, 2**31 - 1),
)
@settings(max_examples=30, deadline=None)
def test_an_example_draws_the_same_in_any_company(ids: list[str], seed: int, count: int, step: int) -> None:
    together = Draws.of(seed, ids).bits("s", count, step=step)
    for position, example in enumerate(ids):
        assert torch.equal(Draws.of(seed, [example]).bits("s", count, step=step)[0], together[position])
    backwards = Draws.of(seed, ids[::-1]).bits("s", count, step=step)
    assert torch.equal(backwards.flip(0), together)


def test_each_example_may_be_at_its_own_step() -> None:
    draws = Draws.of(0, ["a", "b", "c"])
    mixed = draws.uniform("s", (5,), step=torch.tensor([2, 0, 9]))
    for position, step in enumerate([2, 0, 9]):
        assert torch.equal(mixed[position], draws.uniform("s", (5,), step=step)[position])


def test_seed_id_stream_and_step_all_matter() -> None:
    base = Draws.of(0, ["a"]).bits("s", 4)
    others = [
        Draws.of(1, ["a"]).bits("s", 4),
        Draws.of(0, ["b"]).bits("s", 4),
        Draws.of(0, ["a"]).bits("t", 4),
        Draws.of(0, ["a"]).bits("s", 4, step=1),
    ]
    assert not any(torch.equal(base, other) for other in others)


def test_uniforms_are_uniform_and_normals_normal() -> None:
    draws = Draws.of(0, [f"e{index}" for index in range(40)])
    uniforms = draws.uniform("s", (1000,)).flatten().double().numpy()
    assert uniforms.min() >= 0
    assert uniforms.max() < 1
    assert stats.kstest(uniforms, "uniform").pvalue > 0.01
    assert stats.kstest(draws.normal("s", (999,)).flatten().numpy(), "norm").pvalue > 0.01


def test_the_callers_generator_is_untouched() -> None:
    before = torch.get_rng_state()
    draws = Draws.of(0, ["a"])
    draws.uniform("s", (3, 4, 4))
    draws.normal("s", (3, 4, 4))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_uniforms_are_the_same_bits_on_a_gpu() -> None:
    ids = [f"e{index}" for index in range(64)]
    here, there = Draws.of(0, ids).uniform("s", (3, 32, 32)), Draws.of(0, ids, "cuda").uniform("s", (3, 32, 32))
    assert torch.equal(here, there.cpu())
