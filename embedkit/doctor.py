"""
Examine an installation: Python, plugins, configuration, devices, and a loaded model.

Owns the order of the examination and what can be judged without knowing a provider; what only a provider knows comes
from its plugin's checks. Prints nothing, and never dies of what it examines: a fault is a finding.
"""

from __future__ import annotations

import functools
import importlib.metadata
import platform
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any

import attrs
import numpy as np

from embedkit.api import Setup, prepare
from embedkit.config import Config, read_config, show_path
from embedkit.embedder import Embedder
from embedkit.errors import ConfigError, EmbedkitError
from embedkit.options import CALL, show_value
from embedkit.protocols import Backend, Check, Finding, Role, Subject
from embedkit.reference import REFERENCE_COSINE, compare_vector, describe_mend, describe_mismatch, embed_bare
from embedkit.registry import Plugin, Registry
from embedkit.resolve import resolve_options, resolve_profile
from embedkit.space import CANARIES
from embedkit.vectors import compute_cosines

_OWN_DISTRIBUTION = "embedkit-core"
_SAME = 0.9999
"""Two vectors of one text have at least this cosine; a prompt before it moves it much further."""

_SAME_LENGTH = 0.05
_TEXT = CANARIES[4]


@attrs.frozen(kw_only=True)
class Examined:
    """
    Hold one finding and what it is about.

    Attributes:
        topic: Such as "python", "plugins" or the name of a plugin's check.

        finding: What was found.
    """

    topic: str
    finding: Finding


def examine(
    name: str | None = None,
    *,
    registry: Registry | None,
    device: str | None = None,
    load: bool = True,
    read: Callable[[], Config] = read_config,
) -> Iterator[Examined]:
    """
    Examine everything that stands between a text and its vector, and yield each finding as it is made.

    Args:
        name: The profile; left out: the active one.

        registry: The plugins; None where not even they could be read.

        device: Stands above every setting.

        load: Whether the model is loaded and examined too.

        read: Gives the configuration.
    """
    yield from _label("python", _examine_python())
    yield from _label("plugins", _examine_plugins(registry))
    config = yield from _read(read)
    if registry is None:
        return
    setup = None if config is None else (yield from _prepare(name, config, registry, device))
    subject = Subject() if setup is None else Subject(profile=setup.profile, options=setup.options)
    may_load = load
    for plugin, check in registry.checks:
        if not check.needs_model:
            for finding in _run(plugin, check, subject):
                yield Examined(topic=check.name, finding=finding)
                may_load = may_load and not finding.prevents_loading
    if setup is None or not load:
        return
    if not may_load:
        sentence = "The model was not loaded, because of what is said above."
        yield Examined(topic="model", finding=Finding(level="note", sentence=sentence))
        return
    yield from _examine_model(setup, registry)


def _label(topic: str, findings: Iterable[Finding]) -> Iterator[Examined]:
    return (Examined(topic=topic, finding=finding) for finding in findings)


def _ok(sentence: str) -> Finding:
    return Finding(level="ok", sentence=sentence)


def _note(sentence: str, hint: str = "") -> Finding:
    return Finding(level="note", sentence=sentence, hint=hint)


def _problem(sentence: str, hint: str) -> Finding:
    return Finding(level="problem", sentence=sentence, hint=hint)


def _translate(error: BaseException, culprit: str) -> list[Finding]:
    """Make findings of what was raised; what is no EmbedkitError is a fault of *culprit*."""
    if isinstance(error, ConfigError) and error.faults:
        return [finding for fault in error.faults for finding in _translate(fault, culprit)]
    if isinstance(error, EmbedkitError):
        origin = f" (from {error.origin})" if error.origin else ""
        return [_problem(f"{error.problem}{origin}", error.hint or "embedkit explain shows every setting")]
    text = " ".join(str(error).split())
    return [_problem(f"{culprit} failed: {type(error).__name__}: {text}", f"report it to whoever makes {culprit}")]


def _examine_python() -> Iterator[Finding]:
    bits = "64" if sys.maxsize > 2**32 else "32"
    version = (
        f"{platform.python_implementation()} {platform.python_version()}, {bits} bits, {platform.platform(terse=True)}"
    )
    if bits == "32":
        yield _problem(f"{version}: a 32-bit Python can hold no large model.", "install a 64-bit Python")
    else:
        yield _ok(version)
    yield _ok(f"{_OWN_DISTRIBUTION} {importlib.metadata.version(_OWN_DISTRIBUTION)}, numpy {np.__version__}")


