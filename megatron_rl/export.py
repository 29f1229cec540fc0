"""The trained policy as a Hugging Face folder."""

from converters.hf_folder import write_folder
from megatron_rl.stage import Stage


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
