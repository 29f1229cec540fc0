"""vLLM general plugin: vLLM calls `register` in every one of its processes, so that the engine knows our backend."""

import os

ENGINE_VARIABLE = "MEGATRON_RL_ENGINE"
"""Set in the environment of engines that a training run starts."""


def register() -> None:
    """Make the `shm` weight-transfer backend known to vLLM; may be called more than once."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory, WeightTransferTrainerFactory

    for factory, module, name in (
        (WeightTransferEngineFactory, "shm_receiver", "ShmReceiver"),
        (WeightTransferTrainerFactory, "shm_sender", "ShmSender"),
    ):
        if "shm" not in factory._registry:
            factory.register_engine("shm", f"megatron_rl.rollout.{module}", name)
    if ENGINE_VARIABLE in os.environ:
        from megatron_rl.device import bind_activation, bind_stores
        from megatron_rl.processes import die_with_parent

        die_with_parent()
        bind_stores()
        bind_activation()
