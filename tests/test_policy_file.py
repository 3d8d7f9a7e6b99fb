"""A policy file becomes a Policy, or every mistake in it is named with its line."""

import re
from pathlib import Path
from textwrap import dedent
from zoneinfo import ZoneInfo

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway import bundled, policy_file
from gateway.core.catalog import Catalog, Model, Rates
from gateway.core.policy import (
    DEFAULT_IDENTITY,
    Limit,
    Margin,
    Missing,
    OutputPolicy,
    Policy,
    RunOwner,
    RunsPolicy,
    Share,
    Source,
    Untagged,
)
from gateway.core.scopes import Caller, Unit
from gateway.core.values import Mode, RunTerms
from gateway.core.windows import WindowKind
from gateway.yaml_source import Mistakes

SHIPPED = sorted(Path("policies").glob("*.yaml"))
PRICED = (Rates(100, 200, 100, 100),)
CATALOG = Catalog(
    "v1",
    {
        "gpt-5": Model("gpt-5", "openai", PRICED, 1000, 100),
        "gpt-5-mini": Model("gpt-5-mini", "openai", PRICED, 1000, 100),
        "unpriced": Model("unpriced", "openai", (), 1000, 100),
    },
)
BUDGET = "version: 1\nbudgets:\n  - name: b\n    scope: run\n    limit: $5.00\n"


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Loads a policy's text from a file named p.yaml in the current folder."""
    monkeypatch.chdir(tmp_path)

    def load(text: str) -> Policy:
        Path("p.yaml").write_text(text)
        return policy_file.load(Path("p.yaml"), CATALOG)

    return load


def mistakes_of(load, text: str) -> list[str]:
    with pytest.raises(Mistakes) as raised:
        load(text)
    return [str(mistake) for mistake in raised.value.mistakes]


@pytest.fixture
def json_schema():
    """The validator class of a package that only these tests need."""
    return pytest.importorskip("jsonschema").Draft202012Validator


# -- what is read -----------------------------------------------------------------------------------------------------------------


def test_three_keys_make_a_budget_and_the_rest_is_right_by_default(load):
    policy = load(BUDGET)
    (budget,) = policy.budgets
    assert (budget.name, budget.scope, budget.window, budget.timezone) == ("b", ("run",), WindowKind.LIFETIME, ZoneInfo("UTC"))
    assert budget.terms.limit == Limit(Unit.USD, 500_000_000)
    assert (budget.terms.mode, budget.terms.margin, budget.terms.downgrade_below_ppm) == (Mode.HARD_GATE, Margin(), 0)
    assert (budget.alerts_ppm, budget.missing, budget.overrides) == ((500_000, 800_000, 1_000_000), Missing.SHARE, ())
    assert (policy.output, policy.identity, policy.runs) == (OutputPolicy(), DEFAULT_IDENTITY, RunsPolicy())
    assert (policy.models.allow, policy.models.downgrade, policy.models.auto) == (("*",), (), False)
    assert policy.warnings == ()


@pytest.mark.parametrize(
    ("scope", "window"),
    [
        ("run", WindowKind.LIFETIME),
        ("[run]", WindowKind.LIFETIME),
        ("agent", WindowKind.MONTH),
        ("[run, agent]", WindowKind.MONTH),
    ],
)
def test_only_a_run_has_a_lifetime_by_default(load, scope, window):
    assert load(BUDGET.replace("scope: run", f"scope: {scope}")).budgets[0].window is window


@pytest.mark.parametrize("scope", ["tenant", "[]", "[tenant]"])
def test_the_whole_tenant_can_be_written_in_words(load, scope):
    assert load(BUDGET.replace("scope: run", f"scope: {scope}")).budgets[0].scope == ()


@pytest.mark.parametrize(
    ("written", "unit", "amount"),
    [
        ("$5", Unit.USD, 500_000_000),
        ("$0", Unit.USD, 0),
        ("$0.00000001", Unit.USD, 1),
        ("$50000000", Unit.USD, 5_000_000_000_000_000),
        ("200k tokens", Unit.TOKENS, 200_000),
        ("1.5M tokens", Unit.TOKENS, 1_500_000),
        ("1 token", Unit.TOKENS, 1),
        ("60 calls", Unit.CALLS, 60),
        ("500 credits", Unit.CREDITS, 500),
        ("1 credit", Unit.CREDITS, 1),
        ("2.5k credits", Unit.CREDITS, 2_500),
        ("100 risk points", Unit.RISK_POINTS, 100),
        ("1 risk point", Unit.RISK_POINTS, 1),
    ],
)
def test_a_limit_is_exact_in_its_unit(load, written, unit, amount):
    assert load(BUDGET.replace("$5.00", written)).budgets[0].terms.limit == Limit(unit, amount)


def test_every_key_of_a_budget_reaches_the_policy(load):
    policy = load(
        dedent("""
        version: 1
        budgets:
          - name: b
            scope: [team, agent]
            window: week
            timezone: Europe/Berlin
            limit: $10
            mode: soft_gate
            margin: 12.5%
            downgrade_below: 25%
            keep_for_wrap_up: 5%
            alerts: [90%, 50%]
            missing: refuse
            on_exhausted: pause
            wait_for_raise: 60s
            on_outage: allow
            renamed_from: old
            overrides:
              - {match: {team: research, agent: "nightly-*"}, limit: $20, margin: $0.50, wait_for_raise: 5m}
              - {match: {team: lab}, mode: hard_gate, downgrade_below: 0%, on_exhausted: block}
        """)
    )
    (budget,) = policy.budgets
    assert (budget.scope, budget.window, budget.timezone.key) == (("team", "agent"), WindowKind.WEEK, "Europe/Berlin")
    assert (budget.terms.mode, budget.terms.margin, budget.terms.downgrade_below_ppm) == (
        Mode.SOFT_GATE,
        Margin(ppm=125_000),
        250_000,
    )
    assert (budget.alerts_ppm, budget.missing) == ((500_000, 900_000), Missing.REFUSE)
    assert (budget.keep_for_wrap_up_ppm, budget.name, budget.identity) == (50_000, "b", "old")
    assert (budget.terms.pause, budget.terms.wait_for_raise_ms, budget.terms.outage_allow) == (True, 60_000, True)

    def terms_of(team: str, agent: str):
        return budget.terms_for(Caller("t", "k", "r", "r", dimensions=(("agent", agent), ("team", team))))

    nightly = terms_of("research", "nightly-1")
    assert (nightly.limit.amount, nightly.margin, nightly.mode) == (2_000_000_000, Margin(amount=50_000_000), Mode.SOFT_GATE)
    assert (nightly.pause, nightly.wait_for_raise_ms) == (True, 300_000)
    lab = terms_of("lab", "any")
    assert (lab.limit.amount, lab.margin, lab.mode, lab.downgrade_below_ppm) == (1_000_000_000, Margin(), Mode.HARD_GATE, 0)
    assert (lab.pause, lab.wait_for_raise_ms, lab.outage_allow) == (False, 0, True)
    assert terms_of("other", "any") == budget.terms


