"""Weights between Hugging Face and Megatron-Core names and layouts.

`ops` are invertible layouts, `families` one table per model family, `hf_folder` reads and writes Hugging Face folders,
`model` joins a table with a sharded Megatron model. Nothing here imports the trainer.
"""
