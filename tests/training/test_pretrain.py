"""`llamax pretrain run`: from a shape or a model and files of text to a model, killed and gone on with."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import yaml
from safetensors.torch import load_file
from typer.testing import CliRunner

from llamax.cli import app
from llamax.data.world.text import pretraining_texts
from llamax.errors import CheckpointError, DataError, LaunchError, LlamaxError, ModelError, ParameterError
from llamax.training.preflight import CPU
from llamax.training.pretrain import PretrainConfig, prepare, with_length
from llamax.training.pretrain_command import read_config

SHAPE = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 2048, "hidden_size": 32,
    "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}  # fmt: skip
TRAIN = {"batch_size": 4, "micro_batch": 4, "learning_rate": 2e-3, "checkpoint_every": 5}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a shape, two files of text and the parameters of a run over both."""
    folder = tmp_path_factory.mktemp("pretrain")
    (folder / "config.json").write_text(json.dumps(SHAPE))
    texts = list(pretraining_texts(0, documents=120))
    (folder / "a.txt").write_text("\n\n".join(texts[:40]))
    (folder / "b.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts[40:]))
    data = [{"path": str(folder / "a.txt"), "weight": 2}, {"path": str(folder / "b.jsonl")}]
    values = {"model": str(folder / "config.json"), "from_scratch": True, "tokenizer": "nano", "data": data}
    values |= {"length": 32, "split": "paragraph", "shard_tokens": 1500, "tokens": 32 * 4 * 24, "train": TRAIN}
    (folder / "run.yaml").write_text(yaml.safe_dump(values))
    return folder


def llamax(*words):
    """Run the command in this process; what it printed."""
    done = CliRunner().invoke(app, [str(word) for word in words])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def weights(out):
    return load_file(out / "model" / "model.safetensors")


@pytest.fixture(scope="module")
def trained(place):
    said = llamax("pretrain", "run", place / "run.yaml", "--out", place / "whole")
    assert "24 steps" in said and "3,0" in said  # 24 x 4 x 32 tokens, less where a shard ends
    return place / "whole"


def test_killed_in_an_epoch_the_same_command_goes_on_to_the_bit(place, trained):
    code = "import sys; from llamax.cli import app; app(sys.argv[1:])"
    out = place / "cut"
    command = [sys.executable, "-c", code, "pretrain", "run", str(place / "run.yaml"), "--out", str(out)]
    with subprocess.Popen(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        while not (out / "checkpoints" / "step-00000010").exists():
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    before = {file.name: file.stat().st_mtime_ns for file in out.glob("shards/*/tokens-*")}
    assert before and not (out / "model").exists()
    llamax("pretrain", "run", place / "run.yaml", "--out", out)
    assert {file.name: file.stat().st_mtime_ns for file in out.glob("shards/*/tokens-*")} == before
    one, two = weights(out), weights(trained)
    assert all((one[name] == two[name]).all() for name in two)


def test_a_model_is_trained_on(place, trained, tmp_path):
    shards = tmp_path / "shards"
    said = llamax("data", "shards", place / "b.jsonl", "--out", shards, "--tokenizer", "nano", "--shard-tokens", 2000)
    assert " in 17 shards (17 made now)" in said and "(0 made now)" in llamax(
        "data", "shards", place / "b.jsonl", "--out", shards, "--tokenizer", "nano", "--shard-tokens", 2000
    )
    options = ["--model", trained / "model", "--data", f"{shards}=0.5", "-p", "length=32"]
    more = [word for name, value in TRAIN.items() for word in ("-p", f"train.{name}={value}")]
    llamax("pretrain", "run", *options, *more, "--tokens", 32 * 4 * 3, "--out", tmp_path / "on")
    on, before = weights(tmp_path / "on"), weights(trained)
    assert on.keys() == before.keys() and any((on[name] != before[name]).any() for name in on)
    assert not (tmp_path / "on" / "initial").exists()


def test_tokens_are_steps_and_epochs():
    config = PretrainConfig(model="m", data=({"path": "x"},), length=10, tokens=1050, train=TRAIN)
    assert (with_length(config, 20).max_steps, with_length(config, 20).epochs) == (26, 6)
    with pytest.raises(ParameterError, match=r"tokens 39: fewer than one step takes \(batch_size 4 x length 10 = 40\)"):
        with_length(config.model_copy(update={"tokens": 39}), 20)


def test_options_go_before_the_file_and_overrides_before_both(place):
    config = read_config(place / "run.yaml", {"tokens": 512}, {"train.seed": 7, "length": 16})
    assert (config.tokens, config.train.seed, config.length, config.train.batch_size) == (512, 7, 16, 4)
    assert config.train.betas == (0.9, 0.95) and config.data[0].weight == 2
    (place / "x=2").write_text("a")
    found = read_config(None, {"model": "nano", "data": ["a.txt=2", "b.txt", str(place / "x=2")]}, {}).data
    assert [source.weight for source in found] == [2, 1, 1]


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"tokenizer": None}, ParameterError, "tokenizer: .* has none; name one"),
        ({"data": ["nowhere.txt"]}, DataError, "nowhere.txt: no such file"),
        ({"data": ["a.txt=x"]}, ParameterError, "the weight 'x' should be a number"),
        ({"dat": []}, ParameterError, "did you mean 'data'"),
        ({"model": "nowhere/at/all"}, ModelError, "no such file or folder"),
        ({"tokens": 3}, ParameterError, "fewer than one step"),
        ({"data": ["a.txt=1e30"]}, ParameterError, "data.0.weight' = 1e\\+30: .* less than or equal to 1000000"),
        ({"data": ["a.txt=-1"]}, ParameterError, "data.0.weight' = -1.0: .* greater than 0"),
        ({"data": ["a.txt=0"]}, ParameterError, "data.0.weight' = 0.0: .* greater than 0"),
        ({"data": ["a.txt=nan"]}, ParameterError, "data.0.weight' = nan: .* finite"),
        ({"train": TRAIN | {"max_steps": 5}}, ParameterError, "tokens 3072 and train.max_steps 5: both say how long"),
        ({"train": TRAIN | {"epochs": 1}}, ParameterError, "tokens 3072 and train.epochs 1: both say how long"),
        ({"length": 65}, ParameterError, "length 65 is more than the model's window of 64: -p length=64"),
        ({"train": 5}, ParameterError, "'train' = 5"),
    ],
)
def test_bad_parameters_are_said(place, tmp_path, changes, error, said):
    values = yaml.safe_load((place / "run.yaml").read_text()) | changes
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(error, match=said) as found:
        prepare(read_config(tmp_path / "run.yaml", {}, {}), tmp_path / "out")
    assert "\n" not in str(found.value) and isinstance(found.value, LlamaxError)
    assert not (tmp_path / "out" / "initial").exists() and not (tmp_path / "out" / "data").exists()