def test_output_models_identity_and_runs_are_read(load):
    policy = load(
        BUDGET
        + dedent("""
        output: {default_max_tokens: 500, max_tokens: 1000, clamp_to_budget: on}
        models: {allow: "gpt-*", downgrade: {gpt-5: gpt-5-mini, "gpt-*": [gpt-5-mini]}}
        identity: {squad: [header:X-Squad, body:squad], feature: [], team: header:X-My-Team}
        runs:
          id_from: [header:X-Session, path]
          untagged: per_call
          owner: tenant
          max_active_per_key: 5
          idle_ttl: 1h
          forget_after: 7d
          repeat_limit: {same_request: 5, within_calls: 20}
        """)
    )
    assert policy.output == OutputPolicy((("*", 500),), 1000, True)
    assert policy.models.allow == ("gpt-*",)
    assert policy.models.downgrade == (("gpt-5", ("gpt-5-mini",)), ("gpt-*", ("gpt-5-mini",)))
    assert dict(policy.identity) == {
        "agent": (Source("header", "x-agent-id"),),
        "user": (Source("header", "x-user-id"), Source("body", "user")),
        "team": (Source("header", "x-my-team"),),
        "squad": (Source("header", "x-squad"), Source("body", "squad")),
    }
    assert policy.runs == RunsPolicy(
        id_from=(Source("header", "x-session"), Source("path")),
        untagged=Untagged.PER_CALL,
        owner=RunOwner.TENANT,
        terms=RunTerms(max_active=5, idle_ms=3_600_000, same_request=5, within_calls=20),
        forget_after_ms=7 * 86_400_000,
    )


@pytest.mark.parametrize(
    ("written", "span_ms"),
    [("1s", 1_000), ("90s", 90_000), ("10m", 600_000), ("10 m", 600_000), ("1.5h", 5_400_000), ("31d", 31 * 86_400_000)],
)
def test_a_rolling_window_has_a_length(load, written, span_ms):
    (budget,) = load(BUDGET + f"    window: rolling {written}\n    timezone: Europe/Berlin\n").budgets
    assert (budget.window, budget.span_ms) == (WindowKind.ROLLING, span_ms)


SHARED = "version: 1\nbudgets:\n  - {name: a, scope: run, limit: 50% of b}\n  - {name: b, scope: tenant, limit: $10}\n"


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        (SHARED, Share(Unit.USD, 500_000, "b")),
        (SHARED.replace("50%", "0.5%"), Share(Unit.USD, 5_000, "b")),
        (SHARED.replace("50%", "100%").replace("$10", "60 calls"), Share(Unit.CALLS, 1_000_000, "b")),
        ("version: 1\nbudgets:\n  - {name: b, scope: tenant, limit: $10}\n  - {name: a, scope: run, limit: 50% of b}\n", Share(Unit.USD, 500_000, "b")),
    ],
    ids=["first", "a small one", "in calls", "after the other"],
)  # fmt: skip
def test_a_share_has_the_unit_of_the_budget_it_is_a_part_of(load, text, limit):
    assert limit in [budget.terms.limit for budget in load(text).budgets]


def test_an_override_gives_some_callers_an_amount_instead_of_a_share(load):
    text = SHARED.replace("of b}", "of b, mode: soft_gate, margin: $1, overrides: [{match: {team: x}, limit: $3, margin: 10%}]}")
    share = load(text).budgets[0]
    terms = share.terms_for(Caller("t", "k", "r", "r", dimensions=(("team", "x"),)))
    assert (share.terms.margin, terms.limit, terms.margin) == (
        Margin(amount=100_000_000),
        Limit(Unit.USD, 300_000_000),
        Margin(ppm=100_000),
    )


def test_downgrade_auto_names_no_ladder(load):
    models = load(BUDGET + "models: {downgrade: auto}\n").models
    assert (models.auto, models.downgrade) == (True, ())


@pytest.mark.parametrize("off", ["off", '"off"', "false", "null"])
def test_off_is_off_however_yaml_is_read(load, off):
    assert load(BUDGET + f"runs: {{repeat_limit: {off}}}\n").runs == RunsPolicy()


def test_the_version_is_the_contents(load):
    first, second, changed = load(BUDGET), load(BUDGET), load(BUDGET + "\n")
    assert first == second
    assert first.version != changed.version


# -- what is refused --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "allowed"),
    [("hard_gate", False), ("soft_gate\n    margin: 5%", False), ("actuals_only", True), ("advisory_estimate", True)],
)
def test_what_an_outage_does_depends_on_the_mode_unless_it_is_said(load, mode, allowed):
    def outage_allow(more: str) -> bool:
        return load(BUDGET + f"    mode: {mode}\n{more}").budgets[0].terms.outage_allow

    assert outage_allow("") is allowed
    assert outage_allow("    on_outage: allow\n") is True
    assert outage_allow("    on_outage: block\n") is False


def test_an_override_of_the_mode_brings_that_modes_way_with_an_outage(load):
    budget = load(BUDGET + "    overrides: [{match: {team: x}, mode: actuals_only}]\n").budgets[0]
    assert (budget.terms.outage_allow, budget.overrides[0].terms.outage_allow) == (False, True)


