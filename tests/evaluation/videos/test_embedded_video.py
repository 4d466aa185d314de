"""The embedded text-to-video model: diffusers runs it, and it does what it is told."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from edgevlm.evaluation.videos import shapes

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")
load_file = pytest.importorskip("safetensors.torch").load_file

FOLDER = Path(__file__).parents[3] / "edgevlm" / "embedded_video"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="no weights are in the package yet")
PARTS = {"tokenizer", "text_encoder", "transformer", "vae", "scheduler"}


@pytest.fixture(scope="module")
def pipeline():
    """`WanPipeline.from_pretrained` with accelerate, which it asks for; part by part without."""
    if importlib.util.find_spec("accelerate"):
        made = diffusers.WanPipeline.from_pretrained(FOLDER, torch_dtype=torch.float32)
    else:
        listed = json.loads((FOLDER / "model_index.json").read_text())
        parts = {}
        for name in ("transformer", "vae"):
            kind = getattr(diffusers, listed[name][1])
            parts[name] = kind.from_config(kind.load_config(FOLDER / name))
            file = FOLDER / name / "diffusion_pytorch_model.safetensors"
            parts[name].load_state_dict(load_file(file))
        kind = getattr(diffusers, listed["scheduler"][1])
        parts["scheduler"] = kind.from_pretrained(FOLDER / "scheduler")
        kind = getattr(transformers, listed["text_encoder"][1])
        parts["text_encoder"] = kind.from_pretrained(FOLDER / "text_encoder", dtype=torch.float32)
        parts["tokenizer"] = transformers.AutoTokenizer.from_pretrained(FOLDER / "tokenizer")
        made = diffusers.WanPipeline(**parts)
    made.set_progress_bar_config(disable=True)
    return made


def made(pipeline, texts, steps, **options):
    return pipeline(
        texts,
        height=shapes.SIZE,
        width=shapes.SIZE,
        num_frames=shapes.FRAMES,
        num_inference_steps=steps,
        guidance_scale=4.0,
        generator=[torch.Generator().manual_seed(seed) for seed in range(len(texts))],
        **options,
    ).frames


def test_the_folder_is_a_small_wan_pipeline():
    listed = json.loads((FOLDER / "model_index.json").read_text())
    assert listed["_class_name"] == "WanPipeline"
    assert {name for name, value in listed.items() if isinstance(value, list) and value[0]} == PARTS
    assert sum(p.stat().st_size for p in FOLDER.rglob("*") if p.is_file()) < 20e6
    assert {p.suffix for p in FOLDER.rglob("*") if p.is_file()} == {".json", ".safetensors", ".md"}


def test_every_word_of_the_prompts_is_a_token(pipeline):
    for prompt in shapes.prompts(held_out=True) + shapes.prompts(held_out=False):
        for ground in shapes.GROUNDS:
            text = shapes.Prompt(prompt.colour, prompt.shape, prompt.motion, ground).text
            ids = pipeline.tokenizer(text).input_ids
            assert pipeline.tokenizer.unk_token_id not in ids
            assert len(ids) == len(text.split()) + 1 <= 12  # and the end
    padded = pipeline.tokenizer(["", "Red Unicorn"], padding="max_length", max_length=4)
    assert padded.attention_mask == [[1, 0, 0, 0], [1, 1, 1, 0]]


def test_the_autoencoder_keeps_a_clip(pipeline):
    import numpy as np

    prompt = shapes.Prompt("purple", "triangle", "moves right", "black")
    frames = shapes.draw(prompt, np.random.default_rng(0))
    clip = torch.from_numpy(frames).permute(3, 0, 1, 2)[None] / 127.5 - 1
    with torch.no_grad():
        latents = pipeline.vae.encode(clip).latent_dist.mode()
        back = pipeline.vae.decode(latents).sample
    assert latents.shape == (1, 8, 6, 8, 8)
    assert not shapes.judge((back[0].permute(1, 2, 3, 0).numpy() + 1) / 2).wrong(prompt)


@pytest.mark.parametrize("length", [16, 512])
def test_eight_steps_make_what_a_prompt_of_unseen_words_together_says(pipeline, length):
    prompt = shapes.Prompt("blue", "square", "moves right", "white")
    assert prompt.held_out
    clip = made(pipeline, [prompt.text], 8, max_sequence_length=length)[0]
    assert clip.shape == (21, 64, 64, 3)
    assert shapes.judge(clip).wrong(prompt) == ()


@pytest.mark.slow
def test_most_held_out_prompts_are_shown(pipeline):
    asked = shapes.prompts(held_out=True)
    clips = made(pipeline, [p.text for p in asked], 25, max_sequence_length=16)
    right = [not shapes.judge(c).wrong(p) for c, p in zip(clips, asked, strict=True)]
    assert sum(right) >= 0.85 * len(asked)
