"""Speech to text: Whisper on batches of segments, one encoder pass for the language and the words.

A segment is at most 30 s, so it is one window of Whisper's. Each pass over a batch encodes the
windows once, reads every window's language off the encoding, and decodes all of them together,
each with the prompt of its own language.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline._whisper import FRAME, RATE, WINDOW, Whisper, out_of_memory
from pipeline.audio import Samples, cut, resample
from pipeline.config import SAMPLE_RATE
from pipeline.types import Span, Transcript

# Whisper's own limits (Radford et al., 2022, section 4.5).
REPETITIVE = 2.4  # compression ratio above which a text is taken for a loop
UNSURE = -1.0  # mean log probability below which a text is taken for a guess
NO_SPEECH = 0.6  # probability of no speech above which a guess is taken for silence

# A window that holds only what the segment needs; see `Transcriber`.
SHORT_TAIL = 200  # frames of silence after the segment: without them the decoder runs on
SHORT_LEAST = 1_000  # frames
SHORT_STEP = 500  # frames; so few lengths that each still fills a batch


@dataclass(frozen=True, slots=True)
class _Pass:
    """One way to decode; see `_wanted` for what the next one takes."""

    whole_window: bool
    constraints: Mapping[str, float]


_SHORT = _Pass(whole_window=False, constraints={})
_WHOLE = _Pass(whole_window=True, constraints={})
# Whisper's second attempt samples. CTranslate2 seeds its generators once per thread, so samples
# depend on what was decoded before; a beam that may not say three tokens twice does not.
_NO_LOOPS = _Pass(whole_window=True, constraints={"no_repeat_ngram_size": 3})


class Transcriber:
    """Whisper (Radford et al., 2022) in CTranslate2, by faster_whisper, from a local folder only.

    Decoding is Emilia's: beam 5, no timestamps, no sampling. A text that loops (compression ratio
    over 2.4) is decoded again and the better one kept. A guess (mean log probability under -1) at
    what is more likely no speech (over 0.6) is silence, as in Whisper, and gets empty text.

    Deliberate differences. Whisper samples its second attempts, of guesses too; here a beam that
    may not repeat any three tokens takes the loops, since equal input must give equal output,
    and other guesses stay: no beam made them better, and samples made them worse. Emilia's
    prompt of filler words in several languages is not used.

    `whole_window=False` encodes only the segment, at least 2 s of silence and at least 10 s in
    all, rather than 30 s, and takes the whole window for what became a loop or a guess. On a CPU
    the encoder's time falls to a fifth for segments of 3 to 15 s, and the word error rate of
    Whisper base stays (12.7 % against 12.6 % over 125 prompts in five languages).
    """

    def __init__(
        self,
        model: Path,
        *,
        device: str = "cpu",
        compute_type: str = "",
        batch: int = 16,
        language: str = "",
        threads: int = 0,
        whole_window: bool = True,
    ) -> None:
        """Loads the model in the folder `model`; nothing is ever fetched.

        `device` is cpu or cuda; `compute_type` one of CTranslate2's, default float16 on CUDA and
        int8 on a CPU; `threads` is for the CPU, 0 means CTranslate2's choice. `language` (one of
        Whisper's codes) is taken as the language of all segments, with probability 1, and none
        is identified; so is English when the model knows no other.

        Raises ModelError when the model is missing, unreadable or does not know `language`,
        SettingsError for a compute type that the device lacks, ValueError for a batch below 1,
        RuntimeError when CUDA cannot be used.
        """
        if batch < 1:
            raise ValueError(f"a batch of {batch} segments: it holds at least one")
        self.batch = batch
        self._whisper = Whisper(
            model, device=device, compute_type=compute_type, threads=threads, language=language
        )
        self._passes = (_WHOLE, _NO_LOOPS) if whole_window else (_SHORT, _WHOLE, _NO_LOOPS)

    def __call__(self, samples: Samples, segments: Sequence[Span]) -> list[Transcript]:
        """The transcripts of `segments`, one for each, in their order.

        `samples` is float32, shape (n,), 24 kHz. What of a segment lies outside the recording
        or beyond 30 s is left out. `language` is Whisper's code, ISO 639-1 where there is one;
        the most likely one, however unlikely. Memory is that of one batch's windows.

        Raises RuntimeError when one segment alone does not fit into the device's memory.
        """
        best: dict[int, Transcript] = {}
        for attempt in self._passes:
            wanted = [i for i in range(len(segments)) if _wanted(attempt, best.get(i))]
            for index, transcript in self._pass(samples, segments, wanted, attempt):
                best[index] = _better(best.get(index), transcript)
        return [_settled(best[index]) for index in range(len(segments))]

    def _pass(
        self, samples: Samples, segments: Sequence[Span], wanted: Sequence[int], attempt: _Pass
    ) -> Iterator[tuple[int, Transcript]]:
        windows = {index: _frames(segments[index], attempt) for index in wanted}
        # A batch is as slow as its longest text: like goes with like, the largest first.
        order = sorted(wanted, key=lambda index: (-windows[index], -segments[index].duration))
        size = self.batch
        while order:
            frames = windows[order[0]]
            now = [index for index in order[:size] if windows[index] == frames]
            clips = [_clip(samples, segments[index]) for index in now]
            try:
                heard = self._whisper(clips, frames, attempt.constraints)
            except (MemoryError, RuntimeError) as error:
                if len(now) == 1 or not out_of_memory(error):
                    raise
                size = len(now) // 2
                continue
            yield from zip(now, heard, strict=True)
            order = order[len(now) :]


def _frames(segment: Span, attempt: _Pass) -> int:
    if attempt.whole_window:
        return WINDOW
    needed = segment.duration * RATE / FRAME + SHORT_TAIL
    return min(WINDOW, max(SHORT_LEAST, int(-(-needed // SHORT_STEP)) * SHORT_STEP))


def _clip(samples: Samples, segment: Span) -> Samples:
    return resample(cut(samples, SAMPLE_RATE, segment), SAMPLE_RATE, RATE)


def _silent(transcript: Transcript) -> bool:
    return transcript.no_speech_prob > NO_SPEECH and transcript.avg_logprob < UNSURE


def _loops(transcript: Transcript) -> bool:
    return transcript.compression_ratio > REPETITIVE


def _doubtful(transcript: Transcript) -> bool:
    guess = _loops(transcript) or transcript.avg_logprob < UNSURE
    return guess and not _silent(transcript)


def _wanted(attempt: _Pass, so_far: Transcript | None) -> bool:
    if so_far is None:
        return True
    return _doubtful(so_far) and (_loops(so_far) or attempt is not _NO_LOOPS)


def _better(old: Transcript | None, new: Transcript) -> Transcript:
    """As Whisper chooses: what passes, else what does not loop, else what is more likely."""
    if old is None or not _doubtful(new):
        return new
    return max(old, new, key=lambda one: (not _loops(one), one.avg_logprob))


def _settled(transcript: Transcript) -> Transcript:
    return (
        replace(transcript, text="", compression_ratio=0.0) if _silent(transcript) else transcript
    )
