"""The dashboard's rows about the work: how much, where, and how fast."""

from __future__ import annotations

from ops.grafana.panels import (
    CHOSEN,
    HOURS,
    TIMES,
    WINDOW,
    Panel,
    Query,
    Row,
    Threshold,
    growth,
    quantile,
    rate,
)

# `gpu0.1` is the second worker of the first GPU; a machine without one is one device.
_DEVICES = (
    "count(count by (job, instance, device) (label_replace("
    f"emiliad_executor_busy_seconds_total{{{CHOSEN}}}, "
    '"device", "$1", "executor", "([^.]+)[.].*")))'
)
_AUDIO = rate("emiliad_audio_seconds_total", WINDOW)
_SETTLED = rate("emiliad_tasks_total", WINDOW, outcome="completed|failed")
_BUSY = rate("emiliad_executor_busy_seconds_total", WINDOW)
_IDLE = rate("emiliad_executor_idle_seconds_total", WINDOW)
_FAILING = "throttled|ambiguous|unusable|error"
_ASKED = rate("emiliad_store_requests_total")
_REFUSED = rate("emiliad_store_requests_total", result=_FAILING)
_GOOD_LOW: tuple[Threshold, ...] = ((None, "green"), (0.01, "orange"), (0.05, "red"))
_GOOD_HIGH: tuple[Threshold, ...] = ((None, "red"), (0.5, "orange"), (0.8, "green"))
_GOOD_NONE: tuple[Threshold, ...] = ((None, "green"), (1, "orange"))

OVERVIEW = Row(
    "Overview",
    (
        Panel(
            "Audio hours per hour",
            "Audio of completed episodes, all chosen daemons together; also: times real time.",
            HOURS,
            (Query(_AUDIO, "fleet"),),
            "stat",
            3,
        ),
        Panel(
            "The same per GPU",
            "Audio hours per hour of one GPU; a machine without a GPU counts as one.",
            HOURS,
            (Query(f"{_AUDIO} / {_DEVICES}", "per GPU"),),
            "stat",
            3,
        ),
        Panel(
            "Tasks left",
            "Todo without the dead letters, as the daemon that looked last saw it.",
            "short",
            (Query(f"max(emiliad_todo_tasks{{{CHOSEN}}})", "tasks"),),
            "stat",
            3,
        ),
        Panel(
            "Time left",
            "Tasks left at the pace of the window.",
            "s",
            (Query(f"max(emiliad_todo_tasks{{{CHOSEN}}}) / ({_SETTLED} > 0)", "left"),),
            "stat",
            3,
            no_value="unknown",
        ),
        Panel(
            "Dead letters",
            "Tasks that are not tried again by themselves. `emiliad retry` gives them a chance.",
            "short",
            (Query(f"max(emiliad_failed_tasks{{{CHOSEN}}})", "failed"),),
            "stat",
            3,
            _GOOD_NONE,
        ),
        Panel(
            "Daemons ready",
            "Share of the daemons that can process a task now.",
            "percentunit",
            (Query(f"sum(emiliad_ready{{{CHOSEN}}}) / count(emiliad_ready{{{CHOSEN}}})", "ready"),),
            "stat",
            3,
            _GOOD_HIGH,
        ),
        Panel(
            "Executors busy",
            "Share of the ready executors' time spent on tasks. Too little with work left: Flow",
            "percentunit",
            (Query(f"{_BUSY} / ({_BUSY} + {_IDLE} > 0)", "busy"),),
            "stat",
            3,
            _GOOD_HIGH,
        ),
        Panel(
            "Store failures",
            "Share of the requests that failed or were throttled; all are repeated.",
            "percentunit",
            (Query(f"{_REFUSED} / ({_ASKED} > 0)", "fail"),),
            "stat",
            3,
            _GOOD_LOW,
        ),
        Panel(
            "Firing alerts",
            "Each has a section in the runbook, ops/README.md.",
            "short",
            (Query('ALERTS{alertname=~"Emiliad.*", alertstate="firing"}', "{{alertname}}"),),
            "alerts",
            no_value="none",
        ),
        Panel(
            "Audio hours per hour, by daemon",
            "One that lies below its equals has a sick GPU, a slow disk or a slow network.",
            HOURS,
            (Query(rate("emiliad_audio_seconds_total", WINDOW, by="instance"), "{{instance}}"),),
        ),
        Panel(
            "Attempts per hour",
            "How attempts end. Released: handed back at a stop. Lost: another node took the task.",
            "short",
            (Query(f"3600 * {rate('emiliad_tasks_total', WINDOW, by='outcome')}", "{{outcome}}"),),
            "stack",
            colours={
                "completed": "green",
                "failed": "red",
                "retried": "orange",
                "released": "blue",
                "lost": "purple",
            },
        ),
    ),
)

