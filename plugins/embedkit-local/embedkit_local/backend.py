"""
The heavy side of the provider `local`: loads a model and turns texts into vectors with it.

Owns loading, the order of the work and what is done to a raw vector. Arithmetic is `engine`'s, files are
`model_files`'.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import logging as transformers_logging

from embedkit.errors import BackendError, EmbedkitError, InputError, ModelLoadError
from embedkit.protocols import Batch, Role
from embedkit.vectors import scale_to_unit
from embedkit_local.devices import choose_device, choose_dtype
from embedkit_local.digests import Digests, find_cache_directory
from embedkit_local.engine import Engine, Reading, build_engine
from embedkit_local.fetching import fetch
from embedkit_local.foreign import translate_load_error
from embedkit_local.identity import build_space, check_blobs, decide_attention, read_prompts
from embedkit_local.model_files import ModelFiles, Place, find_hub_cache, find_missing, find_place, read_model

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from sentence_transformers.base.modules.transformer import TransformerTask
    from transformers import PreTrainedConfig, PreTrainedModel

    from embedkit.profile import Profile
    from embedkit.space import Space
    from embedkit_local.options import LocalOptions

_MAX_PACK_TOKENS = {"cpu": 16_384, "mps": 16_384, "cuda": 65_536}
"""Tokens, padding included, of one forward pass: what bounds its memory."""

_MAX_WINDOW = 1024

_logger = logging.getLogger("embedkit")
_load_lock = threading.Lock()


def load_backend(profile: Profile, options: LocalOptions) -> LocalBackend:
    """
    Load a profile's model, and check that it is what its files say.

    Raises:
        EmbedkitError: A device, files or settings are missing, damaged or contradict each other.
    """
    device = choose_device(profile.device, origin=str(profile.origins.get("device", "")))
    dtype = choose_dtype(options.dtype, device)
    files = read_model(_require_place(profile, options), trust_remote_code=options.trust_remote_code)
    digests = Digests(find_cache_directory(os.environ))
    check_blobs(files, digests)
    # Before loading: a setting that the model cannot fulfil is refused in no time.
    space = build_space(files, profile, options, digests=digests)
    attention = decide_attention(files, profile, options)
    try:
        model = _load_model(files, options, device=device, dtype=dtype, attention=attention)
    except EmbedkitError:
        raise
    except Exception as error:
        raise translate_load_error(error, profile.model) from error
    native = model.get_embedding_dimension()
    described = files.find_dimensions()
    if native is None or (described is not None and native != described):
        raise ModelLoadError(
            f"The model {profile.model!r} makes vectors of {native} dimensions, and its files speak of {described}.",
            hint="its files do not belong together: fetch it again",
        )
    space = space or build_space(files, profile, options, digests=digests, native=native)
    assert space is not None
    engine = build_engine(model, max_tokens=space.max_tokens, appended=space.appended_tokens)
    if options.append_eos:
        _check_end(engine, files, space.max_tokens)
    return LocalBackend(profile, space, engine, prompts=read_prompts(files), device=device, dtype=dtype)


def _check_end(engine: Engine, files: ModelFiles, max_tokens: int | None) -> None:
    """Prove that the end-of-text token is the last one, also of a text that is cut off."""
    eos = files.find_eos()
    for reading in engine.read(["a", "a " * 2 * (max_tokens or 1)]):
        if eos is None or reading.ids[-1] != eos[0]:
            raise ModelLoadError(
                f"append_eos is true, and the tokenizer of {files.place.model!r} does not end each text with {eos}.",
                hint="its tokenizer files do not belong together: fetch the model again",
            )


class LocalBackend:
    """
    Turn texts into vectors with a loaded model.

    Args:
        profile: What was asked for.

        space: Of every vector.

        engine: Reads texts and computes vectors.

        prompts: The model's own, by role.

        device: Where the model runs.

        dtype: What it computes in.
    """

    def __init__(
        self,
        profile: Profile,
        space: Space,
        engine: Engine,
        *,
        prompts: Mapping[Role, str],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.prompts = prompts
        self.device = str(device)
        self.dtype = str(dtype).removeprefix("torch.")
        self.window = max(profile.batch_size, min(4 * profile.batch_size, _MAX_WINDOW))
        self._space = space
        self._engine: Engine | None = engine
        self._batch_size = profile.batch_size
        self._max_pack_tokens = _MAX_PACK_TOKENS[device.type]
        self._refuses_long = profile.too_long == "error"
        used = {"query": profile.query_prompt, "document": profile.document_prompt}
        self._n_prompt = {
            role: engine.measure_prompt(prompt)
            if (prompt := prompts[role] if used[role] is None else used[role])
            else 0
            for role in prompts
        }

    @property
    def space(self) -> Space:
        """The space of every vector it returns."""
        return self._space

    def encode(self, texts: Sequence[str], *, role: Role) -> Iterator[Batch]:
        """Embed texts, the longest first; see `embedkit.protocols.Backend`."""
        engine = self._require_engine()
        readings = engine.read(texts)
        failures = {i: fault for i, reading in enumerate(readings) if (fault := self._find_fault(reading)) is not None}
        if failures:
            yield Batch(
                positions=(), vectors=np.zeros((0, self._space.dimensions), np.float32), n_tokens=0, failures=failures
            )
        order = sorted((i for i in range(len(readings)) if i not in failures), key=lambda i: -readings[i].n_tokens)
        packs = _split(order, [reading.n_tokens for reading in readings], self._batch_size, self._max_pack_tokens)

        def compute(pack: list[int]) -> NDArray[np.float32]:
            return engine.compute([readings[i] for i in pack], role=role, n_prompt=self._n_prompt[role])

        for pack, vectors in compute_packs(packs, compute):
            yield Batch(
                positions=pack,
                vectors=self._finish(vectors),
                n_tokens=sum(readings[i].n_tokens for i in pack),
                truncated=[i for i in pack if readings[i].n_full > readings[i].n_tokens],
            )

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Count the tokens of each text, special and appended tokens included, nothing cut off."""
        return self._require_engine().count(texts)

    def close(self) -> None:
        """Give back the model's memory."""
        self._engine = None
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()

    def _require_engine(self) -> Engine:
        if self._engine is None:
            raise BackendError("This backend was closed.")
        return self._engine

    def _find_fault(self, reading: Reading) -> EmbedkitError | None:
        if reading.n_tokens == 0:
            return InputError(
                f"The text {reading.text[:40]!r} holds nothing that the model's tokenizer reads.", hint="leave it out"
            )
        if self._refuses_long and reading.n_full > reading.n_tokens:
            return InputError(
                f"A text has {reading.n_full} tokens, and the model reads {self._space.max_tokens} of them "
                "(too_long is 'error').",
                hint='split the text, or set too_long = "truncate"',
            )
        return None

    def _finish(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Cut raw vectors to the space's dimensions, and give them unit length in float32 where the space says so."""
        vectors = np.ascontiguousarray(vectors[:, : self._space.dimensions])
        return scale_to_unit(vectors) if self._space.normalized else vectors


def compute_packs(
    packs: list[list[int]], compute: Callable[[list[int]], NDArray[np.float32]]
) -> Iterator[tuple[list[int], NDArray[np.float32]]]:
    """
    Run the model on one pack of texts after the other; a pack that does not fit into the device's memory is halved.

    Args:
        packs: Positions of texts; all later packs are halved too after the first that did not fit.

        compute: Runs the model on one pack.

    Yields:
        Each pack that was run, with its vectors.

    Raises:
        BackendError: Not even one text fits, or the model failed.
    """
    waiting = packs[::-1]
    largest = max(map(len, packs), default=1)
    while waiting:
        pack = waiting.pop()
        vectors, fits = None, len(pack) <= largest
        if fits:
            try:
                vectors = compute(pack)
            except torch.OutOfMemoryError as error:
                if len(pack) == 1:
                    raise BackendError(
                        "The device has not enough memory for one text.",
                        hint='lower max_tokens in the profile\'s options, or set dtype = "bfloat16" or device = "cpu"',
                    ) from error
                largest = len(pack) // 2
            except Exception as error:
                raise BackendError(f"The model failed: {type(error).__name__}: {error}") from error
        if vectors is not None:
            yield pack, vectors
            continue
        if fits and torch.cuda.is_available():
            # Outside the except block: the traceback held the tensors that did not fit.
            torch.cuda.empty_cache()
        middle = (len(pack) + 1) // 2
        waiting += [pack[middle:], pack[:middle]]


def _split(order: list[int], lengths: list[int], batch_size: int, max_tokens: int) -> list[list[int]]:
    """Split positions, the longest text first, into packs of so many texts and padded tokens at most."""
    packs: list[list[int]] = []
    room = 0
    for i in order:
        if not packs or len(packs[-1]) >= room:
            packs.append([])
            room = min(batch_size, max(1, max_tokens // max(1, lengths[i])))
        packs[-1].append(i)
    return packs


def _require_place(profile: Profile, options: LocalOptions) -> Place:
    """Find a model's directory, fetching a hub model that is not on this machine."""
    hub_cache = find_hub_cache(os.environ)
    place = find_place(profile.model, options.revision, hub_cache=hub_cache)
    if place is None or (place.repository and find_missing(place)):
        _logger.info("fetching %s", profile.model)
        for _ in fetch(profile.model, options, profile=profile.name):
            pass
        place = find_place(profile.model, options.revision, hub_cache=hub_cache)
    if place is None:
        raise ModelLoadError(
            f"The model {profile.model!r} was fetched and is not in {hub_cache}.", hint="check HF_HUB_CACHE and HF_HOME"
        )
    return place


class _CheckedTransformer(Transformer):
    """The usual first step, which also keeps what transformers says about weights that were missing."""

    attention = ""
    missing: frozenset[str] = frozenset()

    def _load_model(
        self,
        model_name_or_path: str,
        transformer_task: TransformerTask,
        config: PreTrainedConfig,
        backend: str,
        is_peft_model: bool,  # noqa: FBT001  # as in the parent
        **model_kwargs: Any,  # noqa: ANN401  # as in the parent
    ) -> PreTrainedModel:
        _set_attention(config, self.attention)
        # With the report asked for, transformers gives a pair.
        loaded: Any = super()._load_model(
            model_name_or_path,
            transformer_task,
            config,
            backend,
            is_peft_model,
            output_loading_info=True,
            **model_kwargs,
        )
        model: PreTrainedModel
        model, report = loaded
        # sentence-transformers pools tokens itself; a pooler's weights are never used.
        self.missing = frozenset(key for key in report["missing_keys"] if "pooler." not in key)
        return model


def _set_attention(config: Any, attention: str) -> None:  # noqa: ANN401  # a configuration of transformers
    if not attention:
        return
    if getattr(config, "is_decoder", False):
        config.is_decoder = attention == "causal"
    config.is_causal = attention == "causal"
    if hasattr(config, "use_bidirectional_attention"):
        config.use_bidirectional_attention = attention == "bidirectional"


def _load_model(
    files: ModelFiles, options: LocalOptions, *, device: torch.device, dtype: torch.dtype, attention: str
) -> SentenceTransformer:
    """Load through sentence-transformers, silently, from files alone."""
    _refuse_unknown_code(files, options)
    # The direction is set only where the profile states one: otherwise the model's own configuration is left alone.
    checked = type("_Transformer", (_CheckedTransformer,), {"attention": attention if options.attention else ""})
    own = {module.class_path: checked for module in files.modules if module.is_own and module.kind == "Transformer"}
    with _load_lock, _quiet():
        model = SentenceTransformer._load_with_module_classes(  # noqa: SLF001  # the one door to the loading report
            str(files.place.directory),
            own,
            device=str(device),
            trust_remote_code=options.trust_remote_code,
            local_files_only=True,
            model_kwargs={"dtype": dtype, "use_safetensors": True},
        )
    first = model[0]
    if missing := getattr(first, "missing", ()):
        raise ModelLoadError(
            f"The model {files.place.model!r} is damaged: its weights lack {len(missing)} tensors, "
            f"such as {min(missing)}.",
            hint="fetch the model again, or name a directory whose config.json belongs to its weights",
        )
    # A cut of its own would come before our normalisation, and hide the native dimensions.
    model.truncate_dim = None
    model.eval()
    return model


def _refuse_unknown_code(files: ModelFiles, options: LocalOptions) -> None:
    """Refuse a model whose architecture only its own code knows; one that transformers knows is loaded natively."""
    if options.trust_remote_code or "auto_map" not in files.transformer:
        return
    if files.transformer.get("model_type") in CONFIG_MAPPING:
        _logger.info("%s brings code of its own; transformers' own code is used instead", files.place.model)
        return
    raise ModelLoadError(
        f"The model {files.place.model!r} needs code that it brings itself (auto_map in "
        f"{files.first.directory / 'config.json'}), and trust_remote_code is false.",
        hint="read that code; to run it, set trust_remote_code = true in the profile's options",
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from drawing a progress bar while a model is loaded."""
    was_drawn = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if was_drawn:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _use_one_thread_after_fork() -> None:
    # The threads of torch's pool do not exist in the child, and waiting for them never ends.
    torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_use_one_thread_after_fork)
