"""The base class of every configuration in the house, and the one-line reading of what pydantic found wrong."""

import difflib
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from llamax.errors import ParameterError


class Config(BaseModel):
    """A frozen, closed set of parameters: an unknown or mistyped one is an error that names it."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    @classmethod
    def parse(cls, values: dict[str, Any], where: str = "") -> Self:
        """Validate `values`; raise `ParameterError` with one line that names parameter, fault and remedy."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ParameterError(explain(error, cls, where)) from None


def explain(error: ValidationError, model: type[BaseModel], where: str = "") -> str:
    """One line for the first fault that pydantic found: parameter, what is wrong, what would be right.

    `where` (a file, a command-line option) is put in front when given.
    """
    fault = error.errors()[0]
    name = ".".join(str(part) for part in fault["loc"]) or model.__name__
    if fault["type"] == "extra_forbidden":
        valid = _valid_names(model, fault["loc"][:-1])
        near = difflib.get_close_matches(str(fault["loc"][-1]), valid, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        line = f"unknown parameter {name!r}: {hint}valid here: {', '.join(valid)}"
    else:
        line = f"parameter {name!r} = {fault.get('input')!r}: {fault['msg']}"
    more = error.error_count() - 1
    return f"{where + ': ' if where else ''}{line}{f' (and {more} more faults)' if more else ''}"


def _valid_names(model: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """Names of the fields of the model that `path` leads to."""
    for part in path:
        field = model.model_fields.get(str(part))
        inner = field.annotation if field else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            break
        model = inner
    return sorted(model.model_fields)
