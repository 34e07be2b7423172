"""``python -m trainer evaluate``: see :mod:`trainer.evaluate.command`."""
