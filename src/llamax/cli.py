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
pretrain = typer.Typer(no_args_is_help=True, help="Make the models that we ship.")
data = typer.Typer(no_args_is_help=True, help="Look at data before training on it.")
app.add_typer(paper, name="paper")
app.add_typer(pretrain, name="pretrain")
app.add_typer(data, name="data")


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
) -> None:
    """Run a direction's notebook; a run that is there already is returned at once."""
    from llamax.runs.directions import directions

    if force and verify:
        raise ParameterError("--force replaces what is published, --verify compares with it: choose one")
    overrides = read_overrides(parameter or [])
    profile, seed = overrides.pop("profile", profile), overrides.pop("seed", seed)
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
    """Say of each run whether it is fresh, stale and why, failed, interrupted, running or missing."""
    from llamax.runs import Store

    rows = Store().status()
    for row in rows:
        print(f"{row.direction:20} {row.run or f'{row.profile}-s{row.seed}':24} {row.state:12} {row.why}".rstrip())
    if not rows:
        print("no notebooks and no runs")


@app.command()
def results(
    direction: Annotated[str | None, typer.Argument(help="a direction; all of them when left out")] = None,
    profile: Annotated[str | None, typer.Option(help="only runs at this profile")] = None,
    metric: Annotated[str | None, typer.Option(help="only this metric")] = None,
    json: Annotated[bool, typer.Option("--json", help="as JSON, one object per metric of each run")] = False,
    csv: Annotated[bool, typer.Option("--csv", help="as CSV, one line per metric of each run")] = False,
) -> None:
    """Show what complete runs found; of runs with the same parameters, the newest."""
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


def read_overrides(pairs: list[str]) -> dict[str, Any]:
    """`["learning_rate=1e-4", ...]` as a mapping. Raises: ParameterError: a pair without `=`, or a name given twice."""
    from llamax.runs.parameters import read_value

    overrides: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name.strip():
            raise ParameterError(f"-p {pair!r}: write name=value, such as learning_rate=1e-4")
        if name.strip() in overrides:
            raise ParameterError(f"-p {name.strip()}: given twice")
        overrides[name.strip()] = read_value(text)
    return overrides


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
