"""The HTTP application: paths, errors, streams. Not here: what a request means (`orders.py`), decoding (`worker.py`)."""

import asyncio
import contextlib
import dataclasses
import pathlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor

import fastapi
import prometheus_client
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from infer.serve import responses
from infer.serve.bodies import ChatBody, CompletionBody
from infer.serve.exchange import Exchange
from infer.serve.growth import Delta
from infer.serve.guard import Guard
from infer.serve.meters import Meters
from infer.serve.orders import Order, Orders
from infer.serve.refusal import Refusal
from infer.serve.responses import Responses
from infer.serve.vocabulary import TokenTexts
from infer.serve.worker import Worker
from infer.stopping import Stopper
from redrafter_jax.version import __version__

PAGE = pathlib.Path(__file__).with_name("index.html")
PAGE_HEADERS = {  # it loads nothing from elsewhere
    "content-security-policy": "default-src 'none'; connect-src 'self'; style-src 'unsafe-inline'; script-src 'unsafe-inline'",
    "x-content-type-options": "nosniff",
}
CLIENT_GONE = 499  # what no client reads


@dataclasses.dataclass(frozen=True)
class House:
    """What the application serves. room: tokens of prompt and reply at most; seconds: that a request may take; keys: of which one
    is needed; origins: of pages that browsers let call it; most_bytes: of a body."""

    orders: Orders
    worker: Worker
    meters: Meters
    tokenizer: object
    room: int
    seconds: float = 600.0
    keys: Sequence[bytes] = dataclasses.field(default=(), repr=False)
    origins: Sequence[str] = ()
    most_bytes: int = 4 << 20


def make_app(house: House) -> fastapi.FastAPI:
    """The application; the worker's thread lives as long as it runs."""

    @contextlib.asynccontextmanager
    async def lifespan(_: fastapi.FastAPI) -> AsyncIterator[None]:
        house.worker.start()
        yield
        await asyncio.to_thread(house.worker.stop)

    app = fastapi.FastAPI(title="redrafter_jax", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan)
    _add_replies(app, house)
    _add_the_rest(app, house)
    _add_errors(app)
    app.add_middleware(Guard, keys=house.keys, most=house.most_bytes)
    if house.origins:  # around the guard, so that a page can read why it was refused
        app.add_middleware(CORSMiddleware, allow_origins=list(house.origins), allow_methods=["*"], allow_headers=["*"])
    return app


def _add_replies(app: fastapi.FastAPI, house: House) -> None:
    reader, tokens = ThreadPoolExecutor(1, "reader"), TokenTexts(house.tokenizer)  # one: a tokenizer is not for several threads
    unread = 0  # bodies that wait for the reader

    async def reply(request: fastapi.Request, read: Callable[..., Order], body: CompletionBody | ChatBody) -> Response:
        nonlocal unread
        house.worker.check_room(unread + 1)
        unread += 1
        try:
            order = await asyncio.get_running_loop().run_in_executor(reader, read, body)
        finally:
            unread -= 1
        exchange = Exchange(house.worker, Stopper(house.tokenizer, order.stops), order, house.seconds)
        made = Responses(order, house.orders.name, tokens)
        if order.streams:
            return _EventStream(exchange, made, len(order.requests))
        with contextlib.closing(exchange):
            deltas = await _unless_gone(request, _complete(exchange, len(order.requests)))
        return Response(made.complete(deltas), media_type="application/json")

    @app.post("/v1/completions")
    async def complete(body: CompletionBody, request: fastapi.Request) -> Response:
        return await reply(request, house.orders.completion, body)

    @app.post("/v1/chat/completions")
    async def chat(body: ChatBody, request: fastapi.Request) -> Response:
        return await reply(request, house.orders.chat, body)


def _add_the_rest(app: fastapi.FastAPI, house: House) -> None:
    line = responses.model_of(house.orders.name, int(time.time()), house.room)

    @app.get("/v1/models")
    async def models() -> dict:
        return {"object": "list", "data": [line]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict:
        if name != house.orders.name:
            raise Refusal(404, f"there is no such model; this server has {house.orders.name}", "model", "model_not_found")
        return line

    @app.get("/health")
    async def health() -> Response:
        return Response(status_code=200 if house.worker.is_well else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(house.meters.text(), media_type=prometheus_client.CONTENT_TYPE_LATEST)

    @app.get("/version")
    async def version() -> dict:
        return {"version": __version__}

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return Response(PAGE.read_bytes(), media_type="text/html; charset=utf-8", headers=PAGE_HEADERS)


def _add_errors(app: fastapi.FastAPI) -> None:
    @app.exception_handler(Refusal)
    async def refuse(_: fastapi.Request, refusal: Refusal) -> Response:
        return Response(refusal.dump(), refusal.status, refusal.headers, "application/json")

    @app.exception_handler(HTTPException)
    async def refuse_path(_: fastapi.Request, error: HTTPException) -> Response:
        refusal = Refusal(error.status_code, str(error.detail))
        return Response(refusal.dump(), refusal.status, refusal.headers | dict(error.headers or {}), "application/json")

    @app.exception_handler(RequestValidationError)
    async def refuse_body(request: fastapi.Request, error: RequestValidationError) -> Response:
        return await refuse(request, _of_body(error))

    @app.exception_handler(Exception)
    async def fail(request: fastapi.Request, _: Exception) -> Response:
        return await refuse(request, Refusal(500, "the server failed at this request; its log says more"))


def _of_body(error: RequestValidationError) -> Refusal:
    """One sentence about a body that has not the form of its path."""
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return Refusal(400, "the body is not JSON")
    place = [str(part) for part in first["loc"][1:]]
    if not place:
        return Refusal(400, "the body should be a JSON object, sent as content-type application/json")
    return Refusal(400, f"{'.'.join(place)}: {first['msg']}", place[0])


class _EventStream(StreamingResponse):
    """The deltas as events of a stream. The exchange is closed however it ends."""

    def __init__(self, exchange: Exchange, made: Responses, count: int):
        super().__init__(self._events(exchange, made, count), media_type="text/event-stream", headers={"cache-control": "no-cache"})
        self._exchange = exchange

    async def __call__(self, scope, receive, send) -> None:
        with contextlib.closing(self._exchange):
            await super().__call__(scope, receive, send)

    @staticmethod
    async def _events(exchange: Exchange, made: Responses, count: int) -> AsyncIterator[bytes]:
        for event in made.begin():
            yield event
        replies = [None] * count
        try:
            async for index, delta in exchange.deltas():
                replies[index] = delta.reply
                for event in made.part(index, delta):
                    yield event
        except Refusal as refusal:
            yield b"data: " + refusal.dump() + b"\n\n"
            return
        for event in made.end(replies):
            yield event


async def _complete(exchange: Exchange, count: int) -> list[Delta]:
    """Of each choice all of its reply at once."""
    found = {index: delta async for index, delta in exchange.deltas()}
    return [found[index] for index in range(count)]


async def _unless_gone(request: fastapi.Request, work: Coroutine):
    """The result of the work, which is given up where the client goes away."""
    tasks = [asyncio.ensure_future(work), asyncio.ensure_future(_until_gone(request))]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if tasks[0].done():
            return tasks[0].result()
        raise Refusal(CLIENT_GONE, "the client went away")
    finally:
        for task in tasks:
            task.cancel()


async def _until_gone(request: fastapi.Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
