"""A LoRA in training: low-rank layers beside frozen ones (arXiv 2106.09685), by peft, switched on and off."""

import contextlib
import re
from collections.abc import Iterator, Mapping

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from training.loop import TrainingError, select_trainable
from training.recipes import AdapterRecipe

NAME = "default"  # peft's name of the adapter, part of its parameters' names


def add_adapter(model: nn.Module, recipe: AdapterRecipe) -> list[str]:
    """Freeze `model` and put a LoRA, which trains, on its linear layers that end in `recipe.target_modules`.

    A starts Gaussian and B at zero: nothing changes yet. In mixed precision the frozen weights are kept in
    its dtype. Returns the trainable names. Raises TrainingError for a target that matches no layer.
    """
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    for target in recipe.target_modules:
        if not any(f".{name}".endswith(f".{target}") for name in linear):
            raise TrainingError(f"target module {target!r} matches no linear layer of {type(model).__name__}")
    config = LoraConfig(
        r=recipe.lora_rank,
        lora_alpha=recipe.lora_alpha,
        lora_dropout=recipe.lora_dropout,
        init_lora_weights="gaussian",
        target_modules=list(recipe.target_modules),
    )
    inject_adapter_in_model(config, model, NAME)
    trainable = select_trainable(model, ("lora_A", "lora_B"))
    if recipe.precision != "fp32":
        halve_frozen(model, torch.bfloat16 if recipe.precision == "bf16" else torch.float16)
    return trainable


def halve_frozen(model: nn.Module, dtype: torch.dtype) -> None:
    """Keep the frozen weights of a UNet's blocks in the dtype autocast gives them at every use anyway: the
    same numbers in half the memory, and no casts.

    Left alone are normalisations, which autocast runs in float32, and what projects the prompt: sampling does
    so once, outside the forward and its autocast.
    """
    for name, module in model.named_modules():
        inside = "_block" in name and "attn2.to_k" not in name and "attn2.to_v" not in name
        if inside and isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d):
            for parameter in module.parameters(recurse=False):
                if not parameter.requires_grad:
                    parameter.data = parameter.data.to(dtype)


@contextlib.contextmanager
def adapter_off(model: nn.Module) -> Iterator[None]:
    """The frozen network inside: the reference of DPO, without a second copy of its weights."""
    layers = _layers(model)
    for layer in layers:  # not peft's enable_adapters(): it also freezes the adapter and thaws it again
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def adapter_tensors(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Trained parameters by the names of a LoRA file: `<layer>.lora_A.weight`, `<layer>.lora_B.weight`."""
    return {re.sub(rf"\.{NAME}\.weight$", ".weight", name): tensor for name, tensor in weights.items()}


@torch.no_grad()
def adapter_norm(model: nn.Module) -> float:
    """Norm of all that the adapter adds to the weights: alpha / rank * B A of every layer."""
    squares = [layer.get_delta_weight(NAME).square().sum() for layer in _layers(model)]
    return float(torch.stack(squares).sum().sqrt())


def _layers(model: nn.Module) -> list[LoraLayer]:
    return [module for module in model.modules() if isinstance(module, LoraLayer)]
