"""What the plan says of memory: against tensors that autograd really keeps, and against how it must change."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from llamax.models.precision import DTYPES, cast
from llamax.training import attention, cross_entropy
from llamax.training.attention import Extents, documents_attention
from llamax.training.config import LoraConfig, TrainConfig
from llamax.training.fused import fused
from llamax.training.lora import apply_lora
from llamax.training.plan import PlanData, find_shape, parse_hardware
from llamax.training.plan.activations import AT_ONCE, SHORT, layer, logits, loss, norm, stem
from llamax.training.plan.device import CONTEXT, FRAGMENTATION, device
from llamax.training.plan.hardware import CPU, GIB, Hardware
from llamax.training.plan.host import disk, host, offloaded, rounding, sub_groups
from llamax.training.plan.setup import Setup
from llamax.training.plan.shapes import Shape
from llamax.training.plan.states import live, reduce, states

TINY = Shape("tiny", 64, 2, 4, 2, 16, 96, 128)
GROUPED = PlanData(512)
NODE = parse_hardware("8xV100-32GB", "300GB")


def kept_tensors(shape, setup):
    """Bytes that a forward of the decoder keeps for its backward, parameters left out."""
    config = LlamaConfig(
        vocab_size=shape.vocab, hidden_size=shape.hidden, intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim, max_position_embeddings=4096,
    )  # fmt: skip
    model = LlamaForCausalLM(config).train()
    if setup.lora:
        model = apply_lora(model, setup.lora).get_base_model()
    cast(model, DTYPES[setup.precision])
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept, alive = {}, []  # alive: an address that is given out a second time would count once

    def keep(tensor):
        alive.append(tensor)
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    document = int(setup.mean_document)
    positions = torch.arange(document).repeat(setup.tokens // document)[None]
    ids = torch.zeros(1, setup.tokens, dtype=torch.int64)
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with documents_attention(model), fused(model), hooks:
        output = model.get_decoder()(ids, position_ids=positions, use_cache=False, documents=Extents.of(positions))
    assert output.last_hidden_state.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("length", "documents", "micro_batch"), [(32, 1, 2), (64, 2, 1), (1200, 2, 1), (600, 1, 1)])
def test_a_layers_activations_are_what_autograd_keeps(precision, length, documents, micro_batch):
    """The difference of a model of three layers and one of one layer, so that all else cancels: equal to the byte.

    On both sides of the length up to which the scores of a document are kept.
    """
    setup = Setup(precision, micro_batch=micro_batch, length=length, document=length / documents, on_cpu=True)
    three, one = (kept_tensors(TINY._replace(layers=n), setup) for n in (3, 1))
    assert (three - one) / 2 == layer(TINY, setup).total * setup.tokens


def test_what_the_plan_knows_of_attention_and_loss_by_heart_is_so():
    assert (attention.SHORT, cross_entropy.AT_ONCE) == (SHORT, AT_ONCE)


def test_a_gpu_keeps_no_scores_and_nothing_twice():
    setup = Setup(length=1024, document=100.0)
    assert layer(TINY, setup).attention == 2 * (2 * TINY.q_width + 2 * TINY.kv_width) + 4 * TINY.heads
    short, long = (layer(TINY, setup._replace(on_cpu=True, document=n)).attention for n in (512.0, 513.0))
    assert short == 2 * (2 * TINY.q_width + 2 * TINY.kv_width) + 2 * TINY.heads * 512
    assert long == layer(TINY, setup).attention + 2 * TINY.q_width


def test_a_token_stands_in_a_longer_document_than_the_mean():
    lengths = [10, 30]
    pairs = sum(n * (n + 1) / 2 for n in lengths) / 2
    assert PlanData(64, mean_document=20, pairs=pairs).own_document == sum(n * n for n in lengths) / sum(lengths)
    assert PlanData(64, mean_document=20).own_document == 20


def test_with_lora_frozen_weights_keep_no_input_of_theirs():
    setup = Setup(precision="fp32", micro_batch=1, length=32, lora=LoraConfig(rank=4), on_cpu=True)
    three, one = (kept_tensors(TINY._replace(layers=n), setup) for n in (3, 1))
    assert (three - one) / 2 == layer(TINY, setup).total * setup.tokens


def test_the_stem_and_the_last_norm_are_the_rest():
    setup = Setup(precision="fp32", micro_batch=1, length=32, on_cpu=True)
    shape = TINY._replace(layers=1)
    rest = kept_tensors(shape, setup) - layer(shape, setup).total * setup.tokens
    # autograd keeps the ids for the embedding; positions and the loss mask are the batch's own, 9 bytes a token
    assert rest == (stem(shape, setup) - 9 + norm(shape, setup)) * setup.tokens


def test_logits_are_those_of_targets_alone_and_hold_their_gradient():
    setup = Setup(micro_batch=4, length=100, supervised=0.25)
    assert logits(TINY, setup) == 2 * 100 * TINY.vocab
    assert loss(TINY, setup) == (2 + 4 + 4) * 100 * TINY.vocab
    assert loss(TINY, setup._replace(precision="fp32")) == (4 + 4) * 100 * TINY.vocab
    wide = TINY._replace(vocab=10**6)
    for where in (setup, setup._replace(on_cpu=True)):
        assert loss(wide, where) - logits(wide, where) == 2 * 4 * AT_ONCE["cpu" if where.on_cpu else "cuda"]


class TestDevice:
    def test_a_moment_is_the_sum_of_its_terms_and_the_peak_the_largest(self):
        found = device(find_shape("7b"), Setup(ranks=8, zero_stage=3, micro_batch=4), NODE)
        assert found.peak == sum(found.terms.values()) == max(sum(m.values()) for m in found.moments.values())
        names = "loss, head, last layer, last layer's attention, first layer, first layer's end, embedding"
        assert set(found.moments) == {*names.split(", "), "optimizer step"}

    def test_reserve_and_context_belong_to_gpus(self):
        setup = Setup(ranks=8, zero_stage=3)
        on_gpu, on_cpu = (device(TINY, setup, h) for h in (NODE, Hardware(CPU, 1, 8)))
        assert "CUDA context and NCCL" not in on_cpu.terms
        terms = dict(on_gpu.moments["loss"])
        assert terms.pop("CUDA context and NCCL") == CONTEXT
        reserve = terms.pop("fragmentation reserve")
        assert reserve == pytest.approx(FRAGMENTATION * sum(terms.values()))

    @pytest.mark.parametrize(
        ("change", "term"),
        [
            ({"micro_batch": 2}, "activations"),
            ({"gradient_checkpointing": True}, "activations"),
            ({"length": 1024}, "activations"),
            ({"supervised": 0.5}, "logits and their gradients"),
        ],
    )
    def test_what_makes_activations_smaller(self, change, term):
        before = Setup(ranks=8, zero_stage=3, micro_batch=4, length=2048)
        a, b = (device(find_shape("7b"), s, NODE).moments["loss"][term] for s in (before, before._replace(**change)))
        assert b < a

    def test_one_device_in_16_bit_has_master_weights_and_in_fp32_none(self):
        shape = find_shape("smol")
        assert states(shape, Setup(engine="torch", precision="fp32")).masters == 0
        assert states(shape, Setup(engine="torch", precision="bf16")).masters == 4 * shape.parameters

    def test_gradients_of_the_torch_engine_grow_through_the_backward_unless_they_accumulate(self):
        one = Setup(engine="torch", micro_batch=4, batch_size=4)
        found = [
            device(find_shape("smol"), one, NODE).moments[m]["gradients"] for m in ("loss", "last layer", "embedding")
        ]
        assert found[0] == 0 < found[1] < found[2]
        moments, shape = device(find_shape("smol"), one, NODE).moments, find_shape("smol")
        between = moments["first layer"]["gradients"] - moments["last layer"]["gradients"]
        assert between == 4 * (shape.layers - 1) * shape.layer_parameters
        several = device(find_shape("smol"), one._replace(batch_size=8), NODE)
        assert several.moments["loss"]["gradients"] == 4 * find_shape("smol").parameters

    def test_zero_3_sizes_follow_the_models_width_or_what_the_json_says(self):
        shape, setup = find_shape("7b"), Setup(ranks=8, zero_stage=3)
        assert reduce(shape, setup) == 2 * 4096**2
        assert live(shape, setup) == 2 * 10**9
        train = TrainConfig(engine="deepspeed", ranks=8, zero_stage=3, precision="bf16")
        zero = {"reduce_bucket_size": 1000, "stage3_max_live_parameters": 3 * 10**8}
        train = train.model_copy(update={"deepspeed_json": {"zero_optimization": zero}})
        setup = Setup.of(train, GROUPED)
        assert (reduce(shape, setup), live(shape, setup)) == (2000, 6 * 10**8)


class TestHost:
    def test_without_offload_it_is_processes_data_and_the_save(self):
        shape, setup = find_shape("7b"), Setup(ranks=8, zero_stage=3)
        found = host(shape, setup, NODE, PlanData(512, True, 1000, 100))
        assert found.at == "final save"
        assert found.terms["data set"] == 5 * 8 * 100_000
        assert found.terms["model gathered and rebuilt on rank 0"] == 4 * shape.parameters

    def test_only_zero_3_loads_in_pieces(self):
        shape = find_shape("13b")
        whole, pieces = (host(shape, Setup(ranks=8, zero_stage=s), NODE, GROUPED).moments["loading"] for s in (2, 3))
        assert whole["model while loading"] == 8 * 2 * shape.parameters
        assert pieces["model while loading"] < GIB

    @pytest.mark.parametrize(("size", "added"), [(0, 0), (1, 0), (2, 0), (3, 1), (1024, 0), (1025, 1023)])
    def test_pinned_blocks_are_powers_of_two(self, size, added):
        assert rounding(size) == added

    def test_each_pinned_block_is_rounded_by_itself(self):
        shape, setup = find_shape("13b"), Setup(ranks=8, zero_stage=3, offload_optimizer=True)
        rounded, exact = (sum(offloaded(shape, s).values()) for s in (setup, setup._replace(pinned_rounding=False)))
        share = shape.parameters / 8
        blocks = [4 * share, *(4 * group for group in sub_groups(share, 10**9))]
        assert len(blocks) == 3
        assert exact == 20 * share
        assert rounded - exact == pytest.approx(sum(map(rounding, blocks)))

    def test_fp16_is_searched_for_overflow_all_at_once(self):
        shape, setup = find_shape("7b"), Setup("fp16", ranks=8, zero_stage=3, offload_optimizer=True)
        step = host(shape, setup, NODE, GROUPED).moments["optimizer step"]
        assert step["search for fp16 overflow"] == pytest.approx(5 * shape.parameters)
        assert "search for fp16 overflow" not in host(shape, setup._replace(precision="bf16"), NODE, GROUPED).terms

    def test_two_nodes_halve_a_nodes_share(self):
        shape, setup = find_shape("7b"), Setup(ranks=16, zero_stage=3, offload_optimizer=True)
        one, two = (host(shape, setup, parse_hardware(g), GROUPED).terms for g in ("16xT4", "2x8xT4"))
        assert two["offloaded moments"] == one["offloaded moments"] / 2 == 4 * shape.parameters


def test_disk_is_for_the_checkpoints_kept_and_the_one_being_written():
    shape = find_shape("7b")
    found = disk(shape, Setup(ranks=8, zero_stage=3, checkpoint_every=100, keep_checkpoints=2))
    assert found["checkpoints (2 kept, and one being written)"] == 3 * 12 * shape.parameters
    assert found["final model"] == 2 * shape.parameters
    assert len(disk(shape, Setup(ranks=8, zero_stage=3))) == 2
