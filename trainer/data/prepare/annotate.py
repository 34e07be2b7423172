"""Stage one, for one photograph: everything that is to be known of it, or why it is not taken."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch

from bokeh_ops.camera.photograph import MOST_BYTES
from bokeh_ops.depth.conventions import DepthKind, DepthRange, fit_to_image, same_shape, to_depth_map
from bokeh_ops.errors import BokehError
from trainer.data.prepare.focus import INSIDE, focus_from_foreground, k_of, typical_blur
from trainer.data.prepare.framing import Framing, frame, work_size
from trainer.data.prepare.lens import Lens, camera_name, check_lens, read_lens
from trainer.data.prepare.picture import Header, decode, opened
from trainer.data.prepare.providers import Photograph, Providers
from trainer.data.prepare.record import Item, Record, key_for
from trainer.data.prepare.rejection import REASONS, Rejected
from trainer.data.prepare.sets import NO_BLUR, SETS, check_answer
from trainer.data.prepare.settings import OWN_KIND, Settings
from trainer.data.prepare.sources import PICTURES
from trainer.data.sample import encode_sample

_KINDS = {
    "metric": DepthKind.METRIC,
    "disparity": DepthKind.DISPARITY,
    "inverted": DepthKind.INVERTED,
    OWN_KIND: DepthKind.DISPARITY,  # the provider has turned it into dioptres
}
_NEAREST_MM = 10.0
"""Nothing is nearer than this, in millimetres: more dioptres than that are a mistake in the units."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class Outcome:
    """What became of a photograph.

    Attributes:
        id: which one (:class:`~trainer.data.prepare.record.Item`).
        key: its name in the data set; empty for one that could not be read.
        sha256: of the file; None where it could not be read.
        files: by the ending that follows the key; None for a rejected one.
        info: as in ``KEY.json``; None for a rejected one.
        reason: why it was rejected (:data:`~trainer.data.prepare.rejection.REASONS`); None for an accepted one.
        detail: what was found.
    """

    id: str
    key: str = ""
    sha256: str | None = None
    files: dict[str, bytes] | None = None
    info: dict[str, Any] | None = None
    reason: str | None = None
    detail: str = ""


def look_at(item: Item, providers: Providers, settings: Settings) -> Outcome:
    """Annotate one photograph. It depends on nothing but its arguments."""
    record = Record(item, PICTURES)
    key, digest = "", None
    try:
        content = record.picture(MOST_BYTES)
        digest = hashlib.sha256(content).hexdigest()
        key = key_for(item.id, digest)
        files, info = _annotate(key, record, content, providers, settings)
    except Rejected as rejected:
        return Outcome(item.id, key, digest, reason=rejected.reason, detail=rejected.detail[:500])
    info = {**info, "id": _clean(item.id), "sha256": digest}
    return Outcome(item.id, key, digest, files(info), info)


