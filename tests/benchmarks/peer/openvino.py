"""OpenVINO: graphs from transformers' OpenVINOExporter, its own runtime, the CPU plugin.

The language model is one stateful graph of dynamic length with a cache inside (`OpenVINOConfig`'s
`stateful`), so prefill and decode share weights and the plugin keeps the cache in its own form; its
last row alone goes through the head (`logits_to_keep=1`). Encoder and connector are one static
graph of one tile. 8 bits are NNCF's: `int8` compresses weights, and the plugin rounds activations
by groups as it runs; `int8-static` is `nncf.quantize` with activations of the encoder calibrated on
the tile itself. LATENCY, one stream, float32 arithmetic and cache where not in 8 bits. The
compiled model is kept in a cache folder, so a cold start does not compile again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from peer._given import Array, Given, once, text_checkpoint
from peer._modules import vision

PACKAGES = ("openvino>=2026.4", "nncf>=3.4", "numpy")
CHECK = "openvino, nncf"
SETTINGS: dict[str, str] = {}
VARIANTS = {"fp32": "fp32", "int8": "int8", "int8-static": "int8"}
SAYS = {
    "fp32": "stateful graph, float32",
    "int8": "stateful graph, NNCF INT8_ASYM weights, dynamic quantization by the plugin",
    "int8-static": "encoder by nncf.quantize, text as int8",
}


def prepare(given: Given, variant: str) -> None:
    """Export in float32, then round."""
    exported = once(given.folder("openvino") / "fp32", lambda path: _export(given, path))
    if variant != "fp32":
        once(_folder(given, variant), lambda path: _round(given, exported, path, variant))
    open(given, variant)  # fills the cache of compiled models


def open(given: Given, variant: str) -> Compiled:
    """Both graphs, compiled."""
    return Compiled(given, _folder(given, variant))


def _folder(given: Given, variant: str) -> Path:
    return given.folder("openvino") / variant


class Compiled:
    """Two compiled models, each with one request."""

    def __init__(self, given: Given, folder: Path) -> None:
        import openvino

        self.versions = {"openvino": openvino.__version__.split("-")[0]}
        core = openvino.Core()
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "INFERENCE_NUM_THREADS": str(given.threads),
            "INFERENCE_PRECISION_HINT": "f32",
            "KV_CACHE_PRECISION": "f32",
            "CACHE_DIR": str(folder / "compiled"),
        }
        self._vision, self._text = (
            core.compile_model(folder / f"{part}.xml", "CPU", settings).create_infer_request()
            for part in ("vision", "text")
        )
        self._pixels, self._length = given.pixels, 0

    def see(self) -> Array:
        """Features [64, C]."""
        self._vision.infer([self._pixels], share_inputs=True)
        features: Array = np.array(self._vision.get_output_tensor(0).data)[0]
        return features

    def prefill(self, ids: Array) -> Array:
        """Scores [V]."""
        self._text.reset_state()
        self._length = 0
        return self._run(ids)

    def step(self, token: int) -> Array:
        """Scores [V]."""
        return self._run(np.asarray([token]))

    def _run(self, ids: Array) -> Array:
        positions = np.arange(self._length, self._length + len(ids), dtype=np.int64)[None]
        given: dict[str, Any] = {
            "input_ids": ids[None],
            "position_ids": positions,
            "logits_to_keep": np.int64(1),
            "beam_idx": np.zeros(1, np.int32),
        }
        # Releases of transformers differ in what the text graph takes.
        taken = {name for port in self._text.model_inputs for name in port.get_names()}
        given = {name: value for name, value in given.items() if name in taken}
        self._text.infer(given, share_inputs=True)
        self._length += len(ids)
        scores: Array = np.asarray(self._text.get_tensor("logits").data)[0, -1]
        return scores


def _export(given: Given, path: Path) -> None:
    import openvino
    import torch
    from transformers import DynamicCache, LlamaForCausalLM
    from transformers.exporters.configs import OpenVINOConfig
    from transformers.exporters.exporter_openvino import OpenVINOExporter

    text = LlamaForCausalLM.from_pretrained(text_checkpoint(given), dtype=torch.float32).eval()
    past, new = 6, 4
    cache, config = DynamicCache(config=text.config), text.config
    heads, size = config.num_key_value_heads, config.head_dim
    for layer in range(config.num_hidden_layers):
        cache.update(*(torch.zeros(1, heads, past, size) for _ in range(2)), layer)
    inputs: dict[str, Any] = {
        "input_ids": torch.arange(500, 500 + new)[None],
        "position_ids": torch.arange(past, past + new)[None],
        "cache": cache,
        "use_cache": True,
        "logits_to_keep": 1,
    }
    exported = OpenVINOExporter().export(text, inputs, OpenVINOConfig(dynamic=True))
    openvino.save_model(exported.program, path / "text.xml", compress_to_fp16=False)
    del text, exported
    pixels = torch.from_numpy(given.pixels)
    with torch.no_grad():
        program = torch.export.export(vision(given), (pixels,))
    made = openvino.convert_model(program, example_input=(pixels,))
    openvino.save_model(made, path / "vision.xml", compress_to_fp16=False)


def _round(given: Given, exported: Path, path: Path, variant: str) -> None:
    import nncf
    import openvino

    core = openvino.Core()
    for part in ("text", "vision"):
        model = core.read_model(exported / f"{part}.xml")
        if variant == "int8-static" and part == "vision":
            seen = nncf.Dataset([given.pixels])
            made = nncf.quantize(model, seen, model_type=nncf.ModelType.TRANSFORMER)
        else:
            made = nncf.compress_weights(model)
        openvino.save_model(made, path / f"{part}.xml", compress_to_fp16=False)
