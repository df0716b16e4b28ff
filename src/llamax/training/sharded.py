"""Load a model straight into ZeRO-3's shards: no rank ever holds more than its share and one tensor.

Otherwise every rank would read the whole checkpoint before DeepSpeed shards it: 8 x 13.5 GB of host memory for 7B in
bf16. Here a parameter is sharded the moment it is made, and then filled: rank 0 reads one tensor from disk, all ranks
get it, each keeps its share. Meta's own format alone is read whole, by rank 0.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.integrations.deepspeed import prevent_arange_dtype_change

from llamax.errors import ModelError
from llamax.models.load import Loaded, count_tokens, fetch, load, load_tokenizer
from llamax.models.precision import DTYPES
from llamax.models.save import check_files
from llamax.models.vocabulary import fill_new_rows, rows_for
from llamax.training.config import TrainConfig
from llamax.training.engines import deepspeed_config, prepare_deepspeed


class Stored(NamedTuple):
    """Weights on disk: their shapes by name, and how to read one of them."""

    shapes: dict[str, tuple[int, ...]]
    read: Callable[[str], Tensor]


def load_sharded(spec: str, config: TrainConfig, *, pad_token: str | None = None) -> Loaded:
    """What `llamax.models.load` gives, sharded over the ranks, all of which call it.

    Raises: ModelError: as `load`.
    """
    import deepspeed

    prepare_deepspeed()
    deepspeed.init_distributed()
    shape, stored = _find(spec, DTYPES[config.precision])
    tokenizer, known, old = load_tokenizer(spec, pad_token=pad_token), count_tokens(spec), shape.vocab_size
    grows = len(tokenizer) > known
    shape.vocab_size = rows_for(old, len(tokenizer)) if grows else old
    if pad_token is not None:
        shape.pad_token_id = tokenizer.pad_token_id
    if len(tokenizer) > shape.vocab_size:
        raise ModelError(f"model {spec}: the tokenizer has {len(tokenizer)} tokens, the embeddings only {old} rows")
    model = empty_shards(shape, config)
    fill(model, spec, stored, partial(_grown, old=min(old, known), known=known) if grows else None)
    return Loaded(model.eval(), tokenizer)


def empty_shards(shape: PretrainedConfig, config: TrainConfig) -> PreTrainedModel:
    """A model of this shape, its parameters sharded and not yet set."""
    import deepspeed

    settings = deepspeed_config(config, shape.get_text_config().hidden_size)
    dtype = DTYPES[config.precision]
    sharding = deepspeed.zero.Init(config_dict_or_path=settings, dtype=dtype)
    # In this order: DeepSpeed would round the rotary frequencies, too.
    with no_init_weights(), prevent_arange_dtype_change(), sharding:
        model = AutoModelForCausalLM.from_config(shape, dtype=dtype)
    model.tie_weights()
    return model


def fill(model: nn.Module, spec: str, stored: Stored, grow: Callable[[Tensor, int], Tensor] | None = None) -> None:
    """Put stored weights into shards, one at a time. grow: makes a matrix longer where the vocabulary has grown.

    Raises: ModelError: a weight is missing, has no place, or has another shape.
    """
    from deepspeed.runtime.zero.partition_parameters import GatheredParameters

    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    wanted = dict(model.named_parameters())
    unknown = [n for n in stored.shapes if n not in names and not n.endswith("rotary_emb.inv_freq")]
    for strangers, where in ((wanted.keys() - stored.shapes, "missing"), (unknown, "without a place in the model")):
        if strangers:
            raise ModelError(f"model {spec}: {len(strangers)} weights {where}, the first is {min(strangers)}")
    grown = {id(m.weight) for m in (model.get_input_embeddings(), model.get_output_embeddings())} if grow else set()
    for name, parameter in wanted.items():
        shape = tuple(parameter.ds_shape)
        if stored.shapes[name] != shape and id(parameter) not in grown:
            shapes = f"{list(stored.shapes[name])} in the weights, {list(shape)} by config.json"
            raise ModelError(f"model {spec}: {name} is {shapes}; the two do not belong together")
        with GatheredParameters([parameter], modifier_rank=0), torch.no_grad():
            if torch.distributed.get_rank() == 0:
                tensor = stored.read(name).to(parameter.dtype)
                parameter.data.copy_(grow(tensor, shape[0]) if id(parameter) in grown else tensor)


def _grown(weight: Tensor, rows: int, *, old: int, known: int) -> Tensor:
    """`weight` [old rows, hidden] with `rows` rows, the new ones as `llamax.models.vocabulary.add_tokens` sets them."""
    longer = weight.new_zeros(rows, weight.shape[1])
    longer[: len(weight)] = weight
    fill_new_rows(longer, old, known)
    return longer


def _find(spec: str, dtype: torch.dtype) -> tuple[PretrainedConfig, Stored]:
    """Shape and stored weights of `spec`; rank 0 checks the files against what was noted when they were saved."""
    source = fetch(spec)
    if source.kind == "meta":
        return _meta(spec, dtype)
    if torch.distributed.get_rank() == 0:
        check_files(source.path)
    shape = AutoConfig.from_pretrained(source.path, local_files_only=True)
    files = sorted(source.path.glob("*.safetensors"))
    return shape, _safetensors(files) if files else _pickles(sorted(source.path.glob("pytorch_model*.bin")))


def _safetensors(files: list[Path]) -> Stored:
    """Weights in safetensors; a file is open for one tensor at a time, so that its pages can go."""
    shapes, place = {}, {}
    for file in files:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - no mapping
                shapes[name], place[name] = tuple(opened.get_slice(name).get_shape()), file

    def read(name: str) -> Tensor:
        with safe_open(place[name], framework="pt") as opened:
            return opened.get_tensor(name)

    return Stored(shapes, read)


def _pickles(files: list[Path]) -> Stored:
    """Weights in torch's own format, mapped into memory rather than read."""
    parts = [torch.load(file, mmap=True, weights_only=True, map_location="cpu") for file in files]
    tensors = {name: tensor for part in parts for name, tensor in part.items()}
    return Stored({name: tuple(tensor.shape) for name, tensor in tensors.items()}, tensors.__getitem__)


def _meta(spec: str, dtype: torch.dtype) -> tuple[PretrainedConfig, Stored]:
    """Meta's format, whose shards hold slices of every matrix: rank 0 converts all of it in memory."""
    told: list = [None]
    tensors: dict[str, Tensor] = {}
    if torch.distributed.get_rank() == 0:
        model = load(spec, dtype=dtype).model
        tensors = dict(model.named_parameters())
        told = [(model.config, {name: tuple(tensor.shape) for name, tensor in tensors.items()})]
    torch.distributed.broadcast_object_list(told, src=0)
    shape, shapes = told[0]
    return shape, Stored(shapes, tensors.get)
