"""The HTTP API: OpenAI, Anthropic and Ollama dialects, llama-server's own routes, and Prometheus metrics.

A request passes, in this order: `protocol` (head, deadlines, framing), `gateway` (host, origin, key, quota, admission,
body, decoding), one handler of the `routes` table, and `pump` (the answer, streamed or whole). Handlers are pure in
spirit: wire struct in, `GenerationRequest` and a writer out. Invariant: this package reaches models through
`lathe.engine.workbench.Workbench` alone, and a bad request is a 4xx with a reason, never a 500.
"""
