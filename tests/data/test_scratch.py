"""Models from nothing: the tokenizer loses no byte, the folder is the same every time, and transformers reads it."""

import json
import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from tokenizers import Tokenizer, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast

from megatron_rl.config.schema import DataConfig, ScratchConfig
from megatron_rl.data.problems import load_problems
from megatron_rl.data.prompts import encode_prompt, encode_response, user_message
from megatron_rl.data.scratch import EOS, PAD, SMALLEST_VOCAB, TURN_START, make_model_folder, train_tokenizer
from megatron_rl.errors import InputError

TESTS = [{"input": "4\n", "output": "8\n", "testtype": "stdin"}]
SUMS = [(1200 + i, i, 1200 + 2 * i) for i in range(40)]
LINES: list[dict[str, Any]] = [
    *({"prompt": f"What is {a} + {b}?", "answer": str(c), "response": f"<think>\n{c}\n</think>"} for a, b, c in SUMS),
    {"prompt": "Double it.", "domain": "code", "tests": TESTS, "response": "<think>\nx\n</think>\n\nprint(x)"},
    {"prompt": "Return it.", "tests": TESTS, "starter_code": "def f(a):", "response": "</think> café"},
]
# Assigned characters only: what Unicode has yet to say about the others, each library knows in its own version.
texts = st.text(st.characters(exclude_categories=["Cs", "Cn"])).map(lambda text: unicodedata.normalize("NFC", text))


def write_lines(path: Path, *lines: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_lines(tmp_path_factory.mktemp("corpus") / "sft.jsonl", *LINES)


def scratch_config(corpus: str, **changes: Any) -> ScratchConfig:
    config = ScratchConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=320,
        max_position_embeddings=128,
        tokenizer_data=(corpus,),
    )
    return replace(config, **changes)


