"""Artifacts behind a plain web root: one request a file, none twice, no wrong byte."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from tests.hub import LocalHub

import ptmech as sdk
from ptmech._cache import cache_folder
from ptmech.errors import (
    AccessError,
    ArtifactNotFoundError,
    FormatError,
    IntegrityError,
    RedirectError,
    UnreachableError,
)
from ptmech.storage import https, remote
from ptmech.verify import verify

LAYER = "acts/base/cities/resid_post/L02.safetensors"


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that would have been waited."""
    waited: list[float] = []
    monkeypatch.setattr(remote, "sleep", waited.append)
    return waited


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PTMECH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "files"


@pytest.fixture
def root(hub: LocalHub, synthetic_path: Path) -> str:
    return hub.add_static("acts", synthetic_path)


def read(artifact: sdk.Artifact) -> np.ndarray:
    return artifact.activations("cities", "base", layer=2)


def counted(hub: LocalHub, call: Callable[[], object]) -> list[str]:
    """Paths that a call requests, below the web root."""
    hub.clear()
    call()
    assert {record.method for record in hub.requests} <= {"GET"}
    return sorted(record.path.removeprefix("/static/acts/") for record in hub.requests)


def test_one_request_a_file_and_none_twice(
    hub: LocalHub, root: str, synthetic: sdk.Artifact
) -> None:
    artifact = sdk.load(root)
    assert [str(record) for record in hub.requests] == [
        "GET /static/acts/manifest.json -> 200 (hub)"
    ]
    assert (artifact.id, artifact.revision, artifact.location) == (synthetic.id, None, root)
    assert counted(hub, lambda: read(artifact)) == [
        LAYER,
        "manifests/base/cities.json",
        "tables/statements.parquet",
    ]
    np.testing.assert_array_equal(read(artifact), read(synthetic))
    assert counted(hub, lambda: read(sdk.load(root + "/"))) == ["manifest.json"]


def test_no_token_is_sent(hub: LocalHub, root: str) -> None:
    read(sdk.load(root))
    assert not any(record.authorized for record in hub.requests)


def test_all_of_it(hub: LocalHub, root: str, synthetic_path: Path) -> None:
    artifact = sdk.load(root)
    artifact.prefetch()
    hub.stop()
    assert verify(artifact) == []
    assert verify(sdk.load(root)) == []  # the manifest that was read last
    cached = {
        path.relative_to(cache_folder("files")).as_posix().split("/", 2)[2]
        for path in cache_folder("files").rglob("*/*/*")
        if path.is_file()
    }
    assert cached == {
        path.relative_to(synthetic_path).as_posix()
        for path in synthetic_path.rglob("*")
        if path.is_file()
    }


def test_a_replaced_artifact_starts_afresh(
    hub: LocalHub, synthetic_path: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "served"
    shutil.copytree(synthetic_path, folder)
    root = hub.add_static("acts", folder)
    before = sdk.load(root)
    read(before)
    manifest = folder / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b"Planted", b"Changed"))
    after = sdk.load(root)
    assert after.id != before.id
    assert LAYER in counted(hub, lambda: read(after))
    assert counted(hub, lambda: read(before)) == []


def test_the_cache_may_be_elsewhere(hub: LocalHub, root: str, cache: Path, tmp_path: Path) -> None:
    read(sdk.load(root, cache_dir=tmp_path / "mine"))
    assert not cache.exists()
    assert list((tmp_path / "mine").rglob("L02.safetensors"))


# Faults


def test_a_flipped_bit_is_healed_once(hub: LocalHub, root: str, synthetic: sdk.Artifact) -> None:
    hub.flip("L02", at=600)
    artifact = sdk.load(root)
    assert counted(hub, lambda: read(artifact)).count(LAYER) == 2
    np.testing.assert_array_equal(read(artifact), read(synthetic))


