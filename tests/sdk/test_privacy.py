"""What is private in a text, what is shown instead, and that the command's streams see to it."""

from __future__ import annotations

import getpass
import io
import os
import socket
import subprocess
import sys
import warnings
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptmech import errors
from ptmech._output import discreet_output, told
from ptmech._privacy import (
    Private,
    names_of_this_machine,
    secrets_of_the_environment,
    without_credentials,
    without_secrets,
)

HUB = "hf_" + "aB3dE6gH9" * 4
PRIVATE = Private(
    secrets=("open-sesame-1",),
    folders=(("/data/users/ada", "~"),),
    names=(
        ("lovelace", "the name of the user", "<user>"),
        ("gpu-node-17", "the name of this machine", "<host>"),
    ),
)


# Credentials --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"got {HUB}.", "got ***."),
        (f"'{HUB}'", "'***'"),
        ("ghp_" + "a1B2" * 9, "***"),
        ("github_pat_" + "a1B2_" * 8, "***"),
        ("AKIAABCDEFGHIJKLMNOP", "***"),
        ("sk-" + "a1B2" * 9, "***"),
        ("Authorization: Bearer abc.def-123", "Authorization: Bearer ***"),
        ("{'authorization': 'Basic YWRhOnNlc2FtZQ=='}", "{'authorization': 'Basic ***'}"),
        ('"Authorization": "token 0123456789"', '"Authorization": "token ***"'),
        ("header bearer 0123456789abc", "header bearer ***"),
        ("https://ada:sesame@example.org/x", "https://***@example.org/x"),
        ("https://ada:ses@me@example.org/x", "https://***@example.org/x"),
        ("https://0123456789@example.org/x", "https://***@example.org/x"),
        ("postgres://ada:sesame@db/x", "postgres://***@db/x"),
        ("https://x.org/a?X-Amz-Signature=99af&b=1", "https://x.org/a?X-Amz-Signature=***&b=1"),
        ("https://x.org/a?b=1&token=99af", "https://x.org/a?b=1&token=***"),
        ("AWS_SECRET_ACCESS_KEY=aaaa/bbbb+cccc/dddd", "AWS_SECRET_ACCESS_KEY=***"),
        (
            "a\n-----BEGIN RSA PRIVATE KEY-----\nMII\nEow\n-----END RSA PRIVATE KEY-----\nb",
            "a\n***\nb",
        ),
        ("-----BEGIN PRIVATE KEY-----", "***"),
    ],
)
def test_credentials_are_hidden(text: str, shown: str) -> None:
    assert without_credentials(text) == shown
    assert Private().hidden(text) == shown
    assert Private().found_in(text) in ("an access token", "a private key", "a password")


@pytest.mark.parametrize(
    "text",
    [
        "hf_hub and hf_transfer",
        "sk-short",
        "token position -2, 12345678 tokens",
        "a bearer of misunderstandings",
        "authorization required",
        "hf://datasets/keeper/acts@v1",
        "keeper/acts@0123456789abcdef0123456789abcdef01234567",
        "git+ssh://git@github.com/keeper/acts",
        "https://example.org:8080/acts@v1",
        "https://example.org/acts?page=2",
        "ada@example.org",
        "12:30: done, 3/4",
    ],
)
def test_what_only_looks_like_a_credential_stays(text: str) -> None:
    assert PRIVATE.hidden(text) == text
    assert PRIVATE.found_in(text) is None


def test_secrets_in_use_are_hidden_wherever_they_are() -> None:
    assert PRIVATE.hidden("xopen-sesame-1x") == "x***x"
    assert PRIVATE.found_in("xopen-sesame-1x") == "an access token"


@pytest.mark.parametrize(
    ("name", "value", "secret"),
    [
        ("HF_TOKEN", "opensesame", True),
        ("HUGGING_FACE_HUB_TOKEN", "opensesame", True),
        ("HF_TOKEN", "short", False),
        ("CI_TOKEN", "0123-4567", True),
        ("MY_API_KEY", "0123-4567", True),
        ("DB_PASSWORD", "0123-4567", True),
        ("AWS_SECRET_ACCESS_KEY", "0123/4567", True),
        ("DB_PASSWORD", "postgres", False),  # a word; hiding it would hide half a message
        ("USE_TOKEN", "1", False),
        ("TOKENIZERS_PARALLELISM", "0123-4567", False),
        ("EDITOR", "0123-4567", False),
    ],
)
def test_variables_named_as_secrets_are_secrets(name: str, value: str, secret: bool) -> None:
    assert secrets_of_the_environment({name: value, "PATH": "/usr/bin"}) == (
        (value,) if secret else ()
    )


def test_a_longer_secret_is_hidden_before_one_within_it() -> None:
    variables = {"A_TOKEN": "0123-4567", "B_TOKEN": "0123-4567-89"}
    assert secrets_of_the_environment(variables) == ("0123-4567-89", "0123-4567")


