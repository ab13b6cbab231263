"""What of a model can be quantized."""

from torch import nn


def linear_names(model: nn.Module) -> list[str]:
    """Names of all linear layers, in the model's order."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
