"""Reading a .env file strictly, and editing one variable of it, also while others write, crash or run out of disk."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from dotenv import dotenv_values
from filelock import FileLock
from hypothesis import example, given, settings
from hypothesis import strategies as st

from embedkit.env_file import EnvChange, EnvEntry, comment_out, read_env_file, set_variable
from embedkit.errors import ConfigError, SettingError

ROOT = Path(__file__).resolve().parents[1]
NOBODY = 65534

posix_only = pytest.mark.skipif(os.name != "posix", reason="modes, owners and resource limits are those of POSIX")
root_only = pytest.mark.skipif(
    getattr(os, "geteuid", lambda: 1)() != 0, reason="only root can give files away and become another user"
)


@pytest.fixture
def path(tmp_path):
    """Give the .env file of a test, which does not exist yet."""
    return tmp_path / ".env"


@pytest.fixture
def open_path():
    """Give a .env file that the user whom root becomes can reach, with everything above it."""
    with tempfile.TemporaryDirectory() as directory:
        if os.geteuid() == 0:
            os.chown(directory, NOBODY, NOBODY)
        path = Path(directory, ".env")
        path.write_bytes(b"A=1\n")
        yield path


def start(script, *args):
    """Start *script* in a process of its own; it answers "ready" and goes on when it is sent a line."""
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, args)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )


def go(*processes):
    """Let processes that are ready go on together."""
    for process in processes:
        assert "ready\n" == process.stdout.readline()
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()


PREAMBLE = """
import os, sys
from pathlib import Path
from embedkit.env_file import comment_out, read_env_file, set_variable
from embedkit.errors import EmbedkitError
path = Path(sys.argv[1])
set_variable(path.with_name("warm.env"), "WARM", "1")  # everything is imported before rights are given up
path.with_name("warm.env").unlink()
print("ready", flush=True)
sys.stdin.readline()
"""


def outcome(script, *args):
    """Run *script* behind the preamble; give its exit status and output, and pass its errors on to pytest."""
    process = start(PREAMBLE + script, *args)
    go(process)
    output, errors = process.communicate(timeout=60)
    sys.stderr.write(errors)
    return process.returncode, output


def names(directory):
    """List what lies in *directory*."""
    return sorted(entry.name for entry in directory.iterdir())


# Reading


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("A=speed", "speed"),
        ("export A=speed", "speed"),
        ("  A = speed  # why", "speed"),
        ("A=", ""),
        ("A= # nothing", ""),
        ("A=a#b", "a#b"),
        ("A=#b", "#b"),
        ("A='a # b'", "a # b"),
        ('A="a # b" # c', "a # b"),
        ("A=${HOME}", "${HOME}"),
        ("A='${HOME}'", "${HOME}"),
        ('A="$HOME ${X:-y}"', "$HOME ${X:-y}"),
        (r"A='C:\new'", r"C:\new"),
        (r'A="a\tb\"c\\d"', 'a\tb"c\\d'),
        ("A=https://example.org/v1?x=1&y=2", "https://example.org/v1?x=1&y=2"),
        ("A=größe", "größe"),
    ],
)
def test_a_value_is_read_literally(path, line, value):
    """Fault 15. Neither `${X}` nor a quoted or inner `#` is taken for anything else."""
    path.write_bytes(f"{line}\n".encode())
    assert {"A": EnvEntry(value=value, line=1)} == read_env_file(path)


def test_reading_agrees_with_dotenv_without_interpolation(path):
    """Values are what python-dotenv says they are, also where a quoted value spans lines of a file from Windows."""
    path.write_bytes(b"# c\r\nA=1\r\n\r\nexport B='x\r\ny' # d\r\nC=\"\\u00e9\\n\"\r\nA=2\r\n'D'=${A}")
    expected = dotenv_values(path, interpolate=False, encoding="utf-8")
    assert expected == {key: entry.value for key, entry in read_env_file(path).items()}
    assert {"A": 7, "B": 4, "C": 6, "D": 8} == {key: entry.line for key, entry in read_env_file(path).items()}


def test_the_last_assignment_of_a_repeated_key_counts_and_a_key_alone_is_none(path):
    """`export A` after `A=…` takes nothing back, and a key without `=` is left out."""
    path.write_bytes(b"A=1\nA=2\nexport A\nB\n")
    assert {"A": EnvEntry(value="2", line=2)} == read_env_file(path)


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf", b"\n\n", b"# nothing here"])
def test_a_file_without_assignments_has_no_variables(path, content):
    """Blank lines, comments and a lone byte order mark are nothing."""
    path.write_bytes(content)
    assert {} == read_env_file(path)


def test_a_missing_file_has_no_variables(path):
    """A .env is optional."""
    assert {} == read_env_file(path)


def test_a_byte_order_mark_is_no_part_of_the_first_key(path):
    """Editors on Windows write one."""
    path.write_bytes(b"\xef\xbb\xbfA=1\n")
    assert {"A": EnvEntry(value="1", line=1)} == read_env_file(path)


@pytest.mark.parametrize(
    ("content", "line", "reason"),
    [
        (b'A=1\nB="s3cret\nC=3\n', 2, "the quote that opens the value of B is never closed"),
        (b"A=1\n\n\n  B='s3cret\n", 4, "the quote that opens the value of B is never closed"),
        (b"A=1\r\n\r\nB='s3cret\r\n", 3, "the quote that opens the value of B is never closed"),
        (b'A="s3cret" x\n', 1, "something follows the closing quote of A"),
        (b'A="x\ny" s3cret\n', 1, "something follows the closing quote of A"),
        (b"A=1\ns3cret value\n", 2, "neither NAME=value nor a comment"),
        (b"=s3cret\n", 1, "neither NAME=value nor a comment"),
    ],
)
def test_a_line_that_cannot_be_parsed_is_named_and_never_skipped(path, content, line, reason):
    """Fault 13. The error names file and line, and shows no value."""
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=re.escape(reason)) as caught:
        read_env_file(path)
    assert f"{path}:{line}" == caught.value.origin
    assert str(path) in caught.value.problem
    assert "s3cret" not in str(caught.value)


def test_all_faults_of_a_file_are_reported_at_once(path):
    """Fault 13. Also behind an unparsable line the numbers are right, in files from Windows too."""
    path.write_bytes(b'A=\'x\r\nB C\r\nD=\0\r\nE="x" y\r\n')
    with pytest.raises(ConfigError) as caught:
        read_env_file(path)
    assert [f"{path}:{line}" for line in (1, 2, 3, 4)] == [fault.origin for fault in caught.value.faults]


def test_a_nul_byte_names_file_and_line(path):
    """Fault 14."""
    path.write_bytes(b"A=1\nB=\0\n")
    with pytest.raises(ConfigError, match="NUL") as caught:
        read_env_file(path)
    assert f"{path}:2" == caught.value.origin


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252"])
def test_bytes_that_are_not_utf8_name_file_line_and_byte(path, encoding):
    """Fault 14."""
    path.write_bytes("A=1\r\nB=größe\r\n".encode(encoding))
    with pytest.raises(ConfigError, match=r"not UTF-8: line 2 contains the byte 0xf6") as caught:
        read_env_file(path)
    assert f"{path}:2" == caught.value.origin


@pytest.mark.parametrize(("mark", "encoding"), [(b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be")])
def test_utf16_is_named(path, mark, encoding):
    """Fault 14. PowerShell's `>` writes it."""
    path.write_bytes(mark + "A=1\n".encode(encoding))
    with pytest.raises(ConfigError, match="is UTF-16, not UTF-8"):
        read_env_file(path)


