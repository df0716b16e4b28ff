"""Verdicts and the ladder as text for a terminal."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from llamax.errors import GateError
from llamax.runs.store import Store
from llamax.versions import verdicts
from llamax.versions.decision import Comparison, Evidence
from llamax.versions.ladder import VERSION, Ladder, ladder, number
from llamax.versions.measured import Measured
from llamax.versions.references import (
    ReferenceSet,
    Scores,
    check_protocol,
    matching,
    place,
    read_file,
    reference_set,
    references,
    target_of,
)
from llamax.versions.sides import read_outcomes, read_side
from llamax.versions.verdicts import Verdict


class Standing(NamedTuple):
    """A version on the ladder. `status`: given, open, rejected, undecided, eligible, released, unsupported, damaged."""

    version: str
    title: str
    baseline: str
    requirement: str
    status: str
    detail: str


def standings(store: Store) -> list[Standing]:
    """The rungs, and the versions between them that were gated, upwards; what each stands on is its verdict."""
    rules = ladder()
    gated = {path.parent.name: path for path in verdicts.paths(store) if VERSION.fullmatch(path.parent.name)}
    found = []
    for version in sorted({rung.version for rung in rules.rungs} | gated.keys(), key=number):
        rung = rules.rung(version)
        given = version == rules.base
        status, detail = ("given", "the starting point") if given else _status(gated.get(version), store)
        baseline = rung.baseline if rung else "the version before"
        told = (version, rung.title if rung else "", baseline, _requirement(rules, version))
        found.append(Standing(*told, status, detail))
    return found


def _status(path: Path | None, store: Store) -> tuple[str, str]:
    """(status, what it stands on) of a version that is not given, from the file of its verdict."""
    if path is None:
        return "open", ""
    try:
        verdict = verdicts.read(path)
    except GateError as error:
        return "damaged", str(error)
    if why := verdicts.unsupported(verdict, store):
        return "unsupported", why
    ground = f"{verdict.candidate.run}:{verdict.candidate.model}"
    return verdict.state, f"{ground}; lacks {' and '.join(verdict.missing)}" if verdict.missing else ground


def _requirement(rules: Ladder, version: str) -> str:
    rung = rules.rung(version)
    if version == rules.base:
        return rung.requirement()
    gated = "A + B" if len(rules.required(version)) > len(rules.benchmarks["A"]) else "A"
    return f"Type {gated}, human evaluation{'; ' + rung.requirement() if rung else ''}"


def ladder_text(store: Store) -> str:
    """The ladder as `llamax versions` prints it."""
    rules, rows = ladder(), standings(store)
    head = ("version", "baseline", "requires", "status", "")
    lines = [aligned([head, *((r.version, r.baseline, r.requirement, r.status, r.detail) for r in rows)])]
    types = [f"Type {kind}: {', '.join(b.title for b in rules.benchmarks[kind])}." for kind in ("A", "B")]
    rule = (
        f"Each version: more than {rules.rule.gain:g} point better than the one before, significantly, on all "
        "benchmarks of the type named; before release a blind human evaluation."
    )
    return "\n".join([*lines, "", rule, *types, "", *(text for one in references() if (text := targets_text(one)))])


def targets_text(among: ReferenceSet) -> str:
    """What the rungs ask for in numbers under one protocol, quoted; empty where the set lacks the baselines."""
    if not among.baselines:
        return ""
    rules = ladder()
    titles = [one.title for one in rules.benchmarks["A"]]
    rows = [("version", "row", *titles, "mean asked for")]
    for rung in rules.rungs:
        row = among.baselines[rung.baseline]
        share = f"{rung.gap:.0%} of the gap left" if rung.gap else row
        cells = [""] * len(titles) if rung.gap else [among.quote(row, title) for title in titles]
        rows.append((rung.version, share, *cells, f"{target_of(rung, among):.1f}"))
    head = f"In the figures of {among.name} (its own protocol: never to be compared with scores of another):"
    return "\n".join(
        [head, aligned(rows, right=set(range(2, len(titles) + 3))), f"Source: {among.source}; {among.seen}."]
    )


def references_text() -> str:
    """All reference scores, quoted, by set."""
    parts = []
    for one in references():
        columns = list(dict.fromkeys(column for row in one.scores.values() for column in row))
        rows = [("", *columns)]
        rows += [
            (row, *(one.quote(row, c) if c in cells else "" for c in columns)) for row, cells in one.scores.items()
        ]
        if len(columns) > len(rows):  # a set of many columns and few rows reads better on its side
            rows = [tuple(cells) for cells in zip(*rows, strict=True)]
        notes = [f"  {title}: {setting}" for title, setting in one.settings.items()]
        head = f"{one.name} (protocol {one.protocol}, {one.unit})"
        parts.append("\n".join([head, aligned(rows), *notes, f"Source: {one.source}; {one.seen}."]))
    return "\n\n".join(parts)


def run_scores(name: str, store: Store) -> Scores:
    """A run's scores on the Type-A benchmarks it has, in percent, with how each was run.

    Raises: GateError: none of Type A, or measured under several protocols.
    """
    side = read_side(name, store, stale=True)
    known = [one for one in ladder().benchmarks["A"] if one.name in side.measured]
    protocols = {side.measured[one.name].protocol for one in known}
    if len(protocols) != 1:
        found = ", ".join(f"{one} ({said.protocol})" for one, said in side.measured.items())
        raise GateError(f"{name}: the ladder needs Type-A benchmarks of one protocol; it has {found}")
    if part := next((one.name for one in known if side.measured[one.name].items < side.measured[one.name].total), None):
        said = side.measured[part]
        raise GateError(f"{name}: {said.items} of {said.total} items of {part}: the ladder needs whole benchmarks")
    scores = {one.title: 100 * float(read_outcomes(side, one.name).table.mean()) for one in known}
    settings = {one.title: setting(side.measured[one.name]) for one in known}
    return Scores(model=side.model, protocol=protocols.pop(), scores=scores, settings=settings, source=name)


def setting(said: Measured) -> str:
    """How a benchmark was run, as a set of reference scores under one of our protocols has to state it."""
    return f"{said.metric}, {said.shots}-shot, prompts {said.prompts[:12]}"


def gap(name: str, store: Store, *, under: str | None = None, file: Path | None = None) -> tuple[Scores, Any]:
    """The scores of a run, or of a file of scores, and their `Position`: None where none of their protocol is known.

    Args: under: name of the set of reference scores. file: a YAML file with another set.
    Raises: GateError: another protocol or setting, or a benchmark that is missing.
    """
    path = Path(name)
    scores = read_file(path, Scores, "scores") if path.suffix in (".yaml", ".yml", ".json") else run_scores(name, store)
    sets = (*references(), *([read_file(file, ReferenceSet, "reference scores")] if file else []))
    among = sets[-1] if file and not under else reference_set(under, sets) if under else matching(scores, sets)
    if among is None:
        return scores, None
    check_protocol(scores, among)
    return scores, place(scores, among)


def gap_text(scores: Scores, position: Any) -> str:
    """Where scores stand, in words and numbers."""
    unit = "%" if scores.unit == "percent" else ""
    listed = ", ".join(f"{title} {value:.1f}{unit}" for title, value in scores.scores.items())
    head = f"{scores.model}, protocol {scores.protocol}: {listed}"
    if position is None:
        known = ", ".join(one.protocol for one in references() if one.baselines)
        return (
            f"{head}\nNo reference scores under protocol {scores.protocol}: it cannot be placed on the ladder. "
            f"Baselines are known under {known}; scores measured that way can be placed (--gap FILE), or baselines "
            f"measured under {scores.protocol} be given (--references FILE)."
        )
    rows = [("version", "asks for", "mean", "", "")]
    for step in position.steps:
        mark = "met" if step.met else f"{step.target - step.mean:.1f} points short"
        rows.append(
            (step.version, step.requirement, f"\u201c{step.target:.1f}\u201d", mark, "unverified" * step.unverified)
        )
    left = f"Mean {position.mean:.1f}; {position.left:.0%} of the gap between 3.5.0's baseline and GPT-4 is left."
    reached = position.reached()
    where = f"By averages it stands at {reached}." if reached else "By averages it is below the first rung."
    why = f"Others' figures are quoted from {position.references}; without their outcomes per item this is no test."
    return "\n".join([head, aligned(rows, right={2}), left, f"{where} {why}"])


def verdict_text(verdict: Verdict) -> str:
    """A verdict as `llamax gate` prints it: a table, what open benchmarks need, and one sentence."""
    new, old = verdict.candidate, verdict.current
    head = [f"candidate  {new.run}:{new.model}", f"current    {old.run}:{old.model}"]
    said = [one.candidate for one in verdict.benchmarks]
    ways = [*dict.fromkeys(one.protocol for one in said), *dict.fromkeys(one.precision for one in said)]
    head.append(f"measured   {', '.join(ways)}{', REHEARSAL' if verdict.rehearsal else ''}")
    columns = ("benchmark", "items", "current", "candidate", "gain", "± s.e.", "95% interval")
    point = f"{verdict.rule.gain:g}"
    rows = [(*columns, "p(gain≤0)", f"p(gain≤{point})", f"p(gain≥{point})", "shows", "")]
    for evidence in verdict.benchmarks:
        rows += [_row(evidence, found) for found in evidence.sets()]
    notes = [f"{e.benchmark}: {e.needs.words}" for e in verdict.benchmarks if e.needs]
    if verdict.earlier:
        tries = ", ".join(f"{old.candidate} {old.answer}" for old in verdict.earlier)
        notes.append(f"earlier verdicts of this name, each with a chance of its own to pass by luck: {tries}")
    level, looks = verdict.rule.level, len(rows) - 1
    legend = f"Points; shows: the true gain that the test of gain≤0 would show with {verdict.rule.power:.0%} power.\n"
    legend += f"One row with p(gain≥{point}) below {level:.0%} / {looks} = {level / looks:.4f} rejects: {looks} rows, "
    legend += "those without leaked items included, are as many chances to reject by luck, which share the level."
    table = aligned(rows, right=set(range(1, 11)))
    return "\n".join([*head, "", table, legend, verdict.statement, "", *notes, verdict.sentence])


def _row(evidence: Evidence, found: Comparison) -> tuple[str, ...]:
    """A line of the table: the whole benchmark, or its clean part with only its own figures."""
    clean = found is evidence.clean
    mark = "pass" if evidence.passes else "ruled out" if evidence.ruled_out else "open"
    return (
        f"  without {evidence.contaminated} leaked" if clean else evidence.benchmark,
        f"{found.items:,}",
        f"{found.current:.1f}",
        f"{found.candidate:.1f}",
        f"{found.gain:+.2f}",
        f"{found.standard_error:.2f}",
        f"[{found.low:+.2f}, {found.high:+.2f}]",
        _p(found.p_gain),
        _p(found.p_requirement),
        _p(found.p_below),
        f"{found.detectable:.1f}",
        "" if clean else mark,
    )


def _p(p: float) -> str:
    return "<0.0001" if p < 1e-4 else f"{p:.4f}"


def aligned(rows: Sequence[Sequence[str]], right: set[int] = frozenset()) -> str:
    """Rows of texts as columns; those of `right` end flush."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = (
            text.rjust(w) if i in right else text.ljust(w) for i, (text, w) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
