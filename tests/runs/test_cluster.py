"""`llamax submit` and `status` with a Slurm made of shell scripts; a real one is in test_slurm.py."""

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llamax import cli
from llamax.errors import LlamaxError, ParameterError, RunError
from llamax.files import repository
from llamax.runs import Store, begin, cluster, parse_parameters, slurm, submitted
from llamax.runs.slurm import JobState
from llamax.runs.task import Task

ROOT = Path(__file__).resolve().parents[2]
SBATCH = """#!{python}
import pathlib, sys
folder = pathlib.Path({folder!r})
if (folder / "refuse").exists():
    sys.exit((folder / "refuse").read_text())
number = len(list(folder.glob("batch-*"))) + 41
(folder / f"batch-{{number}}").write_text(pathlib.Path(sys.argv[1]).read_text())
print(f"Submitted batch job {{number}}")
"""
SQUEUE = """#!/bin/sh
echo "$@" >> {folder}/asked
test -e {folder}/slow && exec sleep 30
test -e {folder}/broken && {{ cat {folder}/broken >&2; exit 1; }}
cat {folder}/queue
"""
SACCT = """#!/bin/sh
test -e {folder}/accounts || {{ echo "Slurm accounting storage is disabled" >&2; exit 1; }}
cat {folder}/accounts
"""


@pytest.fixture
def fake(tmp_path_factory, monkeypatch):
    """Folder with `sbatch`, `squeue`, `sacct`, `srun` that are first on PATH; they answer what lies beside them."""
    folder = tmp_path_factory.mktemp("slurm")
    for name, text in {"sbatch": SBATCH, "squeue": SQUEUE, "sacct": SACCT, "srun": "#!/bin/sh\n"}.items():
        (folder / name).write_text(text.format(folder=str(folder), python=sys.executable))
        (folder / name).chmod(0o755)
    (folder / "queue").write_text("")
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder


def queue(fake, **jobs):
    """Let squeue say these states: `j41_0="RUNNING"`, or with restarts and a reason behind it."""
    lines = []
    for job, said in jobs.items():
        number, _, task = job[1:].partition("_")
        state, restarts, reason = [*said.split(), "0", "None"][:3] if " " not in said else [*said.split(), "None"][:3]
        lines.append(f"{number:<20}{task or 'N/A':<20}{state:<24}{restarts:<12}{reason:<60}")
    (fake / "queue").write_text("\n".join(lines) + "\n")


def call(*arguments):
    result = CliRunner().invoke(cli.app, [*arguments])
    if isinstance(result.exception, LlamaxError):
        return cli.one_line(result.exception)
    assert result.exit_code == 0, result.exception
    return result.stdout


def states():
    """State and why of each run of the toy that is not missing."""
    rows = [line.split(maxsplit=3) for line in call("status").splitlines() if line.startswith("toy")]
    return [(row[2], row[3].strip() if len(row) > 3 else "") for row in rows]


