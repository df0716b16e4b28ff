"""The command line: run notebooks, look at results, build papers.

Every command imports what it needs when it is called, so that `--help` and `status` answer at once. An error that is
the input's fault is one line on stderr and exit status 2; Ctrl-C is exit status 130.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llamax.errors import LlamaxError, ParameterError, RunError

if TYPE_CHECKING:
    import pandas as pd

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Llama-X: run research notebooks, look at their results, build papers from them.",
)
paper = typer.Typer(no_args_is_help=True, help="Build a paper from recorded results, or check it.")
pretrain = typer.Typer(no_args_is_help=True, help="Pre-train a model; make the one that we ship.")
data = typer.Typer(no_args_is_help=True, help="Look at data before training on it.")
app.add_typer(paper, name="paper")
app.add_typer(pretrain, name="pretrain")
app.add_typer(data, name="data")
human = typer.Typer(no_args_is_help=True, help="Blind side-by-side human evaluation: plan it, serve it, analyse it.")
app.add_typer(human, name="human-eval")


def main() -> None:
    """Entry point of the `llamax` command."""
    try:
        app()
    except (LlamaxError, OSError) as error:  # an OSError nobody foresaw: a folder that may not be read, and the like
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(2)


def one_line(error: object) -> str:
    """What `error`, or a text, says, on one line."""
    return " ".join(str(error).split())


@app.command()
def run(
    direction: Annotated[str, typer.Argument(help="a direction, such as instruction_tuning, or all")],
    profile: Annotated[str, typer.Option(help="notebooks/profiles/<name>.yaml")] = "nano",
    seed: Annotated[int, typer.Option(help="seed of data order, initialisation and sampling")] = 0,
    parameter: Annotated[
        list[str] | None, typer.Option("-p", "--parameter", help="name=value; the name may be dotted", metavar="K=V")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="compute again what is there, and replace it")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="compute again what is there, and compare")] = False,
    rehearse: Annotated[
        bool, typer.Option("--rehearse", help="a GPU profile on two CPU ranks, its model shrunk: a minute, no result")
    ] = False,
) -> None:
    """Run a direction's notebook; a run that is there already is returned at once."""
    from llamax.runs.directions import directions

    if force and verify:
        raise ParameterError("--force replaces what is published, --verify compares with it: choose one")
    overrides = read_overrides(parameter or [])
    profile, seed = overrides.pop("profile", profile), overrides.pop("seed", seed)
    if rehearse:
        from llamax.runs.rehearse import rehearse as rehearse_profile

        if force or verify:
            raise ParameterError("--rehearse leaves no result: --force and --verify have nothing to do with it")
        rehearse_profile(direction, profile, overrides, seed)
        return
    if direction != "all":
        _run_one(direction, profile, overrides, seed, force, verify)
        return
    failed = []
    for name in directions():
        try:
            _run_one(name, profile, overrides, seed, force, verify)
        except LlamaxError as error:
            print(f"{name}: failed: {one_line(error)}", file=sys.stderr)
            failed.append(name)
    if failed or not directions():
        raise RunError(f"failed: {', '.join(failed)}" if failed else "no notebooks to run in notebooks/")


@app.command()
def status() -> None:
    """Say of each run whether it is fresh, stale and why, failed, interrupted, running or missing.

    Of one that was submitted to Slurm: whether it is queued, running, preempted (waiting to go on) or cancelled.
    """
    from llamax.runs import Store
    from llamax.runs.submitted import merge, standings

    store = Store()
    rows = store.status()
    found, silence = standings(store, rows)
    rows = merge(rows, found)
    for row in rows:
        print(f"{row.direction:20} {row.run or f'{row.profile}-s{row.seed}':24} {row.state:12} {row.why}".rstrip())
    if not rows:
        print("no notebooks and no runs")
    if silence:
        print(f"{silence}: submitted runs are as they were last known", file=sys.stderr)


