"""A generator of ray-traced ground truth for depth of field: ``python -m tests.scenes --help``."""
