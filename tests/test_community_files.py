"""What stands beside the code: citation, changelog, forms; and a format page that cannot drift."""

from __future__ import annotations

import hashlib
import inspect
import re
import tomllib
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import polars as pl
import pytest
import yaml
from pydantic import TypeAdapter, ValidationError

from ptmech import _json, _schemas, alignment, manifest, model_sources
from ptmech.confidence.averages import EFFECT_VALUES as NEURON_EFFECT_VALUES
from ptmech.confidence.averages import EFFECTS as NEURON_EFFECTS
from ptmech.knowledge import traces
from ptmech.refusal.candidates import CANDIDATE_VALUES, CANDIDATES
from ptmech.refusal.tables import COMPLETION_VALUES, COMPLETIONS, SCORE_VALUES, SCORES
from ptmech.truth.steering import EFFECT_VALUES as TRUTH_EFFECT_VALUES
from ptmech.truth.steering import EFFECTS as TRUTH_EFFECTS

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
FORMS = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"))
PAGES = ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "docs/security.md")

Row = dict[str, str]


def read(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


# --- citation, changelog, forms ------------------------------------------------------------------


def test_the_citation_has_what_cff_asks_for():
    cited = yaml.safe_load(read("CITATION.cff"))
    assert cited["cff-version"] == "1.2.0"
    assert cited["type"] == "software"
    assert cited["message"]
    assert cited["title"] == PROJECT["name"]
    assert cited["license"] == PROJECT["license"]
    assert cited["version"] == PROJECT["version"]
    assert cited["authors"] == [{"name": "The ptmech developers"}]


def test_the_citation_names_the_paper_as_published_pages_do():
    bibtex = read("builder/ptmech_builder/publishing/references.bib").partition("@article")[0]
    [paper] = yaml.safe_load(read("CITATION.cff"))["references"]
    authors = [f"{each['family-names']}, {each['given-names']}" for each in paper["authors"]]
    assert f"{{{' and '.join(authors)}}}" in bibtex
    assert f"{{{paper['title']}}}" in bibtex.replace("{LLMs}", "LLMs")
    [identifier] = paper["identifiers"]
    assert identifier["value"] in bibtex
    assert paper["url"].rpartition("/")[2] == identifier["value"].removeprefix("arXiv:")
    assert f"{{{paper['year']}}}" in bibtex


def test_the_changelog_begins_with_this_version():
    versions = re.findall(r"^## (\S+) - (\S+)$", read("CHANGELOG.md"), re.MULTILINE)
    version, date = versions[0]
    assert version == PROJECT["version"]
    assert date == "unreleased" or re.fullmatch(r"\d{4}-\d\d-\d\d", date)


def test_there_are_forms_for_bugs_and_numbers():
    assert [path.name for path in FORMS] == ["bug.yml", "config.yml", "numbers.yml"]
    chooser = yaml.safe_load(read(".github/ISSUE_TEMPLATE/config.yml"))
    assert chooser == {"blank_issues_enabled": True}
    assert read(".github/PULL_REQUEST_TEMPLATE.md").count("- [ ]") > 3


@pytest.mark.parametrize("name", ["bug", "numbers"])
def test_a_form_asks_and_asks_once(name: str):
    form = yaml.safe_load(read(f".github/ISSUE_TEMPLATE/{name}.yml"))
    assert {"name", "description", "body"} <= form.keys()
    asked = [field for field in form["body"] if field["type"] != "markdown"]
    assert {field["type"] for field in asked} <= {"input", "textarea", "dropdown"}
    assert all(field["attributes"]["label"] for field in asked)
    assert all(field["validations"]["required"] for field in asked)
    ids = [field["id"] for field in asked]
    assert len(set(ids)) == len(ids) >= 5
    options = [field["attributes"]["options"] for field in asked if field["type"] == "dropdown"]
    assert all(len(set(each)) == len(each) > 1 for each in options)
    told = [field["attributes"]["value"] for field in form["body"] if field["type"] == "markdown"]
    assert all(told)


@pytest.mark.parametrize("page", PAGES)
def test_vulnerabilities_go_to_private_reports(page: str):
    text = read(page)
    assert not re.search(r"[\w.+-]+@[\w-]+\.[a-z]{2,}", text), "an address nobody may read"
    if "ecurity" in Path(page).name.lower():
        assert "private vulnerability reports" in " ".join(text.split())


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str):
    text = re.sub(r"^```.*?^```", "", read(page), flags=re.MULTILINE | re.DOTALL)
    links = re.findall(r"\]\(([^)#\s]+)", text)
    local = [link for link in links if not link.startswith("https://")]
    assert [link for link in local if not ((ROOT / page).parent / link).exists()] == []


