"""The step as events: cases by hand, nothing lost, bounds that hold for any lengths, and published times."""

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plan_case import QWEN_7B, grpo_config
from rich.console import Console

from megatron_rl.config.schema import Algorithm, Domain, TrainConfig, VerifierConfig
from megatron_rl.errors import InputError
from megatron_rl.plan.assumptions import ASSUMPTIONS
from megatron_rl.plan.engine import EngineModel, Request
from megatron_rl.plan.generation import Generated, generate, requests
from megatron_rl.plan.published import FITTED_ON, SKYWORK_SECONDS, compare_with_skywork
from megatron_rl.plan.roofline import DecodeCost
from megatron_rl.plan.simulate import GPU_COUNTS, simulate_scales
from megatron_rl.plan.simulate_show import footnotes, show_simulation, simulation_json
from megatron_rl.plan.speed import StepEstimate, estimate_step
from megatron_rl.plan.verdicts import End, last_verdict

# One second per decode step, and one more per sequence.
BY_HAND = DecodeCost(
    weights=1.0,
    kv_per_token=0.0,
    compute_per_sequence=0.0,
    compute_per_token=0.0,
    fixed=0.0,
    per_sequence=1.0,
    prefill_per_token=0.0,
)
ROOMY = 10**9
groups_of_lengths = st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=5), min_size=1, max_size=12)


def run(
    groups: Sequence[Sequence[int]],
    engines: int,
    cost: DecodeCost = BY_HAND,
    max_num_seqs: int = 256,
    cache: int = ROOMY,
) -> Generated:
    return generate(requests(groups, prompt_tokens=3), engines, cost, max_num_seqs, cache)


def token_by_token(lengths: Sequence[int], cost: DecodeCost, max_num_seqs: int, prompt: int = 3) -> list[float]:
    """Ends of one engine's samples, one decode step at a time: the slow way to what events jump over."""
    waiting, running, clock, ends = list(enumerate(lengths)), dict[int, int](), 0.0, [0.0] * len(lengths)
    while waiting or running:
        while waiting and len(running) < max_num_seqs:
            index, _ = waiting.pop(0)
            running[index] = 0
            clock += prompt * cost.prefill_per_token
        clock += cost.step_seconds(len(running), sum(prompt + done for done in running.values()))
        for index in list(running):
            running[index] += 1
            if running[index] == lengths[index]:
                del running[index]
                ends[index] = clock
    return ends


def test_two_engines_and_three_prompts_by_hand() -> None:
    # The first two prompts go one to each engine, the third to the first again: there is room for two samples.
    # Engine 0: 2 and 4 tokens together (3 s a step), then 2 alone (2 s a step). Engine 1: 5 alone.
    generated = run([[2], [5], [4]], engines=2, max_num_seqs=2)
    assert generated.ends == [End(6.0, 0, 0), End(10.0, 0, 2), End(10.0, 1, 1)]
    assert generated.engine_seconds == [10.0, 10.0]
    assert generated.tokens == 11


def test_the_engine_that_ends_first_takes_the_next_prompt() -> None:
    # One place each: prompts of 5 and 2 tokens start, the second ends after 4 s and its engine takes the third.
    generated = run([[5], [2], [4], [1]], engines=2, max_num_seqs=1)
    assert [(end.index, end.engine, end.seconds) for end in generated.ends] == [
        (1, 1, 4.0),
        (0, 0, 10.0),
        (3, 0, 12.0),
        (2, 1, 12.0),
    ]


