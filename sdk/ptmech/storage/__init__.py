"""Where bytes come from, the one check that they are the right ones, and how they become arrays."""

from ptmech.storage.source import FolderSource, Source, VerifiedFiles
from ptmech.storage.tensors import read_tensors

__all__ = ["FolderSource", "Source", "VerifiedFiles", "read_tensors"]
