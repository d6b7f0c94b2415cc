"""Cut the schemas that the tests use out of OpenAI's OpenAPI document.

Usage: python tests/data/extract_openapi.py OPENAPI.yaml > tests/data/openai-openapi-2026-08-21.json

Written by hand is only the list of names below; what they refer to follows. Descriptions and the
document's own `x-` remarks are left out, except the example of a batch, which a test needs.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

WANTED = (
    "Batch",
    "ListBatchesResponse",
    "OpenAIFile",
    "ListFilesResponse",
    "DeleteFileResponse",
    "CreateChatCompletionResponse",
    "CreateChatCompletionStreamResponse",
    "CreateEmbeddingResponse",
    "Model",
    "ListModelsResponse",
    "ErrorResponse",
    "CreateChatCompletionRequest",
    "CreateEmbeddingRequest",
    "Response",
)
_REF = "#/components/schemas/"


def closure(schemas: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """Those schemas and every one they lead to."""
    found: dict[str, Any] = {}
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found[name] = _bare(schemas[name])
        waiting += [ref.removeprefix(_REF) for ref in _refs(found[name])]
    return dict(sorted(found.items()))


def _refs(node: Any) -> list[str]:
    if isinstance(node, list):
        return [ref for item in node for ref in _refs(item)]
    if not isinstance(node, dict):
        return []
    own = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
    return own + [ref for item in node.values() for ref in _refs(item)]


def _bare(node: Any) -> Any:
    if isinstance(node, list):
        return [_bare(item) for item in node]
    if not isinstance(node, dict):
        return node
    # A property may itself be called "description"; only a text is a remark.
    return {
        key: _bare(value)
        for key, value in node.items()
        if not (key in ("description", "title", "example") and isinstance(value, str)) and not key.startswith("x-")
    }


def main(source: Path) -> None:
    """Print the extract."""
    document = yaml.load(source.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    schemas = document["components"]["schemas"]
    # The example has trailing commas: YAML can read it, JSON cannot.
    extract = {
        "info": {"title": document["info"]["title"], "version": document["info"]["version"]},
        "batch_example": yaml.safe_load(schemas["Batch"]["x-oaiMeta"]["example"]),
        "components": {"schemas": closure(schemas, WANTED)},
    }
    json.dump(extract, sys.stdout, sort_keys=True, separators=(",", ":"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
