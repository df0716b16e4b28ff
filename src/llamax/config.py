"""The base class of every configuration in the house, and the one-line reading of what pydantic found wrong."""

import difflib
import types
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator

from llamax.errors import ParameterError


class Config(BaseModel):
    """A frozen, closed set of parameters: an unknown or mistyped one is an error that names it."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    @classmethod
    def parse(cls, values: dict[str, Any], where: str = "") -> Self:
        """Validate `values`; raise `ParameterError` with one line that names parameter, fault and remedy."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ParameterError(explain(error, cls, where)) from None


class Parameters(Config):
    """A config that people write by hand: a number is not a text, and a truth value is neither."""

    @field_validator("*", mode="before")
    @classmethod
    def _is_what_it_seems(cls, value: Any, info: ValidationInfo) -> Any:
        """pydantic would read true as 1, "1e-4" as a number and "yes" as true."""
        wanted = _scalars(cls.model_fields[info.field_name].annotation)
        numbers = {int, float} if wanted & {int, float} else set()  # 3 is a float too; 2.5 for an int pydantic refuses
        if wanted & {int, float, bool} and type(value) in {str, bool, int, float} - wanted - numbers:
            raise ValueError(f"should be {'true or false' if bool in wanted else 'a number'}")
        return value


def _scalars(annotation: Any) -> set[type]:
    """Which of the scalar types an annotation admits, itself or in a union."""
    if get_origin(annotation) is Literal:
        return {type(value) for value in get_args(annotation)}
    if get_origin(annotation) in (Union, types.UnionType):
        return set().union(*map(_scalars, get_args(annotation)))
    if get_origin(annotation) is Annotated:
        return _scalars(get_args(annotation)[0])
    return {annotation} & {int, float, bool, str} if isinstance(annotation, type) else set()


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
        given = fault.get("input")
        shown = "" if isinstance(given, dict) else f" = {given!r}"
        line = f"parameter {name!r}{shown}: {fault['msg'].removeprefix('Value error, ')}"
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
