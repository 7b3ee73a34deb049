"""What a build shows: fit to be seen by a terminal, and by others."""

from __future__ import annotations

from pathlib import Path

import pytest

from ptmech_builder.progress import Progress


@pytest.fixture
def progress(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Progress:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HF_TOKEN", "open-sesame-1")
    return Progress()


def test_a_line_goes_to_standard_error(
    progress: Progress, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    progress.line(f"{tmp_path}/acts: \x1b[31m7 files of open-sesame-1")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "~/acts: \\x1b[31m7 files of ***\n"


def test_a_bar_says_no_more_than_a_line(progress: Progress, tmp_path: Path) -> None:
    with progress.bar(3, f"{tmp_path}/acts \x1b[31m") as bar:
        assert bar.desc.rstrip(": ") == "~/acts \\x1b[31m"  # tqdm adds a colon where it draws


def test_quiet_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(quiet=True)
    progress.line("a line")
    with progress.bar(3, "a bar") as bar:
        bar.update(3)
    assert capsys.readouterr() == ("", "")
