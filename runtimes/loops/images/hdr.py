"""High dynamic range (HLG and PQ, which phones record) to the 8-bit sRGB that models know.

    signal -> light of the display -> brightness relative to white -> primaries of sRGB -> shoulder
           -> sRGB

A player without this shows such videos pale and grey. White is 203 cd/m2 (ITU-R BT.2408, table 1).
The shoulder is ours: it leaves what is up to 0.7 of white, and lets highlights run out.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

PQ, HLG = 16, 18  # transfer functions, by ITU-T H.273, table 3
BT2020 = 9  # primaries, by table 2
WHITE = 203.0  # cd/m2
HLG_PEAK, HLG_GAMMA = 1000.0, 1.2  # of the display that a signal is made for: BT.2100, table 5
LUMINANCE = np.array([0.2627, 0.6780, 0.0593], np.float32)
# Linear light of BT.2020 to that of BT.709, which has the primaries of sRGB: BT.2087.
TO_BT709 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32
)
KNEE = 0.7


def is_hdr(frame: Any) -> bool:
    """Whether a frame of PyAV says that its signal is HLG or PQ."""
    return int(frame.color_trc) in (PQ, HLG)


def to_srgb(signal: NDArray[np.uint16], transfer: int, primaries: int) -> NDArray[np.uint8]:
    """Pixels [h, w, 3] of 16 bits as 8-bit sRGB.

    Args:
        signal: Red, green and blue as they are coded, 65,535 the most.
        transfer: `PQ` or `HLG`.
        primaries: By H.273; those of BT.2020 are converted.
    """
    light = _light(transfer)[signal]
    if transfer == HLG:  # what a display makes of a scene
        scene = np.maximum(light @ LUMINANCE, 1e-6)[..., None]
        light = HLG_PEAK / WHITE * scene ** np.float32(HLG_GAMMA - 1) * light
    if primaries == BT2020:
        light = np.maximum(light @ TO_BT709.T, 0)
    most = light.max(-1, keepdims=True)
    above = np.maximum(most - KNEE, 0) / (1 - KNEE)
    shown = np.where(most > KNEE, KNEE + (1 - KNEE) * np.tanh(above), most)
    light = light * (shown / np.maximum(most, 1e-6))
    coded = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    pixels: NDArray[np.uint8] = (coded * 255 + 0.5).astype(np.uint8)
    return pixels


@cache
def _light(transfer: int) -> Floats:
    """Light of each of 65,536 codes: of PQ relative to white, of HLG of the scene from 0 to 1."""
    code = np.arange(65536, dtype=np.float64) / 65535
    if transfer == HLG:  # BT.2100, table 5
        a = 0.17883277
        b, c = 1 - 4 * a, 0.5 - a * np.log(4 * a)
        return np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12).astype("f4")
    m1, m2 = 2610 / 16384, 2523 / 4096 * 128  # BT.2100, table 4
    c1, c2, c3 = 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32
    power = code ** (1 / m2)
    return (1e4 / WHITE * (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1)).astype("f4")
