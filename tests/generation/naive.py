"""What decoding and scoring mean: one prompt at a time, a full forward pass for every token, no cache, no padding."""

import torch

from llamax.generation.decode import Generated, sample


def lively_model(seed: int = 0):
    """A model whose weights are large enough for every token that it sees to matter; its window is set by the test."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=512, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.4,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def answer(
    model, tokenizer, prompt, *, max_new_tokens, stop_ids=(), stop_strings=(), temperature=0.0, top_p=1.0, seed=0,
    place=0,
) -> Generated:  # fmt: skip
    """The definition of `generate` for one prompt."""
    draws = torch.rand(1000, generator=torch.Generator().manual_seed(seed * 1_000_003 + place))
    said, finish = [], ""
    while not finish:
        with torch.inference_mode():
            logits = model(torch.tensor([[*prompt, *said]])).logits[:, -1].float()
        token = int(logits.argmax())
        if temperature:
            token = int(sample(logits, draws[len(said)][None], temperature, top_p))
        if token == tokenizer.eos_token_id or token in stop_ids:
            finish = "stop"
            continue
        said.append(token)
        if any(string in tokenizer.decode(said) for string in stop_strings):
            finish = "stop"
        elif len(said) == max_new_tokens or len(prompt) + len(said) == model.config.max_position_embeddings:
            finish = "length"
    text = tokenizer.decode(said, skip_special_tokens=True)
    for string in stop_strings:
        text = text.split(string)[0]
    return Generated(text, said, finish)


def logprob(model, context, choice) -> tuple[float, bool]:
    """The definition of a choice's score: sum of its tokens' log-probabilities, and whether each is the best."""
    with torch.inference_mode():
        logits = model(torch.tensor([[*context, *choice]])).logits[0].float().log_softmax(-1)
    predicted = logits[len(context) - 1 : -1]
    value = predicted.gather(1, torch.tensor(choice)[:, None]).sum().item()
    return value, predicted.argmax(-1).tolist() == list(choice)
