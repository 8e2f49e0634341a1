"""Separation does what its definition says, whatever the length, and never more in memory."""

from __future__ import annotations

import tracemalloc
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soxr
from numpy.typing import NDArray

from pipeline import nets
from pipeline.runtime import onnx_session
from pipeline.separate import Separator
from pipeline.types import ModelError
from tests.pipeline.recordings import heard_at

Samples = NDArray[np.float32]
THREADS = 2


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the made nets: passthrough, identity, random."""
    folder = tmp_path_factory.mktemp("nets")
    nets.passthrough(folder / "passthrough.onnx")
    nets.identity(folder / "identity.onnx")
    nets.random_mdx(folder / "random.onnx", seed=3, tiny=True)
    return folder


@pytest.fixture(scope="module")
def speech(jfk: Path) -> Samples:
    """33 s of real speech at 24 kHz: more than two chunks."""
    return np.tile(heard_at(24_000, jfk), 3)


@dataclass(frozen=True)
class Direct:
    """The definition of the separation, computed one frame, window and chunk after the other.

    numpy's FFT, double precision, no batches, both channels, the whole signal in memory.
    """

    net: Path
    chunk_s: float = 15.0
    margin_s: float = 1.0
    denoise: bool = True

    def vocals(self, samples: Samples) -> Samples:
        mix = soxr.resample(samples, 24_000, 44_100)
        vocals = (mix - self.stem(mix)).astype(np.float32)
        back = soxr.resample(vocals, 44_100, 24_000)
        return np.pad(back, (0, 1))[: len(samples)]

    def stem(self, mix: Samples) -> NDArray[np.float64]:
        """The cross-faded stems of all chunks; asserts that the weights sum to one."""
        total, weights = np.zeros(len(mix)), np.zeros(len(mix))
        for k, (start, stem) in enumerate(self.chunks(mix)):
            here = slice(start, start + len(stem))
            weight = self.weight(np.arange(len(mix)), k)[here]
            total[here] += weight * stem
            weights[here] += weight
        assert np.allclose(weights, 1)
        return total

    def chunks(self, mix: Samples) -> list[tuple[int, NDArray[np.float64]]]:
        """Where each chunk with its margins starts, and its stem."""
        session = onnx_session(self.net, device="cpu", threads=THREADS)
        found = []
        for begin in range(0, len(mix), self.chunk):
            start = max(begin - self.margin, 0)
            end = min(begin + self.chunk + self.margin, len(mix))
            found.append((start, self.chunk_stem(session, mix[start:end])))
        return found

    @property
    def chunk(self) -> int:
        return round(self.chunk_s * 44_100)

    @property
    def margin(self) -> int:
        return round(self.margin_s * 44_100)

    def weight(self, at: NDArray[np.int64], k: int) -> NDArray[np.float64]:
        """What chunk k counts at each sample: its own rise times the next one's complement."""
        rise = self.risen(at, k * self.chunk) if k else np.ones(len(at))
        last = (k + 1) * self.chunk >= len(at)
        return rise if last else rise * (1 - self.risen(at, (k + 1) * self.chunk))

    def risen(self, at: NDArray[np.int64], joint: int) -> NDArray[np.float64]:
        phase = (at - joint + self.margin + 0.5) / max(2 * self.margin, 1e-9)
        risen: NDArray[np.float64] = (1 - np.cos(np.pi * np.clip(phase, 0, 1))) / 2
        return risen

    @staticmethod
    def answer(session: Any, given: NDArray[np.float32]) -> NDArray[Any]:
        answer: NDArray[Any] = session.run(None, {"input": given})[0]
        return answer

    def chunk_stem(self, session: Any, chunk: Samples) -> NDArray[np.float64]:
        step = 261_120 - 2 * 3072
        parts = []
        for begin in range(0, len(chunk), step):
            window = np.zeros(261_120)
            source = np.arange(begin - 3072, begin - 3072 + 261_120)
            inside = (source >= 0) & (source < len(chunk))
            window[inside] = chunk[source[inside]]
            parts.append(self.window_stem(session, window)[3072:-3072])
        return np.concatenate(parts)[: len(chunk)]

    def window_stem(self, session: Any, window: NDArray[np.float64]) -> NDArray[np.float64]:
        spectrum = _spectrum(window)[:3072]
        planes = [spectrum.real, spectrum.imag, spectrum.real, spectrum.imag]
        given = np.stack(planes)[np.newaxis].astype(np.float32)
        answer = self.answer(session, given)
        if self.denoise:
            answer = (answer - self.answer(session, -given)) / 2
        left = answer[0, 0] + 1j * answer[0, 1]
        return _samples(np.concatenate([left, np.zeros((1, 256))]))


