"""Our model states beside DeepSpeed's own estimators: equal, or apart by terms that have names.

Both count weights 2, master weights 4, moments 8 and fp32 gradients 4 bytes per parameter on a GPU under ZeRO-3, and
agree to the byte. Apart are, and each test names its term: 16-bit gradients that last (theirs, ZeRO-2; ours are in the
reduce bucket); gradients that DeepSpeed keeps twice on the host (ours); a 16-bit copy on its way to the GPU (ours);
the share of a node where theirs counts all nodes, and the whole model read by every rank (theirs, ZeRO-2 on the host).
"""

import pytest
from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

from llamax.training.plan.host import offloaded
from llamax.training.plan.setup import Setup
from llamax.training.plan.shapes import find_shape
from llamax.training.plan.states import live, states

SHAPES = ("smol", "llama-7b", "llama-13b", "llama-2-70b", "llama-3-8b")
LAYOUTS = ((1, 8), (1, 4), (3, 8))


def zero3(name, nodes, per_node, **options):
    """Theirs: (host bytes, GPU bytes without the largest layer's); the factor for buffers set to 1."""
    shape = find_shape(name)
    host, gpu, layer = estimate_zero3_model_states_mem_needs(
        shape.parameters, shape.embedding, per_node, nodes, additional_buffer_factor=1, **options
    )
    return host, gpu - layer


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize(("nodes", "per_node"), LAYOUTS)
class TestZero3:
    def test_on_the_gpu_all_states_are_18_bytes(self, name, nodes, per_node):
        ranks = nodes * per_node
        n = find_shape(name).parameters
        ours = states(find_shape(name), Setup(ranks=ranks, zero_stage=3))
        _, theirs = zero3(name, nodes, per_node, cpu_offload=False, cpu_offload_params=False)
        assert int(sum(ours)) == theirs == int(18 * n / ranks)

    def test_with_the_optimizer_offloaded_the_gpu_has_the_weights_alone(self, name, nodes, per_node):
        ranks = nodes * per_node
        ours = states(find_shape(name), Setup(ranks=ranks, zero_stage=3, offload_optimizer=True))
        _, theirs = zero3(name, nodes, per_node, cpu_offload=True, cpu_offload_params=False)
        assert int(sum(ours)) == theirs

    def test_with_parameters_offloaded_the_gpu_has_nothing_that_lasts(self, name, nodes, per_node):
        setup = Setup(ranks=nodes * per_node, zero_stage=3, offload_optimizer=True, offload_parameters=True)
        _, theirs = zero3(name, nodes, per_node, cpu_offload=True, cpu_offload_params=True)
        assert sum(states(find_shape(name), setup)) == theirs == 0

    @pytest.mark.parametrize("parameters", [False, True])
    def test_on_the_host_ours_has_four_bytes_more(self, name, nodes, per_node, parameters):
        """They count master 4, moments 8, gradients 4 (and parameters 2); DeepSpeed keeps the gradients twice."""
        ranks = nodes * per_node
        shape = find_shape(name)
        setup = Setup(ranks=ranks, zero_stage=3, offload_optimizer=True, offload_parameters=parameters)
        setup = setup._replace(pinned_rounding=False)
        ours = sum(offloaded(shape, setup).values()) * per_node
        theirs, _ = zero3(name, nodes, per_node, cpu_offload=True, cpu_offload_params=parameters)
        twice = 4 * shape.parameters / nodes
        assert ours - twice == pytest.approx(theirs, abs=2)

    def test_their_largest_layer_is_the_least_that_we_keep_live(self, name, nodes, per_node):
        shape, setup = find_shape(name), Setup(ranks=nodes * per_node, zero_stage=3)
        layer = estimate_zero3_model_states_mem_needs(shape.parameters, shape.embedding)[2]
        # Theirs is the layer's weights and gradients in 16 bit; ours is what the coordinator keeps, gradients apart.
        assert live(shape, setup) >= layer / 2
        assert live(shape, setup) == 2 * min(shape.parameters, 10**9)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize(("nodes", "per_node"), LAYOUTS)
class TestZero2:
    def test_on_the_gpu(self, name, nodes, per_node):
        """Theirs is 2 N + 18 N / W; 18 is "2_grads_16bit + 4_grads_32bit + 4_params_32bit + 8_optimizer_states"."""
        ranks, n = nodes * per_node, find_shape(name).parameters
        ours = states(find_shape(name), Setup(ranks=ranks, zero_stage=2))
        _, theirs = estimate_zero2_model_states_mem_needs(n, per_node, nodes, False, 1)
        gradients_in_16_bit = 2 * n / ranks
        assert theirs == pytest.approx(sum(ours) + gradients_in_16_bit, abs=1)

    def test_with_the_optimizer_offloaded(self, name, nodes, per_node):
        """They count 16 bytes per parameter for all nodes; ours is a node's share, and has a 16-bit copy beside."""
        shape, n = find_shape(name), find_shape(name).parameters
        setup = Setup(ranks=nodes * per_node, zero_stage=2, offload_optimizer=True, pinned_rounding=False)
        theirs_host, theirs_gpu = estimate_zero2_model_states_mem_needs(n, 1, nodes, True, 1)
        assert sum(states(shape, setup)) == theirs_gpu == 2 * n
        ours = sum(offloaded(shape, setup).values()) * per_node
        copy_in_16_bit = 2 * n / nodes
        whole_at_loading = max(4 * nodes, 16) / 16  # their maximum over 4 bytes for each rank's own loading
        assert ours - copy_in_16_bit == pytest.approx(theirs_host / whole_at_loading / nodes, abs=2)
