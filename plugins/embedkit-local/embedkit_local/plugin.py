"""
The entry point of `embedkit-local`: offers the provider `local`, and what `embedkit doctor` checks of it.

Owns the recipe. Imports nothing heavy: torch and its companions are imported when a model is loaded or fetched.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any

from embedkit import hookimpl
from embedkit.errors import EmbedkitError, MissingDependencyError
from embedkit.protocols import Backend, Check, FetchProgress, Finding, Provider, Subject
from embedkit_local.options import LocalOptions

if TYPE_CHECKING:
    from embedkit.profile import Profile
    from embedkit.space import Space

_REQUIREMENTS = {
    "torch": "torch",
    "transformers": "transformers>=5.2",
    "sentence_transformers": "sentence-transformers>=6.2,<7",
    "huggingface_hub": "huggingface_hub",
    "safetensors": "safetensors",
    "tokenizers": "tokenizers",
}


def load_local(profile: Profile, options: LocalOptions) -> Backend:
    """
    Load a profile's model.

    Raises:
        EmbedkitError: A package, a device or weights are missing, damaged or not what they claim to be.
    """
    backend: Backend = _import_heavy("embedkit_local.backend").load_backend(profile, options)
    return backend


def identify_local(profile: Profile, options: LocalOptions) -> Space | None:
    """
    Give the space of a profile from its files, without torch; None when they are not on this machine or do not tell.

    Raises:
        ModelLoadError: The files are there and damaged.
        SettingError: The profile asks for what the model cannot give.
    """
    from embedkit_local.digests import Digests, find_cache_directory  # noqa: PLC0415  # only when it is asked
    from embedkit_local.identity import build_space  # noqa: PLC0415  # only when it is asked
    from embedkit_local.model_files import find_hub_cache, find_missing, find_place, read_model  # noqa: PLC0415  # only when it is asked

    place = find_place(profile.model, options.revision, hub_cache=find_hub_cache(os.environ))
    if place is None or (place.repository and find_missing(place)):
        return None
    files = read_model(place, trust_remote_code=options.trust_remote_code)
    return build_space(files, profile, options, digests=Digests(find_cache_directory(os.environ)))


def describe_local(profile: Profile, options: LocalOptions) -> tuple[str, ...]:
    """Say how a profile's model was run when it was last loaded on this machine, and what was not taken and why."""
    from embedkit_local.digests import find_cache_directory  # noqa: PLC0415  # only when it is asked
    from embedkit_local.last_way import LastWay  # noqa: PLC0415  # only when it is asked

    return LastWay(find_cache_directory(os.environ)).find(profile, options)


def fetch_local(profile: Profile, options: LocalOptions) -> Iterator[FetchProgress]:
    """
    Bring a profile's weights onto this machine; nothing to do for a directory or a package.

    Raises:
        ModelLoadError: The hub cannot be reached, or does not have the model.
    """
    progress: Iterator[FetchProgress] = _import_heavy("embedkit_local.fetching").fetch(
        profile.model, options, profile=profile.name
    )
    yield from progress


def check_local_devices(subject: Subject) -> Iterable[Finding]:
    """Say what torch and this machine make of each other; see `embedkit_local.checks`."""
    yield from _import_heavy("embedkit_local.checks").check_devices(subject)


def check_local_weights(subject: Subject) -> Iterable[Finding]:
    """Say whether a profile's weights are here, whole, and fit into memory; see `embedkit_local.checks`."""
    yield from _import_heavy("embedkit_local.checks").check_weights(subject)


def check_local_proof(subject: Subject) -> Iterable[Finding]:
    """Prove what can be measured on a loaded model; see `embedkit_local.checks`."""
    yield from _import_heavy("embedkit_local.checks").check_proof(subject)


def translate_import_error(error: ImportError) -> EmbedkitError:
    """Say which distribution is missing, and how to install it."""
    missing = (error.name or "").partition(".")[0]
    requirement = _REQUIREMENTS.get(missing)
    if requirement is None:
        return MissingDependencyError(
            f"The provider 'local' could not be imported: {error}",
            hint="install it again, as it was installed before",
        )
    return MissingDependencyError(
        f"The provider 'local' needs {missing}, which cannot be imported: {error}",
        hint=f'python -m pip install "{requirement}"',
    )


def _import_heavy(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise translate_import_error(error) from error
    except OSError as error:
        # How torch reports a shared library that is missing or of another machine.
        raise MissingDependencyError(
            f"The provider 'local' could not be imported, a shared library failed: {error}",
            hint="reinstall torch for this machine: see pytorch.org/get-started",
        ) from error


@hookimpl
def embedkit_providers() -> Iterable[Provider[Any]]:
    """Offer `local`."""
    return [
        Provider(
            name="local",
            summary="models on this machine: sentence-transformers on torch",
            options=LocalOptions,
            load=load_local,
            identify=identify_local,
            describe=describe_local,
            fetch=fetch_local,
        )
    ]


@hookimpl
def embedkit_checks() -> Iterable[Check]:
    """Offer the checks of devices, weights and the loaded model."""
    return [
        Check(name="devices", summary="what torch can compute on", run=check_local_devices),
        Check(name="weights", summary="where they are, whole, and small enough", run=check_local_weights),
        Check(
            name="model", summary="end of text, attention, cause of a mismatch", run=check_local_proof, needs_model=True
        ),
    ]
