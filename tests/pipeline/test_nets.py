"""The nets that are made: same interface as the real ones, same bytes each time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline import nets
from pipeline.runtime import onnx_session

HQ_3_BYTES = 66_759_214  # of the published file


def _spectra(batch: int) -> np.ndarray:
    shape = (batch, nets.CHANNELS, nets.FREQUENCIES, nets.FRAMES)
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def _answer(net: Path, spectra: np.ndarray) -> np.ndarray:
    session = onnx_session(net, device="cpu", threads=2)
    answer: np.ndarray = session.run(["output"], {"input": spectra})[0]
    return answer


def test_passthrough_finds_no_music(tmp_path: Path) -> None:
    """The stand-in answers any batch with silence."""
    nets.passthrough(tmp_path / "net.onnx")
    answer = _answer(tmp_path / "net.onnx", _spectra(3))
    assert answer.shape == (3, 4, 3072, 256)
    assert not answer.any()


def test_identity_returns_its_input(tmp_path: Path) -> None:
    """The identity net changes nothing."""
    nets.identity(tmp_path / "net.onnx")
    assert np.array_equal(_answer(tmp_path / "net.onnx", _spectra(1)), _spectra(1))


def test_random_net_is_not_symmetric(tmp_path: Path) -> None:
    """A random net tells its channels apart, so that a mixed-up channel shows in a test."""
    nets.random_mdx(tmp_path / "net.onnx", seed=1, tiny=True)
    spectra = _spectra(1)
    answer = _answer(tmp_path / "net.onnx", spectra)
    swapped = _answer(tmp_path / "net.onnx", spectra[:, [2, 3, 0, 1]])
    assert np.isfinite(answer).all()
    assert np.abs(answer - swapped[:, [2, 3, 0, 1]]).max() > 0.1


def test_random_net_costs_what_hq_3_costs(tmp_path: Path) -> None:
    """The benchmark's net has HQ_3's parameters to a thousandth, and says how many."""
    parameters = nets.random_mdx(tmp_path / "net.onnx")
    size = (tmp_path / "net.onnx").stat().st_size
    assert parameters == 16_681_344
    assert size == pytest.approx(HQ_3_BYTES, rel=1e-3)


def test_nets_have_the_same_bytes_each_time(tmp_path: Path) -> None:
    """A made net can be checked by its hash; another seed is another net."""
    for name, seed in (("a", 7), ("b", 7), ("c", 8)):
        nets.random_mdx(tmp_path / name, seed, tiny=True)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a").read_bytes() != (tmp_path / "c").read_bytes()
