import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from robench.errors import RecipeError
from robench.reproduction import bundled_plans, read_plan
from robench.training import Recipe, bundled_recipes, load_recipe
from robench.zoo import ARCHITECTURES, MODELS

TINY = """
schema = "robench.recipe/1"
name = "tiny"
architecture = "mini-resnet"
seed = 0
batch_size = 64

[data]
source = "mini"
examples = 128
validation = 64

[optimizer]
name = "sgd"
lr = 0.1
weight_decay = 5e-4

[schedule]
epochs = 2
warmup_epochs = 1

[adversary]
norm = "linf"
epsilon = "4/255"
step_size = "3/255"
steps = 1
"""


def _load(folder: Path, *changes: tuple[str, str]) -> Recipe:
    """The tiny recipe with lines replaced."""
    text = TINY
    for old, new in changes:
        assert text.count(f"\n{old}\n") == 1, old
        text = text.replace(f"\n{old}\n", f"\n{new}\n")
    path = folder / "tiny.toml"
    path.write_text(text)
    return load_recipe(path)


@pytest.mark.parametrize("name", MODELS)
def test_every_bundled_model_has_a_recipe(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.architecture in ARCHITECTURES
    assert MODELS[recipe.name] == recipe.architecture
    assert recipe.start_from is None or MODELS[recipe.start_from] == recipe.architecture
    assert (recipe.adversary is not None) == name.endswith("-adv")
    assert recipe.schedule.warmup_epochs < recipe.schedule.epochs
    assert recipe.batch_size <= recipe.data.examples


def test_recipes_of_the_mini_suite_are_those_of_bundled_models_two_judges_and_reproductions() -> None:
    recipes = {name for name in bundled_recipes() if load_recipe(name).data.source == "mini"}
    reproduced = {arm.recipe for plan in bundled_plans() for arm in read_plan(plan).arms}
    assert recipes == {*MODELS, "mini-ref-resnet", "mini-ref-deit", *reproduced}


def test_a_recipe_of_ones_own_is_read_from_its_file(tmp_path: Path) -> None:
    recipe = _load(tmp_path)
    assert (recipe.name, recipe.batch_size, recipe.optimizer.momentum) == ("tiny", 64, 0.9)
    assert recipe.adversary is not None
    assert recipe.adversary.epsilon == "4/255"
    assert load_recipe(str(tmp_path / "tiny.toml")) == recipe


def test_a_recipe_cannot_be_changed(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        _load(tmp_path).seed = 1


def test_the_digest_sees_every_change_of_meaning_and_no_other(tmp_path: Path) -> None:
    digest = _load(tmp_path).digest
    assert re.fullmatch(r"[0-9a-f]{64}", digest)
    assert _load(tmp_path, ("seed = 0", "# a comment\nseed = 0\nlabel_smoothing = 0.0")).digest == digest
    changes = [
        ("seed = 0", "seed = 1"),
        ("steps = 1", "steps = 2"),
        ('epsilon = "4/255"', 'epsilon = "5/255"'),
        ("lr = 0.1", "lr = 0.2"),
        ("validation = 64", "validation = 64\nflip = false"),
        ("seed = 0", 'seed = 0\nstart_from = "mini-resnet"'),
    ]
    assert len({digest, *(_load(tmp_path, change).digest for change in changes)}) == 7


def test_an_unknown_name_is_answered_with_near_ones() -> None:
    message = (
        r"^robench train: `recipe` is `mini-resnt`; expected a recipe's name or a TOML file\. "
        r"Did you mean `mini-resnet`.*\?$"
    )
    with pytest.raises(RecipeError, match=message):
        load_recipe("mini-resnt")
    with pytest.raises(RecipeError, match=r"`recipe` is `zzz`; .* `robench train --list` lists them\.$"):
        load_recipe("zzz")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"none\.toml: `file` is unreadable \(.*No such file.*\); expected a recipe in"
    ):
        load_recipe(tmp_path / "none.toml")


@pytest.mark.parametrize("content", [b"seed = ", b"\xff\xfe", b"seed = 1\nseed = 2"])
def test_what_is_no_toml_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_bytes(content)
    with pytest.raises(RecipeError, match=r"bad\.toml: `file` is unreadable \(.+\); expected a recipe in TOML\.$"):
        load_recipe(tmp_path / "bad.toml")


FRACTION = r'a fraction of the unit range as a string, such as "4/255", more than 0'


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seed = 0", "", r"`seed` is missing; expected a value\. Add the key\."),
        ("seed = 0", "seed = -1", r"`seed` is -1; expected greater than or equal to 0\."),
        ("seed = 0", "seed = true", r"`seed` is True; expected a valid integer\."),
        ("seed = 0", "seed = 4294967296", r"`seed` is 4294967296; expected less than 4294967296\."),
        (
            "seed = 0",
            "seed = 0\nsede = 1",
            r"`sede` is unknown; expected a key of the recipe schema\. Did you mean `seed`",
        ),
        ("steps = 1", "step = 1\nsteps = 1", r"`adversary\.step` is unknown; .* Did you mean .*`steps`"),
        ("steps = 1", "steps = 0", r"`adversary\.steps` is 0; expected greater than 0\."),
        ("lr = 0.1", "lr = -1", r"`optimizer\.lr` is -1; expected greater than 0\."),
        ("lr = 0.1", "lr = inf", r"`optimizer\.lr` is inf; expected a finite number\."),
        ("lr = 0.1", "lr = nan", r"`optimizer\.lr` is nan; expected a finite number\."),
        ("lr = 0.1", 'lr = "0.1"', r"`optimizer\.lr` is '0\.1'; expected a valid number\."),
        ("weight_decay = 5e-4", "weight_decay = inf", r"`optimizer\.weight_decay` is inf; expected a finite number\."),
        ('name = "sgd"', 'name = "adam"', r"`optimizer\.name` is 'adam'; expected 'sgd' or 'adamw'\."),
        ('norm = "linf"', 'norm = "l1"', r"`adversary\.norm` is 'l1'; expected 'linf' or 'l2'\."),
        ('epsilon = "4/255"', "epsilon = 0.0157", rf"`adversary\.epsilon` is 0\.0157; expected {FRACTION}\."),
        ('epsilon = "4/255"', 'epsilon = "0"', rf"`adversary\.epsilon` is '0'; expected {FRACTION}\."),
        ('epsilon = "4/255"', 'epsilon = "4/0"', rf"`adversary\.epsilon` is '4/0'; expected {FRACTION}\."),
        ('step_size = "3/255"', 'step_size = "-1/255"', rf"`adversary\.step_size` is '-1/255'; expected {FRACTION}\."),
        ('name = "tiny"', 'name = "../tiny"', r"`name` is '\.\./tiny'; expected a name such as `mini-resnet-adv`\."),
        ('source = "mini"', 'source = "cifar"', r"`data\.source` is 'cifar'; expected 'mini' or 'imagenet'\."),
        ("batch_size = 64", "batch_size = 1", r"`batch_size` is 1; expected greater than 1\."),
        ("batch_size = 64", "batch_size = 64.0", r"`batch_size` is 64\.0; expected a valid integer\."),
        (
            'schema = "robench.recipe/1"',
            'schema = "robench.recipe/2"',
            r"`schema` is 'robench\.recipe/2'; expected 'rob",
        ),
        ("[schedule]", "[shedule]", r"`shedule` is unknown; .* Did you mean `schedule`\?"),
    ],
)
def test_a_wrong_key_is_named_with_what_it_should_be(old: str, new: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=f"(?m)^tiny\\.toml: {message}"):
        _load(tmp_path, (old, new))


def test_a_value_in_place_of_a_table_is_named(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text('data = 3\nschema = "robench.recipe/1"\n')
    with pytest.raises(RecipeError, match=r"(?m)^tiny\.toml: `data` is 3; expected a table\.$"):
        load_recipe(tmp_path / "tiny.toml")


def test_all_wrong_keys_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as refused:
        _load(tmp_path, ("seed = 0", "seed = -1"), ("lr = 0.1", "lr = 0"))
    assert len(str(refused.value).splitlines()) == 2
