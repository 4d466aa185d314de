"""What a method is at each site: the class `Method` of a method file derives from one of these.

`plan` comes first and works on numbers alone; the call is traced with the numbers that it gave, so
every shape in it is a constant. The defaults of a method's properties are here and nowhere else.

Beside the class a method file has six texts of one line: SUMMARY, FORMULA, STATIC, SOURCE, DIFFERS,
and COMPARED, a key of `COMPARISONS`.
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from edgevlm.graphs.clips.merging import Stage
from edgevlm.graphs.pruning import Look
from edgevlm.graphs.visual_shape import VisualShape

# How a method was compared with what its file names as the source; the value of its `COMPARED`.
COMPARISONS = {
    "end to end": "the model's own modules, driven as the original drives them, keep the tokens"
    " that the modules of an export keep; `verify` compares its graphs with these",
    "vectors": "outputs recorded from the original's functions: its arithmetic, not which layer or"
    " side of the projector it is given",
    "paper's equations": "loops over the paper's equations; no code of the authors was run",
    "text alone": "the paper's words; neither its equations nor its code were compared",
    "baseline": "no paper: the named function of torch or numpy",
}


class SiteMethod(Protocol):
    """What methods of all sites have in common.

    Attributes:
        signals: Names of what the encoder gives beside its features (`graphs/signals.py`), such as
            `cls_attention`; each is a keyword argument of the call at site `tokens`.
        global_times: A token counts for the signal `global_attention` if it receives more than so
            many times the attention that a token receives in the mean.
    """

    signals: tuple[str, ...] = ()
    global_times: float = 0.0


class TokensMethod(SiteMethod, Protocol):
    """A method of site `tokens`: N features become K visual tokens.

    Its `__init__` takes `tokens` (K; None keeps all) and options as keywords.

    Attributes:
        calibrate: The call gives a third output, the logarithm of how many tokens each kept token
            stands for, f32 [1, K].
        keeps_rows: What closes a row of a grid in the sequence (LLaVA's newline) stays where tokens
            leave; else one at the end does.
        causal: A frame of a stream can be reduced by itself and the frame before it: `of_frame`.
        first_whole: Of a causal method: the first frame keeps all its tokens; else it is reduced
            against a frame of zeros.
    """

    calibrate: bool = False
    keeps_rows: bool = False
    causal: bool = False
    first_whole: bool = True

    def plan(self, shape: VisualShape) -> int:
        """Tokens kept: K.

        Raises:
            PlanError: If the method cannot keep K tokens of this shape.
        """
        ...

    def __call__(self, features: Tensor, *none: Any, **inputs: Any) -> tuple[Tensor, ...]:
        """Reduce.

        Args:
            features: f32 [1, N, C].
            *none: Nothing: all that follows is named.
            **inputs: `shape`, a VisualShape, where None is one square grid; and the signals that
                the method names, f32 [1, N] or [1, N, D].

        Returns:
            Tokens f32 [1, K, C] and their positions i32 [1, K], ascending and distinct; with
            `calibrate` the logarithms too.
        """
        ...

    def of_frame(
        self, frame: Tensor, previous: Tensor, kept: int, **signals: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Reduce one frame of a stream, of a `causal` method: as the call does where it is later.

        Args:
            frame: f32 [1, N, C].
            previous: All tokens of the frame before, f32 [1, N, C].
            kept: Tokens kept of the frame, k; 1 to N.
            **signals: Those of the frame, f32 [1, N] or [1, N, D], where the method names some.

        Returns:
            Tokens f32 [1, k, C] and their positions in the frame i32 [1, k], ascending.
        """
        raise TypeError("a method that is not causal takes no frame of a stream")


class VisionMethod(SiteMethod, Protocol):
    """A method of site `vision`: tokens merge after some layers of the encoder.

    Attributes:
        between: Tokens merge between attention and MLP of a layer; else after both.
        proportional: A merged token weighs as much in the attention of later layers as the patches
            that it stands for (the logarithm of their number is added to the scores); else as one.
        leaves: Whether it is a `LeavingMethod` instead.
        joins: Whether it is a `JoiningMethod` instead.
    """

    between: bool = True
    proportional: bool = False
    leaves: bool = False
    joins: bool = False

    def plan(self, patches: int, layers: int) -> tuple[int, ...]:
        """Patches left after each layer.

        Args:
            patches: Patches of a view, a class token left out: N.
            layers: Layers of the encoder.

        Raises:
            PlanError: If the method cannot leave as many.
        """
        ...

    def __call__(
        self, x: Tensor, metric: Tensor, size: Tensor, removed: int, class_token: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Merge in one layer.

        Args:
            x: Tokens f32 [n, D].
            metric: What may be compared, f32 [n, E]: the layer's keys, mean over heads, if tokens
                merge between attention and MLP, else the tokens.
            size: Patches that each token stands for, f32 [n, 1].
            removed: How many fewer tokens are left.
            class_token: Token 0 stands for the whole view and never merges.

        Returns:
            Tokens f32 [n - removed, D], the patches that each stands for f32 [n - removed, 1], and
            the output token that each input token is part of, i64 [n].
        """
        ...


class LeavingMethod(SiteMethod, Protocol):
    """A method of site `vision` of encoders of clips: tokens leave, and are not put back.

    The tokens of the key frame, `key` of them, are in front and stay.
    """

    leaves: bool = True
    joins: bool = False

    def plan_clip(self, patches: int, layers: int, groups: int) -> tuple[int, ...]:
        """Tokens left after each layer.

        Args:
            patches: Tokens of a clip: N.
            layers: Layers of the encoder.
            groups: Groups of frames, of as many tokens each.

        Raises:
            PlanError: If the method cannot leave as many.
        """
        ...

    def weigh(self, tokens: int, key: int) -> Tensor:
        """How much the attention of each query counts, f32 [n]."""
        ...

    def choose(self, received: Tensor, key: int, kept: int) -> Tensor:
        """The tokens that go on, i64 [kept], by the attention that each receives, f32 [n]."""
        ...


class JoiningMethod(SiteMethod, Protocol):
    """A method of site `vision` of encoders of frames: their tokens go on in fewer windows.

    Tokens of a window see each other; a window is a frame before the first layer, and has its class
    token first.
    """

    leaves: bool = False
    joins: bool = True
    merges: bool = False

    def plan_frames(self, frames: int, patches: int, layers: int) -> tuple[tuple[int, int], ...]:
        """Windows, and tokens of each with its class tokens, behind each layer.

        Args:
            frames: Frames of a clip.
            patches: Patches of a frame, the class token left out.
            layers: Layers of the encoder.

        Raises:
            PlanError: If the method cannot join as many.
        """
        ...

    def __call__(self, x: Tensor, windows: int, tokens: int) -> Tensor:
        """Join what a layer gives, f32 [W, n, D]: [windows, tokens, D]."""
        ...


class FramesMergingMethod(SiteMethod, Protocol):
    """A method of site `vision` of encoders of frames: windows of tokens are joined, and merge.

    Windows are those of a `JoiningMethod`; a token weighs as much as the patches that it stands for
    (`graphs/clips/merging.py`).
    """

    leaves: bool = False
    joins: bool = True
    merges: bool = True

    def plan_frames(self, frames: int, patches: int, layers: int) -> tuple[tuple[int, int], ...]:
        """As that of a `JoiningMethod`."""
        ...

    def stages(self, frames: int, patches: int, layers: int) -> tuple[Stage, ...]:
        """The windows of each layer, of the same numbers.

        Raises:
            PlanError: If the method cannot join or merge as many.
        """
        ...

    def __call__(
        self, x: Tensor, metric: Tensor, size: Tensor, removed: int, classes: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Merge in one window, as a `VisionMethod` does; `classes` of its tokens are class tokens.

        They are in front, and stay there.
        """
        ...


class DecoderMethod(SiteMethod, Protocol):
    """A method of site `decoder`: visual tokens leave between layers of the language model.

    Attributes:
        after: Tokens are chosen by the layer after which they leave; else by the layer before which
            they leave.
        contiguous: What is left of the prompt is numbered anew; else tokens keep their positions.
        carries: `carry` makes a state before the first layer, which goes with the rows from block
            to block; a choice has it as `Look.carried`. With a signal, the state is made of it.
        final_norm: The choice needs the norm after the last layer, `Look.final_norm`.
    """

    after: bool = True
    contiguous: bool = False
    carries: bool = False
    final_norm: bool = False

    def plan(self, tokens: int, layers: int) -> tuple[int, ...]:
        """Visual tokens that each layer sees; the first layer sees all.

        Args:
            tokens: Visual tokens of the prompt: K.
            layers: Layers of the language model.

        Raises:
            PlanError: If there is no such layer, or more tokens should stay than there are.
        """
        ...

    def plan_whole(self, tokens: int, layers: int) -> tuple[int, ...]:
        """Of the visual tokens that each layer sees those that no other was merged into.

        Only of a method whose number of merged tokens does not follow from what `plan` returns;
        empty is all of them.
        """
        return ()

    def carry(self, look: Look, *signal: Tensor) -> Tensor:
        """The state before the first layer, of a method that carries one.

        Args:
            look: The first layer and its input: the prompt as the language model gets it.
            signal: The encoder's signal at each visual token, f32 [k], if the method names one.

        Returns:
            A number for each row, f32 [s].
        """
        raise NotImplementedError

    def __call__(self, look: Look, hidden: Tensor, kept: int) -> tuple[Tensor | None, Tensor]:
        """Choose the visual tokens that stay; called where some but not all of them leave.

        Args:
            look: The layer by which tokens are chosen, and its input.
            hidden: Activations from which tokens leave, f32 [1, s, C]: the layer's output if
                `after`, else its input.
            kept: Visual tokens that stay: k.

        Returns:
            New activations of the visual tokens that stay, f32 [1, k, C], in the order in which
            they take the rows that stay, or None where these stay as they are; and which of the
            visual tokens' rows stay, i64 [k], ascending.
        """
        ...
