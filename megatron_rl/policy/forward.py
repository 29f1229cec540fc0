"""The logits of a Megatron model, for comparing it with others."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from megatron_rl.parallel import Parallel
from megatron_rl.policy.model import PolicyModel


def forward_logits(chunks: Sequence[PolicyModel], tokens: Sequence[int], parallel: Parallel) -> Tensor | None:
    """[T, V] logits of one sequence, on every rank of the last pipeline stage; None on the others."""
    ids = torch.tensor(tokens, device=parallel.device.torch_device)
    ends = torch.tensor([0, len(tokens)], dtype=torch.int32, device=ids.device)
    packing = PackedSeqParams(
        qkv_format="thd", cu_seqlens_q=ends, cu_seqlens_kv=ends, max_seqlen_q=len(tokens), max_seqlen_kv=len(tokens)
    )

    def step(data_iterator: Any, model: torch.nn.Module) -> tuple[Any, Any]:
        output = model(ids[None], position_ids=None, attention_mask=None, packed_seq_params=packing)
        return output, lambda output, non_loss_data: output

    for chunk in chunks:
        chunk.eval()
    times = parallel.micro_batch_group  # all of them this one sequence
    with torch.no_grad():
        outputs = get_forward_backward_func()(
            forward_step_func=step,
            data_iterator=[iter([None] * times) for _ in chunks],
            model=list(chunks),
            num_microbatches=times,
            seq_length=len(tokens),
            micro_batch_size=1,
            forward_only=True,
            collect_non_loss_data=True,
        )
    if not outputs:
        return None
    mine = outputs[0].squeeze(1).contiguous()
    parts = [torch.empty_like(mine) for _ in range(parallel.tp)]
    dist.all_gather(parts, mine, group=parallel_state.get_tensor_model_parallel_group())
    return torch.cat(parts, dim=1)[:, : chunks[0].vocabulary].contiguous()
