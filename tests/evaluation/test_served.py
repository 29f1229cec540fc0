"""An evaluation whose responses come from a server: vLLM's own, and one that fails."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest
import torch
from ranks import free_port
from test_cli import megatron_rl, refused
from transformers import AutoModelForCausalLM
from waiting import eventually

from megatron_rl.config.schema import DataConfig
from megatron_rl.data.problems import load_problems
from megatron_rl.data.prompts import MATH_INSTRUCTION, encode_prompt, load_tokenizer, user_message
from megatron_rl.errors import STOPPED_EXIT_CODE

MAX_NEW_TOKENS = 12
SETTINGS = [f"generation.max_new_tokens={MAX_NEW_TOKENS}", "generation.temperature=0", "max_total_sequence_length=200"]
SETTINGS += ["verifier.num_workers=1", "num_generations_per_prompt=2", "server.max_retries=0"]


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    path = tmp_path / "sums.jsonl"
    path.write_text("".join(json.dumps({"problem": f"{i}+1=", "answer": str(i + 1)}) + "\n" for i in range(3)))
    return path


@contextmanager
def vllm_serve(folder: Path, log: Path) -> Iterator[str]:
    url = f"http://127.0.0.1:{(port := free_port())}"
    arguments = ["--model", folder, "--port", port, "--dtype", "float32", "--max-model-len", 200, "--enforce-eager"]
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    program = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]  # what `vllm serve` runs
    command = [*program, *map(str, arguments), "--served-model-name", "tiny"]
    with log.open("w") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=file)
    try:
        assert eventually(lambda: answers(f"{url}/health") or process.poll() is not None, seconds=240), log.read_text()
        assert process.poll() is None, log.read_text()
        yield f"{url}/v1"
    finally:
        process.terminate()
        process.wait(60)


def answers(url: str) -> bool:
    try:
        with closing(urlopen(url, timeout=5)):
            return True
    except (URLError, OSError):
        return False


@pytest.mark.long
@pytest.mark.rare
def test_a_vllm_server_writes_what_transformers_does(
    model_folders: dict[str, Path], problems: Path, tmp_path: Path
) -> None:
    folder, out = model_folders["untied"], tmp_path / "out"
    with vllm_serve(folder, tmp_path / "server.log") as url:
        refused(f"server.model=other: {url} serves tiny; give one of them", *score(problems, folder, out, url, "other"))
        done = megatron_rl(*score(problems, folder, out, url, "tiny"))
        chats = megatron_rl(*score(problems, folder, tmp_path / "chat", url), "server.api=chat")
    for one in (done, chats):
        assert one.returncode == 0, one.stderr
    tokenizer = load_tokenizer(folder)
    found = list(load_problems(DataConfig(path=str(problems), prompt_key="problem")))
    turns = [[{"role": "user", "content": user_message(problem)}] for problem in found]
    served = [tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=False) for turn in turns]
    assert responses(out) == greedy(folder, [encode_prompt(tokenizer, problem) for problem in found])
    assert responses(tmp_path / "chat") == [f"</think>{text}" for text in greedy(folder, served)]
    scores = [json.loads(line) for line in (out / "sums" / "problems.jsonl").read_text().splitlines()]
    assert [(one["id"], one["samples"], one["pass_rate"]) for one in scores] == [(str(n), 2, 0.0) for n in (1, 2, 3)]


def responses(out: Path) -> list[str]:
    """Of each problem, whose two samples must be the same."""
    records = [json.loads(line) for line in (out / "sums" / "samples.jsonl").read_text().splitlines()]
    assert [(record["id"], record["sample"]) for record in records] == [(str(1 + n // 2), n % 2) for n in range(6)]
    first, second = ([record["response"] for record in records[n::2]] for n in (0, 1))
    assert first == second
    return first


def greedy(folder: Path, prompts: Sequence[list[int]]) -> list[str]:
    """By transformers."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = load_tokenizer(folder)
    written = [model.generate(torch.tensor([one]), do_sample=False, max_new_tokens=MAX_NEW_TOKENS) for one in prompts]
    return [
        tokenizer.decode(tokens[0, len(prompt) :], skip_special_tokens=True)
        for tokens, prompt in zip(written, prompts, strict=True)
    ]


