"""What counts as a number typed by hand."""

import re

UNIT = r"(?:%|‰|°|x|×|pp|pts|points?|ms|s|h|min|e[+−-]?\d+)?"
NUMBER = re.compile(rf"[+\-−–±~≈<>≤≥=×$]*\.?\d[\d.,:/–−×-]*{UNIT}", re.IGNORECASE)
RELATION = re.compile(r"\w+[=<>≈≤≥±]+[+\-−.]*\d\S*")
VERSION = re.compile(r"\d+\.\d+\.\d+")
AROUND = "()[]{},;:.!?\"'“”‘’…/—*†‡"
NAMED = {"section", "sections", "figure", "figures", "table", "tables", "appendix", "equation", "step", "issue", "§"}


def typed_numbers(text: str, before: str = "") -> list[str]:
    """The numbers in `text` that are results rather than names; `before` is the word in front of it.

    Names pass: SmolLM2-135M, 7B, GPT-4, 3.0.1, Section 4. What is a number all through, its unit included, does not:
    12.3, 45%, +0.8, 3x, 2e-5, 3/5, p<0.05.

    >>> typed_numbers("LoRA with SmolLM2-135M gained 12.3 points in Section 4 of version 3.0.1 (n=500)")
    ['12.3', 'n=500']
    """
    found, before = [], before.lower().strip(AROUND)
    for word in text.split():
        bare = word.strip(AROUND)
        number = NUMBER.fullmatch(bare) or RELATION.fullmatch(bare)
        if number and not VERSION.fullmatch(bare) and before not in NAMED:
            found.append(bare)
        before = bare.lower()
    return found