@pytest.fixture(scope="module")
def folders(corpus: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """`untied` and `tied` models of seed 1."""
    root = tmp_path_factory.mktemp("scratch")
    for kind in ("untied", "tied"):
        make_model_folder(scratch_config(corpus, tie_word_embeddings=kind == "tied"), root / kind, seed=1)
    return {kind: root / kind for kind in ("untied", "tied")}


@pytest.fixture(scope="module")
def tokenizer(folders: dict[str, Path]) -> PreTrainedTokenizerFast:
    """As training and vLLM load it."""
    return AutoTokenizer.from_pretrained(folders["untied"], local_files_only=True)


def content(folder: Path) -> dict[str, bytes]:
    """Every file below `folder`."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# The tokenizer -----------------------------------------------------------------------------------------------


@given(text=texts)
def test_every_text_comes_back(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_every_byte_is_a_token(tokenizer: PreTrainedTokenizerFast) -> None:
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    assert len(alphabet) == 256
    assert set(alphabet) <= tokenizer.get_vocab().keys()


@given(text=texts)
def test_transformers_splits_text_as_training_did(
    tokenizer: PreTrainedTokenizerFast, folders: dict[str, Path], text: str
) -> None:
    trained = Tokenizer.from_file(str(folders["untied"] / "tokenizer.json"))
    assert tokenizer.encode(text, add_special_tokens=False) == trained.encode(text, add_special_tokens=False).ids


@given(number=st.integers(0), before=st.sampled_from(["", " ", "x", "-", "=", "<think>"]))
def test_every_digit_is_a_token_of_its_own(tokenizer: PreTrainedTokenizerFast, number: int, before: str) -> None:
    tokens = tokenizer.convert_ids_to_tokens(tokenizer.encode(f"{before}{number}", add_special_tokens=False))
    assert tokens[-len(str(number)) :] == list(str(number))


def test_no_entry_holds_a_digit_and_more(tokenizer: PreTrainedTokenizerFast) -> None:
    assert [token for token in tokenizer.get_vocab() if len(token) > 1 and any(map(str.isdigit, token))] == []


def test_frequent_words_are_one_token(tokenizer: PreTrainedTokenizerFast) -> None:
    """Of questions, of the recipe's instruction and of the chat template alike."""
    for word in ("What", " reason", "assistant"):
        assert len(tokenizer.encode(word, add_special_tokens=False)) == 1


def test_think_tokens_are_single_and_survive_decoding_without_special_tokens(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    text = "a<think>\n1+1</think>\n\nb"
    tokens = tokenizer.encode(text + EOS, add_special_tokens=False)
    assert tokenizer.decode(tokens, skip_special_tokens=True) == text
    names = tokenizer.convert_ids_to_tokens(tokens)
    assert [name for name in names if "think" in name] == ["<think>", "</think>"]


def test_special_tokens_are_left_out_of_decoded_text(tokenizer: PreTrainedTokenizerFast) -> None:
    for token in (PAD, TURN_START, EOS):
        tokens = tokenizer.encode(f"a{token}b", add_special_tokens=False)
        assert len(tokens) == 3
        assert tokenizer.decode(tokens, skip_special_tokens=True) == "ab"
        assert token in tokenizer.all_special_tokens


def test_the_vocabulary_has_at_most_the_size_asked_for(corpus: str) -> None:
    assert train_tokenizer((corpus,), 320).get_vocab_size() == 320
    assert train_tokenizer((corpus,), SMALLEST_VOCAB).get_vocab_size() == SMALLEST_VOCAB
    assert SMALLEST_VOCAB < train_tokenizer((corpus,), 50_000).get_vocab_size() < 1000


def test_a_vocabulary_without_room_for_every_byte_is_refused(corpus: str) -> None:
    message = f"policy.from_scratch.vocab_size=260: the bytes and special tokens alone are {SMALLEST_VOCAB}; raise it"
    with pytest.raises(InputError, match=message):
        train_tokenizer((corpus,), 260)


def test_the_chat_template_ends_where_the_assistant_begins(tokenizer: PreTrainedTokenizerFast, corpus: str) -> None:
    problem = load_problems(DataConfig(path=corpus), need_response=True)[3]
    prompt, response = encode_prompt(tokenizer, problem), encode_response(tokenizer, problem)
    start = f"<|im_start|>user\n{user_message(problem)}<|im_end|>\n<|im_start|>assistant\n<think>\n"
    assert tokenizer.decode(prompt) == start
    assert tokenizer.decode(response) == "1206\n</think><|im_end|>"
    assert tokenizer.decode(response, skip_special_tokens=True) == "1206\n</think>"


@pytest.mark.parametrize("column", ["prompt", "question", "problem", "response", "solution", "answer"])
def test_the_tokenizer_learns_from_every_column_of_text(tmp_path: Path, column: str) -> None:
    path = write_lines(tmp_path / "data.jsonl", *[{column: "zygomorphic"}] * 50, {"answer": 4}, {"other": "x"})
    assert len(train_tokenizer((path,), 5000).encode("zygomorphic").ids) == 1


def test_the_tokenizer_learns_from_every_file_and_starter_code(tmp_path: Path) -> None:
    first = write_lines(tmp_path / "a.jsonl", {"prompt": "x", "starter_code": "zygomorphic", "domain": "code"})
    second = write_lines(tmp_path / "b.jsonl", *[{"answer": "quixotic"}] * 50)
    tokenizer = train_tokenizer((first, second), 5000)
    assert [len(tokenizer.encode(word).ids) for word in ("zygomorphic", "quixotic")] == [1, 1]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (None, "data.jsonl: no such file; correct the path"),
        (['{"prompt": "x"}', "{"], "data.jsonl:2: broken JSON"),
        ([], "data.jsonl: no line has text for the tokenizer in one of the columns ['prompt', 'question', 'problem', "),
        (['{"text": "x", "answer": 4}'], "data.jsonl: no line has text for the tokenizer in one of the columns"),
    ],
)
def test_data_that_trains_no_tokenizer_is_refused(
    corpus: str, tmp_path: Path, lines: list[str] | None, message: str
) -> None:
    path = tmp_path / "data.jsonl"
    if lines is not None:
        path.write_text("\n".join(lines))
    with pytest.raises(InputError) as caught:
        train_tokenizer((corpus, str(path)), 320)
    assert message in str(caught.value)


def test_a_tokenizer_without_data_is_refused() -> None:
    with pytest.raises(InputError, match=r"policy\.from_scratch\.tokenizer_data is empty; name the JSONL files"):
        train_tokenizer((), 320)


# The folder --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["untied", "tied"])
def test_transformers_loads_every_weight_and_misses_none(folders: dict[str, Path], kind: str) -> None:
    model, report = AutoModelForCausalLM.from_pretrained(
        folders[kind], local_files_only=True, output_loading_info=True, dtype="auto"
    )
    assert {key: list(found) for key, found in report.items() if found} == {}
    stored = load_file(folders[kind] / "model.safetensors")
    assert ("lm_head.weight" in stored) == (kind == "untied")
    loaded = model.state_dict()
    assert loaded.keys() - stored.keys() == ({"lm_head.weight"} if kind == "tied" else set())
    for name, weight in stored.items():
        assert weight.dtype is loaded[name].dtype is torch.float32
        assert torch.equal(weight, loaded[name])
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == (kind == "tied")


