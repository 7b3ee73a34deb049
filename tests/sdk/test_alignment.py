"""Rows of two stages are joined by what they are; whatever is amiss is told with counts."""

from __future__ import annotations

import hashlib
import json
import shutil
import unicodedata
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptmech.alignment import (
    Difference,
    join_rows,
    require_equal_copies,
    require_same_rows,
    row_uid,
    row_uids,
)
from ptmech.artifact import Artifact
from ptmech.errors import AlignmentError, AlignmentWarning, DataError, UnknownNameError
from ptmech.loading import load
from ptmech.manifest import MANIFEST
from ptmech.storage import read_tensors
from ptmech_builder.writer import digest, tensor_bytes

UIDS = st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 12), max_size=30)

# Arrays


@given(UIDS, UIDS)
def test_intersecting_is_joining_two_dictionaries(left: list[int], right: list[int]) -> None:
    first_left = {uid: at for at, uid in reversed(list(enumerate(left)))}
    first_right = {uid: at for at, uid in reversed(list(enumerate(right)))}
    expected = [uid for uid in dict.fromkeys(left) if uid in first_right]
    found = join_rows(left, right, on_mismatch="intersect")
    assert found.row_uids.dtype == np.uint64
    assert found.row_uids.tolist() == expected
    assert found.left.tolist() == [first_left[uid] for uid in expected]
    assert found.right.tolist() == [first_right[uid] for uid in expected]
    assert found.total == len({*left, *right})
    assert found.left_out == len({*left} ^ {*right})
    assert found.missing_left == len({*right} - {*left})
    assert found.missing_right == len({*left} - {*right})
    assert found.doubled_left == len(left) - len({*left})
    assert found.doubled_right == len(right) - len({*right})
    in_right = [uid for uid in dict.fromkeys(right) if uid in first_left]
    assert found.moved == sum(a != b for a, b in zip(expected, in_right, strict=True))


@given(UIDS, UIDS, UIDS)
def test_rows_are_kept_among_others_in_their_order(
    left: list[int], right: list[int], among: list[int]
) -> None:
    expected = [uid for uid in dict.fromkeys(among) if uid in left and uid in right]
    found = join_rows(left, right, on_mismatch="intersect", among=among)
    assert found.row_uids.tolist() == expected
    assert found.total == len({*left, *right, *among})


def same(left: Sequence[int], right: Sequence[int]) -> bool:
    return list(left) == list(right) and len({*left}) == len(left)


@given(UIDS, UIDS | st.none())
def test_nothing_but_the_same_rows_each_once_passes(
    left: list[int], other: list[int] | None
) -> None:
    right = left if other is None else other
    arrays = np.array(left, np.uint64), np.array(right, np.uint64)
    if same(left, right):
        assert join_rows(*arrays).row_uids.tolist() == left
        assert join_rows(*arrays).first is None
        require_same_rows(*arrays, "rows")
        return
    with pytest.raises(AlignmentError) as caught:
        join_rows(*arrays)
    assert "\n" not in str(caught.value)
    with pytest.raises(AlignmentError, match="rows differ"):
        require_same_rows(*arrays, "rows")


@given(st.data())
def test_every_permutation_deletion_and_doubling_is_refused_at_its_first_row(
    data: st.DataObject,
) -> None:
    rows = data.draw(st.lists(st.integers(0, 2**64 - 1), min_size=2, max_size=20, unique=True))
    changed = list(rows)
    for change in data.draw(
        st.lists(st.sampled_from(["move", "delete", "double"]), min_size=1, max_size=3)
    ):
        at = data.draw(st.integers(0, max(len(changed) - 1, 0)))
        if change == "delete" and changed:
            del changed[at]
        elif change == "double" and changed:
            changed.insert(data.draw(st.integers(0, len(changed))), changed[at])
        else:
            changed = data.draw(st.permutations(changed))
    found = join_rows(rows, changed, on_mismatch="intersect")
    if changed == rows:
        assert found.first is None
        return
    longest = max(len(rows), len(changed))
    padded = [[*side, *[None] * (longest - len(side))] for side in (rows, changed)]
    at = next(row for row in range(longest) if padded[0][row] != padded[1][row])
    assert found.first == Difference(at, padded[0][at], padded[1][at])
    with pytest.raises(AlignmentError, match=f"first at row {at}: "):
        join_rows(rows, changed)


