"""The description of the server, against the server."""

import requests

from cloud.app import Application
from cloud.openapi import description
from cloud.repository import Repository
from cloud.status_page import STATUS_PATHS


def test_every_route_is_described_and_nothing_else():
    operations = {
        (path, verb.upper()): operation
        for path, item in description()["paths"].items()
        for verb, operation in item.items()
        if verb != "parameters"
    }
    routes = Application(Repository())._rest.routes
    served = {(route.path, verb) for route in routes for verb in route.methods if verb != "HEAD"}
    for_browsers = {each for each in served if each[0] in (*STATUS_PATHS, "/openapi.json")}
    assert operations.keys() == served - for_browsers
    names = [operation["operationId"] for operation in operations.values()]
    assert len(set(names)) == len(names)


def test_every_answer_is_one_that_is_described(server):
    document = requests.get(f"{server}/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    for path, item in document["paths"].items():
        for verb in item.keys() - {"parameters"}:
            for name, version in (("tail", "1"), ("other", "1"), ("tail", "7")):
                url = server + path.format(name=name, version=version)
                response = requests.request(verb, url, data=b"no" if verb == "post" else None)
                answers = item[verb]["responses"]
                assert str(response.status_code) in answers, (path, verb, response.status_code)
                kinds = answers[str(response.status_code)].get("content", {"": None})
                assert response.headers.get("content-type", "").partition(";")[0] in kinds