def test_a_directory_is_named(path):
    """Fault 14. Virtual environments are called .env too."""
    path.mkdir()
    with pytest.raises(ConfigError, match=re.escape(f"{path} is a directory")):
        read_env_file(path)
    with pytest.raises(ConfigError, match=re.escape(f"{path} is a directory")):
        set_variable(path, "A", "1")


@posix_only
def test_an_unreadable_file_is_named(open_path):
    """Fault 14. Root reads everything, so root becomes somebody else first."""
    open_path.chmod(0)
    script = f"""
if os.geteuid() == 0:
    os.setuid({NOBODY})
for call in (lambda: read_env_file(path), lambda: set_variable(path, "A", "2")):
    try:
        call()
    except EmbedkitError as error:
        print(type(error).__name__, error.problem)
"""
    assert (0, f"ConfigError {open_path} cannot be read: Permission denied.\n" * 2) == outcome(script, open_path)


def test_no_value_shows_in_a_representation():
    """A .env holds secrets, and representations end up in logs."""
    shown = repr(EnvEntry(value="s3cret", line=1))
    shown += repr(EnvChange(key="A", old="s3cret", new="s3cret", path=Path(".env"), line=1))
    assert "s3cret" not in shown


# Setting


@pytest.mark.parametrize(
    ("before", "key", "value", "after"),
    [
        pytest.param(b"", "A", "1", b"A=1\n", id="empty file"),
        pytest.param(b"\xef\xbb\xbf", "A", "1", b"\xef\xbb\xbfA=1\n", id="only a byte order mark"),
        pytest.param(b"A=1\n", "B", "2", b"A=1\nB=2\n", id="appended"),
        pytest.param(b"A=1", "B", "2", b"A=1\nB=2", id="appended without a final line break"),
        pytest.param(b"# c", "B", "2", b"# c\nB=2", id="appended behind a comment"),
        pytest.param(b"A=1\r\n", "B", "2", b"A=1\r\nB=2\r\n", id="appended with CRLF"),
        pytest.param(b"A=1\r", "B", "2", b"A=1\rB=2\r", id="appended with CR"),
        pytest.param(b"A=1\r\nC=3\n", "B", "2", b"A=1\r\nC=3\nB=2\r\n", id="appended to mixed line endings"),
        pytest.param(b"A=1", "A", "2", b"A=2", id="no final line break"),
        pytest.param(b"A=1\nB=2\r\nC=3\n", "B", "x", b"A=1\nB=x\r\nC=3\n", id="line endings stay"),
        pytest.param(b"\xef\xbb\xbfA=1\n", "A", "2", b"\xef\xbb\xbfA=2\n", id="byte order mark stays"),
        pytest.param(b"# a\n\nA=1 # why\n# z\n", "A", "2", b"# a\n\nA=2 # why\n# z\n", id="comments stay"),
        pytest.param(b"A='x y'\t# why\n", "A", "2", b"A=2\t# why\n", id="comment behind a quoted value"),
        pytest.param(b"A='x'# why\n", "A", "2", b"A='2'# why\n", id="comment stuck to a quoted value"),
        pytest.param(b"A= # why\n", "A", "2", b"A=2 # why\n", id="comment behind an empty value"),
        pytest.param(b"A=1 # why\n", "A", "", b"A= # why\n", id="emptied before a comment"),
        pytest.param(b"  export  A =  1  \n", "A", "2", b"  export  A =  2  \n", id="export and spaces stay"),
        pytest.param(b"'A'=1\n", "A", "2", b"'A'=2\n", id="quoted key stays"),
        pytest.param(b"A=1\nB=2\nA=3\n", "A", "4", b"A=1\nB=2\nA=4\n", id="of a repeated key the last"),
        pytest.param(b"A=1\nexport A\n", "A", "2", b"A=2\nexport A\n", id="a key alone stays"),
        pytest.param(b"#A=1\n", "A", "2", b"#A=1\nA=2\n", id="a comment is no assignment"),
        pytest.param(b"A='x\ny' # c\nB=2\n", "A", "1", b"A=1 # c\nB=2\n", id="value of two lines"),
        pytest.param(b"A=1\n", "A", "a b", b"A='a b'\n", id="quoted for a space"),
        pytest.param(b"A=1\n", "A", "$(x);y", b"A='$(x);y'\n", id="quoted for a shell"),
        pytest.param(b"A=1\n", "A", "it's", b'A="it\'s"\n', id="quoted for a quote"),
        pytest.param(b"A=1\n", "A", "a'\"b\\", b'A="a\'\\"b\\\\"\n', id="escaped"),
        pytest.param(b"A=1\n", "A", "https://x/v1", b"A=https://x/v1\n", id="not quoted without need"),
    ],
)
def test_only_the_value_is_replaced(path, before, key, value, after):
    """Fault 18. Comments, order, export, line endings, byte order mark and the final line break are kept."""
    path.write_bytes(before)
    set_variable(path, key, value)
    assert after == path.read_bytes()
    assert value == read_env_file(path)[key].value
    assert [".env"] == names(path.parent)


