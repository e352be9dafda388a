"""Answers about people, tokens, new repositories and the front matter of cards."""

from __future__ import annotations

import re
import secrets
from typing import Any

import yaml

from tests.support.loopback_hub.repository import Repository
from tests.support.loopback_hub.routes import Account, Ask, Refusal, reply, route
from tests.support.loopback_hub.rules import Answer

_EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"
_ID_TOKEN = "urn:ietf:params:oauth:token-type:id_token"
_WARNING = "empty or missing yaml metadata in repo card"
# Of the keys that the Hub knows, those that a card of ours may have.
_STRINGS = ("license", "library_name", "pipeline_tag", "license_name", "license_link")
_LISTS = ("tags", "datasets", "language", "base_model", "metrics")


@route("GET", "/api/whoami-v2")
def whoami(ask: Ask) -> Answer:
    account = ask.account()
    token: dict[str, Any] = {
        "displayName": "loopback",
        "role": "write" if account.can_write else "read",
    }
    if account.scopes is not None:
        scoped = [
            {"entity": {"type": "user", "name": name}, "permissions": list(rights)}
            for name, rights in account.scopes.items()
        ]
        token |= {"role": "fineGrained", "fineGrained": {"global": [], "scoped": scoped}}
    return reply(
        {
            "type": "user",
            "name": account.name,
            "fullname": account.name,
            "orgs": [{"type": "org", "name": name} for name in account.orgs],
            "auth": {"accessToken": token},
        }
    )


@route("POST", "/api/repos/create")
def create(ask: Ask) -> Answer:
    account, wanted = ask.account(), ask.json()
    if wanted.get("type", "model") != "model":
        raise Refusal(400, f"no {wanted['type']}s here")
    namespace = wanted.get("organization") or account.name
    repo_id = f"{namespace}/{wanted['name']}"
    if account.only is not None:
        raise Refusal(401, "this token makes no repositories")
    if not (account.can_write and account.owns(namespace)):
        rights = "You don't have the rights to create a model under the namespace"
        raise Refusal(403, f'{rights} "{namespace}"')
    where = {"url": f"{ask.hub.endpoint}/{repo_id}", "name": repo_id}
    if repo_id in ask.hub.repos:
        message = "You already created this model repo"
        return reply({"error": message, **where}, 409, {"X-Error-Message": message})
    private = wanted.get("visibility") == "private"
    ask.hub.repos[repo_id] = Repository(repo_id, private)
    return reply({**where, "id": repo_id})


@route("DELETE", "/api/repos/delete")
def delete(ask: Ask) -> Answer:
    account, wanted = ask.account(), ask.json()
    namespace = wanted.get("organization") or account.name
    repo_id = f"{namespace}/{wanted['name']}"
    if repo_id not in ask.hub.repos or not (account.can_write and account.owns(namespace)):
        raise Refusal(404, "Repository not found", "RepoNotFound")
    del ask.hub.repos[repo_id]
    return reply({})


@route("GET", "/api/agent-harnesses")
def harnesses(ask: Ask) -> Answer:
    raise Refusal(404, "none known")


@route("POST", "/oauth/token")
def exchange(ask: Ask) -> Answer:
    """Give a token of its own for the id token of a job that the repository trusts (RFC 8693)."""
    wanted = ask.json()
    kinds = (wanted.get("grant_type"), wanted.get("subject_token_type"))
    trusted = (wanted.get("subject_token"), wanted.get("resource"))
    if kinds != (_EXCHANGE, _ID_TOKEN):
        return reply({"error": "unsupported_grant_type"}, 400)
    if trusted not in ask.hub.trusted:
        description = "no trusted publisher matches the id token"
        return reply({"error": "invalid_grant", "error_description": description}, 400)
    token = f"hf_jwt_{secrets.token_hex(8)}"
    repo_id = wanted["resource"]
    ask.hub.tokens[token] = Account(repo_id.split("/")[0], only=repo_id)
    return reply({"access_token": token, "token_type": "bearer", "expires_in": 3600})


@route("POST", "/api/validate-yaml")
def validate(ask: Ask) -> Answer:
    errors, warnings = check_card(ask.json()["content"])
    found = {
        "errors": [{"message": message} for message in errors],
        "warnings": [{"message": message} for message in warnings],
    }
    return reply(found, 400 if errors else 200)


def check_card(content: str) -> tuple[list[str], list[str]]:
    """Return errors and warnings about a card's front matter."""
    match = re.match(r"---[ \t]*\r?\n(.*?\n)?---[ \t]*(\r?\n|$)", content, re.DOTALL)
    try:
        data = yaml.load(match[1] or "", _UniqueKeys) if match else None
    except yaml.YAMLError as error:
        return [f"Invalid YAML: {error}"], []
    if data is None:
        return [], [_WARNING]
    if not isinstance(data, dict):
        return ["the metadata must be a mapping"], []
    errors = [
        f'"{key}" must be a string' for key in _STRINGS if not isinstance(data.get(key, ""), str)
    ]
    for key in _LISTS:
        values = data.get(key, [])
        items = values if isinstance(values, list) else [values]
        if not all(isinstance(item, str) for item in items):
            errors.append(f'"{key}" must be a string or an array of strings')
    return errors + _index_errors(data.get("model-index", [])), []


def _index_errors(index: Any) -> list[str]:
    """Check the part of a card that holds results."""
    if not isinstance(index, list):
        return ['"model-index" must be an array']
    errors = []
    for m, model in enumerate(index):
        place = f"model-index[{m}]"
        if not isinstance(model, dict) or not isinstance(model.get("name"), str):
            errors.append(f'"{place}.name" is required')
            continue
        for r, result in enumerate(model.get("results", [])):
            required = {
                "task": result.get("task"),
                "dataset": result.get("dataset"),
                **{f"metrics[{n}]": metric for n, metric in enumerate(result.get("metrics", []))},
            }
            for name, part in required.items():
                if not isinstance(part, dict) or not isinstance(part.get("type"), str):
                    errors.append(f'"{place}.results[{r}].{name}.type" is required')
                elif name.startswith("metrics") and "value" not in part:
                    errors.append(f'"{place}.results[{r}].{name}.value" is required')
    return errors


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a key that stands twice in a mapping, as the Hub's parser does."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if len(keys) != len(set(map(repr, keys))):
            raise yaml.constructor.ConstructorError(
                None, None, "duplicated mapping key", node.start_mark
            )
        return super().construct_mapping(node, deep)
