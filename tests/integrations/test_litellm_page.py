"""docs/litellm.md: what it shows loads. Its three lines run in the real proxy in `tests/real/test_litellm_workers.py`."""

from pathlib import Path

import pytest
import yaml

from gateway import bundled, policy_file, settings
from gateway.yaml_source import Mistakes
from tests.support.litellm_proxy import HOOK, shown


def test_the_hook_is_where_the_page_says() -> None:
    assert yaml.safe_load(shown("litellm_settings"))["litellm_settings"]["callbacks"] == HOOK


def test_the_smallest_config_needs_no_providers(tmp_path: Path) -> None:
    (tmp_path / "penstock.yaml").write_text(shown("policy"))
    (tmp_path / "policy.yaml").write_text("version: 1\nbudgets: [{name: run-ceiling, scope: run, limit: $5}]\n")
    read = settings.read(tmp_path / "penstock.yaml", {}, bundled.load_catalog(), bundled.load_profiles(), elsewhere="litellm")
    assert read.mistakes is None
    assert read.settings is not None
    assert policy_file.load(read.settings.policy_path, read.settings.catalog).budgets[0].name == "run-ceiling"


def test_a_model_of_the_config_needs_no_provider_there(tmp_path: Path) -> None:
    path = tmp_path / "penstock.yaml"
    path.write_text("models: {bedrock/claude: {price: {input: 3, output: 15}, context: 200000, max_output: 64000}}\n")
    read = settings.read(path, {}, bundled.load_catalog(), bundled.load_profiles(), elsewhere="litellm")
    assert read.settings is not None
    assert read.settings.catalog.provider_of("bedrock/claude") == "litellm"
    with pytest.raises(Mistakes, match="providers"):
        settings.load(path, {}, bundled.load_catalog(), bundled.load_profiles())
