"""A YAML file is read with the place of every value; nothing in it can do more than be a mistake."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.yaml_source import MAX_DEPTH, MAX_FILE_BYTES, Mistake, Mistakes, key_name, parse_document, read_document


def mistakes_in(text: str | bytes) -> list[str]:
    data = text.encode() if isinstance(text, str) else text
    try:
        return [str(mistake) for mistake in parse_document("f.yaml", data).duplicates]
    except Mistakes as mistakes:
        return [str(mistake) for mistake in mistakes.mistakes]


@pytest.mark.parametrize(
    ("typed", "value"),
    [
        ("off", "off"),
        ("no", "no"),
        ("12:30", "12:30"),
        ("2026-01-01", "2026-01-01"),
        ("0x10", "0x10"),
        ("010", 10),
        ("true", True),
        ("~", None),
        ("", None),
        ("-5", -5),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("'5'", "5"),
        ('"true"', "true"),
        ("!!str 5", "5"),
        ("1" * 30, float("1" * 30)),
    ],
)
def test_scalars_follow_the_yaml_1_2_core_rules(typed, value):
    read = parse_document("f.yaml", f"key: {typed}\n".encode()).root.plain()
    assert read == {"key": value}
    assert type(read["key"]) is type(value)


def test_keys_are_always_text():
    assert parse_document("f.yaml", b"on: 1\n8080: 2\n~: 3\n").root.plain() == {"on": 1, "8080": 2, "~": 3}


def test_every_value_has_its_line():
    document = parse_document("f.yaml", b"a:\n  - x\n\n  - {b: 1,\n     c: 2}\n")
    assert [document.find(place)[0] for place in (("a",), ("a", 0), ("a", 1), ("a", 1, "b"), ("a", 1, "c"))] == [1, 2, 4, 4, 5]


def test_a_missing_value_has_the_line_of_what_should_hold_it():
    document = parse_document("f.yaml", b"\na:\n  b: 1\n")
    assert document.find(("a", "c", "d")) == (2, None)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: 1\na: 2\n", "f.yaml:2: a: found the key again, expected each key once (it also stands on line 1)"),
        ("x:\n- {b: 1, b: 2}\n", "f.yaml:2: x[0].b: found the key again, expected each key once (it also stands on line 2)"),
        ("", "f.yaml:1: found an empty file, expected a mapping of keys to values"),
        ("# nothing\n", "f.yaml:1: found an empty file, expected a mapping of keys to values"),
        ("- a\n", "f.yaml:1: found a list, expected a mapping of keys to values"),
        ("\njust text\n", 'f.yaml:2: found "just text", expected a mapping of keys to values'),
        ("a:\n\tb: 1\n", "f.yaml:2: found a tab, expected spaces: YAML allows no tabs for indentation"),
        ("a: 1\n---\nb: 1\n", "f.yaml:2: found a second document, expected one YAML document in the file"),
        ("a: 1\n? [b]\n: c\n", "f.yaml:2: found a key that is not text, expected a name as the key"),
        ("a: 1\nb: !!python/object:os.system x\n", "f.yaml:2: found a YAML tag, expected no tags"),
        ("a: *nobody\n", "f.yaml:1: found *nobody, expected an alias of an anchor (&nobody) further up"),
        ("a: &a [*a]\n", "f.yaml:1: found *a, expected an alias of an anchor (&a) further up"),
        ("a: 1\nb: \x01\n", "f.yaml:2: found a control character, expected printable text"),
        (b"a: 1\nb: \xff\n", "f.yaml:2: found bytes that are not UTF-8, expected a text file in UTF-8"),
        (
            "a:\n  " + "[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1),
            f"f.yaml:2: found more than {MAX_DEPTH} levels of nesting, expected a flatter file",
        ),
        ("a: " + "x" * MAX_FILE_BYTES, "f.yaml: found a larger file, expected at most 1,000,000 bytes"),
    ],
)
def test_a_file_that_is_no_mapping_is_one_mistake_with_its_line(text, line):
    assert mistakes_in(text) == [line]


def test_text_that_is_not_yaml_is_told_with_the_parsers_reason():
    (mistake,) = mistakes_in("a: 1\nb: 'never closed\n")
    assert mistake.startswith("f.yaml:")
    assert "text that is not YAML (while scanning a quoted scalar" in mistake
    assert mistake.endswith("expected valid YAML")


def test_a_bomb_of_aliases_is_refused_before_it_grows():
    rows = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    rows += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    assert mistakes_in("\n".join(rows)) == ["f.yaml:5: found more than 100,000 values, expected a smaller file"]


def test_an_alias_is_the_value_of_its_anchor():
    read = parse_document("f.yaml", b"a: &terms {limit: 5}\nb: *terms\n").root.plain()
    assert read == {"a": {"limit": 5}, "b": {"limit": 5}}


def test_a_file_that_is_not_there_or_no_file_is_a_mistake(tmp_path: Path):
    with pytest.raises(Mistakes) as missing:
        read_document(tmp_path / "gone.yaml")
    assert str(missing.value) == f"{tmp_path}/gone.yaml: found no such file, expected a YAML file"
    with pytest.raises(Mistakes) as folder:
        read_document(tmp_path)
    assert "found a file that can't be read (Is a directory)" in str(folder.value)


def test_a_byte_order_mark_is_no_part_of_the_first_key():
    assert parse_document("f.yaml", b"\xef\xbb\xbfa: 1\n").root.plain() == {"a": 1}


def test_a_key_path_reads_like_code():
    assert key_name(("models", "gpt-4.1", "price", "tiers", 0, "input")) == 'models["gpt-4.1"].price.tiers[0].input'


def test_a_mistake_is_one_line():
    mistake = Mistake("f.yaml", 7, "budgets[0].limit", '"five"', "an amount")
    assert str(mistake) == 'f.yaml:7: budgets[0].limit: found "five", expected an amount'
    assert len(str(Mistakes([mistake, mistake])).splitlines()) == 2


@given(st.one_of(st.binary(max_size=200), st.text(alphabet="ab:-[]{},&*!'\"\n\t #|>?%@`~0.1", max_size=80).map(str.encode)))
def test_any_bytes_are_a_mapping_or_mistakes(data):
    lines = mistakes_in(data)
    assert all(line.startswith("f.yaml:") and "\n" not in line for line in lines)
    if not lines:
        assert isinstance(parse_document("f.yaml", data).root.plain(), dict)