# --- the format page -----------------------------------------------------------------------------


def tables(section: str) -> Iterator[list[Row]]:
    """Yield the Markdown tables of a text, each as its rows by column."""
    lines = [line.strip() for line in section.splitlines()]
    for at, line in enumerate(lines):
        if not re.fullmatch(r"\|[\s:|-]+\|", line):
            continue
        names = cells(lines[at - 1])
        body = lines[at + 1 :]
        end = next((i for i, each in enumerate(body) if not each.startswith("|")), len(body))
        yield [dict(zip(names, cells(each), strict=True)) for each in body[:end]]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def sections(page: str) -> dict[str, str]:
    """Return the text behind each heading of any level, by the heading without its marks."""
    parts = re.split(r"^#+ (.+)$", page, flags=re.MULTILINE)[1:]
    headings = [heading.replace("`", "") for heading in parts[::2]]
    assert len(set(headings)) == len(headings)
    return dict(zip(headings, parts[1::2], strict=True))


FORMAT = read("docs/format.md")
SECTIONS = sections(FORMAT)

SCHEMAS: Mapping[str, Any] = {
    **{
        name: schema
        for name, schema in inspect.getmembers(manifest, inspect.isclass)
        if issubclass(schema, manifest.Schema)
        and schema not in (manifest.Schema, manifest.FileEntry)
    },
    "PackagedModel": model_sources.PackagedModel,
    "ModelPart": model_sources.ModelPart,
    "HubModel": model_sources.HubModel,
    "Attributes of a trace": traces._Description,
    "Pair": traces._Pair,
}
"""What stands in JSON, by its heading. FileEntry is a part of three others."""

TABLES: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    _schemas.STATEMENTS: (_schemas.STATEMENT_COLUMNS, _schemas.STATEMENT_VALUES),
    "tables/tokens/<stage>.parquet": (_schemas.TOKEN_COLUMNS, {}),
    "weights/<stage>/neurons.parquet": (_schemas.NEURON_COLUMNS, _schemas.NEURON_VALUES),
    "scores/<stage>/refusal.parquet": (SCORES, SCORE_VALUES),
    "scores/<stage>/completions.parquet": (COMPLETIONS, COMPLETION_VALUES),
    "scores/<stage>/directions.parquet": (CANDIDATES, CANDIDATE_VALUES),
    "scores/<stage>/truth.parquet": (TRUTH_EFFECTS, TRUTH_EFFECT_VALUES),
    "scores/<stage>/neurons.parquet": (NEURON_EFFECTS, NEURON_EFFECT_VALUES),
}


def test_all_schemas_of_the_manifest_are_on_the_page():
    assert {"Manifest", "Stage", "Dataset", "Part", "ActivationFile", "Defaults"} <= SCHEMAS.keys()
    assert SCHEMAS.keys() <= SECTIONS.keys()


@pytest.mark.parametrize("name", SCHEMAS)
def test_fields_of_documents(name: str):
    [rows] = tables(SECTIONS[name])
    told = {row["field"].strip("`"): row["must be there"] for row in rows}
    fields = SCHEMAS[name].model_fields
    assert told == {field: "yes" if fields[field].is_required() else "no" for field in fields}
    assert len(rows) == len(told)


