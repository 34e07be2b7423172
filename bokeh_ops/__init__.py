"""Depth of field for pictures and diffusion models: the knowledge of this extension, in pure torch.

Nothing here imports ComfyUI except the sub-package :mod:`bokeh_ops.host`, so every other module can be
used from any script. Imports run one way: ``nodes -> bokeh_ops.host -> bokeh_ops <- trainer``.
"""
