"""Run as a script: what llama.cpp reports to allocate for a model. `llama_buffers.py MODEL CONFIGURATIONS_JSON`."""

from __future__ import annotations

import ctypes
import json
import re
import sys

import llama_cpp

KV_TYPES = {"f16": llama_cpp.GGML_TYPE_F16, "q8_0": llama_cpp.GGML_TYPE_Q8_0}
LINE = re.compile(r"(KV|compute|output)\s+buffer size =\s+([\d.]+) MiB")


def main() -> None:
    lines: list[str] = []
    keep = llama_cpp.llama_log_callback(lambda level, text, user: lines.append(text.decode("utf-8", "replace")))
    llama_cpp.llama_log_set(keep, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(sys.argv[1].encode(), llama_cpp.llama_model_default_params())
    assert model, "".join(lines)
    reports = []
    for wish in json.loads(sys.argv[2]):
        lines.clear()
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = wish["tokens"], wish["batch"], wish["batch"]
        params.n_seq_max, params.kv_unified, params.n_threads = wish["sequences"], True, 1
        params.n_outputs_max = wish["outputs"]
        params.flash_attn_type = 1 if wish["flash"] else 0
        params.type_k = params.type_v = KV_TYPES[wish["kv"]]
        context = llama_cpp.llama_init_from_model(model, params)
        assert context, "".join(lines)
        sums = {"KV": 0.0, "compute": 0.0, "output": 0.0}
        for kind, amount in LINE.findall("".join(lines)):
            sums[kind] += float(amount) * 1024**2
        # The buffer of logits is made for a row per sequence and grows when prompts are scored.
        words = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        sums["output"] += 4.0 * (wish["outputs"] - wish["sequences"]) * words
        reports.append([sums["KV"], sums["compute"] + sums["output"]])
        llama_cpp.llama_free(context)
    print(json.dumps(reports))


main()
