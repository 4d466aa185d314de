"""Gemma 3n: its streams, few activations, shared caches and words; else test_families.py.

Where timm is missing, which its encoder is of, a convolution stands in the encoder's place here.
"""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from edgevlm.errors import ModelError, PlanError  # noqa: E402
from edgevlm.evaluation.pytorch import TableRows  # noqa: E402
from edgevlm.graphs.layers import LayerCall  # noqa: E402
from edgevlm.models.shared.llama import decoder_spec  # noqa: E402
from edgevlm.models.vlm import gemma3n  # noqa: E402
from edgevlm.parity.compare import difference  # noqa: E402
from edgevlm.parity.own.preprocessing import preprocessing_error  # noqa: E402
from edgevlm.recipe import Recipe  # noqa: E402
from edgevlm.runtimes.loops.sequence import (  # noqa: E402
    causal_mask,
    rotary_tables,
    text_positions,
)

NAME, QUESTION = "tiny-gemma3n", "What is in this picture, and why?"
# Float32 sums in another order, and thresholds of activations; measured 2e-6.
LIMIT = 1e-5
CALLS = [(0, 8), (8, 8), (16, 5), (21, 1), (22, 1), (23, 1)]
SIZES = {
    "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "num_hidden_layers": 5, "intermediate_size": 48, "vocab_size": 64, "laurel_rank": 4,
    "vocab_size_per_layer_input": 64, "hidden_size_per_layer_input": 8, "sliding_window": 7,
    "num_kv_shared_layers": 2, "pad_token_id": 0,
    "activation_sparsity_pattern": [0.9, 0.5, 0.0, 0.0, 0.8],
    "layer_types": ["sliding_attention", "full_attention"] * 2 + ["sliding_attention"],
}  # fmt: skip


