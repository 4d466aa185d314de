"""The sample checkpoints load in transformers, are reproducible, and look at their image."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from make_checkpoint import make_checkpoint  # noqa: E402

ROOT = Path(__file__).parents[2]
TINY = ["tiny-smolvlm", "tiny-llava-onevision", "tiny-llava-next", "tiny-idefics3"]


def make(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the sample as a user does."""
    command = [sys.executable, str(ROOT / "samples" / "make_checkpoint.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def made(name: str, out: Path, *more: str) -> Path:
    """The folder of the preset `name`, just written."""
    done = make("--like", name, out, *more)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # no advice of libraries
    return out


@pytest.fixture(params=TINY)
def checkpoint(request, preset) -> Path:
    """Each tiny checkpoint."""
    return preset(request.param)


def load(folder: Path):
    """The model in float32; every weight must have been in the file, and no other."""
    model, info = transformers.AutoModelForImageTextToText.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    return model.eval()


def photo(name: str):
    """A photograph of the package."""
    image = pytest.importorskip("PIL.Image")
    return image.open(ROOT / "edgevlm" / "photos" / f"{name}.jpg").convert("RGB")


def last_logits(model, folder: Path, name: str) -> torch.Tensor:
    """Logits [V] after a question about the photograph `name`, with one tile."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    size, config = model.config.vision_config.image_size, model.config
    pixels = np.asarray(photo(name).resize((size, size)), np.float32) / 127.5 - 1
    pixels = torch.from_numpy(pixels.transpose(2, 0, 1)[None])  # [1, 3, h_px, w_px]
    llava = config.model_type.startswith("llava")
    vision = model.model.vision_tower if llava else model.model.vision_model
    project = model.model.multi_modal_projector if llava else model.model.connector
    text = model.model.language_model if llava else model.model.text_model
    question = torch.tensor([tokenizer("What is this? Answer:").input_ids])
    with torch.no_grad():
        visual = project(vision(pixels).last_hidden_state)  # [1, N, C]
        hidden = torch.cat([visual, model.get_input_embeddings()(question)], dim=1)
        return model.lm_head(text(inputs_embeds=hidden).last_hidden_state[0, -1])


def test_tiny_checkpoint_loads_in_transformers(checkpoint):
    model = load(checkpoint)
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    assert len(tokenizer) == model.config.text_config.vocab_size
    text = "What is 42? naïve\n\ttab"
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text
    assert tokenizer.convert_tokens_to_ids("<image>") == model.config.image_token_id
    eos = model.generation_config.eos_token_id
    assert tokenizer.convert_tokens_to_ids(tokenizer.eos_token) == eos
    processor = transformers.AutoImageProcessor.from_pretrained(checkpoint)
    assert processor(photo("flower"), return_tensors="pt").pixel_values.shape[-3] == 3
    assert sum(file.stat().st_size for file in checkpoint.iterdir()) <= 2e6


def test_chat_template_is_the_familys(checkpoint):
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    message = [{"type": "image"}, {"type": "text", "text": "What is this?"}]
    chat = [{"role": "user", "content": message}]
    chat += [{"role": "assistant", "content": [{"type": "text", "text": "A pot."}]}]
    text = tokenizer.apply_chat_template(chat[:1], tokenize=False, add_generation_prompt=True)
    both = tokenizer.apply_chat_template(chat, tokenize=False)
    if checkpoint.name == "tiny-llava-next":
        assert text == "USER: <image>\nWhat is this? ASSISTANT:"
        assert both == text + " A pot. "
    elif "llava" in checkpoint.name:
        assert text == "<|im_start|>user <image>\nWhat is this?<|im_end|><|im_start|>assistant\n"
        assert both == text[:-1] + " \nA pot.<|im_end|>"
    else:
        assert text == "<|im_start|>User:<image>What is this?<end_of_utterance>\nAssistant:"
        assert both == text + " A pot.<end_of_utterance>\n"


def test_the_processor_of_llava_next_and_its_model_agree(preset):
    folder = preset("tiny-llava-next")
    processor = transformers.AutoProcessor.from_pretrained(folder)
    assert type(processor).__name__ == "LlavaNextProcessor"
    message = [{"type": "image"}, {"type": "text", "text": "What is this?"}]
    chat = [{"role": "user", "content": message}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    inputs = processor(text=text, images=[photo("flower")], return_tensors="pt")
    assert inputs.input_ids[0, 0] == processor.tokenizer.bos_token_id
    with torch.no_grad():  # as many placeholders as features, or it raises
        logits = load(folder)(**inputs).logits
    assert logits.shape[1] == inputs.input_ids.shape[1]


def test_the_image_changes_the_logits(checkpoint):
    model = load(checkpoint)
    a, b = (last_logits(model, checkpoint, name) for name in ("flower", "stream"))
    assert (a - b).abs().max() / b.abs().max() >= 0.05
    assert a.abs().max() < 1e3


def test_another_process_gives_the_same_bytes(preset, tmp_path):
    one, two = preset("tiny-smolvlm"), made("tiny-smolvlm", tmp_path / "two")
    for file in sorted(one.iterdir()):
        assert file.read_bytes() == (two / file.name).read_bytes(), file.name


def test_another_seed_gives_other_weights(preset, tmp_path):
    done = make_checkpoint("tiny-smolvlm", tmp_path / "other", seed=1)
    one = (preset("tiny-smolvlm") / "model.safetensors").read_bytes()
    assert one != (done / "model.safetensors").read_bytes()


def test_refuses_an_existing_folder(tmp_path, monkeypatch):
    script = str(ROOT / "samples" / "make_checkpoint.py")
    monkeypatch.setattr(sys, "argv", [script, "--like", "tiny-smolvlm", str(tmp_path)])
    with pytest.raises(SystemExit, match=r" exists: choose another folder, or add --force$"):
        runpy.run_path(script, run_name="__main__")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_smolvlm_256m_has_its_true_size(tmp_path):
    folder = made("smolvlm-256m", tmp_path / "smolvlm-256m")
    model = load(folder)
    assert sum(p.numel() for p in model.parameters()) == 228_099_648
    config = json.loads((folder / "config.json").read_text())
    assert (config["image_token_id"], config["text_config"]["vocab_size"]) == (49190, 49280)
    a, b = (last_logits(model, folder, name) for name in ("flower", "stream"))
    assert (a - b).abs().max() / b.abs().max() >= 0.05


@pytest.mark.parametrize("name", ["tiny-siglip", "tiny-clip", "tiny-siglip2"])
def test_an_encoder_of_texts_loads_in_transformers(preset, name):
    """Every weight is in the file, and its tokenizer fills texts up and ends them."""
    folder = preset(name)
    model, info = transformers.AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert float(model.logit_scale.detach().exp()) == pytest.approx(10)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) == model.config.text_config.vocab_size
    ids = tokenizer(["Café 東京", "what is 42?"], padding="max_length", max_length=16).input_ids
    assert all(len(each) == 16 and tokenizer.eos_token_id in each for each in ids)
    assert ids[0] != ids[1]
