"""Constants of preprocessing that no bundle may have, beside those of a manifest's edits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edgevlm.bundle import checks
from edgevlm.bundle.host import ImageSpec
from edgevlm.errors import BundleError

PICTURE = ImageSpec(8, 8, 1, 1, "first", 1, "bilinear", (0.5,) * 3, (0.5,) * 3)
CLIP = replace(PICTURE, frames=4)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (replace(CLIP, depth=0), "host.image.depth is 0, expected 1 to"),
        (replace(CLIP, picker="motion", candidates=3), "host.image.candidates is 3, expected 4 to"),
        (replace(CLIP, candidates=8), "host.image.candidates is 8, expected 0 to 0"),
        (replace(CLIP, picker="os", candidates=8), "host.image.picker is 'os', known: "),
        (replace(PICTURE, picker="motion", candidates=8), "host.image.candidates is 8, expected 1"),
    ],
)
def test_what_no_preprocessing_has_is_refused(spec, message):
    with pytest.raises(BundleError, match=message):
        checks.image(spec)


def test_a_clip_may_have_a_picker():
    checks.image(replace(CLIP, picker="motion", candidates=8))
