"""Finding, reading and layering `profiles.toml`, `.env` and the environment, and what is said about what is wrong."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from embedkit.config import (
    ENV_FILE_VARIABLE,
    OVERRIDE_VARIABLES,
    PROFILES_VARIABLE,
    VARIABLES,
    PluginSettings,
    read_config,
    read_plugin_settings,
    read_variables,
    show_path,
)
from embedkit.errors import ConfigError, SettingError, UnknownProfileError

ROOT = Path(__file__).resolve().parents[1]

posix_only = pytest.mark.skipif(os.name != "posix", reason="rights on directories are those of POSIX")
UNREADABLE = Path("/proc/self/mem")

ONE = '[profiles.one]\nmodel = "m"\n'


def read(directory, environ=None):
    """Read the configuration that a process in *directory* would have."""
    return read_config(environ=environ or {}, directory=directory)


def write(path, text):
    """Write *text* with the folders above it, and give the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="")
    return path


def fault(directory, environ=None):
    """Give the error of reading the configuration in *directory*."""
    with pytest.raises(ConfigError) as caught:
        read(directory, environ)
    return caught.value


def problems(error):
    """Give the problems of every single fault."""
    return [single.problem for single in error.faults or (error,)]


@pytest.fixture
def project(tmp_path):
    """Give a project's root, which ends every search above it."""
    root = tmp_path / "project"
    root.mkdir()
    (root / "pyproject.toml").touch()
    return root


# Finding profiles.toml


def test_the_packaged_profiles_are_there_without_any_file(project):
    """A project that has no file of its own gets quality, speed, mini and openai-small."""
    config = read(project)
    assert {"quality", "speed", "mini", "openai-small"} == config.profiles.keys()
    assert ("quality", "packaged profiles.toml default") == (config.default, str(config.default_origin))
    assert "packaged profiles.toml [profiles.mini]" == str(config.profiles["mini"].origin)
    assert ((ROOT / "profiles.toml").read_bytes(),) == tuple(file.read_bytes() for file in config.files)
    assert {"local", "openai"} == config.install_hints.keys()


def test_the_nearest_file_upward_is_read_over_the_packaged_one(project):
    """A file between the working directory and the root hides the root's."""
    write(project / "profiles.toml", '[profiles.far]\nmodel = "m"\n')
    near = write(project / "a" / "profiles.toml", '[profiles.near]\nmodel = "m"\n')
    (project / "a" / "b").mkdir()
    config = read(project / "a" / "b")
    assert ("near" in config.profiles, "far" in config.profiles, "mini" in config.profiles) == (True, False, True)
    assert near == config.files[0]
    assert f"{near} [profiles.near]" == str(config.profiles["near"].origin)
    assert [project / "a" / "b" / "profiles.toml", near] == list(config.searched[:2])
    assert Path(project.anchor) / "profiles.toml" == config.searched[-1]


def test_a_directory_called_profiles_toml_is_passed_by(project):
    """Only a file is a file of profiles."""
    write(project / "profiles.toml", ONE)
    (project / "a" / "profiles.toml").mkdir(parents=True)
    assert "one" in read(project / "a").profiles


def test_a_table_replaces_a_table_and_their_fields_never_merge(project):
    """A project's own `speed` has nothing of the packaged one: prompts and revision would be another model's."""
    write(project / "profiles.toml", '[profiles.speed]\nmodel = "m"\n[providers.local]\ninstall = "ours"\n')
    config = read(project)
    assert {"model": "m"} == config.profiles["speed"].values
    assert ("ours", True) == (config.install_hints["local"], "openai" in config.install_hints)


def test_the_projects_default_stands_over_the_packaged_one(project):
    """Whoever names no profile gets the project's own default."""
    write(project / "profiles.toml", 'default = "speed"\n')
    config = read(project)
    assert ("speed", f"{project / 'profiles.toml'} default") == tuple(map(str, config.choose_profile()))


