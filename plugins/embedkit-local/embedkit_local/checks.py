"""
What `embedkit doctor` asks this plugin: the devices, the weights of a profile, and the proofs of its loaded model.

Owns the judgement of a machine: gathering stands apart from judging, so that every kind of machine can be tested.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import attrs
import torch

from embedkit.errors import EmbedkitError
from embedkit.protocols import Finding
from embedkit_local.backend import LocalBackend
from embedkit_local.devices import choose_device, choose_dtype, has_native_bfloat16, has_nvidia_driver
from embedkit_local.linear import Product, build_product, can_prepack
from embedkit_local.memory import count_cpus, count_parameters, find_free_memory
from embedkit_local.model_files import find_hub_cache, find_missing, find_place, read_model
from embedkit_local.options import LocalOptions
from embedkit_local.proof import examine

if TYPE_CHECKING:
    from embedkit.profile import Profile
    from embedkit.protocols import Subject
    from embedkit_local.model_files import ModelFiles

_PACKAGES = ("torch", "transformers", "sentence-transformers", "tokenizers", "huggingface_hub")
_GET_TORCH = "pytorch.org/get-started"
_N = 512
"""Rows and columns of the matrices that a device is tried with."""

_TRIED_S = 0.15
_TRIED_TOKENS = 100
_SLOW_TEXTS_PER_S = 5.0
_BILLION = 1e9


@attrs.frozen(kw_only=True)
class Kernel:
    """
    Hold how a device did at a real piece of work.

    Attributes:
        device: cpu, cuda:N or mps.

        name: What the maker calls it; empty when unknown.

        flops: Operations a second in a float32 matrix product, by precision; a precision that failed is missing.

        error: What went wrong; empty when nothing did.
    """

    device: str
    name: str = ""
    flops: Mapping[str, float] = attrs.field(factory=dict)
    error: str = ""


@attrs.frozen(kw_only=True)
class Machine:
    """
    Hold what torch and this machine make of each other.

    Attributes:
        torch: Torch's version.

        built_for: The version of CUDA that this torch was built for; None for a build without CUDA.

        has_driver: Whether an NVIDIA driver is there.

        sees_cuda: Whether torch can use CUDA.

        built_for_mps: Whether this torch was built for Apple silicon's GPU.

        sees_mps: Whether torch can use that.

        is_apple_silicon: Whether this machine has one.

        n_threads: Threads of one operation.

        n_cpus: Processors that this process may use.

        thread_variables: Variables that limit threads, as they are set.

        native_bfloat16: Device -> whether it computes bfloat16 natively.

        kernels: One for each device.
    """

    torch: str
    built_for: str | None = None
    has_driver: bool = False
    sees_cuda: bool = False
    built_for_mps: bool = False
    sees_mps: bool = False
    is_apple_silicon: bool = False
    n_threads: int = 1
    n_cpus: int = 1
    thread_variables: Mapping[str, str] = attrs.field(factory=dict)
    native_bfloat16: Mapping[str, bool] = attrs.field(factory=dict)
    kernels: tuple[Kernel, ...] = ()


def check_devices(subject: Subject) -> Iterator[Finding]:
    """Run a real kernel on each device, and say which one the profile gets and what keeps it from a better one."""
    if subject.profile is not None and not isinstance(subject.options, LocalOptions):
        return
    yield Finding(level="ok", sentence=", ".join(f"{name} {_find_version(name)}" for name in _PACKAGES))
    machine = read_machine()
    yield from judge_machine(machine)
    if subject.profile is not None:
        yield from judge_choice(machine, subject.profile, subject.options)


def check_weights(subject: Subject) -> Iterator[Finding]:
    """Say, before anything is loaded, where a profile's weights are, whether they are whole, and fit into memory."""
    if subject.profile is None or not isinstance(subject.options, LocalOptions):
        return
    yield from judge_hub(os.environ)
    place = find_place(subject.profile.model, subject.options.revision, hub_cache=find_hub_cache(os.environ))
    missing = ["all of them"] if place is None else find_missing(place) if place.repository else []
    if place is None or missing:
        yield judge_absence(subject.profile, missing, os.environ)
        return
    # Raises what is wrong with a damaged directory.
    files = read_model(place, trust_remote_code=subject.options.trust_remote_code)
    n_parameters = count_parameters(files)
    yield Finding(
        level="ok",
        sentence=f"The weights are at {place.directory}: {n_parameters / _BILLION:.3g} billion parameters, whole.",
    )
    yield from judge_fit(files, subject.profile, subject.options, n_parameters)


