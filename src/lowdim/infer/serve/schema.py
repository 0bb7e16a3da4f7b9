"""The bodies of requests: types and bounds of every field that is served."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator, field_validator, model_validator
from pydantic_core import PydanticCustomError

from lowdim.infer.decode.sampling import Sampling
from lowdim.infer.serve.fields import IN_MESSAGES, keep_served


def _check_unicode(text: str) -> str:
    """Refuse what JSON can spell but no tokenizer can read."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("there is half a surrogate pair in it, which is not a character.") from error
    return text


def _check_prompt(item: Any) -> str | list[int]:
    """Return a text or a list of token ids; a union of pydantic's would add its branches to the place of an error."""
    if isinstance(item, str):
        return _check_unicode(item)
    if isinstance(item, list) and all(type(token) is int for token in item):
        return item
    raise ValueError("takes a string or a list of token ids.")


Text = Annotated[str, AfterValidator(_check_unicode)]
Prompt = Annotated[str | list[int], PlainValidator(_check_prompt)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class StreamOptions(_Strict):
    """What a stream carries besides text."""

    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class Message(_Strict):
    """One turn of a conversation; ``developer`` is the newer name of ``system``."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text
    name: Text | None = None

    @model_validator(mode="before")
    @classmethod
    def _drop_empty(cls, data: Any) -> Any:
        """Accept an answer's message as it came, with its empty ``refusal``, ``tool_calls`` and the like."""
        if not isinstance(data, dict):
            return data
        served = frozenset(cls.model_fields)
        given = {key: value for key, value in data.items() if key in served or value not in (None, [])}
        return keep_served(given, served, harmless=frozenset(), neutral=IN_MESSAGES)

    @field_validator("content", mode="before")
    @classmethod
    def _join(cls, content: Any) -> Any:
        if not isinstance(content, list):
            return content
        texts = [part.get("text") if isinstance(part, dict) else None for part in content]
        for part, text in zip(content, texts, strict=True):
            if not isinstance(text, str) or part.get("type") != "text":
                raise ValueError("only parts of type 'text' are supported, each with a string 'text'.")
        return "".join(text for text in texts if text is not None)

    def turn(self) -> dict[str, str]:
        """Return the message as chat templates know it; most of them leave the name out."""
        named = {} if self.name is None else {"name": self.name}
        return {"role": "system" if self.role == "developer" else self.role, "content": self.content} | named


class Generation(_Strict):
    """What both endpoints take. Fields set to ``null`` have their defaults, which are OpenAI's."""

    model: str
    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(default=None, gt=0, le=1, allow_inf_nan=False)
    top_k: int | None = Field(default=None, ge=0)
    repetition_penalty: float | None = Field(default=None, gt=0, le=10, allow_inf_nan=False)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    n: int | None = Field(default=None, ge=1)
    stop: list[Text] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _keep_served(cls, data: Any) -> Any:
        return keep_served(data, frozenset(cls.model_fields))

    @field_validator("stop", mode="before")
    @classmethod
    def _list(cls, stop: Any) -> Any:
        found = [stop] if isinstance(stop, str) else stop
        if isinstance(found, list) and (len(found) > 4 or not all(found)):
            raise ValueError("stop takes at most 4 strings, none of them empty.")
        return found

    @model_validator(mode="after")
    def _check_options(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise PydanticCustomError(
                "invalid", "{param} is for streams alone: set stream to true.", {"param": "stream_options"}
            )
        return self

    @property
    def choices(self) -> int:
        """Answers to each prompt."""
        return self.n or 1

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with the token counts."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def sampling(self, max_tokens: int, choice: int) -> Sampling:
        """Return how one answer is drawn.

        Args:
            max_tokens: most tokens of it.
            choice: its number among the ``n`` answers; each has a seed of its own, ``seed + choice``.
        """
        return Sampling(
            max_tokens=max_tokens,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_k=self.top_k or 0,
            top_p=1.0 if self.top_p is None else self.top_p,
            repetition_penalty=1.0 if self.repetition_penalty is None else self.repetition_penalty,
            seed=None if self.seed is None else (self.seed + choice) % 2**63,
            stop=tuple(self.stop or ()),
        )


class ChatRequest(Generation):
    """The body of ``POST /v1/chat/completions``."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _one_limit(self) -> Self:
        """Make ``max_tokens`` the limit, under whichever of its two names it came."""
        old, new = self.max_tokens, self.max_completion_tokens
        if old is not None and new is not None and old != new:
            raise PydanticCustomError(
                "invalid",
                "{param} and max_tokens are two names of one limit, and they differ. Give one of them.",
                {"param": "max_completion_tokens"},
            )
        self.max_tokens = old if new is None else new
        return self


class CompletionRequest(Generation):
    """The body of ``POST /v1/completions``; ``prompt`` becomes a list of texts or of lists of token ids."""

    prompt: list[Prompt] = Field(min_length=1)

    @field_validator("prompt", mode="before")
    @classmethod
    def _listed(cls, prompt: Any) -> Any:
        if isinstance(prompt, str):
            return [prompt]
        if isinstance(prompt, list) and prompt and all(type(item) is int for item in prompt):
            return [prompt]
        if isinstance(prompt, list) and all(isinstance(item, str | list) for item in prompt):
            return prompt
        raise ValueError("prompt takes a string, a list of strings, a list of token ids, or a list of those.")
