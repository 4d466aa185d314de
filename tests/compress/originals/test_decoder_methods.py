"""Methods of site `decoder` in a tiny Llama, run as their originals run it.

The layers, the norm and the head are transformers' own, called one after another; each original is
written here anew, from its code: whose attention it reads, in which layer, of which rows, what it
does with the rows and with their positions. Beside it runs the bundle's decoder, cut into blocks
that hand on their outputs by name, with what fills up a call behind the prompt. Compared are the
visual rows after each stage, which are those of the tokens that stay, and a greedy answer.

One file of some length, for an original is a few lines over the driver that all of them share.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb, repeat_kv

from edgevlm.compress.decoder import (
    aim,
    dart,
    exit,
    fastv,
    holitom,
    mustdrop,
    pyramiddrop,
    sparsevlm,
    vflowopt,
    visiondrop,
)
from edgevlm.graphs.layers import DecoderLayer, FinalNorm
from edgevlm.graphs.pruning import PrunedDecoderBlock, Pruning

HEADS, GROUPS, WIDTH = 4, 2, 32
BEFORE, AFTER, FILL = 5, 9, 3  # rows of text before and after the picture, and after the prompt
STEPS = 8


@dataclass
class Prompt:
    """A prompt that goes through a model's layers one by one, and what an original sees of it.

    Attributes:
        rows: What goes into the next layer, [1, L, C].
        positions: Of the rows, [L].
        count: Visual rows, from row BEFORE on.
        attention: Of the layer that ran last, [1, heads, L, L].
        stages: Visual rows after each stage.
        renumbered: A decoded token has the position that follows the rows of a layer's cache; else
            that of the whole prompt.
    """

    model: Any
    rows: Tensor
    count: int
    renumbered: bool = False
    positions: Tensor = field(default_factory=lambda: torch.zeros(0))
    attention: Tensor = field(default_factory=lambda: torch.zeros(0))
    stages: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.cache, self.length = DynamicCache(), self.rows.shape[1]
        self.positions = torch.arange(self.length)

    def run(self, layer: int) -> None:
        """One layer over all rows, each of which sees those before it."""
        length = self.rows.shape[1]
        hidden = torch.full((length, length), torch.finfo(torch.float32).min).triu(1)
        self.rows = self._call(layer, self.rows, self.positions, hidden[None, None])

    @property
    def visual(self) -> slice:
        return slice(BEFORE, BEFORE + self.count)

    def keep(self, kept: Tensor) -> None:
        """Rows of some visual tokens [k], and of all text, stay."""
        text = [i for i in range(self.rows.shape[1]) if not BEFORE <= i < BEFORE + self.count]
        left = torch.tensor(sorted([*(kept + BEFORE).tolist(), *text]))
        self.put(self.rows[:, left[BEFORE : BEFORE + len(kept)]], self.positions[left])

    def put(self, tokens: Tensor, positions: Tensor) -> None:
        """Other visual tokens [1, k, C], with the positions of all rows."""
        after = self.rows[:, BEFORE + self.count :]
        self.rows = torch.cat([self.rows[:, :BEFORE], tokens, after], 1)
        length = self.rows.shape[1]
        self.positions = torch.arange(length) if self.renumbered else positions
        self.count = tokens.shape[1]
        self.stages.append(tokens)

    def answer(self) -> list[int]:
        """A greedy answer."""
        tokens = [self._token(self.rows[:, -1:])]
        for step in range(STEPS - 1):
            row = self.model.model.embed_tokens.weight[tokens[-1]][None, None]
            for layer in range(len(self.model.model.layers)):
                seen = self.cache.get_seq_length(layer) if self.renumbered else self.length + step
                row = self._call(layer, row, torch.tensor([seen]), None)
            tokens.append(self._token(row))
        return tokens

    def _call(self, layer: int, rows: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
        module = self.model.model.layers[layer]

        def watch(_module: nn.Module, _inputs: Any, outputs: Any) -> None:
            self.attention = outputs[1]

        hook = module.self_attn.register_forward_hook(watch)
        tables = self.model.model.rotary_emb(rows, positions[None])
        out: Tensor = module(
            rows, attention_mask=mask, position_embeddings=tables, cache=self.cache, use_cache=True
        )
        hook.remove()
        return out

    def _token(self, row: Tensor) -> int:
        return int(self.model.lm_head(self.model.model.norm(row)).argmax())


class Watched(PrunedDecoderBlock):
    """A block that notes the visual rows after each stage."""

    stages: list[Tensor]

    def _prune(self, *arguments: Any) -> tuple[Tensor, ...]:
        state = super()._prune(*arguments)
        self.stages.append(state[0].index_select(1, state[3]))
        return state


def llama(layers: int, seed: int = 0) -> Any:
    """A tiny decoder with seeded random weights, whose attention and norms are not even."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=96, hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=layers,
        num_attention_heads=HEADS, num_key_value_heads=GROUPS, initializer_range=0.3,
        attn_implementation="eager",
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    for module in model.modules():
        if type(module).__name__ == "LlamaRMSNorm":
            module.weight.data.uniform_(0.3, 1.7)
    for layer in model.model.layers:  # no attention or density is 0, so that none are equal
        layer.self_attn.q_proj.weight.data *= 0.5
        layer.self_attn.o_proj.weight.data *= 0.3
        layer.mlp.down_proj.weight.data *= 0.3
    return model


