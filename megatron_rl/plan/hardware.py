"""What a GPU can do at most. Rates are dense (no sparsity) and of one direction, in decimal units."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class GPU:
    """One GPU and its share of the node's network."""

    name: str
    memory_gib: float
    """What torch reports as total memory; `gpu_memory_utilization` is a share of it."""
    bf16_tflops: float
    fp8_tflops: float
    hbm_gbps: float
    """Gigabytes (1e9 bytes) per second, as are the two below."""
    nvlink_gbps: float
    network_gbps_per_gpu: float


# NVIDIA's data sheets "H100 Tensor Core GPU" and "H200 Tensor Core GPU", SXM columns: 1,979 and 3,958 teraFLOPS "with
# sparsity" halved, 900 GB/s of NVLink halved to one direction. The network is a DGX's: one 400 Gb/s port per GPU.
# memory_gib: of the sheets' 80 and 141 GB, what the driver leaves.
H100 = GPU(
    name="H100 SXM",
    memory_gib=79.1,
    bf16_tflops=989.0,
    fp8_tflops=1979.0,
    hbm_gbps=3350.0,
    nvlink_gbps=450.0,
    network_gbps_per_gpu=50.0,
)
H200 = GPU(
    name="H200 SXM",
    memory_gib=139.8,
    bf16_tflops=989.0,
    fp8_tflops=1979.0,
    hbm_gbps=4800.0,
    nvlink_gbps=450.0,
    network_gbps_per_gpu=50.0,
)
# An H100 SXM with NVLink cut to 400 GB/s in both directions together.
H800 = GPU(
    name="H800 SXM",
    memory_gib=79.1,
    bf16_tflops=989.0,
    fp8_tflops=1979.0,
    hbm_gbps=3350.0,
    nvlink_gbps=200.0,
    network_gbps_per_gpu=50.0,
)
GPUS = {"h100": H100, "h200": H200, "h800": H800}
