"""A config becomes Settings, or every mistake in it is named with its line; no secret is ever shown."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from gateway import bundled, config_file, policy_file, settings
from gateway.core.catalog import Catalog, Model, Rates, Route
from gateway.core.profiles import OnDisconnect, Profile
from gateway.settings import RedisSettings, Settings, SqliteSettings, StaticKey
from gateway.store_url import StoreUrl, Tls, Topology
from gateway.wire.unmetered import UnmeteredRoute
from gateway.yaml_source import Mistakes

PROFILES = {name: Profile(name, "max_tokens", stream_options=True) for name in ("generic", "openai", "anthropic", "llama.cpp")}
CATALOG = Catalog(
    "v1",
    {
        "gpt-5": Model(
            "gpt-5", "openai", (Rates(100, 200, 50, 100),), 1000, 100, capabilities=frozenset({"tools"}), encoding="o200k_base"
        ),
        "given-away": Model("given-away", "openai", (), 1000, 100, free=True),
    },
)
DAY_MS = 86_400_000
USD = 100_000_000  # microcents: a price of so many dollars per million tokens
SHA = "ab" * 32
CONFIG = "providers:\n  openai: {base_url: https://api.openai.com/v1, accepts_caller_keys: true}\n"


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Loads a config's text from a file named c.yaml in the current folder."""
    monkeypatch.chdir(tmp_path)

    def load(text: str, catalog: Catalog = CATALOG, **environ: str) -> Settings:
        Path("c.yaml").write_text(text)
        return settings.load(Path("c.yaml"), environ, catalog, PROFILES)

    return load


def mistakes_of(load, text: str, **environ: str) -> list[str]:
    with pytest.raises(Mistakes) as raised:
        load(text, **environ)
    return [str(mistake) for mistake in raised.value.mistakes]


@pytest.fixture
def json_schema():
    """The validator class of a package that only these tests need."""
    return pytest.importorskip("jsonschema").Draft202012Validator


# -- what is read -----------------------------------------------------------------------------------------------------------------


def test_routes_that_nothing_meters_are_let_through_one_by_one(load):
    routes = "[{route: POST /v1/files, provider: openai}, {route: 'GET /v1/files/{id}/content', provider: openai, cost: $0.01}]"
    assert load(f"{CONFIG}unmetered_routes: {routes}").unmetered_routes == (
        UnmeteredRoute("POST", "/v1/files", "openai", 0),
        UnmeteredRoute("GET", "/v1/files/{id}/content", "openai", 1_000_000),
    )
    assert (
        load(f"{CONFIG}unmetered_routes: [{{route: POST /v1/b, provider: openai, cost: 0.5}}]").unmetered_routes[0].cost
        == 50_000_000
    )
    assert load(CONFIG).unmetered_routes == ()


def test_a_provider_is_enough_and_the_rest_is_right_by_default(load):
    config = load(CONFIG)
    assert (config.listen_host, config.listen_port, config.auth) == ("127.0.0.1", 8080, "passthrough")
    assert (config.policy_path, config.state_dir) == (Path("policies/default.yaml"), Path("var"))
    assert config.ledger == SqliteSettings(Path("var/penstock.db"), timeout_ms=5_000, keep_ms=30 * DAY_MS, synchronous="NORMAL")
    assert (config.admin_token_env, config.admin_token) == ("PENSTOCK_ADMIN_TOKEN", None)
    assert (config.lease_ms, config.commit_wait_ms) == (600_000, 250)
    assert (config.background, config.background_lease_ms) == (False, 3_600_000)
    assert (config.max_request, config.max_response) == (20 << 20, 32 << 20)
    assert (config.max_bodies, config.max_buffered) == (512 << 20, 256 << 20)
    assert (config.max_connections, config.max_calls) == (10_000, 5_000)
    assert config.shutdown_grace_ms == 30_000
    assert config.drain == settings.Drain(30_000, 8 << 20, 64)
    assert (config.keys, config.allowed_hosts, config.allowed_origins, config.log) == ((), (), (), "stderr")
    assert not config.stream_summary
    assert config.catalog.version == "v1"
    assert config.warnings == ()
    openai = config.providers["openai"]
    assert (openai.name, openai.base_url, openai.scheme, openai.profile.name) == (
        "openai",
        "https://api.openai.com/v1",
        "authorization",
        "openai",
    )
    assert (openai.connect_timeout_ms, openai.idle_timeout_ms, openai.retries, openai.client) == (10_000, 600_000, 2, "lean")


def test_every_other_key_reaches_the_settings(load):
    config = load(
        """\
listen: "[::1]:0"
policy: other.yaml
ledger: {url: sqlite:////srv/ledger.db, timeout: 1s, keep: 7d, synchronous: FULL}
state_dir: /srv/state
auth: keys
admin_token_env: MY_TOKEN
background: allow
reservation: {lease: 1.5m, commit_wait: 10ms, background_lease: 8h}
providers:
  own: {base_url: "http://127.0.0.1:9801/v1/", models: "gemma-*", profile: llama.cpp, on_disconnect: full_hold,
        scheme: x-api-key, api_key_env: OWN_KEY, timeouts: {connect: 1s}, retries: 0, client: lean}
keys:
  - {name: ci, sha256: """
        + SHA
        + """, tenant: acme, dimensions: {team: research, agent: a1}}
allowed_hosts: [Gateway.Internal, "[::2]"]
allowed_origins: ["https://app.example.com"]
log: log/calls.jsonl
stream_summary: comment
limits: {max_request: 1 KB, max_response: 2MB, max_bodies: 4 MB, max_buffered: 3 GB, max_connections: 40, max_calls: 30}
upstream: {timeouts: {connect: 5s, idle: 1m}, retries: 5, client: aiohttp}
drain: {time: 1s, bytes: 0 B, number: 1}
shutdown: {grace: 0s}
""",
        MY_TOKEN=" an-admin-token-of-length ",
        OWN_KEY="sk-own",
    )
    assert (config.listen_host, config.listen_port, config.auth) == ("::1", 0, "keys")
    assert (config.policy_path, config.state_dir) == (Path("other.yaml"), Path("/srv/state"))
    assert config.ledger == SqliteSettings(Path("/srv/ledger.db"), timeout_ms=1_000, keep_ms=7 * DAY_MS, synchronous="FULL")
    assert config.admin_token == "an-admin-token-of-length"
    assert (config.lease_ms, config.commit_wait_ms) == (90_000, 10)
    assert (config.background, config.background_lease_ms) == (True, 28_800_000)
    assert (config.max_request, config.max_response) == (1 << 10, 2 << 20)
    assert (config.max_bodies, config.max_buffered) == (4 << 20, 3 << 30)
    assert (config.max_connections, config.max_calls) == (40, 30)
    assert config.shutdown_grace_ms == 0
    assert config.drain == settings.Drain(1_000, 0, 1)
    assert config.keys == (StaticKey("ci", SHA, "acme", (("agent", "a1"), ("team", "research"))),)
    assert (config.allowed_hosts, config.allowed_origins) == (("gateway.internal", "::2"), ("https://app.example.com",))
    assert (config.log, config.stream_summary) == ("log/calls.jsonl", True)
    own = config.providers["own"]
    assert (own.base_url, own.scheme, own.api_key, own.models) == (
        "http://127.0.0.1:9801/v1",
        "x-api-key",
        "sk-own",
        ("gemma-*",),
    )
    assert (own.profile.name, own.profile.on_disconnect) == ("llama.cpp", OnDisconnect.FULL_HOLD)
    assert (own.connect_timeout_ms, own.idle_timeout_ms, own.retries, own.client) == (1_000, 60_000, 0, "lean")
    assert config.catalog.provider_of("gemma-3") == "own"
    assert load(CONFIG + "upstream: {client: aiohttp}\n").providers["openai"].client == "aiohttp"


