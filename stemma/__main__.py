"""The `stemma` command."""

from __future__ import annotations

import importlib
import sys

import stemma

HELP = """\
usage: stemma COMMAND [options]

Stemma runs programs with language models, and serves them.

commands:
  serve      start a server: /generate, /v1/graph, OpenAI-compatible routes
  run        run a program file on the bundled model, or on a server with --url
  grammar    check: run JSON schemas with their instances through a constraint engine
  bench      measure: scheduler, offline, programs, grammar, simulate, soak ...
  doctor     this machine: GPUs, versions, which kernels would run and why, what to install
  --version  print the version

Each command explains itself: stemma serve --help

examples:
  stemma run examples/quickstart.py
  stemma serve --port 30000
  stemma run examples/quickstart.py --url http://127.0.0.1:30000
  stemma bench offline --model demo
"""

COMMANDS = {
    "serve": "stemma.backend.server.launch",
    "run": "stemma.interpreter.command",
    "grammar": "stemma.backend.grammar.command",
    "bench": "stemma.backend.bench.command",
    "doctor": "stemma.backend.executor.doctor",
}


def main(argv: list[str] | None = None) -> int:
    """Entry point of the console command. Returns the exit status."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if args[0] in ("--version", "-V"):
        print(f"stemma {stemma.__version__}")
        return 0
    command = args.pop(0)
    if command not in COMMANDS:
        print(f"stemma: no command {command!r}; one of {', '.join(COMMANDS)}. Try: stemma --help", file=sys.stderr)
        return 2
    try:
        module = importlib.import_module(COMMANDS[command])
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "stemma":
            raise
        print(
            f"stemma {command} needs the package {error.name!r}. Try: pip install 'stemma-lang[engine]'",
            file=sys.stderr,
        )
        return 1
    try:
        return int(module.main(args) or 0)
    except stemma.StemmaError as error:
        print(f"stemma {command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
