from robench.caveats import caveats_of
from robench.outcome import Outcome
from robench.registry import shipped


def _outcomes(total: int, by_square: int) -> list[Outcome]:
    stages = ["square"] * by_square + ["apgd-ce"] * 10 + [""] * (total - by_square - 10)
    return [
        Outcome(f"{index}", 0, 0, int(bool(stage)), 1.0, -1.0, (1,) if stage else (), stage)
        for index, stage in enumerate(stages)
    ]


def test_square_that_breaks_more_than_a_fifth_of_a_point_is_remarkable() -> None:
    protocol = shipped()["autoattack-linf@1"]
    assert caveats_of(protocol, _outcomes(1000, 2)) == []
    (caveat,) = caveats_of(protocol, _outcomes(1000, 3))
    assert caveat.startswith("Square, which sees no gradients, broke 3 of 1000 examples")


def test_square_alone_is_no_sign_of_anything() -> None:
    assert caveats_of(shipped()["square-linf@1"], _outcomes(100, 50)) == []
    assert caveats_of(shipped()["pgd-linf@1"], _outcomes(100, 0)) == []