def test_a_new_model_finds_every_token_about_as_likely(folders: dict[str, Path]) -> None:
    model = AutoModelForCausalLM.from_pretrained(folders["untied"], local_files_only=True)
    with torch.no_grad():
        log_probs = model(torch.arange(64)[None]).logits.log_softmax(-1)
    assert log_probs.shape == (1, 64, 320)
    entropy = -(log_probs.exp() * log_probs).sum(-1)
    assert entropy.min() > 0.8 * torch.tensor(320.0).log()
    assert log_probs.std() > 1e-3


def test_weights_start_as_wide_as_their_layer_asks(folders: dict[str, Path]) -> None:
    for name, weight in load_file(folders["untied"] / "model.safetensors").items():
        if name.endswith("norm.weight"):
            assert torch.equal(weight, torch.ones_like(weight))
        elif name.endswith(".bias"):
            assert not weight.any()
        else:
            assert weight.std() == pytest.approx(64**-0.5, rel=0.05)
            assert weight.mean() == pytest.approx(0.0, abs=0.01)


def test_the_configuration_speaks_of_the_tokenizer_it_is_beside(
    folders: dict[str, Path], tokenizer: PreTrainedTokenizerFast
) -> None:
    config = json.loads((folders["untied"] / "config.json").read_text())
    assert config["vocab_size"] == len(tokenizer) == 320
    assert (config["eos_token_id"], config["pad_token_id"]) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert (tokenizer.eos_token, tokenizer.pad_token) == (EOS, PAD)
    assert config["max_position_embeddings"] == tokenizer.model_max_length == 128
    generation = GenerationConfig.from_pretrained(folders["untied"])
    assert (generation.eos_token_id, generation.do_sample) == (tokenizer.eos_token_id, True)


def test_the_same_seed_gives_the_same_bytes_and_another_only_other_weights(
    corpus: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    make_model_folder(scratch_config(corpus), tmp_path / "same", seed=1)
    assert content(tmp_path / "same") == content(folders["untied"])
    make_model_folder(scratch_config(corpus), tmp_path / "other", seed=2)
    other = content(tmp_path / "other")
    assert [name for name, data in content(folders["untied"]).items() if other[name] != data] == ["model.safetensors"]


def test_a_new_folder_replaces_the_old_one_whole(corpus: str, folders: dict[str, Path], tmp_path: Path) -> None:
    for old in (tmp_path / "model", tmp_path / ".model.tmp"):
        old.mkdir()
        (old / "left.txt").write_text("over")
    make_model_folder(scratch_config(corpus), tmp_path / "model", seed=1)
    assert content(tmp_path) == {f"model/{name}": data for name, data in content(folders["untied"]).items()}


def test_parents_of_the_folder_are_made(corpus: str, tmp_path: Path) -> None:
    make_model_folder(scratch_config(corpus, hidden_size=96), tmp_path / "a" / "b", seed=1)
    assert "config.json" in content(tmp_path / "a" / "b")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *(
            ({name: 0}, f"{name}=0 must be at least 1")
            for name in (
                *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
                *("num_key_value_heads", "max_position_embeddings"),
            )
        ),
        ({"num_attention_heads": 3}, "num_attention_heads=3 does not divide hidden_size=64; change one of them"),
        ({"num_attention_heads": 4}, "hidden_size=64 / num_attention_heads=4 = 16 per head, and vLLM on CPU serves"),
        (
            {"hidden_size": 66},
            "hidden_size=66 / num_attention_heads=2 = 33 per head, and vLLM on CPU serves only [32, 48, ",
        ),
        ({"hidden_size": 80}, "= 40 per head"),
        ({"num_key_value_heads": 3}, "num_key_value_heads=3 does not divide num_attention_heads=2; change one of them"),
        ({"num_key_value_heads": 4}, "num_key_value_heads=4 does not divide num_attention_heads=2"),
        ({"vocab_size": 260}, "vocab_size=260"),
        ({"tokenizer_data": ()}, "tokenizer_data is empty"),
    ],
    ids=repr,
)
def test_a_model_that_cannot_be_is_refused_and_the_old_folder_stays(
    corpus: str, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old.txt").write_text("still here")
    with pytest.raises(InputError) as caught:
        make_model_folder(scratch_config(corpus, **changes), tmp_path / "model", seed=1)
    assert message in str(caught.value)
    assert str(caught.value).startswith("policy.from_scratch")
    assert content(tmp_path) == {"model/old.txt": b"still here"}
