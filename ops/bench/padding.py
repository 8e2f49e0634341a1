"""Measures what extending short utterances and merging forward gain and cost on real speech.

    python -m ops.bench.padding [--rearranged N] [FOLDER ...]

The recordings: the telephone call that pyannote.audio ships, the address in `tests/data`, N
conversations made of their utterances, in random order and with random pauses of 0.2 to 1.8 s over
the call's own line noise, and whatever lies in the FOLDERs: audio with a `.rttm` of the true turns
beside it and, where the words are known, a `.stm`.

Printed for each choice of the two rules, over all recordings: the share of the true speech that
lies in segments; the share of the segments' time in which, by the true turns, another speaker is
active than the one who speaks most in that segment; and the word errors over the words that lie in
segments and over all words. A word's time is its share, by characters, of its utterance's.
"""

from __future__ import annotations

import argparse
import os
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import jiwer
import numpy as np
from rich.console import Console
from rich.table import Table

from pipeline import audio
from pipeline.audio import Samples
from pipeline.config import SAMPLE_RATE, PipelineConfig
from pipeline.diarize import Diarizer
from pipeline.models import locate
from pipeline.segment import Rules, segment
from pipeline.timeline import Timeline
from pipeline.transcribe import Transcriber
from pipeline.types import Segment, Span, Turn
from pipeline.vad import VoiceActivity

DATA = Path(__file__).parents[2] / "tests" / "data"
AUDIO = {".wav", ".flac", ".mp3"}
# The address has no .stm of its own: its four phrases, where the level rises from the noise.
ADDRESS = (
    (0.30, 2.20, "And so my fellow Americans"),
    (3.25, 4.35, "ask not"),
    (5.35, 7.60, "what your country can do for you"),
    (8.15, 10.60, "ask what you can do for your country"),
)
NOISE = Span(0.2, 2.2)  # of the call: the line before the first word
PAUSES = (0.2, 1.8)  # seconds between the utterances of a rearranged conversation
GRID = 100  # points per second at which shares of time are counted

CHOICES: Mapping[str, Rules] = {
    "Emilia's rules": Rules(pad_short=False, merge_forward=False),
    "+ forward": Rules(pad_short=False, merge_forward=True),
    "+ extended": Rules(pad_short=True, merge_forward=False),
    "+ both": Rules(pad_short=True, merge_forward=True),
}


@dataclass(frozen=True, slots=True)
class Utterance(Turn):
    """A turn whose words are known."""

    text: str


@dataclass(frozen=True, slots=True)
class Recording:
    """Audio at 24 kHz with its true turns and, if known, what was said in them."""

    name: str
    samples: Samples
    turns: tuple[Turn, ...]
    utterances: tuple[Utterance, ...] = ()

    @property
    def seconds(self) -> float:
        return len(self.samples) / SAMPLE_RATE


@dataclass(frozen=True, slots=True)
class Tally:
    """Sums over recordings: seconds, and edits against words."""

    segments: int = 0
    spoken: float = 0.0
    covered: float = 0.0
    delivered: float = 0.0
    foreign: float = 0.0
    words: int = 0
    edits: int = 0
    all_words: int = 0
    all_edits: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(*(getattr(self, name) + getattr(other, name) for name in self.__slots__))


class Bench:
    """The models, and how one recording fares with each choice of rules."""

    def __init__(self, config: PipelineConfig) -> None:
        paths = locate(config)
        self._diarize = Diarizer(paths.diarization, threads=config.cpu_threads)
        self._voice_activity = VoiceActivity(paths.vad)
        self._transcribe = Transcriber(paths.asr, language="en", threads=config.cpu_threads)

    def tallies(self, recording: Recording) -> dict[str, Tally]:
        samples = audio.standardise(recording.samples)
        turns = self._diarize(samples)
        speech = self._voice_activity(samples)
        quietest = partial(audio.quietest, samples, SAMPLE_RATE)
        cuts = {
            name: segment(
                turns, speech, duration=recording.seconds, quietest=quietest, rules=rules
            ).segments
            for name, rules in CHOICES.items()
        }
        texts = self._texts(samples, cuts.values()) if recording.utterances else {}
        return {name: _tally(recording, cut, texts) for name, cut in cuts.items()}

    def _texts(
        self, samples: Samples, cuts: Iterable[Sequence[Segment]]
    ) -> dict[tuple[float, float], str]:
        """What is heard in each different stretch of time, transcribed once."""
        each = {(piece.start, piece.end): piece for cut in cuts for piece in cut}
        heard = self._transcribe(samples, list(each.values()))
        return {times: said.text for times, said in zip(each, heard, strict=True)}


def _tally(
    recording: Recording, cut: Sequence[Segment], texts: Mapping[tuple[float, float], str]
) -> Tally:
    spoken = _active(recording, recording.turns)
    kept = _active(recording, cut)
    times = {
        "segments": len(cut),
        "spoken": spoken.sum() / GRID,
        "covered": (spoken & kept).sum() / GRID,
        "delivered": sum(piece.duration for piece in cut),
        "foreign": sum(_foreign(recording, piece) for piece in cut),
    }
    if not recording.utterances:
        return Tally(**times)
    said = list(_words(recording.utterances))
    inside = Timeline((round(p.start * 1000), round(p.end * 1000)) for p in cut)
    heard = " ".join(texts[piece.start, piece.end] for piece in cut)
    covered = [word for ms, word in said if inside.covered(ms, ms + 1)]
    return Tally(
        **times,
        words=len(covered),
        edits=_edits(covered, heard),
        all_words=len(said),
        all_edits=_edits([word for _, word in said], heard),
    )


