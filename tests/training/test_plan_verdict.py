"""Operations, time, verdicts, the command line, and what is said to input that cannot be."""

import json
import math
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llamax import cli
from llamax.errors import ParameterError
from llamax.training.config import LoraConfig, TrainConfig
from llamax.training.plan import PlanData, Setup, as_json, find_shape, parse_hardware, plan, report
from llamax.training.plan.compute import flops, offload_seconds
from llamax.training.plan.hardware import find_gpu, gpus, parse_bytes
from llamax.training.plan.verdict import alternatives, judge, needs

ROOT = Path(__file__).resolve().parents[2]
runner = CliRunner()
ALPACA = PlanData(512, True, 52_002, 110.8, 0.504, 7869)
ZERO3 = {"precision": "bf16", "engine": "deepspeed", "zero_stage": 3, "gradient_checkpointing": True}


def train(**changes):
    return TrainConfig.parse({**ZERO3, "ranks": 8, "batch_size": 64, "micro_batch": 4, **changes})


def assert_takes(setup):
    """`TrainConfig` accepts what the plan proposes."""
    there = [name for name in TrainConfig.model_fields if hasattr(setup, name)]
    TrainConfig(**{name: getattr(setup, name) for name in there})


class TestFlops:
    def test_a_small_case_by_hand(self):
        """One layer, one document of 3 tokens, 2 targets: 6 per weight and token, 6 pairs, the head on the targets."""
        shape = find_shape("nano")._replace(layers=1)
        found = flops(shape, Setup(), tokens=3, pairs=6, targets=2)
        weights = 256 * 256 * 2 + 256 * 128 * 2 + 3 * 256 * 640
        assert found.matrices == 6 * weights * 3
        assert found.attention == 3 * 4 * 6 * 256  # scores and mixing, 2 operations each, forward and twice backward
        assert found.head == 6 * 2 * 2048 * 256
        assert found.recomputed == 0
        assert found.model == found.matrices + found.attention + found.head

    def test_the_usual_rule_is_near(self):
        """6 N D (Kaplan et al. 2020) for a shape whose embedding is small; short documents, all supervised."""
        shape = find_shape("13b")
        found = flops(shape, Setup(), tokens=1000, pairs=1000, targets=1000)
        assert found.model == pytest.approx(6 * shape.parameters * 1000, rel=0.02)

    def test_recomputation_is_the_layers_forward_and_no_progress(self):
        shape = find_shape("7b")
        plain, again = (flops(shape, Setup(gradient_checkpointing=on), 100, 5050, 50) for on in (False, True))
        assert again.model == plain.model
        assert again.recomputed == (plain.matrices + plain.attention) / 3

    def test_lora_saves_the_gradients_of_the_weights(self):
        shape = find_shape("7b")
        full, lora = (flops(shape, Setup(lora=config), 100, 5050, 100) for config in (None, LoraConfig(rank=1)))
        assert lora.matrices == pytest.approx(full.matrices * 2 / 3, rel=0.01)
        assert lora.attention == full.attention


class TestTime:
    def test_it_is_operations_over_what_the_gpus_do(self):
        found = plan(find_shape("7b"), train(), parse_hardware("8xA100-80GB"), ALPACA, mfu=0.5).compute
        assert found.seconds == pytest.approx(found.flops.model / (8 * 312e12 * 0.5))
        assert found.source == "given"
        assert found.steps == 3 * math.ceil(52_002 * 110.8 / (64 * 512))
        few = plan(find_shape("7b"), train(), parse_hardware("8xA100-80GB"), PlanData(512, False, 450, 110.8))
        assert few.compute.steps == 3 * 8  # the last batch of an epoch is smaller, as in the loop

    def test_max_steps_ends_it(self):
        whole, part = (
            plan(find_shape("7b"), train(max_steps=n), parse_hardware("8xA100-80GB"), ALPACA).compute
            for n in (None, 10)
        )
        assert part.steps == 10
        assert part.seconds == pytest.approx(whole.seconds * 10 / whole.steps)

    def test_unknown_data_has_no_time_and_the_report_says_what_is_missing(self):
        found = plan(find_shape("7b"), train(), parse_hardware("8xA100-80GB"), PlanData(512))
        assert found.compute.seconds is None
        assert "say how much data there is" in report(found)

    def test_rows_that_are_padded_may_take_longer(self):
        found = plan(find_shape("7b"), train(), parse_hardware("8xA100-80GB"), ALPACA._replace(packing=False)).compute
        assert found.padded == pytest.approx(found.seconds * 512 / 110.8)

    def test_offload_is_the_hosts_adam_and_the_bus(self):
        shape, setup = find_shape("7b"), Setup(ranks=8, zero_stage=3, batch_size=8, offload_optimizer=True)
        n = shape.parameters
        expected = 28 * n / 100e9 + (4 + 2) * n / 8 / 12e9
        assert offload_seconds(shape, setup, parse_hardware("8xV100-32GB")) == pytest.approx(expected)
        assert offload_seconds(shape, setup._replace(offload_optimizer=False), parse_hardware("8xT4")) == 0


