import importlib.util

import pytest
import torch

from robench.bench.photographs import fitted, photograph_files, photographs
from robench.errors import DataError, ModelError


def test_the_photographs_have_classes_in_their_names() -> None:
    files = photograph_files()
    assert len(files) == 20
    assert len({label for _, label in files}) == 19
    images, labels = photographs()
    assert images.shape == (20, 3, 224, 224)
    assert float(images.min()) >= 0
    assert float(images.max()) <= 1
    assert labels[:2].tolist() == [243, 559]


@pytest.mark.parametrize("name", ["resnet18", "deit_tiny_patch16_224"])
def test_a_fitted_network_tells_the_photographs_apart(name: str) -> None:
    images, labels = photographs()
    before = torch.random.get_rng_state()
    model = fitted(name, images, labels)
    with torch.no_grad():
        assert torch.equal(model(images).argmax(dim=1), labels)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_network_without_a_linear_classifier_is_refused() -> None:
    images, labels = photographs()
    message = r"^levit_128s: `classifier` is tuple; expected a network whose classifier is a linear layer\.$"
    with pytest.raises(ModelError, match=message):
        fitted("levit_128s", images, labels)


def test_missing_photographs_say_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    message = r"`foolbox` is not installed; expected its 20 photographs\. Install it: `pip install foolbox`\.$"
    with pytest.raises(DataError, match=message):
        photograph_files()
