"""How sure a number is: clustered intervals, paired tests, power, preferences, agreement and calibration.

Items that share a source (one passage, one subject) are not independent: give their `clusters` and the standard error
counts clusters, not items. Comparisons are paired, item by item.
"""

from llamax.statistics.agreement import krippendorff_alpha
from llamax.statistics.bootstrap import paired_bootstrap
from llamax.statistics.calibration import Calibration, brier_score, expected_calibration_error
from llamax.statistics.comparison import PairedComparison, compare_outcomes
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
from llamax.statistics.preferences import (
    Ranking,
    Strength,
    bradley_terry,
    crossed_variance,
    position_bias,
    sign_test,
    win_rate,
)
from llamax.statistics.scores import combine_scores, score
from llamax.statistics.significance import exact_mcnemar

__all__ = [
    "Calibration",
    "Combined",
    "Difference",
    "Estimate",
    "Needed",
    "PairedComparison",
    "Ranking",
    "SamplingParts",
    "Strength",
    "bradley_terry",
    "brier_score",
    "combine",
    "combine_scores",
    "combine_strata",
    "compare_outcomes",
    "crossed_variance",
    "exact_mcnemar",
    "expected_calibration_error",
    "krippendorff_alpha",
    "mcnemar_gain",
    "mcnemar_items",
    "mcnemar_power",
    "mean",
    "minimum_detectable_gain",
    "needed",
    "one_sided_p",
    "paired_bootstrap",
    "paired_difference",
    "position_bias",
    "required_items",
    "sampling_parts",
    "score",
    "sign_test",
    "wilson",
    "win_rate",
]
