"""The only place that imports ComfyUI (``comfy``, ``folder_paths``, ``server``).

Everything here is imported lazily by the nodes; importing :mod:`bokeh_ops` never pulls the host in.
"""
