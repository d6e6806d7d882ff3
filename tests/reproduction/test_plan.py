"""Plans: what ships, what is refused, and which models they ask for."""

import re
from pathlib import Path

import pytest

from robench.errors import RecipeError, RunError
from robench.reproduction import bundled_plans, read_plan
from robench.training import bundled_recipes, load_recipe
from robench.zoo.roadmap import designs
from tests.reproduction import tiny

CORES = 2
PLANS = list(bundled_plans())


def test_these_plans_ship() -> None:
    assert PLANS == ["convnext-mini", "mini", "resnet-rs-mini"]
    assert [read_plan(name).is_ladder for name in PLANS] == [True, False, True]


@pytest.mark.parametrize("name", PLANS)
def test_a_bundled_plan_goes_by_its_file_and_is_foretold_from_times(name: str) -> None:
    plan = read_plan(name)
    assert plan.name == name
    for arm in plan.arms:
        assert set(plan.protocols_of(arm)) <= set(plan.seconds)


def test_the_paper_in_miniature_has_its_questions_and_seeds_enough() -> None:
    plan = read_plan("mini")
    assert len(plan.seeds) >= 3
    assert len(plan.questions) == 6
    compared = {(claim.arm, claim.against) for question in plan.questions for claim in question.claims}
    assert compared >= {
        ("resnet-gelu-adv", "resnet-adv"),
        ("deit-adv", "resnet-gelu-adv"),
        ("deit", "resnet"),
        ("resnet-cutmix", "resnet"),
        ("deit", "resnet-distilled"),
        ("deit-distilled", "resnet"),
        ("hybrid", "resnet"),
        ("deit", "hybrid"),
    }


def test_arms_share_one_recipe_but_for_what_they_are_about() -> None:
    plan = read_plan("mini")
    recipes = [load_recipe(arm.recipe) for arm in plan.arms]
    assert (
        len({(recipe.optimizer, recipe.schedule, recipe.batch_size, recipe.label_smoothing) for recipe in recipes}) == 1
    )
    assert len({recipe.data.examples for recipe in recipes}) == 1
    assert len({recipe.adversary for recipe in recipes if recipe.adversary is not None}) == 1


def test_the_miniature_should_take_less_than_three_hours_and_its_trial_less_than_half_an_hour() -> None:
    plan = read_plan("mini")
    assert sum(job.seconds for job in plan.jobs()) / CORES < 3 * 3600
    assert sum(job.seconds for job in plan.shortened().jobs()) / CORES < 1800


def test_the_first_ladder_is_the_road_map() -> None:
    steps = [name for name in designs(17) if name not in ("kernel9", "kernel11")]
    arms = read_plan("convnext-mini").arms
    assert [arm.name for arm in arms] == [step.replace("_", "-") for step in steps]
    recipes = [load_recipe(arm.recipe) for arm in arms]
    assert [recipe.architecture for recipe in recipes] == [f"roadmap17_{step}" for step in steps]
    assert len({recipe.model_copy(update={"name": "x", "architecture": "x"}).digest for recipe in recipes}) == 1


def test_the_second_ladder_is_that_of_resnet_rs_without_randaugment() -> None:
    published = [name.partition("rs-ladder-")[2][3:] for name in bundled_recipes() if name.startswith("rs-ladder-")]
    published[0] = "resnet"
    assert [arm.name for arm in read_plan("resnet-rs-mini").arms] == [
        name for name in published if name != "randaugment"
    ]


def test_a_plan_asks_for_each_arm_with_each_seed(tmp_path: Path) -> None:
    jobs = tiny.plan(tmp_path).jobs()
    assert [job.name for job in jobs] == ["plain-s1", "plain-s2", "plain-s3", "taught-s1", "taught-s2", "taught-s3"]
    assert [job.teacher for job in jobs] == [None] * 3 + ["plain-s1", "plain-s2", "plain-s3"]
    assert [job.recipe.seed for job in jobs] == [1, 2, 3, 1, 2, 3]
    assert [job.seconds for job in jobs] == pytest.approx([1.16] * 3 + [1.224] * 3)
    assert len({job.recipe.digest for job in jobs}) == 6


def test_a_quick_trial_has_its_own_seeds_and_images(tmp_path: Path) -> None:
    quick = tiny.plan(tmp_path).shortened()
    assert [(job.name, job.recipe.data.examples) for job in quick.jobs()] == [("plain-s1", 32), ("taught-s1", 32)]
    assert quick.title == "Tiny (quick trial)"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("seeds = [1, 2, 3]", "seeds = []"), r"plan\.toml: `seeds` is \[\]; expected"),
        (
            ("seeds = [1, 2, 3]", "seeds = [1, 2, 1]"),
            r"`seeds` is \[1, 2, 1\]; expected seeds without repetition: the same one again is no other training\.",
        ),
        (("seeds = [1, 2, 3]", "seeds = [1, 2, 3]\nsead = 1"), r"plan\.toml: `sead` is 1; expected"),
        (('name = "taught"', 'name = "plain"'), r"`arms` is naming `plain` twice; expected a name of its own"),
        (('arm = "taught"', 'arm = "tought"'), r"`questions\.claims` is of `tought`; expected one of the arms plain,"),
        (
            ('protocol = "mini-stylized"', 'protocol = "mini-c"'),
            r"`questions\.claims` is of `taught` under mini-c; expected a protocol that the arm is scored under\.",
        ),
        (
            ('protocols = ["mini-stylized"]', "protocols = []"),
            r"`arms\.plain\.protocols` is missing; expected protocols",
        ),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(change: tuple[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=message):
        tiny.plan(tmp_path, change)


def test_a_student_needs_its_teacher_among_the_arms(tmp_path: Path) -> None:
    path = tiny.write(tmp_path, question="")
    text = path.read_text()
    plain, taught = text.index("[[arms]]"), text.index('[[arms]]\nname = "taught"')
    path.write_text(text[:plain] + text[taught:])
    with pytest.raises(
        RunError, match=r"`arms` is taught; expected an arm of `.*/tiny\.toml`, which teaches `taught`\."
    ):
        read_plan(path)


def test_arms_are_trained_on_the_mini_suite(tmp_path: Path) -> None:
    with pytest.raises(
        RunError, match=r"`arms\.plain\.recipe` is `deit-s`, for photographs; expected a recipe for the"
    ):
        tiny.plan(tmp_path, (f'recipe = "{tmp_path}/tiny.toml"', 'recipe = "deit-s"'))
    with pytest.raises(RecipeError, match="`recipe` is `none-such`"):
        tiny.plan(tmp_path, (f'recipe = "{tmp_path}/tiny.toml"', 'recipe = "none-such"'))


def test_a_plan_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"^reproduce: `plan` is `mimi`; expected the name of a plan or .* mean `mini`"):
        read_plan("mimi")
    with pytest.raises(RunError, match=r"`file` is unreadable \(.*No such file.*\); expected a plan in TOML\.$"):
        read_plan(tmp_path / "none.toml")
    (tmp_path / "broken.toml").write_text("a = ")
    with pytest.raises(RunError, match=re.escape(str(tmp_path / "broken.toml"))):
        read_plan(tmp_path / "broken.toml")
