"""BokehDiff: the lens as one step of a diffusion model whose self-attention knows the lens (Zhu et al., ICCV 2025)."""
