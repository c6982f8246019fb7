"""What a site says about channels: in its file, and in variables that win."""

from __future__ import annotations

from pathlib import Path

import pytest

from executor.environments.settings import Settings, mirrored, read_settings
from executor.errors import UsageError


def test_nothing_said_is_nothing_changed(tmp_path: Path) -> None:
    """Every channel is where conda says."""
    assert read_settings(tmp_path) == Settings()
    assert Settings().place("conda-forge") is None


def test_a_mirror_wins_over_the_alias_and_a_variable_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder becomes a URL; what is a URL already has no alias."""
    (tmp_path / "config.toml").write_text(
        'channel_alias = "https://conda.example/"\n[mirrors]\nconda-forge = "/srv/conda forge"\nbioconda = "file:///b"\n'
    )
    settings = read_settings(tmp_path)
    assert settings.place("conda-forge") == "file:///srv/conda%20forge"
    assert settings.place("bioconda") == "file:///b"
    assert settings.place("other") == "https://conda.example/other"
    assert settings.place("https://elsewhere.example/x") is None
    monkeypatch.setenv("RUN_LOCAL_MIRRORS", "bioconda=https://m.example/b conda-forge=/other")
    monkeypatch.setenv("RUN_LOCAL_CHANNEL_ALIAS", "/srv/all")
    settings = read_settings(tmp_path)
    assert settings.place("conda-forge") == "file:///other"
    assert settings.place("bioconda") == "https://m.example/b"
    assert settings.place("other") == "file:///srv/all/other"


@pytest.mark.parametrize("text", ["mirrors = 3", "[mirrors]\na = 3", "chanel_alias = 'x'", "= x", "\xff"])
def test_a_file_that_makes_no_sense_is_refused(tmp_path: Path, text: str) -> None:
    """With its path."""
    (tmp_path / "config.toml").write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError) as caught:
        read_settings(tmp_path)
    assert "config.toml" in caught.value.why


@pytest.mark.parametrize("text", ["conda-forge", "=x", "a="])
def test_a_variable_that_makes_no_sense_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """With the part that is wrong."""
    monkeypatch.setenv("RUN_LOCAL_MIRRORS", f"good=/x {text}")
    with pytest.raises(UsageError) as caught:
        read_settings(tmp_path)
    assert caught.value.why == f"`{text}`"


def test_the_longest_beginning_is_replaced() -> None:
    """And an address that nothing is said about stays."""
    beginnings = {"https://c.example/": "file:///all/", "https://c.example/forge/": "file:///forge/"}
    assert mirrored("https://c.example/forge/noarch/x.conda", beginnings) == "file:///forge/noarch/x.conda"
    assert mirrored("https://c.example/other/x.conda", beginnings) == "file:///all/other/x.conda"
    assert mirrored("https://d.example/x.conda", beginnings) == "https://d.example/x.conda"
