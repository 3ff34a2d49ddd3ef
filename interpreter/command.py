"""`stemma run FILE`: run a program file on the bundled model, another model, or a server."""

from __future__ import annotations

import argparse
import runpy
import sys
from pathlib import Path

from stemma.interpreter.default_endpoint import set_default_backend


def main(argv: list[str] | None = None) -> int:
    """Runs the file as `__main__`, with the chosen endpoint as the default backend."""
    parser = argparse.ArgumentParser(
        prog="stemma run",
        usage="stemma run [--model DIR | --url URL] [--api-key KEY] FILE [ARGUMENTS OF THE PROGRAM …]",
        allow_abbrev=False,
        description="Run a Python file that uses stemma. Its programs run on the bundled model unless told otherwise; "
        "a file that calls set_default_backend itself decides for itself.",
        epilog="These options may stand before or after FILE. Everything else goes to the program as its sys.argv, as "
        "does all that stands behind a `--`. example: stemma run examples/quickstart.py --url http://127.0.0.1:30000",
    )
    parser.add_argument("file", type=Path, help="the program")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--model", metavar="DIR", help="run in process on the model in this directory ('demo': bundled)")
    where.add_argument("--url", help="run on the server at this address, as started by `stemma serve`")
    parser.add_argument("--api-key", help="the server's key")
    given = list(sys.argv[1:] if argv is None else argv)
    end = given.index("--") if "--" in given else len(given)
    args, rest = parser.parse_known_args(given[:end])
    if not args.file.is_file():
        parser.error(f"no such file: {args.file}")
    if args.api_key and not args.url:
        parser.error("--api-key needs --url")
    if args.url:
        from stemma.interpreter.endpoints.runtime import RuntimeEndpoint

        set_default_backend(RuntimeEndpoint(args.url, api_key=args.api_key))
    elif args.model:
        from stemma.interpreter.endpoints.local import LocalEndpoint

        set_default_backend(LocalEndpoint(model=args.model))
    sys.argv = [str(args.file), *rest, *given[end + 1 :]]
    sys.path.insert(0, str(args.file.resolve().parent))
    runpy.run_path(str(args.file), run_name="__main__")
    return 0
