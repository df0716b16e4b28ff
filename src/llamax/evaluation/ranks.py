"""One model per rank: a list of requests is shared out, each rank answers its part into one journal.

Requests are made in one process and then shared out, so what is asked does not depend on the number of ranks; nor do
the answers (fp32). Ranks do not talk to each other: what they have done lies in the journal, and another number of
ranks can go on with it. They start once, load the model once, and wait in the folder of the job for further lists.
"""

import contextlib
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field
from transformers import PreTrainedTokenizerBase

from llamax.config import Config
from llamax.errors import LaunchError
from llamax.evaluation.engines import Ask, Engine, How, OnSaid, OnScored, TorchEngine
from llamax.evaluation.journal import Journal, Journaled
from llamax.files import write_atomic
from llamax.generation.score import Pair
from llamax.progress import Progress
from llamax.training.ranks import POLL_SECONDS, first_failure, new_lines, place, rank_of, started

STOP = "stop"
IDLE_SECONDS = 3600  # without a list to answer a rank ends: on another machine it does not see that we are gone


class Shared(Config):
    """What all ranks are told at their start: the model by name, and where answers go."""

    model: str
    pad_token: str | None
    precision: Literal["fp32", "bf16"]
    batch_size: int
    journal: str
    identity: str


class Requests(Config):
    """One list of requests: choices, or prompts and how they are continued."""

    pairs: list[tuple[list[int], list[list[int]]]] = Field(default_factory=list)
    asks: list[tuple[list[int], int]] = Field(default_factory=list)
    how: tuple[int, tuple[str, ...], float, float, int] | None = None


class RankedEngine:
    """`ranks` processes, on GPUs where there are some, which training's launcher starts. `close` ends them.

    Raises: LaunchError: a rank failed; then with its own traceback.
    """

    def __init__(
        self,
        model: str,
        tokenizer: PreTrainedTokenizerBase,
        window: int,
        journal: Journal,
        *,
        ranks: int,
        precision: Literal["fp32", "bf16"] = "fp32",
        pad_token: str | None = None,
        batch_size: int = 32,
        progress: bool = False,
    ) -> None:
        self.tokenizer, self.window, self.journal = tokenizer, window, journal
        self.ranks, self.progress, self.lists = ranks, progress, 0
        self.folder = journal.folder.resolve() / "ranks"
        self.shared = Shared(
            model=model, pad_token=pad_token, precision=precision, batch_size=batch_size,
            journal=str(journal.folder.resolve()), identity=journal.identity,
        )  # fmt: skip
        self.process, self.stack = None, contextlib.ExitStack()

    def score(self, pairs: list[Pair], done: OnScored) -> None:
        self._answer(Requests(pairs=pairs), len(pairs))
        Journaled(_Answered(self), self.journal).score(pairs, done)

    def say(self, asks: list[Ask], how: How, done: OnSaid) -> None:
        self._answer(Requests(asks=asks, how=how), len(asks))
        Journaled(_Answered(self), self.journal).say(asks, how, done)

    def close(self) -> None:
        """End the ranks."""
        if self.process is not None:
            write_atomic(self.folder / STOP, "")
            with contextlib.suppress(TimeoutError):
                _wait_until(lambda: self.process.poll() is not None, seconds=30)
        self.stack.close()
        self.process = None

    def _start(self) -> None:
        where = place(self.ranks)
        shutil.rmtree(self.folder, ignore_errors=True)
        write_atomic(self.folder / "job.json", self.shared.model_dump_json())
        self.lists = 0
        self.process = self.stack.enter_context(started(__name__, self.folder / "job.json", where))

    def _answer(self, requests: Requests, count: int) -> None:
        """Let the ranks answer a list, and read what they wrote."""
        if self.process is None:
            self._start()
        files = [new_lines(self.journal.folder / f"answers-{rank}.jsonl") for rank in range(self.ranks)]
        for lines in files:
            next(lines)  # what an earlier list has left
        write_atomic(self.folder / f"requests-{self.lists}.json", requests.model_dump_json())
        with Progress(count, f"{self.ranks} ranks", shown=self.progress) as bar:
            while len(list(self.folder.glob(f"done-{self.lists}-*"))) < self.ranks:
                bar.advance(sum(len(next(lines)) for lines in files))
                # Of several machines the launcher waits for all, whose ranks would wait for the failed one's answers.
                if self.process.poll() is not None or any(self.folder.glob("error-*.json")):
                    self.stack.close()
                    status, self.process = self.process.returncode, None
                    raise LaunchError(first_failure(self.folder, status, self.ranks))
                time.sleep(POLL_SECONDS)
            bar.advance(sum(len(next(lines)) for lines in files))
        self.lists += 1
        self.journal.load()


