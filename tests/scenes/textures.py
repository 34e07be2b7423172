"""Pictures to put on things: photographs where there are any, and patterns made from numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

SKIMAGE = (
    "astronaut",
    "coffee",
    "chelsea",
    "rocket",
    "brick",
    "grass",
    "gravel",
    "hubble_deep_field",
    "motorcycle_left",
)
LONGEST = 1600


def linear(picture: np.ndarray, boost: float = 0.0) -> np.ndarray:
    """sRGB 8 bit to linear light; ``boost`` brightens highlights.

    What is nearly white counts as a highlight where it is rare, not where it is the paper of a drawing.
    """
    encoded = picture.astype(np.float64) / 255
    light = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    near_white = np.clip((light.mean(-1, keepdims=True) - 0.75) / 0.25, 0, 1)
    if near_white.mean() > 0.05:
        boost = 0.0
    return (light * (1 + boost * near_white**2)).astype(np.float32)


class Textures:
    """Photographs of scikit-image and of a folder, and patterns, by chance.

    Args:
        random: source of chance.
        folder: where more JPEG or PNG pictures lie (searched through), if anywhere.
    """

    def __init__(self, random: np.random.Generator, folder: Path | None = None) -> None:
        self.random = random
        self.files = _skimage_files()
        if folder is not None:
            self.files += sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".jpg", ".png"))
        self._known: dict[Path, np.ndarray] = {}

    def photo(self, name: str | None = None) -> np.ndarray:
        """A photograph, by chance or the first whose path holds ``name``; linear, highlights boosted.

        Where no photograph fits, a pattern.
        """
        named = [f for f in self.files if name is None or name.lower() in str(f).lower()]
        if not named:
            return self.pattern()
        file = named[self.random.integers(len(named))] if name is None else named[0]
        if file not in self._known:
            with Image.open(file) as opened:
                picture = opened.convert("RGB")
            picture.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
            self._known[file] = linear(np.asarray(picture), boost=3.0)
        return self._known[file]

    def any(self) -> np.ndarray:
        """A photograph or a pattern."""
        return self.photo() if self.random.random() < 0.6 else self.pattern()

    def colour(self, low: float = 0.05, high: float = 0.8) -> np.ndarray:
        """A linear RGB colour."""
        return self.random.uniform(low, high, 3) ** 1.5

    def pattern(self, kind: str | None = None, size: int = 512) -> np.ndarray:
        """``checks``, ``stripes``, ``noise``, ``weave``, ``text`` or ``dots`` in two or three colours."""
        kinds = ("checks", "stripes", "noise", "weave", "text", "dots")
        kind = kind or kinds[self.random.integers(len(kinds))]
        y, x = np.mgrid[:size, :size] / size
        n = int(self.random.integers(6, 24))
        if kind == "checks":
            mix = ((np.floor(x * n) + np.floor(y * n)) % 2).astype(float)
        elif kind == "stripes":
            mix = 0.5 + 0.5 * np.sign(np.sin(2 * np.pi * n * (x + self.random.uniform(-1, 1) * y)))
        elif kind == "weave":
            mix = (
                0.5
                + 0.25 * np.sin(8 * np.pi * n * x) * np.sign(np.sin(4 * np.pi * n * y))
                + 0.25 * np.sin(8 * np.pi * n * y)
            )
        elif kind == "text":
            cells = self.random.random((n * 2, n * 6)) < 0.45
            cells[::2] = False
            mix = np.kron(cells, np.ones((size // (n * 2) + 1, size // (n * 6) + 1)))[:size, :size].astype(
                float
            )
        elif kind == "dots":
            mix = ((np.mod(x * n, 1) - 0.5) ** 2 + (np.mod(y * n, 1) - 0.5) ** 2 < 0.09).astype(float)
        else:
            mix = self.noise(size)
        first, second = self.colour(0.02, 0.5), self.colour(0.3, 1.0)
        grain = 1 + 0.25 * (self.noise(size) - 0.5)
        return ((first + (second - first) * mix[..., None]) * grain[..., None]).astype(np.float32)

    def noise(self, size: int, slope: float = 1.3) -> np.ndarray:
        """``[size, size]`` noise in 0 to 1 with a power law spectrum, periodic."""
        spectrum = np.fft.rfft2(self.random.normal(size=(size, size)))
        fy, fx = np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None]
        falloff = np.maximum(np.hypot(fy, fx), 1 / size) ** -slope
        falloff[0, 0] = 0
        field = np.fft.irfft2(spectrum * falloff, s=(size, size))
        return np.clip(0.5 + field / (5 * field.std()), 0, 1)

    def sky(
        self, top: tuple[float, float, float], horizon: tuple[float, float, float], size: int = 768
    ) -> np.ndarray:
        """A sky with clouds, brightest at the horizon (the bottom)."""
        height = np.linspace(0, 1, size)[:, None, None]
        clear = np.array(top) + (np.array(horizon) - np.array(top)) * height**1.5
        clouds = np.clip((self.noise(size, 1.7) - 0.5) * 3, 0, 1)[..., None]
        return (clear + (np.mean(horizon) * 1.2 - clear) * clouds * 0.8).astype(np.float32)


def _skimage_files() -> list[Path]:
    try:
        import skimage
    except ImportError:
        return []
    data = Path(skimage.__file__).parent / "data"
    return sorted(f for f in data.iterdir() if f.stem in SKIMAGE)
