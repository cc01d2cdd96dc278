"""
Declare a setting once: its type, its range, its variable, what it belongs to; and say where a value came from.

Owns `option()` fields, the strict reading of raw values into them, `Origin` and `Secret`. Reads no file and no
environment.
"""

from __future__ import annotations

import difflib
import functools
import math
import re
import types
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import attrs

from embedkit.errors import ConfigError, SettingError

BelongsTo = Literal["model", "machine", "connection"]
"""What a setting goes with: an override of the model drops the model's settings and keeps the others."""

T = TypeVar("T")

_METADATA = "embedkit"
_LEAST_STEM = 3
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")  # capitals only: Windows knows no others, and a key pasted here has others
_NUMBER = re.compile(r"[0-9]{1,9}")


@attrs.frozen
class Origin:
    """
    Say where a value came from, and what it hides.

    Attributes:
        source: The file and table, the variable, the argument, or "default".

        hides: The origin of the value underneath; None when there is none.

        hidden: The value underneath.

        note: What else a reader should know, such as why a declared value was dropped.
    """

    source: str
    hides: Origin | None = None
    hidden: object = None
    note: str = ""

    def __str__(self) -> str:
        text = self.source
        if self.hides is not None:
            text += f" (hides {show_value(self.hidden)} in {self.hides})"
        return f"{text}; {self.note}" if self.note else text


DEFAULT = Origin("default")
CALL = Origin("the call")


class Secret:
    """
    Hold a secret that was named by a variable; no repr, `vars()`, copy or pickle shows it.

    Args:
        variable: Name of the environment variable that holds it.

        value: What the variable holds; None or empty when it is not set.

        origin: Where the variable was set.
    """

    __slots__ = ("_take", "origin", "variable")

    def __init__(self, variable: str, value: str | None, *, origin: str = "") -> None:
        self.variable = variable
        self.origin = origin
        self._take: Callable[[], str | None] = lambda: value

    @property
    def is_set(self) -> bool:
        """Whether the variable holds anything."""
        return bool(self._take())

    def reveal(self) -> str:
        """
        Give the secret itself, for the one call that needs it.

        Raises:
            SettingError: The variable is not set.
        """
        value = self._take()
        if not value:
            raise SettingError(
                f"The environment variable {self.variable} is not set, and it should hold a secret.",
                origin=self.origin,
                hint=f"set {self.variable} in the environment or in .env",
            )
        return value

    def __repr__(self) -> str:
        return f"Secret({self.variable}, {'set' if self.is_set else 'not set'})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return (self.variable, self._take()) == (other.variable, other._take())

    def __hash__(self) -> int:
        return hash((self.variable, self._take()))

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError(f"a secret ({self.variable}) is never pickled: name the variable and read it where it is used")


@attrs.frozen(kw_only=True)
class _Declaration:
    help: str
    belongs_to: BelongsTo
    env: str | None
    at_least: float | None


def option(
    *,
    help: str,  # noqa: A002  # the word that every command line library uses for it
    default: Any = attrs.NOTHING,  # noqa: ANN401  # as in attrs.field: the annotation of the field says the type
    belongs_to: BelongsTo = "model",
    env: str | None = None,
    at_least: float | None = None,
) -> Any:  # noqa: ANN401  # as in attrs.field
    """
    Declare a field of an options class (an attrs class with keyword-only fields).

    The annotation is the type: `str`, `int`, `float`, `bool`, `Literal[…]`, `tuple[…, ...]`, `Mapping[str, object]`, or
    an attrs class of such fields for a table in the table; each also `| None`. A field annotated `Secret` (its name
    ends in `_env`) takes the *name* of an environment variable, and gets its content.

    Args:
        help: One line for people.

        default: The value when nobody states one; required when left out.

        belongs_to: "model" settings are dropped when the model is overridden; "machine" and "connection" settings stay.

        env: The variable that overrides it.

        at_least: The least number allowed; for a string, the least number of characters.
    """
    declaration = _Declaration(help=help, belongs_to=belongs_to, env=env, at_least=at_least)
    return attrs.field(default=default, metadata={_METADATA: declaration}, kw_only=True)


def _is_in_range(field: OptionField, value: Any) -> bool:  # noqa: ANN401  # its type is what the annotation says at run time
    if field.at_least is None or value is None:
        return True
    size = len(value.strip()) if isinstance(value, str) else value
    return bool(size >= field.at_least)


@attrs.frozen(kw_only=True)
class OptionField:
    """
    Describe one declared option.

    Attributes:
        name: The key in TOML.

        annotation: Its resolved type.

        default: The default; `attrs.NOTHING` when required.

        help: One line for people.

        belongs_to: What it goes with.

        env: The variable that overrides it, if any.

        at_least: The least number allowed, if any.
    """

    name: str
    annotation: Any
    default: Any
    help: str
    belongs_to: BelongsTo
    env: str | None
    at_least: float | None

    @property
    def is_secret(self) -> bool:
        """Whether the value in TOML is the name of a variable that holds a secret."""
        return self.annotation is Secret or Secret in get_args(self.annotation)


