"""Training and measuring, as ``python -m trainer``: see :mod:`trainer.cli` for the commands.

Trains on the host's own models through :mod:`bokeh_ops` and :mod:`bokeh_ops.host`, so that the attention that
trains is the attention that samples; never imports :mod:`nodes`.
"""
