"""The data that ships in the package, as objects: the model catalog, the provider profiles, the tokenizers. Touches no network."""

import hashlib
from binascii import a2b_base64
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from types import FunctionType, MappingProxyType
from typing import Any, Final

import orjson
import tiktoken
import yaml
from tiktoken_ext import openai_public

from gateway.core.catalog import Catalog, Model, Rates
from gateway.core.profiles import OnDisconnect, Profile
from gateway.core.tokens import Tokenizer
from gateway.wire.refusing import Reader, Readers

ENCODINGS: Final = ("o200k_base", "cl100k_base")

_DATA: Final = files("gateway") / "data"
# Of each kind that tokenizers have come to differ in.
_SAMPLE: Final = (
    "The quick brown fox, 1234567 x 89; Gr\u00fc\u00dfe\t\u4e16\u754c! \U0001f30d\r\n\r\n   def f(x_1):  return 'it''s'+\"<|endoftext|>\" "
    "\u017f \u01c5 \u00e9 \u0928\u092e\u0938\u094d\u0924\u0947 \u05e9\u05dc\u05d5\u05dd \u200b\u2026"
)
_SAMPLE_TOKENS: Final = {"o200k_base": 54, "cl100k_base": 64}


class BundledDataDamaged(Exception):
    """A file of the package is not the one that was shipped: install it again."""


def load_catalog() -> Catalog:
    """The bundled models and their prices. The operator's own come on top of it in `settings`."""
    stored = orjson.loads((_DATA / "catalog.json").read_bytes())
    return Catalog(version=stored["version"], models={name: _model(name, facts) for name, facts in stored["models"].items()})


def load_profiles() -> Mapping[str, Profile]:
    """Profiles by name; `generic` is the one for a provider that nothing else is known about."""
    stored = yaml.safe_load((_DATA / "profiles.yaml").read_text(encoding="utf-8"))
    return {name: _profile(name, facts) for name, facts in stored.items()}


def load_clients() -> Readers:
    """How a refusal is written for whom."""
    stored = yaml.safe_load((_DATA / "clients.yaml").read_text(encoding="utf-8"))
    return Readers([Reader(**facts) for facts in stored])


@cache
def load_tokenizer(name: str) -> Tokenizer:
    """What counts `o200k_base` or `cl100k_base`: toktok where it is installed (the extra `fast`), at a tenth to a twentieth of tiktoken's
    time, else tiktoken. Whatever is installed has to count a text exactly for which tiktoken's count is known."""
    try:
        import toktok
    except ImportError:
        return _Tiktoken(load_encoding(name))
    fast: Tokenizer = toktok._encoding(name)  # its public functions take lists, at fifty times the price of a short text
    return fast if fast.count(_SAMPLE) == _SAMPLE_TOKENS[name] else _Tiktoken(load_encoding(name))


class _Tiktoken:
    def __init__(self, encoding: tiktoken.Encoding) -> None:
        self._encode = encoding.encode_ordinary

    def count(self, text: str) -> int:
        return len(self._encode(text))


@cache
def load_encoding(name: str) -> tiktoken.Encoding:
    """`o200k_base` or `cl100k_base`, built once. Takes a few tenths of a second the first time.

    Pattern, special tokens and the expected SHA-256 are tiktoken's own: its constructor runs as it is, except that it is handed
    our reader in place of the one that downloads. It runs on a copy of its module's names, so tiktoken itself stays as it was.
    """
    if name not in ENCODINGS:
        raise ValueError(f"no ranks are bundled for {name!r}; there are {', '.join(ENCODINGS)}")

    def read(_address: str, expected_hash: str | None = None) -> dict[bytes, int]:
        return load_ranks(name, expected_hash)

    constructor: Callable[[], dict[str, Any]] = FunctionType(
        getattr(openai_public, name).__code__, {**vars(openai_public), "load_tiktoken_bpe": read}
    )
    return tiktoken.Encoding(**constructor())


def load_ranks(name: str, expected_sha256: str | None) -> dict[bytes, int]:
    """Token bytes → rank, from the bundled file, which must be the published one."""
    content = (_DATA / "ranks" / f"{name}.tiktoken").read_bytes()
    if hashlib.sha256(content).hexdigest() != expected_sha256:
        raise BundledDataDamaged(f"the bundled ranks of {name} are not those that tiktoken expects")
    words = content.split()  # "<base64> <rank>", one pair a line
    return dict(zip(map(a2b_base64, words[::2]), map(int, words[1::2]), strict=True))


def _profile(name: str, facts: Mapping[str, Any]) -> Profile:
    dialects = facts.get("dialects")
    read = {
        "on_disconnect": OnDisconnect(facts["on_disconnect"]),
        "dialects": None if dialects is None else frozenset(dialects),
    }
    return Profile(name, **{**facts, **read})


def _model(name: str, facts: Mapping[str, Any]) -> Model:
    parameters = facts["parameters"]
    return Model(
        name=name,
        provider=facts["provider"],
        tiers=_tiers(facts["tiers"]),
        context=facts["context"],
        max_output=facts["max_output"],
        max_input=facts["max_input"],
        capabilities=frozenset(facts["capabilities"]),
        parameters=None if parameters is None else frozenset(parameters),
        service_tiers=tuple((tier, _tiers(rows)) for tier, rows in facts["service_tiers"].items()),
        encoding=facts["encoding"],
        reasoning=facts["reasoning"],
        free=facts.get("free", False),
        retired=facts.get("retired", False),
        fees=tuple(sorted(facts.get("fees", {}).items())),
        dialects=frozenset(facts["dialects"]) if "dialects" in facts else None,
    )


def _tiers(rows: Sequence[Sequence[Any]]) -> tuple[Rates, ...]:
    """Rows as `scripts/build_catalog.py` writes them: `[above, input, output, cached input, cache write, long cache write]`, and after
    these a map of other classes that have a price of their own."""
    return tuple(_rates(*row) for row in rows)


def _rates(
    above: int, fresh: int, output: int, cached: int, write: int, long: int, others: Mapping[str, int] = MappingProxyType({})
) -> Rates:
    return Rates(
        fresh, output, cached, write, above_input_tokens=above, cache_write_long=long, others=tuple(sorted(others.items()))
    )
