"""Votes on disk: one file per rater, appended line by line, safe against crashes, two tabs and two raters at once.

The first line of `raters/<code>.jsonl` is a `Header`, every other a `Vote`. A vote is one write and an fsync under the
rater's lock. What a rater is shown follows from the plan's seed, the rater's code and the rater's place among the
raters, so nothing else need be kept: who comes back goes on at the first item without a vote.
"""

import contextlib
import datetime
import json
import os
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import Field, ValidationError

from llamax.config import Config, explain
from llamax.errors import DataError, LlamaxError, ParameterError
from llamax.evaluation.human.plan import RATERS, Plan
from llamax.files import clear_disk_errors, write_atomic
from llamax.runs.locks import hold

Choice = Literal["left", "right", "tie", "both_bad"]
CODE = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
LONGEST_REASON = 2000
PATIENCE = 20.0  # seconds to wait for a lock: an append takes milliseconds


class Header(Config):
    """Whose file it is: `seat` counts the raters of a study from 0 and decides which prompts they share out."""

    rater: str
    seat: int = Field(ge=0)
    plan: str = Field(description="digest of the plan")
    opened: str


class Vote(Config):
    """One judgement. `left` and `right` are the models that stood there; `item` counts the rater's items from 0.

    A later vote on the same item, with a higher `revision`, takes the place of an earlier one.
    """

    item: int = Field(ge=0)
    prompt: str
    left: str
    right: str
    choice: Choice
    reason: str = ""
    revision: int = Field(0, ge=0)
    time: str


class Item(NamedTuple):
    """What a rater is shown once: a prompt, and which model's answer stands on which side."""

    prompt: str
    left: str
    right: str


class Sheet(NamedTuple):
    """A rater's items in their order, and the votes so far, by item number."""

    rater: str
    items: list[Item]
    votes: dict[int, Vote]

    @property
    def next(self) -> int | None:
        """The first item without a vote; None when all have one."""
        return next((number for number in range(len(self.items)) if number not in self.votes), None)


class Stale(LlamaxError):
    """A vote on an item that this rater has voted on already, in another window or by a second click."""


def checked_code(text: str) -> str:
    """A rater's code in lower case. Raises: ParameterError: it could not be the name of a file."""
    code = text.strip().lower()
    if not CODE.fullmatch(code):
        raise ParameterError(
            "A rater's code is 1 to 32 letters (a-z), digits, - or _, and starts with a letter or a digit."
        )
    return code


