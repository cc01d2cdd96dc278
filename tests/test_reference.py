"""A loaded model is compared with a published vector by direction, and a mismatch says how to go on."""

import numpy as np
import pytest

from embedkit.config import read_config
from embedkit.embedder import Embedder
from embedkit.errors import ContractError, InputError, ModelLoadError, SettingError
from embedkit.options import Origin
from embedkit.profile import Profile, Reference
from embedkit.protocols import Batch
from embedkit.reference import REFERENCE_COSINE, compare_reference, embed_bare, require_reference
from embedkit.space import Space
from embedkit.testing import toy_provider
from embedkit.vectors import compute_direction_cosine


class Fixed:
    """A backend with one vector for every text."""

    prompts, window, device, dtype = {}, 8, "", ""

    def __init__(self, vector, batches=None):
        self.space = Space(weights="w", dimensions=len(vector), normalized=False)
        whole = Batch(positions=[0], vectors=np.array([vector], np.float32))
        self.batches = [whole] if batches is None else batches

    def encode(self, texts, *, role):
        """Give the batches."""
        assert ("document", 1) == (role, len(texts))
        yield from self.batches


def declare(*components):
    """Make a profile with a reference."""
    return Profile(
        name="mine", model="m", reference=Reference(text="hello", components=components, source="its makers")
    )


@pytest.mark.parametrize(
    ("vector", "components", "expected"),
    [
        ((3, 4, 9), (3, 4), 1.0),
        ((3, 4, 9), (0.6, 0.8), 1.0),
        ((3, 4), (-3, -4, 5), -1.0),
        ((1, 0, 9), (0, 1), 0.0),
        ((0, 0, 9), (1, 1), 0.0),
        ((1, 1), (1, 0), 0.70711),
    ],
)
def test_directions_are_compared_over_what_both_have(vector, components, expected):
    """Length does not matter; a vector of zeros has no direction."""
    assert expected == pytest.approx(compute_direction_cosine(np.array(vector, np.float32), components), abs=1e-5)


def test_a_model_that_agrees_goes_through():
    """Also one that was published in another length, which is told."""
    comparison = compare_reference(Fixed((6, 8, 1)), declare(3, 4).reference)
    assert comparison.agrees
    assert (2, pytest.approx(2.0), pytest.approx(1.0)) == (comparison.n_components, comparison.scale, comparison.cosine)
    require_reference(Fixed((6, 8, 1)), declare(3, 4))
    require_reference(Fixed((6, 8, 1)), Profile(model="m"))


def test_a_mismatch_says_what_is_typically_wrong_and_how_to_go_on():
    """With the numbers, the source, and where it is declared."""
    profile = Profile(
        **{name: getattr(declare(4, -3), name) for name in ("name", "model", "reference")},
        origins={"reference": Origin("a file")},
    )
    with pytest.raises(ModelLoadError) as caught:
        require_reference(Fixed((3, 4)), profile)
    problem = caught.value.problem
    assert "for 'hello'" not in problem
    for words in (
        "'hello'",
        "0.0000",
        f"at least {REFERENCE_COSINE} is due (its makers)",
        "(EOS)",
        "attention",
        "pooling",
        "prompt",
        "dtype",
    ):
        assert words in problem
    assert "a file" == caught.value.origin
    assert "embedkit doctor mine says which" in caught.value.hint
    assert "remove [profiles.mine.reference]" in caught.value.hint


@pytest.mark.parametrize("components", [(), (1.0,), (0.0, 0.0), (0.0, 5.0)])
def test_components_without_a_direction_are_a_wrong_setting(components):
    """One number agrees with half of all models."""
    with pytest.raises(SettingError, match="needs 2 numbers or more that are not 0"):
        require_reference(Fixed((3, 4)), declare(*components))


def test_a_text_that_cannot_be_embedded_is_an_error():
    """Never a comparison with nothing."""
    failed = Batch(positions=[], vectors=np.zeros((0, 2), np.float32), failures={0: InputError("too long")})
    with pytest.raises(InputError, match="too long"):
        embed_bare(Fixed((1, 2), [failed]), "t")
    with pytest.raises(ContractError, match="0 batches"):
        embed_bare(Fixed((1, 2), []), "t")
    with pytest.raises(ContractError, match="not finite"):
        embed_bare(Fixed((np.nan, 2)), "t")


def test_the_document_prompt_is_left_out():
    """References are published without one."""
    provider = toy_provider()
    profile = Profile(provider="toy", model="m", document_prompt="passage: ")
    backend = provider.load(profile, provider.options())
    with Embedder(Profile(provider="toy", model="m"), lambda: provider.load(profile, provider.options())) as _:
        bare = embed_bare(backend, "hello")
    plain = provider.load(Profile(provider="toy", model="m"), provider.options())
    assert np.array_equal(embed_bare(plain, "hello"), bare)


@pytest.mark.parametrize(("name", "n_components"), [("quality", 32), ("speed", 5), ("mini", 5)])
def test_the_packaged_profiles_carry_published_vectors(name, n_components):
    """With their sources."""
    reference = read_config(environ={}).profiles[name].values["reference"]
    assert n_components == len(reference.components)
    assert reference.text
    assert "/" in reference.source
