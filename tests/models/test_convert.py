"""Meta's format: a checkpoint made here is run by a forward pass written here from Meta's own reference code."""

import base64
import json
import math
import pickle
import shutil
from itertools import pairwise

import pytest
import sentencepiece
import torch

from llamax.errors import ModelError
from llamax.models.convert import halves
from llamax.models.load import load, load_tokenizer

DIM, LAYERS, HEADS, KV_HEADS, HIDDEN, THETA, EPS = 32, 2, 4, 2, 48, 10000.0, 1e-5
PARAMS = {"dim": DIM, "n_layers": LAYERS, "n_heads": HEADS, "n_kv_heads": KV_HEADS, "norm_eps": EPS, "vocab_size": -1}
TEXT = "the quick brown fox jumps over the lazy dog and the dog sleeps all day in the warm sun"


def meta_weights(vocabulary, seed=0):
    """Random weights under Meta's names."""
    generator = torch.Generator().manual_seed(seed)
    size = DIM // HEADS

    def matrix(*shape):
        return torch.randn(*shape, generator=generator) / math.sqrt(shape[-1])

    weights = {"tok_embeddings.weight": matrix(vocabulary, DIM), "output.weight": matrix(vocabulary, DIM)}
    weights["norm.weight"] = 1 + 0.1 * matrix(DIM)
    weights["rope.freqs"] = torch.zeros(size // 2)
    for layer in range(LAYERS):
        shapes = {
            "attention.wq": (HEADS * size, DIM),
            "attention.wk": (KV_HEADS * size, DIM),
            "attention.wv": (KV_HEADS * size, DIM),
            "attention.wo": (DIM, HEADS * size),
            "feed_forward.w1": (HIDDEN, DIM),
            "feed_forward.w2": (DIM, HIDDEN),
            "feed_forward.w3": (HIDDEN, DIM),
        }
        for name, shape in shapes.items():
            weights[f"layers.{layer}.{name}.weight"] = matrix(*shape)
        for name in ("attention_norm", "ffn_norm"):
            weights[f"layers.{layer}.{name}.weight"] = 1 + 0.1 * matrix(DIM)
    return weights


def reference_logits(weights, ids):
    """Logits `[seq, vocab]` after meta-llama/llama, llama/model.py: neighbouring pairs turn as complex numbers."""
    size, seq = DIM // HEADS, len(ids)

    def norm(x, weight):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS) * weight

    frequencies = 1.0 / (THETA ** (torch.arange(0, size, 2).float() / size))
    turn = torch.polar(torch.ones(seq, size // 2), torch.outer(torch.arange(seq).float(), frequencies))

    def rotate(x):
        pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
        return torch.view_as_real(pairs * turn[:, None]).flatten(2)

    h = weights["tok_embeddings.weight"][ids]
    for layer in range(LAYERS):
        w = {name.split(".", 2)[2]: t for name, t in weights.items() if name.startswith(f"layers.{layer}.")}
        x = norm(h, w["attention_norm.weight"])
        q = rotate((x @ w["attention.wq.weight"].T).view(seq, HEADS, size))
        k = rotate((x @ w["attention.wk.weight"].T).view(seq, KV_HEADS, size))
        v = (x @ w["attention.wv.weight"].T).view(seq, KV_HEADS, size)
        k, v = (t.repeat_interleave(HEADS // KV_HEADS, 1) for t in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(size)
        scores = scores + torch.full((seq, seq), -torch.inf).triu(1)
        h = h + torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).flatten(1) @ w["attention.wo.weight"].T
        x = norm(h, w["ffn_norm.weight"])
        gate = torch.nn.functional.silu(x @ w["feed_forward.w1.weight"].T)
        h = h + (gate * (x @ w["feed_forward.w3.weight"].T)) @ w["feed_forward.w2.weight"].T
    return norm(h, weights["norm.weight"]) @ weights["output.weight"].T


def split(weights, shards, embeddings_along):
    """Slices as Meta's model parallelism cuts them."""
    along = {"wq": 0, "wk": 0, "wv": 0, "w1": 0, "w3": 0, "output": 0, "wo": 1, "w2": 1}
    along["tok_embeddings"] = embeddings_along
    parts = [{} for _ in range(shards)]
    for name, tensor in weights.items():
        cut = along.get(name.split(".")[-2])
        pieces = [tensor] * shards if cut is None else tensor.chunk(shards, cut)
        for part, piece in zip(parts, pieces, strict=True):
            part[name] = piece.clone()
    return parts


def write_meta(folder, weights, shards=1, embeddings_along=1, **params):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "params.json").write_text(json.dumps(PARAMS | params))
    for number, part in enumerate(split(weights, shards, embeddings_along)):
        torch.save(part, folder / f"consolidated.{number:02d}.pth")


def train_sentencepiece(folder):
    (folder / "text.txt").write_text((TEXT + "\n") * 20)
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text.txt"),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=320,
        model_type="bpe",
        byte_fallback=True,
        hard_vocab_limit=False,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(str(folder / "tokenizer.model"))


@pytest.fixture(scope="module")
def sp_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    return folder, train_sentencepiece(folder)


@pytest.mark.parametrize(("shards", "embeddings_along"), [(1, 1), (2, 1), (2, 0)])
def test_meta_checkpoint_computes_what_metas_code_computes(sp_folder, shards, embeddings_along):
    parent, processor = sp_folder
    weights = meta_weights(processor.vocab_size())
    folder = parent / f"7B-{shards}-{embeddings_along}"
    write_meta(folder, weights, shards, embeddings_along)
    model, tokenizer = load(str(folder), pad_token="<unk>")
    ids = tokenizer(TEXT).input_ids
    with torch.inference_mode():
        logits = model(torch.tensor([ids])).logits[0]
    torch.testing.assert_close(logits, reference_logits(weights, torch.tensor(ids)), atol=1e-4, rtol=1e-4)
    assert model.config.max_position_embeddings == 2048
    assert (model.config.bos_token_id, model.config.eos_token_id, model.config.pad_token_id) == (1, 2, 0)


def test_window_of_params_json_counts(sp_folder):
    parent, processor = sp_folder
    write_meta(parent / "window", meta_weights(processor.vocab_size()), max_seq_len=4096)
    assert load(str(parent / "window"), pad_token="<unk>").model.config.max_position_embeddings == 4096


def test_sentencepiece_tokens_are_sentencepieces(sp_folder):
    parent, processor = sp_folder
    write_meta(parent / "tokens", meta_weights(processor.vocab_size()))
    tokenizer = load_tokenizer(str(parent / "tokens"), pad_token="<unk>")
    for text in (TEXT, "the  lazy\n\tfox's dog, 東京!", " leading", "x"):
        ids = processor.encode(text)
        assert tokenizer(text).input_ids == [1, *ids]
        assert tokenizer.decode(ids) == processor.decode(ids)


def byte_pairs(ranks, word):
    """Byte-pair encoding by rank, the definition: merge the adjacent pair of lowest rank until none is known."""
    parts = [bytes([byte]) for byte in word]
    while len(parts) > 1:
        rank, i = min((ranks.get(a + b, math.inf), i) for i, (a, b) in enumerate(pairwise(parts)))
        if rank == math.inf:
            break
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return [ranks[part] for part in parts]


def test_tiktoken_tokens_follow_the_ranks(tmp_path):
    merges = ["th", "the", " the", "qu", "ic", "quic", "quick", " d", "og", " dog", "ss", "sss"]
    ranks = {bytes([byte]): byte for byte in range(256)}
    ranks |= {token.encode(): 256 + i for i, token in enumerate(merges)}
    lines = [base64.b64encode(token) + b" %d" % rank for token, rank in ranks.items()]
    (tmp_path / "tokenizer.model").write_bytes(b"\n".join(lines) + b"\n")
    write_meta(tmp_path, meta_weights(len(ranks) + 256), rope_theta=500000.0)
    tokenizer = load_tokenizer(str(tmp_path))
    first = len(ranks)
    assert len(tokenizer) == first + 256
    assert tokenizer.bos_token_id == first
    assert tokenizer.convert_tokens_to_ids(["<|start_header_id|>", "<|eot_id|>"]) == [first + 6, first + 9]
    for words in (["the", " quick", " dog"], ["ssss", " the"], ["über", " the", "\n"], ["dog", "'s"]):
        expected = [token for word in words for token in byte_pairs(ranks, word.encode())]
        assert tokenizer("".join(words)).input_ids == [first, *expected]
    assert tokenizer.decode(tokenizer("über the 東京 dog").input_ids, skip_special_tokens=True) == "über the 東京 dog"


def test_halves_is_the_documented_permutation():
    rows = torch.arange(16.0)[:, None]
    assert halves(rows, heads=2)[:, 0].tolist() == [0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15]


class Evil:
    def __reduce__(self):
        return (print, ("code ran",))


def test_pickle_that_would_run_code_is_refused(sp_folder, capsys):
    parent, _ = sp_folder
    folder = parent / "evil"
    folder.mkdir()
    (folder / "params.json").write_text(json.dumps(PARAMS))
    torch.save({"tok_embeddings.weight": Evil()}, folder / "consolidated.00.pth")
    with pytest.raises(ModelError, match=r"consolidated\.00\.pth: holds more than tensors"):
        load(str(folder), pad_token="<unk>")
    (folder / "consolidated.00.pth").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ModelError, match=r"consolidated\.00\.pth"):
        load(str(folder), pad_token="<unk>")
    assert "code ran" not in capsys.readouterr().out


def test_a_missing_shard_or_tensor_is_said(sp_folder):
    parent, processor = sp_folder
    weights = meta_weights(processor.vocab_size())
    write_meta(parent / "torn", weights, shards=2)
    (parent / "torn" / "consolidated.01.pth").unlink()
    with pytest.raises(ModelError, match="torn"):
        load(str(parent / "torn"), pad_token="<unk>")
    del weights["layers.1.feed_forward.w2.weight"]
    write_meta(parent / "hole", weights)
    with pytest.raises(ModelError, match=r"hole.*down_proj"):
        load(str(parent / "hole"), pad_token="<unk>")


def without(weights, part):
    return {name: tensor for name, tensor in weights.items() if part not in name}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"n_heads": None}, "params.json: parameter 'n_heads'"),
        ({"n_heads": 0}, "params.json: parameter 'n_heads' = 0"),
        ({"n_kv_heads": 3}, "params.json: .* n_heads a multiple of n_kv_heads"),
        ({"norm_eps": "x"}, "params.json: parameter 'norm_eps' = 'x'"),
        (b"[]", "params.json: .*valid dictionary"),
        (b"{", "params.json: not a JSON file of parameters"),
        (b"\xff", "params.json: not a JSON file of parameters"),
    ],
)
def test_bad_parameters_are_named(sp_folder, tmp_path, change, said):
    parent, processor = sp_folder
    shutil.copy(parent / "tokenizer.model", tmp_path)
    write_meta(tmp_path, meta_weights(processor.vocab_size()))
    content = change if isinstance(change, bytes) else json.dumps(PARAMS | change).encode()
    (tmp_path / "params.json").write_bytes(content)
    fails(tmp_path, said)


