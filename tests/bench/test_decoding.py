"""The command that sets an evaluation beside a bare loader, on a handful of images."""

import json
import os
from types import ModuleType

import pytest

from tests.fakes import measuring_script


@pytest.fixture(scope="module")
def decoding() -> ModuleType:
    return measuring_script("decoding")


@pytest.mark.parametrize(("more", "protocol", "images"), [([], "decoding", 16), (["--cells"], "imagenet-c", 75)])
def test_it_prints_one_line_and_one_object_and_says_when_the_machine_is_busy(
    more: list[str],
    protocol: str,
    images: int,
    decoding: ModuleType,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (9.0, 9.0, 9.0))
    decoding.main(["--count", "16", "--workers", "0", "--repeats", "1", *more])
    stdout, stderr = capsys.readouterr()
    found = json.loads(stdout)
    assert (found["protocol"], found["images"], found["valid"]) == (protocol, images, False)
    rates = found["images_per_second"]
    assert min(rates.values()) > 0
    assert found["evaluation_to"]["bare"] == pytest.approx(rates["evaluation"] / rates["bare"], rel=0.01)
    ratio = found["evaluation_to"]["bare"]
    said = f"{protocol}, {images} images, 0 workers: {rates['evaluation']} a second, {ratio} times a bare DataLoader's "
    assert stderr.startswith(said)
    assert "; NOT VALID: The machine was busy: the load average was 9.00 at the start." in stderr
    assert stderr.count("\n") == 1