AMOUNT = 'an amount such as "$5.00", "200k tokens", "60 calls", "500 credits" or "100 risk points"'
# What follows BUDGET (which ends on line 5, in its one budget), and the line that is told.
IN_A_BUDGET = [
    ("limt: $5", "p.yaml:6: budgets[0].limt: found an unknown key, expected one of name, scope, limit, … (did you mean \"limit\"?)"),
    ("window: fortnight", 'p.yaml:6: budgets[0].window: found "fortnight", expected one of lifetime, minute, hour, day, week, month, or a length such as "rolling 10m"'),
    ("window: mnth", 'p.yaml:6: budgets[0].window: found "mnth", expected one of … (did you mean "month"?)'),
    ("window: rolling", 'p.yaml:6: budgets[0].window: found "rolling", expected a length from 1s to 31d, such as "rolling 10m"'),
    ("window: rolling soon", 'p.yaml:6: budgets[0].window: found "rolling soon", expected a length from 1s to 31d, such as "rolling 10m"'),
    ("window: rolling 0.9s", 'p.yaml:6: budgets[0].window: found "rolling 0.9s", expected a length from 1s to 31d…'),
    ("window: rolling 5000ms", 'p.yaml:6: budgets[0].window: found "rolling 5000ms", expected a length from 1s to 31d…'),
    ("window: rolling 32d", 'p.yaml:6: budgets[0].window: found "rolling 32d", expected a length from 1s to 31d…'),
    ("timezone: Europe/Berln", 'p.yaml:6: budgets[0].timezone: found "Europe/Berln", expected a timezone … (did you mean "Europe/Berlin"?)'),
    ("timezone: Europe", 'p.yaml:6: budgets[0].timezone: found "Europe", expected a timezone such as Europe/Berlin…'),
    ("timezone: ../UTC", 'p.yaml:6: budgets[0].timezone: found "../UTC", expected a timezone such as Europe/Berlin…'),
    ("mode: hard", 'p.yaml:6: budgets[0].mode: found "hard", expected one of hard_gate, … (did you mean "hard_gate"?)'),
    ("mode: soft_gate", 'p.yaml:3: budgets[0].margin: found nothing, expected a margin such as "10%" or "$0.50": soft_gate needs one'),
    ("margin: 10%", 'p.yaml:6: budgets[0].margin: found "10%", expected no margin: only soft_gate has one, and the mode is hard_gate'),
    ("mode: soft_gate\n    margin: 5 calls", 'p.yaml:7: budgets[0].margin: found "5 calls", expected a percentage, or an amount in US dollars…'),
    ("mode: soft_gate\n    margin: much", 'p.yaml:7: budgets[0].margin: found "much", expected a share of the limit such as "10%" or…'),
    ("downgrade_below: 0.25", 'p.yaml:6: budgets[0].downgrade_below: found 0.25, expected a percentage such as "25%" (0% to 100%)'),
    ("downgrade_below: 101%", 'p.yaml:6: budgets[0].downgrade_below: found "101%", expected a percentage such as "25%" (0% to 100%)'),
    ("keep_for_wrap_up: half", 'p.yaml:6: budgets[0].keep_for_wrap_up: found "half", expected a percentage such as "25%" (0% to 100%)'),
    ("renamed_from: b", 'p.yaml:6: budgets[0].renamed_from: found "b", expected a name that no budget in this file has any more…'),
    ("renamed_from: run-limit", 'p.yaml:6: budgets[0].renamed_from: found "run-limit", expected another name…'),
    ("on_exhausted: wait", 'p.yaml:6: budgets[0].on_exhausted: found "wait", expected one of block, pause'),
    ("wait_for_raise: 60s", 'p.yaml:6: budgets[0].wait_for_raise: found "60s", expected no time to wait: only `on_exhausted: pause` waits for a raise'),
    ("on_exhausted: pause\n    wait_for_raise: 11m", 'p.yaml:7: budgets[0].wait_for_raise: found "11m", expected a duration from 0s to 10m…'),
    ("on_outage: pass", 'p.yaml:6: budgets[0].on_outage: found "pass", expected one of block, allow'),
    ("missing: shar", 'p.yaml:6: budgets[0].missing: found "shar", expected one of share, refuse, skip (did you mean "share"?)'),
    ("alerts: 50%", 'p.yaml:6: budgets[0].alerts: found "50%", expected a list'),
    ("alerts: [50%, half]", 'p.yaml:6: budgets[0].alerts[1]: found "half", expected a percentage such as "25%" (1% to 1000%)'),
    ("alerts: [50%, 50.0%]", 'p.yaml:6: budgets[0].alerts[1]: found "50.0%", expected each share once'),
    ("limit: $6", "p.yaml:6: budgets[0].limit: found the key again, expected each key once (it also stands on line 5)"),
    ("overrides: {}", "p.yaml:6: budgets[0].overrides: found a mapping, expected a list"),
    ("overrides:\n    - limit: $5", "p.yaml:7: budgets[0].overrides[0].match: found nothing, expected this key: it is required"),
    ("overrides:\n    - {match: {}, limit: $5}", "p.yaml:7: budgets[0].overrides[0].match: found a mapping, expected at least one dimension…"),
    ("overrides:\n    - {match: {model: x}, limit: $5}", "p.yaml:7: budgets[0].overrides[0].match.model: found this key, expected a dimension of the caller…"),
    ("overrides:\n    - {match: {Team: x}, limit: $5}", 'p.yaml:7: budgets[0].overrides[0].match.Team: found "Team", expected a dimension: …'),
    ("overrides:\n    - {match: {team: x}}", "p.yaml:7: budgets[0].overrides[0]: found a mapping, expected something that it changes…"),
    ("overrides:\n    - {match: {team: x}, limit: 5 calls}", 'p.yaml:7: budgets[0].overrides[0].limit: found "5 calls", expected an amount in US dollars, the budget\'s unit'),
    ("overrides:\n    - {match: {team: x}, limit: 5% of b}", 'p.yaml:7: budgets[0].overrides[0].limit: found "5% of b", expected an amount: only a budget\'s own limit can be a share of another budget'),
    ("overrides:\n    - {match: {team: x}, mode: soft_gate}", "p.yaml:7: budgets[0].overrides[0].margin: found nothing, expected a margin such as…"),
    ("overrides:\n    - {match: {team: x}, margin: 5%}", 'p.yaml:7: budgets[0].overrides[0].margin: found "5%", expected no margin…'),
    ("overrides:\n    - {match: {team: x}, mode: soft_gate, margin: 5 calls}", 'p.yaml:7: budgets[0].overrides[0].margin: found "5 calls", expected a percentage, or an amount in US dollars…'),
    ("overrides:\n    - {match: {team: x}, wait_for_raise: 5s}", 'p.yaml:7: budgets[0].overrides[0].wait_for_raise: found "5s", expected no time to wait…'),
    ("on_exhausted: pause\n    overrides:\n    - {match: {team: x}, on_exhausted: block, wait_for_raise: 5s}", 'p.yaml:8: budgets[0].overrides[0].wait_for_raise: found "5s", expected no time to wait…'),
]  # fmt: skip