def test_a_named_file_is_read_instead_of_the_nearest(project):
    """EMBEDKIT_PROFILES names one; a relative path counts from the working directory."""
    write(project / "profiles.toml", ONE)
    write(project / "conf" / "mine.toml", '[profiles.mine]\nmodel = "m"\n')
    config = read(project, {PROFILES_VARIABLE: "conf/mine.toml"})
    assert (True, False, True) == tuple(name in config.profiles for name in ("mine", "one", "mini"))
    assert (project / "conf" / "mine.toml",) == config.searched


def test_a_relative_path_in_env_file_counts_from_that_file(project):
    """The same .env serves a process that was started further down; the environment's own path counts from there."""
    write(project / ".env", f"{PROFILES_VARIABLE}=conf/mine.toml\n")
    write(project / "conf" / "mine.toml", ONE)
    (project / "src").mkdir()
    assert "one" in read(project / "src").profiles
    stated = {PROFILES_VARIABLE: "conf/mine.toml"}
    assert f"There is no file {project / 'src' / 'conf' / 'mine.toml'}." == fault(project / "src", stated).problem


def test_a_named_file_that_is_not_there_is_an_error(project):
    """Fault 1. It names the path and the variable, and reads no other file in its stead."""
    write(project / "profiles.toml", ONE)
    error = fault(project, {PROFILES_VARIABLE: "gone.toml"})
    assert f"There is no file {project / 'gone.toml'}." == error.problem
    assert f"environment variable {PROFILES_VARIABLE}" == error.origin
    assert f"unset {PROFILES_VARIABLE}, or create the file" == error.hint


def test_an_unknown_profile_says_where_a_file_was_looked_for(project):
    """Faults 1 and 6. Without a file of one's own the reason is probably the working directory."""
    with pytest.raises(UnknownProfileError) as caught:
        read(project).choose_profile("unheard")
    assert f"no profiles.toml of your own was found from {project} upward" in caught.value.hint
    write(project / "profiles.toml", ONE)
    with pytest.raises(UnknownProfileError) as caught:
        read(project).choose_profile("unheard")
    assert "declared: mini, one, openai-small, quality, speed" == caught.value.hint


def test_the_packaged_file_as_the_nearest_one_is_read_once(project):
    """In a checkout of embedkit the project's file is the packaged file, and is called by its path."""
    config = read(ROOT / "embedkit")
    assert (ROOT / "profiles.toml",) == config.files
    assert f"{show_path(ROOT / 'profiles.toml')} [profiles.mini]" == str(config.profiles["mini"].origin)
    with pytest.raises(UnknownProfileError) as caught:
        config.choose_profile("unheard")
    assert "declared: mini, openai-small, quality, speed" == caught.value.hint


def test_a_directory_that_cannot_be_looked_into_is_passed_by(project):
    """A service may stand below one that it may not enter; here the system refuses any look at so long a name."""
    write(project / "profiles.toml", ONE)
    write(project / ".env", "A=1\n")
    config = read(project / ("x" * 300))
    assert ("one" in config.profiles, project / ".env") == (True, config.env_file)


@posix_only
def test_a_working_directory_that_is_gone_is_named(tmp_path):
    """A deployment that replaces its directory leaves old processes standing nowhere."""
    script = """
import os, sys
from pathlib import Path
from embedkit.config import read_config
from embedkit.errors import ConfigError
Path(sys.argv[1]).with_name("profiles.toml").touch()
os.mkdir(sys.argv[1]); os.chdir(sys.argv[1]); os.rmdir(sys.argv[1])
try:
    read_config()
except ConfigError as error:
    print(error.problem)
print("mini" in read_config(directory=Path(sys.argv[1]).parent).profiles)
"""
    done = run(script, tmp_path / "gone", cwd=tmp_path)
    assert ("The working directory is gone: No such file or directory.\nTrue\n", "") == (done.stdout, done.stderr)


# Finding .env


