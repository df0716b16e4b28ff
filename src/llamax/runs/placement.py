"""How a training is laid out over nodes and GPUs: its number of ranks, and the micro-batch that goes with it."""

from typing import Any

from pydantic import BaseModel

from llamax.config import Config
from llamax.errors import ParameterError
from llamax.runs.parameters import parameter_names, parse_parameters, resolve_name


def spread(
    direction: str, profile: str, overrides: dict[str, Any], nodes: int, gpus: int
) -> tuple[dict[str, Any], int]:
    """`overrides` with the number of ranks that nodes × GPUs give, and the ranks on each node.

    gpus: of each node. Without GPUs the profile says how many ranks there are, and the nodes share them.
    Raises: ParameterError: ranks that were given as well, that nodes cannot share or that cannot share the batch, or
    more nodes than anybody uses.
    """
    # With GPUs the profile's own number of ranks is replaced, so it need not fit what is overridden.
    config = parse_parameters(direction, profile, 0, {} if gpus else overrides)
    name = _rank_parameter(config)
    if name is None:
        if nodes > 1:
            raise ParameterError(f"--nodes {nodes}: {direction} at profile {profile} has no ranks to spread over nodes")
        return overrides, 1
    given = next((key for key in overrides if key.split(".")[-1] == "ranks"), None)
    if gpus and given:
        raise ParameterError(f"-p {given}={overrides[given]}: leave it out, nodes x GPUs are {nodes * gpus} ranks")
    ranks = nodes * gpus or _value(config, name)
    if ranks % nodes:
        raise ParameterError(f"--nodes {nodes}: they cannot share {ranks} ranks equally; give --gpus-per-node")
    _check_batch(config, name, ranks, overrides)
    if ranks == _value(config, name):
        return overrides, ranks // nodes
    return overrides | {name: ranks} | _smaller_micro_batch(config, name, ranks, overrides), ranks // nodes


def _check_batch(config: Config, name: str, ranks: int, overrides: dict[str, Any]) -> None:
    """Raise `ParameterError` if `ranks` cannot share the batch, whatever the micro-batch."""
    group = name.removesuffix("ranks")
    given = {resolve_name(key, type(config)): value for key, value in overrides.items()}
    batch = given.get(f"{group}batch_size", _value(config, f"{group}batch_size"))
    engine = given.get(f"{group}engine", _value(config, f"{group}engine"))
    if engine == "torch" or type(batch) is not int or batch < 1 or batch % ranks == 0:
        return  # what else is wrong with it the config says
    micro = given.get(f"{group}micro_batch", 1)
    unit = ranks * micro if type(micro) is int and micro > 0 else ranks
    raise ParameterError(
        f"batch_size {batch} cannot be shared by {ranks} ranks: -p {group}batch_size={-(-batch // unit) * unit} "
        f"(or a multiple)"
    )


def _smaller_micro_batch(config: Config, name: str, ranks: int, overrides: dict[str, Any]) -> dict[str, Any]:
    """The largest micro-batch with which `ranks` share the batch, as an override, where the profile's is too large.

    The gradient of a step does not depend on it. One that was asked for stays, to be refused if it does not fit.
    """
    group = name.removesuffix("ranks")
    given = {resolve_name(key, type(config)): value for key, value in overrides.items()}
    batch = given.get(f"{group}batch_size", _value(config, f"{group}batch_size"))
    micro = given.get(f"{group}micro_batch", _value(config, f"{group}micro_batch"))
    if f"{group}micro_batch" in given or type(batch) is not int or batch % ranks or batch % (micro * ranks) == 0:
        return {}
    return {f"{group}micro_batch": max(m for m in range(1, micro + 1) if batch // ranks % m == 0)}


def _rank_parameter(config: Config) -> str | None:
    """Dotted name of the parameter that says on how many ranks `config` trains; None where it does not train."""
    names = [name for name in parameter_names(type(config)) if f".{name}".endswith(".train.ranks")]
    there = [name for name in names if _value(config, name) is not None]
    return there[0] if len(there) == 1 else None


def _value(config: BaseModel, name: str) -> Any:
    """The value under a dotted name; None where a group on the way is not there."""
    value: Any = config
    for part in name.split("."):
        value = getattr(value, part, None)
    return value
