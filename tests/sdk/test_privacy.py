"""What is private in a text, what is shown instead, and that the command's streams see to it."""

from __future__ import annotations

import getpass
import io
import json
import os
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptmech import errors
from ptmech._credentials import without_credentials
from ptmech._output import Discreet, discreet_output, told
from ptmech._privacy import (
    Private,
    names_of_this_machine,
    secrets_of_the_environment,
    without_secrets,
)

HUB = "hf_" + "aB3dE6gH9" * 4
PRIVATE = Private(
    secrets=("open-sesame-1",),
    folders=("/data/users/keeper",),
    names=(
        ("labuser", "the name of the user", "$USER"),
        ("gpu-node-17", "the name of this machine", "$HOSTNAME"),
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
        ("https://keeper:sesame@example.org/x", "https://***@example.org/x"),
        ("https://keeper:ses@me@example.org/x", "https://***@example.org/x"),
        ("https://0123456789@example.org/x", "https://***@example.org/x"),
        ("postgres://keeper:sesame@db/x", "postgres://***@db/x"),
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
        "keeper@example.org",
        "12:30: done, 3/4",
    ],
)
def test_what_only_looks_like_a_credential_stays(text: str) -> None:
    assert PRIVATE.hidden(text) == text
    assert PRIVATE.found_in(text) is None


def test_secrets_in_use_are_hidden_wherever_they_are() -> None:
    for before, behind in [("", ""), ("'", "'"), ("a_", "."), (r"a\n", r"\n"), ("%2F", "%2F")]:
        text = f"{before}open-sesame-1{behind}"
        assert PRIVATE.hidden(text) == f"{before}***{behind}"
        assert PRIVATE.found_in(text) == "an access token"
    assert PRIVATE.hidden("open-sesame-12, xopen-sesame-1") == "open-sesame-12, xopen-sesame-1"


def test_secrets_are_known_as_addresses_spell_them() -> None:
    private = Private(secrets=("aB3/dE6+gH9=",))
    assert private.hidden("x?key1=aB3%2FdE6%2BgH9%3D&y=1") == "x?key1=***&y=1"


@pytest.mark.parametrize(
    ("name", "value", "secret"),
    [
        ("HF_TOKEN", "opensesame1", True),
        ("HUGGING_FACE_HUB_TOKEN", "opensesame1", True),
        ("CI_TOKEN", "open-0123-4567", True),
        ("MY_API_KEY", "0123456789abcdef", True),
        ("DB_PASSWORD", "sesame/4567", True),
        ("AWS_SECRET_ACCESS_KEY", "aaaa/0123+4567", True),
        # What numbers, words and names may be like: hiding it would hide half a message.
        ("HF_TOKEN", "sesame-1", False),
        ("HF_TOKEN", "statements", False),
        ("EOS_TOKEN", "<|endoftext|>", False),
        ("SOME_API_KEY", "1512099333", False),
        ("SOME_API_KEY", "0.7142857142857143", False),
        ("DB_PASSWORD", "postgres", False),
        ("SOME_PASSWORD", '"kind": ', False),
        ("SOME_PASSWORD", '{"layer": 12', False),
        ("TOKENIZERS_PARALLELISM", "opensesame1", False),
        ("EDITOR", "opensesame1", False),
    ],
)
def test_variables_named_as_secrets_are_secrets(name: str, value: str, secret: bool) -> None:
    assert secrets_of_the_environment({name: value, "PATH": "/usr/bin"}) == (
        (value,) if secret else ()
    )


def test_a_longer_secret_is_hidden_before_one_within_it() -> None:
    variables = {"A_TOKEN": "sesame-4567", "B_TOKEN": "sesame-4567-89"}
    assert secrets_of_the_environment(variables) == ("sesame-4567-89", "sesame-4567")


