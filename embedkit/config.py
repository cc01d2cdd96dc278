"""
Read `profiles.toml`, `.env` and the environment, and keep every value together with where it came from.

Owns discovery, the order of the layers and the only reading of environment variables. Lays nothing over a profile: see
`resolve`. Writes nothing, neither to `os.environ` nor to a file.

Layers, lowest first: field default, `profiles.toml`, `.env`, process environment.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs

from embedkit.env_file import read_env_file
from embedkit.errors import ConfigError, SettingError, UnknownProfileError
from embedkit.options import (
    CALL,
    DEFAULT,
    Origin,
    find_nearest,
    list_options,
    option,
    read_values,
    refuse_unknown_key,
    show_value,
)
from embedkit.profile import Profile, RerankerProfile

PROFILES_FILE = "profiles.toml"
ENV_FILE = ".env"

PROFILE_VARIABLE = "EMBEDDING_PROFILE"
RERANKER_VARIABLE = "ENABLE_RERANKER"
OVERRIDE_VARIABLES = {field.env: name for name, field in list_options(Profile).items() if field.env is not None}
"""Variable -> the key of `Profile` that it overrides; declared on the fields."""

PLUGIN_AUTOLOAD_VARIABLE = "EMBEDKIT_DISABLE_PLUGIN_AUTOLOAD"
PLUGINS_VARIABLE = "EMBEDKIT_PLUGINS"
PROFILES_VARIABLE = "EMBEDKIT_PROFILES"
ENV_FILE_VARIABLE = "EMBEDKIT_ENV_FILE"

VARIABLES = (
    PROFILE_VARIABLE,
    *OVERRIDE_VARIABLES,
    RERANKER_VARIABLE,
    PROFILES_VARIABLE,
    ENV_FILE_VARIABLE,
    PLUGINS_VARIABLE,
    PLUGIN_AUTOLOAD_VARIABLE,
)
"""Every variable that embedkit reads by a fixed name."""

_OUR_PREFIXES = ("EMBEDDING", "EMBEDING", "EMBEDKIT", "ENABLE_RERANK")
_ROOT_MARKS = (PROFILES_FILE, ".git", "pyproject.toml")
_DEEPEST = 32


@attrs.frozen
class Variable:
    """
    Hold one variable of `.env` or the environment.

    Attributes:
        value: Its text; never empty, for an empty variable counts as unset.

        origin: Where it is set, and what it hides.
    """

    value: str = attrs.field(repr=False)
    origin: Origin


@attrs.frozen(kw_only=True)
class Table:
    """
    Hold one table of a `profiles.toml`.

    Attributes:
        values: What it states, typed as `Profile` or `RerankerProfile` declares; `options` are as they were written.

        origin: The file and the table's name.
    """

    values: Mapping[str, Any]
    origin: Origin


@attrs.frozen(kw_only=True)
class _ProviderTable:
    install: str = option(help="the command that installs it", at_least=1)


_KINDS = {"profiles": Profile, "rerankers": RerankerProfile, "providers": _ProviderTable}
_UNTYPED = {"profiles": ("options",), "rerankers": ("options",)}
_Tables = dict[str, dict[str, Table]]


@attrs.frozen(kw_only=True)
class Config:
    """
    Hold what was read, before one layer was laid over another.

    Attributes:
        profiles: Name -> table, the project's over the packaged.

        rerankers: Likewise.

        install_hints: Provider -> the command that installs it.

        default: The profile that is taken when nobody names one.

        default_origin: Where that is said.

        variables: Those of `.env` and the environment, the latter on top.

        files: The files of profiles that were read, nearest first.

        searched: Where a `profiles.toml` was looked for.

        env_file: The `.env` that was read; None when there is none.

        new_env_file: Where a `.env` belongs when there is none.

        warnings: What is suspicious but no fault, such as a misspelt variable.
    """

    profiles: Mapping[str, Table]
    rerankers: Mapping[str, Table]
    install_hints: Mapping[str, str]
    default: str
    default_origin: Origin
    variables: Mapping[str, Variable]
    files: tuple[Path, ...]
    searched: tuple[Path, ...]
    env_file: Path | None
    new_env_file: Path
    warnings: tuple[str, ...]

    def choose_profile(self, name: str | None = None) -> tuple[str, Origin]:
        """
        Say which profile is meant: *name*, else EMBEDDING_PROFILE, else the file's default.

        Raises:
            UnknownProfileError: It is not declared.
        """
        if name is not None:
            chosen, origin = name, CALL
        elif (variable := self.variables.get(PROFILE_VARIABLE)) is not None:
            chosen, origin = variable.value.strip(), variable.origin
        else:
            chosen, origin = self.default, self.default_origin
        self.get_profile(chosen, origin)
        return chosen, origin

    def get_profile(self, name: str, origin: Origin) -> Table:
        """
        Give a profile's table.

        Raises:
            UnknownProfileError: It is not declared; the error names the nearest and all known ones.
        """
        if name not in self.profiles:
            nearest = find_nearest(name, self.profiles)
            declared = f"declared: {', '.join(sorted(self.profiles))}"
            if not set(self.files) & set(self.searched):
                declared += f"; no {PROFILES_FILE} of your own was found from {self.searched[0].parent} upward"
            raise UnknownProfileError(
                f"There is no profile {show_value(name)}.",
                origin=str(origin),
                hint=f"did you mean {nearest}? ({declared})" if nearest else declared,
            )
        return self.profiles[name]


def read_config(
    *, environ: Mapping[str, str] | None = None, directory: Path | None = None, env_file: Path | None = None
) -> Config:
    """
    Read every layer.

    Args:
        environ: The process environment, unless told otherwise.

        directory: Where the search begins; the working directory unless told otherwise.

        env_file: The `.env` to read, instead of looking for one; it need not exist.

    Raises:
        ConfigError: A file is missing, unreadable or wrong; all faults are named at once.
    """
    environ = os.environ if environ is None else environ
    directory = _find_directory(directory)
    faults: list[ConfigError] = []
    named, env_file, new_env_file = env_file, None, directory / ENV_FILE
    try:
        env_file, new_env_file = _find_env_file(environ, directory, named)
        variables = _layer_variables(environ, env_file)
    except ConfigError as fault:
        faults += fault.faults or (fault,)
        variables = _layer_variables(environ, None)
    # A path in .env is seen from there, wherever the process was started.
    base = directory if environ.get(PROFILES_VARIABLE) or env_file is None else env_file.absolute().parent
    searched = _list_places(variables, directory, base)
    own_file = next((path for path in searched if os.path.isfile(path)), None)  # noqa: PTH113  # never raises
    if own_file is None and PROFILES_VARIABLE in variables:
        faults.append(_miss_file(searched[0], variables[PROFILES_VARIABLE].origin, PROFILES_VARIABLE))

    packaged = _find_packaged()
    files = {} if own_file is not None and own_file.samefile(packaged) else {packaged: f"packaged {PROFILES_FILE}"}
    if own_file is not None:
        files[own_file] = show_path(own_file)
    tables: _Tables = {kind: {} for kind in _KINDS}
    default, default_origin = "", DEFAULT
    for path, shown in files.items():
        try:
            document = _load_toml(path, shown)
        except ConfigError as fault:
            faults.append(fault)
            continue
        faults += _read_tables(document, shown, tables)
        if "default" in document:
            default, default_origin = document["default"], Origin(f"{shown} default")
    if not faults and default not in tables["profiles"]:
        faults.append(
            SettingError(
                f"default names no declared profile: {show_value(default)}.",
                origin=str(default_origin),
                hint=f"declared: {', '.join(sorted(tables['profiles']))}",
            )
        )
    if faults:
        raise ConfigError.combine(faults)
    return Config(
        profiles=tables["profiles"],
        rerankers=tables["rerankers"],
        install_hints={name: table.values["install"] for name, table in tables["providers"].items()},
        default=default,
        default_origin=default_origin,
        variables=variables,
        files=tuple(reversed(files)),
        searched=searched,
        env_file=env_file,
        new_env_file=new_env_file,
        warnings=tuple(_find_misspelt(variables, tables)),
    )


def read_variables(*, environ: Mapping[str, str] | None = None, directory: Path | None = None) -> dict[str, Variable]:
    """
    Read `.env` and the environment, and no `profiles.toml`; arguments as for `read_config`.

    Raises:
        ConfigError: `.env` is missing where one is named, unreadable or wrong; all faults are named at once.
    """
    environ = os.environ if environ is None else environ
    return _layer_variables(environ, _find_env_file(environ, _find_directory(directory))[0])


@attrs.frozen
class PluginSettings:
    """
    Say which plugins may be loaded.

    Attributes:
        autoload: Whether installed plugins are loaded without being listed.

        allowed: The names of those that may be loaded, and no others; None: all.
    """

    autoload: bool = True
    allowed: frozenset[str] | None = None


def read_plugin_settings(variables: Mapping[str, Variable]) -> PluginSettings:
    """Read EMBEDKIT_PLUGINS (names with commas) and EMBEDKIT_DISABLE_PLUGIN_AUTOLOAD (all but 0, false, no, off)."""
    listed = variables.get(PLUGINS_VARIABLE)
    disabled = variables.get(PLUGIN_AUTOLOAD_VARIABLE)
    return PluginSettings(
        autoload=disabled is None or disabled.value.strip().casefold() in ("0", "false", "no", "off"),
        allowed=None if listed is None else frozenset(name.strip() for name in listed.value.split(",") if name.strip()),
    )


def show_path(path: Path) -> str:
    """Write a path as short as it stays clear: relative below the working directory, else whole."""
    try:
        return str(path.relative_to(Path.cwd()))
    except (ValueError, OSError):
        return str(path)


def _find_directory(directory: Path | None) -> Path:
    try:
        return Path.cwd() if directory is None else directory.absolute()
    except OSError as error:
        raise ConfigError(
            f"The working directory is gone: {error.strerror}.",
            hint="start the process in a directory that stays",
        ) from error


def _miss_file(path: Path, origin: Origin, variable: str) -> ConfigError:
    return ConfigError(f"There is no file {path}.", origin=str(origin), hint=f"unset {variable}, or create the file")


def _find_env_file(environ: Mapping[str, str], directory: Path, chosen: Path | None = None) -> tuple[Path | None, Path]:
    """Find the `.env` between the working directory and the project's root; also say where a new one belongs."""
    if chosen is not None:
        path = directory / chosen
        return path if _exists(path) else None, path
    if named := environ.get(ENV_FILE_VARIABLE):
        path = directory / named
        if not _exists(path):
            raise _miss_file(path, Origin(f"environment variable {ENV_FILE_VARIABLE}"), ENV_FILE_VARIABLE)
        return path, path
    upward = (directory, *directory.parents)
    root = next((folder for folder in upward if any(_exists(folder / mark) for mark in _ROOT_MARKS)), directory)
    # Beyond the project's root, a .env is somebody else's.
    inside = upward[: upward.index(root) + 1]
    found = next((folder / ENV_FILE for folder in inside if _exists(folder / ENV_FILE)), None)
    return found, found or root / ENV_FILE


