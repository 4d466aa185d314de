"""Wan's static modules against diffusers' and transformers' own forward."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from edgevlm.models.shared.diffusion.t5 import encoder_layers  # noqa: E402
from edgevlm.models.shared.diffusion.wan_denoiser import (  # noqa: E402
    WanEmbeddings,
    WanHead,
    WanLayer,
)
from edgevlm.models.shared.diffusion.wan_vae import decoder_parts  # noqa: E402

LATENTS = (4, 4, 6, 8)


@pytest.mark.parametrize("patch", [(1, 2, 2), (1, 1, 1), (2, 2, 2)], ids=str)
def test_the_denoiser_is_diffusers_own(patch):
    torch.manual_seed(0)
    model = diffusers.WanTransformer3DModel(
        patch_size=patch, num_attention_heads=2, attention_head_dim=24, in_channels=4,
        out_channels=4, text_dim=20, freq_dim=32, ffn_dim=64, num_layers=2, rope_max_seq_len=64,
    ).eval()  # fmt: skip
    latents, text, time = torch.randn(1, *LATENTS), torch.randn(1, 7, 20), torch.tensor([737.25])
    with torch.no_grad():
        expected = model(latents, time, text, return_dict=False)[0]
        hidden, *beside, last = WanEmbeddings(model, LATENTS)(latents, time, text)
        for layer in model.blocks:
            hidden = WanLayer(layer)(hidden, *beside)
        velocity = WanHead(model, LATENTS)(hidden, last)
    assert torch.allclose(velocity, expected, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("frames", [1, 2, 4])
@pytest.mark.parametrize("blocks", [1, 2])
def test_the_video_decoder_goes_on_frame_by_frame_as_diffusers_own(blocks, frames):
    torch.manual_seed(0)
    model = diffusers.AutoencoderKLWan(
        base_dim=8, z_dim=4, dim_mult=[1, 2, 4, 4], num_res_blocks=blocks,
        temperal_downsample=[False, True, True], latents_mean=[0.1, 0.2, -0.3, 0.0],
        latents_std=[1.0, 2.0, 0.5, 1.5],
    ).eval()  # fmt: skip
    for parameter in model.parameters():
        parameter.data += torch.randn_like(parameter) * 0.05
    latents = torch.randn(1, 4, frames, 4, 6)
    mean = torch.tensor(model.config.latents_mean).view(1, -1, 1, 1, 1)
    std = torch.tensor(model.config.latents_std).view(1, -1, 1, 1, 1)
    parts, shown = decoder_parts(model), []
    caches = [() for _ in parts]
    with torch.no_grad():
        expected = model.decode(latents * std + mean, return_dict=False)[0]
        for index in range(frames):
            hidden = latents[:, :, index : index + 1]
            for at, part in enumerate(parts):
                hidden, *caches[at] = part(hidden, *caches[at])
            shown.append(hidden)
    assert torch.allclose(torch.cat(shown, dim=2), expected, atol=2e-5)


@pytest.mark.parametrize("name", ["UMT5", "T5"])
def test_the_text_encoder_is_transformers_own_but_for_padding(name):
    import transformers

    further = {"feed_forward_proj": "gated-gelu"} if name == "T5" else {}
    config = getattr(transformers, f"{name}Config")(
        vocab_size=50, d_model=32, d_kv=8, d_ff=48, num_layers=3, num_heads=4, **further
    )
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}EncoderModel")(config).eval()
    for key, parameter in model.named_parameters():
        if "relative" in key:  # as large as scores, so that a wrong place shows
            parameter.data = torch.randn_like(parameter)
    ids, mask = torch.randint(1, 50, (1, 40)), torch.zeros(1, 40, dtype=torch.long)
    mask[0, :13] = 1
    with torch.no_grad():
        expected = model(ids, mask).last_hidden_state * mask.unsqueeze(-1)
        hidden = model.shared(ids)
        for layer in encoder_layers(model, 40):
            hidden = layer(hidden, mask.float())
    assert torch.allclose(hidden, expected, atol=1e-5)
    assert float(hidden[0, 13:].abs().max()) == 0
