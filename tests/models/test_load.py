import json
import shutil
import socket
import subprocess
import sys

import huggingface_hub
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from llamax.errors import DiskFullError, ModelError
from llamax.models import save as saving
from llamax.models.load import load, load_tokenizer
from llamax.models.save import logits, read_notes, save
from llamax.models.source import NANO_FOLDER, find

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>{% endfor %}"
)
IDS = torch.arange(5, 40)[None]


@pytest.fixture
def saved(tiny_model, tiny_tokenizer, tmp_path):
    return save(tiny_model, tiny_tokenizer, tmp_path / "model", notes={"template": "chatml"})


@pytest.fixture
def no_network(monkeypatch):
    """Every attempt to reach a machine by name or address fails the test."""

    def refuse(*args, **kwargs):
        pytest.fail(f"the network was touched: {args}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)


def test_what_is_saved_loads_here_and_in_plain_transformers(tiny_model, tiny_tokenizer, tmp_path):
    tokenizer = load_tokenizer(str(save(tiny_model, tiny_tokenizer, tmp_path / "first")))
    tokenizer.chat_template = TEMPLATE
    folder = save(tiny_model, tokenizer, tmp_path / "model", notes={"template": "chatml"})
    for model, again in (
        load(str(folder)),
        (AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)),
    ):
        assert torch.equal(logits(model, IDS), logits(tiny_model, IDS))
        assert again.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == (
            "<|im_start|>user\nhi<|im_end|>"
        )
        assert (again.bos_token, again.eos_token, again.pad_token) == ("<s>", "</s>", "<pad>")
    assert read_notes(folder) == {"template": "chatml"}
    assert not load(str(folder)).model.training
    assert load(str(folder), dtype=torch.bfloat16).model.dtype == torch.bfloat16


@pytest.mark.parametrize("tied", [True, False])
def test_tied_and_untied_bf16_models_survive(tiny_tokenizer, tmp_path, tied):
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=tied,
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    folder = save(model, tiny_tokenizer, tmp_path / "model")
    again = load(str(folder), dtype=torch.bfloat16).model
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)
    assert (again.lm_head.weight is again.model.embed_tokens.weight) == tied


def test_no_socket_is_opened_for_a_local_folder(saved, monkeypatch):
    # In a process of its own, without HF_HUB_OFFLINE: the library itself must stay off the network.
    code = f"""
import socket
def refuse(*args, **kwargs): raise SystemExit(f"network touched: {{args}}")
socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse
from llamax.models.load import load
load({str(saved)!r})
print("loaded")
"""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip().endswith("loaded"), done.stderr[-2000:]


def flip(file, offset=-100):
    content = bytearray(file.read_bytes())
    content[offset] ^= 1
    file.write_bytes(content)


def test_a_flipped_byte_is_found(saved):
    flip(saved / "model.safetensors")
    with pytest.raises(ModelError, match=r"model\.safetensors: damaged"):
        load(str(saved))


def test_a_missing_file_and_damaged_notes_are_named(saved):
    (saved / "generation_config.json").unlink()
    with pytest.raises(ModelError, match=r"generation_config\.json: missing"):
        load(str(saved))
    for content in ("{", "[]", "5", '{"notes": 5, "sha256": 5}'):
        (saved / "llamax.json").write_text(content)
        for reader in (load, read_notes):
            with pytest.raises(ModelError, match=r"llamax\.json: damaged"):
                reader(str(saved))


def test_bad_weights_of_other_making_are_refused(saved):
    (saved / "llamax.json").unlink()
    whole = load_file(saved / "model.safetensors")
    part = {name: tensor for name, tensor in whole.items() if "layers.1.mlp.up" not in name}
    save_file(part, saved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"1 weights missing.*layers\.1\.mlp\.up_proj"):
        load(str(saved))
    (saved / "model.safetensors").write_bytes(b"not a tensor")
    with pytest.raises(ModelError, match="cannot be loaded") as caught:
        load(str(saved))
    assert "\n" not in str(caught.value)


def configure(folder, **changes):
    """Other making: without our notes, and with a changed config.json."""
    (folder / "llamax.json").unlink(missing_ok=True)
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def line(spec):
    """The one line that loading fails with."""
    with pytest.raises(ModelError) as caught:
        load(str(spec))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_hidden_layers": 1}, "9 weights without a place in the model that config.json describes, the first is "),
        ({"intermediate_size": 60}, "down_proj.weight is [32, 64] in the weights, [32, 60] by config.json"),
        ({"num_attention_heads": 0}, "num_attention_heads 0 should be a multiple of num_key_value_heads 2"),
        ({"num_key_value_heads": 3}, "num_attention_heads 4 should be a multiple of num_key_value_heads 3"),
        ({"num_attention_heads": "x"}, "num_attention_heads 'x' should be a multiple"),
        ({"num_attention_heads": 6, "head_dim": None}, "The hidden size (32) is not a multiple of the number of"),
    ],
)
def test_a_config_that_does_not_fit_the_weights_is_refused(saved, changes, said):
    configure(saved, **changes)
    assert said in line(saved)


