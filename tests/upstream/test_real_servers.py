"""The lean client against servers that others wrote: aiohttp's, nginx, Node's."""

import asyncio
import gzip
import hashlib
import json
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from gateway.upstream import Endpoint, Unknown, UpstreamRequest
from tests.upstream.servers import lean, poured, whole

LARGE = bytes(range(256)) * 8_192  # 2 MB


# -- aiohttp --------------------------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def aiohttp_server() -> AsyncIterator[TestServer]:
    async def echo(request: web.Request) -> web.Response:
        return web.Response(body=await request.read(), headers={"X-Method": request.method})

    async def stream(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        if "gzip" in request.query:
            answer.enable_compression(web.ContentCoding.gzip)
        await answer.prepare(request)
        for number in range(500):
            await answer.write(b"data: %d\n\n" % number)
            if number % 50 == 0:
                await asyncio.sleep(0)
        return answer

    async def nothing(request: web.Request) -> web.Response:
        return web.Response(status=204)

    app = web.Application(client_max_size=1 << 26)
    app.router.add_route("*", "/echo", echo)
    app.router.add_route("*", "/stream", stream)
    app.router.add_route("*", "/nothing", nothing)
    async with TestServer(app) as serving:
        yield serving


EVENTS = b"".join(b"data: %d\n\n" % number for number in range(500))


async def test_aiohttps_server_is_understood_on_one_connection() -> None:
    async with aiohttp_server() as serving, lean() as upstream:
        base = f"http://127.0.0.1:{serving.port}"
        for _ in range(2):
            for body in (b"", b"{}", LARGE):
                assert await whole(upstream, UpstreamRequest(f"{base}/echo", "POST", [], body)) == body
            assert await whole(upstream, UpstreamRequest(f"{base}/stream", "POST", [], b"{}")) == EVENTS
            assert await whole(upstream, UpstreamRequest(f"{base}/stream?gzip", "POST", [], b"{}")) == EVENTS
            answer = await upstream.open(UpstreamRequest(f"{base}/stream", "GET", [], b""))
            assert await poured(answer) == EVENTS
            answer = await upstream.open(UpstreamRequest(f"{base}/nothing", "DELETE", [], b""))
            assert (answer.status, await answer.read(10)) == (204, b"")
        assert len(upstream._pool._connections) == 1


async def test_aiohttps_server_answers_a_head_and_serves_on() -> None:
    async with aiohttp_server() as serving, lean() as upstream:
        base = f"http://127.0.0.1:{serving.port}"
        answer = await upstream.open(UpstreamRequest(f"{base}/echo", "HEAD", [], b""))
        assert (answer.status, answer.headers["X-Method"], await answer.read(10)) == (200, "HEAD", b"")
        assert await whole(upstream, UpstreamRequest(f"{base}/echo", "POST", [], b"{}")) == b"{}"


async def test_a_hundred_calls_at_once_get_their_own_answers() -> None:
    async with aiohttp_server() as serving, lean() as upstream:
        url = f"http://127.0.0.1:{serving.port}/echo"
        bodies = [b"%d " % number * (1 + number * 40) for number in range(100)]
        for _ in range(3):
            assert await asyncio.gather(*(whole(upstream, UpstreamRequest(url, "POST", [], body)) for body in bodies)) == bodies


# -- nginx ----------------------------------------------------------------------------------------------------------------------------

_NGINX_CONF = """
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log stderr error;
events {{ worker_connections 512; }}
http {{
    access_log {folder}/access.log;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f;
    uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
    keepalive_requests 5; keepalive_timeout 1s; client_max_body_size 8m;
    gzip on; gzip_types application/json; gzip_min_length 1; gzip_proxied any;
    server {{
        listen 127.0.0.1:{port};
        default_type application/json;
        location = /json {{ return 200 '{{"usage": {{"total_tokens": 9}}}}'; }}
        location = /encoded.json {{ root {folder}; gzip_static always; }}
        location = /head {{ add_header X-Large "{large}"; return 200 '{{}}'; }}
        location = /closed {{ return 444; }}
        location = /nothing {{ return 204; }}
        location / {{
            proxy_pass http://127.0.0.1:{behind}; proxy_http_version 1.1; proxy_buffering off; gzip off;
            client_body_buffer_size 8m; proxy_read_timeout 1s;
        }}
    }}
}}
"""


@pytest.fixture(scope="module")
def nginx(tmp_path_factory: pytest.TempPathFactory) -> str:
    found = shutil.which("nginx")
    if found is not None:
        return found
    folder = tmp_path_factory.mktemp("nginx")
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        pytest.skip("NOT TESTED AGAINST NGINX: it is not on PATH, and there is no apt-get to fetch it with")
    fetched = subprocess.run(
        ["apt-get", "download", "nginx"], cwd=folder, capture_output=True, text=True, check=False, timeout=120
    )
    packages = list(folder.glob("nginx_*.deb"))
    if not packages:
        pytest.skip(f"NOT TESTED AGAINST NGINX: it is not on PATH, and apt-get says {fetched.stderr[-200:]}")
    subprocess.run(["dpkg-deb", "-x", packages[0], folder], check=True, timeout=60)
    return str(folder / "usr" / "sbin" / "nginx")


@asynccontextmanager
async def nginx_server(binary: str, folder: Path, behind: int) -> AsyncIterator[int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "encoded.json.gz").write_bytes(gzip.compress(b'{"encoded": "in spite of identity"}'))
    for each in (folder, folder.parent, folder.parent.parent):  # its worker may be another user
        each.chmod(0o755)
    conf = folder / "nginx.conf"
    conf.write_text(_NGINX_CONF.format(folder=folder, port=port, behind=behind, large="x" * 3500))
    process = await asyncio.create_subprocess_exec(binary, "-p", folder, "-c", conf, stderr=asyncio.subprocess.PIPE)
    try:
        await listens(port)
        yield port
    finally:
        process.terminate()
        await asyncio.wait_for(process.communicate(), 10)


async def listens(port: int) -> None:
    for _ in range(500):
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.02)
        else:
            writer.close()
            return
    pytest.fail("the server does not listen")


