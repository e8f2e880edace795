"""Lines that were read before: the texts, models whose answers are known, the table, the page."""

import json
import runpy
from pathlib import Path

import pytest
import torch

pytest.importorskip("accelerate")

from syncattn.models import OSNConfig, OSNForCausalLM
from syncattn.training.errors import UserError
from syncattn_lab.study import by_gap
from syncattn_lab.study.lines import append_line
from syncattn_lab.study.plan import make_plan
from syncattn_lab.study.records import read_runs
from syncattn_lab.study.run import perform
from syncattn_lab.study.summary import as_groups

HERE = Path(__file__)
MADE = runpy.run_path(str(HERE.with_name("lines.py")))
PUBLISH = runpy.run_path(str(HERE.parents[3] / "benchmarks" / "publish_quality.py"))
MEASURE = runpy.run_path(str(HERE.parents[3] / "benchmarks" / "at_length" / "measure.py"))
TEXT = bytes(range(32, 127)) * 20


class Copier(torch.nn.Module):
    """After the beginning of a line that it has read it knows the rest, from as far as it reaches."""

    device = torch.device("cpu")

    def __init__(self, reach):
        super().__init__()
        self.reach = reach

    def forward(self, input_ids, past_key_values=None, use_cache=None):
        past = past_key_values or Past(torch.zeros(len(input_ids), 0, dtype=torch.int64))
        every = torch.cat((past.ids, input_ids), 1)
        logits = torch.zeros(*input_ids.shape, 256)
        for row, ids in enumerate(every.tolist()):
            for place in range(input_ids.shape[1]):
                read = bytes(ids[: past.ids.shape[1] + place + 1])
                at = read.rfind(read[-6:], max(0, len(read) - self.reach), len(read) - 1)
                if at >= 0 and len(read) > 6:
                    logits[row, place, read[at + 6]] = 20.0
        return type("Out", (), {"logits": logits, "past_key_values": Past(every)})


class Past:
    def __init__(self, ids):
        self.ids = ids

    def batch_repeat_interleave(self, repeats):
        self.ids = self.ids.repeat_interleave(repeats, 0)


def test_a_line_is_found_as_far_as_a_model_reaches():
    found = by_gap.measure(Copier(reach=600), by_gap.cases(TEXT, 2, 800), [100, 800])
    near, far = found
    assert near["right"] > 0.7 and near["loss"] < 1.6 and near["right_new"] < 0.1 and near["loss_new"] > 4
    assert abs(far["right"] - far["right_new"]) < 0.1


def test_cases_are_the_same_every_time_and_have_lines_of_one_length():
    (one, other), again = by_gap.cases(TEXT, 2, 300), by_gap.cases(TEXT, 2, 300)
    assert again == [one, other] and one.seen != other.seen
    assert len({len(cue + rest) for cue, rest in one.seen + one.new}) == 1
    assert all(cue + rest in one.before for cue, rest in one.seen)
    assert not any(cue in one.before for cue, _ in one.new)
    assert len(one.filler) == 300 and one.filler in TEXT
    with pytest.raises(UserError, match=r"a gap of 9,999 needs a text of 10,127 bytes, got 1,900"):
        by_gap.cases(TEXT, 1, 9999)


@torch.no_grad()
def test_a_model_is_asked_as_if_it_read_everything_anew():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "initializer_range": 0.3}
    model = OSNForCausalLM(OSNConfig(**sizes)).eval()
    (case,) = by_gap.cases(TEXT, 1, 64)
    short, long = by_gap.measure(model, [case], [8, 64])
    for gap, found in ((8, short), (64, long)):
        losses = []
        for cue, rest in case.seen:
            ids = torch.tensor([list(case.before + case.filler[:gap] + cue + rest)])
            logits = model(ids).logits[0, -len(rest) - 1 : -1]
            losses.append(torch.nn.functional.cross_entropy(logits, ids[0, -len(rest) :]))
        assert found["loss"] == pytest.approx(float(torch.stack(losses).mean()), rel=1e-4)


def measured(key, *right):
    entries = [
        {"gap": 256 << n, "loss": 1.0, "loss_new": 3.0, "right": share, "right_new": 0.1}
        for n, share in enumerate(right)
    ]
    return {"key": key, "gaps": entries}


