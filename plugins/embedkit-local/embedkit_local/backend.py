"""
The heavy side of the provider `local`: loads a model and turns texts into vectors with it.

Owns the order of loading, the choice between the packed engine and sentence-transformers' own way, what is refused, and
what is done to a raw vector. Arithmetic is the engines', files are `model_files`'. A usual model is loaded without
importing transformers or sentence-transformers, which takes longer than all the rest.
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from embedkit.errors import BackendError, EmbedkitError, InputError, ModelLoadError
from embedkit.protocols import Batch, Role
from embedkit.vectors import scale_to_unit
from embedkit_local.attention import list_kernels
from embedkit_local.budget import DEFAULT_TOKENS, Budget, is_out_of_memory
from embedkit_local.chain import UnsupportedModelError
from embedkit_local.devices import choose_device, describe_device
from embedkit_local.digests import Digests, find_cache_directory
from embedkit_local.engine import Engine, PackVectors
from embedkit_local.foreign import translate_load_error
from embedkit_local.identity import (
    build_space,
    check_blobs,
    decide_appended_tokens,
    decide_attention,
    decide_max_tokens,
    is_decoder,
    read_prompts,
)
from embedkit_local.known_ways import KnownWays
from embedkit_local.last_way import LastWay
from embedkit_local.model_files import ModelFiles, Place, find_hub_cache, find_missing, find_place, read_model
from embedkit_local.proved import Proved, require_reference_once

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from embedkit.profile import Profile
    from embedkit.space import Space
    from embedkit_local.options import LocalOptions
    from embedkit_local.proof import Loaded
    from embedkit_local.tokenizing import Tokenization

_WINDOW = {"cpu": 1024, "mps": 1024, "cuda": 4096}
"""Texts that are seen at once: many packs, so that equal lengths meet and no core waits long for the last one."""

_WAYS_FORMAT = 1
"""Kept ways of another format are chosen anew; raised when the ways or their checks change."""

_logger = logging.getLogger("embedkit")


class AnyEngine(Protocol):
    """What the packed engine and those of sentence-transformers' way have in common."""

    dtype: str
    notes: tuple[str, ...]

    def read(self, texts: Sequence[str]) -> Tokenization:
        """Turn texts, prompts already applied, into token ids."""
        ...

    def run(self, tokens: Tokenization, positions: Sequence[int], *, role: Role) -> Iterator[PackVectors]:
        """Embed those of the texts that are wanted."""
        ...

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Count the tokens of whole texts."""
        ...

    def close(self) -> None:
        """Give back threads."""
        ...


def load_backend(profile: Profile, options: LocalOptions) -> LocalBackend:
    """
    Load a profile's model, and check that it is what its files say.

    Raises:
        EmbedkitError: A device, files or settings are missing, damaged or contradict each other.
    """
    device = choose_device(profile.device, origin=str(profile.origins.get("device", "")))
    files = read_model(_require_place(profile, options), trust_remote_code=options.trust_remote_code)
    digests = Digests(find_cache_directory(os.environ))
    check_blobs(files, digests)
    # Before loading: a setting that the model cannot fulfil is refused in no time.
    space = build_space(files, profile, options, digests=digests)
    decide_attention(files, profile, options)
    try:
        engine, dimensions = _load_engine(files, profile, options, space, device=device)
    except EmbedkitError:
        raise
    except Exception as error:
        raise translate_load_error(error, profile.model) from error
    described = files.find_dimensions()
    if dimensions is None or (described is not None and dimensions != described):
        raise ModelLoadError(
            f"The model {profile.model!r} makes vectors of {dimensions} dimensions, and its files speak of "
            f"{described}.",
            hint="its files do not belong together: fetch it again",
        )
    space = space or build_space(files, profile, options, digests=digests, native=dimensions)
    assert space is not None
    backend = LocalBackend(profile, options, files, space, engine, device=device)
    try:
        _prove(backend, files, profile, options)
    except EmbedkitError:
        raise
    except Exception as error:
        raise translate_load_error(error, profile.model) from error
    _logger.info("%s: %s", profile.model, backend.way)
    for note in backend.notes:
        _logger.info("%s: %s", profile.model, note)
    LastWay(find_cache_directory(os.environ)).keep(profile, options, [backend.way, *backend.notes])
    return backend


class LocalBackend:
    """
    Turn texts into vectors with a loaded model.

    Args:
        profile: What was asked for.

        options: Likewise.

        files: The model's.

        space: Of every vector.

        engine: Reads texts and computes vectors.

        device: Where the model runs.

    Attributes:
        way: How the model is run and what was measured to choose that, in one line for people.

        notes: What was not taken, and why; for people.
    """

    def __init__(
        self,
        profile: Profile,
        options: LocalOptions,
        files: ModelFiles,
        space: Space,
        engine: AnyEngine,
        *,
        device: torch.device,
    ) -> None:
        self.prompts: Mapping[Role, str] = read_prompts(files)
        self.device = str(device)
        self.dtype = engine.dtype
        self.window = _WINDOW[device.type]
        self.way = str(getattr(engine, "way", ""))
        self.notes = engine.notes
        self._profile = profile
        self._options = options
        self._files = files
        self._space = space
        self._engine: AnyEngine | None = engine

    @property
    def space(self) -> Space:
        """The space of every vector it returns."""
        return self._space

    @property
    def loaded(self) -> Loaded | None:
        """What proofs look at; None where the model is fed in a way of its own."""
        engine: Any = self._engine
        if not hasattr(engine, "build_transformer"):
            return None
        from embedkit_local.proof import Loaded  # noqa: PLC0415  # imports transformers

        return Loaded(
            files=self._files,
            profile=self._profile,
            options=self._options,
            space=self._space,
            read=lambda texts: [row.tolist() for row in engine.read(texts).rows],
            transformer=engine.build_transformer(),
        )

    def encode(self, texts: Sequence[str], *, role: Role) -> Iterator[Batch]:
        """Embed texts, the longest first; see `embedkit.protocols.Backend`."""
        engine = self._require_engine()
        tokens = engine.read(texts)
        failures = {i: fault for i in range(len(texts)) if (fault := self._find_fault(tokens, i)) is not None}
        if failures:
            nothing = np.zeros((0, self._space.dimensions), np.float32)
            yield Batch(positions=(), vectors=nothing, n_tokens=0, failures=failures)
        wanted = [i for i in range(len(texts)) if i not in failures]
        try:
            for pack in engine.run(tokens, wanted, role=role) if wanted else ():
                positions = list(pack.positions)
                yield Batch(
                    positions=positions,
                    vectors=self._finish(pack.vectors),
                    n_tokens=int(tokens.lengths[positions].sum()) if positions else 0,
                    truncated=[i for i in positions if tokens.full_lengths[i] > tokens.lengths[i]],
                    failures=pack.failures,
                )
        except EmbedkitError:
            raise
        except Exception as error:
            raise BackendError(f"The model failed: {type(error).__name__}: {error}") from error

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Count the tokens of each text, special and appended tokens included, nothing cut off."""
        return self._require_engine().count_tokens(texts)

    def close(self) -> None:
        """Give back the model's memory."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()
        del engine
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()

    def _require_engine(self) -> AnyEngine:
        if self._engine is None:
            raise BackendError("This backend was closed.")
        return self._engine

    def _find_fault(self, tokens: Tokenization, position: int) -> EmbedkitError | None:
        n_tokens, n_full = int(tokens.lengths[position]), int(tokens.full_lengths[position])
        if n_tokens == 0:
            return InputError(
                f"The text {tokens.texts[position][:40]!r} holds nothing that the model's tokenizer reads.",
                hint="leave it out",
            )
        if self._profile.too_long == "error" and n_full > n_tokens:
            return InputError(
                f"A text has {n_full} tokens, and the model reads {self._space.max_tokens} of them "
                "(too_long is 'error').",
                hint='split the text, or set too_long = "truncate"',
            )
        return None

    def _finish(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Cut raw vectors to the space's dimensions, and give them unit length in float32 where the space says so."""
        vectors = np.ascontiguousarray(vectors[:, : self._space.dimensions])
        return scale_to_unit(vectors) if self._space.normalized else vectors


