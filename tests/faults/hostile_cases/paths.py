"""Paths that lead elsewhere, files that are none, and names that users may write."""

from __future__ import annotations

from tests.faults import hostile as h
from tests.faults.hostile_cases.case import (
    BIDI,
    DAMAGED,
    ESCAPE,
    FAULTS,
    FORMAT,
    INTEGRITY,
    NOT_FOUND,
    NOT_STORED,
    Case,
)

PATHS = [
    *(
        Case(f"path {path!r}"[:60], h.listed_as(path), "load", FORMAT, "path")
        for path in (
            "/etc/passwd",
            "../outside.parquet",
            "tables/../../outside.parquet",
            ".",
            "..",
            "",
            "tables//statements.parquet",
            "./tables/statements.parquet",
            "tables/statements.parquet/",
            "tables\\..\\..\\outside.parquet",
            "C:/outside.parquet",
            "C:outside.parquet",
            "\\\\server\\share\\x.parquet",
            "//server/share/x.parquet",
            "file:///etc/passwd",
            "https://example.org/x.parquet",
            "~/outside.parquet",
            "$HOME/outside.parquet",
            "tables/\u2024\u2024/x.parquet",
            "tables\u2215x.parquet",
            "tables\uff0f..\uff0fx.parquet",
            "t\u0430bles/statements.parquet",
            "%2e%2e/outside.parquet",
            "tables%2f..%2fx.parquet",
            "tables/x.parquet\0.txt",
            "tables/x.parquet\n",
            "tables/x.parquet ",
            "tables/x.parquet.",
            "tables./x.parquet",
            "tables/ x.parquet",
            f"tables/{ESCAPE}x.parquet",
            f"tables/{BIDI}.parquet",
            ".git/config",
            ".build/receipts/x.json",
            "tables/x.parquet:stream",
            "tables/CON",
            "tables/nul.parquet",
            "LPT1/x.parquet",
            "manifest.json",
            "t" * 200 + "/x.parquet",
            "/".join(["t"] * 400),
        )
    ),
    Case("a part's path", h.part_listed_as("../../part.json"), "load", FORMAT, "path"),
    Case(
        "an activation file's path",
        h.activations_listed_as("/dev/zero"),
        "activations",
        FORMAT,
        "path",
    ),
    Case(
        "an activation file's path, verified",
        h.activations_listed_as("../x"),
        "verify",
        FAULTS,
        "path",
    ),
    Case(
        "two paths in different case",
        h.also_listed("tables/Statements.parquet"),
        "load",
        FORMAT,
        "",
    ),
    Case("a file that is a folder too", h.also_listed("tables"), "load", FORMAT, ""),
    Case("a path twice", h.also_listed(h.STATEMENTS), "verify", FAULTS, "times"),
]

LINKS = [
    Case(
        "a link to a file outside",
        h.linked(h.STATEMENTS, "{outside}/stolen"),
        "statements",
        INTEGRITY,
        "leads out",
    ),
    Case(
        "a relative link outside",
        h.linked(h.STATEMENTS, "../../artifact-outside/stolen"),
        "statements",
        INTEGRITY,
        "leads out",
    ),
    Case(
        "activations linked outside",
        h.linked(h.LAYER, "{outside}/stolen"),
        "activations",
        INTEGRITY,
        "leads out",
    ),
    Case(
        "the manifest linked outside",
        h.linked(h.MANIFEST, "{outside}/stolen"),
        "load",
        INTEGRITY,
        "leads out",
    ),
    Case("a folder linked outside", h.folder_linked("acts"), "activations", INTEGRITY, "leads out"),
    Case(
        "a folder linked outside, verified",
        h.folder_linked("tables"),
        "verify",
        FAULTS,
        "leads out",
    ),
    Case("a link to itself", h.linked(h.STATEMENTS, "{name}"), "statements", INTEGRITY, ""),
    Case("a link to itself, verified", h.linked(h.STATEMENTS, "{name}"), "verify", FAULTS, ""),
    Case("a manifest that links to itself", h.linked(h.MANIFEST, "{name}"), "load", NOT_FOUND, ""),
    Case("a dangling link", h.linked(h.STATEMENTS, "nowhere"), "statements", INTEGRITY, "missing"),
    Case("endless zeros", h.endless("/dev/zero"), "statements", INTEGRITY, ""),
    Case("endless zeros, verified", h.endless("/dev/zero"), "verify", FAULTS, ""),
    Case("a manifest of endless zeros", h.linked(h.MANIFEST, "/dev/zero"), "load", NOT_FOUND, ""),
    Case("a pipe for a table", h.pipe(h.STATEMENTS), "statements", INTEGRITY, ""),
    Case("a pipe for a table, verified", h.pipe(h.STATEMENTS), "verify", FAULTS, ""),
    Case("a pipe for the manifest", h.pipe(h.MANIFEST), "load", NOT_FOUND, ""),
    Case("a folder for a table", h.directory(h.STATEMENTS), "statements", INTEGRITY, ""),
    Case("a folder for a table, verified", h.directory(h.STATEMENTS), "verify", FAULTS, ""),
    Case("a folder for the manifest", h.directory(h.MANIFEST), "load", NOT_FOUND, ""),
    Case("a missing table", h.gone(h.STATEMENTS), "statements", INTEGRITY, "missing"),
    Case("a missing part", h.gone(h.CITIES), "activations", INTEGRITY, "missing"),
    Case("a missing part, verified", h.gone(h.CITIES), "verify", FAULTS, "missing"),
    Case("a flipped bit", h.flipped(h.LAYER), "activations", INTEGRITY, "sha256"),
    Case("a flipped bit in a part", h.flipped(h.CITIES), "command truth", DAMAGED, "sha256"),
    Case(
        "a file cut short", h.truncated(h.LAYER, resealed=False), "activations", INTEGRITY, "bytes"
    ),
    Case(
        "a file of a tebibyte of zeros", h.sparse(h.LAYER, 2**40), "activations", INTEGRITY, "bytes"
    ),
    Case("a manifest of a tebibyte", h.sparse(h.MANIFEST, 2**40), "load", FORMAT, "bytes"),
]

REFERENCES = [
    Case("with a NUL", h.unspoiled, "reference_with_nul", NOT_FOUND, ""),
    Case("of a megabyte", h.unspoiled, "reference_of_a_megabyte", "DataError", "cannot be opened"),
    Case("of escapes", h.unspoiled, "reference_of_escapes", NOT_FOUND, ""),
    Case("of a table outside", h.unspoiled, "table ../../../etc/passwd", NOT_STORED, "not part of"),
    Case(
        "of a table by its absolute path",
        h.unspoiled,
        "table /etc/passwd",
        NOT_STORED,
        "not part of",
    ),
    Case(
        "of tensors that are none", h.unspoiled, "tensor manifest.json", NOT_STORED, "not part of"
    ),
    Case("of a trace at no place", h.holds("traces/x", b""), "verify", FAULTS, "traces/x"),
    Case(
        "of a trace of one stage",
        h.holds("traces/base/cities.zarr/zarr.json", b"{}"),
        "verify",
        FAULTS,
        "traces/base",
    ),
]