@pytest.mark.parametrize(("text", "told"), IN_A_BUDGET)
def test_a_mistake_in_a_budget_is_told_with_its_line_and_key(load, text, told):
    assert_told(mistakes_of(load, BUDGET + "    " + text + "\n"), told)


BESIDE_BUDGETS = [
    ("budget: []", 'p.yaml:6: budget: found an unknown key, expected one of version, budgets, … (did you mean "budgets"?)'),
    ("output: 5", "p.yaml:6: output: found 5, expected a mapping of keys to values"),
    ("output: {default_max_tokens: 0}", 'p.yaml:6: output.default_max_tokens: found 0, expected a whole number from 1 to 100,000,000'),
    ('output: {default_max_tokens: {"*": x}}', 'p.yaml:6: output.default_max_tokens["*"]: found "x", expected a whole number…'),
    ("output: {max_tokens: 1.5}", "p.yaml:6: output.max_tokens: found 1.5, expected a whole number from 1 to 100,000,000"),
    ("output: {max_tokens: true}", "p.yaml:6: output.max_tokens: found true, expected a whole number from 1 to 100,000,000"),
    ("output: {clamp_to_budget: maybe}", 'p.yaml:6: output.clamp_to_budget: found "maybe", expected true or false'),
    ("models: {allow: [5]}", 'p.yaml:6: models.allow[0]: found 5, expected a name or a pattern such as "gpt-5*"'),
    ("models: {downgrade: manual}", 'p.yaml:6: models.downgrade: found "manual", expected a mapping of keys to values'),
    ("models:\n  downgrade:\n    gpt-5: [gpt-5-mni]", 'p.yaml:8: models.downgrade.gpt-5[0]: found "gpt-5-mni", expected a model of the bundled catalog or of the config\'s `models` (did you mean "gpt-5-mini"?)'),
    ("models: {downgrade: {gpt-5: gpt-6}}", 'p.yaml:6: models.downgrade.gpt-5: found "gpt-6", expected a model of the bundled catalog…'),
    ('models: {downgrade: {gpt-5: ["gpt-*"]}}', 'p.yaml:6: models.downgrade.gpt-5[0]: found "gpt-*", expected a model\'s name, without … and ?'),
    ("identity: {run: header:X-R}", 'p.yaml:6: identity.run: found "run", expected another name: run, key, tenant, model, provider are filled by the gateway itself'),
    ("identity: {Squad: header:X-S}", 'p.yaml:6: identity.Squad: found "Squad", expected a dimension: a lower-case name…'),
    ("identity: {squad: X-S}", 'p.yaml:6: identity.squad: found "X-S", expected header:NAME or body:FIELD'),
    ("identity: {squad: [body:a.b]}", 'p.yaml:6: identity.squad[0]: found "body:a.b", expected header:NAME or body:FIELD'),
    ("identity: {user: header:Authorization}", 'p.yaml:6: identity.user: found "header:Authorization", expected a header that holds no secret…'),
    ("runs: {id_from: [cookie]}", 'p.yaml:6: runs.id_from[0]: found "cookie", expected path, header:NAME, body:FIELD, claude-code, traceparent or conversation'),
    ("runs: {id_from: [body:a.b]}", 'p.yaml:6: runs.id_from[0]: found "body:a.b", expected path, header:NAME, body:FIELD…'),
    ("runs: {id_from: [header:Cookie]}", 'p.yaml:6: runs.id_from[0]: found "header:Cookie", expected a header that holds no secret…'),
    ("runs: {id_from: [header:A, header:a]}", 'p.yaml:6: runs.id_from[1]: found "header:a", expected each source once'),
    ("runs: {id_from: [path, path]}", 'p.yaml:6: runs.id_from[1]: found "path", expected each source once'),
    ("runs: {owner: tenants}", 'p.yaml:6: runs.owner: found "tenants", expected one of key, tenant (did you mean "tenant"?)'),
    ("runs: {untagged: share}", 'p.yaml:6: runs.untagged: found "share", expected one of shared, per_call, refuse (did you mean "shared"?)'),
    ("runs: {max_active_per_key: 0}", "p.yaml:6: runs.max_active_per_key: found 0, expected a whole number from 1 to 1,000,000"),
    ("runs: {idle_ttl: 60}", "p.yaml:6: runs.idle_ttl: found 60, expected a duration from 1m to 365d…"),
    ("runs: {forget_after: 5h}", 'p.yaml:6: runs.forget_after: found "5h", expected at least idle_ttl: …'),
    ("runs: {repeat_limit: on}", 'p.yaml:6: runs.repeat_limit: found "on", expected a mapping of keys to values'),
    ("runs: {repeat_limit: {same_request: 5}}", "p.yaml:6: runs.repeat_limit.within_calls: found nothing, expected a whole number from 2 to 1,000 (the key is required)"),
    ("runs: {repeat_limit: {same_request: 5, within_calls: 1001}}", "p.yaml:6: runs.repeat_limit.within_calls: found 1001, expected a whole number from 2 to 1,000"),
    ("runs: {repeat_limit: {same_request: 5, within_calls: 5}}", "p.yaml:6: runs.repeat_limit.same_request: found 5, expected fewer than within_calls (5): else it would never refuse a call"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "told"), BESIDE_BUDGETS)
def test_a_mistake_beside_the_budgets_is_told_with_its_line_and_key(load, text, told):
    assert_told(mistakes_of(load, BUDGET + text + "\n"), told)


