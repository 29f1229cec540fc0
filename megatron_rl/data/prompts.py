"""Problems to token ids: the recipe's prompt templates inside the model's own chat template.

A prompt ends with `<think>\\n`, so a response starts with the first word of the reasoning. Only user turns are ever
rendered: the templates of some models strip the reasoning from assistant turns.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_rl.config.schema import Domain
from megatron_rl.data.problems import THINK_END, Problem
from megatron_rl.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

THINK_START = "<think>\n"
MATH_INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."
CODE_FORMAT = "Please place the solution code in the following format:\n```python\n# Your solution code here\n```"
CODE_INSTRUCTION = f"Write Python code to solve the problem. {CODE_FORMAT}"
STARTER_INSTRUCTION = "Solve the problem starting with the provided function header.\n\nFunction header:\n"


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerFast":
    """The fast tokenizer of a model folder; InputError if it has none, or a damaged one."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # of whatever kind: damaged files are not expected there
        raise InputError(f"{folder}: its tokenizer cannot be read: {error!r}; restore its files") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise InputError(f"{folder}: its tokenizer is a {type(tokenizer).__name__}; a tokenizer.json is needed")
    return tokenizer


def user_message(problem: Problem) -> str:
    """The text of the one user turn, as AceReason-Nemotron was trained and is prompted."""
    if problem.domain is Domain.MATH:
        return f"{problem.question}\n{MATH_INSTRUCTION}"
    if problem.starter_code is None:
        return f"{problem.question}\n\n{CODE_INSTRUCTION}"
    return f"{problem.question}\n\n{STARTER_INSTRUCTION}```\n{problem.starter_code}\n```\n\n{CODE_FORMAT}"


def encode_prompt(tokenizer: "PreTrainedTokenizerFast", problem: Problem) -> list[int]:
    """Token ids of the prompt: the chat template without a system turn, ending in `<think>` and a line break.

    Raises:
        InputError: the tokenizer has no chat template, or a broken one.
    """
    if tokenizer.chat_template is None:
        raise InputError(
            f"{tokenizer.name_or_path}: its tokenizer has no chat template; use a model folder that holds one"
        )
    turns = [{"role": "user", "content": user_message(problem)}]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        assert isinstance(text, str)
        if text.endswith(THINK_START.rstrip()):
            text += "\n"
        elif not text.endswith(THINK_START):
            text += THINK_START
        return _encode(tokenizer, text)
    except Exception as error:  # a template is a program
        raise InputError(f"{tokenizer.name_or_path}: its chat template fails: {error!r}; restore its files") from error


def encode_response(tokenizer: "PreTrainedTokenizerFast", problem: Problem) -> list[int]:
    """Token ids of the response to imitate, ending in EOS.

    A response with `</think>` is taken as it is, one without is the reasoning before the boxed answer. A `<think>` that
    it starts with is the prompt's and is left out.

    Raises:
        InputError: the tokenizer has no EOS token.
    """
    if tokenizer.eos_token_id is None:
        raise InputError(f"{tokenizer.name_or_path}: its tokenizer has no EOS token; set eos_token in its config")
    return [*_encode(tokenizer, response_text(problem)), tokenizer.eos_token_id]


def response_text(problem: Problem) -> str:
    """What a policy should write after the prompt for `problem`, whose response must be loaded."""
    text = problem.response
    assert text is not None, f"problem {problem.id} was loaded without its response"
    if text.startswith(THINK_START.rstrip()):
        text = text.removeprefix(THINK_START.rstrip()).removeprefix("\n")
    if THINK_END in text:
        return text
    assert problem.answer is not None, f"problem {problem.id} was loaded without its answer"
    return f"{text}\n{THINK_END}\n\n\\boxed{{{problem.answer}}}"


def check_prompt_lengths(
    path: str,
    problems: Sequence[Problem],
    prompts: Sequence[Sequence[int]],
    context: int,
    max_new_tokens: int,
    context_key: str = "policy.max_total_sequence_length",
) -> None:
    """Refuse a prompt that leaves less than `max_new_tokens` of `context` tokens; none is dropped silently.

    Raises:
        InputError: the first prompt that is too long.
    """
    room = context - max_new_tokens
    for problem, prompt in zip(problems, prompts, strict=True):
        if len(prompt) > room:
            raise InputError(
                f"{path}: the prompt of {problem.id!r} has {len(prompt)} tokens, the context leaves {room} "
                f"({context} - {max_new_tokens}); raise {context_key}, lower generation.max_new_tokens, or drop it"
            )


def check_example_lengths(path: str, problems: Sequence[Problem], lengths: Sequence[int], context: int) -> None:
    """Refuse an SFT example (prompt and response, `lengths` tokens) that does not fit `context` tokens.

    Raises:
        InputError: the first example that is too long.
    """
    for problem, length in zip(problems, lengths, strict=True):
        if length > context:
            raise InputError(
                f"{path}: prompt and response of {problem.id!r} have {length} tokens, the context holds {context}; "
                "raise policy.max_total_sequence_length or drop it"
            )


def _encode(tokenizer: "PreTrainedTokenizerFast", text: str) -> list[int]:
    # The chat template already wrote the special tokens.
    return tokenizer.encode(text, add_special_tokens=False)