class Server(ThreadingHTTPServer):
    """Answers a number of requests rightly, all later ones with an error; chats as `message`."""

    good, answered = 0, 0
    message: dict[str, str]
    asked: list[str]
    """In chats."""

    class RequestHandlerClass(BaseHTTPRequestHandler):
        server: "Server"

        def do_GET(self) -> None:
            self._answer(200, {"object": "list", "data": [{"id": "one", "object": "model"}]})

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert (request["model"], request["max_tokens"], request["temperature"]) == ("one", MAX_NEW_TOKENS, 0)
            assert request["presence_penalty"] == request["frequency_penalty"] == 0
            choice: dict[str, Any] = {"index": 0, "finish_reason": "stop"}
            if self.path.endswith("/chat/completions"):
                (turn,) = request["messages"]
                assert turn["role"] == "user"
                self.server.asked.append(turn["content"])
                assert "top_k" not in request
                choice["message"] = {"role": "assistant"} | self.server.message
            else:
                assert len({type(token) for token in request["prompt"]} | {int}) == 1
                assert (request["top_k"], request["min_p"], request["repetition_penalty"]) == (-1, 0, 1)
                choice["text"] = "so</think>\\boxed{2}"
            good = self.server.answered < self.server.good
            self.server.answered += good
            self._answer(*((200, {"choices": [choice]}) if good else (500, {"error": {"message": "out of memory"}})))

        def _answer(self, status: int, content: dict[str, Any]) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), self.RequestHandlerClass)
        self.asked = []
        Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


def test_a_server_that_fails_costs_no_sample(model_folders: dict[str, Path], problems: Path, tmp_path: Path) -> None:
    with Server() as server:
        server.good = 4
        command = [*score(problems, model_folders["untied"], tmp_path / "out", server.url), "generation.max_num_seqs=1"]
        failed = megatron_rl(*command)
        assert failed.returncode == STOPPED_EXIT_CODE, failed.stderr
        assert "out of memory" in failed.stderr
        assert "Traceback" not in failed.stderr
        server.good = 100
        done = megatron_rl(*command)
        assert done.returncode == 0, done.stderr
        assert "sums: 4 samples are there from an earlier start" in done.stderr
    assert server.answered == 3 * 2
    assert json.loads(done.stdout.splitlines()[-1])["benchmarks"]["sums"]["accuracy"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("message", "response"),
    [
        ({"content": "so</think>\\boxed{2}"}, "so</think>\\boxed{2}"),
        ({"content": "\\boxed{2}"}, "</think>\\boxed{2}"),
        ({"content": "\\boxed{2}", "reasoning": "1 and 1"}, "1 and 1</think>\\boxed{2}"),
        ({"content": "\\boxed{2}", "reasoning_content": "1 and 1"}, "1 and 1</think>\\boxed{2}"),
        ({"reasoning": "1 and"}, "1 and</think>"),
    ],
    ids=["one text", "no reasoning", "reasoning", "reasoning_content", "no answer"],
)
def test_a_server_that_chats(
    model_folders: dict[str, Path], problems: Path, tmp_path: Path, message: dict[str, str], response: str
) -> None:
    folder, out = model_folders["untied"], tmp_path / "out"
    with Server() as server:
        server.good, server.message = 100, message
        done = megatron_rl(*score(problems, folder, out, server.url), "server.api=chat")
        assert done.returncode == 0, done.stderr
        assert sorted(server.asked) == sorted(2 * [f"{n}+1=\n{MATH_INSTRUCTION}" for n in range(3)])
    records = [json.loads(line) for line in (out / "sums" / "samples.jsonl").read_text().splitlines()]
    assert [record["response"] for record in records] == 6 * [response]
    assert [record["reward"] for record in records] == [0, 0, right := float("boxed" in response), right, 0, 0]


def test_no_server_is_told_in_one_line(model_folders: dict[str, Path], problems: Path, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}/v1"
    refused(f"server.url={url}: Connection error", *score(problems, model_folders["untied"], tmp_path / "out", url))


def score(problems: Path, folder: Path, out: Path, url: str, model: str | None = None) -> list[str | Path]:
    """A command's arguments."""
    served = [f"server.url={url}", *([] if model is None else [f"server.model={model}"])]
    return ["data", "score", problems, folder, "--out", out, *SETTINGS, *served]
