"""Put the peers' lines together: `../results/peers.json`, and a Markdown table on standard output.

Lines of the same tool, setting, number of images and threads are one row: accuracy is the mean over seeds with the
spread, seconds the least. A later line of the same seed replaces an earlier one.

    python collect.py .work/*.jsonl
"""

import argparse
import json
import sys
from pathlib import Path
from statistics import mean

RESULTS = Path(__file__).resolve().parents[1] / "results" / "peers.json"
KEYS = ("tool", "setting", "images", "threads")


def read_lines(paths: list[Path]) -> list[dict[str, object]]:
    """Return the lines that are results; tools also print of their own."""
    lines = [line for path in paths for line in path.read_text().splitlines()]
    return [json.loads(line) for line in lines if line.startswith('{"tool"')]


def rows(lines: list[dict[str, object]]) -> list[dict[str, object]]:
    """Return one row for each tool and setting, its seeds put together."""
    groups: dict[tuple[object, ...], dict[object, dict[str, object]]] = {}
    for line in lines:
        groups.setdefault(tuple(line[key] for key in KEYS), {})[line["seed"]] = line
    merged = []
    for group in groups.values():
        seeds = list(group.values())
        accuracies = [float(str(line["accuracy"])) for line in seeds]
        merged.append(
            {
                **{key: seeds[0][key] for key in (*KEYS, "version")},
                "accuracy": round(mean(accuracies), 4),
                "least": min(accuracies),
                "greatest": max(accuracies),
                "seeds": len(seeds),
                "weight_bytes": seeds[0]["weight_bytes"],
                "size_ratio": seeds[0]["size_ratio"],
                "zstd_weight_bytes": round(mean(float(str(line["zstd_weight_bytes"])) for line in seeds)),
                "zstd_size_ratio": round(mean(float(str(line["zstd_size_ratio"])) for line in seeds), 2),
                "seconds": min(float(str(line["seconds"])) for line in seeds),
                "cpu_seconds": min(float(str(line["cpu_seconds"])) for line in seeds),
            }
        )
    return sorted(merged, key=lambda row: (float(str(row["size_ratio"])), -float(str(row["accuracy"]))))


def table(merged: list[dict[str, object]]) -> str:
    """Return the rows as a Markdown table."""
    heads = ("tool", "setting", "images", "accuracy % (seeds)", "bytes", "ratio", "ratio with zstd")
    heads += ("seconds", "CPU seconds", "threads")
    lines = ["| " + " | ".join(heads) + " |", "| " + " | ".join("---" for _ in heads) + " |"]
    for row in merged:
        low, high = 100 * float(str(row["least"])), 100 * float(str(row["greatest"]))
        spread = f"{low:.2f} to {high:.2f}, {row['seeds']}" if row["seeds"] != 1 else "1"
        lines.append(
            f"| {row['tool']} {row['version']} | {row['setting']} | {row['images']} |"
            f" {100 * float(str(row['accuracy'])):.2f} ({spread}) | {row['weight_bytes']} | {row['size_ratio']} |"
            f" {row['zstd_size_ratio']} | {row['seconds']:.1f} | {row['cpu_seconds']:.1f} | {row['threads']} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Write the rows and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("lines", type=Path, nargs="+", help="what the peers printed")
    parser.add_argument("--results", type=Path, default=RESULTS, help="file to write")
    options = parser.parse_args()
    merged = rows(read_lines(options.lines))
    options.results.parent.mkdir(parents=True, exist_ok=True)
    options.results.write_text(json.dumps(merged, indent=1) + "\n")
    sys.stdout.write(table(merged) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
