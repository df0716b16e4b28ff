"""How a value is written in a paper: digits, signs, intervals, p-values."""

import math

from llamax.errors import PaperError
from llamax.papers.evidence import Value

MINUS, SPACE, TIMES = "\N{MINUS SIGN}", "\N{NO-BREAK SPACE}", "\N{MULTIPLICATION SIGN}"
SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
MOST_DIGITS = 15  # that a float can hold
SIGNED = ("gain", "forgetting", "difference")


def number(value: float, digits: int, signed: bool = False) -> str:
    """`value` with so many decimals; a real minus sign; no sign on a rounded zero."""
    text = f"{abs(value):,.{digits}f}"
    if not float(text.replace(",", "")):
        return text
    return (MINUS if value < 0 else "+" if signed else "") + text


def show(value: Value, how: str = "ci", digits: int | None = None) -> str:
    """`value` as `value`, `ci` (with its 95% interval), `se`, `p`, `n` or `seeds`.

    A fraction is shown in percent (a difference of fractions in points) with one decimal, anything else with three.
    Raises: PaperError: an unknown form, or one that the value does not have.
    """
    signed, scale = value.name.rpartition(".")[2] in SIGNED, 100 if value.unit == "fraction" else 1
    places = digits if digits is not None else 1 if scale == 100 else 3
    if how in ("value", "ci", "se"):
        shown = {"value": (), "ci": (value.low, value.high), "se": (value.standard_error,)}[how]
        if None in shown:
            raise PaperError(f"{value.name!r} was recorded without {'interval' if how == 'ci' else 'standard error'}")
        parts = [number(scale * part, places, signed and how == "ci") for part in shown]
        template = {"value": "{}", "ci": "{} [{}, {}]", "se": "{} ± {}"}[how]
        return template.format(number(scale * value.value, places, signed), *parts).replace(" ", SPACE)
    counts = {"p": value.p_value, "n": value.n, "seeds": value.seeds}
    if how not in counts:
        raise PaperError(f"unknown show={how}: valid: value, ci, se, {', '.join(counts)}")
    if counts[how] is None:
        raise PaperError(f"{value.name!r} has no {how}")
    return p_value(counts[how]) if how == "p" else f"{counts[how]:,}"


def p_value(p: float) -> str:
    """`p = 0.012`, or `p < 0.001`."""
    return f"p{SPACE}<{SPACE}0.001" if p < 0.001 else f"p{SPACE}={SPACE}{p:.3f}"


def fact(value: object, how: str = "value", digits: int | None = None) -> str:
    """A parameter or a cost as text: 52,002; 2 × 10⁻⁵; yes. `how` may be `minutes` for seconds."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, int | float):
        return str(value)
    if how not in ("value", "minutes"):
        raise PaperError(f"unknown show={how} for a parameter or cost: valid: value, minutes")
    value = value / 60 if how == "minutes" else value
    if digits is not None or how == "minutes":
        return number(value, digits or 0)
    if isinstance(value, int):
        return number(value, 0)
    if value and not 1e-3 <= abs(value) < 1e6:
        power = math.floor(math.log10(abs(value)))
        return f"{value / 10**power:.3g}{SPACE}{TIMES}{SPACE}10{str(power).translate(SUPERSCRIPT)}"
    return f"{value:g}".replace("-", MINUS)