def list_options(options_class: type) -> Mapping[str, OptionField]:
    """Describe the fields of *options_class* that were declared with `option()`, by name."""
    return _list_options(options_class)


@functools.cache
def _list_options(options_class: type) -> Mapping[str, OptionField]:
    hints = get_type_hints(options_class)
    return {
        field.name: OptionField(
            name=field.name,
            annotation=hints[field.name],
            default=field.default,
            help=declaration.help,
            belongs_to=declaration.belongs_to,
            env=declaration.env,
            at_least=declaration.at_least,
        )
        for field in attrs.fields(options_class)
        if (declaration := field.metadata.get(_METADATA)) is not None
    }


def find_nearest(name: str, known: Iterable[str]) -> str | None:
    """Give the known name that *name* was probably meant to be, if there is one."""
    folded, wanted = {candidate.casefold(): candidate for candidate in known}, name.casefold()
    # A name cut short (`dim`) is far from the whole one by the count of its letters.
    whole = [candidate for candidate in folded if len(wanted) >= _LEAST_STEM and candidate.startswith(wanted)]
    matches = whole if len(whole) == 1 else difflib.get_close_matches(wanted, folded, n=1, cutoff=0.75)
    return folded[matches[0]] if matches else None


def show_value(value: object) -> str:
    """Write a value as a person would: cut when long, quoted when a string."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested too deeply, or a number of too many digits
        return f"an immense {type(value).__name__}"
    limit = 80
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def read_value(field: OptionField, raw: object, *, origin: Origin, from_text: bool = False) -> Any:  # noqa: ANN401  # its type is what the annotation says at run time
    """
    Read a raw value strictly into the type that *field* declares.

    Args:
        field: The declaration.

        raw: The value as TOML or a variable gave it.

        origin: Where it came from, for the error.

        from_text: Whether it is a variable's text, so that numbers and booleans are to be parsed first.

    Returns:
        The typed value.

    Raises:
        ConfigError: It is of another type, or out of range; for a table in the table, all its faults.
    """
    for kind in _members(field.annotation):
        if attrs.has(kind) and isinstance(raw, Mapping):
            return read_options(kind, raw, origin=Origin(f"{origin.source} {field.name}"))
    try:
        value = _parse_text(field.annotation, raw) if from_text else raw
        value = _require_type(field.annotation, value)
    except (TypeError, ValueError, OverflowError):
        value = attrs.NOTHING
    if value is attrs.NOTHING or not _is_in_range(field, value):
        wanted = _describe_type(field)
        raise SettingError(
            f"{field.name} must be {wanted}, not {show_value(raw)}.",
            origin=str(origin),
            hint=_suggest_value(field, raw, from_text=from_text),
        )
    return value


def _read_no_secret(variable: str, origin: Origin) -> Secret:
    return Secret(variable, None, origin=str(origin))


def read_options(
    options_class: type[T],
    raw: Mapping[str, object],
    *,
    origin: Origin,
    read_secret: Callable[[str, Origin], Secret] = _read_no_secret,
) -> T:
    """
    Make an options object out of a raw table.

    Args:
        options_class: An attrs class whose fields were declared with `option()`.

        raw: The table as TOML gave it.

        origin: The table, for errors.

        read_secret: Looks up the variable that a secret's value names; left out: no variable is set.

    Raises:
        ConfigError: Keys are unknown, missing or of the wrong type; all of them are named at once.
    """
    return options_class(**read_values(options_class, raw, origin=origin, read_secret=read_secret))


def read_values(
    options_class: type,
    raw: Mapping[str, object],
    *,
    origin: Origin,
    read_secret: Callable[[str, Origin], Secret] = _read_no_secret,
    untyped: Collection[str] = (),
) -> dict[str, Any]:
    """
    Read a raw table strictly, and give what it states, without defaults.

    Args:
        options_class: As for `read_options`.

        raw: As for `read_options`.

        origin: As for `read_options`.

        read_secret: As for `read_options`.

        untyped: Further keys, whose values are tables that are given back as they are.

    Raises:
        ConfigError: As for `read_options`.
    """
    fields = list_options(options_class)
    faults: list[ConfigError] = []
    values: dict[str, Any] = {}
    for key, value in raw.items():
        try:
            if key in fields:
                values[key] = _read_option(fields[key], value, origin, read_secret)
            elif key in untyped and isinstance(value, Mapping):
                values[key] = value
            elif key in untyped:
                faults.append(SettingError(f"{key} must be a table, not {show_value(value)}.", origin=str(origin)))
            else:
                faults.append(refuse_unknown_key(key, (*fields, *untyped), origin))
        except ConfigError as fault:
            faults.extend(fault.faults or (fault,))
    faults += [
        SettingError(f"{key} is required and missing.", origin=str(origin), hint=f"add: {key} = …")
        for key, field in fields.items()
        if field.default is attrs.NOTHING and key not in raw
    ]
    if faults:
        raise ConfigError.combine(faults)
    return values


def refuse_unknown_key(key: str, known: Iterable[str], origin: Origin) -> SettingError:
    """Make the error for a key that does not exist, with the nearest one that does."""
    known = sorted(known)
    nearest = find_nearest(key, known)
    hint = f"did you mean {nearest}?" if nearest else f"known keys: {', '.join(known) or 'none'}"
    return SettingError(f"{show_value(key)} is no known setting.", origin=str(origin), hint=hint)


def _read_option(
    field: OptionField, raw: object, origin: Origin, read_secret: Callable[[str, Origin], Secret]
) -> object:
    if not field.is_secret:
        return read_value(field, raw, origin=origin)
    if not isinstance(raw, str) or not _VARIABLE.fullmatch(raw):
        # The value is not shown: somebody may have put the secret itself here.
        raise SettingError(
            f"{field.name} must be the name of an environment variable, in capital letters, not the secret itself.",
            origin=str(origin),
            hint=f'write the variable\'s name, such as {field.name} = "OPENAI_API_KEY"',
        )
    return read_secret(raw, origin)


def _members(annotation: Any) -> tuple[Any, ...]:  # noqa: ANN401  # its type is what the annotation says at run time
    """Give the alternatives of a union, or the annotation itself."""
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def _parse_text(annotation: Any, raw: object) -> object:  # noqa: ANN401  # its type is what the annotation says at run time
    """Parse a variable's text: numbers and booleans are written out there."""
    if not isinstance(raw, str):
        return raw
    text = raw.strip()
    kinds = _members(annotation)
    if bool in kinds:
        return _BOOLEAN_WORDS.get(text.casefold(), raw)
    if int in kinds:
        return int(text)
    if float in kinds:
        return float(text)
    return text


