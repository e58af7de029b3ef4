"""How good, how small, how fast is every quantization method here, and what do the libraries people know give instead?

    python benchmarks/quantize.py [--quick] [--json FILE] [--model DIR] [--data FILE …] [--methods NAME …] [--bits 4 8 3 2]
                                  [--peers llmcompressor gptqmodel hqq autoround | none] [--resume] [--jobs N]

Every method at every width, group size 64, on SmolLM2-135M-Instruct: the same calibration and held-out tokens for all, each
case in processes of its own, what was saved measured again through plain transformers. Peers live in environments that are
made once. The reference setting is `--data TRAIN.parquet TEST.parquet` with question and answer columns, 32 × 256 tokens to
calibrate on and 16 × 256 to judge on; without `--data`, the project's generated arithmetic stands in, which is too easy to
tell good methods apart. `--quick` is two methods on the tests' model of 0.6 M parameters. Exit code 3 when a goal is lost.
"""

import argparse
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from goals import add_flags, finish, signed
from models import model_folder
from quantize_cases import GROUP_SIZE, PEERS, QUICK, WIDTHS, all_cases
from quantize_judge import SAME, closed_gap, compare, judge, summary
from quantize_run import Setting, dense_row, measure_all
from quantize_texts import LENGTH, write_texts

GRID_NOTE = (
    "The weights of SmolLM2-135M come from a file on a 4-bit grid (Q4_1), so what 4-bit methods lose to 16 bit is understated."
)
COST_NOTE = "Seconds and peak memory are those of quantizing alone, libraries and model loaded before."


def main() -> int:
    """Measure, print, write, and return the exit code."""
    arguments = parse()
    from peers.environments import default_cache

    from quantkit.console import say, table, use_stderr
    from quantkit.environment import describe_environment
    from quantkit_registry.fingerprints import fingerprint_base
    from quantkit_tools.demo_model import NAME

    use_stderr()
    model = str(Path(model_folder(arguments.model, quick=arguments.quick)).resolve())
    bits = (4,) if arguments.quick else tuple(arguments.bits)
    methods = arguments.methods or (QUICK if arguments.quick else None)
    peers = () if arguments.quick or arguments.peers == ["none"] else tuple(arguments.peers)
    cases = all_cases(bits, methods, peers)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="quantize-") as scratch:
        texts = Path(scratch) / "texts.json"
        said = write_texts(texts, model, arguments.data, calib_rows=arguments.calib_rows, test_rows=arguments.test_rows)
        setting = Setting(
            model=model,
            texts=texts,
            fingerprint=f"{fingerprint_base(model)} {said.pop('fingerprint')}",
            scratch=Path(scratch),
            peer_envs=arguments.peer_envs or default_cache() / "peers",
            results=arguments.results or default_cache() / "benchmarks" / "quantize",
            resume=arguments.resume,
            limit_s=arguments.limit,
            jobs=arguments.jobs,
        )
        rows.append(dense_row(setting))
        rows[0] |= {"name": "16 bit", **summary(rows[0]["rows"])}
        say(f"16 bit: perplexity {rows[0]['perplexity']:.3f}")
        for number, row in enumerate(measure_all(cases, setting), start=1):
            rows.append(row | (summary(row["rows"]) if row["error"] is None else {}))
            said_of = row["error"] or f"perplexity {rows[-1]['perplexity']:.3f}, {row['cpu_s']:.1f} s"
            say(f"{number}/{len(cases)} {row['name']}: {said_of}{', measured before' if 'from_file' in row else ''}")
    good = {row["name"]: row for row in rows if row["error"] is None}
    goals, missing = judge(good)
    comparisons = compare(good)
    for row in good.values():
        row["perplexity_ratio"] = row["perplexity"] / rows[0]["perplexity"]
    note = f"{GRID_NOTE} {COST_NOTE}" if Path(model).name == NAME else COST_NOTE
    ordered = sorted(rows, key=lambda row: (row["error"] is not None, row.get("perplexity", 0.0)))
    table(f"{Path(model).name}, groups of {GROUP_SIZE}, by perplexity", *shown(ordered), caption=note)
    if comparisons:
        table(
            "Nats per token, row by row",
            ["of", "against", "difference (95 %)"],
            [[item["of"], item["against"], signed(item)] for item in comparisons],
        )
    if missing:
        say(f"not judged, a side was not measured: {'; '.join(missing)}")
    found = {
        "setting": {"model": Path(model).name, "group_size": GROUP_SIZE, "row_tokens": LENGTH, **said},
        "environment": describe_environment("cpu"),
        "note": note,
        "rows": ordered,
        "comparisons": comparisons,
        "closed_gap": {grid: closed_gap(good, grid) for grid in ("NF4", "FP4")},
        "not_judged": missing,
        "cases": [asdict(case) for case in cases],
    }
    return finish("quantize", found, goals, arguments.json)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser)
    parser.add_argument("--model", metavar="DIR", help="a model of your own")
    parser.add_argument("--data", nargs="+", default=[], metavar="FILE", help="rows to calibrate on, and to judge on")
    parser.add_argument("--calib-rows", type=int, default=32, help=f"calibration rows of {LENGTH} tokens (default 32)")
    parser.add_argument("--test-rows", type=int, default=16, help=f"held-out rows of {LENGTH} tokens (default 16)")
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="only these; names as in the table or `quantkit methods`")
    parser.add_argument(
        "--bits", nargs="+", type=int, default=list(WIDTHS), choices=WIDTHS, help="only these widths, in this order"
    )
    parser.add_argument("--peers", nargs="+", default=list(PEERS), choices=[*PEERS, "none"], help="libraries to stand beside")
    parser.add_argument("--peer-envs", type=Path, metavar="DIR", help="their environments (default: the user's cache folder)")
    parser.add_argument("--results", type=Path, metavar="DIR", help="measured cases (default: the user's cache folder)")
    parser.add_argument("--resume", action="store_true", help="use cases measured before with the same code, model and text")
    parser.add_argument("--jobs", type=int, default=1, help="cases at a time; their seconds are those of a busier machine")
    parser.add_argument("--limit", type=int, default=5400, metavar="S", help="give a process up after so long (default 5400)")
    return parser.parse_args()


