"""Hugging Face folders: what is refused, and that what is written is complete and loads in transformers."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from converters.hf_config import INDEX_NAME, read_config, weight_files
from converters.hf_folder import HFReader, HFWriter, copy_other_files


def test_a_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config\.json: missing; .* is not a Hugging Face model folder"):
        read_config(tmp_path)


@pytest.mark.parametrize("content", [b"{broken", b"[1]", b"\xff\xfe{}"])
def test_a_broken_config_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"config\.json: .*restore the file"):
        read_config(tmp_path)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"a pickle is not read")
    with pytest.raises(ValueError, match=r"no \*\.safetensors weights"):
        weight_files(tmp_path)


def test_a_shard_of_the_index_that_is_missing_is_named(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / "model-00001-of-00002.safetensors")
    weight_map = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (tmp_path / INDEX_NAME).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ValueError, match=r"model-00002-of-00002\.safetensors: named in .* but missing"):
        weight_files(tmp_path)


@pytest.mark.parametrize("index", ["{broken", "{}", "[]"])
def test_a_broken_index_is_refused(tmp_path: Path, index: str) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / "model.safetensors")
    (tmp_path / INDEX_NAME).write_text(index)
    with pytest.raises(ValueError, match=INDEX_NAME):
        weight_files(tmp_path)


@pytest.mark.parametrize("kept", [0, 5, 100, -1])
def test_a_truncated_file_is_refused(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"model\.safetensors: damaged or cut short"):
        weight_files(tmp_path)


def test_a_tensor_that_the_folder_lacks_is_named(model_folders: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match=r"tensor 'lm_head\.weight' is missing"):
        HFReader(model_folders["tied"])["lm_head.weight"]


def test_tensors_are_views_of_their_files(model_folders: dict[str, Path]) -> None:
    """Reading a weight costs no memory but pages of the file."""
    reader = HFReader(model_folders["tied"])
    again = HFReader(model_folders["tied"])
    name = "model.embed_tokens.weight"
    assert torch.equal(reader[name], again[name])
    first, second = reader[name], reader[name]
    assert first.data_ptr() == second.data_ptr()


def test_tensors_may_be_written_in_any_order(tmp_path: Path) -> None:
    tensors = {"b": torch.arange(6.0).view(2, 3).t(), "a": torch.ones(5, dtype=torch.bfloat16), "c": torch.zeros(1)}
    writer = HFWriter(tmp_path, {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()})
    assert sum(writer.write(name, tensors[name]) for name in ("c", "a", "b")) == writer.total_bytes == 38
    writer.finish()
    found = load_file(tmp_path / "model.safetensors")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_a_tensor_that_was_never_written_is_named(tmp_path: Path) -> None:
    writer = HFWriter(tmp_path, {"a": (torch.float32, (2,)), "b": (torch.float32, (2,))})
    writer.write("a", torch.zeros(2))
    with pytest.raises(ValueError, match=r"never written: \['b'\]"):
        writer.finish()


def test_what_transformers_saves_and_loads_is_read_and_written(model_folders: dict[str, Path], tmp_path: Path) -> None:
    source = model_folders["untied"]
    tensors = {name: HFReader(source)[name] for name in HFReader(source).names}
    copy_other_files(source, tmp_path)
    writer = HFWriter(tmp_path, {name: (t.dtype, tuple(t.shape)) for name, t in sorted(tensors.items())}, 300_000)
    for name, tensor in tensors.items():
        writer.write(name, tensor)
    writer.finish()
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in tensors.items())
    model.save_pretrained(tmp_path / "again")
    again = HFReader(tmp_path / "again")
    assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items())