class _Answered:
    """What stands behind the journal once all ranks have answered: nothing should be asked any more."""

    def __init__(self, engine: RankedEngine) -> None:
        self.tokenizer, self.window, self.folder = engine.tokenizer, engine.window, engine.folder

    def score(self, pairs: list[Pair], done: OnScored) -> None:
        raise LaunchError(f"{len(pairs)} requests were answered by no rank (all output: {self.folder / 'log.txt'})")

    def say(self, asks: list[Ask], how: How, done: OnSaid) -> None:
        self.score(asks, done)


def _wait_until(condition, seconds: float = float("inf")) -> None:
    """Raises: TimeoutError."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(POLL_SECONDS)


def part_of_pairs(pairs: list[Pair], rank: int, ranks: int) -> list[Pair]:
    """A rank's pairs: a stretch of the sorted contexts, so that those that begin alike stay together, of equal work."""
    order = sorted(range(len(pairs)), key=lambda i: pairs[i][0])
    work = np.cumsum([len(pairs[i][0]) for i in order])
    edges = np.searchsorted(work, np.linspace(0, work[-1], ranks + 1), side="left") if len(work) else [0] * (ranks + 1)
    edges[-1] = len(order)
    return [pairs[i] for i in order[edges[rank] : edges[rank + 1]]]


def part_of_asks(asks: list[Ask], rank: int, ranks: int) -> list[Ask]:
    """A rank's prompts: every `ranks`-th from the longest to the shortest."""
    return sorted(asks, key=lambda ask: -len(ask.ids))[rank::ranks]


def main(job_file: str) -> None:
    """Answer this rank's part of every list, until told to stop."""
    with rank_of(job_file) as (rank, ranks):
        from llamax.models.load import load
        from llamax.models.precision import DTYPES

        folder = Path(job_file).parent
        shared = Shared.parse(json.loads(Path(job_file).read_text()), job_file)
        loaded = load(shared.model, dtype=DTYPES[shared.precision], pad_token=shared.pad_token)
        loaded.model.to(device_of_rank())
        journal = Journal(Path(shared.journal), shared.identity, writer=str(rank))
        engine = Journaled(TorchEngine(*loaded, batch_size=shared.batch_size), journal)
        answer_lists(folder, engine, rank, ranks)


def answer_lists(folder: Path, engine: Engine, rank: int, ranks: int) -> None:
    """Answer this rank's part of every list that comes, and say so, until told to stop."""
    number = 0
    while (file := _next(folder, number)) is not None:
        requests = Requests.parse(json.loads(file.read_text()), str(file))
        if requests.pairs:
            engine.score(part_of_pairs(requests.pairs, rank, ranks), _nothing)
        if requests.asks:
            asks = part_of_asks([Ask(*ask) for ask in requests.asks], rank, ranks)
            engine.say(asks, How(*requests.how), _nothing)
        write_atomic(folder / f"done-{number}-{rank}", "")
        number += 1


def _nothing(*_) -> None:
    """The journal has it; nobody here wants to know."""


def _next(folder: Path, number: int) -> Path | None:
    """The next list of requests, as soon as it is there; None to stop."""
    file = folder / f"requests-{number}.json"
    with contextlib.suppress(TimeoutError):
        _wait_until(lambda: file.exists() or (folder / STOP).exists(), IDLE_SECONDS)
    return file if file.exists() else None


def device_of_rank() -> str:
    """The rank's own GPU, or the CPU."""
    import torch

    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"


if __name__ == "__main__":
    main(sys.argv[1])