@app.command()
def submit(
    direction: Annotated[str, typer.Argument(help="a direction, such as instruction_tuning")],
    profile: Annotated[str, typer.Option(help="notebooks/profiles/<name>.yaml")] = "nano",
    seeds: Annotated[str, typer.Option(help="one run each: 0,1,2 or 0-4")] = "0",
    nodes: Annotated[int, typer.Option(help="nodes of each run")] = 1,
    gpus_per_node: Annotated[int, typer.Option(help="one rank each; 0: the profile's ranks, on CPUs")] = 0,
    time: Annotated[str, typer.Option(help="limit, as sbatch takes it; met, the run is requeued")] = "24:00:00",
    partition: Annotated[str | None, typer.Option(help="of Slurm")] = None,
    account: Annotated[str | None, typer.Option(help="of Slurm")] = None,
    qos: Annotated[str | None, typer.Option(help="of Slurm")] = None,
    mem: Annotated[str | None, typer.Option(help="host memory per node, such as 300G")] = None,
    cpus_per_task: Annotated[int | None, typer.Option(help="CPUs per node")] = None,
    requeues: Annotated[int, typer.Option(help="how often a run may meet its time limit and go on")] = 20,
    extra: Annotated[
        list[str] | None, typer.Option(help="any other of sbatch, repeatable", metavar="NAME=VALUE")
    ] = None,
    parameter: Annotated[
        list[str] | None, typer.Option("-p", "--parameter", help="name=value; the name may be dotted", metavar="K=V")
    ] = None,
) -> None:
    """Submit a run for each seed to Slurm, as one array; `llamax status` says how they stand.

    A run that is warned (preemption, time limit) is interrupted, requeued, and goes on from its newest checkpoint.
    """
    from llamax.runs import cluster

    asked = {
        "nodes": nodes, "gpus_per_node": gpus_per_node, "time": time, "partition": partition, "account": account,
        "qos": qos, "mem": mem, "cpus_per_task": cpus_per_task, "requeues": requeues,
        "extra": cluster.read_extra(extra or []),
    }  # fmt: skip
    resources = cluster.Resources.parse(asked, "llamax submit")
    overrides = read_overrides(parameter or [])
    if named := [name for name in ("profile", "seed") if name in overrides]:
        raise ParameterError(f"-p {named[0]}=...: give --{'seeds' if named[0] == 'seed' else 'profile'} instead")
    for seed, run, state, why in cluster.submit(direction, profile, cluster.read_seeds(seeds), overrides, resources):
        print(f"seed {seed:<4} {state:10} {direction}/{run}  {why}")


@app.command()
def results(
    direction: Annotated[str | None, typer.Argument(help="a direction; all of them when left out")] = None,
    profile: Annotated[str | None, typer.Option(help="only runs at this profile")] = None,
    metric: Annotated[str | None, typer.Option(help="only this metric")] = None,
    json: Annotated[bool, typer.Option("--json", help="as JSON, one object per metric of each run")] = False,
    csv: Annotated[bool, typer.Option("--csv", help="as CSV, one line per metric of each run")] = False,
) -> None:
    """Show what complete runs found; of runs with the same parameters the fresh one, else the newest."""
    from llamax.runs import Store
    from llamax.runs.directions import notebook_of

    if json and csv:
        raise ParameterError("--json and --csv are two forms: choose one")
    if direction is not None:
        notebook_of(direction)  # which says what there is, if it is none
    store = Store()
    frame = store.results(direction, profile, metric)
    if json:
        print(frame.to_json(orient="records", indent=1))
    elif csv:
        print(frame.to_csv(index=False), end="")
    elif frame.empty:
        asked = {"direction": direction, "profile": profile, "metric": metric}
        named = ", ".join(f"{what} {value}" for what, value in asked.items() if value)
        print(f"no complete run{' with ' + named if named else ''}: see `llamax status`")
    else:
        fresh = {(row.direction, row.run): row.state == "fresh" for row in store.status()}
        for (name, run_id), group in frame.groupby(["direction", "run"], sort=False):
            print(f"\n{name}/{run_id}{'' if fresh.get((name, run_id)) else '  (stale: see `llamax status`)'}")
            print(table(group))


