"""A model loaded into ZeRO-3's shards is the model, and no rank ever holds the whole of it."""

import shutil

import pytest
import torch
from safetensors.torch import load_file
from training_cases import log_of, new_config, run_ranks
from transformers import LlamaConfig, LlamaForCausalLM

from llamax.models.load import load
from llamax.models.source import NANO_FOLDER

LARGE = LlamaConfig(
    vocab_size=2048, hidden_size=1024, intermediate_size=2752, num_hidden_layers=8, num_attention_heads=8,
    max_position_embeddings=256, tie_word_embeddings=False, pad_token_id=2, bos_token_id=0, eos_token_id=1,
)  # fmt: skip


def in_shards(out, model, precision="fp32", **more):
    config = new_config(engine="deepspeed", ranks=2, zero_stage=3, precision=precision, **more.pop("train", {}))
    return {"do": "load", "out": str(out), "model": str(model), "config": config.model_dump(mode="json"), **more}


def pickled(folder):
    """The nano model as torch's own format keeps it, in two files."""
    shutil.copytree(NANO_FOLDER, folder, ignore=shutil.ignore_patterns("*.safetensors", "llamax.json"))
    weights = sorted(load_file(NANO_FOLDER / "model.safetensors").items())
    for k in (0, 1):
        torch.save(dict(weights[k::2]), folder / f"pytorch_model-0000{k + 1}-of-00002.bin")
    return folder


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """One start of two ranks for all comparisons."""
    folder = tmp_path_factory.mktemp("sharded")
    large = folder / "large"
    model = LlamaForCausalLM(LARGE).to(torch.bfloat16)
    model.save_pretrained(large, max_shard_size="60MB")
    for file in NANO_FOLDER.glob("tokenizer*"):
        shutil.copy(file, large)
    cases = [
        in_shards(folder / "large_loaded", large, "bf16"),
        in_shards(folder / "padded", NANO_FOLDER, pad_token="<new>"),
        in_shards(folder / "bf16", NANO_FOLDER, "bf16", pad_token="<pad>"),
        in_shards(folder / "offloaded", NANO_FOLDER, train={"offload_optimizer": True, "offload_parameters": True}),
        in_shards(folder / "pickled_loaded", pickled(folder / "pickled")),
    ]
    # Freed pieces go back to the system at once, as those of a real model do, which are above malloc's threshold.
    assert run_ranks(2, cases, folder, MALLOC_MMAP_THRESHOLD_="65536") == [0, 0], log_of(folder)
    return folder


@pytest.mark.parametrize(
    ("name", "dtype", "pad_token"),
    [
        ("padded", torch.float32, "<new>"),
        ("bf16", torch.bfloat16, "<pad>"),
        ("offloaded", torch.float32, None),
        ("pickled_loaded", torch.float32, None),
    ],
)
def test_the_weights_are_those_of_a_plain_load(loaded, name, dtype, pad_token):
    found = torch.load(loaded / name / "loaded-0.pt")
    expected = load("nano", dtype=dtype, pad_token=pad_token).model
    parameters = dict(expected.named_parameters())
    assert found["weights"].keys() == parameters.keys()
    for key, weight in parameters.items():
        assert torch.equal(found["weights"][key], weight) and found["weights"][key].dtype == dtype, key
    for key, buffer in expected.named_buffers():  # rotary frequencies, in fp32 whatever the weights are
        assert torch.equal(found["buffers"][key], buffer) and found["buffers"][key].dtype == buffer.dtype, key


def test_no_rank_holds_more_than_its_share_and_one_piece(loaded):
    whole = sum(file.stat().st_size for file in (loaded / "large").glob("*.safetensors"))
    share, piece = whole / 2, 2 * 1024 * 2752
    for rank in (0, 1):
        peak = torch.load(loaded / "large_loaded" / f"loaded-{rank}.pt")["peak"]
        assert 0.9 * share < peak < share + 5 * piece < 0.65 * whole
