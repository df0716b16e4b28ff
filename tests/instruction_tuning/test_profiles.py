"""Every GPU profile that exists is rehearsed: its own recipe, engine, schema and template at nano size, on two ranks.

One start of two ranks serves them all here; the whole rehearsal, notebook and launcher included, is run for one
profile, and for all of them by `make test-all`.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llamax import files
from llamax.data.packing import build_rows
from llamax.data.sources import read
from llamax.data.templates import get_template
from llamax.errors import LlamaxError
from llamax.instruction_tuning.rehearsal import EVERY, STEPS, as_row, shrink
from llamax.models.load import load, load_tokenizer
from llamax.models.template import check_template
from llamax.runs import parse_parameters
from llamax.runs.parameters import profiles
from llamax.runs.rehearse import rehearse
from llamax.training.config import Job
from llamax.training.history import History
from llamax.training.preflight import REHEARSAL, trainings
from llamax.training.ranks import free_port

pytestmark = pytest.mark.timeout(600)  # on a machine that is busy with other things


def of_gpus(name):
    return any(train.engine == "deepspeed" for train in trainings(parse_parameters("instruction_tuning", name)))


GPU_PROFILES = [name for name in profiles() if of_gpus(name)]


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A repository that shares ours but for what runs and rehearsals write; no data but what is made."""
    for name in ("notebooks", "data_cards", "constraints.txt", "results"):
        (tmp_path / name).symlink_to(files.repository() / name)
    monkeypatch.setenv("LLAMAX_HOME", str(tmp_path))
    monkeypatch.delenv("LLAMAX_DATA", raising=False)
    return tmp_path


def prepare(profile, folder):
    """The profile's rehearsal as a job of its first method; what `Study` does before it trains."""
    shrunk = shrink(parse_parameters("instruction_tuning", profile), folder)
    config = parse_parameters("instruction_tuning", profile, 0, shrunk.overrides)
    tokenizer = load_tokenizer(config.model, pad_token=config.pad_token)
    template, data = get_template(config.data.template, tokenizer), config.data
    conversations = read(data.source, format=data.format, limit=data.max_examples)
    rows = build_rows(
        conversations, tokenizer, template, length=data.length, packing=data.packing, over_long=data.over_long
    )
    return Job(
        model=config.model, pad_token=config.pad_token, rows=str(rows.save(folder / "rows")), out=str(folder / "out"),
        train=config.train_config(config.methods[0], 0), template=template.fingerprint,
    ), template  # fmt: skip


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory):
    """All profiles' jobs, each trained, cut off, resumed and saved by two ranks."""
    root = tmp_path_factory.mktemp("profiles")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("LLAMAX_DATA", raising=False)
        jobs = {name: prepare(name, root / name) for name in GPU_PROFILES}
    for name, (job, _) in jobs.items():
        (root / name / "job.json").write_text(job.model_dump_json())
    command = [sys.executable, str(Path(__file__).with_name("profile_ranks.py"))]
    command += [str(root / name / "job.json") for name in jobs]
    world = {"WORLD_SIZE": "2", "LOCAL_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [
        subprocess.Popen(
            command,
            env=os.environ | world | {"RANK": str(n), "LOCAL_RANK": str(n), "DS_ACCELERATOR": "cpu"},
            stdout=(out := open(root / f"log-{n}.txt", "wb")),  # noqa: SIM115
            stderr=out,
        )
        for n in (0, 1)
    ]
    try:
        codes = [process.wait(560) for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert codes == [0, 0], (root / "log-0.txt").read_text()[-3000:]
    return jobs


@pytest.mark.parametrize("profile", GPU_PROFILES)
def test_a_profile_trains_resumes_and_saves_at_nano_size(rehearsed, profile):
    job, template = rehearsed[profile]
    wanted = parse_parameters("instruction_tuning", profile)
    kept = {"max_steps", "batch_size", "micro_batch", "ranks", "checkpoint_every", "epochs"}
    method = wanted.methods[0]
    assert job.train.model_dump(exclude=kept) == wanted.train_config(method, 0).model_dump(exclude=kept)
    history = History.from_json(Path(job.out, "history.json").read_text())
    assert (history.resumed_from, len(history.steps)) == (EVERY, STEPS)
    assert 0 < history.losses[-1] < history.losses[0] < 12
    model = Path(job.out) / "model"
    check_template(model, template)
    assert load(str(model)).model.num_parameters() > 1e6


def test_there_are_the_profiles_that_were_promised():
    names = ("7b", "13b", "33b", "65b", "llama3-8b", "llama3-70b")
    assert {*names, *(f"{name}-lora" for name in names)} <= set(GPU_PROFILES)


@pytest.mark.parametrize(
    "profile", [pytest.param(n, marks=[pytest.mark.slow] * (n != "7b-lora")) for n in GPU_PROFILES]
)
def test_the_whole_rehearsal(home, profile, capsys):
    rehearse("instruction_tuning", profile)
    said = capsys.readouterr().out
    assert f"what profile {profile} will need:" in said and "verdict:" in said
    assert "train.ranks: 8 -> 2" in said or "train.ranks: 16 -> 2" in said
    assert said.count("  ✓ ") == 4 + len(parse_parameters("instruction_tuning", profile).methods)
    assert "rank 1 killed, resumed from step 1" in said
    assert REHEARSAL not in os.environ
    assert not list((home / "runs" / "instruction_tuning").glob("*"))  # nobody takes it for a run


@pytest.mark.parametrize(
    ("planted", "says"),
    [
        (
            {"train.deepspeed_json": {"zero_optimisation": {}}},
            "DeepSpeed knows no key 'zero_optimisation'.*did you mean",
        ),
        (
            {"train.deepspeed_json": {"zero_optimization": {"stage3_gather_16bit_weights_on_model_save": False}}},
            "stage3_gather_16bit_weights_on_model_save is decided by .*saves no weights, in silence",
        ),
        ({"data.format": "sharegpt"}, "24 of 24 rows malformed: line 1 field 'conversations' is missing"),
        ({"data.template": "alpacca"}, "alpacca.*alpaca"),
        ({"data.source": "alpacca"}, "no data source 'alpacca': did you mean 'alpaca'"),
    ],
    ids=["a wrong key", "the save flag off", "another column", "no such template", "no such source"],
)
def test_a_planted_mistake_fails_the_rehearsal_with_a_clear_line(home, planted, says):
    with pytest.raises(LlamaxError, match=says) as error:
        rehearse("instruction_tuning", "7b", planted, say=lambda text: None)
    assert "\n" not in str(error.value)


def test_made_rows_have_the_columns_of_their_format(tmp_path):
    import json

    from llamax.data.formats import detect
    from llamax.data.world import instructions

    made = instructions(limit=3)
    for schema in ("alpaca", "sharegpt", "messages", "prompt-completion"):
        rows = [as_row(conversation, schema) for conversation in made]
        assert {detect(row) for row in rows} == {schema}
        (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
        assert len(read(str(tmp_path / "rows.jsonl"))) == 3
    with pytest.raises(LlamaxError, match="cannot be made"):
        as_row(made[0], "preference")


def test_a_profile_without_gpus_needs_no_rehearsal():
    with pytest.raises(LlamaxError, match="profile nano: instruction_tuning trains nothing with DeepSpeed"):
        rehearse("instruction_tuning", "nano")
    with pytest.raises(LlamaxError, match="evaluation trains nothing with DeepSpeed"):
        rehearse("evaluation", "7b")
