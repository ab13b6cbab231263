"""Packed embeddings, and the head tied to them, in transformers, against our dense reader."""

import copy
import inspect
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from formats.native_folders import FORMAT
from formats.tiny_models import PROMPT, in_shards, llama, qwen2, random_layer
from safetensors.torch import load_file, save_file
from tiny import (
    ARCHITECTURES,
    CONVENTIONS,
    SHARED_KEYS,
    TRANSPOSED,
    tiny_model,
    tiny_seeing_model,
    tiny_tokenizer,
)
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

import q2n
from q2n.errors import InputError
from q2n.formats.load import load_model
from q2n.formats.packed_embedding import PackedEmbedding
from q2n.formats.packed_linear import PackedLinear
from q2n.formats.table_grid import WIDTHS
from q2n.layers.codebook import CodebookLinear
from q2n.models.source import open_source

TOKENS = torch.arange(40).reshape(2, 20)


def written(folder: Path, model: PreTrainedModel, bits: int, **layers) -> Path:
    """A native checkpoint with packed tables, its linears as they are but for `layers`."""
    FORMAT.with_outside_bits(bits).write(folder, open_source(model), layers)
    return folder


def read(folder: Path, **options) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, **options).eval()


@torch.no_grad()
def assert_reads_as_dense(
    loaded: PreTrainedModel, folder: Path, dtype: torch.dtype | None = None
) -> None:
    """Rows bit for bit, logits of many tokens too; those of few tokens to rounding."""
    dense = load_model(folder, dtype)
    rows = loaded.get_input_embeddings()(TOKENS)
    assert isinstance(loaded.get_input_embeddings(), PackedEmbedding)
    assert rows.dtype == dense.dtype
    assert torch.equal(rows, dense.get_input_embeddings()(TOKENS))
    assert torch.equal(loaded(TOKENS).logits, dense(TOKENS).logits)
    few = TOKENS[:1, :4]
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 2e-2}[dense.dtype]
    expected = dense(few).logits
    torch.testing.assert_close(
        loaded(few).logits, expected, rtol=0, atol=tolerance * expected.abs().max().item()
    )


def assert_tied(loaded: PreTrainedModel, tied: bool) -> None:
    embeddings, head = loaded.get_input_embeddings(), loaded.get_output_embeddings()
    assert isinstance(head, PackedLinear)
    for name, parameter in embeddings.named_parameters(recurse=False):
        assert (head.get_parameter(name) is parameter) == tied
        assert not parameter.requires_grad


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize(
    "make",
    [
        lambda: llama(tied=True),
        lambda: llama(hidden=72, inner=100),
        lambda: qwen2(torch.bfloat16),
        lambda: tiny_model("gemma3_text", layers=1, tie_word_embeddings=True),
    ],
)
def test_rows_and_logits_are_the_dense_models(tmp_path: Path, make, bits: int) -> None:
    model = make()
    out = written(tmp_path / "out", model, bits)
    loaded = read(out)
    assert loaded.dtype == model.dtype  # of the first floating-point parameter
    assert_reads_as_dense(loaded, out)
    assert_tied(loaded, model.config.tie_word_embeddings)
    loaded.save_pretrained(tmp_path / "again")
    files = [folder / "model.safetensors" for folder in (out, tmp_path / "again")]
    assert files[0].read_bytes() == files[1].read_bytes()
    again = read(tmp_path / "again")
    again.tie_weights()  # transformers does so after some changes of a model
    assert_reads_as_dense(again, out)
    assert_tied(again, model.config.tie_word_embeddings)


@pytest.mark.parametrize(
    "architecture", [x for x in (*ARCHITECTURES, *CONVENTIONS, *TRANSPOSED) if x != "rwkv"]
)
def test_every_architecture(tmp_path: Path, architecture: str) -> None:
    model = tiny_model(architecture, layers=4 if architecture in SHARED_KEYS else 1)
    loaded = read(written(tmp_path / "out", model, 6))
    assert_tied(loaded, model.config.tie_word_embeddings)
    with torch.no_grad():
        assert torch.equal(loaded(TOKENS).logits, load_model(tmp_path / "out")(TOKENS).logits)


