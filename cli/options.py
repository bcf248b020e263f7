"""What command lines share, for click: options under headings, lists of numbers, a docstring as --help, errors in one
line."""

import contextlib
import re
from collections.abc import Callable, Iterator

import click

from dnnlib.downloads import error_line
from dnnlib.util import redacted


def script_help(doc: str) -> str:
    """The docstring of a script as its --help: examples, which are indented, keep their lines."""
    return doc.replace('\n\n    ', '\n\n\b\n    ')


class GroupedCommand(click.Command):
    """A command whose --help lists its options under the headings of their ``option_group``."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                sections.setdefault(getattr(param, 'heading', 'Other options'), []).append(record)
        for heading, records in sections.items():
            with formatter.section(heading):
                formatter.write_dl(records)


def option_group(heading: str, *options: Callable) -> Callable:
    """Decorator: the given ``click.option`` decorators, under one heading in the --help of a ``GroupedCommand``."""

    def decorate(function: Callable) -> Callable:
        for option in reversed(options):
            function = option(function)
            function.__click_params__[-1].heading = heading
        return function

    return decorate


@contextlib.contextmanager
def one_line_errors(*more: type[Exception]) -> Iterator[None]:
    """What the user can mend, ValueError, OSError and ``more``, becomes one line and a non-zero exit. For a block, or
    for a command as a decorator."""
    try:
        yield
    except BrokenPipeError:
        raise  # whoever read the output has gone: click ends quietly
    except (ValueError, OSError, *more) as error:
        raise click.ClickException(error_line(error)) from error
    except click.ClickException as error:
        error.message = redacted(error.message)
        raise


class Ints(click.ParamType):
    """'0-3,7' as [0, 1, 2, 3, 7]."""

    name = 'list'

    def convert(self, value, param, ctx):
        found = []
        for part in value.split(','):
            match = re.fullmatch(r'\s*(\d{1,18})(?:-(\d{1,18}))?\s*', part)
            if match is None:
                self.fail(f'{part!r} is no number below 10^18 and no range; give 0-7 or 1,5,9-12', param, ctx)
            first, last = int(match[1]), int(match[2] or match[1])
            if last < first:
                self.fail(f'the range {part.strip()} is empty: did you mean {last}-{first}?', param, ctx)
            found += range(first, last + 1)
        return found


class Numbers(click.ParamType):
    """'0.5,-1' as [0.5, -1.0]."""

    name = 'list'

    def convert(self, value, param, ctx):
        try:
            return [float(part) for part in value.split(',')]
        except ValueError:
            self.fail(f'{value!r} is no list of numbers; give for example 0.5,-1', param, ctx)