def _load_engine(
    files: ModelFiles, profile: Profile, options: LocalOptions, space: Space | None, *, device: torch.device
) -> tuple[AnyEngine, int | None]:
    """Load the packed engine, or where the model is not for it sentence-transformers' own; with the dimensions."""
    budget = Budget(options.max_batch_tokens or DEFAULT_TOKENS[device.type])
    max_tokens = decide_max_tokens(files, profile, options)
    append = decide_appended_tokens(files, profile, options)
    # Only what a profile states is set: otherwise the model's own configuration is left alone.
    attention = options.attention or ""
    _refuse_unknown_code(files, options)
    ways = KnownWays(find_cache_directory(os.environ))
    facts = None if space is None else [_WAYS_FORMAT, space.weights, append, *_describe_run(files, options, device)]
    known = None if facts is None else ways.find(facts)
    try:
        packed = Engine.load(
            files,
            device=device,
            budget=budget,
            dtype=options.dtype,
            max_tokens=max_tokens,
            append=append,
            attention=attention,
            max_pack_texts=profile.batch_size,
            trust_remote_code=options.trust_remote_code,
            known=known,
        )
    except EmbedkitError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        # Whatever it is: sentence-transformers is the judge of what can be loaded.
        reason = str(error) if isinstance(error, UnsupportedModelError) else f"{type(error).__name__}: {error}"
    else:
        if facts is not None and packed.way != known:
            ways.keep(facts, packed.way)
        return packed, packed.dimensions
    from embedkit_local.sentence_transformers_engine import (  # noqa: PLC0415  # imports for seconds
        build_engine,
        load_sentence_transformer,
    )

    dtype = "float32" if options.dtype == "auto" else options.dtype
    model = load_sentence_transformer(
        files, dtype=dtype, device=device, attention=attention, trust_remote_code=options.trust_remote_code
    )
    prompts = {role: _choose_prompt(profile, role, own) for role, own in read_prompts(files).items()}
    padded = build_engine(
        model,
        max_tokens=max_tokens,
        append=append,
        prompts=prompts,
        budget=budget,
        max_pack_texts=profile.batch_size,
    )
    padded.notes = (
        f"not packed: {reason}",
        *(['dtype "auto" is float32 in this way: bfloat16 is not compared here'] if options.dtype == "auto" else []),
    )
    return padded, padded.dimensions


