"""llama.cpp's own HTTP server, a third-party engine: llama_server.py GGUF_FILE PORT. Ends with its parent."""

import os
import sys
import time

import xllamacpp

params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.hostnames = ["127.0.0.1"]
params.port = int(sys.argv[2])
params.endpoint_metrics = True
params.n_parallel = 2
params.n_ctx = 2048
server = xllamacpp.Server(params)
print("listening on", server.listening_address, flush=True)
parent = os.getppid()
while os.getppid() == parent:
    time.sleep(0.2)