OF_THE_WHOLE = [
    ("version: 2\nbudgets: []", "p.yaml:1: version: found 2, expected 1"),
    ("version: true\nbudgets: []", "p.yaml:1: version: found true, expected 1"),
    ("budgets: []", "p.yaml:1: version: found nothing, expected 1 (the key is required)"),
    ("version: 1", "p.yaml:1: budgets: found nothing, expected this key: it is required"),
    ("version: 1\nbudgets: {a: 1}", "p.yaml:2: budgets: found a mapping, expected a list"),
    ("version: 1\nbudgets:", "p.yaml:2: budgets: found nothing, expected a list"),
    ("version: 1\nbudgets: [run]", 'p.yaml:2: budgets[0]: found "run", expected a mapping of keys to values'),
    ("version: 1\nbudgets:\n- {name: b, scope: run}", f"p.yaml:3: budgets[0].limit: found nothing, expected {AMOUNT} (the key is required)"),
    ("version: 1\nbudgets:\n- {scope: run, limit: $1}", "p.yaml:3: budgets[0].name: found nothing, expected 1 to 64 letters…"),
    ("version: 1\nbudgets:\n- {name: a b, scope: run, limit: $1}", 'p.yaml:3: budgets[0].name: found "a b", expected 1 to 64 letters, digits, dots, dashes or underscores'),
    ("version: 1\nbudgets:\n- {name: 7, scope: run, limit: $1}", "p.yaml:3: budgets[0].name: found 7, expected 1 to 64 letters, digits, dots, dashes or underscores"),
    ("version: 1\nbudgets:\n- {name: a, scope: [run, 5], limit: $1}", "p.yaml:3: budgets[0].scope[1]: found 5, expected a dimension…"),
    ("version: 1\nbudgets:\n- {name: a, scope: [run, run], limit: $1}", 'p.yaml:3: budgets[0].scope[1]: found "run", expected each dimension once'),
    ("version: 1\nbudgets:\n- {name: run-limit, scope: run, limit: $1}", 'p.yaml:3: budgets[0].name: found "run-limit", expected another name…'),
    ("version: 1\nbudgets:\n- {name: a, scope: run, limit: $1}\n- {name: a, scope: agent, limit: $1}", 'p.yaml:4: budgets[1].name: found "a", expected a name of its own: the budget on line 3 has this one'),
    ("version: 1\nbudgets:\n- {name: a, scope: run, limit: 50% of month}", 'p.yaml:3: budgets[0].limit: found "50% of month", expected a share of a budget in this file; none is named month'),
    (SHARED.replace("$10", "5% of c") + "  - {name: c, scope: run, limit: $1}", 'p.yaml:3: budgets[0].limit: found "50% of b", expected a share of a budget whose limit is an amount; b is itself a share'),
    ("version: 1\nbudgets:\n- {name: a, scope: run, limit: 50% of a}", 'p.yaml:3: budgets[0].limit: found "50% of a", expected a share of a budget whose limit is an amount; a is itself a share'),
    (SHARED.replace("tenant,", "team, missing: skip,"), 'p.yaml:3: budgets[0].limit: found "50% of b", expected a share of a budget that applies to every call; b has `missing: skip`'),
    (SHARED.replace("tenant", "[team, model]"), 'p.yaml:3: budgets[0].limit: found "50% of b", expected a share of a budget without model and provider in its scope…'),
    (SHARED.replace("of b}", "of b, mode: soft_gate, margin: 10%}"), 'p.yaml:3: budgets[0].margin: found "10%", expected an amount in US dollars: what a share of another budget comes to is not known before its first call'),
    (SHARED.replace("of b}", "of b, mode: soft_gate, margin: 5 calls}"), 'p.yaml:3: budgets[0].margin: found "5 calls", expected an amount in US dollars, the budget\'s unit'),
    (SHARED.replace("of b}", "of b, overrides: [{match: {team: x}, limit: 5 calls}]}"), 'p.yaml:3: budgets[0].overrides[0].limit: found "5 calls", expected an amount in US dollars, the budget\'s unit'),
    (SHARED.replace("of b}", "of b, overrides: [{match: {team: x}, mode: soft_gate, margin: 10%}]}"), 'p.yaml:3: budgets[0].overrides[0].margin: found "10%", expected an amount in US dollars: …'),
    (SHARED.replace("$10", "ten"), f'p.yaml:4: budgets[1].limit: found "ten", expected {AMOUNT}'),
    ("version: 1\nbudgets:\n- {name: a, scope: run, limit: $1, renamed_from: z}\n- {name: b, scope: team, limit: $1, renamed_from: z}", 'p.yaml:4: budgets[1].renamed_from: found "z", expected a name that no other budget was renamed from'),
    ("version: 1\nbudgets:\n- {name: a, scope: run, limit: $1, renamed_from: b}\n- {name: b, scope: team, limit: $1}", 'p.yaml:3: budgets[0].renamed_from: found "b", expected a name that no budget in this file has any more: its balances are that budget\'s'),
]  # fmt: skip


@pytest.mark.parametrize(("text", "told"), OF_THE_WHOLE)
def test_a_mistake_in_the_files_frame_is_told(load, text, told):
    assert_told(mistakes_of(load, text), told)


@pytest.mark.parametrize(
    ("limit", "told"),
    [
        ("five", f'found "five", expected {AMOUNT}'),
        ("5", f"found 5, expected {AMOUNT}"),
        ("5.00", f"found 5.00, expected {AMOUNT}"),
        ("-$5", f'found "-$5", expected {AMOUNT}'),
        ("$5.123456789", f'found "$5.123456789", expected {AMOUNT}'),
        ("$1,000", f'found "$1,000", expected {AMOUNT}'),
        ("$NaN", f'found "$NaN", expected {AMOUNT}'),
        ("true", f"found true, expected {AMOUNT}"),
        ("", f"found nothing, expected {AMOUNT}"),
        ("[$5]", f"found a list, expected {AMOUNT}"),
        ("$50000000.01", 'found "$50000000.01", expected at most $50,000,000'),
        ("$9999999999999999999999", 'found "$9999999999999999999999", expected at most $50,000,000'),
        ("9999999999999M calls", 'found "9999999999999M calls", expected at most 1,000,000,000,000,000 calls'),
        ("1.5 calls", 'found "1.5 calls", expected a whole number of calls'),
        ("1.0001k tokens", 'found "1.0001k tokens", expected a whole number of tokens'),
        ("120% of b", 'found "120% of b", expected a share such as "50% of tenant-month", up to 100%'),
    ],
)
def test_a_limit_that_is_none_is_told_with_what_would_be(load, limit, told):
    assert mistakes_of(load, BUDGET.replace("$5.00", limit)) == [f"p.yaml:5: budgets[0].limit: {told}"]


