"""Manifests: the same value and the same bytes back, or one line that says why not.

Valid documents are drawn at random and go through canonical JSON and back. Then something is done
to their JSON that a broken disk, a careless tool or an attacker might do.
"""

from __future__ import annotations

import json
import re
import tracemalloc
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from time import perf_counter
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from ptmech.errors import FormatError
from ptmech.manifest import (
    SITES,
    ActivationFile,
    ActivationUnit,
    Dataset,
    Defaults,
    Extra,
    Manifest,
    Parity,
    Part,
    PartEntry,
    Schema,
    Stage,
    canonical_json,
    parse_schema,
)
from ptmech.model_sources import HubModel, PackagedModel
from ptmech_builder.receipts import Receipt

T = TypeVar("T")
Record = Callable[[str, object], None]

DEVICES = {
    "con",
    "prn",
    "aux",
    "nul",
    *(f"{name}{n}" for name in ("com", "lpt") for n in range(10)),
}
HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Categories of characters that steer what shows them, or are no characters."""


def examples(at_length: bool, few: int) -> settings:
    return settings(
        max_examples=few * 10 if at_length else few,
        deadline=None,
        database=None,
        derandomize=not at_length,
        phases=(Phase.generate, Phase.shrink) if at_length else (Phase.generate,),
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


# Valid documents -------------------------------------------------------------------------------

names = st.from_regex(r"[a-z][a-z0-9_]{0,12}", fullmatch=True).filter(lambda n: n not in DEVICES)
lines = st.text(st.characters(exclude_categories=HIDDEN), max_size=30)
texts = st.text(
    st.one_of(st.characters(exclude_categories=HIDDEN), st.sampled_from("\n\t")), max_size=60
)
shas = st.text("0123456789abcdef", min_size=64, max_size=64)
sizes = st.integers(0, 2**44)
rows = st.integers(0, 2**31 - 1)
widths = st.integers(1, 2**24)
deviations = st.floats(0, 1e30, allow_nan=False)
dtypes: st.SearchStrategy[Any] = st.sampled_from(["float32", "float16", "bfloat16"])
positions = st.lists(st.integers(-(2**20), -1), unique=True, max_size=5).map(tuple)


@st.composite
def stages(draw: st.DrawFn, name: str, n_layers: int) -> Stage:
    sources = st.one_of(
        st.none(),
        st.builds(HubModel, hub=st.just("someone/model"), revision=st.just("main")),
        st.builds(
            PackagedModel,
            package=st.just("weights==1.0"),
            file=st.just("weights/model.gguf"),
            sha256=shas,
            chat_template=st.none() | texts,
        ),
    )
    return Stage(
        name=name,
        title=draw(lines),
        model=draw(lines),
        source=draw(sources),
        sha256=draw(st.dictionaries(lines, shas, max_size=3)),
        architecture=draw(lines),
        n_layers=n_layers,
        d_model=draw(widths),
        d_mlp=draw(st.none() | widths),
        vocabulary=draw(widths),
        tokenizer_sha256=draw(shas),
        template=draw(texts),
        template_options=draw(st.dictionaries(lines, texts, max_size=2)),
        add_beginning=draw(st.booleans()),
        quantisation=draw(st.sampled_from([None, "8bit", "4bit"])),
        note=draw(texts),
    )


def datasets(name: str) -> st.SearchStrategy[Dataset]:
    return st.builds(
        Dataset,
        name=st.just(name),
        title=lines,
        kind=st.sampled_from(["statements", "instructions"]),
        rows=rows,
        positions=positions,
        sha256=shas,
        source=lines,
        note=texts,
    )


@st.composite
def extras(draw: st.DrawFn, prefix: str = "extra") -> tuple[Extra, ...]:
    kinds: st.SearchStrategy[Any] = st.sampled_from(
        ["table", "weights", "adapter", "trace", "scores"]
    )
    stems = draw(st.lists(names, unique=True, max_size=4))
    return tuple(
        Extra(
            path=f"{draw(st.sampled_from(['tables', 'scores/base', 'traces/a-b/c.zarr']))}/"
            f"{prefix}-{stem}.parquet",
            bytes=draw(sizes),
            sha256=draw(shas),
            kind=draw(kinds),
            unit=draw(shas),
        )
        for stem in stems
    )


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    n_layers = draw(st.integers(1, 1024))
    layers = st.integers(0, n_layers - 1)
    sites: Any = st.dictionaries(
        st.sampled_from(SITES), st.lists(layers, unique=True, max_size=4).map(tuple)
    )
    stage_names = draw(st.lists(names, unique=True, min_size=1, max_size=3))
    dataset_names = draw(st.lists(names, unique=True, max_size=3))
    places = [(stage, dataset) for stage in stage_names for dataset in dataset_names]
    kept = draw(st.lists(st.sampled_from(places), unique=True)) if places else []
    return Manifest(
        name=draw(names),
        title=draw(lines),
        description=draw(texts),
        licence=draw(lines),
        card_sha256=draw(shas),
        narrowed=draw(lines),
        stages=tuple(draw(stages(name, n_layers)) for name in stage_names),
        datasets=tuple(draw(datasets(name)) for name in dataset_names),
        sites=draw(sites),
        dtype=draw(dtypes),
        compute_dtype=draw(dtypes),
        parity=draw(
            st.none()
            | st.builds(
                Parity,
                worst=deviations,
                tolerance=deviations,
                rows=rows,
                stage=lines,
                dataset=lines,
            )
        ),
        defaults=draw(
            st.builds(
                Defaults,
                truth_layer=st.none() | layers,
                truth_datasets=st.lists(lines, max_size=2).map(tuple),
                truth_examples=st.lists(texts, max_size=2).map(tuple),
                refusal_layer=st.none() | layers,
                refusal_position=st.integers(-(2**20), -1),
                refusal_layers=st.dictionaries(lines, layers, max_size=2),
            )
        ),
        versions=draw(st.dictionaries(lines, lines, max_size=3)),
        parts=tuple(
            PartEntry(
                path=f"manifests/{stage}/{dataset}.json",
                bytes=draw(st.integers(0, 2**26)),
                sha256=draw(shas),
                stage=stage,
                dataset=dataset,
                rows=draw(rows),
                data_bytes=draw(sizes),
            )
            for stage, dataset in kept
        ),
        extras=draw(extras()),
    )


blocks = st.builds(
    ActivationUnit,
    key=shas,
    block=st.integers(0, 100_000),
    first_row=rows,
    rows=rows,
    parity=deviations,
)


@st.composite
def activation_files(draw: st.DrawFn, folder: str) -> tuple[ActivationFile, ...]:
    places = draw(
        st.lists(
            st.tuples(st.sampled_from(SITES), st.integers(0, 1023), st.integers(0, 99_999)),
            unique=True,
            max_size=4,
        )
    )
    return tuple(
        ActivationFile(
            path=f"{folder}/{site}/L{layer:02d}.{block:05d}-of-99999.safetensors",
            bytes=draw(sizes),
            sha256=draw(shas),
            site=site,
            layer=layer,
            block=block,
            rows=draw(st.integers(1, 2**31 - 1)),
        )
        for site, layer, block in places
    )


@st.composite
def parts(draw: st.DrawFn) -> Part:
    stage, dataset = draw(names), draw(names)
    return Part(
        stage=stage,
        dataset=dataset,
        rows=draw(rows),
        d_model=draw(widths),
        positions=draw(positions),
        dtype=draw(dtypes),
        units=tuple(draw(st.lists(blocks, max_size=3))),
        files=draw(activation_files(f"acts/{stage}/{dataset}")),
    )


plain_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | lines,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(lines, inner, max_size=3),
    max_leaves=5,
)


@st.composite
def receipts(draw: st.DrawFn) -> Receipt:
    files = (*draw(activation_files("acts/base/facts")), *draw(extras()))
    marks = st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**63 - 1))
    return Receipt(
        unit=draw(names),
        key=draw(shas),
        recipe=draw(st.dictionaries(lines, lines, max_size=3)),
        activation=draw(st.none() | blocks),
        files=files,
        facts=draw(st.dictionaries(lines, plain_values, max_size=3)),
        versions=draw(st.dictionaries(lines, lines, max_size=3)),
        marks=tuple(draw(marks) for _ in files),
    )


DOCUMENTS: dict[type[Schema], st.SearchStrategy[Any]] = {
    Manifest: manifests(),
    Part: parts(),
    Receipt: receipts(),
}
any_schema = pytest.mark.parametrize("schema", DOCUMENTS, ids=lambda schema: schema.__name__)


# The same value, the same bytes ----------------------------------------------------------------


@any_schema
def test_a_document_comes_back_as_it_was(at_length: bool, schema: type[Schema]) -> None:
    @examples(at_length, 40)
    @given(document=DOCUMENTS[schema], order=st.randoms(use_true_random=False))
    def check(document: Schema, order: Random) -> None:
        raw = canonical_json(document)
        again = parse_schema(schema, raw, "document")
        assert again == document
        assert canonical_json(again) == raw
        plain = json.loads(raw, object_pairs_hook=_sorted_pairs)
        assert canonical_json(shuffled(plain, order)) == raw
        other_layout = json.dumps(shuffled(plain, order), indent=None, ensure_ascii=True)
        assert canonical_json(parse_schema(schema, other_layout.encode(), "document")) == raw

    check()


def _sorted_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    assert keys == sorted(set(keys))
    return dict(pairs)


def shuffled(value: Any, order: Random) -> Any:
    """Return the same value with the keys of every object in another order."""
    match value:
        case dict():
            keys = [*value]
            order.shuffle(keys)
            return {key: shuffled(value[key], order) for key in keys}
        case list():
            return [shuffled(item, order) for item in value]
        case _:
            return value


@any_schema
def test_other_values_have_other_bytes(at_length: bool, schema: type[Schema]) -> None:
    @examples(at_length, 15)
    @given(one=DOCUMENTS[schema], other=DOCUMENTS[schema])
    def check(one: Schema, other: Schema) -> None:
        assert (canonical_json(one) == canonical_json(other)) == (one == other)

    check()


# Broken and hostile documents ------------------------------------------------------------------


@dataclass(frozen=True)
class Raw:
    """JSON that no value of Python writes."""

    text: str


def nested(levels: int, opening: str = "[", closing: str = "]") -> Raw:
    return Raw(opening * levels + "0" + closing * levels)


HOSTILE: list[Any] = [
    *(None, True, False, 0, 1, -1, 1.0, 0.5, -0.0, 2**31, 2**53 + 1, 2**63, 2**64, 10**30, 1e308),
    *(Raw("1e999"), Raw("-1e999"), Raw("NaN"), Raw("Infinity"), Raw("9" * 5000), Raw("1" * 400)),
    *(Raw("00"), Raw("0x10"), Raw("1_000"), Raw("'text'"), Raw("[1,]"), Raw("/* */ 1"), Raw("")),
    *("", " ", "1", "true", "yes", "null", "0.5", "x" * 300, "x" * 200_000, "\n", "a\nb"),
    *(
        "\0",
        "\x1b[31mred",
        "\x07",
        "\x7f",
        "\x9b31m",
        "\u202egnp.exe",
        "\u2066x",
        "\u2028",
        "\ufeff",
    ),
    *(Raw('"\\ud800"'), Raw('"\\udc00\\ud800"'), Raw('"\\u0000"'), Raw('"\x01"')),
    *("..", "../up", "a/../../up", "/etc/passwd", "C:\\x", "c:x", "a\\b", "\\\\host\\share"),
    *("~/x", "./x", "a//b", "a/", ".build/x", "con", "CON.json", "a/nul.txt", "manifest.json"),
    *("acts\N{FRACTION SLASH}x", "\N{FULLWIDTH SOLIDUS}x", "a\N{ONE DOT LEADER}\N{ONE DOT LEADER}"),
    *("file:///etc/passwd", "https://example.org/x", "%2e%2e/x", "a b", "a\u0301", "é", "a" * 151),
    *([], {}, [[]], [{}], {"": 0}, {"a": {"b": []}}, [0] * 20_000, [None], {"format": 99}, [0, 0]),
    *(nested(33), nested(900), nested(5_000), nested(100_000), nested(5_000, '{"a":', "}")),
]
NUMBERS_AND_WORDS = st.one_of(
    st.sampled_from(HOSTILE),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.lists(st.integers(), max_size=3),
)


def places(value: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return where everything is in a document, the document itself first."""
    found = [above]
    items = value.items() if isinstance(value, dict) else ()
    items = enumerate(value) if isinstance(value, list) else items
    for step, inner in items:
        found += places(inner, (*above, step))
    return found