def test_the_env_file_nearest_in_the_project_is_read(project):
    """From the working directory upward; further ones are not read as well."""
    write(project / ".env", "FAR=1\nBOTH=far\n")
    near = write(project / "a" / ".env", "NEAR=1\nBOTH=near\n")
    (project / "a" / "b").mkdir()
    config = read(project / "a" / "b")
    assert (near, near) == (config.env_file, config.new_env_file)
    assert {"NEAR": "1", "BOTH": "near"} == {name: variable.value for name, variable in config.variables.items()}


@pytest.mark.parametrize("mark", ["profiles.toml", ".git", "pyproject.toml"])
def test_the_search_for_an_env_file_ends_at_the_projects_root(tmp_path, mark):
    """A .env above it is somebody else's."""
    write(tmp_path / ".env", "EMBEDDING_PROFILE=mini\n")
    root = tmp_path / "root"
    (root / "a").mkdir(parents=True)
    assert (None, root / "a" / ".env") == (read(root / "a").env_file, read(root / "a").new_env_file)
    (root / mark).touch()
    config = read(root / "a")
    assert (None, root / ".env") == (config.env_file, config.new_env_file)
    assert "quality" == config.choose_profile()[0]


def test_the_env_file_at_the_root_itself_is_read(project):
    """The root is the last place that is looked at, not the first that is left out."""
    write(project / ".env", "A=1\n")
    (project / "a" / "b").mkdir(parents=True)
    assert project / ".env" == read(project / "a" / "b").env_file


def test_a_named_env_file_is_read_instead(project):
    """EMBEDKIT_ENV_FILE names one, from the working directory."""
    write(project / ".env", "A=1\n")
    named = write(project / "conf" / "prod.env", "B=2\n")
    environ = {ENV_FILE_VARIABLE: "conf/prod.env"}
    config = read(project, environ)
    assert (named, named, {"B", ENV_FILE_VARIABLE}) == (config.env_file, config.new_env_file, config.variables.keys())
    assert "2" == read_variables(environ=environ, directory=project)["B"].value


def test_a_named_env_file_that_is_not_there_is_an_error(project):
    """Fault 14. It names the path and the variable."""
    error = fault(project, {ENV_FILE_VARIABLE: "gone.env"})
    assert f"There is no file {project / 'gone.env'}." == error.problem
    assert f"environment variable {ENV_FILE_VARIABLE}" == error.origin


def test_an_env_file_that_the_call_names_is_read_instead_of_all_others(project):
    """As `embedkit use --env-file` does, which may be about to write it: it need not exist."""
    write(project / ".env", "A=1\n")
    environ = {ENV_FILE_VARIABLE: "gone.env"}
    config = read_config(environ=environ, directory=project, env_file=Path("new.env"))
    assert (None, project / "new.env") == (config.env_file, config.new_env_file)
    path = write(project / "new.env", "B=2\n")
    config = read_config(environ=environ, directory=project, env_file=path)
    assert (path, path, {"B", ENV_FILE_VARIABLE}) == (config.env_file, config.new_env_file, config.variables.keys())


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"A=1\nB='open\n", "Line 2 of {} cannot be read: the quote that opens the value of B is never closed."),
        (b"A=\0\n", "Line 1 of {} cannot be read: it contains a NUL byte."),
        ("A=1\nB=é\n".encode("latin-1"), "{} is not UTF-8: line 2 contains the byte 0xe9."),
        (None, "{} is a directory, not a file."),
    ],
)
def test_an_env_file_that_cannot_be_read_is_named(project, content, named):
    """Faults 13 and 14. No line is skipped."""
    path = project / ".env"
    path.mkdir() if content is None else path.write_bytes(content)
    assert named.format(path) == fault(project).problem
    with pytest.raises(ConfigError, match=re.escape(named.format(path))):
        read_variables(environ={}, directory=project)


# Layers


def test_the_environment_stands_over_env_file_over_profiles_toml(project):
    """Fault 12. And each layer alone is enough."""
    write(project / "profiles.toml", 'default = "speed"\n')
    assert "speed" == read(project).choose_profile()[0]
    write(project / ".env", "EMBEDDING_PROFILE=mini\n")
    assert "mini" == read(project).choose_profile()[0]
    config = read(project, {"EMBEDDING_PROFILE": "openai-small"})
    assert "openai-small" == config.choose_profile()[0]
    assert ("quality", "the call") == tuple(map(str, config.choose_profile("quality")))


