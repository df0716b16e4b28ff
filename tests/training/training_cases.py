"""A tiny model and tiny rows for the tests of training; as a script, one rank of a `fit` over them that can be killed.

    python training_cases.py '[{"out": ..., "config": {...}, "die_after": 5, "max_file_bytes": 100000}]'

leaves `result.pt` in `out`: the history, the whole final weights, and the rates of every group at every step of any
torch optimizer, DeepSpeed's included.
"""

import contextlib
import json
import math
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook
from transformers import LlamaConfig, LlamaForCausalLM

from llamax.data.packing import Documents, Rows, collate
from llamax.errors import LlamaxError
from llamax.models.source import NANO_FOLDER
from llamax.training.config import TrainConfig
from llamax.training.data import load_data
from llamax.training.engines import make_engine
from llamax.training.loop import fit, micro_batches, rows_of_step
from llamax.training.lora import apply_lora
from llamax.training.objectives import next_token_loss
from llamax.training.ranks import free_port, leave
from llamax.training.worker import gather_parameters, whole_model

PAD = 0


def new_model(seed: int = 0) -> LlamaForCausalLM:
    """Two layers, hidden size 32, embeddings tied, fp32."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=3200,  # one matrix above the size that ZeRO-3 shards (100,000); texts use the first 128
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        pad_token_id=PAD,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config)


def new_rows(documents: int = 60, length: int = 32, seed: int = 0) -> Rows:
    """Random documents of unequal length, a random part of each supervised."""
    rng = np.random.default_rng(seed)
    packed = Documents(length)
    for source in range(documents):
        n = int(rng.integers(3, length))
        mask = rng.random(n) < rng.random()
        mask[[0, -1]] = False, True
        packed.add(source, rng.integers(3, 128, n), mask)
    return packed.rows(packing=True)


def new_config(**changes) -> TrainConfig:
    """Two epochs of 8-row steps in fp32, the last step of each epoch partial."""
    return TrainConfig.parse({"learning_rate": 5e-3, "epochs": 2, "batch_size": 8, "micro_batch": 4, **changes})


class Planted:
    """Other data in which some rows are noise; by default of tokens that no document of `new_rows` has."""

    def __init__(self, data, rows, tokens=(1000, 2000)):
        self.data, self.rows, self.tokens = data, {int(row) for row in rows}, tokens

    def __getattr__(self, name):
        return getattr(self.data, name)

    def __len__(self):
        return len(self.data)

    def collate(self, indices, pad_id):
        batch = self.data.collate(indices, pad_id)
        ids, start = batch.input_ids.view(-1), 0
        for row in map(int, indices):
            length = self.data.real([row])
            if row in self.rows:
                noise = np.random.default_rng(row).integers(*self.tokens, length)
                ids[start : start + length] = torch.from_numpy(noise)
            start += length
        return batch


def poisoned_loss(model, batch):
    """Not a number for a batch that holds one of the tokens of `Planted`."""
    loss, targets = next_token_loss(model, batch)
    return (loss * math.nan if (batch.input_ids >= 1000).any() else loss), targets


def rows_of_steps(data, config, steps) -> np.ndarray:
    """The rows of several steps."""
    found = [rows_of_step(step, data, config) for step in steps]
    return np.concatenate(found) if found else np.zeros(0, np.int64)


def run_ranks(ranks: int, cases: list[dict], folder: Path, *, timeout: float = 240, **environment) -> list[int]:
    """Run the cases, one after the other, on `ranks` processes that log into `folder`; give their exit codes.

    A process that dies takes the others with it.
    """
    port = str(free_port())
    base = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(ranks), "MASTER_PORT": port}
    base |= {"MASTER_ADDR": "127.0.0.1", "LOCAL_SIZE": str(ranks), **environment}
    command = [sys.executable, __file__, json.dumps(cases)]
    with contextlib.ExitStack() as stack:
        processes = []
        for rank in range(ranks):
            log = stack.enter_context(open(folder / f"log-{rank}.txt", "wb"))
            environment = base | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
            stack.callback(process.wait)
            stack.callback(process.kill)
            processes.append(process)
        deadline = time.monotonic() + timeout
        while None in (codes := [process.poll() for process in processes]) and not any(codes):
            assert time.monotonic() < deadline, log_of(folder)
            time.sleep(0.1)
    return [process.returncode for process in processes]


def log_of(folder: Path, rank: int = 0) -> str:
    """What a rank printed."""
    return (folder / f"log-{rank}.txt").read_text()


def gradients(engine, rows: Rows, config: TrainConfig) -> float:
    """Backward of the first optimizer step, without the update; the gradients stay in the engine. Gives the loss."""
    indices = rows_of_step(0, rows, config)
    n = rows.supervised(indices)
    parts = [
        engine.loss_and_backward(collate(rows, micro, PAD), 1 / n)[0]
        for micro in micro_batches(indices, config, engine.rank)
    ]
    return engine.total(sum(parts)) / n


def distributed_gradients(spec: dict) -> None:
    """Save the whole gradients that DeepSpeed has after one step's backward."""
    from deepspeed.utils import safe_get_full_grad

    config, model = TrainConfig.parse(spec["config"]), new_model()
    engine = make_engine(model, next_token_loss, config)
    loss = gradients(engine, new_rows(), config)
    found = {name: safe_get_full_grad(p) if config.zero_stage else p.grad for name, p in model.named_parameters()}
    if engine.rank == 0:
        torch.save({"loss": loss, "gradients": found}, Path(spec["out"]) / "gradients.pt")


