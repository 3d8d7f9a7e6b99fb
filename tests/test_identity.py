"""Who is asking: the key says it first, headers only where it does not; and nobody's key goes where it does not belong."""

import hashlib
from typing import Any

import pytest
from multidict import CIMultiDict, CIMultiDictProxy

from gateway.core.catalog import Catalog
from gateway.core.policy import Policy, RunsPolicy, Source, Untagged
from gateway.core.profiles import OnDisconnect, Profile
from gateway.core.scopes import Caller
from gateway.identity import ANONYMOUS, VALUES_PER_DIMENSION, Identity, Principal
from gateway.settings import Provider, Settings, StaticKey
from gateway.wire.exchange import Inbound
from gateway.wire.problem import Refused
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


def identity(tmp_path: Any, *, keys: tuple[StaticKey, ...] = (), **facts: Any) -> Identity:
    settings = Settings(
        "127.0.0.1",
        8080,
        tmp_path / "policy.yaml",
        tmp_path / "ledger.db",
        tmp_path,
        {each.name: each for each in (OPENAI, ANTHROPIC, HOUSE, UNSET, KEYLESS)},
        Catalog("prices-1", {}),
        admin_token=ADMIN,
        keys=keys,
        auth="keys" if keys else "passthrough",
        **facts,
    )
    issued = iter(range(1_000_000))
    return Identity(settings, b"install-secret", lambda: f"run_{next(issued)}")


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
) -> Caller:
    asked = inbound(*pairs, path_run=path_run)
    fields = {"user": "body-user"}
    return who.caller(principal or who.principal(asked.headers), asked, fields.get, rules or policy(), NOW_MS)


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
    ],
    ids=["authorization", "x-api-key", "none", "both: the one that says who it is"],
)
def test_a_callers_key_goes_to_the_provider_that_takes_its_scheme_and_nowhere_else(passthrough, pairs, expected) -> None:
    principal = passthrough.principal(headers(*pairs, key=None))
    assert passthrough.served(principal) == expected.keys()
    sent = {each.name: passthrough.credential_for(principal, each) for each in (OPENAI, ANTHROPIC, HOUSE, UNSET, KEYLESS)}
    assert sent == {"openai": None, "anthropic": None, "unset": None} | expected


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
    caller = keyed.caller(keyed.principal(headers(key=PENSTOCK_KEY)), asked, lambda _: None, policy(), NOW_MS)
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

HEADER_FIRST = policy(runs=RunsPolicy(path_first=False))
HEADER_ONLY = policy(runs=RunsPolicy(id_from_path=False))
PATH_ONLY = policy(runs=RunsPolicy(id_header=None))


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


# -- dimensions -------------------------------------------------------------------------------------------------------------------


def test_dimensions_come_from_the_policys_sources_the_first_that_is_present(passthrough: Identity) -> None:
    given = caller_of(passthrough, ("X-Agent-Id", " a1 "), ("X-User-Id", "u1"), ("X-Team-Id", ""))
    assert given.dimensions == (("agent", "a1"), ("user", "u1"))
    assert caller_of(passthrough).dimensions == (("user", "body-user"),)


def test_a_policy_may_read_other_headers(passthrough: Identity) -> None:
    rules = policy(identity=(("squad", (Source("header", "x-squad"),)),))
    assert caller_of(passthrough, ("X-Squad", "blue"), ("X-Agent-Id", "a1"), rules=rules).dimensions == (("squad", "blue"),)


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
    assert len(passthrough._ids) <= 4_096
    assert len(passthrough._seen) <= 4_096


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
