"""Ranks started from this process: followed while they run, quoted when they fail, gone when we are."""

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap

import psutil
import pytest
from filelock import FileLock
from training_cases import new_config, new_rows

from llamax.errors import LaunchError
from llamax.training import ranks as launcher
from llamax.training.config import Job
from llamax.training.launch import launch, train
from llamax.training.ranks import free_port

SHARDED = {"engine": "deepspeed", "ranks": 2, "zero_stage": 3}


def new_job(tmp_path, tiny_model, tiny_tokenizer, **changes):
    """A two-rank ZeRO-3 job over a saved tiny model and saved rows."""
    from llamax.models.save import save

    model = str(save(tiny_model, tiny_tokenizer, tmp_path / "base"))
    rows = str(new_rows(length=64).save(tmp_path / "rows"))
    config = new_config(engine="deepspeed", ranks=2, zero_stage=3, max_steps=3)
    values = {"model": model, "rows": rows, "train": config, "out": str(tmp_path / "out"), "template": "aa"}
    return Job(**values | changes)


def test_an_occupied_port_is_said_before_anything_starts(tmp_path):
    job = Job(model="nowhere", rows="nowhere", train=new_config(), out=str(tmp_path / "out"), template="")
    with socket.socket() as occupied:
        occupied.bind(("", 0))
        occupied.listen()
        port = occupied.getsockname()[1]
        with pytest.raises(LaunchError, match=f"port {port} cannot be used .*already in use.*: give another"):
            launch(job.model_copy(update={"port": port}))
    assert not (tmp_path / "out").exists()
    assert 1024 <= free_port() <= 65535


def test_only_whole_lines_are_reported(tmp_path):
    file = tmp_path / "steps.jsonl"
    lines = launcher.new_lines(file)
    assert next(lines) == []
    file.write_text("one\ntw")
    assert next(lines) == [b"one"]
    assert next(lines) == []
    with open(file, "a") as stream:
        stream.write("o\n")
    assert next(lines) == [b"two"]


def test_the_earliest_failure_is_the_one_quoted(tmp_path):
    for rank, when, text in [(0, 2.0, "ConnectionReset: peer is gone\n"), (3, 1.0, "ValueError: the cause\n")]:
        (tmp_path / f"error-{rank}.json").write_text(json.dumps({"time": when, "traceback": text}))
    message = launcher.first_failure(tmp_path, 1, 4)
    assert message.startswith("rank 3 failed") and message.endswith("ValueError: the cause")


def test_ranks_killed_without_a_word_are_told_by_the_log(tmp_path):
    (tmp_path / "log.txt").write_text("loading\nexits with return code = -9\n")
    message = launcher.first_failure(tmp_path, 247, 2).splitlines()
    assert message[-3:-1] == ["loading", "exits with return code = -9"]
    assert message[-1] == "the ranks ended without a traceback: killed, or out of memory? (status 247)"


def test_a_survivor_is_not_taken_for_the_cause(tmp_path):
    lost = "Traceback\nRuntimeError: [gloo] Connection closed by peer [127.0.0.1]. See the log.\nGood luck!\n"
    (tmp_path / "error-0.json").write_text(json.dumps({"time": 1.0, "traceback": lost}))
    killed = "ended without a traceback: killed, or out of memory?"
    assert launcher.first_failure(tmp_path, 1, 2).endswith(f"rank 1 {killed}")
    assert launcher.first_failure(tmp_path, 1, 3).endswith(f"another rank {killed}")
    (tmp_path / "error-1.json").write_text(json.dumps({"time": 2.0, "traceback": lost}))
    assert launcher.first_failure(tmp_path, 1, 2).endswith("Good luck!")


def test_visible_devices_are_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7,9")
    command = launcher._command("a.module", tmp_path / "job.json", launcher.Placement(2, port=1234))
    world = next(word for word in command if word.startswith("--world_info=")).removeprefix("--world_info=")
    assert json.loads(base64.urlsafe_b64decode(world)) == {"localhost": ["5", "7"]}
    with pytest.raises(LaunchError, match="4 ranks asked, but CUDA_VISIBLE_DEVICES=5,7,9 shows fewer"):
        launcher._command("a.module", tmp_path / "job.json", launcher.Placement(4, port=1234))


def test_launched_job_is_followed_and_saved(tmp_path, tiny_model, tiny_tokenizer):
    from llamax.models.load import load
    from llamax.models.save import read_notes

    job, seen = new_job(tmp_path, tiny_model, tiny_tokenizer), []
    history = launch(job, on_step=seen.append)
    assert list(history.steps) == seen and len(seen) == 3
    alone = job.model_copy(update={"train": new_config(max_steps=3), "out": str(tmp_path / "alone")})
    expected = train(alone)
    assert history.losses == pytest.approx(expected.losses, rel=1e-5)
    ours, theirs = load(str(tmp_path / "out" / "model")), load(str(tmp_path / "alone" / "model"))
    for one, two in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        assert one.shape == two.shape and (one - two).abs().max() < 1e-5
    notes = read_notes(tmp_path / "out" / "model")
    assert notes["template"] == "aa" and notes["steps"] == 3 and notes["train"]["zero_stage"] == 3


@pytest.mark.slow
def test_failing_rank_is_quoted(tmp_path, tiny_model, tiny_tokenizer):
    job = new_job(tmp_path, tiny_model, tiny_tokenizer, model=str(tmp_path / "nothing here"))
    with pytest.raises(LaunchError, match=r"rank [01] failed") as error:
        launch(job)
    assert "Traceback" in str(error.value)
    assert "nothing here" in str(error.value).splitlines()[-1] and "ModelError" in str(error.value).splitlines()[-1]
    assert not (tmp_path / "out" / "model").exists()