class TestVerdict:
    def test_it_fits(self):
        found = plan(find_shape("7b"), train(), parse_hardware("8xA100-80GB", "1TB", "1TB"), ALPACA).verdict
        assert (found.answer, found.ways) == ("fits", ())
        assert "GPU memory" in found.why[0] and "host memory" in found.why[0] and "disk" in found.why[0]

    def test_it_fits_with_offload(self):
        config = train(offload_optimizer=True)
        found = plan(find_shape("13b"), config, parse_hardware("8xA100-40GB", "1TB"), ALPACA)
        assert found.verdict.answer == "fits with offload"
        assert "verdict: fits with offload (optimizer)" in report(found)

    def test_what_does_not_fit_is_named_with_its_number_and_the_smallest_change(self):
        found = plan(find_shape("7b"), train(micro_batch=8, ranks=4), parse_hardware("4xV100-32GB", "300GB"), ALPACA)
        assert found.verdict.answer == "does not fit"
        precision, memory = found.verdict.why
        assert "V100-32GB has no bf16" in precision
        assert "of V100-32GB, in the optimizer step" in memory
        assert found.verdict.ways[0].changes == ("precision fp16", "offload_optimizer")

    def test_the_change_really_fits_and_no_cheaper_one_does(self):
        shape, hardware = find_shape("13b"), parse_hardware("8xV100-32GB", "300GB")
        setup = Setup.of(train(offload_optimizer=True, batch_size=32), ALPACA)
        verdict = judge(shape, setup, hardware, ALPACA)
        lora, whole = verdict.ways
        assert "LoRA (rank 16)" in lora.changes and whole.setup.lora is None
        for way in verdict.ways:
            assert needs(shape, way.setup, way.hardware, ALPACA).problems == ()
        for changes, other, machine in alternatives(setup, hardware, ALPACA):
            if changes == lora.changes:
                break
            assert needs(shape, other, machine, ALPACA).problems

    def test_nothing_fits_where_nothing_can(self):
        found = plan(find_shape("65b"), train(ranks=1), parse_hardware("1xT4", "8GB"), ALPACA)
        assert (found.verdict.answer, found.verdict.ways) == ("does not fit", ())
        assert "no change that was tried makes it fit" in report(found)

    def test_more_gpus_are_more_ranks_and_the_batch_still_divides(self):
        setup, seen = Setup.of(train(), ALPACA), set()
        for _, other, machine in alternatives(setup, parse_hardware("8xT4"), ALPACA):
            assert other.ranks == machine.gpus
            assert_takes(other)
            seen.add(machine.nodes)
        assert seen == {1, 2, 4, 8}

    def test_no_way_out_is_one_that_the_engine_refuses(self):
        """One process in bf16 on a GPU without bf16: fp16 needs DeepSpeed, and more nodes do too."""
        setup = Setup.of(train(engine="torch", ranks=1, zero_stage=0, micro_batch=1), ALPACA)
        for _, other, _ in alternatives(setup, parse_hardware("1xV100-32GB"), ALPACA):
            assert_takes(other)
        way = judge(find_shape("smol"), setup, parse_hardware("1xV100-32GB"), ALPACA).ways[0]
        assert way.changes == ("precision fp16", "engine deepspeed with zero_stage 3")

    def test_changes_come_from_cheap_to_dear(self):
        setup = Setup.of(train(gradient_checkpointing=False), ALPACA)
        order = [changes for changes, *_ in alternatives(setup, parse_hardware("8xA100-40GB"), ALPACA)]
        singles = [changes[0].split()[0] for changes in order if len(changes) == 1]
        assert singles == ["pinned", "micro_batch", "micro_batch", "gradient_checkpointing", "offload_optimizer",
                           "offload_parameters", "LoRA", "2x8xA100-40GB"]  # fmt: skip
        assert order[0] == ()

    def test_json_says_the_same(self):
        found = plan(find_shape("7b"), train(ranks=4), parse_hardware("4xV100-32GB", "300GB"), ALPACA)
        values = json.loads(json.dumps(as_json(found)))
        assert values["verdict"]["answer"] == "does not fit"
        assert values["verdict"]["ways"][0]["changes"] == list(found.verdict.ways[0].changes)
        assert values["device"]["peak"] == found.needs.device.peak


