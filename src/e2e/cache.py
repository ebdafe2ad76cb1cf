"""Checks with the official OpenAI SDK that an answer from the cache is the answer that was kept.

With OPENAI_BASE_URL, OPENAI_API_KEY and MODEL, a model whose answers are cached, in the environment.
"""

import os

import openai

MODEL = os.environ["MODEL"]
SAME = {"model": MODEL, "temperature": 0}
WITH_USAGE = {"stream": True, "stream_options": {"include_usage": True}}
CLIENT = openai.OpenAI(max_retries=0, timeout=60)


def said(text):
    return {"messages": [{"role": "user", "content": text}]}


def whole(create, **asked):
    """What the cache did, and the answer as plain data."""
    raw = create(**SAME, **asked)
    return raw.headers["x-turnpike-cache"].split(";")[0], raw.parse().model_dump()


def streamed(create, **asked):
    """What the cache did, and the chunks as plain data."""
    raw = create(**SAME, **asked)
    return raw.headers["x-turnpike-cache"].split(";")[0], [chunk.model_dump() for chunk in raw.parse()]


def joined(chunks):
    """The parts of a stream that a whole answer has too."""
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    texts = [(choice.get("delta") or {}).get("content") or choice.get("text") or "" for choice in choices]
    reasons = [choice["finish_reason"] for choice in choices if choice["finish_reason"]]
    usages = [chunk["usage"] for chunk in chunks if chunk.get("usage")]
    first = chunks[0]
    return first["id"], first["model"], first["created"], "".join(texts), reasons, usages


def parts(answer):
    """The same parts of a whole answer."""
    choice = answer["choices"][0]
    text = choice["message"]["content"] if "message" in choice else choice["text"]
    return answer["id"], answer["model"], answer["created"], text, [choice["finish_reason"]], [answer["usage"]]


def same(label, left, right):
    assert left == right, f"{label}:\n{left}\n{right}"


def kept_whole(create, asked):
    """An answer that was made as a document is given as a document and as a stream."""
    status, made = whole(create, **asked)
    same("a first request", status, "miss")
    status, again = whole(create, **asked)
    same("a second one", status, "hit")
    same("the same object", again, made)
    status, chunks = streamed(create, **asked, **WITH_USAGE)
    same("as a stream", status, "hit")
    same("as a stream", joined(chunks), parts(made))
    status, chunks = streamed(create, **asked, stream=True)
    assert len(chunks) > 1 and not any(chunk.get("usage") for chunk in chunks), chunks
    same("without usage", joined(chunks)[:5], parts(made)[:5])


def kept_streamed(create, asked):
    """An answer that was made as a stream is given as the same stream and as a document."""
    status, made = streamed(create, **asked, stream=True)
    same("a first stream", status, "miss")
    status, again = streamed(create, **asked, stream=True)
    same("a second one", status, "hit")
    same("the same chunks", again, made)
    status, told = streamed(create, **asked, **WITH_USAGE)
    same("with usage", status, "hit")
    assert told[-1]["usage"]["completion_tokens"] > 0 and told[-1]["choices"] == [], told[-1]
    status, answer = whole(create, **asked)
    same("as a document", status, "hit")
    same("as a document", parts(answer), joined(told))


def main():
    chat = CLIENT.chat.completions.with_raw_response.create
    completion = CLIENT.completions.with_raw_response.create
    kept_whole(chat, said("a document, please"))
    kept_streamed(chat, said("a stream, please"))
    kept_whole(completion, {"prompt": "a document of text"})
    kept_streamed(completion, {"prompt": "a stream of text"})
    # What does not change the answer does not change the key, and what does, does.
    asked = said("a document, please")
    same("another user", whole(chat, **asked, user="somebody else")[0], "hit")
    same("metadata", whole(chat, **asked, metadata={"a": "b"})[0], "hit")
    same("another length", whole(chat, **asked, max_tokens=3)[0], "miss")
    same("a seed", [whole(chat, **asked, seed=seed)[0] for seed in (1, 1, 2)], ["miss", "hit", "miss"])


if __name__ == "__main__":
    main()
