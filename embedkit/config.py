"""
Read `profiles.toml`, `.env` and the environment, and keep every raw value together with where it came from.

Owns discovery, the order of the layers and the only reading of environment variables. Does not type values: see `resolve`. Writes
nothing, neither to `os.environ` nor to a file.

Layers, lowest first: field default, `profiles.toml`, `.env`, process environment.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs

from embedkit.env_file import read_env_file
from embedkit.errors import ConfigError, SettingError, UnknownProfileError
from embedkit.options import Origin, find_nearest, list_options, refuse_unknown_key, show_value
from embedkit.profile import Profile

PROFILES_FILE = "profiles.toml"
ENV_FILE = ".env"

PROFILE_VARIABLE = "EMBEDDING_PROFILE"
RERANKER_VARIABLE = "ENABLE_RERANKER"
OVERRIDE_VARIABLES = {
    field.env: name for name, field in list_options(Profile).items() if field.env is not None
}
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

_OUR_PREFIXES = ("EMBEDDING", "EMBEDKIT", "ENABLE_RERANK")
_ROOT_MARKS = (PROFILES_FILE, ".git", "pyproject.toml")
_PACKAGED = Path(__file__).with_name(PROFILES_FILE)


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
    Hold one table of a `profiles.toml` as it was written.

    Attributes:
        values: Key -> raw value.

        origin: The file and the table's name.
    """

    values: Mapping[str, Any]
    origin: Origin


@attrs.frozen(kw_only=True)
class Config:
    """
    Hold what was read, before any of it is typed.

    Attributes:
        profiles: Name -> table, the project's over the packaged.

        rerankers: Likewise.

        install_hints: Provider -> the command that installs it.

        default: The profile that is taken when nobody names one.

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
            chosen, origin = name, Origin("the call")
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
            if len(self.files) == 1:
                declared += f"; no {PROFILES_FILE} of your own was found from {self.searched[0].parent} upward"
            raise UnknownProfileError(
                f"There is no profile {show_value(name)}.",
                origin=str(origin),
                hint=f"did you mean {nearest}? ({declared})" if nearest else declared,
            )
        return self.profiles[name]


def read_config(*, environ: Mapping[str, str] | None = None, directory: Path | None = None) -> Config:
    """
    Read every layer.

    Args:
        environ: The process environment, unless told otherwise.

        directory: Where the search begins; the working directory unless told otherwise.

    Raises:
        ConfigError: A file is missing, unreadable or wrong; all faults are named at once.
    """
    environ = os.environ if environ is None else environ
    directory = Path.cwd() if directory is None else directory.absolute()
    faults: list[ConfigError] = []

    env_file, new_env_file = _find_env_file(environ, directory, faults)
    try:
        variables = _layer_variables(environ, env_file)
    except ConfigError as fault:
        faults.append(fault)
        variables = _layer_variables(environ, None)
    own_file, searched = _find_profiles(variables, directory, faults)
    tables: dict[str, dict[str, Table]] = {"profiles": {}, "rerankers": {}, "providers": {}}
    default, default_origin = "", Origin("default")
    files = [_PACKAGED if _PACKAGED.exists() else _PACKAGED.parent.parent / PROFILES_FILE]
    if own_file is not None and not _is_same_file(own_file, files[0]):
        files.append(own_file)
    for file in files:
        try:
            document = _load_toml(file)
            _read_tables(document, file, tables)
            if "default" in document:
                default, default_origin = _read_default(document["default"], file)
        except ConfigError as fault:
            faults.append(fault)
    if not faults and default not in tables["profiles"]:
        faults.append(
            SettingError(
                f"default names no declared profile: {show_value(default)}.",
                origin=str(default_origin),
                hint=f"declared: {', '.join(sorted(tables['profiles']))}",
            )
        )
    if faults:
        raise ConfigError.combine([single for fault in faults for single in fault.faults or (fault,)])
    return Config(
        profiles=tables["profiles"],
        rerankers=tables["rerankers"],
        install_hints={name: str(table.values["install"]) for name, table in tables["providers"].items()},
        default=default,
        default_origin=default_origin,
        variables=variables,
        files=tuple(reversed(files)),
        searched=searched,
        env_file=env_file,
        new_env_file=new_env_file,
        warnings=tuple(_find_misspelt(variables, tables)),
    )


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


def read_plugin_settings(config: Config) -> PluginSettings:
    """Read EMBEDKIT_PLUGINS (a comma-separated list) and EMBEDKIT_DISABLE_PLUGIN_AUTOLOAD (anything but 0, false, no, off)."""
    listed = config.variables.get(PLUGINS_VARIABLE)
    disabled = config.variables.get(PLUGIN_AUTOLOAD_VARIABLE)
    return PluginSettings(
        autoload=disabled is None or disabled.value.strip().casefold() in ("0", "false", "no", "off"),
        allowed=None if listed is None else frozenset(name.strip() for name in listed.value.split(",") if name.strip()),
    )


def show_path(path: Path) -> str:
    """Write a path as short as it stays clear: relative below the working directory, else whole."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def _find_env_file(
    environ: Mapping[str, str], directory: Path, faults: list[ConfigError]
) -> tuple[Path | None, Path]:
    """Find the `.env` between the working directory and the project's root; also say where a new one belongs."""
    if named := environ.get(ENV_FILE_VARIABLE):
        path = directory / named
        if not path.exists():
            faults.append(
                ConfigError(
                    f"There is no file {path}.",
                    origin=f"environment variable {ENV_FILE_VARIABLE}",
                    hint=f"unset {ENV_FILE_VARIABLE}, or create the file",
                )
            )
            return None, path
        return path, path
    upward = (directory, *directory.parents)
    root = next((folder for folder in upward if any((folder / mark).exists() for mark in _ROOT_MARKS)), directory)
    # Beyond the project's root, a .env is somebody else's.
    inside = upward[: upward.index(root) + 1]
    found = next((folder / ENV_FILE for folder in inside if (folder / ENV_FILE).exists()), None)
    return found, found or root / ENV_FILE


