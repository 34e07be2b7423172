"""Genfocus in ComfyUI's FLUX: pictures as further tokens, and sampling with them."""
