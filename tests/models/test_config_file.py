"""config.json with everything that it should not hold: a model or one line, soon and in little
memory."""

import json
import resource

import pytest
import torch
from tiny import save_tiny, tiny_model, tiny_tokenizer

import q2n
from q2n.errors import InputError
from q2n.formats.load import load_model
from q2n.models.config_file import read_config
from q2n.models.skeleton import build_skeleton, share_skeleton
from q2n.models.source import open_source

DEEP = 100_000
FILES = {
    "a list": b"[]",
    "null": b"null",
    "a text": b'"x"',
    "nothing": b"",
    "zeros": b"\0" * 100,
    "half": b'{"model_type": "llama", "hidd',
    "lists": b"[" * DEEP,
    "objects": b'{"a":' * DEEP,
    "lists in it": b'{"model_type": "llama", "a": ' + b"[" * 900 + b"]" * 900 + b"}",
    "100 MB": b'{"a": "' + b"x" * (100 * 2**20) + b'"}',
    "UTF-16": '{"model_type": "llama"}'.encode("utf-16"),
    "a byte order mark": b'\xef\xbb\xbf{"model_type": "llama"}',
    "no UTF-8": b'{"model_type": "\xff"}',
}
WRONG_SIZES = ("64", -1, 0, 10**9, 10**12, 10**30, None, 1.5, True, [], {})
WRONG = {
    "hidden_size": WRONG_SIZES,
    "intermediate_size": WRONG_SIZES,
    "num_hidden_layers": (*WRONG_SIZES, 500),
    "num_attention_heads": (*WRONG_SIZES, -4, 3),
    "num_key_value_heads": (*WRONG_SIZES, 3),
    "head_dim": (*WRONG_SIZES, 15, -16),
    "vocab_size": (*WRONG_SIZES, 127),
    "max_position_embeddings": WRONG_SIZES,
    "num_labels": (10**9, "x"),
    "hidden_act": ("magic", None, 5),
    "rms_norm_eps": ("x", None),
    "dtype": ("garbage", 5, [], {}, "float8_e4m3fn", "int8"),
    "quantization_config": (5, [], {}, "x", {"quant_method": "awq"}, {"quant_method": []}),
    "auto_map": (5, {"AutoConfig": "x.Y"}),
    "architectures": (["Unknown"], 5, None),
    "model_type": ("unknown", None, 5, "t5", "__class__", ""),
    "rope_scaling": (5, {}, {"type": "xyz"}, {"rope_type": "linear", "factor": "x"}, "x"),
    "rope_parameters": (5, {}, {"rope_type": "xyz"}, {"rope_type": "yarn"}, None),
    "layer_types": (["full_attention"], ["full_attention"] * 10, ["x"] * 3, 5, [None] * 3),
    "pad_token_id": (500, 10**12, "x", [1]),
    "text_config": (5, {}, {"hidden_size": 1}),
    "id2label": (5, {"a": "b"}),
    "per_layer_config": (5,),
    "to_dict": (5,),
    "__class__": (5,),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("place") / "model")


@pytest.fixture
def written(folder):
    """The folder with other bytes, or another entry, in config.json."""
    file = folder / "config.json"
    whole = file.read_bytes()

    def write(content):
        changed = {**json.loads(whole), **content} if isinstance(content, dict) else None
        file.write_bytes(content if changed is None else json.dumps(changed).encode())
        return folder

    yield write
    file.write_bytes(whole)


