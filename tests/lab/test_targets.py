"""What the project's targets say of a record of the benchmark; the records are written here."""

import pytest

pytest.importorskip("transformers")

from syncattn.bench.plan import BACKWARD, FORWARD
from syncattn_lab.targets import assess, cpu, gpu


def timed(seconds, ratio=None):
    spread = {"median": ratio, "quartiles": [ratio - 0.01, ratio + 0.01]} if ratio else None
    return {"status": "measured", "seconds": [seconds] * 3} | ({"ratio": spread} if spread else {})


def entry(suite, name, passes, contenders, **case):
    sizes = cpu.SIZES | case
    return {"suite": suite, "name": name, "passes": passes, "threads": 1, "case": sizes} | {
        "contenders": contenders
    }


def record(*entries, memory=()):
    return {"preferred": "ours", "entries": list(entries), "memory": list(memory)}


def test_the_table_says_what_was_met_at_the_targets_sizes():
    ours = {"sdpa": timed(1.0), "ours": timed(0.5, 0.5)}
    found = record(
        entry("table", "dense, symmetric", FORWARD, ours), entry("table", "dense, directed", BACKWARD, ours)
    )
    rows = {row[0]: row[2:] for row in cpu.rows(found)}
    assert rows["dense, symmetric, forward"] == ["<= 0.50", "0.50 (0.49 to 0.51)", "yes"]
    assert rows["dense, directed, forward+backward"][2] == "no"
    assert cpu.bounds(found)[FORWARD] == [[0.95, 0.5], [0.25, 0.38], [0.05, 0.16], [0.01, 0.08]]
    assert assess(found) == {"rows": cpu.rows(found), "bounds": cpu.bounds(found)}
    layer = entry("table", "layer, causal, 8 %", FORWARD, ours, structure="layer", freq_dim=16)
    assert cpu.rows(record(layer))[0][2:] == ["<= 0.18", "0.50 (0.49 to 0.51)", "no"]
    assert cpu.bounds(record(layer)) == {}
    other = record(entry("table", "dense, symmetric", FORWARD, ours, tokens=96))
    assert assess(other) == {"rows": [], "bounds": {}}


def test_who_did_not_measure_has_not_met_the_target():
    wrong = {"sdpa": timed(1.0), "ours": {"status": "wrong"}}
    ((_, _, wanted, measured, met),) = cpu.rows(record(entry("table", "dense, symmetric", FORWARD, wrong)))
    assert (wanted, measured, met) == ("<= 0.50", "wrong", "no")


@pytest.mark.parametrize(
    ("suite", "name", "head_dim", "title", "wanted", "met"),
    [
        ("gpu-64", "dense", 64, "dense, d 64, N 32768, forward", "<= 1", "yes"),
        ("gpu-64", "25 % of the tiles", 64, "25 % of the tiles, d 64, N 32768, forward", "<= 0.4", "no"),
        ("gpu-64", "layer, window 512", 64, "layer, window 512, d 64, N 32768, forward", "<= 0.08", "no"),
        ("gpu-decode", "dense, 64 cached", 128, "dense, 64 cached, forward", "<= 0.65", "yes"),
        ("gpu-decode", "dense, 64 cached", 128, "dense, 64 cached, forward, CUDA graph", "<= 0.65", "yes"),
    ],
)
def test_the_targets_of_the_gpu_are_of_the_faster_rival(suite, name, head_dim, title, wanted, met):
    graph = "+graph" if "graph" in title else ""
    contenders = {f"{who}{graph}": timed(s) for who, s in (("sdpa", 2.0), ("flash", 1.0), ("ours", 0.5))}
    found = record(entry(suite, name, FORWARD, contenders, tokens=32768, head_dim=head_dim))
    assert gpu.rows(found) == [[title, "GPU", wanted, "0.5 (0.5 to 0.5) × flash", met]]
    contenders[f"ours{graph}"]["status"] = "wrong"  # timed all the same, by --time-wrong
    ((*_, measured, met),) = gpu.rows(found)
    assert measured.startswith("WRONG, ") and met == "no"


def test_the_bytes_that_decoding_reads():
    contenders = {"sdpa": timed(2.0), "ours": timed(1.0)}
    for m, density, share, met in (
        (8, 1.0, "0.625", "yes"),
        (16, 1.0, "0.75", "no"),
        (16, 0.05, "0.275", "yes"),
    ):
        one = entry("gpu-decode", "x", FORWARD, contenders, tokens=32768, head_dim=64, freq_dim=m)
        one["counted"] = {"density": density}
        assert gpu.rows(record(one))[1] == [
            "x: bytes read of the cache", "GPU", "<= 0.65", f"{share} (counted, not timed)", met,
        ]  # fmt: skip


def test_memory_is_held_to_linear_growth():
    points = [
        {"suite": "gpu-memory", "name": name, "contender": "ours", "tokens": n, "bytes": bytes_}
        for name, most in (("dense", 2000), ("layer", 4000))
        for n, bytes_ in ((64, 1000), (128, most))
    ]
    assert [row[4] for row in gpu.rows(record(memory=points))] == ["yes", "no"]
