"""Drives a running Turnpike with the official OpenAI SDK, the way a user's program does.

    sdk.py SCENARIO        with OPENAI_BASE_URL, OPENAI_API_KEY and MODEL in the environment

A scenario that finds something wrong ends with an exception. One that is content prints a line of JSON: the usage that
the SDK was told, for the caller to compare with what was billed.
"""

import json
import os
import sys
import time

import openai

MODEL = os.environ.get("MODEL", "")
EMBEDDING_MODEL = os.environ.get("EMBEDDING_MODEL", "")
PROMPT = [
    {"role": "system", "content": "You answer briefly."},
    {"role": "user", "content": "Write one sentence about a bridge over a river."},
]
# Sampling that gives the same answer each time, so that two runs use the same number of tokens.
SAME = {"temperature": 0, "seed": 7, "max_tokens": 24}


def client(**settings):
    # No retries: what the first answer was is what is tested.
    return openai.OpenAI(max_retries=0, timeout=120, **settings)


class Seen:
    """Sums up the usage that the SDK was told."""

    def __init__(self):
        self.requests = self.prompt = self.completion = 0

    def add(self, usage, times=1):
        completion = getattr(usage, "completion_tokens", 0) or 0
        assert usage.prompt_tokens > 0, usage
        assert usage.total_tokens == usage.prompt_tokens + completion, usage
        self.requests += times
        self.prompt += usage.prompt_tokens * times
        self.completion += completion * times

    def print(self):
        print(json.dumps({"requests": self.requests, "prompt_tokens": self.prompt, "completion_tokens": self.completion}))


def models(seen):
    listed = [model.id for model in client().models.list()]
    assert MODEL in listed, f"{MODEL} is not among {listed}"
    one = client().models.retrieve(MODEL)
    assert (one.id, one.object) == (MODEL, "model") and one.owned_by and one.created > 0, one


def chat(seen):
    raw = client().chat.completions.with_raw_response.create(model=MODEL, messages=PROMPT, **SAME)
    assert raw.headers.get("x-request-id"), dict(raw.headers)
    answer = raw.parse()
    choice = answer.choices[0]
    assert choice.message.role == "assistant" and choice.message.content, answer
    assert choice.finish_reason in ("stop", "length"), answer
    assert answer.model == MODEL and answer.object == "chat.completion", answer
    assert 0 < answer.usage.completion_tokens <= SAME["max_tokens"], answer.usage
    seen.add(answer.usage)


def completion(seen):
    answer = client().completions.create(model=MODEL, prompt="The river runs", **SAME)
    assert answer.object == "text_completion" and answer.choices[0].text, answer
    seen.add(answer.usage)


def streaming(seen):
    """Chunks come one by one; usage only for who asked, but the bill is the same."""
    began = time.monotonic()
    texts, times, usages = [], [], []
    asked = {"stream": True, "stream_options": {"include_usage": True}}
    for chunk in client().chat.completions.create(model=MODEL, messages=PROMPT, **asked, **SAME):
        if chunk.choices and chunk.choices[0].delta.content:
            texts.append(chunk.choices[0].delta.content)
            times.append(time.monotonic() - began)
        if chunk.usage:
            assert not chunk.choices, "usage comes in a chunk of its own"
            usages.append(chunk.usage)
    assert len(usages) == 1, usages
    assert len(texts) > 2, texts
    # A token takes the engine tens of milliseconds. A proxy that collects some before it hands them over would show as
    # chunks right after one another.
    apart = sum(later - earlier > 0.005 for earlier, later in zip(times, times[1:]))
    assert apart >= 0.8 * (len(times) - 1), f"chunks came together: {times}"

    again = []
    for chunk in client().chat.completions.create(model=MODEL, messages=PROMPT, stream=True, **SAME):
        assert chunk.choices, "a chunk without choices, which only who asks for usage expects"
        assert not chunk.usage, chunk
        again.append(chunk.choices[0].delta.content or "")
    assert "".join(again) == "".join(texts), (again, texts)
    seen.add(usages[0], times=2)


