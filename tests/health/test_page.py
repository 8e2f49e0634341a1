"""The page in a real browser: what it shows, that it has no errors, that nothing gets into it."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from emiliad.board import Board
from emiliad.health.page import page
from emiliad.health.server import HealthServer
from ops import browser, scenes
from pipeline.types import STAGES
from tests.health.asking import serving

in_chromium = pytest.mark.skipif(browser.chromium() is None, reason="needs chromium on PATH")
_TEXT = "document.body.innerText"
_THEMES = re.compile(r":root \{(.*?)\}", re.DOTALL)


@asynccontextmanager
async def looking_at(
    status: Callable[[], dict[str, Any]], **server: Any
) -> AsyncIterator[tuple[browser.Tab, HealthServer]]:
    """A browser that shows the page of a server with this status."""
    with serving(status=status, **server) as served:
        async with browser.tab() as tab:
            await tab.shape()
            await tab.open(f"http://127.0.0.1:{served.port}/")
            await tab.until("document.getElementById('clock').textContent !== ''")
            yield tab, served


def _says(*texts: str) -> str:
    """The expression that is true when the page shows all these texts."""
    return " && ".join(f"{_TEXT}.includes({json.dumps(text)})" for text in texts)


async def _shows(tab: browser.Tab, *selectors: str) -> dict[str, bool]:
    """Which elements are to be seen."""
    seen = "(e => Boolean(e) && e.offsetParent !== null)(document.querySelector({}))"
    return {one: await tab.evaluate(seen.format(json.dumps(one))) for one in selectors}


def _texts(selector: str) -> str:
    return f"[...document.querySelectorAll({json.dumps(selector)})].map(e => e.textContent)"


@in_chromium
async def test_a_busy_daemon_is_shown_and_renews_itself() -> None:
    """Executors, stages, queues, throughput and attempts are there, without one complaint; what
    changes is shown without a reload."""
    board = scenes.busy(8).board
    async with looking_at(board.snapshot) as (tab, _):
        assert await tab.evaluate(_texts("h3")) == [f"gpu{number}" for number in range(8)]
        assert set(STAGES) <= set(await tab.evaluate(_texts(".stages .name")))
        figures = ["41\u202f233", "1", "2", str(_busy(board)), "1", str(_completed(board))]
        assert await tab.evaluate(_texts("#flow .figure")) == figures
        assert await tab.evaluate("document.querySelectorAll('#plot rect.hit').length") == 60
        assert "running" in await tab.evaluate("document.title + $('state').textContent")
        # What was there stays the same element, so that a selection survives.
        await tab.evaluate("document.querySelector('h3').marked = true")
        board.fact(node="another-node")
        board.end("gpu0")
        board.show("gpu0", "dead", reason="it has fallen off the bus")
        await tab.until(_says("another-node", "it has fallen off the bus", "1 dead"))
        assert await tab.evaluate("document.querySelector('h3').marked") is True
        await _filters(tab)
        await _policy_holds(tab)


async def _filters(tab: browser.Tab) -> None:
    """Attempts can be filtered by outcome and by text."""
    assert tab.complaints == []
    await tab.evaluate(
        "[...$('filters').children].find(b => b.textContent.startsWith('Failed')).click()"
    )
    outcomes = set(await tab.evaluate(_texts("#rows .pill")))
    assert outcomes
    assert outcomes <= {"failed", "retried"}
    typed = "$('search').value = 'silent'; $('search').dispatchEvent(new Event('input'))"
    await tab.evaluate(typed)
    reasons = await tab.evaluate(_texts("#rows .what"))
    assert all("silent" in reason for reason in reasons)
    await tab.evaluate(typed.replace("silent", "nothing has this"))
    await tab.until(_says("Nothing of that kind."))
    await tab.evaluate(typed.replace("silent", ""))
    await tab.evaluate(
        "[...$('filters').children].find(b => b.textContent.startsWith('All')).click()"
    )
    few = await tab.evaluate("$('rows').children.length")
    await tab.evaluate("$('all').click()")
    assert await tab.evaluate("$('rows').children.length") > few
    assert tab.complaints == []


async def _policy_holds(tab: browser.Tab) -> None:
    """A script that gets into the page after all is not run."""
    await tab.evaluate(
        "document.body.append(Object.assign(document.createElement('script'),"
        " {textContent: 'window.broken = true'}))"
    )
    assert await tab.evaluate("window.broken") is None
    assert "Content Security Policy" in tab.complaints.pop()


def _completed(board: Board) -> int:
    return int(board.snapshot()["totals"]["completed"])


def _busy(board: Board) -> int:
    return sum(row["state"] == "busy" for row in board.snapshot()["executors"])


@in_chromium
async def test_hostile_texts_are_texts() -> None:
    """Whatever an episode, a node or an error is called: it is shown, letter by letter, and does
    nothing."""
    async with looking_at(scenes.hostile().snapshot) as (tab, _):
        hostile = json.dumps(scenes.HOSTILE)
        for selector in (".episode", "#rows td.episode bdi", ".reason", ".stages .name", "dd"):
            assert await tab.evaluate(f"{_texts(selector)}.includes({hostile})"), selector
        assert await tab.evaluate(f"{_TEXT}.includes('<script>throw 1</script><img src=x')")
        assert await tab.evaluate("document.querySelectorAll('img, iframe, object').length") == 0
        assert await tab.evaluate("document.scripts.length") == 1
        await _fits(tab)
        assert tab.complaints == []


async def _fits(tab: browser.Tab) -> None:
    """No width of window needs scrolling sideways."""
    for width in (320, 390, 768, 1280, 1920):
        await tab.shape(width=width)
        assert await tab.evaluate("document.documentElement.scrollWidth") <= width


@in_chromium
async def test_a_sick_daemon_says_what_is_wrong() -> None:
    """Problems come first; dead executors have their reasons; the store's failure is told."""
    board = scenes.sick()
    async with looking_at(board.snapshot, alive=lambda: "the loop stands for 20 s") as (tab, _):
        await tab.until(_says("the loop stands for 20 s", "gpu2 on cuda:2 is given up: CUDA error"))
        assert await _shows(tab, "#problems", "#stalled", "#silence", "#notice") == {
            "#problems": True,
            "#stalled": True,
            "#silence": False,
            "#notice": False,
        }
        assert await tab.evaluate(_texts(".executor.dead h3")) == ["gpu2", "gpu5"]
        assert await tab.evaluate(_says("get: timeout", "the driver no longer lists this GPU"))
        board.enter("draining")
        await tab.until(_says("it takes no more work"))
        await _fits(tab)
        assert tab.complaints == []