@pytest.mark.parametrize("rank", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_a_killed_rank_ends_all_is_named_and_the_run_goes_on(tmp_path, tiny_model, tiny_tokenizer, monkeypatch, rank):
    job = new_job(tmp_path, tiny_model, tiny_tokenizer)
    job = job.model_copy(update={"train": new_config(**SHARDED, max_steps=4, checkpoint_every=2)})
    monkeypatch.setenv("LLAMAX_KILL", f"{rank}:2")
    half_written = tmp_path / "out" / "checkpoints" / ".step.00000003"
    with pytest.raises(LaunchError) as error:
        launch(job, on_step=lambda step: half_written.mkdir(parents=True, exist_ok=True))
    assert not half_written.exists()
    assert str(error.value).splitlines()[-1] == f"rank {rank} ended without a traceback: killed, or out of memory?"
    ours = str(tmp_path / "out")
    assert not [one for one in psutil.process_iter(["cmdline"]) if ours in " ".join(one.info["cmdline"] or [])]
    monkeypatch.delenv("LLAMAX_KILL")
    monkeypatch.setenv("LLAMAX_RANKS", "1")  # and on what is left
    history = launch(job)
    assert history.resumed_from == 2 and len(history.steps) == 4
    alone = job.model_copy(update={"train": new_config(max_steps=4), "out": str(tmp_path / "alone")})
    assert history.losses == pytest.approx(train(alone).losses, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_no_rank_outlives_the_launching_process(tmp_path, tiny_model, tiny_tokenizer, end):
    config = new_config(engine="deepspeed", ranks=2, zero_stage=3, epochs=10_000)
    job = new_job(tmp_path, tiny_model, tiny_tokenizer, train=config)
    (tmp_path / "job.json").write_text(job.model_dump_json())
    code = f"""
        import json
        from llamax.training.config import Job
        from llamax.training.launch import launch
        launch(Job.parse(json.load(open({str(tmp_path / "job.json")!r}))), on_step=lambda m: print(m.step, flush=True))
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "0\n"
        family = psutil.Process(process.pid).children(recursive=True)
        assert len(family) >= 3  # launcher, two ranks
        os.kill(process.pid, end)
        process.wait(30)
        _, alive = psutil.wait_procs(family, timeout=30)
    assert not alive


@pytest.mark.parametrize(
    ("hostfile", "says"),
    [(None, "no such file"), ("", "no hosts in it"), ("node1\n", "'node1'"), ("a slots=0", "slots=0")],
)
def test_a_hostfile_that_is_none_is_said_before_anything_starts(tmp_path, monkeypatch, hostfile, says):
    """DeepSpeed would go on with this machine alone."""
    path = tmp_path / "hosts"
    if hostfile is not None:
        path.write_text(hostfile)
    job = Job(model="m", rows="r", train=new_config(engine="deepspeed", ranks=2), out=str(tmp_path / "o"), template="")
    monkeypatch.setenv("LLAMAX_HOSTFILE", str(path))
    with pytest.raises(LaunchError, match=says):
        launch(job)
    assert not (tmp_path / "o").exists()


def test_where_a_job_runs_is_said_by_the_environment(tmp_path, monkeypatch):
    (tmp_path / "hosts").write_text("# ours\nnode1 slots=8\nnode2 slots=8\n")
    monkeypatch.setenv("LLAMAX_HOSTFILE", str(tmp_path / "hosts"))
    port = free_port()
    monkeypatch.setenv("LLAMAX_PORT", str(port))
    assert launcher.place(2) == (2, str(tmp_path / "hosts"), port)
    other = free_port()
    assert launcher.place(2, port=other).port == other
    monkeypatch.setenv("LLAMAX_HOSTFILE", "hosts")
    monkeypatch.setenv("LLAMAX_HOME", str(tmp_path))
    assert launcher.place(2).hostfile == str(tmp_path / "hosts")
    monkeypatch.setenv("LLAMAX_PORT", "x")
    with pytest.raises(LaunchError, match="LLAMAX_PORT=x"):
        launcher.place(2)


def test_ranks_share_the_cores_of_their_own_machine(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(64), raising=False)
    (tmp_path / "hosts").write_text("node1\tslots=8\nnode2   slots=8\n")
    for ranks, hosts, threads in ((16, str(tmp_path / "hosts"), "8"), (16, None, "4"), (100, None, "1")):
        assert launcher._environment(launcher.Placement(ranks, hosts, None))["OMP_NUM_THREADS"] == threads


def test_a_rank_that_is_done_ends_well_whatever_its_threads_do(tmp_path):
    """Python takes itself down badly where threads live on (here: one that is never joined)."""
    text = (
        "import os, sys, threading, time\n"
        "from llamax.training.ranks import rank_of\n"
        "threading.Thread(target=time.sleep, args=(600,)).start()\n"
        "with rank_of('job.json') as (rank, ranks):\n"
        "    print('rank', rank, 'of', ranks, end='')\n"
    )
    environment = os.environ | {"RANK": "1", "WORLD_SIZE": "2"}
    done = subprocess.run([sys.executable, "-c", text], env=environment, cwd=tmp_path, capture_output=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, b"rank 1 of 2"), done.stderr.decode()


def test_two_trainings_do_not_share_a_folder(tmp_path, tiny_model, tiny_tokenizer):
    job = new_job(tmp_path, tiny_model, tiny_tokenizer)
    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / "train.lock"), pytest.raises(LaunchError, match="another process trains there"):
        train(job)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["train.lock"]