class TestSubmitting:
    def test_one_array_with_the_parameters_that_were_asked_for(self, home, fake):
        said = call(
            "submit", "toy", "--seeds", "0,2-3", "--gpus-per-node", "8", "--time", "1-12", "--partition", "gpu",
            "--account", "us", "--qos", "high", "--mem", "300G", "--cpus-per-task", "64", "--extra", "constraint=a100",
            "-p", "learning_rate=1e-4",
        )  # fmt: skip
        lines = said.splitlines()
        assert [line.split()[:3] for line in lines] == [["seed", seed, "queued"] for seed in "023"]
        assert [line.split("job ")[1] for line in lines] == [
            f"41_{task}, log: runs/slurm/41_{task}_0_log.out" for task in range(3)
        ]
        batch = (fake / "batch-41").read_text()
        flags = {line.removeprefix("#SBATCH --") for line in batch.splitlines() if line.startswith("#SBATCH")}
        assert flags >= {
            "array=0-2%3", "nodes=1", "ntasks-per-node=1", "gpus-per-node=8", "time=2160", "partition=gpu",
            "account=us", "qos=high", "mem=300G", "cpus-per-task=64", "constraint=a100", "requeue", "open-mode=append",
            "signal=USR2@120", "job-name=llamax-toy",
        }  # fmt: skip
        assert "--nodes=1 --ntasks=1 --cpu-bind=none --cpus-per-task=64" in batch
        ticket = json.loads((home / "runs" / "slurm" / "41_1.json").read_text())
        assert (ticket["direction"], ticket["profile"], ticket["seed"], ticket["ended"]) == ("toy", "nano", 2, None)
        assert ticket["run"] == lines[1].split()[3].removeprefix("toy/")

    def test_the_job_holds_what_llamax_run_would_be_given(self, home, fake):
        from submitit.core.utils import DelayedSubmission

        call("submit", "toy", "--seeds", "7", "-p", "learning_rate=1e-4")
        delayed = DelayedSubmission.load(home / "runs" / "slurm" / "41_submitted.pkl")
        wanted = {"direction": "toy", "profile": "nano", "overrides": {"learning_rate": 1e-4}, "seed": 7}
        assert delayed.function.arguments == wanted
        assert delayed._timeout_countdown == 20
        again = delayed.function.checkpoint()
        assert (again.function.arguments, again.function.nodes) == (wanted, 1)

    def test_a_complete_run_is_not_submitted_and_one_on_its_way_is_named(self, home, fake):
        run = begin("toy", parse_parameters("toy", "nano", 1))
        run.metric("accuracy", 0.5)
        running = call("submit", "toy", "--seeds", "1")
        assert running.split()[2] == "running"
        record = run.complete()
        said = call("submit", "toy", "--seeds", "0,1").splitlines()
        assert said[1] == f"seed 1    complete   toy/{record.run}  results/toy/{record.run}; not submitted"
        assert "job 41, log" in said[0]
        queue(fake, j41="PENDING 0 Priority")
        assert call("submit", "toy", "--seeds", "0").strip().endswith("job 41 (Priority)")
        assert len(list(fake.glob("batch-*"))) == 1
        queue(fake, j41="CANCELLED")
        assert "job 42, log" in call("submit", "toy", "--seeds", "0")

    def test_without_slurm_it_says_so_and_what_to_do(self, home, monkeypatch, tmp_path):
        monkeypatch.setenv("PATH", str(tmp_path))
        said = call("submit", "toy", "--seeds", "3,4")
        assert said == (
            "no Slurm here: there is no sbatch on PATH; submit from a login node of a cluster, or run it here: "
            "llamax run toy --profile nano --seed 3"
        )
        assert not (home / "runs").exists()

    def test_what_sbatch_says_against_it_is_one_line(self, home, fake):
        (fake / "refuse").write_text("sbatch: error: invalid account\nsbatch: error: Batch job submission failed")
        said = call("submit", "toy")
        assert said == "Slurm refuses the job: invalid account; Batch job submission failed"
        assert submitted.tickets(Store()) == []

    def test_when_slurm_does_not_answer_nothing_is_submitted_twice(self, home, fake):
        call("submit", "toy")
        (fake / "broken").write_text("slurm_load_jobs error: Unable to contact slurm controller (connect failure)")
        assert "Unable to contact slurm controller" in call("submit", "toy")
        assert len(list(fake.glob("batch-*"))) == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nope"], "no direction 'nope': there are toy"),
        (["toy", "--profile", "9b"], "no profile '9b': there are nano, other, test"),
        (["toy", "--seeds", "0,x"], "--seeds '0,x': 'x' is no seed; write such as 0,1,2 or 0-4"),
        (["toy", "--seeds", ""], "'' is no seed"),
        (["toy", "--seeds", "3-1"], "'3-1' is no seed"),
        (["toy", "--seeds", "0-2,1"], "1 is named twice"),
        (["toy", "--time", "tomorrow"], "--time 'tomorrow': write minutes, hours:minutes:seconds or days-hours"),
        (["toy", "--time", "0"], "no time at all"),
        (["toy", "--mem", "lots"], "mem 'lots': write a size such as 300G"),
        (["toy", "--nodes", "2"], "--nodes 2: toy at profile nano has no ranks to spread over nodes"),
        (["toy", "--nodes", "0"], "parameter 'nodes' = 0: Input should be greater than or equal to 1"),
        (["toy", "--extra", "constraint"], "--extra 'constraint': write NAME=VALUE"),
        (["toy", "--extra", "array=0-9"], "extra 'array': that one has an option of its own, or is set by llamax"),
        (["toy", "--extra", "a b=1"], "extra 'a b': not the name of an sbatch parameter"),
        (["toy", "-p", "learning_rat=1"], "unknown parameter 'learning_rat': did you mean 'train.learning_rate'?"),
        (["toy", "-p", "seed=1"], "-p seed=...: give --seeds instead"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_submitted(home, fake, arguments, says):
    said = call("submit", *arguments)
    assert says in said
    assert "\n" not in said
    assert not list(fake.glob("batch-*"))


class TestRanks:
    """The ranks of direction 01 follow from nodes and GPUs."""

    def test_what_follows_is_said(self, fake, monkeypatch, home):
        heard = []
        monkeypatch.setenv("LLAMAX_HOME", str(ROOT))
        monkeypatch.setenv("PATH", str(fake / "nothing"))
        resources = cluster.Resources(nodes=2, gpus_per_node=8)
        with pytest.raises(RunError, match="no Slurm here"):
            cluster.submit("instruction_tuning", "7b", [0], {}, resources, tell=heard.append)
        assert heard == ["from nodes and GPUs follows: train.ranks=16, train.micro_batch=1"]

    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            (
                ["--profile", "7b", "--nodes", "3", "--gpus-per-node", "8"],
                "batch_size 16 cannot be shared by 24 ranks: -p train",
            ),
            (["--nodes", "2", "--gpus-per-node", "8", "--profile", "7b", "-p", "micro_batch=8"], "8 x ranks 16"),
            (["--profile", "nano", "--gpus-per-node", "2"], "engine 'torch' is one device"),
        ],
    )
    def test_a_batch_that_does_not_divide_is_refused_before_submission(self, fake, monkeypatch, arguments, says):
        monkeypatch.setenv("LLAMAX_HOME", str(ROOT))
        assert says in call("submit", "instruction_tuning", *arguments)
        assert not list(fake.glob("batch-*"))