def test_the_change_says_what_was_and_where(path):
    """The line is that of the assignment, in the file as it is now."""
    path.write_bytes(b"# c\nA=1\n")
    assert EnvChange(key="A", old="1", new="2", path=path, line=2) == set_variable(path, "A", "2")
    assert EnvChange(key="B", old=None, new="3", path=path, line=3) == set_variable(path, "B", "3")
    assert {"A": EnvEntry(value="2", line=2), "B": EnvEntry(value="3", line=3)} == read_env_file(path)


def test_a_value_that_is_there_already_is_not_written_again(path):
    """However it is spelled, the same value is nothing to do."""
    path.write_bytes(b'A="1"\n')
    os.utime(path, ns=(1, 1))
    assert EnvChange(key="A", old="1", new="1", path=path, line=1) == set_variable(path, "A", "1")
    assert (1, b'A="1"\n') == (path.stat().st_mtime_ns, path.read_bytes())


def test_a_dry_run_says_the_same_and_writes_nothing(path):
    """The change of a dry run is the change of the real one."""
    assert EnvChange(key="A", old=None, new="1", path=path, line=1) == set_variable(path, "A", "1", dry_run=True)
    assert [] == names(path.parent)
    path.write_bytes(b"A=1\n")
    assert EnvChange(key="A", old="1", new="2", path=path, line=1) == set_variable(path, "A", "2", dry_run=True)
    assert EnvChange(key="A", old="1", new=None, path=path, line=1) == comment_out(path, "A", dry_run=True)
    assert b"A=1\n" == path.read_bytes()


