"""How many threads the kernels take unless told: a core each, of those that are ours and quick.

Two threads on one core share its multipliers, and a slow core makes the others wait at the end of
every region. A container may have less processor time than the machine has cores.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

SYSTEM = Path("/sys")
PROCESS = Path("/proc/self/cgroup")
MUCH_SLOWER = 0.8  # of the quickest core's clock: an efficiency core of a hybrid processor


def default_threads() -> tuple[int, str]:
    """The number, and why: "2 of 4 logical processors: one a core"."""
    logical = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    n = len(logical) or os.cpu_count() or 1
    cores, reason = n, "one a processor"
    if logical and (SYSTEM / "devices/system/cpu").is_dir():
        quick = quick_cores(logical)
        if 0 < quick < n:
            cores, reason = quick, "one a core that computes at full speed"
    elif sys.platform == "darwin":
        quick = performance_cores_of_mac()
        if 0 < quick < n:
            cores, reason = quick, "one a performance core"
    limit = container_limit()
    if limit is not None and limit < cores:
        cores, reason = max(1, int(limit)), f"the container may use {limit:g}"
    return cores, f"{cores} of {n} processors, {reason}"


def quick_cores(logical: Iterable[int]) -> int:
    """Cores among these processors, second threads and efficiency cores aside; 0 if unknown."""
    clocks: dict[str, int] = {}
    for cpu in logical:
        folder = SYSTEM / f"devices/system/cpu/cpu{cpu}"
        siblings = _text(folder / "topology/thread_siblings_list")
        if not siblings:
            return 0
        clock = _text(folder / "cpufreq/cpuinfo_max_freq")
        clocks[siblings] = int(clock) if clock.isdigit() else 0
    top = max(clocks.values(), default=0)
    return sum(clock >= MUCH_SLOWER * top for clock in clocks.values())


def performance_cores_of_mac() -> int:
    """`hw.perflevel0.physicalcpu`; 0 where there is no such thing, as on Intel's."""
    command = ["/usr/sbin/sysctl", "-n", "hw.perflevel0.physicalcpu"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=5)
        return int(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        return 0


def container_limit() -> float | None:
    """Processors' worth of time that control groups allow (version 2, then 1); None: all of it."""
    limits = []
    for line in _text(PROCESS).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            folder = SYSTEM / "fs/cgroup" / path.lstrip("/")
            root = SYSTEM / "fs/cgroup"
            for place in (folder, *folder.parents):  # a parent may allow less
                quota, _, period = _text(place / "cpu.max").partition(" ")
                if quota.isdigit() and period.isdigit():
                    limits.append(int(quota) / int(period))
                if place == root:
                    break
        elif "cpu" in controllers.split(","):
            base = SYSTEM / "fs/cgroup/cpu"
            for place in (base / path.lstrip("/"), base):
                quota = _text(place / "cpu.cfs_quota_us")
                period = _text(place / "cpu.cfs_period_us")
                if quota.isdigit() and period.isdigit():
                    limits.append(int(quota) / int(period))
    return min(limits, default=None)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