def test_the_message_has_all_counts() -> None:
    with pytest.raises(AlignmentError) as caught:
        join_rows([1, 2, 3, 4, 4], [1, 3, 2, 9], names=("base", "tuned"), what="cities")
    assert str(caught.value) == (
        "cities: 3 of 5 rows in base and tuned (5 against 4; 1 missing in base, 1 missing in "
        "tuned, 1 doubled in base, 0 doubled in tuned, 2 in another order), first at row 1: "
        "row_uid 2 in base, row_uid 3 in tuned; build both again, or take the rows both have: "
        "on_mismatch='intersect'"
    )


def test_rows_doubled_on_both_sides_are_no_rows_to_join() -> None:
    with pytest.raises(AlignmentError, match=r"1 doubled in left, 1 doubled in right.* at row 2"):
        join_rows([5, 6, 5], [5, 6, 5])


@pytest.mark.parametrize(
    "uids", [[1.5], [-1], [2**64], np.array([1.0]), np.array([[1]], np.uint64), [True], ["1"]]
)
def test_what_is_no_list_of_ids_is_refused(uids: list[int]) -> None:
    with pytest.raises(DataError, match="row ids are"):
        join_rows(uids, [1], on_mismatch="intersect")


def test_on_mismatch_is_one_of_two_words() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'intersect'"):
        join_rows([1], [1], on_mismatch="intersection")  # type: ignore[arg-type]


def test_copies_have_to_be_the_same_bit_for_bit() -> None:
    uids = np.array([7, 8, 7], np.uint64)
    values = np.array([[0.0, 1.0], [2.0, 3.0], [0.0, 1.0]])
    require_equal_copies(uids, values, "file")
    values[2, 0] = -0.0
    with pytest.raises(AlignmentError, match="file: rows 0 and 2 have one id, 7"):
        require_equal_copies(uids, values, "file")


# What a row is


def test_composed_and_decomposed_letters_are_one_row() -> None:
    text = "São Paulo is in Brazil."
    composed, apart = (unicodedata.normalize(form, text) for form in ("NFC", "NFD"))
    assert composed != apart
    assert row_uid("cities", "a", composed) == row_uid("cities", "a", apart)


@pytest.mark.parametrize(
    "text",
    [
        "Paris is in Frаnce.",
        "Ｐaris is in France.",
        "Paris is in France",
        "Paris is in France. ",
        "Paris is in France.\u200b",
    ],
)
def test_letters_that_only_look_alike_are_another_row(text: str) -> None:
    assert row_uid("cities", "a", text) != row_uid("cities", "a", "Paris is in France.")


# Pairs of an artifact

DATASET, PLACE = "cities", "resid_post"
Tensors = dict[str, np.ndarray]


@pytest.fixture
def root(synthetic_path: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(synthetic_path, tmp_path / "artifact"))


def tamper(root: Path, stage: str, change: Callable[[Tensors], Tensors]) -> None:
    """Change the rows of every file of a part, and sign it all the way up."""
    place = f"manifests/{stage}/{DATASET}.json"
    part = json.loads((root / place).read_bytes())
    rows = 0
    for file in part["files"]:
        held = change({n: np.array(a) for n, a in read_tensors(root / file["path"]).items()})
        rows = len(held["row_uid"])
        data = tensor_bytes(held, {})
        (root / file["path"]).write_bytes(data)
        file |= {"bytes": len(data), "sha256": digest(data), "rows": rows}
    part["rows"] = part["units"][0]["rows"] = rows
    raw = json.dumps(part).encode()
    (root / place).write_bytes(raw)
    manifest = json.loads((root / MANIFEST).read_bytes())
    for entry in manifest["parts"]:
        if entry["path"] == place:
            size = sum(file["bytes"] for file in part["files"])
            entry |= {"bytes": len(raw), "sha256": digest(raw), "data_bytes": size, "rows": rows}
    (root / MANIFEST).write_text(json.dumps(manifest))


def rows_of(*order: int | slice) -> Callable[[Tensors], Tensors]:
    def change(held: Tensors) -> Tensors:
        chosen = np.r_[order]
        return {name: array[chosen] for name, array in held.items()}

    return change


