"""Training data: folders of rows or token streams, mixed by weight, read in a fixed order."""

from ratjax.data.batch import Batch
from ratjax.data.batches import Batches, Source, iterate, open_source
from ratjax.data.folder import MissingDataError
from ratjax.data.rows import Rows, write_rows
from ratjax.data.stream import Stream, write_stream

__all__ = [
    "Batch",
    "Batches",
    "MissingDataError",
    "Rows",
    "Source",
    "Stream",
    "iterate",
    "open_source",
    "write_rows",
    "write_stream",
]