def peak_bytes():
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.mark.parametrize("content", FILES.values(), ids=FILES)
def test_what_is_no_configuration_gets_one_line(written, content):
    model = written(content)
    for read in (read_config, open_source, load_model):
        with pytest.raises(InputError, match=r"config\.json") as refused:
            read(model)
        assert "\n" not in str(refused.value) and len(str(refused.value)) < 800


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_entry_gives_a_model_or_one_line_soon_and_in_little_memory(written, name):
    for wrong in WRONG[name]:
        model, before = written({name: wrong}), peak_bytes()
        for read in (open_source, load_model):
            try:
                read(model)
            except InputError as refused:
                line = str(refused)
                assert "\n" not in line and len(line) < 900, (name, wrong, line)
        assert peak_bytes() - before < 1e9, (name, wrong)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers 1000000000.*has more than 30"),
        ({"num_hidden_layers": 0}, "has 0 layers"),
        ({"hidden_size": 10**12}, "hidden_size 1000000000000"),
        ({"num_labels": 10**9}, "num_labels"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantized already .'awq'."),
        ({"quantization_config": {}}, "quantized already"),
        ({"dtype": "float8_e4m3fn"}, "dtype 'float8_e4m3fn'.*--dtype"),
        ({"pad_token_id": 500}, "Padding_idx"),
        ({"model_type": "unknown"}, "unknown"),
    ],
)
def test_the_reason_is_named(written, change, words):
    with pytest.raises(InputError, match=words):
        open_source(written(change))


@pytest.mark.parametrize("name", ["layer_rope_theta", "ngram_vocab_size_base", "layer_scale"])
def test_large_numbers_that_count_nothing_are_taken(written, name):
    assert open_source(written({name: 2e7})).names()


def test_a_buffer_that_no_model_needs_is_not_made(folder):
    config = read_config(folder)
    config.head_dim = 2**40
    with pytest.raises(InputError, match="a buffer of 549755813888 numbers"):
        build_skeleton(config, torch.float32)


@pytest.mark.parametrize("wanted", ["flash_attention_2", "somebody/kernel", 5, None])
@pytest.mark.parametrize("entry", ["attn_implementation", "_attn_implementation"])
def test_a_working_attention_is_chosen_whatever_config_wants(written, entry, wanted):
    plain = load_model(written({})).state_dict()
    model = written({entry: wanted})
    assert open_source(model).skeleton().config._attn_implementation == "sdpa"
    loaded = load_model(model)
    assert loaded.config._attn_implementation == "sdpa"
    assert all(torch.equal(tensor, plain[name]) for name, tensor in loaded.state_dict().items())


@pytest.mark.parametrize("wanted", ["flash_attention_2", "garbage"])
def test_a_model_object_with_an_attention_that_is_missing_is_quantized(tmp_path, wanted):
    model = tiny_model()
    model.config._attn_implementation = wanted
    assert share_skeleton(model).config._attn_implementation == "sdpa"
    assert model.config._attn_implementation == wanted
    (tmp_path / "text.txt").write_text("the law of null space " * 200)
    settings = {"corpus": str(tmp_path / "text.txt"), "windows": 2, "length": 16, "bits": 3}
    q2n.quantize(model, tmp_path / "out", tokenizer=tiny_tokenizer(), **settings)
    assert "attn_impl" not in (tmp_path / "out" / "config.json").read_text()


def test_a_working_attention_of_a_model_object_stays():
    model = tiny_model()
    model.set_attn_implementation("eager")
    assert share_skeleton(model).config._attn_implementation == "eager"


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["model.Q4_K_M.gguf"], "GGUF files are not read"),
        (["MODEL.GGUF"], "GGUF files are not read"),
        (["adapter_config.json"], "it is an adapter"),
        ([], "holds no config.json; give the folder of a checkpoint"),
    ],
)
def test_a_folder_of_another_kind_is_named(tmp_path, files, words):
    for name in files:
        (tmp_path / name).write_text("{}")
    with pytest.raises(InputError, match=words):
        open_source(tmp_path)


def test_a_model_that_is_built_and_does_not_run_gets_one_line(tmp_path):
    folder = save_tiny(tmp_path / "model", "opt")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_attention_heads": -4}))
    (tmp_path / "text.txt").write_text("the law of null space " * 200)
    settings = {"corpus": str(tmp_path / "text.txt"), "windows": 2, "length": 16, "bits": 3}
    with pytest.raises(InputError, match="does not run: .*config.json may"):
        q2n.quantize(folder, tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()
