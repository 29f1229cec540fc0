"""The same numbers on every parallel layout, and the right ones: real Megatron ranks against float64 transformers.

Each layout is launched once (`tests/programs/layout.py`) and yields everything that is compared here. The layouts pad
the vocabulary differently, one batch holds fewer sequences than there are ranks, and TP=2's checkpoints are resumed on
all others, an interleaved pipeline's on DP=2.
"""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import reference
import torch
from ranks import run_job
from safetensors.torch import load_file
from tiny import VARIANTS, random_sequences, shape_of, step_sequences, variant_sequences
from torch import Tensor

from megatron_rl.policy.batch import Share, batch_metrics
from megatron_rl.policy.flops import forward_flops
from megatron_rl.policy.packing import PACKING_METRICS

LAYOUTS: dict[str, dict[str, Any]] = {
    "tp1": {"ranks": 1, "tp": 1, "pp": 1, "sp": False, "budgets": [30, 150, 100_000], "golden": True},
    "tp2": {"ranks": 2, "tp": 2, "pp": 1, "sp": False, "offload": True},
    "pp2": {"ranks": 2, "tp": 1, "pp": 2, "sp": False},
    "dp2": {"ranks": 2, "tp": 1, "pp": 1, "sp": False, "offload": True},
    "tp2_sp": {"ranks": 2, "tp": 2, "pp": 1, "sp": True, "recompute": "selective"},
    "cp2": {"ranks": 2, "tp": 1, "pp": 1, "sp": False, "cp": 2, "recompute": "full"},
    "tp2_pp2": {"ranks": 4, "tp": 2, "pp": 2, "sp": False},
    "pp2_vpp2": {"ranks": 2, "tp": 1, "pp": 2, "sp": False, "vpp": 2, "budgets": [60, 100_000]},
    "tp2_pp2_vpp2": {"ranks": 4, "tp": 2, "pp": 2, "sp": True, "vpp": 2, "recompute": "full"},
}
OTHERS = [name for name in LAYOUTS if name != "tp1"]
RESUMING = ["pp2", "dp2", "cp2", "tp2_sp", "tp2_pp2", "pp2_vpp2", "tp2_pp2_vpp2"]
MODELS = ["untied", "tied"]
CURVES = [("sft", "untied"), ("sft", "tied"), ("grpo", "untied")]
BUDGET = 300  # of `tiny.train_config`
GOLDEN = Path(__file__).parents[1] / "golden"


class Launched:
    """A layout's result and the tensors it has written."""

    def __init__(self, result: dict[str, Any], folder: Path) -> None:
        self.result, self.folder = result, folder

    def curve(self, algorithm: str, model: str) -> list[dict[str, float]]:
        found: list[dict[str, float]] = self.result["grpo"] if algorithm == "grpo" else self.result["sft"][model]
        return found

    def tensors(self, name: str) -> dict[str, Tensor]:
        return load_file(self.folder / f"{name}.safetensors")


Launch = Callable[[str], Launched]


@pytest.fixture(scope="session")
def drawn(model_folders: dict[str, Path]) -> tuple[int, list[dict[str, float]]]:
    """A new seed of sequences in every run, and a step with each of `VARIANTS`, slowly.

    Another is drawn where the samples of a variant weigh next to nothing, e to a long sum of log-ratios: it would tell
    little of the gradient, and the rounding of that sum is the weight's.
    """
    while True:
        seed = random.SystemRandom().randrange(10**6)
        slow, start = reference.Trainer(model_folders["untied"]), reference.load(model_folders["untied"])
        curve = [
            slow.variant_step(start, variant_sequences(seed, name), settings)
            for name, (_, _, settings) in VARIANTS.items()
        ]
        if min(step["grad_norm"] for step in curve) > 1e-3:
            return seed, curve


@pytest.fixture(scope="session")
def seed(drawn: tuple[int, list[dict[str, float]]]) -> int:
    """Of the sequences for log-probs and `VARIANTS`."""
    return drawn[0]


@pytest.fixture(scope="session")
def launch(model_folders: dict[str, Path], seed: int, tmp_path_factory: pytest.TempPathFactory) -> Launch:
    """A layout by name, launched when first asked for."""
    root = tmp_path_factory.mktemp("layouts")
    launched: dict[str, Launched] = {}

    def get(name: str) -> Launched:
        if name not in launched:
            arguments = LAYOUTS[name] | {"models": {k: str(v) for k, v in model_folders.items()}, "seed": seed}
            arguments["vocab_divisor"] = 24  # 500 tokens: 504 rows at TP=1, 528 at TP=2
            if name in RESUMING:
                arguments["resume"] = [[str(get("tp2").folder), LAYOUTS[name]["sp"]]]
            if name == "tp2_sp":  # the one that can also carry on exactly as TP=2 itself
                arguments["resume"].append([str(get("tp2").folder), False])
            if name == "dp2":
                arguments["resume"].append([str(get("pp2_vpp2").folder), False])
            result = run_job("layout.py", arguments, LAYOUTS[name]["ranks"], root / name)
            launched[name] = Launched(result, root / name)
        return launched[name]

    return get


