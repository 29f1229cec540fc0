"""Every configuration key, its type, default and meaning. A default lives here and nowhere else.

Names follow NeMo-RL where the meaning is the same. Units stand in the name or in the line below the field.
"""

from dataclasses import dataclass, field
from enum import StrEnum

from omegaconf import MISSING

from verifiers.isolation import IsolationLevel

MIN_GRAD_NORMS = 5
"""The median of fewer is nothing to go by."""


class Algorithm(StrEnum):
    SFT = "sft"
    GRPO = "grpo"


class Domain(StrEnum):
    MATH = "math"
    CODE = "code"


class Precision(StrEnum):
    FP32 = "fp32"
    BF16 = "bf16"


class RecomputeGranularity(StrEnum):
    SELECTIVE = "selective"
    FULL = "full"


class FP8Recipe(StrEnum):
    DELAYED = "delayed"
    TENSORWISE = "tensorwise"
    BLOCKWISE = "blockwise"
    MXFP8 = "mxfp8"


class ServerApi(StrEnum):
    COMPLETIONS = "completions"
    CHAT = "chat"


class OnTrip(StrEnum):
    STOP = "stop"
    SKIP = "skip"


class LossNormalizer(StrEnum):
    TOKENS = "tokens"
    GROUP_TOKENS = "group_tokens"
    SEQUENCES = "sequences"
    CONSTANT = "constant"


class RewardStd(StrEnum):
    UNBIASED = "unbiased"
    BIASED = "biased"
    NONE = "none"


class KLType(StrEnum):
    K1 = "k1"
    K3 = "k3"


class RolloutCorrection(StrEnum):
    NONE = "none"
    TOKEN = "token"
    SEQUENCE = "sequence"


class Device(StrEnum):
    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    num_nodes: int = 1
    gpus_per_node: int = 8
    """Megatron ranks per node: one per GPU, or that many processes on a machine without one."""
    device: Device = Device.AUTO
    timeout_minutes: int = 30
    """Deadline of every wait between ranks: one that makes no progress for so long is named, and the run ends."""
    heartbeat_timeout_seconds: float = 120.0
    """A rank that gives no sign for so long, its process stopped or its host gone, is named, and the run ends."""


@dataclass(frozen=True, kw_only=True)
class ScratchConfig:
    """A randomly initialised Qwen2 model and a tokenizer trained on `tokenizer_data`: tiny worlds only."""

    hidden_size: int = MISSING
    intermediate_size: int = MISSING
    num_hidden_layers: int = MISSING
    num_attention_heads: int = MISSING
    num_key_value_heads: int = MISSING
    vocab_size: int = MISSING
    """Upper bound: a small corpus may yield fewer entries."""
    max_position_embeddings: int = MISSING
    tie_word_embeddings: bool = False
    tokenizer_data: tuple[str, ...] = ()
    """JSONL files whose prompts and responses train the tokenizer."""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    lr: float = 1e-6
    lr_warmup_steps: int = 0
    weight_decay: float = 0.01
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_eps: float = 1e-8
    clip_grad: float = 1.0
    exp_avg_dtype: Precision = Precision.FP32
    """Of Adam's mean of gradients. In bf16 it takes half the memory; needs Transformer Engine."""
    exp_avg_sq_dtype: Precision = Precision.FP32
    """Of Adam's mean of squared gradients, likewise. In bf16 it hardly shrinks any more: what a step of `adam_beta2` =
    0.999 takes away is rounded off."""
    optimizer_cpu_offload: bool = False
    """Main weights and Adam's means stay in the host's memory, where the step is made; without a GPU they always do."""


@dataclass(frozen=True, kw_only=True)
class FP8Config:
    """The linear layers' matrix products in FP8, by Transformer Engine; weights stay bfloat16."""

    recipe: FP8Recipe = FP8Recipe.BLOCKWISE
    """What one scaling factor is for: a tensor, by its own largest value (`tensorwise`) or by that of its past
    (`delayed`); 128 x 128 weights or 1 x 128 activations (`blockwise`; Hopper, CUDA 12.9); 32 values (`mxfp8`;
    Blackwell)."""
    num_layers_at_start_in_bf16: int = 0
    """The model's first so many layers make their products in bfloat16; not with `delayed`."""
    num_layers_at_end_in_bf16: int = 0
    """Its last."""


