"""Charts as numbers for the page's script, and as tables for browsers without one."""

import math

from syncattn.page.charts import Chart, Line, chart, viridis

LINE = Line(
    "OSN", [0, 10, 20], [2.0, math.nan, 1.0], ("#111111", "#eeeeee"), [1.9, 1.5, 0.9], [2.1, 1.7, 1.1]
)
PALE = Line("OSN", [5], [1.5], ("#111111", "#eeeeee"), pale=True)


def made(*lines, **options):
    return Chart("Loss <1>", "It falls.", "tokens read", "loss", lines, **options)


def test_numbers_that_json_has_not_are_left_out():
    (line,) = made(LINE).data["lines"]
    assert line["y"] == [2.0, None, 1.0] and line["low"] == [1.9, 1.5, 0.9]
    assert made(PALE).data["lines"][0]["low"] is None


def test_the_table_has_the_points_that_are_read():
    page = chart(made(PALE, LINE), 3)
    assert 'data-chart="3"' in page and "Loss &lt;1&gt;" in page
    rows = page.split("<tbody>")[1]
    assert "<td>0</td><td>2.000</td>" in rows and "<td>10</td><td>–</td>" in rows
    assert "<td>5</td>" not in rows


def test_long_lines_are_thinned_in_the_table_and_keep_their_end():
    steps = list(range(0, 5000, 7))
    page = chart(made(Line("a", steps, [float(s) for s in steps], ("#000", "#fff"))), 0)
    assert page.count("<tr>") <= 18 and f"<td>{steps[-1]:,}</td>" in page


def test_viridis_keeps_away_from_the_paper():
    assert len(set(viridis(8))) == 8 and viridis(1) == [("#440154", viridis(5)[0][1])]
    light, dark = zip(*viridis(6))

    def brightness(colour):
        return sum(bytes.fromhex(colour[1:]))

    assert max(map(brightness, light)) < 500 and min(map(brightness, dark)) > 200
