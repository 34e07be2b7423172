"""Bokeh for ComfyUI: depth of field as a number, in generated and real pictures."""

WEB_DIRECTORY = "./web"

try:
    from .nodes import comfy_entrypoint
except ImportError as error:  # imported as a plain folder, without a host: nothing to offer
    if error.name not in {"comfy_api", "comfy_api.latest"}:
        raise
    __all__ = ["WEB_DIRECTORY"]
else:
    __all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
