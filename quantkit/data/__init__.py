"""Data sets to token ids and loss masks: `sources` reads rows, `schemas` makes turns of them, `chat` renders them, `encode`
checks and labels the tokens, `prepare` runs all four. Nothing heavy is imported before it is needed."""

from quantkit.data.chat import ChatFormat
from quantkit.data.collate import Collator
from quantkit.data.conversations import to_conversations
from quantkit.data.encode import EncodedRow
from quantkit.data.findings import Findings
from quantkit.data.prepare import PreparedData, ReadData, ReadSet, prepare_data, read_data
from quantkit.data.report import DataReport
from quantkit.data.schemas import Conversation
from quantkit.data.sources import DatasetRef, Rows, parse_dataset, read_rows
from quantkit.data.tasks import DATASETS, DatasetInfo, dataset_info

__all__ = [
    "DATASETS",
    "ChatFormat",
    "Collator",
    "Conversation",
    "DataReport",
    "DatasetInfo",
    "DatasetRef",
    "EncodedRow",
    "Findings",
    "PreparedData",
    "ReadData",
    "ReadSet",
    "Rows",
    "dataset_info",
    "parse_dataset",
    "prepare_data",
    "read_data",
    "read_rows",
    "to_conversations",
]
