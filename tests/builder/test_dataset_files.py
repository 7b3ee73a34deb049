"""Data files: what a card may call them, copies at hand, statements of a user's own."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.tiny import Family, Recipe, build, plan_of, shortest, tiny_family, write_card

from ptmech.errors import CardError, DataError, IntegrityError
from ptmech.loading import load
from ptmech_builder.build import run
from ptmech_builder.cards import CardFile, read_card, remote_file
from ptmech_builder.dataset_files import data_file, dataset_file
from ptmech_builder.plan import make_plan
from ptmech_builder.progress import Progress
from ptmech_builder.selection import Selection
from ptmech_builder.user_statements import with_statements

COMMIT = "0123456789abcdef" * 2 + "01234567"
DATA = b"statement,label\nSnow is white.,1\nCoal is white.,0\n"
DIGEST = hashlib.sha256(DATA).hexdigest()


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return tiny_family(tmp_path_factory)


@pytest.fixture
def recipe(family: Family, tmp_path: Path) -> Recipe:
    return shortest(family.recipe(tmp_path / "card"))


def with_file(tmp_path: Path, recipe: Recipe, file: str, **entries: Any) -> Path:
    """Write a card whose last dataset, ``snow``, is in that file."""
    columns = {"text": "statement"}
    entry = {"name": "snow", "title": "Snow", "kind": "statements", "file": file}
    recipe["datasets"].append({**entry, **entries, "columns": columns})
    return write_card(tmp_path / "card", recipe)


# References ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reference", "revision", "path"),
    [
        ("hub:owner/name@main/a.parquet", "main", "a.parquet"),
        ("hub:owner/name@v1.0/data/a b.csv", "v1.0", "data/a b.csv"),
        ("hub:o.w-n_er/n.a-m_e@refs/pr/12/a.csv", "refs/pr/12", "a.csv"),
        ("hub:o/n@refs/convert/parquet/all/0.csv", "refs/convert/parquet", "all/0.csv"),
        (f"github:owner/name@{COMMIT}/A+B/c@d.csv", COMMIT, "A+B/c@d.csv"),
    ],
)  # fmt: skip
def test_a_reference_says_which_file_of_which_revision(
    reference: str, revision: str, path: str
) -> None:
    found = remote_file(reference)
    assert found is not None
    assert (found.revision, found.path) == (revision, path)
    assert found.name == path.rsplit("/", 1)[-1]
    assert str(found) == reference


names = st.from_regex(r"[A-Za-z0-9._-]+", fullmatch=True)


@given(owner=names, name=names, path=st.from_regex(r"[\w+]+(/[\w+]+){0,3}\.csv", fullmatch=True))
def test_references_read_as_they_are_written(owner: str, name: str, path: str) -> None:
    for host, revision in (("hub", "main"), ("github", COMMIT)):
        reference = f"{host}:{owner}/{name}@{revision}/{path}"
        found = remote_file(reference)
        assert str(found) == reference
        assert found is not None
        assert (found.repository, found.path) == (f"{owner}/{name}", path)
        assert found.pinned == (host == "github")


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("github:owner/name@main/a.csv", "need a full commit of 40 digits, and 'main' may move"),
        (f"github:owner/name@{COMMIT[:12]}/a.csv", "need a full commit"),
        ("hub:owner/name/a.csv", "'hub:owner/name@revision/path'"),
        ("hub:owner/name@main", "'hub:owner/name@revision/path'"),
        ("hub:name@main/a.csv", "'hub:owner/name@revision/path'"),
        (f"github:name@{COMMIT}/a.csv", "'github:owner/name@commit/path'"),
        ("hub:owner/name@main/../a.csv", "plain path"),
        ("hub:owner/name@main//a.csv", "plain path"),
        ("https://example.com/a.csv", "is no data file"),
        ("gitlab:owner/name@main/a.csv", "is no data file"),
    ],
)
def test_a_card_names_files_in_no_other_way(
    recipe: Recipe, tmp_path: Path, reference: str, message: str
) -> None:
    card = with_file(tmp_path, recipe, reference)
    line = card.read_text().splitlines().index(f'file = "{reference}"') + 1
    with pytest.raises(CardError) as caught:
        read_card(card)
    assert str(caught.value).startswith(f"{card} line {line}: datasets.1.file: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


# Copies at hand --------------------------------------------------------------------------------

REMOTE = f"github:owner/name@{COMMIT}/statements/facts.csv"


def data_dir(tmp_path: Path, files: dict[str, bytes]) -> Path:
    folder = tmp_path / "copies"
    folder.mkdir()
    for name, raw in files.items():
        (folder / name).write_bytes(raw)
    return folder


@pytest.mark.parametrize("copies", [
    {"facts.csv": DATA},
    {"snow.csv": DATA},
    {"snow.csv": DATA, "facts.csv": b"another"},
    {"snow.csv": b"another", "facts.csv": DATA},
], ids=["own name", "name of the dataset", "both, the first", "both, the second"])  # fmt: skip
def test_a_copy_at_hand_needs_no_network(
    recipe: Recipe, tmp_path: Path, copies: dict[str, bytes]
) -> None:
    path = with_file(tmp_path, recipe, REMOTE, sha256=DIGEST)
    card = read_card(path, data_dir=data_dir(tmp_path, copies))
    file = dataset_file(card, card.card.dataset("snow"))
    assert file.raw == DATA
    assert file.origin.sha256 == DIGEST
    assert file.origin.source == REMOTE


def test_a_wrong_copy_is_refused_with_both_digests(recipe: Recipe, tmp_path: Path) -> None:
    path = with_file(tmp_path, recipe, REMOTE, sha256=DIGEST)
    card = read_card(path, data_dir=data_dir(tmp_path, {"facts.csv": b"another"}))
    with pytest.raises(IntegrityError) as caught:
        dataset_file(card, card.card.dataset("snow"))
    assert hashlib.sha256(b"another").hexdigest() in str(caught.value)
    assert DIGEST in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_copy_nobody_vouches_for_goes_by_its_own_name(recipe: Recipe, tmp_path: Path) -> None:
    path = with_file(tmp_path, recipe, REMOTE)
    card = read_card(path, data_dir=data_dir(tmp_path, {"facts.csv": DATA}))
    file = dataset_file(card, card.card.dataset("snow"))
    assert (file.origin.source, file.origin.sha256) == ("facts.csv", DIGEST)


def test_copies_do_not_stand_for_the_card_s_own_files(recipe: Recipe, tmp_path: Path) -> None:
    path = write_card(tmp_path / "card", recipe)
    card = read_card(path, data_dir=data_dir(tmp_path, {"capitals.csv": b"another"}))
    file = dataset_file(card, card.card.datasets[0])
    assert file.raw == (tmp_path / "card" / "capitals.csv").read_bytes()


def test_a_folder_of_copies_must_be_there(recipe: Recipe, tmp_path: Path) -> None:
    path = write_card(tmp_path / "card", recipe)
    with pytest.raises(CardError, match=r"there is no folder '.*nowhere'"):
        read_card(path, data_dir=tmp_path / "nowhere")


# What is recorded ------------------------------------------------------------------------------


def test_the_manifest_says_where_data_came_from(recipe: Recipe, tmp_path: Path) -> None:
    absolute = tmp_path / "elsewhere" / "snow.csv"
    absolute.parent.mkdir()
    absolute.write_bytes(DATA)
    recipe["datasets"].append(
        {
            "name": "cities",
            "title": "Cities",
            "kind": "statements",
            "file": "builtin:statements/cities.csv",
        }
    )
    with_file(tmp_path, recipe, REMOTE, sha256=DIGEST)
    recipe["datasets"][-1]["name"] = "public"
    path = with_file(tmp_path, recipe, str(absolute))
    card = read_card(path, data_dir=data_dir(tmp_path, {"facts.csv": DATA}))
    plan = make_plan(card, Selection(device="cpu", limit=2))
    root = tmp_path / "artifact"
    run(plan, root, Progress(quiet=True))
    datasets = {entry["name"]: entry for entry in read_manifest(root)["datasets"]}
    assert {name: entry["source"] for name, entry in datasets.items()} == {
        "capitals": "capitals.csv",
        "cities": "builtin:statements/cities.csv",
        "public": REMOTE,
        "snow": "snow.csv",
    }
    assert datasets["snow"]["sha256"] == DIGEST
    assert str(tmp_path) not in (root / "manifest.json").read_text()


def read_manifest(root: Path) -> dict[str, Any]:
    return json.loads((root / "manifest.json").read_text())


def test_units_do_not_hang_on_where_data_came_from(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "card" / "snow.csv").write_bytes(DATA)
    local = plan_of(with_file(tmp_path, recipe, "snow.csv"))
    recipe["datasets"][-1] |= {"file": REMOTE, "sha256": DIGEST}
    path = write_card(tmp_path / "card", recipe)
    card = read_card(path, data_dir=data_dir(tmp_path, {"facts.csv": DATA}))
    remote = make_plan(card, Selection(device="cpu"))
    assert [unit.key for unit in local.units] == [unit.key for unit in remote.units]


# Statements of a user's own --------------------------------------------------------------------


def card_in(tmp_path: Path, recipe: Recipe) -> CardFile:
    return read_card(write_card(tmp_path / "card", recipe))


def own(tmp_path: Path, raw: bytes, name: str = "my.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(raw)
    return path


@pytest.mark.parametrize(
    "raw",
    [
        DATA,
        b"text,label\nSnow is white.,true\nCoal is white.,false\n",
        b"label,text,topic\r\nTRUE,Snow is white.,snow\r\nFALSE,Coal is white.,coal\r\n",
        b"\xef\xbb\xbfstatement,label\nSnow is white.,True\nCoal is white.,0\n",
    ],
)
def test_own_statements_are_one_more_dataset(recipe: Recipe, tmp_path: Path, raw: bytes) -> None:
    path = write_card(tmp_path / "card", recipe)
    card = with_statements(read_card(path), [own(tmp_path, raw)])
    root = tmp_path / "artifact"
    run(make_plan(card, Selection(device="cpu")), root, Progress(quiet=True))
    artifact = load(root)
    rows = artifact.statements("my")
    assert rows["text"].to_list() == ["Snow is white.", "Coal is white."]
    assert rows["label"].to_list() == [1, 0]
    assert rows["source_id"].to_list() == ["1", "2"]
    [entry] = [entry for entry in read_manifest(root)["datasets"] if entry["name"] == "my"]
    assert entry["source"] == "my.csv"
    assert entry["sha256"] == hashlib.sha256(raw).hexdigest()
    assert artifact.activations("my", "base", layer=1).shape[0] == 2


def test_own_statements_leave_the_other_units_as_they_were(recipe: Recipe, tmp_path: Path) -> None:
    path = write_card(tmp_path / "card", recipe)
    root = tmp_path / "artifact"
    before = build(path, root)
    extended = with_statements(read_card(path), [own(tmp_path, DATA)])
    plan = make_plan(extended, Selection(device="cpu"))
    again = run(plan, root, Progress(quiet=True))
    assert (before.done, again.done, again.reused) == (3, 3, 1)  # tables grow, one part is new


@pytest.mark.parametrize(
    ("stem", "name"),
    [("My Claims (v2)", "my_claims_v2"), ("facts-2024", "facts_2024"), ("x" * 80, "x" * 64)],
)
def test_a_file_s_name_makes_the_dataset_s(
    recipe: Recipe, tmp_path: Path, stem: str, name: str
) -> None:
    card = with_statements(card_in(tmp_path, recipe), [own(tmp_path, DATA, f"{stem}.csv")])
    assert card.card.datasets[-1].name == name
    assert card.card.datasets[-1].title == stem


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"Snow is white.,1\nCoal is white.,0\n", "lacks the column 'statement' or 'text'; its "
         "header reads 'Snow is white.,1'"),
        (b"statement,truth\nSnow is white.,1\n", "lacks the column 'label'"),
        (b"statement,label\nSnow is white.,1\nCoal is black.,1\n", "needs true and false "
         "statements; all 2 are true"),
        (b"statement,label\nSnow is white.,1\nCoal is white.,\n", "row 2 has no label"),
        (b"statement,label\nSnow is white.,1\n,0\n", "row 2 has no text"),
        (b"statement,label\nSnow is white.,1\nCoal is white.,maybe\n", "row 2 has the label "
         "'maybe'; labels are 1 or true, 0 or false"),
        (b"statement,label\nSnow, dry, is white.,1\n", "put quotation marks around text"),
        ("statement,label\nCafé,1\n".encode("latin-1"), r"not UTF-8 text \(line 2\)"),
        (b"", "is empty"),
        (b"statement,label\n", "has no rows"),
    ],
    ids=[
        "no header", "no label column", "one class", "no label", "no text", "label maybe",
        "commas", "not UTF-8", "empty", "header only",
    ],
)  # fmt: skip
def test_what_is_wrong_with_own_statements_is_said_in_one_line(
    recipe: Recipe, tmp_path: Path, raw: bytes, message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        with_statements(card_in(tmp_path, recipe), [own(tmp_path, raw)])
    assert "\n" not in str(caught.value)


def test_names_that_cannot_be_are_refused(recipe: Recipe, tmp_path: Path) -> None:
    card = card_in(tmp_path, recipe)
    with pytest.raises(CardError, match="two datasets 'capitals'"):
        with_statements(card, [own(tmp_path, DATA, "capitals.csv")])
    with pytest.raises(CardError, match="two datasets 'my'"):
        with_statements(card, [own(tmp_path, DATA, "my.csv"), own(tmp_path, DATA, "My.csv")])
    with pytest.raises(DataError, match="rename the file"):
        with_statements(card, [own(tmp_path, DATA, "2024.csv")])
    with pytest.raises(DataError, match="there is no file"):
        with_statements(card, [tmp_path / "nothing.csv"])


def test_a_plain_text_may_be_any_reference(recipe: Recipe, tmp_path: Path) -> None:
    card = card_in(tmp_path, recipe)
    assert data_file(card, "builtin:text/plain_text.csv").raw.startswith(b"source_id,text")
    with pytest.raises(CardError, match="does not exist"):
        data_file(card, "missing.csv")
