import pytest

from robench import errors
from robench.errors import RobenchError, complaint, did_you_mean

KINDS = {
    "ProtocolError",
    "ModelError",
    "DataError",
    "BudgetError",
    "RunError",
    "SubmissionError",
    "RecipeError",
    "FigureError",
}


def test_the_tree_is_one_root_and_its_children() -> None:
    found = {value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)}
    assert {kind.__name__ for kind in found} == KINDS | {"RobenchError"}
    assert all(kind.__bases__ == (RobenchError,) for kind in found - {RobenchError})
    assert RobenchError.__bases__ == (Exception,)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_the_docstring_draws_every_error_with_a_sentence(kind: str) -> None:
    lines = [line.split(maxsplit=2) for line in (errors.__doc__ or "").splitlines() if line[:1] in ("├", "└")]
    assert kind in {line[1] for line in lines if line[2:]}
    assert getattr(errors, kind).__doc__


def test_a_complaint_has_one_form() -> None:
    assert complaint("evaluate", "limit", -1, "at least 1") == "evaluate: `limit` is -1; expected at least 1."
    assert complaint("a.toml", "seed", "'x'", "an integer", "Drop the quotes.") == (
        "a.toml: `seed` is 'x'; expected an integer. Drop the quotes."
    )


def test_a_near_name_is_suggested_and_otherwise_all_are_listed() -> None:
    known = ["pgd-linf", "tpa", "mini-pgd-linf"]
    assert did_you_mean("pgd-lnf", known) == "Did you mean `pgd-linf` or `mini-pgd-linf`?"
    assert did_you_mean("zzz", known) == "Known: mini-pgd-linf, pgd-linf, tpa."
    assert did_you_mean("zzz", []) == ""


def test_a_long_list_of_names_may_be_replaced() -> None:
    assert did_you_mean("resnet5", ["resnet50", "deit"], otherwise="`list` lists them.") == "Did you mean `resnet50`?"
    assert did_you_mean("zzz", ["resnet50", "deit"], otherwise="`list` lists them.") == "`list` lists them."
