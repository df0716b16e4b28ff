"""One rank of the study's shardings: all cases one after the other, because the imports take longer than any."""

import json
import sys
from pathlib import Path

import torch

from llamax.config import Config
from llamax.data.packing import Rows
from llamax.files import write_atomic
from llamax.infrastructure.measure import take_steps
from llamax.models.load import load
from llamax.training.config import TrainConfig
from llamax.training.ranks import rank_of


class RanksJob(Config):
    """What each rank measures: the cases by name; rows: a folder written by `Rows.save`."""

    model: str
    pad_token: str | None
    rows: str
    cases: dict[str, TrainConfig]


def main(job_file: str) -> None:
    """Leave `found-<rank>.json` beside the job: of each case, what its steps took on this rank."""
    with rank_of(job_file) as (rank, _):
        job = RanksJob.parse(json.loads(Path(job_file).read_text()), job_file)
        model, tokenizer = load(job.model, dtype=torch.float32, pad_token=job.pad_token)
        rows = Rows.load(job.rows)
        found = {
            name: take_steps(model, rows, config, tokenizer.pad_token_id)._asdict()
            for name, config in job.cases.items()
        }
        write_atomic(Path(job_file).parent / f"found-{rank}.json", json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
