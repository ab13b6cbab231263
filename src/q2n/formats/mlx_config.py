"""What mlx-lm would compute otherwise than transformers of a configuration.

Of yarn and longrope it makes the factor on queries and keys itself (mlx_lm/models/rope_utils.py).
"""

from copy import deepcopy

from transformers import PretrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from q2n.option_types import shown

_FACTOR = "attention_factor"


def rotary_problem(config: PretrainedConfig) -> str | None:
    """What mlx-lm would compute otherwise of a position embedding, or None."""
    plain = deepcopy(config)
    entries = getattr(plain, "rope_parameters", None) or {}
    kind, factor = entries.get("rope_type"), entries.pop(_FACTOR, None)
    if factor is None or kind not in ROPE_INIT_FUNCTIONS:
        return None
    default = ROPE_INIT_FUNCTIONS[kind](plain, "cpu")[1]
    if factor == default:
        return None
    return f"rope_parameters has {_FACTOR} {shown(factor)}, and there it is {default:.7g}"
