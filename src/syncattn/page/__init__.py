"""What all pages of the project are made of: one file of HTML each, which needs no network and no other file.

The explorer (`syncattn.explorer`) and the reports of `compare`, `study` and `paper` take these parts. The
modules: `document` (the page around them, and the record that it gives away), `tables` (which sort), `charts`
(lines that can be read and switched off, drawn by the uPlot library in uplot/), `heads` (who listens to whom
in a sentence). Beside each stands its script; without scripts every part is a table or a plain text.
"""

from syncattn.page.charts import Chart, Line, chart
from syncattn.page.document import MOST_BYTES, document, download, report
from syncattn.page.heads import Weights, sentence
from syncattn.page.tables import Cell, table

__all__ = [
    "MOST_BYTES",
    "Cell",
    "Chart",
    "Line",
    "Weights",
    "chart",
    "document",
    "download",
    "report",
    "sentence",
    "table",
]
