"""The device benches run from end to end: on small cases, in the interpreter, timing nothing."""

import json

import pytest
import torch
from marks import slow
from triton_devices import INTERPRETED

from bench import (
    assignment,
    beam_width,
    costs,
    count,
    pairs,
    plot,
    profile_step,
    record,
    targets,
)
from bench.cases import CASES, Case
from bench.timing import quantiles, wall_clock
from gpu_align import save_checkpoint

TIME = {"median": 1.0, "q20": 1.0, "q80": 1.0, "repetitions": 1}


def once(run, repetitions=1):
    """A clock that does not look."""
    run()
    return TIME


@pytest.fixture
def row_distance(monkeypatch):
    """The bench of the row-distance kernels, on the CPU."""
    pytest.importorskip("triton")
    if not INTERPRETED:
        pytest.skip("compiled in this process: python -m bench.row_distance is the test")
    from bench import row_distance

    monkeypatch.setattr(row_distance, "DEVICE", torch.device("cpu"))
    monkeypatch.setattr(row_distance, "milliseconds", once)
    return row_distance


@pytest.mark.parametrize("signed", slow([False, True], but=[True]), ids=["plain", "signed"])
def test_row_distance(row_distance, signed):
    limits = {str(torch.bfloat16): 1e12, "copy": 1e12}
    case = Case("small", [(20, [(24, 1), (12, 9), (1, 5)]), (24, [(20, 1)])], 3, 2, signed)
    row = row_distance.measure(case, limits)
    assert row["kernel_ms"] == TIME
    assert row["copy_fraction"] == case.bytes(4) * 1e3 / 1e12
    assert row["roof_fraction"] == pytest.approx(6 * case.flops * 1e3 / 1e12)
    assert "error" in row_distance.line(row)
    assert torch.get_float32_matmul_precision() == "highest"


def test_annealing_step(row_distance):
    row = row_distance.measure_annealing(20, 3)
    assert row["times_torch"] == 1
    assert "annealing" in row_distance.line(row)


def test_the_cases_are_what_the_networks_have():
    """Rows of the stem of VGG16, of a stage of ResNet50 and of ViT-B, counted by hand."""
    found = {case.name: case for case in CASES}
    assert found["VGG16"].groups[0] == (64, [(1, 27), (64, 9), (1, 1)])
    assert (2048, [(512, 1)] * 6 + [(1, 1000)]) in found["ResNet50"].groups
    assert [n for n, _ in found["ViT-B"].groups] == [3072] * 12 + [768]
    assert found["MLP 3x512"].flops == 2 * 128 * 512**2 * (784 + 4 * 512 + 10 + 3)


@pytest.mark.usefixtures("auction_on_host")
@pytest.mark.parametrize("kind", costs.KINDS)
def test_assignment(kind):
    auction = assignment.Solver("auction", assignment.auction)
    found = [*assignment.solvers("cpu"), auction]
    rows = list(assignment.rows_of(costs.Task(kind, 40, 3), found, {}, unknown(3), once))
    warm = ["auction, warm"] * (kind in assignment.WARM)
    assert [row["solver"] for row in rows][-1 - len(warm) :] == ["auction", *warm]
    for row in rows:
        assert row["ms"] == TIME, row
        assert row["excess"] <= 1e-8, row


def test_the_gate_of_assignments():
    cost = torch.rand(2, 5, 5)
    best = unknown(2)
    exact = assignment._ours(assignment.ScipyAssignment())(cost)
    assert assignment.gate(cost, exact, best, 1e-8) == 0
    worse = exact[0].roll(1, 1)
    with pytest.raises(AssertionError, match="over the optimum"):
        assignment.gate(cost, (worse, None), best, 1e-8)
    with pytest.raises(AssertionError, match="over the optimum"):
        assignment.gate(cost, (exact[0], torch.zeros(2, 5).double() - 1e-3), best, 1e-8)
    with pytest.raises(AssertionError, match="no permutation"):
        assignment.gate(cost, (torch.zeros_like(worse), None), best, 1e-8)


def unknown(batch):
    """Return the best sums of problems that nobody has solved."""
    return torch.full((batch,), torch.inf, dtype=torch.float64)


