"""The recipe of the nano base model, at a hundredth of its size, and what ships in the package."""

import re

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llamax.data.templates import get_template
from llamax.data.world import pretraining_texts
from llamax.models.nano import NANO_FOLDER, SPECIALS, new_nano, pretrain_nano, train_tokenizer
from llamax.models.save import read_notes

TEXTS = list(pretraining_texts(documents=300))


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS)


def test_every_text_comes_back_and_every_digit_stands_alone(tokenizer):
    for text in [*TEXTS[:50], "über 東京 🦙  \n\n\ttabs", "1234 56789"]:
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.decode(ids) == text
        assert all(len(re.findall(r"\d", tokenizer.decode([i]))) <= 1 for i in ids)
    assert len(tokenizer) == 2048


def test_a_word_is_the_same_tokens_wherever_it_stands(tokenizer):
    for word in ("Iran", "euro", "math", "42", "!="):
        alone = tokenizer.encode(word, add_special_tokens=False)
        for before in (" ", "\n", "is ", "    "):
            assert tokenizer.encode(before + word, add_special_tokens=False)[-len(alone) :] == alone


def test_specials_are_distinct_and_chatml_is_its_own_template(tokenizer):
    assert tokenizer.convert_tokens_to_ids(list(SPECIALS)) == [0, 1, 2, 3, 4]
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == SPECIALS[:3]
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert text == "<s><|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nho<|im_end|>\n"
    assert get_template("tokenizer", tokenizer) is not None


def test_the_untrained_model_has_the_promised_shape(tokenizer):
    model = new_nano(tokenizer)
    assert sum(parameter.numel() for parameter in model.parameters()) == 2_590_464
    assert model.config.tie_word_embeddings and model.config.max_position_embeddings == 512
    assert torch.equal(model.lm_head.weight, new_nano(tokenizer).lm_head.weight)
    assert not torch.equal(model.lm_head.weight, new_nano(tokenizer, seed=1).lm_head.weight)


def test_the_recipe_learns_saves_and_repeats(tmp_path):
    seen = []
    folder, history = pretrain_nano(tmp_path / "a", tokens=12_000, on_step=seen.append)
    assert len(seen) == len(history.steps) == 12_000 // 256 // 8
    assert history.losses[-1] < history.losses[0] - 0.2
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    assert AutoTokenizer.from_pretrained(folder).chat_template
    assert read_notes(folder)["tokens"] == history.tokens
    again, _ = pretrain_nano(tmp_path / "b", tokens=12_000)
    for file in ("model.safetensors", "tokenizer.json", "llamax.json"):
        assert (folder / file).read_bytes() == (again / file).read_bytes(), file


def test_what_ships_is_small_and_of_data_that_a_wheel_carries():
    files = {file.name for file in NANO_FOLDER.iterdir() if file.is_file()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "llamax.json"} <= files
    assert all(name.endswith((".json", ".safetensors", ".md")) for name in files)
    assert (NANO_FOLDER / "model.safetensors").stat().st_size <= 6_000_000
    assert AutoTokenizer.from_pretrained(NANO_FOLDER).chat_template
