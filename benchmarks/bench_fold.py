"""How fast, and in how much memory, are devices' histograms folded?

64 sites of 2,048 bins per device, on grids that the round fixes. Prints clients per second of the fold
(decode, check, add), of a whole in-process round, and of Flower's FedAvg aggregation of the same replies, and
the peak memory of a process that runs a round of 100 and of 10,000 clients.

    python benchmarks/bench_fold.py [--clients 10000] [--json]
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords

from quantization.fixed_grid import FixedGrid
from quantization.histogram import DyadicHistogram
from simulation.grid import InProcessGrid
from strategies.calibration_round import RangesFold, calibrate_ranges
from strategies.messages import Delivery, DeviceHello, LayerLayout, RangesRequest, SiteLayout
from strategies.records import encode_ranges
from strategies.rounds import RoundContext
from strategies.wire import content_size_bytes

SITES, VALUES, DIFFERENT, REPEATS = 64, 10_000, 16, 300
NO_LAYERS = LayerLayout((), ())


def make_request(*, has_grids: bool) -> RangesRequest:
    """Return a request for 64 sites; the grids come from a larger lab sample."""
    lab = np.random.default_rng(0).normal(size=200_000).astype(np.float32)
    names = tuple(f"site {k}" for k in range(SITES))
    grid = FixedGrid.around(DyadicHistogram.from_values(lab))
    grids = (grid,) * SITES if has_grids else None
    return RangesRequest(Delivery(b""), NO_LAYERS, SiteLayout(names, grids))


def make_contents(request: RangesRequest) -> list[RecordDict]:
    """Return the replies of a few different devices."""
    rng = np.random.default_rng(1)
    contents = []
    for _ in range(DIFFERENT):
        seen = {
            name: DyadicHistogram.from_values(rng.normal(size=VALUES).astype(np.float32))
            for name in request.sites.names
        }
        contents.append(encode_ranges(NO_LAYERS, request.sites, seen, {}, VALUES))
    return contents


def messages_of(contents: list[RecordDict]) -> list[Message]:
    """Return the replies as messages."""
    InProcessGrid(ClientApp(), 1)  # messages need a run
    return [Message(content, 2, "query.calibrate") for content in contents]


def fold_work(*, has_grids: bool) -> Callable[[], object]:
    """Return the work of decoding, checking and adding one batch of replies."""
    request = make_request(has_grids=has_grids)
    replies, fold = messages_of(make_contents(request)), RangesFold(request)
    return lambda: [fold.add(reply) for reply in replies]


def fedavg_work() -> Callable[[], object]:
    """Return the work of Flower's FedAvg on the arrays of the same replies."""
    records = [
        RecordDict(
            {
                "arrays": ArrayRecord(dict(content["statistics"].items())),
                "metrics": MetricRecord({"num-examples": client + 1}),
            }
        )
        for client, content in enumerate(make_contents(make_request(has_grids=True)))
    ]
    return lambda: aggregate_arrayrecords(records, "num-examples")


def rates(works: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Return clients per second of each work, of its fastest repeat; the works take turns."""
    best = dict.fromkeys(works, float("inf"))
    for _ in range(repeats):
        for name, work in works.items():
            began = time.perf_counter()
            work()
            best[name] = min(best[name], time.perf_counter() - began)
    return {name: DIFFERENT / seconds for name, seconds in best.items()}


def run_round(clients: int) -> float:
    """Return the clients per second of a whole round, whose every reply is bytes of its own."""
    request = make_request(has_grids=True)
    contents = make_contents(request)
    app = ClientApp()

    @app.query("calibrate")
    def calibrate(message: Message, context: Context) -> Message:
        content = contents[int(context.node_config["partition-id"]) % DIFFERENT]
        arrays = {
            key: type(array)(array.dtype, array.shape, array.stype, bytes(bytearray(array.data)))
            for key, array in content["statistics"].items()
        }
        reply = RecordDict({"settings": content["settings"], "statistics": ArrayRecord(arrays)})
        return Message(reply, reply_to=message)

    grid = InProcessGrid(app, clients)
    cohort = [DeviceHello(node_id, "arm", 0, "", VALUES, False) for node_id in grid.get_node_ids()]
    began = time.perf_counter()
    outcome = calibrate_ranges(RoundContext(grid, clock=grid.clock), cohort, request)
    assert outcome.replied == clients  # noqa: S101 - a benchmark of failures would be fast
    return clients / (time.perf_counter() - began)


def in_process(clients: int) -> dict[str, float]:
    """Return the round's rate and peak memory, in a process of its own."""
    command = [sys.executable, __file__, "--child", str(clients)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=10_000)
    parser.add_argument("--json", action="store_true")
    parser.add_argument(
        "--smoke", action="store_true", help="few clients and repetitions: checks that it runs"
    )
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        per_second = run_round(arguments.child)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(json.dumps({"clients_per_second": per_second, "peak_mib": peak / 1024}))
        return
    clients, repeats = (200, 30) if arguments.smoke else (arguments.clients, REPEATS)
    small, large = in_process(100), in_process(clients)
    measured = rates({"fold": fold_work(has_grids=True), "fedavg": fedavg_work()}, repeats)
    free = rates({"free": fold_work(has_grids=False)}, repeats // 30)
    result = {
        "fold_clients_per_second": round(measured["fold"]),
        "fedavg_clients_per_second": round(measured["fedavg"]),
        "fold_to_fedavg": round(measured["fold"] / measured["fedavg"], 2),
        "free_fold_clients_per_second": round(free["free"]),
        "round_clients_per_second": round(large["clients_per_second"]),
        "reply_bytes": content_size_bytes(make_contents(make_request(has_grids=True))[0]),
        "peak_mib_100_clients": round(small["peak_mib"], 1),
        f"peak_mib_{clients}_clients": round(large["peak_mib"], 1),
        "peak_ratio": round(large["peak_mib"] / small["peak_mib"], 4),
    }
    print(json.dumps(result) if arguments.json else "\n".join(f"{k:32} {v}" for k, v in result.items()))


if __name__ == "__main__":
    main()
