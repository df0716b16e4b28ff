"""What counts as a number typed by hand."""

import re

NAME = re.compile(
    r"\d\.\d+\.\d+"  # a version: 3.0.1
    r"|\d+(\.\d+)?[MBTb](-[A-Za-z][\w.-]*)?"  # the size of a model, or a model: 7B, 135M-Instruct
    r"|\d+-(bit|shot|way|layer)"  # how something was set up
)
PLACED = re.compile(r"#?\d+([–-]\d+)?")
AROUND = "()[]{},;:.!?\"'“”‘’…/—*†‡"
PLACES = {"Section", "Sections", "§", "Figure", "Figures", "Table", "Tables", "Appendix", "Equation", "Equations"}
PLACES |= {"Step", "Issue", "p", "pp", "page", "pages", "chapter"}


def typed_numbers(text: str, before: str = "") -> list[str]:
    """The words of `text` that are results rather than names; `before` is the word in front of it.

    A word is a number when it, or a part of it between signs, begins with a digit or a fraction: 12.3, 45%, +0.8, 3x,
    2e-5, 3/5, p<0.05, 12k, 1.2σ, €5, ½, x2.4, 12-fold. Names pass: SmolLM2-135M, 7B, GPT-4, 3.0.1, 8-bit; so does a
    whole number after a word that it numbers: Section 4, p. 12.

    >>> typed_numbers("LoRA with SmolLM2-135M gained 12.3 points in Section 4 of version 3.0.1 (n=500)")
    ['12.3', 'n=500']
    """
    found, before = [], before.strip(AROUND)
    for word in text.split():
        bare = word.strip(AROUND)
        placed = before in PLACES and PLACED.fullmatch(bare)
        if "://" not in word and not placed and any(map(is_number, re.split(r"[^\w.,'’^-]+", bare))):
            found.append(bare)
        before = bare
    return found


def is_number(part: str) -> bool:
    """Whether a word, or a part of one, begins like a number and is no name of a known kind."""
    bare = re.sub(r"^x(?=\d)", "", part.strip(".,'’^_-"))
    return bare[:1].isnumeric() and not NAME.fullmatch(bare)
