"""Typed parameters: a profile, a seed and overrides become a direction's frozen config.

A profile is `notebooks/profiles/<name>.yaml`: a `description`, one section per direction, and optionally
`extends: <other profile>`, whose sections are the base of its own.
"""

import ast
import difflib
import re
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel

from llamax import files
from llamax.config import Config
from llamax.errors import ParameterError
from llamax.runs.directions import config_class, directions

NOTEBOOK_PARAMETERS = ("profile", "seed", "overrides")
PAPERMILL_HEADER = "# Parameters\n"
"""First line of the cell that papermill writes with the parameters it was given."""


def parse_parameters(
    direction: str, profile: str = "nano", seed: int = 0, overrides: dict[str, Any] | None = None
) -> Config:
    """The config of `direction` at `profile` and `seed`, with `overrides` on top.

    `overrides` may be nested (`{"train": {"epochs": 1}}`), dotted (`{"train.epochs": 1}`) or name a field that occurs
    once (`{"epochs": 1}`). In a notebook, parameters that papermill injected under any other name than `profile`,
    `seed` and `overrides` stop the run as well: papermill itself only warns about them.

    Raises: ParameterError: unknown profile, section or parameter, wrong type; the line lists what is valid.
    """
    model = config_class(direction)
    _refuse_injected(model)
    if not isinstance(overrides, dict | None):
        raise ParameterError(f"overrides = {overrides!r}: give a mapping such as {{'seed': 1}}")
    values = _section(profile, direction, model)
    for name in (key for key in overrides or {} if key in ("profile", "seed")):
        raise ParameterError(f"{name!r} is a parameter of its own, not an override: set {name} = {overrides[name]!r}")
    values = apply_overrides(values, overrides or {}, model)
    return model.parse({**values, "profile": profile, "seed": seed}, where=f"{direction}, profile {profile}")


def profiles() -> list[str]:
    """Names of the profiles that exist."""
    return sorted(path.stem for path in _folder().glob("*.yaml"))