def test_a_slow_solver_is_not_tried_on_larger_problems():
    def seconds(*_):
        return TIME | {"median": 2000.0}

    slow: dict[tuple[str, str], int] = {}
    found = assignment.solvers("cpu")[:1]
    rows = [
        row
        for n in (8, 8, 16)
        for row in assignment.rows_of(costs.Task("uniform", n, 1), found, slow, unknown(1), seconds)
    ]
    assert ["ms" in row for row in rows] == [True, True, False]
    assert "more than a second" in rows[2]["skipped"]


def test_what_fails_is_reported():
    def broken(cost):
        raise RuntimeError("no kernel\nand a trace")

    def wrong(cost):
        return torch.zeros(cost.shape[:2], dtype=torch.int64), None

    task = costs.Task("uniform", 8, 1)
    peers = [assignment.Solver("a solver", solve) for solve in (broken, wrong)]
    peers.append(assignment.Solver("small", broken, largest=(4, "only 4 rows")))
    rows = list(assignment.rows_of(task, peers, {}, unknown(1)))
    assert [row.get("failed") for row in rows] == [
        "RuntimeError: no kernel",
        "no permutation",
        None,
    ]
    assert rows[2]["skipped"] == "only 4 rows"
    assert all(assignment.line(row) for row in rows)


def test_solvers_of_the_cpu_get_a_few_problems():
    host = assignment.Solver("host", lambda cost: cost, threads=16)
    device = assignment.Solver("device", lambda cost: cost, "cuda")
    for n, expected in ((512, 32), (1024, 16), (8192, 1), (32, 8192)):
        batch = 1 if n == 8192 else 100_000
        assert host.problems(costs.Task("aligned", n, batch)) == expected
        assert device.problems(costs.Task("aligned", n, batch)) == batch


def test_the_tasks_beside_a_device(monkeypatch, capsys):
    monkeypatch.delenv(pairs.PAIRS, raising=False)
    found = {(task.kind, task.batch, task.n) for task in costs.device_tasks(quick=False)}
    assert "no trained layers" in capsys.readouterr().out
    assert found >= {(kind, 128, n) for kind in costs.KINDS for n in (512, 1024)}
    wanted = {("aligned", 100_000, 32), ("aligned", 1, 8192), ("aligned", 1, 16384)}
    assert found >= wanted | {("uniform", 208, 300)}
    assert {(task.kind, task.batch, task.n) for task in costs.device_tasks(quick=True)} < found


def test_costs_of_trained_layers(tmp_path, monkeypatch):
    """Of the pair's shape, each problem its own."""
    for number, state in enumerate(pairs.random_pair("coursework")):
        save_checkpoint(tmp_path / f"{costs.TRAINED_PAIR}_{number}.safetensors", state)
    monkeypatch.setenv(pairs.PAIRS, str(tmp_path))
    cost = costs.Task(f"{costs.TRAINED}1", 64, 3).cost("cpu")
    assert cost.shape == (3, 64, 64)
    assert not torch.equal(cost[0], cost[1])
    shuffled = costs._shuffled(torch.randperm(40), 5)
    assert torch.equal(shuffled.sort(1).values, torch.arange(40).expand(5, 40))


def test_timings():
    assert quantiles([3.0]) == {"median": 3.0, "q20": 3.0, "q80": 3.0, "repetitions": 1}
    assert quantiles([1.0, 2.0, 3.0, 4.0])["median"] == 2.5
    assert 3 <= wall_clock(lambda: None, seconds=0.0)["repetitions"] <= 20


@pytest.fixture
def results(tmp_path, monkeypatch):
    """A folder for what the benches record."""
    monkeypatch.setattr("bench.record.RESULTS", tmp_path)
    return tmp_path


MACHINE = {"gpu": "a GPU", "cores": 2, "processor": "a CPU"}
FACTS = {"machine": MACHINE, "versions": {"torch": "2"}, "commit": None}


def write(path, rows) -> None:
    path.write_text(json.dumps({**FACTS, "rows": rows}), encoding="utf-8")


