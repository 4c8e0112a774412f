"""The scale of gradients in float16, and the steps that were skipped because they overflowed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from harness.basics.errors import NonFiniteLossError

#: A scale this small makes every gradient that float16 can hold harmless: what is still infinite is so in
#: float32 too.
_LEAST = 2.0**-14


class Scaler(torch.amp.GradScaler):
    """torch's scaler, which also counts the steps that it skips, without waiting for the device.

    Args:
        device: where the gradients are.
        enabled: whether training is in float16; else nothing here does anything.
    """

    def __init__(self, device: torch.device, *, enabled: bool) -> None:
        super().__init__(device.type, enabled=enabled)
        self._skipped: Tensor | int = 0

    def update(self, new_scale: float | Tensor | None = None) -> None:
        """Fit the scale: it falls after a step that was skipped, and after no other."""
        if not self.is_enabled():
            return
        assert self._scale is not None  # some loss has been scaled
        before = self._scale.clone()
        super().update(new_scale)
        self._skipped = self._skipped + (self._scale < before).long()

    def read(self, step: int) -> dict[str, float]:
        """Columns of the history: the scale, and how many steps of the run were skipped up to here.

        Args:
            step: for the error.

        Raises:
            NonFiniteLossError: gradients are infinite or NaN whatever the scale, so that nothing is trained.
        """
        if not self.is_enabled():
            return {}
        scale, skipped = self.get_scale(), int(self._skipped)
        if scale < _LEAST:
            raise NonFiniteLossError(
                f"the gradients are not finite at step {step}: float16 was scaled down to {scale:.2g}, "
                f"{skipped} steps were skipped, and nothing is trained",
                where="amp = fp16",
                remedy="--set amp=bf16, lower optimiser.lr, set optimiser.clip_norm, or switch amp off",
            )
        return {"amp.scale": scale, "amp.skipped": float(skipped)}

    def state_dict(self) -> dict[str, Any]:
        """That of torch, with the number of skipped steps."""
        state = super().state_dict()
        return state | {"skipped": int(self._skipped)} if state else state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Checkpoints of before the count begin at 0."""
        super().load_state_dict(state_dict)
        self._skipped = int(state_dict.get("skipped", 0))
