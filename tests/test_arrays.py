from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robench.arrays import join, pad_rows, put, state_digest, take


@dataclass(frozen=True)
class Inner:
    values: Tensor


@dataclass(frozen=True)
class Outer:
    inner: Inner
    numbers: Tensor
    note: str


def _record(values: list[int]) -> Outer:
    return Outer(Inner(torch.tensor(values)), torch.tensor(values) * 10, "kept")


def test_take_put_and_join_reach_nested_tensors_and_keep_the_rest() -> None:
    record = _record([1, 2, 3])
    taken = take(record, torch.tensor([2, 0]))
    assert taken.inner.values.tolist() == [3, 1]
    assert taken.numbers.tolist() == [30, 10]
    assert taken.note == "kept"
    filled = put(record, torch.tensor([1]), _record([9]))
    assert filled.inner.values.tolist() == [1, 9, 3]
    assert record.inner.values.tolist() == [1, 2, 3]
    assert join([record, taken]).numbers.tolist() == [10, 20, 30, 30, 10]


def test_pad_rows_repeats_the_last_row() -> None:
    images = torch.arange(3.0).reshape(3, 1)
    assert pad_rows(images, 5)[:, 0].tolist() == [0, 1, 2, 2, 2]
    assert pad_rows(images, 2) is images


def test_state_digest_sees_values_names_types_and_shapes_but_not_order() -> None:
    a, b = torch.zeros(2), torch.ones(3)
    base = state_digest({"a": a, "b": b})
    assert base == state_digest({"b": b, "a": a})
    others = [
        {"a": a, "c": b},
        {"a": a, "b": b.half()},
        {"a": a, "b": b.reshape(3, 1)},
        {"a": a, "b": b.clone().index_fill_(0, torch.tensor([1]), 2.0)},
    ]
    assert len({base, *(state_digest(other) for other in others)}) == 5


def test_state_digest_takes_scalars_and_a_modules_buffers() -> None:
    assert state_digest(nn.BatchNorm2d(3).state_dict()) == state_digest(nn.BatchNorm2d(3).state_dict())
