"""The scores are DNSMOS's own, though no stretch of sound is computed twice."""

from __future__ import annotations

from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline import nets
from pipeline.quality import Dnsmos
from pipeline.runtime import onnx_session
from pipeline.types import ModelError, Scores
from tests.pipeline.recordings import heard_at

Samples = NDArray[np.float32]

pytestmark = pytest.mark.models

THREADS = 2
LENGTHS = (3.0, 4.5, 9.01, 9.5, 12.345, 15.0, 30.0)  # seconds


@pytest.fixture(scope="module")
def model(models_dir: Path) -> Path:
    """The published DNSMOS P.835 model."""
    return models_dir / "demo/dnsmos/sig_bak_ovr.onnx"


@pytest.fixture(scope="module")
def dnsmos(model: Path) -> Dnsmos:
    """The scorer under test, on the CPU."""
    return Dnsmos(model, threads=THREADS)


@pytest.fixture(scope="module")
def speech(conversation: Path, jfk: Path) -> Samples:
    """41 s of real speech of three speakers at 16 kHz."""
    return np.concatenate([heard_at(16_000, conversation), heard_at(16_000, jfk)])


def direct(model: Path, clip: Samples) -> tuple[float, float, float]:
    """OVRL, SIG and BAK, window by window through the uncut model, as upstream counts windows."""
    session = onnx_session(model, device="cpu", threads=THREADS)
    while len(clip) < 144_160:
        clip = np.append(clip, clip)
    scores = []
    for second in range(int(np.floor(len(clip) / 16_000) - 9.01) + 1):
        window = clip[second * 16_000 : second * 16_000 + 144_160]
        sig, bak, ovrl = session.run(None, {"input_1": window[np.newaxis]})[0][0]
        scores.append(
            [
                np.poly1d([-0.06766283, 1.11546468, 0.04602535])(ovrl),
                np.poly1d([-0.08397278, 1.22083953, 0.0052439])(sig),
                np.poly1d([-0.13166888, 1.60915514, -0.39604546])(bak),
            ]
        )
    ovrl, sig, bak = np.mean(scores, axis=0)
    return float(ovrl), float(sig), float(bak)


def difference(one: Scores, other: Scores | tuple[float, float, float]) -> float:
    """The largest difference between the three scores of two results."""
    other = astuple(other) if isinstance(other, Scores) else other
    return float(np.abs(np.subtract(astuple(one), other)).max())


@pytest.mark.parametrize("seconds", LENGTHS)
def test_equals_the_direct_computation(
    dnsmos: Dnsmos, model: Path, speech: Samples, seconds: float
) -> None:
    """One pass over a clip gives the scores of window after window, a hundredth at most away."""
    clip = speech[: round(seconds * 16_000)]
    (scores,) = dnsmos([clip])
    expected = direct(model, clip)
    assert difference(scores, expected) < 0.01
    # In fact the cut is exact; this fails when a border or an offset is handled nearly right.
    assert difference(scores, expected) < 1e-5


def test_scores_tell_good_from_bad(dnsmos: Dnsmos, speech: Samples) -> None:
    """Noise added to speech lowers all three scores, the background's most."""
    clip = speech[-160_000:]
    noise = np.random.default_rng(0).standard_normal(len(clip)).astype(np.float32)
    clean, noisy = dnsmos([clip, clip + 0.05 * noise])
    losses = np.subtract(astuple(clean), astuple(noisy))
    assert (losses > 0.1).all()
    assert losses[2] == losses.max()


def test_short_clips_are_doubled_until_they_fill_a_window(dnsmos: Dnsmos, speech: Samples) -> None:
    """A short clip scores as its 2, 4, 8... repetitions do, not as an exact fill does."""
    clip = speech[: round(3.7 * 16_000)]  # 14.8 s after two doublings: five windows
    short, doubled, filled = dnsmos([clip, np.tile(clip, 4), np.tile(clip, 3)[:144_160]])
    assert difference(short, doubled) < 1e-5
    assert difference(short, filled) > 1e-3


def test_every_window_counts(dnsmos: Dnsmos, speech: Samples) -> None:
    """The windows from 7 s on, which upstream loses to a rounding error, count as the others."""
    assert int((7 + 9.01) * 16_000) - 7 * 16_000 == 144_159  # upstream's slice, a sample short
    clip = speech[: 18 * 16_000]  # nine windows
    windows = [clip[second * 16_000 :][:144_160] for second in range(9)]
    each = [scores.ovrl for scores in dnsmos(windows)]
    (scores,) = dnsmos([clip])
    assert scores.ovrl == pytest.approx(np.mean(each), abs=1e-5)
    assert abs(scores.ovrl - float(np.mean(each[:7]))) > 0.01


def test_order_and_company_do_not_matter(dnsmos: Dnsmos, model: Path, speech: Samples) -> None:
    """A clip scores the same alone, among others, in another order, and in other batches."""
    cuts = [(0, 3.1), (5, 9.5), (20, 15.7), (10, 4.6), (30, 11.0)]
    clips = [speech[at * 16_000 :][: round(length * 16_000)] for at, length in cuts]
    together = dnsmos(clips)
    alone = [dnsmos([clip])[0] for clip in clips]
    backwards = dnsmos(clips[::-1])[::-1]
    batched = Dnsmos(model, threads=THREADS, batch=5)(clips)
    for variant in (alone, backwards, batched):
        assert max(map(difference, together, variant)) < 1e-5


def test_equal_input_gives_equal_scores(dnsmos: Dnsmos, speech: Samples) -> None:
    """A second run gives the same bits."""
    clips = [speech[: 16_000 * 5], speech[: 16_000 * 11]]
    assert dnsmos(clips) == dnsmos(clips)


def test_nothing_to_hear_has_finite_scores(dnsmos: Dnsmos) -> None:
    """Empty, one-sample and silent clips score as silence does; no clips have no scores."""
    clips = [np.zeros(n, np.float32) for n in (0, 1, 16_000 * 3, 16_000 * 11)]
    scores = dnsmos(clips)
    assert np.isfinite([astuple(each) for each in scores]).all()
    assert max(difference(each, scores[0]) for each in scores) < 1e-5
    assert dnsmos([]) == []


def test_another_model_is_refused(tmp_path: Path) -> None:
    """A model that is not DNSMOS P.835, or not there, is named."""
    nets.identity(tmp_path / "other.onnx")
    with pytest.raises(ModelError, match=r"other\.onnx is not DNSMOS P\.835"):
        Dnsmos(tmp_path / "other.onnx")
    with pytest.raises(ModelError, match=r"no model at .*gone\.onnx"):
        Dnsmos(tmp_path / "gone.onnx")
