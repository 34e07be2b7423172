"""Training of bokeh adapters. Nothing is here yet.

This package is kept for ``python -m trainer``, which will train on the host's own models through
:mod:`bokeh_ops` and :mod:`bokeh_ops.host`, and never import :mod:`nodes`.
"""
