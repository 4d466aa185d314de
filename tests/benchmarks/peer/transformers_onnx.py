"""transformers' own exporter to ONNX (OnnxExporter, dynamic shapes, ort_fusions="cpu").

Graphs: image encoder, connector, language model (prefill), lm_head, decode with a cache.
`export_for_generation` leaves the encoder out, so encoder and connector come from
`decompose_multimodal`. They run as its own runner runs them, everything bound and no copies. The
8-bit form is `onnxruntime.quantization.quantize_dynamic`, one scale a column; on its own it leaves
the tied head of `decode` in float32, a table that is also read by rows, so here the head gets a
matrix of its own first and the table stays in float32, read by rows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from peer._given import Array, Given, once

PACKAGES: tuple[str, ...] = ()
CHECK = "transformers.exporters"
SETTINGS: dict[str, str] = {}
VARIANTS = {"fp32": "fp32", "int8": "int8"}
SAYS = {
    "fp32": "ONNX Runtime, cpu fusions, float32",
    "int8": "the same by quantize_dynamic, the tied head too",
}
GROUPS = {"vision": ("image_encoder", "connector"), "text": ("language_model", "lm_head", "decode")}


def prepare(given: Given, variant: str) -> None:
    """Export, which takes minutes, then round."""
    exact = once(given.folder("transformers_onnx") / "fp32", lambda path: _export(given, path))
    if variant == "int8":
        once(_folder(given, variant), lambda path: _round(exact, path))


def open(given: Given, variant: str) -> Graphs:
    """All graphs."""
    return Graphs(_folder(given, variant), given)


def _folder(given: Given, variant: str) -> Path:
    return given.folder("transformers_onnx") / variant


class Graphs:
    """The exporter's graphs and a cache."""

    def __init__(self, folder: Path, given: Given) -> None:
        import onnxruntime as ort

        self.versions = {"onnxruntime": ort.__version__}
        self._ort, self._given = ort, given
        self._patch = given.config["vision_config"]["patch_size"]
        settings = ort.SessionOptions()
        settings.intra_op_num_threads, settings.inter_op_num_threads = given.threads, 1
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        settings.log_severity_level = 3
        self._sessions = {
            name: ort.InferenceSession(
                folder / group / f"{name}.onnx", settings, ["CPUExecutionProvider"]
            )
            for group, names in GROUPS.items()
            for name in names
        }
        self._table = np.load(folder.parent / "fp32" / "table.npy", mmap_mode="r")
        parts = (folder / "text").glob("decode.onnx*")  # head and embedding are in it too
        self.text_bytes = sum(path.stat().st_size for path in parts)
        self._past: list[Any] = []
        self._length = 0

    def see(self) -> Array:
        """Features [64, C]."""
        pixels = self._given.pixels
        side = pixels.shape[2] // self._patch
        mask = np.ones((1, side, side), bool)
        seen = {"pixel_values": pixels, "patch_attention_mask": mask}
        (hidden,) = self._run("image_encoder", seen)
        (made,) = self._run("connector", {"image_hidden_states": hidden})
        features: Array = made.numpy()[0]
        return features

    def prefill(self, ids: Array) -> Array:
        """Scores [V]."""
        return self.prefill_rows(np.asarray(self._table[ids]))

    def prefill_rows(self, rows: Array) -> Array:
        """Scores [V] after rows [S, C] in an empty cache."""
        positions = np.arange(len(rows), dtype=np.int64)[None]
        given = {"inputs_embeds": rows[None], "position_ids": positions}
        hidden, *self._past = self._run("language_model", given)
        self._length = len(rows)
        last = np.ascontiguousarray(hidden.numpy()[:, -1:])
        (made,) = self._run("lm_head", {"input": last})
        scores: Array = made.numpy()[0, 0]
        return scores

    def step(self, token: int) -> Array:
        """Scores [V]."""
        given: dict[str, Any] = {
            "input_ids": np.asarray([[token]], np.int64),
            "position_ids": np.asarray([[self._length]], np.int64),
        }
        names = [node.name for node in self._sessions["decode"].get_inputs()]
        caches = [name for name in names if name not in given]
        given |= dict(zip(caches, self._past, strict=True))
        made, *self._past = self._run("decode", given)
        self._length += 1
        scores: Array = made.numpy()[0, 0]
        return scores

    def _run(self, name: str, given: dict[str, Any]) -> list[Any]:
        session = self._sessions[name]
        binding = session.io_binding()
        for node in session.get_inputs():
            value = given[node.name]
            if isinstance(value, np.ndarray):
                value = self._ort.OrtValue.ortvalue_from_numpy(value)
            binding.bind_ortvalue_input(node.name, value)
        for node in session.get_outputs():
            binding.bind_output(node.name)
        session.run_with_iobinding(binding)
        return list(binding.get_outputs())