def check_proof(subject: Subject) -> Iterator[Finding]:
    """Prove what can be measured on the loaded model."""
    backend = subject.backend
    if not isinstance(backend, LocalBackend):
        return
    if backend.way:
        yield Finding(level="ok", sentence=f"The way it is run: {backend.way}.")
    for note in backend.notes:
        yield Finding(level="note", sentence=f"Not taken: {note}")
    if (loaded := backend.loaded) is not None:
        # The profile with its reference: doctor loads without, so that a mismatch does not end the load.
        yield from examine(attrs.evolve(loaded, profile=subject.profile or loaded.profile), backend)


def read_machine() -> Machine:
    """Ask torch and the system, and try each device."""
    sees_cuda, mps = torch.cuda.is_available(), torch.backends.mps
    devices = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count() if sees_cuda else 0))]
    devices += ["mps"] if mps.is_available() else []
    kernels = tuple(try_device(device) for device in devices)
    return Machine(
        torch=torch.__version__,
        built_for=torch.version.cuda,
        has_driver=has_nvidia_driver(),
        sees_cuda=sees_cuda,
        built_for_mps=mps.is_built(),
        sees_mps=mps.is_available(),
        is_apple_silicon=platform.system() == "Darwin" and platform.machine() == "arm64",
        n_threads=torch.get_num_threads(),
        n_cpus=count_cpus(),
        thread_variables={
            name: os.environ[name] for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if os.environ.get(name)
        },
        native_bfloat16={
            kernel.device: has_native_bfloat16(torch.device(kernel.device)) for kernel in kernels if not kernel.error
        },
        kernels=kernels,
    )


def try_device(device: str) -> Kernel:
    """Multiply matrices on a device, and compare the product with one that is known."""
    name = str(_read_cpu().get("cpu_name", "")) if device == "cpu" else ""
    flops: dict[str, float] = {}
    try:
        if device.startswith("cuda"):
            name = torch.cuda.get_device_name(device)
        for dtype in (torch.float32, torch.bfloat16):
            ones = torch.ones((_N, _N), dtype=dtype, device=device)
            product = float((ones @ ones)[-1, -1])
            if product != _N:
                return Kernel(device=device, name=name, error=f"a matrix product came out as {product}, not {_N}")
            # As the engine computes: with weights laid out beforehand where that is there, which can be twice as fast.
            prepack = device == "cpu" and can_prepack(dtype)
            flops[str(dtype).removeprefix("torch.")] = max(
                _measure_flops(build_product(ones, None, prepack=each), ones) for each in {False, prepack}
            )
    except Exception as error:  # noqa: BLE001  # drivers raise nearly anything
        reason = str(error).strip().partition("\n")[0]
        return Kernel(device=device, name=name, flops=flops, error=f"{type(error).__name__}: {reason}")
    return Kernel(device=device, name=name, flops=flops)


def _measure_flops(product: Product, matrix: torch.Tensor, *, clock: Callable[[], float] = time.perf_counter) -> float:
    best, begun = float("inf"), clock()
    # The best of many: on a busy machine most of them are disturbed.
    while clock() - begun < _TRIED_S:
        started = clock()
        # Reading one number waits for the device.
        float(product(matrix)[0, 0])
        best = min(best, clock() - started)
    return 2 * len(matrix) ** 3 / max(best, 1e-9)


def _read_cpu() -> Mapping[str, object]:
    read = getattr(torch.cpu, "get_capabilities", None)
    return read() if read is not None else {}


def judge_machine(machine: Machine) -> Iterator[Finding]:
    """Say of each device whether it works, and of a GPU that stands idle why."""
    for kernel in machine.kernels:
        shown = f"{kernel.device}{f' ({kernel.name})' if kernel.name else ''}"
        if kernel.error:
            yield Finding(
                level="problem",
                sentence=f"{shown} is there and fails at a matrix product: {kernel.error}",
                hint=f"reinstall torch by the command that {_GET_TORCH} gives for this GPU and its driver; until then "
                "EMBEDDING_DEVICE=cpu",
            )
            continue
        rates = ", ".join(f"{rate / _BILLION:,.0f} GFLOP/s in {name}" for name, rate in kernel.flops.items())
        native = "native" if machine.native_bfloat16.get(kernel.device) else "not native"
        yield Finding(level="ok", sentence=f"{shown} works: {rates} (bfloat16 is {native})")
    yield from _judge_cuda(machine)
    if machine.is_apple_silicon and not machine.sees_mps:
        how = "this macOS is too old for it" if machine.built_for_mps else "this torch is built without it"
        yield Finding(
            level="problem",
            sentence=f"This Mac has a GPU, and torch {machine.torch} cannot use it: {how}.",
            hint="update macOS"
            if machine.built_for_mps
            else "reinstall torch for arm64: python -m pip install --force-reinstall torch",
        )
    yield _judge_threads(machine)


