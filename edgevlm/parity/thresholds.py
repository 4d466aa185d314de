"""What a bundle must reach against PyTorch, by quantization scheme."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Threshold:
    """What a scheme must reach: one of the two measures.

    `whole` is whether the logits must reach it too, and not each block alone: with low-bit weights
    the errors of blocks add up, and `evaluate` says what that costs.
    """

    rel_error: float | None = None
    psnr_db: float | None = None
    whole: bool = True

    @property
    def exact(self) -> bool:
        """Whether answers must be the same, token by token."""
        return self.rel_error is not None

    def accepts(self, rel_error: float, psnr_db: float | None) -> bool:
        """Whether a difference is small enough; a `psnr_db` of None means none at all."""
        if self.rel_error is not None:
            return rel_error <= self.rel_error
        return psnr_db is None or psnr_db >= (self.psnr_db or 0.0)


_THRESHOLDS = {
    "none": Threshold(rel_error=1e-3),
    "fp16": Threshold(psnr_db=55.0),
    "w8a16": Threshold(psnr_db=40.0, whole=False),
    "w4g32a16": Threshold(psnr_db=20.0, whole=False),
    "w8a32": Threshold(psnr_db=40.0, whole=False),
    "w8a8": Threshold(psnr_db=30.0, whole=False),
    "w8a8s": Threshold(psnr_db=30.0, whole=False),
    "w4g32a32": Threshold(psnr_db=20.0, whole=False),
    "w4g32a8": Threshold(psnr_db=20.0, whole=False),
    "p6": Threshold(psnr_db=20.0, whole=False),
    "p4": Threshold(psnr_db=20.0, whole=False),
}


def threshold(scheme: str) -> Threshold:
    """What a scheme must reach."""
    return _THRESHOLDS[scheme]