def there_and_back(samples: Samples) -> Samples:
    """24 kHz to 44.1 kHz and back, at once: what is left when nothing is separated."""
    back = soxr.resample(soxr.resample(samples, 24_000, 44_100), 44_100, 24_000)
    return np.pad(back, (0, 1))[: len(samples)]


def _hann() -> NDArray[np.float64]:
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(6144) / 6144)


def _spectrum(window: NDArray[np.float64]) -> NDArray[np.complex128]:
    padded = np.pad(window, 3072, mode="reflect")
    frames = [np.fft.rfft(_hann() * padded[i * 1024 : i * 1024 + 6144]) for i in range(256)]
    return np.stack(frames, axis=1)


def _samples(spectrum: NDArray[np.complex128]) -> NDArray[np.float64]:
    total, envelope = np.zeros(261_120 + 6144), np.zeros(261_120 + 6144)
    for i in range(256):
        total[i * 1024 : i * 1024 + 6144] += _hann() * np.fft.irfft(spectrum[:, i])
        envelope[i * 1024 : i * 1024 + 6144] += _hann() ** 2
    return total[3072:-3072] / envelope[3072:-3072]


def test_equals_the_direct_computation(made: Path, speech: Samples) -> None:
    """On more than two chunks of speech the vocals are those of the definition."""
    vocals = Separator(made / "random.onnx", threads=THREADS)(speech)
    expected = Direct(made / "random.onnx").vocals(speech)
    assert np.abs(expected - speech).max() > 0.1  # the net does something
    assert np.abs(vocals - expected).max() < 1e-4


@pytest.mark.parametrize(("chunk_s", "margin_s"), [(4.0, 0.5), (3.0, 0.0)])
def test_equals_the_direct_computation_with_other_settings(
    made: Path, speech: Samples, chunk_s: float, margin_s: float
) -> None:
    """Chunk, margin and denoise mean what the definition says; without a margin chunks abut."""
    short = speech[: 24_000 * 9 + 1]
    separator = Separator(
        made / "random.onnx", chunk_s=chunk_s, margin_s=margin_s, denoise=False, threads=THREADS
    )
    expected = Direct(made / "random.onnx", chunk_s, margin_s, denoise=False).vocals(short)
    assert np.abs(separator(short) - expected).max() < 1e-4


def test_differs_from_emilia_at_the_joints_alone(made: Path, speech: Samples) -> None:
    """Where Emilia abuts two chunks both count half; beyond the margins all is as in Emilia."""
    mix = soxr.resample(speech[: 24_000 * 7], 24_000, 44_100)
    definition = Direct(made / "random.onnx", chunk_s=4.0, margin_s=0.5)
    (_, first), (start, second) = definition.chunks(mix)
    joint, margin = definition.chunk, definition.margin
    emilia = np.concatenate([first[:joint], second[margin:]])
    separator = Separator(made / "random.onnx", chunk_s=4.0, margin_s=0.5, threads=THREADS)
    difference = np.abs(separator.stem(mix) - emilia)
    shared = slice(joint - margin, joint + margin)
    assert difference[shared].max() > 1e-3
    assert max(difference[: shared.start].max(), difference[shared.stop :].max()) < 1e-4
    half = (first[joint] + second[joint - start]) / 2
    assert separator.stem(mix)[joint] == pytest.approx(half, abs=1e-3)


def test_identity_net_returns_its_input(made: Path, speech: Samples) -> None:
    """If all is music, the stem is the mix and the vocals are silence."""
    separator = Separator(made / "identity.onnx", threads=THREADS)
    mix = soxr.resample(speech, 24_000, 44_100)
    assert np.abs(separator.stem(mix) - mix).max() < 1e-4
    assert np.abs(separator(speech)).max() < 1e-4


