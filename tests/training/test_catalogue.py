import re
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest

from robench.errors import RecipeError
from robench.training import bundled_recipes, load_recipe, resolve_recipe
from robench.training.catalogue import read_folder
from robench.training.recipe import parse_recipe
from tests.training.test_recipe import TINY

FILES = sorted({path for name, path in bundled_recipes().items() if not name.startswith("mini-")})
TAGS = {"paper", "code", "note", "derived", "ours", "unverified"}
NO_CHOICE = {"schema", "name", "extends", "without"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tiny.toml").write_text(TINY)
    return tmp_path


def _write(folder: Path, content: str, name: str = "mine") -> Path:
    path = folder / f"{name}.toml"
    path.write_text(content)
    return path


def test_a_recipe_says_what_it_changes(folder: Path) -> None:
    path = _write(
        folder,
        'name = "mine"\nextends = "tiny.toml"\nwithout = ["adversary", "optimizer.weight_decay"]\nseed = 3\n'
        "optimizer.weight_decay = 0.0\n[data]\nflip = false\n",
    )
    mine, tiny = load_recipe(path), load_recipe(folder / "tiny.toml")
    expected = tiny.model_copy(
        update={
            "name": "mine",
            "seed": 3,
            "adversary": None,
            "data": tiny.data.model_copy(update={"flip": False}),
            "optimizer": tiny.optimizer.model_copy(update={"weight_decay": 0.0}),
        }
    )
    assert mine == expected
    assert mine.digest == expected.digest != tiny.digest


def test_how_a_recipe_is_written_does_not_change_its_digest(folder: Path) -> None:
    path = _write(folder, 'name = "tiny"\nextends = "tiny.toml"\n')
    assert load_recipe(path).digest == load_recipe(folder / "tiny.toml").digest


def test_a_recipe_of_ones_own_may_extend_a_bundled_one(folder: Path) -> None:
    path = _write(folder, 'name = "mine"\nextends = "deit-s-adv"\nseed = 5\n')
    bundled = load_recipe("deit-s-adv")
    assert load_recipe(path) == bundled.model_copy(update={"name": "mine", "seed": 5})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            'extends = "deit-x"',
            r"mine\.toml: `extends` is `deit-x`; expected a recipe's name or a TOML file\. Did you mean",
        ),
        ("extends = 3", r"mine\.toml: `extends` is `3`; expected a recipe's name or a TOML file\."),
        ('extends = "none.toml"', r"none\.toml: `file` is unreadable \(.*No such file"),
        (
            'extends = "mine.toml"',
            r"mine\.toml: `extends` is `mine -> mine`; expected a recipe that does not lead back\.",
        ),
        (
            'extends = "other.toml"',
            r"`extends` is `mine -> other -> mine`; expected a recipe that does not lead back\.",
        ),
        ('extends = "tiny.toml"\nwithout = ["mixing"]', r"mine\.toml: `without` is `mixing`; expected a key that the"),
        (
            'extends = "tiny.toml"\nwithout = ["seed.more"]',
            r"mine\.toml: `without` is `seed\.more`; expected a key that",
        ),
        ('extends = "tiny.toml"\nwithout = "data"', r"mine\.toml: `without` is 'data'; expected a list of keys\."),
        ('without = ["data"]', r"mine\.toml: `without` is `data`; expected a key that the recipe it extends states\."),
        ('extends = "tiny.toml"\nsede = 1', r"mine\.toml: `sede` is unknown; .* Did you mean `seed`"),
        (
            'extends = "tiny.toml"\nadversary.steps = 0',
            r"mine\.toml: `adversary\.steps` is 0; expected greater than 0\.",
        ),
        ('extends = "tiny.toml"\nseed = {}', r"mine\.toml: `seed` is \{\}; expected a valid integer\."),
    ],
)
def test_a_recipe_that_cannot_be_resolved_is_named(content: str, message: str, folder: Path) -> None:
    _write(folder, 'name = "other"\nextends = "mine.toml"\n', "other")
    with pytest.raises(RecipeError, match=message):
        load_recipe(_write(folder, f'name = "mine"\n{content}\n'))


def test_a_name_is_not_inherited(folder: Path) -> None:
    with pytest.raises(RecipeError, match=r"mine\.toml: `name` is missing; expected a value\. Add the key\."):
        load_recipe(_write(folder, 'extends = "tiny.toml"\n'))


def test_a_teacher_must_be_a_recipe(folder: Path) -> None:
    path = _write(folder, 'name = "mine"\nextends = "deit-s-distilled"\ndistillation.teacher = "resnet5"\n')
    with pytest.raises(RecipeError, match=r"^mine: `distillation\.teacher` is `resnet5`; .* Did you mean `resnet50`"):
        load_recipe(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[[recipe]]\nname = "a"\n[[recipe]]\nname = "b"', r"`file` is of 2 recipes \(a, b\); expected one recipe\."),
        ("", r"mine\.toml: `file` is malformed; expected `schema` and `\[\[recipe\]\]` tables alone\."),
        ("seed = 1\n[[recipe]]", r"mine\.toml: `file` is malformed"),
        ("recipe = [3]", r"mine\.toml: `file` is malformed"),
        ('[[recipe]]\nname = "a"\nextends = "b"', r"^mine\.toml, a: `extends` is `b`; expected a recipe's name"),
    ],
)
def test_a_family_is_no_recipe(content: str, message: str, folder: Path) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe(_write(folder, f'schema = "robench.recipes/1"\n{content}\n'))


