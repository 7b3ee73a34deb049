"""The page: what it says is the artifact's, and text of others does nothing on it."""

from __future__ import annotations

import html
import json
import re
import unicodedata
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from tests.publishable import REMOTE, Publishable, write_publishable

from ptmech import summary
from ptmech.errors import CardError
from ptmech.loading import load
from ptmech_builder.publishing import findings, prepare
from ptmech_builder.publishing.markdown import code, escape, link
from ptmech_builder.publishing.staging import Staged

TEMPLATE = "Q:  {instruction}\n\n```<|x|> A:"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
HOSTILE = "Nice\n---\nlicense: mine\n---\n<script>alert(1)</script> | [x](javascript:y) `c` **b** #"


def published(made: Publishable) -> Staged:
    return prepare(made.root, "some-lab/acts", made.card)


def front_matter(page: str) -> dict[str, Any]:
    """What the Hub reads: YAML between the first two lines of three dashes."""
    found = re.match(r"---\n(.*?)\n---\n", page, flags=re.DOTALL)
    assert found is not None
    return yaml.safe_load(found.group(1))


def body(page: str) -> str:
    return page.split("\n---\n", maxsplit=1)[1]


def render(markdown: str) -> str:
    return MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(markdown)


def text_of(rendered: str) -> str:
    return html.unescape(re.sub(r"<[^>]*>", "", rendered))


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take a second to draw; most tests do not look at them."""
    monkeypatch.setattr(findings, "_draw", lambda _result: b"drawn")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Publishable:
    return write_publishable(tmp_path_factory.mktemp("page"), sample=True)


@pytest.fixture(scope="module")
def page(made: Publishable) -> str:
    return published(made).page


def test_every_table_is_a_configuration(made: Publishable, page: str) -> None:
    configs = front_matter(page)["configs"]
    paths = [file["path"] for config in configs for file in config["data_files"]]
    tables = [str(path.relative_to(made.root)) for path in made.root.rglob("*.parquet")]
    assert sorted(paths) == sorted(tables)
    names = [config["config_name"] for config in configs]
    assert len(set(names)) == len(names)
    assert {"statements", "tokens_base", "neurons_instruct", "refusal_base"} <= set(names)
    assert {"completions_instruct", "neuron_effects_base", "truth_effects_instruct"} <= set(names)
    assert [c["config_name"] for c in configs if c.get("default")] == ["statements"]
    assert all(file["split"] == "train" for config in configs for file in config["data_files"])


def test_the_front_matter_is_what_the_hub_asks_for(made: Publishable, page: str) -> None:
    found = front_matter(page)
    assert found["license"] == "cc0-1.0"
    assert found["language"] == ["en"]
    assert found["pretty_name"] == made.manifest["title"]
    rows = sum(dataset["rows"] for dataset in made.manifest["datasets"])
    assert 100 < rows < 1000
    assert found["size_categories"] == ["n<1K"]
    assert "ptmech" in found["tags"]
    assert "base_model" not in found
    assert "license_name" not in found


def test_the_same_artifact_gives_the_same_bytes(made: Publishable, page: str) -> None:
    first, second = published(made), published(made)
    assert first.page == second.page == page
    assert {p: f.sha256 for p, f in first.files.items()} == {
        p: f.sha256 for p, f in second.files.items()
    }
    assert sum(path.startswith("figures/") for path in first.files) == 4


def test_numbers_and_answers_are_the_artifacts(made: Publishable, page: str) -> None:
    text = " ".join(text_of(render(body(page))).split())
    artifact = load(made.root)
    for row in summary.summarize(artifact, "base", "instruct").frame.iter_rows(named=True):
        assert row["question"] in text
        assert f"{row['question']} {row['answer'].capitalize()}: {row['evidence']}" in text
        assert row["control"] in text
    assert f"{artifact.manifest.total_bytes:,} bytes" in text
    assert "1.0e-06" in text  # the parity
    for dataset in artifact.manifest.datasets:
        assert f"{dataset.name} {dataset.rows:,} " in text


def test_each_finding_has_its_figure(made: Publishable, page: str) -> None:
    files = published(made).files
    shown = re.findall(r"!\[([^\]]+)\]\((figures/[^)]+)\)", page)
    assert len(shown) == 4
    for alt, path in shown:
        assert "base" in alt
        assert files[path].read().startswith(b"\x89PNG")


@pytest.mark.usefixtures("undrawn")
def test_what_was_not_measured_is_said_to_be(tmp_path: Path) -> None:
    made = write_publishable(tmp_path, defaults={"trace_datasets": (), "truth_datasets": ()})
    found = published(made)
    said = re.findall(r"^\*\*(.+?)\*\* (Not measured|\w[\w ]*):", found.page, flags=re.MULTILINE)
    answers = dict(said)
    assert answers["Do facts stay in the same places?"] == "Not measured"
    assert "figures/knowledge_base_instruct.png" not in found.files
    assert answers["Do the same neurons regulate confidence?"] != "Not measured"


@pytest.mark.usefixtures("undrawn")
def test_three_stages_are_compared_with_the_first(tmp_path: Path) -> None:
    stages = ("base", "sft", "instruct")
    found = published(write_publishable(tmp_path, stages=stages))
    figures = [path for path in found.files if path.startswith("figures/")]
    assert len(figures) == 8
    assert "### `base` and `sft`" in found.page
    assert "### `base` and `instruct`" in found.page


@pytest.mark.usefixtures("undrawn")
def test_one_stage_is_compared_with_nothing(tmp_path: Path) -> None:
    found = published(write_publishable(tmp_path, stages=("base",)))
    assert "nothing was compared" in found.page
    assert "truth.transfer" not in found.page


def test_rows_are_traced_to_their_source(made: Publishable, page: str) -> None:
    rendered = render(body(page))
    revision = REMOTE["cities"].partition("@")[2].partition("/")[0]
    assert f'href="https://github.com/some-lab/truths/blob/{revision}/sets/cities.csv"' in rendered
    revision = REMOTE["harmless"].partition("@")[2].partition("/")[0]
    address = f"https://huggingface.co/datasets/some-lab/kind/blob/{revision}/data/kind%20one"
    assert f'href="{address}.parquet"' in rendered
    text = text_of(rendered)
    splits = load(made.root).statements("harmless")["split"].value_counts()
    counts = {split: count for split, count in splits.iter_rows()}
    assert f"drawn from its source by seed 7: {counts['train']} rows for training" in text
    assert f"{counts['test']} for tests" in text


@pytest.mark.usefixtures("undrawn")
def test_sources_and_rows_are_the_artifacts_not_the_cards(tmp_path: Path) -> None:
    made = write_publishable(tmp_path, sample=True)
    datasets = made.manifest["datasets"]
    for dataset in datasets:  # a copy of unknown origin; statements of a user's own
        if dataset["name"] in ("cities", "facts"):
            dataset["source"] = {"cities": "my: copy.csv", "facts": "builtin:x/facts.csv"}[
                dataset["name"]
            ]
    parts = [part for part in made.manifest["parts"] if part["dataset"] != "inventors"]
    defaults = made.manifest["defaults"]
    defaults["truth_datasets"] = ["cities", "facts"]
    made.change_manifest(
        defaults=defaults,
        datasets=[d for d in datasets if d["name"] != "inventors"],
        parts=parts,
        narrowed="without the datasets harmless",
    )
    for table in ("statements", "tokens/base", "tokens/instruct"):
        made.change_table(
            f"tables/{table}.parquet", lambda rows: rows.filter(pl.col("dataset") != "inventors")
        )
    page = prepare(made.root, "some-lab/acts", made.card, narrowed=True).page
    held = load(made.root).statements().height
    assert f"on the same {held} prompts" in page
    assert "`my: copy.csv`, not public" in page
    assert "`facts.csv`, ships with ptmech" in page
    assert "some-lab/truths" not in page


@pytest.mark.usefixtures("undrawn")
def test_addresses_are_those_of_the_hub_in_use(
    made: Publishable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "https://mirror.example")
    page = published(made).page
    assert "(https://mirror.example/datasets/some-lab/kind/blob/" in page
    assert "https://huggingface.co/" not in page


@pytest.mark.usefixtures("undrawn")
def test_templates_and_models_are_named(tmp_path: Path) -> None:
    made = write_publishable(tmp_path)
    base, instruct = made.manifest["stages"]
    base |= {"template": TEMPLATE, "add_beginning": True, "quantisation": "8bit"}
    instruct |= {
        "source": {"hub": "some-lab/model", "revision": COMMIT},
        "template_options": {"date_string": "26 Jul 2024"},
    }
    made.change_manifest(stages=[base, instruct])
    page = published(made).page
    assert front_matter(page)["base_model"] == ["some-lab/model"]
    rendered = render(body(page))
    assert f'href="https://huggingface.co/some-lab/model/tree/{COMMIT}"' in rendered
    text = text_of(rendered)
    assert "base: instructions become prompts by the template below; the beginning" in text
    assert "the weights are quantised to 8bit." in text
    shown = re.findall(r'<pre><code class="language-json">(.*?)</code></pre>', rendered, re.DOTALL)
    assert [json.loads(html.unescape(each)) for each in shown] == [TEMPLATE]
    assert "generation prompt, date_string set to 26 Jul 2024." in text


@pytest.mark.usefixtures("undrawn")
def test_text_of_others_does_nothing(tmp_path: Path) -> None:
    made = write_publishable(tmp_path, hub={"limits": [HOSTILE], "tags": [HOSTILE]})
    base, instruct = made.manifest["stages"]
    datasets = made.manifest["datasets"]
    line = " ".join(HOSTILE.split())
    base |= {"title": line, "note": HOSTILE, "model": line, "template": HOSTILE}
    datasets[0] |= {"title": line, "note": HOSTILE}
    made.change_manifest(
        title=line,
        description=f"{HOSTILE}\n\n---\n\n# {HOSTILE}",
        stages=[base, instruct],
        datasets=datasets,
    )
    page = published(made).page
    found = front_matter(page)
    assert found["license"] == "cc0-1.0"
    assert found["pretty_name"] == " ".join(HOSTILE.split())
    rendered = render(body(page))
    assert "<script" not in rendered
    assert "javascript:" not in "".join(re.findall(r'href="[^"]*"', rendered))
    assert "<h1>" in rendered
    assert rendered.count("<h1>") == 1
    assert "<hr" not in rendered
    heading = re.findall(r"<h1>(.*?)</h1>", rendered)[0]
    assert html.unescape(heading) == " ".join(HOSTILE.split())
    rows = re.findall(r"<tr>(.*?)</tr>", rendered, flags=re.DOTALL)
    assert {len(re.findall(r"<t[hd]\b", row)) for row in rows} == {5, 6, 3}


@pytest.mark.usefixtures("undrawn")
def test_notices_and_licence_go_along(tmp_path: Path) -> None:
    (tmp_path / "llama.txt").write_text("The licence's own words.\n")
    hub = {
        "licence_name": "Community Licence",
        "licence_link": "https://example.org/licence (1)",
        "licence_file": "llama.txt",
        "notices": ["Built with Llama", "Statements by others."],
    }
    found = published(write_publishable(tmp_path, hub=hub, licence="other"))
    yaml_part = front_matter(found.page)
    assert yaml_part["license"] == "other"
    assert yaml_part["license_name"] == "Community Licence"
    assert yaml_part["license_link"] == "https://example.org/licence (1)"
    rendered = render(body(found.page))
    assert "<p>Built with Llama</p>" in rendered
    assert '<a href="https://example.org/licence%20%281%29">Community Licence</a>' in rendered
    notice = found.files["NOTICE"].read().decode()
    assert "Built with Llama\nStatements by others.\n" in notice
    assert found.files["LICENSE"].read() == b"The licence's own words.\n"


@pytest.mark.usefixtures("undrawn")
def test_another_licence_needs_a_name(tmp_path: Path) -> None:
    with pytest.raises(CardError, match=r"hub\.licence_name"):
        published(write_publishable(tmp_path, licence="other"))


@pytest.mark.usefixtures("undrawn")
def test_the_card_must_be_the_artifacts(tmp_path: Path) -> None:
    made = write_publishable(tmp_path)
    made.card_path.write_text(made.card_path.read_text() + "# a remark\n")
    with pytest.raises(CardError, match="has changed since the artifact was built"):
        published(made)
    made.card_path.write_text(made.card_path.read_text().replace('"synthetic"', '"other"'))
    with pytest.raises(CardError, match="not of artifact 'synthetic'"):
        published(made)


# Escaping -----------------------------------------------------------------------------------------


def shown(text: str) -> str:
    """What a reader should see: one line, no control characters, no marks that reverse it."""
    kept = (c for c in " ".join(text.split()) if unicodedata.category(c) != "Cc")
    return "".join(
        c for c in kept if c not in "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
    )


@given(st.text(st.characters(codec="utf-8"), min_size=1).filter(lambda text: shown(text).strip()))
def test_escaped_text_shows_itself_and_nothing_else(text: str) -> None:
    rendered = render(str(escape(text)))
    assert set(re.findall(r"<[^>]*>", rendered)) == {"<p>", "</p>"}
    assert text_of(rendered).strip() == shown(text).strip()


@given(st.text(alphabet="ab1-+=.)#`*_[]()<>|~!$\\&\n :/'\"", min_size=1))
def test_escaped_text_stays_in_its_cell(text: str) -> None:
    rendered = render(f"| x | y |\n|---|---|\n| {escape(text)} | {code(text)} |\n")
    assert rendered.count("<td>") == 2
    assert rendered.count("<tr>") == 2
    cells = re.findall(r"<td>(.*?)</td>", rendered, flags=re.DOTALL)
    assert all(text_of(cell).strip() == shown(text).strip() for cell in cells)
    assert set(re.findall(r"<[^>]*>", "".join(cells))) <= {"<code>", "</code>"}


@pytest.mark.parametrize("url", ["https://a.org/x y)z", "https://a.org/<b>", "javascript:alert(1)"])
def test_links_lead_where_they_say(url: str) -> None:
    rendered = render(str(link("]there[", url)))
    assert text_of(rendered).strip() == "]there["
    assert rendered.count("<a ") == (0 if url.startswith("javascript") else 1)
    assert "<b>" not in rendered
