"""A real ComfyUI for the tests and the demo: fetched, started, driven. Nothing here is part of the extension."""
