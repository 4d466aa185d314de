"""Tiny models of transformers with large random weights, and what an export makes of them.

A check of this folder drives transformers' own modules as a method's original drives them (its
layer, its signal, its moment) and compares with the blocks of an export of the same model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgevlm.graphs.blocks import ReduceBlock, VisionBlock
from edgevlm.graphs.parts import ModelParts
from edgevlm.graphs.signals import Observed
from edgevlm.graphs.trace import check
from edgevlm.planning.vlm import ChosenMethods, choose_methods
from edgevlm.recipe import MethodChoice, Recipe
from edgevlm.registry import FAMILIES

transformers = pytest.importorskip("transformers")

# Weights of a layer get this deviation, so that attention is far from even.
DEVIATION = 0.3
SIDE, WIDTH = 7, 32  # patches of a view each way; channels
Run = Callable[[nn.Module, Sequence[Tensor]], Any]


@dataclass(frozen=True)
class Exported:
    """The stages `vision` and `reduce` of an export, with the methods of a recipe.

    Attributes:
        description: The family's numbers.
        methods: The methods, with the tokens that each leaves.
        parts: The model's modules with the methods.
    """

    description: Any
    methods: ChosenMethods
    parts: ModelParts

    @property
    def vision(self) -> VisionBlock:
        """`encode` of a view [1, 3, h_px, w_px]: features, then signals as they arise."""
        encoder = self.parts.encoder
        return VisionBlock(encoder.modules, encoder.grid).eval()

    @property
    def reduce(self) -> ReduceBlock:
        """`reduce`: features and signals of all views -> visual tokens and their positions."""
        return ReduceBlock(self.parts.pack, self.methods.tokens, self.description.shape).eval()

    def encoded(self, pixels: Tensor, run: Run | None = None) -> list[Tensor]:
        """Features of all views [P, 3, h_px, w_px], then their signals in the method's order.

        Args:
            pixels: The views.
            run: Runs a block in another way than PyTorch does.
        """
        modules, views = self.parts.encoder.modules, list[tuple[Tensor, ...]]()
        names = [name for m in modules if isinstance(m, Observed) for name in m.names]
        for view in pixels:
            outputs = run(self.vision, [view[None]]) if run else self.vision(view[None])
            views.append(outputs if isinstance(outputs, tuple) else (outputs,))
        features, *signals = (torch.cat(tensors, 1) for tensors in zip(*views, strict=True))
        by_name = dict(zip(names, signals, strict=True))
        return [features, *(by_name[name] for name in self.methods.tokens.signals)]

    def packed(self, values: Tensor) -> Tensor:
        """Values of the tokens of each view [P, N] in the order of the method's features [P*N]."""
        column = self.parts.pack(values.reshape(1, -1, 1).float())
        return column.flatten().to(values.dtype)

    @torch.no_grad()
    def reduced(self, pixels: Tensor, run: Run | None = None) -> tuple[Tensor, Tensor]:
        """Visual tokens [K, C] and their positions i64 [K], of all views; as `encoded`."""
        inputs = self.encoded(pixels, run)
        tokens, positions = (run(self.reduce, inputs) if run else self.reduce(*inputs))[:2]
        return tokens[0], positions[0].long()