_BOOLEAN_WORDS = {
    **dict.fromkeys(("true", "1", "yes", "on"), True),
    **dict.fromkeys(("false", "0", "no", "off"), False),
}


def _require_type(annotation: Any, value: object) -> object:  # noqa: ANN401  # its type is what the annotation says at run time
    """Give the value back when it is of the annotated type, strictly: `true` is no int, `"32"` is no int."""
    for kind in _members(annotation):
        origin = get_origin(kind)
        if origin is tuple and isinstance(value, list | tuple):
            return tuple(_require_type(get_args(kind)[0], item) for item in value)
        if kind is float and type(value) is int:
            return _require_type(float, float(value))
        if _is_of_kind(kind, value):
            return value
    raise TypeError


def _is_of_kind(kind: Any, value: object) -> bool:  # noqa: ANN401  # its type is what the annotation says at run time
    origin = get_origin(kind)
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in get_args(kind))
    if origin is not None:
        return isinstance(value, Mapping) and origin is not tuple
    return type(value) is kind and (type(value) is not float or math.isfinite(value))


_TYPE_WORDS: dict[Any, str] = {
    str: "a string",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
}


def _describe_type(field: OptionField) -> str:
    """Say in words what the annotation asks for."""
    words = []
    for kind in _members(field.annotation):
        if get_origin(kind) is Literal:
            words.append("one of " + ", ".join(show_value(choice) for choice in get_args(kind)))
        elif get_origin(kind) is tuple:
            words.append("a list of " + _TYPE_WORDS.get(get_args(kind)[0], "values").removeprefix("a ") + "s")
        elif kind is not type(None):
            words.append(_TYPE_WORDS.get(kind, "a table"))
    text = " or ".join(words)
    if field.at_least is None:
        return text
    return f"{text} that is not empty" if text == "a string" else f"{text} of at least {field.at_least:g}"


def _suggest_value(field: OptionField, raw: object, *, from_text: bool) -> str:
    """Say what to type instead."""
    kinds = _members(field.annotation)
    choices = [str(choice) for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
    if choices:
        nearest = find_nearest(raw, choices) if isinstance(raw, str) else None
        return f"did you mean {nearest}?" if nearest else ""
    is_stated = field.default not in (attrs.NOTHING, None)
    example = str(field.default).lower() if is_stated else "384" if int in kinds else ""
    if from_text:
        return "unset the variable" + (f", or set a value such as {example}" if example else "")
    if int in kinds and isinstance(raw, str) and _NUMBER.fullmatch(raw.strip()) and _is_in_range(field, int(raw)):
        return f"without quotes: {field.name} = {int(raw)}"
    return f"such as {field.name} = {example}" if example and str not in kinds else ""
