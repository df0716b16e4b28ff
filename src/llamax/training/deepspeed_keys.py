"""DeepSpeed reads its JSON key by key and passes over, in silence, what it does not know. Here every key must count.

Nothing is listed by hand: DeepSpeed itself reads the JSON, from dictionaries that remember what they were asked for.
"""

import difflib
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from llamax.errors import ParameterError


class Watched(dict):
    """A dictionary, objects within it included, that notes in `asked` which keys were looked for, by path."""

    def __init__(self, values: dict[str, Any], asked: dict[str, set[str]], path: str = ""):
        below = f"{path}." if path else ""
        super().__init__({k: Watched(v, asked, f"{below}{k}") if isinstance(v, dict) else v for k, v in values.items()})
        self.asked, self.path = asked, path

    def __copy__(self) -> "Watched":
        return self

    def __contains__(self, key: object) -> bool:
        self.asked[self.path].add(str(key))
        return super().__contains__(key)

    def __getitem__(self, key: str) -> Any:
        self.asked[self.path].add(str(key))
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        """As any dictionary's."""
        self.asked[self.path].add(str(key))
        return super().get(key, default)

    def __iter__(self) -> Iterator[str]:  # without it `f(**watched)` would go around __getitem__
        return super().__iter__()


def check_deepspeed(settings: dict[str, Any]) -> None:
    """Raise `ParameterError`, one line with the nearest valid key, for what DeepSpeed would ignore or refuse."""
    from deepspeed.runtime.config import DeepSpeedConfigError

    asked: dict[str, set[str]] = defaultdict(set)
    refusals = (DeepSpeedConfigError, ValueError, TypeError, AttributeError, AssertionError, LookupError)
    try:
        _read(settings, asked)
    except ValidationError as error:
        raise ParameterError(_refusal(settings, error)) from None
    except refusals as error:
        said = " ".join(str(error).split())
        raise ParameterError(f"{_blamed(settings, refusals)}: DeepSpeed cannot take it: {said}") from None
    for path, key in _keys(settings):
        # What DeepSpeed hands on as a whole (an optimizer's parameters) is judged by its taker.
        if path in asked and key not in asked[path]:
            raise ParameterError(_unknown(path, key, asked[path]))


def _read(settings: dict[str, Any], asked: dict[str, set[str]]) -> None:
    """Have DeepSpeed read the JSON as if the ranks that there are now were all of them."""
    from deepspeed import comm
    from deepspeed.runtime.config import DeepSpeedConfig

    ranks = comm.get_world_size() if comm.is_initialized() else 1
    micro, steps = settings["train_micro_batch_size_per_gpu"], settings["gradient_accumulation_steps"]
    DeepSpeedConfig(Watched(settings | {"train_batch_size": micro * steps * ranks}, asked))


def _blamed(settings: dict[str, Any], refusals: tuple[type[Exception], ...]) -> str:
    """What to name for a refusal that names nothing: the one key without which DeepSpeed reads the rest."""
    for key, value in settings.items():
        try:
            _read({name: other for name, other in settings.items() if name != key}, defaultdict(set))
        except refusals:
            continue
        return f"deepspeed_json: {key}" if isinstance(value, dict) else f"deepspeed_json: {key} = {value!r}"
    return "deepspeed_json"


def _keys(settings: dict[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    """(path of the object, key) of every key, those of nested objects after their parent."""
    for key, value in settings.items():
        yield path, key
        if isinstance(value, dict):
            yield from _keys(value, f"{path}.{key}".strip("."))


def _unknown(path: str, key: str, valid: set[str]) -> str:
    """The line for a key that nobody asked for."""
    near = difflib.get_close_matches(key, sorted(valid), n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"valid here: {', '.join(sorted(valid))}"
    return f"deepspeed_json: DeepSpeed knows no key {'.'.join(filter(None, (path, key)))!r} and would ignore it: {hint}"


def _refusal(settings: dict[str, Any], error: ValidationError) -> str:
    """The line for what one of DeepSpeed's own pydantic models refused."""
    fault = error.errors()[0]
    *within, key = map(str, fault["loc"]) if fault["loc"] else ("",)
    sections = [name for name, value in settings.items() if isinstance(value, dict) and _leads(value, [*within, key])]
    path = ".".join([*sections[:1], *within])
    where = ".".join(filter(None, (path, key)))
    if fault["type"] == "extra_forbidden":
        valid = _fields(error.title, within)
        if key in valid:  # forbidden all the same: the field is there by its other name
            other = next((name for name in valid if name.endswith(f"_{key}")), "its other name")
            return f"deepspeed_json: {where} is {other!r}, which is set already: give it by that name"
        return _unknown(path, key, valid)
    return f"deepspeed_json: {where} = {fault.get('input')!r}: {fault['msg'].removeprefix('Value error, ')}"


def _leads(value: Any, path: list[str]) -> bool:
    """Whether nested objects have this path."""
    return not path or (isinstance(value, dict) and path[0] in value and _leads(value[path[0]], path[1:]))


def _fields(title: str, within: list[str]) -> set[str]:
    """Names and aliases of the fields of DeepSpeed's model `title`, or of the one that `within` leads to."""
    from deepspeed.runtime.config_utils import DeepSpeedConfigModel

    model = next((one for one in _below(DeepSpeedConfigModel) if one.__name__ == title), DeepSpeedConfigModel)
    for name in within:
        field = next((f for key, f in model.model_fields.items() if name in (key, f.alias)), None)
        inner = [t for t in (field.annotation, *get_args(field.annotation)) if _is_model(t)] if field else []
        model = inner[0] if inner else model
    return {name for key, field in model.model_fields.items() for name in (key, field.alias) if name}


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _below(model: type) -> Iterator[type]:
    """All classes that derive from `model`."""
    for one in model.__subclasses__():
        yield one
        yield from _below(one)
