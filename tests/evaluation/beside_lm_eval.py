"""lm-eval's own requests beside ours: the same words, the same settings."""

from pathlib import Path

import lm_eval.tasks
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks._yaml_loader import load_yaml

from llamax.evaluation import benchmarks
from llamax.evaluation.definitions import Settings, find, resolved
from llamax.evaluation.harness import build_requests, load_tasks


def lm_evals_requests(file: str, shots: int | None, items: int) -> dict[int, list[tuple]]:
    """Arguments of the requests that lm-eval makes of its own definition on one rank, its data served by us."""
    config = dict(load_yaml(Path(lm_eval.tasks.__file__).parent / file, resolve_func="humaneval" not in file))
    if "humaneval" in file:
        config |= {"metric_list": [{"metric": "bypass"}], "filter_list": None}
    config |= {} if shots is None else {"num_fewshot": shots}
    data = benchmarks.load(config["dataset_path"], config.get("dataset_name"))
    task = ConfigurableTask(config=config | {"custom_dataset": lambda **_: data})
    task.set_fewshot_seed(seed=1234)
    task.build_all_requests(limit=items)
    made = {}
    for request in task.instances:
        made.setdefault(request.doc_id, []).append(request.args)
    return made


def check_against_lm_eval(name: str, file: str, shots: int | None, items: int) -> None:
    """Fail unless our requests of the first `items` items are those of lm-eval's definition `file`."""
    task_name = next(iter(resolved(find(name), Settings())))
    tasks, _ = load_tasks(find(name), Settings())
    ours = {}
    for request in build_requests(tasks[task_name], list(range(items))):
        ours.setdefault(request.doc_id, []).append(request.args)
    theirs = lm_evals_requests(file, shots, items)
    assert list(ours) == list(theirs) == list(range(items))
    for number, requests in theirs.items():
        assert [prompt for prompt, _ in ours[number]] == [prompt for prompt, _ in requests]
        for (_, made), (_, wanted) in zip(ours[number], requests, strict=True):
            if isinstance(wanted, dict):  # generation settings: the same, with the defaults spelled out
                wanted = {"temperature": 0.0, "max_gen_toks": 256} | wanted
            assert made == wanted
