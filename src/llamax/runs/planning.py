"""From a profile to the plan of its training: which model, which data, which settings. No torch."""

from typing import Any

from llamax.errors import ParameterError
from llamax.runs.parameters import parse_parameters
from llamax.runs.placement import spread
from llamax.training.plan import Hardware, Plan, PlanData, find_shape, plan
from llamax.training.plan.shapes import Shape

MEASURED = {"alpaca": PlanData(0, documents=52_002, mean_document=110.8, supervised=0.504, pairs=7869)}
"""Sources whose documents were counted: the first 8,000 of Alpaca in its own template, with SmolLM2's tokenizer."""


def plan_profile(
    hardware: Hardware,
    *,
    direction: str = "instruction_tuning",
    profile: str = "7b",
    overrides: dict[str, Any] | None = None,
    model: str | None = None,
    method: str | None = None,
    examples: int | None = None,
    mean_tokens: float | None = None,
    tokens: int | None = None,
    mfu: float | None = None,
) -> Plan:
    """Plan what `direction` trains at `profile`. model: another shape, by its name or a place of its config.

    method: `full` or `lora`, the first of the profile's when left out. examples, mean_tokens, tokens: how much data,
    in place of what is known of the profile's source.
    A rank for each GPU; the micro-batch shrinks if it must, as in `llamax submit`.
    Raises: ParameterError: an unknown profile, parameter, shape; a section without training; ranks that do not match.
    """
    overrides = overrides or {}
    if not any(name.split(".")[-1] == "ranks" for name in overrides):
        overrides, _ = spread(direction, profile, overrides, hardware.nodes, hardware.per_node)
    config = parse_parameters(direction, profile, 0, overrides)
    train, data = getattr(config, "train", None), getattr(config, "data", None)
    if train is None or data is None:
        raise ParameterError(f"profile {profile!r}: its section {direction!r} trains nothing (no train and data)")
    methods = getattr(config, "methods", ("full",))
    if method is not None and method not in methods:
        raise ParameterError(f"--method {method}: the profile's methods are {', '.join(methods)}")
    if hasattr(config, "train_config"):
        train = config.train_config(method or methods[0], 0)
    if train.ranks != hardware.gpus:
        raise ParameterError(
            f"profile {profile!r} trains on {train.ranks} ranks but {hardware} is {hardware.gpus} GPUs: add "
            f"-p train.ranks={hardware.gpus} (batch_size {train.batch_size} must be a multiple of micro_batch x ranks)"
        )
    shape = _shape(model, config, profile)
    return plan(shape, train, hardware, _data(data, examples, mean_tokens, tokens), mfu=mfu, source="given (--mfu)")


def _shape(model: str | None, config: Any, profile: str) -> Shape:
    """The shape to plan for. Raises: ParameterError: it cannot be told from the profile's model."""
    try:
        return find_shape(model or config.model)
    except ParameterError as error:
        if model is not None:
            raise
        raise ParameterError(f"profile {profile!r}: {error}; say which with --model") from None


def _data(data: Any, examples: int | None, mean_tokens: float | None, tokens: int | None) -> PlanData:
    """The rows of the profile. Raises: ParameterError: counts that contradict each other."""
    if tokens is not None and examples is not None and mean_tokens is not None:
        raise ParameterError("--tokens is --examples times --mean-tokens: give two of the three")
    if tokens is not None and examples is not None and tokens < examples:
        raise ParameterError(f"--tokens {tokens}: should be at least one for each of --examples {examples}")
    known = MEASURED.get(data.source, PlanData(0))
    mean = mean_tokens or (tokens / examples if tokens and examples else known.mean_document)
    count = examples or (getattr(data, "max_examples", None) or known.documents)
    if tokens is not None:
        mean = mean or data.length
        count = max(1, round(tokens / mean))
    if examples is not None and mean is None:
        raise ParameterError(f"--examples {examples}: say how long they are on average, with --mean-tokens")
    pairs = known.pairs if mean == known.mean_document else None
    return PlanData(data.length, data.packing, count, mean, known.supervised, pairs)