def assert_told(mistakes: list[str], told: str) -> None:
    """`…` in what should be told stands for anything."""
    (mistake,) = mistakes
    assert re.fullmatch(".*".join(map(re.escape, told.split("…"))), mistake), mistake


def test_all_mistakes_of_a_file_are_told_at_once_in_its_order(load):
    mistakes = mistakes_of(
        load,
        dedent("""\
        version: 1
        budgets:
          - name: run-ceiling
            scope: run
            limit: five
            mode: soft_gate
          - name: run-ceiling
            scope: agnt
            limit: $60000000
            overrides:
              - {match: {team: x}, limit: 5 calls, mod: hard_gate}
          - {name: c, scope: run, limit: 5% of nobody, window: rolling 1ms, timezone: Mars/Base}
        models: {downgrade: {gpt-5: [gpt-5-mini, nope, 5]}}
        runs: {idle_ttl: 1, untagged: never}
        """),
    )
    assert [mistake.split(" ")[:2] for mistake in mistakes] == [
        ["p.yaml:3:", "budgets[0].margin:"],
        ["p.yaml:5:", "budgets[0].limit:"],
        ["p.yaml:7:", "budgets[1].name:"],
        ["p.yaml:9:", "budgets[1].limit:"],
        ["p.yaml:11:", "budgets[1].overrides[0].mod:"],
        ["p.yaml:12:", "budgets[2].window:"],
        ["p.yaml:12:", "budgets[2].timezone:"],
        ["p.yaml:12:", "budgets[2].limit:"],
        ["p.yaml:13:", "models.downgrade.gpt-5[2]:"],
        ["p.yaml:13:", "models.downgrade.gpt-5[1]:"],
        ["p.yaml:14:", "runs.untagged:"],
        ["p.yaml:14:", "runs.idle_ttl:"],
    ]


def test_without_a_catalog_models_are_not_looked_up(tmp_path):
    path = tmp_path / "p.yaml"
    path.write_text(BUDGET + "models: {downgrade: {gpt-5: [nobody-knows]}}\n")
    assert policy_file.load(path, None).models.ladder_for("gpt-5") == ("nobody-knows",)


@pytest.mark.parametrize(
    ("lines", "sliced"),
    [("", False), ("    reservation: {basis: worst_case}\n", False), ("    reservation: {basis: sliced}\n", True)],
)
def test_a_budget_says_what_it_holds_of_a_stream(load, lines, sliced):
    [budget] = load(BUDGET + lines).budgets
    assert budget.sliced is sliced


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("    reservation: {basis: sliecd}\n", "expected one of worst_case, sliced"),
        ("    reservation: sliced\n", "budgets[0].reservation"),
        ("    overrides: [{match: {team: a}, reservation: {basis: sliced}}]\n", "reservation"),
    ],
)
def test_it_says_so_in_these_words_and_an_override_does_not_say_it(load, lines, words):
    with pytest.raises(Mistakes, match=re.escape(words)):
        load(BUDGET + lines)


# -- what is allowed but seldom meant ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        ("version: 1\nbudgets: []\n", "p.yaml:2: budgets: no budget, so nothing is limited but by those that the Cycles admin plane makes"),
        (BUDGET.replace("scope: run", "scope: squad"), "p.yaml:4: budgets[0].scope: squad is in no `identity` source: only keys that bind it give it a value"),
        (BUDGET + "    mode: advisory_estimate\n    on_exhausted: pause\n", "p.yaml:7: budgets[0].on_exhausted: advisory_estimate never blocks a call, so this does nothing"),
        (BUDGET + "    mode: actuals_only\n    reservation: {basis: sliced}\n", "p.yaml:7: budgets[0].reservation: what is held stands in no call's way in actuals_only, so this does nothing"),
        (BUDGET + "    downgrade_below: 25%\n", "p.yaml:6: budgets[0].downgrade_below: `models.downgrade` names no cheaper model, so this does nothing"),
        (BUDGET + "models: {downgrade: {gpt-5: [unpriced]}}\n", "p.yaml:6: models.downgrade.gpt-5[0]: unpriced has no price, so nothing is downgraded to it"),
        (BUDGET + "models: {allow: [gpt-5], downgrade: {gpt-5: [gpt-5-mini]}}\n", "p.yaml:6: models.downgrade.gpt-5[0]: gpt-5-mini is not in `models.allow`, so nothing is downgraded to it"),
    ],
)  # fmt: skip
def test_what_is_seldom_meant_is_a_warning(load, text, warning):
    assert load(text).warnings == (warning,)


# -- hot reload -------------------------------------------------------------------------------------------------------------------


def test_a_reload_hands_over_the_new_policy_the_same_one_or_the_mistakes(tmp_path):
    path = tmp_path / "p.yaml"
    path.write_text(BUDGET)
    current = policy_file.load(path, CATALOG)
    assert policy_file.reload(current, path, CATALOG) is current
    path.write_text(BUDGET.replace("$5", "$6"))
    changed = policy_file.reload(current, path, CATALOG)
    assert isinstance(changed, Policy)
    assert changed.budgets[0].terms.limit.amount == 600_000_000
    path.write_text(BUDGET.replace("$5", "six"))
    refused = policy_file.reload(current, path, CATALOG)
    assert isinstance(refused, Mistakes)
    path.unlink()
    assert isinstance(policy_file.reload(current, path, CATALOG), Mistakes)


def changes(load, old: str, new: str) -> list[str]:
    header = "version: 1\nbudgets:\n"
    return policy_file.changed_identities(load(header + old), load(header + new))


AGENT_DAY = "- {name: agent-day, scope: agent, window: day, timezone: Europe/Berlin, limit: $40}\n"


