"""The examination says what is wrong, with what mends it, and never dies of it."""

import functools
import importlib.metadata

import attrs
import numpy as np
import pytest

from embedkit import registry as registry_module
from embedkit.config import read_config
from embedkit.doctor import examine
from embedkit.errors import BackendError, ConfigError, SettingError
from embedkit.profile import Profile
from embedkit.protocols import Check, Finding
from embedkit.registry import build_registry
from embedkit.testing import toy_provider

PROFILES = """
default = "plain"

[profiles.plain]
provider = "toy"
model = "words"
dimensions = 16

[profiles.prompted]
provider = "toy"
model = "other words"
query_prompt = "query: "
"""

ONE_MODEL = PROFILES.replace("other words", "words")

GROUP = registry_module.GROUP


class Point:
    """An entry point of a plugin that stands in the test."""

    def __init__(self, plugin, name="toy"):
        self.name, self.value, self.dist, self._plugin = name, f"{name}:here", None, plugin

    def load(self):
        """Give the plugin."""
        return self._plugin


@pytest.fixture
def doctor(tmp_path):
    """Examine a project with a plugin of the test's own; give topic, level, sentence and hint of each finding."""
    from embedkit import hookimpl

    def run(name=None, *, toml=PROFILES, provider=None, checks=(), points=None, environ=None, **arguments):
        class Plugin:
            @hookimpl
            def embedkit_providers(self):
                return [provider or toy_provider()]

            @hookimpl
            def embedkit_checks(self):
                return checks

        (tmp_path / "profiles.toml").write_text(toml, encoding="utf-8")
        (tmp_path / "pyproject.toml").touch()
        read = functools.partial(read_config, environ=environ or {}, directory=tmp_path)
        registry = build_registry([Point(Plugin())] if points is None else points)
        arguments = {"registry": registry, "read": read} | arguments
        return [
            (one.topic, one.finding.level, one.finding.sentence, one.finding.hint) for one in examine(name, **arguments)
        ]

    return run


def list_problems(findings):
    """Give topic, sentence and hint of each problem; every one must say what mends it."""
    problems = [(topic, sentence, hint) for topic, level, sentence, hint in findings if level == "problem"]
    assert all(hint for *_, hint in problems)
    return problems


def list_sentences(findings, topic):
    """Give what was said about a topic."""
    return [sentence for name, _, sentence, _ in findings if name == topic]


def test_a_sound_installation_has_no_problem(doctor):
    """Every topic is there, in the order of the examination."""
    findings = doctor("prompted")
    assert [] == list_problems(findings)
    assert ["python", "plugins", "configuration", "profile", "model", "reference", "prompts"] == list(
        dict.fromkeys(topic for topic, *_ in findings)
    )
    assert f"embedkit-core {importlib.metadata.version('embedkit-core')}" in list_sentences(findings, "python")[1]
    assert "prompted (named in the call): other words through provider toy" == list_sentences(findings, "profile")[0]
    assert "Loaded in" in list_sentences(findings, "model")[0]
    assert "64 dimensions, unit length" in list_sentences(findings, "model")[1]
    assert "has no reference" in list_sentences(findings, "reference")[0]
    assert ["Before a query: 'query: '.", "Before a document: nothing."] == list_sentences(findings, "prompts")


def test_without_loading_the_model_is_left_alone(doctor):
    """`--no-load` is quick, and needs no memory."""

    def refuse(profile, options):
        raise AssertionError

    findings = doctor(provider=attrs.evolve(toy_provider(), load=refuse), load=False)
    assert [] == list_problems(findings)
    assert "profile" == findings[-1][0]


# Plugins


def test_no_plugin_a_broken_one_and_a_clash_are_problems(doctor):
    """Faults 26 and 28. None of them ends the examination."""
    (problem, unknown) = list_problems(doctor(points=[]))
    assert ("plugins", "No plugin is installed: nothing can make vectors.") == problem[:2]
    assert "profile" == unknown[0]
    from embedkit import hookimpl

    class Offer:
        @hookimpl
        def embedkit_providers(self):
            return [toy_provider()]

    points = [Point(Offer(), "one"), Point(Offer(), "two"), Point(object(), "bad")]
    findings = doctor(points=points)
    sentences = [sentence for topic, sentence, _ in list_problems(findings) if topic == "plugins"]
    assert (
        "(bad:here) is broken: TypeError: bad:here implements no hook of embedkit; is @hookimpl missing?"
        == sentences[0]
    )
    assert "(one:here) and (two:here) both offer the provider toy." == sentences[1]


