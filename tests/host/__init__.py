"""A real ComfyUI for the tests and the demo: fetched, started, driven. No part of the extension."""
