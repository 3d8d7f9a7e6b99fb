"""How far the estimates of growing agent conversations lie from what a real model server counts. Needs the extra `local`.

    python -m tests.bench.conversation [--write]

Twelve conversations of 60 steps to 50,000 tokens, one after the other, as one tenant has them: system prompt, tools, tool calls and tool results of
code, prose, JSON, logs, Chinese, Japanese, Russian, and mixtures. Every step is read, estimated, counted and learned from as the gateway
does it, from an estimator that knows nothing. The truth is the server's own chat template and tokenizer, asked for the whole prompt
(`/apply-template`, `/tokenize`): what its usage reports, which is checked first with real calls; to have it read 50,000 tokens 700 times over
would take hours here. `--write` puts the table into docs/benchmarks.md.
"""

import argparse
import gc
import http.client
import itertools
import json
import math
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import orjson

from gateway.bundled import load_encoding, load_tokenizer
from gateway.core.anchors import Chain
from gateway.core.catalog import Model
from gateway.core.estimate import input_of
from gateway.core.learned import Learned
from gateway.core.scopes import Amounts, Caller
from gateway.core.tokens import TokenCounter
from gateway.core.values import Call, Directives, InputBasis, Plan, Usage, UsageSource
from gateway.demo import local_model
from gateway.wire import chat
from gateway.wire.headers import NO_HEADERS
from tests.bench.pages import write

STEPS: Final = 60
TOKENS: Final = 50_000
BEGIN, END = "<!-- conversations: begin -->", "<!-- conversations: end -->"
_HERE: Final = Path(__file__).parent
_ROOT: Final = _HERE.parents[1]
_MODEL: Final = Model("gemma", "local", (), context=1_000_000, max_output=2048, capabilities=frozenset({"tools"}))
_CALLER: Final = Caller("t", "k", "r", "r")
_CHECKED_STEPS: Final = 4
_TURN_ENDS: Final = "<end_of_turn>"

Text = Callable[[random.Random, int], str]  # so many characters of a kind


def table() -> str:
    """Says so where there is no real model to ask."""
    title = "**Growing conversations: the estimate beside a real model's own count**\n\n"
    if not local_model.installed():
        return title + "Not measured: the extra `local` is not installed."
    with local_model.running(options=("--template", str(_HERE / "tools.jinja"), "--slots", "1")) as server:
        provider = _Server(server.port)
        _check(provider)
        steps = list(_measured(provider))
    return title + _told(steps)


# -- the truth ------------------------------------------------------------------------------------------------------------------


class _Server:
    """The model server: what it counts for a request's prompt. A turn that was counted before is not counted again: no token reaches
    over the special one that ends it."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
        self._known: dict[str, int] = {}

    def counted(self, body: bytes) -> int:
        prompt = self.ask("/apply-template", body)["prompt"]
        turns = [turn + _TURN_ENDS for turn in prompt.split(_TURN_ENDS)]
        turns[-1] = turns[-1].removesuffix(_TURN_ENDS)
        for turn in turns:
            if turn not in self._known:
                self._known[turn] = self._tokens(turn)
        return sum(self._known[turn] for turn in turns) + 1  # what begins the prompt

    def counted_whole(self, body: bytes) -> int:
        return self._tokens(self.ask("/apply-template", body)["prompt"]) + 1

    def _tokens(self, text: str) -> int:
        return len(self.ask("/tokenize", orjson.dumps({"content": text, "parse_special": True}))["tokens"])

    def ask(self, path: str, body: bytes) -> Any:
        while True:
            self._connection.request("POST", path, body, {"Content-Type": "application/json"})
            answer = self._connection.getresponse()
            said = answer.read()
            if answer.status != 503:  # it listens before it has loaded the model
                assert answer.status == 200, said[:500]
                return orjson.loads(said)
            time.sleep(0.2)


def _check(provider: _Server) -> None:
    """A prompt's count is what the server reports as the usage of a call with it."""
    talk = Conversation("a short one", _prose, random.Random(0), tokens=400)
    for body in itertools.islice(talk.steps(), _CHECKED_STEPS):
        reported = provider.ask("/v1/chat/completions", body)["usage"]["prompt_tokens"]
        assert provider.counted(body) == reported


