"""Whole conversions: exact in every layout, resumable, and nothing silent."""

import json
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from test_blocks import random_bits, same_bits
from tiny import family_config
from torch import Tensor

import converters.convert
import converters.partial
from converters.compare import compare, open_checkpoint
from converters.convert import hf_to_megatron, megatron_to_hf
from converters.errors import ConversionError
from converters.families import FAMILIES
from converters.hf_config import HF_FILES, INDEX_NAME, model_shape
from converters.hf_folder import HFReader, partial_folder
from converters.layout import Layout


def make_folder(folder: Path, config: dict[str, Any], dtype: torch.dtype, seed: int = 0, files: int = 1) -> Path:
    """A model folder of random bits."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    sizes = FAMILIES[config["model_type"]].hf_tensors(model_shape(config, 1))
    tensors = {name: random_bits(size, dtype, seed + i) for i, (name, size) in enumerate(sizes.items())}
    if files == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    weight_map = {name: f"model-{i % files + 1:05d}-of-{files:05d}.safetensors" for i, name in enumerate(tensors)}
    for file in set(weight_map.values()):
        save_file({name: tensors[name] for name in tensors if weight_map[name] == file}, folder / file)
    (folder / INDEX_NAME).write_text(json.dumps({"weight_map": weight_map}))
    return folder


def contents(folder: Path) -> dict[str, Tensor]:
    reader = HFReader(folder)
    return {name: reader[name] for name in reader.names}


def same_tensors(a: Path, b: Path) -> bool:
    first, second = contents(a), contents(b)
    return first.keys() == second.keys() and all(same_bits(first[name], second[name]) for name in first)


LAYERS = 8


@st.composite
def layouts(draw: st.DrawFn, experts: bool) -> Layout:
    pp = draw(st.sampled_from([1, 2, 4]))
    first = draw(st.sampled_from([None, 1, 2]))
    last = draw(st.sampled_from([None, 1, 3]))
    vpp = draw(st.sampled_from([1, 2])) if first is None and last is None else 1
    ep = draw(st.sampled_from([1, 2, 4])) if experts else 1
    return Layout(draw(st.sampled_from([1, 2, 4])), pp, ep, vpp, first, last)


@pytest.mark.parametrize("model_type", FAMILIES)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_round_trip_changes_no_bit(model_type: str, tmp_path: Path, data: st.DataObject) -> None:
    """Over TP {1, 2, 4} x PP {1, 2, 4}, even, uneven or interleaved x EP x tied x padded or not x dtype."""
    layout = data.draw(layouts(experts=model_type == "qwen3_moe"))
    tied, padded = data.draw(st.booleans()), data.draw(st.booleans())
    vocab = 333 if padded else 64 * layout.tp
    config = family_config(
        model_type,
        tie_word_embeddings=tied,
        vocab_size=vocab,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=8,
        num_experts=4 if model_type == "qwen3_moe" else None,
    )
    try:
        layout.stages(LAYERS)
    except ConversionError:
        assume(False)
    root = tmp_path / str(len(list(tmp_path.iterdir())))
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    source = make_folder(root / "source", config, dtype, data.draw(st.integers(0, 2**20)))
    hf_to_megatron(source, root / "megatron", layout, vocab_divisor=64)
    megatron_to_hf(root / "megatron", root / "back")
    assert (root / "back" / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()
    assert len(list((root / "megatron").glob("*.distcp"))) == layout.ranks
    shutil.rmtree(root)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "source", family_config("qwen2"), torch.bfloat16, files=3)


@pytest.fixture
def megatron(source: Path, tmp_path: Path) -> Path:
    hf_to_megatron(source, tmp_path / "megatron", Layout(tp=2, pp=2))
    return tmp_path / "megatron"


def test_files_are_cut_as_transformers_cuts_them(megatron: Path, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    megatron_to_hf(megatron, out, shard_bytes=300_000)
    assert same_tensors(out, source)
    index = json.loads((out / INDEX_NAME).read_text())
    files = sorted(path.name for path in out.glob("*.safetensors"))
    assert len(files) > 3
    assert files == [f"model-{i + 1:05d}-of-{len(files):05d}.safetensors" for i in range(len(files))]
    held = {file: load_file(out / file) for file in files}
    assert index["weight_map"] == {name: file for file, part in held.items() for name in part}
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for part in held.values() for tensor in part.values())
    assert all(sum(tensor.nbytes for tensor in part.values()) <= 300_000 for part in held.values())
    for file, part in held.items():  # byte for byte what the safetensors library writes
        save_file(part, tmp_path / "again.safetensors", metadata={"format": "pt"})
        assert (tmp_path / "again.safetensors").read_bytes() == (out / file).read_bytes()


def test_other_files_go_along(megatron: Path, source: Path, tmp_path: Path) -> None:
    (megatron / "README.md").write_text("a card")
    megatron_to_hf(megatron, tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    assert (tmp_path / "out" / "README.md").read_text() == "a card"


def test_config_names_the_dtype_of_the_weights(megatron: Path, tmp_path: Path) -> None:
    megatron_to_hf(megatron, tmp_path / "out", dtype=torch.float16)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float16"
    assert {tensor.dtype for tensor in contents(tmp_path / "out").values()} == {torch.float16}


# Interrupted ---------------------------------------------------------------------------------------------------------


class Interrupted(Exception):
    """Stands for a kill: nothing of the conversion runs after it."""


def interrupt_after(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, calls: int) -> list[int]:
    """Let `owner.name` raise from its call number `calls + 1` on; returns the count of calls made."""
    real, count = getattr(owner, name), [0]

    def counted(*args: Any, **kwargs: Any) -> Any:
        count[0] += 1
        if count[0] > calls:
            raise Interrupted
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, counted)
    return count


def test_an_interrupted_conversion_leaves_nothing_and_is_resumed(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = Layout(tp=2, pp=2)
    with monkeypatch.context() as patch:
        interrupt_after(patch, converters.convert, "write_blocks", 3)
        with pytest.raises(Interrupted):
            hf_to_megatron(source, tmp_path / "megatron", layout, workers=1)
    assert not (tmp_path / "megatron").exists()
    with monkeypatch.context() as patch:
        calls = interrupt_after(patch, converters.convert, "write_blocks", 1)
        hf_to_megatron(source, tmp_path / "megatron", layout, workers=1)
    assert calls == [1]
    with monkeypatch.context() as patch:
        interrupt_after(patch, converters.convert.HFWriter, "write", 20)
        with pytest.raises(Interrupted):
            megatron_to_hf(tmp_path / "megatron", tmp_path / "out", workers=1)
    assert not (tmp_path / "out").exists()
    total = len(contents(source))
    with monkeypatch.context() as patch:
        calls = interrupt_after(patch, converters.convert.HFWriter, "write", total)
        megatron_to_hf(tmp_path / "megatron", tmp_path / "out", workers=1)
    assert total - 20 <= calls[0] < total
    assert same_tensors(tmp_path / "out", source)
    assert not partial_folder(tmp_path / "out").exists()


def test_another_conversion_does_not_go_on_with_the_rest_of_one(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt_after(patch, converters.convert, "write_blocks", 1)
        with pytest.raises(Interrupted):
            hf_to_megatron(source, tmp_path / "megatron", Layout(tp=2), workers=1)
    hf_to_megatron(source, tmp_path / "megatron", Layout(pp=2), workers=1)
    megatron_to_hf(tmp_path / "megatron", tmp_path / "out")
    assert same_tensors(tmp_path / "out", source)


def test_a_torn_journal_costs_its_last_entry_and_no_more(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt_after(patch, converters.convert, "write_blocks", 3)
        with pytest.raises(Interrupted):
            hf_to_megatron(source, tmp_path / "megatron", Layout(tp=2, pp=2), workers=1)
    journal = partial_folder(tmp_path / "megatron") / "journal.jsonl"
    for _ in range(2):
        journal.write_bytes(journal.read_bytes()[:-5])
        with monkeypatch.context() as patch:
            interrupt_after(patch, converters.convert, "write_blocks", 1)
            with pytest.raises(Interrupted):
                hf_to_megatron(source, tmp_path / "megatron", Layout(tp=2, pp=2), workers=1)
    hf_to_megatron(source, tmp_path / "megatron", Layout(tp=2, pp=2), workers=1)
    megatron_to_hf(tmp_path / "megatron", tmp_path / "out")
    assert same_tensors(tmp_path / "out", source)


def test_what_may_not_have_reached_the_disk_is_written_again(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: Path) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(converters.partial, "sync", refuse)
        with pytest.raises(ConversionError, match="Input/output error"):
            hf_to_megatron(source, tmp_path / "megatron", Layout(pp=2), workers=1)
    assert not (tmp_path / "megatron").exists()
    with monkeypatch.context() as patch:
        calls = interrupt_after(patch, converters.convert, "write_blocks", 2)
        hf_to_megatron(source, tmp_path / "megatron", Layout(pp=2), workers=1)
    assert calls == [2]


@pytest.mark.parametrize("place", [".", "megatron", "megatron/inside/.."])
def test_what_is_converted_is_not_overwritten(megatron: Path, tmp_path: Path, place: str) -> None:
    (megatron / "inside").mkdir()
    with pytest.raises(ConversionError, match=r"holds .*megatron, which is to be converted"):
        megatron_to_hf(megatron, tmp_path / place, overwrite=True)
    assert (megatron / ".metadata").is_file()


def test_a_checkpoint_may_hold_its_own_export(megatron: Path, source: Path) -> None:
    megatron_to_hf(megatron, megatron / HF_FILES, overwrite=True)
    assert same_tensors(megatron / HF_FILES, source)


def test_two_conversions_do_not_write_to_one_folder(megatron: Path, source: Path, tmp_path: Path) -> None:
    def second(done: int, total: int) -> None:
        with pytest.raises(ConversionError, match=r"\.out\.partial: another process is converting to the same folder"):
            megatron_to_hf(megatron, tmp_path / "out")

    megatron_to_hf(megatron, tmp_path / "out", progress=second)
    assert same_tensors(tmp_path / "out", source)


def test_an_old_folder_stays_until_the_new_one_is_whole(
    megatron: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    megatron_to_hf(megatron, out)
    with pytest.raises(ConversionError, match=r"out: exists already.*--overwrite"):
        megatron_to_hf(megatron, out)
    with monkeypatch.context() as patch:
        interrupt_after(patch, converters.convert.HFWriter, "write", 3)
        with pytest.raises(Interrupted):
            megatron_to_hf(megatron, out, dtype=torch.float32, overwrite=True)
    assert same_tensors(out, source)
    megatron_to_hf(megatron, out, dtype=torch.float32, overwrite=True)
    assert {tensor.dtype for tensor in contents(out).values()} == {torch.float32}


# Bad input -----------------------------------------------------------------------------------------------------------


def edit(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    """Rewrite a folder of several files as one, with a change."""
    tensors = {name: tensor.clone() for name, tensor in contents(folder).items()}
    for path in folder.glob("model*"):
        path.unlink()
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("model.norm.weight"), r"tensor 'model\.norm\.weight' is missing"),
        (lambda tensors: tensors.update(more=torch.zeros(2)), r"\['more'\]: tensors that a qwen2 model"),
        (
            lambda tensors: tensors.update({"model.norm.weight": torch.zeros(3)}),
            r"model\.norm\.weight has shape \(3,\), config\.json implies \(128,\)",
        ),
        (
            lambda tensors: tensors.update({"model.norm.weight": torch.zeros(128, dtype=torch.int8)}),
            r"model\.norm\.weight has dtype I8",
        ),
        (
            lambda tensors: tensors.update(
                {"model.layers.0.self_attn.q_proj.bias": torch.zeros(128, dtype=torch.float32)}
            ),
            r"linear_qkv\.bias torch\.float32; cast the folder|has dtype torch\.bfloat16, others of",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    source: Path, tmp_path: Path, change: Callable[[dict[str, Tensor]], None], message: str
) -> None:
    edit(source, change)
    with pytest.raises(ConversionError, match=message):
        hf_to_megatron(source, tmp_path / "megatron", Layout())
    assert not (tmp_path / "megatron").exists()


def test_a_tied_output_layer_that_is_no_copy_is_refused(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "source", family_config("qwen2", tie_word_embeddings=True), torch.float32)
    embedding = contents(source)["model.embed_tokens.weight"].clone()
    edit(source, lambda tensors: tensors.update({"lm_head.weight": embedding.clone()}))
    hf_to_megatron(source, tmp_path / "megatron", Layout())
    assert list(compare(open_checkpoint(source), open_checkpoint(tmp_path / "megatron"))) == []
    embedding.view(torch.uint8)[3, 5] ^= 1
    edit(source, lambda tensors: tensors.update({"lm_head.weight": embedding}))
    with pytest.raises(ConversionError, match=r"tie_word_embeddings=true, but lm_head\.weight is not model\.embed"):
        hf_to_megatron(source, tmp_path / "other", Layout())


def test_weights_in_two_places_are_refused(source: Path, tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, source / "model.safetensors")
    with pytest.raises(ConversionError, match=r"holds model\.safetensors and .*index\.json with others"):
        hf_to_megatron(source, tmp_path / "megatron", Layout())
    (source / INDEX_NAME).unlink()
    save_file({"model.norm.weight": torch.zeros(1)}, source / "model.safetensors")
    with pytest.raises(ConversionError, match=r"model\.norm\.weight stands in .* as well"):
        hf_to_megatron(source, tmp_path / "megatron", Layout())


def test_an_index_that_promises_too_much_is_refused(source: Path, tmp_path: Path) -> None:
    index = json.loads((source / INDEX_NAME).read_text())
    index["weight_map"]["model.norm.weight"] = "model-00001-of-00003.safetensors"
    index["weight_map"]["model.embed_tokens.weight"] = "model-00002-of-00003.safetensors"
    (source / INDEX_NAME).write_text(json.dumps(index))
    with pytest.raises(ConversionError, match=r"lacks model\..*, which .* promises"):
        hf_to_megatron(source, tmp_path / "megatron", Layout())


@pytest.mark.parametrize("key", ["embedding.word_embeddings.weight", "decoder.layers.mlp.linear_fc1.weight"])
def test_a_block_that_the_metadata_lost_is_missed(megatron: Path, tmp_path: Path, key: str) -> None:
    """Of a padded vocabulary too, where the whole size is not known beforehand."""
    metadata = pickle.loads((megatron / ".metadata").read_bytes())
    del metadata.state_dict_metadata[key].chunks[0]
    (megatron / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(ConversionError, match=rf"{key}, layer 0, expert 0: \d+ of \d+ values are there"):
        megatron_to_hf(megatron, tmp_path / "out")


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (Layout(tp=3), r"--tp 3 does not divide the model's 4 attention heads"),
        (Layout(tp=4), r"--tp 4 does not divide the model's 2 key-value heads"),
        (Layout(pp=3), r"--pp 3 x --vpp 1 does not divide the model's 4 layers"),
        (Layout(pp=2, vpp=4), r"--pp 2 x --vpp 4 does not divide the model's 4 layers"),
        (Layout(ep=2), r"--ep 2 does not divide the model's 1 experts"),
        (Layout(pp=3, first_stage_layers=1), r"4 layers without the \[1\] .* the other 2 of --pp 3"),
        (Layout(pp=2, vpp=2, first_stage_layers=1), r"go without --vpp"),
    ],
)
def test_layouts_that_do_not_divide_the_model_are_refused(
    source: Path, tmp_path: Path, layout: Layout, message: str
) -> None:
    with pytest.raises(ConversionError, match=message):
        hf_to_megatron(source, tmp_path / "megatron", layout)


def test_a_config_that_megatron_would_not_honour_is_refused(source: Path, tmp_path: Path) -> None:
    (source / "config.json").write_text(json.dumps(family_config("qwen2", use_sliding_window=True)))
    with pytest.raises(ConversionError, match="use_sliding_window=True is not supported"):
        hf_to_megatron(source, tmp_path / "megatron", Layout())


def test_a_shard_cut_short_and_a_shard_missing_are_refused(source: Path, tmp_path: Path) -> None:
    shard = source / "model-00002-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(ConversionError, match=r"model-00002-of-00003\.safetensors: damaged or cut short"):
        hf_to_megatron(source, tmp_path / "megatron", Layout())
    shard.unlink()
    with pytest.raises(ConversionError, match=r"model-00002-of-00003\.safetensors: named in .* but missing"):
        hf_to_megatron(source, tmp_path / "megatron", Layout())


def test_too_little_disk_is_refused_before_anything_is_written(
    source: Path, megatron: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    for convert in (
        lambda: hf_to_megatron(source, tmp_path / "out", Layout()),
        lambda: megatron_to_hf(megatron, tmp_path / "out"),
    ):
        with pytest.raises(ConversionError, match=r"the disk has 0\.0 GB left and 0\.0 GB are needed"):
            convert()
        assert not (tmp_path / "out").exists()


def test_a_disk_that_fills_up_is_one_clear_line(
    megatron: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(converters.convert.HFWriter, "write", full)
    with pytest.raises(ConversionError, match=r"No space left on device; mend that and give the same command"):
        megatron_to_hf(megatron, tmp_path / "out")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / ".metadata").unlink(), r"no \.metadata; not a Megatron checkpoint"),
        (lambda folder: (folder / ".metadata").write_bytes(b"x"), r"\.metadata: damaged"),
        (lambda folder: (folder / "__1_0.distcp").unlink(), r"__1_0\.distcp: missing"),
        (
            lambda folder: (folder / "__1_0.distcp").write_bytes((folder / "__1_0.distcp").read_bytes()[:-10]),
            r"__1_0\.distcp: cut short: \d+ of at least \d+ bytes",
        ),
        (
            lambda folder: (folder / "__1_0.distcp").write_bytes(bytes((folder / "__1_0.distcp").stat().st_size)),
            r"__1_0\.distcp: damaged at byte \d+",
        ),
        (lambda folder: shutil.rmtree(folder / HF_FILES), r"holds no hf/ with config and tokenizer; .* --like"),
        (
            lambda folder: (folder / HF_FILES / "config.json").write_text(
                json.dumps(family_config("qwen2", num_hidden_layers=3))
            ),
            r"has shape \(4, 256, 128\), config\.json implies \(3, 256, 128\)",
        ),
        (
            lambda folder: (folder / HF_FILES / "config.json").write_text(
                json.dumps(family_config("llama", rope_scaling=None))
            ),
            r"linear_qkv\.bias' is not a weight of a llama model; it would be lost",
        ),
    ],
)
def test_damaged_megatron_checkpoints_are_refused(
    megatron: Path, tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(megatron)
    with pytest.raises(ConversionError, match=message):
        megatron_to_hf(megatron, tmp_path / "out", workers=1)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made_is_one_clear_line(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConversionError, match=r"file/\.out\.partial: Not a directory; mend that"):
        hf_to_megatron(source, tmp_path / "file" / "out", Layout())


def test_messages_are_one_line(source: Path, tmp_path: Path) -> None:
    (source / "config.json").write_text("{")
    with pytest.raises(ConversionError) as raised:
        hf_to_megatron(source, tmp_path / "megatron", Layout())
    assert re.fullmatch(r".+", str(raised.value))
