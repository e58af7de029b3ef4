"""What do the checks look at? Rows as read, the model's configuration, the run's settings; no weights, nothing on a device."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from quantkit.config import RunConfig
from quantkit.data.chat import ChatFormat
from quantkit.data.prepare import ReadData, ReadSet
from quantkit.data.report import DataReport

POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length")
RELATIVE = ("rope", "rotary", "alibi", "relative_attention")


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a model's configuration says about token ids and positions; None where it says nothing."""

    vocab_size: int | None = None
    """Rows of the embedding."""
    positions: int | None = None
    """Longest row the model was made for, in tokens."""
    learnt_positions: bool = False
    """Whether positions are rows of a table too, so that there is none beyond the last one."""

    @classmethod
    def read(cls, path: str, *, revision: str | None = None, trust_remote_code: bool = False) -> "ModelFacts":
        """Read the configuration of a folder or hub id; raises `UsageError` where there is none."""
        from transformers import AutoConfig

        from quantkit.modeling import one_line, refuse_missing_folder

        refuse_missing_folder(path)
        with one_line(path, "config.json"):
            config = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=trust_remote_code)
        return cls.of(config.to_dict())

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "ModelFacts":
        """Read a `config.json`; of a model with several parts, the language model's.

        >>> ModelFacts.of({"vocab_size": 50257, "n_positions": 1024})
        ModelFacts(vocab_size=50257, positions=1024, learnt_positions=True)
        """
        inner = config.get("text_config")
        facts = {**config, **inner} if isinstance(inner, Mapping) else config
        positions = next((facts[name] for name in POSITIONS if isinstance(facts.get(name), int)), None)
        relative = any(word in key.lower() for key in _keys(facts) for word in RELATIVE)
        vocabulary = facts.get("vocab_size")
        return cls(vocabulary if isinstance(vocabulary, int) else None, positions, positions is not None and not relative)


def _keys(data: Mapping[str, Any]) -> Iterator[str]:
    for key, value in data.items():
        yield str(key)
        if isinstance(value, Mapping):
            yield from _keys(value)


@dataclass(frozen=True)
class Look:
    """All a check may ask for."""

    read: ReadData
    config: RunConfig
    model: ModelFacts

    @property
    def chat(self) -> ChatFormat:
        """Return the tokenizer's way of writing conversations."""
        return self.read.chat

    @property
    def tokenizer(self) -> Any:
        """Return the tokenizer."""
        return self.read.chat.tokenizer

    @property
    def train(self) -> ReadSet:
        """Return the rows that are trained on."""
        return self.read.train

    @property
    def sets(self) -> list[tuple[str, ReadSet]]:
        """Return the sets there are, each with what findings about it begin with."""
        evaluation = [("evaluation: ", self.read.evaluation)] if self.read.evaluation else []
        return [("", self.train), *evaluation]

    @cached_property
    def report(self) -> DataReport | None:
        """What the data room counted; None where a set has no usable row."""
        return self.read.report() if all(part.encoded.rows for _, part in self.sets) else None


def texts_of(part: ReadSet, index: int) -> list[str]:
    """Return the texts of row `index` (from 0) of those that can be used."""
    item = part.conversations[index]
    return [turn["content"] for turn in item.messages] if item.text is None else [item.text]


def place(part: ReadSet, index: int) -> str:
    """Return where row `index` (from 0) of those that can be used stands, without the folders of its file."""
    return without_folders(part.rows.place(part.conversations[index].row), part)


def without_folders(text: str, part: ReadSet) -> str:
    """Return a text that begins with the name of one of the set's files without that file's folder."""
    folders = [str(Path(file.path).parent) for file in part.rows.parts]
    inside = next((folder for folder in folders if text.startswith(f"{folder}/")), "")
    return text[len(inside) + 1 :] if inside else text
