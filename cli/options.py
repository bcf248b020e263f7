"""What command lines share, for click: the source's docstring as --help, options under headings, errors in one line,
lists of numbers."""

import ast
import contextlib
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from dnnlib.downloads import error_line
from dnnlib.readers import printable, reason
from dnnlib.util import discard_output, redacted

MAX_LIST = 1_000_000  # numbers of one option


def script_help(file: str, function: str | None = None) -> str:
    """The docstring of a script, or of one of its functions, as its --help: examples, which are indented, keep their
    lines. It is read from the source, since ``python -OO`` keeps no docstrings."""
    tree = ast.parse(Path(file).read_text(encoding='utf-8'))
    if function is not None:
        (tree,) = (x for x in tree.body if isinstance(x, ast.FunctionDef) and x.name == function)
    return re.sub(r'\n\n(?= +\S)', '\n\n\b\n', ast.get_docstring(tree))


class _OneLine:
    """Errors in options, or of a --help that cannot be written, in one line without secrets of URLs. An option that is
    given without a value (``--codes=$EMPTY``) is an error, not as if it were left out."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        with one_line_errors():
            left = super().parse_args(ctx, args)
            for param in self.params:
                value = ctx.params.get(param.name)
                is_empty = value == '' or isinstance(value, tuple) and '' in value
                if is_empty and ctx.get_parameter_source(param.name) == click.core.ParameterSource.COMMANDLINE:
                    raise click.BadParameter('it is empty: give a value, or leave the option out', ctx, param)
            return left


class Command(_OneLine, click.Command):
    """A command whose errors in options are one line."""


class Group(_OneLine, click.Group):
    """A group of commands whose errors in options are one line."""


class GroupedCommand(Command):
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


def command_group(file: str) -> tuple[Group, Callable[[str], Callable]]:
    """The group of commands of a script, whose help is the docstring of ``file``, and their decorator: command(NAME),
    whose help is the docstring of the function NAME_command."""
    settings = {'show_default': True, 'max_content_width': 110}
    group = Group(Path(file).stem, help=script_help(file), context_settings=settings)

    def command(name: str) -> Callable:
        return group.command(name, cls=GroupedCommand, help=script_help(file, f'{name}_command'))

    return group, command


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
    """Report user errors, ValueError, OSError and ``more``, and a lack of memory, in one line and exit non-zero. For a
    block, or for a command as a decorator."""
    try:
        yield
    except BrokenPipeError:
        raise  # the reader of the output has gone: click ends quietly
    except (ValueError, OSError, *more) as error:
        try:
            sys.stdout.flush()
        except (OSError, ValueError):  # the output itself failed: what it still holds would change the exit code
            discard_output(sys.stdout)
        raise click.ClickException(printable(error_line(error))) from error
    except click.ClickException as error:
        error.message = redacted(error.message)
        raise
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not _out_of_memory(error):
            raise
        raise click.ClickException(f'not enough memory{_remedy()} ({reason(error)})') from error


def _remedy() -> str:
    """What to give less of, of the options that the command has."""
    context = click.get_current_context(silent=True)
    smaller = [f'--{name}' for name in ('batch', 'beam') if context and name in context.params]
    return f': give a smaller {" or ".join(smaller)}' if smaller else ''


def _out_of_memory(error: RuntimeError) -> bool:
    """Whether PyTorch could not allocate a tensor: CUDA has a class for that, the CPU a message."""
    return type(error).__name__ == 'OutOfMemoryError' or "can't allocate memory" in str(error)


def script(file: str) -> Callable[[Callable], click.Command]:
    """Decorator: a command whose --help is the docstring of ``file``, that shows defaults and reports user errors in
    one line."""

    def decorate(command: Callable) -> click.Command:
        settings = {'show_default': True, 'max_content_width': 110}
        return click.command(cls=Command, help=script_help(file), context_settings=settings)(one_line_errors()(command))

    return decorate


class Ints(click.ParamType):
    """'0-3,7' as [0, 1, 2, 3, 7]."""

    name = 'list'

    def convert(self, value, param, ctx):
        if not isinstance(value, str):
            return value
        ranges = []
        for part in value.split(','):
            match = re.fullmatch(r'\s*(\d{1,18})(?:-(\d{1,18}))?\s*', part)
            if match is None:
                self.fail(f'{part!r} is not a number below 10^18 or a range; give 0-7 or 1,5,9-12', param, ctx)
            first, last = int(match[1]), int(match[2] or match[1])
            if last < first:
                self.fail(f'the range {part.strip()} is empty: did you mean {last}-{first}?', param, ctx)
            ranges.append(range(first, last + 1))
        count = sum(r.stop - r.start for r in ranges)
        if count > MAX_LIST:
            self.fail(f'{count:,} numbers are more than {MAX_LIST:,}: give smaller ranges', param, ctx)
        return [number for r in ranges for number in r]


class Classes(Ints):
    """'3' or '0-4,7' as a list of class numbers; 'all' as it is."""

    def convert(self, value, param, ctx):
        return value if value == 'all' else super().convert(value, param, ctx)


class Layers(click.ParamType):
    """'3-60' as (3, 60)."""

    name = 'layers'

    def convert(self, value, param, ctx):
        if isinstance(value, tuple):
            return value
        match = re.fullmatch(r'(\d{1,9})-(\d{1,9})', value)
        if match is None:
            self.fail(f'{value!r} is not a range of layers; give for example 0-62', param, ctx)
        return int(match[1]), int(match[2])


class Numbers(click.ParamType):
    """'0.5,-1' as [0.5, -1.0]."""

    name = 'list'

    def convert(self, value, param, ctx):
        if not isinstance(value, str):
            return value
        try:
            return [float(part) for part in value.split(',')]
        except ValueError:
            self.fail(f'{value!r} is not a list of numbers; give for example 0.5,-1', param, ctx)


class Text(click.ParamType):
    """Text as it is; 'help' prints what ``help_text`` returns and ends the script."""

    name = 'text'

    def __init__(self, help_text: Callable[[], str]):
        self.help_text = help_text

    def convert(self, value, param, ctx):
        if value == 'help':
            click.echo(self.help_text())
            ctx.exit()
        return value


# Options that several scripts have.


EMA = click.option('--ema', metavar='LABEL',
                   help="Averaged weights by half-life, or 'none' for the raw ones  [default: the first]")
FINISH = click.option('--finish', metavar='BOOL', type=bool, default=True,
                      help='Apply the finisher, if the network has one; 0: show the picture before it')
# --network, --ema, --steps, --device, --finish: arguments of ``cli.networks.load_network``.
network_options = option_group(
    'Network',
    click.option('--network', metavar='FILE|URL', required=True,
                 help='Snapshot, run folder, shipped name, or hf:owner/name of the Hugging Face Hub'),
    EMA,
    click.option('--steps', metavar='INT', type=click.IntRange(1, 10_000),
                 help='Layers of a recurrent network  [default: as trained]'),
    click.option('--device', metavar='NAME', help='cuda, mps or cpu  [default: the best available]'),
    FINISH,
)  # fmt: skip
BATCH = click.IntRange(1, 65_536)
BEAM = click.IntRange(1, 4096)
REFINE = click.IntRange(0, 64)
# How images are encoded: arguments of ``Network.reconstruct``.
search_options = (
    click.option('--beam', metavar='INT', type=BEAM, default=1, help='Partial images kept in the search'),
    click.option('--refine', metavar='INT', type=REFINE, default=0,
                 help='Other nodes that each cell tries; what is nearer in the end is kept'),
)  # fmt: skip