# Places -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/data/users/keeper", "~"),
        ("in /data/users/keeper.", "in ~."),
        ("'/data/users/keeper/acts'", "'~/acts'"),
        ("file:///data/users/keeper/x", "file://~/x"),
        (f"?cache={quote('/data/users/keeper', safe='')}%2Fx", "?cache=~%2Fx"),
        (r"\/data\/users\/keeper\/x", r"~\/x"),
        (r"a\n/data/users/keeper/x", r"a\n~/x"),
        ("/home/grace/x and /Users/grace", "/home/***/x and /Users/***"),
        (r"C:\Users\grace\x", r"C:\Users\***\x"),
        ("/home/grace: no such folder", "/home/***: no such folder"),
        ("/scratch/labuser/x", "/scratch/$USER/x"),
        ("/scratch/labuser", "/scratch/$USER"),
        ("/tmp/pytest-of-labuser/x", "/tmp/pytest-of-$USER/x"),
        (r"D:\labuser\x", r"D:\$USER\x"),
        ("~labuser/acts", "~$USER/acts"),
        ("labuser@gpu-node-17:/x", "$USER@$HOSTNAME:/x"),
        ("http://gpu-node-17:8000/x", "http://$HOSTNAME:8000/x"),
        ("host='gpu-node-17', port=80", "host='$HOSTNAME', port=80"),
        (r"\\gpu-node-17\share", r"\\$HOSTNAME\share"),
    ],
)
def test_places_are_hidden(text: str, shown: str) -> None:
    assert PRIVATE.hidden(text) == shown
    assert PRIVATE.found_in(text) is not None


