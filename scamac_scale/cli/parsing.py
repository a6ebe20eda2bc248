"""Arguments of the command line: parsers made of config dataclasses, and clear words for what they refuse.

Nothing heavy is imported here: help must come at once.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
from dataclasses import asdict, fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

import yaml
from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace, set_parsing_settings

from scamac_scale.cli.options import OPTIONAL
from scamac_scale.config import ScamacConfig, check_value, type_hints
from scamac_scale.config.strict import from_plain
from scamac_scale.durable.differences import plain
from scamac_scale.durable.foreign import at_home
from scamac_scale.durable.plain import MAX_YAML_BYTES, check_yaml_seal, parse_yaml, read_plain
from scamac_scale.errors import ConfigError
from scamac_scale.remote.names import below
from scamac_scale.remote.place import is_url

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence


class HelpFormatter(DefaultHelpFormatter):
    """Says what a setting is in words, and each list of names once: in front, as in ``--loader.cache {auto,none,host,device}``."""

    def format_help(self) -> str:
        """Write the help without the backspace by which jsonargparse joins two words on a terminal."""
        return super().format_help().replace(" \b", "")

    def _get_help_string(self, action: argparse.Action) -> str:
        text = super()._get_help_string(action)
        hint = _hint(action)
        if get_origin(hint) is tuple:
            item = get_args(hint)[0]
            if is_dataclass(item):  # its default is pages long; --print_config shows it
                return text.replace(" (type: %(type)s, default: %(default)s)", " A list; see --print_config.")
            return text.replace("type: %(type)s", f"type: list of {'names' if _has_names(hint) else 'whole numbers'}")
        return text.replace("type: %(type)s, ", "") if _has_names(hint) else text


class Parser(ArgumentParser):
    """Has this help also where it makes parsers of its own, as for ``--train.phases.help``."""

    def __init__(self, **options: Any) -> None:  # Any: as of ArgumentParser
        super().__init__(**{"formatter_class": HelpFormatter, **options})

    is_short = False
    """Whether the help leaves out the settings of parts, such as ``--model.latent_width``: train has a hundred of them."""

    def format_help(self, formatter: argparse.HelpFormatter | None = None) -> str:
        """Write the help; where it is short, say how to see the rest."""
        parts = {action.dest.partition(".")[0] for action in self._actions if "." in action.dest}
        left_out = [action for action in self._actions if action.dest.partition(".")[0] in parts]
        if not self.is_short or not left_out:
            return str(super().format_help(formatter))
        held = [(action, action.help) for action in left_out]
        for action in left_out:
            action.help = argparse.SUPPRESS
        try:
            text = str(super().format_help(formatter))
        finally:
            for action, told in held:
                action.help = told
        return f"{text}\n{len(left_out) - len(parts)} settings more, each with a default that fits most data: {self.prog} --help-all\n"

    def _check_value_key(self, action: Any, value: Any, *args: Any, **options: Any) -> Any:  # Any: jsonargparse's
        """Take one value in a config file for a list of one, where an option takes several."""
        several = getattr(action, "nargs", None) == "+" and isinstance(value, str)
        return super()._check_value_key(action, [value] if several else value, *args, **options)


class HelpAll(argparse.Action):
    """Shows the whole help, and ends."""

    def __init__(self, option_strings: Sequence[str], dest: str = argparse.SUPPRESS, **options: Any) -> None:
        super().__init__(option_strings, dest=argparse.SUPPRESS, default=argparse.SUPPRESS, nargs=0, **options)

    def __call__(self, parser: Any, *others: object) -> None:  # Any: Parser
        """Print it."""
        parser.is_short = False
        parser.print_help()
        parser.exit()


def _hint(action: argparse.Action) -> Any:  # Any: what type hints are
    """Type of an option, None where it is of none; jsonargparse has no public way to tell."""
    return getattr(action, "_typehint", None)


def _has_names(hint: Any) -> bool:  # Any: what type hints are
    """Whether a type is a Literal, or a tuple or union with one."""
    return any(get_origin(part) is Literal for part in (hint, *get_args(hint)))


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
    parser = Parser(
        prog=prog,
        usage=f"{prog} {usage} [options]",
        description=summary,
        exit_on_error=False,
        allow_abbrev=False,  # a shortened option would change its meaning when options are added
    )
    parser.is_short = True
    parser.add_argument("--help-all", action=HelpAll, help="Show this and all settings, and exit.")
    parser.add_argument("--config", action="config", help="YAML file with any of the options below.")
    if has_json_file:
        help_text = "Print the result as JSON, or write it to a file."
        parser.add_argument("--json", type=str, nargs="?", const="-", metavar="FILE", help=help_text, **OPTIONAL)
    else:
        parser.add_argument("--json", action="store_const", const="-", help="Print the result as JSON.", **OPTIONAL)
    parser.add_argument("--quiet", action="store_true", help="Print nothing but errors.", **OPTIONAL)
    parser.add_argument("--debug", action="store_true", help="Show the traceback of an error.", **OPTIONAL)
    return parser


def take_settings_of_run(parser: ArgumentParser, argv: Sequence[str], config: type | None) -> None:
    """Let ``--resume`` take the settings of its run for defaults, where no ``--config`` is named; options that are given go before them.

    The config.yaml of a run is data, perhaps of somebody else: settings of a fit are taken from it and nothing else, and no path that
    stands there is opened.

    Parameters
    ----------
    parser
        Of the command.
    argv
        What follows the name of the command.
    config
        The dataclass that a run saves; commands with another one, or none, have no run to go on with.

    Raises
    ------
    ConfigError
        If the file is damaged, is no plain file, or holds what is no setting of a fit.
    """
    values = dict(pairwise(argv))
    values |= dict(argument.split("=", 1) for argument in argv if argument.startswith("--run="))
    has_config = any(argument.split("=", 1)[0] == "--config" for argument in argv)
    if config is not ScamacConfig or "--resume" not in argv or "--run" not in values or has_config:
        return
    path = below(values["--run"], "config.yaml")
    try:
        raw = _settings_of(path)
        if raw is None:
            return
        settings = from_plain(
            ScamacConfig, parse_yaml(raw), is_partial=True
        )  # an unknown key says more than a wrong seal
        check_yaml_seal(raw)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error).rstrip(".")
        raise ConfigError(
            f"{path} cannot be used: {reason}. It holds the settings of a fit and nothing else; put it back as it was, or name a file of "
            "your own with --config."
        ) from error
    # lists of dataclasses as plain dicts: the parser makes them
    parser.set_defaults({key: plain(value) for key, value in _leaves(asdict(settings))})


def _settings_of(path: str) -> bytes | None:
    """Read the settings of a run from a folder or a bucket; None where there are none yet."""
    if not is_url(path):
        return read_plain(Path(path), MAX_YAML_BYTES) if os.path.lexists(path) else None
    from scamac_scale.remote.bucket import Bucket

    bucket = Bucket(path, ConfigError)
    entry = bucket.find()
    if entry is not None and entry.size > MAX_YAML_BYTES:
        raise ValueError(f"it has more than {MAX_YAML_BYTES:,} bytes")
    return None if entry is None else bucket.read()


def _leaves(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting by its full name."""
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


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
        If an argument, a config key or the name of a choice is unknown (names the nearest known one), or a value is missing or
        of the wrong type.
    """
    try:
        args: Namespace = parser.instantiate(parser.parse_args(list(argv)))
        return args
    except ConfigError:
        raise
    except (argparse.ArgumentError, TypeError, ValueError, KeyError) as error:
        known = {*_options(parser), *(_keys(config, prefix) if config else ())}
        types = {action.dest: hint for action in parser._actions if (hint := _hint(action)) is not None}
        message = _diagnosis(argv, sorted(known), types) or _one_line(str(error))
        raise ConfigError(f"{message} See `{parser.prog} --help`.") from error


def _options(parser: ArgumentParser) -> Iterator[str]:
    for action in parser._actions:  # argparse has no public way to list its options
        yield action.dest
        yield from (option[2:] for option in action.option_strings if option.startswith("--"))


def _keys(config: type, prefix: str) -> Iterator[str]:
    """Every dotted key of a config; the fields of a listed dataclass stand below the key of the list."""
    hints = type_hints(config)
    for field in fields(config):
        key, hint = prefix + field.name, hints[field.name]
        nested = next((part for part in (hint, *get_args(hint)) if is_dataclass(part)), None)
        yield key
        if isinstance(nested, type):
            yield from _keys(nested, key + ".")


# Any: what type hints are
def _diagnosis(argv: Sequence[str], known: Sequence[str], types: Mapping[str, Any]) -> str | None:
    for at, argument in enumerate(argv):
        if argument == "--":
            return None
        name, equals, value = argument.partition("=")
        if not name.startswith("--"):
            continue
        if not equals and at + 1 < len(argv):
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
        if not equals and (not value or value.startswith("--")):
            continue  # it has no value, or is a flag
        key = "" if name == "--config" else name[2:].replace("-", "_")
        try:
            _check_names(types, key, value if get_origin(types.get(key)) is Literal else content)
        except ConfigError as error:
            return str(error)
    return None


def _check_names(types: Mapping[str, Any], key: str, content: Any) -> None:  # Any: type hints, and what YAML holds
    """Refuse unknown names in the value of a key, or of the keys below it."""
    if key in types:
        if content is False and "off" in get_args(types[key]):
            raise ConfigError(f"{key}=off is false in YAML; write 'off', with its quotes.")
        check_value(types[key], content, key)
    elif isinstance(content, str) and any(name.startswith(f"{key}.") for name in types) and Path(content).is_file():
        _check_names(types, key, _read_config(content))
    elif isinstance(content, dict):
        for name, part in content.items():
            _check_names(types, f"{key}.{name}" if key else name, part)


def _read_config(path: str) -> Any:  # Any: what YAML holds
    try:
        content = yaml.safe_load(at_home(path).read_text())
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
