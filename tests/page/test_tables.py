"""Tables: what they say without scripts, and what the script sorts them by."""

from syncattn.page.tables import Cell, table


def test_cells_are_escaped_and_named_for_phones():
    made = table("A < b", ['na"me', "x"], [["<b>", Cell("3", value=3.0, mark="#123456")]], sorts=True)
    assert "<b>" not in made and "&lt;b&gt;" in made and "A &lt; b" in made
    assert 'data-name="na&quot;me"' in made and 'data-value="3.0"' in made
    assert 'style="background:#123456"' in made


def test_numbers_stand_at_the_right_where_the_table_sorts():
    rows = [["OSN", "1.368"], ["Transformer", "all"]]
    assert table("t", ["model", "loss"], rows, sorts=True).count('class="number"') == 3
    plain = table("t", ["model", "loss"], rows)
    assert "number" not in plain and "data-name" not in plain


def test_a_table_without_rows():
    assert "<tbody>\n</tbody>" in table("nothing", ["a", "b"], [], sorts=True)