def test_the_frequencies_of_old_checkpoints_are_let_through(saved):
    configure(saved)
    tensors = load_file(saved / "model.safetensors")
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(tensors, saved / "model.safetensors", metadata={"format": "pt"})
    load(str(saved))


class Evil:
    def __reduce__(self):
        return (print, ("code ran",))


def test_files_that_cannot_be_loaded_say_why(saved, capsys):
    configure(saved)
    whole = (saved / "tokenizer.json").read_text()
    for content, said in (("{", "tokenizer.json: not JSON ("), ("[]", "tokenizer.json: a JSON list, should be an")):
        (saved / "tokenizer.json").write_text(content)
        assert said in line(saved)
    (saved / "tokenizer.json").unlink()
    assert "no tokenizer here: tokenizer.json is missing" in line(saved)
    (saved / "tokenizer.json").write_text(whole)
    (saved / "model.safetensors").unlink()
    torch.save({"a": Evil()}, saved / "pytorch_model.bin")
    assert "its pickle holds more than tensors, and loading it could run code; get the model as" in line(saved)
    (saved / "pytorch_model.bin").write_bytes(b"")
    assert "a file of weights is empty or cut short" in line(saved)
    (saved / "config.json").write_text("[]")
    assert "config.json: a JSON list, should be an object" in line(saved)
    assert "code ran" not in capsys.readouterr().out


def test_the_hub_is_asked_once_and_offline_never(monkeypatch, tmp_path):
    asked = []

    def unreachable(self, name, **options):
        asked.append((name, options["timeout"]))
        raise ConnectionError("no route to host\nmore")

    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", unreachable)
    assert "Connect, or give a local folder" in line("org/name") and not asked  # HF_HUB_OFFLINE is set
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    assert line("org/name") == (
        "org/name: not to be had from the hub (no route to host). Connect, or give a local folder"
    )
    assert asked == [("org/name", 5.0)]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("./nowhere", "no such file or folder"),
        ("/nowhere/model", "no such file or folder"),
        ("runs/a/model", "no such file or folder"),
        ("weights.gguf", "no such file or folder"),
        ("two words", "neither nano, smol"),
        ("", "neither nano, smol"),
    ],
)
def test_a_path_that_is_not_there_never_reaches_the_hub(spec, message, no_network):
    with pytest.raises(ModelError, match=message):
        load(spec)


def test_folders_without_a_model_say_what_is_missing(saved, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ModelError, match=r"empty: no model here: config\.json is missing"):
        find(str(empty))
    shutil.copy(saved / "config.json", empty)
    with pytest.raises(ModelError, match=r"empty: config\.json but no weights"):
        find(str(empty))
    (empty / "config.json").rename(empty / "adapter_config.json")
    with pytest.raises(ModelError, match="a LoRA adapter"):
        find(str(empty))
    (empty / "consolidated.00.pth").touch()
    with pytest.raises(ModelError, match=r"without params\.json"):
        find(str(empty))
    with pytest.raises(ModelError, match=r"not a \.gguf"):
        find(str(empty / "adapter_config.json"))


def test_a_hub_id_in_the_cache_is_served_from_it(saved, tmp_path, monkeypatch, no_network):
    folder = tmp_path / "hub" / "models--org--name"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc123")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    assert find("org/name").kind == "hub"
    shutil.copytree(saved, folder / "snapshots" / "abc123")
    assert find("org/name").commit == "abc123"
    load("org/name")


def test_half_a_download_is_none(saved, tmp_path, monkeypatch):
    folder = tmp_path / "hub" / "models--org--name"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc123")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    there = shutil.copytree(saved, folder / "snapshots" / "abc123")
    names = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    (there / "model.safetensors").rename(there / names[0])
    index = {"weight_map": dict(zip("ab", names, strict=True))}
    (there / "model.safetensors.index.json").write_text(json.dumps(index))
    assert find("org/name").kind == "hub"
    (there / names[1]).touch()
    assert find("org/name").commit == "abc123"
    (there / "tokenizer.json").unlink()
    assert find("org/name").kind == "hub"


def test_special_tokens_must_differ(saved):
    file = saved / "tokenizer_config.json"
    (saved / "llamax.json").unlink()
    whole = json.loads(file.read_text())
    for change, message in (
        ({"pad_token": "</s>"}, "EOS and PAD are the same token, '</s>': give one with pad_token"),
        ({"bos_token": "</s>"}, "BOS and EOS are the same token"),
        ({"pad_token": None}, "no PAD token"),
        ({"bos_token": None}, "no BOS token"),
    ):
        file.write_text(json.dumps(whole | change))
        with pytest.raises(ModelError, match=message):
            load(str(saved))
        with pytest.raises(ModelError, match=message):
            load_tokenizer(str(saved))
    file.write_text(json.dumps(whole | {"pad_token": "</s>"}))
    model, tokenizer = load(str(saved), pad_token="<pad>")
    assert model.config.pad_token_id == tokenizer.pad_token_id == 2


