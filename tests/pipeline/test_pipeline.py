"""The whole pipeline on real speech, and on what is no speech, with the demo's models."""

from __future__ import annotations

import json
import re
import wave
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import pytest

from pipeline.config import PipelineConfig
from pipeline.pipeline import Pipeline
from pipeline.types import STAGES, BadAudio

pytestmark = pytest.mark.models

CONTRACT_KEYS = [
    "text", "start", "end", "speaker", "language", "dnsmos",
    "language_probability", "dnsmos_sig", "dnsmos_bak", "avg_logprob", "no_speech_prob",
    "compression_ratio", "overlap", "flags", "audio",
]  # fmt: skip


@dataclass(frozen=True)
class Episode:
    """One run's outputs."""

    folder: Path
    manifest: dict[str, Any]
    stages: list[str]

    @property
    def rows(self) -> list[dict[str, Any]]:
        return list(json.loads((self.folder / "all_segments.json").read_text()))


@pytest.fixture(scope="module")
def pipeline(models_dir: Path) -> Pipeline:
    return Pipeline(PipelineConfig(models="demo", models_dir=models_dir, device="cpu"))


def process(pipeline: Pipeline, audio: Path, out: Path) -> Episode:
    stages: list[str] = []
    manifest = pipeline.run(audio, out, on_stage=lambda stage, *_: stages.append(stage))
    return Episode(out, manifest, stages)


@pytest.fixture(scope="module")
def call(
    pipeline: Pipeline, conversation: Path, tmp_path_factory: pytest.TempPathFactory
) -> Episode:
    return process(pipeline, conversation, tmp_path_factory.mktemp("call"))


@pytest.fixture(scope="module")
def said(conversation: Path) -> list[tuple[float, str]]:
    """The words of the call with their times, spread evenly over each utterance."""
    words = []
    for line in conversation.with_suffix(".stm").read_text().splitlines():
        _, _, _, start, end, text = line.split(maxsplit=5)
        tokens = normal(text).split()
        step = (float(end) - float(start)) / len(tokens)
        words += [(float(start) + (i + 0.5) * step, token) for i, token in enumerate(tokens)]
    return words


def normal(text: str) -> str:
    return re.sub(r"[^\w' ]", " ", text.lower())


def test_the_call_has_two_speakers_and_is_english(call: Episode) -> None:
    """Both speakers of the telephone call have segments, and every segment is in English."""
    assert {row["speaker"] for row in call.rows} == {"SPEAKER_00", "SPEAKER_01"}
    assert {row["language"] for row in call.rows} == {"en"}


def test_the_transcripts_are_right(call: Episode, said: list[tuple[float, str]]) -> None:
    """The word error rate over the time that segments cover is at most 35 %."""
    covered = [
        word for at, word in said if any(row["start"] <= at <= row["end"] for row in call.rows)
    ]
    heard = normal(" ".join(row["text"] for row in call.rows))
    assert jiwer.wer(" ".join(covered), " ".join(heard.split())) <= 0.35
    assert len(covered) >= 0.7 * len(said)


def test_segments_keep_the_contract(call: Episode) -> None:
    """Keys in their order, time order, 3 to 30 s, one MP3 each, named after the index."""
    rows = call.rows
    assert [list(row) for row in rows] == [CONTRACT_KEYS] * len(rows)
    assert rows == sorted(rows, key=lambda row: row["start"])
    assert all(3 <= row["end"] - row["start"] <= 30 for row in rows)
    assert all(1 <= row["dnsmos"] <= 5 for row in rows)
    names = [f"sample_{index:06d}.mp3" for index in range(len(rows))]
    assert [row["audio"] for row in rows] == names
    assert sorted(path.name for path in call.folder.glob("*.mp3")) == names


def test_the_filtered_segments_are_a_subset(call: Episode) -> None:
    """filtered_segments.json holds rows of all_segments.json as they are."""
    kept = json.loads((call.folder / "filtered_segments.json").read_text())
    assert all(row in call.rows for row in kept)
    assert call.manifest["filtered_segments"] == len(kept)