@app.command()
def compare(
    a: Annotated[str, typer.Argument(help="a CSV, JSONL, JSON or Parquet file, or a run[:MODEL or :COLUMN=VALUE]")],
    b: Annotated[str, typer.Argument(help="another on the same items; differences are B minus A")],
    cluster: Annotated[str | None, typer.Option(help="column: what items share, such as subject")] = None,
    item: Annotated[list[str] | None, typer.Option(help="column: an item's id (repeat it for several)")] = None,
    outcome: Annotated[str, typer.Option(help="column: a number, true or false")] = "outcome",
    sample: Annotated[str | None, typer.Option(help="column: numbers answers to one item; averaged")] = None,
    where: Annotated[
        list[str] | None, typer.Option(help="keep only these rows of both", metavar="COLUMN=VALUE")
    ] = None,
    benchmark: Annotated[str | None, typer.Option(help="short for --where benchmark=...")] = None,
    metric: Annotated[str | None, typer.Option(help="short for --where metric=...")] = None,
    margin: Annotated[float, typer.Option(help="gain to be exceeded, in points for outcomes in 0..1")] = 0.0,
    common: Annotated[bool, typer.Option("--common", help="leave out items that only one has")] = False,
    json: Annotated[bool, typer.Option("--json", help="as one JSON object")] = False,
) -> None:
    """Compare two systems item by item: difference, standard errors, tests, and what could be shown at all."""
    from json import dumps

    from llamax.runs.parameters import read_pairs
    from llamax.runs.per_item import Columns, pair, read_items
    from llamax.statistics import comparison

    wanted = [*(where or []), *_conditions(benchmark=benchmark, metric=metric)]
    kept = read_pairs(wanted, "--where", "filter=strict-match")
    columns = Columns(tuple(item or ["item"]), outcome, cluster, sample)
    pairs = pair(read_items(a, columns, kept), read_items(b, columns, kept), common=common)
    if cluster is not None and pairs.clusters is None:
        raise ParameterError(f"--cluster {cluster}: neither {a} nor {b} has such a column")
    found = comparison.compare_outcomes(*pairs.outcomes, pairs.clusters, margin=margin)
    if json:
        print(dumps(comparison.as_json(found, pairs.names, pairs.only), indent=1, ensure_ascii=False))
        return
    if any(pairs.only):
        print(f"left out: {pairs.only[0]} items only in {a}, {pairs.only[1]} only in {b}", file=sys.stderr)
    print(comparison.as_table(found, pairs.names, cluster))


@app.command()
def gate(
    candidate: Annotated[str, typer.Argument(help="direction/run of an evaluation, or direction/run:model")],
    against: Annotated[str, typer.Option(help="the current version's, likewise")],
    version: Annotated[str | None, typer.Option(help="which version it would be, such as 3.0.1")] = None,
    human: Annotated[Path | None, typer.Option(help="analysis of a human evaluation (JSON)")] = None,
    scores: Annotated[Path | None, typer.Option(help="its scores under a reference protocol (YAML)")] = None,
    rehearse: Annotated[bool, typer.Option("--rehearse", help="allow parts of benchmarks; no version moves")] = False,
    json: Annotated[bool, typer.Option("--json", help="the verdict as JSON")] = False,
) -> None:
    """Decide whether a candidate is better than the current version on every required benchmark.

    Exit status: 0 accept; 1 reject or undecided (`answer` in the JSON says which); 2 refused, with the reason.
    """
    from llamax.runs import Store, records
    from llamax.versions import gate as gates
    from llamax.versions import show, verdicts

    store = Store()
    verdict = gates.gate(
        candidate, against, version=version, rehearse=rehearse, human=human, scores=scores, store=store
    )
    verdict = verdicts.write(verdict, store)
    print(verdict.model_dump_json(indent=1) if json else show.verdict_text(verdict))
    print(f"written: {records.shown(verdicts.folder(store) / verdict.name / verdicts.NAME)}", file=sys.stderr)
    if verdict.answer != "accept":
        raise typer.Exit(1)


