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
from llamax.statistics.power import (
    Needed,
    SamplingParts,
    mcnemar_gain,
    mcnemar_items,
    mcnemar_power,
    minimum_detectable_gain,
    needed,
    one_sided_p,
    required_items,
    sampling_parts,
)
from llamax.statistics.significance import exact_mcnemar, holm

__all__ = [
    "Combined",
    "Difference",
    "Estimate",
    "Needed",
    "SamplingParts",
    "combine",
    "combine_strata",
    "exact_mcnemar",
    "holm",
    "mcnemar_gain",
    "mcnemar_items",
    "mcnemar_power",
    "mean",
    "minimum_detectable_gain",
    "needed",
    "one_sided_p",
    "paired_bootstrap",
    "paired_difference",
    "required_items",
    "sampling_parts",
    "wilson",
]
