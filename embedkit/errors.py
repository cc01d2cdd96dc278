"""
Every exception of embedkit, and the shape of its message.

A message is a problem (a sentence with the offending value), where it comes from, and what one can type to mend it::

    EmbedkitError(problem, *, origin="", hint="")
    ├─ ConfigError: UnknownProfileError, SettingError
    ├─ PluginError: UnknownProviderError, DuplicateProviderError, BrokenPluginError
    ├─ BackendError: MissingDependencyError, ModelLoadError, DeviceUnavailableError, AuthenticationError,
    │                RateLimitError, TransportError, ContractError, IncompleteError (.done, .missing)
    ├─ InputError (also ValueError; .positions)
    └─ SpaceMismatchError (.expected, .found)

This module imports nothing of embedkit and knows no provider.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from embedkit.space import Space
    from embedkit.vectors import Embeddings


def _restore(kind: type[EmbedkitError], args: tuple[object, ...]) -> EmbedkitError:
    return kind.__new__(kind, *args)


class EmbedkitError(Exception):
    """
    Say what happened, where the value came from, and what to type.

    Args:
        problem: A sentence with the offending value.

        origin: The file, variable or call that the value came from; filled in by whoever knows it.

        hint: What mends it.
    """

    def __init__(self, problem: str, *, origin: str = "", hint: str = "") -> None:
        super().__init__(problem)
        self.problem = problem
        self.origin = origin
        self.hint = hint

    def __str__(self) -> str:
        lines = [self.problem]
        if self.origin:
            lines.append(f"  from: {self.origin}")
        if self.hint:
            lines.append(f"  hint: {self.hint}")
        return "\n".join(lines)

    def __reduce__(self) -> tuple[object, ...]:
        # BaseException would call the class with `args` alone and lose the keyword-only parts: process pools then hang.
        return _restore, (type(self), self.args), self.__dict__.copy()


class ConfigError(EmbedkitError):
    """
    A configuration file or variable is wrong.

    Attributes:
        faults: Every single fault, when more than one was found; else empty.
    """

    faults: tuple[ConfigError, ...] = ()

    @classmethod
    def combine(cls, faults: Sequence[ConfigError]) -> ConfigError:
        """Make one error out of *faults* (at least one), so that all of them are reported at once."""
        if len(faults) == 1:
            return faults[0]
        combined = cls(f"The configuration has {len(faults)} faults.")
        combined.faults = tuple(faults)
        return combined

    def __str__(self) -> str:
        if not self.faults:
            return super().__str__()
        numbered = (f"{number}. {fault}".replace("\n", "\n   ") for number, fault in enumerate(self.faults, start=1))
        return "\n".join([self.problem, *numbered])


class UnknownProfileError(ConfigError):
    """No profile of that name is declared."""


class SettingError(ConfigError):
    """One setting has a value that it cannot have."""


class PluginError(EmbedkitError):
    """A plugin is absent, broken or in another's way."""


class UnknownProviderError(PluginError):
    """No installed plugin offers a provider of that name."""


class DuplicateProviderError(PluginError):
    """Two plugins offer a provider of one name."""


class BrokenPluginError(PluginError):
    """The plugin that was asked for could not be loaded."""


class BackendError(EmbedkitError):
    """A provider could not do its work."""


class MissingDependencyError(BackendError):
    """A provider needs a package that is not installed."""


class ModelLoadError(BackendError):
    """A model could not be loaded, or is not what it claims to be."""


class DeviceUnavailableError(BackendError):
    """The device that was asked for is not there."""


class AuthenticationError(BackendError):
    """A server refused the credentials."""


class RateLimitError(BackendError):
    """A server asks for fewer requests, or a quota is used up."""


class TransportError(BackendError):
    """A server could not be reached, or the exchange with it broke off."""


class ContractError(BackendError):
    """A provider returned something that cannot be right; its vectors were not used."""


class IncompleteError(BackendError):
    """
    Some texts have no vector; what was embedded is kept.

    Attributes:
        done: The vectors of every other text, in the order of the input.

        missing: Positions in the caller's input that have no vector.
    """

    def __init__(
        self, problem: str, *, done: Embeddings, missing: Iterable[int], origin: str = "", hint: str = ""
    ) -> None:
        super().__init__(problem, origin=origin, hint=hint)
        self.done = done
        self.missing = tuple(missing)


class InputError(EmbedkitError, ValueError):
    """
    Some texts cannot be embedded as they are.

    Attributes:
        positions: Their positions in the caller's input; empty when the input as a whole is wrong.
    """

    def __init__(self, problem: str, *, positions: Iterable[int] = (), origin: str = "", hint: str = "") -> None:
        super().__init__(problem, origin=origin, hint=hint)
        self.positions = tuple(positions)


class SpaceMismatchError(EmbedkitError):
    """
    Vectors of two spaces met; they cannot be compared.

    Attributes:
        expected: The space of the left-hand side.

        found: The space of the right-hand side.
    """

    def __init__(self, expected: Space, found: Space, *, origin: str = "", hint: str = "") -> None:
        super().__init__(
            f"These vectors belong to different spaces and must not be compared: {expected} and {found}.",
            origin=origin,
            hint=hint or "embed both sides with the same profile",
        )
        self.expected = expected
        self.found = found
