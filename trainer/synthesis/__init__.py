"""Data to train a lens on: tilted planes with fine edges, traced through a thin lens at several apertures.

    scene(seed, index, Settings())   what there is: depends on names and numbers alone
    rendered(scene, ks)              its pictures, exact disparity and alpha

Source: Zhu et al., "BokehDiff: Neural Lens Blur with One-Step Diffusion" (ICCV 2025), sec. 3.3.
"""

from trainer.synthesis.scene import Pictures, Scene, rendered, scene
from trainer.synthesis.settings import Settings

__all__ = ["Pictures", "Scene", "Settings", "rendered", "scene"]