@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    model_name: str | None = None
    """Hugging Face folder: config, tokenizer, and weights to start from."""
    from_checkpoint: str | None = None
    """A checkpoint (`checkpoints/step_N`) or a run folder whose newest one gives the weights to start from."""
    from_scratch: ScratchConfig | None = None
    tensor_model_parallel_size: int = 1
    pipeline_model_parallel_size: int = 1
    virtual_pipeline_model_parallel_size: int | None = None
    """Model chunks per pipeline stage, which Megatron interleaves for shorter waits; default: one, not interleaved."""
    context_parallel_size: int = 1
    """Ranks that share every sequence, each holding a part of its tokens."""
    sequence_parallel: bool = False
    recompute_granularity: RecomputeGranularity | None = None
    """What is not kept in the forward pass but computed again in the backward pass: the MLPs (`selective`: the larger
    part of the memory, and attention, dear in long sequences, is not done twice), or all but each layer's input
    (`full`)."""
    precision: Precision = Precision.BF16
    grad_reduce_in_fp32: bool = True
    """Gradients are summed up in fp32, over micro-batches and ranks; false: in bf16, at half the memory."""
    max_total_sequence_length: int = MISSING
    """Prompt and response together, in tokens."""
    fp8: FP8Config | None = None
    offload_during_generation: bool = False
    """Free the gradients and keep the optimizer's state in the host's memory while engines generate."""
    micro_batch_tokens: int = 16384
    """Token budget of one packed micro-batch; a longer sample is a micro-batch of its own."""
    logprob_chunk_tokens: int = 1024
    """Logits exist for this many tokens at a time."""
    make_vocab_size_divisible_by: int = 128
    """The embedding is padded to a multiple of this times TP; padded rows have probability zero."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    temperature: float = 1.0
    temperature_by_epoch: tuple[float, ...] = ()
    """Instead of `temperature`: that of the first pass over the data, of the second, and so on; the last one stays."""
    top_p: float = 1.0
    top_k: int = -1
    max_new_tokens: int = MISSING
    tensor_parallel_size: int = 1
    num_engines: int | None = None
    """vLLM engines in the job; default one per `tensor_parallel_size` ranks."""
    max_num_seqs: int = 256
    """Sequences that one engine decodes together."""
    gpu_memory_utilization: float = 0.6
    fp8: bool = False
    """The engine's linear layers in FP8 with block scales, quantised from the policy's weights while they are synced;
    needs a GPU."""
    cpu_kv_cache_gib: int = 1
    """Key-value cache of an engine without a GPU."""
    enforce_eager: bool = False
    sync_bucket_mib: int = 512
    """Weights travel to the engine in buckets, through a buffer of this size; without a GPU a bucket is half of it."""
    verify_sync: int = 0
    """Every so many weight syncs the engine compares the checksum of each tensor with the policy's; 0: never. Only
    without a GPU."""
    engine_stall_seconds: float = 120.0
    """An engine that has not answered for so long, be it one decoding step or one bucket of weights, is killed and
    started anew."""
    max_engine_restarts: int = 3
    """Stop when an engine has died more often than this between two weight syncs."""
    timeout_minutes: int = 60
    """Deadline of an engine's start and of one weight sync."""