def test_an_origin_says_what_it_hides(project):
    """Fault 12. The same value twice hides nothing; what is not one of our variables may be a secret."""
    path = write(project / ".env", "# c\nEMBEDDING_PROFILE=mini\nMY_KEY=old\nSAME=1\n")
    environ = {"EMBEDDING_PROFILE": "speed", "MY_KEY": "new", "SAME": "1", "OTHER": "x"}
    origins = {name: str(variable.origin) for name, variable in read(project, environ).variables.items()}
    assert {
        "EMBEDDING_PROFILE": f"environment variable EMBEDDING_PROFILE (hides 'mini' in {path}:2 EMBEDDING_PROFILE)",
        "MY_KEY": f"environment variable MY_KEY (hides 'another value' in {path}:3 MY_KEY)",
        "SAME": "environment variable SAME",
        "OTHER": "environment variable OTHER",
    } == origins


def test_an_empty_variable_counts_as_unset(project):
    """Fault 10. In the environment it uncovers .env, in .env it uncovers the file."""
    write(project / ".env", "EMBEDDING_PROFILE=mini\nEMBEDDING_MODEL=\nEMPTY\n")
    empty = {"EMBEDDING_PROFILE": "", PROFILES_VARIABLE: "", ENV_FILE_VARIABLE: "", "EMBEDDING_DEVICE": ""}
    config = read(project, empty)
    assert {"EMBEDDING_PROFILE"} == config.variables.keys()
    assert ("mini", f"{project / '.env'}:1 EMBEDDING_PROFILE") == tuple(map(str, config.choose_profile()))


def test_values_of_variables_never_show_in_a_repr(project):
    """Fault 90. The variables hold every secret of the process."""
    config = read(project, {"MY_KEY": "s3cret"})
    assert "s3cret" not in repr(config)


def test_the_environment_is_read_and_never_written(project):
    """Left out, `environ` is the process's own; what .env says does not get into it."""
    write(project / ".env", "FROM_FILE=1\n")
    script = """
import os, sys
from pathlib import Path
before = dict(os.environ)
from embedkit.config import read_config, read_variables
names = read_config(directory=Path(sys.argv[1])).variables.keys() & read_variables().keys()
print("FROM_FILE" in names, "FROM_PROCESS" in names, before == dict(os.environ))
"""
    done = run(script, project, cwd=project, FROM_PROCESS="1")
    assert ("True True True\n", "") == (done.stdout, done.stderr)


def test_nothing_is_read_when_embedkit_is_imported(project):
    """A broken file harms nobody who asks for nothing."""
    write(project / "profiles.toml", "broken")
    write(project / ".env", "'broken")
    script = """
import sys
opened = []
sys.addaudithook(lambda event, args: event == "open" and opened.append(str(args[0])))
import embedkit
print([path for path in opened if path.endswith((".toml", ".env"))])
"""
    assert ("[]\n", "") == (run(script, cwd=project).stdout, run(script, cwd=project).stderr)