@pytest.mark.deep
async def test_nginx_is_understood(nginx: str, tmp_path: Path) -> None:
    async with aiohttp_server() as behind, nginx_server(nginx, tmp_path, behind.port or 0) as port, lean() as upstream:
        base = f"http://127.0.0.1:{port}"

        def ask(path: str, method: str = "POST", body: bytes = b"{}") -> UpstreamRequest:
            return UpstreamRequest(base + path, method, [], body)

        for _ in range(4):  # across its five requests a connection
            assert json.loads(await whole(upstream, ask("/json", "GET", b""))) == {"usage": {"total_tokens": 9}}
            assert await whole(upstream, ask("/encoded.json", "GET", b"")) == b'{"encoded": "in spite of identity"}'
            answer = await upstream.open(ask("/head", "GET", b""))
            assert (len(answer.headers["X-Large"]), await answer.read(10)) == (3500, b"{}")
            assert (await upstream.open(ask("/nothing", "GET", b""))).status == 204
            assert await whole(upstream, ask("/stream")) == EVENTS
            assert await whole(upstream, ask("/echo", body=LARGE)) == LARGE
            answer = await upstream.open(ask("/stream"))
            assert await poured(answer) == EVENTS
        assert (await upstream.open(ask("/echo", body=b"x" * 9_000_000))).status == 413
        with pytest.raises(Unknown):
            await upstream.open(ask("/closed"))


@pytest.mark.deep
async def test_nginx_that_ends_idle_connections_and_counts_requests_fails_no_call(nginx: str, tmp_path: Path) -> None:
    async with aiohttp_server() as behind, nginx_server(nginx, tmp_path, behind.port or 0) as port, lean() as upstream:

        async def caller(number: int) -> None:
            for turn in range(40):
                body = b"%d" % number * (turn + 1)
                assert await whole(upstream, UpstreamRequest(f"http://127.0.0.1:{port}/echo", "POST", [], body)) == body

        await asyncio.gather(*(caller(number) for number in range(16)))
        for wait_s in (0.9, 0.95, 1.0, 1.05, 1.1, 1.5):  # around its keepalive_timeout
            await asyncio.sleep(wait_s)
            await caller(1)


