"""A path is a route exactly, or it is refused."""

import pytest

from gateway.server.routes import Metered, Miss, Route, Routes, Visit
from gateway.wire.exchange import Inbound, Outlet, Reply


async def chat(inbound: Inbound, outlet: Outlet) -> None: ...
async def models(inbound: Inbound, outlet: Outlet) -> None: ...
async def retrieve(inbound: Inbound, outlet: Outlet) -> None: ...
async def page(inbound: Inbound, parameters: object) -> Reply:
    return Reply(200, b"")


async def stop(inbound: Inbound, parameters: object) -> Reply:
    return Reply(200, b"")


ROUTES = Routes(
    {
        ("POST", "/v1/chat/completions"): chat,
        ("GET", "/v1/models"): models,
        ("GET", "/v1/responses/{id}"): retrieve,
        ("POST", "/v1/responses/{id}/cancel"): chat,
        ("GET", "/v1/models/{name%}"): models,
        ("POST", "/v1/{kind}/completions"): retrieve,
    },
    [
        Route("GET", "/healthz", page),
        Route("GET", "/budget/runs", page),
        Route("GET", "/budget/runs/{id}", page),
        Route("PUT", "/budget/runs/{id}", page),
        Route("POST", "/budget/runs/{id}/stop", stop),
    ],
)


def miss(method: str, path: str) -> Miss:
    found = ROUTES.find(method, path)
    assert isinstance(found, Miss)
    return found


def test_a_metered_route_is_found_plainly_and_under_a_run() -> None:
    assert ROUTES.find("POST", "/v1/chat/completions") == Metered(chat, "/v1/chat/completions", None)
    assert ROUTES.find("POST", "/run/r42/v1/chat/completions") == Metered(chat, "/v1/chat/completions", "r42")
    assert ROUTES.find("GET", "/run/a%2Fb/v1/models") == Metered(models, "/v1/models", "a%2Fb")


@pytest.mark.parametrize(
    "path",
    [
        "/v1/chat/completions/", "/v1/chat//completions", "//v1/chat/completions", "/v1//chat/completions", "//v1//chat/completions",
        "/V1/Chat/Completions", "/v1/chat/Completions", "/v1/chat%2Fcompletions", "/%761/chat/completions", "/v1/./chat/completions",
        "/v1/x/../chat/completions", "/v1/chat/completions;a=1", "/v1/chat/completions#f", "/v1/chat/completions%20", "/v1/chat/completions%00",
        "/v1/embeddings", "/v1/responses", "/v1", "/v1/", "v1/chat/completions", "*", "", "/", "http://127.0.0.1/v1/chat/completions",
        "/run/r42/v1/embeddings", "/run/r42", "/run/r42/", "/run//v1/chat/completions", "/run/v1/chat/completions", "/run/",
        "/run/a/run/b/v1/chat/completions", "/run/a/b/v1/chat/completions", "/run/r42//v1/chat/completions", "/Run/r42/v1/chat/completions",
        "/healthz/v1/chat/completions", "/v1/chat/completions\\", "/chat/completions",
    ],
)  # fmt: skip
def test_whatever_only_resembles_a_metered_route_is_404(path: str) -> None:
    assert miss("POST", path).problem.status == 404


@pytest.mark.parametrize(
    "path", ["/v1/embeddings", "/v1/chat/completions/", "/run/r42/v1/audio/speech", "/v1/chat%2Fcompletions"]
)
def test_the_rest_of_the_model_surface_says_that_nothing_meters_it(path: str) -> None:
    assert miss("POST", path).problem.code == "route_not_metered"


def test_a_wrong_method_names_the_right_ones() -> None:
    assert miss("GET", "/v1/chat/completions").headers == (("Allow", "POST"),)
    refused = miss("DELETE", "/run/r42/v1/models")
    assert (refused.problem.status, refused.problem.code) == (405, "method_not_allowed")
    assert refused.headers == (("Allow", "GET, HEAD"),)
    assert miss("BREW", "/budget/runs/r42").headers == (("Allow", "GET, HEAD, PUT"),)


def test_a_page_gets_its_parameters_decoded() -> None:
    assert ROUTES.find("GET", "/budget/runs") == Visit(page, {})
    assert ROUTES.find("PUT", "/budget/runs/a%3Ab") == Visit(page, {"id": "a:b"})
    assert ROUTES.find("POST", "/budget/runs/r42/stop") == Visit(stop, {"id": "r42"})
    assert miss("GET", "/budget/runs/").problem.code == "not_found"
    assert miss("GET", "/budget/runs/r42/stop/more").problem.code == "not_found"


def test_head_is_served_by_get() -> None:
    assert ROUTES.find("HEAD", "/healthz") == Visit(page, {})
    assert ROUTES.find("HEAD", "/v1/models") == Metered(models, "/v1/models", None)
    assert miss("HEAD", "/v1/chat/completions").problem.status == 405


def test_a_refused_path_is_shown_short_and_printable() -> None:
    detail = miss("GET", "/x\n\udcff" + "y" * 500).problem.detail
    assert detail.isprintable()
    assert len(detail) < 150


def test_a_parameter_of_a_model_route_is_one_plain_segment_as_it_came() -> None:
    found = ROUTES.find("GET", "/v1/responses/resp_0a-1.x")
    assert found == Metered(retrieve, "/v1/responses/resp_0a-1.x", None, {"id": "resp_0a-1.x"})
    found = ROUTES.find("POST", "/run/r42/v1/responses/resp_1/cancel")
    assert found == Metered(chat, "/v1/responses/resp_1/cancel", "r42", {"id": "resp_1"})
    assert miss("DELETE", "/v1/responses/resp_1").headers == (("Allow", "GET, HEAD"),)


@pytest.mark.parametrize(
    "segment",
    [
        "", ".", "..", "...", "a%2Fb", "%2e%2e", "%2E", "a%20b", "a;b", "a\\b", "a b", "a?b", "é", "a%", "%", "a'b", "a" * 257, "a/", "a\n",
        "..%2Fchat%2Fcompletions", "a#b", "a&b", "a*", "a|b", "{id}", "a\x00",
    ],
)  # fmt: skip
def test_a_parameter_that_somebody_could_read_as_another_path_is_404(segment: str) -> None:
    assert miss("GET", f"/v1/responses/{segment}").problem.code == "route_not_metered"
    assert miss("POST", f"/v1/responses/{segment}/cancel").problem.code == "route_not_metered"


def test_a_parameter_of_what_forwards_nothing_is_decoded() -> None:
    assert ROUTES.find("GET", "/v1/models/meta%2Fllama-4") == Metered(
        models, "/v1/models/meta%2Fllama-4", None, {"name": "meta/llama-4"}
    )
    assert miss("GET", "/v1/models/").problem.code == "route_not_metered"


def test_a_pattern_lets_nothing_past_the_routes_without_parameters() -> None:
    assert ROUTES.find("POST", "/v1/chat/completions") == Metered(chat, "/v1/chat/completions", None)
    assert miss("POST", "/v1/Chat/completions").problem.code == "route_not_metered"
    assert miss("POST", "/run//v1/responses/r1/cancel").problem.status == 404
    assert miss("POST", "/run/a/run/b/v1/responses/r1/cancel").problem.status == 404