def shown(rows: list[dict[str, Any]]) -> tuple[list[str], list[list[object]]]:
    """Return columns and cells of the table; a case that failed says how."""
    columns = ["by", "method", "bits", "stored", "perplexity", "95 %", "× 16 bit", "KL", "top-1"]
    columns += ["MB", "CPU s", "wall s", "peak MB", ""]
    cells: list[list[object]] = []
    for row in rows:
        start = [f"{row['by']} {row.get('version', '')}".strip(), row["method"], row["weights_bits"]]
        if row["error"] is not None:
            cells.append([*start, *[None] * 10, row["error"]])
            continue
        size, peak = row.get("size_bytes"), row.get("peak_rss_bytes")
        drift = max(row.get("reload", 0.0), row.get("stored_drift", 0.0))
        marks = [f"{drift:.1g} nats off when loaded"] if drift > SAME else []
        if drift <= SAME < row.get("run_drift", 0.0):
            marks.append(f"{row['run_drift']:.1g} nats off by the library's own packing")
        marks += ["beyond its gate"] if row.get("gate") == "failed" else []
        cells.append(
            [
                *start,
                f"{row['bits_per_weight']:.2f}",
                f"{row['perplexity']:.3f}",
                f"{row['low']:.2f} to {row['high']:.2f}",
                f"{row['perplexity_ratio']:.3f}",
                f"{row['mean_kl']:.2g}",
                f"{row['top1_agreement']:.1%}",
                None if size is None else round(size / 1e6, 1),
                *(round(row[key], 1) if key in row else None for key in ("cpu_s", "duration_s")),
                None if peak is None else round(peak / 1e6),
                "; ".join(marks),
            ]
        )
    return columns, cells


if __name__ == "__main__":
    sys.exit(main())
