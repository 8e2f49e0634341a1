"""Values look in the pictures as they look in Grafana."""

from __future__ import annotations

from pathlib import Path

import pytest

from ops.plot_dashboard import amount, main, seconds


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.0, "s", "0 s"),
        (0.0042, "s", "4.2 ms"),
        (90, "s", "1.5 min"),
        (7200, "s", "2 h"),
        (2 * 86400, "s", "2 d"),
        (0.985, "percentunit", "98.5 %"),
        (2.5 * 1024**3, "bytes", "2.5 GiB"),
        (0, "bytes", "0 B"),
        (1500, "Bps", "1.5 kB/s"),
        (3, "reqps", "3 /s"),
        (166, "suffix: h/h", "166 h/h"),
        (12_300, "short", "12.3 k"),
        (float("nan"), "s", "-"),
    ],
)
def test_an_amount_has_three_figures_and_a_unit(value: float, unit: str, text: str) -> None:
    """What is not a number is a dash."""
    assert amount(value, unit) == text


def test_a_span_of_time_is_a_number_and_a_letter() -> None:
    """As Prometheus and Grafana write them."""
    assert [seconds(span) for span in ("15m", "6h", "2d")] == [900, 21600, 172800]
    with pytest.raises(ValueError, match="is not a number"):
        seconds("an hour")


def test_a_server_that_is_not_there_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And exit code 1."""
    code = main(["--prometheus", "http://127.0.0.1:9", "--out", str(tmp_path)])
    assert code == 1
    assert "does not answer" in capsys.readouterr().err