def fails(folder, said):
    """Loading fails with one line that matches."""
    with pytest.raises(ModelError, match=said) as caught:
        load(str(folder), pad_token="<unk>")
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda weights: b"", "00.pth: damaged, or not a .pth file"),
        (lambda weights: b"garbage" * 100, "00.pth: damaged, or not a .pth file"),
        (lambda weights: [1], "00.pth: holds something else than tensors by name"),
        (lambda weights: {"a": 1}, "00.pth: holds something else than tensors by name"),
        (lambda weights: {}, "00.pth: lacks 2 tensors, the first is layers.0.feed_forward.w1"),
        (lambda weights: without(weights, "tok_emb"), "00.pth: lacks 1 tensors, the first is tok_embeddings"),
        (lambda weights: weights | {"vision.weight": weights["norm.weight"]}, "00.pth: tensor 'vision.weight' does"),
        (lambda weights: weights | {"layers.0.attention.wq.weight": torch.ones(3)}, "the shape of tensor layers.0.att"),
    ],
)
def test_bad_weights_are_named(sp_folder, tmp_path, make, said):
    parent, processor = sp_folder
    shutil.copy(parent / "tokenizer.model", tmp_path)
    weights = meta_weights(processor.vocab_size())
    write_meta(tmp_path, weights)
    content = make(weights)
    file = tmp_path / "consolidated.00.pth"
    file.write_bytes(content) if isinstance(content, bytes) else torch.save(content, file)
    fails(tmp_path, said)