@in_chromium
async def test_a_daemon_that_does_not_answer_is_noticed() -> None:
    """The page says since when and what to do, goes on asking, and takes it back when answered."""
    board = scenes.busy(1).board
    async with looking_at(board.snapshot) as (tab, server):
        port = server.port
        server.close()
        await tab.until(_says("No answer since", "kubectl", "systemctl status emiliad"))
        assert await tab.evaluate("document.title.startsWith('no answer')")
        await _fits(tab)
        with serving(port=port, status=lambda: dict[str, Any](wrong=1 / 0)):
            await tab.until(_says("It answers 500"))
        with serving(port=port, status=board.snapshot):
            await tab.until("$('silence').hidden && $('state').textContent === 'running'")
        # The browser itself notes a refused connection and a 500; the page has no error.
        assert [c for c in tab.complaints if "Failed to load resource" not in c] == []


@in_chromium
@pytest.mark.parametrize(
    "status",
    [
        scenes.empty().snapshot(),
        scenes.loading().snapshot(),
        scenes.autokicker(),
        {},
        {"executors": None, "recent": 3, "flow": "x", "totals": [], "throughput": {}, "stages": 1},
        {
            "executors": [None, {}, 7],
            "recent": [None, {"at": 5}],
            "throughput": [None],
            "totals": {},
        },
    ],
    ids=["empty", "loading", "autokicker", "nothing", "wrong", "broken"],
)
async def test_any_status_can_be_shown(status: dict[str, Any]) -> None:
    """A daemon that has just begun, the autokicker alone, an older or newer daemon: no error."""
    async with looking_at(lambda: status) as (tab, _):
        await _fits(tab)
        assert tab.complaints == []
        sections = await _shows(tab, "#executors-section", "#flow-section", "#recent-section")
        if "executors" not in status:
            assert not any(sections.values())
        if "autokick" in status:
            assert await tab.evaluate(_says("yield", "llm-7b-worker-3 waits for", "terminating 3"))


def test_the_page_needs_nothing_from_elsewhere_and_writes_no_markup() -> None:
    """No font, script or picture of another host; texts are never parsed as HTML."""
    html = page().html.decode()
    links = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"'\s>)]+)""", html)
    assert {link for link in links if not link.startswith("data:")} == {
        "status",
        "metrics",
        "readyz",
        "livez",
    }
    for forbidden in (
        "innerHTML",
        "outerHTML",
        "insertAdjacent",
        "document.write",
        "eval(",
        "@import",
    ):
        assert forbidden not in html
    assert not re.search(r"<[^>]+\s(style|on[a-z]+)=", html), "the policy would not let it work"
    assert len(page().html) < 60_000


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_text_can_be_read_in_both_themes(theme: int) -> None:
    """Every pair of text and ground has a contrast of 4.5 or more (WCAG 2.2, 1.4.3)."""
    colours = dict(
        re.findall(r"--([a-z-]+): (#[0-9a-f]+)", _THEMES.findall(page().html.decode())[theme])
    )
    pairs = [(text, ground) for text in ("text", "soft") for ground in ("ground", "sheet", "sunk")]
    pairs += [(mood, f"{mood}-sunk") for mood in ("blue", "green", "amber", "red")]
    pairs += [("text", f"{mood}-sunk") for mood in ("blue", "amber", "red")]
    pairs += [
        ("sheet", "blue"),
        ("blue", "ground"),
        ("blue", "sheet"),
        ("amber", "sheet"),
        ("red", "ground"),
    ]
    weak = {
        pair: round(ratio, 2)
        for pair in pairs
        if (ratio := _contrast(*(colours[c] for c in pair))) < 4.5
    }
    assert weak == {}


def _contrast(one: str, other: str) -> float:
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


def _luminance(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    parts = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
