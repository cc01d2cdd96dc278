"""
Compare a loaded model with the published vector that its profile carries.

Owns the threshold and the words of a mismatch. Loads nothing; who compares, and how often, is for `doctor` and the
providers to say.
"""

from __future__ import annotations

import attrs
import numpy as np

from embedkit.errors import ContractError, ModelLoadError, SettingError
from embedkit.profile import Profile, Reference
from embedkit.protocols import Backend
from embedkit.vectors import Vectors, check_vectors, compute_direction_cosine

REFERENCE_COSINE = 0.99
"""
What the cosine of the leading components must reach.

Measured on all-MiniLM-L6-v2: bfloat16 reaches 0.9999, the nearest wrong set-up 0.972 (causal attention) and the nearest
damage 0.987 (200 kB of weights zeroed); docs/doctor.md has the table.
"""

_FEWEST = 2


@attrs.frozen(kw_only=True)
class Comparison:
    """
    Hold how near a model comes to a published vector.

    Attributes:
        cosine: Of the leading components, within [-1, 1].

        n_components: How many were compared.

        scale: How many times longer the model's components are than the published ones.
    """

    cosine: float
    n_components: int
    scale: float

    @property
    def agrees(self) -> bool:
        """Whether this can be the model that the vector was published for."""
        return self.cosine >= REFERENCE_COSINE


def compare_reference(backend: Backend, reference: Reference, *, origin: str = "") -> Comparison:
    """
    Embed a reference's text as a document without a prompt, and compare its leading components with the published ones.

    Args:
        backend: The loaded model.

        reference: The text and the published components.

        origin: Where the reference is declared, for the error.

    Raises:
        SettingError: The published components have no direction.
        BackendError: The text could not be embedded.
    """
    vector = embed_bare(backend, reference.text)
    return compare_vector(vector, reference, origin=origin)


def compare_vector(vector: Vectors, reference: Reference, *, origin: str = "") -> Comparison:
    """
    Compare a vector, shape (d,), with a reference; see `compare_reference`.

    Raises:
        SettingError: The published components have no direction.
    """
    n = min(len(vector), len(reference.components))
    published = np.array(reference.components[:n], np.float64)
    if np.count_nonzero(published) < _FEWEST:
        raise SettingError(
            f"reference.components needs {_FEWEST} numbers or more that are not 0, not {list(reference.components)}.",
            origin=origin,
            hint="copy more of the published vector",
        )
    return Comparison(
        cosine=compute_direction_cosine(vector, reference.components),
        n_components=n,
        scale=float(np.linalg.norm(vector[:n]) / np.linalg.norm(published)),
    )


def embed_bare(backend: Backend, text: str) -> Vectors:
    """
    Embed one text as a document, without a prompt; shape (d,), float32, checked.

    Raises:
        BackendError: The text could not be embedded.
    """
    batches = list(backend.encode([text], role="document"))
    for batch in batches:
        for failure in batch.failures.values():
            raise failure
    source = type(backend).__name__
    if len(batches) != 1:
        raise ContractError(f"{source} returned {len(batches)} batches for one text.")
    vector: Vectors = check_vectors(batches[0].vectors, n=1, space=backend.space, source=source)[0]
    return vector


def require_reference(backend: Backend, profile: Profile) -> None:
    """
    Let a loaded model through only when it is the one that the profile's reference was published for.

    Args:
        backend: The loaded model.

        profile: Its `reference` is compared; nothing happens without one.

    Raises:
        ModelLoadError: It is not; the error says what is typically wrong, and how to go on.
        SettingError: The published components have no direction.
        BackendError: The text could not be embedded.
    """
    if profile.reference is None:
        return
    origin = str(profile.origins.get("reference", ""))
    comparison = compare_reference(backend, profile.reference, origin=origin)
    if not comparison.agrees:
        raise ModelLoadError(describe_mismatch(profile, comparison), origin=origin, hint=describe_mend(profile))


def describe_mismatch(profile: Profile, comparison: Comparison) -> str:
    """Say how far a model is from the reference of its profile, and what is typically wrong."""
    assert profile.reference is not None
    return (
        f"The model {profile.model!r} does not give the published vector of {profile.reference.text!r}: the cosine of "
        f"the leading {comparison.n_components} components is {comparison.cosine:.4f}, and at least {REFERENCE_COSINE} "
        f"is due ({profile.reference.source}). Typically wrong are the end-of-text token (EOS), the direction of "
        "attention, the pooling, a prompt, the dtype, or the weights."
    )


def describe_mend(profile: Profile) -> str:
    """Say how to go on after a mismatch."""
    return (
        f"embedkit doctor {profile.name} says which; if this model is meant to be another one, remove "
        f"[profiles.{profile.name}.reference]"
    )
