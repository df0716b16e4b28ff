"""Conclusions as executable statements: each is evaluated from per-item outcomes whenever the paper is built."""

from typing import NamedTuple

from llamax.errors import LlamaxError, PaperError
from llamax.papers.evidence import Evidence, Value
from llamax.papers.show import number, p_value
from llamax.papers.source import Claim, Source
from llamax.papers.typed import typed_numbers


class Verdict(NamedTuple):
    """A claim, what its test found, and whether the predicate is true."""

    claim: Claim
    found: Value
    true: bool

    def evidence(self) -> str:
        """What was found, as the paper prints it: estimate, interval, items, trainings, p."""
        points = not self.claim.of.endswith("text_loss")
        scale, digits, signed = (
            (100, 1, self.claim.minus is not None) if points else (1, 3, self.claim.minus is not None)
        )
        value, low, high = (
            number(scale * x, digits, signed) for x in (self.found.value, self.found.low, self.found.high)
        )
        unit = ("points" if signed else "percent") if points else "nats per token"
        trainings = f", {self.found.seeds} trainings" if self.found.seeds > 1 else ""
        level = "" if self.claim.level == 0.95 else f" at the {100 * self.claim.level:g}% level"
        text = f"{value} {unit} [{low}, {high}]{level}, {self.found.n:,} items{trainings}"
        return text + (f", {p_value(self.found.p_value)}" if signed else "")


def judge(claim: Claim, evidence: Evidence) -> Verdict:
    """Evaluate the predicate of `claim`. Raises: PaperError: its outcomes are not there or have no interval."""
    if claim.op == "within" and claim.threshold <= 0:
        raise PaperError(f"claim {claim.id!r}: nothing lies within ±{claim.threshold:g}: give a threshold above 0")
    if (claim.minus is None) != (claim.test == "mean"):
        raise PaperError(f"claim {claim.id!r}: `minus` goes with test paired_difference, and only with it")
    found = evidence.compare(claim.runs, claim.of, claim.minus, claim.level)
    if found.low is None:
        raise PaperError(f"claim {claim.id!r}: one cluster of items has no interval")
    true = {
        ">": found.low > claim.threshold,
        "<": found.high < claim.threshold,
        "within": -claim.threshold < found.low and found.high < claim.threshold,
    }[claim.op]
    return Verdict(claim, found, true)


def judge_all(source: Source, evidence: Evidence) -> dict[str, Verdict]:
    """Every claim of the paper; a claim whose result is not what the paper says becomes a fault that quotes it."""
    verdicts = {}
    for claim in source.claims.values():
        line = source.line(f"[{claim.id}]" if f"[{claim.id}]" in source.text else ".claims")
        try:
            verdicts[claim.id] = verdict = judge(claim, evidence)
        except LlamaxError as error:
            source.fault(line, str(error))
            continue
        if verdict.true != claim.holds:
            fault = "no longer holds" if claim.holds else "is said not to hold, but holds"
            source.fault(line, f"claim {claim.id!r} {fault}: “{claim.sentence}” (found {verdict.evidence()})")
        for typed in typed_numbers(claim.sentence):
            at = source.line(f"id: {claim.id}", "claims.yaml")
            source.fault(at, f"hand-typed number {typed!r} in the sentence of claim {claim.id!r}", "claims.yaml")
    return verdicts
