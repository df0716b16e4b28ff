"""Run keys: the same key means the same result.

A key is the sha256 of its parts, and the parts are kept beside it so that a stale result can say what changed:

- `notebook`: its code cells, the parameters cell left out;
- `llamax.…`: each module that the notebook or the direction's config reaches by import, however deep;
- `parameters`: the resolved config;
- `data …`, `model …`, `file …`: the fingerprint of each data set, model and other file that the config names;
- `lock file`: `constraints.txt`.

Code counts by its syntax tree: comments, docstrings, blank lines and formatting do not move a key.
"""

import ast
import functools
import importlib.util
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import llamax
from llamax import files
from llamax.config import Config
from llamax.errors import LlamaxError, RunError
from llamax.runs.directions import notebook_of

MODULE_NAME = re.compile(r"llamax(\.\w+)+")
UNCHECKED = "unchecked"
"""Stands for the fingerprint of data or a model that is not at hand."""


class Key(NamedTuple):
    """`digest`: hex sha256 of `parts`, which maps each input's name to its own hex sha256."""

    digest: str
    parts: dict[str, str]


def run_key(direction: str, config: Config) -> Key:
    """The key of a run of `direction` with `config`. Raises: LlamaxError: an input that is missing or unreadable."""
    parts = code_parts(direction) | parameter_part(config) | input_parts(config)
    return Key(files.sha256_json(parts), parts)


def code_parts(direction: str) -> dict[str, str]:
    """The parts that are code: notebook, modules, lock file."""
    nodes: list[ast.AST] = []
    shapes = [[magics, syntax(tree, nodes)] for magics, tree in notebook_cells(notebook_of(direction))]
    roots = {f"llamax.{direction}.config", *_references(nodes, "", False)}
    lock = files.repository() / "constraints.txt"
    return {
        "notebook": files.sha256_json(shapes),
        "lock file": files.sha256_file(lock) if lock.exists() else "none",
        **module_hashes(roots),
    }


def parameter_part(config: Config) -> dict[str, str]:
    """The part that is the resolved parameters."""
    return {"parameters": files.sha256_json(config.model_dump(mode="json"))}


def input_parts(config: Config, *, lenient: bool = False) -> dict[str, str]:
    """The parts that are data and models. With `lenient`, what is not at hand becomes `UNCHECKED`."""
    parts = {}
    for kind, names, fingerprint in [
        ("data", config.datasets(), lambda name: data_fingerprint(name, ask=not lenient)),
        ("model", config.models(), lambda spec: model_fingerprint(spec, ask=not lenient)),
        ("file", getattr(config, "files", list)(), lambda name: files.sha256_file(Path(name))),
    ]:
        for name in dict.fromkeys(names):
            label = f"{kind} {Path(name).name if Path(name).is_absolute() else name}"
            while label in parts:  # /a/model and /b/model
                label += "'"
            try:
                parts[label] = fingerprint(name)
            except LlamaxError:
                if not lenient:
                    raise
                parts[label] = UNCHECKED
    return parts


def data_fingerprint(name: str, *, ask: bool = True) -> str:
    """Hex hash of a data set's content."""
    from llamax.data.sources import fingerprint

    return fingerprint(name, ask=ask)


def model_fingerprint(spec: str, *, ask: bool = True) -> str:
    """Hex hash of a model's weights, config and tokenizer."""
    from llamax.models.fingerprint import fingerprint

    return fingerprint(spec, ask=ask)


def changed(old: dict[str, str], new: dict[str, str]) -> list[str]:
    """Names of the parts that differ, came or went; a part that could not be checked does not count."""
    return sorted(name for name in old.keys() | new.keys() if new.get(name) not in (old.get(name), UNCHECKED))


