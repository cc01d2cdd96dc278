"""
Prove that a loaded model is the one that its profile speaks of.

Owns what can be measured on the model itself: whether the end-of-text token is last, which way attention looks, and,
after a mismatch with the profile's reference, which set-up would agree. That one is computed through transformers
alone, so that the engine is not its own witness.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import attrs
import numpy as np
import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from embedkit.errors import ModelLoadError
from embedkit.protocols import Finding
from embedkit.reference import compare_reference, compare_vector
from embedkit_local.identity import is_decoder, read_prompts
from embedkit_local.loading import quiet, set_attention
from embedkit_local.memory import count_parameters, find_free_memory

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from embedkit.profile import Profile, Reference
    from embedkit.protocols import Backend
    from embedkit.space import Space
    from embedkit_local.model_files import ModelFiles
    from embedkit_local.options import LocalOptions

Attention = Literal["bidirectional", "causal"]

_MOVED = 1e-4
"""Share of its length that the first state moves at least when it sees a later token; without seeing it, 0 exactly."""

_logger = logging.getLogger("embedkit")


@attrs.frozen(kw_only=True)
class Loaded:
    """
    Hold what proofs look at.

    Attributes:
        files: The model's files.

        profile: What was asked for.

        options: Likewise.

        space: What the vectors claim to be.

        read: Gives the token ids of each text as the model reads them, cut off, with all that is appended.

        transformer: The loaded transformer, of transformers' own kind.
    """

    files: ModelFiles
    profile: Profile
    options: LocalOptions
    space: Space
    read: Callable[[Sequence[str]], list[Sequence[int]]]
    transformer: Any


def prove(loaded: Loaded) -> None:
    """
    Refuse a freshly loaded model that contradicts its profile, and warn of a suspicious one; cheap.

    Raises:
        ModelLoadError: The end-of-text token is not last where it must be, or a decoder looks the wrong way.
    """
    findings = [*_examine_end(loaded)]
    # An encoder's attention has no other way to look.
    if is_decoder(loaded.files):
        findings += _examine_attention(loaded)
    for finding in findings:
        if finding.prevents_loading:
            raise ModelLoadError(finding.sentence, hint=finding.hint)
        if finding.level == "problem":
            _logger.warning("%s (%s)", finding.sentence, finding.hint)


def examine(loaded: Loaded, backend: Backend) -> Iterator[Finding]:
    """Say what can be proved of a loaded model, and which set-up would agree where its reference does not."""
    yield from _examine_end(loaded)
    yield from _examine_attention(loaded)
    reference = loaded.profile.reference
    if reference is not None and not compare_reference(backend, reference).agrees:
        yield from find_cause(loaded.files, loaded.profile, loaded.space, reference, dtype=backend.dtype)


def measure_attention(transformer: Any, ids: Sequence[int]) -> set[Attention]:  # noqa: ANN401  # a model of transformers
    """
    Measure which way attention looks, without knowing the weights: does a later token move the first hidden state?

    Args:
        transformer: Anything that gives `last_hidden_state` for `input_ids` and `attention_mask`.

        ids: At least three different token ids that the model knows.

    Returns:
        What was measured without padding and beside it: one direction, or both where padding turns it.
    """
    first, second = [*ids[:-1], ids[0]], [*ids[:-1], ids[1]]
    found: set[Attention] = set()
    for n_padding in (0, 2):
        before, after = (_compute_states(transformer, row, n_padding=n_padding)[0] for row in (first, second))
        moved = np.linalg.norm(before - after) > _MOVED * np.linalg.norm(before)
        found.add("bidirectional" if moved else "causal")
    return found


@torch.inference_mode()
def _compute_states(transformer: Any, ids: Sequence[int], *, n_padding: int = 0) -> NDArray[np.float32]:  # noqa: ANN401  # a model of any library
    """Run the transformer on one text; shape (n, d), float32, one row a token."""
    device = next(transformer.parameters()).device
    row = torch.tensor([[*ids, *[ids[0]] * n_padding]], device=device)
    mask = torch.tensor([[1] * len(ids) + [0] * n_padding], device=device)
    states: NDArray[np.float32] = (
        transformer(input_ids=row, attention_mask=mask).last_hidden_state[0, : len(ids)].float().cpu().numpy()
    )
    return states


def _examine_attention(loaded: Loaded) -> Iterator[Finding]:
    claimed = loaded.space.attention
    ids = list(dict.fromkeys(token for reading in loaded.read(["b c d e f g", "1 2 3"]) for token in reading))
    if not claimed or len(ids) < 3:  # noqa: PLR2004  # what is measured with
        return
    measured = measure_attention(loaded.transformer, ids)
    if measured == {claimed}:
        yield Finding(level="ok", sentence=f"Attention is {claimed}, as measured: {_describe_move(claimed)}.")
        return
    found = "turned by padding" if len(measured) > 1 else next(iter(measured))
    by = "the profile says" if loaded.options.attention else "the model's files say"
    yield Finding(
        level="problem",
        sentence=f"The attention of {loaded.profile.model!r} is {found}, as measured, and {by} {claimed!r}.",
        hint=f'set attention = "{min(measured)}" in the profile\'s options if that is what the model was trained with; '
        "else another version of transformers: python -m pip install --upgrade transformers",
        prevents_loading=True,
    )


def _describe_move(attention: str) -> str:
    return f"a later token {'moves' if attention == 'bidirectional' else 'does not move'} the first hidden state"


def _examine_end(loaded: Loaded) -> Iterator[Finding]:
    """Say whether a text ends with the token that last-token pooling reads, also when the text is cut off."""
    options, model = loaded.options, loaded.profile.model
    if "lasttoken" not in loaded.files.read_pooling() and not options.append_eos:
        return
    limit = loaded.space.max_tokens or 1
    # The first is short, the second is cut off.
    last = [ids[-1] for ids in loaded.read(["a", "a " * 2 * limit]) if len(ids)]
    eos = loaded.files.find_eos()
    ending = _list_endings(loaded.files)
    if options.append_eos and (eos is None or set(last) != {eos[0]}):
        yield Finding(
            level="problem",
            sentence=f"append_eos is true, and the tokenizer of {model!r} does not end each text with {eos}.",
            hint="its tokenizer files do not belong together: fetch the model again",
            prevents_loading=True,
        )
    elif ending.issuperset(last):
        yield Finding(level="ok", sentence="A text ends with the end-of-text token, also when it is cut off.")
    elif ending.intersection(last):
        yield Finding(
            level="problem",
            sentence=f"A text that is cut off loses its end-of-text token, and the pooling of {model!r} reads it.",
            hint="set append_eos = true in the profile's options",
            prevents_loading=True,
        )
    else:
        yield Finding(
            level="note" if options.append_eos is False else "problem",
            sentence=f"The pooling of {model!r} reads the last token, and that is a word's, not the end-of-text token "
            "(EOS).",
            hint="set append_eos = true in the profile's options; or false, if the model's card says that it wants "
            "none",
        )


def _list_endings(files: ModelFiles) -> set[int]:
    """Give the ids of all tokens that are no part of a text."""
    eos = files.find_eos()
    added = files.read_tokenizer_file().get("added_tokens", [])
    return {int(token["id"]) for token in added if token.get("special")} | ({eos[0]} if eos else set())


@attrs.frozen(kw_only=True)
class _Setup:
    """Say one way of turning a text into a vector."""

    attention: str
    has_eos: bool
    pooling: str
    prompt: str = ""

    def count_changes(self, other: _Setup) -> int:
        return sum(mine != theirs for mine, theirs in zip(attrs.astuple(self), attrs.astuple(other), strict=True))


def find_cause(
    files: ModelFiles, profile: Profile, space: Space, reference: Reference, *, dtype: str
) -> Iterator[Finding]:
    """
    Try the usual mistakes one by one, in float32 and through transformers alone, and say which set-up agrees.

    Args:
        files: The model's files.

        profile: Its prompts are tried.

        space: The set-up that does not agree.

        reference: What to agree with.

        dtype: What the model computed in.

    Yields:
        One finding for each setting in which the nearest set-up that agrees is another; one that says so when none
        agrees. Nothing for a model that is more than a transformer and its pooling.
    """
    pooling = files.read_pooling()
    kinds = {module.kind for module in files.modules}
    if kinds - {"Transformer", "Pooling", "Normalize"} or len(pooling) != 1 or not all(m.is_own for m in files.modules):
        return
    if "auto_map" in files.transformer and files.transformer.get("model_type") not in CONFIG_MAPPING:
        # Only the model's own code knows it, and transformers would ask on the terminal whether to run that.
        return
    if 4 * count_parameters(files) > find_free_memory():
        sentence = "Too little memory is free to load the model once more and find out what is wrong."
        yield Finding(level="note", sentence=sentence, hint="try again where more is free")
        return
    tokenizer = AutoTokenizer.from_pretrained(files.first.directory, local_files_only=True, trust_remote_code=False)
    has_eos = bool(space.appended_tokens) or _ends_with(tokenizer("a")["input_ids"], files.find_eos())
    declared = _Setup(attention=space.attention, has_eos=has_eos, pooling=pooling[0])
    agreeing = [
        (setup.count_changes(declared), -comparison.cosine, setup)
        for setup, vector in _try_setups(declared, files, profile, tokenizer, reference.text)
        if (comparison := compare_vector(vector, reference)).agrees
    ]
    if agreeing:
        _, opposite, right = min(agreeing, key=lambda one: one[:2])
        yield from _explain_changes(declared, right, files, profile, cosine=-opposite, dtype=dtype)
        return
    yield Finding(
        level="problem",
        sentence="No end-of-text token, direction of attention, pooling or prompt that was tried agrees with the "
        "reference: the weights or the tokenizer are another model's, or damaged.",
        hint=f"fetch the model again and pin its revision; or remove [profiles.{profile.name}.reference] if this model "
        "is meant to be another one",
    )


def _try_setups(
    declared: _Setup,
    files: ModelFiles,
    profile: Profile,
    tokenizer: Any,  # noqa: ANN401  # of transformers
    text: str,
) -> Iterator[tuple[_Setup, NDArray[np.float32]]]:
    """Give the vector of a text, shape (d,), by each way of making it."""
    eos = files.find_eos()
    others = {"bidirectional", "causal"} - {declared.attention} if is_decoder(files) else ()
    for attention in (declared.attention, *others):
        transformer = _load_alone(files, attention)
        for prompt, has_eos in itertools.product(_list_prompts(profile, files), {False, eos is not None}):
            ids = list(tokenizer(prompt + text)["input_ids"])
            if _ends_with(ids, eos):
                ids.pop()
            states = _compute_states(transformer, [*ids, eos[0]] if has_eos and eos else ids)
            for mode in dict.fromkeys([declared.pooling, "lasttoken", "cls", "mean", "max", "weightedmean"]):
                yield _Setup(attention=attention, has_eos=has_eos, pooling=mode, prompt=prompt), _pool(states, mode)


def _explain_changes(
    declared: _Setup, right: _Setup, files: ModelFiles, profile: Profile, *, cosine: float, dtype: str
) -> Iterator[Finding]:
    options = f"[profiles.{profile.name}.options]"
    mends: dict[str, str] = {}
    if right.has_eos != declared.has_eos:
        what = f"{'with' if right.has_eos else 'without'} the end-of-text token (EOS)"
        mends[what] = f"set append_eos = {str(right.has_eos).lower()} in {options}"
    if right.attention != declared.attention:
        mends[f"with {right.attention} attention"] = f'set attention = "{right.attention}" in {options}'
    if right.pooling != declared.pooling:
        path = next(module.directory for module in files.modules if module.kind == "Pooling") / "config.json"
        what = f"with {right.pooling} pooling in place of {declared.pooling}"
        mends[what] = f"fetch the model again, or mend its pooling in {path}"
    if right.prompt:
        what = f"with the prompt {right.prompt!r} before it"
        mends[what] = "put that prompt into the reference's text: its vector was made with it"
    if not mends and dtype != "float32":
        mends[f"in float32 in place of {dtype}"] = f'set dtype = "float32" in {options}'
    if not mends:
        mends["through transformers alone"] = "report this as a fault of embedkit-local"
    for what, hint in mends.items():
        together = " (with the others named here)" if len(mends) > 1 else ""
        sentence = f"The vector is the published one {what}{together}: cosine {cosine:.4f}."
        yield Finding(level="problem", sentence=sentence, hint=hint)


def _list_prompts(profile: Profile, files: ModelFiles) -> list[str]:
    own = read_prompts(files)
    stated = (profile.query_prompt, profile.document_prompt, own["query"], own["document"])
    return list(dict.fromkeys(["", *filter(None, stated)]))


def _load_alone(files: ModelFiles, attention: str) -> Any:  # noqa: ANN401  # a model of transformers
    config = AutoConfig.from_pretrained(files.first.directory, local_files_only=True, trust_remote_code=False)
    set_attention(config, attention)
    with quiet():
        model = AutoModel.from_pretrained(
            files.first.directory,
            config=config,
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
        )
    return model.eval()


def _ends_with(ids: Sequence[int], eos: tuple[int, str] | None) -> bool:
    return eos is not None and list(ids[-1:]) == [eos[0]]


def _pool(states: NDArray[np.float32], mode: str) -> NDArray[np.float32]:
    """Pool the states of a text, shape (n, d), as sentence-transformers' modes do; the length does not matter here."""
    if mode in {"cls", "lasttoken"}:
        return np.asarray(states[0 if mode == "cls" else -1], np.float32)
    if mode == "max":
        return np.asarray(states.max(axis=0), np.float32)
    weights = np.arange(1, len(states) + 1) if mode == "weightedmean" else np.ones(len(states))
    return np.asarray(weights @ states, np.float32)