EXECUTORS = Row(
    "GPUs and executors",
    (
        Panel(
            "Busy share of each executor",
            "Near 100 % while there is work. gpu0.1 is the second worker of the first GPU.",
            "percentunit",
            (
                Query(
                    f"rate(emiliad_executor_busy_seconds_total{{{CHOSEN}}}[{WINDOW}]) / (rate("
                    f"emiliad_executor_busy_seconds_total{{{CHOSEN}}}[{WINDOW}]) + "
                    f"rate(emiliad_executor_idle_seconds_total{{{CHOSEN}}}[{WINDOW}]) > 0)",
                    "{{instance}} {{executor}}",
                ),
            ),
            width=12,
            at_most=1,
        ),
        Panel(
            "Executors by state",
            "Dead ones are given up, and tried again ever more rarely; /status says why.",
            "short",
            (Query(f"sum by (state) (emiliad_executors{{{CHOSEN}}})", "{{state}}"),),
            "stack",
            12,
            colours={"busy": "green", "idle": "gray", "loading": "orange", "dead": "red"},
        ),
        Panel(
            "Memory of each executor",
            "Resident memory, not the GPU's. It follows the episodes and comes down between them.",
            "bytes",
            (Query(f"emiliad_executor_memory_bytes{{{CHOSEN}}}", "{{instance}} {{executor}}"),),
            width=12,
        ),
        Panel(
            "Executors started again",
            "Recycled is planned; crash, timeout, protocol, not_reusable and load are not.",
            "short",
            (
                Query(
                    growth("emiliad_executor_restarts_total", "reason"),
                    "{{reason}}",
                ),
            ),
            "bars",
            12,
        ),
    ),
)

FLOW = Row(
    "Flow inside the daemons",
    (
        Panel(
            "Episodes waiting",
            "Prefetched at 0 while executors idle: downloads are too slow. Upload growing: results "
            "do not leave.",
            "short",
            (Query(f"sum by (queue) (emiliad_queue_depth{{{CHOSEN}}})", "{{queue}}"),),
            "stack",
        ),
        Panel(
            "Bytes to and from the store",
            "In: audio. Out: packs and outputs.",
            "Bps",
            (Query(rate("emiliad_transfer_bytes_total", by="direction"), "{{direction}}"),),
        ),
        Panel(
            "Scratch space",
            "What is left where SCRATCH_DIR lies, and what emiliad takes of it.",
            "bytes",
            (
                Query(f"emiliad_scratch_free_bytes{{{CHOSEN}}}", "{{instance}} free"),
                Query(f"emiliad_scratch_bytes{{{CHOSEN}}}", "{{instance}} used"),
            ),
        ),
        Panel(
            "Event loop: how late timers run",
            "Milliseconds. A loop that is late renews leases late and feeds the GPUs late.",
            "s",
            (
                Query(quantile(0.5, "emiliad_loop_lag_seconds", "instance"), "{{instance}} p50"),
                Query(quantile(0.99, "emiliad_loop_lag_seconds", "instance"), "{{instance}} p99"),
            ),
        ),
        Panel(
            "Event loop: stalls",
            "Each is in the log as loop.stalled, with the stack of what the loop was busy with.",
            "short",
            (
                Query(
                    growth("emiliad_loop_stalls_total", "instance"),
                    "{{instance}}",
                ),
            ),
            "bars",
        ),
        Panel(
            "Memory of the daemon itself",
            "Without the executors: near 100 MB, and flat.",
            "bytes",
            (
                Query(
                    f"process_resident_memory_bytes{{{CHOSEN}}} "
                    "and on (job, instance) emiliad_ready",
                    "{{instance}}",
                ),
            ),
        ),
    ),
)

_STAGE_TIME = rate("emiliad_stage_seconds_sum", WINDOW, by="stage")
STAGES = Row(
    "Stages of the pipeline",
    (
        Panel(
            "Times real time, by stage",
            "Seconds of audio for a second of one executor. The lowest line is the bottleneck.",
            TIMES,
            (
                Query(
                    f"{rate('emiliad_stage_audio_seconds_total', WINDOW, by='stage')} / "
                    f"({_STAGE_TIME} > 0)",
                    "{{stage}}",
                ),
            ),
        ),
        Panel(
            "Share of the time, by stage",
            "Where an executor's time goes.",
            "percentunit",
            (
                Query(
                    f"({_STAGE_TIME} > 0) / on () group_left () "
                    f"({rate('emiliad_stage_seconds_sum', WINDOW)} > 0)",
                    "{{stage}}",
                ),
            ),
            "stack",
            at_most=1,
        ),
        Panel(
            "Slowest twentieth of the episodes, by stage",
            "95th percentile of a stage's time for an episode: long files, and slow nodes.",
            "s",
            (Query(quantile(0.95, "emiliad_stage_seconds", "stage", window=WINDOW), "{{stage}}"),),
        ),
    ),
)
