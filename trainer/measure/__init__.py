"""``python -m trainer evaluate``: see :mod:`trainer.measure.command`."""
