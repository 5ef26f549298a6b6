"""All layers of a model rounded on many grids: `layer_rounding` over threads."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed

from quantization.errors import ConfigurationError
from quantization.layer_rounding import RoundedLayer, round_layer
from quantization.rounding import RealArray
from quantization.scale_search import Grid
from quantization.second_moments import SecondMoments

RoundingProgress = Callable[[float, str], None]
"""Told which share of the work is done, 0 to 1, and the layer that was rounded last."""


def round_model(
    weights: Mapping[str, RealArray],
    moments: Mapping[str, SecondMoments],
    grids: Sequence[Grid] | Mapping[str, Sequence[Grid]],
    *,
    is_centred: Mapping[str, bool],
    workers: int = 2,
    damping: float = 0.01,
    on_progress: RoundingProgress | None = None,
) -> dict[str, list[RoundedLayer]]:
    """Return every layer's candidates, as `round_layer` gives them, in the order of `weights`.

    Each layer is computed alone and whole on one thread, so the result does not depend on `workers`. The largest
    start first; numpy holds no lock in the loops of a large layer, so two workers take little more than half the time.

    Args:
        weights: (O, K) by layer: `layer_codes.weight_rows`.
        moments: Of each layer's input.
        grids: What to round on: for all layers, or by layer.
        is_centred: By layer: it has a bias, which absorbs mean errors.
        workers: Threads, >= 1; memory grows with them.
        damping: As in `round_layer`.
        on_progress: Called in this thread after each layer; an exception ends the work.

    Raises:
        ConfigurationError: If a layer lacks moments or grids, or they are of another layer.
    """
    if workers < 1:
        raise ConfigurationError(f"rounding needs at least one worker, got {workers}")
    for needed in (moments, is_centred, *([grids] if isinstance(grids, Mapping) else [])):
        missing = [name for name in weights if name not in needed]
        if missing:
            raise ConfigurationError(f"nothing is known of layer {missing[0]!r}, which is to be rounded")
    work = {name: rows.size * rows.shape[-1] for name, rows in weights.items()}
    total, done = max(sum(work.values()), 1), 0
    found: dict[str, list[RoundedLayer]] = {}
    pool = ThreadPoolExecutor(workers, thread_name_prefix="rounding")
    try:
        futures: dict[Future[list[RoundedLayer]], str] = {}
        for name in sorted(weights, key=lambda n: -work[n]):
            chosen = grids[name] if isinstance(grids, Mapping) else grids
            future = pool.submit(
                round_layer,
                weights[name],
                moments[name],
                chosen,
                is_centred=is_centred[name],
                damping=damping,
            )
            futures[future] = name
        for future in as_completed(futures):
            name = futures[future]
            found[name] = future.result()
            done += work[name]
            if on_progress is not None:
                on_progress(done / total, name)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return {name: found[name] for name in weights}