def embeddings(seen):
    one = client().embeddings.create(model=EMBEDDING_MODEL, input="a bridge over a river")
    # The SDK asks for base64 by itself; ask for plain numbers too.
    two = client().embeddings.create(
        model=EMBEDDING_MODEL, input=["a bridge over a river", "tax law"], encoding_format="float"
    )
    same = max(abs(a - b) for a, b in zip(one.data[0].embedding, two.data[0].embedding))
    assert same < 1e-4, f"base64 and float differ by {same}"
    dot = sum(a * b for a, b in zip(two.data[0].embedding, two.data[1].embedding))
    assert dot < 0.9, f"different texts have nearly the same embedding ({dot})"
    assert [item.index for item in two.data] == [0, 1], two
    seen.add(one.usage)
    seen.add(two.usage)


def large_prompt(seen):
    """Two megabytes of prompt: the model refuses (it is too long), the edge does not."""
    try:
        client().chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "river " * 350_000}])
    except openai.BadRequestError as error:
        assert error.code == "context_length_exceeded", error
    else:
        raise AssertionError("a prompt beyond the context was accepted")


def abort(seen):
    """Leaves in mid-stream."""
    stream = client().chat.completions.create(
        model=MODEL, messages=PROMPT, stream=True, temperature=0, max_tokens=400
    )
    for number, _chunk in enumerate(stream):
        if number == 2:
            break
    stream.close()


def expect(kind, status, code, call):
    try:
        call()
    except openai.APIStatusError as error:
        assert type(error) is kind, f"{type(error).__name__} instead of {kind.__name__}: {error}"
        assert error.status_code == status, error
        assert error.code == code, f"code {error.code!r} instead of {code!r}: {error}"
        assert error.body and error.body.get("message") and error.body.get("type"), error.body
        assert error.request_id, "an error without x-request-id"
        return error
    raise AssertionError(f"{kind.__name__} was expected, but the call succeeded")


def ask(key=None, model=None, **more):
    keyed = client(api_key=key) if key else client()
    fields = {"messages": PROMPT, "max_tokens": 1, **more}
    return lambda: keyed.chat.completions.create(model=model or MODEL, **fields)


def errors(seen):
    """Every error class of the SDK. Keys with their faults come in KEYS as JSON."""
    keys = json.loads(os.environ["KEYS"])
    expect(openai.AuthenticationError, 401, "invalid_api_key", ask(key="sk-wrong"))
    expect(openai.AuthenticationError, 401, "invalid_api_key", lambda: client(api_key="sk-wrong").models.list())
    expect(openai.AuthenticationError, 401, "invalid_api_key", ask(key=keys["revoked"]))
    expect(openai.AuthenticationError, 401, "api_key_disabled", ask(key=keys["disabled"]))
    expect(openai.AuthenticationError, 401, "api_key_expired", ask(key=keys["expired"]))
    expect(openai.PermissionDeniedError, 403, "missing_permission", ask(key=keys["unpermitted"]))
    expect(openai.NotFoundError, 404, "model_not_found", ask(model="no-such-model"))
    expect(openai.NotFoundError, 404, "model_not_found", lambda: client().models.retrieve("no-such-model"))
    expect(openai.PermissionDeniedError, 403, "model_not_allowed", ask(key=keys["other_models"]))
    expect(openai.BadRequestError, 400, None, ask(temperature="warm"))

    limited = ask(key=keys["limited"])
    seen.add(limited().usage)
    error = expect(openai.RateLimitError, 429, "rate_limit_exceeded", limited)
    assert float(error.response.headers["retry-after"]) > 0, dict(error.response.headers)


SCENARIOS = [models, chat, completion, streaming, embeddings, large_prompt, abort, errors]

if __name__ == "__main__":
    seen = Seen()
    {scenario.__name__: scenario for scenario in SCENARIOS}[sys.argv[1]](seen)
    seen.print()
