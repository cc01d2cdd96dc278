"""What `doctor` says of machines that this one is not, and of weights before they are loaded."""

import attrs
import pytest
from embedkit_local.checks import (
    Kernel,
    Machine,
    check_devices,
    check_proof,
    check_weights,
    judge_absence,
    judge_choice,
    judge_fit,
    judge_hub,
    judge_machine,
    judge_speed,
    read_machine,
    try_device,
)
from embedkit_local.memory import count_cpus, count_parameters, find_free_memory, find_group_room
from embedkit_local.model_files import Place, read_model
from embedkit_local.options import LocalOptions
from embedkit_local.plugin import embedkit_checks

from embedkit.errors import ModelLoadError
from embedkit.profile import Profile
from embedkit.protocols import Subject

CPU = Kernel(device="cpu", flops={"float32": 1e11, "bfloat16": 3e11})
GPU = Kernel(device="cuda:0", name="Some GPU", flops={"float32": 5e13, "bfloat16": 5e14})
PLAIN = Machine(torch="2.13.0+cpu", n_threads=4, n_cpus=8, kernels=(CPU,))


def list_problems(findings):
    """Give sentence and hint of each problem; a problem without a hint mends nothing."""
    problems = [(one.sentence, one.hint) for one in findings if one.level == "problem"]
    assert all(hint for _, hint in problems)
    return problems


def subject_of(model, backend=None, options=None, **settings):
    """Give what a check is handed."""
    return Subject(
        profile=Profile(model=str(model), device="cpu", **settings), options=options or LocalOptions(), backend=backend
    )


# Devices


def test_a_machine_without_a_gpu_is_no_problem():
    """What is not there cannot be mended."""
    findings = list(judge_machine(PLAIN))
    assert [] == list_problems(findings)
    assert "No NVIDIA driver is on this machine; torch is 2.13.0+cpu." in [one.sentence for one in findings]
    assert "cpu works: 100 GFLOP/s in float32, 300 GFLOP/s in bfloat16 (bfloat16 is not native)" == findings[0].sentence


def test_a_driver_beside_a_torch_without_cuda_is_the_first_thing_to_mend():
    """Fault 75. The usual reason for one text a second."""
    ((sentence, hint),) = list_problems(judge_machine(attrs.evolve(PLAIN, has_driver=True)))
    assert "An NVIDIA driver is on this machine, and torch 2.13.0+cpu is a build for the CPU" in sentence
    assert "python -m pip uninstall torch" in hint
    assert "pytorch.org/get-started" in hint


def test_a_torch_for_another_cuda_is_named_with_its_version():
    """The driver is there, the build has CUDA, and they do not meet."""
    machine = attrs.evolve(PLAIN, torch="2.13.0+cu130", has_driver=True, built_for="13.0")
    ((sentence, hint),) = list_problems(judge_machine(machine))
    assert "built for CUDA 13.0, finds no usable GPU" in sentence
    assert "nvidia-smi shows the CUDA version" in hint
    assert "CUDA_VISIBLE_DEVICES" in hint


def test_a_gpu_that_fails_at_real_work_is_named():
    """Seen by the driver, and without kernels for it in this torch."""
    broken = attrs.evolve(GPU, flops={}, error="AcceleratorError: no kernel image is available")
    machine = attrs.evolve(PLAIN, has_driver=True, sees_cuda=True, kernels=(CPU, broken))
    ((sentence, hint),) = list_problems(judge_machine(machine))
    assert "cuda:0 (Some GPU) is there and fails at a matrix product: AcceleratorError: no kernel image" in sentence
    assert "EMBEDDING_DEVICE=cpu" in hint


@pytest.mark.parametrize(
    ("built", "why", "mend"),
    [
        (True, "this macOS is too old for it", "update macOS"),
        (False, "this torch is built without it", "reinstall torch for arm64"),
    ],
)
def test_an_idle_gpu_of_a_mac_is_named(built, why, mend):
    """The two ways in which MPS is out of reach."""
    ((sentence, hint),) = list_problems(judge_machine(attrs.evolve(PLAIN, is_apple_silicon=True, built_for_mps=built)))
    assert why in sentence
    assert mend in hint


