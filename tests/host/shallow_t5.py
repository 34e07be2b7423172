"""A node for the tests' server: FLUX's text encoders with a T5-XXL of one layer.

The host's stock DualCLIPLoader builds all 24 layers whatever the file holds: 9.5 GB, and minutes for one prompt
on a CPU. This is the same call with the number of layers given, and prompts are not filled up to 256 tokens, which
take nine tenths of the time of a small picture. CLIP-L is whole, and so are T5's width and its vocabulary.
"""

import comfy.sd
import folder_paths


class ShallowDualCLIPLoader:
    CATEGORY = "tests"
    FUNCTION = "load"
    RETURN_TYPES = ("CLIP",)

    @classmethod
    def INPUT_TYPES(cls):
        files = (folder_paths.get_filename_list("text_encoders"),)
        return {
            "required": {"clip_name1": files, "clip_name2": files, "type": (["flux"],)},
            "optional": {"device": (["default"],)},
        }

    def load(self, clip_name1, clip_name2, type, device="default"):
        paths = [folder_paths.get_full_path_or_raise("text_encoders", n) for n in (clip_name1, clip_name2)]
        options = {"t5xxl_model_config": {"num_layers": 1}}
        clip_type = comfy.sd.CLIPType.FLUX
        clip = comfy.sd.load_clip(ckpt_paths=paths, clip_type=clip_type, model_options=options)
        clip.tokenizer.t5xxl.min_length = 1
        return (clip,)


NODE_CLASS_MAPPINGS = {"ShallowDualCLIPLoader": ShallowDualCLIPLoader}
