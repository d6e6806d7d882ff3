"""Claims of a paper, tried in miniature: models trained from recipes, scored under protocols, compared over seeds."""

from robench.reproduction.plan import Arm, Job, Plan, bundled_plans, read_plan

__all__ = ["Arm", "Job", "Plan", "bundled_plans", "read_plan"]
