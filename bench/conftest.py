"""Facts about the machine in every recorded run; its name is left out."""

from bench.record import facts


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info.pop("node", None)


def pytest_benchmark_update_json(config, benchmarks, output_json):
    output_json |= facts()
    output_json.pop("commit_info", None)
