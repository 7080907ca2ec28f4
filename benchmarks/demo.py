"""Times `make demo` from a built environment on: build, serve, edge node, evaluation, report.

python benchmarks/demo.py
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _results import write_results

DEMO = Path(__file__).parent.parent / "examples" / "01-digits" / "demo.py"
TARGET_S = 300


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        subprocess.run([sys.executable, str(DEMO), "--report", folder], check=True)
        wall_s = time.perf_counter() - start
        report = json.loads((Path(folder) / "report.json").read_text())
    methods = {
        name: {field: method[field] for field in ("mae", "killed", "resident_bytes")}
        for name, method in report["methods"].items()
    }
    figures = {
        "wall_s": wall_s,
        "target_s": TARGET_S,
        "methods": methods,
        "kills": report["kills"],
        "trace": report["trace"],
    }
    write_results("demo", figures)
    print(f"demo: {wall_s:.0f} s, target <= {TARGET_S} s")


if __name__ == "__main__":
    main()
