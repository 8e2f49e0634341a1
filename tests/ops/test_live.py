"""A real Prometheus scrapes real daemons: every expression has an answer, and alerts fire."""

from __future__ import annotations

import re
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from ops.grafana.expand import Choice, panels, sections
from ops.plot_dashboard import draw
from ops.prometheus import local
from ops.prometheus.client import Prometheus
from tests.emiliad.rig import Bucket, wait_until
from tests.ops.live import (
    RULES,
    address,
    enqueue,
    faster,
    leading_autokicker,
    until_seen,
)
from tests.ops.test_rules import names_in, needs_prometheus, rules

pytestmark = needs_prometheus
NOW = Choice(step_s=1, scrape_s=1, window="1m")
FASTER = 300  # times: an hour passes in twelve seconds


@dataclass(frozen=True, slots=True)
class Fleet:
    """What the tests of this module look at."""

    prometheus: Prometheus
    daemon: str  # its address


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A daemon with two executors at work, one task in ten bad, and an autokicker."""
    folder = tmp_path_factory.mktemp("fleet")
    bucket = Bucket(folder, {"CPU_EXECUTORS": "2", "FAKE_SECONDS": "0.2", "RECYCLE_TASKS": "20"})
    enqueue(bucket, *(f"talk-{n}" for n in range(200)), "bad_audio-1", "raises-1")
    with ExitStack() as stack:
        daemon = stack.enter_context(bucket.daemon())
        autokick = stack.enter_context(leading_autokicker())
        server = stack.enter_context(
            local.prometheus(
                folder / "prometheus",
                {"emiliad": [address(daemon)], "emiliad-autokick": [autokick]},
                rules=RULES,
            )
        )
        until_seen(server, 'emiliad_tasks_total{outcome="completed"}', 20)
        until_seen(server, "count_over_time(emiliad_ready[1m])", 8)
        until_seen(server, "instance:emiliad_audio_seconds:rate1h", 0.001)
        yield Fleet(server, address(daemon))


def test_prometheus_reaches_all_that_it_scrapes(fleet: Fleet) -> None:
    """The pages are in a format that it understands, to the last line."""
    assert {target["health"] for target in fleet.prometheus.targets()} == {"up"}
    assert {target["lastError"] for target in fleet.prometheus.targets()} == {""}


def test_the_metrics_keep_prometheus_conventions(fleet: Fleet) -> None:
    """Names, units, help texts and types, as promtool knows them."""
    with urllib.request.urlopen(f"http://{fleet.daemon}/metrics") as page:
        text = page.read()
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, check=False
    )
    assert (done.returncode, done.stderr.decode()) == (0, "")


@pytest.mark.parametrize("panel", [*panels()], ids=lambda panel: str(panel["title"]))
def test_every_query_of_the_dashboard_has_an_answer(fleet: Fleet, panel: dict[str, object]) -> None:
    """An empty panel on a fleet at work would be an error that nobody sees."""
    for target in panel["targets"]:  # type: ignore[attr-defined]
        found = fleet.prometheus.query(NOW.fill(target["expr"]))
        assert found or target["expr"].startswith("ALERTS"), target["expr"]


def test_every_rule_is_evaluated_without_an_error(fleet: Fleet) -> None:
    """Many-to-many matches and the like show on real data alone."""
    wait_until(lambda: all(rule["health"] == "ok" for rule in fleet.prometheus.rules()))
    assert len(fleet.prometheus.rules()) == len(rules())


@pytest.mark.parametrize(
    "rule", rules(), ids=lambda rule: str(rule.get("alert", rule.get("record")))
)
def test_every_rule_has_data_to_look_at(fleet: Fleet, rule: dict[str, str]) -> None:
    """A recording has a value; each series that an alert selects is there, with its labels."""
    if "record" in rule:
        assert fleet.prometheus.query(rule["record"])
        return
    bare = re.sub(r"\[[^]]+\]|offset \d+\w", "", rule["expr"])
    for selector in re.findall(r"(?:emiliad|process)_\w+(?:\{[^}]*\})?|up\{[^}]*\}", bare):
        name = re.split(r"[{]", selector)[0]
        if name in {*names_in(rule["expr"]), "up"}:
            assert fleet.prometheus.query(selector), selector


def test_nothing_is_wrong_with_a_healthy_fleet(fleet: Fleet) -> None:
    """A false alarm at the start would teach people not to look."""
    assert fleet.prometheus.alerts() == []


def test_the_dashboard_can_be_drawn_without_grafana(fleet: Fleet, tmp_path: Path) -> None:
    """A picture for each row."""
    pictures = draw(fleet.prometheus, NOW, since_s=60, out=tmp_path)
    assert len(pictures) == len(sections())
    assert all(picture.read_bytes().startswith(b"\x89PNG") for picture in pictures)


BROKEN: dict[str, dict[str, str]] = {  # the settings of daemons that go wrong, each in its way
    "killed": {},
    "loading": {"FAKE_LOAD": "hang"},
    "sick": {"CRASH_BUDGET": "1", "EXECUTOR_PAUSE_S": "600"},
    "draining": {"FAKE_SLOW_SECONDS": "600", "DRAIN_TIMEOUT_S": "600"},
    "failing": {"MAX_ATTEMPTS": "1", "CRASH_BUDGET": "0"},
}


def test_alerts_fire_when_real_daemons_break(tmp_path: Path) -> None:
    """The rules, with hours made seconds: a daemon is killed, one loads for ever, one's executor is
    sick, one does not end its drain, and one gets nothing but bad files."""
    buckets = {kind: Bucket(tmp_path / kind, {"POLL_S": "0.5", **BROKEN[kind]}) for kind in BROKEN}
    for bucket in buckets.values():
        bucket.root.mkdir()
    with ExitStack() as stack:
        daemons = {k: stack.enter_context(bucket.daemon()) for k, bucket in buckets.items()}
        at = {kind: address(daemon) for kind, daemon in daemons.items()}
        server = stack.enter_context(
            local.prometheus(
                tmp_path / "prometheus",
                {"emiliad": list(at.values())},
                rules=faster(RULES, FASTER, tmp_path / "faster.yaml"),
                every="500ms",
            )
        )
        until_seen(server, "count_over_time(emiliad_ready[1m])", 3)
        enqueue(buckets["sick"], "segfault-1")
        enqueue(buckets["draining"], "slow-1")
        enqueue(buckets["failing"], *_names("exit42", 20), *_names("bad_audio", 20))
        until_seen(server, f'emiliad_executors{{instance="{at["draining"]}", state="busy"}}', 1)
        daemons["killed"].signal(signal.SIGKILL)
        daemons["draining"].signal(signal.SIGTERM)
        expected = {
            "EmiliadDown": at["killed"],
            "EmiliadNotReady": at["loading"],
            "EmiliadExecutorDead": at["sick"],
            "EmiliadDrainStuck": at["draining"],
            "EmiliadExecutorRestarts": at["failing"],
            "EmiliadTasksFail": None,
        }
        fired: set[tuple[str, str | None]] = set()

        def all_fired() -> bool:
            for alert in server.alerts():
                assert "error" not in alert["annotations"]["description"]
                fired.add((alert["labels"]["alertname"], alert["labels"].get("instance")))
            return fired >= expected.items()

        wait_until(all_fired, lambda: f"fired: {fired}")


def _names(kind: str, count: int) -> list[str]:
    return [f"{kind}-{number}" for number in range(count)]
