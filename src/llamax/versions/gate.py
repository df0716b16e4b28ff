"""The version gate: may this candidate be the next version?

`llamax gate CANDIDATE --against CURRENT` reads two complete, fresh records of evaluation runs, refuses what cannot be
compared, weighs every required benchmark (`decision`), and writes the verdict with its evidence (`verdicts`).
"""

import re
from pathlib import Path

import llamax
from llamax.errors import GateError
from llamax.runs.provenance import provenance
from llamax.runs.session import now
from llamax.runs.store import Store
from llamax.versions import verdicts
from llamax.versions.decision import Evidence, decide, weigh
from llamax.versions.ladder import Benchmark, Ladder, Rule, ladder, number
from llamax.versions.references import Position, Scores, matching, place, read_file
from llamax.versions.sides import Side, check_sides, read_side
from llamax.versions.verdicts import Human, Party, Verdict


def gate(
    candidate: str,
    against: str,
    *,
    version: str | None = None,
    rehearse: bool = False,
    human: Path | None = None,
    scores: Path | None = None,
    store: Store | None = None,
) -> Verdict:
    """Decide, without writing anything.

    Args:
        candidate, against: `<direction>/<run>`, with `:<model>` where a run evaluated several.
        version: which version the candidate would be; from 3.6.0 on Type B is required as well. Without it nothing
            moves on the ladder.
        rehearse: allow benchmarks of which only a part was asked; the verdict is a rehearsal. So is one on nano tasks.
        human: file of a human evaluation's analysis (`verdicts.Human`).
        scores: file of the candidate's scores under a reference protocol (`references.Scores`), for versions that are
            measured by another model.

    Raises: GateError: anything that makes the comparison unfair, in one line. RunError: a record is missing or damaged.
    """
    store, rules = store or Store(), ladder()
    new, old = read_side(candidate, store), read_side(against, store)
    nano = _is_nano(new)
    given = None if version is None else rules.check(version)
    required = rules.benchmarks["nano"] if nano else rules.required(given)
    check_sides(new, old, [one.name for one in required], rehearse=rehearse or nano)
    rehearsal = nano or any(new.measured[one.name].items < new.measured[one.name].total for one in required)
    parties = party(new), party(old)
    if version and rehearsal:
        raise GateError(f"version {version}: a rehearsal ({_why(new, required)}) is of no version: leave --version out")
    if version:
        check_order(version, *parties, store)
    benchmarks = weigh(new, old, required, rules.rule)
    votes = read_human(human, *parties) if human else None
    position = read_position(scores, parties[0]) if scores else None
    answer = decide(benchmarks)
    lacking = missing(rules, version, benchmarks, votes, position) if not rehearsal and answer == "accept" else ()
    made = provenance()
    return Verdict(
        name=version or ("rehearsal-" if rehearsal else "") + re.sub(r"[^\w.-]+", "-", candidate),
        version=version,
        rehearsal=rehearsal,
        candidate=parties[0],
        current=parties[1],
        rule=rules.rule,
        statement=statement(rules.rule, benchmarks),
        benchmarks=benchmarks,
        answer=answer,
        missing=lacking,
        sentence=sentence(benchmarks, rules.rule, lacking, version, rehearsal),
        human=votes,
        position=position,
        llamax=llamax.__version__,
        commit=made.commit,
        dirty=made.dirty,
        decided=now(),
    )


def party(side: Side) -> Party:
    """A side as a verdict keeps it."""
    record = side.record
    run, items = f"{record.direction}/{record.run}", record.files["items.parquet"]
    return Party(run=run, model=side.model, key=record.key, items=items, model_hash=side.model_hash)


def check_order(version: str, candidate: Party, current: Party, store: Store) -> None:
    """A version follows on the released ones: it is newer, and it is gated against the last of them.

    The first one is gated against whatever the gate was given for LLaMA: the verdict says what that was.
    Raises: GateError: otherwise.
    """
    before = [one for one in verdicts.released(store) if one.version != version]
    if not before:
        return
    last = before[-1]
    if number(last.version) > number(version):
        raise GateError(f"version {version}: {last.version} is released already: the next lies above it")
    if not current.same_model(last.candidate):
        raise GateError(
            f"version {version}: the current version is {last.version}, {last.candidate.name}: gate against that model"
        )


def read_human(path: Path, candidate: Party, current: Party) -> Human:
    """A human evaluation's outcome. Raises: GateError: it compared other models. ParameterError: a field is wrong."""
    votes = read_file(path, Human, "analysis of a human evaluation")
    for role, said, side in (("candidate", votes.candidate, candidate), ("current", votes.current, current)):
        if said != side.name:  # "candidate" alone is what every run calls one of its models
            raise GateError(f"{path}: {role} is {said!r}, the gate's is {side.name!r}: it judged other models")
    return votes