def _export(given: Given, path: Path) -> None:
    import torch
    from transformers import AutoModelForImageTextToText
    from transformers.exporters.base import ExportedModel
    from transformers.exporters.configs import OnnxConfig
    from transformers.exporters.exporter_onnx import OnnxExporter
    from transformers.exporters.utils import decompose_multimodal

    loaded = AutoModelForImageTextToText.from_pretrained(given.model, dtype=torch.float32).eval()
    np.save(path / "table.npy", loaded.get_input_embeddings().weight.detach().numpy())
    vision = loaded.config.vision_config
    side = vision.image_size // vision.patch_size
    views = 2  # with one view the exporter would fix the batch at 1
    seen = views * (side // loaded.config.scale_factor) ** 2
    images = torch.full((1, seen), loaded.config.image_token_id)
    ids = torch.cat([images, torch.arange(100, 132)[None]], 1)
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.randn(1, views, 3, vision.image_size, vision.image_size),
    }
    exporter, config = OnnxExporter(), OnnxConfig(dynamic=True, ort_fusions="cpu")
    parts = decompose_multimodal(loaded, inputs)
    components = {
        name: exporter._export_component(*parts[name], config) for name in GROUPS["vision"]
    }
    ExportedModel(components, exporter.export_format).save_pretrained(path / "vision")
    exporter.export_for_generation(loaded, inputs, config).save_pretrained(path / "text")


def _round(exact: Path, path: Path) -> None:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    for group, names in GROUPS.items():
        (path / group).mkdir(exist_ok=True)
        for name in names:
            model = onnx.load(exact / group / f"{name}.onnx")
            _untie(model)
            _drop_shapes(model)
            untied = path / f"{name}.onnx"
            onnx.save(model, untied, save_as_external_data=True, location=f"{name}.data")
            quantize_dynamic(
                untied,
                path / group / f"{name}.onnx",
                op_types_to_quantize=["MatMul"],
                per_channel=True,
                weight_type=QuantType.QInt8,
                use_external_data_format=True,
            )
            untied.unlink()
            (path / f"{name}.data").unlink()


def _drop_shapes(model: Any) -> None:
    """Forget the shapes of constants: rounding turns some, and then the old ones are wrong."""
    constants = {tensor.name for tensor in model.graph.initializer}
    kept = [value for value in model.graph.value_info if value.name not in constants]
    del model.graph.value_info[:]
    model.graph.value_info.extend(kept)


def _untie(model: Any) -> None:
    """Give a head that multiplies by the transposed embedding table a matrix of its own."""
    from onnx import numpy_helper

    for node in model.graph.node:
        if node.op_type != "FusedMatMul":
            continue
        table = next(t for t in model.graph.initializer if t.name == node.input[1])
        turned = np.ascontiguousarray(numpy_helper.to_array(table).T)
        model.graph.initializer.append(numpy_helper.from_array(turned, f"{table.name}.turned"))
        node.op_type, node.domain, node.input[1] = "MatMul", "", f"{table.name}.turned"
        del node.attribute[:]
