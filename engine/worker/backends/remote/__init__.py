"""Any OpenAI-compatible server as a model: the same requests, answered over HTTP."""