def _layer_variables(environ: Mapping[str, str], env_file: Path | None) -> dict[str, Variable]:
    """Put the environment over `.env`; an empty variable counts as unset in both."""
    variables: dict[str, Variable] = {}
    for name, entry in (read_env_file(env_file) if env_file is not None else {}).items():
        if entry.value:
            variables[name] = Variable(entry.value, Origin(f"{show_path(env_file or Path())}:{entry.line} {name}"))
    for name, value in environ.items():
        if value:
            below = variables.get(name)
            source = f"environment variable {name}"
            if below is None or below.value == value:
                origin = Origin(source)
            else:
                hidden = below.value if name in VARIABLES else "a value"
                origin = Origin(source, hides=below.origin, hidden=hidden)
            variables[name] = Variable(value, origin)
    return variables


def _find_profiles(
    variables: Mapping[str, Variable], directory: Path, faults: list[ConfigError]
) -> tuple[Path | None, tuple[Path, ...]]:
    """Find the project's `profiles.toml`: the one that is named, else the nearest upward."""
    if (named := variables.get(PROFILES_VARIABLE)) is not None:
        path = directory / named.value
        if path.is_file():
            return path, (path,)
        faults.append(
            ConfigError(
                f"There is no file {path}.", origin=str(named.origin), hint=f"unset {PROFILES_VARIABLE}, or create the file"
            )
        )
        return None, (path,)
    searched = tuple(folder / PROFILES_FILE for folder in (directory, *directory.parents))
    return next((path for path in searched if path.is_file()), None), searched


def _is_same_file(left: Path, right: Path) -> bool:
    return right.exists() and left.samefile(right)