@pytest.mark.parametrize(
    ("new", "sentence"),
    [
        (AGENT_DAY.replace("day,", "week,", 2).replace("agent-week", "agent-day"), "agent-day starts at $0 from now: its window changed from day to week"),
        (AGENT_DAY.replace("scope: agent", "scope: [team, agent]"), "agent-day starts at $0 from now: its scope changed from agent to team+agent"),
        (AGENT_DAY.replace("Europe/Berlin", "UTC"), "agent-day starts at $0 from now: its timezone changed from Europe/Berlin to UTC"),
        (AGENT_DAY.replace("$40", "40 calls"), "agent-day starts at 0 calls from now: its unit changed from US dollars to calls"),
        (AGENT_DAY.replace("agent-day", "daily"), "daily starts at $0 from now: its name is new (agent-day, with the same scope, window and unit, is gone; `renamed_from: agent-day` would keep its balances)"),
        (AGENT_DAY.replace("window: day", "window: rolling 1d"), "agent-day starts at $0 from now: its window changed from day to rolling 1d"),
        (AGENT_DAY.replace("agent-day,", "daily, renamed_from: agent-day,").replace("agent,", "team,"), "daily starts at $0 from now: its scope changed from agent to team"),
    ],
)  # fmt: skip
def test_a_changed_identity_is_reported(load, new, sentence):
    assert changes(load, AGENT_DAY, new) == [sentence]


def test_what_is_not_identity_is_not_reported(load):
    assert changes(load, AGENT_DAY, AGENT_DAY.replace("$40", "$50, mode: advisory_estimate")) == []
    assert changes(load, AGENT_DAY, AGENT_DAY + "- {name: other, scope: run, limit: $1}\n") == []
    assert changes(load, AGENT_DAY, "- {name: other, scope: run, limit: $1}\n") == []
    lifetime = AGENT_DAY.replace("window: day", "window: lifetime")
    assert changes(load, lifetime, lifetime.replace("Europe/Berlin", "UTC")) == []
    rolling = AGENT_DAY.replace("window: day", "window: rolling 10m")
    assert changes(load, rolling, rolling.replace("Europe/Berlin", "UTC").replace("10m", "600s")) == []
    whole = "- {name: whole, scope: tenant, limit: $90}\n"
    assert changes(load, AGENT_DAY + whole, AGENT_DAY.replace("$40", "50% of whole") + whole) == []


RENAMED = AGENT_DAY.replace("agent-day,", "daily, renamed_from: agent-day,")


def test_a_budget_that_says_its_former_name_keeps_its_balances_whatever_its_name_is(load):
    assert changes(load, AGENT_DAY, RENAMED) == []
    assert changes(load, RENAMED, RENAMED.replace("daily", "per-day")) == []
    assert changes(load, RENAMED, AGENT_DAY) == []


@pytest.mark.parametrize("name", ["daily", "per-day, renamed_from: daily"], ids=["no longer said", "the name in between"])
def test_the_name_that_balances_are_kept_under_must_stay_said(load, name):
    assert changes(load, RENAMED, AGENT_DAY.replace("agent-day", name)) == [
        f"{name.split(',')[0]} starts at $0 from now: its balances are kept under agent-day (`renamed_from: agent-day` keeps them)"
    ]


def test_changes_are_found_against_a_running_gateways_gates_too(load):
    gates = [{"name": "b", "scope": "run", "window": "day", "timezone": "UTC", "limit": "1 call", "mode": "hard_gate"}]
    assert policy_file.changes_against(gates, load(BUDGET)) == [
        "b starts at $0 from now: its window changed from day to lifetime and its unit changed from calls to US dollars"
    ]
    same = [{"name": "b", "scope": "run", "window": "lifetime", "timezone": "UTC", "limit": "$9.00", "mode": "hard_gate"}]
    assert policy_file.changes_against(same, load(BUDGET)) == []


def test_shares_rolling_windows_and_former_names_are_found_among_the_gates(load):
    b = {"scope": "tenant", "timezone": "UTC", "mode": "hard_gate"}
    gates = [
        {"name": "new", "renamed_from": "a", "window": "rolling 10m", "limit": "50% of whole", **b},
        {"name": "whole", "window": "month", "limit": "60 calls", **b},
    ]
    whole = "- {name: whole, scope: tenant, limit: 9 calls}\n"
    same = load("version: 1\nbudgets:\n- {name: a, scope: tenant, window: rolling 600s, limit: 7 calls}\n" + whole)
    assert policy_file.changes_against(gates, same) == []
    other = load("version: 1\nbudgets:\n- {name: a, scope: tenant, window: rolling 1h, limit: $5}\n" + whole)
    assert policy_file.changes_against(gates, other) == [
        "a starts at $0 from now: its window changed from rolling 10m to rolling 1h and its unit changed from calls to US dollars"
    ]


# -- the design's own example -------------------------------------------------------------------------------------------------------

EXAMPLE = """\
# policies/default.yaml
version: 1
budgets:
  - name: run-ceiling
    scope: run                 # any dimension, a list of them, model, provider, or [] = the whole tenant
    limit: $5.00               # "$5.00" | "200k tokens" | "60 calls" | "50% of tenant-month" (of what is left there, pinned inside the run's first reserve)
    window: lifetime           # lifetime | minute | hour | day | week | month | rolling 10m …; default lifetime for run, else month
    timezone: UTC
    mode: hard_gate            # hard_gate | soft_gate (needs margin: 10% or $0.50) | actuals_only | advisory_estimate
    downgrade_below: 25%       # default none
    keep_for_wrap_up: 5%       # default none
    alerts: [50%, 80%, 100%]   # each fires once per account
    on_exhausted: block        # block | pause (the run waits until someone raises it)
    on_outage: block           # block | allow; default block for hard_gate and soft_gate, allow for the others
    missing: share             # a call without this dimension: share (counts under "-", so nobody escapes by leaving a header out) | refuse | skip
    overrides:                 # may set limit, mode, margin, downgrade_below, on_exhausted; the first match wins
      - {match: {team: research, agent: "nightly-*"}, limit: $20}
  - {name: agent-day, scope: agent, window: day, timezone: Europe/Berlin, limit: $40}
  - {name: tenant-month, scope: tenant, window: month, limit: $2000}
  - {name: burn-rate, scope: run, window: rolling 1m, limit: $0.50}
  - {name: steps, scope: run, limit: 60 calls}
output:
  default_max_tokens: {"*": 8192, "o*": 32768, "gpt-5*": 32768}   # when the client names none; a number or a map by model
  max_tokens: 32768            # the most any call may ask for
  clamp_to_budget: false       # opt-in; always visible in a header
models:
  allow: ["*"]
  downgrade:                   # explicit ladders; or `downgrade: auto` = cheaper valid models of the same provider, dearest first
    "gpt-5": [gpt-5-mini, gpt-5-nano]
identity: {agent: header:X-Agent-Id, user: [header:X-User-Id, body:user], team: header:X-Team-Id, feature: header:X-Feature}
runs:
  id_from: [path, header:X-Run-Id]     # first that is present; a header that disagrees with the path is ignored and logged
  untagged: shared             # a call without a run id gets a fresh id for itself; its run budgets draw on one account per key and UTC day
                               # (shared), on its own (per_call), or it is refused (refuse); what it spent shows under its own id too
  max_active_per_key: 200      # issued one-call runs do not count
  idle_ttl: 24h                # frees the active slot; balance, owner and stop stay until
  forget_after: 30d
  repeat_limit: off            # or {same_request: 5, within_calls: 20}
"""


