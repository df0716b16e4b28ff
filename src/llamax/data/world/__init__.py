"""The small world (`nano`): facts, arithmetic and library functions, as text to learn from and items to be tested with.

Everything is made by code, deterministically, from what the installed packages carry: CLDR names, languages and
currencies (`babel`), physical constants (`scipy.constants`), docstrings and functions of the standard library.
"""

import ast
import hashlib
import platform
from importlib.metadata import version
from pathlib import Path

from llamax.data.world.instructions import instructions
from llamax.data.world.items import WorldItem, test_items
from llamax.data.world.text import held_out_texts, pretraining_texts

__all__ = ["WorldItem", "fingerprint", "held_out_texts", "instructions", "pretraining_texts", "test_items"]


def fingerprint() -> str:
    """Hex sha256 of what the world is made from: its code, and the versions of Python, babel and scipy.

    Python's patch level counts: 3.11.2 and 3.11.7 have other docstrings, which are the world's prose. Comments do not.
    """
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(ast.dump(ast.parse(file.read_bytes())).encode())
    digest.update("|".join((platform.python_version(), version("babel"), version("scipy"))).encode())
    return digest.hexdigest()
