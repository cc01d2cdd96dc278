"""No exception of a foreign library comes out of loading or fetching untranslated."""

import inspect
import pickle
import socket

import httpx2
import huggingface_hub.errors
import pytest
import safetensors
import torch
from embedkit_local.foreign import translate_fetch_error, translate_load_error

from embedkit.errors import (
    AuthenticationError,
    BackendError,
    DeviceUnavailableError,
    EmbedkitError,
    ModelLoadError,
    RateLimitError,
    TransportError,
)

HUB_ERRORS = [
    kind
    for _, kind in inspect.getmembers(huggingface_hub.errors, inspect.isclass)
    if issubclass(kind, Exception) and kind.__module__.startswith("huggingface_hub")
]
CLIENT_ERRORS = [kind for _, kind in inspect.getmembers(httpx2, inspect.isclass) if issubclass(kind, httpx2.HTTPError)]


def make(kind, status=None):
    """Make an exception of a class with whatever constructor, as far as translation looks at it."""
    error = kind.__new__(kind)
    Exception.__init__(error, "first line\nsecond line")
    if status is not None:
        request = httpx2.Request("GET", "http://localhost")
        error.response = httpx2.Response(status, request=request)
    return error


@pytest.mark.parametrize("kind", [*HUB_ERRORS, *CLIENT_ERRORS], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("translate", [translate_fetch_error, translate_load_error])
def test_every_exception_of_the_hub_is_mapped(kind, translate):
    """Each has a sentence with the model's name, something to type, and can be pickled. Fault 86."""
    error = translate(make(kind), "owner/tiny")
    assert isinstance(error, BackendError)
    assert "owner/tiny" in error.problem
    assert error.hint
    assert "second line" not in str(error)
    assert str(error) == str(pickle.loads(pickle.dumps(error)))  # noqa: S301  # our own error


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (make(huggingface_hub.errors.OfflineModeIsEnabled), ModelLoadError, "HF_HUB_OFFLINE"),
        (make(huggingface_hub.errors.GatedRepoError, 403), AuthenticationError, "hf auth login"),
        (make(huggingface_hub.errors.RepositoryNotFoundError, 401), ModelLoadError, "./owner/tiny"),
        (make(huggingface_hub.errors.RevisionNotFoundError, 404), ModelLoadError, "revision"),
        (make(huggingface_hub.errors.RemoteEntryNotFoundError, 404), ModelLoadError, "lacks a file"),
        (make(huggingface_hub.errors.HfHubHTTPError, 429), RateLimitError, "wait"),
        (make(huggingface_hub.errors.HfHubHTTPError, 500), TransportError, "embedkit pull"),
        (make(httpx2.ConnectError), ModelLoadError, "embedkit pull"),
        (make(httpx2.ReadTimeout), ModelLoadError, "embedkit pull"),
        (make(huggingface_hub.errors.LocalEntryNotFoundError), ModelLoadError, "embedkit pull"),
        (make(socket.gaierror), ModelLoadError, "embedkit pull"),
        (OSError(28, "No space left on device"), ModelLoadError, "disk"),
    ],
)
def test_fetch_error_says_what_mends_it(error, kind, words):
    """The class and the words fit the cause. Fault 70."""
    translated = translate_fetch_error(error, "owner/tiny")
    assert kind is type(translated)
    assert words in str(translated)


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (safetensors.SafetensorError("MetadataIncompleteBuffer"), ModelLoadError, "damaged"),
        (torch.OutOfMemoryError("CUDA out of memory"), BackendError, "bfloat16"),
        (MemoryError(), BackendError, "memory"),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried"), BackendError, "memory"),
        (RuntimeError("Cannot re-initialize CUDA in forked subprocess."), DeviceUnavailableError, "spawn"),
        (ImportError("needs einops", name="einops"), ModelLoadError, "the module einops"),
        (ValueError("Please pass `trust_remote_code=True`"), ModelLoadError, "trust_remote_code"),
        (KeyError("hidden_size"), ModelLoadError, "KeyError"),
        (AttributeError("x"), ModelLoadError, "AttributeError"),
        (OSError("no file named model.safetensors"), ModelLoadError, "OSError"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), ModelLoadError, "UnicodeDecodeError"),
    ],
)
def test_load_error_says_what_mends_it(error, kind, words):
    """torch's, safetensors' and Python's own exceptions on the way of loading."""
    translated = translate_load_error(error, "owner/tiny")
    assert isinstance(translated, EmbedkitError)
    assert kind is type(translated)
    assert words in str(translated)
    assert translated.hint
