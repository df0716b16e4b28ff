"""Which test items a training set holds, and what a score is without them.

Measured, item by item: common 13-grams, common 8-grams, and whether the data holds the whole question, in the tokens of
`tokens`. An item's text is its question and the options that the benchmark's prompt shows (MMLU: question and four
options; HumanEval: the prompt; GSM8K, NQ-open, TruthfulQA: the question), without worked examples and answers.

It does not see paraphrases, translations and answers without their questions; and it takes for the same what differs
only in signs (`a - b`, `a + b`), which matters for short questions on code and formulas.
"""

from llamax.evaluation.contamination.clean import (
    RULES,
    CleanSubset,
    clean_scores,
    clean_subset,
    decontaminate,
    flagged,
    rows_to_remove,
)
from llamax.evaluation.contamination.documents import Document, Documents, documents
from llamax.evaluation.contamination.index import Index, Item, Scan
from llamax.evaluation.contamination.items import benchmark_items, benchmark_names
from llamax.evaluation.contamination.report import Report, as_json, check, read_report, summary, write

__all__ = [
    "RULES",
    "CleanSubset",
    "Document",
    "Documents",
    "Index",
    "Item",
    "Report",
    "Scan",
    "as_json",
    "benchmark_items",
    "benchmark_names",
    "check",
    "clean_scores",
    "clean_subset",
    "decontaminate",
    "documents",
    "flagged",
    "read_report",
    "rows_to_remove",
    "summary",
    "write",
]
