"""How many threads a machine is given, on machines made of files."""

from __future__ import annotations

from pathlib import Path

import pytest

from tinyllm.kernels import cores


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cores, "SYSTEM", tmp_path / "sys")
    monkeypatch.setattr(cores, "PROCESS", tmp_path / "cgroup")
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


def processors(system: Path, monkeypatch: pytest.MonkeyPatch, kinds: dict[str, int]) -> None:
    """Cores by their logical processors ("0-1"), each with its clock."""
    n = 0
    for siblings, clock in kinds.items():
        for cpu in range(int(siblings[0]), int(siblings[-1]) + 1):
            folder = system / f"sys/devices/system/cpu/cpu{cpu}"
            write(folder / "topology/thread_siblings_list", siblings)
            if clock:
                write(folder / "cpufreq/cpuinfo_max_freq", str(clock))
            n += 1
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(n)), raising=False)


def test_one_a_core(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    processors(system, monkeypatch, {"0-1": 0, "2-3": 0})
    want = "2 of 4 processors, one a core that computes at full speed"
    assert cores.default_threads() == (2, want)


def test_no_efficiency_cores(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    processors(system, monkeypatch, {"0-1": 5000000, "2-3": 4900000, "4": 3600000, "5": 3600000})
    assert cores.default_threads()[0] == 2


def test_all_that_are_alike(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    processors(system, monkeypatch, {"0": 0, "1": 0})
    assert cores.default_threads() == (2, "2 of 2 processors, one a processor")


@pytest.mark.parametrize(
    ("group", "file", "limit"),
    [
        ("0::/box/inner", {"box/cpu.max": "150000 100000", "box/inner/cpu.max": "max 100000"}, 1.5),
        ("0::/", {"cpu.max": "max 100000"}, None),
        ("0::/../..", {"cpu.max": "50000 100000"}, 0.5),
        (
            "4:cpu,cpuacct:/box",
            {"cpu/box/cpu.cfs_quota_us": "200000", "cpu/box/cpu.cfs_period_us": "100000"},
            2.0,
        ),
        ("4:memory:/box", {}, None),
    ],
)
def test_what_a_container_may_use(
    system: Path, monkeypatch: pytest.MonkeyPatch, group: str, file: dict[str, str], limit: float
) -> None:
    write(system / "cgroup", group)
    for name, text in file.items():
        write(system / "sys/fs/cgroup" / name, text)
    assert cores.container_limit() == limit
    processors(system, monkeypatch, {"0": 0, "1": 0, "2": 0, "3": 0})
    n, why = cores.default_threads()
    assert n == (max(1, int(limit)) if limit else 4)
    assert ("container" in why) == (limit is not None)