def _annotate(
    key: str, record: Record, content: bytes, providers: Providers, settings: Settings
) -> tuple[Callable[[dict[str, Any]], dict[str, bytes]], dict[str, Any]]:
    """What is known of the photograph, and a function that makes its files."""
    given = record.given()
    told_sharp, told_by = _flag(given.get("pseudo_aif")), "given"
    wanted = SETS.get(settings.set or "")
    with opened(content, settings.max_megapixels) as (image, header):
        _check_size(header, settings)
        held, lacking = _lens(header, given, settings)
        if lacking is not None and not (told_sharp or providers.blur):
            raise lacking
        picture = decode(image, header, work_size(header.upright, settings.resolution))
    lens = held if lacking is None else None
    focal_px = None
    if lens is not None and lens.focal_length and lens.sensor_across:
        focal_px = lens.focal_length / lens.sensor_across * picture.width
    photograph = Photograph(key, picture, focal_px, record, given)

    answers = _answers(photograph, providers)
    if "blur" in answers:
        check_answer(answers["blur"], wanted)
        if told_sharp is None:
            told_sharp, told_by = answers["blur"] == NO_BLUR, "classifier"
    if lacking is not None and not told_sharp:
        raise lacking

    disparity, mask = maps_of(photograph, providers, settings)
    photograph = photograph.with_disparity(disparity)
    focus = focus_from_foreground(disparity, mask, settings.nearest, settings.flat)
    framing = frame(header.upright, settings.resolution, mask if settings.crop == "foreground" else None)
    shown, shown_mask = framing.cut(disparity), framing.cut(mask)
    area = _check_foreground(mask, shown_mask, settings)
    far, near = (float(value) for value in np.quantile(shown, (0.02, 0.98)))
    if near - far < settings.min_depth_range:
        raise Rejected("depth_range", f"{near - far:.3g} dioptres, from {far:.3g} to {near:.3g}")

    distance, distance_by = focus.distance, "foreground"
    if settings.subject_distance and lens is not None and lens.subject_distance is not None:
        distance, distance_by = lens.subject_distance, "SubjectDistance"
    by_lens = k = None if lens is None else _k(lens, distance, framing)
    blur = None if k is None else typical_blur(shown, k, distance)
    if wanted is not None:
        wanted.check_sharpness(*_sharp_by(told_sharp, blur, settings))
    if told_sharp and blur is not None and blur > settings.sharp_radius:
        # Whoever looked at it saw no blur, so this K is wrong: of the lens, its distance or the depth. For rendering
        # blur onto it none of them is needed.
        k = None
    if k is not None and k > settings.max_k:
        raise Rejected("k_range", f"K is {k:.4g}, more than {settings.max_k:g}")
    captions = _captions(photograph, providers, settings)
    info: dict[str, Any] = {
        "captions": captions,
        "k": k,
        **_sharpness(told_sharp, told_by, blur, held, settings),
        **answers,
        "s1_m": _rounded(distance),
        "s1_by": distance_by,
        "foreground_flat": focus.flat,
        "foreground_range": _rounded(focus.foreground_range),
        "foreground_area": _rounded(area),
        "depth_range": _rounded(near - far),
        "blur_px": _rounded(blur),
        **({} if k == by_lens else {"k_by_lens": _rounded(by_lens)}),
        **_lens_info(held, lens, framing),
        "crop": [_rounded(value) for value in framing.box],
        "original_size": list(header.upright),
        "format": header.format,
        "source": _text(given, "flickr_url", "source") or settings.source or _clean(record.item.id),
        "licence": _text(given, "image_license", "licence", "license") or settings.licence,
    }
    if given.get("flickr_photo_id") is not None:
        info["flickr_photo_id"] = _clean(str(given["flickr_photo_id"])[:64])
    cropped = framing.cut(np.asarray(picture))
    return lambda known: encode_sample(cropped, shown, shown_mask, known, settings.picture), info


def maps_of(
    photograph: Photograph, providers: Providers, settings: Settings
) -> tuple[np.ndarray, np.ndarray]:
    """Disparity (dioptres) and foreground (0..1) of a photograph, both ``[h, w]``.

    Raises:
        Rejected: a provider has none, or gave something that cannot be.
    """
    size = photograph.image.size
    disparity = _disparity(_ask("depth", providers.depth, photograph), size, settings)
    mask = _mask(_ask("mask", providers.mask, photograph.with_disparity(disparity)), size)
    return disparity, mask


def _check_size(header: Header, settings: Settings) -> None:
    width, height = header.upright
    if min(width, height) < settings.shortest:
        raise Rejected(
            "too_small", f"{width} x {height} pixels; the short side must have {settings.shortest}"
        )
    if max(width, height) > settings.max_aspect * min(width, height):
        raise Rejected("panorama", f"{width} x {height}: sides of more than {settings.max_aspect:g} to 1")


