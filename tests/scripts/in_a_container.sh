#!/usr/bin/env bash
# The Containerfile of tinyllm/api/README.md, step by step without a container engine: the wheel in
# an environment of its own, run from an empty folder as nobody, on a root that can't be written.
#
#     tests/scripts/in_a_container.sh
#
# Needs bubblewrap (`apt-get install bubblewrap`). Weights are fetched and kernels compiled anew. The
# last line says how long it took from start to ready.
set -eu
cd "$(dirname "$0")/../.."

work=$(mktemp -d /var/tmp/tinyllm-container.XXXXXX) # not in /tmp, which is empty inside
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
unset PYTHONPATH NUMBA_CACHE_DIR
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_PROGRESS_BAR=off TINYLLM_WEIGHTS=$work/weights

# What `podman build` does.
"${PYTHON:-python3}" -m venv "$work/tinyllm"
export PATH=$work/tinyllm/bin:$PATH
git clone -q . "$work/source"
pip wheel -q --no-deps -w "$work/dist" "$work/source"
pip install -q "$work"/dist/tinyllm-*.whl
mkdir "$work/empty" && cd "$work/empty"
tinyllm pull smollm2-135m-instruct
tinyllm pull smollm2-135m-vision
tinyllm compile
[ -z "$(ls -A "$work/empty")" ] || { echo "something was written into the current folder"; exit 1; }

# What `podman run --read-only --tmpfs /tmp` does.
port=$(python -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')
start=$SECONDS
TINYLLM_API_KEY=secret bwrap --ro-bind / / --dev /dev --proc /proc --tmpfs /tmp \
    --unshare-user --uid 65534 --gid 65534 --unshare-pid --as-pid-1 --die-with-parent --chdir "$work/empty" --setenv HOME /nonexistent \
    tinyllm serve --host 0.0.0.0 --port "$port" >"$work/log" 2>&1 &
server=$!
for _ in $(seq 200); do
    grep -q "ready on" "$work/log" && break
    kill -0 $server 2>/dev/null || break
    sleep 0.5
done
took=$((SECONDS - start))
answer=$(curl -sS --max-time 60 "http://127.0.0.1:$port/v1/chat/completions" \
    -H 'Content-Type: application/json' -H 'Authorization: Bearer secret' -d '{
        "model": "smollm2-135m-instruct", "temperature": 0,
        "messages": [{"role": "user", "content": "What is the capital of France?"}]}' || true)
pkill -TERM -P $server || true # bubblewrap passes no signals on
wait $server || true
cat "$work/log"
printf '%s\n' "$answer"
[[ $answer == *Paris* ]]
echo "in a container: ready after $took s, as nobody, on a root that can't be written"
