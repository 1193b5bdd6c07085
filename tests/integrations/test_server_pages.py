"""Metrics, health, the specification and the page of documentation."""

import json
import re
from concurrent.futures import ThreadPoolExecutor

from .conftest import Held, dense, running

SAMPLE = re.compile(r'([a-z_]+)(?:\{((?:[a-z_]+="(?:[^"\\\n]|\\[\\"n])*",?)+)\})? (-?[0-9.e+-]+|\+Inf|NaN)')


def parsed(text):
    """Prometheus' text format: {(name, labels): value}; fails where it is not in that format."""
    assert text.endswith("\n")
    kinds, found = {}, {}
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            name, kind = line.split()[2:]
            assert name not in kinds
            kinds[name] = kind
        elif not line.startswith("# HELP "):
            name, labels, value = SAMPLE.fullmatch(line).groups()
            family = next(f for f in (name, re.sub("_(bucket|sum|count)$", "", name)) if f in kinds)
            assert (name == family) == (kinds[family] != "histogram")
            assert (name, labels) not in found
            found[name, labels] = float(value)
    return found


def test_metrics_count_what_happened():
    scorer = dense()
    held = Held(scorer)
    with running(scorer, batch_size=4) as client, ThreadPoolExecutor(1) as pool:
        client.score({"rows": [{"prompt_ids": [5, 6], "completion_ids": [7] * n} for n in (1, 2, 3)]})
        client.score("{")
        client.get("/nothing")
        held.open.clear()
        held.reached.clear()
        waiting = pool.submit(client.score, {"rows": [{"prompt_ids": [5], "completion_ids": [7]}] * 7})
        assert held.reached.wait(60)
        during = parsed(client.get("/metrics").body.decode())
        held.open.set()
        assert waiting.result(60).status == 200
        reply = client.get("/metrics")
    assert reply.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    found = parsed(reply.body.decode())
    assert (during["inverselm_queue_rows", None], during["inverselm_running_requests", None]) == (3, 1)
    assert (found["inverselm_queue_rows", None], found["inverselm_running_requests", None]) == (0, 0)
    assert found["inverselm_rows_total", None] == 10
    assert found["inverselm_tokens_total", None] == 3 * 2 + 6 + 7 * 2
    label = 'path="/v1/token_rewards"'
    assert found["inverselm_requests_total", f'{label},status="200"'] == 2
    assert found["inverselm_requests_total", f'{label},status="400"'] == 1
    assert found["inverselm_batch_rows_count", None] == 3
    assert found["inverselm_batch_rows_sum", None] == 10
    assert found["inverselm_batch_rows_bucket", 'le="2"'] == 0
    assert found["inverselm_batch_rows_bucket", 'le="4"'] == 3
    assert found["inverselm_request_seconds_count", label] == 3
    assert found["inverselm_request_seconds_bucket", f'{label},le="+Inf"'] == 3
    assert 0 < found["inverselm_batch_seconds_sum", None] < 60


def test_health(served):
    reply = served.get("/health")
    assert reply.status == 200
    assert set(reply.json) == {"status", "version", "model", "reward_kind", "baselines", "queued_rows"}
    assert reply.json["status"] == "ok"


def test_the_specification_describes_the_answers(served, chatting):
    spec = served.get("/openapi.json").json
    schemas = spec["components"]["schemas"]
    references = set(re.findall(r'"\$ref": "#/components/schemas/(\w+)"', json.dumps(spec)))
    assert references <= set(schemas)
    assert set(spec["paths"]) == {"/v1/token_rewards", "/get_reward", "/health", "/metrics"}

    def fits(value, schema):
        """As much of JSON Schema as the specification uses."""
        if "$ref" in schema:
            return fits(value, schemas[schema["$ref"].rsplit("/", 1)[1]])
        if "anyOf" in schema or "oneOf" in schema:
            return any(fits(value, part) for part in schema.get("anyOf") or schema["oneOf"])
        kinds = {"object": dict, "array": list, "string": str, "boolean": bool, "integer": int, "number": (int, float)}
        if "type" in schema and not isinstance(value, kinds[schema["type"]]):
            return False
        if isinstance(value, dict) and "properties" in schema:
            known = {name: part for name, part in schema["properties"].items() if name in value}
            inside = all(fits(value[name], part) for name, part in known.items())
            return set(schema["required"]) <= set(value) <= set(schema["properties"]) and inside
        if isinstance(value, list):
            small, large = schema.get("minItems", 0), schema.get("maxItems", len(value))
            return small <= len(value) <= large and all(fits(item, schema.get("items", {})) for item in value)
        return value in schema.get("enum", [value])

    for path in ("/v1/token_rewards", "/get_reward"):
        method = spec["paths"][path]["post"]
        content = method["requestBody"]["content"]["application/json"]
        assert fits(content["example"], content["schema"])
        reply = served.post(path, content["example"])
        assert reply.status == 200
        assert fits(reply.json, method["responses"]["200"]["content"]["application/json"]["schema"])
        refused = served.post(path, [])
        assert fits(refused.json, method["responses"]["400"]["content"]["application/json"]["schema"])
        assert not fits({"x": 1}, content["schema"])
    assert fits(served.get("/health").json, schemas["Health"])


def test_the_page_of_documentation_loads_nothing(served):
    reply = served.get("/docs", headers={"host": "<i>evil"})
    page = reply.body.decode()
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in reply.headers["content-security-policy"]
    assert not re.search(r"<script|<link|<img|<iframe|@import|url\(|src=", page)
    assert set(re.findall(r"href='([^'#]*)", page)) == {"", "/openapi.json"}
    assert "<i>evil" not in page
    for word in ("/v1/token_rewards", "/get_reward", "completion_ids", "Retry-After", "curl -s"):
        assert word in page
    anchors = set(re.findall(r"href='#(\w+)'", page))
    assert anchors <= set(re.findall(r"id='(\w+)'", page))
