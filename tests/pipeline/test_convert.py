"""The speaker embedding of the demo, exported: free sizes, equal results, equal bytes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from pipeline import ModelError
from pipeline.convert import campplus, main

# A network of CAM++'s interface that has in it what is hard to export: pooling over segments with
# a last one that is not whole, spread over the frames again, and statistics over all frames.
NETWORK = """
import torch, torch.nn as nn, torch.nn.functional as F

class CAMPPlus(nn.Module):
    def __init__(self, embedding_size, memory_efficient):
        super().__init__()
        self.conv = nn.Conv1d(80, 8, 5, stride=2, padding=2)
        self.dense = nn.Linear(16, embedding_size)

    def forward(self, x):
        x = self.conv(x.permute(0, 2, 1))
        pooled = F.avg_pool1d(x, 100, 100, ceil_mode=True)
        spread = pooled.unsqueeze(-1).expand(*pooled.shape, 100).flatten(2)[..., : x.shape[-1]]
        x = x * torch.sigmoid(x.mean(-1, keepdim=True) + spread)
        return self.dense(torch.cat([x.mean(-1), x.std(-1)], dim=-1))
"""
# The number of frames seen while exporting stays in the exported network.
FIXED = NETWORK.replace("x.mean(-1), ", "x.sum(-1) / int(x.shape[-1]), ")


@pytest.fixture
def parts(tmp_path: Path) -> tuple[Path, Path]:
    """Network and weights, as files."""
    network, weights = tmp_path / "network.py", tmp_path / "weights.pt"
    network.write_text(NETWORK)
    scope: dict[str, type[torch.nn.Module]] = {}
    exec(NETWORK, scope)
    torch.manual_seed(0)
    torch.save(scope["CAMPPlus"](192, False).state_dict(), weights)
    return network, weights


def converted(network: Path, weights: Path, out: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipeline.convert", "campplus", network, weights, out],
        env={**os.environ, "PYTHONHASHSEED": out.stem},
        capture_output=True,
        text=True,
        check=False,
    )


def test_export_computes_what_the_network_does(parts: tuple[Path, Path], tmp_path: Path) -> None:
    """For any batch and any number of frames the ONNX model gives the network's embeddings."""
    network, weights = parts
    campplus(network, weights, tmp_path / "out.onnx")
    scope: dict[str, type[torch.nn.Module]] = {}
    exec(NETWORK, scope)
    net = scope["CAMPPlus"](192, False)
    net.load_state_dict(torch.load(weights, weights_only=True))
    session = onnxruntime.InferenceSession(tmp_path / "out.onnx")
    for batch, frames in ((1, 10), (2, 199), (2, 200), (5, 202), (1, 777), (1, 2100)):
        features = torch.randn(batch, frames, 80)
        (found,) = session.run(["embs"], {"feats": features.numpy()})
        assert found.shape == (batch, 192)
        with torch.no_grad():
            np.testing.assert_allclose(found, net(features).numpy(), atol=1e-5)


def test_export_of_something_else_is_refused(parts: tuple[Path, Path], tmp_path: Path) -> None:
    """A network that does not survive the export, because it fixes the length, is an error."""
    network, weights = parts
    network.write_text(FIXED)
    with pytest.raises(ModelError, match="does not compute what the network does, on 3 frames"):
        campplus(network, weights, tmp_path / "out.onnx")


def test_equal_input_gives_equal_bytes(parts: tuple[Path, Path], tmp_path: Path) -> None:
    """Two processes export the same file, and say nothing."""
    outs = [tmp_path / "1.onnx", tmp_path / "2.onnx"]
    for out in outs:
        ran = converted(*parts, out)
        assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
    assert outs[0].read_bytes() == outs[1].read_bytes()


def test_wrong_usage_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown recipe: exit code 2 and how it is used."""
    assert main(["nonsense"]) == 2
    assert "python -m pipeline.convert passthrough OUT" in capsys.readouterr().err


@pytest.mark.models
def test_real_embedding_takes_any_length(models_dir: Path) -> None:
    """The demo's CAM++ embeds batches of any length, each item as it would be alone."""
    session = onnxruntime.InferenceSession(
        models_dir / "demo" / "diarization" / "wespeaker-campplus.onnx"
    )
    random = np.random.default_rng(0)
    for frames in (3, 57, 201, 402, 998):
        features = random.standard_normal((2, frames, 80), dtype=np.float32)
        (both,) = session.run(["embs"], {"feats": features})
        (second,) = session.run(["embs"], {"feats": features[1:]})
        assert both.shape == (2, 192)
        assert np.isfinite(both).all()
        np.testing.assert_allclose(both[1:], second, atol=1e-4)
        assert abs(both[0] - both[1]).max() > 0.1
