"""A report as text: a table of benchmarks, then the items."""

import math

from llamax.evaluation.contamination.clean import DEFAULT, RULES, CleanSubset
from llamax.evaluation.contamination.index import SHORTEST, SIZES
from llamax.evaluation.contamination.report import MEASURES, Report, summary
from llamax.statistics import Estimate

HEADS = dict(zip(MEASURES, (*(f"{n}-gram" for n in reversed(SIZES)), "whole question"), strict=True))


def report_text(report: Report, rule: str = DEFAULT) -> str:
    """What was read, hits by benchmark and measure, then the items that `rule` flags."""
    speed = report.documents / report.seconds
    head = f"{report.source}: {report.documents:,} documents, {report.tokens:,} tokens in {report.seconds:.1f} s "
    head += f"({speed:,.0f} documents/s)"
    return "\n".join([head, "", *_summary_lines(report), "", *_item_lines(report, rule), *_notes(report)])


def _summary_lines(report: Report) -> list[str]:
    lines = [("benchmark", "measure", "items", "too short", "judged", "hits", "% of judged", "95% interval")]
    for line in summary(report):
        share = ("", "")
        if line.share:
            low, high = 100 * line.share.low, 100 * line.share.high
            share = (f"{100 * line.share.value:.2f}", f"[{low:.2f}, {high:.2f}]")
        counts = (f"{line.n}", f"{line.too_short}", f"{line.judged}", f"{line.hits}")
        lines.append((line.benchmark, HEADS[line.measure], *counts, *share))
    return aligned(lines)


def _item_lines(report: Report, rule: str) -> list[str]:
    """The flagged items: measures, how many of their n-grams, the share of them, rows."""
    chosen = report.items[RULES[rule](report.items)]
    if chosen.empty:
        return [f"no item is flagged by {rule}"]
    lines = [("flagged item", *(f"{n}-grams" for n in reversed(SIZES)), "question", "rows")]
    ids = chosen.groupby("asks")["item"].agg(", ".join)
    for row in chosen.drop_duplicates("asks").to_dict(orient="records"):
        parts = [_part(row[f"hits_{n}"], row[f"ngrams_{n}"]) for n in reversed(SIZES)]
        lines.append((ids[row["asks"]], *parts, "whole" if row["question"] else "", ", ".join(map(str, row["rows"]))))
    return [f"{len(ids)} of {report.items['asks'].nunique()} questions flagged by {rule}:", *aligned(lines)]


def _part(hits: int, of: int) -> str:
    return f"{hits} of {of} ({100 * hits / of:.0f}%)" if of else "none"


def _notes(report: Report) -> list[str]:
    share = report.items.groupby("benchmark", sort=False)["unspaced"].mean()
    return [
        f"note: {name} is written without blanks between words: its tokens are characters, so hits come easier"
        for name in share.index[share > 0.5]
    ] + [
        f"too short to be judged: items under {SHORTEST} tokens, by {SIZES[-1]}-grams under {SIZES[-1]}, and whole "
        f"questions under {SHORTEST}"
    ]


def scores_text(scores: dict[tuple[str, ...], CleanSubset]) -> str:
    """The clean-subset score beside the full one, one line for each model, benchmark and metric; in percent."""
    lines = [("model", "benchmark", "metric", "all", "clean", "flagged", "flagged - clean", "p", "detectable")]
    for key, found in scores.items():
        difference = found.difference
        lines.append((
            *key, *(_estimate(part) for part in (found.everything, found.clean, found.flagged)),
            f"{100 * difference.value:.1f} {_interval(difference)}" if difference else "",
            f"{difference.p_value:.3f}" if difference else "", _detectable(found),
        ))  # fmt: skip
    return "\n".join(aligned(lines))


def _detectable(found: CleanSubset) -> str:
    if math.isnan(found.detectable):
        return ""
    return f"{100 * found.detectable:.1f}" if found.detectable <= 1 - found.clean.value else "none: too few"


def _estimate(found: Estimate | None) -> str:
    return f"{100 * found.value:.1f} {_interval(found)} n={found.n}" if found else "none"


def _interval(found) -> str:
    return f"[{100 * found.low:.1f}, {100 * found.high:.1f}]" if found.low == found.low else "[unknown]"


def aligned(rows: list[tuple[str, ...]]) -> list[str]:
    """Rows as lines with their columns under each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
