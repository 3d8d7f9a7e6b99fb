"""Who is asking: the key says it first, headers only where it does not; and nobody's key goes where it does not belong."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import orjson
import pytest
from multidict import CIMultiDict, CIMultiDictProxy

from gateway.core.catalog import Catalog
from gateway.core.grants import Grant, Grants
from gateway.core.policy import Policy, RunsPolicy, Source, Untagged
from gateway.core.profiles import OnDisconnect, Profile
from gateway.core.scopes import Caller, Unit
from gateway.identity import ANONYMOUS, DEFAULT_TENANT, VALUES_PER_DIMENSION, Identity, Principal
from gateway.settings import Provider, Settings, StaticKey
from gateway.wire import chat
from gateway.wire.exchange import Inbound
from gateway.wire.problem import Refused
from gateway.wire.request import Request
from tests.support.clock import NOW_MS
from tests.support.rulebooks import policy

ADMIN = "admin-token-0123456789"
KEY = "sk-caller-4f1d"
PENSTOCK_KEY = "pk-house"
PROFILE = Profile("generic", "max_tokens", stream_options=True, on_disconnect=OnDisconnect.DRAIN)


def provider(name: str, scheme: Any = "authorization", **facts: Any) -> Provider:
    return Provider(name, f"https://{name}.example/v1", scheme, PROFILE, **facts)


OPENAI = provider("openai", accepts_caller_keys=True, api_key_env="OPENAI_API_KEY")
ANTHROPIC = provider("anthropic", "x-api-key", accepts_caller_keys=True)
HOUSE = provider("house", api_key_env="HOUSE_KEY", api_key="house-secret")
UNSET = provider("unset", api_key_env="NOT_SET")
KEYLESS = provider("local")


def identity(
    tmp_path: Any,
    *,
    keys: tuple[StaticKey, ...] = (),
    providers: tuple[Provider, ...] | None = None,
    registry: Any = None,
    **facts: Any,
) -> Identity:
    settings = Settings(
        "127.0.0.1",
        8080,
        tmp_path / "policy.yaml",
        tmp_path / "ledger.db",
        tmp_path,
        {each.name: each for each in providers or (OPENAI, ANTHROPIC, HOUSE, UNSET, KEYLESS)},
        Catalog("prices-1", {}),
        admin_token=ADMIN,
        keys=keys,
        auth="keys" if keys else "passthrough",
        **facts,
    )
    issued = iter(range(1_000_000))
    return Identity(settings, b"install-secret", lambda: f"run_{next(issued)}", registry)


@pytest.fixture
def passthrough(tmp_path: Any) -> Identity:
    return identity(tmp_path)


def headers(*pairs: tuple[str, str], key: str | None = KEY) -> CIMultiDictProxy[str]:
    credential = [("Authorization", f"Bearer {key}")] if key is not None else []
    return CIMultiDictProxy(CIMultiDict([*credential, *pairs]))


def inbound(*pairs: tuple[str, str], path_run: str | None = None) -> Inbound:
    return Inbound("POST", "/v1/chat/completions", "", path_run, headers(*pairs), b"", "req_1")


def caller_of(
    who: Identity,
    *pairs: tuple[str, str],
    path_run: str | None = None,
    rules: Policy | None = None,
    principal: Principal | None = None,
    body: Mapping[str, Any] = {"user": "body-user"},
    continues: str | None = None,
) -> Caller:
    asked = inbound(*pairs, path_run=path_run)
    return who.caller(principal or who.principal(asked.headers), asked, request(continues, **body), rules or policy(), NOW_MS)


def request(continues: str | None = None, **body: Any) -> Request:
    """A chat request with these fields beside what every one has."""
    said = {"model": "m", "messages": [{"role": "user", "content": "hello"}], **body}
    return replace(chat.read(orjson.dumps(said), headers()), continues=continues)


def refusal(act: Any, *args: Any, **more: Any) -> Any:
    with pytest.raises(Refused) as refused:
        act(*args, **more)
    return refused.value.problem


# -- passthrough ------------------------------------------------------------------------------------------------------------------


def test_a_callers_key_becomes_an_id_that_does_not_show_it(passthrough: Identity) -> None:
    principal = passthrough.principal(headers())
    assert (principal.tenant, principal.admin, principal.bound) == ("default", False, ())
    assert principal.key.startswith("key_")
    assert KEY not in repr(principal)
    assert KEY not in principal.key
    assert passthrough.principal(headers()).key == principal.key
    assert passthrough.principal(headers(key="sk-other")).key != principal.key


def test_the_id_differs_from_install_to_install(tmp_path: Any, passthrough: Identity) -> None:
    other = identity(tmp_path)
    other._secret = b"another"
    assert other.principal(headers()).key != passthrough.principal(headers()).key


@pytest.mark.parametrize("value", ["Bearer", "Bearer   ", ""])
def test_an_empty_key_is_no_key(passthrough: Identity, value: str) -> None:
    principal = passthrough.principal(headers(("Authorization", value), key=None))
    assert (principal.key, principal.credential) == (ANONYMOUS, None)


@pytest.mark.parametrize("key", ["sk-ünï", "sk-\udcff", "sk-\x00", "sk-\ta"], ids=ascii)
def test_a_key_that_no_provider_gives_out_is_refused_rather_than_a_crash(passthrough: Identity, key: str) -> None:
    assert refusal(passthrough.principal, headers(key=key)).code == "invalid_key"


def test_two_credentials_of_one_scheme_are_ambiguous(passthrough: Identity) -> None:
    assert refusal(passthrough.principal, headers(("Authorization", "Bearer sk-2"))).code == "ambiguous_request"


# -- where a key may go -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        (
            [("Authorization", f"Bearer {KEY}")],
            {"openai": ("authorization", f"Bearer {KEY}"), "house": ("authorization", "Bearer house-secret"), "local": None},
        ),
        (
            [("x-api-key", KEY)],
            {"anthropic": ("x-api-key", KEY), "house": ("authorization", "Bearer house-secret"), "local": None},
        ),
        ([], {"house": ("authorization", "Bearer house-secret"), "local": None}),
        (
            [("x-api-key", "sk-ant"), ("Authorization", f"Bearer {KEY}")],
            {"openai": ("authorization", f"Bearer {KEY}"), "house": ("authorization", "Bearer house-secret"), "local": None},
        ),
        (
            [("Authorization", f"Bearer {KEY}"), ("anthropic-version", "2026-10-21")],
            {"anthropic": ("authorization", f"Bearer {KEY}"), "house": ("authorization", "Bearer house-secret"), "local": None},
        ),
    ],
    ids=["authorization", "x-api-key", "none", "both: the one that says who it is", "Anthropic's, where its newer SDKs put it"],
)
def test_a_callers_key_goes_to_the_provider_that_takes_its_scheme_and_nowhere_else(passthrough, pairs, expected) -> None:
    principal = passthrough.principal(headers(*pairs, key=None))
    assert passthrough.served(principal) == expected.keys()
    sent = {each.name: passthrough.credential_for(principal, each) for each in (OPENAI, ANTHROPIC, HOUSE, UNSET, KEYLESS)}
    assert sent == {"openai": None, "anthropic": None, "unset": None} | expected


def test_where_no_provider_takes_the_keys_of_anthropic_its_clients_key_is_like_any_other(tmp_path: Any) -> None:
    router = provider("openrouter", accepts_caller_keys=True)
    who = identity(tmp_path, providers=(router,))
    principal = who.principal(headers(("anthropic-version", "2026-10-21")))
    assert who.credential_for(principal, router) == ("authorization", f"Bearer {KEY}")


def test_the_gateways_own_key_stands_in_for_callers_without_one(tmp_path: Any) -> None:
    both = provider("openai", accepts_caller_keys=True, api_key_env="K", api_key="gateway-secret")
    who = identity(tmp_path)
    assert who.credential_for(Principal("default", ANONYMOUS), both) == ("authorization", "Bearer gateway-secret")
    assert who.credential_for(who.principal(headers()), both) == ("authorization", f"Bearer {KEY}")


# -- auth: keys -------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def keyed(tmp_path: Any) -> Identity:
    digest = hashlib.sha256(PENSTOCK_KEY.encode()).hexdigest()
    return identity(tmp_path, keys=(StaticKey("ci", digest, "acme", (("agent", "bound-agent"), ("team", "research"))),))


@pytest.mark.parametrize(
    "pair", [("Authorization", f"Bearer {PENSTOCK_KEY}"), ("x-api-key", PENSTOCK_KEY)], ids=lambda pair: pair[0]
)
def test_a_listed_key_says_who_the_caller_is(keyed: Identity, pair: tuple[str, str]) -> None:
    principal = keyed.principal(headers(pair, key=None))
    assert (principal.tenant, principal.key) == ("acme", "ci")
    assert principal.bound == (("agent", "bound-agent"), ("team", "research"))
    assert principal.credential is None


@pytest.mark.parametrize("key", [None, "", "pk-other", PENSTOCK_KEY.upper(), PENSTOCK_KEY[:-1]])
def test_any_other_key_is_refused(keyed: Identity, key: str | None) -> None:
    said = refusal(keyed.principal, headers(key=key))
    assert (said.code, said.status) == ("invalid_key", 401)


def test_with_penstock_keys_no_callers_credential_is_ever_forwarded(keyed: Identity) -> None:
    principal = keyed.principal(headers(key=PENSTOCK_KEY))
    assert keyed.served(principal) == {"house", "local"}
    assert keyed.credential_for(principal, OPENAI) is None
    assert keyed.credential_for(principal, HOUSE) == ("authorization", "Bearer house-secret")


def test_no_header_overrides_what_a_key_is_bound_to(keyed: Identity) -> None:
    asked = inbound(("X-Agent-Id", "somebody-else"), ("X-Team-Id", "sales"), ("X-Feature", "search"))
    caller = keyed.caller(keyed.principal(headers(key=PENSTOCK_KEY)), asked, None, policy(), NOW_MS)
    assert caller.dimensions == (("agent", "bound-agent"), ("feature", "search"), ("team", "research"))


# -- the admin --------------------------------------------------------------------------------------------------------------------


def test_the_admin_token_is_the_admin(passthrough: Identity, keyed: Identity) -> None:
    for who in (passthrough, keyed):
        principal = who.principal(headers(key=ADMIN))
        assert (principal.admin, principal.key, principal.credential) == (True, "admin", None)


def test_the_admin_token_opens_no_model_route(passthrough: Identity, keyed: Identity) -> None:
    for who in (passthrough, keyed):
        assert refusal(who.principal, headers(key=ADMIN), model_route=True).code == "invalid_key"
        assert refusal(who.principal, headers(("x-api-key", ADMIN), key=None), model_route=True).code == "invalid_key"


def test_without_an_admin_token_nobody_is_the_admin(tmp_path: Any) -> None:
    who = identity(tmp_path)
    who._admin = None
    assert not who.principal(headers(key=ADMIN)).admin
    assert not who.principal(headers(key=None)).admin


# -- runs -------------------------------------------------------------------------------------------------------------------------

PATH, HEADER = Source("path"), Source("header", "x-run-id")


class _Granted:
    """A registry with these grants."""

    def __init__(self, *grants: Grant) -> None:
        self.grants = Grants(grants)


def test_a_value_that_a_grant_is_for_is_never_one_of_too_many(tmp_path: Any) -> None:
    """Else the grant would stop nobody who had many runs before."""
    grant = Grant(DEFAULT_TENANT, (("tenant", DEFAULT_TENANT), ("workflow", "nightly")), Unit.USD)
    here = identity(tmp_path, registry=_Granted(grant))

    def workflow(name: str) -> str:
        return here.acting(Principal(DEFAULT_TENANT, "k"), name, {"workflow": name}, RunsPolicy()).value("workflow")

    for number in range(VALUES_PER_DIMENSION):
        assert workflow(f"w{number}") == f"w{number}"
    assert (workflow("other"), workflow("Nightly"), workflow("w1")) == ("-", "Nightly", "w1")


def runs_from(*sources: Source) -> Policy:
    return policy(runs=RunsPolicy(id_from=sources))


HEADER_FIRST = runs_from(HEADER, PATH)
HEADER_ONLY = runs_from(HEADER)
PATH_ONLY = runs_from(PATH)


@pytest.mark.parametrize(
    ("path_run", "header", "rules", "run", "ignored"),
    [
        ("p", None, policy(), "p", None),
        (None, "h", policy(), "h", None),
        ("p", "h", policy(), "p", "h"),
        ("p", "p", policy(), "p", None),
        ("p", "not a run id\n", policy(), "p", "not a run id\\n"),
        ("p", "h", HEADER_FIRST, "h", "p"),
        ("p", None, HEADER_FIRST, "p", None),
        ("p", "h", HEADER_ONLY, "h", "p"),
        ("p", "h", PATH_ONLY, "p", None),
        ("p", "x" * 500, policy(), "p", "x" * 128),
    ],
)
def test_the_first_source_of_a_run_id_wins_and_one_that_disagrees_is_told(
    passthrough: Identity, path_run: str | None, header: str | None, rules: Policy, run: str, ignored: str | None
) -> None:
    pairs = [] if header is None else [("X-Run-Id", header)]
    caller = caller_of(passthrough, *pairs, path_run=path_run, rules=rules)
    assert (caller.run, caller.run_scope, caller.run_issued, caller.run_ignored) == (run, run, False, ignored)


@pytest.mark.parametrize("run", ["", "a/b", "a%20b", "ü", "x" * 129, "a b", "a\n"], ids=ascii)
def test_a_run_id_with_other_characters_is_refused(passthrough: Identity, run: str) -> None:
    assert refusal(caller_of, passthrough, path_run=run).code == "run_id_invalid"
    assert refusal(caller_of, passthrough, ("X-Run-Id", run)).code == "run_id_invalid"


def test_two_run_id_headers_are_refused_even_if_they_agree_or_the_path_says_it(passthrough: Identity) -> None:
    twice = (("X-Run-Id", "r1"), ("x-run-id", "r1"))
    said = refusal(caller_of, passthrough, *twice)
    assert (said.code, said.status) == ("ambiguous_request", 400)
    assert refusal(caller_of, passthrough, *twice, path_run="r1").code == "ambiguous_request"


def test_calls_without_a_run_share_an_account_per_key_and_day_that_no_run_id_can_name(passthrough: Identity) -> None:
    first, second = caller_of(passthrough), caller_of(passthrough)
    assert first.run != second.run
    assert first.run_issued
    assert first.run_scope == second.run_scope == f"untagged/{first.key}/2026-11-30"
    assert refusal(caller_of, passthrough, ("X-Run-Id", first.run_scope)).code == "run_id_invalid"


def test_calls_without_a_run_may_have_an_account_each(passthrough: Identity) -> None:
    caller = caller_of(passthrough, rules=policy(runs=RunsPolicy(untagged=Untagged.PER_CALL)))
    assert caller.run_issued
    assert caller.run_scope == caller.run


def test_calls_without_a_run_may_be_refused_with_the_way_out(passthrough: Identity) -> None:
    said = refusal(caller_of, passthrough, rules=policy(runs=RunsPolicy(untagged=Untagged.REFUSE)))
    assert said.code == "run_id_required"
    assert "X-Run-Id" in said.detail


# -- runs of clients that can't be changed ------------------------------------------------------------------------------------------

UUID = "257b8480-c038-4979-a482-146f6e4a9631"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = ("traceparent", f"00-{TRACE}-00f067aa0ba902b7-01")
CLAUDE = {"metadata": {"user_id": f"user_ab12_account__session_{UUID}"}}
FOREIGN = (
    Source("header", "session-id"),
    Source("header", "x-session-id"),
    Source("claude-code"),
    Source("body", "prompt_cache_key"),
    Source("traceparent"),
)
ALL = runs_from(PATH, HEADER, *FOREIGN, Source("conversation"))


@pytest.mark.parametrize(
    ("pairs", "body", "run"),
    [
        ([("Session-Id", UUID)], {}, UUID),
        ([("X-Session-Id", "ses_1")], CLAUDE, "ses_1"),
        ([TRACEPARENT], {**CLAUDE, "prompt_cache_key": "k"}, UUID),
        ([TRACEPARENT], {"prompt_cache_key": "k"}, "k"),
        ([TRACEPARENT], {"metadata": {"user_id": "somebody"}}, TRACE),
        ([("X-Run-Id", "r1"), ("Session-Id", UUID)], CLAUDE, "r1"),
        ([("Session-Id", ""), TRACEPARENT], {"prompt_cache_key": 7}, TRACE),
    ],
)
def test_a_clients_own_session_is_its_run_in_the_order_that_the_policy_names(
    passthrough: Identity, pairs: Any, body: Any, run: str
) -> None:
    caller = caller_of(passthrough, *pairs, rules=ALL, body=body)
    assert (caller.run, caller.run_scope, caller.run_issued, caller.run_ignored) == (run, run, False, None)


def test_a_session_that_is_no_run_id_is_mapped_to_the_same_one_each_time(passthrough: Identity) -> None:
    rules = runs_from(Source("header", "session-id"))
    [first, again, other] = [caller_of(passthrough, ("session-id", name), rules=rules).run for name in ("a b", "a b", "a c")]
    assert first == again != other
    assert first.startswith("h_")
    assert caller_of(passthrough, ("X-Run-Id", first)).run == first


def test_a_session_beside_a_named_run_is_no_disagreement_but_a_second_named_run_is(passthrough: Identity) -> None:
    assert caller_of(passthrough, ("Session-Id", UUID), path_run="p", rules=ALL).run_ignored is None
    late = runs_from(Source("header", "session-id"), HEADER)
    caller = caller_of(passthrough, ("Session-Id", UUID), ("X-Run-Id", "r1"), rules=late)
    assert (caller.run, caller.run_ignored) == (UUID, "r1")


def test_a_session_header_that_is_sent_twice_could_be_read_in_two_ways(passthrough: Identity) -> None:
    twice = [("session-id", "a"), ("session-id", "b")]
    assert refusal(caller_of, passthrough, *twice, rules=ALL).code == "ambiguous_request"


def test_without_the_policys_word_no_session_is_looked_at(passthrough: Identity) -> None:
    pairs = [("Session-Id", UUID), TRACEPARENT]
    assert caller_of(passthrough, *pairs, body={**CLAUDE, "prompt_cache_key": "k"}).run_issued


BY_CONVERSATION = runs_from(PATH, Source("conversation"))


def said(*words: str) -> Mapping[str, Any]:
    """A conversation, the user first."""
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": text} for i, text in enumerate(words)]}


def test_calls_that_extend_one_another_are_one_run_and_others_are_not(passthrough: Identity) -> None:
    def run(body: Any, key: str = "key_a") -> str:
        caller = caller_of(passthrough, rules=BY_CONVERSATION, body=body, principal=Principal("default", key))
        assert not caller.run_issued
        return caller.run

    first = run(said("mend the mill"))
    assert first.startswith("c_")
    assert run(said("mend the mill", "done", "and the wheel")) == first
    assert run(said("mend the wheel")) != first
    assert run(said("mend the mill"), key="key_b") != first


def test_a_conversation_is_known_again_by_any_worker_and_after_a_restart(tmp_path: Any, passthrough: Identity) -> None:
    principal = Principal("default", "ci")
    runs = {
        caller_of(who, rules=BY_CONVERSATION, body=said("mend the mill"), principal=principal).run
        for who in (passthrough, identity(tmp_path))
    }
    assert len(runs) == 1


def test_an_answer_that_is_continued_is_of_the_run_that_it_was_given_to(passthrough: Identity) -> None:
    first = caller_of(passthrough, rules=BY_CONVERSATION)
    passthrough.answered(first, "resp_1")
    assert caller_of(passthrough, rules=BY_CONVERSATION, body=said("go on"), continues="resp_1").run == first.run
    assert caller_of(passthrough, rules=BY_CONVERSATION, body=said("go on"), continues="resp_2").run_issued
    other = Principal("default", "another")
    assert caller_of(passthrough, rules=BY_CONVERSATION, body=said("go on"), continues="resp_1", principal=other).run_issued


def test_a_conversation_that_the_provider_keeps_is_a_run_by_its_own_id(passthrough: Identity) -> None:
    assert caller_of(passthrough, rules=BY_CONVERSATION, continues="conv_1").run == "conv_1"


def test_answers_without_end_are_forgotten(passthrough: Identity) -> None:
    caller = caller_of(passthrough, rules=BY_CONVERSATION)
    for number in range(5_000):
        passthrough.answered(caller, f"resp_{number}")
    assert len(passthrough._answers) <= 4_096
    assert caller_of(passthrough, rules=BY_CONVERSATION, continues="resp_4999").run == caller.run


# -- dimensions -------------------------------------------------------------------------------------------------------------------


def test_dimensions_come_from_the_policys_sources_the_first_that_is_present(passthrough: Identity) -> None:
    given = caller_of(passthrough, ("X-Agent-Id", " a1 "), ("X-User-Id", "u1"), ("X-Team-Id", ""))
    assert given.dimensions == (("agent", "a1"), ("user", "u1"))
    assert caller_of(passthrough).dimensions == (("user", "body-user"),)


def test_a_policy_may_read_other_headers(passthrough: Identity) -> None:
    rules = policy(identity=(("squad", (Source("header", "x-squad"),)),))
    assert caller_of(passthrough, ("X-Squad", "blue"), ("X-Agent-Id", "a1"), rules=rules).dimensions == (("squad", "blue"),)


def test_the_policy_in_force_says_which_headers_count_whatever_the_one_before_said(passthrough: Identity) -> None:
    sent = (("X-Squad", "blue"), ("X-Agent-Id", "a1"))
    squads = policy(identity=(("squad", (Source("header", "x-squad"),)),))
    agents = replace(squads, identity=(("agent", (Source("header", "x-agent-id"),)),))
    nobody = replace(squads, identity=())
    for _ in range(2):
        assert caller_of(passthrough, *sent, rules=squads).dimensions == (("squad", "blue"),)
        assert caller_of(passthrough, *sent, rules=agents).dimensions == (("agent", "a1"),)
        assert caller_of(passthrough, *sent, rules=nobody).dimensions == ()


@pytest.mark.parametrize(
    "pairs",
    [[("X-Agent-Id", "a"), ("x-agent-id", "a")], [("X-Agent-Id", "a\x00b")], [("X-Agent-Id", "x" * 513)]],
    ids=["twice", "control", "long"],
)
def test_an_identity_header_that_could_be_read_in_two_ways_is_refused(passthrough: Identity, pairs: Any) -> None:
    assert refusal(caller_of, passthrough, *pairs).code == "ambiguous_request"


def test_a_key_has_ten_thousand_values_per_dimension_and_then_one(passthrough: Identity) -> None:
    principal = Principal("default", "key_a")

    def agent(name: str, who: Principal = principal) -> str | None:
        return caller_of(passthrough, ("X-Agent-Id", name), principal=who).value("agent")

    for number in range(VALUES_PER_DIMENSION):
        assert agent(f"a{number}") == f"a{number}"
    assert agent("one-more") == "-"
    assert agent("a17") == "a17"
    assert agent("one-more", Principal("default", "key_b")) == "one-more"


def test_callers_who_make_up_keys_without_end_are_forgotten(passthrough: Identity) -> None:
    for number in range(5_000):
        caller_of(passthrough, ("X-Agent-Id", "a"), principal=passthrough.principal(headers(key=f"sk-{number}")))
    assert len(passthrough._principals) <= 4_096
    assert len(passthrough._seen) <= 4_096


def test_who_was_seen_before_is_told_apart_as_at_the_first_time(passthrough: Identity, keyed: Identity) -> None:
    """By the key, the header that it came in, and the header by which Anthropic's clients are known."""
    version, other = ("anthropic-version", "2026-10-21"), [("x-api-key", KEY)]
    for _ in range(2):
        mine, yours = passthrough.principal(headers()), passthrough.principal(headers(key="sk-other"))
        assert mine.key != yours.key
        assert passthrough.credential_for(yours, OPENAI) == ("authorization", "Bearer sk-other")
        assert passthrough.served(mine) == {"openai", "house", "local"}
        assert passthrough.served(passthrough.principal(headers(version))) == {"anthropic", "house", "local"}
        assert passthrough.served(passthrough.principal(headers(*other, key=None))) == {"anthropic", "house", "local"}
        assert passthrough.served(passthrough.principal(headers(key=None))) == {"house", "local"}
        assert passthrough.principal(headers(key=ADMIN)).admin
        assert refusal(passthrough.principal, headers(key=ADMIN), model_route=True).code == "invalid_key"
        assert keyed.principal(headers(key=PENSTOCK_KEY)).key == "ci"
        assert refusal(keyed.principal, headers(key=KEY)).code == "invalid_key"


