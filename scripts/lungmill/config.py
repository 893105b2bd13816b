"""Checking config.yaml: defaults filled in, and one line for the first thing that is wrong."""

import copy
import difflib
import shlex

from lungmill.dataset import check_fractions
from lungmill.errors import ConfigError

KINDS = {
    "number": "a number",
    "integer": "a whole number",
    "string": "text",
    "array": "a list",
    "object": "a section with keys",
    "null": "empty",
}


def checked_config(config: dict, schema: dict) -> dict:
    """Return `config` with the schema's defaults where keys are absent.

    Raises ConfigError, in one line: the key, what is wrong, and the nearest valid name or what is expected.
    """
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match

    config = with_defaults(config, schema)
    error = best_match(Draft202012Validator(schema).iter_errors(config))
    if error is not None:
        raise ConfigError(f"config: {_say(error, schema)}")
    check_fractions(config["split"]["fractions"])
    _check_segment(config["segment"], config["patches"])
    return config


def _check_segment(segment, patches):
    if segment["method"] == "command":
        check_command(segment["command"], segment["labels"])
    if patches["per_class"] > segment["positions"]:
        raise ConfigError(
            f"patches.per_class: {patches['per_class']} is more than the segment.positions, {segment['positions']}, "
            f"that patches are drawn from: raise segment.positions"
        )


def check_command(command, labels):
    """Raise ConfigError where a command or its labels make no sense; the message names the key in config.yaml."""
    if not command:
        raise ConfigError("segment.command: empty, but segment.method is command: write the program's command line")
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise ConfigError(f"segment.command: {command!r} cannot be split into words: {error}") from None
    for placeholder in ("{volume}", "{mask}"):
        if not any(placeholder in word for word in words):
            raise ConfigError(f"segment.command: {placeholder} is not in {command!r}: put it where the file belongs")
    both = set(labels["right"]) & set(labels["left"])
    if both or not labels["right"] or not labels["left"]:
        wrong = f"{sorted(both)} is in both" if both else "one of the two is empty"
        raise ConfigError(f"segment.labels: {wrong}: name the program's values of the right and of the left lung")


def with_defaults(config, schema):
    """Fill absent keys, at any depth, from `default` in the schema."""
    filled = copy.deepcopy(config)
    for key, part in schema.get("properties", {}).items():
        if part.get("type") == "object" and "properties" in part:
            if filled.get(key) is None:
                filled[key] = {}
            if isinstance(filled[key], dict):
                filled[key] = with_defaults(filled[key], part)
        elif key not in filled and "default" in part:
            filled[key] = copy.deepcopy(part["default"])
        elif key in filled:
            filled[key] = _typed(filled[key], part)
    return filled


def _typed(value, part):
    """Numbers that arrive as text: Snakemake leaves what is nested in `--config resample={spacing: 2}` as text."""
    kinds = part.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if isinstance(value, list):
        return [_typed(item, part.get("items", {})) for item in value]
    if not isinstance(value, str) or not {"number", "integer", "null"} & set(kinds) or "string" in kinds:
        return value
    for read in (int, float):
        try:
            return read(value)
        except ValueError:
            continue
    return None if value == "null" else value


def _say(error, schema):
    where = ".".join(str(part) for part in error.absolute_path)
    if error.validator == "additionalProperties":
        known = list(error.schema.get("properties", {}))
        unknown = sorted(set(error.instance) - set(known), key=str)[0]
        key = f"{where}.{unknown}" if where else str(unknown)
        return f"there is no key {key!r}{_nearest(str(unknown), where, known, schema)}"
    what = " ".join(error.schema.get("description", "").split())
    expected = f"; {what}" if what and error.validator != "enum" else ""
    return f"{where} is {error.instance!r}, {_wrong(error)}{expected}"


def _wrong(error):
    """What a value is not, in words."""
    rule = error.validator_value
    if error.validator == "type":
        kinds = rule if isinstance(rule, list) else [rule]
        return "not " + " or ".join(KINDS[kind] for kind in kinds)
    if error.validator == "enum":
        return "not one of " + ", ".join(str(value) for value in rule)
    if error.validator in ("oneOf", "anyOf"):
        return "not of a form that is understood"
    limits = {
        "minimum": "less than",
        "exclusiveMinimum": "not more than",
        "maximum": "more than",
        "minItems": "shorter than",
        "maxItems": "longer than",
    }
    return f"{limits.get(error.validator, error.validator)} {rule}"


def _nearest(unknown, where, known, schema):
    """Suggest a name from the same section, else the section that knows the name."""
    close = difflib.get_close_matches(unknown, known, n=1)
    if close:
        return f", did you mean {where + '.' if where else ''}{close[0]!s}?"
    for section, part in schema["properties"].items():
        names = difflib.get_close_matches(unknown, list(part.get("properties", {})), n=1, cutoff=0.8)
        if names:
            return f", did you mean {section}.{names[0]}?"
    return f"; valid ones are {', '.join(known)}"