class TestStatus:
    @pytest.fixture
    def three(self, home, fake):
        call("submit", "toy", "--seeds", "0-2")
        return fake

    def log(self, task):
        path = repository() / "runs" / "slurm" / f"41_{task}_0_log.out"
        path.write_text("what it said\n")
        return f"log: runs/slurm/{path.name}"

    def test_queued_running_preempted(self, three):
        queue(three, j41_0="RUNNING 2", j41_1="PENDING 0 Resources", j41_2="PENDING 1 BeginTime")
        assert states() == [
            ("running", "job 41_0, requeued 2×"),
            ("queued", "job 41_1 (Resources)"),
            ("preempted", "job 41_2 waits to go on (BeginTime), requeued 1×"),
        ]
        assert (three / "asked").read_text().count("\n") == 1
        assert "--jobs=41 " in (three / "asked").read_text()

    def test_how_a_job_ended_is_remembered_when_slurm_has_forgotten(self, three):
        queue(three, j41_0="TIMEOUT", j41_1="CANCELLED", j41_2="OUT_OF_MEMORY")
        wanted = [
            ("failed", f"job 41_0 ended as TIMEOUT; {self.log(0)}"),
            ("cancelled", f"job 41_1; {self.log(1)}"),
            ("failed", f"job 41_2 ended as OUT_OF_MEMORY; {self.log(2)}"),
        ]
        assert states() == wanted
        (three / "squeue").unlink()
        assert CliRunner().invoke(cli.app, ["status"]).stderr == ""  # not asked again
        assert states() == wanted

    def test_a_job_that_the_controller_forgot_is_looked_up_in_the_accounts(self, three):
        for task in range(3):
            self.log(task)
        queue(three, j41_1="RUNNING")
        (three / "accounts").write_text("41_0|CANCELLED by 1000\n41_2|FAILED\n")
        assert [state for state, _ in states()] == ["cancelled", "running", "failed"]

    def test_without_accounts_a_job_that_nobody_knows_is_over(self, three):
        """One that never began was cancelled while it waited: Slurm drops such a task of an array at once."""
        log = self.log(0)
        queue(three, j41_1="RUNNING")
        (state, why), _, cancelled = states()
        assert (state, why) == ("failed", f"job 41_0 is over, and Slurm no longer knows how; {log}")
        assert cancelled[0] == "cancelled"
        (three / "broken").write_text("slurm_load_jobs error: Invalid job id specified")
        assert [state for state, _ in states()] == ["failed", "cancelled", "cancelled"]

    @pytest.mark.parametrize("fault", ["slow", "broken", "absent"])
    def test_it_says_so_when_slurm_does_not_answer(self, three, fault, monkeypatch):
        if fault == "absent":
            monkeypatch.setenv("PATH", str(three / "nothing"))
        (three / fault).write_text("slurm_load_jobs error: Unable to contact slurm controller")
        result = CliRunner().invoke(cli.app, ["status"])
        says = {
            "slow": "squeue said nothing for",
            "broken": "Unable to contact slurm controller",
            "absent": "there is no squeue on PATH",
        }[fault]
        assert result.exit_code == 0
        assert says in result.stderr
        assert result.stderr.endswith(": submitted runs are as they were last known\n")
        assert states() == [("submitted", f"job 41_{task}, as last known") for task in range(3)]

    def test_slurm_is_not_asked_where_nothing_was_submitted(self, home, fake):
        assert states() == [("missing", "llamax run toy --profile nano")]
        assert not (fake / "asked").exists()

    def test_a_complete_record_ends_the_matter(self, three):
        for seed in (0, 1):
            run = begin("toy", parse_parameters("toy", "nano", seed))
            run.metric("accuracy", 0.5)
            run.complete()
        queue(three, j41_0="COMPLETED", j41_1="CANCELLED", j41_2="COMPLETED")
        self.log(2)
        assert [state for state, _ in states()] == ["fresh", "fresh", "failed"]  # the last one left no record

    def test_code_that_was_edited_before_the_job_began_does_not_leave_it_open(self, three, home):
        helper = home / "src" / "llamax" / "toy" / "deep.py"
        helper.write_text("def half(x):\n    return x / 4\n")
        for seed in range(3):
            run = begin("toy", parse_parameters("toy", "nano", seed))
            run.metric("accuracy", 0.25)
            run.complete()
        queue(three, j41_0="COMPLETED", j41_1="COMPLETED", j41_2="COMPLETED")
        assert [state for state, _ in states()] == ["fresh"] * 3

    def test_a_run_that_goes_on_elsewhere_is_running(self, three):
        queue(three, j41_0="CANCELLED", j41_1="RUNNING", j41_2="CANCELLED")
        run = begin("toy", parse_parameters("toy", "nano", 0))
        assert [state for state, _ in states()] == ["running", "running", "cancelled"]
        run.fail("boom")
        assert [state for state, _ in states()] == ["cancelled", "running", "cancelled"]

    def test_a_damaged_ticket_is_named(self, three, home):
        (home / "runs" / "slurm" / "41_1.json").write_text("{")
        assert "runs/slurm/41_1.json: damaged" in call("status")


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("90", 90), ("90:00", 90), ("0:30", 1), ("1:30:00", 90), ("8:00:01", 481), ("1-0", 1440), ("2-12", 3600),
        ("1-0:30", 1470), ("1-00:00:30", 1441),
    ],
)  # fmt: skip
def test_times_as_sbatch_takes_them(text, minutes):
    """The forms of sbatch(1): minutes, minutes:seconds, hours:minutes:seconds, days-hours[:minutes[:seconds]]."""
    assert slurm.minutes(text) == minutes


