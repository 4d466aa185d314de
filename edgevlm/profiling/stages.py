"""What the time of an answer goes into, by the kind of a bundle: names, labels and colours.

`Profile.stages` has one entry for each `TimeShare` of the bundle's kind. The shares of a VLM divide
its stage `decoder` into prefill and decode; every kind ends with the time that the loop takes
around its functions.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TimeShare:
    """One part of an answer's time.

    Attributes:
        name: Key in `Profile.stages`.
        label: In tables and on the page.
        colour: CSS variable of the page.
        stage: Stage whose blocks' runs it adds up; empty for time outside of runs.
        functions: Functions of that stage; empty for all of them.
    """

    name: str
    label: str
    colour: str
    stage: str = ""
    functions: tuple[str, ...] = ()


_PREPROCESS = TimeShare("preprocess", "image preprocessing", "--pink")
_LOOP = (
    TimeShare("evict", "evictions", "--violet"),
    TimeShare("wait", "wait for loads", "--grey"),
    TimeShare("host", "between blocks", "--dim"),
)
# Colours that people who confuse red and green tell apart (Okabe and Ito).
SHARES = {
    "vlm": (
        _PREPROCESS,
        TimeShare("vision", "vision", "--blue", "vision"),
        TimeShare("reduce", "reduce", "--yellow", "reduce"),
        TimeShare("prefill", "prefill", "--orange", "decoder", ("prefill",)),
        TimeShare("head", "head", "--sky", "head"),
        TimeShare("decode", "decode", "--green", "decoder", ("decode", "check")),
        *_LOOP,
    ),
    "encoder": (
        _PREPROCESS,
        TimeShare("vision", "vision", "--blue", "vision"),
        TimeShare("text", "text", "--orange", "text"),
        *_LOOP,
    ),
    "diffusion": (
        TimeShare("text", "text", "--orange", "text"),
        TimeShare("denoiser", "denoiser", "--blue", "denoiser"),
        TimeShare("vae", "frames", "--green", "vae"),
        *_LOOP,
    ),
}


def time_shares(kind: str) -> tuple[TimeShare, ...]:
    """The shares of a kind, in the order of an answer.

    Raises:
        ValueError: If there is no such kind.
    """
    if kind not in SHARES:
        raise ValueError(f"kind is '{kind[:60]}', this edgevlm reads profiles of {list(SHARES)}")
    return SHARES[kind]


def share_of(kind: str, stage: str, function: str) -> str:
    """The share that runs of a function belong to; the stage where no share has them."""
    for share in time_shares(kind):
        if stage and share.stage == stage and function in (share.functions or (function,)):
            return share.name
    return stage


def label(name: str) -> str:
    """The label of a share, the same in all kinds."""
    return {share.name: share.label for shares in SHARES.values() for share in shares}[name]


def colour(name: str) -> str:
    """The CSS colour of a share, the same in all kinds."""
    colours = {share.name: share.colour for shares in SHARES.values() for share in shares}
    return f"var({colours.get(name, '--grey')})"