@dataclass(frozen=True, kw_only=True)
class GRPOConfig:
    num_prompts_per_step: int = 128
    num_generations_per_prompt: int = 8
    max_num_steps: int = MISSING
    loss_normalizer: LossNormalizer = LossNormalizer.TOKENS
    """The loss is a mean over all response tokens of the batch; or over each prompt's first (the paper's formula); or
    over each response's first; or a sum over responses x generation.max_new_tokens (Dr. GRPO)."""
    reward_std: RewardStd = RewardStd.UNBIASED
    """Advantages are divided by their group's standard deviation: over n - 1, over n, or not at all."""
    overlong_filtering: bool = False
    """Truncated samples count as wrong in their group's advantages, but are left out of the loss."""
    overlong_buffer_length: int = 0
    """The last so many tokens before generation.max_new_tokens cost reward, more and more; 0: none do."""
    overlong_buffer_penalty: float = 1.0
    """What a truncated sample loses by that."""
    dynamic_sampling_max_batches: int = 1
    """Generate up to so many batches a step, until num_prompts_per_step prompts have samples of different rewards; only
    these are trained on (DAPO). 1: train on what one batch gives."""
    epoch_filter: bool = False
    """From the second pass over the data on leave out prompts whose last samples all failed or all passed (Cascade)."""
    epoch_filter_keep_hard: float = 0.1
    """Of those that all failed, this share is visited all the same."""
    epoch_filter_keep_easy: float = 0.01
    """Of those that all passed."""
    problem_scores: str | None = None
    """A problems.jsonl of `megatron-rl data score` or of another run: pass rates and lengths from before the first
    step. The epoch filter then heeds them in the first epoch, and long responses are the first to be started."""
    updates_per_batch: int = 1
    """Optimizer steps per generated batch. Above 1 all but the first are off-policy: the ratio to the log-probs of the
    policy that generated is clipped as in PPO."""
    ratio_clip_min: float = 0.2
    """The ratio is clipped to [1 - this, 1 + ratio_clip_max]; without effect at one update per batch."""
    ratio_clip_max: float = 0.2
    ratio_clip_c: float | None = None
    """Dual clip: the loss of a token with a negative advantage is at most this times its advantage; above 1."""
    reference_policy_kl_penalty: float = 0.0
    """What the KL divergence to the policy that training started from counts in the loss; above 0 its weights are kept
    in the host's memory and every step computes its log-probs."""
    reference_policy_kl_type: KLType = KLType.K3
    entropy_bonus: float = 0.0
    """What the mean entropy of the policy at the samples' tokens counts, against the loss."""
    rollout_correction: RolloutCorrection = RolloutCorrection.NONE
    """Weigh each token by how much likelier the policy made it, or its whole response, than the engine did (truncated
    importance sampling): where the engine is less precise than the policy."""
    rollout_correction_max: float = 2.0
    """That weight is cut off here."""
    max_token_mult_prob_error: float | None = None
    """A guard (see `guards`) that is always on: a batch is not trained on when its mean of exp|policy - rollout
    log-prob| passes this: the engine does not sample the policy. Default by the policy's precision: 1.001 in fp32, 1.05
    in bf16, 1.1 with FP8."""
    max_infra_error_fraction: float = 0.05
    """Stop when more than this share of a step's samples could not be verified."""


@dataclass(frozen=True, kw_only=True)
class SFTConfig:
    global_batch_size: int = 64
    """Examples per optimizer step."""
    max_num_steps: int = MISSING


@dataclass(frozen=True, kw_only=True)
class GuardsConfig:
    """What keeps an update from being made; null: nothing. Always on: a loss, entropy or gradient norm that is no
    finite number, and `grpo.max_token_mult_prob_error`."""

    on_trip: OnTrip = OnTrip.STOP
    """What then: stop the run, or skip the rest of the batch and go on with the next one."""
    max_consecutive_skips: int = 3
    """Stop all the same when so many batches in a row have been skipped and the next one is no better."""
    max_grad_norm_ratio: float | None = None
    """The gradient norm is above this times the median of the last steps'."""
    grad_norm_window: int = 20
    """So many, of the steps that made an update with a gradient; of fewer than 5 no median is taken."""
    min_entropy: float | None = None
    """The policy's mean entropy at the samples' tokens, in nats, is below this."""
    max_entropy: float | None = None
    """It is above this."""
    max_truncated_fraction: float | None = None
    """More than this share of a step's samples was cut off at generation.max_new_tokens."""
    max_uniform_reward_steps: int | None = None
    """In more steps in a row than this all samples had the same reward, in a run where rewards have differed before."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    path: str = MISSING
    """JSONL. `id` is optional (default: the line number); the other columns are named below."""
    domain: Domain = Domain.MATH
    prompt_key: str = "prompt"
    answer_key: str = "answer"
    """Math: the reference answer."""
    answer_marker: str | None = None
    """The reference is what follows the last occurrence of this text (GSM8K: `####`); default: the whole column."""
    response_key: str = "response"
    """SFT: the text to imitate. Without `</think>` it becomes the reasoning before the boxed answer."""
    shuffle: bool = True


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    data: dict[str, DataConfig] = field(default_factory=dict)
    """Held-out sets by name; the one named like the run's domain is its headline accuracy."""
    period: int = 0
    """Steps between validations; 0: only as `at_start` and `at_end` say."""
    at_start: bool = True
    at_end: bool = True
    max_prompts: int | None = None
    num_generations_per_prompt: int = 1
    temperature: float = 0.0
    top_p: float = 1.0


