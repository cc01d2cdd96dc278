"""A wrongly loaded model is caught: at its first load, and by `doctor`, each time with the words for what is wrong."""

import functools
import json
import logging
from importlib.metadata import entry_points

import attrs
import numpy as np
import pytest
import torch
from embedkit_local.identity import build_space
from embedkit_local.model_files import Place, read_model
from embedkit_local.options import LocalOptions
from embedkit_local.proof import Loaded, find_cause, measure_attention, prove
from embedkit_local.proved import Proved, require_reference_once
from transformers import BertConfig, BertModel, Qwen2Config, Qwen2Model

from embedkit.config import read_config
from embedkit.doctor import examine
from embedkit.errors import ModelLoadError
from embedkit.profile import Profile, Reference
from embedkit.protocols import Batch
from embedkit.registry import build_registry
from embedkit.space import Space

TEXT = "a c b e d"
EOS = 0
N_COMPONENTS = 24

RIGHT = """
[profiles.tiny]
model = {model}
device = "cpu"
dimensions = 32
query_prompt = "q: "
document_prompt = ""

[profiles.tiny.options]
append_eos = true
attention = "bidirectional"

[profiles.tiny.reference]
text = "{text}"
components = {components}
source = "the test's own arithmetic"
"""


def compute_reference(directory, *, text=TEXT, is_causal=False, eos=(EOS,), pool=lambda states: states[-1]):
    """Compute the leading components of unit length by transformers alone, with ids that are looked up by hand."""
    vocabulary = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    ids = [vocabulary[word] for word in text.replace(":", " :").split()] + list(eos)
    config = Qwen2Config.from_pretrained(directory)
    config.is_causal = is_causal
    model = Qwen2Model.from_pretrained(directory, config=config, dtype=torch.float32).eval()
    with torch.inference_mode():
        states = model(input_ids=torch.tensor([ids])).last_hidden_state[0].numpy()
    vector = pool(states)
    return (vector / np.linalg.norm(vector))[:N_COMPONENTS].tolist()


@pytest.fixture
def qwen(make_qwen):
    """A model laid out as gte-Qwen2 is: last-token pooling, no end-of-text token from its tokenizer, a query prompt."""
    return make_qwen(normalize=False, prompts={"query": "q: "})


@pytest.fixture
def project(tmp_path, qwen):
    """Write a profiles.toml with a profile of that model; give a function that changes it, and runs doctor."""
    toml = RIGHT.format(model=json.dumps(str(qwen)), text=TEXT, components=compute_reference(qwen))
    registry = build_registry([point for point in entry_points(group="embedkit") if point.name == "local"])

    def run(*changes):
        changed = toml
        for before, after in changes:
            assert before in changed
            changed = changed.replace(before, after, 1)
        (tmp_path / "profiles.toml").write_text(changed, encoding="utf-8")
        read = functools.partial(read_config, environ={}, directory=tmp_path)
        examined = list(examine("tiny", registry=registry, read=read))
        # What this machine has in devices and threads is not what these tests are about.
        return [one for one in examined if one.topic != "devices"]

    return run


def list_problems(examined):
    """Give the topic, sentence and hint of each problem."""
    return [(one.topic, one.finding.sentence, one.finding.hint) for one in examined if one.finding.level == "problem"]


# What doctor says when one input is wrong: criterion by criterion


def test_doctor_finds_nothing_wrong_with_the_right_setup(project):
    """The reference agrees, the end is the end-of-text token, attention is as declared, the prompt is applied."""
    examined = project()
    assert [] == list_problems(examined)
    said = "\n".join(one.finding.sentence for one in examined)
    assert "is the published one: cosine 1.00000 of 24 components" in said
    assert "A text ends with the end-of-text token, also when it is cut off." in said
    assert "Attention is bidirectional, as measured" in said
    assert "Before a query: 'q: '" in said