def test_rot_in_the_cache_is_healed(hub: LocalHub, root: str, cache: Path) -> None:
    expected = read(sdk.load(root))
    [cached] = cache.rglob("L02.safetensors")
    cached.write_bytes(cached.read_bytes()[:-1])
    artifact = sdk.load(root)
    assert counted(hub, lambda: read(artifact)) == [LAYER]
    np.testing.assert_array_equal(read(artifact), expected)


def test_what_stays_wrong_is_refused(hub: LocalHub, root: str) -> None:
    hub.flip("L02", at=600, times=None)
    artifact = sdk.load(root)
    with pytest.raises(IntegrityError, match="downloaded twice"):
        read(artifact)
    hub.recover()
    read(artifact)


def test_rot_without_a_connection_says_both(hub: LocalHub, root: str, cache: Path) -> None:
    artifact = sdk.load(root)
    read(artifact)
    [cached] = cache.rglob("L02.safetensors")
    cached.write_bytes(b"")
    hub.stop()
    with pytest.raises(IntegrityError, match=r"has 0 bytes .* cannot be replaced: .* no conn"):
        read(artifact)


def test_a_cut_connection_is_tried_again(hub: LocalHub, root: str, pauses: list[float]) -> None:
    hub.truncate("L02", keep=100)
    hub.drop("statements.parquet")
    read(sdk.load(root))
    assert len(pauses) == 2


def test_a_short_answer_is_healed(hub: LocalHub, root: str) -> None:
    hub.truncate("L02", keep=100, honest=True)
    read(sdk.load(root))


@pytest.mark.parametrize("spoil", ["cut", "flipped"])
def test_a_spoiled_manifest_is_fetched_again(hub: LocalHub, root: str, spoil: str) -> None:
    if spoil == "cut":
        hub.truncate("manifest.json", keep=100, honest=True)
    else:
        hub.flip("manifest.json", at=0)
    assert sdk.load(root).stages == ("base", "instruct")


def test_a_manifest_that_stays_spoiled_is_refused(hub: LocalHub, root: str) -> None:
    hub.flip("manifest.json", at=0, times=None)
    with pytest.raises(FormatError, match="is not JSON"):
        sdk.load(root)
    assert len(hub.requests) == 2
    hub.recover()
    sdk.load(root)


def test_a_longer_body_is_not_taken_in(
    hub: LocalHub, synthetic_path: Path, tmp_path: Path, cache: Path
) -> None:
    folder = tmp_path / "served"
    shutil.copytree(synthetic_path, folder)
    with (folder / LAYER).open("ab") as stream:
        stream.truncate(64 * 2**20)
    artifact = sdk.load(hub.add_static("acts", folder))
    with pytest.raises(IntegrityError, match="bytes where the manifest promises"):
        read(artifact)
    [cached] = cache.rglob("L02.safetensors")
    assert cached.stat().st_size == (synthetic_path / LAYER).stat().st_size + 1


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_busy_server_is_asked_again(
    hub: LocalHub, root: str, status: int, pauses: list[float]
) -> None:
    hub.fail("manifest.json", status=status, times=2, retry_after=3 if status == 429 else None)
    sdk.load(root)
    assert pauses == ([3, 3] if status == 429 else [1, 2])


def test_a_server_that_stays_busy(hub: LocalHub, root: str, pauses: list[float]) -> None:
    artifact = sdk.load(root)
    hub.fail("L02", status=503, times=None)
    with pytest.raises(UnreachableError, match="HTTP 503; try again later"):
        read(artifact)
    assert pauses == list(remote.PAUSES)
    assert sdk.load(root).id == artifact.id


def test_too_much_patience_is_not_had(hub: LocalHub, root: str, pauses: list[float]) -> None:
    hub.fail("manifest.json", status=429, times=None, retry_after=3600)
    with pytest.raises(UnreachableError, match="too many requests"):
        sdk.load(root)
    assert (pauses, len(hub.requests)) == ([], 1)


@pytest.mark.parametrize("status", [401, 403])
def test_refusals(hub: LocalHub, root: str, status: int) -> None:
    hub.fail("manifest.json", status=status)
    with pytest.raises(AccessError, match=f"HTTP {status}"):
        sdk.load(root)
    assert len(hub.requests) == 1


