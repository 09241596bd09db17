"""The exact Θ of two networks, by this project and by its peers, in one run.

    sh benchmarks/peers/environments.sh      # once
    python -m benchmarks.side_by_side
    python -m benchmarks.side_by_side --networks resnet20:3 --repeats 1 --out ""      # a check

ResNet-20 with 100 images and ResNet-18 at 64×64 with 20, each peer in a process of its own; the
check takes a minute or two. Images are random and weights real (see
`benchmarks.peers.common.weights_folder`). Every row is the median of `--repeats` calls after the
first; ratios are of processor seconds, which a shared machine disturbs least. A peer whose first
call has not returned `--limit` seconds after its start, imports and compilation included, is
stopped: "none in 120 s". How far the peers' Θ are from ours is in the last column: the largest
difference of the Frobenius norm and of five entries, over the largest of these entries.
"""

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.peers.common import first_call_mark

_FOLDER = Path(__file__).parent
_OWN, _TORCH, _NEURAL_TANGENTS = (
    Path(sys.executable),
    *(_FOLDER / ".environments" / name / "bin" / "python" for name in ("torch", "neural-tangents")),
)
_PEERS = {
    "floor": (_OWN, "floor", ()),
    "vmap_jacrev": (_OWN, "vmap_jacrev", ()),
    "torch_func": (_TORCH, "torch_func", ()),
    "neural_tangents_default": (
        _NEURAL_TANGENTS,
        "neural_tangents_peer",
        ("--implementation", "default"),
    ),
    "neural_tangents_structured": (
        _NEURAL_TANGENTS,
        "neural_tangents_peer",
        ("--implementation", "structured"),
    ),
    "ours": (_OWN, "ours", ()),
}
_LABELS = {
    "vmap_jacrev": "vmap(jacrev) + matrix product",
    "torch_func": "torch.func vmap(jacrev) + einsum",
    "neural_tangents_default": "neural-tangents, default",
    "neural_tangents_structured": "neural-tangents, structured derivatives",
    "ours": "ntk_tt.kernels.empirical_ntk",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--networks", nargs="+", default=["resnet20:100", "resnet18:20"], metavar="NAME:N"
    )
    parser.add_argument("--peers", nargs="+", choices=_PEERS, default=list(_PEERS))
    parser.add_argument("--num-outputs", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--limit", type=float, default=120.0, help="seconds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--convolutions",
        choices=("im2col", "native"),
        default="im2col",
        help="see benchmarks.peers.jax_functional",
    )
    parser.add_argument(
        "--out",
        default=str(_FOLDER / "results" / "side_by_side.json"),
        help="the JSON report; empty for none",
    )
    given = parser.parse_args()
    document: dict[str, Any] = {
        "config": {key: value for key, value in vars(given).items() if key != "out"},
        "environment": _environment(),
        "networks": {},
    }
    for network in given.networks:
        name, _, number = network.partition(":")
        rows = {}
        for peer in given.peers:
            print(f"{network}: {peer} …", end=" ", file=sys.stderr, flush=True)
            rows[peer] = _run(peer, name, int(number), given)
            print(rows[peer].get("none", "done"), file=sys.stderr, flush=True)
        document["networks"][network] = rows
        _print_table(name, int(number), given.num_outputs, rows)
        if given.out:  # after each network: what was measured is not lost
            Path(given.out).parent.mkdir(exist_ok=True)
            Path(given.out).write_text(json.dumps(document, indent=1) + "\n")


def _run(peer: str, network: str, num_samples: int, given: argparse.Namespace) -> dict[str, Any]:
    """The peer's report, or `{"none": why}`."""
    python, module, more = _PEERS[peer]
    if not python.exists():
        return {"none": "no environment; make it with: sh benchmarks/peers/environments.sh"}
    with tempfile.TemporaryDirectory() as folder:
        out, errors = Path(folder) / "report.json", Path(folder) / "errors"
        command = [
            python,
            "-m",
            f"benchmarks.peers.{module}",
            "--network",
            network,
            "--num-samples",
            num_samples,
            "--num-outputs",
            given.num_outputs,
            "--repeats",
            given.repeats,
            "--limit",
            given.limit,
            "--seed",
            given.seed,
            "--convolutions",
            given.convolutions,
            "--out",
            out,
            *more,
        ]
        with errors.open("w") as stream:
            process = subprocess.Popen(
                [str(part) for part in command],
                cwd=_FOLDER.parent,
                stdout=subprocess.DEVNULL,
                stderr=stream,
            )
        start = time.monotonic()
        try:
            while process.poll() is None:
                if time.monotonic() - start > given.limit and not first_call_mark(out).exists():
                    return {"none": f"none in {given.limit:g} s"}
                time.sleep(0.05)
        finally:
            process.kill()
            process.wait()
        if process.returncode != 0:
            last = (errors.read_text(errors="replace").strip().splitlines() or [""])[-1]
            return {"none": f"failed with status {process.returncode}: {last}"}
        return json.loads(out.read_text())


