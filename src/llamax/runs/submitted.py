"""Runs that were given to Slurm: a ticket for each, and how they stand.

`runs/slurm/<job>.json` is the ticket of one job; the job's log, submission script and pickles lie beside it. What the
store knows of a run and what Slurm knows of its job become one line of `llamax status`.
"""

import re
from pathlib import Path
from typing import NamedTuple

from llamax import files
from llamax.config import Config
from llamax.errors import RunError
from llamax.runs import records, slurm
from llamax.runs.records import Record
from llamax.runs.store import Freshness, Store

FOLDER = "slurm"
CANCELLED = ("CANCELLED", "PREEMPTED", "REVOKED")


class Ticket(Config):
    """One job of one run. parameters: sha256 of the resolved ones. ended: Slurm's last word, once it was heard."""

    job: str
    direction: str
    run: str
    profile: str
    seed: int
    key: str
    parameters: str
    submitted: str
    ended: str | None = None

    def log(self, store: Store) -> Path:
        """Where submitit lets the job write what it prints."""
        return folder(store) / f"{self.job}_0_log.out"


class Standing(NamedTuple):
    """A ticket and how it stands: `queued`, `running`, `preempted` (waiting to go on), `cancelled`, `failed` or
    `submitted` (Slurm does not answer); `complete` where there is nothing to tell."""

    ticket: Ticket
    state: str
    why: str

    @property
    def alive(self) -> bool:
        """Whether the job is still to do its work."""
        return self.state in ("queued", "running", "preempted", "submitted")


def folder(store: Store) -> Path:
    """Where tickets and logs of jobs lie."""
    return store.root / "runs" / FOLDER


def write(ticket: Ticket, store: Store) -> None:
    """Write a ticket, or replace it."""
    files.write_atomic(folder(store) / f"{ticket.job}.json", ticket.model_dump_json(indent=1) + "\n")


def tickets(store: Store) -> list[Ticket]:
    """The newest ticket of every run, oldest first. Raises: RunError: one that is damaged."""
    newest: dict[tuple[str, str], Ticket] = {}
    for path in folder(store).glob("*.json"):
        if not re.fullmatch(r"\d+(_\d+)?", path.stem):
            continue
        try:
            ticket = Ticket.model_validate_json(path.read_bytes())
        except ValueError as error:
            raise RunError(f"{records.shown(path)}: damaged ({str(error).splitlines()[0]}): delete it") from None
        known = newest.get((ticket.direction, ticket.run))
        if known is None or known.submitted < ticket.submitted:
            newest[ticket.direction, ticket.run] = ticket
    return sorted(newest.values(), key=lambda ticket: (ticket.submitted, ticket.job))


def standings(store: Store, rows: list[Freshness] | None = None) -> tuple[list[Standing], str]:
    """How submitted runs stand that have no complete record, and a line that says so if Slurm did not answer.

    Slurm is asked once, and only about jobs of which it has not yet said that they are over. rows: `store.status()`.
    """
    rows = store.status() if rows is None else rows
    complete = [record for record in [*_whole(store), *store.attempts()] if record.status == "complete"]
    open_ = [ticket for ticket in tickets(store) if not any(_answers(record, ticket) for record in complete)]
    jobs, silence = {}, ""
    try:
        jobs = slurm.ask([ticket.job for ticket in open_ if not ticket.ended])
    except RunError as error:
        silence = str(error)
    found = []
    for ticket in open_:
        job = slurm.JobState(ticket.ended) if ticket.ended else jobs.get(ticket.job)
        if job is None and not silence and not ticket.log(store).exists():
            job = slurm.JobState("CANCELLED")  # while it waited: Slurm keeps no record of such a task of an array
        if job and job.over and not ticket.ended:
            write(ticket.model_copy(update={"ended": job.state}), store)
        row = next((row for row in rows if (row.direction, row.run) == (ticket.direction, ticket.run)), None)
        found.append(_standing(ticket, job, row, records.shown(ticket.log(store)), bool(silence)))
    return found, silence


def merge(rows: list[Freshness], found: list[Standing]) -> list[Freshness]:
    """Rows of `Store.status` with what Slurm says of submitted runs in the place of what their folders say."""
    said = {(s.ticket.direction, s.ticket.run): s for s in found}
    kept = [row for row in rows if (row.direction, row.run) not in said]
    for ticket, state, why in found:
        kept = [row for row in kept if not _is_missing(row, ticket)]
        kept.append(Freshness(ticket.direction, ticket.run, ticket.profile, ticket.seed, state, why, None))
    return sorted(kept, key=lambda row: (row.direction, row.profile, row.seed, row.finished or ""))


def _is_missing(row: Freshness, ticket: Ticket) -> bool:
    return row.state == "missing" and (row.direction, row.profile) == (ticket.direction, ticket.profile)


def _standing(ticket: Ticket, job: slurm.JobState | None, row: Freshness | None, log: str, silent: bool) -> Standing:
    """What to say of a run without a complete record, from Slurm's word on its job and the store's row, if any."""
    name = f"job {ticket.job}"
    if job is None and silent:
        at_work = row is not None and row.state == "running"
        return Standing(ticket, "running" if at_work else "submitted", name if at_work else f"{name}, as last known")
    if row is not None and row.state == "running" and (job is None or job.over):
        return Standing(ticket, "running", row.why)  # the job is over, the run goes on elsewhere
    if job is None:
        why = f"{name} is over, and Slurm no longer knows how; log: {log}"
        return Standing(ticket, row.state if row else "failed", f"{row.why}; {why}" if row and row.why else why)
    if job.state in slurm.WAITING:
        reason = f" ({job.reason})" if job.reason else ""
        if job.restarts:
            return Standing(ticket, "preempted", f"{name} waits to go on{reason}, requeued {job.restarts}×")
        return Standing(ticket, "queued", f"{name}{reason}")
    if not job.over:
        again = f", requeued {job.restarts}×" if job.restarts else ""
        ending = ", ending" if job.state == "COMPLETING" else ""
        return Standing(ticket, "running", f"{name}{again}{ending}")
    if job.state in CANCELLED:
        return Standing(ticket, "cancelled", f"{name}; log: {log}")
    error = f"{row.why}; " if row and row.state == "failed" and row.why else ""
    return Standing(ticket, "failed", f"{error}{name} ended as {job.state}; log: {log}")


def _answers(record: Record, ticket: Ticket) -> bool:
    """Whether a complete record is what the ticket was for: the same key, or (its code was edited before the job
    began) the same parameters, computed since."""
    if record.key == ticket.key:
        return True
    same = record.direction == ticket.direction and files.sha256_json(record.parameters) == ticket.parameters
    return same and record.started >= ticket.submitted


def _whole(store: Store) -> list[Record]:
    """Complete records, a damaged one aside: `store.status` names it."""
    try:
        return store.records()
    except RunError:
        return [record for ticket in tickets(store) if (record := _found(store, ticket.key))]


def _found(store: Store, key: str) -> Record | None:
    try:
        return store.find(key)
    except RunError:
        return None
