"""Finds the models on disk, checks them, and says what they are. Standard library only.

MODELS_DIR holds a folder per set. In it `models.json` records every file as it was when it was
pulled, so that a start need not hash gigabytes: a file that still has its size and its time of
change is taken for the one that was recorded.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pipeline.catalogue import SETS
from pipeline.config import PipelineConfig
from pipeline.fingerprints import Fingerprints, sha256_of, sha256_of_listing
from pipeline.sources import File, Model, ModelSet, Role
from pipeline.types import ModelError

__all__ = [
    "SETS",
    "ModelPaths",
    "Problem",
    "Row",
    "check",
    "identities",
    "list_models",
    "locate",
    "model_set",
    "pull_command",
    "verify",
]

# What faster-whisper needs; without a tokenizer it would fetch one from its hub.
_WHISPER_FILES = ("model.bin", "config.json", "tokenizer.json")
_PYANNOTE_FILES = ("config.yaml",)
_ROLES: tuple[Role, ...] = ("separation", "diarization", "vad", "asr", "dnsmos")
State = Literal["present", "missing", "damaged"]


@dataclass(frozen=True, slots=True)
class ModelPaths:
    """What each stage loads.

    `separation`, `vad` and `dnsmos` are ONNX files. `asr` is a folder with a Whisper in
    CTranslate2's format. `diarization` is a folder: with a `config.yaml` that
    `pyannote.audio.Pipeline.from_pretrained` loads, or, of the set `demo`, with
    `segmentation-3.0/pytorch_model.bin` and `wespeaker-campplus.onnx`.
    """

    separation: Path
    diarization: Path
    vad: Path
    asr: Path
    dnsmos: Path


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong with one file of a set; `str()` of it is a clause for people."""

    file: str
    kind: Literal["missing", "unreadable", "size", "sha256"]
    detail: str

    def __str__(self) -> str:
        return f"{self.file} {self.detail}"


@dataclass(frozen=True, slots=True)
class Row:
    """A model as a list shows it; `size` in bytes, None where it is not known yet."""

    set: str
    role: Role
    name: str
    size: int | None
    licence: str
    state: State
    home: str


def model_set(name: str) -> ModelSet:
    """The set of that name. Raises ModelError for an unknown one."""
    if name not in SETS:
        raise ModelError(f"there is no set of models {name!r}: the sets are {', '.join(SETS)}")
    return SETS[name]


def pull_command(set_name: str) -> str:
    """What to type to have the set."""
    return f"MODELS={set_name} emiliad models pull"


def locate(config: PipelineConfig) -> ModelPaths:
    """Where the models of the chosen set lie, or the user's own in their place.

    Looks only at which files there are and how long they are. Raises ModelError, which names every
    missing or damaged file, where it was looked for, and what to do.
    """
    search = _Search(config.models_dir, model_set(config.models))
    paths = ModelPaths(
        separation=search.file("separation", config.separation_model, "SEPARATION_MODEL"),
        diarization=search.folder(
            "diarization", config.diarization_model, "DIARIZATION_MODEL", _PYANNOTE_FILES
        ),
        vad=search.default("vad"),
        asr=search.folder("asr", config.asr_model, "ASR_MODEL", _WHISPER_FILES),
        dnsmos=search.file("dnsmos", config.dnsmos_model, "DNSMOS_MODEL"),
    )
    if complaints := search.complaints():
        raise ModelError("; ".join(complaints))
    return paths


@dataclass(frozen=True, slots=True)
class _Search:
    """Looks for one model after another and gathers what is wrong."""

    models_dir: Path
    chosen: ModelSet
    wrong_in_sets: dict[str, list[Problem]] = field(default_factory=dict)
    wrong_of_user: list[str] = field(default_factory=list)

    def default(self, role: Role) -> Path:
        return self._of_set(self.chosen, self.chosen.of_role(role)[0])

    def file(self, role: Role, own: Path | None, variable: str) -> Path:
        if own is None:
            return self.default(role)
        if not (own.is_file() and os.access(own, os.R_OK)):
            self.wrong_of_user.append(f"{variable}: there is no readable file {own}")
        return own

    def folder(self, role: Role, asked: str, variable: str, holds: tuple[str, ...]) -> Path:
        """`asked` is nothing, the name of a model of any set, or a folder of the user's."""
        if not asked:
            return self.default(role)
        for each in (self.chosen, *SETS.values()):
            for model in each.of_role(role):
                if asked in (model.name, short_name(model)):
                    return self._of_set(each, model)
        own = Path(asked).expanduser()
        self.wrong_of_user.extend(f"{variable}: {why}" for why in _lacks(own, role, holds))
        return own

    def _of_set(self, found_in: ModelSet, model: Model) -> Path:
        folder = self.models_dir / found_in.name
        wrong = [problem for file in model.files if (problem := _at_a_glance(folder, file))]
        if wrong:
            self.wrong_in_sets.setdefault(found_in.name, []).extend(wrong)
        return folder / model.path

    def complaints(self) -> list[str]:
        return self.wrong_of_user + [
            f"the set {name} is not whole in {self.models_dir / name}: {_summary(wrong)} "
            f"(MODELS_DIR is {self.models_dir}); run `{pull_command(name)}`"
            for name, wrong in self.wrong_in_sets.items()
        ]


