from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robench.arrays import batch_of, in_cache, join, pad_rows, place, put, state_digest, take


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


def test_place_gives_what_put_gives_in_the_memory_that_is_there() -> None:
    record, newcomer, rows = _record([1, 2, 3]), _record([9]), torch.tensor([1])
    expected, memory = put(record, rows, newcomer), record.numbers.data_ptr()
    placed = place(record, rows, newcomer)
    assert torch.equal(placed.inner.values, expected.inner.values)
    assert torch.equal(placed.numbers, expected.numbers)
    assert placed.numbers.data_ptr() == memory


def test_place_copies_where_writing_would_show_elsewhere() -> None:
    shared, rows = torch.tensor([1, 2, 3]), torch.tensor([1])
    newcomer = Outer(Inner(torch.tensor([8])), torch.tensor([9]), "kept")
    placed = place(Outer(Inner(shared), shared, "kept"), rows, newcomer)
    assert placed.inner.values.tolist() == [1, 8, 3]
    assert placed.numbers.tolist() == [1, 9, 3]
    one_row = torch.tensor([5])
    placed = place(Outer(Inner(one_row.expand(3)), torch.tensor([1, 2, 3]), "kept"), rows, newcomer)
    assert placed.inner.values.tolist() == [5, 8, 5]
    assert one_row.tolist() == [5]
    with torch.inference_mode():
        sealed = torch.tensor([1, 2, 3])
    placed = place(Outer(Inner(sealed), torch.tensor([1, 2, 3]), "kept"), rows, newcomer)
    assert placed.inner.values.tolist() == [1, 8, 3]
    assert sealed.tolist() == [1, 2, 3]


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


def test_parts_for_the_cache_are_all_rows_in_order_and_none_is_small() -> None:
    for rows in (0, 1, 15, 16, 31, 32, 47, 128, 130):
        batch = torch.arange(rows)
        parts = list(in_cache(batch, -batch))
        assert torch.equal(torch.cat([part for part, _ in parts]), batch)
        assert all(torch.equal(part, -other) for part, other in parts)
        assert all(16 <= len(part) < 32 for part, _ in parts) or (len(parts) == 1 and rows < 16)
    assert len(list(in_cache(torch.zeros(128, 2, device="meta")))) == 1  # no cache to fit into


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
