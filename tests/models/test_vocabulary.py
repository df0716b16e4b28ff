import copy

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from llamax.models.save import logits
from llamax.models.vocabulary import add_tokens, set_pad_token


@pytest.fixture
def tokenizer(tiny_tokenizer):
    return copy.deepcopy(tiny_tokenizer)


def small(rows, tied):
    torch.manual_seed(1)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=rows, tie_word_embeddings=tied, **sizes))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("padding", [0, 7, 64])
def test_new_rows_are_the_mean_of_the_old(tokenizer, tied, padding):
    known = len(tokenizer)
    model = small(known + padding, tied)
    before = [m.weight.detach().clone()[:known] for m in (model.model.embed_tokens, model.lm_head)]
    old_logits = logits(model, torch.arange(20)[None])
    assert add_tokens(model, tokenizer, ["<one>", "<two>", "<s>"]) == 2
    assert len(tokenizer) == known + 2
    for matrix, old in zip((model.model.embed_tokens, model.lm_head), before, strict=True):
        assert matrix.weight.shape[0] % 64 == 0
        assert torch.equal(matrix.weight[:known], old)
        torch.testing.assert_close(matrix.weight[known:], old.mean(0).expand(len(matrix.weight) - known, -1))
    assert model.config.vocab_size == model.lm_head.weight.shape[0]
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    torch.testing.assert_close(logits(model, torch.arange(20)[None])[..., :known], old_logits[..., :known])


def test_known_tokens_change_nothing(tokenizer):
    model = small(len(tokenizer), True)
    assert add_tokens(model, tokenizer, ["<s>", "</s>"]) == 0
    assert model.config.vocab_size == len(tokenizer)


def test_a_special_token_is_one_token(tokenizer):
    model = small(len(tokenizer), True)
    add_tokens(model, tokenizer, ["<tool>"])
    assert (
        tokenizer("a<tool>b", add_special_tokens=False).input_ids.count(tokenizer.convert_tokens_to_ids("<tool>")) == 1
    )
    assert "<tool>" not in tokenizer.decode(tokenizer("a<tool>b").input_ids, skip_special_tokens=True)


def test_pad_may_be_new(tokenizer):
    model = small(len(tokenizer), True)
    set_pad_token(tokenizer, "<fill>", model)
    assert tokenizer.pad_token_id == model.config.pad_token_id == model.generation_config.pad_token_id
    assert model.lm_head.weight.shape[0] > tokenizer.pad_token_id
