"""``--keep``: parts of latents that are kept, while the rest is drawn anew."""

from collections.abc import Sequence
from typing import Any

import click
import numpy as np
import torch

from cli.code_files import read_code_file
from cli.generation_options import CODE_FILE, SEEDS
from cli.options import Ints
from cli.pictures import Pictures
from cli.regions import Rectangle, painted
from ddn_networks import Network, codes
from dnnlib.images import to_uint8


class KeptCodes:
    """The latents that ``--keep`` names, and which of their codes are kept.

    Attributes: names, one for each latent; option, what the user typed, for errors; sources, files and folders.

    Args:
        source: 'seed:7', 'seed:0-9'; FILE.npz, .npy or .txt of codes, with ':3' or ':0-9' for some of its rows; else a
            picture, a folder or a zip, which are encoded.
        layers: whose codes are kept; None for all.
        regions: of the picture, in pixels: cells that reach into one are kept; none for the whole picture.
        redrawn: regions that do not count as kept: a cell inside them alone is drawn anew.
        most: only so many latents, the first; None for all.
        sampling: arguments of ``Network.sample``, for seeds.
        search: arguments of ``Network.encode``, for pictures.

    Raises:
        ValueError, OSError: a source that cannot be read or does not fit the network, layers that it does not have,
            regions outside of the picture, nothing kept or nothing free.
    """

    def __init__(
        self,
        net: Network,
        source: str,
        layers: Sequence[int] | None = None,
        regions: Sequence[Rectangle] = (),
        redrawn: Sequence[Rectangle] = (),
        most: int | None = None,
        sampling: dict[str, Any] | None = None,
        search: dict[str, Any] | None = None,
    ):
        self.net, self.option, self.sources = net, f'--keep={source}', []
        self._kept = _kept(net, layers, regions, redrawn)
        self._sampling, self._search = sampling or {}, search or {}
        self._pictures: Pictures | None = None
        self._table: torch.Tensor | None = None
        self._seeds: list[int] = []
        of_file = CODE_FILE.fullmatch(source)
        if source.startswith(SEEDS):
            self._seeds = self._numbers(source.removeprefix(SEEDS))
            self.names = [f'seed{seed:06d}' for seed in self._seeds]
        elif of_file:
            self._read_table(of_file[1], of_file[2])
        else:
            self._pictures = Pictures(source, self.option)
            self.names, self.sources = self._pictures.names, [source]
        self.names = self.names[:most]
        if self._kept.all() and (self._table is None or (self._table >= 0).all()):
            cells = ', as this network has no cells' if net.num_whole_layers == net.num_layers else ''
            ways = '--keep-layers' if cells else '--keep-layers, --keep-region or --redraw-region'
            raise ValueError(f'{self.option} keeps all codes and leaves nothing to draw: give other {ways}{cells}')

    def _numbers(self, text: str) -> list[int]:
        try:
            return Ints().convert(text, None, None)
        except click.BadParameter as error:
            raise ValueError(f'{self.option}: {error.message}') from error

    def _read_table(self, path: str, rows: str | None) -> None:
        file = read_code_file(path, partial=True)
        try:
            table = self.net.check_codes(torch.from_numpy(file.codes), free=True)
        except ValueError as error:
            raise ValueError(f'{self.option}: {error}') from error
        index = range(len(table)) if rows is None else self._numbers(rows)
        wrong = [row for row in index if row >= len(table)]
        if wrong:
            raise ValueError(f'{self.option}: {path} holds rows 0 to {len(table) - 1}, not {wrong[0]}')
        self._table = table[list(index)]
        known = None if file.names is None else file.names.tolist()
        self.names = [f'row{row:06d}' if known is None else known[row] for row in index]
        self.sources = [path]

    def __len__(self) -> int:
        return len(self.names)

    def of(self, targets: Sequence[int], condition: torch.Tensor | None = None) -> torch.Tensor:
        """Partial codes [n, D] of the latents ``targets``, -1 where they are free; the condition has one row, or one
        each."""
        return torch.where(self._kept, self._latents(targets, condition), -1)

    def look(self, target: int, condition: torch.Tensor | None = None) -> np.ndarray | None:
        """The picture of a latent to look at, uint8 [C, H, W]; None where some of its codes are missing."""
        if self._pictures is not None:
            return to_uint8(self._read([target]))[0].cpu().numpy()
        latent = self._latents([target], condition)
        return None if (latent < 0).any() else to_uint8(self.net.decode(latent, condition))[0].cpu().numpy()

    def _latents(self, targets: Sequence[int], condition: torch.Tensor | None) -> torch.Tensor:
        rows = np.asarray(targets) % len(self)
        if self._table is not None:
            return self._table[rows]
        if condition is None or len(condition) == 1:
            rows, back = np.unique(rows, return_inverse=True)
        else:
            back = np.arange(len(rows))
        if self._pictures is None:
            seeds = [self._seeds[row] for row in rows]
            found = self.net.sample(seeds=seeds, condition=condition, **self._sampling)[1]
        else:
            found = self.net.encode(self._read(rows.tolist()), condition, **self._search)
        return found.cpu()[back]

    def _read(self, rows: Sequence[int]) -> torch.Tensor:
        size = self.net.img_resolution
        return self._pictures.at(rows, size, size, self.net.img_channels)


def _kept(
    net: Network, layers: Sequence[int] | None, regions: Sequence[Rectangle], redrawn: Sequence[Rectangle]
) -> torch.Tensor:
    """Which codes are kept, [D] bool; ValueError where there are none."""
    wrong = [layer for layer in layers or () if layer >= net.num_layers]
    if wrong:
        raise ValueError(f'--keep-layers: this network has layers 0-{net.num_layers - 1}, not {wrong[0]}')
    pixels = painted(regions, net, '--keep-region') if regions else torch.ones(net.img_resolution, dtype=torch.bool)
    pixels &= ~painted(redrawn, net, '--redraw-region')
    kept = codes.touching(pixels, [spec.grid for spec in net.specs])
    if layers is not None:
        of_layer = torch.tensor([layer for layer, spec in enumerate(net.specs) for _ in range(spec.num_cells)])
        kept &= torch.isin(of_layer, torch.tensor(layers))
    if not kept.any():
        raise ValueError('--keep-layers, --keep-region and --redraw-region leave nothing that is kept')
    return kept
