"""Are tensors read and written one at a time what safetensors reads and writes, and is a wrong order found?"""

import pytest
import torch
from safetensors.torch import load_file, save_file

from quantkit.errors import UsageError, VerificationError
from quantkit.headers import StoredTensor, read_tensor_index
from quantkit.merging.tensorfiles import NAMES, Entry, ShardWriter, read_tensor, row_chunks

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.int64, torch.bool, torch.float8_e4m3fn]


def tensors():
    made = {str(dtype): torch.arange(24).reshape(6, 4).to(dtype) for dtype in DTYPES}
    return made | {"scalar": torch.tensor(3.5), "nothing": torch.zeros(0, 4), "vector": torch.arange(5.0)}


def entries(values):
    return [Entry(name, NAMES[str(item.dtype).removeprefix("torch.")], tuple(item.shape)) for name, item in values.items()]


def test_what_safetensors_writes_is_read(tmp_path):
    save_file(tensors(), tmp_path / "model.safetensors")
    for name, stored in read_tensor_index(tmp_path).tensors.items():
        assert torch.equal(read_tensor(stored), tensors()[name]), name


def test_rows_and_chunks_are_the_tensor(tmp_path):
    save_file({"a": torch.arange(70.0).reshape(10, 7)}, tmp_path / "model.safetensors")
    stored = read_tensor_index(tmp_path).tensors["a"]
    assert read_tensor(stored, slice(2, 4)).tolist() == torch.arange(70.0).reshape(10, 7)[2:4].tolist()
    pieces = list(row_chunks(stored, 3 * 7 * 4))
    assert [len(piece) for piece in pieces] == [3, 3, 3, 1]
    assert torch.equal(torch.cat(pieces), torch.arange(70.0).reshape(10, 7))


@pytest.mark.parametrize(("limit", "files"), [(10**9, 1), (100, 5)])
def test_what_is_written_safetensors_reads(tmp_path, limit, files):
    values = tensors()
    with ShardWriter(tmp_path, entries(values), max_shard_bytes=limit, metadata={"a": "b"}) as writer:
        for name, item in values.items():
            writer.write(name, iter(item.split(2) if item.dim() and len(item) else [item]))
    found = {name: item for path in tmp_path.glob("*.safetensors") for name, item in load_file(path).items()}
    assert all(torch.equal(found[name], item) for name, item in values.items())
    assert len(list(tmp_path.glob("*.safetensors"))) == files
    assert read_tensor_index(tmp_path).metadata == {"format": "pt", "a": "b"}


def test_a_tensor_out_of_order_too_short_of_another_type_or_forgotten(tmp_path):
    values = {"a": torch.zeros(4), "b": torch.zeros(4)}

    def write(*pairs):
        with ShardWriter(tmp_path, entries(values), max_shard_bytes=10**9) as writer:
            for name, item in pairs:
                writer.write(name, [item])

    with pytest.raises(VerificationError, match="b was written where a was announced"):
        write(("b", torch.zeros(4)))
    with pytest.raises(VerificationError, match="c was written where nothing was announced"):
        write(("a", torch.zeros(4)), ("b", torch.zeros(4)), ("c", torch.zeros(4)))
    with pytest.raises(VerificationError, match="a has 8 bytes where 16 were announced"):
        write(("a", torch.zeros(2)))
    with pytest.raises(VerificationError, match=r"a is torch.float16 where F32 was announced"):
        write(("a", torch.zeros(8, dtype=torch.float16)))
    with pytest.raises(VerificationError, match="b was announced and never written"):
        write(("a", torch.zeros(4)))


def test_a_file_that_ends_early_or_holds_an_unknown_type(tmp_path):
    path = tmp_path / "short"
    path.write_bytes(b"12345678")
    with pytest.raises(UsageError, match="short: ends 8 bytes early; the file was cut short"):
        read_tensor(StoredTensor("F32", (4,), path, 0, 16))
    with pytest.raises(UsageError, match="tensors of type F4 cannot be read here"):
        read_tensor(StoredTensor("F4", (4,), path, 0, 2))
