"""A generator of a few steps, by distribution matching (DMD2)."""
