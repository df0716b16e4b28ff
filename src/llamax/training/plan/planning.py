"""The plan of a run, whole. No torch."""

from typing import Any, NamedTuple

from llamax.errors import ParameterError
from llamax.training.plan.compute import Compute, compute
from llamax.training.plan.hardware import Hardware
from llamax.training.plan.setup import PlanData, Setup
from llamax.training.plan.shapes import Shape
from llamax.training.plan.states import Counts, counts
from llamax.training.plan.verdict import Needs, Verdict, judge, needs


class Plan(NamedTuple):
    """What a run is (`shape`, `setup`, `hardware`, `data`), what it takes, and whether that is there."""

    shape: Shape
    setup: Setup
    hardware: Hardware
    data: PlanData
    counts: Counts
    needs: Needs
    compute: Compute
    verdict: Verdict


def plan(
    shape: Shape,
    train: Any,
    hardware: Hardware,
    data: PlanData,
    *,
    mfu: float | None = None,
    source: str = "given",
    **changes: Any,
) -> Plan:
    """Plan the training `train` (a `TrainConfig`, or anything with its fields; `changes` on top) of `shape`.

    mfu: share of the GPU's peak, in place of the assumed one; `source` says where it is from.
    Raises: ParameterError: ranks that are not the GPUs, an MFU outside of 0..1, sizes of data that cannot be.
    """
    setup = Setup.of(train, data, **changes)
    if setup.ranks != hardware.gpus:
        raise ParameterError(
            f"the training has {setup.ranks} ranks but {hardware} is {hardware.gpus} GPUs: set train.ranks = "
            f"{hardware.gpus} (batch_size must be a multiple of micro_batch x ranks), or plan for other GPUs"
        )
    if mfu is not None and not 0 < mfu <= 1:
        raise ParameterError(f"mfu {mfu:g}: should be above 0 and at most 1, such as 0.4")
    for name, value, low in (
        ("length", data.length, 2),
        ("documents", data.documents, 1),
        ("mean_document", data.mean_document, 1),
    ):
        if value is not None and value < low:
            raise ParameterError(f"{name} {value:g}: should be at least {low}")
    return Plan(
        shape,
        setup,
        hardware,
        data,
        counts(shape, setup),
        needs(shape, setup, hardware, data),
        compute(shape, setup, hardware, data, mfu, source),
        judge(shape, setup, hardware, data),
    )
