"""Pre-training, from scratch or continued: text to shards, a model to begin with, and a job over both.

out/
    shards/<name>/    of every source that is not a folder of shards already
    data/             the mixture, which the job's ranks open
    initial/          the model of a run from scratch, before its first step
    checkpoints/ model/ ranks/    as of every job
Each part is made once: the same command again goes on where it was, to the bit.
"""

import json
import math
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from llamax.config import Parameters
from llamax.data.shards import MANIFEST, SHARD_TOKENS, Split, shard_files
from llamax.data.stream import HEAVIEST, ShardFolder, Windows, open_shards
from llamax.errors import CheckpointError, DataError, ModelError, ParameterError
from llamax.files import locate, sha256_json
from llamax.models.load import TOKENIZERS, load_config, load_tokenizer
from llamax.models.save import read_notes, save
from llamax.models.source import find
from llamax.models.vocabulary import check_special_tokens, set_pad_token
from llamax.training.config import Job, TrainConfig

SUFFIXES = (".txt", ".jsonl", ".json", ".parquet", ".txt.gz", ".jsonl.gz", ".json.gz")


class SourceConfig(Parameters):
    """A file of text, a folder of such files, or of shards. weight: how often an epoch reads it."""

    path: str
    weight: float = Field(1.0, gt=0, le=HEAVIEST)


class PretrainConfig(Parameters):
    """One pre-training. Defaults: the original LLaMA's optimizer (Touvron et al. 2023, section 2.3).

    model: a spec for `llamax.models.load`; from scratch also a config.json or a folder that holds one: then only its
    shape counts. tokenizer: a spec; the model's own when left out. length: tokens of a row. tokens: to train on,
    rounded down to whole steps, instead of train.epochs or train.max_steps; one epoch when left out.
    field, split, shard_tokens: see `data.shards.shard_files`.
    """

    model: str
    from_scratch: bool = False
    tokenizer: str | None = None
    pad_token: str | None = None
    data: tuple[SourceConfig, ...] = Field(min_length=1)
    length: int = Field(2048, ge=3)
    tokens: int | None = Field(None, ge=1)
    field: str = "text"
    split: Split = "file"
    shard_tokens: int = Field(SHARD_TOKENS, ge=2)
    train: TrainConfig = TrainConfig(
        learning_rate=3e-4, warmup_ratio=0.01, epochs=1, weight_decay=0.1, betas=(0.9, 0.95), checkpoint_every=200
    )


def prepare(config: PretrainConfig, out: Path | str) -> Job:
    """Make what is missing of shards, mixture and first model; give the job that trains on them.

    Raises: ParameterError, DataError, ModelError, CheckpointError, DiskFullError. What cannot be trained is refused
    before anything is written, as far as it can be known without the shards.
    """
    out = Path(out).resolve()
    _check_one_length(config)
    tokenizer = _tokenizer(config)
    _check_window(config, tokenizer)
    sources = [_shards(source, config, tokenizer, out) for source in config.data]
    data = Windows.over(sources, config.length)
    _check_data(data, out)
    train = with_length(config, len(data))
    model = str(_initial(config, tokenizer, out)) if config.from_scratch else config.model
    pad_token = None if config.from_scratch else config.pad_token
    data.save(out / "data")
    return Job(model=model, pad_token=pad_token, rows=str(out / "data"), train=train, out=str(out), template=None)


def with_length(config: PretrainConfig, rows: int) -> TrainConfig:
    """`config.train` with as many epochs and steps as `tokens` asks for. Raises: ParameterError: fewer than a step."""
    if config.tokens is None:
        return config.train
    step = config.train.batch_size * config.length
    if config.tokens < step:
        size = f"batch_size {config.train.batch_size} x length {config.length}"
        raise ParameterError(f"tokens {config.tokens}: fewer than one step takes ({size} = {step})")
    steps = config.tokens // step
    epochs = math.ceil(steps / math.ceil(rows / config.train.batch_size))
    return config.train.model_copy(update={"max_steps": steps, "epochs": epochs})


def _check_one_length(config: PretrainConfig) -> None:
    """Raise `ParameterError` if the length of the training is given twice."""
    given = config.train.model_fields_set if "train" in config.model_fields_set else set()
    for name in ("max_steps", "epochs"):
        value = getattr(config.train, name)
        if config.tokens is not None and name in given and value is not None:
            raise ParameterError(f"tokens {config.tokens} and train.{name} {value}: both say how long; give one")