def _print_table(
    network: str, num_samples: int, num_outputs: int, rows: dict[str, dict[str, Any]]
) -> None:
    floor, base, ours = (
        rows.get(peer, {"none": "not run"}) for peer in ("floor", "vmap_jacrev", "ours")
    )
    clocks = ("processor_seconds", "seconds")
    floors = (
        {}
        if "none" in floor
        else {
            name: {
                clock: floor["floors"][clock][name] + floor["gemm_at_peak"][clock]
                for clock in clocks
            }
            for name in ("vjps", "contrasts")
        }
    )
    lowest = floors.get("vjps", {}).get("processor_seconds")
    reference = base.get("processor_seconds")

    def ratio(value: float, to: float | None) -> str:
        return "" if to is None else f"{value / to:.2f}"

    def line(label: str, row: dict[str, Any]) -> None:
        if "none" in row:
            print(f"{label:44} {row['none']}")
            return
        compilation = f"{row['compile_seconds']:.1f}" if "compile_seconds" in row else ""
        memory = f"{row['peak_bytes'] / 1e9:.2f}" if "frobenius_norm" in row else ""
        print(
            f"{label:44}{row['processor_seconds']:9.2f}{row['seconds']:9.2f}"
            f"{ratio(row['processor_seconds'], lowest):>9}"
            f"{ratio(row['processor_seconds'], reference):>10}{compilation:>10}{memory:>9}"
            f"{_difference(row, ours):>12}"
        )

    print(f"\nΘ of {network}, N = {num_samples}, C = {num_outputs}")
    print(
        f"{'':44}{'CPU-s':>9}{'wall s':>9}{'× floor':>9}{'× jacrev':>10}{'compile':>10}"
        f"{'peak GB':>9}{'from ours':>12}"
    )
    if floors:
        line("one forward pass", {clock: floor["forward"][clock] for clock in clocks})
        line(
            "one forward and backward pass",
            {clock: floor["forward_and_vjp"][clock] for clock in clocks},
        )
        line("forward + (C−1) VJPs + product at peak", floors["contrasts"])
        line("floor: C VJPs + product at peak", floors["vjps"])
    for peer, label in _LABELS.items():
        if peer in rows:
            line(label, rows[peer])
    if floors:
        print(
            f"D = {floor['num_params']:,}; matrix product "
            f"{floor['gemm_flops_per_second'] / 1e9:.0f} GFLOP/s, copy "
            f"{floor['copy_bytes_per_second'] / 1e9:.1f} GB/s"
        )


def _difference(row: dict[str, Any], ours: dict[str, Any]) -> str:
    """How far this Θ is from ours; empty where there is nothing to compare."""
    if row is ours or "frobenius_norm" not in row or "frobenius_norm" not in ours:
        return ""
    scale = max(abs(value) for value in ours["entries"].values())
    entries = (
        max(abs(value - ours["entries"][key]) for key, value in row["entries"].items()) / scale
    )
    return f"{max(entries, abs(row['frobenius_norm'] / ours['frobenius_norm'] - 1)):.1e}"


def _environment() -> dict[str, Any]:
    """Hardware and date; each peer's report has its own versions."""
    processor = platform.processor()
    if Path("/proc/cpuinfo").exists():
        names = [
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ]
        processor = names[0] if names else processor
    return {
        "processor": processor,
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.machine()}",
        "load_average_before": round(os.getloadavg()[0], 2),
        "date": datetime.date.today().isoformat(),
    }


if __name__ == "__main__":
    main()
