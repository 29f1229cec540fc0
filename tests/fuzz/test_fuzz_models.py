"""Hugging Face folders and Megatron checkpoints that are damaged, torn, or lie about what they hold."""

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from malformed import Reader, damaged, fuzz, malformed_json, mutated, put
from tiny import FAMILY_CONFIGS, family_config, make_model_folder

from converters.compare import compare, open_checkpoint
from converters.convert import hf_to_megatron, megatron_to_hf
from converters.families import family_of
from converters.hf_config import INDEX_NAME, model_shape
from converters.layout import Layout
from megatron_rl.config.schema import Domain
from megatron_rl.data.problems import Problem
from megatron_rl.data.prompts import encode_prompt, load_tokenizer
from megatron_rl.preflight import preflight

SMALL: dict[str, Any] = {"num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 32, "vocab_size": 300}
PROBLEM = Problem("a", "1 + 1?", Domain.MATH, "2", None, None, None, None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model of two weight files and their index."""
    from safetensors.numpy import load_file, save_file

    folder = tmp_path / "model"
    make_model_folder(folder, tied=False, **SMALL)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weight_map = {name: f"model-{i % 2 + 1:05d}-of-00002.safetensors" for i, name in enumerate(weights)}
    for file in set(weight_map.values()):
        save_file({name: weights[name] for name in weights if weight_map[name] == file}, folder / file)
    (folder / INDEX_NAME).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return folder


def torn_safetensors(content: bytes) -> st.SearchStrategy[bytes]:
    """Damage in the file's header, or anywhere."""
    length = int.from_bytes(content[:8], "little")
    header, rest = json.loads(content[8 : 8 + length]), content[8 + length :]

    def with_header(text: bytes) -> bytes:
        return len(text).to_bytes(8, "little") + text + rest

    lengths = st.sampled_from([0, 1, length - 1, length + 1, 2**31, 2**63, 2**64 - 1])
    wrong_length = lengths.map(lambda wrong: wrong.to_bytes(8, "little") + content[8:])
    return st.one_of(malformed_json(header).map(with_header), wrong_length, damaged(content))


def malformed_file(path: Path) -> st.SearchStrategy[bytes | None]:
    """What may stand in the place of a file."""
    content = path.read_bytes()
    if path.suffix == ".safetensors":
        return torn_safetensors(content)
    return st.one_of(malformed_json(json.loads(content)), st.just(None))


def test_a_damaged_model_folder_is_refused_in_one_line_and_nothing_is_written(folder: Path, tmp_path: Path) -> None:
    from tiny import train_config

    reader, out = Reader(), tmp_path / "megatron"
    whole = {name: (folder / name).read_bytes() for name in ("config.json", INDEX_NAME)}
    whole |= {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}
    data = tmp_path / "data.jsonl"
    data.write_text('{"prompt": "1 + 1?", "answer": "2"}\n')
    config = train_config(folder, data__path=str(data))

    @fuzz(150)
    @given(st.one_of(*(st.tuples(st.just(name), malformed_file(folder / name)) for name in whole)))
    def reads(changed: tuple[str, bytes | None]) -> None:
        name, content = changed
        put(folder / name, content)
        with reader.reads(folder, "config.json", "policy."):
            preflight(config)
        with reader.reads(folder, "config.json", "--tp"):
            try:
                hf_to_megatron(folder, out, Layout(tp=2), workers=1)
            finally:
                if out.exists():
                    assert (out / "manifest.json").is_file()
                    shutil.rmtree(out)
        put(folder / name, whole[name])

    reads()
    assert reader.refused > 100


@pytest.mark.parametrize("model_type", FAMILY_CONFIGS)
def test_a_malformed_config_is_refused_in_one_line_or_means_something(model_type: str) -> None:
    reader = Reader()

    @fuzz(60)
    @given(mutated(family_config(model_type)))
    def reads(config: Any) -> None:
        with reader.reads("config.json"):
            if isinstance(config, dict):
                family_of(config).translate(config)
                Layout().check(model_shape(config, 128))

    reads()
    assert reader.refused > 20


def test_a_damaged_tokenizer_is_refused_in_one_line(folder: Path) -> None:
    reader = Reader()
    names = ("tokenizer.json", "tokenizer_config.json", "config.json")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"added_tokens_decoder": {"1": {"content": "<eos>", "special": True}}, "model_max_length": 99}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    whole = {name: (folder / name).read_bytes() for name in names}
    templates = [
        "{{",
        "{% for x in y %}",
        "{{ messages[9].content }}",
        "{{ 1 / 0 }}",
        "{{ x.y.z }}",
        "\ud800",
        "{{ messages }}",
    ]
    remote = {"auto_map": {"AutoTokenizer": ["mine.Tokenizer", None]}, "tokenizer_class": "Mine"}
    odd = [settings | {"chat_template": template} for template in templates] + [settings | remote]

    @fuzz(60)
    @given(
        st.one_of(
            *(st.tuples(st.just(name), malformed_file(folder / name)) for name in names),
            st.sampled_from(odd).map(lambda document: (names[1], json.dumps(document).encode())),
        )
    )
    def reads(changed: tuple[str, bytes | None]) -> None:
        name, content = changed
        put(folder / name, content)
        with reader.reads(folder):
            encode_prompt(load_tokenizer(folder), PROBLEM)
        put(folder / name, whole[name])

    reads()
    assert reader.refused > 20


@pytest.fixture
def megatron(folder: Path, tmp_path: Path) -> Path:
    hf_to_megatron(folder, tmp_path / "whole", Layout(tp=2))
    return tmp_path / "whole"


class _Call:
    """What a pickle can do."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_a_damaged_megatron_checkpoint_is_refused_in_one_line_and_runs_nothing(megatron: Path, tmp_path: Path) -> None:
    reader, out, touched = Reader(), tmp_path / "hf", tmp_path / "touched"
    whole = {path.relative_to(megatron): path.read_bytes() for path in megatron.rglob("*.*") if path.is_file()}
    read = [name for name in whole if name.name in (".metadata", "config.json") or name.suffix == ".distcp"]
    metadata = pickle.loads(whole[Path(".metadata")])
    fields = _documents(metadata)

    def changed_metadata(change: tuple[int, str, Any]) -> bytes:
        copy = pickle.loads(whole[Path(".metadata")])
        place, field, value = change
        object.__setattr__(_documents(copy)[place], field, value)
        return pickle.dumps(copy)

    places = st.integers(0, len(fields) - 1).flatmap(
        lambda place: st.tuples(
            st.just(place),
            st.sampled_from(sorted(vars(fields[place]))),
            st.sampled_from([None, -1, 0, 10**30, "x", (), (1,), (0, 0), (1, 10**9), (-1, -1), [], {}, _Call(touched)]),
        )
    )

    @fuzz(120)
    @given(
        st.one_of(
            places.map(lambda change: (Path(".metadata"), changed_metadata(change))),
            st.just((Path(".metadata"), pickle.dumps(_Call(touched)))),
            st.sampled_from(read).flatmap(lambda name: st.tuples(st.just(name), damaged(whole[name]))),
        )
    )
    def reads(changed: tuple[Path, bytes]) -> None:
        name, content = changed
        put(megatron / name, content)
        with reader.reads(megatron, "config.json"):
            list(compare(open_checkpoint(megatron), open_checkpoint(tmp_path / "model"), workers=1))
        with reader.reads(megatron, "config.json"):
            try:
                megatron_to_hf(megatron, out, workers=1)
            finally:
                shutil.rmtree(out, ignore_errors=True)
        put(megatron / name, whole[name])
        assert not touched.exists()

    reads()
    assert reader.refused > 100


def _documents(metadata: Any) -> list[Any]:
    """The objects in a checkpoint's metadata that have fields."""
    entries = list(metadata.state_dict_metadata.values())
    chunks = [chunk for entry in entries for chunk in entry.chunks]
    return [metadata, *entries, *chunks, *metadata.storage_data.values()]
