"""What the loop asks of its data: rows in memory (`packing.Rows`) and windows over shards (`stream.Windows`) alike."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from llamax.data.packing import Batch, Rows
from llamax.data.stream import MIXTURE, Windows


class TrainingData(Protocol):
    """Numbered rows in an order that is a pure function of seed, epoch and place. -1 stands for an empty row.

    fingerprint: sha256 of everything that training sees. longest_document: most tokens that attend to each other.
    without_targets: numbers of rows that would teach nothing, which is an error.
    """

    @property
    def fingerprint(self) -> str: ...

    @property
    def longest_document(self) -> int: ...

    @property
    def without_targets(self) -> np.ndarray: ...

    def __len__(self) -> int:
        """Rows of an epoch."""

    def visit(self, seed: int, epoch: int, start: int, stop: int) -> np.ndarray:
        """Rows at places start..stop-1 of an epoch, int64; fewer where the epoch ends."""

    def supervised(self, indices: Iterable[int]) -> int:
        """Targets in these rows."""

    def real(self, indices: Iterable[int]) -> int:
        """Tokens in these rows, padding apart."""

    def collate(self, indices: Sequence[int], pad_id: int) -> Batch:
        """These rows side by side."""

    def name(self, i: int) -> str:
        """What messages call row i, so that a person finds it."""


def load_data(folder: Path | str) -> TrainingData:
    """The rows or the mixture of shards in a folder. Raises: DataError."""
    return Windows.load(folder) if (Path(folder) / MIXTURE).is_file() else Rows.load(folder)
