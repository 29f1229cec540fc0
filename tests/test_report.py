"""The report: what is read from a run folder, which samples are kept, and that the page is one safe file."""

import base64
import gzip
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

from megatron_rl.errors import InputError
from megatron_rl.evaluation.metrics import mean
from megatron_rl.report import write_report
from megatron_rl.report.collect import collect_run, stage_folders
from megatron_rl.report.limits import Limits, choose
from megatron_rl.report.page import MAX_BYTES
from megatron_rl.report.samples import read_samples

HOSTILE = "</script><script>window.hacked = 1</script><!-- <img src=x onerror=alert(1)> \u2028 \ud800 \\boxed{4}"


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def make_run(folder: Path, steps: int = 4, start: float = 1000.0, **metrics: float) -> Path:
    rows = [
        {"step": step, "time": start + 10 * step, "train/loss": 1 / (step + 1), **metrics} for step in range(steps + 1)
    ]
    write_lines(folder / "metrics.jsonl", rows)
    return folder


def sample(step: int, set_name: str, id: str, verdict: str = "pass", response: str = "4") -> dict[str, Any]:
    return {"step": step, "set": set_name, "id": id, "prompt": "2+2?", "response": response, "verdict": verdict}


def make_evaluation(folder: Path, passes: dict[str, list[int]], samples: int = 4, filler: str = "") -> Path:
    """What `megatron-rl eval --out` writes: of each benchmark's problems so many of the samples pass."""
    figures = {}
    for name, counts in passes.items():
        rates = [passed / samples for passed in counts]
        problems = [{"id": f"{name}-{i}", "samples": samples, "pass_rate": rate} for i, rate in enumerate(rates)]
        problems = [row | {"majority": round(row["pass_rate"]), "length_mean": 100.0} for row in problems]
        write_lines(folder / name / "problems.jsonl", problems)
        records = []
        for i, passed in enumerate(counts):
            for k in range(samples):
                text = f"{filler}{name}-{i}, sample {k}"
                record = sample(0, "evaluation", f"{name}-{i}", "pass" if k < passed else "wrong", text)
                records.append(record | {"sample": k, "extracted": "4" if k < passed else "5"})
        write_lines(folder / name / "samples.jsonl", records)
        figures[name] = {"accuracy": mean(rates).value, "accuracy_error": mean(rates).error}
        figures[name] |= {"samples_per_prompt": samples, "prompts": len(counts)}
    summary = {"checkpoint": "/models/one", "benchmarks": figures}
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def embedded(page: str) -> dict[str, Any]:
    """The data that the page carries."""
    match = re.search(r'<script type="application/octet-stream" id="report">([^<]*)</script>', page)
    assert match
    return json.loads(gzip.decompress(base64.b64decode(match[1])))