# Configuration and profile


def test_faults_of_the_configuration_are_findings_and_devices_are_examined_all_the_same(doctor):
    """All of them at once; a plugin's check is asked without a profile."""
    seen = []

    def look(subject):
        seen.append(subject.profile)
        return [Finding(level="ok", sentence="looked")]

    broken = PROFILES.replace("dimensions = 16", 'dimensions = "16"').replace("query_prompt", "query_promt")
    findings = doctor(toml=broken, checks=[Check(name="devices", summary="s", run=look)])
    first, second = (sentence for topic, sentence, _ in list_problems(findings) if topic == "configuration")
    assert "dimensions" in first
    assert "query_promt" in second
    assert [None] == seen
    assert ["looked"] == list_sentences(findings, "devices")


def test_an_unreadable_registry_is_noted_and_the_configuration_says_why(doctor):
    """Which plugins are allowed is read from `.env`."""

    def fail():
        raise ConfigError("the .env is wrong", hint="mend line 3")

    findings = doctor(registry=None, read=fail)
    assert [("configuration", "the .env is wrong", "mend line 3")] == list_problems(findings)


def test_an_unknown_profile_and_an_unknown_option_are_findings(doctor):
    """With the origin that the error carries."""
    ((topic, sentence, hint),) = list_problems(doctor("plian"))
    assert ("profile", "There is no profile 'plian'. (from the call)") == (topic, sentence)
    assert "did you mean plain?" in hint
    wrong = PROFILES + "\n[profiles.wrong]\nprovider = 'toy'\nmodel = 'm'\n[profiles.wrong.options]\nmax_tokns = 3\n"
    ((_, sentence, hint),) = list_problems(doctor("wrong", toml=wrong))
    assert "'max_tokns' is no known setting." in sentence
    assert "[profiles.wrong]" in sentence
    assert "did you mean max_tokens?" == hint


def test_misspelt_variables_files_and_overrides_are_noted(doctor, tmp_path):
    """What is in force is not always what the file says."""
    (tmp_path / ".env").write_text("EMBEDDING_PROFIL=speed\n", encoding="utf-8")
    findings = doctor("plain", environ={"EMBEDDING_DIMENSIONS": "8"})
    assert [] == list_problems(findings)
    configuration = "\n".join(list_sentences(findings, "configuration"))
    assert str(tmp_path / "profiles.toml") in configuration
    assert f"{tmp_path / '.env'} is read." in configuration
    assert "EMBEDDING_PROFIL is no variable of embedkit; did you mean EMBEDDING_PROFILE?" in configuration
    assert "Overridden: dimensions = 8." in list_sentences(findings, "profile")


# Checks of plugins


def fail_with(error):
    """Make a check that finds one thing and then raises."""

    def run(subject):
        yield Finding(level="ok", sentence="before")
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "sentence", "hint"),
    [
        (ZeroDivisionError("by zero"), "the check 'odd' of (toy:here) failed: ZeroDivisionError: by zero", "report it"),
        (SystemExit(3), "failed: SystemExit: 3", "report it"),
        (BackendError("The driver hangs.", hint="restart"), "The driver hangs.", "restart"),
        (SettingError("Wrong.", origin="a file", hint="mend"), "Wrong. (from a file)", "mend"),
    ],
    ids=["a fault", "an exit", "an error of ours", "with its origin"],
)
def test_a_check_that_raises_is_a_finding(doctor, error, sentence, hint):
    """What it found before is kept, and the others are run."""
    checks = [
        Check(name="odd", summary="s", run=fail_with(error)),
        Check(name="even", summary="s", run=lambda _: [Finding(level="ok", sentence="fine")]),
    ]
    findings = doctor(checks=checks)
    ((topic, said, mend),) = list_problems(findings)
    assert "odd" == topic
    assert sentence in said
    assert hint in mend
    assert "before" == list_sentences(findings, "odd")[0]
    assert ["fine"] == list_sentences(findings, "even")