@app.command()
def plan(
    gpus: Annotated[str, typer.Option(help="such as 8xV100-32GB, or 3x8xA100-40GB for three nodes")],
    profile: Annotated[str, typer.Option(help="notebooks/profiles/<name>.yaml")] = "7b",
    direction: Annotated[str, typer.Option(help="whose section of the profile")] = "instruction_tuning",
    host_memory: Annotated[str | None, typer.Option(help="of one node, such as 300GB")] = None,
    disk: Annotated[str | None, typer.Option(help="free disk, such as 2TB")] = None,
    model: Annotated[str | None, typer.Option(help="a shape (llama-2-70b), a config.json or a model folder")] = None,
    method: Annotated[str | None, typer.Option(help="full or lora; the profile's first when left out")] = None,
    examples: Annotated[int | None, typer.Option(help="documents of an epoch", min=1)] = None,
    mean_tokens: Annotated[float | None, typer.Option(help="tokens of a document, on average", min=1)] = None,
    tokens: Annotated[int | None, typer.Option(help="tokens of an epoch", min=1)] = None,
    mfu: Annotated[float | None, typer.Option(help="share of the GPU's peak, in place of the assumed one")] = None,
    parameter: Annotated[
        list[str] | None, typer.Option("-p", "--parameter", help="name=value; the name may be dotted", metavar="K=V")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="as one JSON object, sizes in bytes")] = False,
) -> None:
    """Say what a training will need: memory of GPUs and hosts, disk, operations, time; and whether it fits.

    Exit status: 0 it fits; 1 it does not, and the smallest change that does is named.
    """
    from json import dumps

    from llamax.runs.planning import plan_profile
    from llamax.training.plan import as_json, parse_hardware, report

    found = plan_profile(
        parse_hardware(gpus, host_memory, disk), direction=direction, profile=profile, model=model, method=method,
        overrides=read_overrides(parameter or []), examples=examples, mean_tokens=mean_tokens, tokens=tokens, mfu=mfu,
    )  # fmt: skip
    print(dumps(as_json(found), indent=1) if json else report(found))
    if found.verdict.answer == "does not fit":
        raise typer.Exit(1)


@app.command()
def execute(
    file: Annotated[str, typer.Argument(help="a Python program; - for standard input")],
    timeout: Annotated[float, typer.Option(help="seconds, of wall and of CPU time", min=0.1)] = 20.0,
    memory: Annotated[int, typer.Option(help="MiB, of all its processes together", min=16)] = 1024,
    processes: Annotated[int, typer.Option(help="processes and threads", min=1)] = 16,
    disk: Annotated[int, typer.Option(help="MiB of files in its own folder", min=1)] = 64,
) -> None:
    """Run a program shut in, without network and files; say how it ended and what it was refused. Status 0 if ok."""
    from llamax.sandbox import Limits
    from llamax.sandbox import execute as run_shut_in

    if Path(file).is_dir():
        raise ParameterError(f"{file}: is a folder; give a Python program, or - for standard input")
    if file != "-" and not Path(file).is_file():
        raise ParameterError(f"{file}: no such file; give a Python program, or - for standard input")
    program = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    limits = Limits(wall=timeout, cpu=timeout, memory=memory << 20, processes=processes, disk=disk << 20)
    result = run_shut_in(program, limits)
    print(result.stdout, end="", flush=True)
    print(result.stderr, end="", file=sys.stderr, flush=True)
    used = f"{result.seconds:.2f} s, {result.memory / 2**20:.0f} MiB"
    print(f"status: {result.status}{f' ({result.detail})' if result.detail else ''}; {used}", file=sys.stderr)
    for refused in result.denied:
        print(f"refused: {one_line(refused)}", file=sys.stderr)
    if result.status != "ok":
        raise typer.Exit(1)


