"""Cameras: thin-lens optics, what EXIF tells, sensors by model, photographs with the depth inside them."""