def _load_toml(path: Path) -> dict[str, Any]:
    shown = show_path(path)
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise ConfigError(
            f"embedkit's own {PROFILES_FILE} is missing: {path}.", hint="install embedkit-core again"
        ) from error
    except OSError as error:
        raise ConfigError(f"{shown} cannot be read: {error.strerror}.", origin=str(path)) from error
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ConfigError(f"{shown} is UTF-16, and TOML is UTF-8.", origin=str(path), hint="save the file as UTF-8")
    try:
        return tomllib.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{shown}:{line} is not UTF-8 (byte 0x{content[error.start]:02x}; Latin-1 or Windows-1252?).",
            origin=str(path),
            hint="save the file as UTF-8",
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(
            f"{shown} is not valid TOML: {error}.", origin=_locate(error, shown, content), hint="mend that line"
        ) from error
    except RecursionError as error:
        raise ConfigError(f"{shown} is nested too deeply to be read.", origin=str(path)) from error


def _locate(error: tomllib.TOMLDecodeError, shown: str, content: bytes) -> str:
    """Give file:line; Python before 3.14 says the line only inside the message, and not at the end of the file."""
    line = getattr(error, "lineno", None)
    if line is None:
        _, _, after = str(error).rpartition("(at line ")
        number = after.partition(",")[0]
        line = int(number) if number.isdigit() else content.count(b"\n") + 1
    return f"{shown}:{line}"


def _read_tables(document: Mapping[str, Any], file: Path, tables: dict[str, dict[str, Table]]) -> None:
    """Add a file's tables; a table replaces one of the same name, and fields of two tables never merge."""
    shown = show_path(file) if file.parent not in (_PACKAGED.parent, _PACKAGED.parent.parent) else f"packaged {PROFILES_FILE}"
    faults: list[ConfigError] = [
        refuse_unknown_key(key, ("default", *tables), Origin(shown)) for key in document if key not in ("default", *tables)
    ]
    for kind, known in tables.items():
        section = document.get(kind, {})
        if not isinstance(section, dict):
            faults.append(SettingError(f"{kind} must be a table of tables, not {show_value(section)}.", origin=shown))
            continue
        for name, values in section.items():
            origin = Origin(f"{shown} [{kind}.{name}]")
            if isinstance(values, dict):
                known[name] = Table(values=values, origin=origin)
            else:
                faults.append(
                    SettingError(
                        f"{kind}.{name} must be a table, not {show_value(values)}.", origin=shown, hint=f"write [{kind}.{name}]"
                    )
                )
    for name, table in tables["providers"].items():
        faults += _find_provider_faults(name, table)
    if faults:
        raise ConfigError.combine(faults)


def _find_provider_faults(name: str, table: Table) -> Iterator[ConfigError]:
    """Check a [providers.NAME] table, which holds an install command and nothing else."""
    for key in table.values:
        if key != "install":
            yield refuse_unknown_key(key, ("install",), table.origin)
    if not isinstance(table.values.get("install"), str):
        yield SettingError(
            f"providers.{name} needs install, the command that installs it.",
            origin=str(table.origin),
            hint='install = "python -m pip install …"',
        )


def _read_default(value: object, file: Path) -> tuple[str, Origin]:
    origin = Origin(f"{show_path(file)} default")
    if not isinstance(value, str):
        raise SettingError(f"default must be a profile's name, not {show_value(value)}.", origin=str(origin))
    return value, origin


def _find_misspelt(
    variables: Mapping[str, Variable], tables: Mapping[str, Mapping[str, Table]]
) -> Iterator[str]:
    """Warn of a variable that is nearly one of ours; those that a profile names (`*_env`) are meant as they are."""
    named = {
        value
        for kind in ("profiles", "rerankers")
        for table in tables[kind].values()
        for value in (table.values.get("options") or {}).values()
        if isinstance(value, str)
    } if variables else set()
    for name, variable in variables.items():
        if name.upper().startswith(_OUR_PREFIXES) and name not in VARIABLES and name not in named:
            nearest = find_nearest(name, VARIABLES)
            if nearest:
                yield f"{name} is no variable of embedkit; did you mean {nearest}? ({variable.origin.source})"