def record_of_a_device(folder):
    """Write what a device would have recorded."""
    tasks = [vars(task) | {"ours": True} for task in costs.device_tasks(quick=False)]
    rows = [
        {**task, "solver": solver, "problems": task["batch"], "ms": TIME}
        for task in tasks
        for solver in (*plot.SOLVERS, "auction, warm")
    ]
    rows.append({**tasks[0], "solver": "auction", "failed": "no permutation"})
    write(folder / "assignment.json", rows)
    fractions = {"roof_fraction": 0.5, "copy_fraction": 0.2, "times_torch": 2.0}
    rows = [{"case": case.name, **fractions} for case in CASES]
    write(folder / "row_distance.json", [{"case": "roofline", "copy": 1.0}, *rows])
    facts = {"distance": 1.0, "before": 2.0, "ms": TIME}
    rows = [
        {"case": f"coursework, {case}", "device": device, "width": width, **facts}
        | {"times_width_1": 1 + width / 50}
        for case in ("rounding", "descent")
        for device in ("cuda", "cpu")
        for width in beam_width.WIDTHS
    ]
    write(folder / "beam_width.json", rows)


@pytest.mark.slow
def test_plots_are_drawn_from_what_is_recorded(results, capsys):
    plot.main()
    assert capsys.readouterr().out.count("not yet measured") == 5
    assert not list(results.iterdir())
    record_of_a_device(results)
    plot.main()
    drawn = {path.name for path in results.glob("*.png")}
    assert drawn == {"assignment.png", "row_distance.png", "beam_width.png"}
    assert "assignment_cpu: not yet measured" in capsys.readouterr().out


def test_targets(results, capsys):
    assert {row[3] for row in targets.judged()} == {"not measured"}
    record_of_a_device(results)
    found = {row[0]: row for row in targets.judged()}
    assert found["beam: width 100 / width 1"][3] == "met"
    assert found["beam: width 1000 / width 1"][2:4] == ("21", "missed in 2 of 2")
    assert found["beam: width 100"][1:4] == ("at most 50 ms", "1 ms", "met")
    assert found["assignment: wrong answers"][3] == "missed in 1 of 1"
    assert found["row distance: times faster than torch"][3] == "met"
    assert found["default search: times faster than all cores"][3] == "not measured"
    targets.main()
    assert "beam: width 1000" in capsys.readouterr().out


def test_every_target_finds_its_figure(results):
    record_of_a_device(results)
    sweep, *_ = profile_step.STEPS
    profiled = [
        {"step": sweep, "pair": pair, "device": "cuda", "launches": 9}
        for pair in ("mnist_mlp_512x3", "ResNet50")
    ]
    for name, rows in {
        "sweep_operations": [{"network": name, "operations": 9} for name in count.COUNTED],
        "profile_step": [{"step": "rates", "device": "cuda"}, *profiled],
        "same_seed": [{"pair": "a", "search": "b", "difference": 0.0}],
        "whole": [
            {"network": name, "way": "gpu-align", "device": device, "ms": TIME}
            for name in ("MLP 3x512", "ResNet50", "ResNet20 x32")
            for device in ("cuda", "cpu")
        ],
        "portfolio": [{"pair": "a", "times_cpu": 9.0}, {"pair": "a"}],
        "many_models_cuda": [{"models": 60_000, "networks": "a", "batch seconds": TIME}],
    }.items():
        write(results / f"{name}.json", rows)
    verdicts = {row[0]: row[3] for row in targets.judged()}
    assert "not measured" not in verdicts.values()
    assert verdicts["default search: times faster than all cores"] == "missed in 1 of 1"


@pytest.mark.parametrize("name", slow(["assignment_cpu", "beam_width_cpu"]))
def test_the_recorded_results_can_be_drawn(name, tmp_path, monkeypatch):
    recorded = json.loads((record.RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    assert not any("failed" in row for row in recorded["rows"])
    monkeypatch.setattr("bench.record.RESULTS", tmp_path)
    (tmp_path / f"{name}.json").write_text(json.dumps(recorded), encoding="utf-8")
    plot.main()
    assert (tmp_path / f"{name}.png").exists()
