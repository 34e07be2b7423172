"""The nodes: thin, each one call into ``bokeh_ops``. One file per room of the node menu."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io


class BokehExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        from .adapter import BokehCondition, LoadBokehAdapter
        from .camera import BokehDepthOfField, BokehFromCamera
        from .carry import BokehCarryEdit
        from .colour import LabColorMatch
        from .demo import LoadBokehDemoModel, LoadBokehDemoPhotograph
        from .depth import BokehLoadDepth
        from .diffusion_lens import LoadDiffusionLens
        from .estimate import BokehDepthFromGeometry, BokehEstimateDepth
        from .from_photo import BokehFromPhoto
        from .genfocus import DeblurPhotograph, LoadGenfocus, RefocusPhotograph
        from .invert import BokehInvert
        from .lens import BokehAperture, BokehFocus
        from .main_thing import BokehMainThing
        from .render import BokehMeRender
        from .sampling import GroundedSampler, GroundedSamplerAdvanced
        from .save import BokehSavePhotograph
        from .sheet import BokehContactSheet
        from .views import BokehDefocusViews
        from .which_way import BokehLensOrModel

        return [
            LoadBokehAdapter,
            BokehCondition,
            GroundedSampler,
            GroundedSamplerAdvanced,
            BokehInvert,
            LabColorMatch,
            BokehMeRender,
            LoadDiffusionLens,
            LoadGenfocus,
            DeblurPhotograph,
            RefocusPhotograph,
            BokehDefocusViews,
            BokehAperture,
            BokehFocus,
            BokehMainThing,
            BokehLoadDepth,
            BokehEstimateDepth,
            BokehDepthFromGeometry,
            BokehFromCamera,
            BokehFromPhoto,
            BokehDepthOfField,
            BokehLensOrModel,
            BokehCarryEdit,
            BokehContactSheet,
            BokehSavePhotograph,
            LoadBokehDemoModel,
            LoadBokehDemoPhotograph,
        ]


async def comfy_entrypoint() -> BokehExtension:
    return BokehExtension()