def run(script, *args, cwd, **environ):
    """Run *script* in a process of its own, with nothing of ours in its environment but *environ*."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("EMBED", "ENABLE"))}
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, args)],
        cwd=cwd,
        env={**kept, "PYTHONPATH": str(ROOT), **environ},
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )


# A file that cannot be read


@pytest.mark.parametrize(
    ("text", "problem", "line"),
    [
        ('[profiles.a]\nmodel = "m\n', "Illegal character '\\n' (at line 2, column 11), at model.", 2),
        ("[profiles.a]\nbatch_size = lots\n", "Invalid value (at line 2, column 14), at batch_size.", 2),
        ("[profiles.a\n", "Expected ']' at the end of a table declaration (at line 1, column 12).", 1),
        ("[profiles.a]\nsk-123456\n", "Expected '=' after a key in a key/value pair (at line 2, column 10).", 2),
        ("[profiles.a]\nmodel =", "Invalid value (at end of document), at model.", 2),
    ],
)
def test_a_syntax_error_names_file_and_line(project, text, problem, line):
    """Fault 2. Of the line only the key is shown, for behind it may stand a secret that was pasted."""
    path = write(project / "profiles.toml", text)
    error = fault(project)
    assert (f"{path} is not valid TOML: {problem}", f"{path}:{line}") == (error.problem, error.origin)
    assert "123456" not in str(error)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('[profiles.a]\nmodel = "m"\nbatch_size = 1\nbatch_size = 2\n', "at batch_size."),
        ('[profiles.a]\nmodel = "m"\n[profiles.a]\nmodel = "n"\n', "Cannot declare ('profiles', 'a') twice"),
        ('default = "a"\ndefault = "b"\n', "at default."),
    ],
)
def test_a_duplicate_names_file_and_key(project, text, named):
    """Fault 4."""
    path = write(project / "profiles.toml", text)
    error = fault(project)
    assert f"{path} is not valid TOML" in error.problem
    assert named in error.problem


def test_a_byte_order_mark_is_accepted(project):
    """Fault 3. Editors on Windows write one; CRLF too."""
    (project / "profiles.toml").write_bytes(b"\xef\xbb\xbf" + ONE.replace("\n", "\r\n").encode())
    assert {"model": "m"} == read(project).profiles["one"].values


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_utf_16_is_named(project, encoding):
    """Fault 3. With a byte order mark and without."""
    path = project / "profiles.toml"
    path.write_bytes(ONE.encode(encoding))
    error = fault(project)
    assert (f"{path} holds NUL bytes: it is UTF-16 or no text.", "save the file as UTF-8") == (
        error.problem,
        error.hint,
    )


def test_latin_1_is_named_with_its_line(project):
    """Fault 3."""
    path = project / "profiles.toml"
    path.write_bytes('[profiles.a]\nmodel = "m"\ndescription = "größer"\n'.encode("latin-1"))
    error = fault(project)
    assert f"{path} is not UTF-8: byte 0xf6 in line 3 (Latin-1, Windows-1252?)." == error.problem
    assert (f"{path}:3", "save the file as UTF-8") == (error.origin, error.hint)


@pytest.mark.parametrize(
    "text",
    [
        "[profiles.a]\nmodel = " + "[" * 2000 + "]" * 2000,
        "[profiles.a]\nmodel = " + "{a = " * 2000 + "1" + "}" * 2000,
        "profiles.a.model" + ".a" * 2000 + " = 1",
        "[profiles.a.options" + ".a" * 2000 + "]",
        "[profiles.a.options" + ".a" * 32 + "]\nb = [1]",
    ],
    ids=["brackets", "braces", "dotted key", "header", "just too deep"],
)
def test_deep_nesting_is_refused_by_name(project, text):
    """Fault 5. No RecursionError, neither in the parser nor later, when a value is shown or compared."""
    path = write(project / "profiles.toml", text)
    assert f"{path} is nested too deeply to be a list of profiles." == fault(project).problem


def test_options_may_be_nested_as_deeply_as_anybody_needs(project):
    """The limit is far beyond real settings."""
    write(project / "profiles.toml", ONE + "[profiles.one.options" + ".a" * 20 + "]\nb = [[1]]")
    assert "one" in read(project).profiles


@pytest.mark.parametrize("digits", ["9" * 5000, "0x" + "f" * 5000])
def test_an_immense_number_is_refused(project, digits):
    """Fault 8. Python refuses to read or to print numbers of so many digits, each with an error of its own."""
    path = write(project / "profiles.toml", ONE + f"too_long = {digits}\n")
    assert str(path) in str(fault(project))


@pytest.mark.skipif(not UNREADABLE.exists(), reason="the file that nobody can read from its start is one of Linux")
def test_an_unreadable_file_is_named(project):
    """Fault 14, of profiles.toml."""
    error = fault(project, {PROFILES_VARIABLE: str(UNREADABLE)})
    assert f"{UNREADABLE} cannot be read: Input/output error." == error.problem


# Faults in what it says


@pytest.mark.parametrize(
    ("line", "problem", "hint"),
    [
        ('batch_size = "32"', "must be a whole number of at least 1, not '32'.", "without quotes: batch_size = 32"),
        ('batch_size = "lots"', "must be a whole number of at least 1, not 'lots'.", "such as batch_size = 256"),
        ("batch_size = 0", "must be a whole number of at least 1, not 0.", "such as batch_size = 256"),
        ('batch_size = "0"', "must be a whole number of at least 1, not '0'.", "such as batch_size = 256"),
        ("batch_size = -1", "must be a whole number of at least 1, not -1.", "such as batch_size = 256"),
        ("batch_size = true", "must be a whole number of at least 1, not True.", "such as batch_size = 256"),
        ("batch_size = nan", "must be a whole number of at least 1, not nan.", "such as batch_size = 256"),
        ("batch_size = 1.0", "must be a whole number of at least 1, not 1.0.", "such as batch_size = 256"),
        (
            "batch_size = 2026-01-01",
            "must be a whole number of at least 1, not datetime.date(2026, 1, 1).",
            "such as batch_size = 256",
        ),
        ("batch_size.x = 1", "must be a whole number of at least 1, not {'x': 1}.", "such as batch_size = 256"),
        ("dimensions = 0", "must be a whole number of at least 1, not 0.", "such as dimensions = 384"),
        ("provider = 3", "must be a string that is not empty, not 3.", ""),
        ('provider = " "', "must be a string that is not empty, not ' '.", ""),
        ('device = ""', "must be a string that is not empty, not ''.", ""),
        ('normalize = "true"', "must be true or false, not 'true'.", "such as normalize = true"),
        ("normalize = 1", "must be true or false, not 1.", "such as normalize = true"),
        ('too_long = "truncat"', "must be one of 'truncate', 'error', not 'truncat'.", "did you mean truncate?"),
        ("too_long = true", "must be one of 'truncate', 'error', not True.", ""),
        ("price_per_million_tokens = inf", "must be a number of at least 0, not inf.", ""),
        ("price_per_million_tokens = nan", "must be a number of at least 0, not nan.", ""),
        ("price_per_million_tokens = -1", "must be a number of at least 0, not -1.", ""),
        ("price_per_million_tokens = 1" + "0" * 400, f"must be a number of at least 0, not 1{'0' * 78}….", ""),
        ("query_prompt = 1", "must be a string, not 1.", ""),
        ('reference = "x"', "must be a table, not 'x'.", ""),
        ("options = 1", "must be a table, not 1.", ""),
    ],
)
def test_a_value_of_the_wrong_type_or_range_is_named(project, line, problem, hint):
    """Fault 8. `true` is no number, and a number in quotes is none either."""
    path = write(project / "profiles.toml", ONE + line)
    error = fault(project)
    assert isinstance(error, SettingError)
    key = re.match(r"\w+", line)[0]
    assert (f"{key} {problem}", f"{path} [profiles.one]", hint) == (error.problem, error.origin, error.hint)


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("batchsize", "did you mean batch_size?"),
        ("Batch_Size", "did you mean batch_size?"),
        ("dim", "did you mean dimensions?"),
        ("option", "did you mean options?"),
        ("m", "known keys: "),
        ("name", "known keys: "),
        ("inherits", "known keys: batch_size, description, device, dimensions, "),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_one(project, key, hint):
    """Fault 7. `name` is the table's own; nothing inherits (so that Fault 9 cannot be made)."""
    path = write(project / "profiles.toml", ONE + f'{key} = "x"\n')
    error = fault(project)
    assert (f"'{key}' is no known setting.", f"{path} [profiles.one]") == (error.problem, error.origin)
    assert error.hint.startswith(hint)


