"""Generation: batched decoding (`decode.generate`), scoring of given text (`score.choice_logprobs`, `score.text_loss`).

Import the modules themselves, `from llamax.generation.decode import generate`: they load torch, this page does not.
"""