@dataclass(frozen=True, kw_only=True)
class VerifierConfig:
    num_workers: int = 4
    """Worker processes per engine."""
    code_timeout_seconds: float = 6.0
    """Wall-clock limit of one test of a program."""
    code_budget_seconds: float = 300.0
    """Wall-clock limit of all tests of a program together."""
    longest_tests_first: bool = False
    """Run the tests with the longest inputs first: a slow program fails sooner."""
    min_isolation: IsolationLevel = IsolationLevel.LANDLOCK
    """The weakest isolation that programs may run with; verifiers/code/__init__.py says what each level leaves open."""
    address: str | None = None
    """Of a verifier server (`megatron-rl verify serve`), in place of workers of one's own: unix:/PATH or
    tcp:HOST:PORT."""
    secret_file: str | None = None
    """The server's secret."""


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """A server with an API of OpenAI's that generates in place of engines of our own; the environment's OPENAI_API_KEY
    is its key."""

    url: str | None = None
    """Such as http://node:8000/v1. Of the checkpoint then only the tokenizer is used."""
    api: ServerApi = ServerApi.COMPLETIONS
    """`completions` is sent token ids, `chat` the user's message: the template is then the server's."""
    model: str | None = None
    """Default: the only one that it serves."""
    max_retries: int = 8
    """Of a request; what fails then ends the command, which given again goes on."""
    timeout_minutes: float = 60.0
    """Of one request."""


@dataclass(frozen=True, kw_only=True)
class CheckpointingConfig:
    save_period: int = 50
    """Steps between checkpoints; the last step is always saved. They are written while training goes on."""
    keep_last: int = 2
    """So many of the newest checkpoints are kept,"""
    keep_top_k: int = 0
    """and so many of those with the best `metric_name`."""
    metric_name: str = "validation/accuracy"
    """A metric of `metrics.jsonl`; the higher, the better."""
    export_hf: bool = False
    """Convert checkpoints to Hugging Face folders, in the background: the last to `RUN/hf`, others to their own
    `hf/`. One that is saved while another is being converted is left out."""


@dataclass(frozen=True, kw_only=True)
class WandbConfig:
    project: str = "megatron-rl"
    name: str | None = None
    """Default: the run's name."""


@dataclass(frozen=True, kw_only=True)
class LoggerConfig:
    tensorboard_enabled: bool = True
    wandb_enabled: bool = False
    wandb: WandbConfig = field(default_factory=WandbConfig)
    samples_per_step: int = 16
    """Samples written to `samples/step_N.jsonl`."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One stage of training; the run folder is `output_dir/name`."""

    algorithm: Algorithm = MISSING
    name: str = MISSING
    output_dir: str = "runs"
    seed: int = 1
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    generation: GenerationConfig | None = None
    grpo: GRPOConfig | None = None
    sft: SFTConfig | None = None
    guards: GuardsConfig = field(default_factory=GuardsConfig)
    data: DataConfig = field(default_factory=DataConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    verifier: VerifierConfig = field(default_factory=VerifierConfig)
    checkpointing: CheckpointingConfig = field(default_factory=CheckpointingConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)

    @property
    def world_size(self) -> int:
        """Ranks in the job."""
        return self.cluster.num_nodes * self.cluster.gpus_per_node

    @property
    def validates(self) -> bool:
        """Some step is followed by a validation."""
        settings = self.validation
        return bool(settings.data) and (settings.at_start or settings.at_end or settings.period > 0)

    @property
    def run_dir(self) -> str:
        """The run folder."""
        return f"{self.output_dir}/{self.name}"

    @property
    def batch_size(self) -> int:
        """Problems or examples of a step."""
        if self.algorithm is Algorithm.SFT:
            assert self.sft is not None
            return self.sft.global_batch_size
        assert self.grpo is not None
        return self.grpo.num_prompts_per_step

    @property
    def updates_per_step(self) -> int:
        """Optimizer steps of a step."""
        return self.grpo.updates_per_batch if self.algorithm is Algorithm.GRPO and self.grpo is not None else 1

    @property
    def max_num_steps(self) -> int:
        """Optimizer steps of the stage."""
        section = self.sft if self.algorithm is Algorithm.SFT else self.grpo
        assert section is not None  # checked when the config is loaded
        return section.max_num_steps