def _exists(path: Path) -> bool:
    return os.path.exists(path)  # noqa: PTH110  # Path.exists raises below a directory that may not be entered


def _layer_variables(environ: Mapping[str, str], env_file: Path | None) -> dict[str, Variable]:
    """Put the environment over `.env`; an empty variable counts as unset in both."""
    variables: dict[str, Variable] = {}
    if env_file is not None:
        shown = show_path(env_file)
        for name, entry in read_env_file(env_file).items():
            if entry.value:
                variables[name] = Variable(entry.value, Origin(f"{shown}:{entry.line} {name}"))
    for name, value in environ.items():
        if value:
            below = variables.get(name)
            origin = Origin(f"environment variable {name}")
            if below is not None and below.value != value:
                # What is not ours may be a secret.
                hidden = below.value if name in VARIABLES else "another value"
                origin = attrs.evolve(origin, hides=below.origin, hidden=hidden)
            variables[name] = Variable(value, origin)
    return variables


def _list_places(variables: Mapping[str, Variable], directory: Path, base: Path) -> tuple[Path, ...]:
    """List where the project's `profiles.toml` may be: where it is named, else from the directory upward."""
    if (named := variables.get(PROFILES_VARIABLE)) is not None:
        return (base / named.value,)
    return tuple(folder / PROFILES_FILE for folder in (directory, *directory.parents))