def test_the_example_that_the_design_gives_is_a_policy_as_it_stands(tmp_path, json_schema):
    path = tmp_path / "p.yaml"
    path.write_text(EXAMPLE)
    policy = policy_file.load(path, bundled.load_catalog())
    json_schema(policy_file.policy_schema()).validate(yaml.safe_load(EXAMPLE))
    ceiling, day, month, rate, steps = policy.budgets
    assert [(each.name, each.scope, each.window_name) for each in policy.budgets] == [
        ("run-ceiling", ("run",), "lifetime"),
        ("agent-day", ("agent",), "day"),
        ("tenant-month", (), "month"),
        ("burn-rate", ("run",), "rolling 1m"),
        ("steps", ("run",), "lifetime"),
    ]
    assert (ceiling.terms.downgrade_below_ppm, ceiling.keep_for_wrap_up_ppm, ceiling.terms.pause) == (250_000, 50_000, False)
    assert (day.timezone.key, month.terms.limit, rate.terms.limit, steps.terms.limit) == (
        "Europe/Berlin",
        Limit(Unit.USD, 200_000_000_000),
        Limit(Unit.USD, 50_000_000),
        Limit(Unit.CALLS, 60),
    )
    assert ceiling.overrides[0].match == (("team", "research"), ("agent", "nightly-*"))
    assert policy.models.ladder_for("gpt-5") == ("gpt-5-mini", "gpt-5-nano")
    assert (policy.output, policy.identity, policy.runs) == (OutputPolicy(), DEFAULT_IDENTITY, RunsPolicy())
    assert policy.warnings == ()


# -- the shipped policies and the schema ------------------------------------------------------------------------------------------


def test_five_policies_are_shipped():
    assert [path.stem for path in SHIPPED] == ["advisory", "coding-agents", "cycles", "default", "per-agent-daily"]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_policy_is_read_without_a_mistake_or_a_warning(path):
    policy = policy_file.load(path, bundled.load_catalog())
    if path.stem == "cycles":  # its budgets come from elsewhere, which it says
        assert not policy.budgets
        assert len(policy.warnings) == 1
    else:
        assert policy.budgets
        assert policy.warnings == ()


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_the_schema_accepts_a_shipped_policy(path, json_schema):
    json_schema(policy_file.policy_schema()).validate(yaml.safe_load(path.read_text()))


def test_the_default_policy_has_the_ceilings_it_promises():
    policy = policy_file.load(Path("policies/default.yaml"), bundled.load_catalog())
    ceiling = policy.budgets[0]
    assert (ceiling.name, ceiling.scope, ceiling.terms.limit.amount) == ("run-ceiling", ("run",), 500_000_000)
    assert ceiling.terms.downgrade_below_ppm == 250_000
    assert policy.models.ladder_for("gpt-5") == ("gpt-5-mini", "gpt-5-nano")


def test_the_schema_is_valid_refuses_what_is_wrong_and_describes_every_key(json_schema):
    schema = policy_file.policy_schema()
    json_schema.check_schema(schema)
    validator = json_schema(schema)
    budget = {"name": "b", "scope": "run", "limit": "$5"}
    assert validator.is_valid(
        {"version": 1, "budgets": [budget], "runs": {"repeat_limit": "off"}, "models": {"downgrade": "auto"}}
    )
    for wrong in ({"limit": "five"}, {"limt": "$5"}, {"window": "dya"}, {"mode": "hard"}, {"alerts": ["half"]}):
        assert not validator.is_valid({"version": 1, "budgets": [budget | wrong]}), wrong
    sections = [schema, *schema["$defs"].values()]
    assert all(value.get("description") for section in sections for value in section["properties"].values())


# -- whatever is typed ------------------------------------------------------------------------------------------------------------

EMPTY = Policy("", ())
WORDS = st.sampled_from(
    [
        "version",
        "budgets",
        "name",
        "scope",
        "limit",
        "window",
        "mode",
        "margin",
        "overrides",
        "match",
        "alerts",
        "output",
        "models",
        "downgrade",
        "allow",
        "identity",
        "runs",
        "id_from",
        "repeat_limit",
        "run",
        "team",
        "$5",
        "50%",
        "60 calls",
        "50% of a",
        "rolling 1m",
        "soft_gate",
        "auto",
        "off",
        "header:X",
        "path",
        "*",
        "[key]",
        "default_max_tokens",
        "renamed_from",
        "",
    ]
)
LEAVES = st.one_of(WORDS, st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5))
TREES = st.recursive(
    LEAVES, lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(WORDS, inner, max_size=5)), max_leaves=25
)
ENTRIES = st.dictionaries(st.sampled_from(list(policy_file.BudgetFile.model_fields)), TREES, max_size=6)
FILES = st.fixed_dictionaries(
    {"version": st.just(1), "budgets": st.lists(ENTRIES, max_size=3)},
    optional={"output": TREES, "models": TREES, "identity": TREES, "runs": TREES},
)


@settings(max_examples=150, deadline=None)
@given(st.one_of(TREES, FILES))
def test_any_yaml_is_a_policy_or_mistakes(tmp_path_factory, tree):
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    path.write_text(yaml.safe_dump(tree))
    outcome = policy_file.reload(EMPTY, path, CATALOG)
    if isinstance(outcome, Mistakes):
        assert outcome.mistakes
        assert all(str(mistake).startswith(str(path)) and "\n" not in str(mistake) for mistake in outcome.mistakes)
