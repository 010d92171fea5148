"""Takes the README's pictures of the dashboard, light and dark: `make dashboard-picture`.

It takes some 6 minutes and needs npm and Chromium. A fleet works for some minutes under a real Prometheus; then
Grafana's own components draw dashboard.json from its data in a headless Chromium. KEDA's and the cluster's few
metrics come from a stand-in (cluster.py).
"""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import web

from tests.monitoring.expressions import DASHBOARD
from tests.monitoring.scene import Scene, watched_fleet

ROOT = Path(__file__).resolve().parents[2]
SOURCES = Path(__file__).parent / "picture"
BUILD = ROOT / ".tools" / "picture"
OUTPUTS = {"light": ROOT / "docs/dashboard.png", "dark": ROOT / "docs/dashboard-dark.png"}
SECONDS = 240
WAVES = (900, 1_600, 700, 1_900, 1_200)
ROW = 38
"""Pixels of a row of Grafana's layout, as in picture/src/main.jsx."""
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


class PictureFailed(Exception):
    """Says what is missing and what to do about it."""


def main() -> int:
    try:
        browser = find_browser()
        build_page()
        with tempfile.TemporaryDirectory() as folder:
            asyncio.run(film(Path(folder), browser))
    except PictureFailed as failure:
        sys.stderr.write(f"make dashboard-picture: {failure}\n")
        return 1
    return 0


def find_browser() -> str:
    for name in BROWSERS:
        if found := shutil.which(name):
            return found
    raise PictureFailed("no Chromium is on PATH. Next, on Debian: sudo apt-get install -y chromium")


def build_page() -> None:
    if shutil.which("npm") is None:
        raise PictureFailed("npm is not there. Next, on Debian: sudo apt-get install -y npm")
    shutil.copytree(SOURCES, BUILD, dirs_exist_ok=True)
    if not (BUILD / "node_modules").exists():
        npm("ci", "--ignore-scripts", "--legacy-peer-deps", "--no-audit", "--no-fund")
    npm("exec", "--", "vite", "build")
    shutil.copy(DASHBOARD, BUILD / "dist")


def npm(*arguments: str) -> None:
    if subprocess.run(["npm", *arguments], cwd=BUILD).returncode:
        raise PictureFailed(f"npm {' '.join(arguments)} failed in {BUILD}")


async def film(folder: Path, browser: str) -> None:
    async with watched_fleet(folder) as scene:
        began = time.time()
        await play(scene)
        async with page() as address:
            span = query(scene, began)
            for theme, output in OUTPUTS.items():
                await photograph(browser, f"{address}/index.html?theme={theme}&{span}", output)


async def play(scene: Scene) -> None:
    """Waves of jobs, the small quota used up by others now and then, and a look that is long enough for a curve."""
    async with asyncio.timeout(SECONDS * 2):
        for size in WAVES:
            await scene.submit(size)
            await scene.throttle(12)
            await asyncio.sleep(SECONDS / len(WAVES))


def query(scene: Scene, began: float) -> str:
    return f"prometheus={scene.prometheus.url}&from={int(began) + 10}&to={int(time.time())}"


@asynccontextmanager
async def page() -> AsyncIterator[str]:
    application = web.Application()
    application.router.add_static("/", BUILD / "dist")
    runner = web.AppRunner(application)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def height() -> int:
    panels = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    places: list[dict[str, int]] = [panel["gridPos"] for panel in panels]
    return max(place["y"] + place["h"] for place in places) * ROW + 16


async def photograph(browser: str, address: str, output: Path) -> None:
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium refuses to sandbox for root
    child = await asyncio.create_subprocess_exec(
        *(browser, "--headless=new", *sandbox, "--disable-gpu", "--hide-scrollbars", "--no-first-run"),
        *("--virtual-time-budget=20000", f"--window-size=1576,{height()}", f"--screenshot={output}", address),
    )
    async with asyncio.timeout(120):
        code = await child.wait()
    if code:
        raise PictureFailed(f"{browser} took no picture: exit code {code}")


if __name__ == "__main__":
    sys.exit(main())