def _lens(header: Header, given: Mapping[str, Any], settings: Settings) -> tuple[Lens, Rejected | None]:
    """What is known of the lens, and why K cannot be computed; what is sharp all over may be taken without."""
    lens = read_lens(header.exif, given, header.upright)
    lacking = None
    try:
        check_lens(lens, header.exif, settings, header.upright)
    except Rejected as rejected:
        if rejected.reason not in ("no_lens_data", "cropped"):
            raise
        lacking = rejected
    if settings.set is not None:
        SETS[settings.set].check_lens(lens.f_number, lens.exposure_time, settings.sharp_exposure)
    return lens, lacking


def _answers(photograph: Photograph, providers: Providers) -> dict[str, str]:
    """What those who were asked say: ``photograph`` is ``yes``, ``blur`` one of :data:`.sets.BLURS`."""
    found = {}
    if providers.photograph is not None:
        found["photograph"] = _ask("photograph", providers.photograph, photograph)
        if found["photograph"] != "yes":
            raise Rejected("not_a_photograph", "by who was asked with --photograph")
    if providers.blur is not None:
        found["blur"] = _ask("blur", providers.blur, photograph)
    return found


def _ask(role: str, provider: Callable[[Photograph], Result], photograph: Photograph) -> Result:
    try:
        return provider(photograph)
    except Rejected:
        raise
    except BokehError as error:
        reason = f"bad_{role}"
        raise Rejected(reason if reason in REASONS else "provider_failed", str(error)) from error
    except Exception as error:
        raise Rejected("provider_failed", f"{role}: {type(error).__name__}: {error}") from error


def _disparity(values: np.ndarray, size: tuple[int, int], settings: Settings) -> np.ndarray:
    """Dioptres ``[h, w]`` of the reduced photograph."""
    scaling = DepthRange.NORMALISE if settings.depth_normalise else DepthRange.SCALE
    try:
        found = to_depth_map(
            _tensor(values), _KINDS[settings.depth_kind], scaling, settings.depth_scale
        ).disparity
        if settings.depth_normalise:
            found = found * settings.depth_scale
        found = _fitted(found, size)
    except BokehError as error:
        raise Rejected("bad_depth", str(error)) from error
    found = (found + settings.depth_offset).clamp(min=0)
    largest = float(found.max())
    if largest > 1000 / _NEAREST_MM or not largest > 0:
        raise Rejected(
            "bad_depth",
            f"the nearest point is at {1 / largest if largest else math.inf:.3g} m; are --depth-kind and --depth-scale "
            "right?",
        )
    return found[0, 0].numpy()


