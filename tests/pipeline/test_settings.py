"""Settings out of the environment: parsed by type, checked together, secrets never shown."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.config import PipelineConfig
from pipeline.settings import SettingsError, declared, read, setting


@dataclass(frozen=True, kw_only=True)
class Example:
    """One field of each kind."""

    count: int = setting("COUNT", 2, "a number", minimum=1, maximum=9)
    share: float = setting("SHARE", 0.5, "a share")
    on: bool = setting("ON", False, "a switch")
    where: Path = setting("WHERE", Path("/here"), "a path")
    maybe: int | None = setting("MAYBE", None, "a number or nothing", aliases=("PERHAPS",))
    names: tuple[str, ...] = setting("NAMES", ("a", "b"), "a list")
    word: str = setting("WORD", "red", "a choice", choices=("red", "blue"))
    key: int = setting("KEY", 0, "a secret number", secret=True)


def test_values_are_parsed_by_their_type() -> None:
    """Numbers, switches, paths, lists and choices come out as what their fields declare."""
    env = {"COUNT": " 3 ", "SHARE": "1e-1", "ON": "Yes", "WHERE": "/there", "NAMES": "x, y z"}
    example = read(Example, {**env, "WORD": "blue", "MAYBE": "7"})
    assert example == Example(
        count=3, share=0.1, on=True, where=Path("/there"), names=("x", "y", "z"),
        word="blue", maybe=7,
    )  # fmt: skip


def test_an_empty_variable_counts_as_unset() -> None:
    """`NAME=` in an env file leaves the default."""
    assert read(Example, {"COUNT": "", "MAYBE": "  "}) == Example()


def test_an_alias_is_read_when_the_name_is_not_set() -> None:
    """A name that users' manifests already have keeps working, below the real one."""
    assert read(Example, {"PERHAPS": "4"}).maybe == 4
    assert read(Example, {"PERHAPS": "4", "MAYBE": "5"}).maybe == 5


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("COUNT", "0", "less than 1"),
        ("COUNT", "10", "more than 9"),
        ("COUNT", "1.5", "whole number"),
        ("SHARE", "much", "not a number"),
        ("SHARE", "nan", "not a number"),
        ("ON", "maybe", "neither true nor false"),
        ("WORD", "green", "one of red, blue"),
    ],
)
def test_a_malformed_value_is_named_with_the_reason(name: str, value: str, said: str) -> None:
    """The message has the variable, what it holds, and what is wrong with it."""
    with pytest.raises(SettingsError, match=said) as caught:
        read(Example, {name: value})
    (problem,) = caught.value.problems
    assert problem.startswith(f"{name}: {value!r}")


def test_all_offenders_are_named_at_once_and_secrets_are_not_shown() -> None:
    """One error lists every problem; a secret's value is in none of them."""
    with pytest.raises(SettingsError) as caught:
        read(Example, {"COUNT": "x", "ON": "y", "KEY": "hunter2"})
    assert [problem.split(":")[0] for problem in caught.value.problems] == ["COUNT", "ON", "KEY"]
    assert "hunter2" not in str(caught.value)


def test_defaults_are_shown_as_one_would_write_them() -> None:
    """A default copied out of the table is accepted as the value."""
    shown = {declaration.name: declaration.shown_default for _, declaration in declared(Example)}
    assert shown["NAMES"] == "a,b"
    assert shown["ON"] == "false"
    assert read(Example, shown) == Example()


def test_limits_that_contradict_each_other_are_told() -> None:
    """A shortest segment that is not shorter than the longest is a wrong setting, not a crash."""
    with pytest.raises(SettingsError, match="MIN_SEGMENT_S"):
        PipelineConfig.from_env({"MIN_SEGMENT_S": "20", "MAX_SEGMENT_S": "10"})


def test_the_hash_follows_what_changes_results_and_nothing_else() -> None:
    """Where the models lie or run is no other configuration; a longest segment is."""
    hashes = {
        PipelineConfig.from_env(env).config_hash
        for env in ({}, {"MODELS_DIR": "/elsewhere"}, {"DEVICE": "cpu"}, {"CPU_THREADS": "7"})
    }
    assert len(hashes) == 1
    assert PipelineConfig.from_env({"MAX_SEGMENT_S": "29"}).config_hash not in hashes
