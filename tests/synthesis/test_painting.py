import torch
from torch import Tensor, nn

from robench.randomness import Draws
from robench.synthesis.painting import misfit, paint, total_variation
from robench.synthesis.recipe import SynthesisRecipe
from robench.synthesis.style import StyleExtractor
from tests.synthesis.stripes import network, stripes


def _recipe(**changes: float | int) -> SynthesisRecipe:
    return SynthesisRecipe(**{"textures": 2, "size": 8, "steps": 300, "lr": 0.01, **changes})  # type: ignore[arg-type]


def _pixels() -> StyleExtractor:
    """Features that are the pixels themselves."""
    return StyleExtractor(nn.Sequential(nn.Identity(), nn.Flatten()), ["0"], average_pooling=False)


def test_the_style_of_a_plain_colour_is_painted_as_that_colour() -> None:
    """E[x x^T] = m m^T leaves every pixel a multiple of m, and E fixes them all to m where none is negative."""
    colours = torch.tensor([[0.2, 0.5, 0.8], [0.9, 0.1, 0.4]])
    extractor = _pixels()
    wanted = extractor.styles(colours[:, :, None, None].expand(2, 3, 8, 8))
    distances: list[float] = []
    painted = paint(
        extractor, wanted, _recipe(), Draws.of(0, ["a", "b"]), on_step=lambda step, distance: distances.append(distance)
    )
    assert painted.shape == (2, 3, 8, 8)
    assert not painted.requires_grad
    hues, wanted_hues = (each / each.norm(dim=1, keepdim=True) for each in (painted.mean(dim=(2, 3)), colours))
    assert float((hues - wanted_hues).abs().max()) < 0.01
    assert distances[-1] < 1e-3 * distances[0]
    assert len(distances) == 300


def test_total_variation_makes_it_smooth_and_is_what_it_says() -> None:
    checker = (torch.arange(4)[:, None] + torch.arange(4)) % 2
    images = torch.stack([checker.float().expand(3, 4, 4), torch.ones(3, 4, 4), checker.float().expand(3, 4, 4) / 2])
    assert total_variation(images).tolist() == [2.0, 0.0, 0.5]
    extractor, wanted = _pixels(), _pixels().styles(stripes(2))
    draws = Draws.of(0, ["a", "b"])
    rough = paint(extractor, wanted, _recipe(steps=60), draws, on_step=_nothing)
    smooth = paint(extractor, wanted, _recipe(steps=60, total_variation=1e7), draws, on_step=_nothing)
    assert bool((total_variation(smooth) < total_variation(rough) / 4).all())


def _nothing(step: int, distance: float) -> None:
    pass


def test_a_texture_does_not_depend_on_its_company() -> None:
    extractor = StyleExtractor(network(), ["1", "4"], average_pooling=True)
    wanted = extractor.styles(stripes(3))

    def painted(rows: list[int]) -> Tensor:
        draws = Draws.of(0, [f"t{row}" for row in rows])
        return paint(extractor, wanted[rows], _recipe(steps=20), draws, on_step=_nothing)

    together = painted([0, 1, 2])
    for row in range(3):
        assert float((painted([row])[0] - together[row]).abs().max()) < 1e-5


def test_a_style_that_is_there_is_no_distance_away() -> None:
    wanted = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert misfit(wanted, wanted).tolist() == [0.0, 0.0]
    apart = misfit(wanted.double() + torch.tensor([[0.0, 0.0], [0.003, 0.004]]), wanted.double())
    assert (apart - torch.tensor([0.0, 25.0])).abs().max() < 1e-3
