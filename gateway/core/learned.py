"""What one process has learned from settled calls that makes its next estimates better. Only a hint: without it they are higher.

Two things: the provider's own count of a conversation's start (`anchors`), and what a tokenizer that is not public makes of text
(`factors`). Where an anchored estimate proves too low although no tokenizer can be at fault, the anchors of that model and tenant are
doubted for the next 1,000 calls: they may then lift an estimate, not lower it.

It is told on the event loop's thread, and may be asked on any: what another thread is just being told shows or does not.
"""

from typing import Final

from gateway.core.anchors import Anchors, Chain, settings_of
from gateway.core.catalog import Model
from gateway.core.estimate import Known
from gateway.core.factors import UNKNOWN, Factors
from gateway.core.recent import Recent
from gateway.core.tokens import CHAT_MESSAGE_TOKENS, REFERENCE, TokenCounter
from gateway.core.values import Call, InputBasis, Output, Plan, Usage, UsageSource

DOUBTED_CALLS: Final = 1_000
# A provider that counts a smaller part of the text than this counts something else.
_PLAUSIBLE: Final = 3
# What stands around an answer once it is input: its role, and what the format adds to a message.
_AS_INPUT: Final = CHAT_MESSAGE_TOKENS + 1
# What is learned is not worth more time than this, on the event loop: messages to look up, and text whose count was forgotten since.
_MESSAGES_AT_MOST: Final = 4_096
_CHARS_AT_MOST: Final = 16_384


class Learned:
    """Asked at each decision, told at each settlement."""

    def __init__(self, counter: TokenCounter) -> None:
        self._counter = counter
        self.anchors = Anchors()
        self.factors = Factors()
        self._doubted: Recent[tuple[str, str], int] = Recent(4_096)  # (tenant, model) → calls to come

    def known(self, call: Call, chain: Chain, model: Model) -> Known:
        """What helps to estimate this call at this model."""
        tenant = call.caller.tenant
        factor = UNKNOWN if model.encoding is not None else self.factors.of(tenant, model.name)
        if call.continues is not None:
            answer = self.anchors.answer(call, model.name, call.continues)
            if answer is None:
                return Known(call.parts, factor=factor)
            same = answer.settings == settings_of(call) and call.readings == 1
            return Known(chain.messages if same else call.parts, answer.tokens, self._doubts(tenant, model), factor)
        anchor = self.anchors.longest(chain, model.name) if call.readings == 1 else None
        if anchor is None:
            return Known(call.parts, factor=factor)
        return Known(chain.messages[anchor.messages :], anchor.tokens, self._doubts(tenant, model), factor)

    def _doubts(self, tenant: str, model: Model) -> bool:
        return bool(self._doubted.get((tenant, model.name)))

    def settled(
        self, call: Call, model: Model, plan: Plan, usage: Usage, answer_id: str | None, chain: Chain | None = None
    ) -> None:
        """Only the provider's own word teaches. `chain`: the call's, if there is one already."""
        read = usage.total_input_tokens
        if usage.source is not UsageSource.PROVIDER or read == 0:
            return
        key = (call.caller.tenant, model.name)
        doubted = self._doubted.get(key)
        if doubted:
            self._doubted.put(key, doubted - 1)
        if answer_id is not None:
            self._answered(call, model, usage, answer_id)
        if call.continues is not None or call.readings > 1:  # its parts are not all that was read
            return
        if len(call.parts) > _MESSAGES_AT_MOST:
            return
        chain = chain or Chain(call)
        anchor = self.anchors.longest(chain, model.name)
        new = chain.messages if anchor is None else chain.messages[anchor.messages :]
        tally = self._counter.look_up(new, model.encoding or REFERENCE)
        if tally.pending_chars > _CHARS_AT_MOST:
            return
        text_tokens = self._counter.finish(tally)
        whole = text_tokens + (0 if anchor is None else anchor.text_tokens)
        if read * _PLAUSIBLE < whole:
            return
        if call.output is Output.CAPPED:  # embeddings, images: nobody talks on from there
            self.anchors.settled(chain, model.name, read, whole)
        plausible = True
        if model.encoding is None and not any(part.images or part.attachments for part in new):
            # The first call of a conversation teaches only where it has nothing but messages: who knows what else a provider shows.
            plain = not any(part.texts for part in chain.settings)
            since = read if anchor is None else read - anchor.tokens
            if since > 0 and new and (anchor is not None or plain):
                plausible = self.factors.learning(*key).learn(
                    since, new, lambda parts: self._counter.count_parts(parts, REFERENCE)
                )
        if plan.input_basis is InputBasis.ANCHORED and read > plan.input_tokens and (model.encoding is not None or not plausible):
            self._doubted.put(key, DOUBTED_CALLS)

    def _answered(self, call: Call, model: Model, usage: Usage, answer_id: str) -> None:
        """What a later call finds before its own input: all that was read, and the answer, with reasoning that may be kept."""
        tokens = usage.total_input_tokens + usage.total_output_tokens + _AS_INPUT
        self.anchors.answered(call, model.name, answer_id, tokens)
