"""Direction 01 from data to evidence: one base model, methods x replicates of training, one evaluation for all of them.

Every arm (a model that is evaluated) keeps its work in the run's scratch folder: rows, checkpoints, the trained
model, its outcomes. An interrupted study goes on where it was: finished arms are read back, an unfinished training
resumes from its last checkpoint.
"""

import gc
import json
import time
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch

from llamax.data.conversation import Message
from llamax.data.packing import PackingReport, build_rows, plain_text_rows
from llamax.data.render import render, render_prompt
from llamax.data.sources import read
from llamax.data.templates import get_template
from llamax.data.world import held_out_texts, test_items
from llamax.evaluation import nano
from llamax.files import clear_disk_errors, sweep, write_atomic
from llamax.generation.decode import generate
from llamax.generation.score import text_loss
from llamax.instruction_tuning import analysis
from llamax.instruction_tuning.config import TASKS, InstructionTuningConfig
from llamax.models.load import Loaded, load, load_tokenizer
from llamax.models.precision import DTYPES
from llamax.models.template import check_template
from llamax.progress import Progress, progress_over
from llamax.runs import Run
from llamax.runs.records import Metric
from llamax.training.config import Job
from llamax.training.history import training_flops
from llamax.training.launch import train
from llamax.training.loop import count_steps

PROMPTS = (  # shown side by side when the suite is a real benchmark, whose texts may not be printed
    "Name the three primary colours.",
    "Give two tips for staying healthy.",
    "Rewrite in the past tense: I walk to the market.",
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "Sort these numbers from small to large: 9, 2, 5.",
    "Is the following sentence positive or negative? I loved this film.",
    "Translate into Spanish: good morning.",
    "What is 7 plus 5?",
    "Explain in one sentence why the sky is blue.",
)


class Arm(NamedTuple):
    """One evaluated model: `base`, or the `replicate`-th training with `method`."""

    method: str
    replicate: int = 0

    @property
    def name(self) -> str:
        return f"{self.method}-{self.replicate}"


