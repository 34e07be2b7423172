"""Depth of field for pictures and diffusion models: the knowledge of this extension, in pure torch.

* :mod:`.camera`: thin-lens optics, EXIF, sensors: from a camera's settings to K and back.
* :mod:`.depth`: what a depth map means, its edges, its files, focus, estimation by a network.
* :mod:`.adapter`: the bokeh adapter, its attention and its files; the rows of a grounded sweep.
* :mod:`.render`: the lens models, from picture and disparity to a picture with blur.
* :mod:`.picture`: colour and contact sheets.
* :mod:`.host`: the one room that imports ComfyUI.

Imports run one way: ``nodes -> bokeh_ops.host -> bokeh_ops <- trainer``.
"""
