"""What BokehDiff's weights were trained with."""

PROMPT = "an excellent photo with a large aperture"
TIMESTEP = 499
"""The one timestep that the network is asked at."""
