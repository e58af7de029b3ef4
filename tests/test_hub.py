"""Names that are no folder here: found in the cache, asked of the hub once, or refused in one line within seconds."""

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from quantkit import hub
from quantkit.errors import UsageError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a process that has not asked the hub yet."""
    monkeypatch.setattr(hub, "_found", [])
    for name, value in (("HF_HUB_OFFLINE", False), ("HF_HUB_CACHE", str(tmp_path)), ("HF_HOME", str(tmp_path))):
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    monkeypatch.delenv("HF_DATASETS_CACHE", raising=False)
    return tmp_path


@pytest.fixture
def mute() -> Iterator[str]:
    """The address of a server that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def answering() -> Iterator[tuple[str, list[bytes], list[bytes]]]:
    """The address of a server, what it was asked, and the line it answers with."""
    asked: list[bytes] = []
    answer = [b"HTTP/1.1 401 Unauthorized"]
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    asked.append(connection.recv(4096))
                    connection.sendall(answer[0] + b"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}", asked, answer


def at(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)


def kept(cache: Path, folder: str) -> None:
    (cache / folder / "snapshots" / "abc").mkdir(parents=True)


def test_a_hub_that_says_nothing_is_given_up_on_and_libraries_use_their_caches(
    mute: str, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    from huggingface_hub import constants

    at(mute, monkeypatch)
    monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "1")
    with pytest.raises(UsageError) as caught:
        hub.require_on_hub("nobody/nothing")
    assert f"no such model in the cache ({cache})" in str(caught.value)
    assert f"the hub cannot be asked: {mute} gives no answer" in str(caught.value)
    assert "Without a network, give a local folder" in str(caught.value)
    assert constants.HF_HUB_OFFLINE
    kept(cache, "models--nobody--nothing")
    hub.require_on_hub("nobody/nothing")


def test_a_hub_that_cannot_be_reached_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = f"http://127.0.0.1:{server.getsockname()[1]}"
    at(closed, monkeypatch)
    assert hub.reach_hub().startswith(f"{closed} gives no answer (")


def test_a_name_that_cannot_be_resolved_in_time_is_given_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    wait = threading.Event()
    monkeypatch.setattr(hub, "_ask", lambda *_: str(wait.wait()))
    monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "0.2")
    assert "gives no answer within 0.2 s; HF_HUB_ETAG_TIMEOUT sets how many" in hub.reach_hub()
    wait.set()


def test_a_hub_that_answers_is_asked_once_and_left_to_the_libraries(
    answering: tuple[str, list[bytes], list[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    endpoint, asked, _ = answering
    at(endpoint, monkeypatch)
    for _ in range(3):
        hub.require_on_hub("nobody/nothing")
    assert [item[:5] for item in asked] == [b"HEAD "]
    assert not constants.HF_HUB_OFFLINE


def test_a_hub_with_trouble_of_its_own_is_not_asked_for_files(
    answering: tuple[str, list[bytes], list[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint, _, answer = answering
    answer[0] = b"HTTP/1.1 503 Service Unavailable"
    at(endpoint, monkeypatch)
    assert hub.reach_hub() == f"{endpoint} answers 503"


def test_offline_is_the_users_word_and_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "_ask", lambda *_: pytest.fail("the hub was asked"))
    with pytest.raises(UsageError, match="the hub cannot be asked: HF_HUB_OFFLINE is set"):
        hub.require_on_hub("nobody/nothing")


@pytest.mark.parametrize(
    ("name", "what", "meant"),
    [
        ("Qwen/Qwen3-0.6", "model", "Qwen/Qwen3-0.6B"),
        ("my-modle", "model", "my-model"),
        ("models/mien", "model", "models/mine"),
        ("openai/gsm8", "data set", "openai/gsm8k"),
        ("Tiny-Lama", "model", "Tiny-Llama"),
    ],
)
def test_what_may_have_been_meant_is_named(
    name: str, what: str, meant: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "_found", ["nobody answers"])
    kept(cache, "models--Qwen--Qwen3-0.6B")
    kept(cache, "datasets--openai--gsm8k")
    for folder in ("models/mine", "my-model"):
        (cache / "here" / folder).mkdir(parents=True)
    monkeypatch.chdir(cache / "here")
    with pytest.raises(UsageError) as caught:
        hub.require_on_hub(name, what=what, near=["Tiny-Llama"])
    assert f"Did you mean '{meant}'?" in str(caught.value)


def test_data_sets_that_were_prepared_once_are_read_from_their_own_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_found", ["nobody answers"])
    (cache / "datasets" / "nvidia___open_math_instruct-2").mkdir(parents=True)
    hub.require_on_hub("nvidia/OpenMathInstruct-2", what="data set")
    with pytest.raises(UsageError, match="no such data set in the cache"):
        hub.require_on_hub("nvidia/OpenMath", what="data set")


def test_what_the_hub_does_not_have_is_one_line(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    import huggingface_hub

    def download(*_: object, **__: object) -> str:
        raise FileNotFoundError("404:\nno such repository")

    monkeypatch.setattr(hub, "_found", [""])
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    kept(cache, "models--owner--model")
    with pytest.raises(UsageError, match=r"not to be had from the hub \(FileNotFoundError: 404: no such.*mean 'owner/model'"):
        hub.fetch("owner/modle", patterns=["*.json"])
