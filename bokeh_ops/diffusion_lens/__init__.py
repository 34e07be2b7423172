"""BokehDiff: the lens as one step of a diffusion model whose self-attention knows the lens (Zhu et al., ICCV 2025)."""

PROMPT = "an excellent photo with a large aperture"
"""What its weights were trained with."""
TIMESTEP = 499
"""The one timestep that the network is asked at."""
