"""One rank of two that trains the shrunk jobs of all profiles, one after the other; each is cut off and resumed.

    python profile_ranks.py JOB.json JOB.json ...

leaves `history.json` in each job's `out`, beside its checkpoints and its model.
"""

import json
import sys
from pathlib import Path

from llamax.training.config import Job
from llamax.training.ranks import leave
from llamax.training.worker import run_job


class Cut(Exception):
    """Stands for whatever ends a run early, on every rank at the same step."""


def cut_after_two(metrics):
    if metrics.step == 1:
        raise Cut


for path in sys.argv[1:]:
    job = Job.parse(json.loads(Path(path).read_text()))
    try:
        run_job(job, on_step=cut_after_two)
    except Cut:
        history = run_job(job)
        Path(job.out, "history.json").write_text(history.to_json())
leave()
