"""From a recipe's keys to Megatron's settings, and which of them need another machine."""

import pytest
from tiny import hf_config, train_config

from converters.families import family_of
from converters.hf_config import model_shape
from megatron_rl.config.schema import FP8Recipe, PolicyConfig
from megatron_rl.device import DeviceSetup
from megatron_rl.errors import InputError
from megatron_rl.policy.model import Architecture, TransformerConfig, transformer_config
from megatron_rl.policy.optimizer import make_optimizer

CPU = DeviceSetup("cpu", "gloo", transformer_engine=False, weight_transfer="shm", engine_sleeps=False)
GPU = DeviceSetup("cuda", "nccl", transformer_engine=True, weight_transfer="ipc", engine_sleeps=True)


def policy(**changes: object) -> PolicyConfig:
    return train_config(
        "model", **{"policy__precision": "bf16"} | {f"policy__{k}": v for k, v in changes.items()}
    ).policy


def megatron(device: DeviceSetup = GPU, **changes: object) -> TransformerConfig:
    model = hf_config()
    return transformer_config(policy(**changes), Architecture(family_of(model), model_shape(model, 16), model), device)


@pytest.mark.parametrize(("recipe", "formats"), [
    ("delayed", "hybrid"),
    ("tensorwise", "hybrid"),
    ("blockwise", "e4m3"),
    ("mxfp8", "e4m3"),
])  # fmt: skip
@pytest.mark.parametrize("device", [CPU, GPU], ids=["cpu", "gpu"])
def test_every_recipe_of_fp8_is_megatrons(recipe: str, formats: str, device: DeviceSetup) -> None:
    found = megatron(device, fp8__recipe=recipe)
    assert (found.fp8, found.fp8_recipe) == (formats, recipe)
    assert (found.fp8_amax_history_len, found.fp8_amax_compute_algo) == (1024, "max")
    assert (found.fp8_param, found.first_last_layers_bf16, found.bf16) == (False, False, True)


@pytest.mark.parametrize("recipe", [recipe for recipe in FP8Recipe if recipe is not FP8Recipe.DELAYED])
@pytest.mark.parametrize(("start", "end"), [(1, 0), (0, 2), (2, 1)])
def test_first_and_last_layers_are_spared_fp8(recipe: FP8Recipe, start: int, end: int) -> None:
    found = megatron(fp8__recipe=recipe, fp8__num_layers_at_start_in_bf16=start, fp8__num_layers_at_end_in_bf16=end)
    counts = (found.num_layers_at_start_in_bf16, found.num_layers_at_end_in_bf16)
    assert (found.first_last_layers_bf16, counts) == (True, (start, end))


def test_without_fp8_there_is_none() -> None:
    assert megatron().fp8 is None


def test_recomputation() -> None:
    none, selective, full = (megatron(recompute_granularity=value) for value in (None, "selective", "full"))
    assert none.recompute_granularity is None
    assert (selective.recompute_granularity, selective.recompute_modules) == ("selective", ["mlp", "moe"])
    assert (full.recompute_granularity, full.recompute_method, full.recompute_num_layers) == ("full", "uniform", 1)


@pytest.mark.parametrize("recompute", ["selective", "full"])
@pytest.mark.parametrize("recipe", list(FP8Recipe))
def test_fp8_goes_with_recomputation(recipe: FP8Recipe, recompute: str) -> None:
    assert megatron(fp8__recipe=recipe, recompute_granularity=recompute).fp8_recipe == recipe


@pytest.mark.parametrize("key", ["exp_avg_dtype", "exp_avg_sq_dtype"])
def test_small_moments_need_transformer_engine(key: str) -> None:
    with pytest.raises(InputError, match=f"^policy.optimizer.{key}=bf16 needs Transformer Engine on a GPU; .*$"):
        make_optimizer(policy(**{f"optimizer__{key}": "bf16"}), [], CPU)
