"""The command line: what each command is called, and what its exit code means."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from emiliad import logs
from emiliad.config import Settings
from emiliad.errors import ConfigError, EmiliadError

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130

Command = Callable[[argparse.Namespace], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; errors are one sentence on stderr."""
    arguments = _parser().parse_args(argv)
    command: Command = arguments.command
    try:
        return command(arguments)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()
        return FAILED
    except (EmiliadError, ExceptionGroup) as error:
        cause = _cause(error)
        if cause is None:
            raise
        print(f"emiliad: {cause}", file=sys.stderr)
        return USAGE if isinstance(cause, ConfigError) else FAILED


def _cause(error: Exception) -> EmiliadError | None:
    """The error to show: the first of ours in the group, if nothing else is in it."""
    if isinstance(error, EmiliadError):
        return error
    if isinstance(error, ExceptionGroup):
        causes = [_cause(inner) for inner in error.exceptions]
        if all(causes):
            return causes[0]
    return None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="emiliad",
        description="Turns raw audio into speech-dataset segments. "
        "Settings are environment variables: see `emiliad config`.",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    process = commands.add_parser("process", help="run the pipeline on local files")
    process.add_argument("files", nargs="+", type=Path, metavar="FILE")
    process.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="receives DIR/NAME/"
    )
    process.set_defaults(command=_process)

    enqueue = commands.add_parser("enqueue", help="make a task of each raw file that has none")
    enqueue.add_argument("--dry-run", action="store_true", help="only count")
    enqueue.add_argument("--limit", type=int, metavar="N", help="create N tasks at most")
    enqueue.set_defaults(command=_enqueue)

    run = commands.add_parser("run", help="the daemon")
    run.add_argument(
        "--exit-when-empty", action="store_true", help="end when every task is completed or failed"
    )
    run.set_defaults(command=_run)

    status = commands.add_parser("status", help="the queue at a glance")
    status.add_argument("--json", action="store_true", help="for machines, on stdout")
    status.add_argument("--watch", action="store_true", help="again every two seconds")
    status.set_defaults(command=_status)

    retry = commands.add_parser("retry", help="give failed tasks another chance")
    retry.add_argument("episodes", nargs="*", metavar="EPISODE_ID")
    retry.add_argument("--all", action="store_true", help="every failed task")
    retry.set_defaults(command=_retry)

    verify = commands.add_parser(
        "verify", help="check that the outputs of completed tasks are there"
    )
    verify.add_argument(
        "--requeue", action="store_true", help="do again what the old scripts completed badly"
    )
    verify.add_argument("--json", action="store_true", help="for machines, on stdout")
    verify.set_defaults(command=_verify)

    models = commands.add_parser("models", help="fetch and check the models")
    models.add_argument("action", choices=("pull", "verify", "list"))
    models.set_defaults(command=_models)

    doctor = commands.add_parser("doctor", help="check this machine and its store, a line each")
    doctor.set_defaults(command=_doctor)

    autokick = commands.add_parser("autokick", help="leave a shared cluster's GPUs to who waits")
    autokick.add_argument(
        "--dry-run", action="store_true", help="only print what it would do, and why"
    )
    autokick.set_defaults(command=_autokick)

    bench = commands.add_parser("bench", help="what each stage costs on this machine")
    bench.add_argument("file", nargs="?", type=Path, help="default: a real conversation, repeated")
    bench.add_argument("--seconds", type=float, default=150.0, help="its length; default: 150")
    bench.add_argument("--json", action="store_true", help="for machines, on stdout")
    bench.set_defaults(command=_bench)

    config = commands.add_parser("config", help="every setting, its default and its meaning")
    config.add_argument("--json", action="store_true", help="for machines, on stdout")
    config.set_defaults(command=_config)
    return parser


def _settings(*, store: bool = False) -> Settings:
    """`store`: for a command that opens the store, whose settings are then checked with all."""
    if store:
        from emiliad.bucket import objections

        settings = Settings.from_env(check=objections)
    else:
        settings = Settings.from_env()
    logs.configure(settings.daemon.log_level, settings.daemon.log_format)
    return settings


def _process(arguments: argparse.Namespace) -> int:
    from emiliad.commands import process

    return process.run(_settings(), arguments.files, arguments.out)


def _enqueue(arguments: argparse.Namespace) -> int:
    from emiliad.commands import queue

    if arguments.limit is not None and arguments.limit < 0:
        raise ConfigError(f"--limit {arguments.limit}: is less than 0")
    return queue.enqueue(_settings(store=True), dry_run=arguments.dry_run, limit=arguments.limit)


def _run(arguments: argparse.Namespace) -> int:
    from emiliad import signals

    signals.before_the_loop()
    from emiliad.commands import daemon

    return daemon.run(_settings(store=True), exit_when_empty=arguments.exit_when_empty)


def _status(arguments: argparse.Namespace) -> int:
    from emiliad.commands import queue

    return queue.status(_settings(store=True), as_json=arguments.json, watch=arguments.watch)


def _retry(arguments: argparse.Namespace) -> int:
    from emiliad.commands import queue

    if bool(arguments.episodes) == arguments.all:
        raise ConfigError("retry: name episodes, or say --all")
    return queue.retry(_settings(store=True), arguments.episodes or None)


def _verify(arguments: argparse.Namespace) -> int:
    from emiliad.commands import verify

    return verify.run(_settings(store=True), requeue=arguments.requeue, as_json=arguments.json)


def _models(arguments: argparse.Namespace) -> int:
    from emiliad.commands import models

    return models.run(_settings(), arguments.action)


def _doctor(_: argparse.Namespace) -> int:
    from emiliad.commands import doctor

    return doctor.run(_settings())


def _autokick(arguments: argparse.Namespace) -> int:
    from emiliad import signals

    signals.before_the_loop()
    from emiliad.commands import autokick

    return autokick.run(_settings(), dry_run=arguments.dry_run)


def _bench(arguments: argparse.Namespace) -> int:
    from emiliad.commands import bench

    if not arguments.seconds > 0:
        raise ConfigError(f"--seconds {arguments.seconds}: is not more than 0")
    return bench.run(_settings(), arguments.file, arguments.seconds, as_json=arguments.json)


def _config(arguments: argparse.Namespace) -> int:
    from emiliad.commands import settings

    return settings.run(as_json=arguments.json)
