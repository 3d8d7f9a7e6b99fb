"""The reference pages and the schema files are what the schemas say now."""

from pathlib import Path

import pytest

from scripts.build_reference import ROOT, pages

PAGES = pages()


def test_both_files_have_a_page_and_a_schema():
    assert {str(path) for path in PAGES} == {
        "docs/config.md",
        "docs/policy.md",
        "docs/schema/config.json",
        "docs/schema/policy.json",
    }


@pytest.mark.parametrize("path", PAGES, ids=str)
def test_a_generated_file_is_up_to_date(path: Path):
    assert (ROOT / path).read_text(encoding="utf-8") == PAGES[path], f"{path} is out of date: run `make docs`"


@pytest.mark.parametrize(
    "key", ["`downgrade_below`", "`keep_for_wrap_up`", "`repeat_limit`", "`default_max_tokens`", "`within_calls`"]
)
def test_the_policy_page_has_every_nested_key(key):
    assert f"| {key} |" in PAGES[Path("docs/policy.md")]


@pytest.mark.parametrize("key", ["`lease`", "`base_url`", "`above_input_tokens`", "`sha256`", "`max_request`", "`synchronous`"])
def test_the_config_page_has_every_nested_key(key):
    assert f"| {key} |" in PAGES[Path("docs/config.md")]


@pytest.mark.parametrize("path", [path for path in PAGES if path.suffix == ".md"], ids=str)
def test_every_link_on_a_page_has_its_heading(path):
    page = PAGES[path]
    headings = {
        line.strip("# `").replace("[]", "").replace(".", "").lower() for line in page.splitlines() if line.startswith("## ")
    }
    links = {part.split(")")[0] for part in page.split("](#")[1:]}
    assert links <= headings