def few(names: Sequence[str], most: int = 3) -> str:
    """The first few names of a list, and how many more there are, for a message that is one line."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}"


def notebook_cells(path: Path) -> list[tuple[list[str], ast.Module]]:
    """Each code cell as (its lines of IPython magic, the tree of the rest); parameters cells left out."""
    try:
        cells = json.loads(path.read_bytes())["cells"]
    except (ValueError, KeyError, TypeError):
        raise RunError(f"notebooks/{path.name}: not a notebook (no JSON with cells)") from None
    found = []
    for number, cell in enumerate(cells, start=1):
        tags = set(cell.get("metadata", {}).get("tags", []))
        if cell["cell_type"] != "code" or tags & {"parameters", "injected-parameters"}:
            continue
        lines = "".join(cell["source"]).splitlines()
        magics = [line.strip() for line in lines if line.lstrip().startswith(("%", "!"))]
        try:
            tree = ast.parse("\n".join(line for line in lines if not line.lstrip().startswith(("%", "!"))))
        except SyntaxError as error:
            raise RunError(f"notebooks/{path.name}, cell {number}: {error.msg}: {(error.text or '').strip()}") from None
        found.append((magics, tree))
    return found


def module_hashes(roots: set[str]) -> dict[str, str]:
    """Name -> hash of every `llamax` module that `roots` reach by import, their packages included."""
    hashes: dict[str, str] = {}
    waiting = set(roots)
    while waiting:
        name = waiting.pop()
        path = module_path(name)
        if path is None or name in hashes:
            continue
        hashes[name], reached = _read_module(path.read_text(), name, path.name == "__init__.py")
        waiting |= reached
        if "." in name:
            waiting.add(name.rpartition(".")[0])
    return hashes


def module_path(name: str) -> Path | None:
    """File of the `llamax` module `name`, found without importing it; None when there is no such module."""
    parts = name.split(".")
    if parts[0] != "llamax":
        return None
    for root in llamax.__path__:
        place = Path(root, *parts[1:])
        if (place / "__init__.py").is_file():
            return place / "__init__.py"
        if len(parts) > 1 and place.with_suffix(".py").is_file():
            return place.with_suffix(".py")
    return None


def imported_names(nodes: Iterable[ast.AST], module: str, is_package: bool) -> Iterator[str]:
    """Dotted names that import statements among `nodes` may bind: `from a import b` gives `a` and `a.b`.

    `module` is the name of the module they stand in, for relative imports.
    """
    package = module if is_package else module.rpartition(".")[0]
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            relative = "." * node.level + (node.module or "")
            base = importlib.util.resolve_name(relative, package) if node.level else relative
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def syntax(node: Any, nodes: list[ast.AST], strings: bool = True) -> Any:
    """A syntax tree as a JSON value without positions; what is empty is left out, as newer Pythons add empty fields.

    Every node is appended to `nodes`. Without `strings`, statements that are a bare string (docstrings) are left out.
    """
    if isinstance(node, list):
        return [syntax(part, nodes, strings) for part in node if strings or not _is_bare_string(part)]
    if not isinstance(node, ast.AST):
        return node
    nodes.append(node)
    if isinstance(node, ast.Constant):
        return ["Constant", type(node.value).__name__, repr(node.value)]
    shape: list[Any] = [type(node).__name__]
    for name in node._fields:
        value = getattr(node, name, None)
        if value is not None and value != []:
            shape += (name, syntax(value, nodes, strings))
    return shape


@functools.cache
def _read_module(source: str, name: str, is_package: bool) -> tuple[str, frozenset[str]]:
    """Hash of a module's code, and the `llamax` names it refers to."""
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        raise RunError(f"module {name}, line {error.lineno}: {error.msg}: {(error.text or '').strip()}") from None
    nodes: list[ast.AST] = []
    shape = syntax(tree, nodes, strings="__doc__" in source)
    return files.sha256_json(shape), _references(nodes, name, is_package)


def _references(nodes: list[ast.AST], module: str, is_package: bool) -> frozenset[str]:
    """`llamax` names that are imported, or stand in a string: what `importlib` or `python -m` is given."""
    strings = (node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str))
    imported = (name for name in imported_names(nodes, module, is_package) if name.split(".")[0] == "llamax")
    return frozenset([*imported, *(text for text in strings if MODULE_NAME.fullmatch(text))])


def _is_bare_string(node: Any) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