def edited(held: Tensors) -> Tensors:
    """Give row 5 the id that it gets with another text."""
    uid = row_uid(DATASET, f"{DATASET}-5", "cities S2 is in P3!")
    held["row_uid"][5] = uid
    return held


MISMATCHES = {
    "reordered": (rows_of(1, 0, slice(2, 80)), "2 in another order), first at row 0"),
    "missing": (rows_of(slice(0, 4), slice(6, 80)), "2 missing in instruct, 0 doubled"),
    "doubled": (rows_of(slice(0, 80), 3), "1 doubled in instruct, 0 in another order"),
    "edited": (edited, "1 missing in base, 1 missing in instruct"),
}


@pytest.mark.parametrize("kind", MISMATCHES)
def test_rows_that_differ_are_refused_with_counts_and_the_first(root: Path, kind: str) -> None:
    change, words = MISMATCHES[kind]
    tamper(root, "instruct", change)
    pair = load(root).pair("base", "instruct")
    for read in (lambda: pair.activations(DATASET, layer=1), lambda: pair.alignment(DATASET)):
        with pytest.raises(AlignmentError) as caught:
            read()
        message = str(caught.value)
        assert words in message
        assert "\n" not in message
        assert "first at row" in message
    assert "('cities-" in message
    # Other datasets of the same stages are untouched.
    assert pair.activations("facts", layer=1)[0].shape == (80, 16)


def test_the_first_difference_is_named_as_the_table_knows_it(root: Path) -> None:
    tamper(root, "instruct", edited)
    artifact = load(root)
    with pytest.raises(AlignmentError) as caught:
        artifact.pair("base", "instruct").activations(DATASET, layer=0)
    row = artifact.statements(DATASET).row(5, named=True)
    known = f"row_uid {row['row_uid']} ('cities-5', {row['text']!r}) in base"
    unknown = f"row_uid {row_uid(DATASET, 'cities-5', 'cities S2 is in P3!')} in instruct"
    assert f"first at row 5: {known}, {unknown}" in str(caught.value)


def joined_by_hand(artifact: Artifact, layer: int) -> tuple[list[int], np.ndarray, np.ndarray]:
    """Join both files with plain dictionaries, in the order of the table of statements."""
    by_uid = []
    for stage in ("base", "instruct"):
        path = f"acts/{stage}/{DATASET}/{PLACE}/L{layer:02d}.safetensors"
        held = read_tensors(Path(artifact.location) / path)
        rows = zip(held["row_uid"].tolist(), held["activations"][:, 0], strict=True)
        by_uid.append(dict(rows))
    earlier, later = by_uid
    uids = [u for u in artifact.statements(DATASET)["row_uid"] if u in earlier and u in later]
    return uids, np.array([earlier[u] for u in uids]), np.array([later[u] for u in uids])


@pytest.mark.parametrize(
    ("kind", "kept", "left_out", "total"),
    [
        ("reordered", 80, 0, 80),
        ("missing", 78, 2, 80),
        ("doubled", 80, 0, 80),
        ("edited", 79, 2, 81),
    ],
)
def test_intersecting_keeps_rows_and_labels_together(
    root: Path, kind: str, kept: int, left_out: int, total: int
) -> None:
    tamper(root, "instruct", MISMATCHES[kind][0])
    artifact = load(root)
    pair = artifact.pair("base", "instruct", on_mismatch="intersect")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        earlier, later = pair.activations(DATASET, layer=2)
        pair.activations(DATASET, layer=3)
    said = [str(warning.message) for warning in caught]
    assert all(warning.category is AlignmentWarning for warning in caught)
    assert len(said) == bool(left_out)
    if said:
        assert f"{left_out} of {total} rows are left out" in said[0]
        assert caught[0].filename == __file__
    uids, by_hand_earlier, by_hand_later = joined_by_hand(artifact, 2)
    assert len(uids) == kept
    np.testing.assert_array_equal(earlier, by_hand_earlier)
    np.testing.assert_array_equal(later, by_hand_later)
    rows = pair.statements(DATASET)
    assert rows["row_uid"].to_list() == uids
    assert rows.columns == artifact.statements().columns
    labels = pair.labels(DATASET)
    assert labels.dtype == bool
    assert labels.tolist() == [label == 1 for label in rows["label"]]
    alignment = pair.alignment(DATASET)
    assert alignment.row_uids.tolist() == uids
    assert (alignment.total, alignment.left_out) == (total, left_out)
    assert alignment.first is not None
    assert f"{kept} of {total} rows in base and instruct" in str(alignment)


