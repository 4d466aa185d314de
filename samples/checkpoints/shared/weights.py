"""Seeded random weights, drawn so that a model with them looks at its picture.

A tensor is drawn from normal(0, std) by a generator seeded with `seed` and its name, so neither the
order nor the number of tensors matters. `std` is gain / sqrt(fan_in), gains in `GAINS`:

- query and key 1.4: attention scores spread over about 2, so attention picks some tokens and
  averages few; with uniform attention an image of 1,088 tokens would average to nothing.
- value and output 1.5: what attention brings outweighs what the last token already holds.
- patch 3, position table 0.5: neighbouring patches differ by content first, then by place.
- the text embedding has std 1, the connector's output too: visual tokens are as loud as words.
- norms are 1, but the last norm of the text model is -1: a head tied to the embedding then pushes
  down the token just read, which it would repeat for ever otherwise. Biases have std 0.1.
- the factor and the shift of SigLIP's and CLIP's likenesses are 10 and -1, so that scores of random
  embeddings are neither 0 nor 1.
- rows of special tokens are 1/4 as long and rows past the tokenizer 0: greedy text has words, and
  almost never ends by itself.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForVideoClassification,
)

from edgevlm.models.quiet import quiet

GAINS = {"q_proj": 1.4, "k_proj": 1.4, "v_proj": 1.5, "o_proj": 1.5, "out_proj": 1.5,
         "gate_proj": 1.5, "up_proj": 1.0, "down_proj": 1.0, "fc1": 1.5, "fc2": 1.0,
         "patch_embedding": 3.0, "modality_projection": 1.0,
         "linear_1": 1.5, "linear_2": 1.0, "in_proj_weight": 1.5, "head": 1.0,
         "visual_projection": 1.0, "text_projection": 1.0}  # fmt: skip
STDS = {"embed_tokens": 1.0, "lm_head": 1.0, "position_embedding": 0.5,
        "class_embedding": 0.5, "image_newline": 1.0, "bias": 0.1, "token_embedding": 1.0,
        "probe": 1.0, "in_proj_bias": 0.1}  # fmt: skip
CONSTANTS = {"logit_scale": math.log(10), "logit_bias": -1.0}
# What builds a model, by the end of its architecture's name; AutoModel any other.
AUTO = {
    "ForConditionalGeneration": AutoModelForImageTextToText,
    "ForVideoClassification": AutoModelForVideoClassification,
}
CHUNK = 1 << 22  # numbers drawn at a time: 16 MB, whatever the size of the tensor
DTYPES = {"float32": ("F32", 4), "bfloat16": ("BF16", 2), "int64": ("I64", 8)}
COUNTER = "num_batches_tracked"  # of a batch norm, the one tensor of whole numbers


class Weights:
    """Numbers of the tensors of a model, by name.

    Args:
        family: Its module, with gains, deviations and constants of its own.
        tokenizer: Says which rows of the table are words; None where there is no table.
        seed: Other seed, other numbers.
        constants: What tensors of one preset hold, beside the family's.
    """

    def __init__(
        self,
        family: ModuleType,
        tokenizer: Tokenizer | None,
        seed: int,
        constants: dict[str, float],
    ) -> None:
        self.gains = GAINS | getattr(family, "GAINS", {})
        self.stds = STDS | getattr(family, "STDS", {})
        self.constants = CONSTANTS | getattr(family, "CONSTANTS", {}) | constants
        # What the model itself adds to the weights of a norm, by its name.
        self.norm_offset = getattr(family, "norm_offset", lambda name: 0.0)
        self.tokenizer, self.seed = tokenizer, seed

    def draw(self, name: str, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
        """Yield the float32 numbers of one tensor, flat, in whole rows."""
        digest = hashlib.sha256(f"{self.seed} {name}".encode()).digest()
        generator = np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))
        layer, kind = name.split(".")[-2:] if "." in name else (name, name)
        if kind in self.constants:
            yield np.full(math.prod(shape), self.constants[kind], np.float32)
            return
        row = math.prod(shape[1:])
        if "norm" in layer and kind == "weight":
            value = (-1.0 if layer == "norm" else 1.0) - self.norm_offset(name)
            yield np.full(shape, value, np.float32)
            return
        std = next((s for key, s in self.stds.items() if key in (layer, kind)), None)
        if std is None:
            std = next(g for k, g in self.gains.items() if k in name.split(".")) / math.sqrt(row)
        rows_per_chunk = max(1, CHUNK // row)
        for start in range(0, shape[0], rows_per_chunk):
            rows = min(rows_per_chunk, shape[0] - start)
            numbers = generator.standard_normal((rows, row), dtype=np.float32) * np.float32(std)
            if layer in ("embed_tokens", "lm_head"):
                special = [i - start for i in self.tokenizer.get_added_tokens_decoder()]
                numbers[[i for i in special if 0 <= i < rows]] *= 0.25
                numbers[max(0, self.tokenizer.get_vocab_size() - start) :] = 0
            yield numbers.reshape(-1)


def write_weights(
    path: Path,
    config: dict,
    family: ModuleType,
    tokenizer: Tokenizer | None,
    seed: int,
    constants: dict[str, float] | None = None,
) -> None:
    """Write model.safetensors tensor by tensor; holds no more than `CHUNK` numbers at a time."""
    renamed = getattr(family, "published", str)
    shapes = {renamed(name): shape for name, shape in parameter_shapes(config).items()}
    kinds = {name: "int64" if name.endswith(COUNTER) else config["dtype"] for name in shapes}
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name in sorted(shapes):
        short, item = DTYPES[kinds[name]]
        begin, end = end, end + math.prod(shapes[name]) * item
        header[name] = {"dtype": short, "shape": shapes[name], "data_offsets": [begin, end]}
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    weights = Weights(family, tokenizer, seed, constants or {})
    with path.open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for name in sorted(shapes):
            for numbers in weights.draw(name, shapes[name]):
                tensor = torch.from_numpy(numbers).to(getattr(torch, kinds[name]))
                file.write(tensor.view(torch.uint8).numpy().data)


def parameter_shapes(config: dict) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights that transformers builds of a config, statistics too, by name."""
    nested = [name for name in ("text_config", "vision_config") if name in config]
    parts = {name: dict(config[name]) for name in nested}
    architecture = config["architectures"][0]
    auto = next((made for end, made in AUTO.items() if architecture.endswith(end)), AutoModel)
    with quiet(), torch.device("meta"):
        model = auto.from_config(AutoConfig.for_model(**config | parts))
    saved = [(name, b) for name, b in model.named_buffers() if name in model.state_dict()]
    return {name: tuple(p.shape) for name, p in (*model.named_parameters(), *saved)}
