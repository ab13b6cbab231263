"""A model is built as the class that its configuration names."""

import pytest
from tiny_recurrent import RECURRENT
from tiny_seeing import SEEING
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMultimodalLM, LlamaConfig

from q2n.models.auto_classes import auto_class, loaded_as


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        (["Qwen3_5ForConditionalGeneration"], AutoModelForMultimodalLM),
        (["Qwen3_5ForCausalLM"], AutoModelForCausalLM),
        (None, AutoModelForCausalLM),
    ],
)
def test_architectures_choose_between_two_classes(named, expected) -> None:
    config = AutoConfig.for_model("qwen3_5", **SEEING["qwen3_5"])
    config.architectures = named
    assert auto_class(config) is expected


def test_a_model_with_one_class_needs_no_name() -> None:
    assert auto_class(AutoConfig.for_model("llava", **SEEING["llava"])) is AutoModelForMultimodalLM
    assert auto_class(LlamaConfig()) is AutoModelForCausalLM
    assert auto_class(AutoConfig.for_model("mamba", **RECURRENT["mamba"])) is AutoModelForCausalLM


def test_loading_examples_name_the_class() -> None:
    example = "from transformers import AutoModelForCausalLM"
    seeing = AutoConfig.for_model("llava", **SEEING["llava"])
    assert loaded_as(example, seeing) == "from transformers import AutoModelForMultimodalLM"
    assert loaded_as(example, LlamaConfig()) == example