def test_two_recipes_of_one_name_are_refused(folder: Path) -> None:
    _write(folder, 'schema = "robench.recipes/1"\n[[recipe]]\nname = "a"\n[[recipe]]\nname = "b"\n', "family")
    assert set(read_folder(folder)) == {"tiny", "a", "b"}
    _write(folder, TINY, "twin")
    with pytest.raises(
        RecipeError, match=r"^twin\.toml: `name` is `tiny`; expected another name than in tiny\.toml\.$"
    ):
        read_folder(folder)


def test_what_is_shown_is_the_whole_recipe_with_the_origin_of_every_value() -> None:
    resolved = resolve_recipe("deit-s-adv-coin")
    text = resolved.as_toml()
    assert parse_recipe(tomllib.loads(text), where="shown") == resolved.recipe
    assert resolved.lineage == ("deit-s-adv", "deit-s")
    lines = text.splitlines()
    assert lines[:2] == [f"# deit-s-adv-coin, SHA-256 {resolved.recipe.digest}", "# extends deit-s-adv -> deit-s"]
    for line in (
        'start = "normal-coin"  # deit-s-adv-coin',
        "batch_size = 4096  # deit-s-adv",
        "weight_decay = 0.05  # deit-s",
        "repeats = 1  # default",
        "magnitude = [1, 1, 2, 3, 4, 5, 6, 7, 8, 9]  # deit-s-adv",
    ):
        assert line in lines


@pytest.mark.parametrize("name", ["rs-ladder-05-stochastic-depth", "resnet-rs-50-160", "resnet50-cosine"])
def test_every_shown_recipe_reads_back(name: str) -> None:
    resolved = resolve_recipe(name)
    assert parse_recipe(tomllib.loads(resolved.as_toml()), where="shown") == resolved.recipe


def test_what_is_left_out_has_no_origin() -> None:
    resolved = resolve_recipe("resnet50-cosine")
    assert "milestones = []  # default" in resolved.as_toml()
    assert not any(key.startswith("schedule.m") and origin == "resnet50" for key, origin in resolved.origins.items())


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.name))
def test_every_value_says_where_it_comes_from(path: Path) -> None:
    without = []
    for line in path.read_text().splitlines():
        key, _, comment = line.partition(" = ")[0], *line.partition("# ")[1:]
        choice = " = " in line and not line.startswith("#") and key not in NO_CHOICE
        if choice and not set(re.findall(r"\[(\w+)\]", comment)) & TAGS:
            without.append(line)
    assert without == []


def test_every_tag_is_explained_and_no_other_is_used() -> None:
    page = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text()
    assert set(re.findall(r"^\| `\[(\w+)\]` \|", page, flags=re.M)) == TAGS
    used = {tag for path in FILES for tag in re.findall(r"# .*?\[(\w+)\]", path.read_text())}
    assert used == TAGS


def test_each_step_of_the_ladder_changes_one_thing() -> None:
    ladder = [name for name in bundled_recipes() if name.startswith("rs-ladder-")]
    assert len(ladder) == 11
    for before, after in pairwise(ladder):
        step, content = resolve_recipe(after), load_recipe(before).model_dump()
        assert step.lineage[0] == before
        changed = {key for key, value in step.recipe.model_dump().items() if value != content.get(key)} - {"name"}
        assert len(changed) == 1


def test_the_steps_of_the_road_differ_in_nothing_but_the_architecture() -> None:
    for regime in (50, 200):
        steps = [name for name in bundled_recipes() if name.startswith(f"roadmap{regime}-")]
        assert len(steps) == 17
        others = {"name", "architecture"}
        contents = {name: load_recipe(name).model_dump(exclude=others) for name in steps if "original" not in name}
        assert all(content == contents[f"roadmap{regime}-resnet"] for content in contents.values())
        assert {load_recipe(name).architecture for name in contents} == {name.replace("-", "_") for name in contents}


def test_all_eight_subsets_of_augmentation_differ_in_nothing_else() -> None:
    names = ["cosine", "ra", "mixup", "cutmix", "best", "ra-cutmix", "mixup-cutmix", "ra-mixup-cutmix"]
    recipes = [load_recipe(f"resnet50-{name}") for name in names]
    subsets = {
        (
            recipe.augmentation is not None and recipe.augmentation.randaugment is not None,
            recipe.mixing is not None and recipe.mixing.mixup > 0,
            recipe.mixing is not None and recipe.mixing.cutmix > 0,
        )
        for recipe in recipes
    }
    assert len(subsets) == 8
    content = {recipe.model_dump_json(exclude={"name", "mixing", "augmentation"}) for recipe in recipes}
    assert len(content) == 1
