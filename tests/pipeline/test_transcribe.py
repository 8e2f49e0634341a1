"""Speech to text with the demo's Whisper on real recordings: words, languages, silence, loops."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import pytest
from faster_whisper import BatchedInferencePipeline, WhisperModel

from pipeline._whisper import RATE
from pipeline.audio import Samples, cut, decode, resample
from pipeline.config import SAMPLE_RATE
from pipeline.transcribe import Transcriber
from pipeline.types import ModelError, Span, Transcript

pytestmark = pytest.mark.models

THREADS = 2
KENNEDY = (
    "and so my fellow americans ask not what your country can do for you "
    "ask what you can do for your country"
)
LONG_ENOUGH = 2.0  # seconds from which a language is to be told without fail


def words(text: str) -> str:
    """`text` in lower case, its words apart by single spaces, without punctuation."""
    return " ".join(re.sub(r"[^\w' ]", " ", text.lower()).split())


@pytest.fixture(scope="module")
def folder(models_dir: Path) -> Path:
    return models_dir / "demo" / "asr" / "whisper-base"


@pytest.fixture(scope="module")
def transcriber(folder: Path) -> Transcriber:
    return Transcriber(folder, threads=THREADS)


@pytest.fixture(scope="module")
def speech(jfk: Path) -> Samples:
    return decode(jfk).samples


@pytest.fixture(scope="module")
def whole(speech: Samples) -> Span:
    return Span(0.0, len(speech) / SAMPLE_RATE)


@pytest.fixture(scope="module")
def call(conversation: Path) -> Samples:
    return decode(conversation).samples


@pytest.fixture(scope="module")
def truth(conversation: Path) -> list[tuple[Span, str]]:
    """The turns of the call, and what is said in each."""
    lines = conversation.with_suffix(".stm").read_text().splitlines()
    fields = [line.split(None, 5) for line in lines]
    return [(Span(float(start), float(end)), said) for _, _, _, start, end, said in fields]


@pytest.fixture(scope="module")
def turns(truth: list[tuple[Span, str]]) -> list[Span]:
    return [span for span, _ in truth]


FEW = slice(3, 9)  # six of the turns, of 0.9 to 3.3 s, where all thirteen would prove no more


@pytest.fixture(scope="module")
def few(turns: list[Span]) -> list[Span]:
    return turns[FEW]


@pytest.fixture(scope="module")
def heard(transcriber: Transcriber, call: Samples, turns: list[Span]) -> list[Transcript]:
    return transcriber(call, turns)


def error_rate(truth: list[tuple[Span, str]], heard: Sequence[Transcript]) -> float:
    said = [words(text) for _, text in truth]
    return float(jiwer.wer(said, [words(one.text) for one in heard]))


def texts(transcripts: Sequence[Transcript]) -> list[str]:
    return [one.text for one in transcripts]


def test_a_clear_voice_is_understood(
    transcriber: Transcriber, speech: Samples, whole: Span
) -> None:
    """Eleven seconds of clear speech are transcribed word for word, surely, and as English."""
    (said,) = transcriber(speech, [whole])
    assert jiwer.wer(KENNEDY, words(said.text)) <= 0.05
    assert said.text == said.text.strip()
    assert (said.language, said.language_probability > 0.8) == ("en", True)
    assert said.avg_logprob > -0.5
    assert said.no_speech_prob < 0.5
    assert 1.0 < said.compression_ratio < 2.0


def test_a_telephone_call_is_understood(
    truth: list[tuple[Span, str]], heard: list[Transcript]
) -> None:
    """Over all turns of a telephone call at most 35 % of the words are wrong."""
    assert error_rate(truth, heard) <= 0.35


def test_the_language_of_each_turn(turns: list[Span], heard: list[Transcript]) -> None:
    """Every turn that is long enough to tell is found to be English, most of them surely."""
    long = [one for span, one in zip(turns, heard, strict=True) if span.duration >= LONG_ENOUGH]
    assert {one.language for one in long} == {"en"}
    assert sorted(one.language_probability for one in long)[len(long) // 2] > 0.8


def test_the_text_is_that_of_faster_whisper(folder: Path, speech: Samples, whole: Span) -> None:
    """A clear recording gets the text that faster_whisper's own `transcribe` gives it."""
    model = WhisperModel(str(folder), compute_type="int8", cpu_threads=THREADS)
    segments, info = model.transcribe(
        resample(speech, SAMPLE_RATE, RATE), without_timestamps=True, temperature=0.0
    )
    (ours,) = Transcriber(folder, threads=THREADS)(speech, [whole])
    assert ours.text == "".join(segment.text for segment in segments).strip()
    assert ours.language == info.language