class TestHardware:
    def test_nodes_and_sizes(self):
        hardware = parse_hardware("3 x 8xA100-40GB", "1TiB", "2TB")
        assert (hardware.nodes, hardware.per_node, hardware.gpus, str(hardware)) == (3, 8, 24, "3x8xA100-40GB")
        assert (hardware.host_memory, hardware.disk) == (2**40, 2 * 10**12)

    @pytest.mark.parametrize("name", gpus())
    def test_every_gpu_is_found_by_its_name(self, name):
        assert find_gpu(name).name == find_gpu(name.lower().replace("-", "_")).name == name

    @pytest.mark.parametrize(
        ("said", "meant"),
        [
            ("h200", "H200-141GB"),
            ("4090", "RTX4090-24GB"),
            ("RTX 3090", "RTX3090-24GB"),
            ("T4", "T4-16GB"),
            ("b200", "B200-180GB"),
        ],
    )
    def test_the_size_may_be_left_out_where_there_is_one(self, said, meant):
        assert find_gpu(said).name == meant

    @pytest.mark.parametrize(
        ("text", "meant"),
        [
            ("8xA100-80G", "8xA100-80GB"), ("8xv100-32GiB", "8xV100-32GB"), ("H100:8", "8xH100-80GB"),
            ("A100-80GB:4", "4xA100-80GB"), ("2xA100 40 gb", "2xA100-40GB"), ("8xB200", "8xB200-180GB"),
        ],
    )  # fmt: skip
    def test_other_spellings(self, text, meant):
        assert str(parse_hardware(text)) == meant

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("8xA100-33GB", "no GPU 'A100-33GB': that one has A100-40GB or A100-80GB"),
            ("A100:8", "'A100' comes in several sizes: write A100-40GB or A100-80GB"),
            ("8xA10G", "no GPU 'A10G'"),
        ],
    )
    def test_sizes_of_that_gpu_are_told(self, text, says):
        with pytest.raises(ParameterError, match=says):
            parse_hardware(text)

    @pytest.mark.parametrize("text", ["8V100", "xV100-32GB", "0xT4", "8x0xT4", "8x", "", "2x2x2xT4", "-1xT4"])
    def test_malformed_counts(self, text):
        with pytest.raises(ParameterError, match="write COUNTxGPU such as 8xV100-32GB"):
            parse_hardware(text)

    @pytest.mark.parametrize("text", ["300", "300 XB", "GB", "0GB", "-3GB", "1e3GB", ""])
    def test_malformed_sizes(self, text):
        with pytest.raises(ParameterError, match=r"--host-memory .*write a size with its unit, such as 300GB"):
            parse_bytes(text, "--host-memory")


def test_bad_numbers_are_one_line():
    hardware = parse_hardware("8xA100-80GB")
    for changes, says in (
        ({"mfu": 40}, "mfu 40: should be above 0 and at most 1"),
        ({"mfu": 0.0}, "mfu 0: should be above 0"),
    ):
        with pytest.raises(ParameterError, match=says):
            plan(find_shape("7b"), train(), hardware, ALPACA, **changes)
    with pytest.raises(ParameterError, match="the training has 4 ranks but 8xA100-80GB is 8 GPUs"):
        plan(find_shape("7b"), train(ranks=4), hardware, ALPACA)
    with pytest.raises(ParameterError, match="length 1: should be at least 2"):
        plan(find_shape("7b"), train(), hardware, PlanData(1))


