"""Architecture numbers against transformers' own models, and what may be given instead of a name."""

import json

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from llamax.errors import ParameterError
from llamax.models.nano import nano_config
from llamax.models.source import NANO_FOLDER
from llamax.training.config import LoraConfig
from llamax.training.lora import apply_lora
from llamax.training.plan.shapes import LINEARS, find_shape, shape_of, shapes


def meta_model(shape):
    """The same architecture, by transformers, without memory."""
    config = LlamaConfig(
        vocab_size=shape.vocab, hidden_size=shape.hidden, intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim, tie_word_embeddings=shape.tied,
    )  # fmt: skip
    with torch.device("meta"):
        return LlamaForCausalLM(config)


@pytest.mark.parametrize("name", shapes())
def test_parameters_are_those_of_transformers(name):
    shape = find_shape(name)
    model = meta_model(shape)
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    layer = model.model.layers[0]
    assert shape.layer_parameters == sum(p.numel() for p in layer.parameters())
    assert shape.largest_matrix == max(p.numel() for p in layer.parameters())


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        # the counts on the hub's model pages, "Model size" with all digits from their safetensors metadata
        ("7b", 6_738_415_616),
        ("13b", 13_015_864_320),
        ("65b", 65_285_660_672),
        ("llama-2-70b", 68_976_648_192),
        ("llama-3-8b", 8_030_261_248),
        ("llama-3-70b", 70_553_706_496),
        ("smol", 134_515_008),
    ],
)
def test_parameters_are_the_published_ones(name, parameters):
    assert find_shape(name).parameters == parameters


@pytest.mark.parametrize("config", [LoraConfig(rank=4), LoraConfig(rank=3, targets=("q_proj", "down_proj"))])
def test_adapters_are_those_of_peft(config):
    shape = find_shape("nano")
    model = apply_lora(LlamaForCausalLM(nano_config()), config)
    assert shape.adapters(config) == sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("huggyllama/llama-13b", "llama-13b"),
        ("meta-llama/Llama-2-70b-hf", "llama-2-70b"),
        ("meta-llama/Llama-2-7b-chat-hf", "llama-2-7b"),
        ("meta-llama/Meta-Llama-3-8B-Instruct", "llama-3-8b"),
        ("meta-llama/Llama-3.1-70B", "llama-3-70b"),
        ("30b", "llama-33b"),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "smol"),
    ],
)
def test_a_name_may_be_a_hub_id(spec, name):
    assert find_shape(spec).name == name


def test_a_folder_and_its_config_say_the_same_as_the_name():
    for spec in (str(NANO_FOLDER), str(NANO_FOLDER / "config.json")):
        assert find_shape(spec) == find_shape("nano")


def test_what_is_missing_in_a_config_has_transformers_defaults():
    config = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
    shape = shape_of(config | {"vocab_size": 100, "num_key_value_heads": None})
    assert (shape.kv_heads, shape.head_dim, shape.tied) == (4, 16, False)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "not the config.json of a LLaMA"),
        ("[]", "not the config.json of a LLaMA"),
        (json.dumps({"model_type": "bert"}), "model_type is 'bert', should be 'llama'"),
        (json.dumps({"num_attention_heads": 4}), "'hidden_size' is missing"),
    ],
)
def test_a_config_that_is_none_is_one_line(tmp_path, content, says):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ParameterError, match=says) as error:
        find_shape(str(tmp_path))
    assert "\n" not in str(error.value)


def test_unknown_names_are_answered_with_the_known_ones():
    with pytest.raises(ParameterError, match=r"model 'gpt-2': no shape of that name.*llama-7b"):
        find_shape("gpt-2")
    with pytest.raises(ParameterError, match=r"lora.targets: 'lm_head' cannot be planned"):
        find_shape("nano").adapters(LoraConfig(targets=("lm_head",)))


def test_linear_maps_are_the_layers_matrices():
    shape = find_shape("llama-3-8b")
    layer = meta_model(shape).model.layers[0]
    found = {name.split(".")[-2]: tuple(reversed(p.shape)) for name, p in layer.named_parameters() if p.dim() == 2}
    assert found == {name: shape.linear(name) for name in LINEARS}
