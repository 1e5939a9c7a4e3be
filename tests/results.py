"""Results as `leanconv bench --peers` would write them, without measuring: for tests of what reads results.

Times follow from a layer's work, its bytes and an efficiency of each contestant, with noise from a seeded
generator. Run as a program it writes a file: python tests/results.py results.json
"""

from __future__ import annotations

import sys
import zlib
from dataclasses import asdict
from pathlib import Path

import numpy as np

from leanconv.bench.catalogue import resolve
from leanconv.bench.layers import Layer
from leanconv.bench.report import FAILED, NOT_APPLICABLE, OK, WRONG, Report, Row, Sample

PEAK, BANDWIDTH = 100.0, 20.0

# Name -> part of the peak it reaches on wide layers, and its workspace over that of im2col.
OURS = {
    **{"direct": (0.92, 0.0), "im2row_strip": (0.78, 0.002), "im2row": (0.7, 1.0), "im2col": (0.55, 1.0)},
    **{"im2row_blas": (0.52, 1.0), "mec": (0.74, 0.33), "im2win": (0.81, 0.34), "kn2row_as": (0.5, 0.1)},
}
PEERS = {
    **{"torch": (0.45, 0.3), "torch_channels_last": (0.6, 0.2), "onednn": (0.88, 0.2), "torch_im2col": (0.3, 1.1)},
    **{"onnxruntime": (0.85, 0.1), "openvino": (0.8, 0.15), "litert": (0.93, 0.05), "ncnn": (0.9, 0.8)},
    **{"mnn": (0.7, 0.5), "jax": (0.4, 0.4)},
}
WORDS = ("mec", "resnet18", "mobilenet_v2")


def results(
    words=WORDS,
    *,
    peers=True,
    threads=(1, 2),
    layouts=("NHWC",),
    seed=0,
    factors=None,
    rounds=7,
    most=None,
    peak=PEAK,
    passes=1,
) -> Report:
    """Return a report; `factors`: algorithm -> factor on its times; `most`: layers, at most."""
    layers = resolve(words)[:most]
    report = Report(
        ["leanconv", "bench", *words, "--peers", "all"],
        {
            "algorithms": ["all"],
            "layouts": list(layouts),
            "threads": list(threads),
            "dtype": "float32",
            "rounds": rounds,
        },
        {"cpu": "Example CPU", "target": "avx2", "features": ["avx2"], "usable_cpus": 2, "caches": {"l2": 1 << 19}},
        {"leanconv": "0.1.0", "python": "3.11.7", "numpy": "2.4.6"},
        started="2026-01-02T03:04:05+00:00",
        finished="2026-01-02T03:14:05+00:00",
        bandwidth=[{"threads": count, "gb_per_s": BANDWIDTH * (1 + 0.2 * (count - 1))} for count in threads],
    )
    for layer in layers:
        flops = layer.problem("NCHW").flops
        report.layers.append({**asdict(layer), "shape": layer.short(), "flops": flops})
        for count in threads:
            for layout in layouts:
                # Other libraries have one layout, the one they prefer.
                for name, (part, share) in {**OURS, **(PEERS if peers and layout == layouts[0] else {})}.items():
                    # A generator for each row: a report of fewer rows has the same ones.
                    rng = np.random.default_rng([seed, zlib.crc32(f"{layer.name} {name} {layout} {count}".encode())])
                    row = _row(
                        layer,
                        name,
                        layout,
                        count,
                        part,
                        share,
                        rng,
                        rounds,
                        (factors or {}).get(name, 1.0),
                        peak,
                        passes,
                    )
                    report.rows.append(row)
    return report


def _row(layer: Layer, name, layout, threads, part, share, rng, rounds, factor, peak, passes) -> Row:
    problem = layer.problem(layout)
    peer = name in PEERS
    row = Row(layer.name, name, layout, threads, flops=problem.flops, kind="peer" if peer else "leanconv")
    row.version = "1.2.3" if peer else ""
    if name == "kn2row_as" and problem.stride != (1, 1):
        row.status, row.reason = NOT_APPLICABLE, f"the stride is {problem.stride}, and kn2row_as takes 1 only"
        return row
    if name == "mnn" and layer.groups > 1:
        row.status, row.reason = (WRONG, "largest error is 2.0e-02 of the largest output, 1e-03 is allowed")
        row.error = 0.02
        return row
    if name == "jax" and threads > 1:
        row.status, row.reason = FAILED, "no module is called 'jax'"
        return row
    row.status = OK
    row.ran = "" if peer else name
    wide = min(1.0, problem.group_in * problem.taps / 64) * min(1.0, problem.group_out / 16)
    reach = part * max(wide, 0.05) * float(rng.uniform(0.85, 1.05))
    moved = problem.x_bytes + problem.w_bytes + problem.out_bytes
    ideal = max(problem.flops / (reach * peak * threads * 1e9), moved / (BANDWIDTH * 1e9))
    unroll = 4 * problem.batch * problem.group_in * problem.groups * problem.taps * int(np.prod(problem.out_size))
    row.workspace_bytes = 0 if peer else int(unroll * share) // 64 * 64
    row.packed_weight_bytes = 0 if peer else problem.w_bytes
    row.extra_peak_bytes = int(unroll * share + problem.w_bytes) if peer else None
    row.cold_seconds = ideal * 20
    row.prepare_seconds = ideal * 10
    row.error, row.compared, row.calls = 3e-7, "all outputs", 3
    row.samples = [
        Sample(
            turn,
            ideal * factor * float(rng.normal(1, 0.01)),
            peak * threads * float(rng.normal(1, 0.002)),
            turn * passes // rounds,
        )
        for turn in range(rounds)
    ]
    row.summarise()
    return row


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(results(layouts=("NHWC", "NCHW")).json(), encoding="utf-8")
