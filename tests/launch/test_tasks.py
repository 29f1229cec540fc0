"""Which jobs a recipe becomes, and what each of them runs."""

import json
from pathlib import Path

import pytest

from megatron_rl.command import training_command
from megatron_rl.errors import InputError
from megatron_rl.launch.site import Site
from megatron_rl.launch.tasks import local_task, slurm_tasks

RECIPES = Path(__file__).parents[2] / "recipes"
PIPELINE = RECIPES / "tiny" / "pipeline.yaml"
STAGE = RECIPES / "tiny" / "math.yaml"


def site(overrides: str = "", **sbatch: str) -> Site:
    return Site(path=Path("site.env"), environment={"OVERRIDES": overrides}, sbatch=sbatch)


def settings(command: tuple[str, ...]) -> list[str]:
    return [word for word in command if "=" in word]


def test_a_pipeline_is_a_job_per_stage_and_an_override_goes_where_it_belongs() -> None:
    facts = site("logger.samples_per_step=4", gpus="4", gpus_per_node="2")
    name, tasks = slurm_tasks(PIPELINE, ["seed=7", "math.grpo.max_num_steps=3", "name=other"], None, facts)
    assert name == "other"
    assert [task.name for task in tasks] == ["sft", "math", "code"]
    common = ["cluster.num_nodes=2", "cluster.gpus_per_node=2", "logger.samples_per_step=4", "seed=7", "name=other"]
    assert [settings(task.command) for task in tasks] == [common, [*common, "grpo.max_num_steps=3"], common]
    assert all(task.command == tuple(training_command(PIPELINE, settings(task.command), task.name)) for task in tasks)


def test_the_given_size_wins_over_the_sites_and_that_over_the_recipes() -> None:
    sizes = {
        (): (1, 2),
        ("cluster.num_nodes=3",): (3, 2),
    }
    for overrides, size in sizes.items():
        [task] = slurm_tasks(STAGE, overrides, None, site())[1]
        assert (task.cluster.num_nodes, task.cluster.gpus_per_node) == size
    [task] = slurm_tasks(STAGE, ["cluster.num_nodes=3"], None, site(gpus="8", gpus_per_node="4"))[1]
    assert (task.cluster.num_nodes, task.cluster.gpus_per_node) == (3, 4)
    assert settings(task.command) == ["cluster.num_nodes=3", "cluster.gpus_per_node=4", "cluster.num_nodes=3"]


def test_one_stage_takes_its_overrides_unprefixed() -> None:
    name, [task] = slurm_tasks(PIPELINE, ["grpo.max_num_steps=3", "seed=7"], "code", site())
    assert (name, task.name) == ("demo", "code")
    assert settings(task.command)[2:] == ["grpo.max_num_steps=3", "seed=7"]


def test_finished_stages_are_left_out(tmp_path: Path) -> None:
    overrides = [f"output_dir={tmp_path}"]
    for count, name in enumerate(["sft", "math", "code"]):
        assert len(slurm_tasks(PIPELINE, overrides, None, site())[1]) == 3 - count
        (tmp_path / "demo" / name).mkdir(parents=True)
        (tmp_path / "demo" / name / "summary.json").write_text(json.dumps({}))
    with pytest.raises(InputError, match=r"every stage in .*/demo is finished"):
        slurm_tasks(PIPELINE, overrides, None, site())


def test_an_override_that_would_have_to_reach_another_job_is_refused() -> None:
    with pytest.raises(InputError, match="an override of another stage changes 'math'"):
        slurm_tasks(PIPELINE, ["sft.policy.from_scratch=null", "sft.policy.model_name=elsewhere"], None, site())


@pytest.mark.parametrize(
    ("overrides", "stage", "message"),
    [
        (["grpo.max_num_steps=3"], None, "grpo"),
        (["math.grpo.max_steps=3"], None, "did you mean"),
        ([], "algebra", "has no stage 'algebra'"),
    ],
)
def test_a_bad_setting_is_refused(overrides: list[str], stage: str | None, message: str) -> None:
    for tasks in (slurm_tasks, local_task):
        with pytest.raises(InputError, match=message):
            tasks(PIPELINE, overrides, stage, site())


def test_locally_one_command_runs_all_stages() -> None:
    facts = site("logger.samples_per_step=4 output_dir=there", gpus="16", gpus_per_node="8")
    name, task = local_task(PIPELINE, ["seed=7"], None, facts)
    assert (name, task.name) == ("demo", "demo")
    of_stages = [f"{stage}.logger.samples_per_step=4" for stage in ("sft", "math", "code")]
    assert task.command == ("megatron-rl", "pipeline", str(PIPELINE), "output_dir=there", *of_stages, "seed=7")
    with pytest.raises(InputError, match=r"cluster\.num_nodes=2: the local executor has one node"):
        local_task(STAGE, ["cluster.num_nodes=2"], None, facts)
