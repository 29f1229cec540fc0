"""The policy: a Megatron-Core model, its packed batches, log-probs, loss and optimizer."""
