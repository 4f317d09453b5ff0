#!/usr/bin/env bash
# Run a Python command as on an Arm machine: real aarch64 code, under qemu's emulation of a processor.
#
#     tests/scripts/on_arm.sh ROOT -m tinyllm verify      # ROOT is made if it isn't there
#
# Python comes from Debian, packages from the index, all of them for arm64 and all into ROOT; the
# system is left alone but for qemu itself. Needs apt-get, pip for Python 3.11 or newer, and root
# once, if qemu-user-static isn't installed yet.
set -eu
root=$(mkdir -p "$1" && cd "$1" && pwd)
shift
here=$(cd "$(dirname "$0")/../.." && pwd)

if [ ! -e "$root/ready" ]; then
    command -v qemu-aarch64-static >/dev/null || {
        apt-get update -q && apt-get install -q -y --no-install-recommends qemu-user-static
    } >"$root/qemu.log" 2>&1 || { tail "$root/qemu.log" >&2; exit 1; }
    # apt for another processor, in folders of its own.
    mkdir -p "$root"/apt/{lists,cache,etc}/partial "$root/apt/cache/archives/partial" "$root/sys"
    : >"$root/apt/status"
    apt=(apt-get -q -o APT::Architecture=arm64 -o APT::Architectures=arm64
        -o Dir::State="$root/apt" -o Dir::State::lists="$root/apt/lists"
        -o Dir::State::status="$root/apt/status" -o Dir::Cache="$root/apt/cache"
        -o APT::Sandbox::User=root)
    { "${apt[@]}" update &&
        "${apt[@]}" install -y --download-only --no-install-recommends python3.11 libstdc++6; } \
        >"$root/apt.log" 2>&1 || { tail "$root/apt.log" >&2; exit 1; }
    for package in "$root"/apt/cache/archives/*.deb; do
        dpkg-deb -x "$package" "$root/sys"
    done
    # What pyproject.toml asks for, and what tests need of a machine without a network.
    dependencies=$(python3 -c 'import sys, tomllib
print(*tomllib.load(open(sys.argv[1], "rb"))["project"]["dependencies"], sep="\n")' \
        "$here/pyproject.toml")
    printf '%s\n' "$dependencies" pytest pytest-xdist hypothesis >"$root/requirements.txt"
    python3 -m pip install -q --target "$root/site" --only-binary=:all: --python-version 3.11 \
        --implementation cp --platform manylinux2014_aarch64 --platform manylinux_2_27_aarch64 \
        --platform manylinux_2_28_aarch64 --platform any -r "$root/requirements.txt" \
        >"$root/pip.log" 2>&1 || { tail "$root/pip.log" >&2; exit 1; }
    touch "$root/ready"
fi
export PYTHONPATH="$here:$root/site" PYTHONDONTWRITEBYTECODE=1 LD_LIBRARY_PATH=
export NUMBA_CACHE_DIR="${ARM_KERNELS:-$root/kernels}"
exec qemu-aarch64-static -cpu "${ARM_PROCESSOR:-max,pauth-impdef=on}" -L "$root/sys" \
    "$root/sys/usr/bin/python3.11" "$@"