def _judge_cuda(machine: Machine) -> Iterator[Finding]:
    if machine.sees_cuda:
        return
    if not machine.has_driver:
        yield Finding(level="note", sentence=f"No NVIDIA driver is on this machine; torch is {machine.torch}.")
    elif machine.built_for is None:
        yield Finding(
            level="problem",
            sentence=f"An NVIDIA driver is on this machine, and torch {machine.torch} is a build for the CPU: models "
            "run many times slower.",
            hint="python -m pip uninstall torch, then install it by the command that "
            f"{_GET_TORCH} gives for your CUDA version",
        )
    else:
        yield Finding(
            level="problem",
            sentence=f"An NVIDIA driver is on this machine, and torch {machine.torch}, built for CUDA "
            f"{machine.built_for}, finds no usable GPU: the driver is too old for it, or this process sees no GPU.",
            hint="nvidia-smi shows the CUDA version that the driver allows: install torch for that one "
            f"({_GET_TORCH}); and check CUDA_VISIBLE_DEVICES",
        )


def _judge_threads(machine: Machine) -> Finding:
    text = f"torch uses {machine.n_threads} threads for one operation, and this process may use {machine.n_cpus} CPUs"
    variables = ", ".join(f"{name}={value}" for name, value in machine.thread_variables.items())
    # Hyper-threads come in pairs, and torch takes one of each.
    if machine.n_threads * 2 < machine.n_cpus:
        return Finding(
            level="problem",
            sentence=f"{text}: most of the machine stands idle{f' ({variables})' if variables else ''}.",
            hint=f"unset {' and '.join(machine.thread_variables)}"
            if variables
            else f"OMP_NUM_THREADS={machine.n_cpus}",
        )
    if machine.n_threads > machine.n_cpus:
        return Finding(
            level="problem",
            sentence=f"{text}: threads wait for one another{f' ({variables})' if variables else ''}.",
            hint=f"OMP_NUM_THREADS={machine.n_cpus}",
        )
    return Finding(level="ok", sentence=f"{text}.")


def judge_choice(machine: Machine, profile: Profile, options: LocalOptions) -> Iterator[Finding]:
    """Say which device a profile gets, and whether a better one stands idle."""
    try:
        # What it would log about an idle GPU is said in the findings.
        device = choose_device(profile.device, probe=lambda: False)
    except EmbedkitError as error:
        yield Finding(level="problem", sentence=error.problem, hint=error.hint, prevents_loading=True)
        return
    dtype = str(choose_dtype(options.dtype, device)).removeprefix("torch.")
    settings = f"device = {profile.device!r}, dtype = {options.dtype!r}"
    sentence = f"Profile {profile.name!r} goes to {device}, in {dtype} where that agrees with float32 ({settings})."
    if dtype == "float32":
        sentence = f"Profile {profile.name!r} goes to {device}, in float32 ({settings})."
    better = [kernel.device for kernel in machine.kernels if kernel.device != "cpu" and not kernel.error]
    if device.type == "cpu" and better:
        yield Finding(
            level="problem",
            sentence=f"{sentence} {better[0]} works and stands idle.",
            hint="EMBEDDING_DEVICE=auto, or take the device out of the profile",
        )
        return
    yield Finding(level="ok", sentence=sentence)
    counted = "cuda:0" if str(device) == "cuda" else str(device)
    if device.type == "cuda" and dtype == "float32" and machine.native_bfloat16.get(counted, False):
        yield Finding(
            level="note",
            sentence="This GPU computes bfloat16 natively, several times faster than float32.",
            hint=f'set dtype = "auto" in [profiles.{profile.name}.options]',
        )


def judge_hub(environ: Mapping[str, str]) -> Iterator[Finding]:
    """Say where models from the hub are kept, and whether new ones may be fetched."""
    cache = find_hub_cache(environ)
    settings = [
        f"{name}={environ[name]}"
        for name in ("HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_ENDPOINT")
        if environ.get(name)
    ]
    shown = f" ({', '.join(settings)})" if settings else ""
    yield Finding(
        level="ok",
        sentence=f"Models of the hub are kept in {cache}{'' if cache.is_dir() else ', which is not there yet'}{shown}.",
    )


