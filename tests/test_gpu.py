"""What a GPU computes is what a CPU computes. Skipped where there is none, which is where all other tests run."""

import copy

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from llamax.data.packing import Documents
from llamax.generation.decode import generate
from llamax.generation.score import score_choices, text_loss
from llamax.models.load import load
from llamax.training.config import LoraConfig, TrainConfig
from llamax.training.loop import fit
from llamax.training.lora import apply_lora

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
PROMPTS = [
    "The capital of Iran is",
    "Question: what is 3 + 4?\nAnswer:",
    "def double(x):\n    return",
    "A",
    "Once upon a",
]


@pytest.fixture(scope="module")
def nano():
    """The nano model, on the CPU."""
    return load("nano")


def tiny(kv_heads: int) -> LlamaForCausalLM:
    """Random weights, made on the CPU."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=500, hidden_size=128, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=kv_heads, max_position_embeddings=128, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def new_rows():
    """Random documents, packed."""
    made, rng = Documents(64), np.random.default_rng(0)
    for source in range(60):
        length = int(rng.integers(3, 60))
        made.add(source, rng.integers(0, 500, length).tolist(), [*(rng.random(length) < 0.5).tolist()[:-1], True])
    return made.rows(packing=True)


def train(model, out, monkeypatch, on_gpu: bool, **changes):
    """Losses and gradient norms of `fit`, the model trained in place."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: on_gpu)
    config = TrainConfig(learning_rate=1e-3, epochs=1, batch_size=4, micro_batch=2, seed=1).model_copy(update=changes)
    if config.lora:
        torch.manual_seed(7)
        model = apply_lora(model, config.lora)
    steps = fit(model, new_rows(), config, out, pad_id=0).steps
    return [value for step in steps for value in (step.loss, step.grad_norm)]


@pytest.mark.parametrize(
    "changes", [{}, {"gradient_checkpointing": True}, {"lora": LoraConfig(rank=4)}, {"z_loss": 1e-2}]
)
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_training_in_fp32_is_a_cpus(tmp_path, monkeypatch, changes, kv_heads):
    here = train(tiny(kv_heads), tmp_path / "cpu", monkeypatch, False, **changes)
    there = train(tiny(kv_heads), tmp_path / "gpu", monkeypatch, True, **changes)
    assert there == pytest.approx(here, rel=1e-3) and there != []


def test_training_in_bf16_follows_fp32(tmp_path, monkeypatch):
    exact = train(tiny(4), tmp_path / "fp32", monkeypatch, True)
    rounded = train(tiny(4), tmp_path / "bf16", monkeypatch, True, precision="bf16")
    assert rounded[0::2] == pytest.approx(exact[0::2], rel=1e-2)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_that_goes_on_ends_where_an_undisturbed_one_does(tmp_path, monkeypatch, precision):
    def run(out, steps):
        model = tiny(4)
        train(
            model, tmp_path / out, monkeypatch, True, precision=precision, checkpoint_every=2, epochs=3, max_steps=steps
        )
        return torch.cat([p.detach().float().flatten().cpu() for p in model.parameters()])

    whole = run("whole", 6)

    class Killed(Exception):
        pass

    def kill(step):
        if step.step == 3:
            raise Killed

    config = TrainConfig(
        learning_rate=1e-3,
        epochs=3,
        batch_size=4,
        micro_batch=2,
        seed=1,
        precision=precision,
        checkpoint_every=2,
        max_steps=6,
    )
    with pytest.raises(Killed):
        fit(tiny(4), new_rows(), config, tmp_path / "killed", pad_id=0, on_step=kill)
    assert (run("killed", 6) - whole).abs().max() < 1e-5


def test_scores_are_a_cpus(nano):
    model, tokenizer = nano
    ids = tokenizer(PROMPTS).input_ids
    pairs = [(prompt, [[5], [6, 7], [300, 301, 302]]) for prompt in ids]
    there = copy.deepcopy(model).cuda()
    for one, two in zip(score_choices(model, pairs), score_choices(there, pairs), strict=True):
        assert [s.logprob for s in two] == pytest.approx([s.logprob for s in one], abs=1e-3)
        assert [s.greedy for s in two] == [s.greedy for s in one]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_texts_are_a_cpus_and_do_not_depend_on_the_batch(nano, temperature):
    model, tokenizer = nano
    ids, there = tokenizer(PROMPTS).input_ids, copy.deepcopy(model).cuda()

    def say(model, batch_size):
        answers = generate(model, tokenizer, ids, max_new_tokens=24, temperature=temperature, batch_size=batch_size)
        return [answer.token_ids for answer in answers]

    assert say(there, 8) == say(model, 8) == say(there, 1)


def test_the_loss_of_texts_is_a_cpus(nano):
    model, tokenizer = nano
    rows = new_rows()
    here, there = (text_loss(m, rows, tokenizer.pad_token_id) for m in (model, copy.deepcopy(model).cuda()))
    assert there[0] == pytest.approx(here[0], rel=1e-4)
