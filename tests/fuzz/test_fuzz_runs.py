"""Run folders that are not as a run leaves them: metrics to resume from, checkpoints, summaries, samples."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from malformed import Reader, damaged, fuzz, malformed_json, put
from test_report import make_evaluation
from tiny import train_config

from converters.manifest import MANIFEST, check_files, file_entries, read_manifest
from megatron_rl.logger import MetricsLogger
from megatron_rl.model_card import model_card
from megatron_rl.report import write_report
from megatron_rl.run_folder import RunFolder, find_checkpoint
from megatron_rl.summary import held_out_accuracies

METRICS: list[dict[str, Any]] = [
    {"step": step, "time": 10.5 + step, "train/loss": 0.5, "validation/math/accuracy": 0.25} for step in range(3)
]
SUMMARY = {"name": "run", "seconds": 3.0, "backend": {"device": "cpu"}, "stages": [{"name": "a"}, {"name": "b"}]}
CONFIG = {
    "algorithm": "grpo",
    "policy": {"model_name": "m", "from_scratch": {"hidden_size": 8, "num_hidden_layers": 2}},
}
SAMPLE = {"step": 1, "set": "train", "id": "a", "prompt": "1 + 1?", "response": "2", "reward": 1.0, "verdict": "pass"}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run of three steps with a checkpoint."""
    run = RunFolder(tmp_path / "run")
    run.samples("train_step_1").parent.mkdir(parents=True)
    run.samples("train_step_1").write_text(json.dumps(SAMPLE) + "\n" + json.dumps(SAMPLE) + "\n")
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in METRICS))
    run.summary.write_text(json.dumps(SUMMARY))
    run.config.write_text(json.dumps(CONFIG))
    run.checkpoint(2).mkdir(parents=True)
    (run.checkpoint(2) / MANIFEST).write_text('{"step": 2, "seed": 1, "layout": {}}')
    return run


def lines(documents: list[dict[str, Any]]) -> st.SearchStrategy[bytes]:
    """A JSONL file with a malformed line in it, or damaged."""
    texts = [json.dumps(document).encode() for document in documents]
    line = st.one_of(malformed_json(documents[1]), damaged(texts[1])).map(lambda text: text.replace(b"\n", b" "))
    return st.one_of(line.map(lambda text: b"\n".join([texts[0], text, *texts[2:], b""])), damaged(b"\n".join(texts)))


def test_malformed_metrics_are_refused_on_resume_in_one_line_or_gone_on_with(run: RunFolder) -> None:
    reader, config = Reader(), train_config("model", validation__data__math__path="x.jsonl")

    @fuzz(60)
    @given(st.one_of(lines(METRICS), st.just(None)), st.integers(0, 3))
    def reads(content: bytes | None, step: int) -> None:
        put(run.metrics, content)
        with reader.reads(run.metrics):
            with MetricsLogger(config, run.path, step) as logger:
                logger.log(step + 1, {"train/loss": 0.1})
            assert run.metric_lines()[-1]["step"] == step + 1
            assert held_out_accuracies(run, config)["held_out"].keys() <= {"math"}
            assert "| train/loss | 0.1 |" in model_card(config, run, step + 1)
        if content is not None:
            assert not run.metrics.with_name(f".{run.metrics.name}.tmp").exists()

    reads()
    assert min(reader.refused, reader.taken) > 10


NAMES = [
    "step_",
    "step_x",
    "step_-1",
    "step_1_0",
    "step_٣",
    "step_²",
    "step_ 1",
    "step_1.tmp",
    ".step_9.tmp",
    "step_" + "9" * 200,
]


def test_odd_checkpoint_folders_are_refused_in_one_line_or_passed_over(run: RunFolder) -> None:
    reader = Reader()

    @fuzz(40)
    @given(st.sampled_from(NAMES), st.sampled_from([b"", b"{}", None]), st.booleans())
    def reads(name: str, manifest: bytes | None, has_other: bool) -> None:
        folder = run.path / "checkpoints" / name
        folder.mkdir(exist_ok=True)
        put(folder / MANIFEST, manifest)
        other = run.checkpoint(2) / MANIFEST
        put(other, b"{}" if has_other else None)
        with reader.reads(run.path):
            assert (find_checkpoint(run.path) / MANIFEST).is_file()
        put(folder / MANIFEST, None)

    reads()
    assert min(reader.refused, reader.taken) > 5


def test_a_checkpoint_whose_manifest_or_files_are_malformed_is_refused_in_one_line(run: RunFolder) -> None:
    reader, folder = Reader(), run.checkpoint(2)
    files = {"a.distcp": b"some bytes" * 9, "history.json": b"{}"}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    manifest = {"step": 2, "seed": 1, "layout": {"tp": 1}, "files": file_entries(folder, files)}
    whole = {"a.distcp": files["a.distcp"], MANIFEST: json.dumps(manifest).encode()}
    malformed = {"a.distcp": damaged(whole["a.distcp"]), MANIFEST: malformed_json(manifest)}

    @fuzz(80)
    @given(st.one_of(*(st.tuples(st.just(name), st.one_of(text, st.just(None))) for name, text in malformed.items())))
    def reads(changed: tuple[str, bytes | None]) -> None:
        name, content = changed
        put(folder / name, content)
        with reader.reads(folder):
            check_files(folder, read_manifest(folder).get("files", {}))
        put(folder / name, whole[name])

    reads()
    assert min(reader.refused, reader.taken) > 10


def test_a_report_of_malformed_files_is_refused_in_one_line_or_made(run: RunFolder) -> None:
    report(
        run.path,
        {
            run.metrics: lines(METRICS),
            run.samples("train_step_1"): lines([SAMPLE, SAMPLE]),
            run.summary: malformed_json(SUMMARY),
            run.config: malformed_json(CONFIG),
        },
    )


def test_a_report_of_a_malformed_evaluation_is_refused_in_one_line_or_made(tmp_path: Path) -> None:
    folder = make_evaluation(tmp_path / "model", {"sums": [1, 2]})
    files = {name: folder / "sums" / f"{name}.jsonl" for name in ("problems", "samples")}
    rows = {path: [json.loads(line) for line in path.read_text().splitlines()] for path in files.values()}
    summary = folder / "summary.json"
    malformed = {path: lines(documents) for path, documents in rows.items()}
    report(folder, malformed | {summary: malformed_json(json.loads(summary.read_text()))})


def report(folder: Path, files: dict[Path, st.SearchStrategy[bytes]]) -> None:
    """Of a folder in which one of the files is malformed, or a folder itself."""
    reader, page = Reader(), folder / "report.html"
    whole = {path: path.read_bytes() for path in files}

    @fuzz(80)
    @given(st.one_of(*(st.tuples(st.just(path), st.one_of(content, st.just(None))) for path, content in files.items())))
    def reads(changed: tuple[Path, bytes | None]) -> None:
        path, content = changed
        put(path, content)
        page.unlink(missing_ok=True)
        with reader.reads(path, folder):
            write_report(folder)
        assert page.exists() or not list(folder.glob(".report*"))
        put(path, whole[path])

    reads()
    assert min(reader.refused, reader.taken) > 15
