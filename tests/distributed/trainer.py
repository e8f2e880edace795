"""`syncattn` as one of several processes: `python trainer.py FOLDER ARGUMENT...`, started by torchrun.

Besides what the command does, each process leaves the record that training returned to it, which only the
first one writes to the run's folder, as FOLDER/record-RANK.json.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from syncattn.__main__ import main
from syncattn.training import train as module
from syncattn.training.record import Record


def note_records(folder: Path) -> None:
    train = module.train

    def noting(*args: Any, **kwargs: Any) -> Record:
        record = train(*args, **kwargs)
        (folder / f"record-{os.environ['RANK']}.json").write_text(json.dumps(record.to_json()))
        return record

    module.train = noting


if __name__ == "__main__":
    note_records(Path(sys.argv.pop(1)))
    main()
