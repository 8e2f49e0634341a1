"""The speech detector: Silero's net block by block, Silero's rules, real speech."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import soxr
from numpy.typing import NDArray

from pipeline import vad
from pipeline.types import ModelError, Span
from pipeline.vad import FRAME, VoiceActivity, speech
from tests.pipeline.recordings import heard_at, spans_of_truth

Floats = NDArray[np.float32]


@pytest.fixture(scope="module")
def model(models_dir: Path) -> Path:
    return models_dir / "demo" / "vad"


@pytest.fixture(scope="module")
def voice_activity(model: Path) -> VoiceActivity:
    return VoiceActivity(model)


def frames(*pieces: tuple[float, int]) -> list[float]:
    """Probabilities: each value for so many frames."""
    return [value for value, count in pieces for _ in range(count)]


def in_frames(stretches: list[tuple[int, int]]) -> list[tuple[float, float]]:
    """Where the stretches begin and end, in frames, without the padding."""
    return [((start + vad.PAD) / FRAME, (end - vad.PAD) / FRAME) for start, end in stretches]


def covered(spans: tuple[Span, ...], seconds: float) -> NDArray[np.bool_]:
    """Which milliseconds the spans cover."""
    found = np.zeros(round(seconds * 1000), bool)
    for span in spans:
        found[round(span.start * 1000) : round(span.end * 1000)] = True
    return found


def test_the_spans_are_where_the_people_speak(
    voice_activity: VoiceActivity, conversation: Path
) -> None:
    """On the telephone call, under 0.3 s are missed and under 0.4 s added, of 22.5 s of speech."""
    samples = heard_at(24_000, conversation)
    found = covered(voice_activity(samples), 30)
    true = covered(spans_of_truth(conversation), 30)
    assert true.sum() > 22_000
    assert (true & ~found).sum() < 300
    assert (found & ~true).sum() < 400


def test_the_spans_are_ordered_apart_and_within_the_recording(
    voice_activity: VoiceActivity, jfk: Path
) -> None:
    """Spans come in order, do not touch, and end with the recording at the latest."""
    samples = heard_at(24_000, jfk)
    spans = voice_activity(samples[:200_001])
    edges = [edge for span in spans for edge in (span.start, span.end)]
    assert len(spans) > 2
    assert edges == sorted(set(edges))
    assert edges[0] >= 0
    assert edges[-1] <= 200_001 / 24_000


@pytest.mark.parametrize("samples", [0, 1, 100, 24_000, 10 * 24_000])
def test_silence_of_any_length_has_no_speech(voice_activity: VoiceActivity, samples: int) -> None:
    """Neither nothing nor silence is speech."""
    assert voice_activity(np.zeros(samples, np.float32)) == ()


def test_noise_is_not_speech(voice_activity: VoiceActivity) -> None:
    """Ten seconds of loud white noise hold no speech."""
    noise = np.random.default_rng(0).normal(0, 0.1, 240_000).astype(np.float32)
    assert voice_activity(noise) == ()


def test_blocks_give_what_single_frames_give(
    voice_activity: VoiceActivity, model: Path, jfk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Probabilities are those of the net run frame by frame, whatever the block's length."""
    samples = heard_at(16_000, jfk)
    whole = voice_activity.probabilities(samples)
    monkeypatch.setattr(vad, "_BLOCK", 7)
    np.testing.assert_allclose(voice_activity.probabilities(samples), whole, atol=1e-4)
    np.testing.assert_allclose(frame_by_frame(model, samples), whole, atol=1e-4)
    assert whole.max() > 0.9
    assert whole.min() < 0.1


def frame_by_frame(model: Path, samples: Floats) -> list[float]:
    """The definition: each frame with the 64 samples before it, the state handed on."""
    session = ort.InferenceSession(model / vad.FILE_NAME)
    h = c = np.zeros((1, 1, 128), np.float32)
    padded = np.concatenate(
        [np.zeros(64, np.float32), samples, np.zeros(-len(samples) % 512, np.float32)]
    )
    found = []
    for start in range(0, len(padded) - 64, 512):
        given = padded[None, start : start + 576]
        (probability,), h, c = session.run(None, {"input": given, "h": h, "c": c})
        found.append(float(probability))
    return found


