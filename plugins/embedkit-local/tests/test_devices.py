"""An explicit device is strict, `auto` says what it chose, and a GPU that torch cannot use is shouted about."""

import logging
import os
import subprocess
import sys

import pytest
import torch
from embedkit_local.devices import choose_device, choose_dtype, explain_fork, has_native_bfloat16, has_nvidia_driver

from embedkit.errors import DeviceUnavailableError, SettingError

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")


@pytest.mark.parametrize("name", ["gpu", "CPU", "meta", "cuda:", "cuda:-1", "cuda:x", "", "cpu:0", "cuda:0 ", "xpu"])
def test_unknown_device_is_refused_with_the_allowed_ones(name):
    """Among them meta, which torch would take and compute nothing on. Fault 74."""
    with pytest.raises(SettingError, match="auto, cpu, cuda, cuda:N or mps") as raised:
        choose_device(name, origin="environment variable EMBEDDING_DEVICE")
    assert repr(name) in raised.value.problem
    assert "environment variable EMBEDDING_DEVICE" == raised.value.origin


@no_gpu
@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:7"])
def test_explicit_cuda_without_a_gpu_is_an_error(name):
    """Never a silent CPU. Fault 74."""
    with pytest.raises(DeviceUnavailableError, match="not available") as raised:
        choose_device(name, probe=lambda: False)
    assert "EMBEDDING_DEVICE=auto" in raised.value.hint


@no_gpu
def test_explicit_cuda_beside_a_driver_names_the_build():
    """The mend is another build of torch, or the driver. Faults 74 and 75."""
    with pytest.raises(DeviceUnavailableError) as raised:
        choose_device("cuda", probe=lambda: True)
    assert "torch" in raised.value.hint


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="says what happens without Apple silicon")
def test_explicit_mps_elsewhere_is_an_error():
    """Fault 74."""
    with pytest.raises(DeviceUnavailableError, match="mps"):
        choose_device("mps")


@no_gpu
def test_gpu_that_torch_cannot_use_is_warned_about(caplog):
    """Auto takes the CPU and says that it will be slow, and what mends it. Fault 75."""
    with caplog.at_level(logging.INFO, logger="embedkit"):
        assert torch.device("cpu") == choose_device("auto", probe=lambda: True)
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "NVIDIA GPU" in warning.getMessage()
    assert "reinstall" in warning.getMessage() or "nvidia-smi" in warning.getMessage()


@no_gpu
def test_auto_says_what_it_chose(caplog):
    """Without a GPU there is no warning."""
    with caplog.at_level(logging.INFO, logger="embedkit"):
        choose_device("auto", probe=lambda: False)
    assert [logging.INFO] == [record.levelno for record in caplog.records]
    assert "auto: cpu" in caplog.text


@pytest.mark.skipif(os.name == "nt", reason="a shell script stands for nvidia-smi")
@pytest.mark.skipif(os.path.exists("/proc/driver/nvidia/version"), reason="says what happens without a driver")  # noqa: PTH110  # evaluated when tests are collected
def test_driver_is_found_by_its_tool(tmp_path, monkeypatch):
    """nvidia-smi on the path is enough. Fault 75."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not has_nvidia_driver()
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\n", encoding="utf-8")
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert has_nvidia_driver()


def test_auto_precision_aims_at_what_the_device_has():
    """bfloat16 where the processor multiplies it, else float32; what is asked for is not questioned."""
    device = torch.device("cpu")
    expected = torch.bfloat16 if has_native_bfloat16(device) else torch.float32
    assert expected == choose_dtype("auto", device)
    assert torch.bfloat16 == choose_dtype("bfloat16", device)
    assert torch.float32 == choose_dtype("auto", torch.device("mps"))


def test_forked_cuda_is_explained():
    """The words of torch are turned into what to do. Fault 80."""
    assert "spawn" in explain_fork().hint


FORK = """
import os, sys, threading
import numpy as np, torch
torch.set_num_threads(2)
from embedkit.embedder import Embedder
from embedkit.profile import Profile
from embedkit_local.backend import load_backend
from embedkit_local.options import LocalOptions
profile = Profile(model=sys.argv[1], device="cpu")
texts = [f"a b word{i} " * (i % 30 + 1) for i in range(200)]
with Embedder(profile, lambda: load_backend(profile, LocalOptions(dtype="float32"))) as embedder:
    # Two threads of torch are at work when the fork comes.
    expected = embedder.embed_documents(texts).vectors
    assert torch.get_num_threads() == 2
    child = os.fork()
    if child == 0:
        try:
            found = embedder.embed_documents(texts).vectors
            os._exit(0 if np.allclose(expected, found, atol=1e-5) and torch.get_num_threads() == 1 else 3)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(4)
    _, status = os.waitpid(child, 0)
    # The parent goes on as before.
    assert np.allclose(expected, embedder.embed_documents(texts).vectors, atol=1e-5)
    assert torch.get_num_threads() == 2
    sys.exit(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_child_forked_after_encoding_embeds_and_does_not_hang(make_bert):
    """The child gets the same vectors on one thread; the parent keeps its own. Fault 80."""
    done = subprocess.run(
        [sys.executable, "-c", FORK, str(make_bert())], capture_output=True, text=True, check=False, timeout=120
    )
    assert 0 == done.returncode, done.stderr