def test_a_redis_url_is_a_ledger_with_defaults_of_its_own(load):
    config = load(CONFIG + "ledger: redis://valkey.internal\n")
    url = StoreUrl(Topology.STANDALONE, (("valkey.internal", 6379),))
    assert config.ledger == RedisSettings(url, timeout_ms=5_000, keep_ms=2 * DAY_MS, wait_replicas=0)
    assert config.warnings == ()


def test_a_ledger_on_redis_takes_its_passwords_from_the_environment_and_its_files_beside_the_config(load, tmp_path):
    (tmp_path / "ca.pem").touch()
    config = load(
        CONFIG
        + f"""\
ledger:
  url: rediss+sentinel://gateway@a,b:1/main/2?ssl_ca_certs={tmp_path / "ca.pem"}
  timeout: 2s
  keep: 12h
  wait_replicas: 1
  password_env: STORE
  sentinel_password_env: SENTINEL
""",
        STORE="s3cret /@",
        SENTINEL="s3cret 2",
    )
    url = StoreUrl(
        Topology.SENTINEL,
        (("a", 26379), ("b", 1)),
        service="main",
        db=2,
        user="gateway",
        password="s3cret /@",
        sentinel_password="s3cret 2",
        tls=Tls(str(tmp_path / "ca.pem")),
    )
    assert config.ledger == RedisSettings(url, timeout_ms=2_000, keep_ms=DAY_MS // 2, wait_replicas=1)
    assert "s3cret" not in f"{config} {config.ledger}"
    assert str(config.ledger) == "rediss+sentinel://a:26379,b:1/main/2"
    assert config.warnings == ()


@pytest.mark.parametrize(
    ("ledger", "warned"),
    [
        ("redis://:secret@127.0.0.1", "c.yaml:3: ledger: the password stands in the file: `password_env` keeps it out"),
        ("{url: 'redis://127.0.0.1', password_env: P}", "c.yaml:3: ledger.password_env: P is not set, so no password is sent"),
        (
            "{url: 'redis://10.0.0.1', password_env: SET}",
            "c.yaml:3: ledger: the password goes there in plain text, readable on the way: rediss:// has TLS",
        ),
    ],
)
def test_a_password_that_others_may_read_or_that_is_missing_is_a_warning(load, ledger, warned):
    assert load(CONFIG + f"ledger: {ledger}\n", SET="x").warnings == (warned,)


def test_paths_are_relative_to_the_configs_folder(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(CONFIG + "log: calls.jsonl\n")
    config = settings.load(path, {}, CATALOG, PROFILES)
    assert config.policy_path == tmp_path / "policies/default.yaml"
    assert config.ledger == SqliteSettings(tmp_path / "var/penstock.db")
    assert (config.state_dir, config.log) == (tmp_path / "var", str(tmp_path / "calls.jsonl"))


def test_an_anthropic_provider_takes_its_key_in_its_own_header(load):
    config = load(CONFIG + "  anthropic: {base_url: https://api.anthropic.com, accepts_caller_keys: true}\n")
    assert config.providers["anthropic"].scheme == "x-api-key"


def test_a_provider_of_another_name_is_generic_unless_it_names_a_profile(load):
    config = load(CONFIG + "  a: {base_url: http://127.0.0.1}\n  b: {base_url: http://127.0.0.1, profile: openai}\n")
    assert [config.providers[name].profile.name for name in ("a", "b")] == ["generic", "openai"]


def test_no_secret_is_in_a_repr(load):
    config = load(
        CONFIG.replace("accepts", "api_key_env: OPENAI_API_KEY, accepts"),
        OPENAI_API_KEY="sk-secret",
        PENSTOCK_ADMIN_TOKEN="t" * 20,
    )
    assert (config.providers["openai"].api_key, config.admin_token) == ("sk-secret", "t" * 20)
    assert "sk-secret" not in repr(config)
    assert "t" * 20 not in repr(config)


# -- models -----------------------------------------------------------------------------------------------------------------------

NEW_MODEL = "models:\n  m: {provider: openai, context: 100, max_output: 10, price: {input: 0.1, output: 0.4}}\n"


def test_a_new_models_prices_are_exact(load):
    model = load(CONFIG + NEW_MODEL).catalog.find("m")
    assert model == Model("m", "openai", (Rates(10_000_000, 40_000_000, 10_000_000, 10_000_000),), 100, 10)


@pytest.mark.parametrize(
    ("written", "microcents"),
    [
        ("3", 300_000_000),
        ("0.07", 7_000_000),
        ("'0.07'", 7_000_000),
        ("$1.25", 125_000_000),
        ("1e-3", 100_000),
        ("0.00000001", 1),
    ],
)
def test_a_price_may_be_any_kind_of_number(load, written, microcents):
    model = load(CONFIG + NEW_MODEL.replace("0.1,", f"{written},")).catalog.find("m")
    assert model is not None
    assert model.tiers[0].input == microcents


def test_every_key_of_a_model_is_read(load):
    model = load(
        CONFIG
        + """
models:
  m:
    provider: openai
    context: 100
    max_output: 10
    max_input: 90
    price: {input: 1, output: 2, cached_input: 0.5, cache_write: 1.5, cache_write_long: 3, tiers: [{above_input_tokens: 50, input: 2, output: 4}]}
    capabilities: [vision, json_schema]
    parameters: [temperature]
    encoding: cl100k_base
    reasoning: true
"""
    ).catalog.find("m")
    usd = 100_000_000
    assert model == Model(
        "m",
        "openai",
        (
            Rates(usd, 2 * usd, usd // 2, usd * 3 // 2, cache_write_long=3 * usd),
            Rates(2 * usd, 4 * usd, 2 * usd, 2 * usd, above_input_tokens=50),
        ),
        100,
        10,
        max_input=90,
        capabilities=frozenset({"vision", "json_schema"}),
        parameters=frozenset({"temperature"}),
        encoding="cl100k_base",
        reasoning=True,
    )


def test_routes_are_tried_in_order_each_with_the_prices_of_what_is_asked_for_there(load):
    text = """  b: {base_url: http://127.0.0.1}
models:
  dear: {price: {input: 3, output: 9}, context: 9, max_output: 9, provider: b}
  gpt-5: {routes: [b, {provider: openai, model: our-gpt-5}]}
  fast: {routes: [{provider: openai, model: gpt-5}, {provider: b, model: dear}]}
"""
    catalog = load(CONFIG + text).catalog
    gpt_5, dear = catalog.models["gpt-5"], catalog.models["dear"]
    assert catalog.routes_of("gpt-5") == (Route("b", gpt_5), Route("openai", replace(gpt_5, name="our-gpt-5")))
    assert catalog.routes_of("fast") == (Route("openai", gpt_5), Route("b", dear))
    assert (catalog.provider_of("gpt-5"), catalog.provider_of("fast")) == ("b", "openai")
    assert replace(catalog.models["fast"], name="gpt-5", provider="b") == gpt_5


def test_an_override_keeps_what_it_does_not_name(load):
    catalog = load(CONFIG + "models: {gpt-5: {max_output: 50}}\n").catalog
    model = catalog.find("gpt-5")
    assert model is not None
    assert (model.max_output, model.context, model.tiers[0].input, model.capabilities) == (50, 1000, 100, frozenset({"tools"}))
    assert catalog.find("given-away") is not None
    assert re.fullmatch(r"v1\+[0-9a-f]{8}", catalog.version)


def test_prices_of_sound_images_and_service_tiers_are_exact(load):
    model = load(
        CONFIG
        + """\
models:
  m:
    provider: openai
    context: 100
    max_output: 10
    price:
      {input: 1, output: 2, audio_input: 40, cached_audio: 2.5, audio_output: 80, image_input: 5, cached_image: 1.25, image_output: 32,
       service_tiers: {flex: {input: 0.5, output: 1}, priority: {input: 2, output: 4, tiers: [{above_input_tokens: 9, input: 3, output: 6}]}}}
"""
    ).catalog.find("m")
    assert dict(model.tiers[0].others) == {
        "audio_input": 40 * USD,
        "cached_audio": 250_000_000,
        "audio_output": 80 * USD,
        "image_input": 5 * USD,
        "cached_image": 125_000_000,
        "image_output": 32 * USD,
    }
    tiers = dict(model.service_tiers)
    assert [(rates.input, rates.above_input_tokens) for rates in tiers["priority"]] == [(2 * USD, 0), (3 * USD, 9)]
    assert tiers["flex"][0].output == USD


def test_what_is_billed_by_the_piece_needs_no_price_of_tokens_and_no_limits(load):
    catalog = load(
        CONFIG
        + """\
models:
  draws: {provider: openai, price: {per_image: {standard/1024x1024: 0.04, hd/1024x1024: 0.08}}}
  hears: {provider: openai, price: {per_second: 0.0001}}
  speaks: {provider: openai, price: {per_character: 0.000015}}
  finds: {provider: openai, context: 8191, price: {input: 0.02}}
"""
    ).catalog
    cents = 1_000_000 * USD // 100
    assert catalog.find("draws").fees == (
        ("images", 8 * cents),
        ("images/hd/1024x1024", 8 * cents),
        ("images/standard/1024x1024", 4 * cents),
    )
    assert catalog.find("hears").fees == (("audio_seconds", cents // 100),)
    assert catalog.find("speaks").fees == (("characters", 1_500_000_000),)
    assert all(catalog.find(name).priced and catalog.find(name).context > 8_000 for name in ("draws", "hears", "speaks", "finds"))
    assert (catalog.find("finds").tiers[0].input, catalog.find("finds").tiers[0].output) == (2_000_000, 0)


def test_fees_classes_and_tiers_that_a_price_does_not_name_stay_as_bundled(load):
    bundled = replace(
        CATALOG.find("gpt-5"),
        tiers=(Rates(1, 1, 1, 1, others=(("audio_input", 7),)),),
        service_tiers=(("flex", (Rates(1, 1, 1, 1),)), ("priority", (Rates(9, 9, 9, 9),))),
        fees=(("file_searches", 5), ("web_searches", 1), ("web_searches/low", 2)),
    )
    price = "{input: 2, output: 3, web_search: 0, service_tiers: {flex: {input: 1, output: 2}}}"
    model = load(CONFIG + f"models: {{gpt-5: {{price: {price}}}}}\n", catalog=Catalog("v", {"gpt-5": bundled})).catalog.find(
        "gpt-5"
    )
    assert (model.tiers[0].input, model.tiers[0].others) == (2 * USD, (("audio_input", 7),))
    assert model.fees == (("file_searches", 5), ("web_searches", 0))
    assert {name: tiers[0].input for name, tiers in model.service_tiers} == {"flex": USD, "priority": 9}


def test_a_fee_alone_leaves_the_bundled_prices_of_tokens(load):
    model = load(CONFIG + "models: {gpt-5: {price: {web_search: 0.01}}}\n").catalog.find("gpt-5")
    assert (model.tiers, model.fees) == (CATALOG.find("gpt-5").tiers, (("web_searches", USD * 10_000),))


def test_flat_reserves_are_part_of_the_price_table(load):
    plain, flat = load(CONFIG), load(CONFIG + "reservation: {flat: {tools.web_search: $0.25, prediction: 0.05}}\n")
    assert flat.catalog.flat == {"tools.web_search": USD // 4, "prediction": USD // 20}
    assert flat.catalog.version.startswith(plain.catalog.version + "+")


def test_free_takes_the_price_away_and_a_price_takes_free_away(load):
    catalog = load(CONFIG + "models: {gpt-5: {free: true}, given-away: {price: {input: 1, output: 1}}}\n").catalog
    freed, priced = catalog.find("gpt-5"), catalog.find("given-away")
    assert freed is not None
    assert priced is not None
    assert (freed.free, freed.tiers) == (True, ())
    assert (priced.free, len(priced.tiers)) == (False, 1)


def test_an_exact_name_goes_before_a_pattern_and_a_pattern_before_the_catalog(load):
    catalog = load(CONFIG + '  local: {base_url: http://127.0.0.1, models: ["gpt-*", "m*"]}\n' + NEW_MODEL).catalog
    assert [catalog.provider_of(name) for name in ("m", "mistral", "gpt-5", "given-away", "nobody")] == [
        "openai",
        "local",
        "local",
        "openai",
        None,
    ]


# -- what is refused --------------------------------------------------------------------------------------------------------------

# What follows CONFIG, which has two lines.
MISTAKES = [
    ("listn: x", 'c.yaml:3: listn: found an unknown key, expected one of listen, policy, … (did you mean "listen"?)'),
    ("listen: 8080", "c.yaml:3: listen: found 8080, expected HOST:PORT such as 127.0.0.1:8080"),
    ("listen: :8080", 'c.yaml:3: listen: found ":8080", expected HOST:PORT such as 127.0.0.1:8080'),
    ("listen: 127.0.0.1:70000", 'c.yaml:3: listen: found "127.0.0.1:70000", expected HOST:PORT such as 127.0.0.1:8080'),
    ("listen: 0.0.0.0:8080", 'c.yaml:3: listen: found "0.0.0.0:8080", expected a loopback address such as 127.0.0.1:8080, or `auth: keys`…'),
    ("listen: gateway:80", 'c.yaml:3: listen: found "gateway:80", expected a loopback address such as…'),
    ("policy: ''", 'c.yaml:3: policy: found "", expected a path'),
    ("ledger: redis://:secret@host/x", "c.yaml:3: ledger: found another URL (not shown: it may hold a password), expected a database's number, such as redis://host/1"),
    ("ledger: redis://a,b", "c.yaml:3: ledger: found another URL (not shown: it may hold a password), expected one server; several are redis+cluster:// or redis+sentinel://"),
    ("ledger: rediss://:secret@host?ssl_ca=x", 'c.yaml:3: ledger: found another URL (not shown: it may hold a password), expected one of the options … (did you mean "ssl_ca_certs"?)'),
    ("ledger: redis://host?ssl_ca_certs=x", "c.yaml:3: ledger: found another URL (not shown: it may hold a password), expected no options"),
    ("ledger: rediss://host?ssl_check_hostname=no", "c.yaml:3: ledger: found another URL (not shown: it may hold a password), expected ssl_check_hostname=true or =false"),
    ("ledger: rediss://host?ssl_ca_certs=none.pem", "c.yaml:3: ledger: found no file none.pem, expected an existing file as ssl_ca_certs"),
    ("ledger: redis://:se#cret@host", "c.yaml:3: ledger: found another URL (not shown: it may hold a password), expected a URL without a fragment: a # in a password is %23"),
    ("ledger: redis://:secret@host:99999", "c.yaml:3: ledger: found another URL (not shown: it may hold a password), expected HOST or HOST:PORT, more of them after commas"),
    ("ledger: redis+cluster://a,b/1", "c.yaml:3: ledger: found another URL (not shown: it may hold a password), expected no database: a cluster has only one"),
    ("ledger: redis+sentinel://a", "c.yaml:3: ledger: found another URL (not shown: it may hold a password), expected the service's name after the sentinels: redis+sentinel://host1,host2/service"),
    ("ledger: redis+unix://host/x", "c.yaml:3: ledger: found another URL (not shown: it may hold a password), expected a path after three slashes, such as redis+unix:///run/valkey.sock"),
    ("ledger: redis//:secret@host", "c.yaml:3: ledger: found something else (not shown: it may be a secret), expected a URL such as sqlite:///…"),
    ("ledger: postgres://h/d", "c.yaml:3: ledger: found a URL with another scheme, expected a URL such as sqlite:///var/penstock.db (three slashes: relative; four: absolute)…"),
    ("ledger: sqlite://var/x.db", 'c.yaml:3: ledger: found "sqlite://var/x.db", expected a URL such as sqlite:///…'),
    ("ledger: sqlite:///", 'c.yaml:3: ledger: found "sqlite:///", expected a URL such as sqlite:///…'),
    ("ledger: var/x.db", 'c.yaml:3: ledger: found "var/x.db", expected a URL such as sqlite:///…'),
    ("ledger: {timeout: 1s}", "c.yaml:3: ledger.url: found nothing, expected a URL such as sqlite:///…"),
    ("ledger: {url: 'redis://:secret@h:0'}", "c.yaml:3: ledger.url: found another URL (not shown: it may hold a password), expected HOST or HOST:PORT…"),
    ("ledger: {url: sqlite:///x, timeout: 2h}", 'c.yaml:3: ledger.timeout: found "2h", expected a duration from 10ms to 60s…'),
    ("ledger: {url: sqlite:///x, synchronous: full}", 'c.yaml:3: ledger.synchronous: found "full", expected one of NORMAL, FULL'),
    ("ledger: {url: sqlite:///x, wait_replicas: 1}", "c.yaml:3: ledger.wait_replicas: found a key that is Redis's, expected a Redis URL beside it: a file has none"),
    ("ledger: {url: 'redis://h', synchronous: FULL}", "c.yaml:3: ledger.synchronous: found a key that is SQLite's, expected a sqlite:/// URL…"),
    ("ledger: {url: 'redis://:x@h', password_env: P}", "c.yaml:3: ledger.password_env: found another one, expected one password: the URL has one"),
    ("ledger: {url: 'redis://h', sentinel_password_env: P}", "c.yaml:3: ledger.sentinel_password_env: found a key that is the sentinels', expected a redis+sentinel:// URL beside it"),
    ("unmetered_routes: [{route: POST /v1/files, provider: openia}]", 'c.yaml:3: unmetered_routes[0].provider: found "openia", expected one of `providers`: openai (did you mean "openai"?)'),
    ("unmetered_routes: [{route: POST /v1/chat/completions, provider: openai}]", "c.yaml:3: unmetered_routes[0].route: found POST /v1/chat/completions, expected a route that nothing meters: this one is metered"),
    ("unmetered_routes: [{route: GET /v1/models, provider: openai}]", "c.yaml:3: unmetered_routes[0].route: found GET /v1/models, expected a route that nothing meters: this one is metered"),
    ("unmetered_routes: [{route: 'GET /v1/f/{a}', provider: openai}, {route: 'GET /v1/f/{b}', provider: openai}]", "c.yaml:3: unmetered_routes[1].route: found GET /v1/f/{b}, expected each route once"),
    ("unmetered_routes: [{route: POST /v1/files}]", "c.yaml:3: unmetered_routes[0].provider: found nothing, expected a provider's name…"),
    ("unmetered_routes: [{route: POST /v1/files, provider: openai, cost: -1}]", "c.yaml:3: unmetered_routes[0].cost: found -1, expected an amount in US dollars such as 0.01"),
    ("unmetered_routes: [{route: POST /v1/files, provider: openai, cost: .nan}]", "c.yaml:3: unmetered_routes[0].cost: found .nan, expected an amount in US dollars such as 0.01"),
    *((f"unmetered_routes: [{{route: '{route}', provider: openai}}]", f'c.yaml:3: unmetered_routes[0].route: found "{route}", expected a method and a path such as GET /v1/files/{{id}}…')
      for route in ("/v1/files", "post /v1/files", "TRACE /v1/files", "POST /files", "POST /v1/files/", "POST /v1//files", "POST /v1/Files", "POST /v1/%66iles",
                    "POST /v1/../files", "POST /v1/files?x=1", "POST  /v1/files", "POST /v1/{any}", "GET /v1/files/{id%}", "GET /v1/files/x{id}", "POST /v1")),
    ("reservation: {ledger_timeout: 1s}", "c.yaml:3: reservation.ledger_timeout: found an unknown key, expected `timeout` in the section of the ledger…"),
    ("sqlite: {synchronous: FULL}", "c.yaml:3: sqlite: found an unknown key, expected `synchronous` in the section of the ledger…"),
    ("auth: key", 'c.yaml:3: auth: found "key", expected one of passthrough, keys (did you mean "keys"?)'),
    ("admin_token_env: my-secret-token", "c.yaml:3: admin_token_env: found something else (not shown: it may be a secret), expected the name of an environment variable (not its value)"),
    ("background: yes", 'c.yaml:3: background: found "yes", expected one of refuse, allow'),
    ("reservation: {lease: 10}", "c.yaml:3: reservation.lease: found 10, expected a duration from 1s to 24h…"),
    ("reservation: {lease: 2d}", 'c.yaml:3: reservation.lease: found "2d", expected a duration from 1s to 24h…'),
    ("reservation: 10m", 'c.yaml:3: reservation: found "10m", expected a mapping of keys to values'),
    ("limits: {max_request: 20}", 'c.yaml:3: limits.max_request: found 20, expected a size from 1 KB to 1 GB, such as "20 MB"…'),
    ("limits: {max_request: 2 GB}", 'c.yaml:3: limits.max_request: found "2 GB", expected a size from 1 KB to 1 GB…'),
    ("upstream: {client: curl}", 'c.yaml:3: upstream.client: found "curl", expected one of lean, aiohttp'),
    ("upstream: {retries: 11}", "c.yaml:3: upstream.retries: found 11, expected a whole number from 0 to 10"),
    ("upstream: {timeouts: {connect: soon}}", 'c.yaml:3: upstream.timeouts.connect: found "soon", expected a duration from 100ms to 1h…'),
    ("allowed_hosts: [a:80]", 'c.yaml:3: allowed_hosts[0]: found "a:80", expected a host name without a port'),
    ("allowed_origins: [app.example.com]", 'c.yaml:3: allowed_origins[0]: found "app.example.com", expected an origin such as https://app.example.com'),
    ("allowed_origins: ['*']", 'c.yaml:3: allowed_origins[0]: found "*", expected an origin such as https://app.example.com'),
    ("log: ''", 'c.yaml:3: log: found "", expected stderr, stdout or a file\'s path'),
    ("  b: {base_url: https://h, accepts_caller_keys: yes}", "c.yaml:3: providers.b.accepts_caller_keys: found \"yes\", expected one provider that accepts callers' keys in `authorization`: openai does already"),
    ("  b: {}", "c.yaml:3: providers.b.base_url: found nothing, expected an http or https URL such as https://api.openai.com/v1 (the key is required)"),
    ("  b: {base_url: ftp://h}", 'c.yaml:3: providers.b.base_url: found "ftp://h", expected an http or https URL…'),
    ("  b: {base_url: api.openai.com}", 'c.yaml:3: providers.b.base_url: found "api.openai.com", expected an http or https URL…'),
    ("  b: {base_url: 'https://h?a=b'}", 'c.yaml:3: providers.b.base_url: found "https://h?a=b", expected an http or https URL…'),
    ("  b: {base_url: 'https://h:99999'}", 'c.yaml:3: providers.b.base_url: found "https://h:99999", expected an http or https URL…'),
    ("  b: {base_url: 'https://u:secret@h'}", "c.yaml:3: providers.b.base_url: found a URL with a user or password (not shown), expected a URL without a user: keys come from `api_key_env`"),
    ("  b: {base_url: https://h, api_key: sk-secret}", 'c.yaml:3: providers.b.api_key: found an unknown key, expected one of base_url, … (did you mean "api_key_env"?)'),
    ("  b: {base_url: https://h, api_key_env: sk-secret}", "c.yaml:3: providers.b.api_key_env: found something else (not shown: it may be a secret), expected the name of an environment variable…"),
    ("  b: {base_url: https://h, profile: llama}", 'c.yaml:3: providers.b.profile: found "llama", expected one of anthropic, generic, llama.cpp, openai (did you mean "llama.cpp"?)'),
    ("  b: {base_url: https://h, on_disconnect: stop}", 'c.yaml:3: providers.b.on_disconnect: found "stop", expected one of drain, count, full_hold'),
    ("  b: {base_url: https://h, scheme: bearer}", 'c.yaml:3: providers.b.scheme: found "bearer", expected one of authorization, x-api-key'),
    ("  b c: {base_url: https://h}", 'c.yaml:3: providers["b c"]: found "b c", expected a provider\'s name: letters, digits, dots, dashes or underscores'),
    ("models: {m: {provider: opnai, context: 9, max_output: 9, free: true}}", 'c.yaml:3: models.m.provider: found "opnai", expected one of `providers`: openai (did you mean "openai"?)'),
    ("models: {m: {context: 9, max_output: 9, free: true}}", "c.yaml:3: models.m.provider: found nothing, expected the provider that serves it: the bundled catalog does not know this model"),
    ("models: {m: {provider: openai, max_output: 9, free: true}}", "c.yaml:3: models.m.context: found nothing, expected a number of tokens: the bundled catalog does not know this model"),
    ("models: {m: {provider: openai, context: 9, free: true}}", "c.yaml:3: models.m.max_output: found nothing, expected a number of tokens: the bundled catalog does not know this model"),
    ("models: {gpt-5: {free: true, price: {input: 1, output: 1}}}", "c.yaml:3: models.gpt-5.free: found true, expected either a price or `free: true`, not both"),
    ("models: {gpt-5: {price: {input: 1}}}", "c.yaml:3: models.gpt-5.price.output: found nothing, expected a price in US dollars per million tokens, such as 0.25 (the key is required)"),
    ("models: {gpt-5: {price: {output: 1}}}", "c.yaml:3: models.gpt-5.price.input: found nothing, expected a price in US dollars per million tokens, such as 0.25 (the key is required)"),
    ("models: {gpt-5: {price: {input: 1, output: 1, service_tiers: {priority: {input: 2}}}}}", "c.yaml:3: models.gpt-5.price.service_tiers.priority.output: found nothing, expected a price in US dollars…"),
    ("models: {gpt-5: {price: {input: 1, output: 1, tiers: [{above_input_tokens: 9, output: 1}]}}}", "c.yaml:3: models.gpt-5.price.tiers[0].input: found nothing, expected a price in US dollars…"),
    ("models: {gpt-5: {price: {per_image: {}}}}", "c.yaml:3: models.gpt-5.price.per_image: found a mapping, expected an amount in US dollars such as 0.04, or such amounts by quality/size"),
    ("models: {gpt-5: {price: {per_image: {hd: 0}}}}", "c.yaml:3: models.gpt-5.price.per_image: found a mapping, expected an amount above 0"),
    ("models: {gpt-5: {price: {per_second: 0}}}", "c.yaml:3: models.gpt-5.price.per_second: found 0, expected an amount above 0"),
    ("models: {gpt-5: {price: {per_character: .nan}}}", "c.yaml:3: models.gpt-5.price.per_character: found .nan, expected an amount above 0, not NaN"),
    ("models: {gpt-5: {price: {web_search: -1}}}", "c.yaml:3: models.gpt-5.price.web_search: found -1, expected an amount of at least 0"),
    ("models: {gpt-5: {price: {per_request: 2000}}}", "c.yaml:3: models.gpt-5.price.per_request: found 2000, expected at most 1,000 US dollars for one"),
    ("models: {gpt-5: {price: {per_character: 0.000000000000001}}}", "c.yaml:3: models.gpt-5.price.per_character: found 0.000000000000001, expected an amount with at most 14 decimals"),
    ("models: {gpt-5: {price: {per_second: 1, tiers: [{above_input_tokens: 9, input: 1}]}}}", "c.yaml:3: models.gpt-5.price.input: found nothing, expected a price per million tokens: tiers have some"),
    ("reservation: {flat: {tools.web_search: much}}", 'c.yaml:3: reservation.flat["tools.web_search"]: found "much", expected an amount in US dollars such as 0.01'),
    ("models: {gpt-5: {price: {input: 0, output: 1}}}", "c.yaml:3: models.gpt-5.price.input: found 0, expected a price above 0; a model that costs nothing says `free: true`"),
    ("models: {gpt-5: {price: {input: -1, output: 1}}}", "c.yaml:3: models.gpt-5.price.input: found -1, expected a price above 0; …"),
    ("models: {gpt-5: {price: {input: .nan, output: 1}}}", "c.yaml:3: models.gpt-5.price.input: found .nan, expected a price above 0; …, not NaN"),
    ("models: {gpt-5: {price: {input: NaN, output: 1}}}", 'c.yaml:3: models.gpt-5.price.input: found "NaN", expected a price above 0; …'),
    ("models: {gpt-5: {price: {input: .inf, output: 1}}}", "c.yaml:3: models.gpt-5.price.input: found .inf, expected a price above 0; …"),
    ("models: {gpt-5: {price: {input: cheap, output: 1}}}", 'c.yaml:3: models.gpt-5.price.input: found "cheap", expected a price in US dollars per million tokens, such as 0.25'),
    ("models: {gpt-5: {price: {input: true, output: 1}}}", "c.yaml:3: models.gpt-5.price.input: found true, expected a price in US dollars…"),
    ("models: {gpt-5: {price: {input: 200000, output: 1}}}", "c.yaml:3: models.gpt-5.price.input: found 200000, expected at most 100,000 US dollars per million tokens"),
    ("models: {gpt-5: {price: {input: 0.000000001, output: 1}}}", "c.yaml:3: models.gpt-5.price.input: found 0.000000001, expected a price with at most 8 decimals"),
    ("models: {gpt-5: {price: {input: 1, output: 1, tiers: [{above_input_tokens: 9, input: 1, output: 1}, {above_input_tokens: 9, input: 1, output: 1}]}}}", "c.yaml:3: models.gpt-5.price.tiers[1].above_input_tokens: found 9, expected more than the tier before it"),
    ("models: {gpt-5: {capabilities: [visio]}}", 'c.yaml:3: models.gpt-5.capabilities[0]: found "visio", expected one of tools, vision, … (did you mean "vision"?)'),
    ("models: {gpt-5: {encoding: p50k_base}}", 'c.yaml:3: models.gpt-5.encoding: found "p50k_base", expected o200k_base or cl100k_base'),
    ("models: {gpt-5: {routes: [openai, opnai]}}", 'c.yaml:3: models.gpt-5.routes[1]: found "opnai", expected one of `providers`: openai (did you mean "openai"?)'),
    ("models: {gpt-5: {routes: [{provider: opnai, model: x}]}}", 'c.yaml:3: models.gpt-5.routes[0]: found "opnai", expected one of `providers`: openai (did you mean "openai"?)'),
    ("models: {gpt-5: {routes: [openai, {provider: openai, model: x}]}}", 'c.yaml:3: models.gpt-5.routes[1]: found "openai", expected each provider once'),
    ("models: {m: {max_output: 9, context: 9, routes: openai}}", 'c.yaml:3: models.m.routes: found "openai", expected a list'),
    ("models: {gpt-5: {provider: openai, routes: [openai]}}", 'c.yaml:3: models.gpt-5.provider: found "openai", expected either a provider or `routes`, not both'),
    ("models: {m: {max_output: 9, routes: [{provider: openai, model: m2}]}}", "c.yaml:3: models.m.context: found nothing, expected a number of tokens: the bundled catalog does not know this model"),
    ("models: {gpt-5: {context: 0}}", "c.yaml:3: models.gpt-5.context: found 0, expected a whole number from 1 to 100,000,000"),
    ("models: {'gpt-*': {context: 9}}", 'c.yaml:3: models["gpt-*"]: found "gpt-*", expected a model\'s name, without * and ?'),
    ("auth: keys\nkeys: [{name: a, sha256: pk-secret}]", "c.yaml:4: keys[0].sha256: found something else (not shown: it may be a secret), expected the SHA-256 of a key in lower-case hex…"),
    (f"auth: keys\nkeys: [{{sha256: {SHA}}}]", "c.yaml:4: keys[0].name: found nothing, expected 1 to 64 letters, digits, dots, dashes or underscores (the key is required)"),
    (f"auth: keys\nkeys: [{{name: a, sha256: {SHA}, dimensions: {{run: x}}}}]", 'c.yaml:4: keys[0].dimensions.run: found "run", expected another name: run, key, tenant, model, provider are filled by the gateway itself'),
    (f"auth: keys\nkeys: [{{name: admin, sha256: {SHA}}}]", 'c.yaml:4: keys[0].name: found "admin", expected another name: admin, anonymous, budget stand for others in the records'),
    (f"auth: keys\nkeys: [{{name: a, sha256: {SHA}, tenant: -cycles-}}]", 'c.yaml:4: keys[0].tenant: found "-cycles-", expected 1 to 64 letters, digits, dots, dashes or underscores, but not -cycles-'),
    (f"auth: keys\nkeys: [{{name: a, sha256: {SHA}, dimensions: {{team: 5}}}}]", "c.yaml:4: keys[0].dimensions.team: found 5, expected text of 1 to 256 characters"),
    (f"auth: keys\nkeys:\n- {{name: a, sha256: {SHA}}}\n- {{name: a, sha256: {'cd' * 32}}}", 'c.yaml:6: keys[1].name: found "a", expected each key once'),
]  # fmt: skip


@pytest.mark.parametrize(("text", "told"), MISTAKES)
def test_a_mistake_is_told_with_its_line_and_key(load, text, told):
    (mistake,) = mistakes_of(load, CONFIG + text + "\n")
    assert re.fullmatch(".*".join(map(re.escape, told.split("…"))), mistake), mistake
    assert "secret" not in mistake.replace("a secret", "")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("listen: 127.0.0.1:1\n", "c.yaml:1: providers: found nothing, expected this key: it is required"),
        ("listen: 127.0.0.1:1\nproviders: {}\n", "c.yaml:2: providers: found a mapping, expected at least one provider"),
        ("providers: [openai]\n", "c.yaml:1: providers: found a list, expected a mapping of keys to values"),
        (
            "providers: {openai: https://h}\n",
            'c.yaml:1: providers.openai: found "https://h", expected a mapping of keys to values',
        ),
    ],
)
def test_a_config_without_providers_is_a_mistake(load, text, told):
    assert mistakes_of(load, text) == [told]


def test_a_secret_that_no_header_can_carry_is_a_mistake_and_not_shown(load):
    text = CONFIG.replace("accepts", "api_key_env: OPENAI_API_KEY, accepts")
    mistakes = mistakes_of(load, text, OPENAI_API_KEY="sk-sec\nret", PENSTOCK_ADMIN_TOKEN="söcret")
    expected = "expected a variable whose value is one word of printable ASCII"
    assert mistakes == [
        f"c.yaml:1: admin_token_env: found PENSTOCK_ADMIN_TOKEN with another value (not shown), {expected}",
        f"c.yaml:2: providers.openai.api_key_env: found OPENAI_API_KEY with another value (not shown), {expected}",
    ]


def test_a_listener_beyond_loopback_is_fine_with_keys(load):
    config = load(CONFIG + f"listen: 0.0.0.0:8080\nauth: keys\nkeys: [{{name: a, sha256: {SHA}}}]\n")
    assert (config.listen_host, config.auth) == ("0.0.0.0", "keys")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "localhost", "[::1]"])
def test_loopback_needs_no_keys(load, host):
    assert load(CONFIG + f'listen: "{host}:1"\n').listen_port == 1


def test_all_mistakes_of_a_file_are_told_at_once_in_its_order(load):
    mistakes = mistakes_of(
        load,
        """\
listen: 0.0.0.0:80
ledger: redis://a,b
providers:
  a: {base_url: nowhere, retries: many}
  b: {base_url: https://h, profile: bee}
models:
  m: {provider: c, price: {input: 0}}
keys:
  - {name: a b}
unknown: 1
""",
    )
    assert [mistake.split(" ")[:2] for mistake in mistakes] == [
        ["c.yaml:1:", "listen:"],
        ["c.yaml:2:", "ledger:"],
        ["c.yaml:4:", "providers.a.base_url:"],
        ["c.yaml:4:", "providers.a.retries:"],
        ["c.yaml:5:", "providers.b.profile:"],
        ["c.yaml:7:", "models.m.price.input:"],
        ["c.yaml:7:", "models.m.provider:"],
        ["c.yaml:7:", "models.m.context:"],
        ["c.yaml:7:", "models.m.max_output:"],
        ["c.yaml:9:", "keys[0].name:"],
        ["c.yaml:9:", "keys[0].sha256:"],
        ["c.yaml:10:", "unknown:"],
    ]


def test_a_broken_config_still_says_where_its_policy_is(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(CONFIG + "policy: p.yaml\nlisten: nowhere\n")
    reading = settings.read(path, {}, CATALOG, PROFILES)
    assert reading.settings is None
    assert reading.mistakes is not None
    assert reading.policy_path == tmp_path / "p.yaml"
    gone = settings.read(tmp_path / "gone.yaml", {}, CATALOG, PROFILES)
    assert (gone.settings, gone.policy_path) == (None, None)


# -- what is allowed but seldom meant ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        (CONFIG.replace("https", "http"), "c.yaml:2: providers.openai.base_url: keys go there over plain http, readable on the way"),
        (CONFIG + "  b: {base_url: https://h, api_key_env: B_KEY}\n", "c.yaml:3: providers.b.api_key_env: B_KEY is not set, so its models are refused"),
        (CONFIG + "models: {m: {provider: openai, context: 9, max_output: 9}}\n", "c.yaml:3: models.m: no price and not `free: true`, so its calls are refused"),
        (CONFIG + f"keys: [{{name: a, sha256: {SHA}}}]\n", "c.yaml:3: keys: not used without `auth: keys`"),
        (CONFIG + "auth: keys\n", "c.yaml:3: auth: `keys` is empty, so only keys that the Cycles admin plane makes can call"),
        (CONFIG + "admin_token_env: SHORT\n", "c.yaml:3: admin_token_env: the admin token is shorter than 16 characters"),
    ],
)  # fmt: skip
def test_what_is_seldom_meant_is_a_warning(load, text, warning):
    assert load(text, SHORT="abc").warnings == (warning,)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/v1", "http://localhost/v1", "http://[::1]/v1", "https://example.com"])
def test_plain_http_on_this_machine_is_fine(load, url):
    assert load(f"providers: {{a: {{base_url: '{url}', accepts_caller_keys: true}}}}\n").warnings == ()


# -- the shipped config and the schema --------------------------------------------------------------------------------------------


def test_the_example_config_works_as_it_is_with_no_key_set():
    config = settings.load(Path("config.example.yaml"), {}, bundled.load_catalog(), bundled.load_profiles())
    assert config.warnings == ()
    assert list(config.providers) == ["openai", "anthropic", "local"]
    assert config.catalog.provider_of("gemma-3-270m") == "local"
    assert policy_file.load(config.policy_path, config.catalog).warnings == ()


def test_the_schema_accepts_the_example_and_refuses_what_is_wrong(json_schema):
    schema = config_file.config_schema()
    json_schema.check_schema(schema)
    validator = json_schema(schema)
    example = yaml.safe_load(Path("config.example.yaml").read_text())
    validator.validate(example)
    for wrong in ({"listn": 1}, {"auth": "key"}, {"listen": 8080}, {"providers": {"a": {}}}, {"limits": {"max_request": 5}}):
        assert not validator.is_valid(example | wrong), wrong
    sections = [schema, *schema["$defs"].values()]
    assert all(value.get("description") for section in sections for value in section["properties"].values())


# -- whatever is typed ------------------------------------------------------------------------------------------------------------

WORDS = st.sampled_from(
    [
        "listen",
        "policy",
        "ledger",
        "providers",
        "base_url",
        "models",
        "price",
        "input",
        "output",
        "tiers",
        "free",
        "context",
        "keys",
        "name",
        "sha256",
        "dimensions",
        "openai",
        "gpt-5",
        "auth",
        "drain",
        "limits",
        "upstream",
        "timeouts",
        "connect",
        "127.0.0.1:1",
        "https://h",
        "sqlite:///x",
        "redis://h",
        "rediss://h?ssl_ca_certs=x",
        "redis+sentinel://a,b/c",
        "url",
        "password_env",
        "wait_replicas",
        "http://[",
        "10s",
        "[key]",
        "passthrough",
        "profile",
    ]
)
LEAVES = st.one_of(WORDS, st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5))
TREES = st.recursive(
    LEAVES, lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(WORDS, inner, max_size=5)), max_leaves=20
)
FILES = st.dictionaries(st.sampled_from(list(config_file.ConfigFile.model_fields)), TREES, max_size=6)


@hypothesis_settings(max_examples=100, deadline=None)
@given(st.one_of(TREES, FILES))
def test_any_yaml_is_settings_or_mistakes(tmp_path_factory, tree):
    path = tmp_path_factory.getbasetemp() / "fuzz-config.yaml"
    path.write_text(yaml.safe_dump(tree))
    reading = settings.read(path, {}, CATALOG, PROFILES)
    if reading.mistakes is None:
        assert reading.settings is not None
    else:
        assert all(str(mistake).startswith(str(path)) and "\n" not in str(mistake) for mistake in reading.mistakes.mistakes)
