"""README.md of a checkpoint, which becomes the model card of what is exported from it."""

from typing import Any

from omegaconf import OmegaConf

from megatron_rl.config.schema import TrainConfig
from megatron_rl.run_folder import RunFolder

MODEL_CARD = "README.md"
_SHOWN = ("validation/", "train/reward", "train/loss", "train/entropy", "generation/length_mean")


def model_card(config: TrainConfig, run: RunFolder, step: int) -> str:
    """What the model is, how it was trained, and the last metrics of every kind up to `step`."""
    latest: dict[str, Any] = {}
    for line in run.metric_lines():
        if line["step"] <= step:
            latest |= {key: value for key, value in line.items() if key.startswith(_SHOWN) and isinstance(value, float)}
    rows = "\n".join(f"| {key} | {value:.4g} |" for key, value in sorted(latest.items()))
    start = config.policy.from_checkpoint or config.policy.model_name or "random weights"
    recipe = OmegaConf.to_yaml(OmegaConf.structured(config))
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [{config.algorithm.value}, {config.data.domain.value}, megatron_rl]
---

# {config.name}, step {step} of {config.max_num_steps}

Trained with megatron_rl: {config.algorithm.value.upper()} on {config.data.domain.value} prompts, from {start}.

| metric | value |
| --- | --- |
{rows}

## Recipe

```yaml
{recipe}```
"""
