"""The precision of a model's weights."""

from typing import TypeVar

import torch
from torch import nn

Model = TypeVar("Model", bound=nn.Module)


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}  # by the names that parameters use


def cast(model: Model, dtype: torch.dtype) -> Model:
    """Turn the parameters of `model` to `dtype`, in place; gives `model`.

    Not `model.to(dtype)`: that rounds the rotary frequencies too, which transformers keeps in fp32, and the model
    computes something else (SmolLM2 in bf16: logits off by a quarter of their size).
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model
