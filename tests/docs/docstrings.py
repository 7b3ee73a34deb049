"""What docstrings lack, beside the signatures and the bodies they describe."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import griffe
from tests.docs.pages import ROOT

import ptmech.errors

SOURCES = [ROOT / "sdk", ROOT / "builder"]
MODULES = (
    "ptmech",
    "ptmech.confidence",
    "ptmech.directions",
    "ptmech.knowledge",
    "ptmech.live",
    "ptmech.probes",
    "ptmech.refusal",
    "ptmech.report",
    "ptmech.results",
    "ptmech.summary",
    "ptmech.truth",
    "ptmech.unembedding",
    "ptmech.verify",
    "ptmech_builder.cards",
)
"""What the reference documents; of those without ``__all__`` whatever has no underscore."""

ERRORS = {
    name
    for name, each in vars(ptmech.errors).items()
    if isinstance(each, type) and issubclass(each, ptmech.errors.PtmechError)
}
"""What a body may raise by name."""
MADE = {"unknown": "UnknownNameError"}
"""Functions that make an error, and which."""


@dataclass(frozen=True)
class Described:
    """A function with its docstring, or a class with what it takes.

    Attributes
    ----------
    path
        Where it is defined.
    parameters
        Names of the signature.
    returns
        Whether it gives something back.
    raised
        Typed errors that its body raises.
    sections
        Names that each section of the docstring lists, by kind.
    text
        The docstring.
    """

    path: str
    parameters: tuple[str, ...]
    returns: bool
    raised: frozenset[str]
    sections: dict[str, tuple[str, ...]]
    text: str


def described() -> Iterator[Described]:
    """Yield every public function, method and class, each once."""
    loader = griffe.GriffeLoader(search_paths=SOURCES)
    for package in ("ptmech", "ptmech_builder"):
        loader.load(package)
    loader.resolve_aliases(implicit=True, external=False)
    seen: set[str] = set()
    for module in MODULES:
        for name in public_names(module):
            thing: Any = loader.modules_collection[f"{module}.{name}"]
            thing = thing.final_target if thing.is_alias else thing
            # Of the builder the reference has its functions; the card has a table of its own.
            if thing.is_class and thing.canonical_path.startswith("ptmech_builder."):
                continue
            if thing.canonical_path not in seen:
                seen.add(thing.canonical_path)
                yield from _of(thing)


def public_names(module: str) -> list[str]:
    """Return what a module offers: what it lists, or whatever is its own without an underscore."""
    made = import_module(module)
    names = getattr(made, "__all__", None) or [
        name
        for name, each in vars(made).items()
        if not name.startswith("_") and getattr(each, "__module__", None) == module
    ]
    return list(names)


def _of(thing: Any) -> Iterator[Described]:
    if thing.is_function:
        yield _function(thing)
    elif thing.is_class:
        yield _class(thing)
        for name, member in thing.members.items():
            if member.is_function and not name.startswith("_") and not _overrides(thing, name):
                yield _function(member)


def _overrides(thing: Any, name: str) -> bool:
    """Whether a method says what it does in the class it is inherited from."""
    return any(name in base.members and base.members[name].docstring for base in thing.mro())


def _function(thing: Any) -> Described:
    names = tuple(p.name for p in thing.parameters if p.name not in {"self", "cls"})
    returns = thing.returns is not None and str(thing.returns) not in {"None", "NoReturn"}
    return Described(
        path=thing.canonical_path,
        parameters=names,
        returns=returns,
        raised=_raised(thing),
        sections=_sections(thing),
        text=_text(thing),
    )


def _class(thing: Any) -> Described:
    own = thing.members.get("__init__")
    if own is not None and "dataclass" not in thing.labels:
        names = tuple(p.name for p in own.parameters if p.name != "self")
    else:
        names = tuple(name for name, field in thing.members.items() if _is_field(name, field))
    return Described(
        path=thing.canonical_path,
        parameters=names,
        returns=False,
        raised=frozenset(),
        sections=_sections(thing) | {"fields": _explained(thing)},
        text=_text(thing),
    )


def _explained(thing: Any) -> tuple[str, ...]:
    """Return the attributes that have a docstring of their own."""
    return tuple(name for name, member in thing.members.items() if member.docstring)


def _is_field(name: str, member: Any) -> bool:
    declared = member.is_attribute and member.annotation is not None
    return declared and not name.startswith("_") and "property" not in member.labels


def _text(thing: Any) -> str:
    return "" if thing.docstring is None else thing.docstring.value


def _sections(thing: Any) -> dict[str, tuple[str, ...]]:
    if thing.docstring is None:
        return {}
    found: dict[str, tuple[str, ...]] = {}
    for section in thing.docstring.parse("numpy", warnings=False):
        kind = section.kind.value
        if kind in {"parameters", "other parameters", "attributes"}:
            found[kind] = tuple(
                name.strip().lstrip("*") for each in section.value for name in each.name.split(",")
            )
        elif kind == "raises":
            found[kind] = tuple(
                name.strip() for each in section.value for name in str(each.annotation).split(",")
            )
        else:
            found[kind] = ()
    return found


def _raised(thing: Any) -> frozenset[str]:
    """Names of the errors that a body raises itself, nested functions left out."""
    tree = ast.parse(Path(thing.filepath).read_text(encoding="utf-8"))
    [found] = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        and node.name == thing.name
        and thing.lineno <= node.lineno <= thing.endlineno
        and node.end_lineno == thing.endlineno
    ]
    called = [
        ast.unparse(node.exc.func)
        for node in ast.walk(found)
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)
    ]
    return frozenset(MADE.get(name, name) for name in called) & ERRORS


def complaints(each: Described) -> Iterator[str]:
    """Yield what a docstring lacks, a line each."""
    if not each.text:
        yield f"{each.path}: no docstring"
        return
    listed = {
        name
        for kind in ("parameters", "attributes", "fields")
        for name in each.sections.get(kind, ())
    }
    if missing := [name for name in each.parameters if name not in listed]:
        yield f"{each.path}: nothing about {', '.join(missing)}"
    named = {*each.sections.get("parameters", ())}
    if stray := sorted(named - {*each.parameters}):
        yield f"{each.path}: describes {', '.join(stray)}, which it does not take"
    if each.returns and not each.sections.keys() & {"returns", "yields"}:
        yield f"{each.path}: no section Returns"
    if unsaid := sorted(each.raised - {*each.sections.get("raises", ())}):
        yield f"{each.path}: raises {', '.join(unsaid)} without saying so"
