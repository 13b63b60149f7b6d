"""Authentication, limits of requests, and data that must never be exposed."""

from __future__ import annotations

import hmac
import os
import re
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
from starlette.testclient import TestClient

from sppo_ray.api import tokens
from sppo_ray.api.app import create_app
from sppo_ray.api.limits import MAX_CALLERS, RateLimiter
from sppo_ray.api.settings import ApiSettings, is_loopback
from sppo_ray.api.tokens import TokenStore, add_token, parse_tokens
from sppo_ray.errors import UserError
from sppo_ray.redaction import redact, redact_tree
from tests.api.run_directories import LiveRun, finished_run
from tests.api.test_jobs import problem


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    return tmp_path / "tokens"


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


# ------------------------------------------------------------------------------------------- tokens


def test_roles(make_server: Callable[..., TestClient], runs: Path, token_file: Path) -> None:
    run = LiveRun(runs)
    viewer, operator = add_token(token_file, "eve", "viewer"), add_token(token_file, "olga", "operator")
    server = make_server(tokens=token_file)
    refused = server.get("/v1/jobs")
    assert problem(refused, 401)["detail"].startswith("no valid token")
    assert refused.headers["www-authenticate"].startswith("Bearer")
    for wrong in ("", viewer[:-1], viewer + "x", viewer.upper(), "\u00e9"):
        problem(server.get("/v1/jobs", headers={"Authorization": f"Bearer {wrong}".encode()}), 401)
    problem(server.get("/v1/jobs", headers={"Authorization": f"Basic {viewer}"}), 401)
    assert server.get("/v1/jobs", headers=bearer(viewer)).json()["total"] == 1
    for method, path, body in [
        ("POST", "/v1/jobs", {"recipe": "quickstart"}),
        ("PATCH", "/v1/jobs/first", {"paused": True}),
        ("POST", "/v1/jobs/first/stop", None),
        ("POST", "/v1/jobs/first/checkpoint", None),
        ("DELETE", "/v1/jobs/first", None),
    ]:
        problem(server.request(method, path, json=body, headers=bearer(viewer)), 403, "wrong-role")
        problem(server.request(method, path, json=body), 401)
    accepted = server.patch("/v1/jobs/first", json={"paused": True}, headers=bearer(operator))
    assert accepted.json()["commands"][0]["by"] == "olga"
    run.close()


def test_only_health_the_page_and_the_document_need_no_token(
    make_server: Callable[..., TestClient], token_file: Path
) -> None:
    add_token(token_file, "eve", "viewer")
    server = make_server(tokens=token_file)
    for path in ("/healthz", "/readyz", "/openapi.json"):
        assert server.get(path).status_code == 200
    document = server.get("/openapi.json").json()
    for path, operations in document["paths"].items():
        for method in operations:
            open_to_all = path in ("/healthz", "/readyz")
            response = server.request(method, path.replace("{job_id}", "x"), json={})
            assert (response.status_code != 401) == open_to_all, (method, path)
            assert ("security" in operations[method]) != open_to_all


def test_a_removed_token_ends_and_a_new_one_begins_without_a_restart(
    make_server: Callable[..., TestClient], token_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "RECHECK_S", 0.0)
    old = add_token(token_file, "old", "viewer")
    server = make_server(tokens=token_file)
    assert server.get("/v1/jobs", headers=bearer(old)).status_code == 200
    new = add_token(token_file, "new", "viewer")
    token_file.write_text(
        "".join(line for line in token_file.read_text().splitlines(True) if not line.startswith("old "))
    )
    problem(server.get("/v1/jobs", headers=bearer(old)), 401)
    assert server.get("/v1/jobs", headers=bearer(new)).status_code == 200
    token_file.write_text("new viewer not-a-hash\n")  # damaged: nobody gets in
    problem(server.get("/v1/jobs", headers=bearer(new)), 401)
    token_file.unlink()
    problem(server.get("/v1/jobs", headers=bearer(new)), 401)


def test_tokens_are_hashed_at_rest_and_the_file_is_private(token_file: Path) -> None:
    token = add_token(token_file, "eve", "viewer")
    assert token not in token_file.read_text()
    assert re.fullmatch(r"eve viewer sha256:[0-9a-f]{64}\n", token_file.read_text())
    assert token_file.stat().st_mode & 0o777 == 0o600
    assert len(token) >= 43  # 256 bits in base64
    with pytest.raises(UserError, match="token named eve already"):
        add_token(token_file, "eve", "operator")
    with pytest.raises(UserError, match="token name 'a b'"):
        add_token(token_file, "a b", "viewer")


