"""What stands before the application: the key, and bounds on a body's size and time."""

import asyncio
import hmac
from collections.abc import Collection

from infer.serve.refusal import Refusal

BODY_SECONDS = 60.0  # that a client may take to send its body
PUBLIC = ("/", "/health", "/metrics", "/version", "/openapi.json")  # paths that need no key; all others do


class Guard:
    """An ASGI application around another. keys: of which a request needs one; none: no key is needed; most: bytes of a body."""

    def __init__(self, app, keys: Collection[bytes], most: int):
        self._app, self._keys, self._most = app, tuple(keys), most

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            self._check_key(scope)
            if scope["method"] in ("POST", "PUT", "PATCH"):
                receive = _replay(await self._body(scope, receive), receive)
        except Refusal as refusal:
            await _send(refusal, send)
            return
        except ConnectionError:  # the client went away before it had sent all
            return
        await self._app(scope, receive, send)

    def _check_key(self, scope) -> None:
        if not self._keys or _route(scope) in PUBLIC or scope["method"] == "OPTIONS":
            return
        scheme, _, given = dict(scope["headers"]).get(b"authorization", b"").partition(b" ")
        matches = [hmac.compare_digest(given.strip(), key) for key in self._keys]  # of all, so that the time says nothing
        if scheme.lower() != b"bearer" or not any(matches):
            raise Refusal(401, "the API key is missing or wrong; send Authorization: Bearer KEY", code="invalid_api_key")

    async def _body(self, scope, receive) -> bytes:
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if not length.isdigit() or int(length[:20]) > self._most:
            raise self._too_large()
        parts, size, more = [], 0, True
        try:
            async with asyncio.timeout(BODY_SECONDS):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ConnectionError
                    parts.append(message.get("body", b""))
                    size, more = size + len(parts[-1]), message.get("more_body", False)
                    if size > self._most:
                        raise self._too_large()
        except TimeoutError:
            raise Refusal(408, f"the body did not come within {BODY_SECONDS:g} s", code="timeout") from None
        return b"".join(parts)

    def _too_large(self) -> Refusal:
        return Refusal(413, f"the body should have at most {self._most} bytes (--max-request-bytes)", code="request_too_large")


def _route(scope) -> str:
    """The path less that of a proxy that the application is mounted behind, which counts for its routes alone."""
    root, path = scope.get("root_path", ""), scope["path"]
    return path.removeprefix(root) or "/" if path == root or path.startswith(f"{root}/") else path


def _replay(body: bytes, receive):
    """Gives the body, and then what comes behind it: that the client went away."""
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message():
        return waiting.pop() if waiting else await receive()

    return next_message


async def _send(refusal: Refusal, send) -> None:
    headers = {"content-type": "application/json", "connection": "close", **refusal.headers}
    found = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": refusal.status, "headers": found})
    await send({"type": "http.response.body", "body": refusal.dump()})
