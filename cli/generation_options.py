"""Which options of generate.py go together."""

import re
from collections.abc import Sequence

import click

# Mean nothing without --guide.
GUIDING = ('top_k', 'beam', 'combine', 'guide_every', 'guide_layers', 'proposals', 'sweeps', 'prior_weight')
KEEPING = ('keep_layers', 'keep_region', 'redraw_region')  # nor these without --keep
PRIOR = ('temperature', 'top_p', 'uniform', 'cfg')

# What --keep names: seeds, a file of codes and its rows, else pictures, which are encoded.
SEEDS = 'seed:'
CODE_FILE = re.compile(r'(.+\.(?:npz|npy|txt))(?::([\d,-]+))?', re.DOTALL)


def was_given(ctx: click.Context, name: str) -> bool:
    return ctx.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT


def first_given(ctx: click.Context, names: Sequence[str]) -> str | None:
    """The first of some options that was given, as --it-is-typed."""
    return next((f'--{name.replace("_", "-")}' for name in names if was_given(ctx, name)), None)


def check_options(ctx: click.Context) -> None:
    """ClickException for options that contradict each other."""
    o = ctx.params
    if sum(map(bool, (o['codes'], o['reconstruct'], o['guide']))) > 1:
        raise click.ClickException('--codes, --reconstruct and --guide exclude each other: give one')
    if o['keep'] and (o['codes'] or o['reconstruct']):
        raise click.ClickException('--keep names codes or pictures itself: leave out --codes and --reconstruct')
    encodes = o['reconstruct'] or o['keep'] and not (o['keep'].startswith(SEEDS) or CODE_FILE.fullmatch(o['keep']))
    if o['max_images'] and not (o['reconstruct'] or o['keep']):
        raise click.ClickException('--max-images needs --reconstruct or --keep; for fewer samples give fewer --seeds')
    if o['refine'] and not encodes:
        raise click.ClickException('--refine needs --reconstruct or --keep=PICTURE: it is for encoding')
    if (option := first_given(ctx, KEEPING)) and not o['keep']:
        raise click.ClickException(f'{option} needs --keep, which names the latents')
    check_guiding(ctx, [name for name in GUIDING if not (name == 'beam' and encodes)])
    if (option := first_given(ctx, PRIOR)) and (o['codes'] or o['reconstruct']):
        raise click.ClickException(f'{option} is for samples: leave it out with --codes and --reconstruct')


def check_guiding(ctx: click.Context, guiding: Sequence[str]) -> None:
    """``check_options`` of guides and the options ``guiding`` that need them."""
    o = ctx.params
    if not o['guide']:
        if option := first_given(ctx, guiding):
            raise click.ClickException(f'{option} needs --guide: give it too, or leave {option} out')
        return
    if sum(was_given(ctx, name) for name in ('top_k', 'temperature', 'beam')) > 1:
        raise click.ClickException('--top-k, --temperature and --beam exclude each other: give one')
    if o['top_p'] is not None or o['cfg'] != 1:
        raise click.ClickException('--top-p and --cfg are for samples without --guide: leave them out')
