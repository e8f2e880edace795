"""What is shown while a run goes on and at its end, on screens of any width."""

import io
import re

import pytest
from rich.console import Console
from transformers import TrainerControl, TrainerState

from syncattn.cli.show import show_run, show_table
from syncattn.terminal import fold
from syncattn.training.progress import Display, describe, fit
from syncattn.training.record import Record, Result

LOGS = {"loss": 12.3456, "tokens_per_second": 21_543.0, "grad_norm": 0.512}
LOGS |= {f"density/layer_{i}": 0.1 * i for i in range(6)}
LABELS = ("", "rotary-lr0.006-seed0")
ROWS = [
    ["model", "parameters", "lr", "validation", "test", "density", "tokens/s", "time"],
    ["OSN", "12,248,000", "0.006", "1.3690 ± 0.0030", "1.4020 ± 0.0040", "0.10", "124,000", "1,085 s"],
    ["Transformer, rotary, delay", "12,248,100", "0.0012", "1.4380 ± 0.0030", "1.5000", "", "30,000", "85 s"],
]


def show(width, label="", terminal=True, steps=20, **options):
    """What a run of `steps` with a log at every second and an evaluation at every tenth writes."""
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=terminal, color_system=None, legacy_windows=False)
    display = Display(console, label, **options)
    state = TrainerState(max_steps=1000 * steps)
    display.on_train_begin(None, state, TrainerControl())
    for step in range(1, steps + 1):
        state.global_step = 1000 * step
        control = TrainerControl(should_log=step % 2 == 0, should_evaluate=step % 10 == 0)
        display.on_step_end(None, state, control)
        if control.should_log:
            display.on_log(None, state, control, logs=dict(LOGS))
        if control.should_evaluate:
            display.on_evaluate(None, state, control, metrics={"eval_loss": 2.3})
        if display.progress is not None:
            display.progress.refresh()
    display.close()
    return [
        line for line in re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())) if line
    ]


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("width", [120, 80, 60, 40])
def test_a_live_line_is_never_cut(width, label):
    lines = show(width, label)
    live = [line for line in lines if "━" in line]
    assert live and max(map(len, lines)) <= width
    for line in live:
        assert re.search(r"[━╸╺ ]{5,} \d+/20000 .*(\d+:\d\d|-:--)$", line.rstrip()), line
        assert "…" not in line or (width == 40 and line.startswith("rotary-"))
    for line in lines:  # whatever is shown is a whole number with its name
        for name, number in re.findall(r"(loss|val|grad) ?(\S*)", line):
            assert re.fullmatch(r"\d+\.\d+", number), (name, line)
    if width == 120:
        assert "density" in live[-1] and "tok/s" in live[-1]


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("room", range(0, 130, 7))
def test_what_fits_fits(room, label):
    shown, bar, numbers = fit(label, LOGS | {"eval_loss": 2.3}, room)
    assert 5 <= bar <= 20 and len(shown) + bar + len(numbers) <= max(room, 6)
    assert numbers in (
        "",
        *("  ".join(describe(LOGS | {"eval_loss": 2.3}, mean)[:n]) for mean in (0, 1) for n in range(1, 6)),
    )


@pytest.mark.parametrize("terminal", [True, False])
def test_log_every_says_which_lines_are_printed(terminal):
    def printed(**options):
        return [
            line.split()[1].partition("/")[0]
            for line in show(200, terminal=terminal, **options)
            if line.startswith("step ")
        ]

    evaluations = ["10000", "20000"]
    assert printed() == evaluations
    assert printed(every_log=True) == [str(1000 * step) for step in range(2, 21, 2)]
    if not terminal:
        assert printed(seconds=0.0) == printed(every_log=True)


@pytest.mark.parametrize("width", [140, 110, 80, 60, 40])
def test_tables_are_never_cut_and_no_number_is_folded(width):
    out = io.StringIO()
    show_table(
        "loss in nats per token", ROWS, Console(file=out, width=width, force_terminal=True, color_system=None)
    )
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= width and "…" not in text
    assert all(cell in text for row in ROWS for cell in row if cell != "model")
    file = io.StringIO()
    show_table("loss in nats per token", ROWS, Console(file=file, width=40))
    assert any(all(cell in line for cell in ROWS[1]) for line in file.getvalue().splitlines())


def test_a_runs_last_lines_fit_and_can_be_copied(monkeypatch, capsys, tmp_path):
    result = Result(1.23456, 100, 1.3, 100, [[0.1, 0.2]], 1.0, 1.0, 12_345.0)
    record = Record("osn", {}, {}, {}, "", {}, {}, 12_345_678, {}, [], result, "cpu")
    monkeypatch.setattr("syncattn.cli.show.width", lambda: 40)
    show_run(record, tmp_path / "a folder")
    *numbers, hint = capsys.readouterr().out.splitlines()
    assert max(map(len, numbers)) <= 40 and "12,345,678 parameters," in " ".join(numbers)
    assert hint.endswith(f"""syncattn generate '{tmp_path}/a folder' --prompt "...\"""")


def test_folding():
    parts = ["one two", "three", "four five six", "a-word-without-any-end"]
    assert fold(parts, None) == "one two  three  four five six  a-word-without-any-end"
    assert fold(parts, 15) == "one two  three\n  four five six\n  a-word-without-any-end"
    assert fold(parts, 10) == "one two\n  three\n  four\n  five six\n  a-word-without-any-end"
    assert fold([], 10) == ""


def test_partners_are_shown_beside_the_density():
    values = {"loss": 1.0} | {
        f"{name}/layer_{i}": x for name, x in (("density", 0.1), ("partners", 12.6)) for i in (0, 1)
    }
    assert describe(values) == ["loss 1.000", "density 0.10 0.10", "partners 13 13"]
    assert describe(values, mean=True) == ["loss 1.000", "density 0.10", "partners 13"]