def judge_absence(profile: Profile, missing: list[str], environ: Mapping[str, str]) -> Finding:
    """Say that a hub model is not, or not wholly, on this machine."""
    sentence = f"The weights of {profile.model!r} are not on this machine"
    sentence += "." if missing == ["all of them"] else f" wholly: {', '.join(missing[:3])} is missing."
    fetch = f"embedkit pull {profile.name}"
    if _is_set(environ.get("HF_HUB_OFFLINE")):
        return Finding(
            level="problem",
            sentence=f"{sentence} HF_HUB_OFFLINE forbids fetching them.",
            hint=f"unset HF_HUB_OFFLINE, then: {fetch}",
            prevents_loading=True,
        )
    return Finding(
        level="problem", sentence=f"{sentence} The first use would fetch them.", hint=fetch, prevents_loading=True
    )


def judge_fit(
    files: ModelFiles, profile: Profile, options: LocalOptions, n_parameters: int, *, free_bytes: int | None = None
) -> Iterator[Finding]:
    """
    Compare the memory that a model needs with what is free, and its work with what the device does in a second.

    Args:
        files: The model's files.

        profile: Its device.

        options: Its dtype.

        n_parameters: Numbers in the weights.

        free_bytes: What is free on the device; asked for, unless given.
    """
    try:
        device = choose_device(profile.device, probe=lambda: False)
    except EmbedkitError:
        return
    dtype = choose_dtype(options.dtype, device)
    need = n_parameters * dtype.itemsize
    if free_bytes is None:
        free_bytes = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else find_free_memory()
    words = f"The weights take {_show_gb(need)} in {str(dtype).removeprefix('torch.')}"
    if free_bytes is None:
        yield Finding(level="note", sentence=f"{words}; this system does not tell how much memory is free.")
    elif need > free_bytes:
        yield Finding(
            level="problem",
            sentence=f"{words}, and {_show_gb(free_bytes)} are free on {device}: loading would fail, or swap.",
            hint=_mend_memory(profile, dtype),
            prevents_loading=True,
        )
    else:
        yield Finding(level="ok", sentence=f"{words}, and {_show_gb(free_bytes)} are free on {device}.")
    yield from judge_speed(files, try_device(str(device)), str(dtype).removeprefix("torch."))


def judge_speed(files: ModelFiles, kernel: Kernel, dtype: str) -> Iterator[Finding]:
    """Estimate texts a second: a token costs two operations a parameter; rows that are looked up cost nothing."""
    hidden, vocabulary = (files.transformer.get(key) for key in ("hidden_size", "vocab_size"))
    flops = kernel.flops.get(dtype)
    if not flops or not isinstance(hidden, int) or not isinstance(vocabulary, int):
        return
    n_working = max(0, count_parameters(files) - hidden * vocabulary)
    rate = flops / max(1, 2 * n_working * _TRIED_TOKENS)
    sentence = (
        f"About {_show_rate(rate)} texts of {_TRIED_TOKENS} tokens a second are the most that {kernel.device} can do "
        "with this model"
    )
    if kernel.device == "cpu" and rate < _SLOW_TEXTS_PER_S:
        yield Finding(
            level="problem",
            sentence=f"{sentence}: it computes with {n_working / _BILLION:.2g} billion parameters, and this CPU does "
            f"{flops / _BILLION:,.0f} GFLOP/s in {dtype}.",
            hint="a machine with a GPU, or a smaller model: embedkit profiles lists them, embedkit use NAME switches",
        )
    else:
        yield Finding(level="ok", sentence=f"{sentence} (estimated).")


def _mend_memory(profile: Profile, dtype: torch.dtype) -> str:
    half = f'set dtype = "bfloat16" in [profiles.{profile.name}.options], or ' if dtype == torch.float32 else ""
    return f"{half}choose a smaller model: embedkit use NAME (embedkit profiles lists them)"


def _show_rate(rate: float) -> str:
    return f"{rate:.2g}" if rate < 10 else f"{rate:,.0f}"  # noqa: PLR2004  # two digits


def _show_gb(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.2g} GB"


def _find_version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def _is_set(value: str | None) -> bool:
    return (value or "").strip().upper() in {"1", "ON", "YES", "TRUE"}