@pytest.mark.deep
async def test_nginx_sees_who_left(nginx: str, tmp_path: Path) -> None:
    async def stalls(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        await answer.write(b"data: 1\n\n")
        await asyncio.sleep(0.5)
        return answer

    app = web.Application()
    app.router.add_route("*", "/stall", stalls)
    async with TestServer(app) as behind, nginx_server(nginx, tmp_path, behind.port or 0) as port, lean() as upstream:
        answer = await upstream.open(UpstreamRequest(f"http://127.0.0.1:{port}/stall", "POST", [], b"{}"))
        assert await anext(answer.chunks()) == b"data: 1\n\n"
        answer.close()
        opening = asyncio.ensure_future(upstream.open(UpstreamRequest(f"http://127.0.0.1:{port}/silent", "POST", [], b"{}")))
        await asyncio.sleep(0.05)
        opening.cancel()
        await asyncio.gather(opening, return_exceptions=True)
        log = tmp_path / "access.log"
        for _ in range(300):
            if "/stall" in log.read_text():
                return
            await asyncio.sleep(0.02)
        pytest.fail("nginx has not noticed")


# -- Node -----------------------------------------------------------------------------------------------------------------------------

_NODE = """
const http = require('http'), crypto = require('crypto');
const server = http.createServer((request, response) => {
  const parts = [];
  request.on('data', part => parts.push(part));
  request.on('end', () => {
    const body = Buffer.concat(parts);
    if (request.url === '/hints') { response.writeEarlyHints({link: '</a>; rel=preload'}); response.end('{}'); }
    else if (request.url === '/trailers') {
      response.writeHead(200, {'Trailer': 'X-Sum', 'Transfer-Encoding': 'chunked'});
      response.write('abc'); response.addTrailers({'X-Sum': '1'}); response.end();
    }
    else if (request.url === '/stream') {
      let n = 0;
      const next = () => { if (n === 300) return response.end(); response.write(`data: ${n++}\\n\\n`); n % 30 ? next() : setImmediate(next); };
      next();
    }
    else if (request.url === '/dies') { response.write('half'); setTimeout(() => response.destroy(), 20); }
    else if (request.url === '/gone') request.socket.destroy();
    else response.end(JSON.stringify({size: body.length, hash: crypto.createHash('sha256').update(body).digest('hex')}));
  });
});
server.keepAliveTimeout = 500;
server.listen(0, '127.0.0.1', () => console.log(server.address().port));
"""


@pytest.mark.deep
async def test_nodes_server_is_understood() -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("NOT TESTED AGAINST NODE: it is not on PATH")
    process = await asyncio.create_subprocess_exec(node, "-e", _NODE, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    try:
        base = f"http://127.0.0.1:{int(await process.stdout.readline())}"

        def ask(path: str, body: bytes = b"{}") -> UpstreamRequest:
            return UpstreamRequest(base + path, "POST", [], body)

        async with lean(Endpoint(keepalive_s=4)) as upstream:
            for wait_s in (0.0, 0.0, 0.45, 0.5, 0.55, 1.2):  # around its keepAliveTimeout
                await asyncio.sleep(wait_s)
                said = json.loads(await whole(upstream, ask("/", LARGE)))
                assert said == {"size": len(LARGE), "hash": hashlib.sha256(LARGE).hexdigest()}
                assert await whole(upstream, ask("/hints")) == b"{}"
                assert await whole(upstream, ask("/trailers")) == b"abc"
                assert await whole(upstream, ask("/stream")) == EVENTS[: EVENTS.index(b"data: 300")]
                for path in ("/dies", "/gone"):
                    with pytest.raises(Unknown):
                        await whole(upstream, ask(path))
    finally:
        process.terminate()
        await process.wait()