@pytest.mark.parametrize("name", TABLES)
def test_columns_of_tables(name: str):
    columns, values = TABLES[name]
    [rows] = tables(SECTIONS[name])
    rules = {column: values.get(column, _schemas.GIVEN) for column in columns}
    assert [(row["column"], row["type"]) for row in rows] == [
        (f"`{column}`", f"`{kind if isinstance(kind, pl.DataType) else kind()}`")
        for column, kind in columns.items()
    ]
    for row, rule in zip(rows, rules.values(), strict=True):
        assert row["may be missing"] == ("yes" if rule.missing else "no"), row
        assert ("NaN" in row["values"]) == rule.undefined, row
        among = re.findall(r"`([^`]+)`", row["values"])
        assert among == [str(each) for each in rule.among or ()], row


@pytest.mark.parametrize("path", TABLES)
def test_the_layout_shows_every_table(path: str):
    assert re.search(rf"^{re.escape(path)} ", FORMAT, re.MULTILINE)


def test_bounds_of_whole_numbers():
    bounds = next(rows for rows in tables(SECTIONS["Types"]) if "least" in rows[0])
    names = [row["type"] for row in bounds]
    assert names == ["Bytes", "Rows", "Block", "Layer", "Width", "Position"]
    for row in bounds:
        number = TypeAdapter(getattr(manifest, row["type"]))
        least, most = int(row["least"]), int(row["most"])
        for inside in (least, most):
            assert number.validate_python(inside) == inside
        for outside in (least - 1, most + 1):
            with pytest.raises(ValidationError):
                number.validate_python(outside)


def test_words_of_the_vocabulary():
    types = next(rows for rows in tables(SECTIONS["Types"]) if "what it is" in rows[0])
    told = {row["type"]: re.findall(r"`([^`]+)`", row["what it is"]) for row in types}
    assert told["Site"] == list(manifest.SITES)
    assert told["Dtype"] == list(get_args(manifest.StoredDtype))
    assert told["Name"][0] == manifest._NAME.pattern


def test_bounds_of_json():
    [rows] = tables(SECTIONS["What a reader must check"])
    assert [int(row["most"]) for row in rows] == [
        _json.MAX_JSON_BYTES,
        _json.MAX_VALUES - 1,
        _json.MAX_DEPTH,
        _json.MAX_KEYS,
    ]


def test_vectors_of_row_ids():
    [rows] = tables(SECTIONS["Rows"])
    assert len(rows) == 3
    for row in rows:
        fields = [row[name].strip("`") for name in ("dataset", "source_id", "text")]
        joined = "\0".join([*fields[:2], unicodedata.normalize("NFC", fields[2])]).encode()
        digest = hashlib.sha256(joined).digest()
        assert int(row["row_uid"]) == int.from_bytes(digest[:8], "big")
        assert int(row["row_uid"]) == alignment.row_uid(*fields)
        decomposed = unicodedata.normalize("NFD", fields[2])
        assert int(row["row_uid"]) == alignment.row_uid(*fields[:2], decomposed)
    first = hashlib.sha256(b"cities\0paris-true\0The city of Paris is in France.").hexdigest()
    assert first in SECTIONS["Rows"]


def test_the_example_of_canonical_json():
    [example] = re.findall(r"```text\n(.*?)```", SECTIONS["JSON"], re.DOTALL)
    assert hashlib.sha256(example.encode()).hexdigest() in SECTIONS["JSON"]
    value = {"b": [1, 2.5], "a": {"é": None, "leer": []}, "c": True}
    assert manifest.canonical_json(value) == example.encode()


def test_the_reader_uses_no_more_than_it_says():
    reader = next(iter(re.findall(r"```python\n(.*?)```", FORMAT, re.DOTALL)))
    imported = re.findall(r"^(?:import|from) (\w+)", reader, re.MULTILINE)
    assert imported == ["hashlib", "json", "pathlib", "numpy"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("| `card_sha256` | Sha256 | yes |", "| `card_digest` | Sha256 | yes |"),
        ("| `narrowed` | Line | no |", "| `narrowed` | Line | yes |"),
    ],
)
def test_a_page_that_drifts_is_seen(old: str, new: str):
    assert old in FORMAT
    [rows] = tables(sections(FORMAT.replace(old, new))["Manifest"])
    told = {row["field"].strip("`"): row["must be there"] for row in rows}
    fields = manifest.Manifest.model_fields
    assert told != {field: "yes" if fields[field].is_required() else "no" for field in fields}