def test_a_frame_lasts_32_ms_and_the_last_one_is_filled_up(voice_activity: VoiceActivity) -> None:
    """There are ceil(n / 512) probabilities, as float32."""
    found = [voice_activity.probabilities(np.zeros(n, np.float32)) for n in (0, 1, 512, 513)]
    assert [len(one) for one in found] == [0, 1, 1, 2]
    assert {one.dtype for one in found} == {np.dtype(np.float32)}


def test_speech_begins_at_the_threshold_and_lasts_while_it_is_not_clearly_over() -> None:
    """0.5 begins speech; 0.35 and more carry it on, less ends it where it first fell so low."""
    given = frames((0.49, 5), (0.5, 4), (0.35, 20), (0.5, 1), (0.34, 9))
    assert in_frames(speech(given, len(given) * FRAME)) == [(5, 30)]


def test_a_dip_that_neither_ends_nor_resumes_speech_counts_from_where_it_began() -> None:
    """After a frame below 0.35 only one of 0.5 and more resumes speech."""
    given = frames((0, 1), (0.9, 10), (0.1, 1), (0.4, 9), (0.9, 10), (0, 9))
    assert in_frames(speech(given, len(given) * FRAME)) == [(1, 31)]
    given = frames((0, 1), (0.9, 10), (0.1, 1), (0.4, 3), (0.1, 1), (0.9, 10), (0, 9))
    assert in_frames(speech(given, len(given) * FRAME)) == [(1, 11), (16, 26)]


def test_a_silence_of_100_ms_is_a_pause() -> None:
    """The fifth low frame begins 128 ms after the first one, the fourth only 96 ms."""
    given = frames((0, 1), (0.9, 10), (0, 4), (0.9, 10), (0, 9))
    assert in_frames(speech(given, len(given) * FRAME)) == [(1, 25)]
    given = frames((0, 1), (0.9, 10), (0, 5), (0.9, 10), (0, 9))
    assert in_frames(speech(given, len(given) * FRAME)) == [(1, 11), (16, 26)]


def test_speech_of_250_ms_or_less_is_dropped() -> None:
    """Seven frames (224 ms) are too short, eight (256 ms) are not."""
    short = frames((0, 2), (0.9, 7), (0, 9))
    assert speech(short, len(short) * FRAME) == []
    enough = frames((0, 2), (0.9, 8), (0, 9))
    assert in_frames(speech(enough, len(enough) * FRAME)) == [(2, 10)]


def test_speech_is_padded_by_30_ms_within_the_recording() -> None:
    """480 samples on both sides, but nothing before the beginning or after the end."""
    given = frames((0, 2), (0.9, 10), (0, 9))
    assert speech(given, len(given) * FRAME) == [(2 * FRAME - 480, 12 * FRAME + 480)]
    given = frames((0.9, 10))
    assert speech(given, 10 * FRAME - 100) == [(0, 10 * FRAME - 100)]


def test_the_model_may_be_a_file_or_its_folder(model: Path, jfk: Path) -> None:
    """Both ways give the same spans."""
    samples = heard_at(24_000, jfk)
    assert VoiceActivity(model / vad.FILE_NAME)(samples) == VoiceActivity(model)(samples)


def test_a_missing_unreadable_or_other_model_is_named(models_dir: Path, tmp_path: Path) -> None:
    """The error says which file it is."""
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    other = models_dir / "demo" / "dnsmos" / "sig_bak_ovr.onnx"
    for path, shown in ((tmp_path, vad.FILE_NAME), (broken, "broken"), (other, "sig_bak_ovr")):
        with pytest.raises(ModelError, match=f"{shown}.*emiliad models pull"):
            VoiceActivity(path)


def test_it_does_not_load_torch() -> None:
    """Importing the detector loads neither torch nor what comes with it."""
    code = "import sys, pipeline.vad; print(*({'torch', 'pyannote', 'scipy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_resampling_keeps_the_times(voice_activity: VoiceActivity, conversation: Path) -> None:
    """Spans are in seconds of the recording: two seconds of silence before it shift them by two."""
    samples = heard_at(16_000, conversation)
    plain = voice_activity(soxr.resample(samples, 16_000, 24_000))
    later = np.concatenate([np.zeros(32_000, np.float32), samples])
    shifted = voice_activity(soxr.resample(later, 16_000, 24_000))
    assert [span.start - 2 for span in shifted] == pytest.approx([s.start for s in plain], abs=0.05)
