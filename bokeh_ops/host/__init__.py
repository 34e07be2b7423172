"""The only place that imports ComfyUI (``comfy``, ``folder_paths``, ``server``).

* :mod:`.architectures`: what is known of each architecture, one object in one file.
* :mod:`.attention`: bokeh terms and grounding inside a model call.
* :mod:`.adapter`: an adapter on a MODEL.
* :mod:`.sampling`: grounded sweeps, and what their rows are given.
* :mod:`.training`: gradients through the host's models.
* :mod:`.loading`: the user's models in a process that ComfyUI did not start.
* :mod:`.folders`: the user's files, as ComfyUI keeps them.
* :mod:`.small`: small models that come with the extension.

Everything here is imported lazily by the nodes; importing :mod:`bokeh_ops` never pulls the host in.
"""