def serialised(value: Any, doubled: tuple[Any, ...] | None = None) -> str:
    """Write JSON, raw pieces and a key that stands there twice included."""
    match value:
        case Raw(text):
            return text
        case dict():
            pairs = [
                f"{json.dumps(key)}:{serialised(item, below(doubled, key))}"
                for key, item in value.items()
            ]
            if doubled is not None and len(doubled) == 1 and doubled[0] in value:
                pairs.append(f"{json.dumps(doubled[0])}:{serialised(value[doubled[0]])}")
            return "{" + ",".join(pairs) + "}"
        case list():
            return f"[{','.join(serialised(v, below(doubled, n)) for n, v in enumerate(value))}]"
        case _:
            return json.dumps(value)


def below(place: tuple[Any, ...] | None, step: Any) -> tuple[Any, ...] | None:
    return place[1:] if place and place[0] == step and len(place) > 1 else None


@st.composite
def mutations(draw: st.DrawFn, document: st.SearchStrategy[Schema]) -> tuple[str, bytes]:
    """Return what was done to a valid document, and the bytes after it."""
    plain = json.loads(canonical_json(draw(document)))
    doubled = None
    done: list[str] = []
    for _ in range(draw(st.integers(1, 3))):
        found = places(plain)
        place = found[draw(st.integers(0, len(found) - 1))]
        what = draw(
            st.sampled_from(["drop", "rename", "replace", "replace", "add", "copy", "double"])
        )
        done.append(what)
        if not place:
            if what == "replace" and draw(st.integers(0, 9)) == 0:
                plain = draw(NUMBERS_AND_WORDS)
                break
            continue
        holder: Any = plain
        for step in place[:-1]:
            holder = holder[step]
        last = place[-1]
        match what:
            case "drop":
                del holder[last]
            case "rename" if isinstance(holder, dict):
                holder[draw(st.text(max_size=8))] = holder.pop(last)
            case "add" if isinstance(holder, dict):
                holder[draw(st.sampled_from(["extra", "__proto__", "", "\u202e", "format"]))] = 1
            case "copy" if isinstance(holder, list):
                holder.append(holder[last])
            case "double" if isinstance(holder, dict):
                doubled = place
            case _:
                holder[last] = draw(NUMBERS_AND_WORDS)
    raw = serialised(plain, doubled).encode("utf-8", "surrogatepass")
    harm = draw(st.integers(0, 19))
    if harm == 0 and raw:
        raw = raw[: draw(st.integers(0, len(raw) - 1))]
    elif harm == 1 and raw:
        at = draw(st.integers(0, len(raw) - 1))
        raw = raw[:at] + bytes([draw(st.integers(0, 255))]) + raw[at + 1 :]
    elif harm == 2:
        raw = draw(st.sampled_from([b"\xef\xbb\xbf", b"\0", b"{}", b"\x1f\x8b", b"PK"])) + raw
    elif harm == 3:
        raw = raw.decode("utf-8", "replace").encode(draw(st.sampled_from(["utf-16", "utf-32"])))
    return " ".join(done), raw


