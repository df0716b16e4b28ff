"""Low-rank adapters, by peft."""

import warnings

from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, TaskType, get_peft_model
from transformers import PreTrainedModel

from llamax.training.config import LoraConfig


def apply_lora(model: PreTrainedModel, config: LoraConfig) -> PeftModel:
    """Freeze `model` and put adapters into its `targets`; seed torch before, `A` starts random. `model` is changed.

    `all-linear` means every linear layer except the vocabulary projection (Dettmers et al. 2023, section 4).
    """
    targets = config.targets if isinstance(config.targets, str) else list(config.targets)
    peft_config = PeftLoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=targets,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")  # peft asks for it
        return get_peft_model(model, peft_config)


def merge_lora(model: PeftModel) -> PreTrainedModel:
    """The plain model with `alpha / rank * B A` added to its weights; loads without peft. `model` is used up."""
    return model.merge_and_unload()
