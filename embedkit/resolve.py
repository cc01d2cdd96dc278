"""
Turn raw values into a `Profile` and typed options: overrides, the coupled rule, and `*_env` names into secrets.

Owns what an override does to the rest of a profile. Reads no file and no environment itself: `config` did.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import attrs

from embedkit.config import OVERRIDE_VARIABLES, RERANKER_VARIABLE, Config, Table, Variable
from embedkit.errors import ConfigError, SettingError
from embedkit.options import (
    CALL,
    DEFAULT,
    OptionField,
    Origin,
    Secret,
    list_options,
    read_options,
    read_value,
    show_value,
)
from embedkit.profile import Profile, RerankerProfile

T = TypeVar("T")

FindOptions = Callable[[str], type | None]
"""Gives a provider's options class by the provider's name; None when that provider is not installed."""

IDENTITY_KEYS = ("provider", "model", "dimensions")
"""An override of one of these makes another vector space."""


def resolve_profile(
    config: Config,
    name: str | None = None,
    *,
    find_options: FindOptions,
    device: str | None = None,
    override: bool = True,
) -> Profile:
    """
    Give the profile that is meant, with every layer applied.

    Args:
        config: What was read.

        name: Which profile; left out: EMBEDDING_PROFILE, else the file's default.

        find_options: Says which of a provider's options belong to the model.

        device: Stands above every layer.

        override: Whether the EMBEDDING_* overrides apply.

    Raises:
        ConfigError: The profile is unknown, or settings are wrong: all of them are named at once.
    """
    chosen, _ = config.choose_profile(name)
    draft = Draft.of(chosen, config.profiles[chosen])
    if override:
        _apply_overrides(draft, config, find_options)
    if device is not None:
        draft.put("device", device, CALL)
    return draft.build(Profile)


def resolve_reranker(config: Config, profile: Profile) -> RerankerProfile | None:
    """
    Give the reranker of a profile when ENABLE_RERANKER switches it on, else None.

    Raises:
        SettingError: It is switched on and the profile names none, or one that is not declared.
    """
    variable = config.variables.get(RERANKER_VARIABLE)
    if variable is None:
        return None
    field = OptionField(
        name=RERANKER_VARIABLE, annotation=bool, default=True, help="", belongs_to="machine", env=None, at_least=None
    )
    if not read_value(field, variable.value, origin=variable.origin, from_text=True):
        return None
    known = f"declared: {', '.join(sorted(config.rerankers)) or 'none'}"
    if profile.reranker is None:
        raise SettingError(
            f"{RERANKER_VARIABLE} is on, and profile {profile.name!r} names no reranker.",
            origin=str(variable.origin),
            hint=f'add reranker = "…" to [profiles.{profile.name}] ({known}), or unset {RERANKER_VARIABLE}',
        )
    if profile.reranker not in config.rerankers:
        raise SettingError(
            f"There is no reranker {profile.reranker!r}.", origin=str(profile.origins.get("reranker", "")), hint=known
        )
    return Draft.of(profile.reranker, config.rerankers[profile.reranker]).build(RerankerProfile)


def resolve_options(profile: Profile | RerankerProfile, options_class: type[T], variables: Mapping[str, Variable]) -> T:
    """
    Type a profile's options with its provider's options class.

    Args:
        profile: Its `options` are raw.

        options_class: The provider's.

        variables: Where secrets are looked up.

    Raises:
        ConfigError: Options are unknown, missing or of the wrong type: all of them are named at once.
    """
    origin = profile.origins.get("options", Origin(f"options of profile {profile.name!r}"))

    def read_secret(variable: str, origin: Origin) -> Secret:
        found = variables.get(variable)
        return Secret(variable, None if found is None else found.value, origin=str(found.origin if found else origin))

    return read_options(options_class, profile.options, origin=origin, read_secret=read_secret)


def require_no_identity_override(config: Config, command: str) -> None:
    """
    Refuse an override that would make two profiles the same.

    Args:
        config: What was read.

        command: Who works with two profiles at once, for the error.

    Raises:
        SettingError: EMBEDDING_PROVIDER, EMBEDDING_MODEL or EMBEDDING_DIMENSIONS is set.
    """
    for name, key in OVERRIDE_VARIABLES.items():
        if key in IDENTITY_KEYS and name in config.variables:
            raise SettingError(
                f"{command} works with several profiles, and {name} would make them the same.",
                origin=str(config.variables[name].origin),
                hint=f"unset {name}, or write a profile for that model",
            )


@attrs.define
class Draft:
    """Hold a profile in the making: typed values, and the origin of each."""

    name: str
    values: dict[str, Any]
    origins: dict[str, Origin]

    @classmethod
    def of(cls, name: str, table: Table) -> Draft:
        """Begin with what a table states."""
        return cls(name, dict(table.values), dict.fromkeys(table.values, table.origin))

    def put(self, key: str, value: object, origin: Origin) -> None:
        """Put a value over what is there, and note what it hides."""
        self.values[key], self.origins[key] = value, self.hide(key, origin)

    def hide(self, key: str, origin: Origin) -> Origin:
        """Give *origin*, with what it hides of this draft at the bottom of its chain."""
        if origin.hides is not None:
            return attrs.evolve(origin, hides=self.hide(key, origin.hides))
        if key in self.values:
            return attrs.evolve(origin, hides=self.origins[key], hidden=self.values[key])
        return attrs.evolve(origin, note=self.origins[key].note) if key in self.origins else origin

    def drop(self, key: str, note: str) -> None:
        """Take a value out, and note why."""
        dropped = ""
        if key in self.values:
            value = self.values.pop(key)
            # Of options only the keys are shown: nobody knows yet which of them hold a secret.
            shown = ", ".join(sorted(value)) if key == "options" else show_value(value)
            dropped = f"{shown} of {self.origins[key].source} was "
        self.origins[key] = attrs.evolve(DEFAULT, note=f"{dropped}{note}")

    def build(self, kind: Callable[..., T]) -> T:
        """Make the frozen profile."""
        return kind(name=self.name, **self.values, origins=self.origins)


def _apply_overrides(draft: Draft, config: Config, find_options: FindOptions) -> None:
    """Apply EMBEDDING_*; an override of provider or model first drops what goes with it."""
    fields = list_options(Profile)
    faults: list[ConfigError] = []
    overrides: dict[str, tuple[object, Origin]] = {}
    for name, key in OVERRIDE_VARIABLES.items():
        if (variable := config.variables.get(name)) is not None:
            origin = draft.hide(key, variable.origin)
            try:
                overrides[key] = read_value(fields[key], variable.value, origin=origin, from_text=True), variable.origin
            except ConfigError as fault:
                faults.append(fault)
    if faults:
        raise ConfigError.combine(faults)

    def is_changed(key: str) -> bool:
        # An override that says what the profile says is none.
        return key in overrides and overrides[key][0] != draft.values.get(key, fields[key].default)

    if is_changed("provider") and "options" in draft.values:
        draft.drop("options", "dropped with the provider that they belong to")
    if is_changed("model"):
        _drop_with_model(draft, str(overrides["model"][0]), config, find_options)
    # Compared only now: a variable may say again what was dropped.
    for key in filter(is_changed, overrides):
        draft.put(key, *overrides[key])


def _drop_with_model(draft: Draft, model: str, config: Config, find_options: FindOptions) -> None:
    """Drop what belongs to the model that is overridden: its dimensions, prompts, reference, price and options."""
    note = "dropped with the model that it belongs to"
    others = [name for name, table in config.profiles.items() if table.values.get("model") == model]
    if others:
        note += f"; profile {others[0]!r} declares {model} with its own settings: EMBEDDING_PROFILE={others[0]}"
    for key, field in list_options(Profile).items():
        if field.belongs_to == "model" and key != "model" and (key in draft.values or key == "query_prompt"):
            draft.drop(key, note)
    options_class = find_options(draft.values.get("provider", list_options(Profile)["provider"].default))
    if options_class is None or not draft.values.get("options"):
        return
    declared = list_options(options_class)
    kept = {
        key: value
        for key, value in draft.values["options"].items()
        if key not in declared or declared[key].belongs_to != "model"
    }
    dropped = sorted(draft.values["options"].keys() - kept.keys())
    if dropped:
        draft.values["options"] = kept
        draft.origins["options"] = attrs.evolve(
            draft.origins["options"], note=f"{', '.join(dropped)} dropped with the model that they belong to"
        )