def test_a_batch_is_that_of_faster_whisper(
    folder: Path, call: Samples, turns: list[Span], heard: list[Transcript]
) -> None:
    """Turns get the texts and the certainty that faster_whisper's own batches give them.

    But for a guess, which it keeps and we decode again or take for silence.
    """
    clips = [resample(cut(call, SAMPLE_RATE, turn), SAMPLE_RATE, RATE) for turn in turns]
    ends = np.cumsum([len(clip) for clip in clips])
    model = WhisperModel(str(folder), compute_type="int8", cpu_threads=THREADS)
    segments, _ = BatchedInferencePipeline(model).transcribe(
        np.concatenate(clips),
        multilingual=True,
        batch_size=16,
        # Half a sample more, since it cuts at whole samples by truncation.
        clip_timestamps=[
            {"start": (end - len(clip) + 0.5) / RATE, "end": (end + 0.5) / RATE}
            for clip, end in zip(clips, ends, strict=True)
        ],
    )
    pairs = [(ours, theirs) for ours, theirs in zip(heard, segments, strict=True)]
    sure = [(ours, theirs) for ours, theirs in pairs if theirs.avg_logprob > -1.0]
    assert len(sure) >= len(turns) - 2
    for ours, theirs in sure:
        assert ours.text == theirs.text.strip()
        assert ours.avg_logprob == pytest.approx(theirs.avg_logprob, abs=0.02)


@pytest.mark.parametrize("batch", [1, 4])
def test_the_batch_size_changes_no_text(
    folder: Path, call: Samples, few: list[Span], heard: list[Transcript], batch: int
) -> None:
    """A segment's text and language do not depend on what it shares a batch with."""
    again = Transcriber(folder, threads=THREADS, batch=batch)(call, few)
    assert texts(again) == texts(heard[FEW])
    assert [one.language for one in again] == [one.language for one in heard[FEW]]


def test_equal_input_gives_equal_output(
    transcriber: Transcriber, folder: Path, call: Samples, few: list[Span]
) -> None:
    """Another Whisper of the same settings gives the same transcripts, to the last bit."""
    assert Transcriber(folder, threads=THREADS)(call, few) == transcriber(call, few)


def test_transcripts_come_in_the_order_of_the_segments(
    transcriber: Transcriber, call: Samples, turns: list[Span], heard: list[Transcript]
) -> None:
    """Whatever order they are decoded in, transcript i is that of segment i."""
    chosen = [6, 9, 6, 3]
    again = transcriber(call, [turns[index] for index in chosen])
    assert texts(again) == [heard[index].text for index in chosen]


def test_no_segments(transcriber: Transcriber, speech: Samples) -> None:
    """No segments, no transcripts."""
    assert transcriber(speech, []) == []


def test_segments_beyond_the_recording_are_clipped(
    transcriber: Transcriber, speech: Samples, whole: Span
) -> None:
    """What of a segment lies outside the recording is left out; all of it is silence."""
    inside, wider, outside = transcriber(
        speech, [whole, Span(-0.5, whole.end + 0.5), Span(whole.end + 1, whole.end + 5)]
    )
    assert wider == inside
    assert outside.text == ""


def test_a_window_ends_after_thirty_seconds(
    transcriber: Transcriber, call: Samples, turns: list[Span]
) -> None:
    """Of a segment of more than 30 s the first 30 s are transcribed."""
    twice = np.concatenate([call, call])
    longer, exact = transcriber(twice, [Span(5.0, 40.0), Span(5.0, 35.0)])
    assert longer.text == exact.text
    assert "Diane" in exact.text


