"""The recipe of a focus transformer (Shrivastava et al., sec. 3.2): where the main thing is, so what to focus on."""