def test_what_does_not_belong_together_is_said(place, trained, tmp_path, tiny_tokenizer):
    config = read_config(place / "run.yaml", {}, {})
    with pytest.raises(ModelError, match="made for another shape or seed"):
        prepare(config.model_copy(update={"train": config.train.model_copy(update={"seed": 1})}), trained)
    tiny_tokenizer.save_pretrained(tmp_path / "tiny")
    shards = next((trained / "shards").iterdir())
    other = {"tokenizer": str(tmp_path / "tiny"), "data": [{"path": str(shards)}]}
    with pytest.raises(DataError, match="made with another tokenizer"):
        prepare(PretrainConfig.parse(config.model_dump(exclude_unset=True) | other), tmp_path / "out")
    (tmp_path / "config.json").write_text(json.dumps(SHAPE | {"vocab_size": 100}))
    with pytest.raises(ModelError, match="vocab_size 100, but the tokenizer has 2048 tokens"):
        prepare(config.model_copy(update={"model": str(tmp_path / "config.json")}), tmp_path / "small")
    (tmp_path / "run.yaml").write_text("- a\n")
    with pytest.raises(ParameterError, match="should be a mapping"):
        read_config(tmp_path / "run.yaml", {}, {})


def test_other_data_are_refused_before_anything_is_written_again(place, trained):
    config = read_config(place / "run.yaml", {}, {})
    kept = {file: file.read_bytes() for file in (trained / "data" / "mixture.json", trained / "model" / "config.json")}
    for change in ({"length": 16}, {"data": config.data[:1]}):
        with pytest.raises(CheckpointError, match=r"step-\d{8} belongs to another run: of other data"):
            prepare(config.model_copy(update=change), trained)
    assert all(file.read_bytes() == content for file, content in kept.items())
    assert prepare(config, trained).rows == str(trained / "data")


def test_rows_longer_than_the_window_of_a_model_to_go_on_from_are_refused_first(place, trained, tmp_path):
    config = read_config(None, {"model": str(trained / "model"), "data": [str(place / "a.txt")]}, {})
    with pytest.raises(ParameterError, match="length 2048 is more than the model's window of 64: -p length=64"):
        prepare(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_overrides_are_those_of_run(place):
    found = read_config(place / "run.yaml", {}, {"train.lora.rank": 4, "warmup_ratio": 0.5}).train
    assert (found.lora.rank, found.lora.alpha, found.warmup_ratio, found.batch_size) == (4, 32, 0.5, 4)
    with pytest.raises(ParameterError, match=r"unknown parameter 'train\.sed': did you mean 'train\.seed'"):
        read_config(place / "run.yaml", {}, {"train.sed": 4})
    options = {"model": "nano", "data": ["a.txt"]}
    assert read_config(None, options, {}).train.epochs == 1
    assert read_config(None, options, {"train.epochs": 2}).train.epochs == 2


def test_gpus_that_are_not_there_are_said_before_anything_is_made(place, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv(CPU, raising=False)
    words = [word for value in ("engine=deepspeed", "ranks=2", "micro_batch=2") for word in ("-p", f"train.{value}")]
    with pytest.raises(
        LaunchError, match=rf"^this trains on 2 GPUs and this machine has none: \({CPU}=1 trains on the"
    ):
        llamax("pretrain", "run", place / "run.yaml", "--out", tmp_path / "out", *words)
    assert not (tmp_path / "out").exists()


def test_a_key_that_deepspeed_would_ignore_is_said_before_anything_is_made(place, tmp_path):
    overrides = {"engine": "deepspeed", "deepspeed_json": {"zero_optimisation": {"stage": 3}}}
    words = [word for name, value in overrides.items() for word in ("-p", f"train.{name}={json.dumps(value)}")]
    with pytest.raises(ParameterError, match="'zero_optimisation' and would ignore it: did you mean"):
        llamax("pretrain", "run", place / "run.yaml", "--out", tmp_path / "out", *words)
    assert not (tmp_path / "out").exists()