def apply_overrides(values: dict[str, Any], overrides: dict[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    """`values` with `overrides` merged in. Raises: ParameterError: a name that is unknown or ambiguous."""
    for key, value in overrides.items():
        nested: Any = value
        for part in reversed(resolve_name(key, model).split(".")):
            nested = {part: nested}
        values = merge(values, nested, model)
    return values


def resolve_name(key: str, model: type[BaseModel]) -> str:
    """The dotted name that `key` stands for: itself, or the only name that ends with it.

    Raises: ParameterError: none, with the nearest; or several, with all of them.
    """
    names = parameter_names(model)
    if key in names:
        return key
    found = [name for name in names if name.endswith(f".{key}")]
    if len(found) == 1:
        return found[0]
    if found:
        raise ParameterError(f"parameter {key!r} is ambiguous: give one of {', '.join(found)}")
    by_leaf = {name.rsplit(".", 1)[-1]: name for name in reversed(names)}
    near = difflib.get_close_matches(str(key), [*names, *by_leaf], n=1)
    hint = f"did you mean {by_leaf.get(near[0], near[0])!r}? " if near else ""
    raise ParameterError(f"unknown parameter {key!r}: {hint}valid: {', '.join(overridable(model))}")


def overridable(model: type[BaseModel]) -> list[str]:
    """Dotted names that messages offer: those of single values, without `profile` and `seed`."""
    names = parameter_names(model)
    groups = {name.rpartition(".")[0] for name in names}
    return [name for name in names if name not in groups and name not in NOTEBOOK_PARAMETERS]


def parameter_names(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Dotted names of all parameters of `model`, groups included, in the order of their declaration."""
    names = []
    for name, field in model.model_fields.items():
        names.append(prefix + name)
        if inner := nested_model(field.annotation):
            names += parameter_names(inner, f"{prefix}{name}.")
    return names


def nested_model(annotation: Any) -> type[BaseModel] | None:
    """The pydantic model that a field holds, through `| None`; None for any other field."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Union, types.UnionType):
        return next((inner for part in get_args(annotation) if (inner := nested_model(part))), None)
    return None


def merge(base: dict[str, Any], over: dict[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    """`over` laid on `base`: groups are merged field by field, every other value replaces."""
    merged = dict(base)
    for name, value in over.items():
        field = model.model_fields.get(str(name))
        inner = nested_model(field.annotation) if field else None
        if inner and isinstance(value, dict):
            default = field.default.model_dump() if isinstance(field.default, BaseModel) else {}
            below = merged.get(name)
            value = merge(below if isinstance(below, dict) and below else default, value, inner)
        merged[name] = value
    return merged


def differences(base: Config, config: Config) -> dict[str, Any]:
    """Overrides, by dotted name, that turn `base` into `config`; JSON values."""

    def walk(old: dict[str, Any], new: dict[str, Any], model: type[BaseModel], prefix: str) -> dict[str, Any]:
        found = {}
        for name, value in new.items():
            inner = nested_model(model.model_fields[name].annotation)
            if inner and isinstance(value, dict) and isinstance(old.get(name), dict):
                found |= walk(old[name], value, inner, f"{prefix}{name}.")
            elif value != old.get(name):
                found[prefix + name] = value
        return found

    return walk(base.model_dump(mode="json"), config.model_dump(mode="json"), type(config), "")


def read_pairs(pairs: Sequence[str], option: str, example: str) -> dict[str, str]:
    """`["a=b", ...]`, all that `option` was given, as a mapping. Raises: ParameterError: no `=`, or a name twice."""
    found: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = (part.strip() for part in pair.partition("="))
        if not equals or not name:
            raise ParameterError(f"{option} {pair!r}: write NAME=VALUE, such as {example}")
        if name in found:
            raise ParameterError(f"{option} {name}: given twice")
        found[name] = value
    return found


def read_value(text: str) -> Any:
    """A value given on the command line: a YAML 1.2 scalar, list or mapping (`1e-4`, `true`, `[a, b]`, `{rank: 8}`)."""
    return _read_yaml(text, f"value {text!r}")


def _folder() -> Path:
    return files.repository() / "notebooks" / "profiles"


def _section(profile: str, direction: str, model: type[BaseModel]) -> dict[str, Any]:
    """The section of `direction` in `profile`, on top of that of the profile it extends."""
    chain: list[dict[str, Any]] = []
    seen: list[str] = []
    name: str | None = profile
    while name is not None:
        if name in seen:
            raise ParameterError(f"profiles extend each other in a circle: {' -> '.join([*seen, name])}")
        seen.append(name)
        document = _profile(name)
        chain.append(document)
        name = document.get("extends")
    sections = [document[direction] or {} for document in reversed(chain) if direction in document]
    if not sections:
        known = sorted(map(str, set().union(*chain) - {"description", "extends"}))
        raise ParameterError(
            f"profile {profile!r} has no section {direction!r}: it has {', '.join(known) or 'none'} "
            f"(notebooks/profiles/{profile}.yaml)"
        )
    if strangers := sorted(set().union(*chain) - {"description", "extends", *directions()}, key=str):
        near = difflib.get_close_matches(str(strangers[0]), directions(), n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ParameterError(
            f"profile {profile!r} has a section {strangers[0]!r}: {hint}sections: {', '.join(directions())}"
        )
    values: dict[str, Any] = {}
    for section in sections:
        if not isinstance(section, dict):
            raise ParameterError(f"profile {profile!r}: section {direction!r} is not a mapping of parameters")
        values = merge(values, section, model)
    return values


def _profile(name: str) -> dict[str, Any]:
    if name not in profiles():
        raise ParameterError(f"no profile {name!r}: there are {', '.join(profiles()) or 'none'} in notebooks/profiles/")
    where = f"notebooks/profiles/{name}.yaml"
    try:
        document = _read_yaml((_folder() / f"{name}.yaml").read_text(encoding="utf-8"), where)
    except (OSError, UnicodeDecodeError) as error:
        raise ParameterError(f"{where}: cannot be read: {error}") from None
    if not isinstance(document, dict):
        raise ParameterError(f"{where}: not a mapping with a description and a section per direction")
    return document


class YamlLoader(yaml.SafeLoader):
    """YAML 1.2's core scalars, so that `1e-4` is a number, `no` a word, and `007` and `1:30` are text."""

    yaml_implicit_resolvers: dict = {}  # noqa: RUF012 - yaml's own name and type

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        """As the parent's, but a key given twice is an error rather than the last one winning."""
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a name is not a text", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is given twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_NUMBER = r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)"
for _tag, _pattern, _first in [
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(0|[1-9][0-9]*)", list("-+0123456789")),
    ("float", rf"{_NUMBER}[eE][-+]?[0-9]+|[-+]?(\.[0-9]+|(0|[1-9][0-9]*)\.[0-9]*)", list("-+.0123456789")),
]:
    YamlLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)


def _read_yaml(text: str, where: str) -> Any:
    try:
        return yaml.load(text, YamlLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark and "\n" in text else ""
        raise ParameterError(f"{where}{line}: not valid YAML: {getattr(error, 'problem', None) or error}") from None


def _refuse_injected(model: type[BaseModel]) -> None:
    """Stop when papermill put a parameter into this notebook that the notebook does not have."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    cells = shell.user_ns.get("In", []) if shell else []
    injected = next((cell for cell in reversed(cells) if cell.startswith(PAPERMILL_HEADER)), "")
    names = [target.id for node in ast.parse(injected).body if isinstance(node, ast.Assign) for target in node.targets]
    for name in names:
        if name not in NOTEBOOK_PARAMETERS:
            valid = ", ".join(overridable(model))
            raise ParameterError(
                f"unknown parameter {name!r}: the notebook takes {', '.join(NOTEBOOK_PARAMETERS)}, "
                f"where overrides is a mapping of {valid}"
            )