def _examine_plugins(registry: Registry | None) -> Iterator[Finding]:
    if registry is None:
        yield _note("The plugins could not be read: which are allowed is part of the configuration.")
        return
    for plugin in registry.plugins:
        offers = [
            f"{kind} {', '.join(names)}"
            for kind, names in (
                ("provider", plugin.providers),
                ("reranker", plugin.rerankers),
                ("checks", plugin.checks),
            )
            if names
        ]
        yield _ok(f"{plugin.distribution}: {'; '.join(offers) or 'nothing'}")
    if not registry.plugins:
        yield _problem(
            "No plugin is installed: nothing can make vectors.", "embedkit profiles says how to install a provider"
        )
    for broken in registry.broken:
        yield _problem(
            f"{broken.distribution} is broken: {broken.error}",
            f"mend it, or python -m pip uninstall {broken.distribution.partition(' ')[0]}",
        )
    for offer, distributions in registry.clashes.items():
        yield _problem(
            f"{' and '.join(distributions)} both offer the {offer}.",
            f"python -m pip uninstall {distributions[0].partition(' ')[0]}, or allow only one by EMBEDKIT_PLUGINS",
        )
    if registry.not_allowed:
        yield _note(
            f"Not allowed by EMBEDKIT_PLUGINS or EMBEDKIT_DISABLE_PLUGIN_AUTOLOAD: {', '.join(registry.not_allowed)}."
        )


def _read(read: Callable[[], Config]) -> Generator[Examined, None, Config | None]:
    """Read the configuration, and give it back; None when it is wrong."""
    try:
        config = read()
    except ConfigError as error:
        yield from _label("configuration", _translate(error, "the configuration"))
        return None
    yield from _label("configuration", _examine_files(config))
    return config


def _examine_files(config: Config) -> Iterator[Finding]:
    own = "" if set(config.files) & set(config.searched) else " (no profiles.toml of your own was found)"
    yield _ok(f"Profiles are read from {', '.join(map(show_path, config.files))}{own}.")
    yield _ok(f"{show_path(config.env_file)} is read." if config.env_file else "There is no .env.")
    for warning in config.warnings:
        yield _note(warning, "rename the variable, or leave it if it is another program's")


def _prepare(
    name: str | None, config: Config, registry: Registry, device: str | None
) -> Generator[Examined, None, Setup | None]:
    """Resolve the profile, and give its setup back; None when that cannot be done."""
    try:
        setup = prepare(name, device=device, config=config, registry=registry)
        _, chosen_by = config.choose_profile(name)
    except EmbedkitError as error:
        yield from _label("profile", _translate(error, "the profile"))
        return None
    profile = setup.profile
    by = "named in the call" if chosen_by == CALL else f"by {chosen_by.source}"
    yield from _label("profile", [_ok(f"{profile.name} ({by}): {profile.model} through provider {profile.provider}")])
    overridden = [
        f"{key} = {show_value(getattr(profile, key))}" for key, origin in profile.origins.items() if origin.hides
    ]
    if overridden:
        yield from _label(
            "profile", [_note(f"Overridden: {', '.join(overridden)}.", f"embedkit explain {profile.name}")]
        )
    return setup


def _run(plugin: Plugin, check: Check, subject: Subject) -> Iterator[Finding]:
    """Run a stranger's check; whatever it raises is a finding."""
    culprit = f"the check {check.name!r} of {plugin.distribution}"
    try:
        for finding in check.run(subject):
            if isinstance(finding, Finding):
                yield finding
            else:
                yield from _translate(TypeError(f"it gave {type(finding).__name__} where Finding is due"), culprit)
    except (Exception, SystemExit) as error:  # noqa: BLE001  # whatever a stranger's code raises
        yield from _translate(error, culprit)


def _examine_model(setup: Setup, registry: Registry) -> Iterator[Examined]:
    profile = setup.profile
    # The reference is compared here, with every other finding beside it, and must not end the load.
    bare = attrs.evolve(profile, reference=None)
    backend: Backend | None = None
    started = time.perf_counter()
    try:
        backend = setup.provider.load(bare, setup.options)
        with Embedder(bare, functools.partial(_give, backend)) as embedder:
            embedder.load()
            yield from _label("model", _examine_speed(embedder, time.perf_counter() - started))
            yield from _label("model", _examine_length(embedder))
            yield from _label("reference", _examine_reference(setup, backend))
            yield from _label("prompts", _examine_prompts(setup, registry, backend, embedder))
            subject = Subject(profile=profile, options=setup.options, backend=backend)
            for plugin, check in registry.checks:
                if check.needs_model:
                    yield from _label(check.name, _run(plugin, check, subject))
    except (Exception, SystemExit) as error:  # noqa: BLE001  # whatever a stranger's code raises
        yield from _label("model", _translate(error, f"the provider {profile.provider!r}"))


def _give(backend: Backend) -> Backend:
    return backend


def _examine_speed(embedder: Embedder, load_s: float) -> Iterator[Finding]:
    embedder.embed_documents([_TEXT])
    started = time.perf_counter()
    report = embedder.embed_documents([CANARIES[5]]).report
    took_ms = 1000 * (time.perf_counter() - started)
    where = " in ".join(filter(None, [report.device, report.dtype]))
    yield _ok(
        f"Loaded in {load_s:.1f} s{f' on {where}' if where else ''}; one text of a sentence takes {took_ms:,.3g} ms."
    )


