"""The trained policy as a Hugging Face folder, and the proof that it is the trained policy."""

import json
from typing import Any

from converters.hf_folder import write_folder
from megatron_rl.config.schema import TrainConfig
from megatron_rl.data.problems import load_problems
from megatron_rl.data.prompts import encode_prompt
from megatron_rl.run_folder import RunFolder
from megatron_rl.stage import Stage, load_tokenizer

_CHECKED_PROMPTS = 16


def export_hf(stage: Stage) -> None:
    """Write `RUN/hf`: safetensors, config, tokenizer, generation config; called by all ranks together.

    Every rank takes part in gathering; the main one writes.
    """
    stage.show("exporting")
    tensors = stage.policy.export()
    if not stage.parallel.is_main:
        for _ in tensors:
            pass
        return
    write_folder(stage.run.hf, tensors, like=stage.folder)


def check_export(run: RunFolder, config: TrainConfig) -> dict[str, Any]:
    """Generate greedily with transformers from the exported folder and compare with the engine's last validation.

    Returns:
        The folder's path and, where the run validated greedily, how many of the prompts gave the same text.
    """
    import torch
    from transformers import AutoModelForCausalLM

    found: dict[str, Any] = {"path": str(run.hf)}
    name = config.data.domain.value
    samples = run.samples(f"validation_{name}_step_{config.max_num_steps}")
    if config.validation.temperature != 0 or config.generation is None or not samples.is_file():
        return found
    tokenizer = load_tokenizer(run.hf)
    model = AutoModelForCausalLM.from_pretrained(run.hf, local_files_only=True).eval()
    problems = {problem.id: problem for problem in load_problems(config.validation.data[name])}
    records = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()][:_CHECKED_PROMPTS]
    matches = 0
    for record in records:
        prompt = torch.tensor([encode_prompt(tokenizer, problems[record["id"]])])
        with torch.no_grad():
            output = model.generate(prompt, do_sample=False, max_new_tokens=config.generation.max_new_tokens)
        text = tokenizer.decode(output[0, prompt.shape[1] :], skip_special_tokens=True)
        matches += text == record["response"]
    return found | {"greedy_prompts": len(records), "greedy_matches": matches}