def test_a_shard_that_lacks_a_tensor_is_named(sp_folder, tmp_path):
    parent, processor = sp_folder
    shutil.copy(parent / "tokenizer.model", tmp_path)
    write_meta(tmp_path, meta_weights(processor.vocab_size()), shards=2)
    file = tmp_path / "consolidated.01.pth"
    torch.save(without(torch.load(file), "w2"), file)
    fails(tmp_path, r"01\.pth: lacks 2 tensors, the first is layers\.0\.feed_forward\.w2")


@pytest.mark.parametrize("content", [b"", b"\0garbage" * 20, b"aGk= 0\na! x\n", b"aGk= 0\n"])
def test_a_damaged_tokenizer_is_named(tmp_path, content):
    write_meta(tmp_path, meta_weights(320))
    (tmp_path / "tokenizer.model").write_bytes(content)
    fails(tmp_path, r"tokenizer\.model: damaged, or of neither")


def test_a_truncated_shard_is_said(sp_folder):
    parent, processor = sp_folder
    write_meta(parent / "cut", meta_weights(processor.vocab_size()))
    file = parent / "cut" / "consolidated.00.pth"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ModelError, match=r"consolidated\.00\.pth"):
        load(str(parent / "cut"), pad_token="<unk>")


def test_special_tokens_of_llama_1_ask_for_a_pad(sp_folder):
    parent, processor = sp_folder
    write_meta(parent / "nopad", meta_weights(processor.vocab_size()))
    with pytest.raises(ModelError, match=r"no PAD token.*pad_token"):
        load(str(parent / "nopad"))
    model, tokenizer = load(str(parent / "nopad"), pad_token="<pad>")
    assert tokenizer.pad_token_id == processor.vocab_size()
    assert model.get_input_embeddings().weight.shape[0] % 64 == 0