def _describe_run(files: ModelFiles, options: LocalOptions, device: torch.device) -> list[object]:
    """Give what a way depends on beside the weights: the configuration, what is asked for, the device, the software."""
    return [
        # All of it: architecture, padding id and direction are no part of a space's weights, and change a way.
        dict(files.transformer),
        options.dtype,
        options.attention,
        describe_device(device),
        list_kernels(device, torch.bfloat16),
        str(torch.__version__),
        importlib.metadata.version("transformers"),
        importlib.metadata.version("embedkit-local"),
    ]


def _choose_prompt(profile: Profile, role: Role, own: str) -> str:
    stated = profile.query_prompt if role == "query" else profile.document_prompt
    return own if stated is None else stated


def _prove(backend: LocalBackend, files: ModelFiles, profile: Profile, options: LocalOptions) -> None:
    """Refuse a freshly loaded model that contradicts its profile, and one that misses its profile's reference."""
    # An encoder that pools all tokens has neither an end of text nor a direction to be wrong about.
    if is_decoder(files) or "lasttoken" in files.read_pooling() or options.append_eos:
        loaded = backend.loaded
        if loaded is not None:
            from embedkit_local.proof import prove  # noqa: PLC0415  # imports transformers

            prove(loaded)
    require_reference_once(backend, profile, Proved(find_cache_directory(os.environ)))


def _require_place(profile: Profile, options: LocalOptions) -> Place:
    """Find a model's directory, fetching a hub model that is not on this machine."""
    hub_cache = find_hub_cache(os.environ)
    place = find_place(profile.model, options.revision, hub_cache=hub_cache)
    if place is None or (place.repository and find_missing(place)):
        from embedkit_local.fetching import fetch  # noqa: PLC0415  # imports huggingface_hub

        said = False
        for progress in fetch(profile.model, options, profile=profile.name):
            if not said:
                # Gigabytes are not fetched silently: somebody may have meant another profile.
                _logger.warning(
                    "%s (profile %s) is not on this machine: fetching %.0f MB; `embedkit pull %s` shows how far it is",
                    profile.model,
                    profile.name,
                    progress.total_bytes / 1e6,
                    profile.name,
                )
                said = True
        place = find_place(profile.model, options.revision, hub_cache=hub_cache)
    if place is None:
        raise ModelLoadError(
            f"The model {profile.model!r} was fetched and is not in {hub_cache}.", hint="check HF_HUB_CACHE and HF_HOME"
        )
    return place


def _refuse_unknown_code(files: ModelFiles, options: LocalOptions) -> None:
    """Refuse a model whose architecture only its own code knows; one that transformers knows is loaded natively."""
    if options.trust_remote_code or "auto_map" not in files.transformer:
        return
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING  # noqa: PLC0415  # imports transformers

    if files.transformer.get("model_type") in CONFIG_MAPPING:
        _logger.info("%s brings code of its own; transformers' own code is used instead", files.place.model)
        return
    raise ModelLoadError(
        f"The model {files.place.model!r} needs code that it brings itself (auto_map in "
        f"{files.first.directory / 'config.json'}), and trust_remote_code is false.",
        hint="read that code; to run it, set trust_remote_code = true in the profile's options",
    )