# Places -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/data/users/ada", "~"),
        ("in /data/users/ada.", "in ~."),
        ("'/data/users/ada/acts'", "'~/acts'"),
        ("file:///data/users/ada/x", "file://~/x"),
        (f"?cache={quote('/data/users/ada', safe='')}%2Fx", "?cache=~%2Fx"),
        (r"\/data\/users\/ada\/x", r"~\/x"),
        (r"a\n/data/users/ada/x", r"a\n~/x"),
        ("/home/grace/x and /Users/grace", "/home/<user>/x and /Users/<user>"),
        (r"C:\Users\grace\x", r"C:\Users\<user>\x"),
        ("/home/grace: no such folder", "/home/<user>: no such folder"),
        ("/scratch/lovelace/x", "/scratch/<user>/x"),
        ("/scratch/lovelace", "/scratch/<user>"),
        ("/tmp/pytest-of-lovelace/x", "/tmp/pytest-of-<user>/x"),
        (r"D:\lovelace\x", r"D:\<user>\x"),
        ("~lovelace/acts", "~<user>/acts"),
        ("lovelace@gpu-node-17:/x", "<user>@<host>:/x"),
        ("http://gpu-node-17:8000/x", "http://<host>:8000/x"),
        ("host='gpu-node-17', port=80", "host='<host>', port=80"),
        (r"\\gpu-node-17\share", r"\\<host>\share"),
    ],
)
def test_places_are_hidden(text: str, shown: str) -> None:
    assert PRIVATE.hidden(text) == shown
    assert PRIVATE.found_in(text) is not None


@pytest.mark.parametrize(
    "text",
    [
        "/data/users/adam/x",
        "/data/users/ada.bak",
        "lovelace, and gpu-node-17, are words",
        "lovelace/acts@v1",
        "https://huggingface.co/datasets/lovelace/acts",
        "/scratch/lovelaces/x",
        "https://example.org/home/licence",
        "/home/",
    ],
)
def test_other_places_and_words_stay(text: str) -> None:
    assert PRIVATE.hidden(text) == text
    assert PRIVATE.found_in(text) is None


@given(st.text(), st.text())
def test_hiding_once_is_enough_and_leaves_nothing(before: str, behind: str) -> None:
    text = f"{before} open-sesame-1 {HUB} {behind}"
    shown = PRIVATE.hidden(text)
    assert "open-sesame-1" not in shown
    assert HUB not in shown
    assert PRIVATE.hidden(shown) == shown


def test_names_are_those_of_user_and_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "gpu-node-17.example.org")
    monkeypatch.setattr(getpass, "getuser", lambda: "lovelace")
    assert {name for name, *_ in names_of_this_machine()} == {
        "gpu-node-17.example.org",
        "gpu-node-17",
        "lovelace",
    }
    monkeypatch.setattr(socket, "gethostname", lambda: "base")
    monkeypatch.setattr(getpass, "getuser", lambda: "ubuntu")
    assert names_of_this_machine() == ()

    def nobody() -> str:
        raise KeyError("no such user")

    monkeypatch.setattr(getpass, "getuser", nobody)
    assert names_of_this_machine() == ()


def test_the_home_is_known_by_its_name_and_by_where_it_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "home").symlink_to(tmp_path / "disk")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    private = Private.of_this_machine()
    text = f"{tmp_path}/home/x {tmp_path}/disk/x"
    assert private.hidden(text) == "~/x ~/x"
    monkeypatch.setenv("HOME", "/")
    assert Private.of_this_machine().hidden("/usr/bin, a/b") == "/usr/bin, a/b"


def test_stored_logins_are_secrets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    (tmp_path / "token").write_text("stored-login-1\n")
    (tmp_path / "stored").write_text("[work]\nhf_token = another-login-2\n")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(tmp_path / "stored"))
    shown = Private.of_this_machine().hidden("stored-login-1, another-login-2 [work] hf_token")
    assert shown == "***, *** [work] hf_token"
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path))  # a folder
    assert Private.of_this_machine().hidden("another-login-2") == "***"


# Errors of the library ----------------------------------------------------------------------------

OURS = [
    found
    for found in vars(errors).values()
    if isinstance(found, type) and issubclass(found, errors.PtmechError)
]


@pytest.mark.parametrize("kind", OURS)
def test_no_error_of_ours_repeats_a_secret(
    kind: type[errors.PtmechError], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "open-sesame-1")
    error = kind(f"no {HUB} at https://ada:sesame@example.org with open-sesame-1")
    said = "no *** at https://***@example.org with ***"
    assert str(error) == said
    assert error.args == (said,)
    assert said in repr(error)