def _examine_length(embedder: Embedder) -> Iterator[Finding]:
    """Say the dimensions; the embedder itself refuses vectors that are not as the space and the profile say."""
    space = embedder.space
    yield _ok(
        f"{space.dimensions} dimensions, {'unit length' if space.normalized else 'no fixed length'}: space {space}"
    )


def _examine_reference(setup: Setup, backend: Backend) -> Iterator[Finding]:
    profile = setup.profile
    reference = profile.reference
    vector = embed_bare(backend, _TEXT if reference is None else reference.text)
    length = float(np.linalg.norm(vector))
    if reference is None:
        yield _note(
            "The profile has no reference: that the model is loaded rightly is not proved.",
            f"add [profiles.{profile.name}.reference] with a vector that its makers published",
        )
    else:
        comparison = compare_vector(vector, reference, origin=str(profile.origins.get("reference", "")))
        if not comparison.agrees:
            yield _problem(describe_mismatch(profile, comparison), describe_mend(profile))
            return
        yield _ok(
            f"The vector of {reference.text!r} is the published one: cosine {comparison.cosine:.5f} of "
            f"{comparison.n_components} components, at least {REFERENCE_COSINE} is due ({reference.source})."
        )
        if not backend.space.normalized and abs(comparison.scale - 1) > _SAME_LENGTH:
            yield _problem(
                f"normalize = false, and vectors have another length than the published one ({comparison.scale:.3g} "
                "times): they miss the normalisation that the publisher applied.",
                f"set normalize = true in [profiles.{profile.name}]",
            )
            return
    if not backend.space.normalized:
        yield _note(f"normalize = false: this vector has length {length:.3g}. Inner products are no cosines.")


def _examine_prompts(setup: Setup, registry: Registry, backend: Backend, embedder: Embedder) -> Iterator[Finding]:
    profile = setup.profile
    stated: dict[Role, str | None] = {"query": profile.query_prompt, "document": profile.document_prompt}
    used = {role: backend.prompts.get(role, "") if prompt is None else prompt for role, prompt in stated.items()}
    for role, prompt in stated.items():
        own = backend.prompts.get(role, "")
        by = " (the model's own)" if prompt is None and own else ""
        yield _ok(f"Before a {role}: {show_value(used[role]) if used[role] else 'nothing'}{by}.")
        if prompt is not None and own and prompt != own:
            yield _judge_prompt(profile.name, role, prompt, own)
    cosine = float(
        compute_cosines(embedder.embed_queries([_TEXT]).vectors, embedder.embed_documents([_TEXT]).vectors)[0, 0]
    )
    if used["query"] != used["document"] and cosine > _SAME:
        yield _problem(
            "Queries and documents have different prompts, and one text has the same vector as both "
            f"(cosine {cosine:.6f}): the prompt is not applied.",
            f"report it to whoever makes the provider {profile.provider!r}",
        )
    if not used["query"]:
        yield from _find_missing_prompt(setup, registry, backend)


def _judge_prompt(profile: str, role: Role, stated: str, own: str) -> Finding:
    """Judge a prompt that is not the model's own: another task in the same frame is meant so, another is a mistake."""
    sentence = f"The {role} prompt is {show_value(stated)}, and the model declares {show_value(own)}."
    hint = f"take {role}_prompt out of [profiles.{profile}] to use the model's own"
    return _note(sentence, hint) if not stated or _get_frame(stated) == _get_frame(own) else _problem(sentence, hint)


def _get_frame(prompt: str) -> tuple[str, str]:
    """Give the first word and the last with the white space behind it: what instruction models keep for every task."""
    words = prompt.split()
    return (words[0], prompt[prompt.rindex(words[-1]) :]) if words else ("", prompt)


def _find_missing_prompt(setup: Setup, registry: Registry, backend: Backend) -> Iterator[Finding]:
    """Look for another profile that declares the same model with a query prompt."""
    profile, config = setup.profile, setup.config
    for name in sorted(config.profiles):
        prompt = config.profiles[name].values.get("query_prompt")
        if not prompt or name == profile.name or not _is_same_model(setup, registry, backend, name):
            continue
        sentence = f"No query prompt is used, and profile {name!r} declares the same model with {show_value(prompt)}."
        if profile.query_prompt is None:
            yield _problem(sentence, f"EMBEDDING_PROFILE={name}, or copy its query_prompt to [profiles.{profile.name}]")
        else:
            yield _note(sentence, f"if that is not on purpose, copy it to [profiles.{profile.name}]")
        return


def _is_same_model(setup: Setup, registry: Registry, backend: Backend, name: str) -> bool:
    """Whether another profile is of the same model: by its name, or by its weights where they are on this machine."""
    other = resolve_profile(setup.config, name, find_options=registry.find_options_class, override=False)
    if other.model == setup.profile.model:
        return True
    if other.provider != setup.profile.provider:
        return False
    try:
        options: Any = resolve_options(other, setup.provider.options, setup.config.variables)
        space = setup.provider.identify(other, options)
    except EmbedkitError:
        return False
    return space is not None and space.weights == backend.space.weights