@pytest.mark.parametrize("key", ["", "1A", "A B", "A\nB", "A=1", "A-B", "é", "#A", "export A", "A\n"])
def test_a_key_that_is_no_name_is_refused(path, key):
    """Fault 19. A key with a line break or `=` would write a second variable."""
    path.write_bytes(b"A=1\n")
    with pytest.raises(SettingError, match=re.escape(repr(key))):
        set_variable(path, key, "x")
    with pytest.raises(SettingError, match=re.escape(repr(key))):
        comment_out(path, key)
    assert b"A=1\n" == path.read_bytes()


@pytest.mark.parametrize("mark", ["\n", "\r", "\0", "\udce9"])
def test_a_value_that_a_line_cannot_hold_is_refused(path, mark):
    """Fault 19. Line breaks, NUL and what is no Unicode are named; the value, maybe a secret, is not shown."""
    path.write_bytes(b"A=1\n")
    with pytest.raises(SettingError, match=re.escape(repr(mark))) as caught:
        set_variable(path, "A", f"s3{mark}cret")
    assert "cret" not in str(caught.value)
    assert b"A=1\n" == path.read_bytes()


@pytest.mark.parametrize("content", [b"A=1\nB='x\n", b"A=\xe9\n", b"A=1\nB=\0\n"])
def test_a_file_that_does_not_parse_is_never_edited(path, content):
    """Fault 13. What cannot be understood cannot be kept either."""
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=re.escape(str(path))):
        set_variable(path, "A", "2")
    with pytest.raises(ConfigError, match=re.escape(str(path))):
        comment_out(path, "A")
    assert content == path.read_bytes()
    assert [".env"] == names(path.parent)


def test_a_directory_that_does_not_exist_is_not_made(tmp_path):
    """A misspelt path is an error, not a new folder."""
    path = tmp_path / "missing" / ".env"
    with pytest.raises(ConfigError, match=re.escape(f"{path} cannot be written")):
        set_variable(path, "A", "1")
    assert [] == names(tmp_path)


# Commenting out


@pytest.mark.parametrize(
    ("before", "after", "old", "line"),
    [
        (b"A=1\n", b"# A=1\n", "1", 1),
        (b"# c\r\n\r\n  export A='1' # why\r\nB=2\r\n", b"# c\r\n\r\n  # export A='1' # why\r\nB=2\r\n", "1", 3),
        (b"A=1\nB=2\nA=3", b"# A=1\nB=2\n# A=3", "3", 3),
        (b"A='x\r\ny\n\nz'\r\nB=2", b"# A='x\r\n# y\n# \n# z'\r\nB=2", "x\r\ny\n\nz", 1),
        (b"\xef\xbb\xbfA=1", b"\xef\xbb\xbf# A=1", "1", 1),
    ],
)
def test_every_assignment_of_a_key_is_commented_out(path, before, after, old, line):
    """What is commented out stays readable where it stood, and is no variable any more."""
    path.write_bytes(before)
    assert EnvChange(key="A", old=old, new=None, path=path, line=line) == comment_out(path, "A")
    assert after == path.read_bytes()
    assert "A" not in read_env_file(path)