def test_a_run_becomes_one_file_that_fetches_nothing(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run <b>", **{"train/reward": 0.5})
    (run / "config.yaml").write_text("algorithm: GRPO\npolicy: {model_name: /models/qwen}\n")
    path = write_report(run)
    page = path.read_text(encoding="utf-8")
    assert path == run / "report.html"
    assert "<title>run &lt;b&gt; · report</title>" in page
    assert not re.search(r"<!--[a-z]+-->", page)
    assert not re.search(r"""(src|href)\s*=\s*["'][^"']""", page)
    assert "default-src 'none'" in page
    report = embedded(page)
    assert report["model"] == "/models/qwen"
    assert report["stages"][0]["algorithm"] == "grpo"
    assert report["stages"][0]["series"]["train/reward"] == [0.5] * 5
    assert report["stages"][0]["seconds"] == 40
    assert write_report(run).read_text(encoding="utf-8") == page


def test_model_text_stays_data(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    write_lines(run / "samples/step_1.jsonl", [sample(1, "train", HOSTILE, response=HOSTILE)])
    page = write_report(run).read_text(encoding="utf-8")
    assert "window.hacked" not in page
    assert embedded(page)["samples"][0]["response"] == HOSTILE
    assert embedded(page)["samples"][0]["id"] == HOSTILE


def test_nothing_enters_the_page_as_html() -> None:
    import megatron_rl.report as package

    scripts = list(Path(package.__file__).parent.glob("*.js"))
    assert len(scripts) == 5
    for script in scripts:
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", script.read_text())


def test_rows_of_a_step_are_merged_and_gaps_are_none(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"step": 0, "time": 5.0, "validation/math/accuracy": 0.1, "validation/accuracy": 0.1},
        {"step": 1, "time": 6.0, "train/loss": 1.0000012},
        {"step": 1, "time": 7.0, "validation/math/accuracy": 0.4, "validation/accuracy": 0.4},
        {"step": 2, "time": 9.0, "train/loss": float("nan")},
    ]
    write_lines(tmp_path / "metrics.jsonl", rows)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "tra')
    (stage,) = collect_run(tmp_path)["stages"]
    assert stage["step"] == [0, 1, 2]
    assert stage["steps"] == 2
    assert stage["series"] == {"train/loss": [None, 1.0000012, None], "validation/math/accuracy": [0.1, 0.4, None]}
    assert stage["accuracies"] == [{"set": "math", "before": 0.1, "after": 0.4}]
    assert stage["seconds"] == 4


def test_the_headline_set_comes_first(tmp_path: Path) -> None:
    accuracies = {"validation/code/accuracy": 0.2, "validation/aime/accuracy": 0.3, "validation/accuracy": 0.2}
    (stage,) = collect_run(make_run(tmp_path, **accuracies))["stages"]
    assert [row["set"] for row in stage["accuracies"]] == ["code", "aime"]


def test_stages_of_a_pipeline_stand_in_its_order(tmp_path: Path) -> None:
    for start, name in enumerate(["sft", "math", "code"]):
        make_run(tmp_path / name, start=1000 - start)
    (tmp_path / "empty").mkdir()
    assert [folder.name for folder in stage_folders(tmp_path)] == ["code", "math", "sft"]  # by when they began
    summary = {"name": "tiny", "backend": {"torch": "2.13.0"}, "seconds": 99, "stages": [{"name": "sft"}]}
    summary["stages"] += [{"name": "math", "seconds": 7.5}, {"name": "code"}]
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    report = collect_run(tmp_path)
    assert [stage["name"] for stage in report["stages"]] == ["sft", "math", "code"]
    assert report["stages"][1]["seconds"] == 7.5
    assert (report["name"], report["seconds"], report["backend"]) == ("tiny", 99, {"torch": "2.13.0"})
    (tmp_path / "pipeline.yaml").write_text("stages: [{name: code, recipe: c.yaml}, {name: sft, recipe: s.yaml}]")
    assert [folder.name for folder in stage_folders(tmp_path)] == ["code", "sft", "math"]


def test_samples_carry_their_stage_and_long_texts_keep_both_ends(tmp_path: Path) -> None:
    long = "a" * 3000 + "b" * 10_000 + "c" * 5000
    write_lines(tmp_path / "samples/step_2.jsonl", [sample(2, "train", "x", response=long)])
    write_lines(tmp_path / "samples/step_10.jsonl", [sample(10, "train", "y")])
    first, second = read_samples(tmp_path, stage=1)
    assert (first["stage"], first["step"], second["step"]) == (1, 2, 10)
    assert first["response"].startswith("a" * 2000 + "\n\n[… 12,000 characters left out …]")
    assert first["response"].endswith("c" * 4000)
    assert second["reward"] is None


def test_samples_that_a_guard_has_written_once_more_are_not_read(tmp_path: Path) -> None:
    write_lines(tmp_path / "samples/step_2.jsonl", [sample(2, "train", "a")])
    write_lines(tmp_path / "samples/validation_math_step_2.jsonl", [sample(2, "math", "a")])
    write_lines(tmp_path / "samples/mismatch_step_2.jsonl", [sample(2, "train", "a")])
    assert [found["set"] for found in read_samples(tmp_path, stage=0)] == ["train", "math"]


def test_chosen_samples_follow_the_same_held_out_problems() -> None:
    ids = [f"p{i}" for i in range(6)]
    samples = [
        {"stage": 0} | sample(step, "math", id) for step in range(0, 101, 10) for id in ids[:: 1 - 2 * (step > 0)]
    ]
    samples += [{"stage": 0} | sample(step, "train", f"{step}-{i}") for step in range(1, 101) for i in range(5)]
    chosen = choose(samples, Limits(train_steps=3, held_out_steps=2, samples_per_step=4, curve_steps=9))
    held_out = [(s["step"], s["id"]) for s in chosen if s["set"] == "math"]
    assert sorted(held_out) == [(step, id) for step in (0, 100) for id in ids[:4]]
    train = [s["step"] for s in chosen if s["set"] == "train"]
    assert sorted(set(train)) == [1, 50, 100] or sorted(set(train)) == [1, 51, 100]
    assert len(train) == 12


def test_a_thousand_steps_stay_below_the_limit(tmp_path: Path) -> None:
    noise = random.Random(1)
    names = [f"train/metric_{i}" for i in range(25)]
    rows = [{"step": s, "time": float(s)} | {name: noise.random() for name in names} for s in range(1000)]
    write_lines(tmp_path / "metrics.jsonl", rows)
    text = noise.randbytes(2500).hex()  # compresses badly, as no language does
    for step in range(0, 1000, 2):
        records = [sample(step, "train", str(i), response=text[i:] + str(noise.random())) for i in range(4)]
        write_lines(tmp_path / f"samples/step_{step}.jsonl", records)
    path = write_report(tmp_path)
    assert path.stat().st_size <= MAX_BYTES
    report = embedded(path.read_text(encoding="utf-8"))
    assert report["samples_written"] == 2000
    assert len(report["stages"][0]["step"]) == 1000
    assert {s["step"] for s in report["samples"]} >= {0, 998}


def test_several_runs_are_one_page_of_all_their_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline, run = tmp_path / "a/demo", make_run(tmp_path / "b/demo", steps=2, **{"train/entropy": 0.5})
    for stage in ("math", "sft"):
        make_run(pipeline / stage)
        write_lines(pipeline / stage / "samples/step_1.jsonl", [sample(1, "train", stage)])
    write_lines(run / "samples/step_1.jsonl", [sample(1, "train", "run")])
    (run / "summary.json").write_text('{"backend": {"torch": "2.13.0", "device": "cpu"}, "seconds": 1}')
    (pipeline / "summary.json").write_text('{"backend": {"torch": "2.12.0", "device": "cpu"}, "seconds": 2}')
    evaluation = make_evaluation(tmp_path / "model", {"sums": [1]})
    monkeypatch.chdir(tmp_path)
    path = write_report(evaluation, run, pipeline)
    assert path == Path("report.html")
    report = embedded(path.read_text(encoding="utf-8"))
    assert [stage["name"] for stage in report["stages"]] == ["b/demo", "a/demo/math", "a/demo/sft"]
    assert [stage["entropy"] for stage in report["stages"]] == [{"before": 0.5, "after": 0.5}, None, None]
    assert [(s["stage"], s["id"]) for s in report["samples"]][:3] == [(0, "run"), (1, "math"), (2, "sft")]
    assert {s["stage"] for s in report["samples"][3:]} == {3}
    assert report["backend"] == {"torch": "2.13.0, 2.12.0", "device": "cpu"}
    assert report["name"] == f"{tmp_path.name}/model and 2 more"
    assert (report["model"], report["seconds"]) == ("/models/one", 3)


def test_an_evaluation_has_its_figures_problems_and_samples(tmp_path: Path) -> None:
    folder = make_evaluation(tmp_path / "model", {"aime24": [1, 4], "sums": [0]})
    path = write_report(folder, out=tmp_path / "page.html")
    assert path == tmp_path / "page.html"
    report = embedded(path.read_text(encoding="utf-8"))
    (evaluation,) = report["evaluations"]
    assert (evaluation["name"], evaluation["model"]) == ("model", "/models/one")
    assert evaluation["figures"]["sums"] == {"accuracy": 0.0, "accuracy_error": 0.0, "samples_per_prompt": 4}
    assert [(one["set"], one["id"], one["pass_rate"]) for one in evaluation["problems"]] == [
        ("aime24", "aime24-0", 0.25),
        ("aime24", "aime24-1", 1.0),
        ("sums", "sums-0", 0.0),
    ]
    assert report["benchmarks"] == [{"name": "aime24", "title": "AIME24"}, {"name": "sums", "title": "sums"}]
    assert report["reported"]["AceReason-Nemotron-14B (paper)"] == {"aime24": 78.6}
    assert [(s["set"], s["step"]) for s in report["samples"]] == [("aime24", None)] * 8 + [("sums", None)] * 4


def test_long_samples_of_an_evaluation_stay_below_the_limit_and_each_problem_keeps_some(tmp_path: Path) -> None:
    noise = random.Random(1).randbytes(20_000).hex()
    folder = make_evaluation(tmp_path, {name: [9] * 30 for name in ("aime24", "aime25")}, samples=64, filler=noise)
    lines = (folder / "aime24/samples.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    for record in records:  # each other than all before it, to the end of what is kept
        shift = random.Random(f"{record['id']} {record['sample']}").randrange(30_000)
        record["response"] = noise[shift:] + noise[:shift]
    write_lines(folder / "aime24/samples.jsonl", records)
    path = write_report(folder)
    assert path.stat().st_size <= MAX_BYTES
    report = embedded(path.read_text(encoding="utf-8"))
    kept = [s["id"] for s in report["samples"] if s["set"] == "aime24"]
    assert len(set(kept)) == 30
    assert max(kept.count(id) for id in kept) - min(kept.count(id) for id in kept) <= 1


def test_curves_of_many_long_runs_are_thinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    noise, folders = random.Random(1), [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        rows = [{"step": step} | {f"train/{i}": noise.random() for i in range(5)} for step in range(3001)]
        for row in rows[::1000]:
            row["validation/accuracy"] = 0.5
        write_lines(folder / "metrics.jsonl", rows)
    limit = len(write_report(*folders).read_bytes()) - 10_000
    monkeypatch.setattr("megatron_rl.report.page.MAX_BYTES", limit)
    path = write_report(*folders)
    assert path.stat().st_size <= limit
    for stage in embedded(path.read_text(encoding="utf-8"))["stages"]:
        assert stage["logged"] == 3001
        assert 2000 <= len(stage["step"]) <= 2004
        assert (stage["step"][0], stage["step"][-1], stage["steps"]) == (0, 3000, 3000)
        assert stage["series"]["validation/accuracy"].count(0.5) == 4
    monkeypatch.setattr("megatron_rl.report.page.MAX_BYTES", 1_000_000)
    with pytest.raises(InputError, match="a and 1 more: no page of 1,000,000 bytes holds so much; give fewer folders"):
        write_report(*folders)


def test_bad_evaluations_and_files_are_refused_in_one_line(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with pytest.raises(InputError, match="the same folder; give each once"):
        write_report(run, tmp_path / "other/../run")
    with pytest.raises(InputError, match=r"cannot be written there.*--out"):
        write_report(run, out=tmp_path / "none/page.html")
    with pytest.raises(InputError, match="a folder is there"):
        write_report(run, out=tmp_path)
    folder = make_evaluation(tmp_path / "model", {"sums": [1]})
    (folder / "sums/problems.jsonl").write_text('{"id": "a"}\n')
    with pytest.raises(InputError, match=r"problems\.jsonl:1: no id, pass_rate"):
        write_report(folder)
    (folder / "summary.json").write_text('{"benchmarks": {"sums": {"accuracy": NaN}}}')
    with pytest.raises(InputError, match="sums: no accuracy, accuracy_error, samples_per_prompt; evaluate it again"):
        write_report(folder)
    (folder / "summary.json").unlink()
    with pytest.raises(InputError, match=r"no summary\.json of an evaluation that is done"):
        write_report(folder)


def test_bad_folders_are_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such run folder"):
        write_report(tmp_path / "none")
    with pytest.raises(InputError, match="no metrics here or in a subfolder"):
        write_report(tmp_path)
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(InputError, match="no metrics here"):
        write_report(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nhello\n{"step": 2}\n')
    with pytest.raises(InputError, match=r"metrics\.jsonl:2: not JSON"):
        write_report(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"loss": 2}\n')
    with pytest.raises(InputError, match=r"metrics\.jsonl:2: no step"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()
