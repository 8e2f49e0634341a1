"""Pictures the page as an operator may find it: `python -m ops.screenshot DIR`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emiliad.board import Board
from emiliad.health.server import HealthServer
from emiliad.metrics import Metrics
from ops import browser, scenes

_PHONE = 390  # CSS pixels: what most phones have
_DESK = 1280
_TALL = 900


@dataclass(frozen=True, slots=True)
class Shot:
    """One picture to take."""

    name: str
    scene: Callable[[], Board | dict[str, Any]]
    width: int = _DESK
    height: int | None = None  # of what is pictured; default: the whole page
    dark: bool = False
    silent: bool = False  # the daemon stops to answer


SHOTS = (
    Shot("busy-light", lambda: scenes.busy().board),
    Shot("busy-dark", lambda: scenes.busy().board, dark=True),
    Shot("busy-phone", lambda: scenes.busy(3).board, width=_PHONE),
    Shot("sick-light", scenes.sick),
    Shot("sick-dark", scenes.sick, dark=True),
    Shot("sick-phone", scenes.sick, width=_PHONE, dark=True),
    Shot("loading-light", scenes.loading),
    Shot("empty-light", scenes.empty),
    Shot("empty-phone", scenes.empty, width=_PHONE),
    Shot("silent-light", lambda: scenes.busy(2).board, silent=True),
    Shot("silent-phone", lambda: scenes.busy(2).board, width=_PHONE, dark=True, silent=True),
    Shot("hostile-light", scenes.hostile),
    Shot("autokicker-light", scenes.autokicker),
    Shot("page", lambda: scenes.busy(4, seed=11).board, width=1080, height=1010),  # for the README
)


async def take(shot: Shot) -> bytes:
    """Serves the scene, opens it, and returns what is to be seen as a PNG."""
    scene = shot.scene()
    server = HealthServer(
        port=0,
        registry=Metrics().registry,
        status=scene.snapshot if isinstance(scene, Board) else lambda: scene,
        ready=scene.not_ready if isinstance(scene, Board) else lambda: None,
        alive=lambda: None,
    )
    server.start()
    try:
        async with browser.tab() as tab:
            await tab.shape(width=shot.width, height=shot.height or _TALL, dark=shot.dark)
            await tab.open(f"http://127.0.0.1:{server.port}/")
            await tab.until("document.getElementById('clock').textContent !== ''")
            if shot.silent:
                server.close()
                await tab.until("!document.getElementById('silence').hidden")
            await asyncio.sleep(2)  # the progress bars glide
            return await tab.picture(whole=shot.height is None)
    finally:
        server.close()


def main(folder: Path, names: list[str]) -> None:
    """Takes all the pictures, or those whose names begin with one of `names`."""
    folder.mkdir(parents=True, exist_ok=True)
    for shot in SHOTS:
        if not names or shot.name.startswith(tuple(names)):
            (folder / f"{shot.name}.png").write_bytes(asyncio.run(take(shot)))
            print(folder / f"{shot.name}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
