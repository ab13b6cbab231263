"""What is refused in a checkpoint, dtypes, digests, downloads: the edges of a source."""

import json
from importlib import import_module
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import save_tiny, tiny_model

from q2n.errors import InputError, NumericalError
from q2n.models import checkpoint_files
from q2n.models.blocks import BlockwiseModel
from q2n.models.source import open_source

INDEX = "model.safetensors.index.json"
TOKENS = torch.arange(8).unsqueeze(0)
OUTSIDE = ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")
HTTP = import_module(checkpoint_files.hub.HTTPError.__module__.split(".")[0])  # the hub's client


def sharded(folder: Path) -> Path:
    tiny_model().save_pretrained(folder, max_shard_size="40KB")
    return folder


def edit_tensors(folder: Path, **changed: torch.Tensor | None) -> None:
    """Replace tensors of a one-file checkpoint."""
    file = folder / "model.safetensors"
    save_file({**load_file(file), **changed}, file)


def edit_json(file: Path, **changed: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changed}))


def test_a_shape_unlike_config_json_is_named(tmp_path):
    folder = save_tiny(tmp_path / "model")
    edit_json(folder / "config.json", intermediate_size=80)
    with pytest.raises(InputError, match=r"model\.safetensors: .*_proj\.weight.*96.*80"):
        open_source(folder)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 1}}'])
def test_a_malformed_index_is_named(tmp_path, text):
    folder = sharded(tmp_path / "model")
    (folder / INDEX).write_text(text)
    with pytest.raises(InputError, match="index.json.*weight_map"):
        open_source(folder)


def test_a_tensor_that_its_shard_lacks_is_named(tmp_path):
    folder = sharded(tmp_path / "model")
    weight_map = json.loads((folder / INDEX).read_text())["weight_map"]
    files = sorted(set(weight_map.values()))
    edit_json(folder / INDEX, weight_map={**weight_map, "model.norm.weight": files[0]})
    with pytest.raises(InputError, match=rf"{files[0]} has no tensor 'model\.norm\.weight'"):
        open_source(folder)


def test_a_truncated_later_shard_is_found_at_once(tmp_path):
    folder = sharded(tmp_path / "model")
    last = sorted(folder.glob("*.safetensors"))[-1]
    last.write_bytes(last.read_bytes()[:-10])
    with pytest.raises(InputError, match=last.name):
        open_source(folder)


@pytest.mark.parametrize("change", [{"hidden_size": "wide"}, {"num_attention_heads": 0}])
def test_impossible_values_in_config_json_are_refused(tmp_path, change):
    folder = save_tiny(tmp_path / "model")
    edit_json(folder / "config.json", **change)
    with pytest.raises(InputError, match="config.json"):
        open_source(folder)


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("in_memory", [True, False])
def test_infinities_outside_the_blocks_are_named_early(tmp_path, name, in_memory):
    """1e6 is a number in float32 and Inf in float16, whose largest is 65504."""
    model = tiny_model(tie_word_embeddings=False)
    model.get_parameter(name).data.flatten()[0] = 1e6
    model.save_pretrained(tmp_path / "model")
    for dtype, finite in (("float32", True), ("float16", False)):
        source = open_source(model if in_memory else tmp_path / "model", dtype=dtype)
        inputs = BlockwiseModel(source).record_inputs([TOKENS])
        if finite:
            assert next(inputs).hidden.dtype is torch.float32
            continue
        with pytest.raises(NumericalError, match=rf"{name}.*float16"):
            next(inputs)
        with pytest.raises(NumericalError, match=rf"{name}.*float16"):
            source.in_model_dtype(name)


def with_buffers() -> torch.nn.Module:
    """A model with integer and 0-dim buffers in a module that has no parameters."""
    model = tiny_model()
    for parent in (model.model, model.model.layers[0]):
        parent.counted = torch.nn.Module()
        parent.counted.register_buffer("steps", torch.tensor(300))
        parent.counted.register_buffer("known", torch.tensor([True, False]))
    return model


def test_integers_keep_their_dtype():
    model = with_buffers()
    source = open_source(model, dtype="bfloat16")
    assert source.in_model_dtype("model.counted.steps").dtype is torch.int64
    block = BlockwiseModel(source).load_block(0)
    assert block.counted.steps == 300 and block.counted.steps.dtype is torch.int64
    assert block.counted.known.dtype is torch.bool
    assert block.mlp.up_proj.weight.dtype is torch.bfloat16


