"""Where depth, foreground, captions and answers come from: plug-ins behind one small protocol.

A provider is called with a :class:`Photograph` and gives a map, captions, or
the answer to a question (:mod:`.question`). On the command line it is named by a
word, which may be followed by options, ``KIND:WHAT,option=value,...``:

=========================== ==================================================================================
``files``                   what lies beside the picture: ``NAME.depth.png`` (``.tif``, ``.npy``, ``.exr``),
                            ``NAME.mask.png`` (``.npy``), ``NAME.txt`` and the field ``captions``; answers are in
                            the fields ``blur`` and ``photograph``
``files:PATTERN``           the same with other names, such as ``files:{stem}_disparity.png``
``onnx:FILE``               a network of one picture in, one map out (:mod:`.onnx`)
``transformers:MODEL``      a model of the ``transformers`` library, by name or folder
                            (:mod:`.pipelines`)
``python:MODULE:FUNCTION``  a function of yours; it is called with the photograph
``nearest``                 (mask only) the nearest part of the depth map is the foreground
``none``                    (captions only) no captions
=========================== ==================================================================================
"""

from trainer.data.prepare.providers.protocol import CaptionProvider, Judge, MapProvider, Photograph
from trainer.data.prepare.providers.registry import Providers, make_providers

__all__ = ["CaptionProvider", "Judge", "MapProvider", "Photograph", "Providers", "make_providers"]
