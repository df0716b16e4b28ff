"""What `llamax pretrain run` does: parameters from a file, options and overrides; the job; what to say of it."""

import sys
from pathlib import Path
from typing import Any

import yaml

from llamax.errors import ParameterError
from llamax.progress import Progress
from llamax.runs.parameters import YamlLoader, apply_overrides
from llamax.training.config import TrainConfig
from llamax.training.launch import train
from llamax.training.loop import count_steps
from llamax.training.preflight import check_json, check_machine
from llamax.training.pretrain import PretrainConfig, prepare


def read_config(file: Path | None, options: dict[str, Any], overrides: dict[str, Any]) -> PretrainConfig:
    """The parameters of a YAML file, under options that were given, under `-p` overrides with dotted names.

    Raises: ParameterError: no such file, no mapping in it, or a parameter that is wrong or unknown.
    """
    values = _read(file) if file is not None else {}
    values |= {name: value for name, value in options.items() if value is not None}
    if isinstance(values.get("data"), list):
        values["data"] = [_source(each) if isinstance(each, str) else each for each in values["data"]]
    recipe = PretrainConfig.model_fields["train"].default.model_dump(mode="json")
    given = values.get("train")
    epochs = recipe.pop("epochs")
    values["train"] = recipe | given if isinstance(given, dict) else given or recipe
    if isinstance(values["train"], dict):
        values = apply_overrides(values, overrides, PretrainConfig)
        if values.get("tokens") is None and isinstance(values["train"], dict):
            values["train"] = {"epochs": epochs} | values["train"]  # else tokens say how many
    return PretrainConfig.parse(values, str(file) if file else "")


def _read(file: Path) -> dict[str, Any]:
    """A YAML file as a mapping."""
    try:
        values = yaml.load(file.read_text(encoding="utf-8"), YamlLoader)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ParameterError(f"{file}: cannot be read ({' '.join(str(error).split())})") from None
    if not isinstance(values, dict):
        raise ParameterError(f"{file}: should be a mapping of parameters, such as 'model: nano'")
    return values


def _source(text: str) -> dict[str, Any]:
    """PATH or PATH=WEIGHT."""
    path, equals, weight = text.rpartition("=")
    if not equals or Path(text).exists():
        return {"path": text}
    try:
        return {"path": path, "weight": float(weight)}
    except ValueError:
        raise ParameterError(f"--data {text}: the weight {weight!r} should be a number") from None


def run(file: Path | None, out: Path, options: dict[str, Any], overrides: dict[str, Any]) -> None:
    """Pre-train, and say what came out."""
    config = read_config(file, options, overrides)
    check_json(config.train)
    check_machine(config.train)
    job = prepare(config, out)
    steps = _steps(job.rows, job.train)
    with Progress(steps, "pretrain") as bar:
        history = train(job, on_step=lambda metrics: bar.reach(metrics.step + 1, loss=metrics.loss))
    for event in history.events:
        print(event, file=sys.stderr)
    last = history.losses[-50:]
    loss = f"loss {sum(last) / len(last):.4f} over the last {len(last)}" if last else "no step left to do"
    print(f"{job.out}/model: {len(history.steps)} steps, {history.tokens:,} tokens, {loss}")


def _steps(rows: str, config: TrainConfig) -> int:
    from llamax.training.data import load_data

    return count_steps(load_data(rows), config)
