"""Owns the command line: arguments, exit codes, one line per error. Imports the server only to serve; knows no HTTP."""

import argparse
import sys
from pathlib import Path
from typing import TextIO

_DESCRIPTION = "Serve Hugging Face transformers models through the OpenAI HTTP API."
_CONFIG_HELP = "configuration file (default: ./config.json)"
_EPILOG = """\
commands:
  tfoai [CONFIG]         load the models of CONFIG and serve them until SIGTERM or Ctrl-C
  tfoai check [CONFIG]   check CONFIG without loading anything; say what it would serve
                         (a configuration file that is really named check: ./check)

exit codes: 0 ended as it should, 1 failed while serving, 2 wrong arguments or configuration

A configuration to start with, which then answers on http://127.0.0.1:5000/v1:
  {"MODELS": {"gpt2": {"NAME": "openai-community/gpt2", "TYPE": "CausalLM", "MODEL_DEVICE": "auto"}}}
"""


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    args = sys.argv[1:] if argv is None else argv
    check = args[:1] == ["check"]
    try:
        parsed = _check_parser().parse_args(args[1:]) if check else _parser().parse_args(args)
    except SystemExit as stop:  # --help, or arguments that argparse refuses
        return stop.code if isinstance(stop.code, int) else 2
    if not check and parsed.version:
        from app.versions import package_version

        _say(f"tfoai {package_version('tfoai')}", sys.stdout)
        return 0

    # Late, so that --help and --version do not wait for it.
    from app.config import load_config
    from app.errors import ConfigError

    path: Path = parsed.config
    try:
        config = load_config(path)
        if not check:
            from app.server import serve

            return serve(config, path)
    except ConfigError as error:
        _say(f"tfoai: {path}: {error}", sys.stderr)
        return 2
    models = config.enabled_models
    names = ", ".join(f"{name} ({model.type})" for name, model in models.items())
    _say(f"{path}: ok, {len(models)} model{'' if len(models) == 1 else 's'} enabled: {names}", sys.stdout)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tfoai",
        usage="tfoai [-h] [--version] [CONFIG]\n       tfoai check [-h] [CONFIG]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("config", metavar="CONFIG", nargs="?", type=Path, default=Path("config.json"), help=_CONFIG_HELP)
    parser.add_argument("--version", action="store_true", help="show the version and exit")
    return parser


def _check_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tfoai check",
        description="Check a configuration file without loading anything. Exit code 0: it can be used; 2: it can not.",
        allow_abbrev=False,
    )
    parser.add_argument("config", metavar="CONFIG", nargs="?", type=Path, default=Path("config.json"), help=_CONFIG_HELP)
    return parser


def _say(line: str, stream: TextIO) -> None:
    """Write exactly one line, in whatever encoding the stream has: a file's name can hold anything but NUL."""
    printable = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    encoding = stream.encoding or "utf-8"
    print(printable.encode(encoding, "backslashreplace").decode(encoding), file=stream)
