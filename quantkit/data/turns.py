"""How are lists of turns read? `{role, content}` and sharegpt's `{from, value}`, under the names of roles people use.

A system turn that stands later is moved to the front and counted; roles and contents that no rule covers make the row
unusable. Handing such lists to a chat template as they are would drop them silently with some models.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quantkit.data.findings import Findings, RowError, shown
from quantkit.errors import did_you_mean

Message = dict[str, str]

ROLES = {"system": "system", "developer": "system", "user": "user", "human": "user", "assistant": "assistant"}
ROLES |= dict.fromkeys(("gpt", "chatgpt", "model", "bot"), "assistant")


@dataclass(frozen=True, slots=True)
class Turns:
    """Turns with the system turn first; assistant turns before index `first_response` are not learnt."""

    messages: list[Message]
    first_response: int = 0
    answers: tuple[str, ...] = ()
    """All reference answers, where the columns hold several; the last turn is the first of them."""
    options: tuple[tuple[str, str], ...] = ()
    """Label and text of each option, where the columns hold them."""


def content_text(value: Any, column: str, findings: Findings) -> str:
    """Return a cell or a turn's content as text that is not blank; lists of text parts are joined."""
    if isinstance(value, list) and value and all(isinstance(part, Mapping) and part.get("type") == "text" for part in value):
        findings.converted(column, "lists of text parts joined", shown(value))
        value = "".join(findings.text(part.get("text"), column) for part in value)
    text = findings.text(value, column)
    if not text.strip():
        raise RowError(f"{shown(value)} is blank", column=column, reason=f"blank {column!r}")
    return text


def chat_turns(value: Any, column: str, findings: Findings, *, follows: Sequence[Message] = (), answered: bool = True) -> Turns:
    """Read a list of turns that go on from those in `follows`; with `answered`, it must hold a response.

    Raises:
        RowError: it is no such list; the text names the turn (from 1) and what was found.
    """

    def bad(text: str, reason: str) -> RowError:
        return RowError(text, column=column, reason=reason)

    if not isinstance(value, list):
        raise bad(f"{shown(value)} is {type(value).__name__}, not a list of turns", f"unusable value in {column!r}")
    system = [turn for turn in follows if turn["role"] == "system"]
    messages = [turn for turn in follows if turn["role"] != "system"]
    learnt: list[str] = []
    for number, turn in enumerate(value, start=1):
        if not isinstance(turn, Mapping):
            raise bad(f"turn {number} is {shown(turn)}, not an object", "unusable turn")
        if turn.get("tool_calls"):
            raise bad(f"turn {number} calls tools, which are not supported", "tool calls")
        named = turn.get("role", turn.get("from"))
        role = ROLES.get(named.strip().lower()) if isinstance(named, str) else None
        if role is None:
            hint = did_you_mean(str(named), ROLES)
            raise bad(f"turn {number} has the role {shown(named)}.{hint} Known: {', '.join(ROLES)}", "unknown role")
        content = turn["content"] if "content" in turn else turn.get("value")
        text = content_text(content, f"{column}[{number}].content" if content is None else column, findings)
        if role == "system" and messages:
            findings.converted(column, "system turns moved to the front", f"from turn {number}")
        (system if role == "system" else messages).append({"role": role, "content": text})
        learnt.append(role)
    if len(system) > 1:
        raise bad(f"{len(system)} system turns; one is supported", "several system turns")
    if answered and "assistant" not in learnt:
        raise bad(f"no assistant turn among {shown(learnt)}; there is nothing to learn", "no response")
    if messages and messages[0]["role"] != "user":
        raise bad("the conversation begins with the assistant; a user turn comes first", "no user turn first")
    return Turns(system + messages, len(follows))
