"""Keys of a recipe that must fit together; `test_recipe.py` has the keys by themselves."""

from pathlib import Path

import pytest

from robench.errors import RecipeError
from robench.training import load_recipe


def _load(folder: Path, *lines: str, extends: str = "deit-s") -> None:
    path = folder / "mine.toml"
    path.write_text("\n".join(['name = "mine"', f'extends = "{extends}"', *lines]) + "\n")
    load_recipe(path)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            ["accumulation = 3"],
            r"`batch_size` is 2048; expected a multiple of 3 \(`accumulation` 3 x 1 processes\)\.",
        ),
        (["accumulation = 4096"], r"`batch_size` is 2048; expected a multiple of 4096"),
        (["ghost_size = 48"], r"`ghost_size` is 48; expected a divisor of 2048, the part of one process\."),
        (["batch_size = 2047"], r"`batch_size` is 2047; expected an even part for mixing, not 2047\."),
        (
            ['schedule.kind = "steps"'],
            r"`schedule\.milestones` is missing; expected epochs with the kind \"steps\", and",
        ),
        (
            ["schedule.milestones = [30]"],
            r"`schedule\.milestones` is \[30\]; expected epochs with the kind \"steps\", an",
        ),
        (
            ['schedule.kind = "steps"', "schedule.milestones = [60, 30]"],
            r"`schedule\.milestones` is \[60, 30\]; expected rising epochs without repetition\.",
        ),
        (['schedule.each = "update"'], r"`schedule\.lag` is 1; expected 0 unless `schedule\.each` is \"epoch\"\."),
        (
            ["mixing.mixup = 0.0", "mixing.cutmix = 0.0"],
            r"`mixing` is without effect; expected `mixup` or `cutmix` above",
        ),
        (['without = ["data.size"]'], r"`data\.size` is missing; expected a value for photographs\."),
        (["data.test_resize = 200"], r"`data\.test_resize` is 200; expected at least `data\.size`, 224\."),
        (['without = ["data.std"]'], r"`data\.std` is missing; expected a value for photographs\."),
        (['without = ["augmentation"]'], r"`augmentation` is missing; expected a value for photographs\."),
        (
            ["mixing.probability = []"],
            r"toml: `mixing\.probability` is \[\]; expected one value or more\.",
        ),
        (
            ["mixing.probability = [0.5, 1.5]"],
            r"toml: `mixing\.probability\.1` is 1\.5; expected less than or equal to 1\.",
        ),
        (['mixing.switch = "half"'], r"toml: `mixing\.switch` is 'half'; expected a number or a list\."),
        (["augmentation.randaugment.magnitude = 9.5"], r"magnitude\.0` is 9\.5; expected a valid integer\."),
        (
            ['augmentation.interpolation = "nearest"'],
            r"`augmentation\.interpolation` is 'nearest'; expected 'bilinear' or",
        ),
        (["data.mean = [0.5, 0.5]"], r"toml: `data\.mean\.2` is missing; expected a value\. Add the key\."),
        (
            ["arguments.depth = [1, 2]"],
            r"toml: `arguments\.depth` is \[1, 2\]; expected a number, a string or a boolean\.",
        ),
        (["ema.decay = 1.0"], r"toml: `ema\.decay` is 1\.0; expected less than 1\."),
        (['precision = "int8"'], r"toml: `precision` is 'int8'; expected 'float32', 'float16' or 'bfloat16'\."),
        (
            ['distillation.teacher = "deit-s"'],
            r"toml: `distillation\.alpha` is missing; expected a value\. Add the key\.",
        ),
    ],
)
def test_keys_that_do_not_fit_are_named(lines: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=f"(?m)^mine.*{message}"):
        _load(tmp_path, *lines)


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ("data.size = 64", "data.size"),
        ("data.test_resize = 64", "data.test_resize"),
        ('augmentation.interpolation = "bicubic"', "augmentation"),
    ],
)
def test_the_mini_suite_takes_nothing_of_photographs(line: str, key: str, tmp_path: Path) -> None:
    message = rf"^mine: `{key}` is stated; expected none for the mini suite, whose images stay as they are\.$"
    with pytest.raises(RecipeError, match=message):
        _load(tmp_path, line, extends="mini-resnet")


def test_an_adversary_that_never_attacks_is_refused(tmp_path: Path) -> None:
    message = r"`adversary\.clean_epochs` is 3; expected with `adversary\.warmup_epochs` fewer than the 5 of `schedule"
    with pytest.raises(RecipeError, match=message):
        _load(tmp_path, "adversary.clean_epochs = 3", extends="mini-resnet-adv")


@pytest.mark.parametrize("extends", ["deit-s", "convnext-t"])
def test_a_warm_up_that_never_ends_is_refused(extends: str, tmp_path: Path) -> None:
    message = r"`schedule\.warmup_epochs` is \d+; expected fewer than the 5 of `schedule\.epochs`\."
    with pytest.raises(RecipeError, match=message):
        _load(tmp_path, "schedule.epochs = 5", extends=extends)


def test_what_a_process_passes_at_once() -> None:
    recipe = load_recipe("resnet50-gelu-adv")
    assert recipe.part_size(processes=4) == 128  # as published: 4 processes of 128, accumulated 8 times
    assert load_recipe("resnet50-relu-adv").part_size(processes=4) == 256
    assert load_recipe("deit-s-adv").part_size(processes=8) == 128
    assert load_recipe("deit-s").part_size(processes=8) == 256
    with pytest.raises(
        RecipeError, match=r"^resnet50-gelu-adv: `ghost_size` is 64; expected a divisor of 32, the part"
    ):
        recipe.part_size(processes=16)
    with pytest.raises(
        RecipeError, match=r"`batch_size` is 4096; expected a multiple of 24 \(`accumulation` 8 x 3 proc"
    ):
        recipe.part_size(processes=3)
