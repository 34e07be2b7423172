"""Starts the host: ``python tests/host/launch.py COMFYUI_FOLDER [arguments of main.py]``.

The one thing done to help the host is :func:`make_torchvision_importable`, which `python -m trainer` does for itself.
"""

from __future__ import annotations

import os
import runpy
import sys

_kept = []  # a torch Library takes its operators with it when it is collected


def make_torchvision_importable() -> None:
    """Import torchvision, declaring two of its operators first where it cannot be imported without them.

    The host imports torchvision without using these operators. The wheel on the package index is built for a
    CUDA build of torch: beside a CPU build its compiled part does not load, and then torchvision stops
    because nobody declared ``nms`` and ``qnms``.
    """
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    else:
        return
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    import torch

    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _kept.append(library)
    import torchvision  # noqa: F401


def main() -> None:
    host = os.path.abspath(sys.argv[1])
    main_py = os.path.join(host, "main.py")
    sys.path[0] = host  # was this file's folder, whose `server.py` and `setup.py` are not the host's
    sys.argv = [main_py, *sys.argv[2:]]
    make_torchvision_importable()
    runpy.run_path(main_py, run_name="__main__")


if __name__ == "__main__":
    main()