def assert_same_curve(
    found: list[dict[str, float]], wanted: list[dict[str, float]], tolerance: float, keys: tuple[str, ...]
) -> None:
    assert len(found) == len(wanted)
    for step, (a, b) in enumerate(zip(found, wanted, strict=True)):
        for key in keys:
            # A loss near 0 is what is left of terms of about 1, which cancel.
            least = tolerance / 10 if key == "loss" else 0.0
            assert a[key] == pytest.approx(b[key], rel=tolerance, abs=least), f"{key} of step {step}"


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", LAYOUTS)
def test_log_probs_are_transformers(
    launch: Launch, model_folders: dict[str, Path], seed: int, name: str, model: str
) -> None:
    print(f"sequences of seed {seed}")
    slow = reference.load(model_folders[model])
    sequences = random_sequences(seed, 9, sft=False)
    for sequence, found in zip(sequences, launch(name).result["log_probs"][model], strict=True):
        with torch.no_grad():
            wanted, _ = reference.log_probs(slow, sequence)
        torch.testing.assert_close(torch.tensor(found, dtype=wanted.dtype), wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("algorithm", "model"), CURVES)
@pytest.mark.parametrize("name", LAYOUTS)
def test_the_first_step_is_that_of_a_slow_float64_reference(
    launch: Launch, model_folders: dict[str, Path], name: str, algorithm: str, model: str
) -> None:
    sft = algorithm == "sft"
    wanted = reference.loss_and_gradients(reference.load(model_folders[model]), step_sequences(0, sft), sft)
    assert_same_curve(launch(name).curve(algorithm, model)[:1], [wanted], 1e-5, ("loss", "grad_norm", "entropy"))


@pytest.mark.parametrize(("algorithm", "model"), CURVES)
def test_ten_steps_follow_a_slow_float64_reference(
    launch: Launch, model_folders: dict[str, Path], algorithm: str, model: str
) -> None:
    sft = algorithm == "sft"
    slow = reference.Trainer(model_folders[model])
    wanted = [slow.step(step_sequences(step, sft), sft) for step in range(10)]
    assert_same_curve(launch("tp1").curve(algorithm, model), wanted, 1e-5, ("loss", "grad_norm", "entropy", "lr"))
    if sft:
        weights = slow.model.state_dict()
        for key, tensor in launch("tp1").tensors(f"{model}_trained").items():
            assert float((tensor - weights[key]).norm() / weights[key].norm()) < 1e-5, key


@pytest.mark.parametrize("name", ["tp1", "cp2", "tp2_pp2", "pp2_vpp2"])
def test_a_later_update_of_a_batch_is_clipped_as_a_slow_float64_reference_says(
    launch: Launch, model_folders: dict[str, Path], name: str
) -> None:
    slow = reference.Trainer(model_folders["untied"])
    sequences = step_sequences(4, sft=False)
    with torch.no_grad():
        old = [reference.log_probs(slow.model, sequence)[0] for sequence in sequences]
    for step in range(4):
        slow.step(step_sequences(step, sft=False), sft=False)
    wanted = reference.loss_and_gradients(slow.model, sequences, sft=False, old=old)
    found = launch(name).result["off_policy"]
    assert found["clip_fraction"] > 0
    assert_same_curve([found], [wanted], 1e-4, ("loss", "grad_norm", "entropy"))


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_normaliser_and_term_of_the_loss_is_that_of_a_slow_float64_reference(
    launch: Launch, drawn: tuple[int, list[dict[str, float]]], name: str
) -> None:
    seed, wanted = drawn
    print(f"sequences of seed {seed}")
    found = launch(name).result["variants"]
    assert_same_curve(found, wanted, 1e-5, ("loss", "grad_norm", "entropy", "lr"))
    assert 0 < found[list(VARIANTS).index("dual_clip")]["clip_fraction"] < 1


@pytest.mark.parametrize(("algorithm", "model"), CURVES)
@pytest.mark.parametrize("name", OTHERS)
def test_ten_steps_are_the_same_on_every_layout(launch: Launch, name: str, algorithm: str, model: str) -> None:
    keys = ("loss", "grad_norm", "entropy", "lr")
    if algorithm == "grpo":
        keys += ("token_mult_prob_error", "gen_kl_error", "sampling_importance_ratio")
    found, wanted = (launch(layout).curve(algorithm, model) for layout in (name, "tp1"))
    assert_same_curve(found, wanted, 1e-5, keys)


def test_the_policy_learns_in_these_ten_steps(launch: Launch) -> None:
    """Else the comparisons would hold for an optimizer that does nothing."""
    curve = launch("tp1").curve("sft", "untied")
    assert len({step["entropy"] for step in curve}) > 5
    before, after = launch("tp1").tensors("untied_loaded"), launch("tp1").tensors("untied_trained")
    assert min(float((after[name] - tensor).abs().max()) for name, tensor in before.items()) > 1e-3


