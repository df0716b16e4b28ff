"""What several rooms' tests share: a tiny tokenizer, a tiny model, and the folder of real data where there is one."""

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import submitit  # noqa: F401 - before anything that logs: it closes all log handlers there are, pytest's streams too
from hypothesis import settings

# The same examples every time, and no clock: a busy machine is no failure of a property.
settings.register_profile("house", deadline=None, derandomize=True)
settings.load_profile("house")

TEXT = [
    "The quick brown fox jumps over the lazy dog. 0123456789",
    "Question: what is 12 + 30? Answer: 42.",
    "### Instruction: say hello.\n\n### Response:\nHello, world!",
    "USER: hi ASSISTANT: hello",
    "system user assistant tool",
]


@pytest.fixture(scope="session")
def tiny_tokenizer():
    """Byte-level BPE of 512 tokens with distinct BOS, EOS and PAD, and the ChatML markers."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    specials = ["<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(
        TEXT, trainers.BpeTrainer(vocab_size=512, special_tokens=specials, initial_alphabet=alphabet)
    )
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


@pytest.fixture
def tiny_model(tiny_tokenizer):
    """Two-layer LLaMA of hidden size 32, seed 0, fp32, in evaluation mode."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=tiny_tokenizer.bos_token_id,
        eos_token_id=tiny_tokenizer.eos_token_id,
        pad_token_id=tiny_tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real benchmark files: `LLAMAX_DATA`, or the one beside the checkout; skip where neither exists."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("LLAMAX_DATA", beside))
    if not folder.is_dir():
        pytest.skip("real data absent: set LLAMAX_DATA to a folder of local copies")
    return folder
