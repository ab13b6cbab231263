"""Which class of transformers a configuration's model is built as.

A causal language model, mostly. A vision-language model (`..ForConditionalGeneration`) is one with
a tower for images beside it: its configuration names the class in `architectures`, and transformers
lists it apart. One configuration may have both: Qwen 3.5 is read as text alone or with its tower.
Then what `architectures` names counts, so that a checkpoint is written as the class that it was.
"""

from typing import Any

from transformers import (
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    PretrainedConfig,
    PreTrainedModel,
)

TEXT, MULTIMODAL = AutoModelForCausalLM, AutoModelForMultimodalLM
"""Of those that both know, the first is taken unless `architectures` names the other's class."""


def auto_class(config: PretrainedConfig) -> Any:
    """The auto class that builds the model: `AutoModelForCausalLM` where none is known to, which
    then says so itself."""
    able = [auto for auto in (TEXT, MULTIMODAL) if type(config) in auto._model_mapping]
    named = config.architectures or ()
    return next((x for x in able if _class_name(x, config) in named), (*able, TEXT)[0])


def loaded_as(example: str, config: PretrainedConfig) -> str:
    """Lines that load a text model, for a model of this configuration."""
    return example.replace(TEXT.__name__, auto_class(config).__name__)


def has_towers(model: PreTrainedModel) -> bool:
    """Whether the text model is one part among others, for images or sound."""
    return model.config.get_text_config() is not model.config


def _class_name(auto: Any, config: PretrainedConfig) -> str:
    return auto._model_mapping[type(config)].__name__