class Study:
    """The state of one study: config, run, data; `run_all` fills in items, curves and answers."""

    def __init__(self, config: InstructionTuningConfig, run: Run):
        self.config, self.run = config, run
        self.tokenizer = load_tokenizer(config.model, pad_token=config.pad_token)
        self.template = get_template(config.data.template, self.tokenizer)
        self.arms = [Arm("base"), *(Arm(m, r) for m in config.methods for r in range(config.replicates))]
        self.items, self.curves, self.answers = pd.DataFrame(), pd.DataFrame(), pd.DataFrame()

    # -- data ---------------------------------------------------------------------------------------------------------

    def prepare(self) -> PackingReport:
        """Read, render and pack the training data; say how many tokens are real, supervised and padded."""
        data = self.config.data
        conversations = read(data.source, format=data.format, limit=data.max_examples)
        self.example = conversations[0]
        self.rows = build_rows(
            conversations,
            self.tokenizer,
            self.template,
            length=data.length,
            packing=data.packing,
            over_long=data.over_long,
        )
        return self.rows.report()

    def show_example(self) -> str:
        """The first training conversation as the model sees it; what is learned stands in «angle quotes»."""
        rendered = render(self.example, self.tokenizer, self.template)
        parts, inside = [], False
        for token, learned in zip(rendered.input_ids, rendered.loss_mask, strict=True):
            parts.append(("«" if learned else "»") if learned != inside else "")
            parts.append(self.tokenizer.decode([token]))
            inside = learned
        return "".join(parts) + ("»" if inside else "")

    # -- the work -----------------------------------------------------------------------------------------------------

    def run_all(self) -> pd.DataFrame:
        """Train and evaluate every arm (or read back what is there); the outcome table of all of them."""
        if self.run.reused:
            self.items = self.run.load_items()
            self.curves, self.answers = (self.run.load_series(name) for name in ("curves", "answers"))
            return self.items
        done = [self._arm(arm) for arm in self.arms]
        self.items = pd.concat([arm["items"] for arm in done], ignore_index=True)
        self.curves = pd.concat([arm["curve"] for arm in done], ignore_index=True)
        self.answers = pd.concat([arm["answers"] for arm in done], ignore_index=True)
        return self.items

    def conclude(self) -> list[Metric]:
        """The study's numbers; they go into the run's record, which is then complete."""
        found = analysis.metrics(self.items)
        if not self.run.reused:
            for metric in found:
                self.run.metric(**metric.model_dump())
            self.run.items(self.items)
            self.run.series("curves", self.curves)
            self.run.series("answers", self.answers)
            self._note_protocol()
            self.run.note("packing", self.rows.report()._asdict())
            self.run.complete()
        return found

    def _note_protocol(self) -> None:
        """Record what a score of each real benchmark means."""
        wanted = self.config.evaluation
        if wanted.suite == "real":
            from llamax.evaluation.definitions import Settings, describe

            settings = Settings(max_new_tokens=wanted.max_new_tokens)
            self.run.note("protocol", {name: describe(name, settings) for name in wanted.limits})

    def _arm(self, arm: Arm) -> dict[str, pd.DataFrame]:
        """Tables `items`, `curve` and `answers` of one arm, read back from its folder if it has finished before.

        What it cost is read back too, so that a resumed run tells the whole.
        """
        folder, names = self.run.scratch / arm.name, ("items", "curve", "answers")
        resumed = (folder / "done.json").exists()
        if not resumed:
            self._compute(arm, folder, names)
        done = json.loads((folder / "done.json").read_text())
        seconds = done["seconds"] if resumed else done["earlier"]  # the run's own clock has the rest
        self.run.cost(tokens=done["tokens"], flops=done["flops"], seconds=seconds)
        return {name: pd.read_parquet(folder / f"{name}.parquet") for name in names}

    def _compute(self, arm: Arm, folder: Path, names: tuple[str, ...]) -> None:
        """Train, evaluate and ask one arm; its tables and `done.json`, written last, go into `folder`."""
        start = time.perf_counter()
        curve, earlier = (pd.DataFrame(), 0.0) if arm.method == "base" else self._train(arm, folder)
        loaded = self._load(arm, folder)
        tokens = int(curve.tokens.sum()) if len(curve) else 0
        flops = training_flops(loaded.model.num_parameters(), tokens, lora=arm.method == "lora")
        parts = dict(zip(names, (self._evaluate(arm, loaded), curve, self._answer(arm, loaded)), strict=True))
        del loaded
        gc.collect()
        torch.cuda.empty_cache()  # the next training's ranks want that memory; without a GPU this does nothing
        folder.mkdir(parents=True, exist_ok=True)
        with clear_disk_errors(folder):
            for name, frame in parts.items():
                frame.to_parquet(folder / f"{name}.parquet")
        whole = earlier + time.perf_counter() - start
        done = {"tokens": tokens, "flops": flops, "seconds": whole, "earlier": earlier}
        write_atomic(folder / "done.json", json.dumps(done))

    def _train(self, arm: Arm, folder: Path) -> tuple[pd.DataFrame, float]:
        """Train one arm and save its model under `folder`; its learning curve, one row per optimizer step, and the
        seconds of those that an interrupted attempt took."""
        settings = self.config.train_config(arm.method, arm.replicate)
        rows = self.run.scratch / "rows"
        if not rows.exists():
            sweep(rows)
            self.rows.save(rows)
        job = Job(
            model=self.config.model,
            pad_token=self.config.pad_token,
            rows=str(rows),
            train=settings,
            out=str(folder),
            template=self.template.fingerprint,
        )
        with Progress(count_steps(self.rows, settings), f"train {arm.name}") as bar:
            history = train(job, on_step=lambda s: bar.reach(s.step + 1, loss=s.loss, rate=s.learning_rate))
        return history.frame().assign(method=arm.method, replicate=arm.replicate), history.earlier_seconds

    def _load(self, arm: Arm, folder: Path) -> Loaded:
        """The arm's model as it was saved (what is measured is what would be published), on the fastest device."""
        spec = self.config.model if arm.method == "base" else str(folder / "model")
        if arm.method != "base":
            check_template(spec, self.template)
        dtype = DTYPES[self.config.evaluation.precision]
        loaded = load(spec, dtype=dtype, pad_token=self.config.pad_token)
        loaded.model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        return loaded

    def _evaluate(self, arm: Arm, loaded: Loaded) -> pd.DataFrame:
        """Outcomes of the whole suite and of the held-out plain text."""
        wanted = self.config.evaluation
        if wanted.suite == "nano":
            items = nano.select({task: wanted.limits.get(task) for task in TASKS["nano"]})
            parts = [
                nano.evaluate(
                    *loaded,
                    items,
                    protocol=p,
                    template=self.template if p == "chat" else None,
                    batch_size=wanted.batch_size,
                )
                for p in progress_over(wanted.protocols, f"evaluate {arm.name}")
            ]
            frame = pd.concat([part.assign(protocol=p) for part, p in zip(parts, wanted.protocols, strict=True)])
        else:
            frame = self._benchmarks(loaded)
        frame = pd.concat([frame, self._text_loss(loaded)], ignore_index=True)
        return frame.assign(method=arm.method, replicate=arm.replicate)[
            ["item", "task", "method", "protocol", "replicate", "outcome", "cluster"]
        ]

    def _benchmarks(self, loaded: Loaded) -> pd.DataFrame:
        """Outcomes of the real benchmarks under lm-eval's protocol, by the headline metric of each."""
        from llamax.evaluation.definitions import Settings, headline
        from llamax.evaluation.harness import evaluate_tasks

        wanted = self.config.evaluation
        settings = Settings(max_new_tokens=wanted.max_new_tokens)
        frame = evaluate_tasks(
            *loaded, wanted.limits, settings=settings, batch_size=wanted.batch_size, progress=True
        ).rename(columns={"benchmark": "task"})
        chosen = {name: headline(name) for name in wanted.limits}
        return frame[frame.metric == frame.task.map(chosen)].assign(protocol="lm-eval")

    def _text_loss(self, loaded: Loaded) -> pd.DataFrame:
        """Nats per token of each held-out document, cut to the row length; none of them is in any training text."""
        texts = held_out_texts()[: self.config.evaluation.text_documents]
        rows = plain_text_rows(texts, loaded.tokenizer, length=self.config.data.length)
        measured = text_loss(loaded.model, rows, loaded.tokenizer.pad_token_id)
        losses = measured.input_nats / measured.input_tokens
        names = [f"text-{number:04d}" for number in range(len(losses))]
        return pd.DataFrame(
            {"item": names, "task": analysis.TEXT, "protocol": "text", "outcome": losses, "cluster": names}
        )

    def _answer(self, arm: Arm, loaded: Loaded) -> pd.DataFrame:
        """Greedy answers to a few prompts that are ours to print."""
        prompts = self._prompts()
        ids = [render_prompt((Message(role="user", content=p),), loaded.tokenizer, self.template) for p in prompts]
        stop_ids, stop_strings = self.template.stop
        answers = generate(*loaded, ids, max_new_tokens=48, stop_ids=stop_ids, stop_strings=stop_strings)
        texts = [answer.text.strip() for answer in answers]
        return pd.DataFrame({"prompt": prompts, "arm": arm.name, "answer": texts})

    def _prompts(self) -> list[str]:
        """As many prompts as the profile shows: two of each nano task, or the general ones."""
        if self.config.evaluation.suite != "nano":
            return list(PROMPTS[: self.config.answers])
        by_task = pd.Series({item.question: item.task for item in test_items()})
        return by_task.groupby(by_task).head(2).index.tolist()[: self.config.answers]

    def show_answers(self) -> pd.DataFrame:
        """One row per prompt, one column per arm."""
        return self.answers.pivot(index="prompt", columns="arm", values="answer")
