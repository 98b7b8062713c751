"""Many visitors of one demo on loopback: what they wait for, and the server's memory.

Each visitor opens the page, uploads a picture of their own, measures it and loads the view as the page does, gets the
files, loads the mesh as the page does and one file, asks a question, and thinks before beginning anew. The server is a
process of its own; the visitors share the machine with it.
"""

import asyncio
import io
import json
import os
import random
import re
import secrets
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import httpx
import numpy as np
import typer
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "support"))
from demo_process import DemoProcess

ROOM = Path(__file__).resolve().parents[2] / "depthvlm" / "assets" / "room.jpg"
FILES = 6


class Load:
    """What all visitors together have seen."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {"page": [], "upload": [], "measure": [], "files": [], "ask": []}
        self.measured = self.offered = self.busy = 0
        self.failed: list[str] = []


async def visit(url: str, load: Load, end: float, think: float, number: int) -> None:
    """One visitor until the time is over."""
    rng = random.Random(number)
    await asyncio.sleep(rng.uniform(0, think))
    async with httpx.AsyncClient(base_url=url, timeout=120) as client:
        while time.monotonic() < end:
            try:
                await one_picture(client, load, number)
            except (httpx.HTTPError, AssertionError) as error:
                load.failed.append(f"{type(error).__name__}: {str(error)[:200]}")
            await asyncio.sleep(rng.uniform(0.5, 1.5) * think)


async def one_picture(client: httpx.AsyncClient, load: Load, number: int) -> None:
    """From the page to a reply."""
    session = secrets.token_hex(8)
    with Timer(load, "page"):
        (await client.get("/")).raise_for_status()
    steps = {step["api_name"]: step for step in (await client.get("/config")).json()["dependencies"]}
    with Timer(load, "upload"):
        answer = await client.post("/gradio_api/upload", files={"files": ("view.jpg", picture(number), "image/jpeg")})
    [path] = answer.raise_for_status().json()
    photo = {"path": path, "meta": {"_type": "gradio.FileData"}}

    async def run(name: str, *values: Any) -> dict[str, Any] | None:
        step = steps[name]
        data = [*values, *[None] * (len(step["inputs"]) - len(values))]
        body = {"data": data, "fn_index": step["id"], "session_hash": session}
        route = "queue/join" if step["queue"] else "run/predict"
        answer = await client.post(f"/gradio_api/{route}", json=body)
        if answer.status_code == 503:
            return None
        answer.raise_for_status()
        if not step["queue"]:
            return answer.json()
        async with client.stream("GET", "/gradio_api/queue/data", params={"session_hash": session}) as stream:
            async for line in stream.aiter_lines():
                if '"msg":"process_completed"' in line[:80] or '"msg":"process_completed"' in line[-400:]:
                    message = json.loads(line[5:])
                    assert message["success"], message["output"]
                    return message["output"]
        raise AssertionError(f"{name} did not end")

    await run("look", photo)
    with Timer(load, "measure") as timer:
        measured = await run("measure", photo, 571.8)
        timer.counts = measured is not None
        for name in ("depth", "colors", "scale") if measured else ():
            (await client.get(measured["data"][1][name]["url"])).raise_for_status()
    if measured is None:
        load.busy += 1
        return
    load.measured += 1
    with Timer(load, "files"):
        written = await run("write")
    if written is not None:
        mesh, links = written["data"]
        files = re.findall('href="gradio_api/file=([^"]+)"', links)
        load.offered += len(set(files)) == FILES
        for file in (mesh["path"], files[(number + load.measured) % FILES]):  # each kind in its turn
            (await client.get(f"/gradio_api/file={file}")).raise_for_status()
    with Timer(load, "ask"):
        await run("ask", None, "What color is the crate?")


class Timer:
    """Adds the time of a block to the load's, if the block ended well."""

    def __init__(self, load: Load, name: str) -> None:
        self.times, self.counts = load.seconds[name], True

    def __enter__(self) -> "Timer":
        self.started = time.monotonic()
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is None and self.counts:
            self.times.append(time.monotonic() - self.started)


def picture(number: int) -> bytes:
    """The sample with a mark of the visitor's own."""
    with Image.open(ROOM) as image:
        image.paste((number * 5 % 256, 0, 0), (0, 0, 8, 8))
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=90)
    return stream.getvalue()


def cpu_seconds(process: int) -> float:
    """Processor time that a process has used."""
    fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def megabytes(process: int) -> int:
    """Memory that a process holds."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20


async def watch(process: int, memory: list[int], end: float) -> None:
    """Note the server's memory every second."""
    while time.monotonic() < end:
        memory.append(megabytes(process))
        await asyncio.sleep(1)


async def run(url: str, process: int, visitors: int, seconds: float, think: float) -> tuple[Load, list[int]]:
    """Let all visitors come, and note the server's memory."""
    load, memory, end = Load(), [], time.monotonic() + seconds
    visits = [visit(url, load, end, think, number) for number in range(visitors)]
    await asyncio.gather(watch(process, memory, end), *visits)
    return load, memory


def main(
    visitors: int = 50,
    seconds: float = 65.0,
    think: Annotated[float, typer.Option(help="Mean seconds between two pictures of a visitor.")] = 8.0,
) -> None:
    """Print the waiting times, and the server's memory and processor time."""
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        server = DemoProcess(Path(folder))
        try:
            started = cpu_seconds(server.process.pid)
            load, memory = asyncio.run(run(server.url, server.process.pid, visitors, seconds, think))
            used = cpu_seconds(server.process.pid) - started
            disk = sum(path.stat().st_size for path in server.folder.rglob("*") if path.is_file()) >> 20
        finally:
            server.stop()
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True).stdout.strip()
    print(f"{commit}, {os.cpu_count()} cores, load average {before:.1f} before; nano, 640x480 pixels")
    print(f"{visitors} visitors, {seconds:g} s, {think:g} s between two pictures of a visitor\n")
    print("| step | times | median | p95 | greatest |\n|---|---|---|---|---|")
    for name, times in load.seconds.items():
        if times:
            shown = " | ".join(f"{value:.2f} s" for value in np.percentile(times, [50, 95, 100]))
            print(f"| {name} | {len(times)} | {shown} |")
    print(
        f"\n{load.measured} pictures measured, files offered for {load.offered}; {load.busy} times the queue was full."
    )
    third = len(memory) // 3
    thirds = [max(memory[start : start + third]) for start in (0, third, 2 * third)]
    print(
        f"Server's memory: {memory[0]} MB before; at most {', '.join(map(str, thirds))} MB in the thirds of the time."
    )
    print(f"Server's processor time: {used / max(1, load.measured):.2f} s a picture.")
    print(f"Temporary files at the end: {disk} MB.")
    for problem in sorted(set(load.failed)):
        print(f"{load.failed.count(problem)} times: {problem}")


if __name__ == "__main__":
    typer.run(main)
