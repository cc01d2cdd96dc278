"""
Translate the exceptions of huggingface_hub, safetensors, transformers and torch into embedkit's.

Owns which foreign failure means what, and what mends it. Raises nothing itself.
"""

from __future__ import annotations

import socket
from collections.abc import Container, Iterable

import attrs
import torch
from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    RevisionResolutionError,
)
from huggingface_hub.errors import HTTPError as ClientError  # type: ignore[attr-defined]  # whichever client it uses
from safetensors import SafetensorError

from embedkit.errors import (
    AuthenticationError,
    BackendError,
    EmbedkitError,
    ModelLoadError,
    RateLimitError,
    TransportError,
)
from embedkit_local.devices import explain_fork, is_fork_error

_PULL = "try again: {pull}"


# Read after the rules for answers: the classes of those derive from the client's too.
_NO_ANSWER = (
    OfflineModeIsEnabled,
    LocalEntryNotFoundError,
    ClientError,
    ConnectionError,
    TimeoutError,
    socket.gaierror,
)


@attrs.frozen(kw_only=True)
class _Rule:
    """
    Say what a foreign exception means.

    Attributes:
        kinds: It speaks of these,

        statuses: of those that come with an answer of such a status,

        phrases: and of those whose message holds such a phrase.

        error: What it becomes.

        problem, hint: Its words; {model}, {reason}, {kind}, {module} and {pull} are filled in.
    """

    kinds: tuple[type[Exception], ...] = ()
    statuses: Container[int | None] = ()
    phrases: tuple[str, ...] = ()
    error: type[EmbedkitError]
    problem: str
    hint: str

    def fits(self, error: Exception) -> bool:
        """Whether the rule speaks of *error*."""
        message = str(error)
        return (
            isinstance(error, self.kinds)
            or _read_status(error) in self.statuses
            or any(phrase in message for phrase in self.phrases)
        )


# The first that fits holds: the hub's classes derive from each other and from those of its HTTP client.
_FETCH_RULES = (
    _Rule(
        kinds=(OfflineModeIsEnabled,),
        error=ModelLoadError,
        problem="The model {model!r} is not on this machine, and HF_HUB_OFFLINE forbids fetching it.",
        hint="unset HF_HUB_OFFLINE and fetch it once: {pull}; or name a directory or a package: in `model`",
    ),
    _Rule(
        kinds=(GatedRepoError, DisabledRepoError, LocalTokenNotFoundError),
        error=AuthenticationError,
        problem="The hub does not give out the model {model!r}: {reason}",
        hint="accept the model's terms on its page, then log in: hf auth login (or set HF_TOKEN)",
    ),
    _Rule(
        kinds=(RevisionNotFoundError, RevisionResolutionError),
        error=ModelLoadError,
        problem="The model {model!r} has no such revision: {reason}",
        hint="mend `revision` in the profile's options",
    ),
    _Rule(
        kinds=(RepositoryNotFoundError,),
        statuses=(401,),
        error=ModelLoadError,
        problem="The hub has no model {model!r}, or it is private.",
        hint="mend `model`; for a directory write ./{model}; for a private model log in: hf auth login",
    ),
    _Rule(
        statuses=(429,),
        error=RateLimitError,
        problem="The hub asks for fewer requests while {model!r} is fetched: {reason}",
        hint="wait, or log in: hf auth login",
    ),
    _Rule(
        kinds=(HFValidationError,),
        error=ModelLoadError,
        problem="{model!r} is no name of a model on the hub: {reason}",
        hint="write OWNER/NAME",
    ),
    _Rule(
        kinds=(RemoteEntryNotFoundError,),
        error=ModelLoadError,
        problem="The hub lacks a file of the model {model!r}: {reason}",
        hint="pin another `revision` in the profile's options",
    ),
    _Rule(
        kinds=(HfHubHTTPError,),
        statuses=range(400, 600),
        error=TransportError,
        problem="The hub failed while {model!r} was fetched: {reason}",
        hint=_PULL,
    ),
    _Rule(
        kinds=_NO_ANSWER,
        error=ModelLoadError,
        problem="The model {model!r} is not on this machine, and the hub cannot be reached: {reason}",
        hint="fetch it once where there is a network: {pull}; then HF_HUB_OFFLINE=1 works without one",
    ),
    _Rule(
        kinds=(OSError,),
        error=ModelLoadError,
        problem="The model {model!r} could not be written to this machine: {reason}",
        hint="check the disk, and HF_HOME",
    ),
    _Rule(
        kinds=(Exception,),
        error=ModelLoadError,
        problem="The model {model!r} could not be fetched: {kind}: {reason}",
        hint=_PULL,
    ),
)


_LOAD_RULES = (
    _Rule(
        kinds=(torch.OutOfMemoryError, MemoryError),
        phrases=("not enough memory", "out of memory"),
        error=BackendError,
        problem="The model {model!r} does not fit into the memory of the device: {reason}",
        hint='choose a smaller model, dtype = "bfloat16" in the profile\'s options, or another device',
    ),
    _Rule(
        kinds=(ImportError,),
        error=ModelLoadError,
        problem="The model {model!r} needs a package that is missing: {reason}",
        hint="install the distribution that brings the module {module}",
    ),
    _Rule(
        kinds=(SafetensorError,),
        error=ModelLoadError,
        problem="The weights of {model!r} are damaged: {reason}",
        hint="fetch the model again",
    ),
    _Rule(
        phrases=("trust_remote_code",),
        error=ModelLoadError,
        problem="The model {model!r} needs code that it brings itself, and trust_remote_code is false: {reason}",
        hint="read that code; to run it, set trust_remote_code = true in the profile's options",
    ),
    *(rule for rule in _FETCH_RULES if not {OSError, Exception} & {*rule.kinds}),
    _Rule(
        kinds=(Exception,),
        error=ModelLoadError,
        problem="The model {model!r} could not be loaded: {kind}: {reason}",
        hint="its files may not belong together: fetch the model again, or name another",
    ),
)


def is_without_answer(error: Exception) -> bool:
    """Whether the hub could not be asked at all."""
    return isinstance(error, _NO_ANSWER) and not isinstance(error, HfHubHTTPError)


def translate_fetch_error(error: Exception, model: str, *, profile: str = "") -> EmbedkitError:
    """
    Say why a model could not be fetched from the hub.

    Args:
        error: What huggingface_hub, its HTTP client or the file system raised.

        model: What the profile calls the model.

        profile: The profile's name, for the command that fetches it.

    Returns:
        The error to raise from it.
    """
    return _translate(error, model, _FETCH_RULES, profile)


def translate_load_error(error: Exception, model: str) -> EmbedkitError:
    """
    Say why a model whose files were found whole could not be loaded.

    Args:
        error: What torch, transformers, safetensors or sentence-transformers raised.

        model: What the profile calls the model.

    Returns:
        The error to raise from it.
    """
    return explain_fork() if is_fork_error(error) else _translate(error, model, _LOAD_RULES, "")


def _translate(error: Exception, model: str, rules: Iterable[_Rule], profile: str) -> EmbedkitError:
    rule = next(rule for rule in rules if rule.fits(error))
    words = {
        "model": model,
        "reason": _first_line(error),
        "kind": type(error).__name__,
        "pull": "embedkit pull" if profile in {"", "custom"} else f"embedkit pull {profile}",
        "module": getattr(error, "name", None) or "that it names",
    }
    return rule.error(rule.problem.format(**words), hint=rule.hint.format(**words))


def _read_status(error: Exception) -> int | None:
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