# -- the conversations ------------------------------------------------------------------------------------------------------------


def _of_files(pattern: str) -> Text:
    text = "\n".join(path.read_text() for path in sorted(_ROOT.glob(pattern)))

    def some(draw: random.Random, chars: int) -> str:
        start = draw.randrange(max(1, len(text) - chars))
        return text[start : start + chars]

    return some


def _json(indent: int | None) -> Text:
    def some(draw: random.Random, chars: int) -> str:
        rows: list[Any] = []
        while len(made := json.dumps(rows, indent=indent)) < chars:
            rows += [_row(draw) for _ in range(max(1, (chars - len(made)) // 300))]
        return made

    return some


def _row(draw: random.Random) -> Any:
    words = draw.choices(_WORDS, k=6)
    return {
        "id": draw.randrange(10**9),
        "name": " ".join(words[:3]),
        "created_at": f"2026-{draw.randrange(1, 13):02}-{draw.randrange(1, 29):02}T{draw.randrange(24):02}:00:00Z",
        "price": draw.randrange(10**6) / 100,
        "tags": words[3:],
        "nested": {"sha": f"{draw.getrandbits(160):040x}", "active": draw.random() < 0.5, "parent": None},
    }


def _log(draw: random.Random, chars: int) -> str:
    lines: list[str] = []
    length = 0
    while length < chars:
        head = f"2026-11-{draw.randrange(1, 31):02} {draw.randrange(24):02}:{draw.randrange(60):02}:{draw.randrange(60):02}.{draw.randrange(1000):03}"
        level = draw.choice(("INFO ", "INFO ", "DEBUG", "WARN "))
        lines.append(
            f"{head} {level} [worker-{draw.randrange(16)}] {' '.join(draw.choices(_WORDS, k=5))} took {draw.randrange(900)} ms"
        )
        length += len(lines[-1]) + 1
    return "\n".join(lines)


def _sentences(*known: str) -> Text:
    def some(draw: random.Random, chars: int) -> str:
        made: list[str] = []
        while sum(map(len, made)) < chars:
            made.append(draw.choice(known))
        return "".join(made)

    return some


def _mixed(*kinds: Text) -> Text:
    return lambda draw, chars: draw.choice(kinds)(draw, chars)


_WORDS: Final = [
    "river",
    "mill",
    "gate",
    "water",
    "ledger",
    "budget",
    "provider",
    "stream",
    "token",
    "account",
    "window",
    "tenant",
    "policy",
    "reserve",
    "commit",
    "release",
    "agent",
    "session",
    "request",
    "answer",
    "model",
    "price",
    "hold",
    "lease",
]
_prose: Final = _of_files("docs/*.md")
python: Final = _of_files("gateway/**/*.py")
_tests: Final = _of_files("tests/core/*.py")
_yaml: Final = _of_files("**/data/*.yaml")
_chinese: Final = _sentences(
    "这个项目的目标是给每一次运行设定一个严格的预算上限。",
    "请先阅读配置文件，然后再运行测试。",
    "如果余额不足，请求会被拒绝，并说明原因。",
    "河水从山里流下来，经过磨坊，最后流入大海。",
    "我们需要记录每一次调用真正花费了多少钱。",
    "数据库里的每一行都对应一个账户，其中包括已经承诺的金额和仍被保留的金额。",
    "昨天的日志显示，服务器在凌晨三点重新启动了两次。",
    "这个函数的返回值是一个整数，表示需要向上取整的价格。\n",
    "他说明天会把修改过的代码提交上来，到时候再一起讨论。",
    "缓存命中率下降的原因可能是提示词的开头发生了变化。",
)
_japanese: Final = _sentences(
    "このプロジェクトの目的は、実行ごとに厳しい予算の上限を設けることです。",
    "まず設定ファイルを読んでから、テストを実行してください。",
    "残高が足りない場合、リクエストは理由とともに拒否されます。",
    "川は山から流れ出し、水車小屋のそばを通って海に注ぎます。",
    "呼び出しごとに実際にかかった費用を一度だけ記録する必要があります。",
    "昨日のログによると、サーバーは午前三時に二回再起動しました。\n",
    "この関数は切り上げた価格を整数で返します。",
    "キャッシュのヒット率が下がった原因は、プロンプトの先頭が変わったことかもしれません。",
)
_russian: Final = _sentences(
    "Цель этого проекта состоит в том, чтобы у каждого запуска был строгий предел расходов. ",
    "Сначала прочитайте файл настроек, а потом запустите тесты. ",
    "Если на счёте не хватает средств, запрос будет отклонён с указанием причины. ",
    "Река течёт с гор мимо мельницы и впадает в море. ",
    "Нужно один раз записать, сколько на самом деле стоил каждый вызов. ",
    "Вчерашний журнал показывает, что сервер дважды перезапускался в три часа ночи.\n",
    "Эта функция возвращает целое число: цену, округлённую вверх. ",
    "Возможно, доля попаданий в кэш упала из-за того, что изменилось начало подсказки. ",
)


@dataclass(eq=False)
class Conversation:
    """An agent's, of which each step sends all that went before."""

    name: str
    results: Text
    draw: random.Random
    tokens: int = TOKENS
    sent: list[dict[str, Any]] = field(default_factory=list)

    def steps(self) -> Iterator[bytes]:
        """Bodies, each longer than the one before."""
        sample = self.results(self.draw, 20_000)
        wide = len(sample) / len(load_encoding("o200k_base").encode_ordinary(sample))  # characters a token
        share = self.tokens / STEPS * 0.85  # tokens a step
        tools = [self._tool(number) for number in range(14)]
        self.sent = [
            {"role": "system", "content": "You are a careful engineer.\n\n" + _prose(self.draw, int(share * 4))},
            {"role": "user", "content": self.results(self.draw, int(share * wide / 4))},
        ]
        for number in range(STEPS):
            yield orjson.dumps({"model": "gemma", "messages": self.sent, "tools": tools, "max_tokens": 1})
            called = f"call_{self.draw.getrandbits(96):024x}"
            arguments = json.dumps({"path": f"src/{self.draw.choice(_WORDS)}_{number}.py", "start": self.draw.randrange(900)})
            function = {"name": self.draw.choice(tools)["function"]["name"], "arguments": arguments}
            said = self.results(self.draw, int(share * wide * self.draw.uniform(0.02, 0.2)))
            # Half of the results are between 0.6 and 1.5 times the usual, one in a hundred above 4 times.
            chars = int(share * wide * 0.65 * self.draw.lognormvariate(0, 0.6))
            self.sent = [
                *self.sent,
                {"role": "assistant", "content": said, "tool_calls": [{"id": called, "type": "function", "function": function}]},
                {"role": "tool", "tool_call_id": called, "content": self.results(self.draw, chars)},
            ]
            if number % 9 == 8:
                self.sent.append({"role": "user", "content": "go on, please"})

    def _tool(self, number: int) -> Any:
        words = self.draw.choices(_WORDS, k=24)
        properties = {word: {"type": "string", "description": " ".join(words[5:12])} for word in words[:4]}
        parameters = {"type": "object", "properties": properties, "required": sorted(properties)}
        described = {"name": f"{words[0]}_{words[1]}_{number}", "description": " ".join(words), "parameters": parameters}
        return {"type": "function", "function": described}


def _conversations() -> Sequence[Conversation]:
    kinds: dict[str, Text] = {
        "Python": python,
        "JSON, minified": _json(None),
        "Markdown": _prose,
        "Chinese": _chinese,
        "Python tests": _tests,
        "logs": _log,
        "Russian": _russian,
        "JSON, indented": _json(2),
        "Japanese": _japanese,
        "YAML": _yaml,
        "code, JSON, prose and logs in turn": _mixed(python, _json(None), _prose, _log),
        "code, JSON, Chinese and Russian in turn": _mixed(python, _json(2), _chinese, _russian),
    }
    return [Conversation(name, text, random.Random(number)) for number, (name, text) in enumerate(kinds.items())]


# -- measuring ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Step:
    conversation: str
    number: int  # from 1
    basis: InputBasis
    estimated: int
    actual: int
    new: int  # tokens that the step before had not
    cpu_us: float  # of estimating it, its request being read already
    hashing_us: float  # of that, the hashes of all its messages


def _measured(provider: _Server) -> Iterator[_Step]:
    counter = TokenCounter(load_tokenizer)
    counter.count("ready", None)  # its encoding is loaded at the start of a gateway too
    learned = Learned(counter)
    for talk in _conversations():
        before = 0
        for number, body in enumerate(talk.steps(), start=1):
            call = chat.read(body, NO_HEADERS).call(_CALLER, Directives())
            gc.disable()  # the collector's turn would fall on any step
            began_s = time.thread_time()
            chain = Chain(call)
            hashed_s = time.thread_time()
            estimate = input_of(call, _MODEL, counter, learned.known(call, chain, _MODEL))
            ended_s = time.thread_time()
            gc.enable()
            actual = provider.counted(body)
            cpu_us, hashing_us = (ended_s - began_s) * 1e6, (hashed_s - began_s) * 1e6
            yield _Step(talk.name, number, estimate.basis, estimate.tokens, actual, actual - before, cpu_us, hashing_us)
            before = actual
            _settle(learned, call, estimate.tokens, estimate.basis, actual)
        assert provider.counted_whole(body) == actual
        print(f"{talk.name}: {actual} tokens", file=sys.stderr)


def _settle(learned: Learned, call: Call, estimated: int, basis: InputBasis, actual: int) -> None:
    plan = Plan(_MODEL.name, "local", 1, estimated, Amounts(0, 0), (), input_basis=basis)
    learned.settled(call, _MODEL, plan, Usage(UsageSource.PROVIDER, actual, output_tokens=1), None)


# -- telling --------------------------------------------------------------------------------------------------------------------


def _told(steps: Sequence[_Step]) -> str:
    later = [step for step in steps if step.number > 1]
    rows = [_row_of(name, list(of)) for name, of in itertools.groupby(later, lambda step: step.conversation)]
    rows.append(_row_of("**all**", later))
    firsts = [step.estimated / step.actual for step in steps if step.number == 1]
    lines = [
        "| tool results | steps | to tokens | median, % off | p99, % off | under the truth |",
        "|---|---|---|---|---|---|",
        *rows,
    ]
    cpu = [
        "| step | CPU µs of estimating it | of that, hashing all messages | the rest, for each new token |",
        "|---|---|---|---|",
        *(_cpu_row(later, number) for number in (10, 30, 60)),
    ]
    about = (
        f"{datetime.now(UTC):%Y-%m-%d}, `python -m tests.bench.conversation`: gemma-3-270m's chat template and tokenizer on llama.cpp, for which no "
        "tokenizer is bundled. One estimator serves the conversations in this order, and begins with the factor of 7/4. “% off” is "
        "|estimate ÷ actual − 1| from the second call of each on; the first calls, which nothing anchors, were estimated "
        f"{min(firsts):.2f} to {max(firsts):.2f} times too high, tools included."
    )
    beneath = (
        "Estimating a step counts its new messages, some 800 tokens, and hashes all of them: medians over the conversations and the "
        "five steps on either side."
    )
    return "\n\n".join((about, "\n".join(lines), beneath, "\n".join(cpu)))


def _row_of(name: str, steps: Sequence[_Step]) -> str:
    off = sorted(abs(step.estimated / step.actual - 1) * 100 for step in steps)
    under = sum(step.estimated < step.actual for step in steps)
    p99 = off[math.ceil(0.99 * len(off)) - 1]
    assert all(step.basis is InputBasis.ANCHORED for step in steps)
    return (
        f"| {name} | {len(steps)} | {max(step.actual for step in steps):,} | {statistics.median(off):.2f} | {p99:.2f} | {under} |"
    )


def _cpu_row(steps: Sequence[_Step], number: int) -> str:
    around = [step for step in steps if abs(step.number - number) <= 5]
    whole, hashing = (statistics.median(getattr(step, what) for step in around) for what in ("cpu_us", "hashing_us"))
    rest = statistics.median((step.cpu_us - step.hashing_us) / step.new for step in around)
    return f"| {number} | {whole:.0f} | {hashing:.0f} | {rest:.2f} |"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.conversation")
    parser.add_argument("--write", action="store_true", help="put the table into docs/benchmarks.md")
    options = parser.parse_args()
    report = table()
    print(report)
    if options.write:
        write(report, BEGIN, END)
    return 0


if __name__ == "__main__":
    sys.exit(main())
