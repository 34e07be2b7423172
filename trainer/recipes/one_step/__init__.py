"""The recipe of a diffusion lens (Zhu et al., "BokehDiff", ICCV 2025): one step of SDXL that renders lens blur."""
