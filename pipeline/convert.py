"""Makes the models of the demo that no package carries: `python -m pipeline.convert RECIPE ...`.

It runs in a process of its own, so that who pulls models need not load torch.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipeline.types import ModelError

_EMBEDDING_SIZE = 192
_BANDS = 80  # mel bands of the features, in pyannote's front end as in 3D-Speaker's
_OPSET = 17  # what ONNX Runtime 1.22 and everything newer runs
_TOLERANCE = 1e-4  # between torch and ONNX Runtime, absolute, on embeddings of norm ~10
_TRACED_FRAMES = 347  # no multiple of 2 or of 100, so that no rounding goes unseen
# (batch, frames): fewer, as many and more than a segment of the network's pooling (200 frames),
# an odd number, and the 10 s of a window.
_CHECKED = ((1, 3), (1, 199), (1, 200), (1, 201), (3, 401), (1, 998))
_USAGE = """usage: python -m pipeline.convert passthrough OUT
       python -m pipeline.convert campplus NETWORK.py WEIGHTS.pt OUT"""


def in_own_process(recipe: str, files: Iterable[Path]) -> None:
    """Runs a recipe of this very installation. Raises ModelError with what it says last."""
    root = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    ran = subprocess.run(
        [sys.executable, "-m", "pipeline.convert", recipe, *files],
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode != 0:
        said = ran.stderr.strip().splitlines() or [f"exit code {ran.returncode}"]
        raise ModelError(f"the {recipe} model could not be made: {said[-1]}")


def passthrough(out: Path) -> None:
    """Writes the separation net that finds no music: a stand-in of HQ_3's interface."""
    from pipeline import nets  # here, because the other recipe needs no onnx package

    nets.passthrough(out)


def campplus(network: Path, weights: Path, out: Path) -> None:
    """Exports the speaker embedding CAM++ (Wang et al., 2023) to ONNX.

    `network` is the Python file with the class `CAMPPlus`, `weights` its state (.pt, 3D-Speaker's
    `speech_campplus_sv_zh_en_16k-common_advanced`). The ONNX model has the interface that pyannote
    expects of a WeSpeaker network: `feats` float32 [B, T, 80] to `embs` float32 [B, 192], B and T
    free. Equal input gives equal bytes. Raises ModelError when what was exported does not compute
    what the network computes.
    """
    import torch

    net = _load(network).CAMPPlus(embedding_size=_EMBEDDING_SIZE, memory_efficient=False)
    net.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    net.eval()
    _export(net, out)
    _compare(net, out)


def _load(source: Path) -> Any:
    spec = importlib.util.spec_from_file_location("campplus_network", source)
    if spec is None or spec.loader is None:
        raise ModelError(f"{source} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _export(net: Any, out: Path) -> None:
    import torch

    with warnings.catch_warnings():
        # The newer exporter needs one more package (onnxscript), for this one model; the older
        # one says of itself and of its parts that they will go.
        warnings.simplefilter("ignore", DeprecationWarning)
        # It warns of the case of a single frame after the stride, which gives NaN in ONNX: for
        # pyannote that says that the audio is too short to be embedded.
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
        torch.onnx.export(
            net,
            (torch.zeros(2, _TRACED_FRAMES, _BANDS),),
            str(out),
            dynamo=False,
            opset_version=_OPSET,
            input_names=["feats"],
            output_names=["embs"],
            dynamic_axes={"feats": {0: "B", 1: "T"}, "embs": {0: "B"}},
        )


def _compare(net: Any, exported: Path) -> None:
    import onnxruntime
    import torch

    session = onnxruntime.InferenceSession(exported, providers=["CPUExecutionProvider"])
    random = torch.Generator().manual_seed(0)
    for batch, frames in _CHECKED:
        features = torch.randn(batch, frames, _BANDS, generator=random)
        with torch.inference_mode():
            expected = net(features).numpy()
        (found,) = session.run(["embs"], {"feats": features.numpy()})
        if found.shape != expected.shape or not abs(found - expected).max() <= _TOLERANCE:
            raise ModelError(
                f"the exported CAM++ does not compute what the network does, on {frames} frames"
            )


def main(arguments: list[str]) -> int:
    """The recipe's name and its files; returns the exit code."""
    match arguments:
        case ["passthrough", out]:
            passthrough(Path(out))
        case ["campplus", network, weights, out]:
            os.environ["OMP_NUM_THREADS"] = "1"  # many small steps: threads only wait for others
            campplus(Path(network), Path(weights), Path(out))
        case _:
            print(_USAGE, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except ModelError as error:
        sys.exit(f"error: {error}")