@app.command()
def versions(
    gap: Annotated[str | None, typer.Option(help="a run, or a YAML file of scores: where is it on the ladder?")] = None,
    under: Annotated[str | None, typer.Option(help="with --gap: name of the reference scores")] = None,
    references: Annotated[Path | None, typer.Option(help="with --gap: a YAML file of more reference scores")] = None,
    scores: Annotated[bool, typer.Option("--scores", help="quote all reference scores with their sources")] = False,
    json: Annotated[bool, typer.Option("--json", help="as JSON")] = False,
) -> None:
    """Show the ladder from 3.0.0 to 4.0.0 and how far verdicts have carried it, or where scores stand on it."""
    from json import dumps

    from llamax.runs import Store
    from llamax.versions import references as quoted
    from llamax.versions import show

    if (under or references) and gap is None:
        raise ParameterError("--under and --references say what to place --gap's scores among: give --gap as well")
    if gap is not None:
        found, position = show.gap(gap, Store(), under=under, file=references)
        values = {"scores": found.model_dump(), "position": position and position.model_dump()}
        text = "" if json else show.gap_text(found, position)
    elif scores:
        values = [one.model_dump() for one in quoted.references()]
        text = show.references_text()
    else:
        values = [row._asdict() for row in show.standings(Store())]
        text = show.ladder_text(Store())
    print(dumps(values, indent=1) if json else text)


@app.command()
def doctor() -> None:
    """Say what this machine has: Python, torch, a GPU, gradio, local data, and what shuts programs in."""
    from llamax.sandbox.doctor import findings

    for name, finding in findings():
        print(f"{name + ':':13} {finding}")


@paper.command("build")
def paper_build(
    version: Annotated[str, typer.Argument(help="a folder of papers/, such as 3.0.1")],
    strict: Annotated[bool, typer.Option("--strict", help="refuse stale results")] = False,
) -> None:
    """Make the PDF, the HTML and the LaTeX of a paper."""
    from llamax.papers.build import build_paper
    from llamax.runs import records

    for path in build_paper(version, strict=strict):
        print(records.shown(path))


@paper.command("check")
def paper_check(
    version: Annotated[str, typer.Argument(help="a folder of papers/, such as 3.0.1")],
    strict: Annotated[bool, typer.Option("--strict", help="refuse stale results")] = False,
) -> None:
    """Check a paper's numbers, claims and references without writing anything."""
    from llamax.papers.build import check_paper

    check_paper(version, strict=strict)
    print(f"paper {version}: every number, claim and reference holds")


@pretrain.command("nano")
def pretrain_nano(
    out: Annotated[Path | None, typer.Option(help="folder to work in; runs/pretrain_nano when left out")] = None,
    seed: Annotated[int, typer.Option(help="seed of texts, weights and order", min=0, max=2**32 - 1)] = 0,
) -> None:
    """Make the nano model again, tokenizer included, by its documented recipe."""
    from llamax import files
    from llamax.models import nano

    def report(step: Any) -> None:
        if step.step % 50 == 0:
            print(f"step {step.step}  loss {step.loss:.3f}  rate {step.learning_rate:.2g}", file=sys.stderr, flush=True)

    folder, _ = nano.pretrain_nano(out or files.repository() / "runs" / "pretrain_nano", seed=seed, on_step=report)
    print(f"{folder}: copy it over src/llamax/models/nano/ to ship it")


@pretrain.command("run")
def pretrain_run(
    config: Annotated[Path | None, typer.Argument(help="a YAML file of parameters; options go before it")] = None,
    out: Annotated[Path | None, typer.Option(help="folder to work in; the same command goes on there")] = None,
    model: Annotated[str | None, typer.Option(help="to go on from; with --from-scratch: whose shape to take")] = None,
    data: Annotated[
        list[str] | None, typer.Option(help="file, folder of files, or shards; repeat it", metavar="PATH[=WEIGHT]")
    ] = None,
    tokens: Annotated[int | None, typer.Option(help="to train on; one epoch when left out", min=1)] = None,
    from_scratch: Annotated[bool, typer.Option("--from-scratch", help="begin with random weights")] = False,
    parameter: Annotated[
        list[str] | None, typer.Option("-p", "--parameter", help="name=value, such as train.seed=1", metavar="K=V")
    ] = None,
) -> None:
    """Pre-train a model on text, from scratch or continued; killed, the same command goes on to the bit."""
    from llamax.training import pretrain_command

    if out is None:
        raise ParameterError("--out is missing: name a folder to work in")
    options = {"model": model, "data": data, "tokens": tokens, "from_scratch": from_scratch or None}
    pretrain_command.run(config, out, options, read_overrides(parameter or []))


