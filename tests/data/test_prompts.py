"""The recipe's prompts to the letter, whatever the chat template does about `<think>`, and the responses to imitate."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from megatron_rl.config.schema import Domain
from megatron_rl.data.problems import Problem
from megatron_rl.data.prompts import (
    check_example_lengths,
    check_prompt_lengths,
    encode_prompt,
    encode_response,
    response_text,
    user_message,
)
from megatron_rl.errors import InputError
from verifiers import Verdict
from verifiers.math import verify_math

TURNS = "{% for turn in messages %}[{{ turn['role'] }}]{{ turn['content'] }}{% endfor %}"
MATH_MESSAGE = "What is 2 + 2?\nPlease reason step by step, and put your final answer within \\boxed{}."
CODE_MESSAGE = """Double it.

Write Python code to solve the problem. Please place the solution code in the following format:
```python
# Your solution code here
```"""
STARTER_MESSAGE = """Double it.

Solve the problem starting with the provided function header.

Function header:
```
def f(a):
```

Please place the solution code in the following format:
```python
# Your solution code here
```"""


def math_problem(response: str | None = None, answer: str | None = "4", name: str = "m") -> Problem:
    return Problem(name, "What is 2 + 2?", Domain.MATH, answer, None, None, None, response)


def code_problem(starter_code: str | None = None, response: str | None = None) -> Problem:
    return Problem("c", "Double it.", Domain.CODE, None, None, "f", starter_code, response)


@pytest.fixture
def tokenizer(model_folders: dict[str, Path]) -> PreTrainedTokenizerFast:
    """One token per byte; its chat template names the role of every turn."""
    loaded = AutoTokenizer.from_pretrained(model_folders["untied"], local_files_only=True)
    loaded.chat_template = TURNS + "{% if add_generation_prompt %}[assistant]{% endif %}"
    return loaded


# The prompt --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        (math_problem(), MATH_MESSAGE),
        (code_problem(), CODE_MESSAGE),
        (code_problem("def f(a):"), STARTER_MESSAGE),
    ],
    ids=["math", "code", "code with a header"],
)
def test_a_prompt_is_the_recipe_s_template_as_the_only_turn(
    tokenizer: PreTrainedTokenizerFast, problem: Problem, message: str
) -> None:
    assert user_message(problem) == message
    assert tokenizer.decode(encode_prompt(tokenizer, problem)) == f"[user]{message}[assistant]<think>\n"


@pytest.mark.parametrize("ending", ["", "\\n", "<think>", "<think>\\n"])
def test_a_prompt_ends_in_one_think_and_one_line_break(tokenizer: PreTrainedTokenizerFast, ending: str) -> None:
    tokenizer.chat_template = TURNS + "[assistant]" + "{{ '" + ending + "' }}"
    text = tokenizer.decode(encode_prompt(tokenizer, math_problem()))
    before = "\n" if ending == "\\n" else ""
    assert text == f"[user]{MATH_MESSAGE}[assistant]{before}<think>\n"


def test_a_think_in_the_question_is_not_taken_for_the_prompt_s(tokenizer: PreTrainedTokenizerFast) -> None:
    problem = Problem("m", "Is <think>\n a tag?", Domain.MATH, "4", None, None, None, None)
    assert tokenizer.decode(encode_prompt(tokenizer, problem)).count("<think>\n") == 2


def test_special_tokens_of_the_template_are_not_added_again(tokenizer: PreTrainedTokenizerFast) -> None:
    """As with a tokenizer that puts its BOS before every text, under a template that writes it, too."""
    bos = "<pad>"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.convert_tokens_to_ids(bos))]
    )
    tokenizer.chat_template = bos + TURNS
    assert tokenizer.encode("x")[0] == tokenizer.convert_tokens_to_ids(bos)
    for tokens, expected in (
        (encode_prompt(tokenizer, math_problem()), 1),
        (encode_response(tokenizer, math_problem("easy")), 0),
    ):
        assert tokens.count(tokenizer.convert_tokens_to_ids(bos)) == expected


def test_a_tokenizer_without_a_chat_template_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = None
    with pytest.raises(InputError, match="untied: its tokenizer has no chat template; use a model folder that holds"):
        encode_prompt(tokenizer, math_problem())


# The response ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("easy", "easy\n</think>\n\n\\boxed{4}"),
        ("<think>\neasy", "easy\n</think>\n\n\\boxed{4}"),
        ("<think>easy", "easy\n</think>\n\n\\boxed{4}"),
        ("easy</think>it is 4", "easy</think>it is 4"),
        ("<think>\neasy\n</think>\n\n4", "easy\n</think>\n\n4"),
        ("<think>\n\n<think>\n</think>", "\n<think>\n</think>"),
        ("I <think>\nso\n</think>", "I <think>\nso\n</think>"),
    ],
)
def test_a_response_starts_after_the_prompt_s_think_and_ends_in_an_answer(response: str, expected: str) -> None:
    assert response_text(math_problem(response)) == expected


def test_a_whole_response_needs_no_answer() -> None:
    assert response_text(math_problem("hm</think>5", answer=None)) == "hm</think>5"
    assert response_text(code_problem(response="<think>\nhm\n</think>\nx")) == "hm\n</think>\nx"


@pytest.mark.parametrize("answer", ["4", "-0.5", "\\frac{1}{2}", "\\left\\{1, 2\\right\\}", "x^{2} + 1", "1{,}000"])
def test_the_box_put_behind_a_reasoning_earns_the_reward(answer: str) -> None:
    text = response_text(math_problem("it may be \\boxed{7}", answer))
    assert verify_math(text, answer).verdict is Verdict.PASS


@pytest.mark.parametrize("problem", [math_problem(), math_problem("easy", answer=None)], ids=["response", "answer"])
def test_a_problem_loaded_without_what_it_needs_is_a_bug(problem: Problem) -> None:
    with pytest.raises(AssertionError, match="problem m was loaded without its"):
        response_text(problem)


def test_prompt_and_response_together_are_the_conversation(tokenizer: PreTrainedTokenizerFast) -> None:
    problem = math_problem("<think>\neasy")
    prompt, response = encode_prompt(tokenizer, problem), encode_response(tokenizer, problem)
    text = f"[user]{MATH_MESSAGE}[assistant]<think>\neasy\n</think>\n\n\\boxed{{4}}"
    assert tokenizer.decode(prompt + response) == text + "<eos>"
    assert response[-1] == tokenizer.eos_token_id
    assert tokenizer.eos_token_id not in prompt + response[:-1]


def test_a_tokenizer_without_an_eos_token_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.eos_token = None
    with pytest.raises(InputError, match="untied: its tokenizer has no EOS token; set eos_token in its config"):
        encode_response(tokenizer, math_problem("easy"))


# Lengths -----------------------------------------------------------------------------------------------------

Check = Callable[[list[int]], None]
PROBLEMS = [math_problem(name=name) for name in "abc"]


def check_prompts(lengths: list[int]) -> None:
    check_prompt_lengths("data.jsonl", PROBLEMS, [[0] * length for length in lengths], 100, max_new_tokens=60)


def check_examples(lengths: list[int]) -> None:
    check_example_lengths("data.jsonl", PROBLEMS, lengths, 100)


@pytest.mark.parametrize(("check", "room"), [(check_prompts, 40), (check_examples, 100)])
def test_what_fills_the_context_is_allowed(check: Check, room: int) -> None:
    check([1, room, room])


@pytest.mark.parametrize(
    ("check", "lengths", "message"),
    [
        (
            check_prompts,
            [40, 41, 90],
            "data.jsonl: the prompt of 'b' has 41 tokens, the context leaves 40 (100 - 60); raise "
            "policy.max_total_sequence_length, lower generation.max_new_tokens, or drop it",
        ),
        (
            check_examples,
            [100, 101, 200],
            "data.jsonl: prompt and response of 'b' have 101 tokens, the context holds 100; raise "
            "policy.max_total_sequence_length or drop it",
        ),
    ],
)
def test_the_first_that_is_too_long_is_named(check: Check, lengths: list[int], message: str) -> None:
    with pytest.raises(InputError) as caught:
        check(lengths)
    assert str(caught.value) == message
