"""Jobs by NeMo-Run: `megatron-rl launch`, and `launch` for notebooks."""

from megatron_rl.launch.experiment import batch_scripts, launch

__all__ = ["batch_scripts", "launch"]
