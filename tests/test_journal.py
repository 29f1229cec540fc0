"""The step journal gives back what was written, and only to who asks for the same."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from tiny import train_config

from megatron_rl.config.schema import TrainConfig
from megatron_rl.experience import Experience, ScoredSample
from megatron_rl.journal import StepJournal
from megatron_rl.rollout.samples import Sample, SampleRequest, Sampling
from verifiers.metrics import PoolMetrics
from verifiers.verdict import Result, Verdict

SAMPLING = Sampling(1.0, 1.0, -1, 16)
PROMPTS = [[1, 2, 3], [4]]


@pytest.fixture(scope="module", autouse=True)
def one_rank(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    store = dist.FileStore(str(tmp_path_factory.mktemp("store") / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def grpo_config(**changes: Any) -> TrainConfig:
    given = {"algorithm": "grpo", "grpo__max_num_steps": 9, "generation__max_new_tokens": 16}
    return train_config("model", **given | changes)


def journal(folder: Path, step: int = 0, **changes: Any) -> StepJournal:
    return StepJournal(folder / "journal", grpo_config(**changes), is_main=True, step=step)


def experience(texts: tuple[str, ...] = ("one", "two")) -> Experience:
    samples = [
        ScoredSample(
            Sample(
                SampleRequest(i % 2, i // 2, tuple(PROMPTS[i % 2]), seed=7 * i),
                length=i + 1,
                tokens=tuple(range(i, 2 * i + 1)),
                log_probs=tuple(-1 / (3 + token) for token in range(i, 2 * i + 1)),
                text=text,
                truncated=i % 3 == 0,
                policy_version=4,
            ),
            Result(list(Verdict)[i % len(Verdict)], None if i % 2 else text, 0.1 * i, "detail"),
        )
        for i, text in enumerate(texts)
    ]
    pools = [PoolMetrics({Verdict.PASS: 3, Verdict.WRONG: 1}, 0.1, 0.2, 0.3, 0.4, 0.5, 6)]
    return Experience(samples, pools, 1.5, 0.25, 1, 2.5)


def asked(of: StepJournal, **changes: Any) -> str:
    return of.asked(**{"prompts": PROMPTS, "samples": 2, "sampling": SAMPLING, "seed": "1/0"} | changes)


@given(texts=st.lists(st.text(st.characters()), max_size=9))
def test_what_is_read_is_what_was_written(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    """Every text, lone surrogates too, and every digit of a log-prob."""
    of = journal(tmp_path_factory.mktemp("run"))
    written = experience(tuple(texts))
    of.write(3, 1, asked(of), written)
    assert of.read(3, 1, asked(of), PROMPTS) == written
    assert of.read(3, 0, asked(of), PROMPTS) is None
    assert of.read(4, 1, asked(of), PROMPTS) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"prompts": [[1, 2, 3], [5]]},
        {"samples": 3},
        {"sampling": replace(SAMPLING, temperature=0.9)},
        {"seed": "1/0/1"},
    ],
)
def test_who_asks_for_something_else_gets_nothing(tmp_path: Path, changes: dict[str, Any]) -> None:
    of = journal(tmp_path)
    of.write(0, 0, asked(of), experience())
    assert of.read(0, 0, asked(of, **changes), PROMPTS) is None


@pytest.mark.parametrize(
    ("changes", "serves"),
    [
        ({"policy__optimizer": {"lr": 0.5}}, False),
        ({"grpo__overlong_filtering": True}, False),
        ({"seed": 2}, False),
        ({"grpo__max_num_steps": 90}, True),
        ({"checkpointing__save_period": 7}, True),
        ({"logger__samples_per_step": 1}, True),
    ],
)
def test_a_run_of_another_config_makes_its_samples_anew(tmp_path: Path, changes: dict[str, Any], serves: bool) -> None:
    first = journal(tmp_path)
    first.write(0, 0, asked(first), experience())
    second = journal(tmp_path, **changes)
    assert (second.read(0, 0, asked(second), PROMPTS) is not None) == serves


def test_what_a_disk_has_changed_is_not_read(tmp_path: Path) -> None:
    of = journal(tmp_path)
    of.write(0, 0, asked(of), experience())
    (path,) = (tmp_path / "journal").iterdir()
    content = path.read_bytes()
    assert of.read(0, 0, asked(of), PROMPTS) is not None
    for place in range(0, len(content), 17):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        assert of.read(0, 0, asked(of), PROMPTS) is None, place
        path.write_bytes(content[:place])
        assert of.read(0, 0, asked(of), PROMPTS) is None, place


def left(folder: Path) -> list[str]:
    return sorted(path.name.removesuffix(".safetensors") for path in (folder / "journal").iterdir())


def test_only_what_follows_on_the_checkpoint_is_kept(tmp_path: Path) -> None:
    of = journal(tmp_path)
    for step, batch in ((1, 0), (2, 0), (2, 1), (3, 0), (5, 0)):
        of.write(step, batch, asked(of), experience())
    (tmp_path / "journal/step_2_batch_2.tmp").write_text("torn")
    assert journal(tmp_path, step=2).steps == 2
    assert left(tmp_path) == ["step_2_batch_0", "step_2_batch_1", "step_3_batch_0"]
    of.forget(3)
    assert left(tmp_path) == ["step_3_batch_0"]
    of.drop(3)
    assert left(tmp_path) == []
    assert journal(tmp_path, step=3).steps == 0


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    other = StepJournal(tmp_path / "journal", grpo_config(), is_main=False, step=0)
    other.write(0, 0, asked(other), experience())
    other.forget(9)
    assert not (tmp_path / "journal").exists()