@pytest.mark.parametrize(
    "ref",
    [
        "https://ada:sesame@example.org/acts",
        "https://ada:sesame@example.org:port/acts",
        "ftp://ada:sesame@example.org/acts",
        f"https://example.org/acts?token={HUB}",
        f"hf://{HUB}@x/y/z",
    ],
)
def test_a_reference_with_a_secret_is_refused_without_it(ref: str) -> None:
    import ptmech

    with pytest.raises(errors.DataError) as caught:
        ptmech.load(ref)
    assert "sesame" not in str(caught.value)
    assert HUB not in repr(caught.value)


def test_a_path_that_was_given_is_named_as_given(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import ptmech

    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(errors.ArtifactNotFoundError, match=str(tmp_path / "acts")):
        ptmech.load(tmp_path / "acts")


# Streams ------------------------------------------------------------------------------------------


@contextmanager
def streams() -> Generator[dict[str, io.BytesIO]]:
    """The bytes behind standard output and error."""
    behind = {"stdout": io.BytesIO(), "stderr": io.BytesIO()}
    with pytest.MonkeyPatch.context() as patch:
        for name, raw in behind.items():
            patch.setattr(sys, name, io.TextIOWrapper(raw, encoding="utf-8"))
        yield behind


@pytest.fixture
def at_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A home, and a secret in the environment."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HF_TOKEN", "open-sesame-1")
    return tmp_path


def test_streams_hide_what_is_private_and_are_put_back(at_home: Path) -> None:
    with streams() as behind:
        before = sys.stdout, sys.stderr
        with discreet_output():
            sys.stdout.write(f"{at_home}/x\n")
            sys.stderr.write("open-")
            sys.stderr.write("sesame-1 é \N{SNOWMAN}\n")
            sys.stderr.buffer.write(b"as bytes: open-sesame-1\n")
            sys.stderr.write("half a line, open-sesame-1")
        assert (sys.stdout, sys.stderr) == before
        assert behind["stdout"].getvalue() == b"~/x\n"
        assert behind["stderr"].getvalue().decode() == (
            "*** é \N{SNOWMAN}\nas bytes: ***\nhalf a line, ***"
        )


@pytest.mark.usefixtures("at_home")
def test_bars_are_not_held_back() -> None:
    with streams() as behind, discreet_output():
        sys.stderr.write("\r10 % open-sesame-1")
        sys.stderr.flush()
        assert behind["stderr"].getvalue() == b"\r10 % ***"
        sys.stderr.write("\r20 %")
        sys.stderr.flush()
        assert behind["stderr"].getvalue() == b"\r10 % ***\r20 %"


def test_a_warning_is_one_line_without_a_path() -> None:
    before = warnings.formatwarning
    with discreet_output():
        line = warnings.formatwarning("two\nlines\x1b[31m", UserWarning, "/x/y.py", 7)
        assert line == "ptmech: UserWarning: two lines\\x1b[31m\n"
    assert warnings.formatwarning is before


@pytest.mark.usefixtures("at_home")
def test_streams_are_put_back_after_an_error() -> None:
    with streams() as behind:
        before = sys.stderr
        with suppress(KeyError), discreet_output():
            sys.stderr.write("open-sesame-1")
            raise KeyError
        assert sys.stderr is before
        assert behind["stderr"].getvalue() == b"***"


def test_a_traceback_is_told_with_its_causes_and_without_secrets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_TOKEN", "open-sesame-1")
    bug = RuntimeError("open-sesame-1\x1b[31m")
    bug.__cause__ = ValueError("no open-sesame-1")
    text = told(bug)
    assert text.endswith("RuntimeError: ***\\x1b[31m\n")
    assert "ValueError: no ***\n" in text
    assert "sesame" not in text


def test_a_reader_that_leaves_is_no_error(synthetic_path: Path) -> None:
    code = "from ptmech.cli import main; main()"
    command = [sys.executable, "-c", code, "truth", str(synthetic_path), "--json"]
    reader, writer = os.pipe()
    os.close(reader)
    try:
        process = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, check=False)
    finally:
        os.close(writer)
    assert process.stderr == b""
    assert process.returncode == 1


def test_a_stream_of_few_letters_hides_too(tmp_path: Path) -> None:
    code = "from ptmech.cli import main; main()"
    environment = {
        **os.environ,
        "PYTHONIOENCODING": "ascii",
        "HF_TOKEN": "open-sesame-1",
        "HOME": str(tmp_path),
    }
    command = [sys.executable, "-c", code, "info", f"{tmp_path}/open-sesame-1"]
    process = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert process.returncode == 2
    assert process.stderr.startswith("ptmech: no artifact folder '~/***'")


def test_secrets_of_the_environment_are_read_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    assert without_secrets("open-sesame-1") == "open-sesame-1"
    monkeypatch.setenv("HF_TOKEN", "open-sesame-1")
    assert without_secrets("open-sesame-1") == "***"
