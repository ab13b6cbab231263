"""In which dtype transformers loads each tensor: the model's own but for some."""

import re

import torch
from transformers import PreTrainedModel

from q2n.models.skeleton import stored_tensors


def planned_dtypes(model: PreTrainedModel, dtype: torch.dtype) -> dict[str, torch.dtype]:
    """Tensors that transformers loads in another dtype than it is told, such as the biases of a
    router, in float32."""
    plan = {re.compile(p.replace("*", ".*")): t for p, t in model._get_dtype_plan(dtype).items()}
    floating = [name for name, tensor in stored_tensors(model) if tensor.is_floating_point()]
    return {
        name: kept for pattern, kept in plan.items() for name in floating if pattern.search(name)
    }


def loaded_dtypes(model: PreTrainedModel, dtype: torch.dtype) -> dict[str, torch.dtype]:
    """The dtype in which transformers loads each floating-point tensor of a skeleton of `dtype`."""
    own = {name: x.dtype for name, x in stored_tensors(model) if x.is_floating_point()}
    return own | planned_dtypes(model, dtype)
