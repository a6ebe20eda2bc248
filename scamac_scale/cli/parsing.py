"""Arguments of the command line: parsers made of config dataclasses, and clear words for what they refuse.

Nothing heavy is imported here: help must come at once.
"""

from __future__ import annotations

import argparse
import difflib
import re
from dataclasses import fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

import yaml
from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from scamac_scale.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# Any: argparse takes values of every type
OPTIONAL: dict[str, Any] = {"default": argparse.SUPPRESS}
"""Options that are absent from the result, and from ``--print_config``, unless they are given."""


def build_parser(name: str, summary: str, usage: str, *, has_json_file: bool = False) -> ArgumentParser:
    """Make the parser of one command, with the options that all commands share.

    Parameters
    ----------
    name
        Of the command.
    summary
        What it does, one sentence.
    usage
        Its required part, such as ``--store STORE --run RUN``.
    has_json_file
        Whether ``--json`` may name a file; elsewhere a path behind it is the next argument.

    Returns
    -------
    ArgumentParser
        Raises instead of exiting; reads no address, imports nothing that a config names.
    """
    set_parsing_settings(
        docstring_parse_attribute_docstrings=True,
        config_read_mode_urls_enabled=False,
        config_read_mode_fsspec_enabled=False,
        import_path_denylist=["*"],  # a config is data: naming a class must not import its module
        import_path_allowlist=["scamac_scale.config"],
    )
    prog = f"scamac-scale {name}"
    parser = ArgumentParser(
        prog=prog,
        usage=f"{prog} {usage} [options]",
        description=summary,
        exit_on_error=False,
        allow_abbrev=False,  # a shortened option would change its meaning when options are added
    )
    parser.add_argument("--config", action="config", help="YAML file with any of the options below.")
    if has_json_file:
        help_text = "Print the result as JSON, or write it to a file."
        parser.add_argument("--json", type=str, nargs="?", const="-", metavar="FILE", help=help_text, **OPTIONAL)
    else:
        parser.add_argument("--json", action="store_const", const="-", help="Print the result as JSON.", **OPTIONAL)
    parser.add_argument("--quiet", action="store_true", help="Print nothing but errors.", **OPTIONAL)
    parser.add_argument("--debug", action="store_true", help="Show the traceback of an error.", **OPTIONAL)
    return parser


def declare_ranks(parser: ArgumentParser) -> None:
    """Add the options of a command that several processes share."""
    parser.add_argument(
        "--devices", type=int, help="Processes on this machine, each with a GPU where there are some.", **OPTIONAL
    )
    parser.add_argument(
        "--num-nodes", type=int, help="Machines; the same command is started on each. See docs/ranks.md.", **OPTIONAL
    )
    parser.add_argument(
        "--max-restarts",
        type=int,
        help="How often --devices starts all processes again, from the last checkpoint, when one is lost.",
        **OPTIONAL,
    )


def with_settings_of_run(argv: Sequence[str]) -> list[str]:
    """Let ``--resume`` take the settings of its run, where no ``--config`` is named; options that are given come after them."""
    values = dict(pairwise(argv))
    values |= dict(argument.split("=", 1) for argument in argv if argument.startswith("--run="))
    settings = Path(values.get("--run", "")).expanduser() / "config.yaml"
    has_config = any(argument.split("=", 1)[0] == "--config" for argument in argv)
    if "--resume" not in argv or "--run" not in values or has_config or not settings.is_file():
        return list(argv)
    return ["--config", str(settings), *argv]


def parse(parser: ArgumentParser, argv: Sequence[str], config: type | None, prefix: str = "") -> Namespace:
    """Parse the arguments of one command.

    Parameters
    ----------
    parser
        From `build_parser`, with all options added.
    argv
        What follows the name of the command.
    config
        The dataclass whose fields are options, for the words about unknown keys.
    prefix
        Under which these fields stand, with its dot.

    Returns
    -------
    Namespace
        With the dataclasses made.

    Raises
    ------
    ConfigError
        If an argument or config key is unknown (names the nearest known one), missing, or of the wrong type.
    """
    try:
        args: Namespace = parser.instantiate(parser.parse_args(list(argv)))
        return args
    except ConfigError:
        raise
    except (argparse.ArgumentError, TypeError, ValueError, KeyError) as error:
        known = {*_options(parser), *(_keys(config, prefix) if config else ())}
        message = _diagnosis(argv, sorted(known)) or _one_line(str(error))
        raise ConfigError(f"{message} See `{parser.prog} --help`.") from error