def test_nothing_there(hub: LocalHub, root: str) -> None:
    with pytest.raises(ArtifactNotFoundError, match="holds no manifest"):
        sdk.load(root + "/elsewhere")
    hub.fail("L02", status=404, times=None)
    with pytest.raises(IntegrityError, match="is missing"):
        read(sdk.load(root))


def test_nobody_there(hub: LocalHub, root: str, pauses: list[float]) -> None:
    hub.stop()
    with pytest.raises(UnreachableError, match="no connection") as caught:
        sdk.load(root)
    assert "\n" not in str(caught.value)
    assert pauses == list(remote.PAUSES)


def test_offline(
    hub: LocalHub, root: str, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = sdk.load(root)
    read(artifact)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert counted(hub, lambda: read(sdk.load(root))) == []
    with pytest.raises(UnreachableError, match="HF_HUB_OFFLINE is set"):
        artifact.activations("cities", "base", layer=3)
    assert pauses == []


def test_nothing_half_is_left(hub: LocalHub, root: str, cache: Path) -> None:
    artifact = sdk.load(root)
    hub.truncate("L02", keep=100, times=None)
    with pytest.raises(UnreachableError):
        read(artifact)
    assert not list(cache.rglob("*.part"))
    assert not list(cache.rglob("L02*"))


def test_a_page_in_place_of_a_manifest_does_not_spoil_the_cache(
    hub: LocalHub, synthetic_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "served"
    shutil.copytree(synthetic_path, folder)
    root = hub.add_static("acts", folder)
    before = sdk.load(root)
    (folder / "manifest.json").write_bytes(b"<html>Log in</html>")
    with pytest.raises(FormatError, match="is a web page, not JSON"):
        sdk.load(root)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert sdk.load(root).id == before.id


def test_a_cache_that_cannot_be_used_is_not_a_missing_manifest(root: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for unusable in (tmp_path / "file" / "below", Path("/proc/nowhere")):
        with pytest.raises(OSError) as caught:  # noqa: PT011  the system says it in its own way
            sdk.load(root, cache_dir=unusable)
        assert not isinstance(caught.value, ArtifactNotFoundError)
        assert str(unusable) in str(caught.value)


@pytest.fixture
def leading(root: str) -> Iterator[tuple[str, list[str]]]:
    """A server on this machine that leads to ``leads[-1]``, and what it was asked."""
    leads: list[str] = [root]

    class Leading(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(302)
            self.send_header("Location", leads[-1] + self.path.removeprefix("/acts"))
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Leading) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/acts", leads
        server.shutdown()


def test_a_safe_redirect_is_followed(
    leading: tuple[str, list[str]], synthetic: sdk.Artifact
) -> None:
    artifact = sdk.load(leading[0])
    np.testing.assert_array_equal(read(artifact), read(synthetic))
    assert artifact.location == leading[0]


def test_an_unsafe_redirect_is_told_whatever_the_cache_has(
    leading: tuple[str, list[str]],
) -> None:
    address, leads = leading
    sdk.load(address)
    leads.append("http://example.org/elsewhere")
    with pytest.raises(RedirectError, match=r"leads to http://example\.org, which is not safe"):
        sdk.load(address)
    leads.append(address)
    with pytest.raises(RedirectError, match="leads on and on"):
        sdk.load(address)


def test_where_a_redirect_may_lead() -> None:
    away, here = "https://example.org/x", "http://127.0.0.1:8000/x"
    other, near = "https://other.org/x", "http://localhost:1/x"
    for asked, leads in ((away, other), (here, near), (here, away)):
        https._require_safe(leads, asked)
    for asked, leads in (
        (away, "http://example.org/x"),
        (away, "http://127.0.0.1:8888/shutdown"),
        (away, "https://localhost/x"),
        (here, "http://example.org/x"),
    ):
        with pytest.raises(RedirectError, match="not safe"):
            https._require_safe(leads, asked)
