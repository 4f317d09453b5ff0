"""Which clients are held, and what each needs: a row each."""

from __future__ import annotations

import platform
from dataclasses import dataclass


@dataclass(frozen=True)
class Client:
    """A client's script, and the environment in which it runs."""

    title: str
    script: str  # a file of this folder
    environment: str  # of `ENVIRONMENTS`
    pointed: str  # how it is told where the server is, for the table


ENVIRONMENTS = {  # pip requirements; what can't be installed together stands apart
    "main": (
        "openai==3.3.0", "pydantic-ai-slim[openai]==2.38.0", "openai-agents==0.24.0",
        "langchain-openai==1.7.4", "instructor==1.17.0", "llm==0.36", "smolagents[openai]==1.26.0",
        "litellm==1.110.2",
    ),
    "newest": (
        "openai==3.57.0", "dspy==3.4.1", "inspect-ai==0.3.285", "lm_eval[api]==0.4.13",
        "transformers==5.24.0",  # lm-eval's tokenizer; without torch
    ),
    "llama-index": ("llama-index-llms-openai==0.8.3",),
}  # fmt: skip

NODE = "node"  # the environment of package.json
# An environment of npm packages without those that they call optional: 265 MB instead of 2.6 GB.
PROMPTFOO = "promptfoo"
_MACHINE = "arm64" if platform.machine() == "aarch64" else "x64"
PROMPTFOO_PACKAGES = ("promptfoo@0.121.20", f"@libsql/linux-{_MACHINE}-gnu@0.5.29")

_BY_VARIABLE = "`OPENAI_BASE_URL`"
_BY_ARGUMENT = "`api_base=…`"

CLIENTS = (
    Client("openai-python", "openai_python.py", "newest", _BY_VARIABLE),
    Client("pydantic-ai", "pydantic_ai_.py", "main", _BY_VARIABLE),
    Client("openai-agents", "openai_agents.py", "main", _BY_VARIABLE),
    Client("LangChain", "langchain_openai_.py", "main", _BY_VARIABLE),
    Client("instructor", "instructor_.py", "main", _BY_VARIABLE),
    Client("litellm", "litellm_.py", "main", _BY_ARGUMENT),
    Client("smolagents", "smolagents_.py", "main", _BY_ARGUMENT),
    Client("llm", "llm_.py", "main", "`extra-openai-models.yaml`"),
    Client("LlamaIndex", "llama_index_.py", "llama-index", f"{_BY_ARGUMENT}, and an `--alias`"),
    Client("DSPy", "dspy_.py", "newest", _BY_ARGUMENT),
    Client("inspect-ai", "inspect_ai_.py", "newest", _BY_VARIABLE),
    Client("lm-eval", "lm_eval_.py", "newest", "`base_url=…/v1/completions`"),
    Client("openai-node", "openai_node.mjs", NODE, _BY_VARIABLE),
    Client("AI SDK", "ai_sdk.mjs", NODE, "`baseURL: …`"),
    Client("promptfoo", "promptfoo.mjs", PROMPTFOO, "`apiBaseUrl: …` of a provider"),
    Client(
        "Codex CLI",
        "codex.mjs",
        NODE,
        "`[model_providers.…]` of its config.toml: `base_url`, "
        '`wire_api = "responses"`; and the server told `--ignore-tool web_search`',
    ),
)