def _options(parser: ArgumentParser) -> Iterator[str]:
    for action in parser._actions:  # argparse has no public way to list its options
        yield action.dest
        yield from (option[2:] for option in action.option_strings if option.startswith("--"))


def _keys(config: type, prefix: str) -> Iterator[str]:
    """Every dotted key of a config; the fields of a listed dataclass stand below the key of the list."""
    hints = get_type_hints(config)
    for field in fields(config):
        key, hint = prefix + field.name, hints[field.name]
        nested = next((part for part in (hint, *get_args(hint)) if is_dataclass(part)), None)
        yield key
        if isinstance(nested, type):
            yield from _keys(nested, key + ".")


def _diagnosis(argv: Sequence[str], known: Sequence[str]) -> str | None:
    for at, argument in enumerate(argv):
        if argument == "--":
            return None
        name, has_value, value = argument.partition("=")
        if not name.startswith("--"):
            continue
        if not has_value and at + 1 < len(argv):
            value = argv[at + 1]
        if name[2:] not in known and name[2:].replace("-", "_") not in known:
            return f"Unknown option {name}. {_nearest(name[2:], known, '--')}"
        if name == "--config" and value:
            content, prefix = _read_config(value), ""
        else:
            content, prefix = _read_value(value), name[2:] + "."
        for key in _flat_keys(content, prefix):
            if key not in known:
                where = value if name == "--config" else name
                return f"Unknown config key {key} in {where}. {_nearest(key, known, '')}"
    return None


def _read_config(path: str) -> Any:  # Any: what YAML holds
    try:
        content = yaml.safe_load(Path(path).read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The config file {path} cannot be read: {getattr(error, 'strerror', error)}.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"The config file {path} is not YAML: {_one_line(str(error))}") from error
    if not isinstance(content, dict):
        raise ConfigError(
            f"The config file {path} does not hold keys and values; see --print_config for what it may hold."
        )
    return content


def _read_value(text: str) -> Any:  # Any: what YAML holds
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return None  # the parser's own message tells


def _flat_keys(content: Any, prefix: str) -> Iterator[str]:  # Any: what YAML holds
    if isinstance(content, list):
        for item in content:
            yield from _flat_keys(item, prefix)
    elif isinstance(content, dict):
        for key, value in content.items():
            yield f"{prefix}{key}"
            yield from _flat_keys(value, f"{prefix}{key}.")


def _nearest(key: str, known: Sequence[str], dashes: str) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.75)
    if not near:
        # the right name under the wrong or no section, such as --latent_width
        last = {name.rsplit(".", 1)[-1]: name for name in known}
        word = key.rsplit(".", 1)[-1].replace("-", "_")
        near = [last[name] for name in difflib.get_close_matches(word, last, n=1, cutoff=0.75)]
    near = near or difflib.get_close_matches(key, known, n=1, cutoff=0.0)
    return f"Did you mean {dashes}{near[0]}?"


def _one_line(message: str) -> str:
    """Put what the parser says into one line, without its inner types."""
    text = re.sub(r"\s+", " ", message).strip()
    given = re.search(r"Given value: (.*)$", text) or re.search(r"Got value: (.*)$", text)
    key = re.findall(r'Parser key "([^"]+)":', text)
    if given and key:
        types = re.search(r"Subtypes: \[(.*?)\]", text) or re.search(r"Expected a (<class '\w+'>)", text)
        names = re.findall(r"class '(\w+)'", types.group(1)) if types else []
        words = " or ".join("null" if name == "NoneType" else name for name in names)
        return f"{'.'.join(key)}={given.group(1)} is of the wrong type" + (f"; expected {words}." if words else ".")
    return text.rstrip(".") + "."


def require(args: Namespace, *names: str) -> None:
    """Check that options are given, on the command line or in the config file.

    Raises
    ------
    ConfigError
        Naming those that are missing.
    """
    missing = [f"--{name}" for name in names if getattr(args, name, None) is None]
    if missing:
        raise ConfigError(f"{' and '.join(missing)} must be given, here or in the --config file.")
