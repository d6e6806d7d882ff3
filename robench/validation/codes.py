"""The codes of findings: stable, one meaning each; a code that is no longer given is never given another meaning.

Not here: the checks.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Code:
    """What a code means.

    Attributes:
      title: what is wrong, in a few words.
      fix: what to do.
      severity: an error makes a submission invalid; a warning is for whoever reads it.
    """

    title: str
    fix: str
    severity: Literal["error", "warning"] = "error"
    level: str = ""


LEVELS = {
    "1": "structure",
    "2": "schema",
    "3": "protocol",
    "4": "arithmetic",
    "5": "consistency",
    "6": "plausibility",
    "7": "model",
    "8": "duplicate",
    "9": "verdicts and refutations",
}
"""What is checked, by the first digit of a code."""

_AGAIN = "Submit the run again with `robench submit`; nobody edits these files by hand."
_EVALUATE = "Evaluate the model again, and submit that run."
_MADE = "Make it again with `robench verify` or `robench refute`; nobody edits these files by hand."
_LOOK = "Say in the pull request why this is right."

_TABLE = {
    "RB101": Code("misplaced", "Put each claim into submissions/<model>/<protocol>@<version>/."),
    "RB102": Code("a file is missing", _AGAIN),
    "RB103": Code("a file that does not belong here", "Remove it."),
    "RB104": Code("not a plain file or folder", "Put the file itself there: links and devices are not followed."),
    "RB105": Code("a file is too large", _AGAIN),
    "RB106": Code("names that differ in case alone", "Choose another name: some systems keep only one of the two."),
    "RB107": Code("a change outside of submissions", "Make it in another pull request."),
    "RB108": Code("a merged claim, verdict or refutation is changed", "Put it back. Submit under another name."),
    "RB109": Code("unreadable", "Make the file readable."),
    "RB201": Code("not UTF-8, TOML or JSON", "Write the file again."),
    "RB202": Code("submission.toml does not follow its schema", "docs/submitting.md explains every key."),
    "RB203": Code("result.json does not follow its schema", _AGAIN),
    "RB204": Code("result.json is not as robench writes it", _AGAIN),
    "RB205": Code("outcomes.csv.gz is no gzip of a sane size", _AGAIN),
    "RB206": Code("outcomes.csv.gz is not as robench writes it", _AGAIN),
    "RB301": Code("unknown protocol", "`robench list` shows the protocols; evaluate under one of them."),
    "RB302": Code("not the protocol of the lock", _EVALUATE),
    "RB303": Code("a protocol that is not released", "Wait until it is active, or evaluate under another one."),
    "RB304": Code("a protocol that is never ranked", "Evaluate under one that is ranked."),
    "RB305": Code("folder and result name different protocols", _AGAIN),
    "RB306": Code("not a complete result on official data", "Evaluate without `--limit`, on the protocol's own data."),
    "RB307": Code("not the reference model of the protocol", _EVALUATE),
    "RB308": Code("an engine that the protocol does not have", _EVALUATE),
    "RB401": Code("the digest of the outcomes is another", _AGAIN),
    "RB402": Code("too few or too many outcomes", _EVALUATE),
    "RB403": Code("not the protocol's examples in its order", _EVALUATE),
    "RB404": Code("not the official labels", _EVALUATE),
    "RB405": Code("a metric that the outcomes do not give", _AGAIN),
    "RB406": Code("a value or interval that its counts do not give", _AGAIN),
    "RB407": Code("counts that the outcomes do not give", _AGAIN),
    "RB408": Code("`data` that the outcomes do not bear out", _AGAIN),
    "RB409": Code("a derived number that the outcomes do not give", _AGAIN),
    "RB410": Code("not the official textures", _EVALUATE),
    "RB501": Code("a class that does not exist", _EVALUATE),
    "RB502": Code("clean margin and clean prediction disagree", _EVALUATE),
    "RB503": Code("called broken, but nothing shows it", _EVALUATE),
    "RB504": Code("called robust, but something shows that it is broken", _EVALUATE),
    "RB505": Code("a step or stage that the protocol does not have", _EVALUATE),
    "RB506": Code("an example without an outcome", _EVALUATE),
    "RB507": Code("a caveat is missing", _AGAIN),
    "RB508": Code("what no look at images gives", _EVALUATE),
    "RB601": Code("almost all predictions are one class", _LOOK, "warning"),
    "RB602": Code("more than 5 points above the best claim", _LOOK, "warning"),
    "RB603": Code("an attack that broke nothing", _LOOK, "warning"),
    "RB604": Code("made by changed code", "Evaluate with a clean checkout, or say what was changed.", "warning"),
    "RB605": Code("made by other attack code than the other claims", _EVALUATE, "warning"),
    "RB606": Code("labels of this protocol are not pinned", "Maintainers: add a line to labels.lock.", "warning"),
    "RB701": Code("the loader names other weights", "Correct `[loader]`."),
    "RB702": Code("the loader names another model", "Correct `[loader]`."),
    "RB703": Code("nobody can load the model", "Add `[loader]` to submission.toml (docs/submitting.md).", "warning"),
    "RB801": Code("the same weights under another name", "Submit a model once. For a new result, use its name."),
    "RB802": Code("the same outcomes under another name", "Submit the outcomes of your own run."),
    "RB803": Code("the same function under another name", "Submit a model once, whatever was done to its weights."),
    "RB804": Code("nearly equal margins under another name", "Submit a model once, whatever was done to its weights."),
    "RB805": Code("one name, different models", "Give each model its own name."),
    "RB806": Code("the same loader under another name", _LOOK, "warning"),
    "RB901": Code("no verdict or refutation by its schema", _MADE),
    "RB902": Code("about a claim that is not there", "Make it again, for the claim that lies here."),
    "RB903": Code("counts that the claim does not give", _MADE),
    "RB904": Code("examples that the seed does not draw", _MADE),
    "RB905": Code("confirms what no refutation says", _MADE),
    "RB906": Code("an example that is not called robust, or is there twice", "Leave the example out."),
    "RB907": Code("a change that does not fit the budget", "Leave the example out."),
}

CODES: dict[str, Code] = {
    name: Code(code.title, code.fix, code.severity, LEVELS[name[2]]) for name, code in _TABLE.items()
}
"""Every code."""


def page() -> str:
    """`docs/validation-codes.md`."""
    lines = [
        "# What `robench validate` finds",
        "",
        "Every finding has a code that keeps its meaning, the file and the place in it (a JSON pointer, or a line),",
        "what was found, what was expected, and what to do. Errors make a submission invalid; warnings are for",
        "whoever reads it. `robench validate --codes` prints this page.",
    ]
    for digit, level in LEVELS.items():
        lines += [
            "",
            f"## {level.capitalize()}",
            "",
            "| code | severity | what is wrong | what to do |",
            "|---|---|---|---|",
        ]
        rows = [(name, code) for name, code in CODES.items() if name[2] == digit]
        lines += [f"| `{name}` | {code.severity} | {code.title} | {_cell(code.fix)} |" for name, code in rows]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("<", "&lt;").replace(">", "&gt;")