def test_a_profile_needs_a_model(project):
    """A profile without one would be listed nowhere, and fail when it is used."""
    path = write(project / "profiles.toml", "[profiles.a]\nbatch_size = 3\n")
    error = fault(project)
    assert ("model is required and missing.", "add: model = …") == (error.problem, error.hint)
    assert f"{path} [profiles.a]" == error.origin


def test_a_reference_is_a_table_of_its_own(project):
    """Its keys are checked like the profile's, and all of its faults are named."""
    path = write(project / "profiles.toml", ONE + '[profiles.one.reference]\ncomponents = [1, "2"]\nsorce = "x"\n')
    error = fault(project)
    assert [
        "components must be a list of numbers, not [1, '2'].",
        "'sorce' is no known setting.",
        "text is required and missing.",
        "source is required and missing.",
    ] == problems(error)
    assert {f"{path} [profiles.one] reference"} == {single.origin for single in error.faults}
    write(path, ONE + '[profiles.one.reference]\ntext = "t"\ncomponents = [1, 0.5]\nsource = "s"\n')
    assert (1.0, 0.5) == read(project).profiles["one"].values["reference"].components


def test_all_faults_of_all_files_are_reported_at_once(project):
    """Nobody mends a file ten times over: syntax of .env, structure, types, unknown keys and tables come together."""
    env_file = write(project / ".env", "B='2' 3\nA='open\n")
    path = write(
        project / "profiles.toml",
        """
default = 3
profile = 1
profiles.flat = "x"
rerankers = []
[profiles.a]
batch_size = "32"
devise = "cpu"
[profiles.b]
model = ""
[providers.x]
instal = "y"
[providers.z]
install = 1
""",
    )
    error = fault(project)
    assert [
        f"Line 1 of {env_file} cannot be read: something follows the closing quote of B.",
        f"Line 2 of {env_file} cannot be read: the quote that opens the value of A is never closed.",
        "'profile' is no known setting.",
        "default must be a profile's name, not 3.",
        "profiles.flat must be a table, not 'x'.",
        "batch_size must be a whole number of at least 1, not '32'.",
        "'devise' is no known setting.",
        "model is required and missing.",
        "model must be a string that is not empty, not ''.",
        "rerankers must be a table of tables, not [].",
        "'instal' is no known setting.",
        "install is required and missing.",
        "install must be a string that is not empty, not 1.",
    ] == problems(error)
    assert "The configuration has 13 faults." == error.problem
    assert "13. install must be" in str(error)
    assert f"     from: {path} [profiles.a]\n     hint: did you mean device?" in str(error)