def test_saving_a_model_that_reads_back_otherwise_publishes_nothing(saved, tiny_model, tiny_tokenizer, monkeypatch):
    before = {file.name: file.read_bytes() for file in saved.iterdir()}
    weights = saving.PreTrainedModel.save_pretrained

    def damaged(self, folder, **kwargs):
        weights(self, folder, **kwargs)
        tensors = load_file(folder / "model.safetensors")
        tensors["model.norm.weight"] *= 1.01
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(saving.PreTrainedModel, "save_pretrained", damaged)
    with pytest.raises(ModelError, match="logits read back differ"):
        save(tiny_model, tiny_tokenizer, saved)
    assert {file.name: file.read_bytes() for file in saved.iterdir()} == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), SafetensorError("No space left on device (os error 28)")]
)
def test_a_full_disk_leaves_the_old_model(saved, tiny_model, tiny_tokenizer, monkeypatch, error):
    def full(self, folder, **kwargs):
        raise error

    monkeypatch.setattr(saving.PreTrainedModel, "save_pretrained", full)
    with pytest.raises(DiskFullError, match="no disk space"):
        save(tiny_model, tiny_tokenizer, saved)
    load(str(saved))


def test_a_lora_wrapper_is_not_saved_as_a_model(tiny_model, tiny_tokenizer, tmp_path):
    from peft import LoraConfig, get_peft_model

    wrapped = get_peft_model(tiny_model, LoraConfig(target_modules="all-linear"))
    with pytest.raises(ModelError, match="merge the adapter"):
        save(wrapped, tiny_tokenizer, tmp_path / "model")


def test_nano_is_in_the_package(no_network):
    if not (NANO_FOLDER / "model.safetensors").is_file():
        with pytest.raises(ModelError, match="llamax pretrain nano"):
            find("nano")
        pytest.skip("nano's weights absent")
    model, tokenizer = load("nano")
    assert model.dtype == torch.float32
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)


@pytest.mark.slow
def test_smol_is_converted_once(tmp_path, monkeypatch, no_network):
    try:
        find("smol")
    except ModelError as error:
        pytest.skip(str(error))
    monkeypatch.setenv("LLAMAX_CACHE", str(tmp_path))
    model, tokenizer = load("smol")
    (folder,) = (path for path in (tmp_path / "models").iterdir() if path.is_dir())
    made = (folder / "model.safetensors").stat().st_mtime_ns
    assert load("smol").model.num_parameters() == model.num_parameters() == 134_515_008
    assert (folder / "model.safetensors").stat().st_mtime_ns == made
    assert read_notes(folder)["quantisation"] == {"F32": 61, "Q4_1": 210, "Q8_0": 1}
    assert not hasattr(model.config, "quantization_config")
    text = tokenizer.apply_chat_template([{"role": "user", "content": "What is 2+2?"}], tokenize=False)
    assert text.endswith("<|im_start|>user\nWhat is 2+2?<|im_end|>\n")
    assert len({tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}) == 3
    assert model.config.pad_token_id == tokenizer.pad_token_id


def test_a_tensor_that_was_not_written_is_named(saved, tiny_model, tiny_tokenizer, monkeypatch):
    read = saving.AutoModelForCausalLM.from_pretrained

    def without_one(*arguments, **kwargs):
        again = read(*arguments, **kwargs)
        del again.model.norm
        return again

    monkeypatch.setattr(saving.AutoModelForCausalLM, "from_pretrained", without_one)
    with pytest.raises(ModelError, match=r"model.norm.weight not written"):
        save(tiny_model, tiny_tokenizer, saved)


@pytest.mark.parametrize(
    ("what", "damage"),
    [
        ("chat template", lambda again: setattr(again, "chat_template", "other")),
        ("size", lambda again: again.add_tokens(["<another>"])),
        ("special tokens", lambda again: setattr(again, "pad_token", "x")),
    ],
)
def test_a_tokenizer_that_reads_back_otherwise_is_named(saved, tiny_model, tiny_tokenizer, monkeypatch, what, damage):
    read = saving.AutoTokenizer.from_pretrained

    def damaged(*arguments, **kwargs):
        again = read(*arguments, **kwargs)
        damage(again)
        return again

    monkeypatch.setattr(saving.AutoTokenizer, "from_pretrained", damaged)
    with pytest.raises(ModelError, match=f"the tokenizer's {what} changed when read back"):
        save(tiny_model, tiny_tokenizer, saved)