def test_labels_may_be_asked_for_first(root: Path) -> None:
    tamper(root, "base", rows_of(slice(10, 80)))
    pair = load(root).pair("base", "instruct", on_mismatch="intersect")
    with pytest.warns(AlignmentWarning, match="cities: 10 of 80 rows are left out"):
        labels = pair.labels(DATASET)
    earlier, later = pair.activations(DATASET, layer=1)
    assert len(labels) == len(earlier) == len(later) == 70


def test_without_a_mismatch_both_are_the_same_and_nothing_is_said(synthetic: Artifact) -> None:
    strict = synthetic.pair("base", "instruct")
    lenient = synthetic.pair("base", "instruct", on_mismatch="intersect")
    for one, other in zip(
        strict.activations(DATASET, layer=1), lenient.activations(DATASET, layer=1), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    assert strict.statements(DATASET).equals(lenient.statements(DATASET))
    assert strict.labels(DATASET).tolist() == lenient.labels(DATASET).tolist()
    for pair in (strict, lenient):
        assert pair.alignment(DATASET).first is None
        assert pair.alignment(DATASET).left_out == 0
        with pytest.raises(DataError, match="'harmful' has no labels"):
            pair.labels("harmful")


def test_a_doubled_row_of_two_contents_is_refused_even_then(root: Path) -> None:
    def change(held: Tensors) -> Tensors:
        held = rows_of(slice(0, 80), 3)(held)
        held["activations"][80] += 1
        return held

    tamper(root, "instruct", change)
    pair = load(root).pair("base", "instruct", on_mismatch="intersect")
    with pytest.raises(AlignmentError, match="rows 3 and 80 have one id"):
        pair.activations(DATASET, layer=1)


def test_rows_that_both_stages_hold_and_no_table_are_left_out(root: Path) -> None:
    for stage in ("base", "instruct"):
        tamper(root, stage, edited)
    artifact = load(root)
    with pytest.raises(AlignmentError, match="at both stages: rows differ"):
        artifact.pair("base", "instruct").activations(DATASET, layer=1)
    pair = artifact.pair("base", "instruct", on_mismatch="intersect")
    with pytest.warns(AlignmentWarning, match="2 of 81 rows are left out"):
        earlier, _ = pair.activations(DATASET, layer=1)
    assert len(earlier) == len(pair.labels(DATASET)) == 79


def test_both_stages_in_one_other_order_are_not_the_table_s(root: Path) -> None:
    for stage in ("base", "instruct"):
        tamper(root, stage, rows_of(1, 0, slice(2, 80)))
    artifact = load(root)
    with pytest.raises(AlignmentError, match="2 in another order"):
        artifact.pair("base", "instruct").activations(DATASET, layer=1)
    pair = artifact.pair("base", "instruct", on_mismatch="intersect")
    earlier, later = pair.activations(DATASET, layer=1)
    uids, by_hand_earlier, by_hand_later = joined_by_hand(artifact, 1)
    assert pair.statements(DATASET)["row_uid"].to_list() == uids
    np.testing.assert_array_equal(earlier, by_hand_earlier)
    np.testing.assert_array_equal(later, by_hand_later)


def test_a_file_that_lacks_kept_rows_is_refused(root: Path) -> None:
    """One layer without a row: X of that layer would not fit the labels."""
    tamper(root, "instruct", rows_of(slice(0, 80)))
    place = f"acts/instruct/{DATASET}/{PLACE}/L02.safetensors"
    held = {name: np.array(array) for name, array in read_tensors(root / place).items()}
    held["row_uid"][7] = 1

    def one_file(path: str) -> Callable[[Tensors], Tensors]:
        whole = read_tensors(root / path)["activations"].tobytes()
        return lambda each: held if each["activations"].tobytes() == whole else each

    tamper(root, "instruct", one_file(place))
    pair = load(root).pair("base", "instruct", on_mismatch="intersect")
    assert len(pair.activations(DATASET, layer=1)[0]) == 80
    with pytest.raises(AlignmentError, match="layer 2: lacks 1 of 80 rows"):
        pair.activations(DATASET, layer=2)


def test_a_pair_takes_one_of_two_words(synthetic: Artifact) -> None:
    with pytest.raises(UnknownNameError, match="Available: raise, intersect"):
        synthetic.pair("base", "instruct", on_mismatch="drop")  # type: ignore[arg-type]


def test_nothing_in_common_is_an_error(root: Path) -> None:
    def strangers(held: Tensors) -> Tensors:
        held["row_uid"] += np.uint64(1)
        return held

    tamper(root, "instruct", strangers)
    pair = load(root).pair("base", "instruct", on_mismatch="intersect")
    for read in (partial(pair.activations, layer=1), pair.labels, pair.alignment):
        with pytest.raises(AlignmentError, match=r"no row in common .*160 that not both stages"):
            read(DATASET)


def test_a_row_that_only_the_table_lacks_is_counted_and_named(root: Path) -> None:
    def last_is_another(held: Tensors) -> Tensors:
        held["row_uid"][-1] = 7
        return held

    for stage in ("base", "instruct"):
        tamper(root, stage, last_is_another)
    pair = load(root).pair("base", "instruct", on_mismatch="intersect")
    with pytest.warns(AlignmentWarning) as caught:
        earlier, _ = pair.activations(DATASET, layer=1)
    assert earlier.shape == (79, 16)
    said = str(caught[0].message)
    assert (
        "2 of 81 rows are left out (1 not in the table of statements, 1 of the table that" in said
    )
    assert "the first row_uid 7)" in said
    assert "not both stages" not in said
    found = pair.alignment(DATASET)
    assert (found.unlisted.tolist(), found.absent, found.total) == ([7], 1, 81)


def test_the_way_out_can_be_followed(root: Path) -> None:
    tamper(root, "instruct", rows_of(slice(0, 79)))
    with pytest.raises(AlignmentError) as caught:
        load(root).pair("base", "instruct").alignment(DATASET)
    way_out = str(caught.value).rpartition(": ")[2]
    assert way_out == "artifact.pair('base', 'instruct', on_mismatch='intersect')"
    with pytest.warns(AlignmentWarning, match="1 that not both stages have"):
        assert eval(way_out, {"artifact": load(root)}).alignment(DATASET).row_uids.size == 79


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.text("ab\0é", max_size=3), st.text("x\0", max_size=2),
                          st.text("e\u0301é한\0 ", max_size=6)), max_size=6))  # fmt: skip