def test_a_prompts_samples_stay_together_and_a_lone_engine_takes_everything() -> None:
    together = run([[1, 1, 1], [1, 1, 1]], engines=2, max_num_seqs=2)
    assert {(end.index, end.engine) for end in together.ends} == {(i, i // 3) for i in range(6)}
    assert together.max_waiting == 1
    assert run([[1, 1, 1], [1, 1, 1]], engines=1, max_num_seqs=2).max_waiting == 4


def test_a_full_cache_makes_the_youngest_wait_and_compute_again() -> None:
    cost = replace(BY_HAND, per_sequence=0.0, prefill_per_token=0.5)
    # Two prompts of 3 tokens fill 6 of 10 places; after 2 steps the cache is full, the younger one leaves, the older
    # does 2 more steps, then the younger one's 3 + 2 tokens are computed again and it does its last 2.
    generated = run([[4, 4]], engines=1, cost=cost, cache=10)
    prefill, again = 3.0, 2.5
    assert [end.seconds for end in generated.ends] == [prefill + 4, prefill + 4 + again + 2]
    assert generated.tokens == 8
    assert generated.max_waiting == 1


def test_what_was_pushed_out_comes_back_before_what_never_ran() -> None:
    cost = replace(BY_HAND, per_sequence=0.0)
    # After 1 step the second sample leaves; at 4 it comes back, and the third has to leave at once for lack of room.
    generated = run([[4, 4, 1]], engines=1, cost=cost, max_num_seqs=2, cache=8)
    assert [(end.index, end.seconds) for end in generated.ends] == [(0, 4.0), (1, 7.0), (2, 8.0)]


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=12), places=st.integers(1, 12))
def test_events_jump_to_where_a_walk_token_by_token_arrives(lengths: list[int], places: int) -> None:
    cost = replace(BY_HAND, kv_per_token=0.25, prefill_per_token=0.125)
    ends = {end.index: end.seconds for end in run([lengths], engines=1, cost=cost, max_num_seqs=places).ends}
    assert [ends[i] for i in range(len(lengths))] == pytest.approx(token_by_token(lengths, cost, places))


@given(groups=groups_of_lengths, engines=st.integers(1, 6), places=st.integers(1, 8), spare=st.integers(0, 60))
def test_every_token_is_generated_once_whatever_the_cache(
    groups: list[list[int]], engines: int, places: int, spare: int
) -> None:
    longest = max(map(max, groups))
    generated = run(groups, engines, max_num_seqs=places, cache=3 + longest + spare)
    assert generated.tokens == sum(map(sum, groups))
    assert sorted(end.index for end in generated.ends) == list(range(sum(map(len, groups))))
    assert [end.seconds for end in generated.ends] == sorted(end.seconds for end in generated.ends)
    assert generated.seconds >= run([[longest]], engines=1).seconds


@given(groups=groups_of_lengths, engines=st.integers(1, 6))
def test_twice_the_engines_with_room_for_all_are_not_slower(groups: list[list[int]], engines: int) -> None:
    # Taking turns, engine e of twice as many gets a part of what engine e mod n of n gets.
    assert run(groups, 2 * engines).seconds <= run(groups, engines).seconds


def test_a_waiting_engine_reports_what_is_in_flight() -> None:
    engine = EngineModel(BY_HAND, 1, ROOMY)
    for index, length in enumerate((2, 1)):
        engine.add(Request(index, 3, length))
    assert engine.in_flight == 2
    assert (engine.advance(), engine.in_flight, engine.clock) == ([0], 1, 4.0)
    assert (engine.advance(), engine.in_flight, engine.clock) == ([1], 0, 6.0)


ENDS = [End(1.0, 0, 0), End(2.0, 0, 1), End(3.0, 1, 2), End(10.0, 0, 3)]


def test_verdicts_hide_behind_generation_when_they_are_quick() -> None:
    assert last_verdict(ENDS, {3}, workers=1, seconds=2.0) == 10.0
    assert last_verdict(ENDS, (), workers=1, seconds=2.0) == 12.0


def test_verdicts_dominate_when_they_are_slow_and_workers_help() -> None:
    assert last_verdict(ENDS, (), workers=1, seconds=20.0) == 1.0 + 3 * 20
    assert last_verdict(ENDS, (), workers=2, seconds=20.0) == 1.0 + 2 * 20
    assert last_verdict(ENDS, (), workers=3, seconds=20.0) == 10.0 + 20


def with_workers(config: TrainConfig, workers: int) -> StepEstimate:
    return estimate_step(replace(config, verifier=VerifierConfig(num_workers=workers)), QWEN_7B)


def test_a_steps_verdicts_hide_or_dominate() -> None:
    code = grpo_config(domain=Domain.CODE)
    assert with_workers(grpo_config(), 4).verification_wait < 0.3
    assert with_workers(code, 1).verification_wait > 10 * with_workers(code, 1).generation
    assert with_workers(code, 64).verification_wait <= ASSUMPTIONS.code_verification_seconds


@pytest.fixture(scope="module")
def scales() -> list[StepEstimate]:
    return simulate_scales(grpo_config(policy={"tensor_model_parallel_size": 2}), QWEN_7B)


