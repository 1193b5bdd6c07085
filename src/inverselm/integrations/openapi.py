"""The description of the service: /openapi.json, and the page at /docs, which loads nothing from anywhere."""

from __future__ import annotations

import html
import json
from typing import Any

from .._version import __version__

_NUMBERS = {"type": "array", "items": {"type": "number"}}
_WHOLE = {"type": "array", "items": {"type": "integer"}}
_TEXTS = {"type": "array", "items": {"type": "string"}}
_MESSAGES = {"type": "array", "minItems": 1, "items": {"$ref": "#/components/schemas/Message"}}


def _object(properties: dict[str, Any], required: list[str], description: str) -> dict[str, Any]:
    return {"type": "object", "description": description, "properties": properties, "required": required}


def _described(schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {**schema, "description": description}


_FINISHED = {"type": "boolean", "default": True, "description": "false: the answer was cut, so no EOS is added to it."}

SCHEMAS: dict[str, Any] = {
    "Message": _object(
        {"role": {"type": "string"}, "content": {"description": "As the model's chat template takes it."}},
        ["role", "content"],
        "A chat message.",
    ),
    "TextRow": _object(
        {
            "prompt": {"oneOf": [{"type": "string"}, _MESSAGES]},
            "completion": {"oneOf": [{"type": "string"}, _MESSAGES]},
            "finished": _FINISHED,
        },
        ["prompt", "completion"],
        "A prompt and its completion, tokenised as in training.",
    ),
    "ChatRow": _object(
        {"messages": _MESSAGES, "finished": _FINISHED},
        ["messages"],
        "A conversation; its last message, the assistant's, is scored.",
    ),
    "IdsRow": _object(
        {
            "prompt_ids": _WHOLE,
            "completion_ids": _WHOLE,
            "action_mask": _described(_WHOLE, "1 where the policy chose the token, 0 elsewhere. Default: all chosen."),
        },
        ["prompt_ids", "completion_ids"],
        "Token ids, taken as they are: what a sampler drew.",
    ),
    "ScoredRow": _object(
        {
            "reward": {"type": "number", "description": "Sum of the token rewards, nats."},
            "rewards": _described(_NUMBERS, "One for each token of the completion, nats."),
            "log_probs": _described(_NUMBERS, "log pi of the same tokens by the model that is served, nats."),
            "values": _described(_NUMBERS, "V(s) before each token; only if the reward is Q - gamma V'."),
            "token_ids": _described(_WHOLE, "The completion's."),
            "terminated": {"type": "boolean", "description": "Whether the completion ends with EOS."},
            "scored_text": {"type": "string", "description": "The completion as scored, EOS shown as text."},
            "tokens": _described(_TEXTS, "The text of each token."),
            "offsets": {
                "type": "array",
                "items": {**_WHOLE, "minItems": 2, "maxItems": 2},
                "description": "Where each token begins and ends in scored_text, in characters (code points).",
            },
        },
        ["reward", "rewards", "log_probs", "token_ids", "terminated"],
        'scored_text, tokens and offsets are left out with "return_text": false.',
    ),
    "TokenRewards": _object(
        {
            "model": {"type": "string"},
            "reward_kind": {"type": "string", "enum": ["log_ratio", "bellman", "log_prob"]},
            "rows": {"type": "array", "items": {"$ref": "#/components/schemas/ScoredRow"}},
        },
        ["model", "reward_kind", "rows"],
        "One entry for each row, in order.",
    ),
    "OpenRLHFRequest": _object(
        {
            "query": _described(_TEXTS, "Prompt and answer as one text, special tokens included."),
            "prompts": _described(_TEXTS, "What each query begins with."),
            "labels": {"type": "array", "description": "Not read."},
        },
        ["query", "prompts"],
        "What OpenRLHF's trainer posts.",
    ),
    "OpenRLHFAnswer": _object(
        {
            "rewards": _described(_NUMBERS, "One for each query, nats."),
            "scores": _described(_NUMBERS, "The same, for dynamic filtering."),
            "extra_logs": {"type": "object", "additionalProperties": _NUMBERS},
            "token_rewards": {"type": "array", "items": _NUMBERS, "description": "One list for each query, nats."},
            "token_ids": {"type": "array", "items": _WHOLE, "description": "The tokens that these belong to."},
        },
        ["rewards", "scores", "extra_logs", "token_rewards", "token_ids"],
        "What OpenRLHF's trainer reads, and the token rewards.",
    ),
    "Health": _object(
        {
            "status": {"type": "string", "enum": ["ok", "stopping"]},
            "version": {"type": "string"},
            "model": {"type": "string"},
            "reward_kind": {"type": "string"},
            "baselines": _TEXTS,
            "queued_rows": {"type": "integer"},
        },
        ["status", "version", "model", "reward_kind", "baselines", "queued_rows"],
        "What is served.",
    ),
    "Error": _object(
        {
            "error": _object(
                {
                    "code": {"type": "string"},
                    "message": {"type": "string", "description": "What is wrong, and what to change."},
                    "row": {"type": "integer", "description": "Number of the row that it is about, from 0."},
                },
                ["code", "message"],
                "",
            )
        },
        ["error"],
        "Every answer that is no 2xx.",
    ),
}
_ROWS = [{"$ref": f"#/components/schemas/{name}"} for name in ("TextRow", "ChatRow", "IdsRow")]
SCHEMAS["TokenRewardsRequest"] = {
    "description": "One row, or `rows`; `return_text` stands beside either.",
    "anyOf": [
        *_ROWS,
        _object(
            {
                "rows": {"type": "array", "minItems": 1, "items": {"anyOf": _ROWS}},
                "return_text": {"type": "boolean", "default": True},
            },
            ["rows"],
            "Many rows.",
        ),
    ],
}

ERRORS = {
    "400": "The body is no JSON object.",
    "401": "No or a wrong bearer token (only if the server was started with one).",
    "403": "Sent by a page of another web site, or to another host name than this machine's.",
    "408": "The body did not arrive in time.",
    "413": "The body is larger than --max_body_mb.",
    "422": "A row that cannot be scored, or too many rows; the message says what to change.",
    "500": "The model failed on a row.",
    "503": "The queue is full, or the server is stopping; try again after Retry-After seconds.",
    "504": "Not scored within --request_timeout.",
}
EXAMPLES = {
    "/v1/token_rewards": {"rows": [{"prompt": "2+2=", "completion": " 4"}, {"prompt": "2+2=", "completion": " 5"}]},
    "/get_reward": {"query": ["2+2= 4"], "prompts": ["2+2="], "labels": ["4"]},
}


def specification() -> dict[str, Any]:
    """The service in OpenAPI 3.1."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "inverselm serve",
            "version": __version__,
            "description": "Token rewards of answers. Rows of all clients are scored together.",
        },
        "paths": {
            "/v1/token_rewards": {
                "post": _post(
                    "Token rewards of one or many rows", "TokenRewardsRequest", "TokenRewards", "/v1/token_rewards"
                )
            },
            "/get_reward": {
                "post": _post("OpenRLHF's remote reward model", "OpenRLHFRequest", "OpenRLHFAnswer", "/get_reward")
            },
            "/health": {"get": _get("What is served, and whether it is ready", "application/json", "Health")},
            "/metrics": {"get": _get("Counters and histograms in Prometheus' text format", "text/plain", None)},
        },
        "components": {"schemas": SCHEMAS, "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}}},
    }


def _post(summary: str, request: str, answer: str, path: str) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{request}"}, "example": EXAMPLES[path]}}
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {
        "summary": summary,
        "security": [{}, {"bearer": []}],
        "requestBody": {"required": True, "content": content},
        "responses": {
            "200": {
                "description": SCHEMAS[answer]["description"],
                "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{answer}"}}},
            },
            **{status: {"description": text, "content": error} for status, text in ERRORS.items()},
        },
    }


def _get(summary: str, kind: str, schema: str | None) -> dict[str, Any]:
    content = {"schema": {"$ref": f"#/components/schemas/{schema}"} if schema else {"type": "string"}}
    return {"summary": summary, "responses": {"200": {"description": summary, "content": {kind: content}}}}


# ---- the page --------------------------------------------------------------------------------------------------------
_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "code,pre{font:14px/1.45 ui-monospace,monospace;background:#f3f3f3}pre{padding:.7rem;overflow-x:auto}"
    "table{border-collapse:collapse;margin:.6rem 0 1.2rem}h2{margin-top:2.2rem}"
    "td,th{text-align:left;vertical-align:top;padding:.2rem .8rem .2rem 0;border-bottom:1px solid #ddd}"
    ".method{background:#0072b2;color:#fff;padding:.1rem .5rem}"
)


def docs_page(address: str) -> str:
    """The specification as a page of plain HTML: no script, no font, no style from elsewhere.

    Args:
        address: of the server, for the examples.
    """
    spec = specification()
    title = f"{spec['info']['title']} {spec['info']['version']}"
    parts = [
        f"<h1>{_text(title)}</h1>",
        f"<p>{_text(spec['info']['description'])} For programs: <a href='/openapi.json'>/openapi.json</a>.</p>",
    ]
    for path, methods in spec["paths"].items():
        for method, about in methods.items():
            parts.append(f"<h2><span class='method'>{method.upper()}</span> <code>{_text(path)}</code></h2>")
            parts.append(f"<p>{_text(about['summary'])}</p>")
            parts += _request(about, f"{address}{path}") + _responses(about["responses"])
    parts.append("<h2>Schemas</h2>")
    parts += [_schema(name, schema) for name, schema in SCHEMAS.items()]
    head = f"<meta charset='utf-8'><title>{_text(title)}</title><style>{_STYLE}</style>"
    return f"<!doctype html><html lang='en'><head>{head}</head><body>{''.join(parts)}</body></html>"


def _request(about: dict[str, Any], url: str) -> list[str]:
    if "requestBody" not in about:
        return [f"<pre>{_text(f'curl -s {url}')}</pre>"]
    content = about["requestBody"]["content"]["application/json"]
    example = json.dumps(content["example"])
    return [
        f"<p>Body: {_type(content['schema'])}</p>",
        f"<pre>{_text(f'curl -s {url} -d {chr(39)}{example}{chr(39)}')}</pre>",
    ]


def _responses(responses: dict[str, Any]) -> list[str]:
    rows = []
    for status, response in responses.items():
        schema = next(iter(response["content"].values()))["schema"]
        rows.append(f"<tr><td>{status}</td><td>{_type(schema)}</td><td>{_text(response['description'])}</td></tr>")
    return ["<table><tr><th>Status</th><th>Body</th><th></th></tr>", *rows, "</table>"]


def _schema(name: str, schema: dict[str, Any]) -> str:
    out = f"<h3 id='{_text(name)}'>{_text(name)}</h3><p>{_text(schema.get('description', ''))}</p>"
    if "properties" not in schema:
        return out + f"<p>{_type(schema)}</p>"
    needed = schema.get("required", [])
    rows = [
        f"<tr><td><code>{_text(field)}</code></td><td>{_type(about)}</td>"
        f"<td>{'' if field in needed else 'optional. '}{_text(about.get('description', ''))}</td></tr>"
        for field, about in schema["properties"].items()
    ]
    return out + f"<table>{''.join(rows)}</table>"


def _type(schema: dict[str, Any]) -> str:
    """What a schema admits, in words and links."""
    if "$ref" in schema:
        name = _text(schema["$ref"].rsplit("/", 1)[1])
        return f"<a href='#{name}'>{name}</a>"
    for key in ("oneOf", "anyOf"):
        if key in schema:
            return " or ".join(_type(part) for part in schema[key])
    if schema.get("type") == "array":
        return f"list of {_type(schema['items'])}" if "items" in schema else "list"
    if schema.get("type") == "object" and "properties" in schema:
        inside = ", ".join(
            f"<code>{_text(field)}</code>: {_type(about)}" for field, about in schema["properties"].items()
        )
        return f"{{{inside}}}"
    return _text(str(schema.get("type", "anything")))


def _text(text: str) -> str:
    return html.escape(text, quote=True)
