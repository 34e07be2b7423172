"""Contrastive sets: one scene at several K, rendered from a photograph that is all in focus.

Source: Fortes et al., "Bokeh Diffusion" (SIGGRAPH Asia 2025), sec. 3.2.2.
"""

from trainer.data.pairs.render import draw_levels, focus_of, render_levels, render_set

__all__ = ["draw_levels", "focus_of", "render_levels", "render_set"]