@pytest.mark.parametrize("result", [["a string"], 3, None], ids=str)
def test_a_check_that_gives_something_else_is_a_finding(doctor, result):
    """Fault 29."""
    ((_, sentence, _),) = list_problems(doctor(checks=[Check(name="odd", summary="s", run=lambda _: result)]))
    assert "the check 'odd' of (toy:here) failed: TypeError" in sentence


def test_a_check_of_the_model_is_asked_after_loading_with_the_backend(doctor):
    """And the others before, without."""
    seen = {}

    def watch(name):
        def run(subject):
            seen[name] = (subject.profile.device, type(subject.options).__name__, type(subject.backend).__name__)
            return ()

        return run

    checks = [
        Check(name="early", summary="", run=watch("early")),
        Check(name="late", summary="", run=watch("late"), needs_model=True),
    ]
    doctor(checks=checks, device="cpu")
    assert {"early": ("cpu", "ToyOptions", "NoneType"), "late": ("cpu", "ToyOptions", "ToyBackend")} == seen


def test_a_finding_can_prevent_loading(doctor):
    """Weights that do not fit into memory are not tried."""
    stop = Finding(level="problem", sentence="too big", hint="a smaller one", prevents_loading=True)
    findings = doctor(checks=[Check(name="memory", summary="s", run=lambda _: [stop])])
    assert [("memory", "too big", "a smaller one")] == list_problems(findings)
    assert ["The model was not loaded, because of what is said above."] == list_sentences(findings, "model")


# The loaded model


def test_a_provider_that_cannot_load_is_a_finding(doctor):
    """An error of ours with its hint, anything else with whose fault it is."""

    def fail(error, profile, options):
        raise error

    broken = BackendError("The server is away.", hint="start it")
    findings = doctor(provider=attrs.evolve(toy_provider(), load=functools.partial(fail, broken)))
    assert [("model", "The server is away.", "start it")] == list_problems(findings)
    odd = attrs.evolve(toy_provider(), load=functools.partial(fail, KeyError("x")))
    ((_, sentence, hint),) = list_problems(doctor(provider=odd))
    assert "the provider 'toy' failed: KeyError: 'x'" == sentence
    assert "report it to whoever makes the provider 'toy'" == hint


def test_other_dimensions_than_the_profile_says_are_a_finding(doctor):
    """The embedder's own refusal, here among the findings."""
    provider = toy_provider()

    def load(profile, options):
        return provider.load(attrs.evolve(profile, dimensions=32), options)

    ((_, sentence, hint),) = list_problems(doctor(provider=attrs.evolve(provider, load=load)))
    assert "makes vectors of 32 dimensions, and the profile says 16" in sentence
    assert "set dimensions = 32" in hint


def with_reference(vector, settings=""):
    """Give a profiles.toml whose profile has a reference."""
    return f"""
[profiles.known]
provider = "toy"
model = "words"
dimensions = 16
{settings}
[profiles.known.reference]
text = "hello world"
components = {[float(number) for number in vector]}
source = "its makers"
"""


def embed(**settings):
    """Give the vector of the reference's text by the toy model."""
    provider = toy_provider()
    profile = Profile(provider="toy", model="words", dimensions=16, **settings)
    (batch,) = provider.load(profile, provider.options()).encode(["hello world"], role="document")
    return batch.vectors[0]


@pytest.fixture
def published():
    """The vector of unit length that its makers published."""
    return embed()


def test_a_reference_that_agrees_is_said_with_its_cosine(doctor, published):
    """In any length, for a model that is brought to unit length."""
    findings = doctor("known", toml=with_reference(7 * published))
    assert [] == list_problems(findings)
    (sentence,) = list_sentences(findings, "reference")
    assert "is the published one: cosine 1.00000 of 16 components, at least 0.99 is due (its makers)" in sentence


def test_a_reference_that_does_not_agree_does_not_end_the_examination(doctor, published):
    """The prompts are examined all the same."""
    findings = doctor("known", toml=with_reference(np.roll(published, 1)))
    ((topic, sentence, hint),) = list_problems(findings)
    assert "reference" == topic
    assert "does not give the published vector of 'hello world'" in sentence
    assert "remove [profiles.known.reference]" in hint
    assert list_sentences(findings, "prompts")


