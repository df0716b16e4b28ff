"""Other ways to put the same question, to see how much of a score is the wording of its prompt."""

from collections.abc import Callable, Iterable
from typing import Any

Config = dict[str, Any]
AS_DEFINED = "as defined"


def _described(description: str) -> Callable[[Config], Config]:
    return lambda config: config | {"description": description}


def _cued(config: Config) -> Config:
    """`The answer is` where a prompt ends in `Answer:` or `A:`."""
    text = config["doc_to_text"]
    if not isinstance(text, str):
        return config
    for cue in ("Answer:", "A:"):
        if text.rstrip().endswith(cue):
            return config | {"doc_to_text": text.rstrip()[: -len(cue)] + "The answer is"}
    return config


REAL: dict[str, Callable[[Config], Config]] = {
    AS_DEFINED: lambda config: config,
    "no description": _described(""),
    "polite": _described("Please answer the following questions carefully.\n\n"),
    "the answer is": _cued,
}
"""Changes of an lm-eval task configuration."""

NANO: dict[str, str] = {
    AS_DEFINED: "Question: {question}\nAnswer:",
    "short": "Q: {question}\nA:",
    "bare": "{question}\n",
    "polite": "Please answer this question. {question}\nAnswer:",
}
"""Templates of the nano suite's plain protocol; functions to complete stand as they are."""


def unknown(name: str, known: Iterable[str]) -> str:
    """What is wrong with a wording that is none of those `known`."""
    return f"unknown wording {name!r}: valid are {', '.join(known)}"
