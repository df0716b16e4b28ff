"""Direction 08 from models to evidence: what they can do, how sure that is, and whether the difference can be told.

Every model keeps its work in the run's scratch folder: answers as they come (the journal), then its tables. An
interrupted study goes on where it was.
"""

import contextlib
import gc
import json
import os
from typing import NamedTuple

import pandas as pd
import torch

from llamax.data.packing import build_rows
from llamax.data.sources import read
from llamax.data.templates import get_template
from llamax.data.world import test_items
from llamax.errors import ParameterError
from llamax.evaluation import analysis, contamination, nano, wordings
from llamax.evaluation.config import CANDIDATE, CURRENT, NANO, EvaluationConfig
from llamax.files import clear_disk_errors, sha256_json, sweep, write_atomic
from llamax.models.fingerprint import fingerprint
from llamax.models.load import Loaded, load, load_config, load_tokenizer
from llamax.models.precision import DTYPES
from llamax.progress import Progress
from llamax.runs import Run
from llamax.runs.records import Metric
from llamax.training.config import Job
from llamax.training.history import training_flops
from llamax.training.launch import train
from llamax.training.loop import count_steps
from llamax.training.plan.shapes import shape_of
from llamax.versions.measured import ITEM_COLUMNS, MODELS, NOTE, Measured, item_set, note

VLLM = {"fp32": "float32", "bf16": "bfloat16"}
TABLES = ("items", "confidence", "variance")


class Answers(NamedTuple):
    """One model's tables (columns in `analysis`), and how each benchmark was run."""

    items: pd.DataFrame
    confidence: pd.DataFrame
    variance: pd.DataFrame
    measured: list[Measured]


