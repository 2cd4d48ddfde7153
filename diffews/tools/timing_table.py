"""The table that `diffews benchmark` prints."""

from typing import Any


def timing_table(results: dict[str, Any]) -> str:
    """Lays out for people what `measure_all` returned."""
    cores, device = results["cores"], results["device"]
    lines = [f"{results['model']}, {results['image_size']} px, on {device} ({cores} CPU cores)"]
    shown = ("dtype", "channels_last", "tf32", "compile", "low_memory", "encoder", "decoder",
             "threads")  # those that are off are left out
    for name, config in results["keys"].items():
        lines.append(f"{name}: " + " ".join(f"{key}={config[key]}" for key in shown if config[key]))

    lines.append(f"\n{'':20}{'':6}{'batch':>6}{'ms each':>11}{'a second':>11}"
                 f"{'of a matrix product':>21}{'GiB':>8}")
    for title, rows in results["measured"].items():
        for name, row in rows.items():
            if name == "ratio":
                plain, fast = (f"{rows[setup]['ms']:.2f} ms" for setup in ("plain", "fast"))
                lines.append(f"{'':20}{row:.2f} = {plain} / {fast}")
                continue
            lines.append(f"{title:20}{name:6}{row['batch']:>6}{row['ms']:>11.2f}"
                         f"{1e3 / row['ms']:>11.2f}{row['share_of_matrix']:>21.1%}"
                         f"{row['peak_bytes'] / 2**30:>8.2f}")
    lines += [f"{title}: not measured, {why}" for title, why in results["skipped"].items()]
    return "\n".join([*lines, f"GiB: {results['peak_memory']}"])
