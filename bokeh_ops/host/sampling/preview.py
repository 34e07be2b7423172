"""Progress and previews of a grounded sweep: all rows in one small picture, and no harm where that fails."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.model_management
import comfy.utils
import latent_preview
from torch import Tensor

from ...adapter.rows import mosaic
from ..differences import out_of_memory
from ..notices import say


class Progress:
    """The progress bar of a sweep, with previews as the user has set them.

    A preview is a nicety: whatever goes wrong in one (no memory left, a decoder for other latents) is said once, and
    the rest of the sweep goes on without. An interrupt by the user is none of that and comes through.

    Args:
        patcher: the MODEL that is sampled.
        steps: of one run.
        targets: of all groups; every target counts as one run of the steps, so that the bar goes on over groups of
            any size.
        node_id: the node to speak through.
    """

    def __init__(self, patcher: Any, steps: int, targets: int, node_id: str | None = None) -> None:
        self.steps, self.total = steps, steps * targets
        self.node_id = node_id
        self._bar = comfy.utils.ProgressBar(self.total)
        self._show: Callable[..., Any] | None = None
        self._guarded(lambda: setattr(self, "_show", latent_preview.prepare_callback(patcher, self.total)))

    def of_group(self, done: int, group: int) -> Callable[[int, Tensor, Tensor, int], None]:
        """The host's callback for a run of ``group`` targets after ``done`` others."""

        def callback(step: int, x0: Tensor, x: Tensor, _total_steps: int) -> None:
            at = done * self.steps + (step + 1) * group
            show = self._show
            if show is None or not self._guarded(lambda: show(at - 1, mosaic(x0), x, self.total)):
                self._bar.update_absolute(at, self.total)

        return callback

    def _guarded(self, work: Callable[[], Any]) -> bool:
        """Whether ``work`` got done; where it failed there are no previews any more."""
        try:
            work()
            return True
        except comfy.model_management.InterruptProcessingException:
            raise
        except Exception as error:  # noqa: BLE001  of any previewer
            out_of_memory(error)  # whatever it is; the host then clears the device of it
            reason = f"{type(error).__name__}: {error}"
        # Only here, as inside the handler the error still holds what the failed preview held.
        self._show = None
        comfy.model_management.soft_empty_cache()
        say(f"the preview failed ({reason}); sampling goes on without previews.", self.node_id)
        return False
