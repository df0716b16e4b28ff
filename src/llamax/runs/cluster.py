"""Runs as jobs of Slurm, through submitit: one job per seed, submitted as one array.

A job does what `llamax run` does (`runs.task`), so that it makes the same single record. It is requeued on the warning
signal and goes on from its newest checkpoint. What is complete is not submitted again, what is on its way is named.
"""

import contextlib
import io
import re
import shutil
import sys
from collections.abc import Callable
from typing import Any, NamedTuple, Self

from pydantic import Field, model_validator

from llamax import files
from llamax.config import Config, Parameters
from llamax.errors import ParameterError, RunError
from llamax.runs import records, slurm, submitted
from llamax.runs.keys import Key, run_key
from llamax.runs.locks import is_held
from llamax.runs.parameters import parse_parameters, read_pairs
from llamax.runs.placement import spread
from llamax.runs.session import now, run_name
from llamax.runs.store import Store
from llamax.runs.submitted import Ticket
from llamax.runs.task import TO_STOP, Task

WARNING = 120
"""Seconds between the warning signal and the end of the time limit; Slurm may send it up to a minute early."""
OURS = {"array", "output", "error", "open-mode", "signal", "requeue", "no-requeue", "job-name", "ntasks", "wrap"}
OURS |= {"ntasks-per-node", "time", "nodes", "gpus-per-node", "partition", "account", "qos", "mem", "cpus-per-task"}
"""Names of sbatch parameters that have an option of their own, or that submitit sets."""


class Resources(Parameters):
    """What a job asks of Slurm. time: as sbatch takes it. requeues: how often a run may meet its time limit.

    gpus_per_node: 0 asks for none, and the ranks run on CPUs.
    """

    nodes: int = Field(1, ge=1)
    gpus_per_node: int = Field(0, ge=0)
    cpus_per_task: int | None = Field(None, ge=1)
    time: str = "24:00:00"
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    mem: str | None = Field(None, description="per node, such as 300G")
    requeues: int = Field(20, ge=0)
    extra: dict[str, str] = Field({}, description="any other parameter of sbatch")

    @model_validator(mode="after")
    def _can_be_said_to_sbatch(self) -> Self:
        """What sbatch would refuse, or overrule in silence, is refused here."""
        if self.mem is not None and not re.fullmatch(r"\d+[KMGT]?B?", self.mem, re.IGNORECASE):
            raise ValueError(f"mem {self.mem!r}: write a size such as 300G")
        for name in self.extra:
            if name.replace("_", "-") in OURS:
                raise ValueError(f"extra {name!r}: that one has an option of its own, or is set by llamax")
            if not re.fullmatch(r"[a-z][a-z-]*", name.replace("_", "-")):
                raise ValueError(f"extra {name!r}: not the name of an sbatch parameter, such as constraint")
        return self


class Outcome(NamedTuple):
    """What became of one seed: `state` is complete, queued (now) or what its job or process is doing already."""

    seed: int
    run: str
    state: str
    why: str


class _Wanted(NamedTuple):
    """One run to be submitted."""

    seed: int
    overrides: dict[str, Any]
    config: Config
    key: Key
    run: str


def submit(
    direction: str,
    profile: str,
    seeds: list[int],
    overrides: dict[str, Any] | None = None,
    resources: Resources | None = None,
    *,
    store: Store | None = None,
    tell: Callable[[str], None] = lambda text: print(text, file=sys.stderr),
) -> list[Outcome]:
    """Submit `direction` at `profile` once per seed, as one array of jobs; how each seed stands now.

    The number of ranks follows from the nodes and their GPUs, and `tell` is told what else does. On several nodes ask
    for whole ones: DeepSpeed's launcher counts a node's GPUs from 0.

    Raises: ParameterError: parameters that do not fit, among them a batch that these ranks cannot share. RunError:
    there is no Slurm here, or it refuses the job.
    """
    store, resources = store or Store(), resources or Resources()
    time = slurm.minutes(resources.time)
    asked = overrides or {}
    overrides, slots = spread(direction, profile, asked, resources.nodes, resources.gpus_per_node)
    if follows := {name: value for name, value in overrides.items() if name not in asked}:
        tell("from nodes and GPUs follows: " + ", ".join(f"{name}={value}" for name, value in follows.items()))
    configs = {seed: parse_parameters(direction, profile, seed, overrides) for seed in seeds}
    if missing := [name for name in ("sbatch", "srun") if not shutil.which(name)]:
        raise RunError(
            f"no Slurm here: there is no {missing[0]} on PATH; submit from a login node of a cluster, or run it here: "
            f"llamax run {direction} --profile {profile} --seed {seeds[0]}"
        )
    keys = {seed: run_key(direction, config) for seed, config in configs.items()}
    wanted = [_Wanted(s, overrides, c, keys[s], run_name(c, keys[s])) for s, c in configs.items()]
    found = {one.seed: _already(direction, one, store) for one in wanted}
    on_their_way = {(s.ticket.direction, s.ticket.run): s for s in _alive(store)} if None in found.values() else {}
    for one in wanted:
        if there := on_their_way.get((direction, one.run)):
            found[one.seed] = Outcome(one.seed, one.run, there.state, there.why)
    fresh = [one for one in wanted if found[one.seed] is None]
    jobs = _send(direction, profile, fresh, resources, time, slots, store) if fresh else []
    for one, ticket in zip(fresh, jobs, strict=True):
        why = f"job {ticket.job}, log: {records.shown(ticket.log(store))}"
        found[one.seed] = Outcome(one.seed, one.run, "queued", why)
    return [found[seed] for seed in seeds]


