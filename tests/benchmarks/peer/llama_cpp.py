"""llama.cpp by its Python package, built for this processor (GGML_NATIVE), low-level calls.

The text part is written as a GGUF (architecture llama; rows of Q and K in llama.cpp's order; the
head is the embedding table), the encoder as an mmproj GGUF (projector idefics3) that mtmd runs.
Forms are rounded by llama.cpp itself: every matrix in the named type (`pure`), so the 4-bit form
has a 4-bit head. Its encoder stays in Q8_0. The cache is F32 in the F32 form and F16, the library's
default, in the others. Batches of up to 512 rows; one row of scores.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from peer._given import Array, Given, once, text_checkpoint

PACKAGES = ("llama-cpp-python>=0.3.36", "gguf>=0.19", "numpy")
CHECK = "llama_cpp, gguf"
SETTINGS = {"CMAKE_ARGS": "-DGGML_NATIVE=ON"}
VARIANTS = {"f32": "fp32", "q8_0": "int8", "q4_0": "int4"}
SAYS = {
    "f32": "GGUF F32, cache F32",
    "q8_0": "GGUF Q8_0, cache F16",
    "q4_0": "GGUF Q4_0 with its head, encoder Q8_0, cache F16",
}
CONTEXT, BATCH = 512, 512


def prepare(given: Given, variant: str) -> None:
    """Write the GGUFs in F32, then round."""
    exact = once(given.folder("llama_cpp") / "f32", lambda path: _write(given, path, "F32"))
    if variant != "f32":
        once(_folder(given, variant), lambda path: _round(given, exact, path, variant))


def open(given: Given, variant: str) -> Context:
    """Both models in memory."""
    return Context(given, _folder(given, variant), "F32" if variant == "f32" else "F16")


def _folder(given: Given, variant: str) -> Path:
    return given.folder("llama_cpp") / variant


class Context:
    """A text context and a picture encoder."""

    def __init__(self, given: Given, folder: Path, cache: str) -> None:
        import llama_cpp
        from llama_cpp import mtmd_cpp

        self.versions = {"llama-cpp-python": llama_cpp.__version__}
        self._llama, self._mtmd = llama_cpp, mtmd_cpp
        llama_cpp.llama_backend_init()
        path = str(folder / "text.gguf").encode()
        model = llama_cpp.llama_model_load_from_file(path, llama_cpp.llama_model_default_params())
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_ubatch = CONTEXT, BATCH, BATCH
        settings.n_threads = settings.n_threads_batch = given.threads
        settings.type_k = settings.type_v = getattr(llama_cpp, f"GGML_TYPE_{cache}")
        self._context = llama_cpp.llama_init_from_model(model, settings)
        self._words = given.config["text_config"]["vocab_size"]
        self._open_encoder(given, str(folder / "vision.gguf").encode(), model)

    def _open_encoder(self, given: Given, path: bytes, model: Any) -> None:
        mtmd = self._mtmd
        settings = mtmd.mtmd_context_params_default()
        settings.use_gpu, settings.n_threads, settings.warmup = False, given.threads, False
        self._encoder = mtmd.mtmd_init_from_file(path, model, settings)
        if not self._encoder:
            raise RuntimeError("mtmd does not open the encoder")
        height, width, _ = given.photo.shape
        flat = np.ascontiguousarray(given.photo).reshape(-1)
        data = flat.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        picture = mtmd.mtmd_bitmap_init(width, height, data)
        self._chunks = mtmd.mtmd_input_chunks_init()
        marker = mtmd.mtmd_default_marker()
        text = mtmd.mtmd_input_text(marker, len(marker), False, True)
        bitmaps = (mtmd.mtmd_bitmap_p_ctypes * 1)(picture)
        failed = mtmd.mtmd_tokenize(self._encoder, self._chunks, ctypes.byref(text), bitmaps, 1)
        chunks = range(mtmd.mtmd_input_chunks_size(self._chunks))
        every = [mtmd.mtmd_input_chunks_get(self._chunks, i) for i in chunks]
        kind = mtmd.MTMD_INPUT_CHUNK_TYPE_IMAGE
        tiles = [c for c in every if mtmd.mtmd_input_chunk_get_type(c) == kind]
        if failed or not tiles:
            raise RuntimeError("mtmd finds no tile in the picture")
        self._tile = tiles[0]  # the whole picture; a second one is the same pixels as a slice
        self._columns = given.config["text_config"]["hidden_size"]

    def see(self) -> Array:
        """Features [64, C]."""
        if self._mtmd.mtmd_encode_chunk(self._encoder, self._tile):
            raise RuntimeError("mtmd_encode_chunk failed")
        rows = self._mtmd.mtmd_input_chunk_get_n_tokens(self._tile)
        found = self._mtmd.mtmd_get_output_embd(self._encoder)
        return np.ctypeslib.as_array(found, (rows, self._columns))

    def prefill(self, ids: Array) -> Array:
        """Scores [V]."""
        self._llama.llama_memory_clear(self._llama.llama_get_memory(self._context), True)
        return self._run(ids.tolist())

    def step(self, token: int) -> Array:
        """Scores [V]."""
        return self._run([token])

    def _run(self, ids: list[int]) -> Array:
        tokens = (self._llama.llama_token * len(ids))(*ids)
        batch = self._llama.llama_batch_get_one(tokens, len(ids))
        if self._llama.llama_decode(self._context, batch):
            raise RuntimeError("llama_decode failed")
        scores = self._llama.llama_get_logits_ith(self._context, -1)
        return np.ctypeslib.as_array(scores, (self._words,))


def _write(given: Given, path: Path, kind: str) -> None:
    """Both GGUFs in F32."""
    _write_text(given, path / "text.gguf")
    _write_vision(given, path / "vision.gguf", kind)


def _round(given: Given, exact: Path, path: Path, variant: str) -> None:
    import llama_cpp

    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{variant.upper()}")
    settings.pure, settings.nthread = True, given.threads
    source, target = (str(folder / "text.gguf").encode() for folder in (exact, path))
    if llama_cpp.llama_model_quantize(source, target, ctypes.byref(settings)):
        raise RuntimeError("llama_model_quantize failed")
    _write_vision(given, path / "vision.gguf", "Q8_0")


def _write_text(given: Given, path: Path) -> None:
    from gguf import GGUFWriter
    from safetensors.numpy import load_file

    folder, config = text_checkpoint(given), given.config["text_config"]
    heads, pairs = config["num_attention_heads"], config["num_key_value_heads"]
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(pairs)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(_rope_base(config))
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_vocab_size(config["vocab_size"])
    _write_words(writer, folder / "tokenizer.json", config["vocab_size"])
    parts = {
        "input_layernorm": "attn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    whole = load_file(folder / "model.safetensors")
    writer.add_tensor("token_embd.weight", whole["model.embed_tokens.weight"])
    writer.add_tensor("output_norm.weight", whole["model.norm.weight"])
    for layer in range(config["num_hidden_layers"]):
        for theirs, ours in parts.items():
            values = whole[f"model.layers.{layer}.{theirs}.weight"]
            if ours in ("attn_q", "attn_k"):
                values = _interleaved(values, heads if ours == "attn_q" else pairs)
            writer.add_tensor(f"blk.{layer}.{ours}.weight", values)
    _finish(writer)


def _rope_base(config: dict[str, Any]) -> float:
    return float(config.get("rope_theta") or config["rope_parameters"]["rope_theta"])


def _interleaved(values: Array, heads: int) -> Array:
    """Rows of each head in pairs (i, i + half), the order that llama.cpp turns them in."""
    rows, columns = values.shape
    halves = values.reshape(heads, 2, rows // heads // 2, columns)
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows, columns)


def _write_words(writer: Any, path: Path, size: int) -> None:
    """The tokenizer: mtmd looks up the tokens that stand around a tile."""
    found = json.loads(path.read_text())
    words = dict(found["model"]["vocab"])
    added = {token["content"]: token["id"] for token in found["added_tokens"]}
    names = {place: word for word, place in (words | added).items()}
    special = set(added.values())
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([names.get(i, f"[unused{i}]") for i in range(size)])
    writer.add_token_types([3 if i in special else 1 if i in names else 5 for i in range(size)])
    merges = found["model"]["merges"]
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)


def _write_vision(given: Given, path: Path, kind: str) -> None:
    from gguf import GGMLQuantizationType, GGUFWriter, VisionProjectorType
    from gguf.quants import quantize

    config, text = given.config["vision_config"], given.config["text_config"]
    writer = GGUFWriter(path, "clip")
    writer.add_type("mmproj")
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type(VisionProjectorType.IDEFICS3)
    writer.add_vision_projection_dim(text["hidden_size"])
    writer.add_vision_image_size(config["image_size"])
    writer.add_vision_preproc_image_size(config["image_size"])
    writer.add_vision_patch_size(config["patch_size"])
    writer.add_vision_embedding_length(config["hidden_size"])
    writer.add_vision_feed_forward_length(config["intermediate_size"])
    writer.add_vision_block_count(config["num_hidden_layers"])
    writer.add_vision_head_count(config["num_attention_heads"])
    writer.add_vision_attention_layernorm_eps(config.get("layer_norm_eps", 1e-6))
    writer.add_vision_image_mean([0.5] * 3)
    writer.add_vision_image_std([0.5] * 3)
    writer.add_vision_projector_scale_factor(given.config["scale_factor"])
    writer.add_vision_use_gelu(True)
    for name, values in _vision_tensors(given):
        if values.ndim == 2 and kind != "F32" and "embd" not in name:
            rounding = GGMLQuantizationType[kind]
            writer.add_tensor(name, quantize(values, rounding), raw_dtype=rounding)
        else:
            writer.add_tensor(name, values)
    _finish(writer)


def _vision_tensors(given: Given) -> Iterator[tuple[str, Array]]:
    """Encoder and connector by llama.cpp's names, f32."""
    import torch
    from transformers import AutoModelForImageTextToText

    whole = AutoModelForImageTextToText.from_pretrained(given.model, dtype=torch.float32).model
    parts = {
        "layer_norm1": "ln1",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.out_proj": "attn_out",
        "layer_norm2": "ln2",
        "mlp.fc1": "ffn_up",
        "mlp.fc2": "ffn_down",
    }
    outside = {
        "embeddings.patch_embedding": "v.patch_embd",
        "embeddings.position_embedding": "v.position_embd",
        "post_layernorm": "v.post_ln",
    }
    for name, tensor in whole.vision_model.state_dict().items():
        stem, _, leaf = name.rpartition(".")
        if stem not in outside:
            _, _, layer, part = stem.split(".", 3)
            stem = f"v.blk.{layer}.{parts[part]}"
        yield f"{outside.get(stem, stem)}.{leaf}", tensor.numpy()
    yield "mm.model.fc.weight", whole.connector.modality_projection.proj.weight.detach().numpy()


def _finish(writer: Any) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