@dataclass(frozen=True)
class Model:
    """transformers' model of a family; `tower` is its vision encoder."""

    own: Any
    family: Any

    @property
    def tower(self) -> Any:
        return self.own.model.vision_tower

    def exported(
        self,
        *methods: str,
        tokens: int | None = None,
        tiles: tuple[int, int] = (1, 1),
        frames: int = 1,
        size: tuple[int, int] | None = None,
    ) -> Exported:
        """What an export makes of it."""
        choices = tuple(MethodChoice.parse(method) for method in methods)
        recipe = Recipe(methods=choices, tokens=tokens, tiles=tiles, frames=frames, size=size)
        description = self.family.describe(self.own.config, {}, recipe)
        chosen = choose_methods(recipe, description)
        parts = chosen.applied(self.family.parts(self.own, description), description.image)
        return Exported(description, chosen, parts)

    @torch.no_grad()
    def attention(self, pixels: Tensor) -> list[Tensor]:
        """Attention of each layer of the tower [P, heads, n, n], as transformers computes it."""
        before = self.tower.config._attn_implementation
        self.tower.set_attn_implementation("eager")
        try:
            return list(self.tower(pixels, output_attentions=True).attentions)
        finally:
            self.tower.set_attn_implementation(before)

    @torch.no_grad()
    def states(self, pixels: Tensor) -> list[Tensor]:
        """The tower's embedding and the output of each layer, [P, n, D]."""
        return list(self.tower(pixels, output_hidden_states=True).hidden_states)

    @torch.no_grad()
    def projections(self, pixels: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Queries and keys of a layer of the tower [P, n, H*D], caught by hooks."""
        attention, caught = self.tower.encoder.layers[layer].self_attn, dict[str, Tensor]()
        hooks = [
            getattr(attention, name).register_forward_hook(
                lambda module, inputs, output, name=name: caught.update({name: output})
            )
            for name in ("q_proj", "k_proj")
        ]
        self.tower(pixels)
        for hook in hooks:
            hook.remove()
        return caught["q_proj"], caught["k_proj"]


def randomize(module: nn.Module, seed: int = 0) -> nn.Module:
    """Fill the weights: matrices by `DEVIATION`, biases by a tenth; norms keep their ones."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if weight.dim() > 1 or "embedding" in name:
                weight.normal_(0, DEVIATION, generator=generator)
            elif name.endswith("bias"):
                weight.normal_(0, DEVIATION / 10, generator=generator)
    return module.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def model_of() -> Callable[..., Model]:
    """`model_of("llava_next", vision={…}, text={…}, **config)`: a model of that family."""
    kinds = {
        "llava_next": ("clip_vision_model", "llama", -2, "default"),
        "llava_onevision": ("siglip_vision_model", "qwen2", -1, "full"),
    }

    def make(
        family: str, vision: dict[str, Any] | None = None, text: Any = None, **config: Any
    ) -> Model:
        tower, language, layer, strategy = kinds[family]
        sizes = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": 3}
        sizes |= {"num_attention_heads": 2}
        numbers = {"image_size": 4 * SIDE, "patch_size": 4, "model_type": tower}
        numbers = sizes | numbers | ({"vision_use_head": False} if layer == -1 else {})
        numbers |= vision or {}
        side = numbers["image_size"]
        document = {
            "model_type": family,
            "vision_config": numbers,
            "text_config": sizes
            | {"model_type": language, "num_key_value_heads": 2, "vocab_size": 64}
            | (text or {}),
            "image_grid_pinpoints": [[r * side, c * side] for r in (1, 2, 3) for c in (1, 2, 3)],
            "vision_feature_layer": layer,
            "vision_feature_select_strategy": strategy,
            "image_token_index": 63,
        }
        read = transformers.AutoConfig.for_model(**document | config)
        own = transformers.AutoModelForImageTextToText.from_config(read, dtype=torch.float32)
        return Model(randomize(own), FAMILIES.load(family))

    return make


@pytest.fixture(scope="session")
def clip_model() -> Callable[[str], Model]:
    """`clip_model("qwen2_5_vl")`: groups of two frames, windows of 4 x 4 patches, M-RoPE."""

    def make(family: str) -> Model:
        vision = {"depth": 3, "hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_heads": 2}
        vision |= {"out_hidden_size": WIDTH, "fullatt_block_indexes": [1], "window_size": 56}
        text = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": 2}
        text |= {"num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 64}
        text |= {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3]}}
        document = {"model_type": family, "vision_config": vision, "text_config": text}
        marks = {"vision_start_token_id": 61, "video_token_id": 62, "vision_end_token_id": 63}
        read = transformers.AutoConfig.for_model(**document, **marks, image_token_id=60)
        own = transformers.AutoModelForImageTextToText.from_config(read, dtype=torch.float32)
        return Model(randomize(own), FAMILIES.load(family))

    return make


@pytest.fixture(scope="session")
def llava_next(model_of: Callable[..., Model]) -> Model:
    """CLIP tower of three layers, features of the second; Llama. 7 x 7 patches of a view."""
    return model_of("llava_next")


@pytest.fixture(scope="session")
def llava_onevision(model_of: Callable[..., Model]) -> Model:
    """SigLIP tower of three layers, features of the last; Qwen2. 7 x 7 patches of a view."""
    return model_of("llava_onevision")


@pytest.fixture(scope="session")
def views() -> Callable[..., Tensor]:
    """`views(count, side)`: random pixels f32 [count, 3, side, side]."""

    @cache
    def make(count: int, side: int = 4 * SIDE, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(count, 3, side, side, generator=generator)

    return make


@pytest.fixture(scope="session")
def traced() -> Run:
    """Run a block by the graph that an exporter gets of it."""

    @torch.no_grad()
    def run(module: nn.Module, inputs: Sequence[Tensor]) -> Any:
        program = torch.export.export(module, tuple(map(torch.zeros_like, inputs)), strict=False)
        check(program, "block")
        return program.module()(*inputs)

    return run
