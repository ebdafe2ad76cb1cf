"""What a step of an engine takes on this machine's GPU: the figures behind the simulator's `sim-gpu` (src/engine/mod.rs).

    python3 loadtest/gpu.py

Needs PyTorch and 60 GiB of GPU memory. A model of eight billion parameters (32 layers, 4,096 wide, 8 heads of keys and
values) with random weights in bfloat16, a step in a CUDA graph, no engine around it. Weights do not matter to the time.
"""

import time

import torch
from torch.nn import functional

LAYERS, WIDTH, QUERIES, KEYS, HEAD, INNER, WORDS = 32, 4096, 32, 8, 128, 14336, 128256
KIND = {"device": "cuda", "dtype": torch.bfloat16}


def weights(rows, columns):
    return torch.randn(rows, columns, **KIND) * 0.01


class Layer:
    def __init__(self):
        self.attend_in = weights((QUERIES + 2 * KEYS) * HEAD, WIDTH)
        self.attend_out = weights(WIDTH, QUERIES * HEAD)
        self.inner_in = weights(2 * INNER, WIDTH)
        self.inner_out = weights(WIDTH, INNER)
        self.norms = torch.ones(2, WIDTH, **KIND)

    def __call__(self, state, attention):
        normed = functional.rms_norm(state, (WIDTH,), self.norms[0])
        parts = (normed @ self.attend_in.t()).split([QUERIES * HEAD, KEYS * HEAD, KEYS * HEAD], -1)
        state = state + attention(*parts) @ self.attend_out.t()
        normed = functional.rms_norm(state, (WIDTH,), self.norms[1])
        gate, up = (normed @ self.inner_in.t()).chunk(2, -1)
        return state + (functional.silu(gate) * up) @ self.inner_out.t()


def middle_ms(run, times):
    """Milliseconds of the middle one of several runs."""
    taken = []
    for _ in range(times):
        torch.cuda.synchronize()
        began = time.perf_counter()
        run()
        torch.cuda.synchronize()
        taken.append(time.perf_counter() - began)
    return sorted(taken)[times // 2] * 1e3


def decode_ms(layers, head, batch, context):
    """A step that makes one token for each of `batch` sequences of `context` tokens."""
    # Two caches by turns: as much is read as if each layer had its own.
    caches = [torch.randn(2, batch, KEYS, context, HEAD, **KIND) for _ in range(2)]
    start = torch.randn(batch, WIDTH, **KIND)

    def step():
        state = start
        for number, layer in enumerate(layers):
            keys, values = caches[number % 2]

            def attention(queries, _key, _value):
                # Queries that share keys are rows of one product.
                rows = queries.view(batch, KEYS, QUERIES // KEYS, HEAD)
                return functional.scaled_dot_product_attention(rows, keys, values).reshape(batch, QUERIES * HEAD)

            state = layer(state, attention)
        return (state @ head.t()).argmax(-1)

    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        step()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    graph.replay()
    return middle_ms(lambda: [graph.replay() for _ in range(10)], 3) / 10


def prefill_ms(layers, head, tokens):
    """Reading a prompt."""
    start = torch.randn(tokens, WIDTH, **KIND)

    def attention(queries, keys, values):
        shaped = [part.view(1, tokens, -1, HEAD).transpose(1, 2) for part in (queries, keys, values)]
        out = functional.scaled_dot_product_attention(*shaped, is_causal=True, enable_gqa=True)
        return out.transpose(1, 2).reshape(tokens, QUERIES * HEAD)

    def read():
        state = start
        for layer in layers:
            state = layer(state, attention)
        return state[-1:] @ head.t()

    read()
    return middle_ms(read, 5)


def main():
    print(torch.cuda.get_device_name(), "with PyTorch", torch.__version__)
    with torch.no_grad():
        layers, head = [Layer() for _ in range(LAYERS)], weights(WORDS, WIDTH)
        for context in (256, 1024, 2048):
            for batch in (1, 8, 32, 64, 128, 256):
                if batch * context <= 256 * 1024:
                    ms = decode_ms(layers, head, batch, context)
                    print(f"a step for {batch} sequences of {context} tokens: {ms:.2f} ms", flush=True)
                    torch.cuda.empty_cache()
        for tokens in (128, 512, 2048, 8192):
            ms = prefill_ms(layers, head, tokens)
            print(f"a prompt of {tokens} tokens: {ms:.1f} ms, {ms / tokens * 1e3:.0f} µs a token", flush=True)


main()
