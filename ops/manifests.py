"""Writes what is made from something else: the one-file manifests, the rules' copy, `env.example`.

`make examples`; a test fails when one of them is no longer what it is made from.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

from emiliad.config import all_settings
from pipeline.settings import Setting

ROOT = Path(__file__).resolve().parents[1]
OVERLAYS = ROOT / "kustomize" / "overlays"
RULES = ROOT / "ops" / "prometheus" / "rules.yaml"
# The example's name and the overlay that it shows.
EXAMPLES = {
    "h100": "h100",
    "h100-cluster": "h100-cluster",
    "daemonset": "daemonset",
    "autokicker": "autokicker-standalone",
    "dev": "dev",
}
_WIDTH = 100

_EXAMPLE = """\
# Made by `make examples` from kustomize/overlays/{overlay}: change that, not this.
#   kubectl apply {where}--filename {name}.yaml
# Put your registry before the names of the images; docs/kubernetes.md says what else must be there.
"""
_RULE = """\
# Made by `make examples` from ops/prometheus/rules.yaml: change that, not this.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: emiliad
  labels:
    app.kubernetes.io/part-of: emiliad
spec:
"""
_ENV = """\
# Settings of emiliad, made by `make examples` from what `emiliad config` shows. Copy it to .env:
#   docker run --env-file .env ... emiliad
# docker takes lines as they are: no quotes, no comment after a value. Empty counts as unset. What
# is commented out is the default, or what the image sets.
"""
# Where a group begins, in the order in which the settings are declared.
GROUPS = {
    "STORE_URL": "The object store",
    "PIPELINE": "The executors",
    "LEASE_TTL_S": "Tasks",
    "HTTP_PORT": "What is served and logged",
    "MODELS": "The pipeline: models and devices",
    "SEPARATION_MODEL": "The pipeline: separation",
    "DIARIZATION_MODEL": "The pipeline: diarization and segments",
    "ASR_MODEL": "The pipeline: transcription",
    "DNSMOS_MODEL": "The pipeline: quality and MP3s",
    "AUTOKICK_MODE": "The autokicker (Kubernetes only)",
}
_TO_FILL_IN = frozenset(
    {"R2_ENDPOINT_URL", "R2_BUCKET", "R2_ACCESS_KEY_ID", "R2_SECRET_ACCESS_KEY", "HF_TOKEN"}
)
# What the Dockerfile sets; the defaults are places of whoever made the file.
_IN_THE_IMAGE = {"MODELS_DIR": "/models", "SCRATCH_DIR": "/scratch"}


def main() -> int:
    """Writes every file anew; returns 1 where kubectl cannot render an overlay."""
    try:
        for path, text in made():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            print(path.relative_to(ROOT), file=sys.stderr)
    except subprocess.CalledProcessError as error:
        print(error.stderr, file=sys.stderr)
        return 1
    return 0


def made() -> Iterator[tuple[Path, str]]:
    """Every file that is made, with what it should hold. Raises CalledProcessError."""
    # First, for an overlay shows it.
    yield ROOT / "kustomize/components/prometheusrule/rules.yaml", prometheus_rule()
    yield ROOT / "ops/env.example", env_example()
    for name, overlay in EXAMPLES.items():
        text = rendered(OVERLAYS / overlay)
        where = "" if "kind: Namespace\n" in text else "--namespace NAMESPACE "
        head = _EXAMPLE.format(name=name, overlay=overlay, where=where)
        yield ROOT / f"ops/examples/{name}.yaml", head + text


def rendered(folder: Path) -> str:
    """What kustomize makes of a folder, with the kubectl beside this interpreter.

    Raises CalledProcessError, whose `stderr` says what is wrong.
    """
    kubectl = Path(sys.executable).with_name("kubectl")
    return subprocess.run(
        [kubectl, "kustomize", folder], check=True, capture_output=True, text=True
    ).stdout


def prometheus_rule() -> str:
    """The alerts and rules as the Prometheus operator takes them; comments stay."""
    return _RULE + textwrap.indent(RULES.read_text(encoding="utf-8"), "  ")


def env_example() -> str:
    """Every setting with its meaning, by group; those that must be filled in stand uncommented."""
    return _ENV + "".join(_entries())


def _entries() -> Iterator[str]:
    for setting in all_settings():
        if title := GROUPS.get(setting.name):
            yield f"\n# ---- {title} ----\n"
        yield _entry(setting)


def _entry(setting: Setting) -> str:
    choices = ", ".join(filter(None, setting.choices))
    meaning = f"{setting.help} ({choices})" if choices else setting.help
    about = textwrap.fill(meaning, _WIDTH, initial_indent="# ", subsequent_indent="# ")
    if setting.name in _TO_FILL_IN:
        return f"{about}\n{setting.name}=\n"
    default = _IN_THE_IMAGE.get(setting.name, setting.shown_default)
    return f"{about}\n#{setting.name}={default}\n"


if __name__ == "__main__":
    sys.exit(main())
