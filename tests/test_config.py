"""config.yaml, its schema and the checks agree with each other."""

import copy
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

from lungmill.config import checked_config
from lungmill.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]
SCHEMA = yaml.safe_load((ROOT / "schemas" / "config.schema.yaml").read_text())
DEFAULTS = yaml.safe_load((ROOT / "config.yaml").read_text())


def leaves(schema, path=()):
    for key, part in schema["properties"].items():
        if "properties" in part:
            yield (*path, key), part
            yield from leaves(part, (*path, key))
        else:
            yield (*path, key), part


def test_the_schema_is_a_schema_and_lets_no_key_pass():
    Draft202012Validator.check_schema(SCHEMA)
    for path, part in [((), SCHEMA), *leaves(SCHEMA)]:
        assert path == () or part["description"], path
        if "properties" in part:
            assert part["additionalProperties"] is False, path


def test_config_yaml_is_the_schemas_defaults():
    assert checked_config({}, SCHEMA) == DEFAULTS
    assert checked_config(DEFAULTS, SCHEMA) == DEFAULTS


def test_every_setting_in_config_yaml_has_a_comment_above_it():
    lines = (ROOT / "config.yaml").read_text().splitlines()
    for number, line in enumerate(lines):
        is_leaf = ": " in line and not line.lstrip().startswith("#")
        if is_leaf and not line.startswith("    "):
            assert lines[number - 1].lstrip().startswith("#"), line


def test_text_that_the_command_line_leaves_becomes_numbers():
    given = {"resample": {"spacing": ["2", "1.5", "1"]}, "patches": {"per_class": "5"}, "pack": {"level": "null"}}
    made = checked_config(given, SCHEMA)
    assert made["resample"]["spacing"] == [2, 1.5, 1]
    assert made["patches"]["per_class"] == 5
    assert made["pack"]["level"] is None
    assert checked_config({"dicom": "7"}, SCHEMA)["dicom"] == "7"


def test_the_given_config_is_not_changed():
    given = {"resample": {"spacing": "2"}}
    kept = copy.deepcopy(given)
    checked_config(given, SCHEMA)
    assert given == kept


@pytest.mark.parametrize("path, part", list(leaves(SCHEMA)), ids=str)
def test_a_misspelt_key_is_met_with_the_right_one(path, part):
    config = {}
    place = config
    for key in path[:-1]:
        place = place.setdefault(key, {})
    misspelt = path[-1][:-1] + "x" if len(path[-1]) > 4 else path[-1] + "x"
    place[misspelt] = 1
    with pytest.raises(ConfigError) as error:
        checked_config(config, SCHEMA)
    assert f"did you mean {'.'.join(path)}?" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("path, part", list(leaves(SCHEMA)), ids=str)
def test_a_wrong_type_names_key_and_expectation(path, part):
    config = {}
    place = config
    for key in path[:-1]:
        place = place.setdefault(key, {})
    place[path[-1]] = 3 if "properties" in part else {"odd": 1}
    with pytest.raises(ConfigError) as error:
        checked_config(config, SCHEMA)
    assert ".".join(path) in str(error.value) and "\n" not in str(error.value)