def _summary(problems: list[Problem]) -> str:
    missing = [problem.file for problem in problems if problem.kind == "missing"]
    others = [str(problem) for problem in problems if problem.kind != "missing"]
    return ", ".join([f"missing {' '.join(missing)}"] * bool(missing) + others)


def short_name(model: Model) -> str:
    """`medium` for whisper-medium, `3.1` for speaker-diarization-3.1; else the whole name."""
    return model.name.removeprefix("whisper-").removeprefix("speaker-diarization-")


def _lacks(own: Path, role: Role, holds: tuple[str, ...]) -> list[str]:
    if not own.is_dir():
        known = dict.fromkeys(
            short_name(model) for each in SETS.values() for model in each.of_role(role)
        )
        return [f"{str(own)!r} is neither a folder nor one of {', '.join(known)}"]
    return [f"there is no {name} in {own}" for name in holds if not (own / name).is_file()]


def _at_a_glance(folder: Path, file: File, recorded_size: int | None = None) -> Problem | None:
    """What is wrong with a file that shows without reading it."""
    path = folder / file.path
    try:
        found = path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return Problem(file.path, "missing", "is missing")
    except OSError as error:
        return Problem(file.path, "unreadable", f"cannot be read ({error.strerror})")
    if not (path.is_file() and os.access(path, os.R_OK)):
        return Problem(file.path, "unreadable", "cannot be read")
    expected = recorded_size if file.size is None else file.size
    if expected is not None and found != expected:
        return Problem(file.path, "size", f"has {found} bytes instead of {expected}")
    return None


def check(folder: Path, file: File, known: Fingerprints, *, reread: bool = False) -> Problem | None:
    """What is wrong with a file of the set in `folder`, by its bytes.

    A file that still has its recorded size and time of change is not read again, unless `reread`.
    """
    recorded = known.recorded(file.path)
    if problem := _at_a_glance(folder, file, recorded.size if recorded else None):
        return problem
    expected = file.sha256 or (recorded.sha256 if recorded else None)
    if expected is None:
        return None  # made here or not published, and put there by hand
    try:
        found = sha256_of(folder / file.path) if reread else known.sha256(file.path)
    except OSError as error:
        return Problem(file.path, "unreadable", f"cannot be read ({error.strerror})")
    if found == expected:
        return None
    return Problem(file.path, "sha256", f"has the sha256 {found} instead of {expected}")


def verify(set_name: str, models_dir: Path) -> list[Problem]:
    """Reads every file of a set: what is missing, or not as the catalogue or the record has it.

    Raises ModelError for an unknown set.
    """
    chosen = model_set(set_name)
    folder = models_dir / chosen.name
    known = Fingerprints(folder)
    found = (check(folder, file, known, reread=True) for file in chosen.files)
    return [problem for problem in found if problem]


def list_models(models_dir: Path) -> list[Row]:
    """Every model of every set, and whether it is there; reads only files that have changed."""
    return [
        Row(
            each.name,
            model.role,
            model.name,
            model.size or _size_on_disk(models_dir / each.name, model),
            model.licence,
            _state(models_dir / each.name, model),
            model.home,
        )
        for each in SETS.values()
        for model in each.models
    ]


def _state(folder: Path, model: Model) -> State:
    known = Fingerprints(folder)
    problems = [check(folder, file, known) for file in model.files]
    kinds = {problem.kind for problem in problems if problem}
    if "missing" in kinds:
        return "missing"
    return "damaged" if kinds else "present"


def _size_on_disk(folder: Path, model: Model) -> int | None:
    try:
        return sum((folder / file.path).stat().st_size for file in model.files)
    except OSError:
        return None


def identities(paths: ModelPaths, models_dir: Path) -> dict[str, dict[str, str]]:
    """`{"name", "sha256"}` of each role's model, for the record of where segments come from.

    The sha256 of a folder is that of the listing which `sha256sum` prints for its files, sorted by
    path. Raises ModelError for a file that cannot be read.
    """
    try:
        return {role: _identity(role, getattr(paths, role), models_dir) for role in _ROLES}
    except OSError as error:
        raise ModelError(f"{error.filename} cannot be read: {error.strerror}") from error


def _identity(role: Role, path: Path, models_dir: Path) -> dict[str, str]:
    for each in SETS.values():
        for model in each.of_role(role):
            if path == models_dir / each.name / model.path:
                files = [file.path for file in model.files]
                return {
                    "name": model.name,
                    "sha256": _joint_sha256(models_dir / each.name, files, model.path),
                }
    if path.is_dir():
        return {"name": path.name, "sha256": _joint_sha256(path, sorted(_files_in(path)), "")}
    return {"name": path.name, "sha256": sha256_of(path)}


def _joint_sha256(folder: Path, files: list[str], inside: str) -> str:
    """Of `files`, relative to `folder`; they are listed as seen from the folder `inside` it."""
    known = Fingerprints(folder)
    if files == [inside]:
        return known.sha256(inside)
    prefix = f"{inside}/" if inside else ""
    return sha256_of_listing((name.removeprefix(prefix), known.sha256(name)) for name in files)


def _files_in(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*"):
        if path.is_file():
            yield path.relative_to(folder).as_posix()
