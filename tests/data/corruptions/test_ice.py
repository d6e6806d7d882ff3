import pytest
import torch

from robench.data.corruptions import corrupt, default_ice
from robench.data.corruptions.ice import ICE, Ice, pictures_of, published_folder


@pytest.mark.parametrize("ice", ICE)
@pytest.mark.parametrize(("scale", "side"), [(1, 224), (0.3, 64), (1, 64), (0.3, 224), (1, 700)])
def test_an_image_fits_into_every_picture(ice: Ice, scale: float, side: int) -> None:
    if ice == "published" and published_folder() is None:
        pytest.skip("the photographs of ice are not installed")
    pictures = pictures_of(ice, scale, side, side)
    assert len(pictures) == 5
    assert all(picture.dtype == torch.uint8 and min(picture.shape[1:]) > side for picture in pictures)


def test_procedural_ice_is_about_as_bright_as_the_photographs() -> None:
    """So that frost is a corruption of about the published strength; their means and spreads are the oracle."""
    if published_folder() is None:
        pytest.skip("the photographs of ice are not installed")
    grey = torch.full((40, 3, 224, 224), 90, dtype=torch.uint8)
    ids = [f"{number}" for number in range(40)]
    for severity in (1, 3, 5):
        changes = [
            (corrupt(grey, ids, "frost", severity, ice=ice).double() - 90).abs().mean()
            for ice in ("published", "procedural")
        ]
        assert 0.75 < float(changes[1] / changes[0]) < 1.33


def test_the_default_is_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert default_ice() == "procedural"