def test_passthrough_returns_the_mix(made: Path, speech: Samples) -> None:
    """If nothing is music, the vocals are the mix, but for the way to 44.1 kHz and back."""
    separator = Separator(made / "passthrough.onnx", threads=THREADS)
    assert np.abs(separator(speech) - speech).max() < 1e-3


def test_a_net_of_vocals_is_taken_at_its_word(made: Path, speech: Samples) -> None:
    """With weights whose primary stem is the vocals, the stem itself is the answer."""
    separator = Separator(made / "identity.onnx", primary_stem="vocals", threads=THREADS)
    short = speech[:48_000]
    assert np.abs(separator(short) - there_and_back(short)).max() < 1e-4


def test_batch_changes_nothing(made: Path, speech: Samples) -> None:
    """However many windows a run takes, the result is the same, and so is a second run."""
    short = speech[: 24_000 * 13]
    one, three, eight = (
        Separator(made / "random.onnx", chunk_s=12, batch=batch, threads=THREADS)
        for batch in (1, 3, 8)
    )
    expected = one(short)
    assert np.array_equal(one(short), expected)
    assert np.abs(three(short) - expected).max() < 1e-6
    assert np.abs(eight(short) - expected).max() < 1e-6


@pytest.mark.parametrize("length", [0, 1, 2, 3, 999, 24_001, 138_769])
def test_short_input_keeps_its_length(made: Path, speech: Samples, length: int) -> None:
    """Less than a window, down to nothing, comes back as long as it was, and finite."""
    given = speech[1000 : 1000 + length].copy()
    vocals = Separator(made / "random.onnx", threads=THREADS)(given)
    assert vocals.dtype == np.float32
    assert vocals.shape == (length,)
    assert np.isfinite(vocals).all()
    assert np.array_equal(given, speech[1000 : 1000 + length])  # the input is left alone


@pytest.mark.parametrize("length", [47_999, 48_000, 48_001, 53_333, 60_000, 71_999, 96_000])
def test_length_is_kept_around_the_joints(made: Path, speech: Samples, length: int) -> None:
    """An end just before, at or after a joint or its margins loses and doubles nothing."""
    separator = Separator(
        made / "passthrough.onnx", chunk_s=2.0, margin_s=0.5, denoise=False, threads=THREADS
    )
    given = speech[:length]
    assert np.abs(separator(given) - there_and_back(given)).max() < 1e-5


def test_a_margin_is_at_most_half_a_chunk(made: Path, speech: Samples) -> None:
    """A margin as long as the chunk still gives weights that sum to one."""
    separator = Separator(
        made / "passthrough.onnx", chunk_s=1.0, margin_s=5.0, denoise=False, threads=THREADS
    )
    given = speech[: 24_000 * 5]
    assert np.abs(separator(given) - there_and_back(given)).max() < 1e-5


def test_silence_stays_silence(made: Path) -> None:
    """Digital silence has silent vocals with `denoise`, whatever the net's bias."""
    vocals = Separator(made / "random.onnx", threads=THREADS)(np.zeros(30_000, np.float32))
    assert not vocals.any()


def test_memory_does_not_grow_with_length(made: Path, speech: Samples) -> None:
    """Beyond the output, a minute needs no more memory than half of it."""
    separator = Separator(made / "passthrough.onnx", chunk_s=5.0, denoise=False, threads=THREADS)

    def beyond_output(samples: Samples) -> int:
        tracemalloc.start()
        separator(samples)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak - samples.nbytes

    half = beyond_output(speech)
    whole = beyond_output(np.tile(speech, 2))
    assert whole < 1.1 * half
    assert whole < 66 * 44_100 * 4  # less than the signal at the net's rate alone


def test_another_net_is_refused(models_dir: Path) -> None:
    """A model that is no MDX net is named, with what it takes and what was expected."""
    with pytest.raises(ModelError, match=r"sig_bak_ovr.onnx is not an MDX separation net"):
        Separator(models_dir / "demo/dnsmos/sig_bak_ovr.onnx")
