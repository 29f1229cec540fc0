"""Hugging Face folders: what is refused, and that what is written is complete and loads in transformers."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from converters.hf_config import INDEX_NAME, read_config, weight_files
from converters.hf_folder import HFReader, write_folder


def all_tensors(folder: Path) -> dict[str, Tensor]:
    reader = HFReader(folder)
    return {name: reader[name] for name in sorted(reader.names)}


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


@pytest.mark.parametrize("kind", ["untied", "tied"])
@pytest.mark.parametrize("shard_bytes", [10**9, 150_000, 1])
def test_written_folders_reload_bit_for_bit(
    model_folders: dict[str, Path], tmp_path: Path, kind: str, shard_bytes: int
) -> None:
    source, written = model_folders[kind], tmp_path / "out"
    tensors = all_tensors(source)
    write_folder(written, tensors.items(), like=source, shard_bytes=shard_bytes)
    again = all_tensors(written)
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items())
    in_transformers = AutoModelForCausalLM.from_pretrained(written, dtype=torch.float32).state_dict()
    assert all(torch.equal(in_transformers[name], tensor) for name, tensor in tensors.items())
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (written / name).read_bytes() == (source / name).read_bytes()


def test_shards_keep_to_their_size_and_the_index_names_them_all(model_folders: dict[str, Path], tmp_path: Path) -> None:
    tensors = all_tensors(model_folders["untied"])
    write_folder(tmp_path / "out", tensors.items(), like=model_folders["untied"], shard_bytes=300_000)
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 2
    assert files == [f"model-{i + 1:05d}-of-{len(files):05d}.safetensors" for i in range(len(files))]
    index = json.loads((tmp_path / "out" / INDEX_NAME).read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    held = {file: load_file(tmp_path / "out" / file) for file in files}
    assert index["weight_map"] == {name: file for file, part in held.items() for name in part}
    assert all(sum(tensor.nbytes for tensor in part.values()) <= 300_000 for part in held.values())


def test_an_old_folder_is_replaced_and_its_weight_files_are_not_copied(
    model_folders: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    tensors = all_tensors(model_folders["untied"])
    write_folder(out, tensors.items(), like=model_folders["untied"], shard_bytes=300_000)
    write_folder(tmp_path / "second", tensors.items(), like=out)
    assert [path.name for path in (tmp_path / "second").glob("model*")] == ["model.safetensors"]
    write_folder(out, [("a", torch.ones(1))], like=model_folders["untied"])
    assert HFReader(out).names == {"a"}


def test_a_writer_that_is_cut_short_leaves_the_old_folder_as_it_was(
    model_folders: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    write_folder(out, [("a", torch.ones(1))], like=model_folders["untied"])

    def interrupted() -> Iterator[tuple[str, Tensor]]:
        yield "a", torch.zeros(1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_folder(out, interrupted(), like=model_folders["untied"], shard_bytes=1)
    assert torch.equal(HFReader(out)["a"], torch.ones(1))
    write_folder(out, [("a", torch.full((1,), 2.0))], like=model_folders["untied"])
    assert torch.equal(HFReader(out)["a"], torch.full((1,), 2.0))


def test_views_of_one_storage_are_written_whole(model_folders: dict[str, Path], tmp_path: Path) -> None:
    whole = torch.arange(6.0).view(2, 3)
    write_folder(tmp_path / "out", [("a", whole[0]), ("b", whole.t())], like=model_folders["untied"])
    reader = HFReader(tmp_path / "out")
    assert torch.equal(reader["a"], whole[0])
    assert torch.equal(reader["b"], whole.t())
