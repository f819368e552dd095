"""Facts about the machine, written into every recorded run."""

import os
import platform
import subprocess

from gpu_align import backends
from gpu_align._backend import versions


def pytest_benchmark_update_json(config, benchmarks, output_json):
    output_json["versions"] = versions()
    output_json["backends"] = {b.name: b.detail for b in backends() if b.available}
    output_json["machine_facts"] = {"cores": os.cpu_count(), "system": platform.platform()}
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True)
    output_json["commit"] = commit.stdout.strip()