def loading(spec: dict) -> None:
    """Load a model in shards; save its whole weights and buffers, and by how much this rank's memory had grown."""
    import psutil

    from llamax.training.sharded import load_sharded

    load_sharded(str(NANO_FOLDER), TrainConfig.parse(spec["config"]))  # imports and arenas do not count
    before = psutil.Process().memory_info().rss
    Path("/proc/self/clear_refs").write_text("5")  # forget the highest so far
    model, _ = load_sharded(spec["model"], TrainConfig.parse(spec["config"]), pad_token=spec.get("pad_token"))
    status = Path("/proc/self/status").read_text()
    peak = 1024 * int(status.partition("VmHWM:")[2].split()[0]) - before
    found = gather_parameters(model)
    rank = torch.distributed.get_rank()
    buffers = dict(model.named_buffers())
    torch.save({"peak": peak, "weights": found, "buffers": buffers}, Path(spec["out"]) / f"loaded-{rank}.pt")


def training(spec: dict) -> None:
    """Save what a whole `fit` leaves; die on the way if the spec says so."""
    config, out = TrainConfig.parse(spec["config"]), Path(spec["out"])
    if "max_file_bytes" in spec:
        resource.setrlimit(resource.RLIMIT_FSIZE, (spec["max_file_bytes"],) * 2)
    model = new_model()
    if config.lora:
        torch.manual_seed(0)
        model = apply_lora(model, config.lora)

    def on_step(metrics):
        if metrics.step == spec.get("die_after") and spec.get("who_dies", "0") in (os.environ["RANK"], "all"):
            os.kill(os.getpid(), signal.SIGKILL)

    rows = load_data(spec["data"]) if "data" in spec else new_rows(spec.get("documents", 60))
    bad = [*rows_of_steps(rows, config, spec.get("planted", [])), *spec.get("bad_rows", [])]
    objective = poisoned_loss if spec.get("poisoned") else next_token_loss
    rates = []
    hook = register_optimizer_step_pre_hook(lambda adam, *_: rates.append([group["lr"] for group in adam.param_groups]))
    history = fit(model, Planted(rows, bad), config, out, pad_id=PAD, on_step=on_step, objective=objective)
    hook.remove()
    whole = whole_model(model, config)
    if whole is not None:
        weights = {name: parameter.detach().clone() for name, parameter in whole.named_parameters()}
        torch.save({"history": history.to_json(), "weights": weights, "rates": rates}, out / "result.pt")


if __name__ == "__main__":
    for case in json.loads(sys.argv[1]):
        Path(case["out"]).mkdir(parents=True, exist_ok=True)
        try:
            {"gradients": distributed_gradients, "load": loading}.get(case.get("do"), training)(case)
        except LlamaxError as error:
            if not case.get("fails"):
                raise
            (Path(case["out"]) / f"error-{os.environ['RANK']}.txt").write_text(str(error))
    leave()
