"""The training script of the text-to-video model, in parts that are quick."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("transformers")

SCRIPT = Path(__file__).parents[2] / "samples" / "train_embedded_video"
TEXTS = ["a red circle moves slowly left on a black background", "a blue cross grows", ""]


@pytest.fixture(scope="module")
def script():
    """The script's files by name."""
    names = ("model", "autoencoder", "check", "flow")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPT))
        for name in names:
            patch.delitem(sys.modules, name, raising=False)
        made = {name: importlib.import_module(name) for name in names}
        yield made
        for name in names:
            sys.modules.pop(name)


@pytest.fixture(scope="module")
def model(script):
    torch.manual_seed(0)
    return script["flow"].Model().eval()


@pytest.mark.parametrize("length", [16, 40, 512])
def test_attention_while_training_is_diffusers_own_at_any_length_of_the_texts(
    script, model, length
):
    flow = script["flow"]
    ids, noisy = flow.texts(TEXTS), torch.randn(3, 8, 2, 4, 4)
    noise_levels = torch.tensor([950.0, 500.0, 20.0])
    with torch.no_grad():
        mask = ids != 0
        text = model.encoder(ids, mask.long()).last_hidden_state * mask[..., None]
        padded = torch.nn.functional.pad(text, (0, 0, 0, length - 16))
        wanted = model.transformer(noisy, noise_levels, padded, return_dict=False)[0]
        own = dict(model.transformer.attn_processors)
        attention = model.train_attention()
        attention.bias = float(np.log(1 + length - 16))
        found = model(noisy, noise_levels, ids)
        model.transformer.set_attn_processor(own)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


def test_the_loss_of_the_true_velocity_is_zero_and_steps_of_the_scheduler_then_end_in_the_clip(
    script,
):
    clean = torch.randn(4, 8, 6, 8, 8)

    def true_velocity(noisy, time, ids):
        sigma = (time / 1000)[:, None, None, None, None]
        return (noisy - clean) / sigma  # of z = (1 - s) x + s e it is e - x

    assert script["flow"].flow_loss(true_velocity, clean, None) < 1e-5
    scheduler, z = script["model"].scheduler(), torch.randn_like(clean)
    scheduler.set_timesteps(5)
    for time in scheduler.timesteps:
        z = scheduler.step(true_velocity(z, time.expand(4), None), time, z, return_dict=False)[0]
    torch.testing.assert_close(z, clean, atol=1e-5, rtol=1e-4)


def test_the_decoder_that_trains_is_diffusers_own_without_the_limits(script):
    torch.manual_seed(0)
    vae = script["model"].build_vae().eval()
    script["autoencoder"].start_well(vae)
    z = torch.randn(1, 8, 3, 2, 2)
    with torch.no_grad():
        free = script["autoencoder"].decode(vae, z)
        torch.testing.assert_close(free.clamp(-1, 1), vae.decode(z).sample)
    assert free.abs().max() > 1


def test_a_crop_shows_the_shape(script):
    autoencoder = script["autoencoder"]
    frames = next(autoencoder.drawn(0))
    for seed in range(5):
        small = autoencoder.crop(frames, seed).astype(int)
        assert small.shape == (21, 32, 32, 3)
        assert np.abs(small - frames[0, 0, 0]).sum(-1).max() > 60


def test_what_is_written_is_loaded(script, model, tmp_path):
    parts = script["model"]
    vae = parts.build_vae([0.5] * 8, [2.0] * 8)
    parts.write(parts.pipeline(model.encoder, model.transformer, vae), tmp_path)
    back = parts.load(tmp_path)
    assert back.vae.config.latents_std == [2.0] * 8
    for name, value in model.transformer.state_dict().items():
        torch.testing.assert_close(back.transformer.state_dict()[name], value.half().float())
