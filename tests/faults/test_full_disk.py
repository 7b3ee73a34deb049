"""A disk that is too small, and is made larger when the build has given up."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.faults import checks
from tests.faults.nursery import Nursery
from tests.faults.siege import Siege

Record = Callable[[str, Any], None]

SIZES = (4, 16, 28, 40, 52, 64, 80, 96, 112, 128)
"""KiB; the artifact and its receipts take more than 160."""
LARGE_ENOUGH = 16_384


@dataclass(frozen=True)
class SmallDisk:
    """A file system in memory."""

    path: Path

    def resize(self, kib: int) -> None:
        mount("-o", f"remount,size={kib}k", str(self.path))

    def empty(self) -> None:
        subprocess.run(["umount", str(self.path)], check=True, capture_output=True)
        mount("-t", "tmpfs", "-o", f"size={LARGE_ENOUGH}k", "tmpfs", str(self.path))


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, capture_output=True, text=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    path = tmp_path / "disk"
    path.mkdir()
    try:
        mount("-t", "tmpfs", "-o", f"size={LARGE_ENOUGH}k", "tmpfs", str(path))
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no tmpfs can be mounted here: {getattr(error, 'stderr', None) or error}")
    yield SmallDisk(path)
    subprocess.run(["umount", "--lazy", str(path)], check=True, capture_output=True)


def test_a_full_disk_is_enlarged_and_the_build_goes_on(
    nursery: Nursery, tmp_path: Path, disk: SmallDisk, at_length: bool, record_property: Record
) -> None:
    siege = Siege(nursery, tmp_path, "plain")
    filled, kept, violations = 0, 0, []
    for kib in SIZES if at_length else (64, 112):
        disk.empty()
        disk.resize(kib)
        root = disk.path / "artifact"
        ended = nursery.build("plain", root, command=True, options=("--quiet",))
        assert ended.code == 2, (kib, ended)
        filled += 1
        wrong = [*checks.plain_line(ended.told), *checks.at_any_instant(root)]
        if "No space left on device" not in ended.told or "run the same build again" not in (
            ended.told
        ):
            wrong.append(f"it does not say what to do: {ended.told!r}")
        kept += len(checks.finished_units(root, siege.keys))
        disk.resize(LARGE_ENOUGH)
        wrong += siege.aftermath(root)
        violations += [f"on {kib} KiB: {what}" for what in wrong]
    record_property("faults injected", filled)
    assert not violations, "\n".join(violations)
    assert kept


def test_a_disk_that_nobody_may_write_to_is_said_in_one_line(
    nursery: Nursery, disk: SmallDisk, record_property: Record
) -> None:
    root = disk.path / "artifact"
    mount("-o", "remount,ro", str(disk.path))
    ended = nursery.build("shortest", root, command=True, options=("--quiet",))
    mount("-o", "remount,rw", str(disk.path))
    assert ended.code == 2
    assert checks.plain_line(ended.told) == []
    assert "Read-only file system" in ended.told
    assert os.listdir(disk.path) == []
    record_property("faults injected", 1)
