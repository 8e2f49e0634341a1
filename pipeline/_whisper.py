"""Whisper as CTranslate2 runs it: loaded from a folder, clips in, raw transcripts out."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
from faster_whisper import WhisperModel
from faster_whisper.feature_extractor import FeatureExtractor
from faster_whisper.tokenizer import Tokenizer
from faster_whisper.transcribe import get_suppressed_tokens
from numpy.typing import NDArray

from pipeline.audio import Samples
from pipeline.settings import SettingsError
from pipeline.types import ModelError, Transcript

RATE = 16_000  # Hz; what Whisper was trained on
FRAME = 160  # samples of a frame of the log-mel spectrogram: 10 ms
WINDOW = 3_000  # frames that the encoder was trained on: 30 s
BEAM = 5  # hypotheses kept while decoding, as Emilia and faster_whisper have it

# All that a folder must hold, whatever its kind of vocabulary. Asked for a missing tokenizer,
# faster_whisper would turn to the hub; without the configuration there are no languages.
_FILES = ("model.bin", "config.json", "tokenizer.json")
_PULL = "run `emiliad models pull`, or set ASR_MODEL to a folder with a CTranslate2 Whisper"

# CTranslate2 raises RuntimeError for every failure of CUDA; only the text tells which.
_OUT_OF_MEMORY = ("out of memory", "alloc_failed")


class Whisper:
    """The loaded net: clips in, raw transcripts out."""

    def __init__(
        self, folder: Path, *, device: str, compute_type: str, threads: int, language: str
    ) -> None:
        model = _load(folder, device, _compute_type(device, compute_type), threads)
        self._model = model
        self._net = model.model
        # Not the model's own extractor: that has 80 bands when a file of the folder is missing.
        self._log_mel = FeatureExtractor(feature_size=self._net.n_mels)
        self._multilingual = self._net.is_multilingual
        self._tokenizer = Tokenizer(
            model.hf_tokenizer, self._multilingual, task="transcribe", language="en"
        )
        self._suppressed = list(get_suppressed_tokens(self._tokenizer, [-1]))
        self._language = self._checked(language.strip().lower(), folder)

    def _checked(self, language: str, folder: Path) -> str:
        if not self._multilingual and language not in ("", "en"):
            raise ModelError(
                f"the model in {folder} knows English only, and ASR_LANGUAGE is {language}: "
                "set ASR_MODEL to a multilingual one"
            )
        if not self._multilingual:
            return "en"
        if language and self._token(language) is None:
            raise ModelError(
                f"the model in {folder} does not know the language {language!r}: "
                "set ASR_LANGUAGE to a code like en or zh, or leave it empty"
            )
        return language

    def __call__(
        self, clips: Sequence[Samples], frames: int, constraints: Mapping[str, float]
    ) -> list[Transcript]:
        """Transcribes clips (16 kHz) in windows of `frames`, in one batch."""
        features = np.stack([self._features(clip, frames) for clip in clips])
        encoded = self._model.encode(features)
        languages = self._languages(encoded, len(clips))
        results = self._net.generate(
            encoded,
            [self._prompt(language) for language, _ in languages],
            beam_size=BEAM,
            suppress_tokens=self._suppressed,
            return_scores=True,
            return_no_speech_prob=True,
            **constraints,
        )
        return [
            self._transcript(result, language, probability)
            for result, (language, probability) in zip(results, languages, strict=True)
        ]

    def _features(self, clip: Samples, frames: int) -> NDArray[np.float32]:
        """The log-mel spectrogram, shape (bands, frames).

        The rest of a whole window is zeros, as in Whisper's own `transcribe`; the rest of a
        shorter one is silence, which there tells the decoder better that the speech is over.
        """
        if frames < WINDOW:
            clip = np.pad(clip, (0, max(0, frames * FRAME - len(clip))))
        mel = self._log_mel(clip)[:, :-1][:, :frames]
        padded: NDArray[np.float32] = np.pad(mel, ((0, 0), (0, frames - mel.shape[1])))
        return padded.astype(np.float32, copy=False)

    def _languages(self, encoded: Any, count: int) -> list[tuple[str, float]]:
        if self._language:
            return [(self._language, 1.0)] * count
        ranked = self._net.detect_language(encoded)
        return [(token.strip("<|>"), probability) for (token, probability), *_ in ranked]

    def _prompt(self, language: str) -> list[int]:
        words = self._tokenizer
        spoken = [self._token(language), words.transcribe] if self._multilingual else []
        return [words.sot, *spoken, words.no_timestamps]

    def _token(self, language: str) -> Any:
        return self._tokenizer.tokenizer.token_to_id(f"<|{language}|>")

    def _transcript(self, result: Any, language: str, probability: float) -> Transcript:
        tokens = result.sequences_ids[0]
        text = self._tokenizer.decode(tokens).strip()
        return Transcript(
            text=text,
            language=language,
            language_probability=float(probability),
            # CTranslate2's score is the mean over the tokens; Whisper counts the end among them.
            avg_logprob=result.scores[0] * len(tokens) / (len(tokens) + 1),
            no_speech_prob=result.no_speech_prob,
            compression_ratio=_compression_ratio(text),
        )


def _compression_ratio(text: str) -> float:
    data = text.encode()
    return len(data) / len(zlib.compress(data))


def _compute_type(device: str, asked: str) -> str:
    known = ctranslate2.get_supported_compute_types(device)
    if asked:
        if asked not in known | {"default", "auto"}:
            raise SettingsError(
                [
                    f"ASR_COMPUTE_TYPE: {asked} is not to be had on {device} here, "
                    f"only {', '.join(sorted(known))}"
                ]
            )
        return asked
    preferred = "float16" if device == "cuda" else "int8"
    return preferred if preferred in known else "float32"


def _load(folder: Path, device: str, compute_type: str, threads: int) -> WhisperModel:
    for name in _FILES:
        if not (folder / name).is_file():
            raise ModelError(f"no speech recogniser at {folder}: {name} is missing; {_PULL}")
    try:
        return WhisperModel(
            str(folder),
            device=device,
            compute_type=compute_type,
            cpu_threads=threads,
            local_files_only=True,
        )
    except Exception as error:
        if out_of_memory(error) or "cuda" in str(error).lower():
            raise
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise ModelError(
            f"cannot read the speech recogniser in {folder} ({reason}): {_PULL}"
        ) from error


def out_of_memory(error: BaseException) -> bool:
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(sign in text for sign in _OUT_OF_MEMORY)