@pytest.mark.parametrize(
    ("change", "sentence", "hint"),
    [
        (
            ("append_eos = true", "append_eos = false"),
            "The vector is the published one with the end-of-text token (EOS): cosine 1.0000.",
            "set append_eos = true in [profiles.tiny.options]",
        ),
        (
            ('attention = "bidirectional"', 'attention = "causal"'),
            "The vector is the published one with bidirectional attention: cosine 1.0000.",
            'set attention = "bidirectional" in [profiles.tiny.options]',
        ),
    ],
    ids=["no EOS", "causal attention"],
)
def test_doctor_names_the_option_that_a_mismatch_comes_from(project, change, sentence, hint):
    """Not only that the reference does not agree, but which set-up would."""
    problems = list_problems(project(change))
    assert ["reference", "model"] == [topic for topic, *_ in problems]
    assert "does not give the published vector" in problems[0][1]
    assert ("model", sentence, hint) == problems[1]


def test_doctor_says_that_the_last_token_is_a_word(project):
    """Last-token pooling without the end-of-text token is wrong, and nothing else warns."""
    (end,) = [
        one.finding for one in project(("append_eos = true\n", "")) if "reads the last token" in one.finding.sentence
    ]
    assert "problem" == end.level
    assert "append_eos = true" in end.hint


def test_doctor_names_wrong_pooling(project, qwen):
    """The pooling stands in the model's directory, so the hint names that file."""
    (qwen / "1_Pooling" / "config.json").write_text(
        '{"embedding_dimension": 32, "pooling_mode": "mean"}', encoding="utf-8"
    )
    problems = list_problems(project())
    assert ["reference", "model"] == [topic for topic, *_ in problems]
    assert "with lasttoken pooling in place of mean" in problems[1][1]
    assert str(qwen / "1_Pooling" / "config.json") in problems[1][2]


def test_doctor_names_missing_normalisation(project):
    """A direction cannot show a length: that is compared by itself."""
    ((topic, sentence, hint),) = list_problems(project(("dimensions = 32", "dimensions = 32\nnormalize = false")))
    assert "reference" == topic
    assert "normalize = false, and vectors have another length than the published one" in sentence
    assert "set normalize = true in [profiles.tiny]" == hint


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            ('query_prompt = "q: "', 'query_prompt = "p: "'),
            "The query prompt is 'p: ', and the model declares 'q: '.",
        ),
        (
            ('query_prompt = "q: "', 'query_prompt = "q:"'),
            "The query prompt is 'q:', and the model declares 'q: '.",
        ),
    ],
    ids=["another word", "a space is missing"],
)
def test_doctor_names_a_wrong_prompt(project, change, sentence):
    """The model's own prompt is shown beside it."""
    ((topic, said, hint),) = list_problems(project(change))
    assert ("prompts", sentence) == (topic, said)
    assert "take query_prompt out of [profiles.tiny] to use the model's own" == hint


def test_doctor_says_when_a_reference_was_published_with_a_prompt(project, qwen):
    """The usual mistake in writing a reference."""
    components = compute_reference(qwen)
    prompted = compute_reference(qwen, text=f"q: {TEXT}")
    ((_, sentence, hint),) = list_problems(project((str(components), str(prompted))))[1:]
    assert "The vector is the published one with the prompt 'q: ' before it" in sentence
    assert "put that prompt into the reference's text" in hint


def test_two_mistakes_are_both_named(project):
    """The nearest set-up that agrees is explained in full."""
    changes = ("append_eos = true", "append_eos = false"), ('attention = "bidirectional"', 'attention = "causal"')
    sentences = [sentence for topic, sentence, _ in list_problems(project(*changes)) if topic == "model"]
    assert 2 == len(sentences)
    assert "with the end-of-text token (EOS) (with the others named here)" in sentences[0]
    assert "with bidirectional attention (with the others named here)" in sentences[1]


def test_damaged_weights_are_named_where_no_setup_agrees(project, qwen):
    """Fault 72."""
    components = compute_reference(qwen)
    torch.manual_seed(9)
    Qwen2Model(Qwen2Config.from_pretrained(qwen)).save_pretrained(qwen)
    ((_, sentence, hint),) = list_problems(project())[1:]
    assert components
    assert "the weights or the tokenizer are another model's, or damaged" in sentence
    assert "fetch the model again" in hint


# At load


def declare(components, **options):
    """Give a profile's reference and options."""
    return {
        "reference": Reference(text=TEXT, components=tuple(components), source="the test"),
        "options": {"append_eos": True, "attention": "bidirectional", **options},
    }