def items_of(plan: Plan, rater: str, seat: int) -> list[Item]:
    """What the rater of `seat` is shown, in order: a share of the prompts, all pairs of models of each.

    Prompts are dealt like cards, one to each of the next k seats, so that shares differ by one prompt at most. Where k
    divides the number of seats each round begins a seat further, or the same k raters would always meet. Order and
    sides are drawn from the plan's seed and the code; each model of a pair stands on the left half of the time.
    """
    k, seats = plan.design.raters_per_prompt, plan.raters
    starts = (i * k + (i * k // seats if seats % k == 0 else 0) for i in range(len(plan.prompts)))
    mine = [name for name, start in zip(plan.prompts, starts, strict=True) if (seat - start) % seats < k]
    draw = random.Random(f"{plan.seed}/{rater}")
    items: list[Item] = []
    for one, other in plan.pairs:
        swapped = [i % 2 == 1 for i in range(len(mine))]
        if draw.random() < 0.5:  # with an odd number, which of the two has the left side once more
            swapped = [not swap for swap in swapped]
        draw.shuffle(swapped)
        items += [Item(p, other, one) if swap else Item(p, one, other) for p, swap in zip(mine, swapped, strict=True)]
    draw.shuffle(items)
    return items


def rater_file(folder: Path, rater: str) -> Path:
    """Where the votes of a rater are, of a code that was checked."""
    return folder / RATERS / f"{checked_code(rater)}.jsonl"


def open_sheet(folder: Path, plan: Plan, rater: str) -> Sheet:
    """The sheet of a rater, who is given the next free seat when new; a torn last line is set aside with a note.

    Raises: ParameterError: a bad code. DataError: the file belongs to another plan or is damaged.
    """
    path = rater_file(folder, rater)
    rater = path.stem
    with _locked(path):
        if path.exists():
            mend(path)
        if not path.exists() or not path.stat().st_size:
            with _locked(folder / RATERS / "seats"):
                _append(path, Header(rater=rater, seat=_free_seat(folder), plan=plan.digest, opened=_now()))
        return _sheet(path, plan, rater)


def cast(
    folder: Path, plan: Plan, rater: str, item: int, choice: Choice, reason: str = "", *, revise: bool = False
) -> Sheet:
    """Write one vote down; when this returns it is on the disk.

    Raises: Stale: the item has a vote already and `revise` is not set. ParameterError: no such item or choice.
    DiskFullError: nothing was written. DataError: as `open_sheet`.
    """
    path = rater_file(folder, rater)
    with _locked(path):
        if not path.exists():
            raise DataError(f"{path}: the file of this rater is gone; sign in again")
        mend(path)
        sheet = _sheet(path, plan, path.stem)
        if not 0 <= item < len(sheet.items):
            raise ParameterError(f"item {item}: this rater has the items 0 to {len(sheet.items) - 1}")
        before = sheet.votes.get(item)
        if before is not None and not revise:
            raise Stale(f"item {item} has a vote already")
        try:
            vote = Vote(
                item=item, **sheet.items[item]._asdict(), choice=choice, reason=reason.strip()[:LONGEST_REASON],
                revision=before.revision + 1 if before else 0, time=_now(),
            )  # fmt: skip
        except ValidationError as error:
            raise ParameterError(explain(error, Vote)) from None
        _append(path, vote)
        return sheet._replace(votes={**sheet.votes, item: vote})


def read_sheet(path: Path, plan: Plan) -> Sheet:
    """The sheet in a file, which is only read. Raises: DataError: a torn or malformed line, by its number."""
    lines = path.read_bytes().split(b"\n")
    if lines[-1]:
        raise DataError(
            f"{path}:{len(lines)}: the last line is torn (a crash while it was written); `llamax human-eval serve` "
            "sets it aside when the rater comes back, or delete it"
        )
    return _sheet(path, plan, path.stem)


def read_sheets(folder: Path, plan: Plan) -> list[Sheet]:
    """The sheets of all raters, by their codes. Raises: DataError: nobody has voted, or a file is damaged."""
    paths = sorted((folder / RATERS).glob("*.jsonl"))
    sheets = [read_sheet(path, plan) for path in paths]
    if not any(sheet.votes for sheet in sheets):
        raise DataError(f"{folder / RATERS}: no votes yet; `llamax human-eval serve` collects them")
    return sheets


def mend(path: Path) -> None:
    """Set a torn last line aside in `<code>.torn`; a whole one that lacks only its line end is completed."""
    content = path.read_bytes()
    cut = content.rfind(b"\n") + 1
    rest = content[cut:]
    if not rest:
        return
    with contextlib.suppress(ValueError, RecursionError):
        json.loads(rest)
        write_atomic(path, content + b"\n")
        return
    with open(path.with_suffix(".torn"), "ab") as aside:
        aside.write(rest + b"\n")
        aside.flush()
        os.fsync(aside.fileno())
    write_atomic(path, content[:cut])
    line = content.count(b"\n") + 1
    print(f"{path}:{line}: torn last line ({len(rest)} bytes) set aside in {path.stem}.torn", file=sys.stderr)


def _sheet(path: Path, plan: Plan, rater: str) -> Sheet:
    """Parse a file of whole lines and hold every vote against the plan."""
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
    if not lines:
        raise DataError(f"{path}: empty, should begin with a header; delete it")
    header = _parse(Header, lines[0], f"{path}:1")
    if header.plan != plan.digest:
        raise DataError(f"{path}:1: these votes belong to another plan ({header.plan[:8]}, not {plan.digest[:8]})")
    if header.rater != rater:
        raise DataError(f"{path}:1: the file of rater {header.rater!r}; a renamed file would count votes twice")
    items = items_of(plan, rater, header.seat % plan.raters)
    votes: dict[int, Vote] = {}
    for number, line in enumerate(lines[1:], 2):
        vote = _parse(Vote, line, f"{path}:{number}")
        if vote.item >= len(items) or (vote.prompt, vote.left, vote.right) != items[vote.item]:
            raise DataError(f"{path}:{number}: item {vote.item} is not what the plan shows this rater there")
        before = votes.get(vote.item)
        if before is not None and vote.revision <= before.revision:
            raise DataError(f"{path}:{number}: a second vote on item {vote.item} that revises nothing")
        votes[vote.item] = vote
    return Sheet(rater, items, votes)


def _parse(kind: type[Config], line: str, where: str) -> Config:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON ({str(error).splitlines()[0]})") from None
    try:
        return kind.parse(values, where)
    except ParameterError as error:
        raise DataError(str(error)) from None


def _append(path: Path, row: Config) -> None:
    """Append one line and see it on the disk; on a failure the file is as it was."""
    data = (json.dumps(row.model_dump(mode="json"), ensure_ascii=False) + "\n").encode()
    new = not path.exists()
    with clear_disk_errors(path), open(path, "ab", buffering=0) as file:
        size = file.tell()
        try:
            written = file.write(data)
            if written != len(data):
                raise OSError(28, "No space left on device")
            os.fsync(file.fileno())
        except OSError:
            file.truncate(size)
            raise
    if new:  # a new name is on the disk only once its folder is
        handle = os.open(path.parent, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)


def _free_seat(folder: Path) -> int:
    """The smallest number that no rater's header holds."""
    taken = set()
    for path in (folder / RATERS).glob("*.jsonl"):
        with path.open("rb") as file, contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
            taken.add(json.loads(file.readline())["seat"])
    return next(seat for seat in range(len(taken) + 1) if seat not in taken)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock that belongs to `path`, against other threads and other processes."""
    lock = hold(path.with_name(f".{path.name}.lock"), PATIENCE)
    if lock is None:
        raise DataError(f"{path}: locked by another process for more than {PATIENCE:.0f} s")
    try:
        yield
    finally:
        lock.release()


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
