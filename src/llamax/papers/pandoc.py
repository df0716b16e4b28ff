"""Calling pandoc, and its document tree: a dict of metadata and blocks, every node `{"t": type, "c": content}`."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pypandoc

from llamax.errors import PaperError

Node = dict[str, Any]
PATIENCE = 120  # seconds; a paper takes one, but brackets in brackets take twice the time for each further pair
WIDE = "--columns=100000"  # else pandoc gives a table relative widths as soon as one of its source lines is long


def pandoc(text: str, *options: str, folder: Path | None = None) -> str:
    """Convert `text` in `folder`. Raises: PaperError: pandoc failed or warned (a missing citation is a warning)."""
    command = [pypandoc.get_pandoc_path(), "--fail-if-warnings", WIDE, *options]
    try:
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, cwd=folder, encoding="utf-8", timeout=PATIENCE
        )
    except subprocess.TimeoutExpired:
        raise PaperError(f"pandoc: not done after {PATIENCE} s: are brackets nested deeply?") from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise PaperError(f"pandoc: {' '.join(lines[:2]) or f'exit status {done.returncode}'}")
    return done.stdout


def parse(markdown: str) -> Node:
    """The tree of a Markdown document."""
    return json.loads(pandoc(markdown, "-f", "markdown", "-t", "json"))


def words(text: str) -> list[Node]:
    """Plain `text` as inline nodes."""
    nodes: list[Node] = []
    for word in text.split(" "):
        nodes += [{"t": "Space"}, {"t": "Str", "c": word}]
    return nodes[1:]


def plain(node: Any) -> str:
    """The text of a node or a list of nodes, without its formatting."""
    if isinstance(node, list):
        return "".join(plain(child) for child in node)
    if not isinstance(node, dict) or "t" not in node:  # text, or the key of a citation, whose words stand beside it
        return ""
    if node["t"] in ("Space", "SoftBreak", "LineBreak"):
        return " "
    return node["c"] if node["t"] == "Str" else plain(node.get("c"))


def rewrite(node: Any, change: Callable[[Node], list[Node] | None]) -> Any:
    """Copy a tree in reading order; `change` answers for a node with what replaces it, or None to go on inside."""
    if isinstance(node, dict):
        return {key: rewrite(value, change) for key, value in node.items()}
    if not isinstance(node, list):
        return node
    copied: list = []
    for child in node:
        replaced = change(child) if isinstance(child, dict) and "t" in child else None
        copied += [rewrite(child, change)] if replaced is None else replaced
    return copied