def _find_packaged() -> Path:
    """Find the file that comes with embedkit: inside the package in a wheel, at the root in a checkout."""
    package = Path(__file__).parent
    places = (package / PROFILES_FILE, package.parent / PROFILES_FILE)
    found = next((path for path in places if path.is_file()), None)
    if found is None:
        raise ConfigError(
            f"embedkit's own {PROFILES_FILE} is missing: it is neither {places[0]} nor {places[1]}.",
            hint="install embedkit-core again",
        )
    return found


def _load_toml(path: Path, shown: str) -> dict[str, Any]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.", origin=shown) from error
    as_utf_8 = "save the file as UTF-8"
    if b"\0" in content:
        raise ConfigError(f"{shown} holds NUL bytes: it is UTF-16 or no text.", origin=shown, hint=as_utf_8)
    try:
        document = tomllib.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        problem = f"{shown} is not UTF-8: byte 0x{content[error.start]:02x} in line {line} (Latin-1, Windows-1252?)."
        raise ConfigError(problem, origin=f"{shown}:{line}", hint=as_utf_8) from error
    except RecursionError as error:
        raise _refuse_depth(shown) from error
    except ValueError as error:
        place, key = _locate(error, content)
        problem = f"{shown} is not valid TOML: {error}{key}."
        raise ConfigError(problem, origin=f"{shown}{place}", hint="mend that line") from error
    if _is_deeper(document, _DEEPEST):
        raise _refuse_depth(shown)
    return document


