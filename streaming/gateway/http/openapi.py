"""What the HTTP door offers, as OpenAPI 3.1: for whoever writes a client."""

from importlib.metadata import version
from typing import Any

from schemas import envelope
from streaming.gateway.http.imageroutes import MAX_KEY, MAX_WAIT_S, MEDIA_TYPES
from streaming.gateway.http.problems import MEDIA_TYPE as PROBLEM_TYPE
from streaming.gateway.http.stow import JSON_TYPE, XML_TYPE
from streaming.gateway.offer import BURNED_IN, OTHER_BYTES
from streaming.gateway.refusals import Cause

Part = dict[str, Any]

_TEXT: Part = {"text/plain": {"schema": {"type": "string"}}}
_OBJECT: Part = {"schema": {"type": "object"}}
_EVENT_ID: Part = {"type": "string", "pattern": "^[0-9a-f]{32}$"}
_STATES = ["accepted", "predicted", "dead_lettered"]


def describe_door() -> Part:
    """Give the description."""
    return {
        "openapi": "3.1.0",
        "info": {"title": "xray gateway", "version": version("xray-stream"), "description": envelope.DISCLAIMER},
        "security": [{"token": []}, {}],
        "paths": {
            "/": {"get": _open("What this is.", {"application/json": _OBJECT})},
            "/images": {"post": _post_image()},
            "/images/{event_id}": {"get": _get_image()},
            "/studies": {"post": _post_study()},
            "/studies/{study}": {"post": _post_study() | {"parameters": [_in_path("study", _uid())]}},
            "/healthz": {"get": _open("Whether the process lives.", _TEXT)},
            "/readyz": {"get": _open("Whether an object that comes now would be taken.", _TEXT, unready=True)},
            "/metrics": {"get": _open("Prometheus series.", _TEXT)},
            "/openapi.json": {"get": _open("This description.", {"application/json": _OBJECT})},
        },
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": {"problem": _problem(), "taken": _taken(), "receipt": _receipt()},
        },
    }


def _post_image() -> Part:
    binary: Part = {"schema": {"type": "string", "format": "binary"}}
    return {
        "summary": "Hand over one image, as a file. The answer comes once it is safe.",
        "parameters": [
            {
                "name": "wait",
                "in": "query",
                "description": "Seconds to wait for the prediction.",
                "schema": {"type": "number", "minimum": 0, "maximum": MAX_WAIT_S, "default": 0},
            },
            _in_header("Idempotency-Key", "The sender's own name of the image; of DICOM its UID counts.", MAX_KEY),
            _in_header("traceparent", "W3C trace context.", 55),
        ],
        "requestBody": {"required": True, "content": {name: binary for name in MEDIA_TYPES}},
        "responses": {
            "201": _taken_answer("Kafka has it; with wait, its prediction or why there is none too."),
            "202": _taken_answer("It is safe; ask Location what becomes of it."),
            **_problems(400, 401, 403, 408, 413, 415, 429, 500, 503),
        },
    }


def _get_image() -> Part:
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/receipt"}}}
    return {
        "summary": "What became of an image of this device.",
        "parameters": [_in_path("event_id", _EVENT_ID)],
        "responses": {"200": {"description": "Its last state.", "content": content}, **_problems(401, 403, 404, 500)},
    }


def _post_study() -> Part:
    # Of 409, 429 and 503 the body is the standard's too, where it is known which objects are meant.
    told = {JSON_TYPE: _OBJECT, XML_TYPE: {"schema": {"type": "string"}}}
    parts: Part = {"type": "object", "additionalProperties": {"type": "string", "format": "binary"}}
    answers = {"200": "All objects are safe.", "202": "Some are safe.", "409": "None is taken; FailureReason says why."}
    answers |= {"429": "None is taken now: too many a second.", "503": "None is taken now."}
    return {
        "summary": "Store Transaction (STOW-RS), DICOM PS3.18 10.5: whole files, in multipart/related.",
        "requestBody": {"required": True, "content": {"multipart/related": {"schema": parts}}},
        "responses": {
            **{status: {"description": text, "content": told} for status, text in answers.items()},
            **_problems(400, 401, 403, 406, 408, 413, 415, 500),
        },
    }


def _open(summary: str, content: Part, *, unready: bool = False) -> Part:
    answers: Part = {"200": {"description": summary, "content": content}}
    if unready:
        answers["503"] = {"description": "It would not.", "content": content}
    return {"summary": summary, "security": [], "responses": answers}


def _problems(*statuses: int) -> Part:
    content = {PROBLEM_TYPE: {"schema": {"$ref": "#/components/schemas/problem"}}}
    return {str(status): {"description": _NAMES[status], "content": content} for status in statuses}


_NAMES = {
    400: "The request or the object is not understood.",
    401: "A bearer token is wanted, or another one.",
    403: "This device may not send from there.",
    404: "No image of this device has this event id.",
    406: "No such media type of the answer.",
    408: "The body does not come in time.",
    413: "It is larger than is taken.",
    415: "No media type or kind of image that is taken.",
    429: "More objects a second than allowed; see Retry-After.",
    500: "An error of the gateway.",
    503: "It cannot be taken now; see Retry-After.",
}


def _taken_answer(text: str) -> Part:
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/taken"}}}
    location: Part = {"description": "Where to ask.", "schema": {"type": "string"}}
    return {"description": text, "headers": {"Location": location}, "content": content}


def _in_header(name: str, text: str, length: int) -> Part:
    return {"name": name, "in": "header", "description": text, "schema": {"type": "string", "maxLength": length}}


def _in_path(name: str, schema: Part) -> Part:
    return {"name": name, "in": "path", "required": True, "schema": schema}


def _uid() -> Part:
    return {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)*$", "maxLength": 64}


def _problem() -> Part:
    causes: list[str | None] = [cause.label for cause in Cause]
    return {
        "description": "RFC 9457.",
        "type": "object",
        "required": ["type", "title", "status", "detail", "cause", "retry"],
        "properties": {
            "type": {"type": "string", "format": "uri-reference"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string"},
            "cause": {"enum": [*causes, None], "description": "Why an object is not taken."},
            "retry": {"type": "boolean", "description": "Whether to send the same again later may succeed."},
        },
    }


def _taken() -> Part:
    return {
        "type": "object",
        "required": ["event_id", "state", "place", "flags"],
        "properties": {
            "event_id": _EVENT_ID,
            "state": {"enum": _STATES},
            "place": {"type": ["string", "null"], "description": "topic-partition@offset; null in the spool."},
            "flags": {"type": "array", "items": {"enum": [BURNED_IN, OTHER_BYTES]}},
            "prediction": {"type": "object", "description": "The event as published."},
            "reason": {"type": "string", "description": "Why it is a dead letter."},
        },
    }


def _receipt() -> Part:
    return {
        "type": "object",
        "required": ["event_id", "state"],
        "properties": {"event_id": _EVENT_ID, "state": {"enum": _STATES}},
    }
