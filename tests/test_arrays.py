from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robench.arrays import batch_of, join, pad_rows, put, state_digest, take


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


def test_a_batch_of_bytes_is_what_torch_makes_of_them() -> None:
    images = list(torch.arange(256, dtype=torch.uint8).reshape(4, 1, 8, 8).expand(4, 3, 8, 8))
    expected = torch.stack(images).to(torch.float32) / 255
    assert torch.equal(batch_of(images, torch.device("cpu")), expected)
    assert torch.equal(batch_of(list(expected), torch.device("cpu")), expected)


def test_a_batch_takes_the_memory_of_the_last_one_where_that_is_enough() -> None:
    images = list(torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)))
    expected = torch.stack(images).to(torch.float32) / 255
    last = torch.full((4, 3, 8, 8), -1.0)
    batch = batch_of(images[:3], torch.device("cpu"), last=last)
    assert torch.equal(batch, expected[:3])
    assert batch.data_ptr() == last.data_ptr()
    for other in (torch.zeros(3, 3, 8, 8), torch.zeros(4, 3, 9, 8)):
        assert torch.equal(batch_of(images, torch.device("cpu"), last=other), expected)
        assert not other.any()


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
