"""The nano base model: a LLaMA of 2.6M parameters that grew up in the small world of `llamax.data.world`.

Its weights ship in `NANO_FOLDER`; `pretrain_nano` is the recipe that made them.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from llamax.data.packing import Rows, plain_text_rows
from llamax.data.world.text import DOCUMENTS, pretraining_texts
from llamax.models.precision import cast
from llamax.models.save import save, write_notes
from llamax.models.source import NANO_FOLDER
from llamax.training.config import TrainConfig
from llamax.training.history import History
from llamax.training.loop import OnStep, fit

__all__ = ["NANO_FOLDER", "nano_config", "new_nano", "pretrain_nano", "save_nano", "train_tokenizer"]

VOCABULARY = 2048
ROW = 256  # tokens in a pretraining row
SPECIALS = ("<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>")
TOKENS = 5_500_000
FEWEST_TOKENS = 50  # of a document, on average: enough text is made, and not much more than that
TOKENIZER_DOCUMENTS = 12_000
LAST_STEPS = 50
RECIPE = TrainConfig(
    learning_rate=2.5e-3, schedule="cosine", warmup_ratio=0.03, epochs=1, batch_size=8, micro_batch=8,
    weight_decay=0.1, betas=(0.9, 0.95), grad_clip=1.0, checkpoint_every=200,
)  # fmt: skip
# A blank is a token of its own. Were it part of the next word, as in GPT-2's pieces, `Iran` at the start of an answer
# and ` Iran` within a sentence would be strangers, and a model this small would not find in a chat what it has read.
# Every digit is a token too, so that sums can be learned digit by digit.
PIECES = r"\p{N}|\p{L}+|[^\s\p{L}\p{N}]+| +|\s"
CHATML = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def train_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerBase:
    """Byte-level BPE of `VOCABULARY` tokens, with LLaMA's markers, a pad of its own, and ChatML's."""
    raw = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(PIECES), behavior="isolated")
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(texts, trainer)
    bos, eos, pad, *others = SPECIALS
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token=bos, eos_token=eos, pad_token=pad, additional_special_tokens=others,
        model_max_length=512, clean_up_tokenization_spaces=False,
    )  # fmt: skip
    tokenizer.chat_template = CHATML
    return tokenizer


def nano_config(vocab_size: int = VOCABULARY) -> LlamaConfig:
    """The shape of the nano model; the markers' ids are those of `SPECIALS`."""
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=3,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )


def new_nano(tokenizer: PreTrainedTokenizerBase, seed: int = 0) -> LlamaForCausalLM:
    """A nano model that has learned nothing yet, in fp32."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(nano_config(len(tokenizer)))


def pretrain_nano(
    out: Path | str, *, seed: int = 0, tokens: int = TOKENS, on_step: OnStep | None = None
) -> tuple[Path, History]:
    """Make the nano base model: tokenizer, then one pass over about `tokens` tokens of the small world.

    Goes on from the newest checkpoint under `out/checkpoints` if there is one.
    Returns: the folder `out/model` (bf16 safetensors, tokenizer, `llamax.json` with the recipe), and the history.
    Raises: TrainingError, CheckpointError, DiskFullError.
    """
    out = Path(out)
    texts = list(pretraining_texts(seed, documents=min(DOCUMENTS, tokens // FEWEST_TOKENS)))
    tokenizer = train_tokenizer(texts[:TOKENIZER_DOCUMENTS])
    rows = plain_text_rows(texts, tokenizer, length=ROW)
    steps = max(1, min(tokens // ROW, len(rows)) // RECIPE.batch_size)
    recipe = RECIPE.model_copy(update={"seed": seed, "max_steps": steps})
    model = new_nano(tokenizer, seed)
    history = fit(model, rows, recipe, out, pad_id=tokenizer.pad_token_id, on_step=on_step)
    return save_nano(model, tokenizer, out / "model", notes(rows, recipe, history)), history


def notes(rows: Rows, recipe: TrainConfig, history: History) -> dict[str, Any]:
    """How a nano model was made: `rows` is the fingerprint of text and tokenizer together, `loss` that of the end."""
    last = history.losses[-LAST_STEPS:]
    return {
        "recipe": recipe.model_dump(mode="json"),
        "rows": rows.fingerprint,
        "tokens": history.tokens,
        "loss": round(sum(last) / len(last), 4),
    }


def save_nano(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, folder: Path, notes: dict[str, Any]) -> Path:
    """Save in bf16, the chat template inside `tokenizer_config.json`: the package carries no .jinja."""
    save(cast(model, torch.bfloat16), tokenizer, folder, notes=notes)
    tokenizer.save_pretrained(folder, save_jinja_files=False)
    (folder / "chat_template.jinja").unlink()
    write_notes(folder, notes)
    return folder