@pytest.mark.parametrize("level", [0.0, 5e-4, 0.05], ids=["digital silence", "hiss", "noise"])
def test_where_nothing_is_said_there_is_no_text(transcriber: Transcriber, level: float) -> None:
    """Silence and noise keep their place and get empty text, not one that Whisper made up."""
    noise = np.random.default_rng(0).standard_normal(5 * SAMPLE_RATE)
    (said,) = transcriber((level * noise).astype(np.float32), [Span(0.0, 5.0)])
    assert said.text == ""
    assert said.no_speech_prob > 0.6


def test_a_loop_is_decoded_again(transcriber: Transcriber, speech: Samples, folder: Path) -> None:
    """A text that repeats itself on and on is replaced by one that does not."""
    looping = np.tile(cut(speech, SAMPLE_RATE, Span(8.0, 9.0)), 24)
    span = Span(0.0, 24.0)
    model = WhisperModel(str(folder), compute_type="int8", cpu_threads=THREADS)
    segments, _ = model.transcribe(
        resample(looping, SAMPLE_RATE, RATE),
        language="en",
        without_timestamps=True,
        temperature=0.0,
    )
    assert max(segment.compression_ratio for segment in segments) > 2.4
    (said,) = transcriber(looping, [span])
    assert 0.0 < said.compression_ratio <= 2.4
    assert transcriber(looping, [span]) == [said]


def test_the_language_can_be_given(folder: Path, speech: Samples, whole: Span) -> None:
    """ASR_LANGUAGE is what is decoded in, and is taken as certain."""
    (said,) = Transcriber(folder, language="FR", threads=THREADS)(speech, [whole])
    assert (said.language, said.language_probability) == ("fr", 1.0)
    assert "américains" in said.text