def test_a_default_that_is_not_declared_is_an_error(project):
    """Fault 6. It is found when the file is read, not when somebody leaves the name out."""
    path = write(project / "profiles.toml", ONE + 'x = 1\n[profiles.two]\nmodel = "n"')
    assert 1 == len(problems(fault(project)))
    write(path, f'default = "won"\n{ONE}')
    error = fault(project)
    assert ("default names no declared profile: 'won'.", f"{path} default") == (error.problem, error.origin)
    assert "declared: mini, one, openai-small, quality, speed" == error.hint


def test_an_unknown_profile_is_named_with_the_nearest(project):
    """Fault 6. And with where it was asked for."""
    write(project / "profiles.toml", ONE)
    env_file = write(project / ".env", "EMBEDDING_PROFILE=sped\n")
    with pytest.raises(UnknownProfileError) as caught:
        read(project).choose_profile()
    error = caught.value
    assert ("There is no profile 'sped'.", f"{env_file}:1 EMBEDDING_PROFILE") == (error.problem, error.origin)
    assert "did you mean speed? (declared: mini, one, openai-small, quality, speed)" == error.hint


def test_rerankers_are_read_like_profiles(project):
    """They have keys of their own."""
    path = write(
        project / "profiles.toml", '[rerankers.r]\nmodel = "m"\nbatch_size = 8\n[rerankers.r.options]\na = 1\n'
    )
    assert {"model": "m", "batch_size": 8, "options": {"a": 1}} == read(project).rerankers["r"].values
    write(path, '[rerankers.r]\nmodel = "m"\ndimensions = 8\n')
    error = fault(project)
    assert ("'dimensions' is no known setting.", f"{path} [rerankers.r]") == (error.problem, error.origin)