@pytest.mark.parametrize("name", ["tp1", "pp2_vpp2"])
def test_micro_batch_budgets_do_not_matter(launch: Launch, name: str) -> None:
    for metrics in launch(name).result["budgets"].values():
        keys = tuple(metrics.keys() - set(PACKING_METRICS))
        assert_same_curve([metrics], launch("tp1").curve("grpo", "untied")[:1], 1e-5, keys)


@pytest.mark.parametrize(("name", "share"), [("tp1", Share()), ("dp2", Share(dp=2)), ("pp2_vpp2", Share(group=2))])
def test_a_step_tells_how_it_was_packed(launch: Launch, name: str, share: Share) -> None:
    for step, metrics in enumerate(launch(name).curve("grpo", "untied")):
        wanted = batch_metrics(step_sequences(step, sft=False), share, BUDGET, forward_flops(shape_of()))
        assert {key: metrics[key] for key in PACKING_METRICS} == wanted


@pytest.mark.parametrize("curve", [f"{algorithm}_{model}" for algorithm, model in CURVES] + list(VARIANTS))
def test_golden_numbers(launch: Launch, request: pytest.FixtureRequest, curve: str) -> None:
    """Ten steps to the numbers of `tests/golden`; written anew with `pytest tests/policy -k golden --write-golden`."""
    path, keys = GOLDEN / f"{curve}.txt", ("loss", "grad_norm", "entropy")
    found = launch("tp1").result["golden"].get(curve) or launch("tp1").curve(*curve.split("_"))
    if request.config.getoption("--write-golden"):
        lines = [" ".join(f"{step[key]:.9e}" for key in keys) for step in found]
        path.write_text("\n".join([f"# {' '.join(keys)}", *lines]) + "\n")
    lines = path.read_text().splitlines()[1:]
    wanted = [dict(zip(keys, map(float, line.split()), strict=True)) for line in lines]
    assert_same_curve(found, wanted, 1e-5, keys)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", LAYOUTS)
def test_loading_and_exporting_changes_no_bit(
    launch: Launch, model_folders: dict[str, Path], name: str, model: str
) -> None:
    exported, original = launch(name).tensors(f"{model}_loaded"), load_file(model_folders[model] / "model.safetensors")
    assert exported.keys() == original.keys()
    assert all(torch.equal(exported[key], tensor) for key, tensor in original.items())


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", OTHERS)
def test_trained_weights_are_the_same_on_every_layout(launch: Launch, name: str, model: str) -> None:
    found, wanted = (launch(layout).tensors(f"{model}_trained") for layout in (name, "tp1"))
    assert found.keys() == wanted.keys()
    for key, tensor in wanted.items():
        difference = (found[key] - tensor).abs()
        # Adam's first steps go by the sign of the gradient: where that is all rounding, a weight may go astray.
        assert float(difference.mean()) < 1e-6, key
        assert float(difference.max()) < 1e-3, key


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", RESUMING)
def test_a_checkpoint_of_tp2_carries_on_in_another_layout(launch: Launch, name: str, model: str) -> None:
    resumed = launch(name).result["resumed"][f"{model}_0"]
    assert resumed["steps"] == [5, 7]
    assert resumed["counters"] == [10.0]
    wanted = launch("tp2").curve("sft", model)[5:]
    assert_same_curve(resumed["metrics"], wanted, 1e-5, ("loss", "grad_norm", "entropy", "lr"))


@pytest.mark.parametrize("model", MODELS)
def test_a_checkpoint_of_an_interleaved_pipeline_carries_on_in_another_layout(launch: Launch, model: str) -> None:
    resumed, wanted = launch("dp2").result["resumed"][f"{model}_1"], launch("pp2_vpp2").curve("sft", model)[5:]
    assert (resumed["steps"], resumed["counters"]) == ([5, 7], [10.0])
    assert_same_curve(resumed["metrics"], wanted, 1e-5, ("loss", "grad_norm", "entropy", "lr"))


@pytest.mark.parametrize("model", MODELS)
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(launch: Launch, model: str) -> None:
    assert launch("tp2_sp").result["resumed"][f"{model}_1"]["metrics"] == launch("tp2").curve("sft", model)[5:]
    resumed, whole = launch("tp2_sp").tensors(f"{model}_resumed_1"), launch("tp2").tensors(f"{model}_trained")
    assert all(torch.equal(resumed[key], tensor) for key, tensor in whole.items())


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", RESUMING)
def test_weights_of_a_checkpoint_are_the_same_in_every_layout(launch: Launch, name: str, model: str) -> None:
    found = launch(name).tensors(f"{model}_weights_0")
    wanted = launch("tp2_sp").tensors(f"{model}_weights_1")
    trained = launch("tp2").tensors(f"{model}_trained")
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in wanted.items())
    assert not any(torch.equal(found[key], tensor) for key, tensor in trained.items())