def test_the_environment_holds_tokens_too(token_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = add_token(token_file, "one", "viewer"), add_token(token_file, "two", "operator")
    monkeypatch.setenv("SPPO_RAY_API_TOKENS", token_file.read_text().replace("\n", "; "))
    store = TokenStore(None)
    assert [store.caller(token).name for token in (one, two)] == ["one", "two"]  # type: ignore[union-attr]
    assert store.caller("three") is None


def test_a_bad_token_file_is_named_but_not_repeated(token_file: Path) -> None:
    with pytest.raises(UserError, match=r"tokens: the tokens cannot be read"):
        TokenStore(token_file)
    token_file.write_text("# nobody\n")
    with pytest.raises(UserError, match="holds no token"):
        TokenStore(token_file)
    with pytest.raises(UserError, match=r"f:2: not NAME") as caught:
        parse_tokens("\nsppo_plain_token_by_mistake", "f")
    assert "mistake" not in str(caught.value)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_without_tokens_other_addresses_are_refused_with_the_remedy(runs: Path, host: str) -> None:
    with pytest.raises(UserError, match=r"without tokens the server stays on loopback.*sppo-ray token"):
        create_app(ApiSettings(runs=runs, host=host))


def test_without_tokens_foreign_hosts_addresses_and_origins_are_refused(
    make_server: Callable[..., TestClient], runs: Path, token_file: Path
) -> None:
    run = LiveRun(runs)
    server = make_server()
    problem(server.get("/v1/jobs", headers={"Host": "evil.example"}), 403)  # DNS rebinding
    for host in ("localhost:8642", "127.0.0.1", "[::1]:8642"):
        assert server.get("/v1/jobs", headers={"Host": host}).status_code == 200
    # CSRF
    problem(server.post("/v1/jobs/first/stop", headers={"Origin": "https://evil.example"}), 403)
    assert server.post("/v1/jobs/first/stop", headers={"Origin": "http://127.0.0.1"}).status_code == 202
    far = TestClient(server.app, base_url="http://127.0.0.1", client=("192.0.2.7", 5000))
    problem(far.get("/v1/jobs"), 403)
    run.close()


def test_loopback() -> None:
    assert all(map(is_loopback, ["127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost"]))
    assert not any(
        map(
            is_loopback, ["0.0.0.0", "::", "10.0.0.1", "localhost.evil.example", "", "127.0.0.1.evil.example"]
        )
    )


# ------------------------------------------------------------------------------------------- limits


def test_bodies_are_limited_whether_they_say_their_length_or_not(
    make_server: Callable[..., TestClient],
) -> None:
    server = make_server(max_body_bytes=1000)
    body = b'{"recipe": "' + b"x" * 2000 + b'"}'
    problem(server.post("/v1/jobs", content=body, headers={"content-type": "application/json"}), 413)

    def chunks():
        yield from (body[i : i + 100] for i in range(0, len(body), 100))

    problem(server.post("/v1/jobs", content=chunks(), headers={"content-type": "application/json"}), 413)


def test_a_caller_is_slowed_down_and_another_is_not(
    make_server: Callable[..., TestClient], token_file: Path
) -> None:
    one, two = add_token(token_file, "one", "viewer"), add_token(token_file, "two", "viewer")
    server = make_server(tokens=token_file, rate_per_second=1.0)  # a burst of three
    assert [server.get("/v1/jobs", headers=bearer(one)).status_code for _ in range(4)] == [200, 200, 200, 429]
    response = server.get("/v1/jobs", headers=bearer(one))
    problem(response, 429)
    assert response.headers["retry-after"] == "1"
    assert server.get("/v1/jobs", headers=bearer(two)).status_code == 200
    assert server.get("/healthz", headers=bearer(one)).status_code == 200
    # Guesses share one bucket, whatever they guess.
    assert [server.get("/v1/jobs", headers=bearer(f"guess{i}")).status_code for i in range(4)] == [
        401,
        401,
        401,
        429,
    ]


def test_the_bucket_fills_again_and_memory_is_bounded() -> None:
    clock = [0.0]
    limiter = RateLimiter(2.0, now=lambda: clock[0])
    # 3 s of 2 a second, then half a second for one
    assert [limiter.wait_s("a") for _ in range(7)] == [0.0] * 6 + [0.5]
    clock[0] = 0.5
    assert [limiter.wait_s("a") for _ in range(2)] == [0.0, 0.5]
    for index in range(MAX_CALLERS + 50):
        limiter.wait_s(str(index))
    assert len(limiter._buckets) == MAX_CALLERS
    assert RateLimiter(0.0).wait_s("a") == 0.0


# ------------------------------------------------------------------------------------ what gets out


def test_every_answer_has_safe_headers(server: TestClient) -> None:
    for path in ("/healthz", "/v1/jobs", "/nowhere", "/v1/jobs/x"):
        headers = server.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["cache-control"] == "no-store"
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "access-control-allow-origin" not in headers


def test_the_pages_files_are_kept_and_asked_for_again(server: TestClient) -> None:
    for path in ("/ui/app.js", "/ui/css/base.css", "/ui/vendor/uPlot.esm.js"):
        answer = server.get(path)
        assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-cache")
        again = server.get(path, headers={"If-None-Match": answer.headers["etag"]})
        assert (again.status_code, again.content, again.headers["cache-control"]) == (304, b"", "no-cache")
        assert again.headers["x-content-type-options"] == "nosniff"
    for outside in ("/ui/../app.py", "/ui/%2e%2e/app.py", "/ui/css", "/ui/nothing.js"):
        assert server.get(outside).status_code == 404


def test_cors_is_off_unless_an_origin_is_named(make_server: Callable[..., TestClient]) -> None:
    ask = {"Origin": "https://a.example", "Access-Control-Request-Method": "GET"}
    assert "access-control-allow-origin" not in make_server().options("/v1/jobs", headers=ask).headers
    named = make_server(cors_origins=("https://a.example",))
    assert (
        named.options("/v1/jobs", headers=ask).headers["access-control-allow-origin"] == "https://a.example"
    )
    other = named.options("/v1/jobs", headers=ask | {"Origin": "https://b.example"})
    assert "access-control-allow-origin" not in other.headers


def test_model_output_stays_text(server: TestClient, runs: Path) -> None:
    evil = '<script>alert(1)</script>\r\n\r\nevent: state\ndata: {"state": "SUCCEEDED"}\n\n'
    run = LiveRun(runs)
    run.step([(1.0, 0.5)], response=evil)
    run.recorder.event("note", evil)
    run.fail(actor=None, message=evil)
    page = server.get("/v1/jobs/first/trajectories")
    assert page.headers["content-type"] == "application/json"
    assert page.json()["items"][0]["response"] == evil
    kinds = [
        line for line in server.get("/v1/jobs/first/events").text.splitlines() if line.startswith("event: ")
    ]
    # none is smuggled in
    assert kinds == ["event: state", "event: step", "event: event", "event: event", "event: end"]
    assert server.get("/v1/jobs/%3Cscript%3E").headers["content-type"] == "application/problem+json"


def test_secrets_are_blacked_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SERVICE_TOKEN", "correct-horse-battery")
    text = "x correct-horse-battery; Authorization: Bearer abcdefgh.ijk; hf_ABCDEFGHIJKLMNOP; "
    text += "https://u:pw@host/x; WANDB_API_KEY=0123456789"
    assert redact(text) == (
        "x [redacted]; Authorization: Bearer [redacted]; [redacted]; https://[redacted]@host/x; "
        "WANDB_API_KEY=[redacted]"
    )
    innocent = (
        "step 3  reward 0.5  1234 tokens/s; eos_token_id=2; max_tokens: 2048; password reset; token 7 of 9"
    )
    assert redact(innocent) == innocent
    tree = {
        "password": "abc",
        "hub_token": "abcdefgh",
        "tokens": 5,
        "list": [{"api_key": "k"}],
        "prompt_key": "prompt",
    }
    assert redact_tree(tree) == {
        "password": "[redacted]",
        "hub_token": "[redacted]",
        "tokens": 5,
        "list": [{"api_key": "[redacted]"}],
        "prompt_key": "prompt",
    }


def test_secrets_of_the_server_appear_nowhere(
    make_server: Callable[..., TestClient],
    runs: Path,
    token_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog,
) -> None:
    secret = "a-secret-of-the-environment"
    monkeypatch.setenv("HF_TOKEN", secret)
    token = add_token(token_file, "eve", "viewer")
    run = finished_run(runs, "done", steps=1)
    (run.path / "output.log").write_text(f"using {secret}\n{token}\n")
    server = make_server(tokens=token_file)
    job = "/v1/jobs/done"
    for path in (
        "/v1/jobs",
        job,
        f"{job}/logs",
        f"{job}/config",
        f"{job}/events",
        "/metrics",
        "/openapi.json",
    ):
        text = server.get(path, headers=bearer(token)).text
        assert secret not in text and token not in text and os.environ["RAY_AUTH_TOKEN"] not in text
    assert token not in caplog.text


def test_the_comparison_does_not_depend_on_the_token(
    token_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every known hash is compared in constant time, whichever matches: no early way out that a
    clock could see.
    """
    known = [add_token(token_file, f"n{i}", "viewer") for i in range(50)]
    store = TokenStore(token_file)
    compare = mock.Mock(wraps=hmac.compare_digest)
    monkeypatch.setattr("sppo_ray.api.tokens.hmac.compare_digest", compare)
    for token, name in ((known[0], "n0"), (known[-1], "n49"), ("unknown", None), (None, None)):
        compare.reset_mock()
        caller = store.caller(token)
        assert (caller.name if caller else None) == name
        assert compare.call_count == 50
