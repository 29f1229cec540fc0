"""Malformed inputs through the command line: exit status 2, one line on standard error, nothing left behind."""

import json
import sys
from pathlib import Path

import pytest
from malformed import check_line, put
from tally import total
from tiny import make_model_folder

from megatron_rl.cli import main

LINE = b'{"id": "a", "prompt": "1 + 1?", "answer": "2", "response": "</think>\\\\boxed{2}"}\n'
BAD_LINES = [
    b"",
    b"\xff\n",
    b"[]\n",
    b'{"id": 1',
    b'{"id": "\\ud800"}\n',
    b"[" * 50_000,
    b'{"a": ' + b"9" * 5000 + b"}\n",
    None,
]
BAD_YAML = [b"", b"\xff", b"3", b"a: [", b"[" * 50_000, b"defaults: 3", b"policy:\n  a\nb: \x00", b"name: ${", None]
BAD_JSON = [
    b"",
    b"{",
    b"[]",
    b"null",
    b"\xff",
    b"{}",
    b"[" * 50_000,
    b'{"model_type": []}',
    b'{"model_type": "qwen2"}',
    None,
]
BAD_WEIGHTS = [b"", b"\0" * 8, b"\xff" * 64, b"\x02" + b"\0" * 7 + b"{}", None]
BAD_OVERRIDES = [
    "seed",
    "=",
    "a=[",
    "a=" + "[" * 50_000,
    "[=1",
    "seed=x",
    "seed=" + "9" * 5000,
    "a=\ud800",
    "policy=1",
    "a\nb=1",
]

CASES = (
    [(["data", "check", "bad"], "bad", content) for content in BAD_LINES]
    + [(["verify", "math", "bad", "--out", "out", "--workers", "1"], "bad", content) for content in BAD_LINES[1:]]
    + [(["verify", "code", "bad", "--out", "out", "--min-isolation", "limits"], "bad", b'{"id": 1, "tests": 3}\n')]
    + [(["command", "bad"], "bad", content) for content in BAD_YAML]
    + [(["train", "bad"], "bad", content) for content in BAD_YAML]
    + [(["pipeline", "bad"], "bad", content) for content in BAD_YAML]
    + [(["plan", "bad"], "bad", content) for content in BAD_YAML[:6]]
    + [(["train", "good", override], None, b"") for override in BAD_OVERRIDES]
    + [(["convert", "hf-to-megatron", "model", "out"], "model/config.json", content) for content in BAD_JSON]
    + [(["convert", "hf-to-megatron", "model", "out"], "model/model.safetensors", content) for content in BAD_WEIGHTS]
    + [(["convert", "megatron-to-hf", "model", "out"], "model/.metadata", content) for content in BAD_WEIGHTS]
    + [(["convert", "check", "model", "model"], "model/model.safetensors", content) for content in BAD_WEIGHTS]
    + [(["report", "."], "metrics.jsonl", b"3\n"), (["report", "."], "metrics.jsonl", b'{"step": "x"}\n')]
    + [(["eval", "model", "--benchmark", "bad", "--out", "out"], "bad", content) for content in BAD_LINES[:4]]
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "model"
    small = {"num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 32, "vocab_size": 300}
    make_model_folder(folder, tied=False, **small)
    return folder


def test_every_command_refuses_with_status_2_and_one_line(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, (arguments, name, content) in enumerate(CASES):
        folder = tmp_path / str(number)
        (folder / "model").mkdir(parents=True)
        for path in model.iterdir():
            (folder / "model" / path.name).hardlink_to(path)
        (folder / "good").write_text(json.dumps({"algorithm": "sft", "name": "x", "data": {"path": "bad"}}))
        (folder / "bad").write_bytes(LINE)
        if name is not None:
            put(folder / name, content)
        before = sorted(folder.rglob("*"))
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", ["megatron-rl", *arguments])
        with pytest.raises(SystemExit) as exit_status:
            main()
        total["malformed inputs"] += 1
        total["refused"] += 1
        out, err = capsys.readouterr()
        assert exit_status.value.code == 2, (arguments, content, out, err)
        check_line(err, *arguments, "config.json", "safetensors", "metrics.jsonl", "override")
        assert err.startswith("megatron-rl: ")
        assert sorted(folder.rglob("*")) == before, (arguments, content)