@pytest.mark.parametrize(
    ("n_threads", "n_cpus", "variables", "sentence", "hint"),
    [
        (
            1,
            16,
            {"OMP_NUM_THREADS": "1"},
            "most of the machine stands idle (OMP_NUM_THREADS=1)",
            "unset OMP_NUM_THREADS",
        ),
        (1, 16, {}, "most of the machine stands idle.", "OMP_NUM_THREADS=16"),
        (32, 2, {}, "threads wait for one another", "OMP_NUM_THREADS=2"),
    ],
    ids=["limited by a variable", "limited otherwise", "more than a container allows"],
)
def test_wrong_numbers_of_threads_are_named(n_threads, n_cpus, variables, sentence, hint):
    """With the variable that says so, where one does."""
    machine = attrs.evolve(PLAIN, n_threads=n_threads, n_cpus=n_cpus, thread_variables=variables)
    ((said, mend),) = list_problems(judge_machine(machine))
    assert f"torch uses {n_threads} threads for one operation, and this process may use {n_cpus} CPUs" in said
    assert sentence in said
    assert hint == mend


def test_one_thread_for_each_core_of_two_hyper_threads_is_right():
    """Torch's own default."""
    assert [] == list_problems(judge_machine(attrs.evolve(PLAIN, n_threads=8, n_cpus=16)))


def test_a_profile_on_the_cpu_beside_a_working_gpu_is_a_problem():
    """Somebody wrote the device down on another machine."""
    machine = attrs.evolve(PLAIN, sees_cuda=True, kernels=(CPU, GPU))
    profile = Profile(name="mine", model="m", device="cpu")
    ((sentence, hint),) = list_problems(judge_choice(machine, profile, LocalOptions(dtype="float32")))
    assert (
        "Profile 'mine' goes to cpu, in float32 (device = 'cpu', dtype = 'float32'). cuda:0 works and stands idle."
        == sentence
    )
    assert "EMBEDDING_DEVICE=auto" in hint
    assert [] == list_problems(judge_choice(PLAIN, profile, LocalOptions()))


@pytest.mark.parametrize("device", ["cuda:99", "meta", "Cuda"])
def test_a_device_that_is_not_there_prevents_loading(device):
    """Fault 74."""
    (finding,) = judge_choice(PLAIN, Profile(model="m", device=device), LocalOptions())
    assert ("problem", True) == (finding.level, finding.prevents_loading)
    assert device in finding.sentence


def test_this_machine_does_real_work():
    """The kernel that is run is one that can fail: a device of the name "meta" gives no numbers."""
    machine = read_machine()
    (cpu, *_) = machine.kernels
    assert ("cpu", "") == (cpu.device, cpu.error)
    assert cpu.flops["float32"] > 1e6
    assert "" != try_device("meta").error


def test_devices_are_examined_without_a_profile_and_not_for_another_provider():
    """While the configuration is wrong the devices can still be examined; for a server's profile they do not matter."""
    assert any("threads for one operation" in one.sentence for one in check_devices(Subject()))
    assert [] == list(check_devices(Subject(profile=Profile(provider="openai", model="m"), options=object())))


# Weights and memory


def test_weights_that_are_there_are_counted_and_compared_with_the_memory(make_bert):
    """Whole, their number, and whether they fit."""
    directory = make_bert()
    findings = list(check_weights(subject_of(directory)))
    assert [] == list_problems(findings)
    said = " ".join(one.sentence for one in findings)
    assert f"The weights are at {directory}" in said
    assert "are free on cpu" in said


def test_a_damaged_directory_is_refused_before_loading(make_bert):
    """Fault 71. What the loader would say."""
    directory = make_bert()
    weights = directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelLoadError, match="is damaged"):
        list(check_weights(subject_of(directory)))


@pytest.mark.parametrize(
    ("environ", "sentence", "hint"),
    [
        ({}, "The first use would fetch them.", "embedkit pull far"),
        (
            {"HF_HUB_OFFLINE": "1"},
            "HF_HUB_OFFLINE forbids fetching them.",
            "unset HF_HUB_OFFLINE, then: embedkit pull far",
        ),
    ],
    ids=["online", "offline"],
)
def test_weights_that_are_not_here_come_with_the_command_that_fetches_them(environ, sentence, hint):
    """Fault 70. Nothing is fetched by an examination."""
    finding = judge_absence(Profile(name="far", model="o/far"), ["all of them"], environ)
    assert (f"The weights of 'o/far' are not on this machine. {sentence}", hint) == (finding.sentence, finding.hint)
    assert finding.prevents_loading
    partly = judge_absence(Profile(name="far", model="o/far"), ["config.json", "model.safetensors"], environ)
    assert "not on this machine wholly: config.json, model.safetensors is missing." in partly.sentence


