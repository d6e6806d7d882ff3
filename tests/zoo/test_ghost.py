import pytest
import timm
import torch
from torch import nn

from robench.errors import ModelError
from robench.zoo.ghost import GhostBatchNorm2d, with_ghost_batch_norm


def _features(count: int = 12) -> torch.Tensor:
    return torch.randn(count, 5, 3, 3, generator=torch.Generator().manual_seed(0)) * 3 + 1


def test_every_group_is_normalised_by_itself() -> None:
    norm = GhostBatchNorm2d(5, ghost_size=4)
    with torch.no_grad():
        norm.weight.copy_(torch.arange(1.0, 6.0))
        norm.bias.fill_(0.5)
    features = _features()
    out = norm(features)
    for start in range(0, 12, 4):
        group = features[start : start + 4]
        mean, variance = group.mean((0, 2, 3), keepdim=True), group.var((0, 2, 3), keepdim=True, unbiased=False)
        expected = (group - mean) / (variance + 1e-5).sqrt() * torch.arange(1.0, 6.0).reshape(5, 1, 1) + 0.5
        assert torch.allclose(out[start : start + 4], expected, atol=1e-5)


def test_the_running_statistics_move_once_for_each_group() -> None:
    norm, features = GhostBatchNorm2d(5, ghost_size=6, momentum=0.25), _features()
    norm(features)
    mean = torch.zeros(5)
    for group in torch.split(features, 6):
        mean = 0.75 * mean + 0.25 * group.mean((0, 2, 3))
    assert torch.allclose(norm.running_mean, mean)  # type: ignore[arg-type]  # it tracks them
    assert int(norm.num_batches_tracked) == 2  # type: ignore[arg-type]


def test_in_eval_mode_it_is_plain_batch_norm() -> None:
    norm, plain = GhostBatchNorm2d(5, ghost_size=4), nn.BatchNorm2d(5)
    norm(_features())
    plain.load_state_dict(norm.state_dict())
    assert torch.equal(norm.eval()(_features(7)), plain.eval()(_features(7)))


def test_a_batch_that_does_not_divide_is_refused() -> None:
    message = r"^ghost batch-norm: `batch` is 10; expected a multiple of `ghost_size`, 4\.$"
    with pytest.raises(ModelError, match=message):
        GhostBatchNorm2d(5, ghost_size=4)(_features(10))


def test_a_network_gets_it_everywhere_and_keeps_its_weights() -> None:
    plain = timm.create_model("resnet18").eval()
    state = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    parameters = list(plain.parameters())
    ghost = with_ghost_batch_norm(plain, 4)
    norms = [part for part in ghost.modules() if isinstance(part, nn.BatchNorm2d)]
    assert len(norms) == 20
    assert all(isinstance(part, GhostBatchNorm2d) and part.ghost_size == 4 and not part.training for part in norms)
    assert all(torch.equal(tensor, state[name]) for name, tensor in ghost.state_dict().items())
    assert [id(parameter) for parameter in ghost.parameters()] == [id(parameter) for parameter in parameters]
    timm.create_model("resnet18").load_state_dict(ghost.state_dict())


def test_a_network_on_the_meta_device_stays_there() -> None:
    with torch.device("meta"):
        ghost = with_ghost_batch_norm(timm.create_model("resnet18"), 4)
    assert {tensor.device.type for tensor in ghost.state_dict().values()} == {"meta"}


def test_a_norm_that_does_more_is_refused() -> None:
    message = r"^ghost batch-norm: `network` is `BatchNormAct2d` at `bn1`; expected plain `BatchNorm2d` alone\.$"
    with torch.device("meta"), pytest.raises(ModelError, match=message):
        with_ghost_batch_norm(timm.create_model("mobilenetv3_small_050"), 4)
