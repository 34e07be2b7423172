"""A node for the host, not for users: it reports steps and previews, can be interrupted, and can fail.

Only the tests' server has it, so that they can be shown to notice each of these.
"""

import time

import comfy.model_management
import comfy.utils
from PIL import Image


class BokehProbe:
    CATEGORY = "tests"
    FUNCTION = "run"
    RETURN_TYPES = ()
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {"steps": ("INT", {"default": 3}), "pause": ("FLOAT", {"default": 0.0})},
            "optional": {"fail": ("STRING", {"default": ""})},
            "hidden": {"unique_id": "UNIQUE_ID"},
        }

    def run(self, steps, pause, fail="", unique_id=None):
        from server import PromptServer  # type: ignore[attr-defined]  # the host's, not the file beside this one

        bar = comfy.utils.ProgressBar(steps)
        for step in range(steps):
            comfy.model_management.throw_exception_if_processing_interrupted()
            bar.update_absolute(step + 1, steps, ("JPEG", Image.new("RGB", (8, 8), (200, 30, 30)), None))
            time.sleep(pause)
        PromptServer.instance.send_progress_text(f"{steps} steps", unique_id)
        if fail:
            raise ValueError(fail)
        return {"ui": {"steps": [steps]}}


NODE_CLASS_MAPPINGS = {"BokehProbe": BokehProbe}