def test_commenting_out_what_is_not_there_does_nothing(path):
    """Neither a missing file nor a missing key is an error."""
    assert comment_out(path, "A") is None
    path.write_bytes(b"B=1\nA\n")
    assert comment_out(path, "A") is None
    assert b"B=1\nA\n" == path.read_bytes()


# Files


@posix_only
def test_a_new_file_is_for_its_owner_only(path):
    """A .env holds secrets."""
    set_variable(path, "A", "1")
    assert 0o600 == path.stat().st_mode & 0o777


@posix_only
@pytest.mark.parametrize("mode", [0o640, 0o600, 0o664])
def test_the_mode_is_kept(path, mode):
    """Fault 18."""
    path.write_bytes(b"A=1\n")
    path.chmod(mode)
    set_variable(path, "A", "2")
    comment_out(path, "A")
    assert (mode, b"# A=2\n") == (path.stat().st_mode & 0o777, path.read_bytes())


@posix_only
@root_only
def test_owner_and_group_are_kept(path):
    """Fault 18. An administrator's edit does not take a service's file away from it."""
    path.write_bytes(b"A=1\n")
    path.chmod(0o640)
    os.chown(path, NOBODY, NOBODY - 1)
    set_variable(path, "A", "2")
    found = path.stat()
    assert (NOBODY, NOBODY - 1, 0o640) == (found.st_uid, found.st_gid, found.st_mode & 0o777)


@posix_only
@root_only
def test_a_group_that_cannot_be_kept_leaves_no_other_group_in(open_path):
    """Fault 18. A file of a group that the writer is no member of is not shown to the writer's own group instead."""
    os.chown(open_path, NOBODY, NOBODY - 1)
    open_path.chmod(0o660)
    script = f"os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY}); set_variable(path, 'A', '2')"
    assert (0, "") == outcome(script, open_path)
    found = open_path.stat()
    assert (NOBODY, 0o600, b"A=2\n") == (found.st_gid, found.st_mode & 0o777, open_path.read_bytes())


@posix_only
def test_a_write_protected_file_is_left_alone(open_path):
    """Fault 18. That its directory is writable is no permission to replace it."""
    open_path.chmod(0o444)
    script = f"""
if os.geteuid() == 0:
    os.setuid({NOBODY})
try:
    set_variable(path, "A", "2")
except EmbedkitError as error:
    print(type(error).__name__, error.problem)
"""
    assert (0, f"ConfigError {open_path.resolve()} is write-protected.\n") == outcome(script, open_path)
    assert ([".env"], b"A=1\n") == (names(open_path.parent), open_path.read_bytes())


def link(source, target):
    """Make the symlink *source*, where the system lets this user."""
    try:
        source.symlink_to(target)
    except OSError as error:
        pytest.skip(f"this user may not make symlinks here: {error}")


def test_a_symlink_stays_and_its_target_is_written(tmp_path, path):
    """Fault 18. Also through a second link, and relative to where the link stands."""
    (tmp_path / "shared").mkdir()
    real = tmp_path / "shared" / "real.env"
    real.write_bytes(b"A=1\n")
    link(tmp_path / "shared" / "link.env", "real.env")
    link(path, Path("shared", "link.env"))
    set_variable(path, "A", "2")
    comment_out(path, "A")
    assert (True, b"# A=2\n") == (path.is_symlink(), real.read_bytes())
    assert ([".env", "shared"], ["link.env", "real.env"]) == (names(tmp_path), names(tmp_path / "shared"))


def test_a_symlink_to_nothing_makes_its_target(tmp_path, path):
    """Fault 18. The link says where the file is to be."""
    link(path, "real.env")
    set_variable(path, "A", "1")
    assert (True, b"A=1\n") == (path.is_symlink(), (tmp_path / "real.env").read_bytes())


