"""What a rehearsal of direction 01 makes smaller, and what it looks at in the end; `llamax.runs.rehearse` does it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llamax.data.conversation import Conversation
from llamax.data.sources import cards, data_folder, find
from llamax.data.world import instructions
from llamax.errors import DataError
from llamax.files import write_atomic
from llamax.instruction_tuning.config import InstructionData, InstructionTuningConfig
from llamax.runs.records import Record
from llamax.runs.rehearse import Shrunk, little_model

ROWS = 24  # conversations: two packed rows, and the rest of the batch empty, as at the end of an epoch
STEPS, EVERY = 3, 1
KILL = "1:1"  # rank 1 after the second step: one step behind the first checkpoint
TRAIN = {"ranks": 2, "micro_batch": 1, "batch_size": 4, "epochs": STEPS, "max_steps": STEPS, "checkpoint_every": EVERY}


def shrink(config: InstructionTuningConfig, folder: Path) -> Shrunk:
    """The profile with the nano model, a few rows, three steps on two ranks; recipe, engine, schema and template stay.

    folder: gets the model, and the rows where the profile's source is not on this disk.
    """
    kept = config.model_dump(mode="json", exclude={"profile", "seed"})
    evaluation, answers = _evaluation(config), min(2, config.answers)
    small = {
        "model": str(little_model(folder)),
        "data": {**kept["data"], **_data(config.data, folder), "max_examples": ROWS},
        "train": {**kept["train"], **TRAIN},
    }
    return Shrunk({**kept, **small, "replicates": 1, "evaluation": evaluation, "answers": answers}, KILL)


def parts(config: InstructionTuningConfig, record: Record, scratch: Path) -> Iterator[str]:
    """What was rehearsed, a line each. Raises: DataError: an arm left nothing of what it should."""
    train, arms = config.train, [f"{method}-0" for method in config.methods]
    precision = f"{train.precision}, gradient checkpointing" if train.gradient_checkpointing else train.precision
    moved = [what for what in ("optimizer", "parameters") if getattr(train, f"offload_{what}")]
    yield "every parameter of the profile, and every key of DeepSpeed's JSON"
    data = config.data
    yield f"data: {Path(data.source).name} as {data.format}, template {data.template}, rows of {data.length} tokens"
    yield (
        f"{train.ranks} ranks by DeepSpeed's launcher: ZeRO-{train.zero_stage}, {precision}, "
        f"offload of {' and '.join(moved) or 'nothing'}, the model loaded into shards"
    )
    for number, arm in enumerate(arms):
        history = json.loads((scratch / arm / "ranks" / "history.json").read_text())
        if len(history["steps"]) != STEPS or history["resumed_from"] != (EVERY if number == 0 else 0):
            raise DataError(f"{scratch / arm}: {len(history['steps'])} steps, resumed from {history['resumed_from']}")
        how = f"; rank {KILL[0]} killed, resumed from step {EVERY}" if number == 0 else ""
        losses = f"{history['steps'][0][1]:.2f} -> {history['steps'][-1][1]:.2f}"
        yield f"{arm}: {STEPS} steps, loss {losses}, checkpoints{how}; saved, read back, compared"
    yield f"evaluation: suite {config.evaluation.suite}, {len(record.metrics)} metrics, figures, the record"


def _data(data: InstructionData, folder: Path) -> dict[str, Any]:
    """Source and format: the profile's own if it is on this disk; else a file of made rows with the columns it has."""
    if find(data.source).hub is None:
        return {}
    card = cards().get(data.source)
    schema = card.format if card else data.format
    if schema == "auto":
        raise DataError(
            f"{data.source}: no data card says what its columns are: set data.format, or put a local copy where "
            "LLAMAX_DATA says"
        )
    path = folder / f"{Path(data.source).name}.jsonl"
    rows = [json.dumps(as_row(conversation, schema)) for conversation in instructions(limit=ROWS)]
    write_atomic(path, "\n".join(rows) + "\n")
    return {"source": str(path), "format": schema if data.format == "auto" else data.format}


def as_row(conversation: Conversation, schema: str) -> dict[str, Any]:
    """A conversation of the small world as a row of another format. Raises: DataError: a format without rows."""
    asked, answered = (message.content for message in conversation.messages[-2:])
    rows = {
        "alpaca": {"instruction": asked, "input": "", "output": answered},
        "sharegpt": {"conversations": [{"from": "human", "value": asked}, {"from": "gpt", "value": answered}]},
        "messages": {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]},
        "prompt-completion": {"prompt": asked, "completion": answered},
    }
    if schema not in rows:
        raise DataError(f"rows of format {schema!r} cannot be made for a rehearsal: {', '.join(rows)} can")
    return rows[schema]


def _evaluation(config: InstructionTuningConfig) -> dict[str, Any]:
    """A few items of the profile's suite; without local copies of its benchmarks, of the small world's."""
    wanted = config.evaluation
    small = {"precision": wanted.precision, "batch_size": wanted.batch_size, "text_documents": 4}
    if wanted.suite == "real" and data_folder() is not None:
        return {**small, "suite": "real", "limits": dict.fromkeys(wanted.limits, 2), "max_new_tokens": 8}
    tasks = ("knowledge", "arithmetic", "open_qa", "truthfulness", "code")
    return {**small, "suite": "nano", "protocols": ["chat"], "limits": dict.fromkeys(tasks, 2)}