@pytest.mark.parametrize("text", ["", "x", "-5", "1:2:3:4", "1.5", "1-", "2h", "1-2-3"])
def test_other_times_are_refused(text):
    with pytest.raises(ParameterError, match="--time"):
        slurm.minutes(text)


def test_jobs_that_are_cancelled_count_as_over_and_those_that_are_requeued_do_not():
    over = {state: JobState(state).over for state in ("COMPLETED", "CANCELLED", "NODE_FAIL", "REQUEUED", "COMPLETING")}
    assert over == {"COMPLETED": True, "CANCELLED": True, "NODE_FAIL": True, "REQUEUED": False, "COMPLETING": False}


@pytest.mark.parametrize(("time", "delay"), [("24:00:00", 120), ("8:00", 120), ("2:00", 60), ("1:00", 30)])
def test_the_warning_comes_while_there_is_time(time, delay):
    limit = slurm.minutes(time)
    assert cluster.sbatch("x", cluster.Resources(time=time), limit)["signal_delay_s"] == delay < limit * 60


def test_a_job_on_several_nodes_writes_a_hostfile_for_the_launcher(tmp_path, monkeypatch):
    told = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "a[08-10],b1", "SUBMITIT_EXECUTOR": "slurm"}
    for name, value in (told | {"SUBMITIT_FOLDER": str(tmp_path)}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    (tmp_path / "srun").write_text("")
    (tmp_path / "srun").chmod(0o755)
    assert Task({}, nodes=1, slots=8)._places() == {}
    places = Task({}, nodes=4, slots=8)._places()
    assert places == {"LLAMAX_HOSTFILE": str(tmp_path / "7.hosts"), "LLAMAX_LAUNCHER": "srun"}
    assert (tmp_path / "7.hosts").read_text() == "a08 slots=8\na09 slots=8\na10 slots=8\nb1 slots=8\n"


def test_a_run_that_fails_in_a_job_is_an_error_of_the_job(home, monkeypatch):
    with pytest.raises(RunError, match="toy: the run ended with status 2"):
        Task({"direction": "toy", "profile": "nowhere", "overrides": {}, "seed": 0})()