@posix_only
def test_a_pipe_is_not_replaced_by_a_file(path):
    """Password managers serve a .env through a pipe."""
    os.mkfifo(path)
    with pytest.raises(ConfigError, match="a pipe"):
        set_variable(path, "A", "1")
    assert path.is_fifo()


# Other processes, and ends in the middle


def test_two_processes_that_write_lose_no_key(path):
    """Fault 16."""
    path.write_bytes(b"# kept\n")
    script = PREAMBLE + 'for n in range(30): set_variable(path, f"{sys.argv[2]}_{n}", f"{sys.argv[2]} {n}")'
    processes = [start(script.replace("warm.env", f"{name}.env"), path, name) for name in ("LEFT", "RIGHT")]
    go(*processes)
    for process in processes:
        assert ("", "") == process.communicate(timeout=60)
    expected = {f"{name}_{n}": f"{name} {n}" for name in ("LEFT", "RIGHT") for n in range(30)}
    assert expected == {key: entry.value for key, entry in read_env_file(path).items()}
    assert path.read_bytes().startswith(b"# kept\n")
    assert [".env"] == names(path.parent)


def test_two_threads_that_write_lose_no_key(path):
    """Fault 16."""

    def write(name):
        for n in range(10):
            set_variable(path, f"{name}_{n}", str(n))

    threads = [threading.Thread(target=write, args=(name,)) for name in ("LEFT", "RIGHT")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {f"{name}_{n}" for name in ("LEFT", "RIGHT") for n in range(10)} == read_env_file(path).keys()


def test_a_lock_that_cannot_be_had_is_named(path):
    """Fault 16. The wait ends, and the file is as it was; reading waits for nobody."""
    path.write_bytes(b"A=1\n")
    lock = path.with_name(".env.embedkit-lock")
    held, done = threading.Event(), threading.Event()

    def hold():
        with FileLock(lock):
            held.set()
            done.wait(timeout=60)

    holder = threading.Thread(target=hold)
    holder.start()
    try:
        assert held.wait(timeout=60)
        with pytest.raises(ConfigError, match=re.escape(f"no lock on {lock} within 0.1 s")):
            set_variable(path, "A", "2", timeout_s=0.1)
        assert "1" == read_env_file(path)["A"].value
    finally:
        done.set()
        holder.join()
    set_variable(path, "A", "2")
    assert ([".env"], b"A=2\n") == (names(path.parent), path.read_bytes())


@posix_only
def test_a_disk_that_fills_up_leaves_the_old_file_and_nothing_else(path):
    """Fault 17. A limit on the size of files makes the write fail half-way, as a full disk does."""
    content = b"".join(b"KEY_%d=%d\n" % (n, n) for n in range(100))
    path.write_bytes(content)
    script = """
import resource
limits = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
try:
    set_variable(path, "A", "1")
except EmbedkitError as error:
    print(type(error).__name__, error.problem)
resource.setrlimit(resource.RLIMIT_FSIZE, limits)
"""
    code, output = outcome(script, path)
    assert 0 == code
    assert output.startswith(f"ConfigError {path} cannot be written: File too large")
    assert ([".env"], content) == (names(path.parent), path.read_bytes())


@posix_only
def test_a_kill_in_the_middle_of_a_write_leaves_the_old_file_and_the_next_write_tidies_up(path):
    """Fault 17. The signal for that limit, left to its default, kills the process when half of the file is written."""
    content = b"".join(b"KEY_%d=%d\n" % (n, n) for n in range(100))
    path.write_bytes(content)
    script = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
set_variable(path, "A", "1")
"""
    code, _ = outcome(script, path)
    assert code < 0
    assert content == path.read_bytes()
    assert [".env", ".env.embedkit-lock", ".env.embedkit-tmp"] == names(path.parent)
    set_variable(path, "A", "1")
    assert ([".env"], content + b"A=1\n") == (names(path.parent), path.read_bytes())


def test_kills_at_any_moment_leave_a_whole_file(path):
    """Fault 17. Every key has one of its values, whole, whenever the writer died."""
    script = PREAMBLE + 'for n in range(10**6): set_variable(path, f"KEY_{n % 8}", f"{n:05}" * 200)'
    path.write_text("".join(f"KEY_{n}={n:05}\n" for n in range(8)), encoding="utf-8")
    for moment in (0.007, 0.011, 0.017, 0.023, 0.031, 0.043):
        writer = start(script, path)
        go(writer)
        with pytest.raises(subprocess.TimeoutExpired):
            writer.wait(timeout=moment)
        writer.kill()
        writer.communicate()
        entries = read_env_file(path)
        assert {f"KEY_{n}" for n in range(8)} == entries.keys()
        assert all(re.fullmatch(r"(\d{5})\1*", entry.value) for entry in entries.values())
    set_variable(path, "LAST", "1")
    assert [".env"] == names(path.parent)


# Any file, any value

one_line = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\r\0"), max_size=12)
tricky = st.text("ab \t#='\"\\$`{}é\x0b\x85\u2028\ufeff", max_size=8)
values = one_line | tricky
spelled = st.one_of(
    st.sampled_from(["", "plain", "a b", "a#b", "'quoted # no'", '"say \\"hi\\""', "'it\\'s'", "${X}", "x=y", "\\"]),
    tricky.map(lambda value: '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'),
)
assignments = st.tuples(
    st.sampled_from(["", "  ", "export ", "\texport  "]),
    st.sampled_from(["A", "B", "C_1"]),
    st.sampled_from(["=", " = "]),
    spelled,
    st.sampled_from(["", "  ", " # why", "\t# 'open"]),
)
others = st.sampled_from([("",), ("   ",), ("# c",), ("#A=1",), ("# it's \"open",), ("export A",)])
endings = st.sampled_from(["\n", "\r\n"])
lines = st.lists(st.tuples(assignments | others, endings), max_size=8)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    """Give one file for all examples of a property, which each of them overwrites."""
    return tmp_path_factory.mktemp("any") / ".env"


@settings(max_examples=200, deadline=None)
@given(lines=lines, mark=st.sampled_from(["", "\ufeff"]), final=st.booleans(), key=st.sampled_from("ABX"), value=values)
@example(lines=[(("", "A", "=", "", " # why"), "\n")], mark="", final=True, key="A", value="#")
def test_any_value_reads_back_the_same_and_nothing_else_changes(*, scratch, lines, mark, final, key, value):
    """Fault 15. Every other byte stays: other lines, and of the edited one what stands before and after the value."""
    if lines and not final:
        lines[-1] = (lines[-1][0], "")
    texts = [line for parts, ending in lines if (line := "".join(parts) + ending)]
    scratch.write_bytes((mark + "".join(texts)).encode())
    before = read_env_file(scratch)
    change = set_variable(scratch, key, value)
    after = read_env_file(scratch)
    assert value == after[key].value
    assert {**before, key: EnvEntry(value=value, line=change.line)} == after

    text = scratch.read_bytes().decode()
    assert text.startswith(mark + ("" if key in before else "".join(texts)))
    edited = re.findall(r"[^\r\n]*(?:\r\n|\n)|[^\r\n]+", text[len(mark) :])
    at = change.line - 1
    if key in before:
        assert texts[:at] + texts[at + 1 :] == edited[:at] + edited[at + 1 :]
        (lead, _, equals, _, tail), ending = lines[at]
        assert edited[at].startswith(f"{lead}{key}{equals.rstrip()}")
        assert edited[at].endswith(tail + ending)
    else:
        assert at == len(edited) - 1
        assert edited[at].startswith(f"{key}=")
        assert ("".join(texts) or "\n").endswith("\n") == edited[at].endswith("\n")


@settings(max_examples=200, deadline=None)
@given(text=st.text("AB='\"\\# \t\r\n\ufeff\x0b$é\0", max_size=25), key=st.sampled_from("ABX"), value=values)
def test_any_text_is_either_edited_rightly_or_left_alone(scratch, text, key, value):
    """Fault 13. Whatever stands in the file, other variables keep their values, or an error says why none is set."""
    content = text.encode()
    scratch.write_bytes(content)
    try:
        before = read_env_file(scratch)
        set_variable(scratch, key, value)
    except ConfigError:
        assert content == scratch.read_bytes()
        return
    after = read_env_file(scratch)
    assert value == after[key].value
    expected = {name: entry.value for name, entry in before.items() if name != key}
    assert expected == {name: entry.value for name, entry in after.items() if name != key}
    comment_out(scratch, key)
    assert expected == {name: entry.value for name, entry in read_env_file(scratch).items()}
