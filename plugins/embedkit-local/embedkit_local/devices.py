"""
Choose the device and the precision that a model computes on.

Owns the allowed names, the strictness of an explicit choice, and the warning about a GPU that torch cannot use. Loads
no model.
"""

from __future__ import annotations

import logging
import os
import platform
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from embedkit.errors import DeviceUnavailableError, SettingError

_ALLOWED = re.compile(r"auto|cpu|mps|cuda(:\d+)?")
_WORDS = "auto, cpu, cuda, cuda:N or mps"

_logger = logging.getLogger("embedkit")


def has_nvidia_driver() -> bool:
    """Whether this machine shows an NVIDIA driver, whatever torch makes of it."""
    if os.name == "nt":
        return (Path(os.environ.get("SYSTEMROOT", r"C:\Windows")) / "System32" / "nvcuda.dll").exists()
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None


def choose_device(name: str, *, origin: str = "", probe: Callable[[], bool] = has_nvidia_driver) -> torch.device:
    """
    Give the device that a profile's setting means.

    Args:
        name: auto, cpu, cuda, cuda:N or mps. All but auto are strict.

        origin: Where the setting came from, for the error.

        probe: Whether an NVIDIA driver is there, asked when `auto` finds no GPU.

    Raises:
        SettingError: The name is none of these.
        DeviceUnavailableError: The device is not there, or not usable from this process.
    """
    if not _ALLOWED.fullmatch(name):
        raise SettingError(f"device must be {_WORDS}, not {name!r}.", origin=origin, hint='such as device = "auto"')
    if name == "auto":
        return _choose_automatically(probe)
    device = torch.device(name)
    try:
        # A real allocation: drivers, indexes and forks fail only here.
        torch.zeros(1, device=device)
    except Exception as error:
        raise _explain_unavailable(name, error, origin=origin, probe=probe) from error
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """Give the precision that an option aims at: auto is bfloat16 on a device that has it natively, else float32."""
    if name == "auto":
        return torch.bfloat16 if has_native_bfloat16(device) else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


def has_native_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 in hardware; elsewhere it is slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    questions = ("_is_avx512_bf16_supported", "_is_amx_tile_supported") if device.type == "cpu" else ()
    return any(bool(getattr(torch.cpu, question, bool)()) for question in questions)


def describe_device(device: torch.device) -> str:
    """Name what decides how a device computes: its kind, and the instructions that torch uses on it."""
    if device.type == "cuda":
        return f"cuda {torch.cuda.get_device_name(device)} {torch.cuda.get_device_capability(device)}"
    if device.type == "cpu":
        native = "with" if has_native_bfloat16(device) else "without"
        return f"cpu {platform.machine()} {torch.backends.cpu.get_cpu_capability()} {native} bfloat16"
    return f"{device.type} {platform.machine()}"


def is_fork_error(error: Exception) -> bool:
    """Whether torch says that CUDA cannot be used because the parent of this process used it before the fork."""
    return "forked subprocess" in str(error)


def explain_fork(*, origin: str = "") -> DeviceUnavailableError:
    """Make the error for CUDA in a forked process."""
    return DeviceUnavailableError(
        "The GPU cannot be used in a process that was forked after its parent used it.",
        origin=origin,
        hint='load the model after the fork, or start workers with multiprocessing.get_context("spawn")',
    )


def _choose_automatically(probe: Callable[[], bool]) -> torch.device:
    if torch.cuda.is_available():
        device = torch.device("cuda")
        _logger.info("device auto: cuda (%s)", torch.cuda.get_device_name(0))
        return device
    if torch.backends.mps.is_available():
        _logger.info("device auto: mps")
        return torch.device("mps")
    if probe():
        _logger.warning(
            "An NVIDIA GPU is on this machine and torch %s cannot use it: "
            "the model runs on the CPU, many times slower. %s",
            torch.__version__,
            _explain_build(),
        )
    _logger.info("device auto: cpu (%d threads)", torch.get_num_threads())
    return torch.device("cpu")


def _explain_build() -> str:
    if torch.version.cuda is None:
        return (
            "This torch is a build without CUDA: "
            "reinstall it by the command that pytorch.org/get-started gives for your CUDA version."
        )
    return f"This torch is built for CUDA {torch.version.cuda}: check the driver with nvidia-smi."


def _explain_unavailable(
    name: str, error: Exception, *, origin: str, probe: Callable[[], bool]
) -> DeviceUnavailableError:
    if is_fork_error(error):
        return explain_fork(origin=origin)
    if name.startswith("cuda") and torch.cuda.is_available():
        hint = f"this machine has {torch.cuda.device_count()} CUDA device(s), counted from cuda:0"
    elif name.startswith("cuda") and probe():
        hint = _explain_build()
    else:
        hint = 'set device = "auto" (or EMBEDDING_DEVICE=auto) to take what is there'
    reason = str(error).partition("\n")[0]
    return DeviceUnavailableError(f"device {name!r} is not available: {reason}", origin=origin, hint=hint)