def prompt_of(count: int, seed: int = 1) -> Tensor:
    """Rows of a prompt with `count` visual tokens, near copies among them: [1, L, C]."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(1, BEFORE + count + AFTER, WIDTH, generator=generator)
    rows[:, BEFORE + 1 : BEFORE + count : 4] = rows[:, BEFORE : BEFORE + count - 1 : 4]
    rows += 0.1 * torch.randn(rows.shape, generator=generator)
    return rows


def bundled(
    model: Any, method: Any, rows: Tensor, count: int, cuts: tuple[int, ...], *signal: Tensor
) -> tuple[list[Tensor], list[int]]:
    """Visual rows after each stage and the answer, of the blocks that a bundle has."""
    layers, depth = model.model.layers, len(model.model.layers)
    frequencies = tuple(model.model.rotary_emb.inv_freq.tolist())
    counts = method.plan(count, depth)
    pruning = Pruning(method, counts, count, frequencies, method.plan_whole(count, depth))
    norm, stages, blocks = FinalNorm(model.model.norm), list[Tensor](), []
    for start, stop in zip((0, *cuts), (*cuts, depth), strict=True):
        own = [DecoderLayer(layer, HEADS, GROUPS) for layer in layers[start:stop]]
        last = norm if stop == depth else None
        blocks.append(Watched(own, last, start, pruning, norm).eval())
        blocks[-1].stages = stages
    length = rows.shape[1]
    caches = [
        [torch.zeros(1, GROUPS, length + FILL + STEPS - pruning.gone(b.first + i // 2), 8)
         for i in range(2 * len(b.layers))]
        for b in blocks
    ]  # fmt: skip
    state: dict[str, Tensor] = {
        "hidden": torch.cat([rows, torch.full((1, FILL, WIDTH), 9.0)], 1),
        **tables(frequencies, torch.arange(length + FILL)),
        "visual_rows": torch.arange(BEFORE, BEFORE + count, dtype=torch.int32)[None],
        "last": torch.tensor([length - 1], dtype=torch.int32),
    }
    given = {"visual_signal": signal[0][None]} if pruning.carried == "vision" else {}
    names = ("hidden", "cos", "sin", "visual_rows", "last", "carried")
    for block, own in zip(blocks, caches, strict=True):
        further = [state["carried"]] if "carried" in state else list(given.values())
        if block.first and not pruning.carried:
            further = []
        fixed = [state[name] for name in names[:5]]
        outputs = block(*fixed, *further, *own)
        made, own[:] = outputs[: -len(own)], outputs[-len(own) :]
        named = names if len(made) > 2 else ("hidden", "carried")
        state |= dict(zip(named, made, strict=False))
    tokens = [int(model.lm_head(state["hidden"]).argmax())]
    one = torch.ones(1, dtype=torch.int32)
    for step in range(STEPS - 1):
        row = model.model.embed_tokens.weight[tokens[-1]][None, None]
        at = tables(frequencies, torch.tensor([length + step]))
        for block, own in zip(blocks, caches, strict=True):
            row, *own[:] = block(row, at["cos"], at["sin"], one * (length + step), one, *own)
        tokens.append(int(model.lm_head(row).argmax()))
    return stages, tokens


def tables(frequencies: tuple[float, ...], positions: Tensor) -> dict[str, Tensor]:
    """Rotary tables [1, n, D] of positions [n], as the host makes them."""
    angles = positions[:, None] * torch.tensor(frequencies)
    angles = torch.cat([angles, angles], 1)[None]
    return {"cos": angles.cos(), "sin": angles.sin()}


def queries_and_keys(prompt: Prompt, layer: int) -> tuple[Tensor, Tensor]:
    """Of a layer that has not run, from its input: rotated, [heads, L, D] each."""
    module = prompt.model.model.layers[layer]
    normed = module.input_layernorm(prompt.rows)
    shape = (1, prompt.rows.shape[1], -1, WIDTH // HEADS)
    query = module.self_attn.q_proj(normed).view(shape).transpose(1, 2)
    key = module.self_attn.k_proj(normed).view(shape).transpose(1, 2)
    at = prompt.model.model.rotary_emb(prompt.rows, prompt.positions[None])
    query, key = apply_rotary_pos_emb(query, key, *at)
    return query[0], repeat_kv(key, HEADS // GROUPS)[0]


def causal_attention(query: Tensor, key: Tensor, rows: Tensor) -> Tensor:
    """Softmax attention of some rows [n] to all before them: [heads, n, L]."""
    scores = query[:, rows] @ key.transpose(1, 2) / math.sqrt(query.shape[-1])
    later = torch.arange(key.shape[1]) > rows[:, None]
    return scores.masked_fill(later, -torch.inf).softmax(-1)


def fastv_original(prompt: Prompt) -> None:
    """Before layer 2 the tokens of the last row of layer 1's attention; ids are kept."""
    for layer in range(len(prompt.model.model.layers)):
        if layer == 2:
            row = prompt.attention.mean(1)[0, -1, prompt.visual]
            prompt.keep(row.topk(prompt.count // 2).indices)
        prompt.run(layer)


def pyramiddrop_original(prompt: Prompt) -> None:
    """Before layers 8, 16 and 24 by the last row of that layer, from its input; numbered anew."""
    prompt.renumbered, total = True, prompt.count
    for layer in range(32):
        if layer in (8, 16, 24):
            query, key = queries_and_keys(prompt, layer)
            last = torch.tensor([prompt.rows.shape[1] - 1])
            row = causal_attention(query, key, last).mean(0)[0, prompt.visual]
            prompt.keep(row.topk(int(total * 0.5 ** (layer // 8))).indices)
        prompt.run(layer)


def visiondrop_original(prompt: Prompt) -> None:
    """Before the same layers by what visual tokens attend to; others merge behind those kept."""
    prompt.renumbered, stages = True, {8: (30, 5), 16: (22, 4), 24: (16, 3)}
    for layer in range(32):
        if layer in stages:
            dominant, contextual = stages[layer]
            query, key = queries_and_keys(prompt, layer)
            rows = torch.arange(BEFORE, BEFORE + prompt.count)
            score = causal_attention(query, key, rows).mean(0)[:, prompt.visual].mean(0)
            tokens, metric = prompt.rows[0, prompt.visual], key.mean(0)[prompt.visual]
            others = torch.ones(prompt.count, dtype=torch.bool)
            others[score.topk(dominant).indices] = False
            rest, metric = tokens[others], nn.functional.normalize(metric[others], dim=-1)
            step = max(1, len(rest) // contextual)
            targets = torch.arange(0, len(rest), step)[:contextual]
            merged = ~torch.isin(torch.arange(len(rest)), targets)
            into = (metric[merged] @ metric[targets].T).argmax(1)
            sums = torch.zeros(contextual, WIDTH).index_add(0, into, rest[merged])
            sizes = torch.bincount(into, minlength=contextual).clamp(min=1)
            made = rest[targets] + sums / sizes[:, None]
            prompt.put(torch.cat([tokens[~others], made])[None], prompt.positions)
        prompt.run(layer)


def holitom_original(prompt: Prompt) -> None:
    """Before layer 18 of 28 by layer 17's last row; each other is averaged into its most similar.

    One after the other, by cosines from before the first; ids are kept.
    """
    for layer in range(28):
        if layer == 18:
            row = prompt.attention.mean(1)[0, -1, prompt.visual]
            kept = row.topk(round(prompt.count * 0.5)).indices
            tokens = prompt.rows[0, prompt.visual].clone()
            unit = nn.functional.normalize(tokens, dim=-1)
            for other in range(prompt.count):
                if other not in kept:
                    near = kept[(unit[other] @ unit[kept].T).argmax()]
                    tokens[near] = (tokens[near] + tokens[other]) / 2
            prompt.rows[0, prompt.visual] = tokens
            prompt.keep(kept)
        prompt.run(layer)


def aim_original(prompt: Prompt) -> None:
    """After layers 14 to 21 of 28 by their own scores before softmax; ids are kept.

    The original hides tokens by masks and leaves their rows, from which the first of the five
    products still reads. Here they leave, as in the paper.
    """
    total = prompt.count
    for layer in range(28):
        rate = max(0.0, 1.0 - (layer - 14 + 1) * 0.125) if layer >= 14 else 1.0
        if rate < 1 and prompt.count:
            query, key = queries_and_keys(prompt, layer)
            weights = causal_attention(query, key, torch.arange(prompt.rows.shape[1]))
            chain = (weights.log() / 0.1).softmax(-1)  # of logits: softmax forgets their sum
            rank = torch.full((HEADS, 1, chain.shape[-1]), 1 / chain.shape[-1])
            for _ in range(5):
                rank = rank @ chain
            importance = rank[:, 0].square().mean(0).sqrt()[prompt.visual]
            prompt.run(layer)
            prompt.keep(importance.topk(int(total * rate)).indices)
        else:
            prompt.run(layer)


def sparsevlm_original(prompt: Prompt) -> None:
    """After layers 2, 6 and 15 by the attention that raters pay in them; numbered anew.

    Raters are chosen once, in the embeddings. Means of clusters come after the tokens that stay.
    """
    prompt.renumbered, kept = True, {2: 300, 6: 200, 15: 110}
    visual, text = prompt.rows[0, prompt.visual], prompt.rows[0, BEFORE + prompt.count :]
    similarity = (visual @ text.T).softmax(1).mean(0)
    raters = torch.where(similarity > similarity.mean())[0]
    assert 0 < len(raters) < AFTER
    for layer in range(32):
        prompt.run(layer)
        if layer not in kept:
            continue
        attention = prompt.attention.mean(1)[0, raters + BEFORE + prompt.count][:, prompt.visual]
        score = attention.mean(0)
        stays = torch.zeros(prompt.count, dtype=torch.bool)
        stays[score.topk(min(kept[layer], prompt.count - 1)).indices] = True
        tokens = prompt.rows[0, prompt.visual]
        candidates = int((~stays).sum() * 0.3) + 1
        chosen = tokens[~stays][score[~stays].topk(candidates).indices]
        clusters = density_peaks(chosen, candidates // 10 + 1)
        prompt.put(torch.cat([tokens[stays], clusters])[None], prompt.positions)


def density_peaks(x: Tensor, clusters: int) -> Tensor:
    """Means of clusters (DPC-KNN), the densest first, without noise."""
    distance = torch.cdist(x, x) / WIDTH**0.5
    density = (-distance.topk(clusters, largest=False).values.square().mean(1)).exp()
    far = torch.where(density[None] > density[:, None], distance, distance.max())
    centres = (far.amin(1) * density).topk(clusters).indices
    nearest = distance[centres].argmin(0)
    nearest[centres] = torch.arange(clusters)
    sums = torch.zeros(clusters, WIDTH).index_add(0, nearest, x)
    return sums / (torch.bincount(nearest, minlength=clusters)[:, None] + 1e-6)


def mustdrop_original(prompt: Prompt, signal: Tensor, share: float, largest: float) -> None:
    """After layers 2, 6, 10, 14 what is above one of two thresholds stays, and the key tokens.

    Numbered anew. The original then cuts the caches of earlier layers too; here they stay.
    """
    prompt.renumbered = True
    key = signal.topk(math.ceil(0.08 * prompt.count)).indices
    for layer in range(32):
        prompt.run(layer)
        if layer in (2, 6, 10, 14):
            words = prompt.attention.mean(1)[0, BEFORE + prompt.count :, prompt.visual]
            together = words.sum(0)
            dropped = (together < together.sum() * share) & (words.amax(0) < largest)
            kept = torch.unique(torch.cat([torch.where(~dropped)[0], key]))
            key = torch.where(torch.isin(kept, key))[0]
            prompt.keep(kept)


def vflowopt_original(prompt: Prompt, signal: Tensor, ratios: dict[int, float]) -> None:
    """Before some layers the lowest importances of the encoder leave, a part of what is left."""
    importance = signal
    for layer in range(len(prompt.model.model.layers)):
        if layer in ratios:
            low = importance.argsort()[: round(len(importance) * (1 - ratios[layer]))]
            mask = torch.ones(len(importance), dtype=torch.bool)
            mask[low] = False
            importance = importance[mask]
            prompt.keep(mask.nonzero().flatten())
        prompt.run(layer)


def dart_original(prompt: Prompt, budget: int) -> None:
    """Before layer 2 what is least like eight pivots, by states in the final norm; ids are kept.

    Pivots: largest L1 norms of layer 1's keys. The original goes through them as a Python set does,
    which is by number but for its hash table.
    """
    for layer in range(len(prompt.model.model.layers)):
        if layer == 2:
            key = repeat_kv(prompt.cache.layers[1].keys, HEADS // GROUPS)[0]
            norms = key.transpose(0, 1).flatten(1).norm(p=1, dim=-1)
            states, end = prompt.model.model.norm(prompt.rows)[0], BEFORE + prompt.count
            image = (norms[BEFORE:end].topk(4).indices + BEFORE).tolist()
            text = (norms[end:].topk(4).indices + end).tolist()
            taken, free = set(image), sorted(set(range(BEFORE, end)) - set(image))
            for pivot in sorted(image + text):
                likeness = cosine_similarity(states[pivot], states[free], dim=-1)
                chosen = [free[i] for i in (-likeness).topk(budget).indices]
                taken.update(chosen)
                free = [i for i in free if i not in taken]
            prompt.keep(torch.tensor(sorted(taken)) - BEFORE)
        prompt.run(layer)


def exit_original(prompt: Prompt) -> None:
    """VTW: before layer 15 of 32 all visual tokens are withdrawn; ids are kept."""
    for layer in range(32):
        if layer == 15:
            prompt.keep(torch.arange(0))
        prompt.run(layer)


CASES: dict[str, tuple[Callable[[Prompt], None], Any, int, int]] = {
    "fastv": (fastv_original, fastv.Method(), 6, 40),
    "pyramiddrop": (pyramiddrop_original, pyramiddrop.Method(), 32, 64),
    "visiondrop": (visiondrop_original, visiondrop.Method(), 32, 48),
    "holitom": (holitom_original, holitom.Method(), 28, 40),
    "aim": (aim_original, aim.Method(), 28, 64),
    "sparsevlm": (sparsevlm_original, sparsevlm.Method(), 32, 576),
    "dart": (lambda prompt: dart_original(prompt, 2), dart.Method(tokens=20), 6, 64),
    "exit": (exit_original, exit.Method(layer=15), 32, 40),
}


@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
def test_equals_the_original_in_the_model(name: str) -> None:
    """Visual rows after each stage and a greedy answer, at the original's own layers."""
    original, method, depth, count = CASES[name]
    model, rows = llama(depth), prompt_of(count)
    prompt = Prompt(model, rows.clone(), count)
    original(prompt)
    cuts = tuple(range(3, depth, 5))
    stages, tokens = bundled(model, method, rows, count, cuts)
    compare(prompt, stages, tokens)


@torch.no_grad()
@pytest.mark.parametrize(("share", "largest"), [(0.02, 0.02), (0.015, 0.02), (0.015, 0.04)])
def test_mustdrop_at_each_pair_of_thresholds(share: float, largest: float) -> None:
    """As many tokens as the thresholds leave in each stage are the same ones, key tokens too."""
    count, model = 64, llama(32)
    rows, signal = prompt_of(count), torch.rand(count, generator=torch.Generator().manual_seed(2))
    prompt = Prompt(model, rows.clone(), count)
    mustdrop_original(prompt, signal, share, largest)
    left = "+".join(str(stage.shape[1]) for stage in prompt.stages)
    counts = [count, *(stage.shape[1] for stage in prompt.stages)]
    prompt.stages = [s for s, before in zip(prompt.stages, counts, strict=False)
                     if s.shape[1] < before]  # fmt: skip
    method = mustdrop.Method(tokens=left, share=share, largest=largest)
    stages, tokens = bundled(model, method, rows, count, (1, 9, 20), signal)
    compare(prompt, stages, tokens)


def test_vflowopt_in_two_stages() -> None:
    """0.7 and 0.6 of what is left, at 9 and 18 of 28 layers, of six here."""
    count, model = 64, llama(6)
    rows, signal = prompt_of(count), torch.rand(count, generator=torch.Generator().manual_seed(2))
    prompt = Prompt(model, rows.clone(), count)
    vflowopt_original(prompt, signal, {2: 0.7, 3: 0.6})
    left = "+".join(str(stage.shape[1]) for stage in prompt.stages)
    assert left == "45+27"
    method = vflowopt.Method(tokens=left, layers="2+3")
    stages, tokens = bundled(model, method, rows, count, (1, 3), signal)
    compare(prompt, stages, tokens)
    assert vflowopt.Method().plan(729, 28) == (729,) * 18 + (437,) * 10


def compare(prompt: Prompt, stages: list[Tensor], tokens: list[int]) -> None:
    """As many stages with the same rows, and the same answer."""
    assert [stage.shape for stage in stages] == [stage.shape for stage in prompt.stages]
    for ours, theirs in zip(stages, prompt.stages, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    assert tokens == prompt.answer()
    assert len(set(tokens)) > 2