def _active(
    recording: Recording, spans: Iterable[Span]
) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    found = np.zeros(round(recording.seconds * GRID), bool)
    for span in spans:
        found[round(span.start * GRID) : round(span.end * GRID)] = True
    return found


def _foreign(recording: Recording, piece: Segment) -> float:
    """Seconds of a segment in which others than its main speaker are active."""
    inside = slice(round(piece.start * GRID), round(piece.end * GRID))
    speakers = {turn.speaker for turn in recording.turns}
    active = {
        who: _active(recording, (t for t in recording.turns if t.speaker == who))[inside]
        for who in speakers
    }
    main = max(sorted(speakers), key=lambda who: active[who].sum())
    others = [active[who] for who in speakers if who != main]
    return float(np.any(others, axis=0).sum() / GRID) if others else 0.0


def _words(utterances: Sequence[Utterance]) -> Iterator[tuple[int, str]]:
    """The words in the order in which they were begun, each with the millisecond of its middle."""
    for said in sorted(utterances, key=lambda said: said.start):
        words = _normal(said.text).split()
        whole, before = sum(map(len, words)), 0
        for word in words:
            share = (before + len(word) / 2) / whole
            yield round(1000 * (said.start + share * said.duration)), word
            before += len(word)


def _edits(said: Sequence[str], heard: str) -> int:
    if not said:
        return len(_normal(heard).split())
    found = jiwer.process_words(" ".join(said), _normal(heard))
    return int(found.substitutions + found.deletions + found.insertions)


def _normal(text: str) -> str:
    """Lower case, and of the punctuation only the apostrophes."""
    return " ".join("".join(c if c.isalnum() or c == "'" else " " for c in text.lower()).split())


def _read(path: Path) -> Recording:
    """The audio with the .rttm and the .stm beside it."""
    rttm, stm = path.with_suffix(".rttm"), path.with_suffix(".stm")
    turns = [
        Turn(float(start), float(start) + float(length), who)
        for _, _, _, start, length, _, _, who, *_ in map(str.split, rttm.read_text().splitlines())
    ]
    utterances = [
        Utterance(float(start), float(end), who, text)
        for _, _, who, start, end, text in (
            line.split(maxsplit=5)
            for line in (stm.read_text().splitlines() if stm.exists() else ())
        )
    ]
    return Recording(path.stem, audio.decode(path).samples, tuple(turns), tuple(utterances))


def _call() -> Recording:
    spec = find_spec("pyannote.audio")
    assert spec is not None
    assert spec.origin is not None
    return _read(Path(spec.origin).parent / "sample" / "sample.wav")


def _address() -> Recording:
    said = tuple(Utterance(start, end, "Kennedy", text) for start, end, text in ADDRESS)
    return Recording("jfk", audio.decode(DATA / "jfk.flac").samples, said, said)


def _rearranged(sources: Sequence[Recording], noise: Samples, seed: int) -> Recording:
    """The sources' utterances in another order and with other pauses."""
    dice = random.Random(seed)
    parts = [(source, said) for source in sources for said in source.utterances]
    dice.shuffle(parts)
    pieces: list[Samples] = []
    said_when: list[Utterance] = []
    now = 0.0
    for source, said in parts:
        pause = dice.uniform(*PAUSES)
        pieces += [
            np.resize(noise, round(pause * SAMPLE_RATE)),
            audio.cut(source.samples, SAMPLE_RATE, said),
        ]
        now += len(pieces[-2]) / SAMPLE_RATE
        length = len(pieces[-1]) / SAMPLE_RATE
        said_when.append(replace(said, start=now, end=now + length))
        now += length
    whole = np.concatenate([*pieces, np.resize(noise, SAMPLE_RATE)])
    return Recording(f"rearranged {seed}", whole, tuple(said_when), tuple(said_when))


def _recordings(folders: Sequence[Path], rearranged: int) -> Iterator[Recording]:
    real = [_call(), _address()]
    yield from real
    noise = audio.cut(real[0].samples, SAMPLE_RATE, NOISE)
    for seed in range(rearranged):
        yield _rearranged(real, noise, seed)
    for folder in folders:
        for rttm in sorted(folder.glob("*.rttm")):
            beside = [path for path in folder.glob(f"{rttm.stem}.*") if path.suffix in AUDIO]
            if not beside:
                raise SystemExit(f"there is no audio beside {rttm}")
            yield _read(beside[0])


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole else "-"


def _table(title: str, tallies: Mapping[str, Tally]) -> Table:
    heads = ("rules", "segments", "covered", "foreign", "WER covered", "WER all words")
    table = Table(*heads, title=title)
    for name, sums in tallies.items():
        table.add_row(
            name,
            str(sums.segments),
            _share(sums.covered, sums.spoken),
            _share(sums.foreign, sums.delivered),
            _share(sums.edits, sums.words),
            _share(sums.all_edits, sums.all_words),
        )
    return table


def main() -> None:
    """Prints the table of each recording, and that of all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER")
    parser.add_argument("--rearranged", type=int, default=4, metavar="N")
    asked = parser.parse_args()
    bench = Bench(PipelineConfig.from_env({"MODELS": "demo", **os.environ}))
    console = Console()
    sums = {name: Tally() for name in CHOICES}
    for recording in _recordings(asked.folders, asked.rearranged):
        found = bench.tallies(recording)
        console.print(_table(f"{recording.name} ({recording.seconds:.0f} s)", found))
        sums = {name: sums[name] + found[name] for name in CHOICES}
    console.print(_table("all", sums))


if __name__ == "__main__":
    main()
