"""The user's files as ComfyUI keeps them: pictures, adapters, renderers, depth models."""
