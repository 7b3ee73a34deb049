"""Folders that are still there after a power cut."""

from __future__ import annotations

import os
from pathlib import Path


def make_lasting(folder: Path) -> None:
    """Make a folder and what is missing above it, and flush the entry of each."""
    missing = [folder]
    while not missing[-1].parent.exists():
        missing.append(missing[-1].parent)
    for one in reversed(missing):
        one.mkdir(exist_ok=True)
        sync_folder(one.parent)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries, so that a rename survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