def test_stored_buffers_of_modules_without_parameters_are_loaded(monkeypatch, tmp_path):
    """The skeleton of a checkpoint has real buffers with the values of a new model."""
    source = open_source(save_tiny(tmp_path / "model"))
    build, read = source.skeleton, source.in_model_dtype

    def skeleton():
        model = build()
        model.model.counted = torch.nn.Module()
        model.model.counted.register_buffer("steps", torch.tensor(0))
        return model

    names = [*source.names(), "model.counted.steps"]
    monkeypatch.setattr(source, "skeleton", skeleton)
    monkeypatch.setattr(source, "names", lambda: names)
    monkeypatch.setattr(
        source,
        "in_model_dtype",
        lambda name: torch.tensor(7) if name == names[-1] else read(name),
    )
    blocks = BlockwiseModel(source)
    next(blocks.record_inputs([TOKENS]))
    assert blocks._model.model.counted.steps == 7


@pytest.mark.parametrize("in_memory", [True, False])
def test_the_run_uses_the_requested_dtype(tmp_path, in_memory):
    folder = save_tiny(tmp_path / "model")
    asked = open_source(tiny_model() if in_memory else folder, dtype="bfloat16")
    blocks = BlockwiseModel(asked)
    inputs = next(blocks.record_inputs([TOKENS]))
    assert asked.dtype is torch.bfloat16
    assert inputs.hidden.dtype is torch.bfloat16
    assert {p.dtype for p in blocks.load_block(0).parameters()} == {torch.bfloat16}
    assert {
        t.dtype for t in inputs.calls[0].arguments(inputs.hidden, {})[1]["position_embeddings"]
    } == {torch.bfloat16}
    assert asked.size_bytes() == 2 * sum(p.numel() for p in tiny_model().parameters())


def test_unstored_buffers_have_the_dtype_of_the_run(tmp_path):
    """Gemma multiplies embeddings by sqrt(width); bfloat16 rounds sqrt(72) = 8.4853 to 8.5."""
    folder = save_tiny(tmp_path / "model", "gemma", hidden_size=72)
    edit_json(folder / "config.json", dtype="bfloat16")
    source = open_source(folder, dtype="float32")
    scale = source.skeleton().get_input_embeddings().embed_scale
    assert scale.dtype is torch.float32
    assert abs(scale.item() - 72**0.5) < 1e-6  # one float32 rounding of 8.49 is at most 5e-7
    assert source.config.dtype is torch.bfloat16  # the source's own config is not changed


def test_the_digest_ignores_the_version_in_config_json(tmp_path):
    folder = save_tiny(tmp_path / "model")
    before = open_source(folder).digest()
    edit_json(folder / "config.json", transformers_version="5.0.0")
    assert open_source(folder).digest() == before
    edit_json(folder / "config.json", rms_norm_eps=1e-3)
    assert open_source(folder).digest() != before


def test_an_objects_digest_covers_names_shapes_dtypes():
    def digest(value: torch.Tensor, name: str = "extra") -> str:
        model = tiny_model()
        model.register_buffer(name, value)
        return open_source(model).digest()

    zero = torch.tensor(0.0)
    values = [digest(zero), digest(zero.reshape(1)), digest(zero.int()), digest(zero, "other")]
    assert len(set(values)) == 4
    assert digest(zero) == values[0]


def test_an_offloaded_object_is_refused():
    with pytest.raises(InputError, match="not in memory"):
        open_source(tiny_model().to("meta"))


def test_what_is_downloaded(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(
        checkpoint_files,
        "snapshot_download",
        lambda name, allow_patterns, **_: asked.append(allow_patterns) or str(tmp_path),
    )
    for trusted in (False, True):
        actual = checkpoint_files.resolve_checkpoint("some/model", trust_remote_code=trusted)
        assert actual == tmp_path
    matches = [lambda file, p=p: any(Path(file).match(one) for one in p) for p in asked]
    for match in matches:
        assert match("model-00001-of-00002.safetensors") and match(INDEX)
        assert match("config.json") and match("tokenizer.model")
        assert match("preprocessor_config.json") and match("additional_chat_templates/rag.jinja")
        assert not match("consolidated.safetensors") and not match("tokenizer.json.bak")
    assert [match("modeling_own.py") for match in matches] == [False, True]


def test_code_travels_only_where_it_may_run(tmp_path):
    folder = save_tiny(tmp_path / "model")
    (folder / "modeling_own.py").write_text("")
    for trusted in (False, True):
        out = tmp_path / str(trusted)
        out.mkdir()
        open_source(folder, trust_remote_code=trusted).save_auxiliary(out)
        assert (out / "modeling_own.py").exists() is trusted
        assert (out / "tokenizer.json").exists()


@pytest.mark.parametrize("failure", [HTTP.ReadTimeout("slow"), HTTP.ProxyError("no"), OSError()])
def test_a_failed_download_is_the_users_to_solve(monkeypatch, failure):
    def fail(*_, **__):
        raise failure

    monkeypatch.setattr(checkpoint_files, "snapshot_download", fail)
    with pytest.raises(InputError, match=type(failure).__name__):
        open_source("some/model")
