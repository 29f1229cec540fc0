"""Our side of `grpo_step.py`: a stage as `megatron-rl train` runs it, step by step.

python benchmarks/grpo_step_ours.py CONFIG.json < one line per step
"""

import json
import sys
import time
from pathlib import Path

from turns import serve

from megatron_rl.config.loader import to_config
from megatron_rl.grpo import grpo_step
from megatron_rl.stage import open_stage
from megatron_rl.train import finish_step, sync


def main() -> None:
    next_turn = serve()
    config = to_config(json.loads(Path(sys.argv[1]).read_text()), source=sys.argv[1])
    with open_stage(config) as stage:
        assert stage.rollout is not None
        sync(stage, stage.rollout, 0)
        found, step = None, 0
        while next_turn(found):
            begin = time.perf_counter()
            metrics = grpo_step(stage, step)
            tokens = metrics["performance/tokens"]
            step += 1
            finish_step(stage, step, metrics)
            seconds = time.perf_counter() - begin
            phases = {name.removeprefix("timing/"): value for name, value in metrics.items() if "timing/" in name}
            found = {
                "seconds": seconds,
                "training": phases["policy_training"],
                "tokens": tokens,
                "longest": metrics["generation/length_max"],
                "reward": metrics["train/reward"],
                "phases": phases,
            }


if __name__ == "__main__":
    main()
