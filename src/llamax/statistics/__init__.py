"""How sure a number is: clustered intervals, paired tests, the bootstrap, and gains over items and training seeds.

Items that share a source (one passage, one subject) are not independent: give their `clusters` and the standard error
counts clusters, not items. Comparisons are paired, item by item.
"""

from llamax.statistics.bootstrap import paired_bootstrap
from llamax.statistics.estimates import (
    Combined,
    Difference,
    Estimate,
    combine,
    combine_strata,
    mean,
    paired_difference,
    wilson,
)
from llamax.statistics.significance import exact_mcnemar, holm

__all__ = [
    "Combined",
    "Difference",
    "Estimate",
    "combine",
    "combine_strata",
    "exact_mcnemar",
    "holm",
    "mean",
    "paired_bootstrap",
    "paired_difference",
    "wilson",
]