def test_the_page_says_what_was_found(tmp_path):
    lines = [MADE["line"](), MADE["line"](variant="rotary", order=1)]
    path = tmp_path / by_gap.GAPS_FILE
    assert by_gap.read_gaps(path) == {}
    entries = [measured(lines[0]["key"], 0.9, 0.25), measured(lines[1]["key"], 0.5)]
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    (group,) = as_groups(lines)
    rows = by_gap.found_again(group, "stdlib", by_gap.read_gaps(path))
    assert rows[0] == "| model; bytes between | 256 | 512 | never there |"
    assert rows[2] == "| OSN | .90 (1.00) | .25 (1.00) | .10 (3.00) |" and rows[3].endswith(
        "| – | .10 (3.00) |"
    )
    assert by_gap.picture(group, "stdlib", by_gap.read_gaps(path)).startswith(b"\x89PNG")
    MADE["write"](lines, tmp_path)
    PUBLISH["publish"](tmp_path, tmp_path / "out", name="made", title="Made up")
    assert rows[2] in (tmp_path / "out" / "made.md").read_text()
    assert (tmp_path / "out" / "made" / by_gap.GAPS_FILE).read_bytes() == path.read_bytes()
    path.write_text('{"key": "a", "gaps": [{"gap": 1}]}\n')
    with pytest.raises(UserError, match="line 1: expected an object with key and gaps, each with gap, loss"):
        by_gap.read_gaps(path)


def test_measuring_a_studys_models_adds_what_is_not_there(tmp_path, monkeypatch):
    """A line in gaps.jsonl for each model, and with a factor a Transformer evaluated once more."""
    monkeypatch.setattr(by_gap, "GAPS", (16, 64))
    (tmp_path / "some.txt").write_bytes(TEXT)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    plan = {
        "model": {**sizes, "intermediate_size": 24},
        "training": {"context": 32, "batch_size": 2, "steps": 2, "final_eval_tokens": 256},
        "seeds": [0],
        "learning_rates": [0.01],
        "task": {"words": {"kind": "text", "text": ["some.txt"], "test": "some.txt"}},
        "tasks": ["words"],
        "group": [
            {
                "name": "g",
                "kind": "comparison",
                "lengths": [32, 64],
                "variant": [{"name": "plain", "model": "transformer"}, {"name": "osn"}],
            }
        ],
    }
    for run in make_plan(plan).runs:
        done = perform(run, tmp_path / "runs" / run.key.replace("/", "--"), tmp_path)
        append_line(tmp_path, done)
    for _ in range(2):
        for variant in ("plain", "osn"):
            MEASURE["scale"](tmp_path, tmp_path, variant, "2")
        MEASURE["ask"](tmp_path, tmp_path, 1)
    lines = read_runs(tmp_path / "runs.jsonl")
    for plain, scaled, name in ((*lines[:2], "plain-yarn-2"), (*lines[2:], "osn-wide-2")):
        assert scaled["variant"] == name and scaled["of"] == plain["key"]
        for loss in ("validation_loss", "test_loss"):
            assert scaled["result"][loss] == pytest.approx(plain["result"][loss], rel=0.01)
        assert scaled["result"]["lengths"] != plain["result"]["lengths"]
    windows = [MEASURE["load"](line, tmp_path, line.get("scaling")).model.windows() for line in lines[2:]]
    assert (windows[0][0, -1] < windows[1][0, -1]) and torch.equal(windows[0][0, :-1], windows[1][0, :-1])
    found = by_gap.read_gaps(tmp_path / by_gap.GAPS_FILE)
    assert [len(entries) for entries in found.values()] == [len(by_gap.GAPS)] * 4
    assert list(found) == [line["key"] for line in lines]
    with pytest.raises(UserError, match="has no finished run of the variant 'other'"):
        MEASURE["scale"](tmp_path, tmp_path, "other", "2")
    with pytest.raises(UserError, match="must be VARIANT=FACTOR, got plain=x"):
        MEASURE["scale"](tmp_path, tmp_path, "plain", "x")
