"""Passwords and tokens in URIs are refused on command lines and never shown."""

from __future__ import annotations

import time
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ikd_ray.errors import UsageError
from ikd_ray.redaction import (
    REDACTED,
    SECRET_VARIABLES,
    has_credentials,
    redact_secrets,
    redact_text,
    redact_uri,
    refuse_secrets,
)
from ikd_ray.sweep.trial import format_error
from ikd_ray.terminal.command_line import print_error
from ikd_ray.terminal.console import Console

PASSWORD = "hunter2-pass"


@pytest.mark.parametrize(
    ("uri", "redacted"),
    [
        ("http://ann:secret@host:5000/path", "http://host:5000/path"),
        ("postgresql://ann:secret@db/mlflow", "postgresql://db/mlflow"),
        ("http://token@host", "http://host"),
        ("http://:secret@[::1]:5000/", "http://[::1]:5000/"),
        ("postgresql://ann:se/c?r#e@t@db/mlflow", "postgresql://db/mlflow"),
        ("http:/ann:secret@host", "http:/host"),
        ("ann:secret@host", "ann:host"),
        ("mysql://ann@db/x?password=secret&ssl=1", "mysql://db/x?password=***&ssl=1"),
        ("postgresql://db/x?a=1&sslPass%77ord=secret", "postgresql://db/x?a=1&sslPass%77ord=***"),
        ("mssql+pyodbc:///?odbc_connect=PWD%3Dsecret", "mssql+pyodbc:///?odbc_connect=***"),
        ("https://host/#access_token=secret", "https://host/#access_token=***"),
        ("http://host?x=a@b&token=secret", "http://host?x=a@b&token=***"),
        ("http://host:80?x=a@b&token=secret", "http://b&token=***"),
    ],
)
def test_credentials_are_redacted(uri, redacted):
    assert redact_uri(uri) == redacted
    assert has_credentials(uri)


@pytest.mark.parametrize(
    "uri",
    [
        "sqlite:///mlflow.db",
        "sqlite:////home/ann@work/mlflow.db",
        "/some/folder@2x",
        "/folder:v@1",
        "mlruns",
        "http://host:5000/path?team=a",
        "file:///tmp/a:b@c",
        "databricks://profile",
        "--data-dir",
        "",
    ],
)
def test_uris_without_credentials_stay_as_they_are(uri):
    assert redact_uri(uri) == uri
    assert not has_credentials(uri)
    refuse_secrets("--tracking-uri", uri)


def test_every_uri_in_a_text_is_redacted():
    text = "no 'http://ann:secret@host' nor (postgresql://db/x?password=secret), see https://host/help"
    redacted = redact_text(text)
    assert "secret" not in redacted
    assert "https://host/help" in redacted


def test_a_message_that_quotes_the_secret_alone_is_redacted():
    uri = "postgresql://ann:s%2Fecret%21@db/x"
    assert redact_secrets("password 's/ecret!' (s%2Fecret%21) of ann is wrong", uri) == (
        f"password '{REDACTED}' ({REDACTED}) of ann is wrong"
    )
    assert "ecret" not in redact_secrets("invalid port 'ecret!'", "http://ann:s/ecret!@host")
    assert redact_secrets("a bad day", "http://ann:a@host") == REDACTED
    assert redact_secrets("all is well", "http://host/all") == "all is well"
    assert redact_secrets("no long-folder there", "long-folder:x") == "no long-folder there"


@pytest.mark.parametrize(
    "uri",
    [
        f"http://ann:{PASSWORD}@host:5000",
        f"http://{PASSWORD}@host",
        f"https://{PASSWORD}:@host",
        f"postgresql://ann:{PASSWORD}@db/mlflow",
        f"postgresql://db/mlflow?password={PASSWORD}",
        f"https://host/#access_token={PASSWORD}",
    ],
)
def test_secrets_are_refused_as_a_flag(uri):
    with pytest.raises(UsageError, match=r"MLFLOW_TRACKING_URI.*MLFLOW_TRACKING_PASSWORD") as error:
        refuse_secrets("--tracking-uri", uri)
    assert str(error.value).startswith("--tracking-uri ")
    assert PASSWORD not in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("uri", [None, "http://ann@host", "postgresql://mlflow_admin@db/mlflow"])
def test_user_names_are_not_refused(uri):
    refuse_secrets("--tracking-uri", uri)


@pytest.mark.parametrize("script", ["run", "report", "export"])
def test_commands_refuse_a_password_before_anything_else(script, command, tmp_path):
    uri = f"http://ann:{PASSWORD}@127.0.0.1:1"
    done = command(script, "--task", "cola", "--tracking-uri", uri, cwd=tmp_path, status=2)
    assert done.stdout == ""
    assert done.stderr.startswith("error: --tracking-uri http://127.0.0.1:1: ")
    assert done.stderr.count("\n") == 1
    assert PASSWORD not in done.stderr
    assert not list(tmp_path.iterdir())


@given(text=st.lists(st.sampled_from([*"ab:/@?&=#", "token", "http://"]), max_size=30).map("".join))
def test_a_redacted_text_has_no_credentials(text):
    assert not has_credentials(redact_uri(text))


SECRETS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=4, max_size=20).filter(
    lambda text: len(set(text)) > 3
)
SPELLINGS = st.sampled_from(
    [str, quote, quote_plus, lambda text: quote(text, safe=""), lambda t: repr(t)[1:-1]]
)


@given(secret=SECRETS, in_uri=SPELLINGS, in_text=SPELLINGS)
def test_no_spelling_of_a_secret_survives(secret, in_uri, in_text):
    uri = f"postgresql://ann:{in_uri(secret)}@db/mlflow"
    assert in_uri(secret) not in redact_uri(uri).replace("postgresql://db/mlflow", "")
    assert in_uri(secret) not in redact_secrets(f"0 {uri} 1 {in_uri(secret)} 2", uri)
    encoded = f"http://ann:{quote(secret, safe='')}@host"
    assert secret not in redact_secrets(f"1 {secret} 2", encoded)
    assert in_text(secret) not in redact_secrets(f"1 {in_text(secret)} 2", encoded)


@pytest.mark.parametrize("piece", ["a", "a+", "a:/", "a:b@", "http://x@", "?a=b&"])
def test_a_long_text_is_redacted_in_linear_time(piece):
    """200,000 characters: a few hundredths of a second, where a quadratic search takes minutes."""
    start = time.monotonic()
    redact_text(piece * (200_000 // len(piece)))
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("name", SECRET_VARIABLES)
def test_secrets_of_the_environment_reach_no_message(name, monkeypatch, capsys):
    monkeypatch.setenv(name, PASSWORD)
    print_error(f"403 for {PASSWORD}")
    Console().warn(f"403 for {PASSWORD}")
    shown = capsys.readouterr()
    assert "403 for ***" in shown.err
    assert PASSWORD not in shown.out + shown.err + format_error(OSError(f"403 for {PASSWORD}"))


def test_a_short_value_is_no_secret(monkeypatch):
    """Replacing each of its letters would reveal it, and make the message unreadable."""
    monkeypatch.setenv("HF_TOKEN", "ab")
    assert redact_text("about") == "about"