@app.command()
def contamination(
    source: Annotated[str, typer.Argument(help="training data: a named source (data_cards/), a file or a hub id")],
    against: Annotated[str, typer.Option(help="benchmarks, with commas between; all: those of Type A")] = "all",
    split: Annotated[str, typer.Option(help="of a named source or a hub id")] = "train",
    fields: Annotated[str, typer.Option(help="take the text from these fields of a row, with commas between")] = "",
    rule: Annotated[str, typer.Option(help="which items are listed and left out")] = "ngram_13_or_question",
    outcomes: Annotated[Path | None, typer.Option(help="a run's items.parquet: its scores without those items")] = None,
    json: Annotated[bool, typer.Option("--json", help="as JSON: the summary and every item with a hit")] = False,
    out: Annotated[Path | None, typer.Option(help="folder for report.json, items.parquet and rows.parquet")] = None,
    decontaminate: Annotated[Path | None, typer.Option(help="folder for the data without the rows that leak")] = None,
) -> None:
    """Say which test items a training set holds: common 13-grams and 8-grams, and whole questions."""
    from llamax.evaluation.contamination import command

    named = [name.strip() for name in fields.split(",") if name.strip()]
    if fields and not named:
        raise ParameterError(f"--fields {fields!r}: names no field; give some with commas between, or leave it out")
    command.run(source, against, split, named, rule, outcomes=outcomes, json=json, out=out, clean=decontaminate)


@data.command("shards")
def data_shards(
    files: Annotated[list[Path], typer.Argument(help=".txt, .jsonl, .json (also .gz) or .parquet; folders of them")],
    out: Annotated[Path, typer.Option(help="folder for the shards; the same command goes on there")],
    tokenizer: Annotated[str, typer.Option(help="nano, smol, a folder or a hub id")],
    field: Annotated[str, typer.Option(help="of a row, that holds the text")] = "text",
    split: Annotated[str, typer.Option(help="a document of a .txt is a: file, paragraph, line")] = "file",
    shard_tokens: Annotated[int, typer.Option(help="tokens of a shard", min=2)] = 1 << 26,
) -> None:
    """Tokenize text into shards to pre-train on; what is finished and whole is not made again.

    An input counts as unchanged by its size, time of change and first and last MiB.
    """
    from llamax.data.shards import shard_files
    from llamax.models.load import load_tokenizer
    from llamax.training.pretrain import text_files

    if split not in ("file", "paragraph", "line"):
        raise ParameterError(f"--split {split}: should be file, paragraph or line")
    found = [file for path in files for file in text_files(path)]
    loaded = load_tokenizer(tokenizer)
    print(f"{out}: {shard_files(found, loaded, out, shard_tokens=shard_tokens, field=field, split=split)}")


@data.command("inspect")
def data_inspect(
    source: Annotated[str, typer.Argument(help="a named source (data_cards/), a file, a folder or a hub id")],
    format: Annotated[str, typer.Option(help="alpaca, sharegpt, messages, ...")] = "auto",
    limit: Annotated[int | None, typer.Option(help="read only so many conversations", min=1)] = None,
) -> None:
    """Read a source, count what is in it, or name its first faults."""
    from llamax.data.sources import read

    conversations = read(source, format=format, limit=limit)
    turns = [message.role for conversation in conversations for message in conversation.messages]
    counts = ", ".join(f"{turns.count(role)} {role}" for role in dict.fromkeys(turns))
    print(f"{source}: {len(conversations)} conversations, {len(turns)} messages ({counts}); the first:")
    for message in conversations[0].messages:
        print(f"  {message.role}: {one_line(message.content)}")