# Variables


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("EMBEDDING_BATCHSIZE", "EMBEDDING_BATCH_SIZE"),
        ("EMBEDDING_DIM", "EMBEDDING_DIMENSIONS"),
        ("EMBEDING_MODEL", "EMBEDDING_MODEL"),
        ("EMBEDDING_MODEL_NAME", "EMBEDDING_MODEL"),
        ("EMBEDKIT_PROFILE", "EMBEDKIT_PROFILES"),
        ("ENABLE_RERANK", "ENABLE_RERANKER"),
    ],
)
def test_a_misspelt_variable_is_warned_about(project, name, nearest):
    """Fault 11. With where it is set; it is no error, for another program may read it."""
    path = write(project / ".env", f"{name}=1\n")
    warning = f"{name} is no variable of embedkit; did you mean {nearest}? ({path}:1 {name})"
    assert (warning,) == read(project).warnings


def test_variables_of_others_are_not_warned_about(project):
    """Fault 11. What is far from ours, what begins otherwise, what a profile names as its own, and what is empty."""
    text = (
        ONE + '[profiles.one.options]\napi_key_env = "EMBEDDING_MODELS"\nlist_env = []\nother = "EMBEDDING_DEVICES"\n'
    )
    write(project / "profiles.toml", text)
    environ = dict.fromkeys(
        ("EMBEDDING_MODELS", "EMBEDDING_TOKEN_FOR_X", "MY_EMBEDDING_MODEL", *VARIABLES[:1]), "speed"
    )
    assert () == read(project, {**environ, "EMBEDDING_BATCHSIZE": ""}).warnings
    assert 1 == len(read(project, {"EMBEDDING_DEVICES": "x"}).warnings)


def test_every_override_is_declared_on_its_field():
    """Fault 10. These names are promised."""
    assert {
        "EMBEDDING_PROVIDER": "provider",
        "EMBEDDING_MODEL": "model",
        "EMBEDDING_DIMENSIONS": "dimensions",
        "EMBEDDING_DEVICE": "device",
        "EMBEDDING_BATCH_SIZE": "batch_size",
    } == OVERRIDE_VARIABLES


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, PluginSettings(autoload=True, allowed=None)),
        ({"EMBEDKIT_PLUGINS": "a, b,"}, PluginSettings(autoload=True, allowed=frozenset({"a", "b"}))),
        ({"EMBEDKIT_PLUGINS": ","}, PluginSettings(autoload=True, allowed=frozenset())),
        ({"EMBEDKIT_PLUGINS": ""}, PluginSettings(autoload=True, allowed=None)),
        ({"EMBEDKIT_DISABLE_PLUGIN_AUTOLOAD": "1"}, PluginSettings(autoload=False, allowed=None)),
        ({"EMBEDKIT_DISABLE_PLUGIN_AUTOLOAD": "anything"}, PluginSettings(autoload=False, allowed=None)),
        *(
            ({"EMBEDKIT_DISABLE_PLUGIN_AUTOLOAD": off}, PluginSettings(autoload=True, allowed=None))
            for off in ("0", "false", "No", " off ", "")
        ),
    ],
)
def test_plugin_settings_are_read_from_variables(project, environ, expected):
    """Fault 30. A switch that cannot be read for sure keeps plugins out."""
    assert expected == read_plugin_settings(read_variables(environ=environ, directory=project))


def test_variables_are_read_beside_a_broken_profiles_toml(project):
    """So that plugins can be listed while the file is being mended."""
    write(project / "profiles.toml", "broken")
    assert "1" == read_variables(environ={"A": "1"}, directory=project)["A"].value


def test_paths_below_the_working_directory_are_shown_short(tmp_path):
    """Others are shown whole."""
    inside = Path.cwd() / "a" / "profiles.toml"
    assert (str(Path("a", "profiles.toml")), str(tmp_path)) == (show_path(inside), show_path(tmp_path))