def test_scales_are_those_the_layout_divides(scales: list[StepEstimate]) -> None:
    assert [step.num_gpus for step in scales] == list(GPU_COUNTS)
    assert [step.rollout.engines for step in scales] == list(GPU_COUNTS)
    config = grpo_config(policy={"tensor_model_parallel_size": 4, "pipeline_model_parallel_size": 4})
    assert [step.num_gpus for step in simulate_scales(config, QWEN_7B)] == list(GPU_COUNTS[1:])


def test_what_generates_nothing_has_no_scale_to_simulate() -> None:
    sft = replace(grpo_config(), algorithm=Algorithm.SFT, grpo=None)
    with pytest.raises(InputError, match="algorithm=sft"):
        simulate_scales(sft, QWEN_7B)


def test_more_gpus_never_generate_more_slowly_and_train_slower_only_by_the_reduction(
    scales: list[StepEstimate],
) -> None:
    for fewer, more in pairwise(scales):
        assert more.generation <= fewer.generation
        assert more.training <= 1.01 * fewer.training
    assert scales[-1].training < scales[0].training / 4


def test_the_longest_sample_bounds_every_scale_and_the_same_tokens_are_made(scales: list[StepEstimate]) -> None:
    assert len({(step.response_tokens, step.train_tokens, step.rollout.longest_sample_seconds) for step in scales}) == 1
    for step in scales:
        assert step.total > step.generation >= step.rollout.longest_sample_seconds


def test_idle_share_grows_once_there_are_more_engines_than_prompts(scales: list[StepEstimate]) -> None:
    shares = [step.idle_share for step in scales if step.num_gpus >= 32]
    assert shares == sorted(shares)
    last = scales[-1]
    assert shares[-1] > (1 - 32 / 1024) * last.generation / last.total  # 32 prompts occupy 32 of 1,024 engines


@pytest.mark.parametrize(("tp", "idle_engines"), [(1, 5 / 8), (2, 1 / 4)])
def test_idle_share_by_hand(tp: int, idle_engines: float) -> None:
    # Eight or four engines, three with a prompt each; training has nothing to wait for: 24 samples alike on 8 ranks.
    quiet = replace(ASSUMPTIONS, math_verification_seconds=0.0, response_sigma=1e-9, zero_advantage_share=0.0)
    config = grpo_config(nodes=1, generation={"tensor_parallel_size": tp}, grpo={"num_prompts_per_step": 3})
    step = estimate_step(config, QWEN_7B, assumptions=quiet)
    assert step.idle_share == pytest.approx(idle_engines * step.generation / step.total)


def test_a_small_cache_slows_generation_down() -> None:
    config = grpo_config(nodes=1)
    small = estimate_step(config, QWEN_7B, kv_cache_tokens=10_000)
    large = estimate_step(config, QWEN_7B, kv_cache_tokens=1_000_000)
    assert small.generation > 1.5 * large.generation
    assert small.rollout.max_waiting > large.rollout.max_waiting == 0
    assert small.response_tokens == large.response_tokens


def test_published_times_are_predicted_from_one_of_them() -> None:
    comparison = compare_with_skywork()
    assert comparison.seconds[FITTED_ON] == pytest.approx(SKYWORK_SECONDS[FITTED_ON], rel=0.005)
    assert 1 <= comparison.kv_reads_per_step <= 7  # once per key-value head, or once per query head
    # Measured: +4%, +6% and +3%; over other draws of lengths up to +9%.
    assert set(comparison.errors) == {64, 128, 256}
    assert all(abs(error) < 0.1 for error in comparison.errors.values())


def test_the_table_fits_and_its_data_are_json(scales: list[StepEstimate]) -> None:
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    show_simulation(scales, console)
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80
    assert any(line.lstrip().startswith("1,024") for line in lines)
    assert "Beyond 8 GPUs" in " ".join(footnotes(scales))
    rows = simulation_json(scales)
    assert json.loads(json.dumps(rows)) == rows
    assert [row["gpus"] for row in rows] == list(GPU_COUNTS)


def test_a_thousand_gpus_and_full_batches_are_the_same_twice() -> None:
    config = grpo_config(nodes=128, grpo={"num_prompts_per_step": 128, "num_generations_per_prompt": 16})
    assert estimate_step(config, QWEN_7B) == estimate_step(config, QWEN_7B)
    lengths = [[random.Random(1).randrange(1, 9) for _ in range(4)] for _ in range(4)]
    assert run(lengths, 3) == run(lengths, 3)
