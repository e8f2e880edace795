"""A page in the browser that shows which tokens lock, and recomputes it as coupling and bandwidth change.

`explore` makes it of any model with synchronization layers. The modules: `gather` (what the layers were
called with), `payload` (its numbers, as the page reads them), `tables` (the same as plain HTML tables), and
`page` (all of it as one file, of the parts in `syncattn.page`). In the page, arithmetic.js is the law of
locking, pictures.js draws, and page.js is what the reader moves.
"""

from syncattn.explorer.page import Page, explore
from syncattn.explorer.payload import tokens_that_fit

__all__ = ["Page", "explore", "tokens_that_fit"]