def test_vectors_of_another_length_than_the_published_are_a_problem_only_where_nobody_normalises(doctor, published):
    """A model whose makers publish long vectors is used as they do."""
    raw = "normalize = false"
    ((_, sentence, hint),) = list_problems(doctor("known", toml=with_reference(published, raw)))
    assert "normalize = false, and vectors have another length than the published one" in sentence
    assert "set normalize = true in [profiles.known]" == hint
    assert [] == list_problems(doctor("known", toml=with_reference(embed(normalize=False), raw)))
    findings = doctor("plain", toml=PROFILES.replace("dimensions = 16", "dimensions = 16\nnormalize = false"))
    assert [] == list_problems(findings)
    assert any("Inner products are no cosines" in sentence for sentence in list_sentences(findings, "reference"))


# Prompts


def test_a_query_prompt_that_another_profile_has_for_the_same_model_is_missed(doctor):
    """The most usual way to lose rank."""
    ((topic, sentence, hint),) = list_problems(doctor("plain", toml=ONE_MODEL))
    assert "prompts" == topic
    assert "No query prompt is used, and profile 'prompted' declares the same model with 'query: '." == sentence
    assert "EMBEDDING_PROFILE=prompted, or copy its query_prompt to [profiles.plain]" == hint


def test_a_query_prompt_that_is_left_out_on_purpose_is_noted(doctor):
    """`""` says so."""
    findings = doctor("plain", toml=ONE_MODEL.replace("dimensions = 16", 'query_prompt = ""'))
    assert [] == list_problems(findings)
    assert any("declares the same model" in sentence for sentence in list_sentences(findings, "prompts"))


def test_the_same_weights_under_another_name_are_the_same_model(doctor):
    """A copy in a folder needs the same prompts."""
    provider = toy_provider()

    def as_words(call):
        return lambda profile, options: call(attrs.evolve(profile, model="words"), options)

    alias = attrs.evolve(provider, load=as_words(provider.load), identify=as_words(provider.identify))
    toml = ONE_MODEL.replace('model = "words"', 'model = "./copy"', 1)
    assert ["prompts"] == [topic for topic, *_ in list_problems(doctor("plain", toml=toml, provider=alias))]
    assert [] == list_problems(doctor("plain", toml=toml))


@pytest.mark.parametrize(
    ("stated", "own", "level"),
    [
        ("query:", "query: ", "problem"),
        ("passage: ", "query: ", "problem"),
        ("Instruct: find news\\nQuery: ", "Instruct: find pages\nQuery: ", "note"),
        ("Instruct: find news\\nQuery:", "Instruct: find pages\nQuery: ", "problem"),
        ("", "query: ", "note"),
        ("query: ", "query: ", None),
        (" ", "query: ", "problem"),
    ],
)
def test_a_prompt_is_compared_with_the_one_that_the_model_declares(doctor, stated, own, level):
    """Another task in the same frame is meant so; another frame, or a lost space, is a mistake."""
    toml = f'[profiles.mine]\nprovider = "toy"\nmodel = "m"\nquery_prompt = "{stated}"\n'
    findings = doctor("mine", toml=toml, provider=toy_provider(prompts={"query": own}))
    said = [(one_level, hint) for topic, one_level, sentence, hint in findings if "the model declares" in sentence]
    expected = [] if level is None else [(level, "take query_prompt out of [profiles.mine] to use the model's own")]
    assert expected == said


def test_the_models_own_prompt_is_named_as_such(doctor):
    """Nothing is stated, and something is put before the text."""
    findings = doctor("plain", provider=toy_provider(prompts={"query": "q: "}))
    assert [] == list_problems(findings)
    assert "Before a query: 'q: ' (the model's own)." == list_sentences(findings, "prompts")[0]


def test_a_prompt_that_changes_nothing_is_a_problem(doctor):
    """A server that strips what it takes for a label."""
    provider = toy_provider()

    def load(profile, options):
        backend = provider.load(profile, options)
        encode = backend.encode
        backend.encode = lambda texts, *, role: encode([text.removeprefix("query: ") for text in texts], role=role)
        return backend

    ((topic, sentence, _),) = list_problems(doctor("prompted", provider=attrs.evolve(provider, load=load)))
    assert "prompts" == topic
    assert "one text has the same vector as both" in sentence
