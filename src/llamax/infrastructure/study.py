"""Direction 07, training half: where the time and memory of a step go, and what each optimisation buys.

Each part leaves its table in the run's scratch folder; an interrupted study goes on with the part that is missing.
"""

import json
import math
import time
from collections.abc import Callable, Iterator

import pandas as pd

from llamax.data.packing import PackingReport, Rows, build_rows
from llamax.data.sources import read
from llamax.data.templates import get_template
from llamax.errors import LaunchError
from llamax.files import clear_disk_errors, sweep, write_atomic
from llamax.infrastructure import analysis, measure
from llamax.infrastructure.config import InfrastructureConfig
from llamax.infrastructure.waterfall import WAYS, Recipe, Way, one_way, operations, padded_tokens
from llamax.models.load import load
from llamax.models.precision import DTYPES
from llamax.progress import progress_over
from llamax.runs import Run
from llamax.runs.records import Metric
from llamax.training.config import TrainConfig
from llamax.training.plan.compute import flops
from llamax.training.plan.setup import Setup
from llamax.training.plan.shapes import shape_of
from llamax.training.ranks import first_failure, place, run_ranks

RATE_SECONDS = 0.15


class Study:
    """The state of one study: config, run, model, data; `run_all` fills in `tables`, by the names in `analysis`."""

    def __init__(self, config: InfrastructureConfig, run: Run):
        self.config, self.run = config, run
        self.tables: dict[str, pd.DataFrame] = {}

    def prepare(self) -> PackingReport:
        """Load the model, read and tokenize the data; how the waterfall's documents pack."""
        config, wanted = self.config, self.config.waterfall
        self.model, tokenizer = load(config.model, pad_token=config.pad_token)
        self.model.bfloat16().float()  # every precision begins with the same numbers
        self.pad_id = tokenizer.pad_token_id
        self.template, self.tokenizer = get_template(config.data.template, tokenizer), tokenizer
        self.examples = read(config.data.source, format=config.data.format, limit=config.data.max_examples)
        packed, single = (self._rows(wanted.length, p, wanted.documents) for p in (True, False))
        steps = math.ceil(len(single) / wanted.batch)
        rows = math.ceil(len(packed) / steps)
        rate = wanted.learning_rate
        self.recipe = Recipe(packed, single, self.model, self.pad_id, rows, wanted.batch, rate, wanted.micro_batch)
        return packed.report()

    def _rows(self, length: int, packing: bool, limit: int | None = None) -> Rows:
        """The first `limit` examples in rows of `length` tokens; longer ones are cut, so that none is lost."""
        return build_rows(
            self.examples[:limit], self.tokenizer, self.template, length=length, packing=packing, over_long="split"
        )

    # -- the work -----------------------------------------------------------------------------------------------------

    def run_all(self) -> pd.DataFrame:
        """Measure every part (or read back what is there); the waterfall's table."""
        parts = {
            "parity": self._parity, "memory": self._memory, "ways": self._ways, "sweep": self._sweep,
            "sharded": self._sharded, "parts": self._parts, "loop": self._loop,
        }  # fmt: skip
        for name, part in parts.items():
            file = self.run.scratch / f"{name}.parquet"
            if self.run.reused:
                self.tables[name] = self.run.load_series(name)
            elif file.exists():
                self.tables[name] = pd.read_parquet(file)
            else:
                self.tables[name] = pd.DataFrame(part())
                with clear_disk_errors(file):
                    self.tables[name].to_parquet(file)
            if name == "parity":
                analysis.check_parity(self.tables[name])  # before an hour is spent on the speed of something else
        found = [frame for frame in (self.tables["sweep"], self.tables["sharded"]) if len(frame)]
        self.tables["cases"] = pd.concat(found, ignore_index=True)
        return analysis.waterfall(self.tables["ways"], self.tables["memory"])

    def conclude(self) -> list[Metric]:
        """The study's numbers; they go into the run's record, which is then complete."""
        found = analysis.metrics(self.tables)
        if not self.run.reused:
            for one in found:
                self.run.metric(**one.model_dump())
            self.run.items(analysis.outcomes(self.tables["ways"]))
            for name, frame in self.tables.items():
                self.run.series(name, frame)
            done = pd.concat([self.tables["ways"], self.tables["cases"]])
            self.run.cost(tokens=int(done.real.sum()), flops=float(done.flops.sum()))
            self.run.complete()
        return found

    def _rate(self, precision: str) -> float:
        """Operations per second of a large matrix product, now."""
        return measure.matmul_rate(DTYPES[precision], seconds=RATE_SECONDS)

    def _rates(self) -> dict[str, float]:
        """Those of both precisions."""
        return {name: self._rate(name) for name in ("fp32", "bf16")}

    # -- the waterfall ------------------------------------------------------------------------------------------------

    def _parity(self) -> Iterator[dict]:
        """Loss and gradient norm of one step over all documents, before any update, every way in fp32."""
        everything = self.recipe._replace(rows=len(self.recipe.packed), batch=self._whole_batch())
        for way in progress_over([w for w in WAYS if w.key != "bf16"], "same loss"):
            norms: list[float] = []
            losses = one_way(everything, way._replace(precision="fp32"), on_step=norms.append)[1]()
            yield {"key": way.key, "loss": losses[0], "norm": norms[0]}

    def _whole_batch(self) -> int:
        """All documents, filled up to whole micro-batches."""
        micro = self.recipe.micro
        return micro * math.ceil(len(self.recipe.single) / micro)

    def _memory(self) -> Iterator[dict]:
        """Peak bytes of each way's second step."""
        for way in progress_over(WAYS, "memory"):

            def two_steps(on_step: Callable, way: Way = way) -> None:
                one_way(self.recipe, way, steps=2, on_step=on_step)[1]()

            yield {"key": way.key, "peak": measure.counted(two_steps)}

    def _ways(self) -> Iterator[dict]:
        """Every way, interleaved, with the machine's own rates around it."""
        single = self.recipe.single
        real, supervised = len(single.tokens), int(single.mask.sum())
        done = operations(self.model, single)
        turns = [(repeat, way) for repeat in range(self.config.waterfall.repeats) for way in WAYS]
        before = self._rates()
        for repeat, way in progress_over(turns, "waterfall"):
            _, run = one_way(self.recipe, way)
            start = time.perf_counter()
            losses = run()
            measure.synchronise()
            seconds = time.perf_counter() - start
            after = self._rates()
            rates = {name: max(rate, after[name]) for name, rate in before.items()}
            before = after
            yield {
                "key": way.key, "repeat": repeat, "seconds": seconds, "real": real, "supervised": supervised,
                "padded": padded_tokens(self.recipe, way), "flops": done, "rate": rates[way.precision],
                "bf16_rate": rates["bf16"], "last_loss": losses[-1],
            }  # fmt: skip

    # -- one process, several ranks -----------------------------------------------------------------------------------

    def _sweep(self) -> Iterator[dict]:
        """Row length, micro-batch, packing and checkpointing, one at a time."""
        for name, (length, packed, train) in progress_over(self.config.swept().items(), "one process"):
            rows = self._rows(length, packed)
            before = self._rate(train.precision)
            steps = measure.take_steps(self.model, rows, train, self.pad_id)
            rate = max(before, self._rate(train.precision))
            yield from self._case("sweep", name, rows, train, steps, rate)

    def _sharded(self) -> Iterator[dict]:
        """ZeRO stages and offload: one start of the ranks goes through all cases."""
        cases, wanted = self.config.sharded(), self.config.ranks
        if not cases:
            return
        rows = self._rows(wanted.length, True)
        before = self._rate(wanted.precision)
        found = self._on_ranks(cases, rows)
        rate = max(before, self._rate(wanted.precision))
        for name, train in cases.items():
            first = found[0][name]
            steps = measure.Steps(**first | {"peak": max(one[name]["peak"] for one in found)})
            yield from self._case("ranks", name, rows, train, steps, rate)

    def _on_ranks(self, cases: dict[str, TrainConfig], rows: Rows) -> list[dict]:
        """What each rank found of each case. Raises: LaunchError."""
        from llamax.infrastructure.worker import RanksJob

        folder = (self.run.scratch / "ranks").resolve()
        sweep(folder)
        rows.save(folder / "rows")
        job = RanksJob(model=self.config.model, pad_token=self.config.pad_token, rows=str(folder / "rows"), cases=cases)
        write_atomic(folder / "job.json", job.model_dump_json())
        where = place(self.config.ranks.ranks)
        status = run_ranks("llamax.infrastructure.worker", folder / "job.json", where, lambda: None)
        files = [folder / f"found-{rank}.json" for rank in range(where.ranks)]
        if status or not all(file.exists() for file in files):
            raise LaunchError(first_failure(folder, status, where.ranks))
        return [json.loads(file.read_text()) for file in files]

    def _case(
        self, kind: str, name: str, rows: Rows, train: TrainConfig, steps: measure.Steps, rate: float
    ) -> Iterator[dict]:
        """Rows of the table `cases`: one per timed step."""
        planned, at = measure.planned(self.model, rows, train)
        lengths, targets = measure.largest_forward(rows, train)
        per_token = self._flops_per_token(lengths, targets)
        for number, (seconds, real, supervised) in enumerate(zip(*steps[1:], strict=True)):
            yield {
                "kind": kind, "case": name, "step": number, "seconds": seconds, "real": real, "supervised": supervised,
                "flops": real * per_token, "rate": rate, "length": rows.length, "micro_batch": train.micro_batch,
                "peak": steps.peak, "planned": planned, "at": at,
            }  # fmt: skip

    def _flops_per_token(self, lengths, targets: int) -> float:
        """Model FLOPs of a real token, by the documents and targets of one forward."""
        pairs = float((lengths * (lengths + 1) / 2).sum())
        shape, setup = shape_of(self.model.config.to_dict()), Setup(engine="torch")
        return flops(shape, setup, float(lengths.sum()), pairs, targets).model / float(lengths.sum())

    # -- where the time goes ------------------------------------------------------------------------------------------

    def _base(self) -> tuple[Rows, TrainConfig]:
        length, packed, train = self.config.swept()["base"]
        return self._rows(length, packed), train

    def _parts(self) -> Iterator[dict]:
        """Seconds of one step by kind."""
        rows, train = self._base()
        for kind, seconds in measure.shares(self.model, rows, train, self.pad_id).items():
            yield {"kind": kind, "seconds": seconds}

    def _loop(self) -> Iterator[dict]:
        """Seconds of each step of the loop alone, and of the whole base step."""
        rows, train = self._base()
        alone = measure.loop_seconds(self.model, rows, train, self.pad_id)
        whole = self.tables["sweep"].query("case == 'base'").seconds.tolist()
        for own, all_of_it in zip(alone, whole, strict=False):
            yield {"alone": own, "whole": all_of_it}
