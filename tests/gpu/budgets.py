"""Seconds that each part of the command may take, the most wanted first."""

BUDGETS: dict[str, float] = {
    "parity": 50,
    "agreement": 80,
    "step": 100,
    "lens models": 130,
    "attention": 30,
    "world": 60,
    "render node": 20,
    "tests": 40,
}
WHOLE = 515.0
"""Seconds for all of it."""
LAST = "tests"
"""The part that may take what the others leave."""