def outcome(schema: type[Schema], raw: bytes) -> tuple[Schema | None, str]:
    """Parse, within bounds, to a document or to the one line that says why not."""
    started = perf_counter()
    try:
        found, message = parse_schema(schema, raw, "document"), ""
    except FormatError as error:
        found, message = None, str(error)
    assert perf_counter() - started < 5
    return found, message


def require_one_line(message: str) -> None:
    """Check that a message can be shown to a person as it is."""
    assert message.startswith("document")
    assert len(message) < 1000
    assert message.splitlines() == [message]
    assert not re.search("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", message)


def said(document: Any, told: Any) -> bool:
    """Whether all that a document says is what was understood, and nothing was reinterpreted."""
    match document, told:
        case dict(), dict():
            return all(key in told and said(item, told[key]) for key, item in document.items())
        case list(), list():
            return len(document) == len(told) and all(map(said, document, told))
        case bool(), _:
            return document is told
        case ((int() | float()), float()):
            return float(document) == told
        case ((int() | float()), int()):
            return not isinstance(told, bool) and document == told
        case _:
            return type(document) is type(told) and document == told


@any_schema
def test_a_broken_document_is_refused_in_one_line_or_means_what_it_says(
    at_length: bool, schema: type[Schema], record_property: Record
) -> None:
    counted: Counter[str] = Counter()

    @examples(at_length, 100)
    @given(mutation=mutations(DOCUMENTS[schema]))
    def check(mutation: tuple[str, bytes]) -> None:
        _, raw = mutation
        found, message = outcome(schema, raw)
        if found is None:
            require_one_line(message)
            counted["refused"] += 1
            return
        counted["taken"] += 1
        again = canonical_json(found)
        assert parse_schema(schema, again, "document") == found
        assert said(json.loads(raw), json.loads(again))

    check()
    assert counted["refused"] > 50
    record_property("bad inputs refused", counted["refused"])


