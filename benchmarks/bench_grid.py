"""How many empty clients per second do the in-process grid and Flower's Ray simulation run?

The same ClientApp and the same round (`strategies.rounds.run_round`) on both. Ray is timed inside its ServerApp, so
that its start, some 10 s, does not count.

    python benchmarks/bench_grid.py [--clients 20000] [--ray-clients 1000] [--json]
"""

import argparse
import json
import os
import subprocess
import sys
import time

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
os.environ.setdefault("RAY_DEDUP_LOGS", "0")

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from simulation.grid import InProcessGrid
from strategies.hello_round import wait_for_nodes
from strategies.rounds import SYSTEM_CLOCK, Clock, RoundSettings, messages_to, run_round

SETTINGS = RoundSettings(quorum_fraction=1.0, deadline_seconds=300, poll_seconds=0.01, pull_batch=256)
MARK = "clients_per_second"


def client_app() -> ClientApp:
    """Return a ClientApp that does nothing."""
    app = ClientApp()

    @app.query("empty")
    def empty(message: Message, _context: Context) -> Message:
        return Message(RecordDict(), reply_to=message)

    return app


def clients_per_second(grid: Grid, clients: int, clock: Clock) -> float:
    """Return the rate of one round over all clients."""
    node_ids = wait_for_nodes(grid, clients, clock=clock)
    began = time.perf_counter()
    messages = messages_to(node_ids, RecordDict(), "query.empty")
    outcome = run_round(grid, messages, lambda count, _: count + 1, 0, SETTINGS, clock=clock)
    assert outcome.value == clients  # noqa: S101 - a benchmark of failures would be fast
    return clients / (time.perf_counter() - began)


def run_on_ray(clients: int) -> None:
    """Print the rate of a round on Ray."""
    from flwr.simulation import run_simulation  # noqa: PLC0415 - Ray takes seconds to load

    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, _context: Context) -> None:
        print(json.dumps({MARK: clients_per_second(grid, clients, SYSTEM_CLOCK)}), flush=True)

    backend = {
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        "init_args": {"include_dashboard": False},
    }
    run_simulation(server_app, client_app(), clients, backend_config=backend)


def ray_rate(clients: int) -> float:
    """Return the rate on Ray, in a process of its own."""
    command = [sys.executable, __file__, "--ray-child", "--ray-clients", str(clients)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)
    line = next(line for line in done.stdout.splitlines() if MARK in line)
    return float(json.loads(line)[MARK])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=20_000)
    parser.add_argument("--ray-clients", type=int, default=1000)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--smoke", action="store_true", help="few clients: checks that it runs")
    parser.add_argument("--ray-child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.ray_child:
        run_on_ray(arguments.ray_clients)
        return
    if arguments.smoke:
        arguments.clients, arguments.ray_clients = 500, 20
    here, same = (
        max(
            clients_per_second(grid := InProcessGrid(client_app(), clients), clients, grid.clock)
            for _ in range(repeats)
        )
        for clients, repeats in ((arguments.clients, 3), (arguments.ray_clients, 20))
    )
    ray = ray_rate(arguments.ray_clients)
    result = {
        f"in_process_clients_per_second_{arguments.clients}": round(here),
        f"in_process_clients_per_second_{arguments.ray_clients}": round(same),
        f"ray_clients_per_second_{arguments.ray_clients}": round(ray),
        "ratio": round(same / ray, 1),
    }
    print(json.dumps(result) if arguments.json else "\n".join(f"{k:40} {v}" for k, v in result.items()))


if __name__ == "__main__":
    main()