def test_many_ids_are_those_of_each_row(rows: list[tuple[str, str, str]]) -> None:
    def alone(dataset: str, source_id: str, text: str) -> int:
        joined = "\0".join((dataset, source_id, unicodedata.normalize("NFC", text)))
        digest = hashlib.sha256(joined.encode()).digest()
        return 0 if joined.count("\0") > 2 else int.from_bytes(digest[:8], "big")

    columns = zip(*rows, strict=True) if rows else ((), (), ())
    assert row_uids(*columns).tolist() == [alone(*row) for row in rows]


def test_analyses_of_two_stages_join_by_identity(root: Path) -> None:
    """Not one perspective pairs rows by their place: a reordered stage is an error to each."""
    from ptmech import truth

    tamper(root, "instruct", rows_of(1, 0, slice(2, 80)))
    artifact = load(root)
    for analyse in (truth.similarity, truth.transfer):
        with pytest.raises(AlignmentError, match="2 in another order"):
            analyse(artifact, "base", "instruct", datasets=[DATASET, "facts"])


def test_statements_of_one_id_that_differ_are_refused(root: Path) -> None:
    path = "tables/statements.parquet"
    table = pl.read_parquet(root / path)
    again = table.filter(pl.col("row") == 3, pl.col("dataset") == DATASET)
    doubled = pl.concat([table, again.with_columns(label=1 - pl.col("label"))])
    doubled.write_parquet(root / path)
    data = (root / path).read_bytes()
    manifest = json.loads((root / MANIFEST).read_bytes())
    for entry in manifest["extras"]:
        if entry["path"] == path:
            entry |= {"bytes": len(data), "sha256": digest(data)}
    (root / MANIFEST).write_text(json.dumps(manifest))
    pair = load(root).pair("base", "instruct", on_mismatch="intersect")
    with pytest.raises(AlignmentError, match="rows of one id that differ"):
        pair.labels(DATASET)
