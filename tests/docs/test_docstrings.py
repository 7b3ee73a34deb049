"""Docstrings of what the reference documents say what signatures and bodies do."""

from __future__ import annotations

from dataclasses import replace

from tests.docs.docstrings import Described, complaints, described


def test_docstrings_match_signatures_and_errors():
    assert [line for each in described() for line in complaints(each)] == []


def test_much_is_looked_at():
    paths = {each.path for each in described()}
    assert len(paths) > 150
    assert {"ptmech.artifact.Artifact.activations", "ptmech.loading.load"} <= paths


WHOLE = Described(
    path="f",
    parameters=("x",),
    returns=True,
    raised=frozenset({"DataError"}),
    sections={"parameters": ("x",), "returns": (), "raises": ("DataError",)},
    text="Do it.",
)


def test_a_whole_docstring_is_let_be():
    assert list(complaints(WHOLE)) == []


def test_what_lacks_is_told():
    for kind in WHOLE.sections:
        rest = {name: listed for name, listed in WHOLE.sections.items() if name != kind}
        assert len(list(complaints(replace(WHOLE, sections=rest)))) == 1
    assert list(complaints(replace(WHOLE, text=""))) == ["f: no docstring"]
    assert list(complaints(replace(WHOLE, parameters=()))) == [
        "f: describes x, which it does not take"
    ]
