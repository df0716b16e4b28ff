"""Runs on a real Slurm, which is started for these tests: warned, preempted, cancelled, killed. All slow."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest
from slurm_node import slurm

from llamax.files import sha256_file
from llamax.runs import Store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 400
SMALL = [
    "data.max_examples=120",
    "methods=[full]",
    "replicates=1",
    "train.epochs=6",
    "train.max_steps=60",
    "train.batch_size=2",
    "train.micro_batch=1",
    "train.checkpoint_every=3",
    "answers=1",
    "evaluation.protocols=[chat]",
    "evaluation.limits={knowledge: 2, arithmetic: 2, open_qa: 2, truthfulness: 2, code: 2}",
    "evaluation.text_documents=2",
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with slurm(tmp_path_factory.mktemp("slurm")) as environment:
        yield environment


@pytest.fixture
def toy(home, cluster, monkeypatch):
    """The toy direction's repository, with a Slurm to submit to."""
    for name, value in cluster.items():
        monkeypatch.setenv(name, value)
    return home


@pytest.fixture(scope="module")
def place(tmp_path_factory, cluster):
    """Makes repositories with the real direction 01 and no results yet."""

    def make(name):
        root = tmp_path_factory.mktemp(name)
        for part in ("notebooks", "data_cards"):
            shutil.copytree(ROOT / part, root / part)
        shutil.copy(ROOT / "constraints.txt", root)
        os.environ.update(cluster)
        return root

    before = dict(os.environ)
    yield make
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def undisturbed(place):
    """Two seeds that nobody disturbed."""
    root = place("undisturbed")
    outcome = submit(root, "--seeds", "0,1")
    wait_for(root, lambda rows: [row[2] for row in rows].count("fresh") == 2)
    return root, outcome


