"""Several replicas behind one address, on Ray Serve.

    pip install "tinyllm[ray]"
    python -m tinyllm.api.ray_serve --replicas 4 --port 8000 -- --dtype q8 --threads 2

What follows `--` are the flags of `python server.py`. The app is a plain ASGI factory without
hidden globals, so a replica is one call of it. Requests that carry the same X-Session-ID go to
the same replica, by consistent hashing, and find their prefix cached there; others are spread.
"""

from __future__ import annotations

import argparse
import sys
import time

from ray import serve
from ray.serve.config import HTTPOptions, RequestRouterConfig
from starlette.types import ASGIApp

from tinyllm.api.house.app import create_app
from tinyllm.api.house.loading import load_models
from tinyllm.api.house.settings import Settings, parse

ROUTER = "ray.serve.experimental.consistent_hash_router:ConsistentHashRouter"


def deployment(settings: Settings, replicas: int) -> serve.Application:
    """The application for `serve.run`: that many replicas, each with a model of its own."""

    def build() -> ASGIApp:
        models = load_models(settings)  # before the replica reports that it is ready
        return create_app(settings, lambda: models)

    replica = serve.deployment(
        serve.ingress(build)(),
        name="tinyllm",
        num_replicas=replicas,
        # Our own queue decides who waits and who is refused, so Serve hands on all that may wait.
        max_ongoing_requests=settings.max_batch + settings.max_queue,
        ray_actor_options={"num_cpus": settings.threads or 1},
        request_router_config=RequestRouterConfig(request_router_class=ROUTER),
        graceful_shutdown_timeout_s=settings.drain_timeout,
    )
    return replica.bind()


def main() -> None:
    """Start Ray on this machine (or join the cluster that RAY_ADDRESS names) and serve."""
    own, _, flags = " ".join(sys.argv[1:]).partition("-- ")
    parser = argparse.ArgumentParser(prog="python -m tinyllm.api.ray_serve", description=__doc__)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--port", type=int, default=8000)
    args = parser.parse_args(own.split())
    serve.start(http_options=HTTPOptions(port=args.port))
    serve.run(deployment(parse(flags.split()), args.replicas), route_prefix="/")
    while True:
        time.sleep(3600)


if __name__ == "__main__":
    main()
