"""A runaway agent: sub-agents that draft, criticise and revise, and never find their work good enough. Their context grows each step.

It is written as such agents are: the openai SDK as it comes, one base URL, no idea of money. What it does on an error is what the SDK
does. `Watch` is only how the demo looks over its shoulder.
"""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice, repeat
from typing import Protocol

import openai
from openai.types.chat import ChatCompletionMessageParam


@dataclass(frozen=True, slots=True)
class Work:
    """What the agent is up to: one sub-agent per topic. `steps` and `seconds` bound it from outside, where nothing else does."""

    model: str
    topics: Sequence[str]
    source_lines: int  # how much material each sub-agent carries along in every call
    max_tokens: int
    steps: int
    seconds: float


class Watch(Protocol):
    """What the demo sees of the agent."""

    def replied(self, usage: openai.types.CompletionUsage | None) -> None: ...

    def gave_up(self, topic: str, error: openai.OpenAIError) -> None: ...


async def run_amok(base_url: str, work: Work, watch: Watch) -> None:
    """Returns when every sub-agent has given up, or at the bounds."""
    async with openai.AsyncOpenAI(base_url=base_url, api_key="sk-demo") as client:
        agents = [asyncio.create_task(_never_satisfied(client, topic, work, watch)) for topic in work.topics]
        _, unfinished = await asyncio.wait(agents, timeout=work.seconds)
        for agent in unfinished:
            agent.cancel()
        for outcome in await asyncio.gather(*agents, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome


async def _never_satisfied(client: openai.AsyncOpenAI, topic: str, work: Work, watch: Watch) -> None:
    source = "\n".join(
        f"Record {number} on {topic}: level {number * 37 % 101}, flow {number * 53 % 97}." for number in range(work.source_lines)
    )
    messages: list[ChatCompletionMessageParam] = [{"role": "system", "content": f"You write reports. Your material:\n{source}"}]
    for instruction in islice(_instructions(topic), work.steps):
        messages.append({"role": "user", "content": instruction})
        try:
            text = await _ask(client, messages, work, watch)
        except openai.OpenAIError as error:
            watch.gave_up(topic, error)
            return
        messages.append({"role": "assistant", "content": text})
        if text.strip() == "10/10":  # its critic always has more to say
            return


def _instructions(topic: str) -> Iterator[str]:
    criticise = "Criticise this draft and mark it out of ten. Only the best gets 10/10."
    revise = "Revise the draft accordingly, in full."
    return chain([f"Draft a report on {topic}."], chain.from_iterable(repeat((criticise, revise))))


async def _ask(client: openai.AsyncOpenAI, messages: list[ChatCompletionMessageParam], work: Work, watch: Watch) -> str:
    text: list[str] = []
    usage = None
    stream = await client.chat.completions.create(
        model=work.model, messages=messages, max_tokens=work.max_tokens, stream=True, stream_options={"include_usage": True}
    )
    async for chunk in stream:
        text.extend(choice.delta.content or "" for choice in chunk.choices)
        usage = chunk.usage or usage
    watch.replied(usage)
    return "".join(text)