@human.command("answers")
def human_answers(
    model: Annotated[str, typer.Argument(help="nano, smol, a folder or a hub id")],
    out: Annotated[Path, typer.Option(help="the .jsonl file to write")],
    prompts: Annotated[str, typer.Option(help="nano, mt_bench, self_instruct or a .jsonl file")] = "nano",
    turns: Annotated[int, typer.Option(help="user turns of each prompt (MT-bench has 2)", min=1)] = 1,
    limit: Annotated[int | None, typer.Option(help="only the first so many prompts", min=1)] = None,
    template: Annotated[str, typer.Option(help="chat template that the model was trained with")] = "chatml",
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 512,
    temperature: Annotated[float, typer.Option(help="0 is greedy", min=0)] = 0.0,
    seed: Annotated[int, typer.Option(help="of sampling")] = 0,
    batch_size: Annotated[int, typer.Option(min=1)] = 16,
) -> None:
    """Let a model answer the prompts."""
    from llamax.evaluation.human.answers import generate_answers, write_answers
    from llamax.evaluation.human.prompts import read_prompts

    if out.suffix != ".jsonl" or out.is_dir():
        raise ParameterError(f"--out {out}: should be a file whose name ends in .jsonl")
    asked = read_prompts(prompts, turns=turns, limit=limit)
    said = generate_answers(
        model, asked, template=template, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed,
        batch_size=batch_size,
    )  # fmt: skip
    print(f"{write_answers(out, said)}: answers of {model} to {len(said)} prompts")


@human.command("plan")
def human_plan(
    answers: Annotated[
        list[str] | None,
        typer.Argument(help="NAME=FILE of the candidate, of the current model, and of others", metavar="NAME=FILE"),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="folder of the study; nothing is written without answers")] = None,
    prompts: Annotated[str, typer.Option(help="nano, mt_bench, self_instruct or a .jsonl file")] = "nano",
    turns: Annotated[int, typer.Option(help="user turns of each prompt (MT-bench has 2)", min=1)] = 1,
    limit: Annotated[int | None, typer.Option(help="draw only from the first so many prompts", min=1)] = None,
    win_rate: Annotated[float, typer.Option(help="to be told from 0.5")] = 0.55,
    power: Annotated[float, typer.Option(help="probability to do so")] = 0.8,
    level: Annotated[float, typer.Option(help="of the test")] = 0.05,
    sides: Annotated[int, typer.Option(help="1: is the candidate better; 2: do they differ")] = 1,
    ties: Annotated[float, typer.Option(help="share of votes for neither")] = 0.33,
    raters_per_prompt: Annotated[int, typer.Option(help="2 or more to see how far they agree")] = 2,
    prompt_correlation: Annotated[float, typer.Option(help="of two votes on one prompt")] = 0.25,
    rater_correlation: Annotated[float, typer.Option(help="of two votes of one rater")] = 0.01,
    votes_per_rater: Annotated[int, typer.Option(help="how many one person is asked for")] = 100,
    raters: Annotated[int | None, typer.Option(help="how many people there are")] = None,
    seed: Annotated[int, typer.Option(help="of the draw of prompts, orders and sides")] = 0,
) -> None:
    """Say how many prompts and raters it takes; with two models' answers, write the plan of the study."""
    from llamax.evaluation.human import plan as planning

    design = planning.Design.parse(
        {
            "win_rate": win_rate, "power": power, "level": level, "sides": sides, "ties": ties, "raters": raters,
            "raters_per_prompt": raters_per_prompt, "prompt_correlation": prompt_correlation,
            "rater_correlation": rater_correlation, "votes_per_rater": votes_per_rater,
        }
    )  # fmt: skip
    if not answers:
        print("\n".join(planning.describe(design)))
        return
    if out is None:
        raise ParameterError("--out is missing: name the folder of the study")
    named = [tuple(pair.split("=", 1)) if "=" in pair else (Path(pair).stem, pair) for pair in answers]
    before = (out / planning.FILE).is_file()
    study = planning.make_plan(out, named, source=prompts, turns=turns, limit=limit, design=design, seed=seed)
    print("\n".join(planning.describe_plan(study)))
    if before:
        print("the plan that was there, by which nobody had voted, is replaced", file=sys.stderr)
    print(f"{out / planning.FILE}: {study.plan.names[0]} (candidate) against {', '.join(study.plan.names[1:])}")