def least(schema: type[Schema]) -> dict[str, Any]:
    """Return a small valid document as plain JSON."""
    sha = "0" * 64
    stage = Stage(
        name="base",
        title="Base",
        model="folder:model",
        sha256={"model.safetensors": sha},
        architecture="llama",
        n_layers=2,
        d_model=4,
        d_mlp=8,
        vocabulary=16,
        tokenizer_sha256=sha,
    )
    file = ActivationFile(
        path="acts/base/facts/resid_post/L00.safetensors",
        bytes=8,
        sha256=sha,
        site="resid_post",
        layer=0,
        block=0,
        rows=1,
    )
    unit = ActivationUnit(key=sha, block=0, first_row=0, rows=1, parity=0.5)
    extra = Extra(path="tables/t.parquet", bytes=8, sha256=sha, kind="table", unit=sha)
    small: Mapping[type[Schema], Schema] = {
        Manifest: Manifest(
            name="tiny",
            title="Tiny",
            description="",
            licence="MIT",
            card_sha256=sha,
            stages=(stage,),
            datasets=(
                Dataset(
                    name="facts", title="", kind="statements", rows=1, positions=(-1,), sha256=sha
                ),
            ),
            sites={"resid_post": (0, 1)},
            dtype="float32",
            compute_dtype="float32",
            parity=Parity(worst=0.5, tolerance=1.0, rows=1, stage="base", dataset="facts"),
            defaults=Defaults(),
            versions={"ptmech": "0"},
            parts=(
                PartEntry(
                    path="manifests/base/facts.json",
                    bytes=8,
                    sha256=sha,
                    stage="base",
                    dataset="facts",
                    rows=1,
                    data_bytes=8,
                ),
            ),
            extras=(extra,),
        ),
        Part: Part(
            stage="base",
            dataset="facts",
            rows=1,
            d_model=4,
            positions=(-1,),
            dtype="float32",
            units=(unit,),
            files=(file,),
        ),
        Receipt: Receipt(
            unit="acts",
            key=sha,
            activation=unit,
            files=(file, extra),
            facts={"n": 1},
            marks=((1, 2), (3, 4)),
        ),
    }
    return json.loads(canonical_json(small[schema]))


