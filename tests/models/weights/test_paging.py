"""Weights that stay in their files give what the same weights in memory give, and stay there."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
safetensors = pytest.importorskip("safetensors.torch")

import numpy as np  # noqa: E402
from torch import nn  # noqa: E402

from edgevlm.errors import ModelError  # noqa: E402
from edgevlm.models.find import find  # noqa: E402
from edgevlm.models.weights import paging, sources  # noqa: E402
from edgevlm.models.weights.paging import FileWeight, Kept, in_memory  # noqa: E402
from edgevlm.models.weights.sources import FolderWeights  # noqa: E402


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """`stored(kept_bytes)`: weights of a file, and the same tensors in float32."""
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "matrix": torch.randn(12, 6, generator=generator).bfloat16(),
        "bias": torch.randn(12, generator=generator),
        "scale": torch.tensor(3.0),
    }
    folder = tmp_path_factory.mktemp("weights")
    safetensors.save_file(tensors, folder / "model.safetensors")
    weights = FolderWeights(folder)

    def make(kept_bytes=0):
        kept = Kept(kept_bytes)
        named = {n: FileWeight.of(weights, h, kept) for n, h in weights.headers.items()}
        return named, {name: tensor.float() for name, tensor in tensors.items()}

    return make


def kept(weights):
    """Names of the weights that are in memory."""
    return {name for name, weight in weights.items() if weight._numbers is not None}


def test_what_a_tensor_says_of_itself_reads_nothing(stored, monkeypatch):
    weights, plain = stored()
    monkeypatch.setattr(FolderWeights, "read", None)
    for name, weight in weights.items():
        assert weight.shape == plain[name].shape
        assert weight.dtype is torch.float32
        assert weight.numel() == plain[name].numel()
        assert weight.device.type == "cpu"
        assert not weight.requires_grad_(False).requires_grad
        assert {weight: 1}[weight] == 1
        assert weight.detach() is weight
        assert nn.Parameter(weight, requires_grad=False) is weight


@pytest.mark.parametrize("at_once", [4, 1 << 24])
@pytest.mark.parametrize(("axis", "size"), [(0, 5), (1, 4), (1, 1)])
def test_the_first_rows_or_columns_of_a_matrix(stored, monkeypatch, axis, size, at_once):
    monkeypatch.setattr(sources, "AT_ONCE", at_once)  # several reads, or one
    named, plain = stored()
    whole = named["matrix"]
    weight = FileWeight.of(whole._weights, whole._header.first(axis, size), Kept(0))
    expected = plain["matrix"][:size] if axis == 0 else plain["matrix"][:, :size]
    assert weight.shape == expected.shape
    assert weight._header.bytes == 2 * expected.numel()
    assert torch.equal(weight.read(), expected)
    assert torch.equal(weight[1:4].clone(), expected[1:4])
    assert torch.equal(weight[1:4][1:][0], expected[2])
    assert torch.equal(weight[2:2].clone(), expected[2:2])
    ids = torch.tensor([4, 0, 4])
    assert torch.equal(nn.functional.embedding(ids, weight), expected[ids])


@pytest.mark.parametrize(
    "use",
    [
        lambda t: t["matrix"] @ t["matrix"].T,
        lambda t: nn.functional.linear(torch.ones(2, 6), t["matrix"], t["bias"]),
        lambda t: nn.functional.linear(torch.ones(2, 3, 6), t["matrix"]),
        lambda t: nn.functional.linear(torch.ones(6), t["matrix"], torch.arange(12.0)),
        lambda t: nn.functional.layer_norm(torch.ones(2, 12), (12,), t["bias"], t["bias"]),
        lambda t: nn.functional.embedding(torch.tensor([[3, 3], [11, 0]]), t["matrix"]),
        lambda t: t["matrix"][3],
        lambda t: t["matrix"][-1],
        lambda t: t["matrix"][2:5].clone(),
        lambda t: t["matrix"][-3:].clone(),
        lambda t: t["matrix"][5:2].clone(),
        lambda t: t["matrix"][:20][1:][2],
        lambda t: t["matrix"][:, 1],
        lambda t: t["matrix"][np.array([4, 4, -1])],
        lambda t: t["matrix"].chunk(3)[1].clone(),
        lambda t: t["matrix"].chunk(3, 1)[1].clone(),
        lambda t: t["matrix"].chunk(3, dim=-1)[1].clone(),
        lambda t: nn.functional.embedding(torch.tensor([5]), t["matrix"], max_norm=0.1),
        lambda t: t["bias"].chunk(5)[2].clone(),
        lambda t: t["bias"][None, None] + 1,
        lambda t: torch.cat((t["matrix"], t["matrix"])),
        lambda t: t["scale"].exp(),
        lambda t: torch.from_numpy(t["matrix"].numpy()),
    ],
)
@pytest.mark.parametrize("kept_bytes", [0, 10**6])
@pytest.mark.parametrize("at_once", [1 << 24, 12])
def test_operators_get_the_numbers(stored, monkeypatch, use, kept_bytes, at_once):
    monkeypatch.setattr(paging, "AT_A_TIME", at_once)
    weights, plain = stored(kept_bytes)
    for _ in range(2):
        assert torch.allclose(use(weights), use(plain), atol=1e-6)


def test_rows_and_products_never_have_all_of_a_large_matrix(stored, monkeypatch):
    monkeypatch.setattr(paging, "AT_A_TIME", 12)
    monkeypatch.setattr(FileWeight, "read", None)
    weights, plain = stored()
    table, head = nn.Embedding(12, 6, device="meta"), nn.Linear(6, 12, bias=False, device="meta")
    table.weight, head.weight = weights["matrix"], weights["matrix"]
    ids = torch.tensor([[7, 7, 0]])
    rows = plain["matrix"][ids]
    assert torch.equal(table(ids), rows)
    assert torch.allclose(head(rows), rows @ plain["matrix"].T, atol=1e-6)
    assert torch.equal(weights["matrix"][np.array([2, 3])], plain["matrix"][2:4])
    assert torch.equal(weights["matrix"][9], plain["matrix"][9])


def test_weights_stay_in_memory_up_to_a_limit(stored):
    weights, _ = stored(12 * 4 + 4)
    for name in ("matrix", "bias", "scale"):
        weights[name] + 1
    assert kept(weights) == {"bias", "scale"}


def test_what_stays_has_the_type_of_its_file(stored, monkeypatch):
    """Half the bytes of a matrix in bfloat16, which a product or another use keeps."""
    monkeypatch.setattr(paging, "AT_A_TIME", 12)
    for use in (lambda m: nn.functional.linear(torch.ones(6), m), lambda m: m + 1):
        weights, plain = stored(12 * 6 * 2)
        use(weights["matrix"])
        assert weights["matrix"]._numbers.dtype is torch.bfloat16
        monkeypatch.setattr(FolderWeights, "read", None)
        assert torch.allclose(use(weights["matrix"]), use(plain["matrix"]), atol=1e-6)
        monkeypatch.undo()


def test_a_module_in_memory_for_a_while(stored):
    weights, plain = stored()
    first, second = nn.Linear(6, 12, device="meta"), nn.Linear(6, 12, device="meta")
    for layer in (first, second):
        layer.weight, layer.bias = weights["matrix"], weights["bias"]
    module = nn.Sequential(first, second)
    seen = []

    def stopped():
        with in_memory(module):
            seen.extend((first.weight, second.weight))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert seen[0] is seen[1]
    assert type(seen[0]) is nn.Parameter
    assert torch.equal(seen[0], plain["matrix"])
    assert first.weight is second.weight is weights["matrix"]
    assert not kept(weights)


def test_parts_of_a_weight_have_the_same_place_each_time(stored):
    weights, _ = stored()
    first, second = (weights["matrix"].detach().chunk(3)[1] for _ in range(2))
    assert first.place == second.place != weights["matrix"].place


@pytest.mark.parametrize(
    "name",
    [
        "tiny-smolvlm",
        "tiny-llava-onevision",
        "tiny-llava-next",
        "tiny-internvl",
        "tiny-llava",
        "tiny-qwen2-5-vl",
        "tiny-qwen3-vl",
        "tiny-gemma3",
        "tiny-paligemma",
        "tiny-siglip",
        "tiny-clip",
    ],
)
def test_every_weight_of_a_model_is_that_of_transformers(preset, name):
    checkpoint = find(str(preset(name)))
    loaded, paged = checkpoint.load_model(), checkpoint.load_model(kept_bytes=0)
    expected, actual = dict(loaded.named_parameters()), dict(paged.named_parameters())
    assert actual.keys() == expected.keys()  # tied ones are one in both
    in_files = {n: weight for n, weight in actual.items() if isinstance(weight, FileWeight)}
    assert in_files.keys() >= checkpoint.weights.headers.keys() & expected.keys()
    for each, weight in in_files.items():
        assert torch.equal(weight.read(), expected[each]), each
    assert {n: b.tolist() for n, b in paged.named_buffers()} == {
        n: b.tolist() for n, b in loaded.named_buffers()
    }
    assert not kept(in_files)


def test_the_largest_magnitude_is_found_in_every_type(tmp_path):
    for kind in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        for values in ([1.0, -3.0], [0.0], [2.0, -float("inf")], [float("inf"), float("nan")]):
            tensors = {"a": torch.tensor(values, dtype=kind)}
            safetensors.save_file(tensors, tmp_path / "model.safetensors")
            weights = FolderWeights(tmp_path, whole=True)
            (top,) = sources.largest_numbers(weights, f"{kind} {values}").values()
            expected = max(map(abs, values)) if values[-1] == values[-1] else values[-1]
            assert top == expected or (top != top and expected != expected)


def test_a_file_that_changes_while_it_is_read(tmp_path):
    safetensors.save_file({"a": torch.ones(64)}, tmp_path / "model.safetensors")
    weights = FolderWeights(tmp_path)
    weight = FileWeight.of(weights, weights.headers["a"], Kept(0))
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ModelError, match=r"^model.safetensors has become shorter while it was re"):
        weight.read()
    path.unlink()
    with pytest.raises(ModelError, match=r"^model.safetensors cannot be read: .*No such file"):
        weight.read()
