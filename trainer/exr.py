"""Which channels of an OpenEXR picture are meant; reading them, in any compression, is the format's own library's."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bokeh_ops.errors import BokehError

_SINGLE = ("Y", "Z", "V", "depth", "depth.Z", "Depth.Z", "depth.V", "Depth.V")


def read_colour(path: Path) -> np.ndarray:
    """Linear RGB ``[H, W, 3]`` in float32; a grey picture (channel ``Y``) is repeated.

    Raises:
        BokehError: no such file, not a whole OpenEXR file, no channels R, G, B or Y, or values that are not finite.
    """
    channels = _channels(path)
    if all(name in channels for name in "RGB"):
        planes = [channels[name] for name in "RGB"]
    elif "Y" in channels and not {"RY", "BY"} & set(channels):
        planes = [channels["Y"]] * 3
    else:
        raise BokehError(f"{path} has the channels {', '.join(channels)}; expected R, G and B, or Y alone.")
    picture = np.stack(planes, -1).astype(np.float32)
    bad = int((~np.isfinite(picture)).sum())
    if bad:
        raise BokehError(f"{path} has {bad} values that are NaN or infinite; all must be finite.")
    return picture


def read_plane(path: Path) -> np.ndarray:
    """One plane ``[H, W]`` in float32: the only channel, one named as depth usually is, or R where R, G, B are equal.

    Raises:
        BokehError: no such file, not a whole OpenEXR file, or no telling which channel is meant.
    """
    channels = _channels(path)
    if len(channels) == 1:
        return next(iter(channels.values())).astype(np.float32)
    for name in _SINGLE:
        if name in channels:
            return channels[name].astype(np.float32)
    if all(name in channels for name in "RGB"):
        red, green, blue = (channels[name] for name in "RGB")
        if np.array_equal(red, green, equal_nan=True) and np.array_equal(red, blue, equal_nan=True):
            return red.astype(np.float32)
    raise BokehError(
        f"{path} has the channels {', '.join(channels)}; expected a single one, one of {', '.join(_SINGLE)}, or equal "
        "R, G and B."
    )


def _channels(path: Path) -> dict[str, np.ndarray]:
    """The channels of the first part, each ``[H, W]``."""
    import OpenEXR

    if not path.is_file():
        raise BokehError(f"There is no file {path}.")
    try:
        part = OpenEXR.File(str(path), separate_channels=True).parts[0]
        channels = {name: channel.pixels for name, channel in part.channels.items()}
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        raise BokehError(
            f"{path} is not a whole OpenEXR file ({path.stat().st_size} bytes): {error}. It may be truncated; copy or "
            "render it again."
        ) from error
    sizes = {plane.shape for plane in channels.values()}
    if not channels or len(sizes) != 1 or len(next(iter(sizes))) != 2:
        raise BokehError(f"{path} has channels of the sizes {sorted(sizes)}; expected one size for all.")
    return channels