def read_seeds(text: str) -> list[int]:
    """`0,1,2` or `0-4` or both. Raises: ParameterError: anything else, or a seed twice."""
    seeds: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
        if first > last or last - first > 999:
            raise ParameterError(f"--seeds {text!r}: {part.strip()!r} is no seed; write such as 0,1,2 or 0-4")
        seeds += range(first, last + 1)
    if len(set(seeds)) < len(seeds):
        twice = next(seed for seed in seeds if seeds.count(seed) > 1)
        raise ParameterError(f"--seeds {text!r}: {twice} is named twice; each seed is one run")
    return seeds


def read_extra(pairs: list[str]) -> dict[str, str]:
    """`["constraint=a100", ...]` as a mapping. Raises: ParameterError: a pair without `=` or value, or a name twice."""
    found = read_pairs([pair.lstrip(" -") for pair in pairs], "--extra", "constraint=a100")
    if empty := [name for name, value in found.items() if not value]:
        raise ParameterError(f"--extra {empty[0]}: has no value; write NAME=VALUE, such as constraint=a100")
    return found


def _already(direction: str, one: _Wanted, store: Store) -> Outcome | None:
    """The run, if it is complete or being computed outside Slurm."""
    if store.find(one.key.digest):
        return Outcome(one.seed, one.run, "complete", f"results/{direction}/{one.run}; not submitted")
    if is_held(store.scratch(direction, one.run) / "run.lock"):
        return Outcome(one.seed, one.run, "running", "being computed by a process here; not submitted")
    return None


def _alive(store: Store) -> list[submitted.Standing]:
    """Submitted runs whose jobs are not over. Raises: RunError: Slurm does not answer."""
    found, silence = submitted.standings(store)
    if silence:
        raise RunError(f"{silence}: whether these runs are on their way already cannot be told")
    return [standing for standing in found if standing.alive]


def _send(
    direction: str, profile: str, runs: list[_Wanted], resources: Resources, time: int, slots: int, store: Store
) -> list[Ticket]:
    """Hand `runs` to sbatch as one array, and write a ticket for each. Raises: RunError: sbatch refuses."""
    import submitit

    folder = submitted.folder(store)
    folder.mkdir(parents=True, exist_ok=True)
    executor = submitit.SlurmExecutor(folder, max_num_timeout=resources.requeues)
    executor.update_parameters(**sbatch(f"llamax-{direction}", resources, time))
    tasks = [
        Task({"direction": direction, "profile": profile, "overrides": one.overrides, "seed": one.seed},
             resources.nodes, slots)
        for one in runs
    ]  # fmt: skip
    began = now()
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # submitit prints what it raises
            jobs = executor.submit_array(tasks)
    except submitit.core.utils.FailedJobError as error:
        said = [line.removeprefix("sbatch: error: ") for line in str(error).splitlines() if line.strip()]
        raise RunError(f"Slurm refuses the job: {'; '.join(said)}") from None
    tickets = [
        Ticket(
            job=job.job_id, direction=direction, run=one.run, profile=profile, seed=one.seed, key=one.key.digest,
            parameters=files.sha256_json(one.config.model_dump(mode="json")), submitted=began,
        )
        for one, job in zip(runs, jobs, strict=True)
    ]  # fmt: skip
    for ticket in tickets:
        submitted.write(ticket, store)
    return tickets


def sbatch(name: str, resources: Resources, time: int) -> dict[str, Any]:
    """Parameters of submitit's `SlurmExecutor`: one task, on the first node, that owns the whole job.

    The warning comes early enough to stop the run, even where the time limit is short.
    """
    task = ["--nodes=1", "--ntasks=1", "--cpu-bind=none"]
    given = {"cpus_per_task": resources.cpus_per_task, "gpus_per_node": resources.gpus_per_node or None}
    given |= {"partition": resources.partition, "account": resources.account, "qos": resources.qos}
    if resources.cpus_per_task:
        task.append(f"--cpus-per-task={resources.cpus_per_task}")  # srun no longer takes it from sbatch
    extra = {"requeue": True} | ({"mem": resources.mem} if resources.mem else {}) | resources.extra
    return {
        "job_name": name,
        "nodes": resources.nodes,
        "ntasks_per_node": 1,
        "time": time,
        "signal_delay_s": WARNING if time * 60 >= 4 * WARNING else int(min(time * 60 / 2, TO_STOP)),
        "stderr_to_stdout": True,
        "srun_args": task,
        "additional_parameters": extra,
        **{key: value for key, value in given.items() if value is not None},
    }
