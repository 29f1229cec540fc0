"""Load a Hugging Face folder into a live Megatron model and save it again, with one of three systems.

    python benchmarks/convert_live.py ours|mbridge|megatron-bridge SOURCE DESTINATION

Run by `benchmarks/convert.py --peers`, each in an environment of its own. Prints JSON: seconds of both parts.
"""

import importlib.abc
import json
import os
import sys
import time
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

from megatron_rl.config.schema import Device
from megatron_rl.device import setup_device


def one_rank() -> None:
    """A job of this process."""
    setup_device(Device.CPU, 0)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    parallel_state.initialize_model_parallel()
    model_parallel_cuda_manual_seed(1)


def fsync(folder: Path) -> None:
    for path in folder.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def ours(source: Path, destination: Path) -> tuple[Callable[[], None], Callable[[], None]]:
    from converters.hf_folder import HFReader, HFWriter, copy_other_files
    from converters.model import HFExport, load_hf
    from megatron_rl.config.loader import to_config
    from megatron_rl.parallel import Parallel
    from megatron_rl.policy.model import Architecture, build_model, model_groups

    raw = {
        "algorithm": "sft",
        "name": "benchmark",
        "data": {"path": "none"},
        "sft": {"max_num_steps": 1},
        "policy": {"model_name": str(source), "precision": "bf16", "max_total_sequence_length": 4096},
    }
    config = to_config(raw, source="benchmark").policy
    architecture = Architecture.of_folder(source, config)
    parallel = Parallel(0, 1, 1, 0, 1, 0, 1, 0, setup_device(Device.CPU, 0))
    chunks = [chunk.bfloat16() for chunk in build_model(config, architecture, parallel, temperature=1.0)]

    def save() -> None:
        export = HFExport(chunks, architecture.family, architecture.shape, model_groups())
        destination.mkdir()
        copy_other_files(source, destination)
        writer = HFWriter(destination, export.plan())
        for name, tensor in export:
            writer.write(name, tensor)
        writer.finish()
        fsync(destination)

    return lambda: load_hf(HFReader(source), chunks, architecture.family, architecture.shape), save


def mbridge(source: Path, destination: Path) -> tuple[Callable[[], None], Callable[[], None]]:
    """Without Transformer Engine: the local layer spec, whose norms have names of their own."""
    from mbridge import AutoBridge
    from mbridge.core.llm_bridge import LLMBridge
    from mbridge.models.qwen2 import Qwen2Bridge

    from megatron_rl.policy.layer_spec import layer_spec

    def local_spec(bridge: Any, vp_stage: int | None = None) -> Any:
        return layer_spec(bridge.config, False, bridge.config.num_layers)

    LLMBridge._get_transformer_layer_spec = local_spec
    prefix = "model.layers.{layer_number}."
    Qwen2Bridge._OTHER_MAPPING["input_layernorm.weight"] = [prefix + "input_layernorm.weight"]
    Qwen2Bridge._MLP_MAPPING["pre_mlp_layernorm.weight"] = [prefix + "post_attention_layernorm.weight"]
    bridge = AutoBridge.from_pretrained(str(source))
    bridge.hf_config.rope_theta = json.loads((source / "config.json").read_text())["rope_theta"]
    bridge.set_extra_args(use_cpu_initialization=True, masked_softmax_fusion=False, persist_layer_norm=False)
    with torch.no_grad():
        model = bridge.get_model(wrap_with_ddp=False)
    load = torch.no_grad()(lambda: bridge.load_weights(model, str(source)))

    def save() -> None:
        bridge.save_weights(model, str(destination))
        fsync(destination)

    return load, save


class _StandIn(type):
    """A class that has every attribute, each such a class again."""

    def __getattr__(cls, name: str) -> "_StandIn":
        if name.startswith("__"):
            raise AttributeError(name)
        return _StandIn(name, (), {})


class _Missing(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds packages that are not installed here, with an empty class for every name that is asked of them."""

    packages = ("transformer_engine", "transformer_engine_torch", "mamba_ssm", "causal_conv1d", "nvidia_resiliency_ext")

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.partition(".")[0] in self.packages else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = ModuleType(spec.name)
        anything = _StandIn(spec.name, (), {})
        module.__getattr__ = lambda name: getattr(anything, name)  # type: ignore[method-assign]
        return module

    def exec_module(self, module: ModuleType) -> None: ...


def megatron_bridge(source: Path, destination: Path) -> tuple[Callable[[], None], Callable[[], None]]:
    """Without Transformer Engine, as above; what is imported of it and never used gets a stand-in."""
    from megatron_rl.policy.layer_spec import layer_spec

    sys.meta_path.append(_Missing())  # only now: Megatron-Core has found out what is really there
    from megatron.bridge import AutoBridge

    bridge = AutoBridge.from_hf_pretrained(str(source))
    provider = bridge.to_megatron_provider(load_weights=False)
    provider.transformer_layer_spec = lambda config, vp_stage=None: layer_spec(config, False, config.num_layers)
    provider.use_cpu_initialization = True
    provider.params_dtype = torch.bfloat16
    for fusion in ("gradient_accumulation_fusion", "masked_softmax_fusion", "persist_layer_norm"):
        setattr(provider, fusion, False)
    provider.finalize()
    with torch.no_grad():
        model = provider.provide_distributed_model(wrap_with_ddp=False, use_cpu_initialization=True)

    def save() -> None:
        bridge.save_hf_weights(model, str(destination), show_progress=False)
        fsync(destination)

    return lambda: bridge.load_hf_weights(model), save


SYSTEMS = {"ours": ours, "mbridge": mbridge, "megatron-bridge": megatron_bridge}


def main() -> None:
    system, source, destination = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    one_rank()
    seconds = {}
    for name, part in zip(("load", "save"), SYSTEMS[system](source, destination), strict=True):
        begin = time.monotonic()
        part()
        seconds[name] = round(time.monotonic() - begin, 2)
    print(json.dumps(seconds))


if __name__ == "__main__":
    main()