def llamax(root, *arguments, fails=False):
    code = "from llamax.cli import main; main()"
    environment = os.environ | {"LLAMAX_HOME": str(root)}
    done = subprocess.run([sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True)
    assert (done.returncode != 0) == fails, done.stderr
    return done.stderr if fails else done.stdout


def submit(root, *arguments, direction="instruction_tuning", parameters=SMALL):
    pairs = [part for parameter in parameters for part in ("-p", parameter)]
    return llamax(root, "submit", direction, *arguments, *pairs)


def status(root):
    """Direction, run, state and why of each submitted or recorded run."""
    rows = [line.split(maxsplit=3) for line in llamax(root, "status").splitlines()]
    return [[*row, ""][:4] for row in rows if row[2] != "missing"]


def wait_for(root, done, seconds=PATIENCE):
    """Ask for the status until `done(rows)`; all states that were seen of each run on the way."""
    end, seen = time.monotonic() + seconds, {}
    while True:
        rows = status(root)
        for row in rows:
            states = seen.setdefault(row[1], [])
            if row[2] not in states[-1:]:
                states.append(row[2])
        if done(rows):
            return seen
        logs = "\n".join(path.read_text()[-2000:] for path in root.glob("runs/slurm/*.out"))
        assert time.monotonic() < end, f"{rows}\n{logs}"
        time.sleep(0.5)


def wait_for_path(root, pattern, seconds=PATIENCE):
    end = time.monotonic() + seconds
    while not (found := sorted(root.glob(pattern))):
        assert time.monotonic() < end, f"{pattern} never came"
        time.sleep(0.05)
    return found[-1]


def jobs(said):
    """Job ids that `llamax submit` named."""
    return re.findall(r"job (\d+(?:_\d+)?)", said)


def processes_of(root):
    """The processes that submitit's jobs are, in this repository."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        if "submitit.core._submit" in line and str(root) in line and "srun" not in line and "python" in line:
            found.append(process)
    return found


def same(one, other, seed):
    """Assert that both repositories have one record for `seed`, the same number by number, item by item, bit by bit."""
    pair = [[r for r in Store(root).records() if r.seed == seed] for root in (one, other)]
    assert [len(records) for records in pair] == [1, 1]
    (a,), (b,) = pair
    assert (a.run, a.key) == (b.run, b.key)
    assert a.metrics == b.metrics
    assert a.cost.tokens == b.cost.tokens
    assert a.files["items.parquet"] == b.files["items.parquet"]
    curves = [Store(root).series(record, "curves").drop(columns="seconds") for root, record in ((one, a), (other, b))]
    pd.testing.assert_frame_equal(*curves, check_exact=True)
    models = [Store(root).scratch(a.direction, a.run) / "full-0" / "model" for root in (one, other)]
    weights = [sha256_file(folder / "model.safetensors") for folder in models]
    assert weights[0] == weights[1]


def attempts(root, seed):
    """How often the run was begun, as its job's log tells."""
    (log,) = (text for path in root.glob("runs/slurm/*_0_log.out") if f"seed {seed} ->" in (text := path.read_text()))
    return log.count(f"seed {seed} ->")


def first_steps(root, seed):
    """Seconds that each step took, of those behind the first checkpoint; waits for it."""
    state = wait_for_path(root, f"runs/instruction_tuning/nano-s{seed}-*/full-0/checkpoints/step-*/run.json")
    return [step[-1] for step in json.loads(state.read_text())["steps"]]


def seconds_of(root, seed):
    """Seconds that each step took, as the record tells."""
    (record,) = (record for record in Store(root).records() if record.seed == seed)
    return Store(root).series(record, "curves").seconds.tolist()


def test_an_array_of_two_seeds_completes_with_one_record_each_and_is_not_submitted_again(undisturbed):
    root, said = undisturbed
    assert jobs(said) == [f"{jobs(said)[0].split('_')[0]}_{task}" for task in (0, 1)]
    assert said.count(" queued ") == 2
    assert sorted((r.seed, r.status) for r in Store(root).records()) == [(0, "complete"), (1, "complete")]
    assert all(record.overrides["train.max_steps"] == 60 for record in Store(root).records())
    again = submit(root, "--seeds", "0,1")
    assert again.count(" complete ") == again.count("not submitted") == 2
    assert jobs(again) == []


def test_a_warning_and_a_preemption_leave_the_result_as_it_would_have_been(undisturbed, place):
    """Seed 0 is sent the signal that Slurm sends when time is nearly up; seed 1 is requeued without a warning."""
    root = place("disturbed")
    warned, preempted = jobs(submit(root, "--seeds", "0,1"))
    assert submit(root, "--seeds", "0,1").count(warned.split("_")[0]) == 2  # on their way: named, not submitted again
    began = {0: first_steps(root, 0)}
    subprocess.run(["scancel", "--signal=USR2", warned], check=True)
    began[1] = first_steps(root, 1)
    subprocess.run(["scontrol", "requeue", preempted], check=True)
    seen = wait_for(root, lambda rows: is_fresh(rows, 2))
    assert all(states[-1] == "fresh" and "preempted" in states for states in seen.values()), seen
    for seed in (0, 1):
        assert attempts(root, seed) == 2
        assert seconds_of(root, seed)[: len(began[seed])] == began[seed]  # resumed: not one of them was taken again
        assert seconds_of(undisturbed[0], seed)[: len(began[seed])] != began[seed]
        same(undisturbed[0], root, seed)


def is_fresh(rows, number):
    return [row[2] for row in rows] == ["fresh"] * number


def test_ranks_on_two_nodes_start_by_srun_are_warned_and_compute_what_two_ranks_on_one_node_do(place):
    two = [*SMALL, "train.engine=deepspeed", "train.ranks=2"]
    one_node, two_nodes = place("one_node"), place("two_nodes")
    submit(one_node, parameters=two)
    wait_for(one_node, lambda rows: is_fresh(rows, 1))
    (job,) = jobs(submit(two_nodes, "--nodes", "2", parameters=two))
    began = first_steps(two_nodes, 0)
    steps = subprocess.run(["squeue", "--steps", "--noheader", "--format=%i %N"], capture_output=True, text=True).stdout
    assert f"{job}.1 n[1-2]" in steps
    assert (two_nodes / "runs" / "slurm" / f"{job}.hosts").read_text() == "n1 slots=1\nn2 slots=1\n"
    subprocess.run(["scancel", "--signal=USR2", job], check=True)
    seen = wait_for(two_nodes, lambda rows: is_fresh(rows, 1))
    assert "preempted" in next(iter(seen.values()))
    assert seconds_of(two_nodes, 0)[: len(began)] == began
    same(one_node, two_nodes, 0)


def test_status_tells_queued_running_cancelled_failed_and_killed(toy):
    sleep = jobs(submit(toy, "--seeds", "0-2", direction="toy", parameters=["mode=sleep"]))
    wait_for(toy, lambda rows: [row[2] for row in rows] == ["running", "running", "queued"])
    wait_for_path(toy, "runs/toy/nano-s0-*/at_work")
    again = submit(toy, "--seeds", "0-2", direction="toy", parameters=["mode=sleep"])
    assert (jobs(again), again.count(" running "), again.count(" queued ")) == (sleep, 2, 1)

    subprocess.run(["scancel", sleep[2], sleep[1]], check=True)  # one that waits, one that runs
    killed = sleep[0]
    (process,) = [p for p in processes_of(toy) if p.environ()["SLURM_ARRAY_TASK_ID"] == "0"]
    kin = process.children(recursive=True)
    assert len(kin) >= 2  # the run and its kernel
    process.send_signal(signal.SIGKILL)
    wait_for(toy, lambda rows: [row[2] for row in rows] == ["failed", "cancelled", "cancelled"])
    psutil.wait_procs(kin, timeout=60)
    assert not [p for p in kin if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    rows = status(toy)
    assert f"job {killed} ended as FAILED; log: runs/slurm/{killed}_0_log.out" in rows[0][3]
    assert (toy / "runs" / "slurm" / f"{killed}_0_log.out").is_file()
    assert rows[1][3] == f"job {sleep[1]}; log: runs/slurm/{sleep[1]}_0_log.out"
    tickets = [json.loads((toy / "runs" / "slurm" / f"{job}.json").read_text()) for job in sleep]
    assert [ticket["ended"] for ticket in tickets] == ["FAILED", "CANCELLED", "CANCELLED"]

    submit(toy, direction="toy", parameters=["mode=error"])
    wait_for(toy, lambda rows: [row[2] for row in rows].count("failed") == 2)
    assert [row for row in status(toy) if "ValueError: at step 3; job " in row[3]]


def test_a_cancelled_run_can_be_submitted_again_and_completes(toy):
    said = submit(toy, "--seeds", "0-2", direction="toy", parameters=["mode=ok"])
    subprocess.run(["scancel", *jobs(said)], check=True)
    wait_for(toy, lambda rows: [row[2] for row in rows] == ["cancelled"] * 3)
    assert submit(toy, "--seeds", "0-2", direction="toy", parameters=["mode=ok"]).count(" queued ") == 3
    wait_for(toy, lambda rows: is_fresh(rows, 3))
    assert sorted(record.seed for record in Store(toy).records()) == [0, 1, 2]


def test_what_slurm_refuses_is_one_line(toy):
    said = llamax(toy, "submit", "toy", "--partition", "nowhere", fails=True)
    assert said.startswith("error: Slurm refuses the job: ")
    assert "nowhere" in said
    assert said.count("\n") == 1
