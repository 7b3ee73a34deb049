"""Causal traces: what is read, how it is scaled, and how two traces are compared."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from tests.synthetic import (
    TRACE_PAIRS,
    TRACE_ROLES,
    TRACE_TOKENS,
    trace_grid,
    write_synthetic_artifact,
)

from ptmech import knowledge
from ptmech.errors import (
    AlignmentError,
    DataError,
    FormatError,
    IntegrityError,
    NotStoredError,
    PtmechError,
    UnknownNameError,
)
from ptmech.loading import load
from ptmech.manifest import MANIFEST, Extra, Manifest, canonical_json
from ptmech_builder.writer import digest

FOLDER = "traces/base-instruct/cities.zarr"
GRADES = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]


# Reading


@pytest.fixture(scope="module")
def plain(synthetic_path):
    """The arrays of one trace, read with zarr alone."""
    group = zarr.open_group(synthetic_path / FOLDER, mode="r")
    return {name: np.asarray(group[name][...], dtype=np.float64) for name in group.array_keys()}


def test_trace_is_what_zarr_holds(synthetic, plain):
    trace = knowledge.trace(synthetic, "base", "instruct", "cities")
    np.testing.assert_array_equal(trace.grid, plain["grid"])
    np.testing.assert_array_equal(trace.unpatched, plain["unpatched"])
    np.testing.assert_array_equal(trace.source_difference, plain["source"])
    np.testing.assert_allclose(trace.matrix, plain["grid"].sum(0) / TRACE_PAIRS)
    assert trace.matrix.dtype == np.float64
    assert (trace.tokens, trace.roles, trace.form) == (TRACE_TOKENS, TRACE_ROLES, "completion")
    assert trace.known == {"base": 0.77, "instruct": 0.77}


def test_scaled_is_a_ratio_of_means(synthetic, plain):
    trace = knowledge.trace(synthetic, "base", "instruct", "cities")
    bottom, top = np.mean(plain["unpatched"]), np.mean(plain["source"])
    np.testing.assert_allclose(trace.scaled, (plain["grid"].mean(0) - bottom) / (top - bottom))
    planted = trace_grid(4) > 0
    assert trace.scaled[planted].min() > 0.95
    assert np.abs(trace.scaled[~planted]).max() < 0.05


def test_frame_names_every_cell(synthetic):
    trace = knowledge.trace(synthetic, "base", "base", "cities")
    assert trace.frame.height == trace.matrix.size
    for row in trace.frame.iter_rows(named=True):
        cell = row["layer"], row["column"]
        assert row["logit_difference"] == trace.matrix[cell]
        assert row["scaled"] == trace.scaled[cell]
        assert (row["token"], row["role"]) == (TRACE_TOKENS[cell[1]], TRACE_ROLES[cell[1]])


def test_by_role_averages_the_columns_of_a_role(synthetic):
    trace = knowledge.trace(synthetic, "base", "base", "cities")
    table = trace.by_role
    assert table.columns == ["layer", *dict.fromkeys(TRACE_ROLES)]
    np.testing.assert_allclose(table["prefix"], trace.scaled[:, :3].mean(1))
    np.testing.assert_allclose(table["last"], trace.scaled[:, 6])


def test_a_trace_is_an_array(synthetic):
    trace = knowledge.trace(synthetic, "base", "base", "cities")
    np.testing.assert_array_equal(np.asarray(trace), trace.matrix)
    assert np.asarray(trace, dtype="float32").dtype == np.float32
    copy = np.array(trace)
    copy[:] = 0
    assert trace.matrix.any()


def test_pairs_name_rows_of_the_dataset(synthetic):
    pairs = knowledge.trace(synthetic, "base", "base", "cities").pairs
    assert pairs.height == TRACE_PAIRS
    rows = set(synthetic.statements("cities")["row_uid"])
    assert set(pairs["true_uid"]) | set(pairs["false_uid"]) <= rows


def test_stored_lists_the_traces(synthetic):
    rows = knowledge.stored(synthetic).rows()
    assert rows == [
        (source, target, "cities")
        for source in ("base", "instruct")
        for target in ("base", "instruct")
    ]


@pytest.mark.parametrize(
    ("names", "kind", "words"),
    [
        (("bse", "instruct", "cities"), UnknownNameError, "did you mean 'base'"),
        (("base", "instruct", "citties"), UnknownNameError, "did you mean 'cities'"),
        (("base", "instruct", "facts"), NotStoredError, "stored: cities base-base"),
    ],
)
def test_traces_that_are_not_there(synthetic, names, kind, words):
    with pytest.raises(kind, match=words):
        knowledge.trace(synthetic, *names)


# Damage


def test_a_damaged_chunk(tmp_path):
    root = write_synthetic_artifact(tmp_path)
    chunk = root / FOLDER / "grid/c/0/0/0"
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 1
    chunk.write_bytes(data)
    with pytest.raises(IntegrityError, match="grid/c/0/0/0 is damaged"):
        knowledge.trace(load(root), "base", "instruct", "cities")
    chunk.unlink()
    with pytest.raises(IntegrityError, match="grid/c/0/0/0 is missing"):
        knowledge.trace(load(root), "base", "instruct", "cities")


def relisted(root, *, without=(), attributes=None, arrays=None):
    """Change the group with zarr, and list what is then there: all honest, but for ``without``."""
    group = zarr.open_group(root / FOLDER, mode="r+")
    group.attrs.update(attributes or {})
    for name, values in (arrays or {}).items():
        group.create_array(name, data=values, overwrite=True, compressors=None)
    path = root / MANIFEST
    manifest = Manifest.parse(path.read_bytes(), "manifest")
    extras = [entry for entry in manifest.extras if not entry.path.startswith(FOLDER)]
    for file in (root / FOLDER).rglob("*"):
        name = file.relative_to(root / FOLDER).as_posix()
        if file.is_file() and name not in without:
            data = file.read_bytes()
            entry = {"path": f"{FOLDER}/{name}", "bytes": len(data), "sha256": digest(data)}
            extras.append(Extra(**entry, kind="trace", unit=digest(b"")))
    path.write_bytes(canonical_json(manifest.model_copy(update={"extras": tuple(extras)})))
    return load(root)


@pytest.fixture
def root(tmp_path):
    return write_synthetic_artifact(tmp_path)


def test_a_chunk_the_manifest_does_not_list_never_reads_as_zeros(root):
    artifact = relisted(root, without=["grid/c/0/0/0"])
    with pytest.raises(FormatError, match="chunk c/0/0/0 is missing"):
        knowledge.trace(artifact, "base", "instruct", "cities")


@pytest.mark.parametrize("gone", [["zarr.json"], ["unpatched/zarr.json", "unpatched/c/0"]])
def test_a_group_that_lacks_a_part(root, gone):
    artifact = relisted(root, without=gone)
    with pytest.raises(FormatError, match=r"zarr.json is missing|lacks the array 'unpatched'"):
        knowledge.trace(artifact, "base", "instruct", "cities")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"attributes": {"target": "base"}}, "describes itself"),
        ({"attributes": {"roles": ["last"]}}, "shape"),
        ({"attributes": {"tokens": 3}}, "tokens"),
        ({"attributes": {"pairs": []}}, "shape"),
        ({"arrays": {"source": np.ones(TRACE_PAIRS + 1)}}, "shape"),
        ({"arrays": {"grid": np.full((TRACE_PAIRS, 4), 1.0)}}, "shape"),
        ({"arrays": {"source": np.full(TRACE_PAIRS, np.nan)}}, "not finite"),
    ],
)
def test_a_group_that_does_not_hold_together(root, changes, words):
    artifact = relisted(root, **changes)
    with pytest.raises(PtmechError, match=words):
        knowledge.trace(artifact, "base", "instruct", "cities")


def test_a_trace_without_a_scale(root):
    """Where the true prompt gives no more than the false one, nothing can be scaled."""
    same = np.full(TRACE_PAIRS, 1.0, np.float32)
    artifact = relisted(root, arrays={"source": same, "unpatched": same})
    trace = knowledge.trace(artifact, "base", "instruct", "cities")
    assert np.isnan(trace.scaled).all()
    assert np.isfinite(trace.matrix).all()


# Grades


MATRICES = arrays(
    np.float64,
    st.tuples(st.integers(1, 6), st.integers(1, 6)),
    elements=st.floats(-1e6, 1e6, allow_subnormal=False),
)


@given(MATRICES)
def test_grades_are_eleven_and_keep_the_order(matrix):
    grades = knowledge.normalize(matrix)
    assert grades.shape == matrix.shape
    assert np.isin(grades, GRADES).all()
    order = np.argsort(matrix, axis=None, kind="stable")
    assert (np.diff(grades.ravel()[order]) >= 0).all()
    if np.ptp(matrix) > 1e-3:  # else the margin is a good part of the range
        assert grades.max() == 1.0
        assert grades.min() == 0.0


@given(MATRICES)
def test_grades_by_the_definition(matrix):
    """Bin by bin in plain Python, except on the edges, where rounding may go either way."""
    low, high = matrix.min() - 1e-5, matrix.max() + 1e-5
    for value, grade in zip(matrix.flat, knowledge.normalize(matrix).flat, strict=True):
        place = (value - low) / (high - low) * 20
        if matrix.min() < matrix.max() and abs(place - round(place)) > 1e-6:
            assert grade == pytest.approx(max(0, math.floor(place) + 1 - 10) / 10)


def test_grades_by_hand():
    ramp = np.arange(20.0)[None]
    expected = [0] * 10 + GRADES[1:]
    np.testing.assert_allclose(knowledge.normalize(ramp)[0], expected)


@pytest.mark.parametrize("value", [0.0, -3.5, 1e15])
def test_a_constant_matrix_has_no_high_cell(value):
    assert not knowledge.normalize(np.full((3, 2), value)).any()


def test_values_that_drown_the_margin():
    assert knowledge.normalize([[1e15, 1e15 + 1024]]).tolist() == [[0.0, 1.0]]


@pytest.mark.parametrize("bad", [[], [[]], [[np.nan]], [[np.inf, 0.0]], [["a"]]])
def test_what_has_no_grades(bad):
    with pytest.raises(DataError):
        knowledge.normalize(bad)


# Comparison


def test_comparison_of_arrays():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 8, 5))
    result = knowledge.compare(first, second, knowledge_columns=[1, 3])
    one, other = knowledge.normalize(first), knowledge.normalize(second)
    a, b = one.ravel() - one.mean(), other.ravel() - other.mean()
    assert result.pearson == pytest.approx((a @ b) / math.sqrt((a @ a) * (b @ b)))
    assert result.max_difference == np.abs(one - other).max()
    assert result.max_difference_knowledge == np.abs(one - other)[:, [1, 3]].max()


def test_without_columns_the_knowledge_difference_is_unknown():
    matrix = np.arange(6.0).reshape(2, 3)
    result = knowledge.compare(matrix, matrix)
    assert result == knowledge.TraceComparison(
        pearson=pytest.approx(1.0), max_difference=0.0, max_difference_knowledge=None
    )


def test_traces_know_their_knowledge_columns(root):
    """A difference in the last token counts for the whole matrix and not for the subject."""
    grid = np.asarray(zarr.open_group(root / FOLDER, mode="r")["grid"][...])
    grid[:, :, 6] = grid[:, ::-1, 6]
    artifact = relisted(root, arrays={"grid": grid})
    own = knowledge.trace(artifact, "base", "base", "cities")
    changed = knowledge.trace(artifact, "base", "instruct", "cities")
    result = knowledge.compare(own, changed)
    assert result.max_difference == 1.0
    assert result.max_difference_knowledge == 0.0
    assert result.pearson < 0.5
    assert knowledge.compare(own, changed, [6]).max_difference_knowledge == 1.0
    mixed = knowledge.compare(own, np.asarray(changed))
    assert mixed.max_difference_knowledge is None
    assert mixed.pearson == result.pearson


def test_a_constant_matrix_correlates_with_nothing():
    result = knowledge.compare(np.zeros((2, 2)), np.eye(2))
    assert math.isnan(result.pearson)
    assert result.max_difference == 1.0


@pytest.mark.parametrize(
    ("first", "second", "columns", "words"),
    [
        (np.eye(2), np.eye(3), None, "cannot be compared"),
        (np.eye(2), np.ones(2), None, "axes"),
        (np.eye(2), np.eye(2), [2], "columns"),
        (np.eye(2), np.eye(2), [-1], "columns"),
        (np.eye(2), np.full((2, 2), np.nan), None, "not finite"),
    ],
)
def test_what_cannot_be_compared(first, second, columns, words):
    with pytest.raises(DataError, match=words):
        knowledge.compare(first, second, columns)


def test_traces_of_other_roles_are_not_compared(root):
    roles = ["prefix"] * len(TRACE_ROLES)
    artifact = relisted(root, attributes={"roles": roles})
    own, other = (
        knowledge.trace(artifact, "base", target, "cities") for target in ("base", "instruct")
    )
    with pytest.raises(DataError, match="roles"):
        knowledge.compare(own, other)


def test_stages_compared(synthetic):
    result = knowledge.compare_stages(synthetic, "base", "instruct", "cities")
    assert result.frame["comparison"].to_list() == ["locations", "forward", "backward"]
    sides = {
        "locations": (("base", "base"), ("instruct", "instruct")),
        "forward": (("base", "instruct"), ("instruct", "instruct")),
        "backward": (("instruct", "base"), ("base", "base")),
    }
    for row in result.frame.iter_rows(named=True):
        one, other = (
            knowledge.trace(synthetic, *stages, "cities") for stages in sides[row.pop("comparison")]
        )
        assert knowledge.TraceComparison(**row) == knowledge.compare(one, other)
    assert set(result.traces) == {(a, b) for a in synthetic.stages for b in synthetic.stages}


def test_only_the_changed_direction_differs(root):
    """The grid from base into instruct is turned upside down: forward is off, nothing else."""
    grid = np.asarray(zarr.open_group(root / FOLDER, mode="r")["grid"][...])[:, ::-1]
    artifact = relisted(root, arrays={"grid": grid})
    frame = knowledge.compare_stages(artifact, "base", "instruct", "cities").frame
    assert frame["max_difference"].to_list() == [0.0, 1.0, 0.0]
    frame = knowledge.compare_stages(artifact, "instruct", "base", "cities").frame
    assert frame["max_difference"].to_list() == [0.0, 0.0, 1.0]


def test_stages_without_traces(synthetic):
    with pytest.raises(NotStoredError, match="facts"):
        knowledge.compare_stages(synthetic, "base", "instruct", "facts")
    with pytest.raises(DataError, match="twice"):
        knowledge.compare_stages(synthetic, "base", "base", "cities")


# Charts


def test_charts_hold_every_cell(synthetic):
    trace = knowledge.trace(synthetic, "base", "instruct", "cities")
    (rows,) = trace.plot().to_dict()["datasets"].values()
    assert sorted(row["scaled"] for row in rows) == pytest.approx(sorted(trace.scaled.ravel()))
    comparison = knowledge.compare_stages(synthetic, "base", "instruct", "cities")
    difference, rows = sorted(comparison.plot().to_dict()["datasets"].values(), key=len)
    assert len(difference) == trace.matrix.size
    assert len(rows) == 4 * trace.matrix.size
    assert pl.DataFrame(rows)["run"].n_unique() == 4


def test_traces_of_other_pairs_are_not_compared(root):
    group = zarr.open_group(root / FOLDER, mode="r")
    pairs = list(group.attrs["pairs"])
    relisted(root, attributes={"pairs": [*pairs[1:], pairs[0]]})
    with pytest.raises(AlignmentError, match="base into instruct has 6, and they are not"):
        knowledge.compare_stages(load(root), "base", "instruct", "cities")
