"""Refusals before anything heavy is imported: what a look at the files tells about a run that cannot work."""

from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

from converters.errors import ConversionError
from converters.hf_config import ModelShape, model_shape, read_config, size_of, weight_files
from megatron_rl.config.schema import Algorithm, Domain, PolicyConfig, TrainConfig, VerifierConfig
from megatron_rl.data.problems import load_problems
from megatron_rl.data.scores import scores_of
from megatron_rl.errors import InputError
from megatron_rl.run_folder import RunFolder, find_checkpoint
from verifiers.connection import parse_address, read_secret
from verifiers.isolation import IsolationLevel


def preflight(config: TrainConfig) -> None:
    """Check the files and sizes that `config` names.

    Raises:
        InputError: a missing or broken data file, model folder or checkpoint; a layout that does not divide the model.
    """
    _check_model(config.policy, RunFolder(Path(config.run_dir)))
    check_data(config)
    domains = {data.domain for data in (config.data, *config.validation.data.values())}
    check_verifier(config.verifier, runs_code=Domain.CODE in domains)
    if config.logger.wandb_enabled and find_spec("wandb") is None:
        raise InputError("logger.wandb_enabled=true but wandb is not installed; pip install wandb, or set it to false")


def check_data(config: TrainConfig) -> None:
    """Read every data file once.

    Raises:
        InputError: a missing or broken file, with the line's number.
    """
    problems = load_problems(config.data, need_response=config.algorithm is Algorithm.SFT)
    if config.grpo is not None and config.grpo.problem_scores is not None:
        scores_of(problems, Path(config.grpo.problem_scores))
    for data in config.validation.data.values():
        load_problems(data)


def check_verifier(verifier: VerifierConfig, runs_code: bool) -> None:
    """Check the verifier server's address and secret or, for programs that are to run here, this machine's isolation.

    Raises:
        InputError: they are unusable; less isolation than the config demands.
    """
    if verifier.address is not None:
        try:
            local = isinstance(parse_address(verifier.address), str)
            if verifier.secret_file is not None:
                read_secret(Path(verifier.secret_file))
            elif not local:
                raise ValueError(f"address={verifier.address} needs secret_file, the server's secret")
        except (ValueError, OSError) as error:
            raise InputError(f"verifier: {error}") from error
    elif runs_code:
        check_isolation(verifier.min_isolation, "verifier.min_isolation")


def check_isolation(minimum: IsolationLevel, key: str) -> None:
    """Refuse to run programs on this machine with less isolation than `minimum`.

    Raises:
        InputError: names `key`, what there is, and the remedy.
    """
    from verifiers.code import SandboxError, close_sandbox, require_isolation

    try:
        require_isolation(minimum)
    except SandboxError as error:
        raise InputError(f"{key}={minimum}: {error}; see `megatron-rl doctor`, or allow less with {key}") from error
    finally:
        close_sandbox()


def _check_model(policy: PolicyConfig, run: RunFolder) -> None:
    if policy.from_checkpoint is not None and not run.checkpoints():
        find_checkpoint(Path(policy.from_checkpoint))
    if policy.from_scratch is not None:
        config = asdict(policy.from_scratch)
    else:
        assert policy.model_name is not None
        folder = Path(policy.model_name)
        try:
            config = read_config(folder)
            if policy.from_checkpoint is None and not run.checkpoints():
                weight_files(folder)
        except ConversionError as error:
            raise InputError(f"policy.model_name: {error}") from error
    check_division(policy, model_shape(config, vocab_divisor=1))
    context = size_of(config, "max_position_embeddings", policy.max_total_sequence_length)
    if policy.max_total_sequence_length > context:
        raise InputError(
            f"policy.max_total_sequence_length={policy.max_total_sequence_length} is above the model's context of "
            f"{context} tokens (max_position_embeddings); lower the first"
        )


def check_division(policy: PolicyConfig, shape: ModelShape) -> None:
    """Refuse a layout that does not divide the model.

    Raises:
        InputError: names the size and the number that it does not divide.
    """
    tp, pp = "tensor_model_parallel_size", "pipeline_model_parallel_size"
    for key, name, number in (
        (tp, "attention heads", shape.num_attention_heads),
        (tp, "key-value heads", shape.num_key_value_heads),
        (tp, "feed-forward units", shape.ffn_hidden_size),
        (pp, "layers", shape.num_layers),
    ):
        size = getattr(policy, key)
        if number % size:
            raise InputError(
                f"policy.{key}={size} does not divide the model's {number} {name}; use a divisor of {number}"
            )
    vpp = policy.virtual_pipeline_model_parallel_size or 1
    if shape.num_layers % (policy.pipeline_model_parallel_size * vpp):
        raise InputError(
            f"policy.{pp} x policy.virtual_{pp} = {policy.pipeline_model_parallel_size} x {vpp} does not divide the "
            f"model's {shape.num_layers} layers; change one of them"
        )
    of_stage = shape.num_layers // policy.pipeline_model_parallel_size
    for end in ("start", "end"):
        in_bf16 = getattr(policy.fp8, f"num_layers_at_{end}_in_bf16", 0)
        if in_bf16 > of_stage:
            raise InputError(
                f"policy.fp8.num_layers_at_{end}_in_bf16={in_bf16} is above the {of_stage} layers of a pipeline stage; "
                "lower it"
            )
