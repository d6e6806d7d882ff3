"""The page of reproductions has a row for every system."""

import re
from pathlib import Path

from robench.training import bundled_recipes, load_recipe

PAGE = (Path(__file__).parents[2] / "docs" / "reproduction.md").read_text()
ROWS = re.findall(r"^\| .* \| `robench train ([a-z0-9-]+)` \| (?:.* \| )?(.*?) \| (.*?) \|$", PAGE, flags=re.M)


def test_every_recipe_for_photographs_has_its_row_and_every_row_its_recipe() -> None:
    photographs = {name for name in bundled_recipes() if load_recipe(name).data.source == "imagenet"}
    assert {name for name, *_ in ROWS} == photographs


def test_a_row_says_what_came_out_or_that_nothing_did() -> None:
    assert len(ROWS) == PAGE.count("| `robench train ")
    assert all(published and (here == "not run yet" or re.search(r"\d", here)) for _, published, here in ROWS)


def test_figures_are_those_of_the_sources() -> None:
    published = {name: figures for name, figures, _ in ROWS}
    assert published["resnet50-gelu-adv"] == "67.38 / 40.27 / 35.51"
    assert published["deit-s"] == "76.82 / 12.21 / 47.99 / 12.98"
    assert published["rs-ladder-10-resnet-d"] == published["resnet-rs-200-256"] == "83.4"
    assert published["roadmap50-separate-downsampling"] == "81.97 ± 0.06"
    assert published["spach-hybrid-ms-s"] == "83.7"