def test_the_record_says_where_the_results_come_from(call: Episode) -> None:
    """episode.json names settings, models with hashes, versions, stages and dropped time."""
    record = json.loads((call.folder / "episode.json").read_text())
    assert record["segments"] == len(call.rows)
    assert record["audio_seconds"] == pytest.approx(30.0, abs=0.01)
    assert re.fullmatch("[0-9a-f]{16}", record["config_hash"])
    assert {"separation", "diarization", "vad", "asr", "dnsmos"} <= record["models"].keys()
    assert list(record["stage_seconds"]) == [stage for stage in STAGES if stage != "export"] + [
        "export"
    ]
    assert {"too_short", "no_speech"} <= record["dropped_seconds"].keys()
    assert call.stages == list(STAGES)


def test_equal_input_gives_equal_bytes(
    pipeline: Pipeline, call: Episode, conversation: Path, tmp_path: Path
) -> None:
    """A second run writes the same files, byte for byte, but for the seconds that it took."""
    again = process(pipeline, conversation, tmp_path)
    for path in call.folder.iterdir():
        if path.name != "episode.json":
            assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name
    timeless = [{**e.manifest, "stage_seconds": None} for e in (again, call)]
    assert timeless[0] == timeless[1]


def test_one_speaker_is_one_speaker(pipeline: Pipeline, jfk: Path, tmp_path: Path) -> None:
    """Eleven seconds of a speech: one speaker, and the famous words."""
    episode = process(pipeline, jfk, tmp_path)
    assert {row["speaker"] for row in episode.rows} == {"SPEAKER_00"}
    heard = normal(" ".join(row["text"] for row in episode.rows))
    assert "what your country can do for you" in " ".join(heard.split())


def write_wav(path: Path, samples: np.ndarray, rate: int = 16_000, channels: int = 1) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
    return path


@pytest.mark.parametrize(
    "samples",
    [
        pytest.param(np.zeros(16_000 * 5), id="digital silence"),
        pytest.param(np.full(16_000 * 5, 0.3), id="DC"),
        pytest.param(np.zeros(3_200), id="0.2 s"),
        pytest.param(np.random.default_rng(1).normal(0, 0.001, 16_000 * 4), id="faint noise"),
    ],
)
def test_audio_without_speech_is_a_success_with_no_segments(
    pipeline: Pipeline, tmp_path: Path, samples: np.ndarray
) -> None:
    """`[]`, an episode record and an empty filter: nothing failed, nothing was said."""
    episode = process(pipeline, write_wav(tmp_path / "quiet.wav", samples), tmp_path / "out")
    assert episode.rows == []
    assert sorted(path.name for path in episode.folder.iterdir()) == [
        "all_segments.json",
        "episode.json",
        "filtered_segments.json",
    ]
    assert episode.manifest["segments"] == 0


@pytest.mark.parametrize("content", [b"", b"this is a text, whatever its name says\n" * 50])
def test_what_is_no_audio_is_bad_audio(pipeline: Pipeline, tmp_path: Path, content: bytes) -> None:
    """Zero bytes and a renamed text raise BadAudio, and write nothing that looks finished."""
    audio = tmp_path / "talk.mp3"
    audio.write_bytes(content)
    with pytest.raises(BadAudio):
        pipeline.run(audio, tmp_path / "out")
    assert list((tmp_path / "out").glob("*.json")) == []


@pytest.mark.parametrize("name", ['it\'s "quoted" 🎙', "line\nbreak", "..", "n" * 255])
def test_any_name_becomes_files(pipeline: Pipeline, jfk: Path, tmp_path: Path, name: str) -> None:
    """Outputs are named after any title, shortened or replaced where a file cannot be."""
    manifest = pipeline.run(jfk, tmp_path / "out", name=name)
    rows = json.loads((tmp_path / "out" / "all_segments.json").read_text())
    assert len(rows) == manifest["segments"] > 0
    assert all((tmp_path / "out" / row["audio"]).is_file() for row in rows)
