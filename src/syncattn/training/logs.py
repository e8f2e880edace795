"""The run's numbers as TensorBoard reads them.

They are written without a thread, so that a full disk is told where it is met.
"""

from __future__ import annotations

import errno
import importlib.util
import io
import os
import socket
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import rewrite_logs

from syncattn.training.files import disk_errors


def has_tensorboard() -> bool:
    """Whether the package that knows the format of the files is installed."""
    return importlib.util.find_spec("tensorboard") is not None


class EventFile(TrainerCallback):
    """Every number of every log, as one scalar of TensorBoard's; one file for each start of training.

    Args:
        folder: is made when training begins.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file: io.FileIO | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # The name that TensorBoard looks for; it reads what has the latest time.
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.0"
        with disk_errors(f"cannot write the logs to {self.folder}"):
            self.folder.mkdir(exist_ok=True)
            self.file = (self.folder / name).open("wb", buffering=0)
        self._write(file_version="brain.Event:2")

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        numbers = {name: x for name, x in rewrite_logs(logs or {}).items() if isinstance(x, (int, float))}
        if numbers and self.file is not None:
            values = [{"tag": name, "simple_value": number} for name, number in numbers.items()]
            self._write(step=state.global_step, summary={"value": values})

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; also needed when training ends with an exception."""
        if self.file is not None:
            self.file.close()
            self.file = None

    def _write(self, **fields: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        assert self.file is not None
        record = io.BytesIO()  # a record is written at once, or not
        RecordWriter(record).write(Event(wall_time=time.time(), **fields).SerializeToString())
        with disk_errors(f"cannot write the logs to {self.folder}"):
            if self.file.write(record.getvalue()) != len(record.getvalue()):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