def test_a_hub_model_that_is_not_here_prevents_loading(monkeypatch):
    """The whole way, with an empty cache."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert [True] == [
        one.prevents_loading for one in check_weights(subject_of("nobody/nowhere")) if one.level == "problem"
    ]


def test_the_cache_is_named_with_the_variables_that_move_it(tmp_path):
    """Where models are, and whether new ones may come."""
    (finding,) = judge_hub({"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"})
    assert f"{tmp_path / 'hub'}, which is not there yet (HF_HOME={tmp_path}, HF_HUB_OFFLINE=1)" in finding.sentence


@pytest.fixture
def bert_files(make_bert):
    """The files of a small model."""
    directory = make_bert()
    return read_model(Place(directory=directory, model="tiny"), trust_remote_code=False)


def test_a_model_that_does_not_fit_is_not_loaded(bert_files):
    """Rather than be killed by the system half-way."""
    profile = Profile(name="big", model="tiny", device="cpu")
    findings = list(judge_fit(bert_files, profile, LocalOptions(dtype="float32"), 2_000_000_000, free_bytes=7 * 10**9))
    ((sentence, hint),) = list_problems(findings)
    assert "The weights take 8 GB in float32, and 7 GB are free on cpu" in sentence
    assert 'set dtype = "bfloat16" in [profiles.big.options], or choose a smaller model' in hint
    assert [True] == [one.prevents_loading for one in findings if one.level == "problem"]
    half = judge_fit(bert_files, profile, LocalOptions(dtype="bfloat16"), 2_000_000_000, free_bytes=7 * 10**9)
    assert [] == list_problems(half)


def test_a_model_that_is_too_much_work_is_named_with_its_rate(bert_files):
    """Why it is at one text a second."""
    big = attrs.evolve(bert_files, transformer={"hidden_size": 0, "vocab_size": 0})
    n_working = count_parameters(big)
    slow = Kernel(device="cpu", flops={"float32": 2.0 * n_working * 100})
    ((sentence, hint),) = list_problems(judge_speed(big, slow, "float32"))
    assert "About 1 texts of 100 tokens a second are the most that cpu can do with this model" in sentence
    assert "embedkit profiles" in hint
    assert [] == list_problems(judge_speed(big, attrs.evolve(slow, device="cuda:0"), "float32"))
    assert [] == list(judge_speed(big, slow, "bfloat16"))


def test_rows_that_are_only_looked_up_cost_nothing(bert_files):
    """The embedding table is most of a small model's weights, and no arithmetic."""
    kernel = Kernel(device="cpu", flops={"float32": 1e11})
    (small,) = judge_speed(bert_files, kernel, "float32")
    (whole,) = judge_speed(attrs.evolve(bert_files, transformer={"hidden_size": 0, "vocab_size": 0}), kernel, "float32")
    rate = lambda finding: float(finding.sentence.split()[1].replace(",", ""))  # noqa: E731  # a word
    assert rate(small) > rate(whole)


def test_a_container_leaves_less_than_the_machine_has(tmp_path):
    """Both versions of control groups; without a limit the machine's own number holds."""
    assert None is find_group_room(tmp_path)
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("5000\n", encoding="ascii")
    (tmp_path / "memory" / "memory.usage_in_bytes").write_text("2000\n", encoding="ascii")
    assert 3000 == find_group_room(tmp_path)
    (tmp_path / "memory.max").write_text("1000\n", encoding="ascii")
    (tmp_path / "memory.current").write_text("1200\n", encoding="ascii")
    assert (0, 0) == (find_group_room(tmp_path), find_free_memory(tmp_path))
    (tmp_path / "memory.max").write_text("max\n", encoding="ascii")
    assert 3000 == find_group_room(tmp_path)


@pytest.mark.parametrize(("quota", "expected"), [("50000 100000", 1), ("max 100000", None), ("rubbish", None)])
def test_a_container_counts_its_own_processors(tmp_path, quota, expected):
    """A quota of half a processor is one."""
    without = count_cpus(tmp_path)
    (tmp_path / "cpu.max").write_text(quota, encoding="ascii")
    assert (expected or without) == count_cpus(tmp_path)


# The offer


def test_the_checks_are_offered_and_only_one_needs_the_model():
    """Devices and weights are examined before anything is loaded."""
    assert [("devices", False), ("weights", False), ("model", True)] == [
        (check.name, check.needs_model) for check in embedkit_checks()
    ]


def test_the_way_a_model_is_run_is_said(make_bert, load):
    """And what was not taken, with why."""
    backend = load(make_bert())
    sentences = [one.sentence for one in check_proof(subject_of("m", backend=backend))]
    assert f"The way it is run: {backend.way}." in sentences
    assert len(backend.notes) == sum(sentence.startswith("Not taken: ") for sentence in sentences)
    assert [] == list(check_proof(Subject(backend=None)))
