"""The dashboard's rows about what goes wrong, and about what others want: queue, store, cluster."""

from __future__ import annotations

from ops.grafana.panels import (
    CHOSEN,
    FLEET,
    RATE,
    WINDOW,
    Panel,
    Query,
    Row,
    growth,
    led,
    quantile,
    rate,
)

_LATENCY = "emiliad_autokick_kick_latency_seconds"
_STATE = led("emiliad_autokick_state", 'state!="off"')
_RESTARTED = f"changes(process_start_time_seconds{{{CHOSEN}}}[{WINDOW}])"

QUEUE = Row(
    "Queue",
    (
        Panel(
            "Tasks left and dead letters",
            "As the daemon that looked last saw them.",
            "short",
            (
                Query(f"max(emiliad_todo_tasks{{{CHOSEN}}})", "left"),
                Query(f"max(emiliad_failed_tasks{{{CHOSEN}}})", "dead letters"),
            ),
        ),
        Panel(
            "Seconds of audio in an episode",
            "Mean over the completed ones. A jump explains a jump of everything else.",
            "s",
            (
                Query(
                    f"{rate('emiliad_audio_seconds_total', WINDOW)} / "
                    f"({rate('emiliad_tasks_total', WINDOW, outcome='completed')} > 0)",
                    "audio",
                ),
            ),
        ),
        Panel(
            "Segments per hour",
            "What the dataset grows by.",
            "short",
            (Query(f"3600 * {rate('emiliad_segments_total', WINDOW)}", "segments"),),
        ),
    ),
)

STORE = Row(
    "Object store",
    (
        Panel(
            "Requests, by operation",
            "Those that write and list cost most.",
            "reqps",
            (Query(rate("emiliad_store_requests_total", by="operation"), "{{operation}}"),),
            "stack",
        ),
        Panel(
            "Requests, by result other than ok",
            "not_found and precondition are answers that the queue's protocol expects; throttled, "
            "ambiguous, unusable and error are trouble.",
            "reqps",
            (
                Query(
                    f'sum by (result) (rate(emiliad_store_requests_total{{{CHOSEN}, result!="ok"}}'
                    f"[{RATE}]))",
                    "{{result}}",
                ),
            ),
        ),
        Panel(
            "Time of a request: 95th percentile",
            "Small requests take tens of milliseconds on R2; bodies take their time.",
            "s",
            (Query(quantile(0.95, "emiliad_store_request_seconds", "operation"), "{{operation}}"),),
        ),
    ),
)

LEASES = Row(
    "Leases",
    (
        Panel(
            "Leases held",
            "Executors, prefetched episodes and uploads; a small known number for each daemon.",
            "short",
            (Query(f"emiliad_leases_held{{{CHOSEN}}}", "{{instance}}"),),
        ),
        Panel(
            "Renewals per minute",
            "Each lease is renewed every third of LEASE_TTL_S.",
            "short",
            (Query(f"60 * {rate('emiliad_lease_renewals_total', by='result')}", "{{result}}"),),
        ),
        Panel(
            "Leases lost",
            "Another node took the task: this one was silent for longer than LEASE_TTL_S.",
            "short",
            (
                Query(
                    growth("emiliad_lease_renewals_total", "instance", 'result="lost"'),
                    "{{instance}}",
                ),
            ),
            "bars",
        ),
    ),
)

FAILURES = Row(
    "Failures",
    (
        Panel(
            "Attempts that failed, by daemon",
            "Failed for good, or free for another attempt. On one daemon alone: its GPU or disk. "
            "On all: the files.",
            "short",
            (
                Query(
                    growth("emiliad_tasks_total", "instance", 'outcome=~"failed|retried"'),
                    "{{instance}}",
                ),
            ),
            "bars",
        ),
        Panel(
            "Work thrown away by stops",
            "Interrupted: handed back although begun. Starving: claimed, and interrupted three "
            "times or more before.",
            "short",
            (
                Query(
                    growth("emiliad_interrupted_tasks_total"),
                    "interrupted",
                ),
                Query(growth("emiliad_starving_tasks_total"), "starving"),
            ),
            "bars",
        ),
        Panel(
            "Starts of the daemon in the window",
            "Each loads the models anew.",
            "short",
            (Query(f"{_RESTARTED} and on (job, instance) emiliad_ready", "{{instance}}"),),
        ),
    ),
)

AUTOKICK = Row(
    "Autokicker (in a cluster)",
    (
        Panel(
            "State of the leader",
            "fill: grows. yield: makes room for a pod that we block. settle: waits a little before "
            "it grows again. frozen: does nothing, see its log.",
            "short",
            (Query(f"max by (state) {_STATE}", "{{state}}"),),
            "states",
            12,
            colours={"fill": "green", "yield": "orange", "settle": "blue", "frozen": "red"},
        ),
        Panel(
            "Pods of ours",
            "Wanted, and as they are. One unbound pod is normal: it is how we learn of room.",
            "short",
            (Query(f"max by (kind) {led('emiliad_autokick_replicas')}", "{{kind}}"),),
            width=12,
        ),
        Panel(
            "Pods of others that wait",
            "Blocked: for what we hold. Muted: our leaving did not help them.",
            "short",
            (
                Query(f"max{led('emiliad_autokick_blocked_pods')}", "blocked"),
                Query(f"max{led('emiliad_autokick_muted_pods')}", "muted"),
            ),
        ),
        Panel(
            "Kicks and other writes",
            "What was written to the target, and what the API server refused.",
            "short",
            (
                Query(
                    growth("emiliad_autokick_actions_total", "action", chosen=FLEET),
                    "{{action}}",
                ),
                Query(
                    growth("emiliad_autokick_write_errors_total", chosen=FLEET),
                    "refused",
                ),
            ),
            "bars",
        ),
        Panel(
            "Time to make room",
            "From seeing a blocked pod to having scaled down. Goal: p99 below one second.",
            "s",
            (
                Query(quantile(0.5, _LATENCY, "namespace", chosen=FLEET), "p50"),
                Query(quantile(0.99, _LATENCY, "namespace", chosen=FLEET), "p99"),
            ),
        ),
        Panel(
            "Share of time held back",
            "For others, or for a pod that nobody can help.",
            "percentunit",
            (
                Query(
                    f"sum(rate(emiliad_autokick_yielded_seconds_total{{{FLEET}}}[{WINDOW}]))",
                    "held back",
                ),
            ),
            at_most=1,
        ),
        Panel(
            "Age of the leader's view",
            "Since the oldest watch was last heard of; the API server says something every minute.",
            "s",
            (Query(f"max{led('emiliad_autokick_cache_age_seconds')}", "age"),),
        ),
        Panel(
            "Leaders, and watches opened again",
            "One leader at any time. Watches are renewed every few minutes.",
            "short",
            (
                Query(f"sum(emiliad_autokick_leader{{{FLEET}}})", "leaders"),
                Query(
                    growth("emiliad_autokick_watch_restarts_total", "reason", chosen=FLEET),
                    "{{reason}}",
                ),
            ),
        ),
    ),
    collapsed=True,
)
