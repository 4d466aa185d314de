"""A chat completion as OpenAI's clients send it, checked and brought to turns.

What changes the meaning of an answer and is not supported is refused by name (`_UNSUPPORTED`);
other unknown parameters are ignored, as OpenAI's servers do with most.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgevlm.errors import InputError
from edgevlm.runtimes.loops.sampling import Sampling
from edgevlm.serve.limits import Limits, wrong
from edgevlm.serve.pictures import picture

# Parameters, and the values of them that mean nothing.
_UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "n": (1,), "tools": ([],), "functions": ([],), "tool_choice": ("none", "auto"),
    "response_format": ({"type": "text"},), "logprobs": (False,), "top_logprobs": (0,),
    "frequency_penalty": (0,), "presence_penalty": (0,), "logit_bias": ({},),
    "modalities": (["text"],), "audio": (), "top_k": (), "min_p": (0,), "repetition_penalty": (1,),
    "web_search_options": (),
}  # fmt: skip
MOST_STOPS = 4  # as OpenAI's servers
MOST_LETTERS = 10**6  # of all texts together


@dataclass(frozen=True)
class Turn:
    """A question: its texts, and None for each of its pictures, in their order; its reply."""

    parts: tuple[str | None, ...]
    pictures: tuple[bytes, ...]
    reply: str | None = None  # None for the last one, which is asked


@dataclass(frozen=True)
class Completion:
    """A checked request."""

    model: str
    system: str | None
    turns: tuple[Turn, ...]
    most_tokens: int
    sampling: Sampling
    stops: tuple[str, ...]
    stream: bool
    usage: bool  # in a stream


def parse(body: bytes, limits: Limits, addresses: bool) -> Completion:
    """A request from its body; slow, as it decodes and may fetch.

    Raises:
        Refused: With what is wrong with it.
    """
    try:
        given = json.loads(body)
    except (ValueError, RecursionError) as cause:
        raise wrong(f"the body is not JSON: {str(cause)[:120]}") from cause
    if not isinstance(given, dict):
        raise wrong(f"the body must be an object, got {type(given).__name__}")
    given = {name: value for name, value in given.items() if value is not None}
    for name, neutral in _UNSUPPORTED.items():
        if name in given and given[name] not in neutral:
            raise wrong(f"'{name}' is not supported here; leave it out", "unsupported_parameter")
    messages = _is(given, "messages", list)
    most = given.get("max_completion_tokens", given.get("max_tokens", limits.most_tokens))
    if not isinstance(most, int) or isinstance(most, bool) or most < 1:
        raise wrong(f"max_completion_tokens must be a whole number from 1, got {most!r:.40}")
    system, turns = _turns(messages, limits, addresses)
    options = _is(given, "stream_options", dict, {})
    return Completion(
        _is(given, "model", str), system, turns, most, _sampling(given), _stops(given),
        _is(given, "stream", bool, False), options.get("include_usage") is True,
    )  # fmt: skip


def _is(given: Mapping[str, Any], name: str, kind: type, default: Any = None) -> Any:
    value = given.get(name, default)
    if value is None:
        raise wrong(f"'{name}' is missing", "missing_required_parameter")
    if not isinstance(value, kind):
        raise wrong(f"'{name}' must be of type {kind.__name__}, got {type(value).__name__}")
    return value


def _sampling(given: Mapping[str, Any]) -> Sampling:
    temperature, top_p = given.get("temperature", 0.0), given.get("top_p", 1.0)
    try:
        return Sampling(temperature, top_p, given.get("seed", secrets.randbits(31)))
    except InputError as cause:
        raise wrong(str(cause)) from cause


def _stops(given: Mapping[str, Any]) -> tuple[str, ...]:
    found = given.get("stop", [])
    found = [found] if isinstance(found, str) else found
    if not isinstance(found, list) or not all(isinstance(x, str) and x for x in found):
        raise wrong("'stop' must be a text or a list of texts, none of them empty")
    if len(found) > MOST_STOPS:
        raise wrong(f"'stop' has {len(found)} texts; expected at most {MOST_STOPS}")
    return tuple(found)


def _turns(
    messages: list[Any], limits: Limits, addresses: bool
) -> tuple[str | None, tuple[Turn, ...]]:
    """The system text, and the turns; all but the last have a reply."""
    system: str | None = None
    turns, letters, pictures = list[Turn](), 0, 0
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if not isinstance(message, dict):
            raise wrong(f"{where} must be an object, got {type(message).__name__}")
        role = message.get("role")
        parts, urls = _content(message.get("content"), where)
        letters += sum(len(part or "") for part in parts)
        pictures += len(urls)
        if letters > MOST_LETTERS or pictures > limits.pictures:
            raise wrong(
                f"{pictures} pictures and {letters:,} letters; expected at most"
                f" {limits.pictures} and {MOST_LETTERS:,}"
            )
        if urls and role != "user":
            raise wrong(f"{where}: pictures belong to messages of role 'user'")
        text = "\n".join(part for part in parts if part)
        waiting = bool(turns) and turns[-1].reply is None
        if role in ("system", "developer") and not index:
            system = text
        elif role == "user" and not waiting:
            data = tuple(picture(url, limits, addresses) for url in urls)
            turns.append(Turn(tuple(parts), data))
        elif role == "assistant" and waiting and not message.get("tool_calls"):
            turns[-1] = Turn(turns[-1].parts, turns[-1].pictures, text)
        else:
            raise wrong(
                f"{where}: role {role!r:.40} is out of place; expected one 'system' at the"
                " beginning, then 'user' and 'assistant' in turn"
            )
    if not turns or turns[-1].reply is not None:
        raise wrong("the last of 'messages' must be of role 'user'")
    return system, tuple(turns)


def _content(content: Any, where: str) -> tuple[list[str | None], list[str]]:
    """Texts and None for each picture; the pictures' addresses."""
    if isinstance(content, str):
        return [content], []
    if not isinstance(content, list):
        raise wrong(f"{where}: content must be a text or a list of parts")
    parts, urls = list[str | None](), list[str]()
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        value = part.get(kind) if isinstance(kind, str) else None
        if kind == "image_url":
            value = value.get("url") if isinstance(value, dict) else None
        if kind not in ("text", "image_url") or not isinstance(value, str):
            raise wrong(f"{where}: a part must be of type 'text' or 'image_url', got {kind!r:.40}")
        parts.append(value if kind == "text" else None)
        urls += [value] if kind == "image_url" else []
    return parts, urls