class StandIn(torch.nn.Module):
    """In the place of transformers' encoder: the module of timm, and a call of it."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.timm_model = torch.nn.Module()
        self.timm_model.conv = torch.nn.Conv2d(3, config.hidden_size, 16, 16, bias=False)
        self.timm_model.forward_features = self.timm_model.conv.forward

    def forward(self, pixel_values, **_):
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        grid = self.timm_model.forward_features(pixel_values)
        return BaseModelOutputWithPooling(last_hidden_state=grid)


@pytest.fixture(scope="module", autouse=True)
def _encoder():
    if find_spec("timm"):
        yield
        return
    from transformers.models.gemma3n import modeling_gemma3n

    own = modeling_gemma3n.AutoModel

    def from_config(config, **options):
        stands_in = config.model_type == "gemma3n_vision"
        return StandIn(config) if stands_in else own.from_config(config, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(modeling_gemma3n, "AutoModel", SimpleNamespace(from_config=from_config))
        patch.setattr(gemma3n, "check_timm", lambda family: None)
        yield


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"altup_num_inputs": 2, "altup_active_idx": 1, "altup_correct_scale": False},
        {"altup_num_inputs": 3, "altup_active_idx": 2, "num_kv_shared_layers": 0},
    ],
    ids=["four streams", "two streams", "own caches"],
)
def test_layers_in_chunks_and_single_tokens_equal_the_language_model(values):
    config = transformers.AutoConfig.for_model("gemma3n_text", **SIZES | values)
    model = transformers.AutoModel.from_config(config).eval()
    generator = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        std = 0.3 if weight.dim() == 1 else 0.8 / weight.shape[1] ** 0.5
        std *= 24 if "modality_router" in name else 1  # divided by the width
        std *= 0.4 if "_coefs" in name else 1
        weight.data = std * torch.randn(weight.shape, generator=generator) + (weight.dim() == 1)
    spec = decoder_spec(config)
    decoder = gemma3n.streams_decoder(model, spec)
    plan = SimpleNamespace(host=SimpleNamespace(rope=spec.rope, ropes=spec.ropes))
    rows = torch.randn(1, 24, 32, generator=generator)
    further = torch.randn(1, 24, 5, 8, generator=generator)
    caches = [[torch.zeros(1, 2, 24, 8) for _ in range(2)] for _ in spec.caches]
    outputs = []
    for first, count in CALLS:
        span, positions = slice(first, first + count), text_positions(plan, first, count)
        tables = {
            rope: [torch.from_numpy(table)[None] for table in rotary_tables(plan, positions, rope)]
            for rope in range(len(spec.ropes))
        }
        mask = torch.from_numpy(causal_mask(first, count, 24))
        at = torch.tensor([first], dtype=torch.int32)
        x = rows[:, span]
        call = LayerCall(tables, mask, at, embeds=x)
        for index, (layer, cache) in enumerate(zip(decoder.layers, spec.caches, strict=True)):
            past = caches[index if cache.source is None else cache.source]
            x, *new = layer.step(x, replace(call, row=further[:, span, index]), past)
            past[:] = new or past
            assert x.shape == (1, count, 32 * config.altup_num_inputs)
        outputs.append(decoder.norm(x))
    whole = model(inputs_embeds=rows, per_layer_inputs=further).last_hidden_state
    assert difference(torch.cat(outputs, 1), whole)[0] <= LIMIT


def test_streams_go_from_block_to_block_and_the_last_block_takes_single_rows(tiny):
    plan = tiny(NAME, block_size_bytes=150_000).plan
    assert plan.host.residual_streams == 4
    assert [state.source for state in plan.host.states.each] == [None, None, None, 2, 1]
    decoder = plan.stage("decoder")
    names = [[f.name for f in block.functions] for block in decoder]
    assert (names[0], names[-1]) == (["prefill", "decode"], ["decode"])
    for function in ("prefill", "decode"):
        blocks = [b for b in decoder if function in (f.name for f in b.functions)]
        widths = [
            (f.tensor("hidden").shape[2], f.tensor("hidden_out").shape[2])
            for f in (block.function(function) for block in blocks)
        ]
        ends = {"prefill": 256, "decode": 64}  # the norm follows the last layer alone
        assert [wide for wide, _ in widths] == [64, *[256] * (len(widths) - 1)]
        assert [wide for _, wide in widths] == [*[256] * (len(widths) - 1), ends[function]]


def test_a_trial_has_the_first_layers_alone(tiny, decoder_difference):
    made = tiny(NAME, layers=2)
    assert [state.source for state in made.plan.host.states.each] == [None, None]
    assert made.plan.host.per_layer.table.columns == 2 * 16
    assert decoder_difference(made) <= LIMIT


def test_the_head_shares_all_words_but_those_of_pictures_and_sounds(tiny):
    plan = tiny(NAME).plan
    assert plan.host.vocabulary == plan.host.embedding.rows == 1024
    blocks = [(block.span, block.shares) for block in plan.stage("head")]
    assert blocks == [((0, 1008), "embedding"), ((1008, 1024), "")]


def test_rows_of_words_are_those_of_the_model(tiny):
    """Of pictures and sounds (from 1008 on) too, whose rows its own embedders compute."""
    made, ids, found = tiny(NAME), torch.tensor([[5, 900, 1007, 1008, 1010, 1016, 1023]]), {}
    take = made.model.model.language_model.register_forward_pre_hook(
        lambda module, _, given: found.update(given), with_kwargs=True
    )
    made.model(input_ids=ids)
    take.remove()
    rows = TableRows(made.parts)[ids[0].numpy()]
    np.testing.assert_allclose(rows[:, :64], found["inputs_embeds"][0].numpy(), atol=1e-6)
    second = found["per_layer_inputs"][0].reshape(7, -1).numpy()
    np.testing.assert_allclose(rows[:, 64:], second, atol=1e-6)
    np.testing.assert_array_equal(rows, made.parts.words(ids[0].numpy()).numpy())


@pytest.mark.parametrize("images", [0, 1, 2])
def test_a_prompt_and_its_answer_are_those_of_transformers(tiny, processor, prompt, photo, images):
    made = tiny(NAME)
    pictures = [photo(64, 64), photo(64, 64, "stream")][:images]
    inputs = prompt.inputs(processor(made.planned.checkpoint.folder), QUESTION, pictures)
    ours = prompt(made)
    token = made.model.config.image_token_id
    assert ours.ids(QUESTION, images, token) == inputs.input_ids[0].tolist()
    rows = ours.rows(QUESTION, [made.features(made.views(picture)) for picture in pictures])
    # Pixels differ by 1e-7, and timm's encoder has 84 blocks: measured 3e-5 with it.
    limit = 1e-4 if find_spec("timm") else LIMIT
    assert difference(ours.logits(rows), made.model(**inputs).logits)[0] <= limit


def test_a_further_turn_is_that_of_transformers(tiny, processor, prompt, photo):
    made, reply, token = tiny(NAME), "A pot of flowers.", 1009
    own = processor(made.planned.checkpoint.folder)
    messages = prompt.chat(QUESTION, images=1)
    messages += [{"role": "assistant", "content": [{"type": "text", "text": reply}]}]
    messages += prompt.chat("Which colour?")
    text = own.apply_chat_template(messages, add_generation_prompt=True)
    inputs = own(text=text, images=[photo(64, 64)], add_special_tokens=False)
    ours = prompt(made)
    ids = ours.ids(QUESTION, 1, token)
    ids += ours.tokenizer.encode(reply, add_special_tokens=False).ids
    ids += ours.ids("Which colour?", 0, token, turn=True)
    assert ids == list(inputs["input_ids"][0])


def test_a_picture_of_any_size_becomes_what_the_processor_makes_of_it(tiny, photo):
    made = tiny(NAME)
    checkpoint, image = made.planned.checkpoint, made.plan.host.image
    sizes = [(1, 1), (3, 200), (37, 41), (64, 64), (65, 63), (100, 301), (333, 97), (448, 336),
             (640, 361), (801, 799)]  # fmt: skip
    errors = {
        size: preprocessing_error(checkpoint, image, photo(*size), middle=False) for size in sizes
    }
    assert max(errors.values()) <= 1e-6, errors


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("tome@vision:patches=12,by=2", "here they cannot: its encoder is convolutions, between"),
        ("dart@decoder:tokens=8,layer=1", "in this one 4 copies of a row go through its layers"),
        ("visionzip", "its encoder is convolutions, between whose layers there are no tokens"),
    ],
)
def test_a_method_inside_encoder_or_decoder_is_refused(tiny, method, message):
    with pytest.raises(PlanError, match=message):
        tiny(NAME, methods=(method,), tokens=None if "@" in method else 8)


def test_an_answer_is_that_of_generate(tiny, preset, processor, prompt, photo, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from edgevlm import api
    from edgevlm.pipeline import export

    made = tiny(NAME)
    done = export(Recipe(model=str(preset(NAME))), tmp_path / "tiny.edgevlm")
    assert done.verification.ok
    inputs = prompt.inputs(processor(made.planned.checkpoint.folder), QUESTION, [photo(64, 64)])
    whole = made.model.generate(**inputs, max_new_tokens=32, do_sample=False)[0].tolist()
    answer = api.load(done.bundle.path).generate(photo(64, 64), QUESTION, max_new_tokens=32)
    assert list(answer.token_ids) == whole[inputs.input_ids.shape[1] :]


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [None, 8])
@pytest.mark.parametrize("target", ["onnx", "executorch", "coreml"])
def test_targets_agree_with_pytorch(preset, tmp_path, target, tokens):
    from edgevlm.pipeline import export

    recipe = Recipe(
        model=str(preset(NAME)),
        target=target,
        tokens=tokens,
        methods=("divprune",) if tokens else ("identity",),
        block_size_bytes=400_000,
    )
    assert export(recipe, tmp_path / "tiny.edgevlm").verification.ok


@pytest.mark.slow
def test_chats_and_drafts_answer_as_alone(preset, tmp_path, photo):
    """Blocks without `prefill` follow the last call of a prompt, whatever it was."""
    pytest.importorskip("onnxruntime")
    from edgevlm import api

    out = tmp_path / "tiny.edgevlm"
    recipe = Recipe(model=str(preset(NAME)), chunk=40, speculate=4, block_size_bytes=150_000)
    api.export(recipe, out)
    model, alone = api.load(out), api.load(out)
    flower, stream = photo(64, 64), photo(64, 64, "stream")
    for pictures in ([flower], [flower, stream], []):
        answer = model.generate(pictures, QUESTION, max_new_tokens=12)
        alone._loop.forget()
        assert answer.token_ids == alone.generate(pictures, QUESTION, max_new_tokens=12).token_ids
    for draft in ("lookup", "skip=1"):
        drafted = model.generate([flower], QUESTION, max_new_tokens=24, draft=draft)
        plain = alone.generate([flower], QUESTION, max_new_tokens=24)
        assert drafted.token_ids == plain.token_ids


def test_a_checkpoint_without_timm_says_what_to_install(monkeypatch):
    from edgevlm.models.shared import towers

    monkeypatch.setattr(towers, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"^gemma3n has an encoder of timm, .* pip install timm"):
        towers.check_timm("gemma3n")


@pytest.mark.parametrize(
    ("part", "change", "options", "message"),
    [
        ("", {}, {"frames": 4}, "^gemma3n does not support clips: got 4 frames, expected 1$"),
        ("", {}, {"tiles": (2, 2)}, "^gemma3n reads a picture as one view: got tiles 2x2"),
        ("", {"vision_soft_tokens_per_image": 9}, {}, "_image is 9, and the encoder gives 4x4 tok"),
        ("", {"image_token_id": 1000}, {}, "^vocab_size_per_layer_input is 1008, expected no row"),
        ("vision", {"architecture": "resnet50"}, {}, "^vision tower 'resnet50' is not supported"),
        ("vision", {"vocab_offset": 1000}, {}, "^words for pictures begin at 1000 and those for s"),
        ("text", {"altup_num_inputs": 1}, {}, "^altup_num_inputs is 1, expected 2 to 16; correct"),
        ("text", {"altup_active_idx": 4}, {}, "^altup_active_idx is 4 of 4 streams, expected 0 to"),
        ("text", {"activation_sparsity_pattern": [1.0]}, {}, "^activation_sparsity_pattern has 1"),
        ("text", {"hidden_size_per_layer_input": 0}, {}, "^hidden_size_per_layer_input is 0, and"),
    ],
)
def test_what_the_static_form_has_not_is_refused(tiny, part, change, options, message):
    checkpoint = tiny(NAME).planned.checkpoint
    own = checkpoint.config
    config = SimpleNamespace(**own.__dict__)
    changed = getattr(own, f"{part}_config") if part else own
    numbers = SimpleNamespace(**{**changed.__dict__, "model_type": changed.model_type, **change})
    if part:
        setattr(config, f"{part}_config", numbers)
    else:
        config = numbers
    with pytest.raises(PlanError, match=message):
        checkpoint.family.describe(config, checkpoint.processor(), Recipe(**options))


def test_a_view_that_the_encoder_does_not_divide_is_refused(tiny):
    checkpoint = tiny(NAME).planned.checkpoint
    size = {"height": 96, "width": 96}
    with pytest.raises(PlanError, match=r"^the image processor's size is .*multiple of 64 pixels"):
        checkpoint.family.describe(checkpoint.config, {"size": size}, Recipe())