class Study:
    """The state of one study: config, run, models; `run_all` fills in the tables."""

    def __init__(self, config: EvaluationConfig, run: Run) -> None:
        self.config, self.run = config, run
        self.models = {CURRENT: config.model}
        if config.candidate or config.tune:
            self.models[CANDIDATE] = config.candidate or str(run.scratch / CANDIDATE / "model")
        self.items, self.confidence, self.variance = pd.DataFrame(), pd.DataFrame(), pd.DataFrame()
        self.leaks, self.measured = pd.DataFrame(), {}

    # -- the work -----------------------------------------------------------------------------------------------------

    def run_all(self) -> pd.DataFrame:
        """Make the candidate, look for test items in what it learned from, ask every model; the outcome table."""
        if self.run.reused:
            self.items = self.run.load_items()
            self.confidence, self.variance, self.leaks = (
                self.run.load_series(name) for name in ("confidence", "variance", "leaks")
            )
            self.measured = analysis.read_measured(self.run)
            return self.items
        if self.config.suite == "real":
            self._check_benchmarks()
        self.leaks = self._look_for_leaks()
        if self.config.tune and not (self.run.scratch / CANDIDATE / "model").exists():
            self._tune(self.config.tune)
        answers = {label: self._model(label) for label in self.models}
        for name in TABLES:
            frames = [getattr(one, name).assign(model=label) for label, one in answers.items()]
            setattr(self, name, pd.concat(frames, ignore_index=True))
        self.items["contaminated"] = analysis.flags(self.items, self.leaks)
        self.items = self.items[ITEM_COLUMNS]
        self.measured = {label: {one.benchmark: one for one in found.measured} for label, found in answers.items()}
        return self.items

    def conclude(self) -> list[Metric]:
        """The study's numbers; they go into the run's record, which is then complete."""
        found = analysis.metrics(self)
        if not self.run.reused:
            for metric in found:
                self.run.metric(**metric.model_dump())
            self.run.items(self.items)
            for name in ("confidence", "variance", "leaks"):
                self.run.series(name, getattr(self, name))
            self.run.note(NOTE, note({label: several.values() for label, several in self.measured.items()}))
            self.run.note(MODELS, {label: fingerprint(spec) for label, spec in self.models.items()})
            self.run.complete()
        return found

    def _check_benchmarks(self) -> None:
        """Raise `ParameterError` for a benchmark that does not exist, before anything is trained."""
        from llamax.evaluation import definitions

        for name in self.config.limits:
            definitions.find(name)

    def _look_for_leaks(self) -> pd.DataFrame:
        """Items of the benchmarks that stand in the training data: benchmark, item, source."""
        small = self.config.suite == "nano"
        names, rows = ["nano"] if small else list(self.config.limits), []
        for source in self.config.training_data:
            report = contamination.check(source, contamination.benchmark_items(names), progress=True)
            for name in names:
                for item in sorted(contamination.flagged(report, name)):
                    rows.append((item.partition("/")[0] if small else name, item, source))
        return pd.DataFrame(rows, columns=["benchmark", "item", "source"])

    def _tune(self, tuning) -> None:
        """Train the candidate from the current model."""
        config, folder = self.config, self.run.scratch / CANDIDATE
        tokenizer = load_tokenizer(config.model, pad_token=config.pad_token)
        template = get_template(tuning.template, tokenizer)
        conversations = read(tuning.source, format=tuning.format, limit=tuning.max_examples)
        rows = build_rows(conversations, tokenizer, template, length=tuning.length, packing=True, over_long="reject")
        sweep(folder / "rows")
        if not (folder / "rows").exists():
            rows.save(folder / "rows")
        settings = tuning.train.model_copy(update={"seed": config.seed})
        job = Job(
            model=config.model, pad_token=config.pad_token, rows=str(folder / "rows"), train=settings, out=str(folder),
            template=template.fingerprint,
        )  # fmt: skip
        with Progress(count_steps(rows, settings), "tune the candidate") as bar:
            history = train(job, on_step=lambda s: bar.reach(s.step + 1, loss=s.loss))
        parameters = shape_of(load_config(config.model).to_dict()).parameters
        flops = training_flops(parameters, history.tokens, lora=settings.lora is not None)
        self.run.cost(tokens=history.tokens, flops=flops, seconds=history.earlier_seconds)
        self.run.series("curve", history.frame())

    # -- one model ----------------------------------------------------------------------------------------------------

    def _model(self, label: str) -> Answers:
        """All tables of one model, read back from its folder if it has finished before."""
        folder = self.run.scratch / label / "answers"
        if not (folder / "measured.json").exists():
            found = self._ask_nano(label) if self.config.suite == "nano" else self._ask_real(label)
            folder.mkdir(parents=True, exist_ok=True)
            with clear_disk_errors(folder):
                for name in TABLES:
                    getattr(found, name).to_parquet(folder / f"{name}.parquet")
            done = [one.model_dump(mode="json") for one in found.measured]
            write_atomic(folder / "measured.json", json.dumps(done))
            gc.collect()
            torch.cuda.empty_cache()
        done = json.loads((folder / "measured.json").read_text())
        tables = (pd.read_parquet(folder / f"{name}.parquet") for name in TABLES)
        return Answers(*tables, [Measured.parse(one) for one in done])

    def _load(self, label: str) -> Loaded:
        loaded = load(self.models[label], dtype=DTYPES[self.config.precision], pad_token=self.config.pad_token)
        loaded.model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        return loaded

    def _checked(self) -> dict:
        """What `Measured` says of contamination."""
        data = self.config.training_data
        return {"contamination": "checked" if data else "unchecked", "training_data": data}

    def _ask_nano(self, label: str) -> Answers:
        """The small world's suite, in the plain protocol: once as defined, then in other words and by other seeds."""
        config, loaded = self.config, self._load(label)
        table = self._nano_table(loaded, config.limits, f"evaluate {label}")
        items = table.rename(columns={"task": "benchmark"}).assign(sample=0)
        confidence = items[items.confidence.notna()][analysis.CONFIDENCE]
        variance = [analysis.one_setting(items[items.benchmark.isin(config.variance.limits)], "", "")[:0]]
        for kind, setting, limits, changes in self._nano_settings():
            again = self._nano_table(loaded, limits, f"{label}, {kind} {setting}", **changes)
            variance.append(analysis.one_setting(again.rename(columns={"task": "benchmark"}), kind, setting))
        return Answers(items, confidence, pd.concat(variance), self._nano_measured(items))

    def _nano_settings(self) -> list[tuple[str, str, dict, dict]]:
        """(kind, name, items, arguments of `nano.evaluate`) of every setting that the variance is measured over.

        A seed moves answers that are sampled, and no choices.
        """
        wanted = self.config.variance
        said = {task: limit for task, limit in wanted.limits.items() if task in nano.MAX_NEW_TOKENS}
        found = [("wording", name, wanted.limits, {"wording": name}) for name in wanted.wordings if wanted.limits]
        for seed in range(wanted.seeds if said else 0):
            found.append(("seed", str(seed), said, {"temperature": wanted.temperature, "seed": seed}))
        return found

    def _nano_table(self, loaded: Loaded, limits: dict, label: str, **changes) -> pd.DataFrame:
        chosen = nano.select(limits or dict.fromkeys(NANO))
        print(f"{label}: {len(chosen)} items", flush=True)
        return nano.evaluate(*loaded, chosen, protocol="plain", batch_size=self.config.batch_size, **changes)

    def _nano_measured(self, items: pd.DataFrame) -> list[Measured]:
        totals = pd.Series([item.task for item in test_items()]).value_counts()
        return [
            Measured(
                benchmark=name, metric=nano.METRICS[name], protocol="nano", prompts=sha256_json(wordings.NANO), shots=0,
                max_new_tokens=nano.MAX_NEW_TOKENS.get(name), items=len(rows), total=int(totals[name]),
                item_set=item_set(rows.item), precision=self.config.precision, **self._checked(),
            )
            for name, rows in items.groupby("benchmark", sort=False)
        ]  # fmt: skip

    def _ask_real(self, label: str) -> Answers:
        """Real benchmarks; what was answered before, by however many ranks, is read from the journal."""
        from llamax.evaluation import harness

        with self._backend(label) as backend:
            parts = [part for name, limit in self.config.limits.items() for part in self._parts(name, limit)]
            harness.respond(backend, parts)
            variance = self._real_variance(label, backend)
        items = pd.DataFrame([row for part in parts for row in harness.outcomes(part, progress=True)])
        confidence = [row for part in parts for row in harness.confidences(part)]
        measured = harness.measured(parts, precision=self.config.precision)
        checked = [one.model_copy(update=self._checked()) for one in measured]
        return Answers(items, pd.DataFrame(confidence, columns=analysis.CONFIDENCE), variance, checked)

    def _real_variance(self, label: str, backend) -> pd.DataFrame:
        """Outcomes of part of the items in other words, and with other examples where they are drawn."""
        from llamax.evaluation import harness

        found = [pd.DataFrame(columns=analysis.VARIANCE)]
        for kind, setting, changes in self._real_settings():
            for name, limit in self.config.variance.limits.items():
                parts = self._parts(name, limit, **changes)
                if kind == "seed" and not any(harness.draws_examples(part.task) for part in parts):
                    continue
                print(f"{label}, {kind} {setting}: {name}", flush=True)
                harness.respond(backend, parts)
                rows = pd.DataFrame([row for part in parts for row in harness.outcomes(part, progress=True)])
                found.append(analysis.one_setting(rows[rows.metric == harness.headline(name)], kind, setting))
        return pd.concat(found)

    def _parts(self, name: str, limit: int | None, **changes) -> list:
        """A benchmark's prompts."""
        from llamax.evaluation.definitions import Settings, find
        from llamax.evaluation.harness import prepare

        config = self.config
        sampled = {"samples": config.samples, "temperature": config.temperature} if find(name).extras.judge else {}
        settings = {
            "protocol": config.protocol, "shots": config.shots, "max_new_tokens": config.max_new_tokens,
            "seed": config.seed,
        }  # fmt: skip
        return prepare(name, limit, Settings(**settings | sampled | changes))

    def _real_settings(self) -> list[tuple[str, str, dict]]:
        """(kind, name, changes of `Settings`) of every setting that the variance is measured over."""
        wanted = self.config.variance
        found = [("wording", name, {"wording": name}) for name in wanted.wordings]
        return found + [("seed", str(seed), {"examples_seed": seed}) for seed in range(wanted.seeds)]

    @contextlib.contextmanager
    def _backend(self, label: str):
        """A model that lm-eval's tasks can ask: in this process, or one per rank while the block lasts."""
        from llamax.evaluation.backend import Backend
        from llamax.evaluation.engines import TorchEngine, VllmEngine
        from llamax.evaluation.journal import Journal, Journaled
        from llamax.evaluation.ranks import RankedEngine

        config, spec = self.config, self.models[label]
        identity = f"{fingerprint(spec)} {config.precision} {config.engine}"
        journal = Journal(self.run.scratch / label / "journal", identity, writer="here")
        with contextlib.ExitStack() as stack:
            if config.engine == "vllm":
                engine = VllmEngine(
                    spec, load_tokenizer(spec, pad_token=config.pad_token), dtype=VLLM[config.precision]
                )
            elif (count := ranks()) == 1:
                engine = TorchEngine(*self._load(label), batch_size=config.batch_size, progress=True)
            else:
                tokenizer = load_tokenizer(spec, pad_token=config.pad_token)
                engine = RankedEngine(
                    spec, tokenizer, load_config(spec).max_position_embeddings, journal, ranks=count,
                    precision=config.precision, pad_token=config.pad_token, batch_size=config.batch_size, progress=True,
                )  # fmt: skip
                stack.callback(engine.close)
            yield Backend(Journaled(engine, journal), seed=config.seed)


def ranks() -> int:
    """How many processes share a list of requests: `LLAMAX_RANKS`, else one for each GPU that is visible, else one.

    It is no parameter of a run: the answers do not depend on it, and any number goes on with what others began.
    Raises: ParameterError: not a number from 1.
    """
    wanted = os.environ.get("LLAMAX_RANKS") or str(max(1, torch.cuda.device_count()))
    if not wanted.isdecimal() or int(wanted) < 1:
        raise ParameterError(f"LLAMAX_RANKS={wanted}: want a number of processes from 1")
    return int(wanted)
