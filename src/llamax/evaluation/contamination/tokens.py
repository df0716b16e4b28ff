"""The tokens in which overlap is counted: lower-cased runs of letters and digits.

A text is brought to Unicode's NFKC form and lower-cased; a token is a longest run of letters, digits and the combining
marks on them. Case, punctuation, blanks and the way a character is composed therefore make no difference, and an
underscore separates. For ASCII this is `[a-z0-9]+`.

Scripts that put no blanks between words (Chinese, Japanese, Thai, Lao, Burmese, Khmer): every character, with its
marks, is a token, so a 13-gram is 13 characters. An English word of NTREX-128 is 1.8 characters in its Chinese
translation, 2.4 in its Japanese and 4.2 in its Thai: there 13-grams stand for 7, 5 and 3 words, and find more.
"""

import re
import unicodedata
from functools import cache
from itertools import chain

ASCII = re.compile("[a-z0-9]+")
SPACELESS = (
    "\u0e00-\u0eff"  # Thai, Lao
    "\u1000-\u109f\u1780-\u17ff"  # Burmese, Khmer
    "\u3005-\u3007\u3021-\u3029\u3040-\u30ff\u31f0-\u31ff"  # kana and signs that stand for Chinese characters
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"  # Chinese characters
)


def tokenize(text: str) -> list[str]:
    """The tokens of a text, in order."""
    if text.isascii():
        return ASCII.findall(text.lower())
    return _unicode_token().findall(unicodedata.normalize("NFKC", text).lower())


def unspaced(token: str) -> bool:
    """Whether a token is a character of a script that puts no blanks between words."""
    return not token.isascii() and _spaceless().match(token) is not None


@cache
def _spaceless() -> re.Pattern:
    return re.compile(f"[{SPACELESS}]")


@cache
def _unicode_token() -> re.Pattern:
    """`\\w` has no combining marks, without which the words of Hindi or Tamil fall to pieces."""
    marks = "".join(f"{chr(low)}-{chr(high)}" for low, high in _marks())
    word = rf"[^\W_{SPACELESS}]+"
    return re.compile(rf"{word}(?:[{marks}]+(?:{word})?)*|(?!\W)[{SPACELESS}][{marks}]*")


def _marks() -> list[tuple[int, int]]:
    """Ranges of the code points of Unicode's categories M*: first and last of each."""
    ranges: list[tuple[int, int]] = []
    for code in chain(range(0x300, 0x20000), range(0xE0100, 0xE01F0)):  # between them lie only Chinese characters
        if unicodedata.category(chr(code)).startswith("M"):
            if ranges and ranges[-1][1] == code - 1:
                ranges[-1] = (ranges[-1][0], code)
            else:
                ranges.append((code, code))
    return ranges