def test_each_segment_is_decoded_in_its_own_language(
    folder: Path, speech: Samples, whole: Span, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within one batch, each text is in the language that was identified for it."""
    apart = [
        Transcriber(folder, language=language, threads=THREADS)(speech, [whole])[0].text
        for language in ("en", "fr", "es")
    ]
    together = Transcriber(folder, threads=THREADS)
    identified = [("en", 0.9), ("fr", 0.2), ("es", 0.6)]
    monkeypatch.setattr(together._whisper, "_languages", lambda encoded, count: identified)
    said = together(speech, [whole] * 3)
    assert texts(said) == apart
    assert [(one.language, one.language_probability) for one in said] == identified


class Narrow:
    """A Whisper whose device has no memory for more than `room` windows at once."""

    def __init__(self, whisper: Any, room: int, reason: str) -> None:
        self._whisper, self._room, self._reason = whisper, room, reason
        self.tried: list[int] = []
        self.frames: list[int] = []

    def __call__(self, clips: Sequence[Samples], frames: int, *rest: Any) -> list[Transcript]:
        self.tried.append(len(clips))
        self.frames.append(frames)
        if len(clips) > self._room:
            raise RuntimeError(self._reason)
        return list(self._whisper(clips, frames, *rest))


def narrowed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, room: int, reason: str
) -> tuple[Transcriber, Narrow]:
    transcriber = Transcriber(folder, threads=THREADS)
    narrow = Narrow(transcriber._whisper, room, reason)
    monkeypatch.setattr(transcriber, "_whisper", narrow)
    return transcriber, narrow


NO_MEMORY = "CUDA failed with error out of memory"


def test_a_batch_too_large_for_the_device_is_halved(
    folder: Path,
    call: Samples,
    few: list[Span],
    heard: list[Transcript],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Out of memory, the batch is halved until it fits, and stays so; no segment is lost."""
    transcriber, narrow = narrowed(folder, monkeypatch, 2, NO_MEMORY)
    assert texts(transcriber(call, few)) == texts(heard[FEW])
    assert narrow.tried[:3] == [6, 3, 1]
    assert set(narrow.tried[2:]) == {1}


def test_one_segment_too_large_for_the_device(
    folder: Path, call: Samples, few: list[Span], monkeypatch: pytest.MonkeyPatch
) -> None:
    """When not even one window fits, the device's own error says so."""
    transcriber, narrow = narrowed(folder, monkeypatch, 0, NO_MEMORY)
    with pytest.raises(RuntimeError, match="out of memory"):
        transcriber(call, few)
    assert narrow.tried == [6, 3, 1]


def test_other_errors_are_not_tried_again(
    folder: Path, call: Samples, few: list[Span], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error that is not about memory passes at once."""
    transcriber, narrow = narrowed(folder, monkeypatch, 0, "an illegal memory access")
    with pytest.raises(RuntimeError, match="illegal"):
        transcriber(call, few)
    assert narrow.tried == [6]


def test_short_windows_understand_as_much(
    folder: Path, speech: Samples, whole: Span, call: Samples, truth: list[tuple[Span, str]]
) -> None:
    """Encoding only what a segment needs keeps the words of clear speech and of a call."""
    short = Transcriber(folder, threads=THREADS, whole_window=False)
    assert jiwer.wer(KENNEDY, words(short(speech, [whole])[0].text)) <= 0.05
    assert error_rate(truth, short(call, [span for span, _ in truth])) <= 0.35


def test_short_windows_hold_the_segment_and_a_silence(
    folder: Path, speech: Samples, whole: Span, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A short window is the segment and at least 2 s, in steps of 5 s, from 10 s up."""
    short = Transcriber(folder, threads=THREADS, whole_window=False)
    seen = Narrow(short._whisper, 4, "")
    monkeypatch.setattr(short, "_whisper", seen)
    short(speech, [Span(0.0, 3.0), Span(0.0, 8.0), whole])
    assert seen.frames[:2] == [1_500, 1_000]
    assert seen.tried[:2] == [1, 2]


def copied(folder: Path, to: Path, without: str) -> Path:
    """A model folder of links to `folder`'s files, all but one."""
    to.mkdir()
    for file in folder.iterdir():
        if file.name != without:
            (to / file.name).symlink_to(file)
    return to


def test_no_model(tmp_path: Path) -> None:
    """A missing model's error says where it was looked for and how to get it."""
    with pytest.raises(ModelError, match=r"nowhere.*emiliad models pull"):
        Transcriber(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["model.bin", "tokenizer.json", "config.json"])
def test_an_incomplete_model(folder: Path, tmp_path: Path, name: str) -> None:
    """A missing file is named, and is never fetched from a hub."""
    with pytest.raises(ModelError, match=re.escape(name) + ".*emiliad models pull"):
        Transcriber(copied(folder, tmp_path / "model", without=name))


@pytest.mark.parametrize("name", ["model.bin", "tokenizer.json", "vocabulary.json", "config.json"])
@pytest.mark.parametrize("content", ["truncated", "nonsense"])
def test_a_damaged_model(folder: Path, tmp_path: Path, name: str, content: str) -> None:
    """A damaged file is an unreadable model, whatever the library that reads it raises."""
    damaged = copied(folder, tmp_path / "model", without=name)
    with (folder / name).open("rb") as file:
        head = file.read(2_000)
    (damaged / name).write_bytes(head if content == "truncated" else b"\x00nonsense" * 200)
    with pytest.raises(ModelError, match=r"cannot read.*emiliad models pull"):
        Transcriber(damaged)


def test_a_language_that_the_model_does_not_know(folder: Path) -> None:
    """An unknown ASR_LANGUAGE is refused when the model is loaded, not at the first segment."""
    with pytest.raises(ModelError, match=r"'xx'.*ASR_LANGUAGE"):
        Transcriber(folder, language="xx")


def test_a_number_format_that_the_device_lacks(folder: Path) -> None:
    """An impossible ASR_COMPUTE_TYPE is refused, with those that are possible."""
    with pytest.raises(ValueError, match=r"float17.*int8"):
        Transcriber(folder, compute_type="float17")


def test_a_batch_holds_at_least_one(folder: Path) -> None:
    """A batch of none would never end."""
    with pytest.raises(ValueError, match="at least one"):
        Transcriber(folder, batch=0)
