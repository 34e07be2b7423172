"""Why a photograph is not taken."""

from __future__ import annotations

REASONS = {
    "unreadable": "the file cannot be decoded, or is no picture of a known format",
    "too_large": "more pixels than may be decoded",
    "too_small": "fewer pixels than the training resolution",
    "animated": "several pictures in one file",
    "transparent": "transparent places; no camera makes them",
    "panorama": "longer than a camera's picture",
    "cropped": "another shape than the camera recorded: cut out later, so the sensor's share is unknown",
    "no_lens_data": "f-number, focal length or sensor width unknown",
    "smartphone": "taken by a smartphone",
    "rendered_blur": "a portrait mode, whose blur no lens made",
    "f_number": "another f-number than those of the set",
    "exposure": "exposed for too long to be sharp",
    "blur": "blurred in a way that was not meant, or not as the set is",
    "not_a_photograph": "drawn, rendered or generated, as far as the one who was asked can tell",
    "no_answer": "asked how it is blurred or whether it is a photograph, nobody answers",
    "bad_fields": "data beside the picture that cannot be true",
    "no_depth": "no depth map",
    "bad_depth": "a depth map that cannot be used",
    "depth_range": "too little depth for blur to show",
    "no_mask": "no foreground mask",
    "bad_mask": "a foreground mask that cannot be used",
    "foreground_area": "too little or too much of the picture is foreground",
    "foreground_cut": "most of the foreground falls outside the crop",
    "focus": "the foreground is nearer than the lens can focus",
    "k_range": "K beyond the range that is trained",
    "no_captions": "no caption",
    "provider_failed": "a plug-in raised an error",
    "crashed": "the process that read it died",
    "timeout": "it took too long",
    "memory": "it took too much memory",
    "duplicate": "the same file as another one",
    "balance": "there are enough of this K",
}
"""Every reason, and what it means."""

OF_THE_MACHINE = ("crashed", "timeout", "memory")
"""Reasons that lie with the machine and its limits, not with the photograph: it is tried again on the next run."""


class Rejected(Exception):
    """A photograph is not taken.

    Args:
        reason: one of :data:`REASONS`.
        detail: what was found in this one.
    """

    def __init__(self, reason: str, detail: str) -> None:
        assert reason in REASONS, reason
        super().__init__(reason, detail)  # both, so that it survives the way between processes
        self.reason, self.detail = reason, detail
