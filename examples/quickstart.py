"""An agent run of several streamed steps, until its ceiling: what docs/quickstart.md shows. Takes the run's id as its argument.

It is written as agents are: the openai SDK as it comes, and one base URL. What is Penstock's here are two headers that it sends (which
run this is, and what it may spend) and three that it prints.
"""

import itertools
import os
import sys

import openai

RUN = sys.argv[1] if len(sys.argv) > 1 else "quickstart"
MODEL = "gemma-3-270m"
PLACES = ("spring", "hills", "mill", "town", "harbour", "sea")

client = openai.OpenAI(
    base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8080/v1"),
    api_key=os.environ.get("OPENAI_API_KEY", "none"),  # a local model wants none
    default_headers={"X-Run-Id": RUN, "X-Run-Limit": "$0.006"},
)
talk = []

for step, place in enumerate(itertools.cycle(PLACES), start=1):
    talk = [*talk[-4:], {"role": "user", "content": f"What does the river see at the {place}?"}]
    try:
        answer = client.chat.completions.with_raw_response.create(
            model=MODEL,
            messages=talk,
            max_tokens=48,
            frequency_penalty=0.8,
            stop=["user:"],  # a base model would go on with our side of the talk
            stream=True,
            stream_options={"include_usage": True},
        )
    except openai.APIStatusError as refusal:
        print(f"step {step}  {refusal.status_code} {refusal.code}\n{refusal.body['message']}")
        break
    text, usage = "", None
    for chunk in answer.parse():
        text += "".join(choice.delta.content or "" for choice in chunk.choices)
        usage = chunk.usage or usage
    talk.append({"role": "assistant", "content": text})
    decision, left = answer.headers["X-Budget-Decision"], answer.headers["X-Budget-Remaining-USD"]
    model = answer.headers.get("X-Budget-Selected-Model", MODEL)
    tokens = f"{usage.prompt_tokens} + {usage.completion_tokens} tokens"
    print(f"step {step:<2}  {decision:<9}  {model:<18}  {tokens:<15}  ${left} left  {' '.join(text.split())[:36]}", flush=True)