@human.command("serve")
def human_serve(
    study: Annotated[Path, typer.Argument(help="folder of the study")],
    host: Annotated[str, typer.Option(help="0.0.0.0 lets other machines in")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 7860,
) -> None:
    """Serve the rating page; every vote is on the disk before the next pair is shown."""
    from llamax.evaluation.human.plan import read_study

    found = read_study(study)
    from llamax.evaluation.human.page import serve  # seconds of imports, once the study is known to be in order

    serve(found, host=host, port=port)


@human.command("analyse")
def human_analyse(
    study: Annotated[Path, typer.Argument(help="folder of the study")],
    json: Annotated[bool, typer.Option("--json", help="print the analysis as JSON")] = False,
) -> None:
    """Win rate, agreement, position bias; written as analysis.json, which the gate reads."""
    from llamax.evaluation.human.analyse import analyse, report, write

    found = analyse(study)
    path = write(study, found)
    print(path.read_text(), end="") if json else print(f"{report(found)}\n{path}")


def _conditions(**named: str | None) -> list[str]:
    """Options that have names of their own, as conditions."""
    return [f"{name}={value}" for name, value in named.items() if value is not None]


def read_overrides(pairs: list[str]) -> dict[str, Any]:
    """`["learning_rate=1e-4", ...]` as a mapping. Raises: ParameterError: a pair without `=`, or a name given twice."""
    from llamax.runs.parameters import read_pairs, read_value

    return {name: read_value(text) for name, text in read_pairs(pairs, "-p", "learning_rate=1e-4").items()}


def table(frame: "pd.DataFrame") -> str:
    """Metrics as aligned lines: name, value ± standard error, 95% interval, n, unit."""
    rows = [("metric", "value", "± s.e.", "95% interval", "n", "unit")]
    for row in frame.itertuples():
        known = row.low == row.low and row.low is not None
        rows.append(
            (
                row.metric,
                _number(row.value),
                _number(row.standard_error),
                f"[{_number(row.low)}, {_number(row.high)}]" if known else "",
                "" if row.n != row.n or row.n is None else f"{row.n:.0f}",
                row.unit,
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    right = {1, 2, 4}
    lines = [
        "  ".join(text.rjust(width) if i in right else text.ljust(width) for i, (text, width) in enumerate(cells))
        for cells in ([*zip(row, widths, strict=True)] for row in rows)
    ]
    return "\n".join(line.rstrip() for line in lines)


def _number(value: float | None) -> str:
    return "" if value is None or value != value else f"{value:.4g}"


def _run_one(direction: str, profile: str, overrides: dict[str, Any], seed: int, force: bool, verify: bool) -> None:
    """Run one direction and say where its record is, or whether it repeats the published one."""
    import time

    from llamax.runs import Store, compare
    from llamax.runs.notebook import execute
    from llamax.runs.store import UNRECORDED

    start = time.perf_counter()
    record = execute(direction, profile, overrides, seed, force=force, verify=verify)
    seconds = time.perf_counter() - start
    where = "runs" if record.profile == UNRECORDED else "results"
    print(f"{record.status}: {where}/{record.direction}/{record.run} ({len(record.metrics)} metrics, {seconds:.1f} s)")
    published = Store().find(record.key) if verify else None
    if published and published.started != record.started:
        found = compare(published, record)
        print(found)
        if found.different:
            raise RunError(f"{record.direction}/{record.run}: not reproduced: {found}")
