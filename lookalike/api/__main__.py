"""Documents of what the server answers: docs/api.md, and OpenAPI.

python -m lookalike.api docs > docs/api.md
python -m lookalike.api openapi > openapi.json
"""

import json
import sys
from collections.abc import Iterator
from typing import Any

from lookalike.api.app import create
from lookalike.api.problems import KINDS, MEDIA_TYPE
from lookalike.api.service import Service
from lookalike.api.settings import Settings

METHODS = ("get", "post", "delete")
START = """\
# Search over HTTP

<!-- Made from the OpenAPI document by `python -m lookalike.api docs > docs/api.md`; a test fails when it is stale. -->

```console
make serve             # sets up, and serves the default collection on http://127.0.0.1:8000
lookalike serve        # the same, where `pip install -r requirements/serve.txt` was done
```

It listens on this machine only. To serve others, set a token, which every request except `/health` must then carry, and
put a proxy in front that speaks TLS and limits connections:

```console
export LOOKALIKE_TOKEN=$(openssl rand -hex 16)
lookalike serve --host 0.0.0.0
curl -H "Authorization: Bearer $LOOKALIKE_TOKEN" http://127.0.0.1:8000/ready
```

`lookalike serve --help` lists every setting. Without a token, requests must name this machine as their host, or a name
given with `--allow-host`; so no web page can reach the server under a name of its own (DNS rebinding). Pages of another
origin may use it from a browser where `--cors` names that origin. Changes by another process (`lookalike add`) are seen
by the next request, and a rebuilt index (`dvc repro`) is opened anew. `/openapi.json` is this page for programs.
Unknown parameters are rejected, not silently ignored. Each answer is logged as a line of JSON on stderr.

A hit's `cosine` is that of the refined vectors, -1 to 1; of a picture with itself, in the collection, it may be below 1
([cli.md](cli.md#what-it-prints) says why).

Pictures that arrive together are embedded together, up to `--batch` ({batch}); hits do not depend on the batch.
Beyond `--queue` ({queue}) searches and additions at a time, the next is answered 503 with Retry-After. An upload is
recognised by its content, and limited to {max_bytes:,} bytes while it arrives and {max_pixels:,} pixels before it is
decoded; decoding is stopped after 5 seconds of a core. Large pictures, which take long, are decoded apart from the
others; where too many of them wait, the next is answered 503. Nothing is fetched from anywhere. The file name in a form
is not read, and an `id` is looked up in the collection, never in the file system.
"""
ERRORS = """\
## Errors

Every error is a problem by [RFC 9457](https://www.rfc-editor.org/rfc/rfc9457), `application/problem+json`: `type` for a
program, `detail` in a sentence for a person.

| status | type | meaning |
|---|---|---|
"""


def page(document: dict[str, Any]) -> str:
    """Write the page, in Markdown, from the OpenAPI document."""
    defaults = Settings()
    start = START.format(**{name: getattr(defaults, name) for name in ("batch", "queue", "max_bytes", "max_pixels")})
    parts = [start]
    for path, operations in document["paths"].items():
        for method in METHODS:
            if method in operations:
                parts.append("\n".join(_operation(document, path, method, operations[method])))
    rows = sorted({(kind.status, kind.type, kind.title) for kind in KINDS})
    parts.append(ERRORS + "".join(f"| {status} | `{name}` | {title} |\n" for status, name, title in rows))
    return "\n".join(parts)


def _operation(document: dict[str, Any], path: str, method: str, content: dict[str, Any]) -> Iterator[str]:
    yield f"## {method.upper()} {path}\n"
    summary = content["summary"] if content["summary"].endswith("?") else f"{content['summary']}."
    yield f"{summary} {' '.join(content['description'].split())}\n"
    for sample in content.get("x-codeSamples", []):
        yield f"```console\n{sample['source']}\n```\n"
    form = content.get("requestBody", {}).get("content", {}).get("multipart/form-data", {}).get("schema", {})
    rows = [
        (item["name"], f"in the {item['in']}", item["schema"], item.get("description", ""))
        for item in content.get("parameters", [])
    ]
    rows += [(name, "in the form", item, item["description"]) for name, item in form.get("properties", {}).items()]
    if rows:
        yield "| parameter | where | kind | meaning |\n|---|---|---|---|"
        merged: dict[str, list[Any]] = {}
        for name, where, schema, text in rows:
            known = merged.setdefault(name, [[], _kind(schema), text])
            known[0].append(where)
        for name, (where, kind, text) in merged.items():
            yield f"| `{name}` | {' or '.join(where)} | {kind} | {text} |"
        yield ""
    yield f"Answers {'; '.join(_answers(document, content['responses']))}.\n"


def _kind(schema: dict[str, Any]) -> str:
    """Describe a schema in a few words."""
    schema = next((each for each in schema.get("anyOf", []) if each.get("type") != "null"), {}) | schema
    kind = "file" if schema.get("format") == "binary" else schema["type"]
    low, high = (schema.get(name) for name in ("minimum", "maximum"))
    limits = f", {low:g} to {high:g}" if low is not None and high is not None else ""
    default = schema.get("default")
    return f"{kind}{limits}" + (f", default {str(default).lower()}" if default not in (None, "") else "")


def _answers(document: dict[str, Any], responses: dict[str, Any]) -> Iterator[str]:
    for status, answer in sorted(responses.items()):
        types = answer.get("content", {})
        if MEDIA_TYPE in types:
            yield f"{status} {', '.join(f'`{name}`' for name in types[MEDIA_TYPE]['examples'])}"
            continue
        schemas = [each["schema"]["$ref"].rpartition("/")[2] for each in types.values() if "$ref" in each["schema"]]
        fields = [f"`{name}`" for each in schemas for name in document["components"]["schemas"][each]["properties"]]
        what = f"with {', '.join(fields)}" if fields else " or ".join(types)
        yield f"{status} {what}".strip()


if __name__ == "__main__":
    app, _ = create(Service(Settings()))
    if sys.argv[1:] == ["docs"]:
        sys.stdout.write(page(app.openapi()))
    elif sys.argv[1:] == ["openapi"]:
        json.dump(app.openapi(), sys.stdout, indent=2)
    else:
        sys.exit("python -m lookalike.api docs, or openapi")
