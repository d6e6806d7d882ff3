import math

import torch

from robench.losses import cross_entropy, margin


def test_cross_entropy_is_the_negative_log_probability_of_the_label() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)], [math.log(4.0), 0.0]])
    expected = [-math.log(1 / 4), -math.log(4 / 5)]
    assert torch.allclose(cross_entropy(logits, torch.tensor([0, 0])), torch.tensor(expected))


def test_margin_is_positive_exactly_when_the_label_wins() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0], [3.0, 1.0, 2.0], [5.0, 5.0, 0.0]])
    assert margin(logits, torch.tensor([0, 2, 1])).tolist() == [1.0, -1.0, 0.0]