def test_the_first_load_compares_with_the_reference(qwen, load):
    """A right model is loaded, a wrong one is refused with the typical reasons and the way on."""
    components = compute_reference(qwen)
    load(qwen, **declare(components)).close()
    with pytest.raises(ModelLoadError, match="does not give the published vector") as caught:
        load(qwen, name="tiny", **declare(components, attention="causal"))
    for word in ("(EOS)", "attention", "pooling", "prompt", "dtype"):
        assert word in caught.value.problem
    assert "embedkit doctor tiny" in caught.value.hint
    assert "remove [profiles.tiny.reference]" in caught.value.hint


class CountingBackend:
    """A backend of one vector, which counts how often it is asked."""

    prompts, window, device, dtype = {}, 8, "cpu", "float32"
    space = Space(weights="w", dimensions=3, normalized=False)

    def __init__(self):
        self.n_calls = 0

    def encode(self, texts, *, role):
        """Give the vector."""
        self.n_calls += 1
        yield Batch(positions=[0], vectors=np.array([[1, 2, 3]], np.float32))


def test_an_agreement_is_remembered_and_a_change_is_compared_anew(tmp_path):
    """By space, reference, kind of device, precision and way; a mismatch is never remembered."""
    backend, proved = CountingBackend(), Proved(tmp_path)
    right = Profile(model="m", reference=Reference(text="t", components=(1, 2), source="s"))
    for _ in range(3):
        require_reference_once(backend, right, proved)
    assert 1 == backend.n_calls
    backend.dtype = "bfloat16"
    require_reference_once(backend, right, proved)
    assert 2 == backend.n_calls
    backend.way = "packed"
    require_reference_once(backend, right, proved)
    assert 3 == backend.n_calls
    wrong = attrs.evolve(right, reference=Reference(text="t", components=(2, -1), source="s"))
    for n_calls in (4, 5):
        with pytest.raises(ModelLoadError):
            require_reference_once(backend, wrong, proved)
        assert n_calls == backend.n_calls
    require_reference_once(backend, attrs.evolve(right, reference=None), proved)
    assert 5 == backend.n_calls


def test_what_cannot_be_remembered_is_proved_anew(tmp_path):
    """A file in the place of the directory, as on a machine whose cache cannot be written."""
    (tmp_path / "proved").write_text("", encoding="utf-8")
    proved = Proved(tmp_path)
    proved.note("fact")
    assert not proved.holds("fact")
    elsewhere = Proved(tmp_path / "new")
    assert not elsewhere.holds("fact", 1)
    elsewhere.note("fact", 1)
    assert (True, False) == (elsewhere.holds("fact", 1), elsewhere.holds("fact", 2))


@pytest.mark.parametrize("options", [{}, {"append_eos": False}], ids=["unsaid", "on purpose"])
def test_a_last_token_that_is_a_word_is_warned_of_unless_it_is_on_purpose(make_qwen, load, caplog, options):
    """There are models that want it so: the load goes on."""
    with caplog.at_level(logging.WARNING, "embedkit"):
        load(make_qwen(), options=options).close()
    assert (not options) == ("reads the last token, and that is a word's" in caplog.text)


def build_loaded(directory, read, **options):
    """Give what proofs look at, with a tokenizer of the test's own."""
    files = read_model(Place(directory=directory, model=str(directory)), trust_remote_code=False)
    profile, typed = Profile(model=str(directory)), LocalOptions(**options)
    space = Space(weights="w", dimensions=32, normalized=True, attention="bidirectional", max_tokens=8)
    model = Qwen2Model.from_pretrained(directory).eval()
    return Loaded(files=files, profile=profile, options=typed, space=space, read=read, transformer=model)


def test_a_cut_that_takes_the_end_of_text_token_is_refused(make_qwen):
    """Short texts look right, and long ones are pooled at a word."""
    read = lambda texts: [[5, 6, EOS] if len(text) < 8 else [5, 6, 7] for text in texts]  # noqa: E731  # a toy
    with pytest.raises(ModelLoadError, match="A text that is cut off loses its end-of-text token"):
        prove(build_loaded(make_qwen(), read))


