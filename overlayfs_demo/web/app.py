"""The web application: the addresses that the server answers, all of them read-only."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from anyio import CapacityLimiter
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from overlayfs_demo.errors import OverlayError, UsageError
from overlayfs_demo.mounts.layer_facts import UPPER
from overlayfs_demo.web import browse, live
from overlayfs_demo.web.content import story
from overlayfs_demo.web.guard import Guard
from overlayfs_demo.web.model import Page
from overlayfs_demo.web.pages import STATIC, html, static
from overlayfs_demo.web.subject import Subject, checked_path
from overlayfs_demo.web.upper_content import upper_content


@dataclass(frozen=True, slots=True)
class LiveView:
    """A mounted view, whose page is live: its mount point and its daemon's socket."""

    mountpoint: str
    socket: str


@dataclass(frozen=True, slots=True)
class Served:
    """What is served: the layers, a function that makes their page for each request, and the view if it is mounted."""

    subject: Subject
    page: Callable[[], Page]
    view: LiveView | None
    stopping: Callable[[], bool]


def application(served: Served, host: str, token: str | None) -> ASGIApp:
    """Return the server's application, for requests that name `host` or this machine and show the token, if any."""
    routes = _Routes(served)
    return Guard(
        Starlette(
            routes=[
                Route("/", routes.page),
                Route("/tree", routes.tree),
                Route("/search", routes.search),
                Route("/file", routes.file),
                Route("/upper", routes.upper),
                Route("/events", routes.events),
                *(Route(f"/{name}", routes.static) for name in STATIC),
            ],
            exception_handlers={OverlayError: _refused, OSError: _refused},
        ),
        host,
        token,
    )


async def _refused(_request: Request, error: Exception) -> Response:
    """Return the answer if a path is not valid or does not exist, a layer cannot be read, or the view has ended."""
    status = 400 if isinstance(error, UsageError) else 404 if isinstance(error, FileNotFoundError) else 503
    text = error.strerror or str(error) if isinstance(error, OSError) else str(error)
    return PlainTextResponse(text.encode("utf-8", "backslashreplace"), status)


def _argument(request: Request, name: str) -> bytes:
    """Return a query argument as bytes. A path may hold any bytes, and Starlette would decode them as UTF-8."""
    for pair in request.scope["query_string"].split(b"&"):
        key, _, value = pair.partition(b"=")
        if key == name.encode():
            return unquote_to_bytes(value.replace(b"+", b" "))
    raise UsageError(f"the argument {name} is missing", f"add ?{name}=...")


class _Routes:
    """The answer to each address. Methods that are not coroutines run in threads."""

    def __init__(self, served: Served) -> None:
        self._served = served
        self._threads = CapacityLimiter(live.MOST_PAGES)

    def page(self, _request: Request) -> Response:
        return HTMLResponse(
            html("page.html", page=self._served.page(), policy=None, style=None, script=None, embedded=None)
        )

    def static(self, request: Request) -> Response:
        name = request.url.path[1:]
        return Response(static(name), media_type=STATIC[name])

    def tree(self, request: Request) -> Response:
        path = checked_path(_argument(request, "path"))
        with self._served.subject.asking() as ask:
            return JSONResponse(_listing(browse.listing(self._served.subject, ask, path)))

    def search(self, request: Request) -> Response:
        words = os.fsdecode(_argument(request, "words"))
        with self._served.subject.asking() as ask:
            return JSONResponse(_listing(browse.search(self._served.subject, ask, words)))

    def file(self, request: Request) -> Response:
        path = checked_path(_argument(request, "path"))
        with self._served.subject.asking() as ask:
            return HTMLResponse(html("story.html", story=story(self._served.subject, ask, path)))

    def upper(self, _request: Request) -> Response:
        upper = next((layer for layer in self._served.subject.layers if layer.key == UPPER), None)
        if upper is None:
            raise FileNotFoundError("this view has no upper")
        return HTMLResponse(html("upper.html", upper=upper_content(upper.directory)))

    async def events(self, _request: Request) -> Response:
        view = self._served.view
        if view is None:
            return PlainTextResponse("an image has no events", 404)
        if self._threads.available_tokens < 1:
            return PlainTextResponse(f"{live.MOST_PAGES} pages are open: close one", 503)
        stream = live.Stream(self._served.subject, view.mountpoint, view.socket, self._threads, self._served.stopping)
        return StreamingResponse(stream.messages(), media_type="text/event-stream")


def _listing(found: browse.Listing) -> dict[str, object]:
    return {"rows": [row._asdict() for row in found.rows], "left_out": found.left_out}
