"""Handlers that get what a layer has to say before they need it, see `overlay.questions`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from overlayfs_demo.fronts.kernel.request import Payload, Request
from overlayfs_demo.overlay import interruption, questions

Handler = Callable[[Request], Payload | None]


def patient(handler: Handler) -> Handler:
    """Return a handler that calls `handler` again until it needs no more answers. Meanwhile the caller may leave."""
    return partial(_carry_out, handler)


def _carry_out(handler: Handler, request: Request) -> Payload | None:
    questions.begin()
    while True:
        try:
            return handler(request)
        except questions.AskFirstError as first:
            call = interruption.current()
            # The handler has let go of all locks, and nothing is left of what it has done.
            with call:
                first.get_answers()
            call.check()
