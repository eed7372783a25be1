"""A page that fills while a study runs, for a browser on this machine."""

import asyncio
import contextlib
import gzip
import json
import math
import multiprocessing
import os
import secrets
import signal
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web
from rich.console import Console

from search.report.findings import of_study
from search.report.live import live_section
from search.report.page import render
from search.report.report import other_pictures, pictures_of
from search.results.running import Pulse, progress_of, state_of
from search.results.tables import Results

HOST = "127.0.0.1"
LOOK_S = 2.0  # between two looks at the study's files
# Of all cores' time, what drawing the report may take while the study trains.
DRAWING_SHARE = 0.005
HEADERS = {
    "Cache-Control": "no-cache",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@dataclass
class Served:
    """The page as it was last drawn, compressed, with its version, and what goes on now."""

    results: Results
    metric: str | None
    margin: float | None
    page: bytes = b""
    version: int = 1
    is_running: bool = False
    rest_looks: int = 0  # so many looks without a new report, while the study trains
    now: bytes = b"{}"
    pulse: Pulse = field(default_factory=Pulse)


def serve(
    results: Results, *, port: int, metric: str | None, margin: float | None, console: Console
) -> None:
    """Serve the page until Ctrl-C. Its address has a token, and it changes nothing.

    Raises:
        ResultsError: there are no results, or the metric is unknown.
        OSError: the port is taken.
    """
    served = Served(results, metric, margin)
    seen = state_of(results)
    served.page, served.metric, cpu_s = _drawn(results, metric, margin, served.version)
    served.rest_looks = looks_to_rest(cpu_s, os.cpu_count() or 1)
    _lower_priority()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(served, seen, port, secrets.token_urlsafe(16), console))


def _lower_priority() -> None:
    """Training comes first.

    Ray's workers have a low priority themselves, so that of `nice` is not low enough; and where the
    kernel groups processes by their terminals, it holds inside of a group only.
    """
    if hasattr(os, "SCHED_IDLE"):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    else:
        os.nice(19)
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").write_text("19")


async def _serve(served: Served, seen: object, port: int, token: str, console: Console) -> None:
    app = web.Application()
    app.router.add_get(f"/{token}/", lambda request: _answer_page(request, served))
    app.router.add_get(f"/{token}/now", lambda _: _answer_now(served))
    asyncio.get_running_loop().add_signal_handler(
        signal.SIGTERM, signal.raise_signal, signal.SIGINT
    )
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, HOST, port).start()
        except OSError as error:
            raise OSError(f"port {port} cannot be used ({error}): give another --port") from error
        await asyncio.to_thread(_look, served)
        console.print(
            f"{served.results.folder.uri} is shown at http://{HOST}:{port}/{token}/ "
            f"(read-only, for this machine; press Ctrl-C to stop)",
            soft_wrap=True,
            highlight=False,
        )
        await _follow(served, seen)
    finally:
        await runner.cleanup()


async def _follow(served: Served, seen: object) -> None:
    """Look at what goes on now, and draw the page again whenever the tables change.

    Another process draws: it takes seconds, in which this one would not answer.
    """
    spawn = multiprocessing.get_context("spawn")
    loop = asyncio.get_running_loop()
    drawer = ProcessPoolExecutor(1, spawn, _begin_to_draw, (os.getpid(),))
    drawing: asyncio.Future[tuple[bytes, str, float]] | None = None
    try:
        while True:
            await asyncio.to_thread(_look, served)
            await asyncio.sleep(LOOK_S)
            if drawing is not None and drawing.done():
                _take(served, drawing)
                drawing = None
            state = await asyncio.to_thread(_state, served.results, seen)
            served.rest_looks = max(0, served.rest_looks - 1)
            may_draw = not served.is_running or served.rest_looks == 0
            if drawing is None and state != seen and may_draw:
                seen, order = state, (served.results, served.metric, served.margin)
                drawing = loop.run_in_executor(drawer, _drawn, *order, served.version + 1)
    finally:
        for process in multiprocessing.active_children():
            process.terminate()
        drawer.shutdown(wait=False, cancel_futures=True)


def _begin_to_draw(server: int) -> None:
    """In the process that draws: it ends with its server, however that ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches both, and the server ends this
    _lower_priority()

    def follow_server() -> None:
        while os.getppid() == server:
            time.sleep(LOOK_S)
        os._exit(0)

    threading.Thread(target=follow_server, daemon=True).start()


def _state(results: Results, seen: object) -> object:
    """Which files the tables have; as it was where the storage does not answer."""
    with contextlib.suppress(OSError):
        return state_of(results)
    return seen


def _take(served: Served, drawing: "asyncio.Future[tuple[bytes, str, float]]") -> None:
    """The new page in place of the old one, which stays where a new one could not be drawn."""
    with contextlib.suppress(OSError, ValueError):  # as files changed meanwhile
        served.page, served.metric, cpu_s = drawing.result()
        served.version += 1
        served.rest_looks = looks_to_rest(cpu_s, os.cpu_count() or 1)


def looks_to_rest(cpu_s: float, num_cores: int) -> int:
    """At how many looks nothing is drawn after a report that took so much of a core's time.

    Looks are counted and not seconds: while the server is suspended it does not rest.
    """
    return math.ceil(cpu_s / (DRAWING_SHARE * num_cores) / LOOK_S)


def _look(served: Served) -> None:
    """Ask what goes on now."""
    with contextlib.suppress(OSError):  # storage that does not answer is asked again
        served.is_running = served.pulse.is_running(served.results)
        inside = live_section(
            progress_of(served.results),
            is_running=served.is_running,
            metric=served.metric or "score",
        )
        served.now = json.dumps({"version": str(served.version), "html": inside}).encode()


def _drawn(
    results: Results, metric: str | None, margin: float | None, version: int
) -> tuple[bytes, str, float]:
    """The compressed page, its metric, and the seconds of a core that it took."""
    began = time.process_time()
    findings = of_study(results, metric=metric, margin=margin)
    html = render(findings, pictures_of(findings), other_pictures(findings), version=str(version))
    page = gzip.compress(html.encode(), compresslevel=5, mtime=0)
    return page, findings.metric, time.process_time() - began


async def _answer_page(request: web.Request, served: Served) -> web.Response:
    tag = f'"{served.version}"'
    headers = {**HEADERS, "ETag": tag}
    if request.headers.get("If-None-Match") == tag:
        return web.Response(status=304, headers=headers)
    headers["Content-Encoding"] = "gzip"
    return web.Response(
        body=served.page, headers=headers, content_type="text/html", charset="utf-8"
    )


async def _answer_now(served: Served) -> web.Response:
    return web.Response(body=served.now, headers=HEADERS, content_type="application/json")
