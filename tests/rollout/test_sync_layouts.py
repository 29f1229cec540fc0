"""Any Megatron layout to any vLLM layout: after each of three updates and syncs the engines have the trainer's weights.

Every launch starts its engines once and goes through all of Megatron's layouts. Three launches are part of every run of
the tests; the rest of the table is `long`.
"""

from pathlib import Path
from typing import Any

import pytest
from ranks import run_job
from tiny import make_model_folder

LAYOUTS = {
    "tp1": {"tp": 1, "pp": 1},
    "tp2": {"tp": 2, "pp": 1},
    "pp2": {"tp": 1, "pp": 2},
    "tp2_pp2_vpp2": {"tp": 2, "pp": 2, "vpp": 2},
}
ENGINES = {
    "one": {"engines": 1, "engine_tp": 1},
    "one_tp2": {"engines": 1, "engine_tp": 2},
    "two": {"engines": 2, "engine_tp": 1},
}
MODELS = [f"{family}_{kind}" for family in ("qwen2", "llama") for kind in ("untied", "tied")]
ALWAYS = {("one", "llama_tied"), ("one_tp2", "qwen2_tied"), ("two", "llama_untied")}
TOLERANCE = 1e-4

LAUNCHES = [
    pytest.param(engine, model, marks=() if (engine, model) in ALWAYS else (pytest.mark.long, pytest.mark.rare))
    for engine in ENGINES
    for model in MODELS
]


@pytest.mark.parametrize(("engine", "model"), LAUNCHES)
def test_engines_have_the_trainers_weights_after_every_sync(engine: str, model: str, tmp_path: Path) -> None:
    family, kind = model.split("_")
    make_model_folder(tmp_path / "model", tied=kind == "tied", model_type=family)
    arguments: dict[str, Any] = {"model": str(tmp_path / "model"), "layouts": LAYOUTS, **ENGINES[engine]}
    result = run_job("sync_layouts.py", arguments, ranks=4, folder=tmp_path / "job", seconds=600)
    assert list(result) == list(LAYOUTS)
    for layout, updates in result.items():
        print(layout, updates)
        for number, found in enumerate(updates):
            assert found["log_probs"] < TOLERANCE, layout
            assert found["tokens"] < TOLERANCE, f"{layout}: a greedy token that is not the trainer's"
            assert found["versions"] == [number]
            assert found["moved"] > 100 * TOLERANCE or number == 0, "stale weights would not have been seen"
