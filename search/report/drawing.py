"""Vega-Lite specifications -> SVG, PNG and PDF, in processes of their own.

The renderer holds Python's lock while it draws, and takes half a second to start: processes draw
one chart while the report makes the next. As a program this file reads one specification a line
and writes its files (base64) as one line of JSON, until its input ends.
"""

import json
import signal
import subprocess
import sys
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from queue import SimpleQueue
from typing import Any

PNG_SCALE = 2.0
NUM_PROCESSES = 2
KINDS = ("svg", "png", "pdf")

Spec = dict[str, Any]
Files = dict[str, bytes]  # by kind
Draw = Callable[[Spec], Future[Files]]


@contextmanager
def drawing(num_processes: int = NUM_PROCESSES) -> Iterator[Draw]:
    """A function that draws a specification while the block goes on.

    Its futures raise ValueError for a specification that cannot be drawn, and OSError if the
    process that draws ended.
    """
    # -P hides the modules beside this file, as numbers.py.
    command = [sys.executable, "-P", __file__]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(num_processes)
    ]
    idle: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()
    for process in processes:
        idle.put(process)

    def files_of(spec: Spec) -> Files:
        process = idle.get()
        try:
            return _asked(process, spec)
        finally:
            idle.put(process)

    try:
        with ThreadPoolExecutor(num_processes) as pool:
            yield lambda spec: pool.submit(files_of, spec)
    finally:
        for process in processes:
            with suppress(BrokenPipeError), process:  # closes its pipes
                process.kill()


def _asked(process: subprocess.Popen[bytes], spec: Spec) -> Files:
    assert process.stdin is not None  # noqa: S101
    assert process.stdout is not None  # noqa: S101
    try:
        process.stdin.write(json.dumps(spec).encode() + b"\n")
        process.stdin.flush()
        answer = process.stdout.readline()
    except BrokenPipeError:
        answer = b""
    if not answer.endswith(b"\n"):
        raise OSError("the process that draws the charts ended: write the report again")
    files: dict[str, str] = json.loads(answer)
    if "error" in files:
        raise ValueError(f"a chart cannot be drawn: {files['error']}")
    return {kind: b64decode(text) for kind, text in files.items()}


def files_of(spec: Spec) -> Files:
    """Draw a specification in this process."""
    import vl_convert

    svg: str = vl_convert.vegalite_to_svg(spec)
    png: bytes = vl_convert.svg_to_png(svg, scale=PNG_SCALE)
    return {"svg": svg.encode(), "png": png, "pdf": vl_convert.svg_to_pdf(svg)}


def main() -> None:
    """Draw what is asked for until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the report
    files_of({"mark": "text", "data": {"values": [{}]}})  # starts the renderer before it is needed
    for line in sys.stdin.buffer:
        try:
            files = files_of(json.loads(line))
            answer = {kind: b64encode(content).decode() for kind, content in files.items()}
        except ValueError as error:
            answer = {"error": str(error)}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
