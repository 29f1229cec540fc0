"""Responses from a server with OpenAI's completions or chat API, in place of engines of our own."""

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from openai import OpenAI, OpenAIError
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionMessage, ChatCompletionUserMessageParam

from megatron_rl.config.schema import ServerApi, ServerConfig
from megatron_rl.data.problems import THINK_END
from megatron_rl.data.prompts import load_tokenizer
from megatron_rl.errors import InputError, RunStopped
from megatron_rl.rollout.samples import Sample, SampleRequest, Sampling, requests_for

KEY_VARIABLE = "OPENAI_API_KEY"


class ServedRollout:
    """What an evaluation needs of a `Rollout`.

    Args:
        folder: the served model's tokenizer.
        in_flight: requests at a time.
        messages: the user's message by the token ids of its prompt, for the chat API.

    Raises:
        InputError: there is no such server, or it does not serve the model.
    """

    def __init__(
        self,
        config: ServerConfig,
        folder: Path,
        in_flight: int,
        leads: bool,
        messages: Mapping[tuple[int, ...], str],
    ) -> None:
        self.leads = leads
        self._config, self._in_flight, self._messages = config, in_flight, messages
        self._client = OpenAI(
            base_url=config.url,
            api_key=os.environ.get(KEY_VARIABLE, "none"),
            timeout=config.timeout_minutes * 60,
            max_retries=config.max_retries,
        )
        self._tokenizer = load_tokenizer(folder)
        if leads:
            self._model = self._served_model()

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        samples_per_prompt: int,
        sampling: Sampling,
        seed: str,
        on_sample: Callable[[Sample], None],
        on_count: Callable[[int], None] = lambda count: None,
        may_stop: bool = False,
        expected_lengths: Sequence[float] = (),
        done: Collection[tuple[int, int]] = (),
    ) -> None:
        """As `Rollout.generate`, by the rank that leads; in order and to the end.

        Raises:
            RunStopped: a request failed, and did so again and again.
        """
        if not self.leads:
            return
        requests = requests_for(prompts, samples_per_prompt, seed, done)
        with ThreadPoolExecutor(self._in_flight, thread_name_prefix="server") as threads:
            answers = [threads.submit(self._ask, request, sampling) for request in requests]
            try:
                for count, answer in enumerate(as_completed(answers), 1):
                    on_sample(answer.result())
                    on_count(count)
            except OpenAIError as error:
                raise RunStopped(f"{self._config.url}: {error}; start the same command again") from error
            finally:
                threads.shutdown(wait=False, cancel_futures=True)

    def take_recoveries(self) -> tuple[int, float]:
        """Of engines, which are the server's own matter."""
        return 0, 0.0

    def close(self) -> None:
        """Let go of the server."""
        self._client.close()

    def _ask(self, request: SampleRequest, sampling: Sampling) -> Sample:
        asked: dict[str, Any] = {
            "model": self._model,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_new_tokens,
            "seed": request.seed,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
        }
        chats = self._config.api is ServerApi.CHAT
        text, finish_reason = (self._chat if chats else self._complete)(request, asked, sampling.top_k)
        tokens = tuple(self._tokenizer.encode(text, add_special_tokens=False))
        return Sample(
            request=request,
            length=len(tokens),
            tokens=tokens,
            log_probs=(),
            text=text,
            truncated=finish_reason == "length",
            policy_version=0,
        )

    def _complete(self, request: SampleRequest, asked: dict[str, Any], top_k: int) -> tuple[str, str]:
        # What is not told is as the model's generation_config.json has it.
        beyond = {"top_k": top_k, "min_p": 0.0, "repetition_penalty": 1.0}
        prompt = list(request.prompt_tokens)
        answer: Completion = self._client.completions.create(prompt=prompt, extra_body=beyond, **asked)
        (choice,) = answer.choices
        return choice.text, choice.finish_reason

    def _chat(self, request: SampleRequest, asked: dict[str, Any], top_k: int) -> tuple[str, str]:
        beyond = {"top_k": top_k} if top_k > 0 else {}  # which not every such server knows
        turn = ChatCompletionUserMessageParam(role="user", content=self._messages[request.prompt_tokens])
        answer: ChatCompletion = self._client.chat.completions.create(messages=[turn], extra_body=beyond, **asked)
        (choice,) = answer.choices
        return _with_reasoning(choice.message), choice.finish_reason

    def _served_model(self) -> str:
        try:
            served = [model.id for model in self._client.models.list()]
        except OpenAIError as error:
            raise InputError(f"server.url={self._config.url}: {error}; start it, or correct the address") from error
        model = self._config.model or (served[0] if len(served) == 1 else None)
        if model not in served:
            raise InputError(f"server.model={model}: {self._config.url} serves {', '.join(served)}; give one of them")
        return model


def _with_reasoning(message: ChatCompletionMessage) -> str:
    """As a policy writes it: some servers tell the reasoning by itself, as `reasoning` or `reasoning_content`, and not
    every model reasons; then all that it says is the answer."""
    text = message.content or ""
    if THINK_END in text:
        return text
    beyond = message.model_extra or {}
    return f"{beyond.get('reasoning') or beyond.get('reasoning_content') or ''}{THINK_END}{text}"
