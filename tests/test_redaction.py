"""Passwords in URIs are never shown."""

from __future__ import annotations

from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ikd_ray.redaction import (
    HIDDEN,
    has_password,
    printable_command,
    without_password,
    without_passwords,
    without_secrets,
)


@pytest.mark.parametrize(
    ("uri", "shown"),
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
def test_credentials_are_left_out(uri, shown):
    assert without_password(uri) == shown
    assert has_password(uri)


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
def test_other_uris_stay_as_they_are(uri):
    assert without_password(uri) == uri
    assert not has_password(uri)


def test_a_command_line():
    words = ["run.py", "--tracking-uri", "http://a:b@h", "--tracking-uri=http://a:b@h?token=x", "--name=x y"]
    assert printable_command(words) == (
        "run.py --tracking-uri http://h '--tracking-uri=http://h?token=***' '--name=x y'"
    )


def test_every_uri_in_a_text():
    text = "no 'http://ann:secret@host' nor (postgresql://db/x?password=secret), see https://host/help"
    shown = without_passwords(text)
    assert "secret" not in shown
    assert "https://host/help" in shown


def test_a_message_that_quotes_the_password_alone():
    uri = "postgresql://ann:s%2Fecret%21@db/x"
    assert without_secrets("password 's/ecret!' (s%2Fecret%21) of ann is wrong", uri) == (
        f"password '{HIDDEN}' ({HIDDEN}) of ann is wrong"
    )
    assert "ecret" not in without_secrets("invalid port 'ecret!'", "http://ann:s/ecret!@host")
    assert without_secrets("a bad day", "http://ann:a@host") == HIDDEN
    assert without_secrets("all is well", "http://host/all") == "all is well"
    assert without_secrets("no long-folder there", "long-folder:x") == "no long-folder there"


@given(text=st.lists(st.sampled_from([*"ab:/@?&=#", "token", "http://"]), max_size=30).map("".join))
def test_what_is_shown_has_no_password(text):
    assert not has_password(without_password(text))


SECRETS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=4, max_size=20).filter(
    lambda text: len(set(text)) > 3
)
SPELLINGS = st.sampled_from(
    [str, quote, quote_plus, lambda text: quote(text, safe=""), lambda t: repr(t)[1:-1]]
)


@given(secret=SECRETS, written=SPELLINGS, told=SPELLINGS)
def test_no_spelling_of_a_password_is_left(secret, written, told):
    uri = f"postgresql://ann:{written(secret)}@db/mlflow"
    assert written(secret) not in without_password(uri).replace("postgresql://db/mlflow", "")
    text = without_secrets(f"0 {uri} 1 {written(secret)} 2", uri)
    assert written(secret) not in text
    assert secret not in without_secrets(f"1 {secret} 2", f"http://ann:{quote(secret, safe='')}@host")
    encoded = f"http://ann:{quote(secret, safe='')}@host"
    assert told(secret) not in without_secrets(f"1 {told(secret)} 2", encoded)
