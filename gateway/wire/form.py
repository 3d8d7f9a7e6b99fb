"""A request that came as a form: its texts as the body, its files beside it, and the same form again for the provider."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

from gateway.core.profiles import Profile
from gateway.core.values import Plan
from gateway.wire.multipart import Field, encode
from gateway.wire.reading import not_a, refuse_variants
from gateway.wire.request import Request


@dataclass(slots=True, eq=False, kw_only=True)
class FormRequest(Request):
    """`boundary` belongs to `fields`."""

    fields: tuple[Field, ...] = field(repr=False)
    boundary: str

    @property
    def content_type(self) -> str:
        return f"multipart/form-data; boundary={self.boundary}"

    def encode(self, plan: Plan, profile: Profile, takes: frozenset[str] | None = None) -> bytes:
        """The form as it was parsed, with the plan's model."""
        del profile, takes
        fields = [Field("model", plan.model.encode()) if each.name == "model" else each for each in self.fields]
        return encode(fields, self.boundary)  # a model's name has no line's end in it, so no boundary either

    def sent(self) -> None:
        Request.sent(self)  # a class with slots is made twice, and `super` knows the first
        self.fields = ()

    def fingerprint(self) -> str:
        digest = blake2b(self.dialect.encode(), digest_size=12)
        for each in sorted(self.fields, key=lambda each: each.name):
            if each.name not in self.not_meant:
                digest.update(b"%b:%d:" % (each.name.encode(), len(each.value)))
                digest.update(each.value)
        return digest.hexdigest()


def texts_of(fields: Sequence[Field], known: frozenset[str]) -> dict[str, Any]:
    """The fields that are no files, by name; those of a name that ends in `[]` or `[0]` as a list, under the name without it. Refused where a
    field differs from a known one in case only, or comes in both forms."""
    texts: dict[str, Any] = {}
    for each in fields:
        if each.filename is not None:
            continue
        name, many = bare(each.name), each.name.endswith("]")
        if many:
            listed = texts.setdefault(name, [])
            if type(listed) is not list:
                raise not_a(name, "one field, or several of the name with []")
            listed.append(each.text)
        elif name in texts:
            raise not_a(name, "one field, or several of the name with []")
        else:
            texts[name] = each.text
    refuse_variants(texts, known)
    return texts


def bare(name: str) -> str:
    """Without `[]`, or an index in its place, as some clients write lists."""
    return name.partition("[")[0] if name.endswith("]") else name


def files_of(fields: Sequence[Field], name: str) -> list[Field]:
    """Those of a name, with or without `[]`. Refused where the field is there, and no file."""
    found = [each for each in fields if bare(each.name) == name]
    if any(each.filename is None for each in found):
        raise not_a(name, "a file")
    return found


def whole(texts: Mapping[str, Any], name: str, at_most: int, at_least: int = 1) -> int | None:
    """A field's whole number; None where it is absent."""
    value = texts.get(name)
    if value is None:
        return None
    if (
        type(value) is not str
        or not value.isascii()
        or not value.isdigit()
        or len(value) > 9
        or not at_least <= int(value) <= at_most
    ):
        raise not_a(name, f"a whole number from {at_least} to {at_most:,}")
    return int(value)


def switch(texts: Mapping[str, Any], name: str) -> bool:
    """`true` or `false`, as every client writes them."""
    value = texts.get(name, "false")
    if value not in ("true", "false"):
        raise not_a(name, "true or false")
    return bool(value == "true")


def word(texts: Mapping[str, Any], name: str) -> str | None:
    value = texts.get(name)
    if value is not None and type(value) is not str:
        raise not_a(name, "one field")
    return value
