from itertools import product

import numpy as np
import numpy.typing as npt
import pytest
import torch

from robench.randomness import Draws
from robench.synthesis.clusters import cluster


def _draws(name: str = "points") -> Draws:
    return Draws.of(0, [name])


def _inertia(points: npt.NDArray[np.float64], members: tuple[int, ...]) -> float:
    total = 0.0
    for label in set(members):
        group = points[[index for index, each in enumerate(members) if each == label]]
        total += float(((group - group.mean(axis=0)) ** 2).sum())
    return total


@pytest.mark.parametrize("seed", range(8))
def test_it_finds_the_best_of_all_partitions(seed: int) -> None:
    """Seven points in three clusters have 3^7 partitions, which are all tried."""
    points = np.random.default_rng(seed).normal(size=(7, 4))
    best = min(_inertia(points, members) for members in product(range(3), repeat=7))
    centres, sizes = cluster(torch.from_numpy(points), 3, _draws())
    distances = ((points[:, None] - centres.numpy()[None]) ** 2).sum(axis=2)
    assert abs(distances.min(axis=1).sum() - best) < 1e-9
    assert sizes.tolist() == sorted(np.bincount(distances.argmin(axis=1), minlength=3).tolist(), reverse=True)


def test_centres_are_the_means_of_the_groups_the_largest_first() -> None:
    generator = np.random.default_rng(1)
    middles = np.array([[0.0, 0.0, 9.0], [50.0, 0.0, 9.0], [0.0, 70.0, 9.0]])
    counts = (5, 30, 12)
    groups = [middle + generator.normal(size=(count, 3)) for middle, count in zip(middles, counts, strict=True)]
    points = torch.from_numpy(np.concatenate(groups)).float()
    centres, sizes = cluster(points, 3, _draws())
    assert sizes.tolist() == [30, 12, 5]
    assert centres.dtype == torch.float32
    for centre, group in zip(centres, (groups[1], groups[2], groups[0]), strict=True):
        assert np.abs(centre.numpy() - group.mean(axis=0)).max() < 1e-4


def test_far_from_the_origin_nothing_is_lost() -> None:
    points = torch.tensor([[0.0], [1.0], [10.0], [11.0]]) + 1e6
    assert sorted(cluster(points, 2, _draws())[0][:, 0].tolist()) == [1e6 + 0.5, 1e6 + 10.5]


def test_as_many_clusters_as_points_are_the_points() -> None:
    points = torch.rand(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    centres, sizes = cluster(points, 5, _draws())
    assert sizes.tolist() == [1] * 5
    assert torch.allclose(centres[centres[:, 0].argsort()], points[points[:, 0].argsort()])


def test_points_that_coincide_leave_clusters_empty_and_numbers_finite() -> None:
    points = torch.tensor([[1.0, 2.0]] * 4 + [[3.0, 4.0]] * 2)
    centres, sizes = cluster(points, 3, _draws())
    assert sizes.tolist() == [4, 2, 0]
    assert centres[:2].tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert bool(torch.isfinite(centres).all())


def test_the_same_draws_give_the_same_clusters() -> None:
    points = torch.rand(40, 6, generator=torch.Generator().manual_seed(0))
    first, again = cluster(points, 7, _draws()), cluster(points, 7, _draws())
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