def test_a_model_of_several_parts(tmp_path: Path) -> None:
    """Files name its modules otherwise, and its embeddings scale their rows."""
    tower = {"hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 32}
    model = tiny_seeing_model(layers=1, tower={**tower, "num_attention_heads": 2})
    out = written(tmp_path / "out", model, 4)
    assert "language_model.model.embed_tokens.codes" in load_file(out / "model.safetensors")
    loaded = type(model).from_pretrained(out).eval()
    assert_tied(loaded, True)
    embeddings = loaded.get_input_embeddings()
    assert type(embeddings).__name__ == "PackedGemma3TextScaledWordEmbedding"
    dense = load_model(out)
    with torch.no_grad():
        rows = embeddings(TOKENS)
        assert torch.equal(rows, dense.get_input_embeddings()(TOKENS))
        assert torch.equal(loaded(TOKENS).logits, dense(TOKENS).logits)
    assert float(rows.abs().mean() / dense.get_input_embeddings().weight[:40].abs().mean()) == (
        pytest.approx(8, rel=0.05)  # the root of 64 columns
    )


def test_a_tied_table_is_stored_and_kept_once(tmp_path: Path) -> None:
    model = llama(tied=True)
    plain = {name: x.nbytes for name, x in model.named_parameters()}
    loaded = read(written(tmp_path / "out", model, 4))
    table = sum(p.nbytes for p in loaded.model.embed_tokens.parameters())
    assert table == 128 * 64 * 4 // 8 + 128 * 2 * (4 + 4 / 8)
    rest = sum(plain.values()) - plain["model.embed_tokens.weight"]
    assert sum(p.nbytes for p in loaded.parameters()) == table + rest


def test_greedy_text_is_the_dense_models(tmp_path: Path) -> None:
    loaded = read(written(tmp_path / "out", llama(tied=True), 6))
    options: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    expected = load_model(tmp_path / "out").generate(PROMPT, **options)
    assert torch.equal(loaded.generate(PROMPT, **options), expected)
    padded, mask = torch.cat([torch.zeros_like(PROMPT), PROMPT], 1), torch.ones(1, 8).long()
    mask[:, :4] = 0
    assert torch.equal(
        loaded.generate(padded, attention_mask=mask, **options)[:, 8:], expected[:, 4:]
    )


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("placed", ["auto", "cpu", "disk"])
def test_transformers_places_packed_tables(tmp_path: Path, placed: str, tied: bool) -> None:
    out, device_map = tmp_path / "out", placed
    in_shards(FORMAT.with_outside_bits(4), 20_000).write(out, open_source(llama(tied=tied)), {})
    if placed == "disk":
        device_map = dict.fromkeys(("model.embed_tokens", "lm_head"), "disk")
        device_map |= dict.fromkeys(("model.layers", "model.norm", "model.rotary_emb"), "cpu")
    loaded = read(out, device_map=device_map, offload_folder=tmp_path / "offloaded")
    away = any(p.is_meta for p in loaded.model.embed_tokens.parameters())
    assert away == (placed == "disk")
    with torch.no_grad():
        assert torch.equal(loaded(TOKENS).logits, load_model(out)(TOKENS).logits)


def test_another_dtype_is_that_of_the_rows(tmp_path: Path) -> None:
    out = written(tmp_path / "out", llama(tied=True), 8)
    loaded = read(out, dtype=torch.bfloat16)
    assert loaded.model.embed_tokens.scale.dtype == torch.float32
    assert_reads_as_dense(loaded, out, torch.bfloat16)


@pytest.mark.parametrize("architecture", ["llama", "gemma3_text"])
def test_copies_and_pickles_look_up_the_same_rows(tmp_path: Path, architecture: str) -> None:
    loaded = read(written(tmp_path / "out", tiny_model(architecture, layers=1), 4))
    table = loaded.model.embed_tokens
    for copied in (copy.deepcopy(table), pickle.loads(pickle.dumps(table))):
        assert isinstance(copied, type(loaded.model.embed_tokens).__mro__[1])
        assert torch.equal(copied(TOKENS), table(TOKENS))
        copied.scale.data.zero_()
    assert table(TOKENS).any()


def test_a_packed_model_is_measured_as_the_dense_one(tmp_path: Path) -> None:
    out = written(tmp_path / "out", llama(tied=True), 4)
    tiny_tokenizer().save_pretrained(out)
    (tmp_path / "text.txt").write_text("the law of the weight and the row of the grid " * 20)
    on: dict[str, Any] = {"ppl": str(tmp_path / "text.txt"), "length": 16, "windows": 2}
    dense = q2n.evaluate(out, **on)
    packed = q2n.evaluate(read(out), tokenizer=tiny_tokenizer(), **on)
    assert packed.perplexity == pytest.approx(dense.perplexity, rel=1e-5)


@pytest.mark.slow
@torch.no_grad()
def test_a_compiled_model_has_no_break_in_its_graph(tmp_path: Path, monkeypatch) -> None:
    """But for the type checks that these tests put around functions."""
    from q2n.formats import packed_embedding
    from q2n.kernels import packed_table

    monkeypatch.setattr(PackedEmbedding, "forward", inspect.unwrap(PackedEmbedding.forward))
    weight = property(inspect.unwrap(inspect.getattr_static(PackedEmbedding, "weight").fget))
    monkeypatch.setattr(PackedEmbedding, "weight", weight)
    monkeypatch.setattr(
        packed_embedding, "rows_of_table", inspect.unwrap(packed_table.rows_of_table)
    )
    for name in ("_codes_of_rows", "by_column"):
        monkeypatch.setattr(packed_table, name, inspect.unwrap(getattr(packed_table, name)))
    model = tiny_model("gemma3_text", layers=1)
    table = read(written(tmp_path / "out", model, 4)).model.embed_tokens
    compiled = torch.compile(table, fullgraph=True, backend="aot_eager")
    for tokens in (TOKENS, TOKENS[:1, :3]):
        assert torch.equal(compiled(tokens), table(tokens))


def change_group(folder: Path, name: str, **changes: Any) -> None:
    file = folder / "config.json"
    config = json.loads(file.read_text())
    (group,) = [x for x in config["quantization_config"]["layer_groups"] if name in x["layers"]]
    group |= changes
    file.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layers": ["lm_head", "model.embed_tokens"]}, "'lm_head' and 'model.embed_tokens'.*tied"),
        ({"layers": ["lm_head"]}, "lm_head.codes is missing"),
        ({"layers": ["model.norm"]}, "no linear or embedding 'model.norm'"),
        ({"layers": ["model.embed_tokens", "model"]}, "no linear or embedding 'model'"),
    ],
)
def test_a_damaged_description_gets_one_line(tmp_path: Path, changes: dict, words: str) -> None:
    out = written(tmp_path / "out", llama(tied=True), 4)
    change_group(out, "model.embed_tokens", **changes)
    with pytest.raises(InputError, match=words) as refused:
        read(out)
    assert "\n" not in str(refused.value)
    with pytest.raises(InputError) as refused:
        load_model(out)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("part", "tensor", "words"),
    [
        ("codes", None, "embed_tokens.codes is missing"),
        ("codes", torch.zeros(3).int(), "embed_tokens.codes has shape"),
        ("scale", torch.ones(128, 2).half(), "embed_tokens.scale has dtype"),
        ("scale", torch.full((128, 2), torch.inf), "embed_tokens: scale has NaN or Inf"),
        ("weight", torch.ones(128, 64), "embed_tokens.weight.* no place"),
    ],
)
def test_damaged_tensors_get_one_line(
    tmp_path: Path, part: str, tensor: torch.Tensor | None, words: str
) -> None:
    out = written(tmp_path / "out", llama(tied=True), 4)
    file = out / "model.safetensors"
    tensors = load_file(file)
    tensors.pop(f"model.embed_tokens.{part}", None)
    if tensor is not None:
        tensors[f"model.embed_tokens.{part}"] = tensor
    save_file(tensors, file, metadata={"format": "pt"})
    for reader in (read, load_model):
        with pytest.raises(InputError, match=words) as refused:
            reader(out)
        assert "\n" not in str(refused.value)


def test_rows_are_looked_up_on_a_uniform_grid_only(tmp_path: Path, monkeypatch) -> None:
    codes = torch.zeros(128, 64, dtype=torch.uint8)
    table = CodebookLinear(codes=codes, codebook=torch.rand(128, 8), bits=3)
    FORMAT.write(tmp_path / "out", open_source(llama()), {"model.embed_tokens": table})
    with pytest.raises(InputError, match="no linear 'model.embed_tokens'"):
        read(tmp_path / "out")


def test_other_embeddings_are_looked_up_too(tmp_path: Path) -> None:
    """Whatever a checkpoint describes: positions here, whose class adds 2 to each."""
    layer = random_layer((130, 64), 5, 64, False, torch.float16)
    name = "model.decoder.embed_positions"
    model = tiny_model("opt", layers=1)
    FORMAT.write(tmp_path / "out", open_source(model), {name: layer})
    loaded, dense = read(tmp_path / "out"), load_model(tmp_path / "out")
    assert isinstance(loaded.get_submodule(name), PackedEmbedding)
    assert isinstance(loaded.get_input_embeddings(), nn.Embedding)
    with torch.no_grad():
        assert torch.equal(loaded(TOKENS).logits, dense(TOKENS).logits)
