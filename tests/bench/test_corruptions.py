import sys

import pytest

from robench.bench import CATALOGUE, Settings, corruptions
from robench.errors import DataError


def test_both_sides_are_timed_corruption_by_corruption(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("imagecorruptions", reason="imagecorruptions-imaug is not installed", exc_type=ImportError)
    monkeypatch.setattr(corruptions, "COMMON", ("brightness", "fog"))
    found = CATALOGUE["corruptions"].run(Settings("photographs", images=4, repeats=2))
    content = found.content()
    assert (found.examples, content["severity"], content["repeats"]) == (4, 3, 2)
    assert [line["corruption"] for line in content["corruptions"]] == ["brightness", "fog"]
    assert min(line[f"{side}_seconds"] for line in content["corruptions"] for side in ("ours", "theirs")) > 0
    assert content["ratio"] == content["theirs_seconds"] / content["ours_seconds"]
    assert content["ours_images_per_second"] == 4 / content["ours_seconds"]
    assert "ours_robust" not in content


def test_photographs_are_repeated_to_as_many_as_are_wanted() -> None:
    images = corruptions._images(50)
    assert images.shape == (50, 3, 224, 224)
    assert (images[0] == images[20]).all()
    assert not (images[0] == images[1]).all()
    jobs = corruptions._jobs("fog", images, 20)
    assert [len(names) for _, names, _ in jobs] == [20, 20, 10]
    assert len({name for _, names, _ in jobs for name in names}) == 50


def test_a_missing_peer_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    corruptions._peer.cache_clear()
    monkeypatch.setitem(sys.modules, "imagecorruptions", None)
    message = (
        r"^robench bench corruptions: `imagecorruptions` is not importable \(.*\); expected the peer\. "
        r"Install it: `pip install imagecorruptions-imaug`\.$"
    )
    with pytest.raises(DataError, match=message):
        CATALOGUE["corruptions"].run(Settings("photographs", images=2, repeats=1))
