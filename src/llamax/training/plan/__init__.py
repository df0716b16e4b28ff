"""What a training run will need, before it starts: memory on devices and hosts, disk, operations, time. No torch.

    from llamax.training.plan import PlanData, find_shape, parse_hardware, plan, report
    found = plan(find_shape("llama-13b"), train_config, parse_hardware("8xV100-32GB", "300GB"), PlanData(length=2048))
    print(report(found))

Every size follows from the architecture and from how transformers 5.23, DeepSpeed 0.19.8 and this package's engines
allocate; what is assumed (CUDA context, fragmentation, a process's own memory, MFU) is named so. Checked against
DeepSpeed's estimators (tests/training/test_plan_deepspeed.py) and against measured peaks (benchmarks/memory.py).
"""

from llamax.training.plan.hardware import Hardware, parse_hardware
from llamax.training.plan.planning import Plan, plan
from llamax.training.plan.setup import PlanData, Setup
from llamax.training.plan.shapes import Shape, find_shape, shape_of, shapes
from llamax.training.plan.show import as_json, report

__all__ = [
    "Hardware", "Plan", "PlanData", "Setup", "Shape", "as_json", "find_shape", "parse_hardware", "plan", "report",
    "shape_of", "shapes",
]  # fmt: skip
