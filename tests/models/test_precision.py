"""Precision and templates: what must not change on the way from training to a saved model."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from llamax.data.templates import get_template
from llamax.errors import ModelError
from llamax.models.load import load, load_tokenizer
from llamax.models.precision import cast
from llamax.models.save import logits, save
from llamax.models.template import check_template
from llamax.training.config import LoraConfig, TrainConfig
from llamax.training.lora import apply_lora
from llamax.training.worker import rebuild


def wide_model(tied: bool = True) -> LlamaForCausalLM:
    """Heads wide enough that rotary frequencies rounded to bf16 show in the logits."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=128, intermediate_size=64, num_hidden_layers=2, num_attention_heads=1,
        num_key_value_heads=1, max_position_embeddings=4096, initializer_range=0.5, tie_word_embeddings=tied,
    )  # fmt: skip
    return cast(LlamaForCausalLM(config), torch.bfloat16).eval()


def test_casting_leaves_the_rotary_frequencies_in_fp32():
    model = wide_model()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32
    rounded = wide_model().to(torch.bfloat16)
    ids = torch.arange(1024)[None] % 64
    assert (logits(rounded, ids) - logits(model, ids)).abs().max() > 0.1  # else the next test would test nothing


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2)])
def test_a_model_put_together_again_computes_the_same(tied, lora):
    """What `whole_model` does after ZeRO-3, in bf16 as the GPU profiles train."""
    model, config = wide_model(tied), TrainConfig(lora=lora)
    if lora:
        model = cast(apply_lora(model, lora), torch.bfloat16)
    state = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    whole = rebuild(model, state, config).eval()
    ids = torch.arange(1024)[None] % 64
    assert torch.equal(logits(whole, ids), logits(model, ids))


def test_a_model_is_prompted_as_it_was_trained(tmp_path):
    model, tokenizer = load("nano")
    chatml, vicuna = (get_template(name, load_tokenizer("nano")) for name in ("chatml", "vicuna"))
    save(model, tokenizer, tmp_path / "tuned", notes={"template": chatml.fingerprint})
    check_template(tmp_path / "tuned", chatml)
    with pytest.raises(ModelError, match=r"but 'vicuna' is .*: prompt it with the template that it was trained with"):
        check_template(tmp_path / "tuned", vicuna)
    save(model, tokenizer, tmp_path / "other")
    check_template(tmp_path / "other", vicuna)