def _refuse_depth(shown: str) -> ConfigError:
    return ConfigError(f"{shown} is nested too deeply to be a list of profiles.", origin=shown)


def _is_deeper(value: object, levels: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(levels == 0 or _is_deeper(item, levels - 1) for item in inner)


def _locate(error: ValueError, content: bytes) -> tuple[str, str]:
    """Give `:line` of a fault, and the key there; Python before 3.14 says the line only inside the message."""
    lines = content.decode("utf-8-sig").split("\n")
    found = re.search(r"\(at line (\d+)", str(error))
    number = int(found[1]) if found else len(lines)
    # The key alone: what stands behind it may be a secret that somebody pasted.
    key, equals, _ = lines[number - 1].partition("=")
    return f":{number}", f", at {key.strip()}" if equals else ""


def _read_tables(document: Mapping[str, Any], shown: str, tables: _Tables) -> list[ConfigError]:
    """Add a file's tables, and give its faults; a table replaces one of the same name, fields of two never merge."""
    known_keys = ("default", *tables)
    faults: list[ConfigError] = [
        refuse_unknown_key(key, known_keys, Origin(shown)) for key in document if key not in known_keys
    ]
    if not isinstance(document.get("default", ""), str):
        problem = f"default must be a profile's name, not {show_value(document['default'])}."
        faults.append(SettingError(problem, origin=f"{shown} default", hint='such as default = "speed"'))
    for kind, known in tables.items():
        section = document.get(kind, {})
        if not isinstance(section, dict):
            problem = f"{kind} must be a table of tables, not {show_value(section)}."
            faults.append(SettingError(problem, origin=shown, hint=f"write [{kind}.NAME]"))
            continue
        for name, raw in section.items():
            if isinstance(raw, dict):
                origin = Origin(f"{shown} [{kind}.{name}]")
                try:
                    values = read_values(_KINDS[kind], raw, origin=origin, untyped=_UNTYPED.get(kind, ()))
                except ConfigError as fault:
                    faults += fault.faults or (fault,)
                else:
                    known[name] = Table(values=values, origin=origin)
            else:
                problem = f"{kind}.{name} must be a table, not {show_value(raw)}."
                faults.append(SettingError(problem, origin=shown, hint=f"write [{kind}.{name}]"))
    return faults


def _find_misspelt(variables: Mapping[str, Variable], tables: _Tables) -> Iterator[str]:
    """Warn of a variable that is nearly one of ours; those that a profile names (`*_env`) are meant as they are."""
    named = {
        value
        for kind in ("profiles", "rerankers")
        for table in tables[kind].values()
        for key, value in table.values.get("options", {}).items()
        if key.endswith("_env") and isinstance(value, str)
    }
    for name, variable in variables.items():
        if name.upper().startswith(_OUR_PREFIXES) and name not in VARIABLES and name not in named:
            nearest = find_nearest(name, VARIABLES)
            if nearest:
                yield f"{name} is no variable of embedkit; did you mean {nearest}? ({variable.origin.source})"
