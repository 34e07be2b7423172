"""ComfyUI and the user's model files in a process that ComfyUI did not start."""