def test_nothing_secret_is_shown(passthrough: Identity, keyed: Identity) -> None:
    shown = repr((passthrough, keyed, passthrough.principal(headers()), keyed.principal(headers(key=PENSTOCK_KEY)), HOUSE))
    for secret in (KEY, PENSTOCK_KEY, ADMIN, "house-secret", "install-secret"):
        assert secret not in shown


# -- parents ----------------------------------------------------------------------------------------------------------------------


def test_a_parent_is_named_by_its_header_and_counts_for_a_named_run_only(passthrough: Identity) -> None:
    assert caller_of(passthrough, ("X-Parent-Run-Id", "r0"), path_run="r1").parent == "r0"
    assert caller_of(passthrough, path_run="r1").parent is None
    said = refusal(caller_of, passthrough, ("X-Parent-Run-Id", "r0"))
    assert (said.status, said.code) == (400, "run_id_required")


# -- marks of holds ---------------------------------------------------------------------------------------------------------------


def test_a_holds_mark_is_known_by_every_process_of_the_install_for_its_own_tenant(tmp_path: Any) -> None:
    here, beside, elsewhere = identity(tmp_path), identity(tmp_path), identity(tmp_path)
    elsewhere._secret = b"another"
    mark = here.hold_mark("acme", "rsv_1", 250)
    assert beside.marked("acme", mark) == ("rsv_1", 250)
    assert elsewhere.marked("acme", mark) is None
    assert here.marked("default", mark) is None
    assert here.marked("acme", mark.replace("rsv_1.", "rsv_2.")) is None
    assert here.marked("acme", mark.replace(".250.", ".0.")) is None
    assert len(mark) <= 512  # what a value of metadata may have


@pytest.mark.parametrize("mark", ["", ".", "rsv_1", "rsv_1.0", "rsv_1.0.", "rsv_1.x.0", "ä.0.0"])
def test_what_is_no_mark_is_nobodys(passthrough: Identity, mark: str) -> None:
    assert passthrough.marked("default", mark) is None
