"""How a run is done, as the plan needs it: the training configuration and the rows, in one flat tuple. No torch."""

from typing import Any, NamedTuple, Self

from llamax.training.buckets import zero_buckets
from llamax.training.config import LoraConfig

FP32 = 4  # bytes


class PlanData(NamedTuple):
    """What is learned from. Unknown counts are None; then no time is planned.

    length: tokens of a row. packing: rows are full of documents; else a row is one document, padded in its batch.
    documents: in one epoch. mean_document: their mean length in tokens. supervised: share of tokens that are targets.
    pairs: mean of `n (n + 1) / 2` over documents, which attention costs; else that of the mean length, which is less.
    """

    length: int
    packing: bool = True
    documents: int | None = None
    mean_document: float | None = None
    supervised: float = 1.0
    pairs: float | None = None

    @property
    def tokens(self) -> float | None:
        """Real tokens of one epoch."""
        known = self.documents is not None and self.mean_document is not None
        return self.documents * self.mean_document if known else None

    @property
    def own_document(self) -> float | None:
        """Tokens of the document that a token stands in, on average: longer ones have more of the tokens."""
        if self.pairs is None or not self.mean_document:
            return self.mean_document
        return 2 * self.pairs / self.mean_document - 1

    @property
    def documents_per_row(self) -> float:
        """Documents that lie in one row, on average."""
        return max(1.0, self.length / self.mean_document) if self.packing and self.mean_document else 1.0


class Setup(NamedTuple):
    """A run. Fields are those of `TrainConfig`, and of the data; `micro_steps` is the gradient accumulation.

    document: tokens of the document that a token stands in, on average (rows are one document where it is not given).
    supervised: largest share of targets in a forward. buckets: ZeRO's sizes that `deepspeed_json` sets.
    on_cpu: attention is the CPU's, which keeps the scores of short documents; `plan.device` sets it.
    pinned_rounding: torch gives pinned host memory in powers of two, unless told not to (`verdict.ROUNDING_OFF`).
    """

    precision: str = "bf16"
    engine: str = "deepspeed"
    ranks: int = 1
    zero_stage: int = 0
    micro_batch: int = 1
    batch_size: int = 1
    gradient_checkpointing: bool = False
    offload_optimizer: bool = False
    offload_parameters: bool = False
    lora: LoraConfig | None = None
    length: int = 2048
    document: float | None = None
    supervised: float = 1.0
    on_cpu: bool = False
    pinned_rounding: bool = True
    epochs: int = 1
    max_steps: int | None = None
    keep_checkpoints: int = 2
    checkpoint_every: int = 0
    buckets: tuple[tuple[str, int], ...] = ()

    @classmethod
    def of(cls, train: Any, data: PlanData, **changes: Any) -> Self:
        """From a `TrainConfig` (or anything with its fields) and the rows; `changes` on top.

        Rows that are not packed may be all answer, so their memory is planned for a share of 1.
        """
        fields = {name: getattr(train, name) for name in cls._fields if hasattr(train, name)}
        fields |= {"length": data.length, "document": data.own_document}
        fields |= {"supervised": data.supervised if data.packing else 1.0}
        zero = getattr(train, "deepspeed_json", {}).get("zero_optimization", {})
        fields |= {"buckets": tuple((name, int(zero[name])) for name in zero_buckets(1) if name in zero)}
        return cls(**(fields | changes))

    @property
    def element(self) -> int:
        """Bytes of a weight or activation."""
        return FP32 if self.precision == "fp32" else 2

    @property
    def micro_steps(self) -> int:
        """Forwards of one rank per optimizer step."""
        return max(1, self.batch_size // (self.micro_batch * self.ranks))

    def bucket(self, name: str, hidden: int) -> int:
        """Elements of ZeRO's buffer `name` for a model of width `hidden`."""
        return (zero_buckets(hidden) | dict(self.buckets))[name]

    @property
    def tokens(self) -> int:
        """Tokens of one forward on one rank, at most."""
        return self.micro_batch * self.length

    @property
    def mean_document(self) -> float:
        """Tokens of the document that a token stands in, on average; at most the row."""
        return min(self.length, self.document or self.length)

    @property
    def shards(self) -> int:
        """Over how many ranks the optimizer's state is spread."""
        return self.ranks if self.zero_stage else 1