@any_schema
def test_every_place_of_a_document_withstands_every_hostile_value(
    at_length: bool, schema: type[Schema], record_property: Record
) -> None:
    """Every value at every place; in the short run every fifth, and none that is long."""
    refused = 0
    reinterpreted: list[str] = []
    places_there = places(least(schema))[1:]
    for number, (place, value) in enumerate(
        (place, value) for place in places_there for value in HOSTILE
    ):
        if not at_length and (number % 5 or len(serialised(value)) > 10_000):
            continue
        plain = least(schema)
        holder: Any = plain
        for step in place[:-1]:
            holder = holder[step]
        holder[place[-1]] = value
        raw = serialised(plain).encode()
        found, message = outcome(schema, raw)
        if found is None:
            require_one_line(message)
            refused += 1
        elif not said(json.loads(raw), json.loads(canonical_json(found))):
            where = ".".join(map(str, place))
            reinterpreted.append(f"{where} = {str(value)[:30]!r}")
    assert not reinterpreted, "; ".join(reinterpreted)
    record_property("bad inputs refused", refused)


BOMBS = {
    "lists in lists": b"[" * 1_000_000,
    "objects in objects": b'{"a":' * 500_000,
    "empty lists": b"[" + b"[]," * 2_000_000 + b"0]",
    "zeros": b"[" + b"0," * 5_000_000 + b"0]",
    "keys": b"{" + b",".join(b'"%d":0' % n for n in range(300_000)) + b"}",
    "digits": b"9" * 5_000_000,
    "a fraction's digits": b"0." + b"9" * 5_000_000,
    "an exponent": b"1e" + b"9" * 5_000_000,
    "a word": b'"' + b"x" * 20_000_000 + b'"',
    "escapes": b'"' + b"\\u0041" * 3_000_000 + b'"',
    "blanks": b" " * 20_000_000 + b"{}",
    "nothing": b"\0" * 20_000_000,
    "too long": b" " * (64 * 2**20) + b"{}",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_costs_little_more_than_its_bytes(bomb: str, record_property: Record) -> None:
    raw = BOMBS[bomb]
    tracemalloc.start()
    try:
        found, message = outcome(Manifest, raw)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found is None
    require_one_line(message)
    assert peak < 20 * len(raw) + 2**20
    record_property("bad inputs refused", 1)
