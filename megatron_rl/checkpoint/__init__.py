"""Checkpoints: Megatron `torch_dist` weights and optimizer, reshardable over TP, PP and DP.

    snapshot -> files under a temporary name, by processes beside the training -> checksums -> manifest -> rename

A folder `step_N` without a manifest does not exist; with one it is compared with its checksums before it is read, and
where it differs the one before it serves. Nothing random is kept: dropout is off, sampling seeds follow from (seed,
step), and the order of the problems from the seed and from the run's history, which is kept.
"""
