"""Tables, JSON, what is masked, and bars."""

import contextlib
import io
import json
import re
import sys
import time

import pytest

from embedkit.cli import output
from embedkit.options import Secret


class Screen(io.StringIO):
    """A stream that says it is a terminal."""

    encoding = "utf-8"

    def isatty(self):
        """Yes."""
        return True


def capture(work):
    """Run something, and give what it printed to stdout."""
    with contextlib.redirect_stdout(io.StringIO()) as stdout:
        work()
    return stdout.getvalue()


def test_json_is_ascii():
    """So that no console and no pipe is in its way."""
    text = capture(lambda: output.print_json({"name": "検索"}))
    assert text.isascii()
    assert {"name": "検索"} == json.loads(text)


def test_a_piped_table_is_one_line_a_row():
    """In columns; a line break inside a cell becomes a colon."""
    text = capture(lambda: output.print_table(("a", "long name"), [("first", "1\n2"), ("x", "")]))
    assert ["a      long name", "first  1: 2", "x"] == text.splitlines()


def test_control_characters_are_made_visible():
    """Tabs and line breaks stay."""
    assert "a\ufffd[31mb\tc\nd\ufffd" == output.make_printable("a\x1b[31mb\tc\r\nd\x9b")


@pytest.mark.parametrize(
    ("expected", "value"),
    [
        ("-", None),
        ("true", True),
        ("3", 3),
        ("''", ""),
        ("'query: '", "query: "),
        ("'a\\nb'", "a\nb"),
        ("plain text", "plain text"),
        ("https://***@host/v1", "https://user:word@host/v1"),
        ("KEY (set)", Secret("KEY", "sk-1")),
        ("KEY (not set)", Secret("KEY", None)),
    ],
)
def test_settings_are_shown_as_a_person_would_write_them(expected, value):
    """Quotes where the eye would miss something, and no secret."""
    assert expected == output.describe_setting(value)


@pytest.mark.parametrize(
    ("expected", "key", "value"),
    [
        ("OPENAI_API_KEY", "api_key_env", "OPENAI_API_KEY"),
        ("***", "api_key_env", "sk-live-12-34"),
        ("***", "api_key", "anything"),
        ("***", "access_token", "anything"),
        ("***", "PASSWORD", "anything"),
        (8192, "max_tokens", 8192),
        ("eu", "region", "eu"),
        ("***", "authorization", "Bearer sk-1"),
        (
            {"Authorization": "***", "x-api-key": "***", "x": {"y": 1}},
            "headers",
            {"Authorization": "Bearer sk-1", "x-api-key": "sk-1", "x": {"y": 1}},
        ),
        (["https://***@host", 3], "hosts", ["https://user:word@host", 3]),
    ],
)
def test_an_option_that_nothing_is_known_of_is_judged_by_its_name(expected, key, value):
    """The name of a variable may be shown, and what is no name may not."""
    assert expected == output.mask_raw_option(key, value)


@pytest.mark.parametrize(
    ("expected", "n_bytes"),
    [("0 B", 0), ("999 B", 999), ("1 kB", 1000), ("91.2 MB", 91_160_000), ("3.55 GB", 3_553_000_000)],
)
def test_sizes_are_powers_of_ten(expected, n_bytes):
    """As model hubs write them."""
    assert expected == output.format_bytes(n_bytes)


def draw(unit="texts", delay_s=0.0):
    """Run two pieces of work under a bar, and give what a terminal would have got."""
    with (
        contextlib.redirect_stderr(Screen()) as screen,
        output.Progress("reading", unit=unit, delay_s=delay_s) as progress,
    ):
        progress.begin("embedding", 400)
        progress.advance(100)
        deadline = time.monotonic() + 10
        while delay_s == 0 and "embedding" not in screen.getvalue() and time.monotonic() < deadline:
            time.sleep(0.05)
        output.say("a word in between")
        for _ in range(5):
            progress.advance(20)
            time.sleep(0.15 if delay_s == 0 else 0)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())


def test_a_bar_shows_what_how_many_and_how_fast():
    """And what is said in between stands on a line of its own."""
    shown = draw()
    assert "embedding" in shown
    assert "200/400 texts" in shown
    assert "texts/s" in shown
    assert "a word in between\n" in shown


def test_a_download_is_counted_in_bytes():
    """With a rate of bytes."""
    assert "200/400 bytes" in draw("bytes")


def test_short_work_draws_no_bar():
    """Nothing under two seconds."""
    assert "a word in between\n" == draw(delay_s=60.0)


def test_no_bar_is_drawn_where_nobody_looks():
    """A log file is no place for one."""
    with contextlib.redirect_stderr(io.StringIO()) as log, output.Progress("reading", delay_s=0.0) as progress:
        progress.begin("embedding", 400)
        progress.advance(400)
        time.sleep(0.1)
    assert "" == log.getvalue()


def test_a_stream_that_cannot_encode_shows_a_question_mark():
    """It never raises."""
    raw = io.BytesIO()
    with contextlib.redirect_stdout(io.TextIOWrapper(raw, encoding="cp1252")):
        output.prepare_streams()
        sys.stdout.write("検 é \udce9")
        sys.stdout.flush()
        assert "? \xe9 ?".encode("cp1252") == raw.getvalue()