def test_an_end_that_is_asked_for_and_missing_is_refused(make_qwen):
    """append_eos is a promise."""
    with pytest.raises(ModelLoadError, match=r"append_eos is true, and the tokenizer of .* does not end each text"):
        prove(build_loaded(make_qwen(), lambda texts: [[5, 6, 7] for _ in texts], append_eos=True))


def test_attention_that_is_not_what_the_profile_says_is_refused(make_qwen):
    """A version of transformers that ignores the setting would run the model causal, silently."""
    loaded = build_loaded(make_qwen(), lambda texts: [[5, 6, 7, 8, EOS] for _ in texts], attention="bidirectional")
    with pytest.raises(ModelLoadError, match="is causal, as measured, and the profile says 'bidirectional'") as caught:
        prove(loaded)
    assert 'set attention = "causal"' in caught.value.hint


# Measuring


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("is_causal", "expected"), [(True, "causal"), (False, "bidirectional")])
def test_the_direction_of_attention_is_measured(make_qwen, is_causal, expected, dtype):
    """In both precisions, without knowing the weights."""
    model = Qwen2Model.from_pretrained(make_qwen(is_causal=is_causal), dtype=dtype).eval()
    assert {expected} == measure_attention(model, [3, 4, 5, 6, 7])


def test_an_encoder_is_measured_as_bidirectional():
    """It has no other way to look."""
    size = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "vocab_size": 50,
    }
    assert {"bidirectional"} == measure_attention(BertModel(BertConfig(**size)).eval(), [3, 4, 5, 6])


def test_attention_that_padding_turns_is_found(make_qwen):
    """A mask that is left out where nothing is padded makes two models of one."""
    model = Qwen2Model.from_pretrained(make_qwen(is_causal=True)).eval()
    other = Qwen2Model.from_pretrained(make_qwen(name="other", is_causal=False)).eval()

    class Turned:
        parameters = model.parameters

        def __call__(self, *, input_ids, attention_mask):
            return (model if attention_mask.all() else other)(input_ids=input_ids, attention_mask=attention_mask)

    assert {"causal", "bidirectional"} == measure_attention(Turned(), [3, 4, 5, 6, 7])


def test_dtype_is_named_when_the_same_setup_agrees_in_float32(qwen):
    """The set-up is right, and only the arithmetic differs."""
    files = read_model(Place(directory=qwen, model=str(qwen)), trust_remote_code=False)
    profile = Profile(name="tiny", model=str(qwen), query_prompt="q: ", document_prompt="")
    options = LocalOptions(append_eos=True, attention="bidirectional")
    space = build_space(files, profile, options, digests=type("Digests", (), {"compute": lambda _, path: "0"})())
    reference = Reference(text=TEXT, components=tuple(compute_reference(qwen)), source="the test")
    (low,) = find_cause(files, profile, space, reference, dtype="float16")
    assert "in float32 in place of float16" in low.sentence
    assert 'set dtype = "float32" in [profiles.tiny.options]' == low.hint
    (ours,) = find_cause(files, profile, space, reference, dtype="float32")
    assert "report this as a fault of embedkit-local" == ours.hint


def test_the_cause_is_not_sought_where_only_code_of_the_model_knows_it(make_qwen):
    """Transformers would stop and ask on the terminal whether to run that code."""
    directory = make_qwen()
    content = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    strange = content | {"model_type": "strange", "auto_map": {"AutoModel": "modeling_strange.Strange"}}
    (directory / "config.json").write_text(json.dumps(strange), encoding="utf-8")
    (directory / "modeling_strange.py").write_text("raise SystemExit", encoding="utf-8")
    files = read_model(Place(directory=directory, model=str(directory)), trust_remote_code=True)
    reference = Reference(text=TEXT, components=(1.0, 2.0), source="the test")
    space = Space(weights="w", dimensions=32, normalized=True)
    assert [] == list(find_cause(files, Profile(model=str(directory)), space, reference, dtype="float32"))


@pytest.mark.weights
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_packaged_model_agrees_with_its_published_vector(load, dtype):
    """The threshold lets bfloat16 through."""
    config = read_config(environ={})
    table = config.profiles["mini"].values
    load(table["model"], reference=table["reference"], options={"dtype": dtype}).close()
