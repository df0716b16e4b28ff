"""One model per rank: a list of requests is shared out, each rank answers its part into one journal.

Requests are made in one process and then shared out, so what is asked does not depend on the number of ranks; nor do
the answers (fp32). Ranks do not talk to each other: what they have done lies in the journal, and another number of
ranks can go on with it.
"""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field
from transformers import PreTrainedTokenizerBase

from llamax.config import Config
from llamax.errors import LaunchError
from llamax.evaluation.engines import Ask, How, OnSaid, OnScored, TorchEngine
from llamax.evaluation.journal import Journal, Journaled
from llamax.files import write_atomic
from llamax.generation.score import Pair
from llamax.progress import Progress
from llamax.training.ranks import first_failure, new_lines, place, rank_of, run_ranks


class Shared(Config):
    """What all ranks read: the model by name, where answers go, and what is asked."""

    model: str
    pad_token: str | None
    precision: Literal["fp32", "bf16"]
    batch_size: int
    journal: str
    identity: str
    pairs: list[tuple[list[int], list[list[int]]]] = Field(default_factory=list)
    asks: list[tuple[list[int], int]] = Field(default_factory=list)
    how: tuple[int, tuple[str, ...], float, float, int] | None = None


class RankedEngine:
    """`ranks` processes, on GPUs where there are some, which training's launcher starts for each list of requests."""

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
        self.ranks, self.progress = ranks, progress
        self.shared = Shared(
            model=model, pad_token=pad_token, precision=precision, batch_size=batch_size,
            journal=str(journal.folder.resolve()), identity=journal.identity,
        )  # fmt: skip

    def score(self, pairs: list[Pair], done: OnScored) -> None:
        self._run(self.shared.model_copy(update={"pairs": pairs}), len(pairs))
        Journaled(_Answered(self), self.journal).score(pairs, done)

    def say(self, asks: list[Ask], how: How, done: OnSaid) -> None:
        self._run(self.shared.model_copy(update={"asks": asks, "how": how}), len(asks))
        Journaled(_Answered(self), self.journal).say(asks, how, done)

    def _run(self, shared: Shared, count: int) -> None:
        """Let the ranks answer all of it. Raises: LaunchError: one failed; then with its own traceback."""
        where = place(self.ranks)
        folder = self.journal.folder.resolve() / "ranks"
        shutil.rmtree(folder, ignore_errors=True)
        write_atomic(folder / "job.json", shared.model_dump_json())
        files = [new_lines(self.journal.folder / f"answers-{rank}.jsonl") for rank in range(self.ranks)]
        for lines in files:
            next(lines)  # what an earlier run has left
        with Progress(count, f"{self.ranks} ranks", shown=self.progress) as bar:
            status = run_ranks(__name__, folder / "job.json", where, lambda: bar.advance(_count(files)))
        if status:
            raise LaunchError(first_failure(folder, status, where.ranks))
        self.journal.load()


class _Answered:
    """What stands behind the journal once the ranks are done: nothing is left to answer."""

    def __init__(self, engine: RankedEngine) -> None:
        self.tokenizer, self.window, self.folder = engine.tokenizer, engine.window, engine.journal.folder

    def score(self, pairs: list[Pair], done: OnScored) -> None:
        self._missing(len(pairs))

    def say(self, asks: list[Ask], how: How, done: OnSaid) -> None:
        self._missing(len(asks))

    def _missing(self, count: int) -> None:
        raise LaunchError(f"the ranks ended well, but {count} answers are not in {self.folder}: was it edited?")


def _count(files: list) -> int:
    """How many answers came since it was last asked."""
    return sum(len(next(lines)) for lines in files)


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
    """Answer this rank's part."""
    with rank_of(job_file) as (rank, ranks):
        import torch

        from llamax.models.load import load

        shared = Shared.parse(json.loads(Path(job_file).read_text()), job_file)
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[shared.precision]
        loaded = load(shared.model, dtype=dtype, pad_token=shared.pad_token)
        loaded.model.to(device_of_rank())
        journal = Journal(Path(shared.journal), shared.identity, writer=str(rank))
        engine = Journaled(TorchEngine(*loaded, batch_size=shared.batch_size), journal)
        if shared.pairs:
            engine.score(part_of_pairs(shared.pairs, rank, ranks), lambda *_: None)
        if shared.asks:
            engine.say(part_of_asks([Ask(*ask) for ask in shared.asks], rank, ranks), How(*shared.how), lambda *_: None)


def device_of_rank() -> str:
    """The rank's own GPU, or the CPU."""
    import torch

    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"


if __name__ == "__main__":
    main(sys.argv[1])
