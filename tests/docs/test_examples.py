"""Every example in README.md and docs/ is run, loaded or compared with a real answer: what a reader copies works."""

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import mcp.client.stdio  # noqa: F401 - keeps the stderr of its import for the servers that it starts: not one that a test captures
import pytest
import yaml
from typer.testing import CliRunner

from gateway import bundled, cli, policy_file, settings
from gateway.demo.replies import Writer
from tests.support.examples import Example, examples, keys, masked, recipes
from tests.support.gateway import ADMIN_TOKEN
from tests.support.recipes import RECIPES
from tests.support.shipped import ROOT, Answers, Stage, default_policy, example_config, merged, play, stage

LANGUAGES: Final = {"yaml", "sh", "python", "json", "http", "text", ""}
# Of these members only the kind is compared: they are the caller's words.
OPEN: Final = {"dimensions", "scope_values"}


@pytest.fixture(scope="module")
def on(tmp_path_factory: pytest.TempPathFactory, writer: Writer) -> Iterator[Stage]:
    with stage(tmp_path_factory.mktemp("docs"), writer) as running:
        yield running


@pytest.fixture(scope="module")
def answers(on: Stage) -> Answers:
    return play(on)


def test_every_block_is_of_a_kind_that_is_examined() -> None:
    odd = [f"{example}: {example.lang}" for example in examples(*LANGUAGES, "bash", "shell", "yml", "console", "toml", "py")]
    assert not [line for line in odd if line.split(": ")[1] not in LANGUAGES]
    assert {example.page for example in examples("sh")} >= {
        "README.md",
        "docs/quickstart.md",
        "docs/api.md",
        "docs/operations.md",
    }


def test_every_recipe_is_one_that_is_run_with_the_real_package() -> None:
    assert {each.name.split()[1] for each in recipes()} == RECIPES.keys()
    for each in recipes():
        if each.lang == "python":
            compile(each.text, str(each), "exec")


@pytest.mark.parametrize("example", examples("yaml"), ids=str)
def test_a_yaml_example_loads(example: Example, tmp_path: Path) -> None:
    given = yaml.safe_load(example.text)
    if "providers" in given:
        _load_config(given, tmp_path)
    else:
        policy = default_policy(given) if example.name == "part" else given
        (tmp_path / "policy.yaml").write_text(yaml.safe_dump(policy))
        policy_file.load(tmp_path / "policy.yaml", _load_config(example_config(), tmp_path).catalog)


def _load_config(config: Mapping[str, Any], folder: Path) -> settings.Settings:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(merged(config, {})))
    return settings.load(path, {}, bundled.load_catalog(), bundled.load_profiles())


@pytest.mark.parametrize("example", examples("json"), ids=str)
def test_a_json_example_has_the_keys_of_a_real_answer(example: Example, answers: Answers) -> None:
    shown, real = json.loads(example.text), answers.bodies[example.name]
    assert keys(_closed(shown)) == keys(_closed(real))


def _closed(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: None if name in OPEN else _closed(inner) for name, inner in value.items()}
    return [_closed(inner) for inner in value] if isinstance(value, list) else value


@pytest.mark.parametrize("example", examples("http"), ids=str)
def test_an_example_of_headers_has_those_of_a_real_answer(example: Example, answers: Answers) -> None:
    shown = {line.partition(":")[0].lower() for line in example.text.splitlines()[1:]}
    assert shown == answers.heads[example.name].keys() - {"date", "content-length"}


@pytest.mark.parametrize("example", examples("python"), ids=str)
def test_a_python_example_runs_and_prints_what_the_page_says(
    example: Example, on: Stage, capfd: pytest.CaptureFixture[str]
) -> None:
    exec(compile(on.elsewhere(example.text), str(example), "exec"), {})
    assert example.after is not None, "what does it print?"
    assert masked(capfd.readouterr().out) == masked(example.after)


@pytest.mark.parametrize("example", examples("sh"), ids=str)
def test_every_command_works(example: Example, on: Stage, answers: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(on.gateway.setup.folder)  # whose config is the one that commands find
    monkeypatch.setenv("PENSTOCK_GATEWAY", on.gateway.url)
    monkeypatch.setenv("PENSTOCK_ADMIN_TOKEN", ADMIN_TOKEN)
    for line in example.text.splitlines():
        if line.strip() and not line.startswith("#"):
            # The page's run has reached its ceiling by then; here another worker may have run that example.
            if "X-Run-Id: r42'" in line:
                on.ask("r42", key="none", headers={"X-Run-Limit": "$0.0001"})
            _try_out(_filled_in(on.elsewhere(line), answers))


def _filled_in(line: str, answers: Answers) -> str:
    hold = answers.bodies["settled"]["reservation_id"]
    reservation = answers.bodies["reservation"]["reservation_id"]
    line = line.replace("ADMIN_TOKEN", ADMIN_TOKEN).replace("HOLD_ID", hold).replace("RESERVATION_ID", reservation)
    return line.replace("show quickstart", "show r1")


def _try_out(line: str) -> None:
    """A command that serves, installs or belongs to a person's shell is only looked at; the others are run."""
    said, _, command = line.rpartition(" | ")
    words = shlex.split(command, comments=True)
    verb = words[0].removeprefix(".venv/bin/")
    if verb == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), f"no target {words[1]}"
    elif verb == "penstock":
        _penstock(words[1:], shlex.split(said)[1] if said else None)
    elif verb == "curl":
        _curl(words)
    elif verb == "python" and words[1] == "-m":
        found = find_spec(words[2])
        assert found is not None, words[2]
        assert found.origin is not None
        assert all(f'"{word}"' in Path(found.origin).read_text() for word in words if word.startswith("--"))
    elif verb == "python" and words[1] == "-c":
        exec(words[2], {})
        assert Path("backup.db").stat().st_size
    elif verb == "python":
        assert (ROOT / words[1]).is_file()  # run against the real model by tests/real/test_quickstart.py
    else:
        assert verb in ("pip", "export"), f"not a command that these pages use: {line}"


def _penstock(words: list[str], stdin: str | None) -> None:
    if words[0] == "run":  # an agent of the reader's own
        words = words[: words.index("--")]
    serves = words[0] in ("serve", "ledger", "run")
    ran = CliRunner().invoke(cli.app, [*words, "--help"] if serves else words, input=stdin)
    assert ran.exit_code == 0, f"{words}: {ran.output}"


def _curl(words: list[str]) -> None:
    if shutil.which("curl") is None:
        pytest.skip("there is no curl here")
    ran = subprocess.run([words[0], "--silent", *words[1:]], capture_output=True, text=True, timeout=30, check=True)
    wanted = "HTTP/1.1 402" if "-i" in words else "{"  # the README shows a refusal with its head
    assert ran.stdout.startswith(wanted), ran.stdout
    assert "-i" in words or "error" not in json.loads(ran.stdout), ran.stdout