class TestCommand:
    def test_it_prints_the_plan_and_ends_with_the_verdict_as_status(self):
        done = runner.invoke(cli.app, ["plan", "--profile", "7b", "--gpus", "8xA100-80GB", "--host-memory", "1TB"])
        assert done.exit_code == 0, done.exception
        assert "verdict: fits" in done.stdout and "3 epochs" in done.stdout
        done = runner.invoke(cli.app, ["plan", "--profile", "13b", "--gpus", "8xV100-32GB", "--host-memory", "300GB"])
        assert done.exit_code == 1
        assert "the smallest change that fits" in done.stdout

    def test_parameters_model_method_and_data_may_be_given(self):
        arguments = [
            "plan",
            "--gpus",
            "4xA100-80GB",
            "-p",
            "train.ranks=4",
            "--model",
            "llama-3-8b",
            "--method",
            "lora",
        ]
        arguments += ["--tokens", "1000000", "--mfu", "0.3", "--json"]
        values = json.loads(runner.invoke(cli.app, arguments).stdout)
        assert (values["shape"]["name"], values["setup"]["lora"]["rank"]) == ("llama-3-8b", 16)
        assert values["compute"]["mfu"] == 0.3
        assert values["data"]["documents"] * values["data"]["mean_document"] == pytest.approx(10**6, rel=1e-3)

    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            (["--gpus", "8xV200"], "no GPU 'V200'"),
            (["--gpus", "8xV100"], "comes in several sizes: write V100-16GB or V100-32GB"),
            (["--gpus", "8xT4", "--profile", "14b"], "no profile '14b'"),
            (["--gpus", "8xT4", "--direction", "evaluation"], "its section 'evaluation' trains nothing"),
            (
                ["--gpus", "4xT4", "-p", "train.ranks=8"],
                "trains on 8 ranks but 4xT4-16GB is 4 GPUs: add -p train.ranks=4",
            ),
            (["--gpus", "8xT4", "--model", "gpt-2"], "model 'gpt-2': no shape of that name"),
            (["--gpus", "8xT4", "--method", "qlora"], "--method qlora: the profile's methods are full, lora"),
            (["--gpus", "8xT4", "--disk", "2"], "--disk '2': write a size with its unit"),
            (["--gpus", "8xT4", "--tokens", "9", "--examples", "3", "--mean-tokens", "3"], "give two of the three"),
            (["--gpus", "8xT4", "--tokens", "5", "--examples", "10"], "--tokens 5: should be at least one for each of"),
            (["--gpus", "24xT4"], "batch_size 16 cannot be shared by 24 ranks: -p train.batch_size=24"),
            (["--gpus", "8xT4", "-p", "data.source=mine", "--examples", "3"], "say how long they are on average"),
        ],
    )
    def test_bad_input_is_one_line(self, arguments, says):
        error = runner.invoke(cli.app, ["plan", *arguments]).exception
        assert isinstance(error, ParameterError)
        assert says in str(error) and "\n" not in str(error)

    def test_it_answers_without_torch(self):
        import subprocess
        import sys

        code = "import sys\nfrom llamax.cli import app\ntry: app(['plan', '--gpus', '8xA100-80GB'])\n"
        code += "except SystemExit: pass\nheavy = {'torch', 'transformers', 'deepspeed'} & sys.modules.keys()\n"
        code += "assert not heavy, heavy"
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


QUESTIONS = (
    (
        "--profile 7b --gpus 4xV100-32GB --host-memory 256GB -p train.precision=fp16 -p train.offload_optimizer=true",
        "8.5 with the optimizer offloaded", "181 GiB",
    ),
    ("--profile 13b --gpus 8xV100-32GB --host-memory 300GB -p train.precision=fp16", "9.4 GiB", "354 GiB"),
    (
        "--profile llama3-70b --model llama-2-70b --gpus 3x8xA100-40GB --host-memory 1TB -p train.batch_size=24",
        "14.2 of 39.4 GiB", "758 GiB",
    ),
)  # fmt: skip


@pytest.mark.parametrize(("words", "gpu", "host"), QUESTIONS)
def test_the_readmes_answers_are_todays(words, gpu, host):
    found = json.loads(runner.invoke(cli.app, ["plan", *words.split(), "--json"]).stdout)
    assert f"{found['device']['peak'] / 2**30:.1f}" == gpu.split()[0]
    assert f"{found['host']['peak'] / 2**30:.0f} GiB" == host
    asked = words.split(" -p train.precision")[0]
    (row,) = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith(f"| `{asked}`")]
    assert f" {gpu}" in row and f"| {host}" in row