def read_position(path: Path, candidate: Party) -> Position:
    """Where a file of scores stands. Raises: GateError: another model's, or no reference scores of its protocol."""
    scores = read_file(path, Scores, "scores")
    if scores.model != candidate.name:
        raise GateError(f"{path}: the scores are of {scores.model!r}, the candidate is {candidate.name!r}")
    among = matching(scores)
    if among is None:
        raise GateError(
            f"{path}: no reference scores under protocol {scores.protocol!r} that have the ladder's baselines"
        )
    return place(scores, among)


def missing(
    rules: Ladder, version: str | None, benchmarks: tuple[Evidence, ...], votes: Human | None, position: Position | None
) -> tuple[str, ...]:
    """What an accepted candidate lacks before it may be released."""
    lacks = []
    if version is None:
        return ()
    if any(one.candidate.contamination == "unchecked" for one in benchmarks):
        lacks.append("a contamination check of both models' training data")
    rung, steps = rules.reached(version), position.steps if position else ()
    step = next((one for one in steps if rung and one.version == rung.version), None)
    if rung and step is None:
        lacks.append(f"scores comparable with {rung.baseline}'s (--scores)")
    elif rung and not step.met:
        lacks.append(f"{step.target - step.mean:.1f} points on average ({step.requirement}, {position.protocol})")
    return (*lacks, *_human_lacks(votes, rules.rule))


def _human_lacks(votes: Human | None, rule: Rule) -> list[str]:
    """What a human evaluation lacks, if anything."""
    if votes is None:
        return ["a human evaluation (--human)"]
    if votes.raters < rule.raters:
        return [f"a human evaluation by {rule.raters} people or more, not {votes.raters}"]
    if votes.votes_missing:
        return [f"a finished human evaluation ({votes.votes_missing} of {votes.votes_planned} planned votes missing)"]
    if votes.votes > votes.votes_planned:
        return [f"a human evaluation that ended as planned ({votes.votes} votes, {votes.votes_planned} planned)"]
    if votes.low is None or not votes.low > rule.human:
        span = "without an interval" if votes.low is None else f"[{votes.low:.1%}, {votes.high:.1%}]"
        return [
            f"people who clearly prefer it (win rate {votes.win_rate:.1%} {span}; "
            f"the whole 95% interval has to lie above {rule.human:.0%})"
        ]
    return []


def statement(rule: Rule, benchmarks: tuple[Evidence, ...]) -> str:
    """What was tested, in words."""
    looks = sum(len(one.sets()) for one in benchmarks)
    return (
        f"accept: on all {len(benchmarks)} benchmarks the gain, paired by item, is more than {rule.gain:g} point and "
        f"significantly above 0 (one-sided clustered t test, {rule.level:.0%}; all must pass, so no correction). "
        f"reject: on one of them the true gain is significantly below {rule.gain:g} point "
        f"({rule.level:.0%} / {looks}). undecided: neither. Where items leaked, all items and the clean ones must pass."
    )


def sentence(
    benchmarks: tuple[Evidence, ...], rule: Rule, lacking: tuple[str, ...], version: str | None, rehearsal: bool
) -> str:
    """The verdict in one sentence."""
    answer = decide(benchmarks)
    if answer == "accept":
        shown = f"better by more than {rule.gain:g} point on all {len(benchmarks)} benchmarks"
        text = f"{shown}; eligible as {version}, but it lacks {' and '.join(lacking)}" if lacking else shown
        text += f"; {version} may be released" if version and not lacking else ""
    elif answer == "reject":
        text = ", ".join(_below(one, rule) for one in benchmarks if one.ruled_out)
    else:
        text = ", ".join(f"{one.benchmark} {_short_of(one)}" for one in benchmarks if one.needs)
    tail = " This is a rehearsal: it says nothing about a version." if rehearsal else ""
    return f"{answer}: {text}.{tail}"


def _below(one: Evidence, rule: Rule) -> str:
    found = min(one.sets(), key=lambda comparison: comparison.p_below)
    where = " on its clean items" if found is one.clean else ""
    if found.high < 0:
        return f"{one.benchmark} is worse{where} ({found.gain:+.1f} points)"
    return f"{one.benchmark} gains less than {rule.gain:g} point{where} ({found.gain:+.1f})"


def _short_of(one: Evidence) -> str:
    """What an open benchmark needs, in few words."""
    more = f"needs {one.needs.more:,} more items"
    if one.needs.exist:
        return more
    return (
        f"{more} or {one.needs.samples:,} samples per problem" if one.needs.samples else f"{more}, which do not exist"
    )


def _is_nano(side: Side) -> bool:
    """Whether a model was measured in the small world. Raises: GateError: there and elsewhere in one run."""
    nano = {one.protocol == "nano" for one in side.measured.values()}
    if len(nano) > 1:
        listed = ", ".join(f"{name} {one.protocol}" for name, one in side.measured.items())
        raise GateError(f"{side.name} mixes protocols ({listed}): nano tasks are gated by themselves")
    return nano == {True}


def _why(side: Side, required: tuple[Benchmark, ...]) -> str:
    if _is_nano(side):
        return "nano tasks"
    part = next(one.name for one in required if side.measured[one.name].items < side.measured[one.name].total)
    return f"{side.measured[part].items} of {side.measured[part].total} items of {part}"
