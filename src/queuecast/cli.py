"""The command `queuecast`: serve, demo, publish, subscribe, drain.

Exit codes: 0 done, 1 it failed while running (refused, broker away, port taken), 2 it was called
or configured wrongly. What is expected to go wrong is one line on stderr, never a traceback.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from . import __version__, options
from .commands.failure import Failure, complain
from .config import Config
from .errors import ConfigError, QueuecastError

DEFAULT_URL = "http://127.0.0.1:15674"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = _parser().parse_args(argv)
    try:
        _check_text(arguments)
        # Each command's libraries are loaded only for that command.
        if arguments.command == "publish":
            from .commands.publish import publish

            return publish(arguments)
        if arguments.command == "subscribe":
            from .commands.subscribe import subscribe

            return subscribe(arguments)
        if arguments.command == "drain":
            from .commands.drain import drain

            return drain(arguments)
        from .commands.serve import serve

        return serve(arguments)
    except ConfigError as error:
        complain(error.line())
        return 2
    except QueuecastError as error:
        complain(error.line())
        return 1
    except Failure as failure:
        complain(str(failure))
        return failure.exit_code
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="queuecast",
        description="Puts a message queue on the web.",
        epilog="Every setting: docs/configuration.md.",
    )
    parser.add_argument("--version", action="version", version=f"queuecast {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="run the gateway")
    demo = commands.add_parser("demo", help="run the gateway with its demo pages")
    for each in (serve, demo):
        _add_serve_flags(each)

    publish = commands.add_parser("publish", help="publish one message through a gateway")
    publish.add_argument("destination", metavar="DEST", help="e.g. /topic/prices")
    publish.add_argument(
        "body", metavar="BODY", nargs="?", default="-", help="the body; - or nothing reads stdin"
    )
    publish.add_argument(
        "--header",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="a header or property such as priority, expiration (ms); may be repeated",
    )
    publish.add_argument("--content-type", metavar="TYPE", help="the body's media type")
    publish.add_argument(
        "--persistent",
        action=argparse.BooleanOptionalAction,
        help="whether the broker keeps it across a restart (default: yes)",
    )

    subscribe = commands.add_parser("subscribe", help="print a destination's messages")
    subscribe.add_argument("destination", metavar="DEST", help="e.g. '/topic/prices.#'")
    subscribe.add_argument("--since", metavar="POSITION", help="after this position, or: first")
    subscribe.add_argument("--last", metavar="N", type=_count, help="the last N first, then live")
    subscribe.add_argument("--count", metavar="N", type=_count, help="exit after N messages")
    subscribe.add_argument(
        "--envelope",
        "--json",
        action="store_true",
        help="print position, destination, headers and body as one JSON object a line",
    )
    drain = commands.add_parser(
        "drain", help="send a running gateway's clients away; it stays up, not ready"
    )
    drain.add_argument("--pid-file", metavar="FILE", help="the gateway's server.pid_file")
    drain.add_argument("--pid", metavar="PID", type=_count, help="its process number instead")
    drain.add_argument("--url", help="where it listens (default: what stands in the file)")
    drain.add_argument("--config", metavar="FILE", help="settings (default ./queuecast.toml)")

    for each in (publish, subscribe):
        each.add_argument("--url", default=DEFAULT_URL, help=f"the gateway (default {DEFAULT_URL})")
    return parser


def _add_serve_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="FILE", help="settings (default ./queuecast.toml)")
    parser.add_argument(
        "--log-level",
        default="info",
        choices=("debug", "info", "warning", "error"),
        help="how much is logged to stderr (default info)",
    )
    for each in options.options(Config):
        if not each.flag:
            continue
        help = f"{each.help} Default: {each.shown_default}.".replace("`", "").replace("%", "%%")
        if each.is_bool:
            parser.add_argument(
                each.flag, dest=each.path, action=argparse.BooleanOptionalAction, help=help
            )
        else:
            # The value is checked with all the others, so that errors read alike.
            metavar = f"{{{','.join(each.choices)}}}" if each.choices else each.key.upper()
            parser.add_argument(each.flag, dest=each.path, metavar=metavar, help=help)


def _check_text(arguments: argparse.Namespace) -> None:
    """Raise Failure for arguments that no URL or header can carry; a body may be any bytes."""
    for name, value in vars(arguments).items():
        for text in value if isinstance(value, list) else (value,):
            if name == "body" or not isinstance(text, str):
                continue
            try:
                text.encode()
            except UnicodeEncodeError:
                named = name.replace("_", "-")
                raise Failure(f"{named}: {text[:200]!r} is not UTF-8 text", 2) from None


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise argparse.ArgumentTypeError(f"{text!r} is not a count")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
