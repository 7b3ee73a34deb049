"""Where bytes come from, the one check that they are the right ones, and how they become arrays."""

from ptmech.storage.opening import open_source
from ptmech.storage.source import FolderSource, MissingFileError, RemoteSource, Source
from ptmech.storage.tables import read_table
from ptmech.storage.tensors import read_tensors
from ptmech.storage.verified import VerifiedFiles

__all__ = [
    "FolderSource",
    "MissingFileError",
    "RemoteSource",
    "Source",
    "VerifiedFiles",
    "open_source",
    "read_table",
    "read_tensors",
]
