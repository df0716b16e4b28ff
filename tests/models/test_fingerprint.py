import os
import shutil
import subprocess
import sys

import pytest

from llamax.errors import DiskFullError, ModelError
from llamax.models import fingerprint as module
from llamax.models.fingerprint import fingerprint
from llamax.models.save import save


def test_the_hash_is_of_the_content(tiny_model, tiny_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("LLAMAX_CACHE", str(tmp_path / "cache"))
    folder = save(tiny_model, tiny_tokenizer, tmp_path / "model", notes={"a": 1})
    first = fingerprint(str(folder))
    copy = shutil.copytree(folder, tmp_path / "copy")
    assert fingerprint(str(copy)) == first
    (copy / "llamax.json").write_text("{}")
    (copy / "README.md").write_text("words")
    assert fingerprint(str(copy)) == first
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        content = bytearray((folder / name).read_bytes())
        content[-3] ^= 1
        (copy / name).write_bytes(content)
        assert fingerprint(str(copy)) != first, name
        shutil.copy(folder / name, copy / name)
    assert fingerprint(str(copy)) == first


def test_a_file_is_hashed_once(tmp_path, monkeypatch):
    monkeypatch.setenv("LLAMAX_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "model.gguf"
    file.write_bytes(b"abc")
    os.utime(file, ns=(10**18, 10**18))
    first = fingerprint(str(file))
    monkeypatch.setattr(module, "sha256_file", lambda path: "hashed again")
    assert fingerprint(str(file)) == first
    os.utime(file, ns=(10**18, 2 * 10**18))
    assert fingerprint(str(file)) != first
    (tmp_path / "cache" / "hashes.json").write_text("damaged")
    assert fingerprint(str(file)) != first


@pytest.mark.parametrize(
    "kept", ["[]", "5", '{"PATH": 5}', '{"PATH": [3, 1]}', '{"PATH": [3, 1, null]}', "[" * 200_000]
)
def test_a_damaged_memory_of_hashes_stops_nothing(tmp_path, monkeypatch, kept):
    monkeypatch.setenv("LLAMAX_CACHE", str(tmp_path))
    file = tmp_path / "model.gguf"
    file.write_bytes(b"abc")
    os.utime(file, ns=(1, 1))
    first = fingerprint(str(file))
    (tmp_path / "hashes.json").write_text(kept.replace("PATH", str(file)))
    assert fingerprint(str(file)) == first


def test_a_memory_that_cannot_be_written_stops_nothing(tmp_path, monkeypatch):
    (tmp_path / "model.gguf").write_bytes(b"abc")
    (tmp_path / "file").touch()
    for cache in (tmp_path / "file", tmp_path / "file" / "inside"):  # read-only folders do not stop root
        monkeypatch.setenv("LLAMAX_CACHE", str(cache))
        assert fingerprint(str(tmp_path / "model.gguf"))
    monkeypatch.setenv("LLAMAX_CACHE", str(tmp_path / "full"))

    def full(*args):
        raise DiskFullError("no disk space")

    monkeypatch.setattr(module, "write_atomic", full)
    assert fingerprint(str(tmp_path / "model.gguf"))


def test_a_hub_id_is_hashed_with_its_commit(tiny_model, tiny_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(module, "commit_of", lambda spec, *_: {"org/name": "abc123", "org/other": "def456"}[spec])
    before = fingerprint("org/name")
    assert before == fingerprint("org/name") != fingerprint("org/other")
    with pytest.raises(ModelError, match="model org/name: not on this disk"):
        fingerprint("org/name", ask=False)
    folder = tmp_path / "hub" / "models--org--name"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc123")
    save(tiny_model, tiny_tokenizer, folder / "snapshots" / "abc123")
    monkeypatch.setattr(module, "commit_of", None)  # is not asked
    assert fingerprint("org/name") == before == fingerprint("org/name", ask=False)  # a download changes nothing
    (folder / "refs" / "main").write_text("def456")
    shutil.move(folder / "snapshots" / "abc123", folder / "snapshots" / "def456")
    assert fingerprint("org/name") != before


def test_it_does_not_import_torch():
    code = "import sys, llamax.models.fingerprint; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