def _check_window(config: PretrainConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise `ParameterError` if rows are longer than the model's window."""
    if not config.from_scratch and find(config.model).kind == "meta":
        return  # which tells only with its weights; the loop looks again
    shape = _shape(config, tokenizer) if config.from_scratch else load_config(config.model)
    window = getattr(shape, "max_position_embeddings", None) or config.length
    if config.length > window:
        raise ParameterError(f"length {config.length} is more than the model's window of {window}: -p length={window}")


def _check_data(data: Windows, out: Path) -> None:
    """Raise `CheckpointError` if the newest checkpoint under `out` was trained on something else; none is no fault."""
    for checkpoint in sorted((out / "checkpoints").glob("step-????????"))[-1:]:
        try:
            rows = json.loads((checkpoint / "run.json").read_text())["identity"]["rows"]
        except (OSError, ValueError, LookupError, TypeError):
            return  # damaged, which resuming from it says
        if rows != data.fingerprint:
            raise CheckpointError(
                f"{checkpoint} belongs to another run: of other data, weights or length; use another output folder"
            )


def _tokenizer(config: PretrainConfig) -> PreTrainedTokenizerBase:
    """The tokenizer that is asked for; also from a folder that holds no model."""
    spec = config.tokenizer or config.model
    folder = locate(spec)
    if folder.is_dir() and any(any(folder.glob(name)) for name in TOKENIZERS):
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        if config.pad_token is not None:
            set_pad_token(tokenizer, config.pad_token)
        check_special_tokens(tokenizer)
        return tokenizer
    if config.from_scratch and config.tokenizer is None and _is_shape(folder):
        raise ParameterError(f"tokenizer: {config.model} has none; name one, such as tokenizer=nano")
    return load_tokenizer(spec, pad_token=config.pad_token)


def _is_shape(path: Path) -> bool:
    """A config.json, or a folder that has one."""
    return path.suffix == ".json" or (path / "config.json").is_file()


def _shards(source: SourceConfig, config: PretrainConfig, tokenizer: PreTrainedTokenizerBase, out: Path) -> ShardFolder:
    """The shards of a source, made now unless they are there."""
    path = locate(source.path)
    if (path / MANIFEST).is_file() or (path / "plan.json").is_file():
        found = open_shards(path, source.weight)
    else:
        name = path.name.split(".")[0]
        digest = sha256_json(str(path.resolve()))[:8]  # two sources may have one name
        folder = out / "shards" / f"{name}-{digest}"
        cuts: dict[str, Any] = {"field": config.field, "split": config.split, "shard_tokens": config.shard_tokens}
        shard_files(text_files(path), tokenizer, folder, **cuts)
        found = open_shards(folder, source.weight)
    found.check_tokenizer(tokenizer)
    return found


def text_files(path: Path) -> list[Path]:
    """The file, or the files of a folder in order of their names. Raises: DataError: there is none."""
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.iterdir() if file.name.endswith(SUFFIXES))
    if not files:
        raise DataError(f"{path}: no file in it ends in {', '.join(SUFFIXES)}")
    return files


def _initial(config: PretrainConfig, tokenizer: PreTrainedTokenizerBase, out: Path) -> Path:
    """A model of the shape of `config.model` that has learned nothing: a function of shape, tokenizer and seed."""
    shape, folder = _shape(config, tokenizer), out / "initial"
    notes = {"shape": sha256_json(shape.to_dict()), "seed": config.train.seed}
    if folder.is_dir():
        found = {name: read_notes(folder).get(name) for name in notes}
        if found != notes:
            raise ModelError(f"{folder}: made for another shape or seed; use another output folder or delete it")
        return folder
    torch.manual_seed(config.train.seed)
    model = AutoModelForCausalLM.from_config(shape, dtype=torch.float32)
    return save(model, tokenizer, folder, notes=notes)


def _shape(config: PretrainConfig, tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
    """The architecture of `config.model`, with the tokenizer's special tokens. Raises: ModelError: too few rows."""
    path = locate(config.model)
    if _is_shape(path):
        try:
            shape = AutoConfig.from_pretrained(path, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(f"{path}: no configuration of a model ({str(error).splitlines()[0]})") from None
    else:
        shape = load_config(config.model)
    if shape.vocab_size < len(tokenizer):
        raise ModelError(
            f"{config.model}: vocab_size {shape.vocab_size}, but the tokenizer has {len(tokenizer)} tokens"
        )
    shape.bos_token_id, shape.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    shape.pad_token_id = tokenizer.pad_token_id
    return shape
