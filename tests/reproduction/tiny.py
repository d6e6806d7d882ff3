"""A plan of models that take a second each, written where a test wants it."""

from pathlib import Path

from robench.reproduction import Plan, read_plan

RECIPE = """
schema = "robench.recipe/1"
name = "tiny"
architecture = "mini-resnet"
seed = 0
batch_size = 32
[data]
source = "mini"
examples = 64
validation = 10
[optimizer]
name = "sgd"
lr = 0.1
weight_decay = 5e-4
[schedule]
epochs = 1
warmup_epochs = 0
"""

PLAN = """
schema = "robench.reproduction/1"
name = "tiny"
title = "Tiny"
about = "About it."
seeds = [1, 2, 3]
limit = 32
[quick]
seeds = [1]
examples = 32
limit = 32
[seconds]
mini-stylized = 1.0
[[arms]]
name = "plain"
label = "Plain"
recipe = "{folder}/tiny.toml"
protocols = ["mini-stylized"]
milliseconds = 1.0
[[arms]]
name = "taught"
label = "Taught"
recipe = "{folder}/taught.toml"
protocols = ["mini-stylized"]
milliseconds = 2.0
"""

QUESTION = """
[[questions]]
title = "Does it help?"
paper = "it does: 2 against 1 (README)."
note = "Smaller here."
[[questions.claims]]
text = "taught above plain"
arm = "taught"
against = "plain"
protocol = "mini-stylized"
"""


def write(folder: Path, *changes: tuple[str, str], question: str = QUESTION) -> Path:
    """Write plan and recipes with parts of the plan's text replaced; returns the plan's file."""
    (folder / "tiny.toml").write_text(RECIPE)
    taught = f'name = "taught"\nextends = "tiny.toml"\ndistillation.teacher = "{folder}/tiny.toml"\n'
    (folder / "taught.toml").write_text(f"{taught}distillation.alpha = 0.5\ndistillation.temperature = 1.0\n")
    text = PLAN.replace("{folder}", str(folder)) + question
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = folder / "plan.toml"
    path.write_text(text)
    return path


def plan(folder: Path, *changes: tuple[str, str], question: str = QUESTION) -> Plan:
    """The same, read."""
    return read_plan(write(folder, *changes, question=question))