def _mask(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Foreground ``[h, w]``, 0..1, of the reduced photograph."""
    mask = _tensor(values)
    low, high = float(mask.min()), float(mask.max())
    if mask.ndim != 3 or not (low >= -0.01 and high <= 1.01):  # NaN is neither
        raise Rejected(
            "bad_mask", f"shape {list(values.shape)}, from {low:g} to {high:g}; expected [h, w], 0..1"
        )
    try:
        return _fitted(mask.clamp(0, 1)[:, None], size)[0, 0].clamp(0, 1).numpy()
    except BokehError as error:
        raise Rejected("bad_mask", str(error).replace("depth map", "mask")) from error


def _fitted(found: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """A map of the whole photograph at its size (width, height); nobody is there to be told that it was stretched."""
    own = (found.shape[3], found.shape[2])
    if not same_shape(own, size):
        raise BokehError(
            f"The depth map is {own[0]} x {own[1]} but the photograph {size[0]} x {size[1]}: their shapes differ by "
            "more than 2 %."
        )
    return fit_to_image(found, 1, size[1], size[0])


def _tensor(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(values, dtype=np.float32, order="C"))[
        None
    ]  # a copy: it may be read-only


def _check_foreground(mask: np.ndarray, shown: np.ndarray, settings: Settings) -> float:
    """The share of the crop that is foreground."""
    area = float((shown > INSIDE).mean())
    if not settings.min_foreground <= area <= settings.max_foreground:
        raise Rejected(
            "foreground_area",
            f"{100 * area:.1f} % of the crop, expected {100 * settings.min_foreground:g} to "
            f"{100 * settings.max_foreground:g}",
        )
    kept = float((shown > INSIDE).sum()) / float((mask > INSIDE).sum())
    if kept < 0.5:
        raise Rejected("foreground_cut", f"{100 * kept:.0f} % of the foreground is in the crop")
    return area


def _k(lens: Lens, distance: float, framing: Framing) -> float:
    assert lens.focal_length is not None
    assert lens.f_number is not None
    assert lens.sensor_across is not None
    return k_of(
        lens.focal_length,
        lens.f_number,
        distance,
        framing.sensor_shown(lens.sensor_across),
        framing.resolution[0],
    )


def _sharp_by(told: bool | None, blur: float | None, settings: Settings) -> tuple[bool, str]:
    """Whether the lens leaves all in focus, and who says so: whoever looked, else the blur radius."""
    if told is not None:
        return told, f"pseudo_aif is {str(told).lower()}"  # a classifier's answer was checked already
    assert blur is not None  # without a lens somebody has told
    return blur <= settings.sharp_radius, f"a blur radius of {blur:.3g} pixels in 95 % of the crop"


def _sharpness(
    told: bool | None, by: str, blur: float | None, lens: Lens, settings: Settings
) -> dict[str, Any]:
    if told is not None:
        return {"all_in_focus": told, "all_in_focus_by": by}
    still = lens.exposure_time is None or lens.exposure_time <= settings.sharp_exposure
    sharp = blur is not None and blur <= settings.sharp_radius and still
    return {"all_in_focus": sharp, "all_in_focus_by": "blur radius"}


def _captions(photograph: Photograph, providers: Providers, settings: Settings) -> list[str]:
    found = [text for provider in providers.captions for text in _ask("captions", provider, photograph)]
    if not found and providers.captions_else is not None:
        found = [*_ask("captions", providers.captions_else, photograph)]
    if not found and (providers.captions or providers.captions_else):
        asked = [*settings.captions, *([settings.captions_else] if settings.captions_else else [])]
        raise Rejected("no_captions", f"none by {', '.join(asked)}")
    return [_clean(text) for text in dict.fromkeys(found)]


def _lens_info(held: Lens, lens: Lens | None, framing: Framing) -> dict[str, Any]:
    """Of a lens without K, which is None, the f-number and the exposure alone: what sets are made by."""
    if lens is None:
        told = {"f_number": _rounded(held.f_number), "exposure_s": _rounded(held.exposure_time)}
        return {"f_mm": None, **told, "sensor_width_mm": None, "camera": None}
    across = lens.sensor_across
    return {
        "f_mm": _rounded(lens.focal_length, 1000),
        "f_number": _rounded(lens.f_number),
        "sensor_width_mm": _rounded(across, 1000),
        "sensor_shown_mm": None if across is None else _rounded(framing.sensor_shown(across), 1000),
        "sensor_from": lens.sensor_from,
        "exposure_s": _rounded(lens.exposure_time),
        "subject_distance_m": _rounded(lens.subject_distance),
        "camera": _clean(camera_name(lens.make, lens.model)) if lens.make or lens.model else None,
    }


def _rounded(value: float | None, factor: float = 1.0) -> float | None:
    """Seven digits, which is more than is known; infinity, which JSON does not have, becomes null."""
    return None if value is None or not math.isfinite(value) else float(f"{value * factor:.7g}")


def _flag(value: Any) -> bool | None:
    if isinstance(value, str):
        value = {"true": True, "1": True, "false": False, "0": False}.get(value.strip().lower())
    return bool(value) if isinstance(value, (bool, int)) else None


def _text(given: Mapping[str, Any], *names: str) -> str | None:
    for name in names:
        value = given.get(name)
        if isinstance(value, (str, int)) and not isinstance(value, bool) and str(value).strip():
            return _clean(str(value).strip()[:1000])
    return None


def _clean(text: str) -> str:
    """The text with ``?`` for what UTF-8 cannot hold: halves of characters, bytes of file names that are no text."""
    return text.encode("utf-8", "replace").decode()