@pytest.mark.parametrize(
    "text",
    [
        "/data/users/adam/x",
        "/data/users/keeper.bak",
        "labuser, and gpu-node-17, are words",
        "labuser/acts@v1",
        "acts/labuser/cities/L01.safetensors: is damaged",
        "/home/$USER/x and /home/***/x",
        "https://huggingface.co/datasets/labuser/acts",
        "/scratch/labusers/x",
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


# Texts are not ours, and may have been made to be slow.
SLOW = {
    "keys that never end": "-----BEGIN PRIVATE KEY----- ",
    "a key of dashes": "-----BEGIN PRIVATE KEY-----" + "-x" * 20,
    "headers": "authorization: bearer ",
    "addresses": "https://a:b",
    "queries": "?token=",
    "tokens": "hf_sk-",
    "homes": "/home/a",
    "own homes in a piece": "/data/users/keeper",
    "names in paths": "/x/labuser/a ",
    "names in a piece": "/labuser",
    "names glued": "labuser",
    "names in an address": "http://x/labuser",
}


@pytest.mark.parametrize("piece", SLOW.values(), ids=list(SLOW))
def test_time_grows_with_the_text_and_not_with_its_square(piece: str) -> None:
    def seconds(length: int) -> float:
        text = piece * (length // len(piece))
        found: list[float] = []
        for _ in range(2):
            begun = time.process_time()
            PRIVATE.hidden(text)
            PRIVATE.found_in(text)
            found.append(time.process_time() - begun)
        return min(found)

    # Ten times as long, where a square would take a hundred times as long.
    assert seconds(300_000) < 30 * max(seconds(30_000), 0.001)


def test_a_key_is_hidden_up_to_its_end_and_not_further() -> None:
    begin, end = "-----BEGIN PRIVATE KEY-----", "-----END PRIVATE KEY-----"
    assert PRIVATE.hidden(f"a {begin}\nDEK-Info: x\nMII\n{end} b") == "a *** b"
    assert PRIVATE.hidden(f"{begin} a ----- b {end}") == f"*** a ----- b {end}"
    assert PRIVATE.hidden(f"{begin} a {begin} MII {end} b") == "*** a *** b"


def test_names_are_those_of_user_and_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "gpu-node-17.example.org")
    monkeypatch.setattr(getpass, "getuser", lambda: "labuser")
    assert {name for name, *_ in names_of_this_machine()} == {
        "gpu-node-17.example.org",
        "gpu-node-17",
        "labuser",
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
    error = kind(f"no {HUB} at https://keeper:sesame@example.org with open-sesame-1")
    said = "no *** at https://***@example.org with ***"
    assert str(error) == said
    assert error.args == (said,)
    assert said in repr(error)


@pytest.mark.parametrize(
    "ref",
    [
        "https://keeper:sesame@example.org/acts",
        "https://keeper:sesame@example.org:port/acts",
        "ftp://keeper:sesame@example.org/acts",
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
            sys.stderr.write("half a line, open-sesame-1")
        assert (sys.stdout, sys.stderr) == before
        assert behind["stdout"].getvalue() == b"~/x\n"
        assert behind["stderr"].getvalue().decode() == ("*** é \N{SNOWMAN}\nhalf a line, ***")


@pytest.mark.usefixtures("at_home")
def test_bars_are_not_held_back() -> None:
    with streams() as behind, discreet_output():
        sys.stderr.write("\r10 % open-sesame-1")
        sys.stderr.flush()
        assert behind["stderr"].getvalue() == b"\r10 % ***"
        sys.stderr.write("\r20 %")
        sys.stderr.flush()
        assert behind["stderr"].getvalue() == b"\r10 % ***\r20 %"


class Counting(io.StringIO):
    """Counts what reaches a stream."""

    writes = flushes = 0

    def __init__(self, *, waiting: bool) -> None:
        super().__init__()
        self._waiting = waiting

    @property
    def line_buffering(self) -> bool:
        return self._waiting

    def write(self, text: str, /) -> int:
        self.writes += 1
        return super().write(text)

    def flush(self) -> None:
        self.flushes += 1
        super().flush()


@pytest.mark.parametrize("waiting", [False, True])
def test_lines_are_sent_in_blocks_unless_somebody_waits_for_each(waiting: bool) -> None:
    behind = Counting(waiting=waiting)
    stream = Discreet(behind, PRIVATE)
    for index in range(20_000):
        stream.write(f"line {index} of open-")
        stream.write("sesame-1\n")
    assert behind.flushes == 0
    assert (behind.writes == 20_000) if waiting else (behind.writes < 20)
    stream.flush()
    assert behind.getvalue() == "".join(f"line {index} of ***\n" for index in range(20_000))


def test_a_long_line_is_put_together_once() -> None:
    behind = Counting(waiting=False)
    stream = Discreet(behind, PRIVATE)
    for _ in range(20_000):
        stream.write("open-sesame-1 ")
    assert behind.writes == 0
    stream.write("\n")
    assert behind.writes == 1
    assert behind.getvalue() == "*** " * 20_000 + "\n"


def test_bytes_do_not_pass() -> None:
    with streams() as behind, discreet_output():
        with pytest.raises(TypeError, match="text is written here, not bytes"):
            sys.stdout.write(b"open-sesame-1")  # pyright: ignore[reportArgumentType]
        assert not hasattr(sys.stdout, "buffer")
        assert behind["stdout"].getvalue() == b""


def test_letters_that_an_encoding_lacks_are_spelled_out(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    with discreet_output():
        sys.stdout.write("é \N{SNOWMAN} \ud800\n")
    assert raw.getvalue() == rb"\xe9 \u2603 \ud800" + b"\n"


def command(*arguments: object, shell: str = "", **variables: str) -> tuple[int, bytes, bytes]:
    """Run the command in a process; the shell may do something to its streams."""
    words = [sys.executable, "-c", "from ptmech.cli import main; main()", *map(str, arguments)]
    if shell:
        words = ["sh", "-c", f'exec "$@" {shell}', "sh", *words]
    done = subprocess.run(words, capture_output=True, check=False, env={**os.environ, **variables})
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(("options", "closed"), [((), ">&-"), (("--json",), ">&-"), ((), "2>&-")])
def test_a_stream_that_is_closed_is_no_error(
    synthetic_path: Path, options: tuple[str, ...], closed: str
) -> None:
    code, out, said = command("info", synthetic_path, *options, shell=closed)
    assert (code, said) == (0, b"")
    assert bool(out) == (closed == "2>&-")
    assert command("info", synthetic_path / "nowhere", shell=closed)[0] == 2


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "latin-1", "ascii"])
def test_streams_of_any_encoding_hide(tmp_path: Path, encoding: str) -> None:
    variables = {"PYTHONIOENCODING": encoding, "HF_TOKEN": "open-sesame-1", "HOME": str(tmp_path)}
    code, out, said = command("info", f"{tmp_path}/open-sesame-1", **variables)
    assert (code, out) == (2, b"")
    assert said.decode(encoding).startswith("ptmech: no artifact folder '~/***'")


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1", "ascii"])
def test_json_is_valid_in_any_encoding(synthetic_path: Path, encoding: str) -> None:
    code, out, said = command("info", synthetic_path, "--json", PYTHONIOENCODING=encoding)
    assert (code, said) == (0, b"")
    expected = json.loads(command("info", synthetic_path, "--json")[1])
    assert json.loads(out.decode(encoding)) == expected


def test_a_bug_of_our_own_streams_is_told_past_them() -> None:
    code = """
from ptmech import cli, _output
def broken(*_):
    raise RuntimeError("open-sesame-1")
_output.Discreet.write = broken
cli.main()
"""
    done = subprocess.run(
        [sys.executable, "-c", code, "info", "nowhere"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HF_TOKEN": "open-sesame-1"},
    )
    assert done.returncode == 1
    assert "RuntimeError: ***" in done.stderr
    assert "please report it" in done.stderr
    assert "open-sesame-1" not in done.stderr.replace('RuntimeError("open-sesame-1")', "")


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
