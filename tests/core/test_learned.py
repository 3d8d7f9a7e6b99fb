"""An estimate from an earlier call is never under the truth where the tokenizer is public, and rests on nothing but that very prefix."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.bundled import load_encoding, load_tokenizer
from gateway.core import estimate
from gateway.core.anchors import Anchors, Chain
from gateway.core.catalog import Model, Rates
from gateway.core.estimate import Input
from gateway.core.learned import DOUBTED_CALLS, Learned
from gateway.core.measures import AUDIO_INPUT
from gateway.core.scopes import Amounts, Caller
from gateway.core.tokens import TokenCounter
from gateway.core.values import ADDRESS, ELSEWHERE, Attachment, Call, Image, InputBasis, Output, Part, Plan, Usage, UsageSource

PUBLIC = Model("gpt-4o", "openai", (Rates(1, 1, 1, 1),), 128_000, 16_384, encoding="o200k_base")
OTHER = replace(PUBLIC, name="gpt-4o-2024-08-06")
PRIVATE = replace(PUBLIC, name="claude", encoding=None)
TOOLS = Part("tools", ('[{"name": "read_file", "description": "reads a file"}]',), 40)
REPLY = Part("reply", (), 3)
COUNTER = TokenCounter(load_tokenizer)


def truth(text: str) -> int:
    return len(load_encoding("o200k_base").encode_ordinary(text))


def message(text: str, role: str = "user", **more: Any) -> Part:
    return Part(role, (role, text), 3, **more)


def call(*messages: Part, tools: Part | None = TOOLS, who: str = "k", tenant: str = "default", **more: Any) -> Call:
    parts = (*messages, *(() if tools is None else (tools,)), REPLY)
    return Call(Caller(tenant, who, "r", "r"), "chat", "gpt-4o", False, 1, None, parts, **more)


class World:
    """Calls that are estimated, answered by a provider, and learned from."""

    def __init__(self, model: Model = PUBLIC) -> None:
        self.model = model
        self.learned = Learned(TokenCounter(load_tokenizer))

    def estimated(self, asked: Call, model: Model | None = None) -> Input:
        model = model or self.model
        return estimate.input_of(asked, model, COUNTER, self.learned.known(asked, Chain(asked), model))

    def settle(
        self, asked: Call, read: int, written: int = 5, source: UsageSource = UsageSource.PROVIDER, answer: str | None = None
    ) -> Input:
        """What was estimated for it."""
        before = self.estimated(asked)
        plan = Plan(self.model.name, "openai", 100, before.tokens, Amounts(1, 1), (), input_basis=before.basis)
        self.learned.settled(asked, self.model, plan, Usage(source, read, output_tokens=written), answer)
        return before


HELLO, ANSWER, MORE = message("hello there"), message("what can I do?", "assistant"), message("read the file")


# -- anchored -----------------------------------------------------------------------------------------------------------------


def test_a_call_that_extends_a_settled_one_is_estimated_from_the_providers_own_count() -> None:
    world = World()
    first = world.settle(call(HELLO), 71)
    assert first.basis is InputBasis.COUNTED
    new = truth("assistantwhat can I do?") + truth("user") + truth("read the file") + 6
    assert world.estimated(call(HELLO, ANSWER, MORE)) == Input(71 + new, 71 + new, InputBasis.ANCHORED)
    world.settle(call(HELLO, ANSWER, MORE), 90)
    assert world.estimated(call(HELLO, ANSWER, MORE, HELLO)).tokens == 90 + truth("user") + truth("hello there") + 3


def test_the_same_call_again_is_estimated_as_what_it_took() -> None:
    world = World()
    world.settle(call(HELLO, MORE), 77)
    assert world.estimated(call(HELLO, MORE)).tokens == 77


def test_every_class_of_input_tokens_counts() -> None:
    world = World()
    plan = Plan("gpt-4o", "openai", 1, 1, Amounts(1, 1), ())
    usage = Usage(UsageSource.PROVIDER, 10, 20, 30, 5, ((AUDIO_INPUT, 7),))
    world.learned.settled(call(HELLO), PUBLIC, plan, usage, None)
    assert world.estimated(call(HELLO)).tokens == 67


DIFFERENT = {
    "another model": (call(HELLO, MORE), OTHER),
    "another caller": (call(HELLO, MORE, who="k2"), PUBLIC),
    "another tenant": (call(HELLO, MORE, tenant="t2"), PUBLIC),
    "another dialect": (replace(call(HELLO, MORE), dialect="responses"), PUBLIC),
    "other parameters": (call(HELLO, MORE, parameters=frozenset({"tool_choice"})), PUBLIC),
    "other tools": (call(HELLO, MORE, tools=replace(TOOLS, texts=("[]",))), PUBLIC),
    "no tools": (call(HELLO, MORE, tools=None), PUBLIC),
    "an edited beginning": (call(message("hello, there"), MORE), PUBLIC),
    "another frame": (call(replace(HELLO, overhead_tokens=4), MORE), PUBLIC),
    "another order": (call(MORE, HELLO), PUBLIC),
    "a beginning left out": (call(MORE), PUBLIC),
    "another image": (call(replace(HELLO, images=(Image("low"),)), MORE), PUBLIC),
    "a file": (call(replace(HELLO, attachments=(Attachment("audio", 30),)), MORE), PUBLIC),
}


@pytest.mark.parametrize("different", DIFFERENT)
def test_nothing_but_the_same_prefix_of_the_same_caller_at_the_same_model_counts(different: str) -> None:
    asked, model = DIFFERENT[different]
    world = World()
    world.settle(call(HELLO), 71)
    assert world.estimated(asked, model) == estimate.input_of(asked, model, COUNTER)
    assert world.estimated(call(HELLO, MORE)).basis is InputBasis.ANCHORED


def test_after_an_edit_in_the_middle_what_stands_before_it_still_counts() -> None:
    world = World()
    world.settle(call(HELLO), 71)
    world.settle(call(HELLO, ANSWER, MORE), 90)
    edited = message("no, what can you do?", "assistant")
    new = COUNTER.count_parts((edited, MORE, MORE), "o200k_base")
    assert world.estimated(call(HELLO, edited, MORE, MORE)).tokens == 71 + new


def test_an_image_in_the_prefix_is_the_providers_to_count_and_a_new_one_is_bounded_by_its_rule() -> None:
    world = World()
    shown = replace(HELLO, images=(Image("high"),))
    world.settle(call(shown), 300)
    assert world.estimated(call(shown, MORE)).tokens == 300 + COUNTER.count_parts((MORE,), "o200k_base")
    assert world.estimated(call(shown, shown)).tokens == 300 + COUNTER.count_parts((HELLO,), "o200k_base") + 85 + 8 * 170


@pytest.mark.parametrize("source", [UsageSource.COUNTED, UsageSource.HELD])
def test_only_the_providers_own_count_is_learned(source: UsageSource) -> None:
    world = World()
    world.settle(call(HELLO), 71, source=source)
    assert world.estimated(call(HELLO)).basis is InputBasis.COUNTED


def test_a_count_too_small_for_its_text_is_not_learned() -> None:
    world = World()
    long = call(message("word " * 3_000))
    world.settle(long, 900)  # a provider that truncates, or leaves out what its cache had
    assert world.estimated(long).tokens > 3_000


def test_an_anchored_estimate_that_proved_low_is_doubted_for_a_thousand_calls() -> None:
    world = World()
    exact = world.estimated(call(HELLO, MORE)).tokens
    world.settle(call(HELLO), 40)
    assert world.estimated(call(HELLO, MORE)).tokens < exact
    assert world.settle(call(HELLO, MORE), exact).tokens < exact  # the one overrun
    for number in range(DOUBTED_CALLS):
        asked = call(HELLO, message(f"number {number}"))
        counted = estimate.input_of(asked, PUBLIC, COUNTER).tokens
        assert world.settle(asked, counted).tokens >= counted
    asked = call(HELLO, message("one more"))
    assert world.estimated(asked).tokens < estimate.input_of(asked, PUBLIC, COUNTER).tokens


words = st.text(st.sampled_from("abc dé東 1230.,\n{}\"'"), max_size=60)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.lists(st.tuples(words, st.sampled_from(["user", "assistant", "tool"]), st.integers(0, 8)), min_size=1, max_size=3),
        min_size=2,
        max_size=6,
    ),
    st.integers(0, 900),
    st.lists(st.integers(0, 5), max_size=6),
)
def test_with_a_public_tokenizer_no_estimate_of_a_conversation_is_under_what_its_provider_counts(
    turns: list[list[tuple[str, str, int]]], hidden: int, edits: list[int]
) -> None:
    """The provider counts by the published rule, shows less than our bound of tools and of a tool call's frame, and puts a prompt of its
    own first: only that is not known before the first call."""
    world, messages = World(), list[tuple[Part, int]]()

    def counted() -> int:
        return hidden + 3 + truth(TOOLS.texts[0]) // 2 + sum(tokens for _, tokens in messages)

    for number, turn in enumerate(turns):
        for text, role, spare in turn:
            exact = truth(role) + truth(text) + 3
            messages.append((Part(role, (role, text), 3 + spare), exact))
        if number < len(edits) and edits[number] < len(messages):  # the client takes something back
            del messages[edits[number] :]
            messages.append((message("instead"), truth("user") + truth("instead") + 3))
        asked = call(*(part for part, _ in messages))
        read = counted()
        estimated = world.settle(asked, read)
        if estimated.basis is InputBasis.ANCHORED or hidden == 0:
            assert estimated.tokens >= read
            assert estimated.least >= read


# -- without a public tokenizer -----------------------------------------------------------------------------------------------


def test_a_conversation_teaches_the_factor_by_what_it_grew() -> None:
    world = World(PRIVATE)
    messages = [message("the river runs past the mill " * 60)]
    read = 900
    world.settle(call(*messages), read)
    for number in range(6):
        messages.append(message(f"and {'so on and so forth for ever ' * 60} {number}"))
        new = COUNTER.count_parts(messages[-1:], "cl100k_base")
        estimated = world.settle(call(*messages), read + new)
        assert estimated.basis is InputBasis.ANCHORED
        assert read + new <= estimated.tokens <= read + new * 175 // 100 + 10
        read += new
    assert estimated.tokens <= read + 0.2 * new


def test_what_a_provider_shows_of_tools_is_not_taken_for_its_tokenizer() -> None:
    world = World(PRIVATE)
    for number in range(9):
        world.settle(call(message(f"{number} " + "the river runs past the mill " * 60)), 700)
    fresh = message("another conversation " + "the river runs past the mill " * 60)
    plain, tooled = call(fresh, tools=None), call(fresh)
    assert world.estimated(plain).tokens == estimate.input_of(plain, PRIVATE, COUNTER).tokens
    assert world.estimated(tooled).tokens == estimate.input_of(tooled, PRIVATE, COUNTER).tokens


def test_a_conversation_without_tools_teaches_from_its_first_call_on() -> None:
    world = World(PRIVATE)
    for number in range(9):
        text = message(f"{number} " + "the river runs past the mill " * 60)
        world.settle(call(text, tools=None), COUNTER.count_parts((text,), "cl100k_base"))
    fresh = message("another conversation " + "the river runs past the mill " * 60)
    reference = COUNTER.count_parts((fresh,), "cl100k_base")
    assert reference <= world.estimated(call(fresh, tools=None)).tokens <= reference * 1.2 + 10


def test_a_leap_that_no_tokenizer_makes_casts_doubt_on_the_anchors() -> None:
    world = World(PRIVATE)
    world.settle(call(HELLO, tools=None), 20)
    world.settle(call(HELLO, message("word " * 200), tools=None), 5_000)
    asked = call(HELLO, MORE, tools=None)
    assert world.estimated(asked).tokens >= estimate.input_of(asked, PRIVATE, COUNTER).tokens
    assert world.learned.known(asked, Chain(asked), PRIVATE).doubted


# -- by id --------------------------------------------------------------------------------------------------------------------


def test_what_continues_an_answer_is_estimated_from_all_that_was_read_and_written() -> None:
    """And 4 tokens for what stands around an answer once it is input."""
    world = World()
    world.settle(call(HELLO), 71, written=400, answer="resp_1")
    new = COUNTER.count_parts((MORE,), "o200k_base")
    assert world.estimated(call(MORE, continues="resp_1")) == Input(475 + new, new, InputBasis.ANCHORED)
    other_tools = call(MORE, continues="resp_1", tools=replace(TOOLS, texts=("[]",)))
    assert world.estimated(other_tools).tokens == 475 + COUNTER.count_parts(other_tools.parts, "o200k_base")
    world.settle(call(MORE, continues="resp_1"), 480, written=20, answer="resp_2")
    assert world.estimated(call(MORE, continues="resp_2")).tokens == 504 + new
    assert world.estimated(call(MORE, continues="resp_1")).tokens == 475 + new  # a branch


@pytest.mark.parametrize("asked", [
    call(MORE, continues="resp_9"), call(MORE, continues="resp_1", who="k2"), call(MORE, continues="resp_1", tenant="t2"),
])  # fmt: skip
@pytest.mark.parametrize("model", [PUBLIC, PRIVATE])
def test_what_continues_an_answer_that_nobody_here_saw_takes_all_that_the_model_reads(asked: Call, model: Model) -> None:
    world = World(model)
    world.settle(call(HELLO), 71, answer="resp_1")
    limited = replace(model, max_input=50_000)
    estimated = world.estimated(asked, limited)
    assert (estimated.tokens, estimated.basis) == (50_000, InputBasis.BOUNDED)
    assert estimated.least < 100


@pytest.mark.parametrize(
    ("seen", "asked"),
    [
        ({"attachments": (replace(ELSEWHERE, mark=1),)}, {"attachments": (replace(ELSEWHERE, mark=2),)}),
        ({"attachments": (ADDRESS,)}, {"attachments": (ADDRESS,)}),
        ({"images": (Image("auto", mark=1),)}, {"images": (Image("auto", mark=2),)}),
        ({"mark": 1}, {"mark": 2}),
    ],
)
def test_what_is_not_surely_the_same_is_no_anchor_however_alike_it_looks(seen: dict[str, Any], asked: dict[str, Any]) -> None:
    world = World()
    world.settle(call(HELLO), 71)
    world.settle(call(HELLO, message("look", **seen)), 90)
    other = call(HELLO, message("look", **asked), MORE)
    assert Chain(other).messages[1] == Chain(call(HELLO, message("look", **seen))).messages[1]
    known = world.learned.known(other, Chain(other), PUBLIC)
    assert (known.before, len(known.new)) == (71, 2)


def test_the_parts_of_a_call_that_continues_another_are_nobodys_prefix() -> None:
    world = World()
    world.settle(call(HELLO), 71, answer="resp_1")
    world.settle(call(MORE, continues="resp_1"), 480)
    assert world.estimated(call(MORE)) == estimate.input_of(call(MORE), PUBLIC, COUNTER)


def test_a_call_whose_tools_the_provider_runs_takes_whole_contexts_and_teaches_no_prefix() -> None:
    world = World()
    searching = call(HELLO, readings=3)
    assert world.estimated(searching).tokens == 3 * PUBLIC.context
    world.settle(searching, 40_000, answer="resp_1")
    assert world.estimated(call(HELLO)).basis is InputBasis.COUNTED
    assert world.estimated(call(HELLO, continues="resp_1")).tokens > 40_000


def test_what_is_no_conversation_leaves_no_prefix() -> None:
    world = World()
    world.settle(call(HELLO, output=Output.NONE), 71)
    assert world.estimated(call(HELLO, output=Output.NONE)).basis is InputBasis.COUNTED


# -- memory -------------------------------------------------------------------------------------------------------------------


def test_memory_is_bounded_and_holds_no_text() -> None:
    anchors = Anchors(entries=100)
    for number in range(2_000):
        asked = call(message(f"secret {number}"))
        anchors.settled(Chain(asked), "m", 70, 9)
        anchors.answered(asked, "m", f"resp_{number}", 80)
    assert len(anchors) <= 200
    held = repr([(each._young, each._old) for each in (anchors._prefixes, anchors._answers)])
    assert "secret" not in held
    assert "resp_" not in held
