"""Errors in OpenAI's form: shortened, with a kind that fits the status, and never large."""

import json

from slmkit.serve.problem import Problem, internal, invalid, overloaded, shortened, stopping


def test_an_error_names_field_value_and_what_would_be_right() -> None:
    problem = invalid("out of range", param="top_p", got=7, expected="above 0 up to 1")
    assert json.loads(problem.body()) == {
        "error": {
            "message": "top_p: out of range; got 7; expected above 0 up to 1",
            "type": "invalid_request_error",
            "param": "top_p",
            "code": "invalid_value",
        }
    }


def test_faults_of_the_server_are_called_so() -> None:
    for problem in (internal(), stopping(), overloaded("full", 3)):
        assert problem.values()["error"]["type"] == "server_error"
    assert internal().status == 500


def test_the_time_to_try_again_is_a_whole_number_within_a_minute() -> None:
    waits = [overloaded("full", seconds).headers["Retry-After"] for seconds in (0.0, 2.6, 1e9)]
    assert waits == ["1", "3", "60"]


def test_strange_values_are_shown_short_and_escaped() -> None:
    assert shortened("a\n\ud800") == '"a\\n\\ud800"'
    assert shortened([[1]]) == "a list"
    assert shortened({"a": 1}) == "an object"
    assert len(shortened("x" * 1000)) == 60
    assert isinstance(invalid("wrong"), Problem)
